"""Compile the fast CPU operators when convnext is built: into the wheel, or for an editable installation into the source tree."""

import importlib.util
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class OperatorsHook(BuildHookInterface):
    """Adds the compiled operators to a wheel. Without a usable compiler the wheel is pure Python, and one line says so."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the libraries, and name the platform in the wheel's tag if there are any. `version`: "standard" or "editable"."""
        package = Path(self.root, "convnext/ops")
        compiling = _module(package / "compile.py")
        if version == "editable":
            folder = compiling.LIBRARIES
        else:
            self._temporary = tempfile.TemporaryDirectory(prefix="convnext-")  # deleted with this hook, after the wheel is written
            folder = Path(self._temporary.name)
        missing = compiling.compile_all(folder)
        if missing:
            print(f"convnext: {compiling.in_one_line(missing)}", file=sys.stderr, flush=True)
        if version != "editable":
            build_data["force_include"] |= {str(path): f"convnext/ops/lib/{path.name}" for path in sorted(folder.iterdir())}
        if any(folder.glob("*.so")):
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def _module(path: Path) -> ModuleType:
    """Return a module of the package without importing the package, whose dependencies are not there when it is built."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
