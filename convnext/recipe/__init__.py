"""Recipes: the schema, and the YAML files of the published settings beside it."""

from convnext.recipe.checks import BEST_METRICS as BEST_METRICS
from convnext.recipe.images import Augment as Augment
from convnext.recipe.images import Data as Data
from convnext.recipe.load import list_recipes as list_recipes
from convnext.recipe.load import load_recipe as load_recipe
from convnext.recipe.load import recipe_text as recipe_text
from convnext.recipe.schema import Optim as Optim
from convnext.recipe.schema import Recipe as Recipe
from convnext.recipe.schema import keys as keys
