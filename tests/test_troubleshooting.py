"""The messages that the page on troubleshooting quotes are those that the code raises."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
QUOTED = [text.strip() for text in re.findall(r"^ *```text\n(.*?)^ *```$", PAGE, re.MULTILINE | re.DOTALL)]
QUOTED += re.findall(r"^\| `([^`]+)`", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def texts():
    """The package's source, adjacent texts joined, and an ellipsis for each value in a text."""
    source = "\n".join(path.read_text() for path in (ROOT / "convnext").rglob("*.py"))
    return re.sub(r"\{[^{}\n]*\}", "…", re.sub(r'"\s*\n\s*f?"', "", source))


def test_messages_are_quoted():
    assert len(QUOTED) > 20


@pytest.mark.parametrize("message", QUOTED)
def test_the_code_has_this_message(message, texts):
    parts = [part.strip() for part in re.split("[…\n]", message) if len(part.split()) > 1]
    assert parts, "quote some words of the message"
    for part in parts:
        assert part in texts
