"""The command that serves models over HTTP: serve."""

import os
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from convnext.cli.common import Calibration, Device, add_command, check_model, optimized

if TYPE_CHECKING:
    from convnext.inference.predictor import Predictor
    from convnext.tasks.base import Prediction

_OPTIMIZE = (
    "On CPUs, through convnext.optimize: auto, bf16, float32 or int8; by default float32 if the network allows. off: the network as it is."
)
_BEARER = "Clients must send it as Authorization: Bearer TOKEN. It must not be empty."
_ORIGIN = "A web page's origin, as https://example.org, that may call the service from a browser; repeat it for more, * for all."
_MODELS = "Run folders, weight files or hf://owner/name; NAME=MODEL chooses a name. The first is the default."


@add_command("Use", "convnext serve runs/mine", "convnext serve ants=runs/mine digits=runs/demo --port 8080")
def serve(
    models: Annotated[list[str], typer.Argument(help=_MODELS)],
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all addresses of the machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one and prints it.")] = 8000,
    token: Annotated[str | None, typer.Option(envvar="CONVNEXT_TOKEN", help=_BEARER)] = None,
    max_bytes: Annotated[int, typer.Option(min=1, help="The maximum size of an image file, in bytes.")] = 20 * 2**20,
    max_pixels: Annotated[int, typer.Option(min=1, help="The maximum size of an image, width x height.")] = 25_000_000,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait for a model; further ones are refused (503).")] = 64,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to send a request, and again for the model to answer.")] = 10.0,
    batch_size: Annotated[int, typer.Option(min=1, help="The maximum number of images that go through a model at once.")] = 8,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="How long an idle model waits for images that could share a batch.")] = 100.0,
    allow_origin: Annotated[list[str] | None, typer.Option(metavar="ORIGIN", help=_ORIGIN)] = None,
    access_log: Annotated[bool, typer.Option("--access-log", help="Write a line of JSON for each request to standard error.")] = False,
    device: Device = None,
    optimize: Annotated[str | None, typer.Option(help=_OPTIMIZE)] = None,
    calibration: Calibration = None,
) -> None:
    """Serve models over HTTP, with a page to try them on. Shuts down gracefully on SIGTERM."""
    from convnext.errors import need
    from convnext.serve.token import given_token

    secret = given_token(token, os.environ)
    for model in models:
        check_model(model.partition("=")[2] or model)
    # Waiting threads of the network leave their core to those that decode. OpenMP reads the variable once, when PyTorch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        need(module, "serve")
    from convnext.serve import serve as run
    from convnext.serve.limits import Limits

    run(
        models,
        Limits(max_bytes, max_pixels, queue, timeout),
        host=host,
        port=port,
        token=secret,
        batch_size=batch_size,
        max_wait=max_wait_ms / 1000,
        device=device,
        origins=allow_origin or (),
        access_log=access_log,
        optimize=partial(faster, precision=optimize, calibration=calibration),
    )


def faster(predictor: "Predictor[Prediction]", precision: str | None, calibration: list[str] | None) -> "Predictor[Prediction]":
    """Return the predictor that --optimize and --calibration of the service ask for."""
    from convnext.models.optimize.optimize import why_not

    if precision is None and why_not(predictor.model) is None:
        precision = "float32"
    return optimized(predictor, None if precision == "off" else precision, calibration)
