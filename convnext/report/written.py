"""Pages that tell of work that is done: one that can't be made is told of, and takes nothing else with it."""

from collections.abc import Callable
from pathlib import Path

from convnext.errors import first_line
from convnext.models.weights.files import write_atomically


def write_page(path: Path, make: Callable[[], str], tell: Callable[[str], None]) -> bool:
    """Write what `make` returns to `path`, at once or not at all; whether that was done. Why not is told in one line, never raised."""
    try:
        text = make()
        write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))
    except Exception as error:  # from drawing to writing, whatever it is: hours of work lie behind it
        tell(f"the report {path} could not be written ({type(error).__name__}: {first_line(error)}); everything else is there")
        return False
    return True
