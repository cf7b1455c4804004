"""The command line: parses, calls, prints. Everything heavy is imported by the command that needs it.

Results go to standard output, messages and progress to standard error. Exit codes: 0 done, 1 the work failed, 2 wrong usage.
"""

import logging
import sys
from contextlib import suppress
from io import TextIOWrapper
from typing import Annotated

import typer

from convnext.cli.common import app
from convnext.errors import ConvnextError
from convnext.extend import load, place_in_own_code
from convnext.text import printable

# Each adds its commands to the application, and help lists them in this order.
# isort: off
from convnext.cli import train as _train  # noqa: F401
from convnext.cli import fit as _fit  # noqa: F401
from convnext.cli import use as _use  # noqa: F401
from convnext.cli import explain as _explain  # noqa: F401
from convnext.cli import export as _export  # noqa: F401
from convnext.cli import share as _share  # noqa: F401
from convnext.cli import measure as _measure  # noqa: F401
from convnext.cli import models as _models  # noqa: F401
from convnext.cli import serve as _serve  # noqa: F401
from convnext.cli import data as _data  # noqa: F401
from convnext.cli import info as _info  # noqa: F401

# isort: on


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; after any command too.")] = False,
    imports: Annotated[
        list[str] | None,
        typer.Option("--import", metavar="MODULE", help="Import a module of your own first, for what it registers; after any command too."),
    ] = None,
) -> None:
    if version:
        from convnext import __version__

        print(__version__)
        raise typer.Exit


def without_imports(arguments: list[str]) -> list[str]:
    """Import the module of each `--import MODULE` before `--`, and return the arguments without them."""
    left: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            return [*left, argument, *rest]
        option, equals, module = argument.partition("=")
        if option == "--import":
            load(module if equals else next(rest, ""))
        else:
            left.append(argument)
    return left


def _cleaned(record: logging.LogRecord) -> bool:
    """Make a message one line without control characters: it may name files, and what files from elsewhere hold."""
    record.msg, record.args = printable(record.getMessage()), None
    return True


def main() -> None:
    """Run the command line; an error is one line, and a traceback with --debug."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a character that the terminal's encoding lacks must not end a command
    if logging.lastResort is not None:  # it prints the messages of libraries and of this package
        logging.lastResort.addFilter(_cleaned)
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        arguments = without_imports(arguments)
        app(arguments, prog_name="convnext")
    except ConvnextError as error:
        if debug:
            raise
        with suppress(OSError):  # of a terminal that was closed
            if not error.elsewhere:
                print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        message = printable(f"{type(error).__name__}: {error}")
        place = place_in_own_code(error)
        whose = "a defect of convnext" if place is None else f"in your code: {printable(place)}"
        print(f"error: {message} ({whose}; --debug shows the traceback)", file=sys.stderr)
        sys.exit(1)
