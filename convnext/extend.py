"""Code from outside the package: registers of names, references to code, and the modules that are imported for them. Imports no PyTorch.

A module is imported only where its name comes from the user: `--import`, a recipe that the user starts, or an installed package that
announces itself in the entry-point group `convnext`. Nothing is imported because a downloaded file names it.
"""

import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from traceback import walk_tb
from typing import Generic, TypeVar, cast

from convnext.errors import ConvnextError, UsageError, first_line, nearest

log = logging.getLogger("convnext")

GROUP = "convnext"  # of entry points, each of which names a module to import
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_REFERENCE = re.compile(rf"({_MODULE.pattern}):([A-Za-z_]\w*)")
_NAME = re.compile(r"[A-Za-z]\w*")
_registering: set[str] = set()  # modules that registered something
_MARK = "own"  # own:model:my_module.MyNet stands in a recipe for an object that Python gave

T = TypeVar("T")
Thing = TypeVar("Thing")


class Register(Generic[T]):
    """Things by name, those of the package and those that are added to it.

    Args:
        what: they are, for messages.
        entries: those of the package.
        lazy: more of the package's, each as "module:attribute", which is imported when it is first asked for.
    """

    def __init__(self, what: str, entries: dict[str, T] | None = None, lazy: Mapping[str, str] | None = None) -> None:
        self.what = what
        self.entries: dict[str, T] = {} if entries is None else entries
        self.lazy = dict(lazy or {})
        self.origins: dict[str, str] = {}  # of the names that were added: the module that did it

    def add(self, name: str, thing: T, module: str) -> None:
        """Add a thing that a module registers. A module may replace its own, as a notebook does whose cell runs again.

        Raises UsageError for a name that is taken, or that is no name.
        """
        if not _NAME.fullmatch(name) or name == _MARK:
            raise UsageError(f"{name!r} can't name a {self.what}: use letters, digits and underscores, as in my_{self.what}")
        if name in self.names() and self.origins.get(name) != module:
            raise UsageError(f"the {self.what} {name!r} exists already, in {self.origins.get(name, 'convnext')}: take another name")
        self.entries[name] = thing
        self.origins[name] = module
        _registering.add(module)

    def names(self) -> list[str]:
        """Return all names, the package's own first."""
        return list(dict.fromkeys([*self.lazy, *self.entries]))

    def knows(self, name: str) -> bool:
        """Return whether there is a thing of that name; installed packages are asked for it too."""
        if name not in self.entries and name not in self.lazy:
            load_entry_points()
        return name in self.entries or name in self.lazy

    def find(self, name: str) -> T | None:
        """Return the thing of that name, None for an unknown one."""
        if self.knows(name) and name not in self.entries:
            module, _, attribute = self.lazy[name].partition(":")
            self.entries[name] = cast("T", getattr(import_module(module), attribute))
        return self.entries.get(name)

    def get(self, name: str) -> T:
        """Return the thing of that name. Raises UsageError, with the nearest name, for an unknown one."""
        found = self.find(name)
        if found is None:
            raise UsageError(f"unknown {self.what} {name!r}{nearest(name, self.names())}{where_from(())}")
        return found

    def decorator(self, name: str, module: str) -> Callable[[Thing], Thing]:
        """Return the decorator that adds what it decorates, and leaves it as it is."""

        def register(thing: Thing) -> Thing:
            self.add(name, cast("T", thing), module)
            return thing

        return register


def where_from(modules: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: which modules to import, if that is known."""
    asked = " ".join(f"--import {module}" for module in modules)
    return f"; add {asked}" if asked else "; the module that registers a name of your own is given with --import my_module"


def caller() -> str:
    """Return the module that called the function that calls this."""
    frame = sys._getframe(2)
    return _importable(str(frame.f_globals.get("__name__", "__main__")))


def _importable(module: str) -> str:
    """Return the name by which a module can be imported: for the script that is running, that of its file."""
    if module != "__main__":
        return module
    main = sys.modules["__main__"]
    if (spec := getattr(main, "__spec__", None)) is not None:  # python -m package.module
        return str(spec.name)
    return Path(getattr(main, "__file__", None) or module).stem


# Modules

_loaded: list[str] = []  # in the order in which they were asked for
_asked_entry_points = False


def load(module: str) -> None:
    """Import a module that the user names, from the current folder too, so that what it registers is known.

    Raises UsageError if there is no such module, ConvnextError if it can't be imported.
    """
    if module.endswith(".py") or not _MODULE.fullmatch(module):
        hint = f": give the module's name, {Path(module).stem}" if module.endswith(".py") else ""
        raise UsageError(f"{module!r} is not the name of a module{hint}")
    if module not in sys.modules and module != _importable("__main__"):
        if (folder := os.getcwd()) not in sys.path and "" not in sys.path:
            sys.path.append(folder)  # behind all others, so that no file here replaces an installed package; worker processes take it over
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
                raise UsageError(f"no module {module!r}: it must lie in {folder} or on PYTHONPATH, or be installed") from error
            raise ConvnextError(f"the module {module} needs {error.name}, which is not installed") from error
        except ConvnextError:
            raise
        except Exception as error:  # a user's module may raise anything
            raise ConvnextError(f"the module {module} can't be imported: {type(error).__name__}: {first_line(error)}") from error
    if module not in _loaded:
        _loaded.append(module)


def loaded() -> list[str]:
    """Return the modules that `load` imported, for processes that shall know the same names."""
    return list(_loaded)


def place_in_own_code(error: BaseException) -> str | None:
    """Return the innermost file and line of a module from outside through which an error came, None if it came through none."""
    frames = walk_tb(error.__traceback__)
    own = [f"{frame.f_code.co_filename}, line {line}" for frame, line in frames if _is_from_outside(str(frame.f_globals.get("__name__")))]
    return own[-1] if own else None


def load_entry_points() -> None:
    """Import the modules of installed packages in the entry-point group `convnext`, once. One that fails is reported, and skipped."""
    global _asked_entry_points
    if _asked_entry_points:
        return
    _asked_entry_points = True
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # a broken package must not stop a command that does not need it
            log.warning("the installed extension %s can't be loaded: %s: %s", point.value, type(error).__name__, first_line(error))


# References: package.module:attribute


def module_of(reference: str) -> str | None:
    """Return the module of a text such as `package.module:function`, None if it is not one.

    A module without a dot must exist, because `digits:train` has the same form.
    """
    if (found := _REFERENCE.fullmatch(reference)) is None:
        return None
    module = found[1]
    if Path(module).is_dir() and not (Path(module) / "__init__.py").is_file():
        return None  # a folder of data, whatever else has its name
    if "." in module or module in sys.modules:
        return module
    if any((Path(folder) / f"{module}.py").is_file() for folder in {os.getcwd(), *sys.path}):
        return module
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return None
    return module if spec is not None and spec.origin is not None else None  # a folder without code has no origin


def resolve(reference: str) -> object:
    """Return what a reference names. Raises UsageError, saying how to import it, if its module is not one that the user named.

    That another library has imported the module is not enough: a stranger's recipe could have any function of it called.
    """
    module = module_of(reference) or reference.partition(":")[0]
    attribute = reference.partition(":")[2]
    if not _is_from_outside(module) or module not in sys.modules:
        raise UsageError(f"{reference} needs the module {module}{where_from([module])}")
    found: object = getattr(sys.modules[module], attribute, None)
    if found is None:
        public = [name for name in vars(sys.modules[module]) if not name.startswith("_")]
        raise UsageError(f"{reference}: {module} has no {attribute!r}{nearest(attribute, public)}")
    return found


def _is_from_outside(module: str) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in (*_loaded, *_registering))


# Objects that a call from Python gives, by the argument that they are

_given: ContextVar[Mapping[str, object]] = ContextVar("given")


@contextmanager
def giving(**objects: object) -> Iterator[None]:
    """Within, `given` returns these objects, those that are None excepted."""
    token = _given.set({name: thing for name, thing in objects.items() if thing is not None})
    try:
        yield
    finally:
        _given.reset(token)


def marker(argument: str, thing: object) -> str:
    """Return what stands in a recipe for an object: own:, the argument that gave it, and the name of its function or class."""
    return f"{_MARK}:{argument}:{qualified(thing)}"


def is_marker(text: object) -> bool:
    """Return whether a value of a recipe stands for an object that Python gave."""
    return isinstance(text, str) and text.startswith(f"{_MARK}:")


def argument_of(mark: str) -> str:
    """Return the argument of `convnext.train` that gave an object."""
    return mark.split(":")[1]


def given(mark: str) -> object:
    """Return the object that a marker stands for. Raises UsageError, saying what to give, outside of a call that gives it."""
    _, argument, name = mark.split(":", 2)
    found = _given.get({}).get(argument)
    if isinstance(found, list):
        found = next((one for one in found if qualified(one) == name), None)
    if found is None:
        again = "network= of convnext.load, evaluate or export" if argument == "model" else f"{argument}= of convnext.train"
        raise UsageError(f"{name} was given from Python and is no part of the recipe or the weights: give it again, as {again}")
    return found


def qualified(thing: object) -> str:
    """Return the module and name of a function or class, or of the class of an object."""
    named = thing if inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)
    return f"{_importable(named.__module__ or 'builtins')}.{named.__qualname__}"


# What is registered by name alone; `models` and `data` have the registers of networks and formats.

TASKS: Register[object] = Register(
    "task",
    lazy={
        "classify": "convnext.tasks.classify.task:ClassifyTask",
        "multilabel": "convnext.tasks.multilabel.task:MultilabelTask",
        "regress": "convnext.tasks.regress.task:RegressTask",
        "detect": "convnext.tasks.detect.task:DetectTask",
        "segment": "convnext.tasks.segment.task:SegmentTask",
        "pretrain": "convnext.tasks.pretrain.task:PretrainTask",
    },
)
SOURCES: Register[Callable[..., object]] = Register("source")  # by the prefix of their names
TRANSFORMS: Register[Callable[..., object]] = Register("transform")
LOSSES: Register[Callable[..., object]] = Register(
    "loss",
    lazy={
        "asymmetric": "convnext.tasks.multilabel.loss:asymmetric_loss",
        "mse": "torch.nn.functional:mse_loss",
    },
)
METRICS: Register[Callable[..., object]] = Register("metric")
CALLBACKS: Register[Callable[..., object]] = Register("callback")


def find(register: Register[T], name: str) -> T:
    """Return what a value of a recipe names: a registered name, `package.module:attribute`, or the marker of an object that was given."""
    if is_marker(name):
        return cast("T", given(name))
    return cast("T", resolve(name)) if ":" in name else register.get(name)
