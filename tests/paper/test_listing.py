"""The tables as text and figure, from rows with every cell filled."""

import re

import pytest
from PIL import Image

from convnext.errors import ConvnextError, UsageError
from convnext.paper import listing
from convnext.paper.published import TABLES, read


def filled(table):
    """Rows such as `convnext.paper.table` gives, every cell as wide as it can become."""
    rows = []
    for row in read(table):
        name = row.model.replace("*", "separate_downsampling")
        found = {
            "params_m": 350.2,
            "gmacs": 179.03,
            "images_per_second": 1234.56,
            "memory_mib": 12345.6,
            "top1": 81.234,
            "box_ap": 51.2,
            "mask_ap": 44.1,
        }
        found |= {f"imagenet_{key}": 43.2 for key in ("c_mce", "cbar_mce", "a_top1", "r_top1")} | {"sketch_top1": 33.3}
        found |= {"miou_ms": 49.1, "swin_images_per_second": 987.6, "ratio": 1.25, "ratio_least": 1.11, "ratio_most": 1.33}
        printed = {f"published_{key}": value for key, value in row.values.items()}
        head = {"label": row.label, "model": name, "trained_on": row.group, "image_size": row.image_size, "remarks": [*row.notes, "told"]}
        rows.append(head | printed | {f"measured_{key}": value for key, value in found.items()})
    return rows


@pytest.mark.parametrize("table", TABLES)
def test_every_table_fits_a_terminal_of_140_columns(table):
    rows = filled(table)
    title, units, place, blank, _, *lines = listing.plain(table, rows, ["on a machine"]).splitlines()
    assert max(map(len, [title, units, *lines])) <= 140
    assert (place, blank) == ("on a machine", "")
    assert [line for line in lines if line.startswith("[1] ")]
    assert len([line for line in lines if not line.startswith("[")]) == len(rows)


def test_remarks_are_numbered_once_and_rows_point_at_them():
    rows = filled("roadmap")
    text = listing.plain("roadmap", rows)
    remarks = dict(re.findall(r"^\[(\d+)\] (.*)$", text, re.MULTILINE))
    assert remarks["1"] == "told"
    assert len(remarks) == 3
    line = next(line for line in text.splitlines() if line.startswith("BatchNorm to LayerNorm"))
    one, two = line.split()[-2:]
    assert (one, "4.46 G" in remarks[two]) == ("1", True)


def test_columns_without_any_value_are_left_out():
    rows = filled("imagenet")
    assert "MiB" in listing.plain("imagenet", rows)
    for row in rows:
        row["measured_memory_mib"] = None
    assert "MiB" not in listing.plain("imagenet", rows)
    rows[3]["measured_memory_mib"] = 5.0
    assert "MiB" in listing.plain("imagenet", rows)


def test_markdown_has_the_cells_of_the_terminal():
    rows = filled("imagenet")
    table, remarks, place = listing.markdown("imagenet", rows, ["a machine", "torch 2"]).split("\n\n")
    _, marks, *lines = table.splitlines()
    assert set(marks) <= set("|-: ")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    plain = [re.split(r"\s{2,}", line) for line in listing.plain("imagenet", rows).splitlines()[4 : 4 + len(rows)]]
    assert cells == plain
    assert "2. " in remarks
    assert place == "a machine; torch 2"


@pytest.mark.parametrize("table", ["imagenet", "coco", "ade20k"])
def test_figures_name_every_family_and_network(table, tmp_path):
    rows = filled(table)
    listing.plot(table, rows, tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    words = re.findall(r"<text[^>]*>([^<]*)</text>", text)
    for row in rows:
        family, _, size = row["label"].partition("-")
        assert {"R": "BiT, ResNet", "X101": "ResNeXt-101"}.get(family, family) in words
        assert any(word.split(" ")[0] == size for word in words)
    assert {"published", "measured here"} <= set(words)
    listing.plot(table, rows, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == text
    listing.plot(table, rows, tmp_path / "figure.png")
    assert min(Image.open(tmp_path / "figure.png").size) > 600


def test_measured_results_are_filled_and_printed_ones_hollow(tmp_path):
    rows = filled("imagenet")
    for row in rows:
        row["measured_top1"] = None
    listing.plot("imagenet", rows, tmp_path / "printed.svg")
    rows[11]["measured_top1"] = 82.0
    listing.plot("imagenet", rows, tmp_path / "both.svg")
    drawn = [len(re.findall(r"<use [^>]*style=\"fill: #0072b2", (tmp_path / f"{name}.svg").read_text())) for name in ("printed", "both")]
    assert drawn[1] == drawn[0] + 1


def test_what_cannot_be_drawn_says_why(tmp_path):
    listing.check_plot("coco", tmp_path / "a.png")
    with pytest.raises(UsageError, match="of the tables imagenet, coco, ade20k, not of throughput"):
        listing.check_plot("throughput", tmp_path / "a.png")
    with pytest.raises(UsageError, match="must end in .png or .svg"):
        listing.check_plot("imagenet", tmp_path / "a.pdf")
    with pytest.raises(ConvnextError, match="could not write"):
        listing.plot("imagenet", filled("imagenet"), tmp_path / "nowhere" / "a.png")
    with pytest.raises(ConvnextError, match="nothing to draw"):
        listing.plot("imagenet", [], tmp_path / "a.png")
