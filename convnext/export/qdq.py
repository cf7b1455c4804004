"""Rewrite an ONNX graph so that its products are of 8 bits, by pairs of QuantizeLinear and DequantizeLinear.

Quantized are products with constant weights (MatMul), which is where a ConvNeXt block computes: its weights have a scale for each output,
the values that they multiply one scale and zero point. Convolutions, depthwise ones too, and the head compute in float32 with weights that
are stored in 8 bits. Norms, GELU, GRN, stems and the sums of the residual branches stay as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Model = Any  # onnx.ModelProto, which is not typed
Node = Any  # onnx.NodeProto

_LEAST = 1024  # numbers of a weight that is worth a scale for each output
_FITTING = 0.99  # the fraction of the images whose values fit into the range
_EPS = 1e-5  # of a largest magnitude, against division by 0


@dataclass(frozen=True)
class Observed:
    """The smallest and the largest value of each channel in each image: (images, channels)."""

    low: Floats
    high: Floats

    def divided(self, by: Floats) -> "Observed":
        """Return what is observed where each channel is divided by its own number (channels,)."""
        return Observed(self.low / by, self.high / by)

    def magnitudes(self) -> Floats:
        """Return the largest magnitude of each channel: (channels,)."""
        return np.maximum(np.abs(self.low), np.abs(self.high)).max(0)

    def scale(self) -> tuple[np.float32, np.uint8]:
        """Return scale and zero point of 8 bits. 99 % of the images fit whole, so that one odd image does not coarsen all others."""
        low = min(float(np.quantile(self.low.min(1), 1 - _FITTING)), 0.0)
        high = max(float(np.quantile(self.high.max(1), _FITTING)), 0.0)
        scale = np.float32(max(high - low, 1e-12) / 255)
        return scale, np.uint8(round(-low / float(scale)))


def products(model: Model) -> list[Node]:
    """Return the nodes whose values are quantized: products of an input by constant weights."""
    weights = _weights(model)
    return [node for node in model.graph.node if node.op_type == "MatMul" and _axis_of_outputs(node, weights) is not None]


def write_observed(model: Model, names: Sequence[str], file: Path) -> None:
    """Write the graph with the values of these names as further outputs."""
    import onnx

    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    observed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    onnx.save(observed, file)


def smooth(model: Model, observed: Mapping[str, Observed]) -> dict[str, Observed]:
    """Move scales of channels from the results of norms into the weights that multiply them, and return what is then observed.

    A norm's result has channels of very different size, for which one scale is coarse. Its affine weights can be divided by any numbers if
    the next product's weights are multiplied by them (Xiao et al., *SmoothQuant*, arXiv 2211.10438, equation 4, with alpha 0.5).
    """
    initializers = _weights(model)
    norms = {node.output[0]: node for node in model.graph.node if node.op_type == "LayerNormalization"}
    readers = [name for node in model.graph.node for name in node.input]
    found = dict(observed)
    for node in products(model):
        norm = norms.get(node.input[0])
        affine = [] if norm is None else norm.input[1:]
        if norm is None or any(readers.count(name) > 1 for name in (norm.output[0], node.input[1], *affine)):
            continue
        weight = _array(initializers[node.input[1]])
        magnitudes, rows = np.maximum(observed[norm.output[0]].magnitudes(), _EPS), np.maximum(np.abs(weight).max(1), _EPS)
        factors = np.sqrt(magnitudes / rows).astype(np.float32)
        _set(initializers[node.input[1]], weight * factors[:, None])
        for name in affine:
            _set(initializers[name], _array(initializers[name]) / factors)
        found[norm.output[0]] = observed[norm.output[0]].divided(factors)
    return found


def quantize(model: Model, observed: Mapping[str, Observed]) -> None:
    """Rewrite the graph: weights become int8, and the inputs of `products` uint8 with the scale of what was observed."""
    graph, nodes, quantized = model.graph, list[Node](), {node.output[0] for node in products(model)}
    initializers, done = _weights(model), set[str]()
    for node in graph.node:
        if (axis := _axis_of_outputs(node, initializers)) is not None:
            name, is_product = node.input[1], node.output[0] in quantized
            if name not in done:
                nodes += _weight(model, initializers[name], axis, is_product)
            node.input[1] = f"{name}_float"
            done.add(name)
            if is_product:
                node.input[0] = _values(model, nodes, node.input[0], observed, done)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # shapes of values between layers, which runtimes infer: 12 kB of a small network


def _weight(model: Model, initializer: Any, axis: int, is_product: bool) -> list[Node]:
    """Replace weights by int8, and return the nodes that make float32 of them.

    A runtime fuses DequantizeLinear into a product, but where a layer computes in float32 ONNX Runtime runs it with each image. Cast and
    Mul of constants it computes once, as it opens the file.
    """
    from onnx import TensorProto, helper

    name, weight = initializer.name, _array(initializer)
    model.graph.initializer.remove(initializer)
    numbers, scale = _quantized(weight, axis)
    (part, of_scale, _), result = _parts(name), f"{name}_float"
    if is_product:
        _add(model, name, numbers, scale.reshape(-1), None)
        return [helper.make_node("DequantizeLinear", [part, of_scale], [result], axis=axis)]
    _add(model, name, numbers, scale, None)
    cast = helper.make_node("Cast", [part], [f"{part}_cast"], to=TensorProto.FLOAT)
    return [cast, helper.make_node("Mul", [f"{part}_cast", of_scale], [result])]


def _values(model: Model, nodes: list[Node], name: str, observed: Mapping[str, Observed], done: set[str]) -> str:
    """Add the nodes that quantize an input, once, and return the name of the result."""
    from onnx import helper

    if name not in done:
        scale, zero = observed[name].scale()
        _add(model, name, None, np.asarray(scale), np.asarray(zero))
        nodes.append(helper.make_node("QuantizeLinear", [name, *_parts(name)[1:]], [_parts(name)[0]]))
        nodes.append(helper.make_node("DequantizeLinear", _parts(name), [f"{name}_float"]))
    done.add(name)
    return f"{name}_float"


def _axis_of_outputs(node: Node, weights: Mapping[str, Any]) -> int | None:
    """Return which axis of a node's weights counts its outputs; None for a node whose weights stay float32."""
    weight = weights.get(node.input[1]) if len(node.input) > 1 else None
    if weight is None or node.op_type not in ("MatMul", "Gemm", "Conv") or int(np.prod(weight.dims)) < _LEAST:
        return None
    attributes = {one.name: one.i for one in node.attribute}
    if node.op_type == "Conv":
        is_stem = weight.dims[1] < 8  # of few channels, which it takes as pixels
        return None if is_stem and attributes.get("group", 1) == 1 else 0
    if len(weight.dims) != 2:
        return None
    return 0 if attributes.get("transB") else 1


def _quantized(weight: Floats, axis: int) -> tuple[NDArray[np.int8], Floats]:
    """Return weights of 8 bits, and the scale of each output, of the same number of axes. The zero point is 0."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = (np.maximum(np.abs(weight).max(others, keepdims=True), 1e-12) / 127).astype(np.float32)
    return np.clip(np.round(weight / scale), -127, 127).astype(np.int8), scale


def _parts(name: str) -> list[str]:
    return [f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"]


def _add(model: Model, name: str, *arrays: Any) -> None:
    from onnx import numpy_helper

    for part, array in zip(_parts(name), arrays, strict=True):
        if array is not None:
            model.graph.initializer.append(numpy_helper.from_array(array, part))


def _weights(model: Model) -> dict[str, Any]:
    return {one.name: one for one in model.graph.initializer}


def _array(initializer: Any) -> Floats:
    from onnx import numpy_helper

    found: Floats = numpy_helper.to_array(initializer)
    return found


def _set(initializer: Any, values: Floats) -> None:
    from onnx import numpy_helper

    initializer.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), initializer.name))
