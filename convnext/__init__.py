"""convnext: train, compare, adapt and ship the ConvNet of the 2020s.

Everything here is imported when it is first used, so that `import convnext` and `convnext --help` stay fast.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

__all__ = ["ConvnextError", "__version__", "create_model", "list_models", "load", "optimize", "train"]

if TYPE_CHECKING:
    from convnext.deploy.optimize import optimize
    from convnext.deploy.predict import load
    from convnext.errors import ConvnextError
    from convnext.models import create_model, list_models
    from convnext.training.run import train

    __version__: str

_HOME = {
    "ConvnextError": "convnext.errors",
    "create_model": "convnext.models",
    "list_models": "convnext.models",
    "load": "convnext.deploy.predict",
    "optimize": "convnext.deploy.optimize",
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
