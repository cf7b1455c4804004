import csv

from convnext.report import tables
from convnext.report.tables import Column

COLUMNS = [Column("name", "network"), Column("macs", "macs", 2), Column("size", "pixels")]
ROWS = [{"name": "a|b, c", "macs": 4.4567, "size": 224}, {"name": "long name", "macs": None, "size": 1024}]


def test_a_terminal_gets_words_on_the_left_and_numbers_on_the_right():
    assert tables.plain(COLUMNS, ROWS).splitlines() == [
        "network    macs  pixels",
        "a|b, c     4.46     224",
        "long name     –    1024",
    ]


def test_markdown_reads_back_to_the_same_cells():
    head, marks, *lines = tables.markdown(COLUMNS, ROWS).splitlines()
    assert head == "| network | macs | pixels |"
    assert marks == "| --- | ---: | ---: |"
    cells = [[cell.strip() for cell in line.replace(r"\|", "\0").strip("|").split("|")] for line in lines]
    assert [[cell.replace("\0", "|") for cell in line] for line in cells] == [["a|b, c", "4.46", "224"], ["long name", "–", "1024"]]


def test_csv_reads_back_to_the_same_values():
    lines = list(csv.DictReader(tables.comma_separated(COLUMNS, ROWS).splitlines()))
    assert lines == [{"name": "a|b, c", "macs": "4.4567", "size": "224"}, {"name": "long name", "macs": "", "size": "1024"}]


def test_the_classes_that_are_confused_most_come_first():
    matrix = [[9, 2, 0], [5, 9, 0], [0, 1, 9]]
    assert tables.most_confused(matrix, ["a", "b", "c"]) == [
        {"is": "b", "taken for": "a", "times": 5},
        {"is": "a", "taken for": "b", "times": 2},
        {"is": "c", "taken for": "b", "times": 1},
    ]
