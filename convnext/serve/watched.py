"""Networks whose work can be given up between two of their calls."""

from collections.abc import Callable
from typing import Any

_CALLS = frozenset({"predict", "logits"})  # beside a plain call: how the tasks call detectors and segmenters


class Watched:
    """A network that is asked before each call whether to go on; else it is the network in all that it has.

    Args:
        network: of any task.
        check: raises what ends the work.
    """

    def __init__(self, network: Any, check: Callable[[], None]) -> None:
        self._network, self._check = network, check

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self._check()
        return self._network(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._network, name)
        if name not in _CALLS:
            return found

        def checked(*arguments: Any, **options: Any) -> Any:
            self._check()
            return found(*arguments, **options)

        return checked
