"""The command that writes files for other runtimes: export."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convnext.cli.common import MODEL, Json, Weights, add_command, check_model, image_size, print_json
from convnext.text import printable

if TYPE_CHECKING:
    from convnext.export.int8 import Quantized


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
    precision: Annotated[str, typer.Option(help="float32, fp16, bf16 (torch, aoti) or int8 (onnx, openvino).")] = "float32",
    calibration: Annotated[list[str] | None, typer.Option(help="For int8: images or folders of them, like those to be predicted.")] = None,
    data: Annotated[str | None, typer.Option(help="For int8: labelled images, to evaluate the network and the file on.")] = None,
    with_preprocessing: Annotated[
        bool, typer.Option("--with-preprocessing", help="Take uint8 RGB images (N, H, W, 3), and normalise them inside.")
    ] = False,
    paste_masks: Annotated[
        bool, typer.Option("--paste-masks", help="Detectors: also give masks in pixels of the image, 100 times its size.")
    ] = False,
    triton: Annotated[bool, typer.Option("--triton", help="onnx: also write config.pbtxt for Triton Inference Server beside it.")] = False,
    as_json: Json = False,
) -> None:
    """Export a network for another runtime, and compare its outputs.

    The file is run there, and kept only if it computes the same.
    """
    check_model(model)
    from dataclasses import asdict

    from convnext.export.export import export as run
    from convnext.inference.inputs import find_images

    found = run(
        model,
        to,
        output,
        weights=weights,
        size=image_size(size),
        precision=precision,
        calibration=list(find_images(calibration or [])),
        data=data,
        with_preprocessing=with_preprocessing,
        paste_masks=paste_masks,
        triton=triton,
        report=lambda message: print(printable(message), file=sys.stderr, flush=True),
    )
    for remark in found.remarks:
        print(printable(remark), file=sys.stderr)
    if as_json:
        print_json(asdict(found))
        return
    sizes = "any size" if found.size is None else f"{found.size[0]} x {found.size[1]} pixels"
    written = printable(f"{found.file}: {found.bytes / 1e6:.1f} MB, {found.precision}")
    if to == "safetensors":
        print(written)
    elif found.int8 is None:
        print(f"{written}; images of {sizes}; relative error {found.relative_error:.1e}")
    else:
        print("\n".join([f"{written}; images of {sizes}", *_gains(found.bytes, found.int8)]))


def _gains(size: int, found: "Quantized") -> list[str]:
    """Return what 8 bits lose and gain, one statement per line."""
    faster = found.images_per_second / found.float32_images_per_second
    lines = [
        f"size: {size / found.float32_bytes:.1%} of float32's {found.float32_bytes / 1e6:.1f} MB",
        f"agreement: {found.agreement:.1%} of predictions as in float32, on {found.compared} images beside the {found.calibrated} "
        "that calibrated it",
        f"speed: {found.images_per_second:.1f} images/s one by one, {faster:.2f} times float32's {found.float32_images_per_second:.1f}",
    ]
    if found.metrics is not None:
        lines += [f"float32: {found.float32_metrics}", f"int8: {found.metrics}"]
    return lines
