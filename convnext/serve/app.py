"""The service's addresses: how they are called, and what they answer. The work is in `service`."""

import asyncio
import json
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from PIL.Image import Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from convnext import __version__
from convnext.data.deep import shown
from convnext.errors import nearest
from convnext.inference.predictor import Predictor
from convnext.serve.access import REQUEST_ID, TRACE, Observe
from convnext.serve.answers import IMAGE_BODY, PNG_ANSWER, REFUSALS, ModelInfo, OpenApi, Refusal, prediction_type
from convnext.serve.limits import Limits
from convnext.serve.page import add_page
from convnext.serve.served import LoadedVersion, Opened, PredictRequest, RequestOptions
from convnext.serve.service import Service
from convnext.serve.token import clean, is_right
from convnext.tasks.base import Json, Prediction
from convnext.text import shortened

_COVERAGE = "The fraction of images whose class shall be in the set, as 0.95. For models with this option in /v1/models."
_NMS = "The IoU with a likelier object of its class above which one is dropped; by default 0.5. For models with this option in /v1/models."
_AGNOSTIC = "1: a likelier object of any class drops another. For models with this option in /v1/models."
_CLASSES = "Names of the classes to find, as car,bus; by default all. For models with this option in /v1/models."
_UNKNOWN = "1: compare the image with the training images. For models with this option in /v1/models."

_PREVIEW = 1024  # pixels a side
_SHOWN = 60  # characters of a name in a refusal
_EXPOSED = [REQUEST_ID, TRACE, "Server-Timing", "Retry-After", "X-Image-Size"]  # headers that a page from elsewhere may read

ModelName = Annotated[str | None, Query(description="One of /v1/models; by default the first.")]


def create_app(
    predictors: Mapping[str, Predictor[Prediction]],
    limits: Limits | None = None,
    *,
    fast: Mapping[str, Predictor[Prediction]] | None = None,
    token: str | None = None,
    batch_size: int = 8,
    max_wait: float = 0.1,
    load: Callable[[str], LoadedVersion] | None = None,
    origins: Sequence[str] = (),
    write: Callable[[str], object] | None = None,
) -> FastAPI:
    """Return the service for predictors by name.

    Args:
        predictors: the first is the default.
        limits: of requests.
        fast: by name, what `Predictor.optimize` made from some of them: it predicts, and the original draws activation maps.
        token: what a client must send as `Authorization: Bearer …` to all but the page, /health and /ready.
        batch_size: the maximum number of images that go through a network at once.
        max_wait: seconds that an idle network waits for images that are on the way, to share a batch.
        load: loads a model again, by its name, on SIGHUP or request; None if it can't be loaded again.
        origins: of web pages from other addresses that may call the service; "*" for any.
        write: takes a line of the access log, a JSON object; None for no log.

    Raises UsageError for a token that is empty or that no client can send.
    """
    token = clean(token)
    versions = {name: LoadedVersion(one, (fast or {}).get(name, one)) for name, one in predictors.items()}
    service = Service(versions, limits or Limits(), batch_size, max_wait, load)

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        app.state.has_ended = False
        service.start()
        if load is not None:
            _reload_on_hangup(service)
        yield
        app.state.has_ended = service.close()

    servers: list[OpenApi] = [{"url": "./", "description": "this service, wherever a proxy shows it"}]
    app = FastAPI(title="convnext", version=__version__, lifespan=running, docs_url=None, redoc_url=None, servers=servers)
    app.state.is_open, app.state.has_ended = token is None, True
    known: set[str] = set()
    if origins:
        headers = ["Authorization", "Content-Type", REQUEST_ID, TRACE]
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=headers, expose_headers=_EXPOSED
        )
    app.add_middleware(Observe, metrics=service.metrics, paths=lambda: known, write=write)
    add_page(app)
    _add_models(app, service, _check(token), is_closed=token is not None)
    _add_images(app, service, _check(token))
    _add_watching(app, service, _check(token))
    known |= {str(getattr(route, "path", "")) for route in app.routes}
    return app


def _check(token: str | None) -> Callable[..., Awaitable[None]]:
    """Return the dependency that refuses a request without the token, before its body is read."""
    bearer = HTTPBearer(auto_error=False)

    # Not a plain function: FastAPI would run it in another thread at each request.
    async def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        sent = given.credentials if given is not None else ""
        if token is not None and not is_right(sent, token):
            raise HTTPException(401, "this service needs a token", {"WWW-Authenticate": "Bearer"})

    return check


async def _check_parameters(request: Request) -> None:
    """Refuse a query parameter that the address does not have: a mistyped `threshold` would otherwise change nothing."""
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    for name in request.query_params:
        if name not in known:
            raise HTTPException(422, f"unknown parameter {shortened(name, _SHOWN)!r}{nearest(name, known)}")


def _reload_on_hangup(service: Service) -> None:
    """Load all models again on SIGHUP, unless the process ignores it, as under nohup."""
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is None or threading.current_thread() is not threading.main_thread() or signal.getsignal(hangup) == signal.SIG_IGN:
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(hangup, lambda: service.keep(asyncio.create_task(service.reload_all())))


def _add_watching(app: FastAPI, service: Service, check: Callable[..., Awaitable[None]]) -> None:
    @app.head("/health", include_in_schema=False)  # as monitors ask
    @app.get("/health", summary="Alive?", description="200 as long as the process answers.")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", summary="Ready?", description="200 once every model has answered a first image, 503 before.")
    async def ready(response: Response) -> dict[str, dict[str, bool]]:
        models = {name: model.ready for name, model in service.models.items()}
        response.status_code = 200 if all(models.values()) else 503
        return {"models": models}

    @app.head("/metrics", include_in_schema=False, dependencies=[Depends(check)])
    @app.get("/metrics", summary="For Prometheus", dependencies=[Depends(check)])
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_models(app: FastAPI, service: Service, check: Callable[..., Awaitable[None]], is_closed: bool) -> None:
    checked = [Depends(check)]

    async def models() -> list[Json]:
        return [model.to_json() for model in service.models.values()]

    async def reload(name: str) -> Json:
        """Loads the model again from where it came from. Its present version answers until the new one has answered a first image, and
        stays if the new one can't be loaded. SIGHUP does the same for all models.
        """
        if not is_closed:
            raise HTTPException(403, "models are loaded again for those who have the token: start the service with --token, or send SIGHUP")
        return (await service.reload(name)).to_json()

    refusals: dict[int | str, OpenApi] = {
        401: REFUSALS[401],
        404: REFUSALS[404],
        403: {"description": "the service has no token", "model": Refusal},
        409: {"description": "the model is being loaded already", "model": Refusal},
        500: {"description": "the new version does not work; the present one stays", "model": Refusal},
    }
    _add(app, "models", models, ["GET", "HEAD"], summary="The models", response_model=list[ModelInfo], dependencies=checked)
    _add(
        app, "models/{name}", reload, ["POST"],
        operation_id="reload", summary="Load a model again", response_model=ModelInfo, responses=refusals, dependencies=checked,
    )  # fmt: skip


def _add(app: FastAPI, path: str, function: Callable[..., object], methods: list[str], **options: Any) -> None:
    """Add an address under /v1/, and for those who knew it before without."""
    options.setdefault("operation_id", path)
    for prefix in ("/v1/", "/"):
        for method in methods:
            is_described = prefix == "/v1/" and method == methods[0]
            app.add_api_route(f"{prefix}{path}", function, methods=[method], include_in_schema=is_described, **options)


def _add_images(app: FastAPI, service: Service, check: Callable[..., Awaitable[None]]) -> None:
    checked = [Depends(check), Depends(_check_parameters)]

    async def predict(
        request: Request,
        model: ModelName = None,
        top: Annotated[
            int | None, Query(ge=1, description="How many classes or objects to list; by default 5 classes, all objects.")
        ] = None,
        masks: Annotated[bool | None, Query(description="0: boxes without masks, for models that detect.")] = None,
        threshold: Annotated[
            float | None,
            Query(
                ge=0, le=1, allow_inf_nan=False, description="The score that an object exceeds; by default 0.05. For models that detect."
            ),
        ] = None,
        nms: Annotated[float | None, Query(ge=0, le=1, allow_inf_nan=False, description=_NMS)] = None,
        class_agnostic: Annotated[bool | None, Query(description=_AGNOSTIC)] = None,
        classes: Annotated[str | None, Query(description=_CLASSES)] = None,
        coverage: Annotated[float | None, Query(gt=0, lt=1, allow_inf_nan=False, description=_COVERAGE)] = None,
        unknown: Annotated[bool | None, Query(description=_UNKNOWN)] = None,
    ) -> Response:
        """Returns JSON with `model`, `task`, `weights` (their `revision` and `digest`) and, depending on the task:

        - classify: `top`, a list of `class` and `probability`
        - multilabel: `labels`, the classes that the image has, and `top`, likewise
        - regress: `value`, a number
        - detect: `objects`, a list of `class`, `score`, `box` (left, top, right, bottom in pixels) and `mask` (COCO run lengths)
        - segment: `size` (height, width), `classes` (a list of `class` and `share` of the pixels, the largest first) and `mask` (a PNG
          in base 64, whose values or colours are `class_ids` of /v1/models)

        With `coverage` also `coverage` and `set`, a list like `top`; with `unknown` also `novelty` (0 to 1) and `unknown` (true or false).
        """
        served, options = service.model(model), RequestOptions(masks, threshold, nms, class_agnostic, classes, coverage, unknown)
        served.check(options)
        request.state.model = served.name

        def item(image: Opened) -> PredictRequest:
            return PredictRequest(served.prepare(image), options)

        def encode(prediction: Prediction) -> bytes:
            answer: Json = served.head() | prediction.to_json(top)
            return json.dumps(answer, allow_nan=False).encode()

        content, seconds = await service.answer(request, served, served.predictions, item, encode)
        return _timed(content, "application/json", seconds)

    async def explain(
        request: Request,
        model: ModelName = None,
        of: Annotated[str | None, Query(alias="class", description="By default the likeliest.")] = None,
    ) -> Response:
        """Returns the class activation map (Grad-CAM) of a classifier: an RGBA PNG in the image's proportions, to lay over it."""
        served = service.model(model)
        request.state.model = served.name
        if served.maps is not None and not served.explains:
            raise HTTPException(500, f"the activation maps of {served.name} failed when they were tried: see the log of the service")
        if served.maps is None:
            raise HTTPException(422, f"{served.name} has no activation maps: they need a classifier that pools a map of features")
        content, seconds = await service.answer(request, served, served.maps, lambda image: (image, of), _png)
        return _timed(content, "image/png", seconds)

    async def preview(request: Request, model: ModelName = None) -> Response:
        """Returns the image as the network's images are opened: upright, 8 bits, at most 1024 pixels a side. It is for pages whose browser
        can't show the format, TIFF for instance. `X-Image-Size` has the width and height in whose pixels boxes are given.
        """
        served = service.model(model)
        request.state.model = served.name
        content, (width, height) = await service.preview(request, served, _painted)
        return Response(content, media_type="image/png", headers={"X-Image-Size": f"{width}x{height}", "Cache-Control": "no-store"})

    answers: dict[str, OpenApi] = {
        "predict": {"model": prediction_type(), "description": "the prediction"},
        "explain": PNG_ANSWER | {"description": "the map"},
        "preview": PNG_ANSWER | {"description": "the image"},
    }
    for function, summary in ((predict, "Predict one image"), (explain, "Evidence for a class"), (preview, "The image as it is read")):
        name = function.__name__
        _add(
            app, name, function, ["POST"],
            summary=summary, openapi_extra=IMAGE_BODY, responses={200: answers[name]} | REFUSALS, dependencies=checked,
            response_class=Response,
        )  # fmt: skip


def _timed(content: bytes, kind: str, seconds: float) -> Response:
    return Response(content, media_type=kind, headers={"Server-Timing": f"model;dur={1000 * seconds:.1f}", "Cache-Control": "no-store"})


def _painted(image: Opened) -> tuple[bytes, tuple[int, int]]:
    small = shown(image).convert("RGB")
    small.thumbnail((_PREVIEW, _PREVIEW))
    return _png(small), image.size


def _png(image: Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
