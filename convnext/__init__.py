"""convnext: train, compare, adapt and ship the ConvNet of the 2020s.

Everything here is imported when it is first used, so that `import convnext` and `convnext --help` stay fast.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING

__all__ = [
    "Callback",
    "Client",
    "ConvnextError",
    "Stop",
    "__version__",
    "create_model",
    "evaluate",
    "export",
    "fit",
    "list_models",
    "load",
    "optimize",
    "predict",
    "register_backbone",
    "register_callback",
    "register_head",
    "register_loss",
    "register_metric",
    "register_source",
    "register_task",
    "register_transform",
    "train",
]

if TYPE_CHECKING:
    from convnext.errors import ConvnextError
    from convnext.export.export import export
    from convnext.fit.fit import fit
    from convnext.inference.api import evaluate, predict
    from convnext.inference.predictor import load
    from convnext.models.load import create_model
    from convnext.models.optimize.optimize import optimize
    from convnext.models.register import register_backbone, register_head
    from convnext.models.registry import list_models
    from convnext.serve.client import Client
    from convnext.tasks.register import (
        register_callback,
        register_loss,
        register_metric,
        register_source,
        register_task,
        register_transform,
    )
    from convnext.training.callbacks import Callback, Stop
    from convnext.training.run import train

    __version__: str

_HOME = {
    "Callback": "convnext.training.callbacks",
    "Client": "convnext.serve.client",
    "ConvnextError": "convnext.errors",
    "Stop": "convnext.training.callbacks",
    "create_model": "convnext.models.load",
    "evaluate": "convnext.inference.api",
    "export": "convnext.export.export",
    "fit": "convnext.fit.fit",
    "list_models": "convnext.models.registry",
    "load": "convnext.inference.predictor",
    "optimize": "convnext.models.optimize.optimize",
    "predict": "convnext.inference.api",
    "register_backbone": "convnext.models.register",
    "register_callback": "convnext.tasks.register",
    "register_head": "convnext.models.register",
    "register_loss": "convnext.tasks.register",
    "register_metric": "convnext.tasks.register",
    "register_source": "convnext.tasks.register",
    "register_task": "convnext.tasks.register",
    "register_transform": "convnext.tasks.register",
    "train": "convnext.training.run",
}


class _Package(ModuleType):
    # Importing the subpackages convnext.export and convnext.evaluate would set them as attributes in place of the functions of the
    # same names. `from convnext.export.runtimes import ...` finds them in sys.modules all the same.
    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)

    # Ray, Dask and Spark send functions that use a module to other processes. Their pickler knows only modules of Python's own class.
    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        return import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    if name == "__version__":
        return version("convnext")
    if name not in _HOME:
        raise AttributeError(f"module 'convnext' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
