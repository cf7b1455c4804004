"""The service's answers as types, for its OpenAPI description, from which clients are generated."""

from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, RootModel, create_model
from typing_extensions import get_type_hints, is_typeddict

from convnext import tasks
from convnext.tasks.base import ClassIds


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


class _Answer(BaseModel):
    model: str
    weights: Weights


def prediction_type() -> type[BaseModel]:
    """Return the type of the answers of /v1/predict: one of those of all tasks, told apart by `task`."""
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
