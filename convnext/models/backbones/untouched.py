"""Whether a module may be computed without being called: nobody who looks into it, or has changed it, must be passed over."""

from typing import Any, TypeGuard, TypeVar

from torch import nn
from torch.nn.modules import module as globally

Kind = TypeVar("Kind", bound=nn.Module)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")
_CALLS = ("forward", "__call__", "_call_impl", "_wrapped_call_impl")
_ORIGINAL: dict[Any, Any] = {nn.Module: nn.Module.__call__}  # of torch's classes as they were when this was imported


def remember(*classes: type[nn.Module]) -> None:
    """Take these classes' `forward` as the one that is known, whoever replaces it later."""
    for one in classes:
        _ORIGINAL[one] = one.forward


def untouched(module: object, kind: type[Kind]) -> TypeGuard[Kind]:
    """Whether calling the module does what its class, which is `kind` itself, does by definition, and nothing else.

    Not where it is of another class (an adapter, a wrapper, a parametrization, which makes a class of its own), where it has a hook,
    was compiled in place, or where `forward` was replaced, on it or on its class.
    """
    if type(module) is not kind or kind.forward is not _ORIGINAL[kind] or nn.Module.__call__ is not _ORIGINAL[nn.Module]:
        return False
    assert isinstance(module, nn.Module)
    if any(getattr(module, hooks) for hooks in _HOOKS) or module._compiled_call_impl is not None:
        return False
    return not any(name in module.__dict__ for name in _CALLS)


def watched() -> bool:
    """Whether a hook is on all modules there are."""
    return any(getattr(globally, hooks) for hooks in _GLOBAL_HOOKS)
