"""convnext: train, compare, adapt and ship the ConvNet of the 2020s.

Everything here is imported when it is first used, so that `import convnext` and `convnext --help` stay fast.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

__all__ = ["ConvnextError", "__version__", "create_model", "list_models", "load", "optimize", "train"]

if TYPE_CHECKING:
    from convnext.errors import ConvnextError
    from convnext.inference.predictor import load
    from convnext.models.load import create_model, list_models
    from convnext.models.optimize.optimize import optimize
    from convnext.training.run import train

    __version__: str

_HOME = {
    "ConvnextError": "convnext.errors",
    "create_model": "convnext.models.load",
    "list_models": "convnext.models.load",
    "load": "convnext.inference.predictor",
    "optimize": "convnext.models.optimize.optimize",
    "train": "convnext.training.run",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("convnext")
    if name not in _HOME:
        raise AttributeError(f"module 'convnext' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
