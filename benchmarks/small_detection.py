"""Measure the recipe detect_small beside Ultralytics' nano model from scratch, at equal CPU seconds.

    python benchmarks/small_detection.py FOLDER [--ultralytics PYTHON] [--size 384] [--seed 0] [--work build/small_detection] [key=value …]

FOLDER holds train.json and val.json in COCO's format, and their images in images/train and images/val. Ours runs first, with its defaults
and the keys given. PYTHON is an interpreter that has Ultralytics: its yolo11n.yaml then trains with its own defaults, on one thread as it
trains on two cores, for the CPU seconds that ours took. Prints a line of a Markdown table for each: COCO's box AP of the best weights on
val.json, and the CPU seconds of the program and its workers, import and evaluations included. CPU seconds are comparable on a busy
machine, wall time is not.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from faster_coco_eval import COCO, COCOeval_faster

THEIRS = """
import json, sys, time, types
import psutil, torch
from ultralytics import YOLO
import ultralytics.engine.trainer as trainer

data, seconds, size, work, val, found, seed = sys.argv[1:]
own = psutil.Process()
def cpu():
    spent = [process.cpu_times() for process in [own, *own.children(recursive=True)]]
    return sum(one.user + one.system for one in spent) + spent[0].children_user + spent[0].children_system
clock = types.SimpleNamespace(**{name: getattr(time, name) for name in dir(time) if name[0] != "_"})
clock.time = cpu  # `time` of its settings, in hours, is a budget of CPU time
trainer.time = clock
model = YOLO("yolo11n.yaml")
given = {"imgsz": int(size), "time": float(seconds) / 3600, "seed": int(seed), "project": work}
model.train(data=data, device="cpu", pretrained=False, plots=False, workers=2, **given)
best, results = YOLO(model.trainer.best), []
for image in json.load(open(val + ".json"))["images"]:
    file = data.rpartition("/")[0] + "/images/val/" + image["file_name"]
    one = best.predict(file, imgsz=int(size), conf=0.001, max_det=100, verbose=False)[0]
    for (x1, y1, x2, y2), label, score in zip(one.boxes.xyxy.tolist(), one.boxes.cls.tolist(), one.boxes.conf.tolist()):
        results.append({"image_id": image["id"], "category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score})
json.dump(results, open(found, "w"))
"""


def ours(folder: Path, work: Path, keys: list[str]) -> tuple[float, float]:
    """Train detect_small; return the CPU seconds and COCO's box AP of its best weights in percent."""
    data = [f"data.{part}=coco:{folder}/{part}.json:{folder}/images/{part}" for part in ("train", "val")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "convnext", "train", "detect_small", "--output", str(work / "ours"), "--overwrite", "--json"]
    done = subprocess.run([*command, *data, *keys], check=True, stdout=subprocess.PIPE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, json.loads(done.stdout)["best"]


def as_yolo(folder: Path, work: Path) -> Path:
    """Write the boxes as Ultralytics reads them, beside links to the images; return its data.yaml."""
    target = (work / "yolo").resolve()
    for part in ("train", "val"):
        labels = target / "labels" / part
        labels.mkdir(parents=True, exist_ok=True)
        (target / "images").mkdir(exist_ok=True)
        if not (target / "images" / part).exists():
            (target / "images" / part).symlink_to((folder / "images" / part).resolve())
        content = json.loads((folder / f"{part}.json").read_text("utf-8"))
        ids = sorted(category["id"] for category in content["categories"])
        for image in content["images"]:
            width, height = image["width"], image["height"]
            objects = [one for one in content["annotations"] if one["image_id"] == image["id"] and not one.get("iscrowd")]
            boxes = [(ids.index(one["category_id"]), *one["bbox"]) for one in objects]
            lines = [f"{label} {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}" for label, x, y, w, h in boxes]
            (labels / f"{Path(image['file_name']).stem}.txt").write_text("\n".join(lines), "utf-8")
    settings = {"path": str(target), "train": "images/train", "val": "images/val", "names": dict(enumerate(map(str, ids)))}
    (target / "data.yaml").write_text(json.dumps(settings), "utf-8")  # JSON is YAML
    return target / "data.yaml"


def theirs(python: str, folder: Path, work: Path, seconds: float, size: int, seed: int) -> tuple[float, float]:
    """Train Ultralytics' nano model for so many CPU seconds; return those and COCO's box AP of its best weights in percent."""
    found, data = work / "found.json", as_yolo(folder, work)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    given = [str(data), str(seconds), str(size), str(work), str(folder / "val"), str(found), str(seed)]
    subprocess.run([python, "-c", THEIRS, *given], check=True, stdout=sys.stderr, env=os.environ | {"YOLO_OFFLINE": "true"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    truth = COCO(str(folder / "val.json"))
    ids, results = sorted(truth.getCatIds()), json.loads(found.read_text("utf-8"))
    for one in results:
        one["category_id"] = ids[one["category_id"]]
    score = COCOeval_faster(truth, truth.loadRes(results), "bbox")
    score.evaluate()
    score.accumulate()
    score.summarize()
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 100 * float(score.stats[0])


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ultralytics", metavar="PYTHON", help="an interpreter that has Ultralytics")
    parser.add_argument("--size", type=int, default=384, help="its image size in pixels")
    parser.add_argument("--seed", type=int, default=0, help="of both")
    parser.add_argument("--work", type=Path, default=Path("build/small_detection"))
    parser.add_argument("keys", nargs="*", help="keys of our recipe")
    args = parser.parse_intermixed_args()
    args.work.mkdir(parents=True, exist_ok=True)
    seconds, score = ours(args.folder, args.work, [f"seed={args.seed}", *args.keys])
    print(f"| {args.folder.name} | detect_small | {seconds:.0f} | {score:.1f} |", flush=True)
    if args.ultralytics:
        seconds, score = theirs(args.ultralytics, args.folder, args.work, seconds, args.size, args.seed)
        print(f"| {args.folder.name} | yolo11n, {args.size} pixels | {seconds:.0f} | {score:.1f} |")


if __name__ == "__main__":
    main()
