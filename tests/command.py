"""The command line in this process: the same function as `convnext`, without seconds of imports for each call."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace
from unittest.mock import patch

from convnext.cli import main


def run(*arguments, code=0):
    """Run `convnext ARGUMENTS` and return its standard output and error; the exit code must be `code`."""
    out, err, returned = io.StringIO(), io.StringIO(), 0
    with patch.object(sys, "argv", ["convnext", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as exit_:
            returned = exit_.code or 0
    assert returned == code, err.getvalue()
    return SimpleNamespace(stdout=out.getvalue(), stderr=err.getvalue(), returncode=returned)
