"""Entries of networks from outside the package. Imports no PyTorch: those who register a network have imported it."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from convnext.errors import ConvnextError, UsageError, first_line
from convnext.extend import argument_of, given
from convnext.models.arguments import arguments_of
from convnext.models.entry import Entry

if TYPE_CHECKING:
    from convnext.models.network import Network

# What the package gives every constructor, by the value that changes nothing, None for any. One from outside need not take them.
_OF_BACKBONES: dict[str, object] = {"num_classes": None, "in_channels": 3, "drop_path": 0.0}
_OF_HEADS: dict[str, object] = {"output_norm": None}
_PREPROCESSING = {
    "detect": "convnext.data.transforms.detect:DetectPreprocessing",
    "segment": "convnext.data.transforms.segment:SegmentPreprocessing",
}


class OwnBuilder:
    """Builds a network of a class or function from outside, with those of the package's arguments that it takes.

    Args:
        name: of the network.
        build: the class or function.
        is_head: whether it is called with a backbone and the number of classes.
    """

    def __init__(self, name: str, build: Callable[..., object], is_head: bool) -> None:
        self.name, self.build, self.neutral = name, build, _OF_HEADS if is_head else _OF_BACKBONES
        parameters = inspect.signature(build).parameters
        self.takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        self.takes = set(arguments_of(build))
        known = [one for key, one in parameters.items() if key in self.takes]
        kind = inspect.Parameter.KEYWORD_ONLY
        more = [inspect.Parameter(key, kind, default=value) for key, value in self.neutral.items() if key not in self.takes]
        self.__signature__ = inspect.Signature([one.replace(kind=kind) for one in known] + more)

    def __call__(self, *under: object, **arguments: object) -> "Network":
        """Return the network, on the CPU.

        Raises UsageError for an argument of the package that it does not take, ConvnextError if its constructor fails.
        """
        import torch

        from convnext.models.own import OwnNetwork

        num_classes = under[1] if len(under) > 1 else arguments["num_classes"]  # a head is given its backbone and the number
        assert isinstance(num_classes, int)
        for key, neutral in self.neutral.items():
            if key in arguments and key not in self.takes and not self.takes_all and arguments.pop(key) != neutral and neutral is not None:
                raise UsageError(f"{self.name} has no argument {key!r}: its constructor must take one")
        if num_classes == 0 and "num_classes" in arguments:
            arguments["num_classes"] = 1  # no layer is made without outputs; this one is removed
        # Never on the meta device: a constructor from outside may read numbers of a tensor, and fill buffers that no file holds.
        with torch.device("cpu"):
            network = self._built(*under, **arguments)
        if not isinstance(network, torch.nn.Module):
            raise UsageError(f"{self.name} must build a torch.nn.Module, not a {type(network).__name__}")
        own = OwnNetwork(network, num_classes or 1, self.name)
        if num_classes == 0:
            own.drop_head()
        return own

    def _built(self, *under: object, **arguments: object) -> object:
        from convnext.ops.memory import is_out_of_memory

        try:
            return self.build(*under, **arguments)
        except ConvnextError:
            raise
        except Exception as error:  # a constructor from outside may raise anything
            if is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ConvnextError(f"the network {self.name} can't be built: {reason} (--debug shows where)") from error


def own_entry(name: str, build: Callable[..., object], task: str = "classify", is_head: bool = False, **more: object) -> Entry:
    """Return the entry of a network from outside, or of a head; `more` are further fields of `Entry`."""
    fields = {"preprocessing_class": _PREPROCESSING[task]} if task in _PREPROCESSING else {}
    own = {"format": "own", "is_own": True, "cost_by": "convnext.models.own:count_own_cost"}
    entry: Callable[..., Entry] = Entry
    return entry(OwnBuilder(name, build, is_head), name=name, task=task, **{**own, **fields, **more})


def given_entry(mark: str, task: str = "classify") -> Entry:
    """Return the entry of the network that a call from Python gives; building it outside of such a call raises UsageError."""
    assert argument_of(mark) == "model"
    return own_entry(mark, partial(given, mark), task, has_pyramid=False)
