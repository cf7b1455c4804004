"""The tables of docs/migrate."""

import re

from documented import ROOT

PAGES = sorted((ROOT / "docs" / "migrate").glob("*.md"))


def rows():
    """The first two cells of each row, with its page, its section, the recipe that the text before it names, and the column's title."""
    for page in PAGES:
        recipe, section, title = None, "", ""
        for line in page.read_text().splitlines():
            if line.startswith("## "):
                section = line.removeprefix("## ")
            if found := re.search(r"overrides of `convnext train (\S+) ", line):
                recipe = found[1]
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if not cells:
                title = ""
            elif not title:
                title = cells[0]
            elif not cells[0].startswith("---"):
                yield page.stem, section, recipe, title, cells[0], cells[1]


def spans(cell):
    return re.findall(r"`([^`]+)`", cell)
