"""Folders for other libraries: each loads one and gives our logits for a photograph, prepared in its own way."""

import pytest
import timm
import torch
from helpers import random_model, relative_error, sample_image
from timm.data import create_transform, resolve_data_config

import convnext
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.models.weights.convert import convert
from convnext.models.weights.files import write_weights

CLASSES = ["ant $1", '蜂 "wasp"']
SMALL = {"depths": (1, 1, 1, 1), "widths": (8, 16, 24, 32)}
PHOTO = sample_image(size=(120, 90))


def written(folder, name, how, **more):
    """A weight file in a folder with a name of several words and alphabets."""
    model = random_model(name, num_classes=2, **more)
    description = {"task": "classify", "model": model.spec, "classes": CLASSES, "preprocessing": how.to_json()}
    (folder / "Ameisen und 蜂").mkdir()
    file = folder / "Ameisen und 蜂" / "best.safetensors"
    write_weights(file, model.state_dict(), description)
    return file


@pytest.mark.parametrize(
    ("name", "how", "more"),
    [
        ("convnext_tiny", ClassifyPreprocessing(image_size=64), {"kernel_size": 5, **SMALL}),
        pytest.param("convnextv2_atto", ClassifyPreprocessing(image_size=(64, 96), warp=True, crop_ratio=1.0), {"layer_scale": 0.0, **SMALL}, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", ClassifyPreprocessing(image_size=32, interpolation="bilinear"), {"layer_scale": 0.0, **SMALL}, marks=pytest.mark.slow),
        pytest.param("convnext_atto_ols", ClassifyPreprocessing(image_size=64), {}, marks=pytest.mark.slow),
        pytest.param("convnext_tiny_hnf", ClassifyPreprocessing(image_size=64), SMALL, marks=pytest.mark.slow),
        pytest.param("resnet50", ClassifyPreprocessing(image_size=64), {}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
@torch.no_grad()
def test_timm_loads_a_folder_and_prepares_and_names_as_we_do(tmp_path, name, how, more):
    if name == "resnet50":
        more = {"layer_scale": None}  # which it does not have
    file = written(tmp_path, name, how, **more)
    convert(str(file), file.parent / "timm", "timm")
    theirs, ours = timm.create_model(f"local-dir:{file.parent / 'timm'}", pretrained=True).eval(), convnext.load(file, device="cpu")
    image = create_transform(**resolve_data_config(model=theirs))(PHOTO)[None]
    assert relative_error(theirs(image), ours.model(how.transform()(PHOTO)[None])) < 1e-5
    assert theirs.pretrained_cfg["label_names"] == CLASSES
    folder = file.parent / "timm"
    again = convnext.load(*((name, str(folder / "model.safetensors")) if name == "resnet50" else (folder,)), device="cpu")
    assert (again.classes, again.preprocessing) == (CLASSES, how)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("convnext_tiny", ClassifyPreprocessing(image_size=64)),
        ("convnextv2_atto", ClassifyPreprocessing(image_size=64, warp=True, crop_ratio=1.0)),
        ("convnext_tiny", ClassifyPreprocessing(image_size=384, crop_ratio=0.95)),
    ],
)
@torch.no_grad()
def test_a_pipeline_of_transformers_loads_a_folder_and_answers_as_we_do(tmp_path, name, how):
    from transformers import pipeline

    file = written(tmp_path, name, how, **SMALL | ({"layer_scale": 0.0} if "v2" in name else {}))
    convert(str(file), file.parent / "there", "transformers")
    pipe, ours = pipeline("image-classification", model=str(file.parent / "there"), device="cpu"), convnext.load(file, device="cpu")
    image = pipe.image_processor(PHOTO, return_tensors="pt")["pixel_values"]
    # Its resizing by torchvision rounds some pixels to the next of 256 values.
    assert relative_error(pipe.model(image).logits, ours.model(how.transform()(PHOTO)[None])) < 5e-3
    found, wanted = pipe(PHOTO), ours(PHOTO).top(2)
    assert [one["label"] for one in found] == [label for label, _ in wanted]
    assert [one["score"] for one in found] == pytest.approx([probability for _, probability in wanted], abs=5e-3)
