"""Networks whose work can be abandoned between two of their calls."""

from collections.abc import Callable

from torch import nn

_CALLS = frozenset({"predict", "logits", "forward_features"})  # how the tasks call networks, beside a plain call


class Watched:
    """A network that calls `check` before each of its calls; in everything else it is the network.

    Args:
        network: of any task.
        check: raises an exception to end the work.
    """

    def __init__(self, network: nn.Module, check: Callable[[], None]) -> None:
        self._network, self._check = network, check

    def __call__(self, *arguments: object, **options: object) -> object:
        self._check()
        return self._network(*arguments, **options)

    def __getattr__(self, name: str) -> object:
        found = getattr(self._network, name)
        if name not in _CALLS:
            return found

        def checked(*arguments: object, **options: object) -> object:
            self._check()
            return found(*arguments, **options)

        return checked
