"""Commands that check and convert files: data check, data convert, and convert for weights."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from convnext import tasks
from convnext.cli.common import Device, MaxPixels, Weights, add_command, app, bar, check_data, check_model
from convnext.errors import ConvnextError, UsageError
from convnext.text import counted, printable

data_app = typer.Typer(help="Check data before a run; convert annotations.", no_args_is_help=True)
app.add_typer(data_app, name="data", rich_help_panel="Train")


@add_command(
    None, "convnext data check photos", "convnext data check photos --deep --val more-photos --output checked", name="check", of=data_app
)
def check_dataset(
    where: Annotated[
        str, typer.Argument(help="As for data.train: a folder, labels.csv, photos.zip, shards, coco:FILE:FOLDER, FOLDER:train …")
    ],
    task: Annotated[
        str | None,
        typer.Option(help=f"The task to use it for: {', '.join(tasks.names())}; by default its own.", autocompletion=tasks.names),
    ] = None,
    channels: Annotated[int, typer.Option(min=1, max=16, help="As for data.channels.")] = 3,
    max_pixels: MaxPixels = None,
    deep: Annotated[bool, typer.Option("--deep", help="Look for wrong labels, near duplicates and outliers too.")] = False,
    val: Annotated[str | None, typer.Option(help="For --deep: the images of the validation part, to find leaks.")] = None,
    model: Annotated[str | None, typer.Option(help="For --deep: whose features to take; as for `convnext fit`.")] = None,
    weights: Weights = None,
    output: Annotated[Path | None, typer.Option(help="For --deep: a folder for labels.csv, duplicates.csv and report.html.")] = None,
    device: Device = None,
) -> None:
    """Read all of a dataset, and print what is wrong with it.

    The first lines say what it holds. Each further line names one fault.
    """
    given = {"--val": val, "--model": model, "--weights": weights, "--output": output, "--device": device}
    if not deep and (unused := [name for name, value in given.items() if value is not None]):
        raise UsageError(f"{' and '.join(unused)} without --deep: add --deep")
    for data in (where, *([] if val is None else [val])):
        check_data(data)
    if model is not None:
        check_model(model)
    from convnext.data.formats.opening import Reading
    from convnext.data.sources.open import kind_of

    task = task or kind_of(where)
    chosen = tasks.get(task)
    for line in chosen.overview(where):
        print(printable(line), flush=True)
    problems = chosen.check(where, Reading(channels, max_pixels))
    for line in problems or [f"nothing wrong with {where}"]:
        print(printable(line), flush=True)
    if deep:
        from convnext.fit.quality.check import deep_check
        from convnext.fit.quality.tables import lines

        with bar("features") as of_features, bar("duplicates") as of_duplicates:
            found = deep_check(
                where,
                task=task,
                val=val,
                output=output,
                model=model,
                weights=weights,
                max_pixels=max_pixels,
                device=device,
                progress=(of_features, of_duplicates),
                report=lambda line: print(printable(line), file=sys.stderr, flush=True),
            )
        for line in lines(found):
            print(line)
    if problems:
        raise ConvnextError(f"{counted(len(problems), 'problem')} in {where}")


@add_command(
    None,
    "convnext data convert cvat annotations.xml fruit.json --images fruit",
    "convnext data convert coco fruit.json fruit-yolo --images fruit --to yolo",
    name="convert",
    of=data_app,
)
def convert_data(
    kind: Annotated[
        Literal["coco", "cvat", "label-studio", "labelme", "voc", "yolo"],
        typer.Argument(help="The format of the annotations."),
    ],
    source: Annotated[
        Path,
        typer.Argument(
            help="coco: the JSON; cvat: annotations.xml; label-studio: the export JSON; labelme: the folder of JSON files; voc: the folder "
            "with Annotations/ and JPEGImages/, or with XML files beside images; yolo: the folder of images, or data.yaml."
        ),
    ],
    output: Annotated[Path, typer.Argument(help="What to write: a .json file; of cvat an .xml file; of labelme, voc and yolo a folder.")],
    to: Annotated[Literal["coco", "cvat", "label-studio", "labelme", "voc", "yolo"], typer.Option(help="The format to write.")] = "coco",
    images: Annotated[
        Path | None,
        typer.Option(help="coco and labelling tools: the folder of the images; by default images/ beside the file, or its folder."),
    ] = None,
    part: Annotated[str | None, typer.Option(help="voc, yolo: the part to convert: of ImageSets/Main, of data.yaml, or a folder.")] = None,
    labels: Annotated[Path | None, typer.Option(help="yolo: the folder of text files; by default labels/ for images/.")] = None,
    names: Annotated[Path | None, typer.Option(help="yolo: data.yaml, or a text file of class names, one per line.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what another call wrote; a COCO file is always replaced.")
    ] = False,
) -> None:
    """Convert annotations: COCO, labelling tools, VOC and YOLO."""
    from convnext.data.convert import formats
    from convnext.inference.datasets import refuse_output, save_content
    from convnext.models.weights.files import write_text

    given = {"--images": images, "--part": part, "--labels": labels, "--names": names}
    taken = formats.OPTIONS[kind]
    if unused := [name for name, value in given.items() if value is not None and name not in taken]:
        raise UsageError(f"{unused[0]} has no effect on {kind}; {kind} takes {' and '.join(taken)}")
    refuse_output(kind, source, output, to, overwrite)
    found, folder = formats.convert(kind, source, images=images, part=part, labels=labels, names=names)
    content, remarks = found.content, list(found.remarks)
    if to == "coco":
        write_text(output, json.dumps(content) + "\n")
    else:
        remarks += save_content(content, folder, to, output)
    classes = [category["name"] for category in content["categories"]]
    for remark in [*remarks, f"classes: {', '.join(classes)}"]:
        print(printable(remark), file=sys.stderr)
    counts = f"{counted(len(content['images']), 'image')}, {counted(len(content['annotations']), 'object')}"
    use = f"; data.train=coco:{output}:{folder}" if to == "coco" else ""
    print(printable(f"{output}: {counts} of {counted(len(classes), 'class')}{use}"))


@add_command(
    "Share",
    "convnext convert runs/mine mine.safetensors --to timm",
    "convnext convert weights/convnext_tiny.pth tiny.safetensors --to transformers",
)
def convert(
    source: Annotated[str, typer.Argument(help="Weights of any known format: a file, a run folder, hf://owner/name.")],
    output: Annotated[Path, typer.Argument(help="A .safetensors or .pth file; for transformers and timm also a folder.")],
    to: Annotated[str, typer.Option(help="official, timm, torchvision, transformers or transformers-dinov3.")],
) -> None:
    """Write weights in another library's format."""
    check_model(source)
    from convnext.models.weights.convert import convert as run

    print(run(source, output, to))
