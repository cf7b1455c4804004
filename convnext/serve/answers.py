"""What the service takes and answers, for its OpenAPI description, from which clients are generated."""

from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, RootModel, create_model
from typing_extensions import get_type_hints, is_typeddict

from convnext import tasks
from convnext.tasks.base import ClassIds

OpenApi = dict[str, Any]  # as FastAPI gives it


class Weights(BaseModel):
    """Which weights answered."""

    revision: str | None = Field(description="The commit on the Hugging Face hub; null for weights from elsewhere.")
    digest: str = Field(description="sha256: and the digest of the weights' values.")


class ModelInfo(BaseModel):
    """A model of the service."""

    name: str
    task: str
    classes: list[str]
    class_ids: ClassIds | None = Field(description="The data's own number of each class, or the value or colour in masks.")
    options: list[str] = Field(description="The optional parameters of /v1/predict that it has.")
    explains: bool = Field(description="Whether /v1/explain answers for it.")
    ready: bool
    weights: Weights


class Refusal(BaseModel):
    """Why a request was refused."""

    detail: str


IMAGE_BODY: OpenApi = {
    "requestBody": {
        "required": True,
        "description": "The image as it is, as the one file of a form, or in base 64; in JSON and in a form a data: URL, too.",
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
            },
            "application/json": {
                "schema": {"type": "object", "required": ["image"], "properties": {"image": {"type": "string", "format": "byte"}}}
            },
        },
    }
}
_REASONS = {
    401: "the token is missing or wrong",
    404: "unknown model",
    408: "the request came too slowly",
    413: "too many bytes, or pixels of the image or of its masks",
    415: "not an image",
    422: "a damaged image, one that the network can't take, or options that the model does not have",
    500: "the network failed, for instance with an output that is not finite",
    503: "too many requests are waiting; try again after Retry-After seconds",
    504: "no answer in time",
}
REFUSALS: dict[int | str, OpenApi] = {status: {"description": reason, "model": Refusal} for status, reason in _REASONS.items()}
PNG_ANSWER: OpenApi = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}


class _Answer(BaseModel):
    model: str
    weights: Weights


def prediction_type() -> type[BaseModel]:
    """Return the type of the answers of /v1/predict: one of those of all tasks, which `task` distinguishes."""
    union: Any = reduce(or_, [_of_task(name) for name in tasks.names()])
    return create_model("PredictionAnswer", __base__=RootModel[Annotated[union, Field(discriminator="task")]])


def _of_task(name: str) -> type[BaseModel]:
    answer: Any = tasks.get(name).answer
    fields: dict[str, Any] = {"task": (Literal[name], ...)}
    if is_typeddict(answer):
        for field, hint in get_type_hints(answer, include_extras=True).items():
            is_optional = field in answer.__optional_keys__
            fields[field] = (get_args(hint)[0], None) if is_optional else (hint, ...)
    return create_model(f"{name.capitalize()}Answer", __base__=_Answer, **fields)
