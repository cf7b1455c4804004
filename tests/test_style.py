"""The documentation's style: words, width and headings. CONTRIBUTING, "Style", has the rules."""

import re

import pytest
from documented import PAGES, ROOT, called

# What we write, and the words in its place that readers of machine learning papers would not expect.
INSTEAD = {
    "image": r"pictures?",
    "resume, continue": r"go(?:es)? on(?! (?:the|an?)\b)|gone on",
    "report, warn, print, list": r"tells?(?! \w+ apart)|told",
    "baseline": r"rivals?",
    "depends on": r"hangs? on",
    "opt-in": r"by wish",
    "fix, correct": r"mend(?:ed|s|ing)?",
    "several GB": r"some gigabytes",
    "download": r"be had",
    "skip, ignore": r"(?:leave|left) out",
    "evidence for a class": r"what speaks for",
    "instance mask": r"outlines?",
}
WIDTH = 140  # characters of a line of text; tables, blocks of code and quoted messages may be wider
TEXTS = [*PAGES, ROOT / "CHANGELOG.md"]


def prose(page):
    """Yield the number and text of each line outside of blocks of code."""
    is_code = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code:
            yield number, line


@pytest.mark.parametrize("page", TEXTS, ids=called)
def test_words(page):
    found = [
        f"{called(page)}:{number}: write {better!r}, not {match[0]!r}"
        for number, line in prose(page)
        for better, worse in INSTEAD.items()
        for match in re.finditer(rf"(?<![\w`]){worse}(?![\w`])", line, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("page", TEXTS, ids=called)
def test_width(page):
    wide = [
        f"{called(page)}:{number}: {len(line)}" for number, line in prose(page) if len(line) > WIDTH and not line.startswith(("|", "`"))
    ]
    assert not wide, f"break these lines after at most {WIDTH} characters:\n" + "\n".join(wide)


@pytest.mark.parametrize("page", TEXTS, ids=called)
def test_headings_are_in_sentence_case(page):
    """Not More Than Two words in a row begin with a capital: names are short."""
    wrong = [line for _, line in prose(page) if re.match(r"#+ .*\b[A-Z][a-z]+ [A-Z][a-z]+ [A-Z][a-z]+\b", line)]
    assert not wrong, f"{called(page)}: write only the first word and names with a capital: {wrong}"
