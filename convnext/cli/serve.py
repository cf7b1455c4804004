"""`convnext serve`."""

import os
from functools import partial
from typing import Annotated, Any

import typer

from convnext.cli.common import Calibration, Device, app, optimized

_OPTIMIZE = (
    "On CPUs, through convnext.optimize: auto, bf16, float32 or int8; by default float32 where that can be. off: the network as it is."
)
_BEARER = "Clients must send it as Authorization: Bearer TOKEN. Refused if it is empty."
_MODELS = "Run folders, weight files or hf://owner/name; as NAME=MODEL to choose its name. The first is the default."


@app.command()
def serve(
    models: Annotated[list[str], typer.Argument(help=_MODELS)],
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all of the machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one and says which.")] = 8000,
    token: Annotated[str | None, typer.Option(envvar="CONVNEXT_TOKEN", help=_BEARER)] = None,
    max_bytes: Annotated[int, typer.Option(min=1, help="Of an image as it is sent.")] = 20 * 2**20,
    # Above some 89 million Pillow itself refuses.
    max_pixels: Annotated[int, typer.Option(min=1, max=89_000_000, help="Of an image, width x height.")] = 25_000_000,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait for a model; more are refused (503).")] = 64,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds a client has to send, and again the model to answer.")] = 10.0,
    batch_size: Annotated[int, typer.Option(min=1, help="The most images that go through a model at once.")] = 8,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="How long a free model waits for images that could share a batch.")] = 100.0,
    device: Device = None,
    optimize: Annotated[str | None, typer.Option(help=_OPTIMIZE)] = None,
    calibration: Calibration = None,
) -> None:
    """Put models behind an address: HTTP, and a page to try them on. Ends in peace at SIGTERM."""
    from convnext.errors import need

    # Threads of the network that wait for another should leave their processor to those that decode. OpenMP reads it once, with PyTorch.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        need(module, "serve")
    from convnext.serve import serve as run
    from convnext.serve.limits import Limits
    from convnext.serve.token import given_token

    limits = Limits(max_bytes, max_pixels, queue, timeout)
    quick = partial(faster, precision=optimize, calibration=calibration)
    options: dict[str, Any] = {"batch_size": batch_size, "max_wait": max_wait_ms / 1000, "device": device, "optimize": quick}
    run(models, limits, host=host, port=port, token=given_token(token, os.environ), **options)


def faster(predictor: Any, precision: str | None, calibration: list[str] | None) -> Any:
    """The predictor as --optimize and --calibration of the service say."""
    from convnext.models.optimize.optimize import why_not

    if precision is None and why_not(predictor.model) is None:
        precision = "float32"
    return optimized(predictor, None if precision == "off" else precision, calibration)
