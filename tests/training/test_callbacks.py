"""Callbacks: what they are called with, how they stop a run, and that a resumed run stops at the same step."""

import json
import math
import time

import command
import numpy as np
import pytest
import torch
from helpers import image_folder
from safetensors.torch import load_file

import convnext
from convnext.errors import ConvnextError, UsageError
from convnext.recipe import load_recipe
from convnext.training.callbacks import Moment, Patience, TimeLimit, built_in

TINY = {
    "model.depths": [1, 1, 1, 1],
    "model.widths": [4, 4, 8, 8],
    "data.workers": 0,
    "train.epochs": 4,
    "train.warmup_epochs": 0,
    "train.batch_size": 8,
    "train.log_every": 2,
    "train.eval_every": 1,
    "augment.rand_augment": None,
}  # three steps an epoch


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("data") / "photos")


def tiny(photos, output, more=None, **how):
    return convnext.train("digits", TINY | {"data.train": str(photos), "data.val": str(photos)} | (more or {}), output=output, **how)


def lines(run, kind=None):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key != "images_per_second"} for line in found if kind in (None, line["kind"])]


def equal(one, two, name="last"):
    a, b = load_file(one / f"{name}.safetensors"), load_file(two / f"{name}.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """A run without callbacks."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    tiny(photos, folder)
    return folder


class Noted(convnext.Callback):
    """Notes every call, and stops at a step if told so."""

    def __init__(self, stop_at=None, at="on_step"):
        self.calls, self.moments, self.stop_at, self.at, self.counted = [], [], stop_at, at, 0

    def note(self, event, moment):
        self.calls.append((event, moment.step))
        self.moments.append(moment)
        if event == self.at and self.stop_at == moment.step:
            raise convnext.Stop("enough")

    def on_begin(self, moment):
        self.note("on_begin", moment)

    def on_step(self, moment):
        self.counted += 1
        self.note("on_step", moment)

    def on_evaluation(self, moment):
        self.note("on_evaluation", moment)

    def on_save(self, moment):
        self.note("on_save", moment)

    def on_end(self, moment):
        self.note("on_end", moment)

    def state_dict(self):
        return {"counted": self.counted, "of": [torch.tensor(1.0), ("a", None, True)]}

    def load_state_dict(self, state):
        assert state["of"] == [torch.tensor(1.0), ("a", None, True)]
        self.counted = state["counted"]


def test_a_callback_is_called_at_every_step_evaluation_and_checkpoint_and_changes_nothing(photos, whole, tmp_path):
    noted = Noted()
    result = tiny(photos, tmp_path / "run", {"train.epochs": 4}, callbacks=[noted])
    epochs = [[("on_step", 3 * i + step) for step in (1, 2, 3)] + [("on_save", 3 * i + 3)] for i in range(4)]
    evaluated = [call for epoch in epochs for call in (*epoch, ("on_evaluation", epoch[-1][1]), ("on_save", epoch[-1][1]))]
    assert noted.calls == [("on_begin", 0), *evaluated, ("on_end", 12)]
    written = [line for moment, call in zip(noted.moments, noted.calls, strict=True) if (line := moment.line) and call[0] != "on_end"]
    assert [{key: line[key] for key in line if key != "images_per_second"} for line in written] == lines(tmp_path / "run") == lines(whole)
    assert [moment.end for moment in noted.moments] == [12] * len(noted.calls)
    assert noted.moments[-1].epoch == 4
    assert noted.moments[-1].stopped is None
    assert noted.moments[-1].best == result.best
    assert noted.moments[-1].folder == tmp_path / "run"
    assert sorted(moment.seconds for moment in noted.moments) == [moment.seconds for moment in noted.moments]
    assert (result.step, result.stopped) == (12, None)
    assert equal(tmp_path / "run", whole)


OFTEN = {"train.checkpoint_every": 1, "train.eval_every": 2}
MOMENTS = ["on_step", "on_evaluation", "on_save", "on_begin"]
QUICK = [("on_step", {}), ("on_save", OFTEN)]


@pytest.mark.parametrize(
    ("at", "more"),
    [pytest.param(at, more, marks=[] if (at, more) in QUICK else pytest.mark.slow) for at in MOMENTS for more in ({}, OFTEN)],
)
def test_a_callback_stops_the_run_which_ends_cleanly_and_continues_to_the_same_bits(photos, whole, tmp_path, at, more, capsys):
    run = tmp_path / "run"
    step = {"on_step": 5, "on_evaluation": 6, "on_save": 5 if more else 6, "on_begin": 0}[at]
    noted = Noted(stop_at=step, at=at)
    result = tiny(photos, run, more, callbacks=[Noted(), noted, Noted()])
    printed = capsys.readouterr().err
    assert f"stopped at step {step} of 12: enough; resume with the same command and --resume" in printed
    assert "so far: top-1" in printed
    assert (result.step, result.stopped) == (step, "enough")
    assert noted.calls[-1] == ("on_end", step)
    assert noted.moments[-1].stopped == "enough"
    assert result.metrics["count"] == 24
    assert (result.best, lines(run, "eval")[-1]["step"]) == (pytest.approx(noted.moments[-1].best), step)
    page = (run / "report.html").read_text()
    assert "enough" in page
    assert f"{round(step / 3, 1):g} of 4" in page
    assert (run / "best.safetensors").exists()
    tiny(photos, run, more, resume=True)
    assert "this run does not have" in capsys.readouterr().err or not step
    if not more:
        assert lines(run) == lines(whole)
        assert equal(run, whole)
        assert equal(run, whole, "best")


def test_a_stop_at_the_last_step_leaves_a_complete_run(photos, tmp_path, capsys):
    for callbacks in ((Noted(stop_at=3, at="on_step"),), [Noted(stop_at=3, at="on_save")]):
        (noted,) = callbacks
        result = tiny(photos, tmp_path / noted.at, {"train.epochs": 1}, callbacks=callbacks)
        assert (result.stopped, noted.moments[-1].stopped) == (None, None)
    assert "stopped" not in capsys.readouterr().err


# State


@pytest.mark.slow
def test_the_state_of_a_callback_is_in_the_checkpoint(photos, tmp_path, capsys):
    tiny(photos, tmp_path / "run", callbacks=[Noted(stop_at=5)])
    again, second = Noted(), Noted()
    tiny(photos, tmp_path / "run", callbacks=[again, second], resume=True)
    assert again.counted == 12
    assert second.counted == 7  # it is new
    assert again.calls[0] == ("on_begin", 5)
    assert "does not have" not in capsys.readouterr().err


class Own(convnext.Callback):
    """Has a state of the given kind."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return {"own": [{"a": self.state}]}

    def load_state_dict(self, state):
        raise KeyError("no such key")


def test_a_state_that_a_checkpoint_cannot_hold_is_refused_when_it_is_saved(photos, tmp_path):
    with pytest.raises(ConvnextError, match=r"callback Own: its state_dict holds a numpy.float64: give plain numbers"):
        tiny(photos, tmp_path / "run", callbacks=[Own(np.float64(1))])


@pytest.mark.slow
def test_an_error_in_a_callback_names_it(photos, tmp_path):
    class Broken(Noted):
        def note(self, event, moment):
            super().note(event, moment)
            if event == self.at:
                raise ZeroDivisionError("by me\nand more")

    for at in ("on_begin", "on_step", "on_evaluation", "on_save", "on_end"):
        broken, other = Broken(at=at), Noted()
        with pytest.raises(ConvnextError, match=f"^callback Broken failed in {at}: ZeroDivisionError: by me$"):
            tiny(photos, tmp_path / at, {"train.epochs": 1}, callbacks=[broken, other])
        assert other.calls[-1][0] == "on_end"
        assert (other.moments[-1].stopped is None) == (at == "on_end")
    tiny(photos, tmp_path / "own", {"train.epochs": 1}, callbacks=[Own(1)])
    with pytest.raises(ConvnextError, match="callback Own failed in load_state_dict: KeyError: 'no such key'"):
        tiny(photos, tmp_path / "own", {"train.epochs": 1}, callbacks=[Own(1)], resume=True)


def test_what_is_no_callback_is_refused(photos, tmp_path):
    class Half(convnext.Callback):
        def state_dict(self):
            return {"a": 1}

    for given, message in (
        (Noted(), "callbacks must be a list of convnext.Callback, not Noted"),
        ([Noted], "must hold instances of classes that extend convnext.Callback, not the class Noted"),
        ([print], "must hold instances .*, not a builtin_function_or_method"),
        ([Half()], "callback Half needs both state_dict and load_state_dict, or neither"),
    ):
        with pytest.raises(UsageError, match=message):
            tiny(photos, tmp_path / "run", callbacks=given)
    assert not (tmp_path / "run").exists()


# Patience


def moment(step=1, is_best=False, seconds=0.0):
    return Moment(step, 10, 0.0, seconds, 50.0, None, None, {}, is_best)


def test_patience_counts_evaluations_in_a_row_without_a_better_best():
    patience = Patience(2)
    for is_best in (True, False, True, False):
        patience.on_evaluation(moment(is_best=is_best))
    with pytest.raises(convnext.Stop, match=r"the last 2 evaluations did not improve the best, 50 \(train.patience=2\)"):
        patience.on_evaluation(moment())


FLAT = {"optim.lr": 1e-12, "optim.min_lr": 0, "train.epochs": 8, "train.patience": 3, "train.checkpoint_every": 1}


def test_a_resumed_run_loses_patience_at_the_same_step(photos, tmp_path):
    calm = tiny(photos, tmp_path / "calm", FLAT)  # nothing is learned: the first evaluation stays the best
    assert calm.stopped.startswith("the last 3 evaluations did not improve the best")
    assert calm.step == 12
    tiny(photos, tmp_path / "cut", FLAT, callbacks=[Noted(stop_at=7)])
    assert tiny(photos, tmp_path / "cut", FLAT, resume=True).step == 12
    assert lines(tmp_path / "cut") == lines(tmp_path / "calm")
    assert equal(tmp_path / "cut", tmp_path / "calm")


@pytest.mark.slow
def test_a_run_that_lost_patience_stays_stopped_until_it_gets_more(photos, tmp_path, capsys):
    tiny(photos, tmp_path / "cut", FLAT)
    before = (tmp_path / "cut" / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert tiny(photos, tmp_path / "cut", FLAT, resume=True).step == 12
    assert "stopped at step 12 of 24: the last 3 evaluations" in capsys.readouterr().err
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == before
    assert tiny(photos, tmp_path / "cut", FLAT | {"train.patience": 4}, resume=True).step == 15  # without --change
    assert tiny(photos, tmp_path / "cut", FLAT | {"train.patience": None}, resume=True).stopped is None


# Time


@pytest.fixture
def slow(monkeypatch):
    """Ten hours a step."""
    begin, hours = time.monotonic(), [0.0]

    class Steps(convnext.Callback):
        def on_step(self, moment):
            hours[0] += 10

    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() if real() < begin else real() + 3600 * hours[0])
    return Steps()


def test_a_time_limit_counts_the_whole_run(photos, tmp_path, slow, capsys):
    more = {"train.max_hours": 45, "train.eval_every": 4}
    assert tiny(photos, tmp_path / "calm", more, callbacks=[slow]).step == 6  # the limit is looked at before `slow` is called
    first = tiny(photos, tmp_path / "cut", more | {"train.max_hours": 15}, callbacks=[slow], resume=True)
    printed = capsys.readouterr().err
    assert (
        "stopped at step 3 of 12: train.max_hours=15 has passed; to continue, resume with --resume and a larger train.max_hours" in printed
    )
    assert first.step == 3
    again = tiny(photos, tmp_path / "cut", more, callbacks=[slow], resume=True)
    assert again.step == 6
    assert again.seconds == pytest.approx(3600 * 60, rel=0.01)
    assert "3600 min" in (tmp_path / "cut" / "report.html").read_text()
    assert equal(tmp_path / "cut", tmp_path / "calm")
    assert lines(tmp_path / "cut") == lines(tmp_path / "calm")


def test_a_time_limit_is_looked_at_everywhere():
    for event in ("on_begin", "on_step", "on_evaluation"):
        getattr(TimeLimit(1), event)(moment(seconds=3599))
        with pytest.raises(convnext.Stop, match="train.max_hours=1 has passed"):
            getattr(TimeLimit(1), event)(moment(seconds=3600))


# The command line


def test_json_is_one_value_on_standard_output(photos, tmp_path):
    values = TINY | FLAT | {"train.patience": 1, "data.train": str(photos), "data.val": str(photos)}
    done = command.run(
        "train", "digits", *(f"{key}={json.dumps(value)}" for key, value in values.items()), "--output", tmp_path / "run", "--json"
    )
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    assert found.keys() == {"folder", "metrics", "best", "seconds", "step", "stopped"}
    assert found["folder"] == str(tmp_path / "run")
    assert found["metrics"]["top1"] == found["best"]
    assert found["step"] == 6
    assert "train.patience=1" in found["stopped"]
    assert "stopped at step 6 of 24" in done.stderr
    assert math.isfinite(found["seconds"])


def test_bad_values_of_the_keys_are_refused_and_by_default_there_is_no_callback():
    for key, value in (("train.patience", 0), ("train.max_hours", 0), ("train.max_hours", "long")):
        with pytest.raises(UsageError, match=key):
            load_recipe("digits", {key: value})
    assert built_in(load_recipe("digits")) == []
