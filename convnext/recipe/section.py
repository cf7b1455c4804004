"""What the parts of a recipe share."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Auto = Literal["auto"]  # a task measures the value on the training data; see `convnext.recipe.measured`


class RecipeSection(BaseModel):
    """A part of the recipe: unknown keys are errors, values cannot change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
