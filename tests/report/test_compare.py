"""The page that compares runs: of folders written by hand, and of one that `convnext.train` left."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from helpers import image_folder

import convnext
from convnext.errors import ConvnextError, UsageError
from convnext.report.compare import comparable, compare
from convnext.report.runs import RunData, read_run, read_runs

RECIPE = {
    "task": "classify",
    "model": {"name": "convnext_atto", "depths": [2, 2, 6, 2]},
    "optim": {"lr": 0.004, "weight_decay": 0.05},
    "train": {"epochs": 4, "batch_size": 8},
    "seed": 0,
}
ENVIRONMENT = {"versions": {"torch": "2.15.0"}, "hardware": {"cpu": "Some <Xeon>", "gpu": None}, "commit": None}


def lines(epochs=4, top1=(60.0, 90.0, 80.0, 70.0), speed=100.0):
    """Three train lines an epoch, one of them far slower, and one evaluation."""
    found = []
    for epoch in range(epochs):
        for step in (1, 2, 3):
            now = {"step": 3 * epoch + step, "epoch": epoch + step / 3}
            speeds = {"images_per_second": speed if step > 1 else 1.0}
            found.append({"kind": "train"} | now | {"loss": 2.0 / now["step"], "lr": 0.001} | speeds)
        if epoch < len(top1):
            found.append({"kind": "eval", "step": 3 * epoch + 3, "epoch": epoch + 1, "loss": 0.5, "top1": top1[epoch], "count": 36})
    return found


def run_folder(path, recipe=RECIPE, written=None, environment=ENVIRONMENT):
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (path / "environment.json").write_text(json.dumps(environment))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (lines() if written is None else written)))
    return path


class Page(HTMLParser):
    """Fails on a tag that closes another than the last opened; notes what is loaded from outside, the tables and the text."""

    VOID = frozenset({"meta", "img", "br", "path", "use", "rect"})

    def __init__(self, text):
        super().__init__()
        self.open, self.outside, self.tables, self.summaries = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.outside += [value for key, value in attributes if key in ("src", "href") and not (value or "").startswith(("data:", "#"))]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self.open and self.open[-1] == "summary":
            self.summaries.append(data)

    def table(self, head):
        """The rows, keyed by the head, of the table whose first column is called `head`."""
        return [dict(zip(rows[0], row, strict=True)) for rows in self.tables if rows[0][0] == head for row in rows[1:]]


def test_three_runs_make_one_page_that_loads_nothing_from_outside(tmp_path):
    for name, lr in (("a", 0.001), ("b", 0.002), ("<c>", 0.004)):
        run_folder(tmp_path / name, RECIPE | {"optim": {"lr": lr, "weight_decay": 0.05}})
    text = compare(read_runs([tmp_path / "a", tmp_path / "b", tmp_path / "<c>"]), "top1")
    page = Page(text)
    assert page.outside == []
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    assert [row["run"] for row in page.table("run")] == ["a", "b", "<c>"]
    assert page.summaries == ["7 keys with one value in all runs", "a", "b", "<c>"]
    assert text.count("<svg") == 2 + 3 + 3 * 3  # the overlaid curves, the legend's swatches, each run's own three curves


def test_a_row_has_the_numbers_of_its_run(tmp_path):
    run_folder(tmp_path / "run", environment=ENVIRONMENT | {"date": "2026-11-22"})
    (row,) = Page(compare(read_runs([tmp_path / "run"]), "top1")).table("run")
    assert row == {
        "run": "run",
        "best top-1 accuracy": "90.00\xa0%",
        "at epoch": "2",
        "last top-1 accuracy": "70.00\xa0%",
        "95 % interval": "53.71 to 82.43\xa0%",
        "validation images": "36",
        "epochs": "4",
        "steps": "12",
        "images/s": "100",
        "model": "convnext_atto",
        "hardware": "Some <Xeon>",
        "date": "2026-11-22",
    }


def test_what_is_the_same_of_all_runs_is_said_once(tmp_path):
    runs = [run_folder(tmp_path / "a"), run_folder(tmp_path / "b", written=lines(speed=50.0))]
    text = compare(read_runs(runs), "top1")
    columns = ["run", "best top-1 accuracy", "at epoch", "last top-1 accuracy", "95 % interval", "images/s"]
    assert [list(row) for row in Page(text).table("run")] == [columns, columns]
    assert "Of all runs: validation images 36 · epochs 4 · steps 12 · model convnext_atto · hardware Some &lt;Xeon&gt;" in text


def test_a_run_under_way_says_how_far_it_is(tmp_path):
    run_folder(tmp_path / "run", written=lines(epochs=2, top1=(60.0,)))
    (row,) = Page(compare(read_runs([tmp_path / "run"]), "top1")).table("run")
    assert row["epochs"] == "2 of 4"
    assert "date" not in row


def test_keys_that_differ_come_first_and_the_others_once(tmp_path):
    other = {**RECIPE, "model": {"name": "convnext_atto", "depths": [1, 1, 1, 1]}, "optim": {"lr": 0.002}, "eval": {"warp": True}}
    runs = read_runs([run_folder(tmp_path / "a"), run_folder(tmp_path / "b", other)])
    page = Page(compare(runs, "top1"))
    assert page.summaries[0] == "5 keys with one value in all runs"
    assert {"key of all runs": "model.name", "value": "convnext_atto"} in page.table("key of all runs")
    assert page.table("key") == [
        {"key": "model.depths", "a": "[2, 2, 6, 2]", "b": "[1, 1, 1, 1]"},
        {"key": "optim.lr", "a": "0.004", "b": "0.002"},
        {"key": "optim.weight_decay", "a": "0.05", "b": "–"},
        {"key": "eval.warp", "a": "–", "b": "true"},
    ]


def with_data(name="a", count=36, seed=0, **data):
    found = [line | ({"count": count} if line["kind"] == "eval" else {}) for line in lines()]
    return RunData(name, RECIPE | {"seed": seed, "data": {"train": "photos", **data}}, ENVIRONMENT, found)


@pytest.mark.parametrize(
    ("a", "b", "are_the_same"),
    [
        ({"val": "v1"}, {"val": "v1", "seed": 1}, True),
        ({"val": "v1"}, {"val": "v2"}, False),
        ({"val": "v1"}, {"val": "v1", "count": 35}, False),
        ({"val_fraction": 0.2}, {"val_fraction": 0.2}, True),
        ({"val_fraction": 0.2}, {"val_fraction": 0.2, "seed": 1}, False),  # other images are held out
        ({"val_fraction": 0.2}, {"val": "v1"}, False),
    ],
)
def test_runs_on_different_validation_images_have_no_winner(a, b, are_the_same):
    text = compare([with_data("a", **a), with_data("b", **b)], "top1")
    cards = dict(re.findall(r'<div class="card"><b>([^<]*)</b><span>([^<]*)</span>', text))
    assert ("Not comparable: different validation sets" in text) == (not are_the_same)
    assert cards.get("90.00\xa0%") == ("best top-1 accuracy: a, b" if are_the_same else None)
    assert cards.get("not comparable") == (None if are_the_same else "best top-1 accuracy")
    assert ("Runs whose intervals overlap" in text) == are_the_same


def test_of_losses_the_lowest_is_best_and_has_no_percent():
    runs = []
    for name, values in (("a", (0.5, 0.25, 0.375)), ("b", (0.5, 0.3, 0.3))):
        found = [{"kind": "eval", "epoch": epoch, "step": epoch, "loss": value, "count": 36} for epoch, value in enumerate(values, 1)]
        runs.append(RunData(name, RECIPE, ENVIRONMENT, found))
    assert runs[0].best("loss") == (2, 0.25)
    text = compare(runs, "loss")
    cards = dict(re.findall(r'<div class="card"><b>([^<]*)</b><span>([^<]*)</span>', text))
    assert cards["0.25"] == "best loss: a"
    row = Page(text).table("run")[0]
    assert (row["best loss"], row["at epoch"], row["last loss"]) == ("0.25", "2", "0.375")


def test_a_run_without_an_evaluation_does_not_make_others_incomparable():
    runs = [with_data("a", val="v"), with_data("b", val="v")]
    young = RunData("young", runs[0].recipe, ENVIRONMENT, lines(epochs=1, top1=()))
    assert comparable([*runs, young], "top1")


def test_runs_of_one_recipe_differ_in_nothing(tmp_path):
    text = compare(read_runs([run_folder(tmp_path / "a"), run_folder(tmp_path / "b")]), "top1")
    assert Page(text).table("key") == []
    assert "the recipes are the same" in text


def test_runs_that_differ_by_their_seeds_have_a_mean_and_a_spread(tmp_path):
    def folder(name, seed, last, **model):
        recipe = RECIPE | {"model": RECIPE["model"] | model, "seed": seed}
        return run_folder(tmp_path / name, recipe, lines(top1=(60.0, 90.0, 80.0, last)))

    runs = [folder("a0", 0, 70.0), folder("a1", 1, 76.0), folder("b0", 0, 71.0, width=8)]
    rows = Page(compare(read_runs(runs), "top1")).table("runs")
    assert [[value.replace("\xa0", " ") for value in row.values()] for row in rows] == [
        ["a0, a1", "convnext_atto", "73.00 %", "4.24 %", "70.00 %", "76.00 %"],
        ["b0", "convnext_atto", "71.00 %", "–", "71.00 %", "71.00 %"],
    ]
    again = folder("again", 0, 70.0)
    assert "Over the seeds" not in compare(read_runs([runs[0], again, runs[2]]), "top1")  # the same seed twice
    short = run_folder(tmp_path / "short", RECIPE | {"seed": 1}, lines(epochs=3))
    assert "Over the seeds" not in compare(read_runs([runs[0], short]), "top1")


@pytest.mark.parametrize("written", [[], lines(epochs=1, top1=())], ids=["nothing logged", "no evaluation"])
def test_runs_without_an_evaluation_yet(tmp_path, written):
    young, old = run_folder(tmp_path / "young", written=written), run_folder(tmp_path / "old")
    alone = compare(read_runs([young]), "top1")
    Page(alone)
    assert "No evaluation yet." in alone
    together = Page(compare(read_runs([young, old]), "top1"))
    assert [row["best top-1 accuracy"] for row in together.table("run")] == ["–", "90.00\xa0%"]


def test_folders_of_one_name_get_different_names_and_one_given_twice_is_shown_once(tmp_path):
    paths = [run_folder(tmp_path / name) for name in ("x/seed/digits", "y/seed/digits", "x/flowers")]
    names = [run.name for run in read_runs([*paths, paths[0] / ".." / "digits"])]
    assert names == ["x/seed/digits", "y/seed/digits", "flowers"]


def test_runs_of_one_name_are_refused():
    with pytest.raises(ValueError, match="must differ"):
        compare([RunData("a", RECIPE, ENVIRONMENT, []), RunData("a", RECIPE, ENVIRONMENT, [])], "top1")


def test_a_last_line_cut_short_is_skipped_and_reported(tmp_path):
    run_folder(tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    run = read_run(tmp_path / "run")
    assert run.lines == lines()[:-1]
    text = compare([run], "top1")
    Page(text)
    assert "The last line of metrics.jsonl is cut short and was skipped" in text
    assert "is cut short" not in compare([RunData("whole", RECIPE, ENVIRONMENT, lines())], "top1")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("recipe.yaml", None, "holds no run: it has no recipe.yaml"),
        ("recipe.yaml", "model: [", "recipe.yaml is damaged"),
        ("recipe.yaml", "", "recipe.yaml is damaged: it holds no table of keys"),
        ("environment.json", None, "environment.json is missing"),
        ("environment.json", '{"versions"', "environment.json is damaged"),
        ("metrics.jsonl", None, "metrics.jsonl is missing"),
        ("metrics.jsonl", '{"kind": "tr\n{"kind": "eval", "step": 1, "epoch": 1}\n', "metrics.jsonl is damaged in line 1"),
        ("metrics.jsonl", '{"kind": "eval", "step": 1, "epoch": 1}\n{"kind": "ev\n', "metrics.jsonl is damaged in line 2"),
        ("metrics.jsonl", '{"kind": "eval", "step": 1}\n', "metrics.jsonl is damaged in line 1"),
        ("metrics.jsonl", "[]\n", "metrics.jsonl is damaged in line 1"),
    ],
)
def test_what_is_missing_or_damaged_is_named(tmp_path, name, content, message):
    run_folder(tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    if content is not None:
        (tmp_path / "run" / name).write_text(content)
    with pytest.raises(ConvnextError, match=message):
        read_run(tmp_path / "run")


def test_a_folder_that_is_not_there_is_wrong_usage():
    with pytest.raises(UsageError, match="/no/where holds no run"):
        read_run(Path("/no/where"))


def test_more_runs_than_colours_and_a_run_of_very_many_lines(tmp_path):
    runs = [RunData(f"run{i}", RECIPE | {"seed": i}, ENVIRONMENT, lines()) for i in range(9)]
    assert compare(runs, "top1").count('stroke-dasharray="6 2"') == 2
    long = [RunData("long", RECIPE, ENVIRONMENT, lines(epochs=20_000, top1=()))]
    assert len(compare(long, "top1")) < 1_000_000


def test_a_run_that_train_left(tmp_path):
    photos = str(image_folder(tmp_path / "photos", each=8))
    settings = {
        "model.depths": [1, 1, 1, 1],
        "model.widths": [8, 16, 24, 32],
        "data.image_size": 32,
        "data.workers": 0,
        "data.train": photos,
        "data.val": photos,
        "train.epochs": 2,
        "train.eval_every": 1,
        "train.warmup_epochs": 1,
        "train.batch_size": 8,
        "train.log_every": 1,
    }
    result = convnext.train("digits", settings, output=tmp_path / "real")
    runs = read_runs([tmp_path / "real", run_folder(tmp_path / "by hand")])
    page = Page(compare(runs, "top1"))
    assert page.outside == []
    real, _ = page.table("run")
    assert real["last top-1 accuracy"] == f"{result.metrics['top1']:.2f}\xa0%"
    assert real["best top-1 accuracy"] == f"{result.best:.2f}\xa0%"
    assert (real["epochs"], real["steps"]) == ("2", "6")
    assert {row["key"] for row in page.table("key")} >= {"train.epochs", "model.depths", "data.image_size"}
    assert "train.batch_size" not in {row["key"] for row in page.table("key")}


def folds(tmp_path, numbers, last=(80.0, 90.0, 94.0), **data):
    for number, value in zip(numbers, last, strict=True):
        recipe = RECIPE | {"data": {"train": "photos", "val": None, "fold": f"{number}/5"} | data}
        run_folder(tmp_path / f"fold-{number}", recipe, lines(1, (value,)))
    return read_runs([tmp_path / f"fold-{number}" for number in numbers])


def test_folds_of_one_cross_validation_have_a_mean_and_a_standard_deviation(tmp_path):
    text = compare(folds(tmp_path, (1, 2, 4)), "top1")
    assert "88.00\N{NO-BREAK SPACE}% ± 7.21\N{NO-BREAK SPACE}%" in text
    assert "of 3 of 5 folds" in text
    assert "folds of one cross-validation" in text
    assert "Not comparable" not in text


def test_folds_of_different_data_have_no_mean(tmp_path):
    runs = folds(tmp_path / "a", (1, 2), (80.0, 90.0)) + folds(tmp_path / "b", (3,), (90.0,), train="other")
    text = compare(runs, "top1")
    assert "±" not in text
    assert "Not comparable" in text
