"""The configuration by which NVIDIA's Triton Inference Server serves an ONNX file."""

import json
from pathlib import Path
from typing import Any

from convnext.errors import writing

NAME = "config.pbtxt"
_TYPES = {1: "TYPE_FP32", 2: "TYPE_UINT8", 7: "TYPE_INT64", 9: "TYPE_BOOL"}  # by ONNX's numbers
_MAX_BATCH = 16  # images that Triton computes together


def write_config(file: Path) -> Path:
    """Write `config.pbtxt` beside an ONNX file of ours, and return its path. It names the model's inputs and outputs as the file has them.

    Where each input has a row for each image, Triton joins requests to batches of at most 16.
    """
    import onnx

    graph = onnx.load(file).graph
    parts = [(kind, value, _dims(value)) for kind, values in (("input", graph.input), ("output", graph.output)) for value in values]
    batched = all(dims[:1] == [-1] for _, _, dims in parts)
    lines = ['backend: "onnxruntime"', f"default_model_filename: {json.dumps(file.name, ensure_ascii=False)}"]
    lines += [f"max_batch_size: {_MAX_BATCH}", "dynamic_batching { }"] if batched else ["max_batch_size: 0"]
    for kind, value, dims in parts:
        shown = f"dims: {dims[1:] if batched else dims}" if dims else "dims: [1] reshape { shape: [] }"  # Triton has no numbers alone
        lines.append(f'{kind} [ {{ name: "{value.name}" data_type: {_TYPES[value.type.tensor_type.elem_type]} {shown} }} ]')
    path = file.with_name(NAME)
    with writing(path):
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _dims(value: Any) -> list[int]:  # a ValueInfoProto
    """Return the lengths of a value's axes, -1 for a free one."""
    return [dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim]
