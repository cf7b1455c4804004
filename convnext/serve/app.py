"""The service's addresses: how they are called, and what they answer. The work is in `service`."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files
from io import BytesIO
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from PIL.Image import Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from convnext import __version__
from convnext.inference.predictor import Predictor
from convnext.serve.limits import Limits
from convnext.serve.listing import OpenApi, listing
from convnext.serve.metrics import CountRequests
from convnext.serve.service import Opened, PredictRequest, RequestOptions, Service
from convnext.serve.token import clean, is_right
from convnext.tasks.base import Json, Prediction

_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; base-uri 'none'"
_IMAGE: OpenApi = {
    "requestBody": {
        "required": True,
        "description": "The image as it is, as the one file of a form, or in base 64.",
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {"schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}},
            "application/json": {"schema": {"type": "object", "properties": {"image": {"type": "string", "format": "byte"}}}},
        },
    }
}
_REFUSALS: dict[int | str, OpenApi] = {
    401: {"description": "the token is missing or wrong"},
    404: {"description": "unknown model"},
    408: {"description": "the request came too slowly"},
    413: {"description": "too many bytes, or pixels of the image or of its masks"},
    415: {"description": "not an image"},
    422: {"description": "a damaged image, one that the network can't take, or options that the model does not have"},
    500: {"description": "the network failed, for instance with an output that is not finite"},
    503: {"description": "too many requests are waiting; try again after Retry-After seconds"},
    504: {"description": "no answer in time"},
}
_PAGE = {"": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_COVERAGE = "The fraction of images whose class shall be in the set, as 0.95. For models with this option in /models."
_NMS = "The IoU with a likelier object of its class above which one is dropped; by default 0.5. For models with this option in /models."
_AGNOSTIC = "1: a likelier object of any class drops another. For models with this option in /models."
_CLASSES = "Names of the classes to find, as car,bus; by default all. For models with this option in /models."
_UNKNOWN = "1: compare the image with the training images. For models with this option in /models."

ModelName = Annotated[str | None, Query(description="One of /models; by default the first.")]


def create_app(
    predictors: Mapping[str, Predictor[Prediction]],
    limits: Limits | None = None,
    *,
    fast: Mapping[str, Predictor[Prediction]] | None = None,
    token: str | None = None,
    batch_size: int = 8,
    max_wait: float = 0.1,
) -> FastAPI:
    """Return the service for predictors by name.

    Args:
        predictors: the first is the default.
        limits: of requests.
        fast: by name, what `Predictor.optimize` made from some of them: it predicts, and the original draws activation maps.
        token: what a client must send as `Authorization: Bearer …` to all but the page, /health and /ready.
        batch_size: the maximum number of images that go through a network at once.
        max_wait: seconds that an idle network waits for images that are on the way, to share a batch.

    Raises UsageError for a token that is empty or that no client can send.
    """
    token = clean(token)
    service = Service(predictors, fast or {}, limits or Limits(), batch_size, max_wait)

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        app.state.has_ended = False
        service.start()
        yield
        app.state.has_ended = service.close()

    app = FastAPI(title="convnext", version=__version__, lifespan=running, docs_url=None, redoc_url=None)
    app.state.is_open, app.state.has_ended = token is None, True
    known: set[str] = set()
    app.add_middleware(CountRequests, metrics=service.metrics, paths=lambda: known)
    _add_page(app)
    _add_models(app, service, _check(token))
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


def _add_page(app: FastAPI) -> None:
    headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}

    def add(path: str, kind: str) -> None:
        content = (files("convnext.serve") / (path or "page.html")).read_bytes()

        def page() -> Response:
            return Response(content, media_type=kind, headers=headers)

        app.add_api_route(f"/{path}", page, methods=["GET", "HEAD"], include_in_schema=False)

    for path, kind in _PAGE.items():
        add(path, kind)

    @app.get("/docs", include_in_schema=False)
    def docs() -> Response:
        return Response(listing(app.openapi()), media_type="text/html", headers=headers)


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

    @app.get("/metrics", summary="For Prometheus", dependencies=[Depends(check)])
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_models(app: FastAPI, service: Service, check: Callable[..., Awaitable[None]]) -> None:
    @app.get("/models", summary="The models", dependencies=[Depends(check)])
    async def models() -> list[Json]:
        return [model.to_json() for model in service.models.values()]

    checked = [Depends(check)]

    @app.post("/predict", summary="Predict one image", openapi_extra=_IMAGE, responses=_REFUSALS, dependencies=checked)
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
        """Returns JSON with `model`, `task` and, depending on the task:

        - classify: `top`, a list of `class` and `probability`
        - multilabel: `labels`, the classes that the image has, and `top`, likewise
        - regress: `value`, a number
        - detect: `objects`, a list of `class`, `score`, `box` (left, top, right, bottom in pixels) and `mask` (COCO run lengths)
        - segment: `size` (height, width), `classes` (share of the pixels by name) and `mask` (a PNG in base 64,
          whose values or colours are `class_ids` of /models)

        With `coverage` also `coverage` and `set`, a list like `top`; with `unknown` also `novelty` (0 to 1) and `unknown` (true or false).
        """
        served, options = service.model(model), RequestOptions(masks, threshold, nms, class_agnostic, classes, coverage, unknown)
        served.check(options)

        def item(image: Opened) -> PredictRequest:
            return PredictRequest(served.prepare(image), options)

        def encode(prediction: Prediction) -> bytes:
            answer: Json = {"model": served.name, "task": served.predictor.task} | prediction.to_json(top)
            return json.dumps(answer, allow_nan=False).encode()

        content, seconds = await service.answer(request, served.predictions, item, encode)
        return _timed(content, "application/json", seconds)

    @app.post("/explain", summary="Evidence for a class", openapi_extra=_IMAGE, responses=_REFUSALS, dependencies=checked)
    async def explain(
        request: Request,
        model: ModelName = None,
        of: Annotated[str | None, Query(alias="class", description="By default the likeliest.")] = None,
    ) -> Response:
        """Returns the class activation map (Grad-CAM) of a classifier: an RGBA PNG in the image's proportions, to lay over it."""
        served = service.model(model)
        if served.maps is not None and not served.explains:
            raise HTTPException(500, f"the activation maps of {served.name} failed when they were tried: see the log of the service")
        if served.maps is None:
            raise HTTPException(422, f"{served.name} has no activation maps: they need a classifier that pools a map of features")
        content, seconds = await service.answer(request, served.maps, lambda image: (image, of), _png)
        return _timed(content, "image/png", seconds)


def _timed(content: bytes, kind: str, seconds: float) -> Response:
    return Response(content, media_type=kind, headers={"Server-Timing": f"model;dur={1000 * seconds:.1f}", "Cache-Control": "no-store"})


def _png(image: Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
