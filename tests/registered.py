"""Modules that register names when they are imported, for one test file: other tests go through all names."""

import sys
from contextlib import contextmanager
from importlib import import_module

from convnext.models import registry

REGISTERS = (registry.BACKBONE_REGISTER, registry.HEAD_REGISTER)


@contextmanager
def imported(name):
    """The module of that name; what it registers is forgotten afterwards, and the module too."""
    before = [set(register.entries) for register in REGISTERS]
    try:
        yield import_module(name)
    finally:
        sys.modules.pop(name, None)
        for register, known in zip(REGISTERS, before, strict=True):
            for new in set(register.entries) - known:
                register.entries.pop(new, None)
                register.origins.pop(new, None)
