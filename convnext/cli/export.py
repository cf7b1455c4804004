"""The command that writes files for other runtimes: export."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from convnext.cli.common import MODEL, Json, Weights, add_command, check_model, image_size, print_json


@add_command(
    "Share",
    "convnext export runs/mine --to onnx --output mine.onnx",
    "convnext export runs/mine --to openvino --output mine.xml --precision fp16",
)
def export(
    model: Annotated[str, typer.Argument(help=MODEL)],
    to: Annotated[str, typer.Option(help="onnx, openvino, torch (.pt2), aoti (.pt2) or safetensors.")],
    output: Annotated[Path, typer.Option(help="The file to write; OpenVINO's weights are beside it as .bin.")],
    weights: Weights = None,
    size: Annotated[str | None, typer.Option(help="Pixels a side, or HEIGHTxWIDTH; by default the network's own.")] = None,
    precision: Annotated[str, typer.Option(help="float32 or fp16.")] = "float32",
    with_preprocessing: Annotated[
        bool, typer.Option("--with-preprocessing", help="Take uint8 RGB images (N, H, W, 3), and normalise them inside.")
    ] = False,
    paste_masks: Annotated[
        bool, typer.Option("--paste-masks", help="Detectors: also give masks in pixels of the image, 100 times its size.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Export a network for another runtime, and compare its outputs.

    The file is run there, and kept only if it computes the same.
    """
    check_model(model)
    from dataclasses import asdict

    from convnext.export.export import export as run

    found = run(
        model,
        to,
        output,
        weights=weights,
        size=image_size(size),
        precision=precision,
        with_preprocessing=with_preprocessing,
        paste_masks=paste_masks,
        report=lambda message: print(message, file=sys.stderr, flush=True),
    )
    for remark in found.remarks:
        print(remark, file=sys.stderr)
    if as_json:
        print_json(asdict(found))
        return
    sizes = "any size" if found.size is None else f"{found.size[0]} x {found.size[1]} pixels"
    written = f"{found.file}: {found.bytes / 1e6:.1f} MB, {found.precision}"
    print(f"{written}; images of {sizes}; relative error {found.relative_error:.1e}" if to != "safetensors" else written)
