"""A network of many channels on the service: what it takes, and the limits of files that Pillow does not read."""

import asyncio
import io

import numpy as np
import torch
from deep_files import tiff
from helpers import sample_image
from service import encoded, started
from tiny_models import create

from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.inference.predictor import Predictor
from convnext.models.load import Loaded
from convnext.serve.app import create_app
from convnext.serve.limits import Limits

VALUES = np.random.default_rng(0).integers(0, 60_000, (40, 48, 5)).astype(np.uint16)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_tiffs_and_arrays_are_predicted_and_limited():
    how = ClassifyPreprocessing(32, mean=(0.5,) * 5, std=(0.3,) * 5, channels=5)
    predictor = Predictor(Loaded(create("convnext_tiny", in_channels=5), how, classes=["ant", "bee", "wasp"]), torch.device("cpu"))
    wanted = predictor(VALUES).top(1)[0]
    bomb = npy(np.zeros((2000, 2, 5), np.uint8)), npy(np.zeros((60, 70, 5), np.uint8))

    async def ask():
        async with started(create_app({"five": predictor}, Limits(max_pixels=4000))) as client:
            for content in (tiff(VALUES), tiff(VALUES, planar=True, compressed=True), npy(VALUES), npy(VALUES.transpose(2, 0, 1))):
                answer = await client.post("/predict", content=content)
                assert answer.status_code == 200, answer.text
                best = answer.json()["top"][0]
                assert (best["class"], round(best["probability"], 4)) == (wanted[0], round(wanted[1], 4))
                assert (await client.post("/explain", content=content)).status_code == 200
            for content, status in (
                (encoded(sample_image()), 422),
                (bomb[0], 422),
                (bomb[1], 413),
                (tiff(VALUES)[:60], 422),
                (b"II*\0", 422),
            ):
                assert (await client.post("/predict", content=content)).status_code == status
            assert "3 channels instead of 5" in (await client.post("/predict", content=encoded(sample_image()))).text

    asyncio.run(ask())
