"""Names that are registered for one test alone: other tests go through all names."""

import sys
from contextlib import contextmanager
from importlib import import_module

from convnext.models import registry

REGISTERS = (registry.BACKBONE_REGISTER, registry.HEAD_REGISTER)


@contextmanager
def forgetting():
    """What is registered within is forgotten afterwards."""
    before = [set(register.entries) for register in REGISTERS]
    try:
        yield
    finally:
        for register, known in zip(REGISTERS, before, strict=True):
            for new in set(register.entries) - known:
                register.entries.pop(new, None)
                register.origins.pop(new, None)


@contextmanager
def imported(name):
    """The module of that name; what it registers is forgotten afterwards, and the module too."""
    with forgetting():
        try:
            yield import_module(name)
        finally:
            sys.modules.pop(name, None)
