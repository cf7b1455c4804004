"""Operators that PyTorch's dispatcher knows, and that are called without it where nothing records or observes the call."""

from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

ParametersT = ParamSpec("ParametersT")
ResultT = TypeVar("ResultT")
FunctionT = TypeVar("FunctionT", bound=Callable[..., object])


class Operator(Generic[ParametersT, ResultT]):
    """A custom operator of PyTorch. Without gradients, compiler and dispatch modes its function is called directly.

    The dispatcher takes some 20 µs for each call, and a process's first call of a custom operator imports PyTorch's compiler, which takes
    a second.
    """

    def __init__(self, name: str, function: Callable[ParametersT, ResultT]) -> None:
        self._function, self._registered = function, torch.library.custom_op(name, mutates_args=())(function)
        self.__doc__ = function.__doc__

    def __call__(self, *arguments: ParametersT.args, **named: ParametersT.kwargs) -> ResultT:
        if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or _recorded(arguments):
            result: ResultT = self._registered(*arguments, **named)
            return result
        return self._function(*arguments, **named)

    def register_fake(self, function: FunctionT) -> FunctionT:
        """Register what gives empty results of the right shapes, for tracing. Return it."""
        self._registered.register_fake(function)
        return function

    def register_autograd(self, backward: Callable[..., object], *, setup_context: Callable[..., object]) -> None:
        """Register the backward pass, and what saves its inputs."""
        self._registered.register_autograd(backward, setup_context=setup_context)


def operator(name: str) -> Callable[[Callable[ParametersT, ResultT]], Operator[ParametersT, ResultT]]:
    """Return a decorator that makes an operator of a function without side effects. Its types are the operator's schema."""
    return lambda function: Operator(name, function)


def _recorded(arguments: tuple[object, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(one, Tensor) and one.requires_grad for one in arguments)
