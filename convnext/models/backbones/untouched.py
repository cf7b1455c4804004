"""Decide whether a fused operator may replace the call of a module: not if the module has a hook, or a replaced part or `forward`."""

from collections.abc import Callable
from typing import TypeGuard, TypeVar

from torch import nn
from torch.nn.modules import module as globally

Kind = TypeVar("Kind", bound=nn.Module)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")
_CALLS = ("forward", "__call__", "_call_impl", "_wrapped_call_impl")
_ORIGINAL: dict[type[nn.Module], Callable[..., object]] = {nn.Module: nn.Module.__call__}  # as they were at import


def remember(*classes: type[nn.Module]) -> None:
    """Note the `forward` of these classes as the original, so that a later replacement is noticed."""
    for one in classes:
        _ORIGINAL[one] = one.forward


def untouched(module: object, kind: type[Kind]) -> TypeGuard[Kind]:
    """Return whether calling the module does exactly what the class `kind` defines.

    It does not if the module is of another class (an adapter, a wrapper, or a parametrization, which makes a class of its own), has a hook,
    was compiled in place, or if `forward` was replaced on it or on its class.
    """
    if type(module) is not kind or kind.forward is not _ORIGINAL[kind] or nn.Module.__call__ is not _ORIGINAL[nn.Module]:
        return False
    assert isinstance(module, nn.Module)
    if any(getattr(module, hooks) for hooks in _HOOKS) or module._compiled_call_impl is not None:
        return False
    return not any(name in module.__dict__ for name in _CALLS)


def watched() -> bool:
    """Return whether a hook is registered for all modules."""
    return any(getattr(globally, hooks) for hooks in _GLOBAL_HOOKS)
