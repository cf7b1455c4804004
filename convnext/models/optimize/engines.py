"""Networks that an engine computes in place of PyTorch's operators: any classifier, on any CPU that the engine knows."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from convnext.errors import ConvnextError, UsageError, first_line, need

_DIFFERENCE = {"float32": 1e-3, "bf16": 0.05}  # of an engine's first outputs from PyTorch's, relative to the largest


class EngineNetwork(nn.Module):
    """A network whose forward pass an engine computes. It is converted at the first call, and that call's outputs are compared."""

    def __init__(self, network: nn.Module, convert: Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]], difference: float) -> None:
        super().__init__()
        self.network = network
        self._convert, self._difference = convert, difference
        self._run: Callable[[Tensor], Tensor] | None = None
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the network, which gives features, for example, by PyTorch's operators."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    def forward(self, x: Tensor) -> Tensor:
        with self._lock:  # two threads convert once
            if self._run is None:
                self._run = self._checked(x)
        return self._run(x)

    def _checked(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        with torch.no_grad():
            wanted = self.network(x)
            if not isinstance(wanted, Tensor):
                raise UsageError(
                    "an engine computes networks that return one tensor, such as classifiers; use backend='convnext' for others"
                )
            run = self._convert(self.network, x)
            found = run(x)
        difference = ((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12)).item()
        if not difference <= self._difference:
            raise ConvnextError(
                f"the engine's outputs differ from the network's by {difference:.1e} of the largest: do not use it for this network"
            )
        return run


def by_openvino(network: nn.Module, precision: str) -> nn.Module:
    """Return a network that OpenVINO computes on the CPU, in float32 or bf16. Raises UsageError where OpenVINO is not installed."""
    openvino = need("openvino", "export")
    hint = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32", "PERFORMANCE_HINT": "LATENCY"}

    def convert(network: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
        try:
            converted = openvino.convert_model(network, example_input=x)
            compiled = openvino.compile_model(converted, "CPU", hint | {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
        except Exception as error:  # of the library: it has no base class for these
            raise ConvnextError(f"OpenVINO can't convert this network: {first_line(error)}") from error
        requests = threading.local()  # a request serves one thread at a time

        def run(x: Tensor) -> Tensor:
            if not hasattr(requests, "own"):
                requests.own = compiled.create_infer_request()
            return torch.from_numpy(requests.own.infer([x.numpy()])[0].copy())

        return run

    return EngineNetwork(network, convert, _DIFFERENCE[precision])


def by_inductor(network: nn.Module, precision: str) -> nn.Module:
    """Return a network that torch.compile computes with frozen weights. It needs a C++ compiler, and half a minute at the first call."""
    if precision == "bf16":
        raise UsageError("backend='inductor' computes in float32: omit the precision")

    def convert(network: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
        compiled = torch.compile(network, options={"freezing": True})

        def run(x: Tensor) -> Tensor:
            with torch.no_grad():  # freezing needs it
                return compiled(x)

        return run

    return EngineNetwork(network, convert, _DIFFERENCE[precision])


ENGINES = {"openvino": by_openvino, "inductor": by_inductor}
