"""Evaluation on each kind of set, with images whose answers are known, so that every number can be worked out by hand."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from coded import AS_THEY_ARE, SIZE, Coded, coded, loaded
from PIL import Image
from report.test_page import parsed
from shard_files import shard
from timm.data import RealLabelsImagenet

from convnext import tasks
from convnext.data import imagenet
from convnext.data.loader import make_loader
from convnext.data.sampling.order import EVALUATION, InOrder
from convnext.data.sources.corruptions import CORRUPTIONS
from convnext.data.sources.evaluation_sets import EvaluationSet
from convnext.data.sources.open import open_source
from convnext.errors import ConvnextError, UsageError
from convnext.evaluate import disjoint, evaluate_loaded, without_nan
from convnext.report import tables
from convnext.tasks.classify.robustness import ALEXNET_ERRORS

CPU = torch.device("cpu")
ONE_K = imagenet.synsets(1000)
CLASSIFY = tasks.get("classify")


def measure(where, network=None, max_corrupt=0.01):
    return evaluate_loaded(network or loaded(), str(where), 4, 0, max_corrupt, CPU)


def test_in_imagenet_a_its_own_200_classes_compete_alone(tmp_path):
    names = imagenet.subset_synsets("a")
    first, second = names[7], names[150]
    a, b = ONE_K.index(first), ONE_K.index(second)
    outside = ONE_K.index(next(name for name in ONE_K if name not in names))
    coded(tmp_path / first / "right.png", a)
    coded(tmp_path / first / "right_of_the_200.png", outside, a)
    coded(tmp_path / first / "wrong.png", b, a)
    coded(tmp_path / second / "wrong_too.png", outside, a)
    found = measure(f"imagenet-a:{tmp_path}")
    assert found.result.metrics["top1"] == 50
    assert found.result.metrics["count"] == 4
    others = 1000 - 2, 200 - 1  # classes with the logit 0: where two of all compete, and one of the 200
    in_200 = math.log(math.e**4 + others[1]), math.log(math.e**2 + others[1]), math.log(math.e**4 + math.e**2 + 198)
    wanted = (in_200[0] - 4) + (in_200[1] - 2) + (in_200[2] - 2) + in_200[1]
    assert found.result.metrics["loss"] == pytest.approx(wanted / 4, rel=1e-6)
    assert len(found.source.classes) == len(found.result.details["confusion"]) == 200
    assert found.result.details["confusion"][7][150] == 1
    assert found.result.details["totals"][7] == 3
    assert measure(f"imagenet:{tmp_path}").result.metrics["top1"] == 25
    assert measure(tmp_path).result.metrics["top1"] == 25


def test_imagenet_r_has_other_classes_and_takes_no_folder_that_is_none_of_them(tmp_path):
    name = next(name for name in imagenet.subset_synsets("r") if name not in imagenet.subset_synsets("a"))
    coded(tmp_path / name / "x.png", 0, ONE_K.index(name))
    found = measure(f"imagenet-r:{tmp_path}")
    assert ONE_K[0] not in found.source.classes
    assert found.result.metrics["top1"] == 100
    with pytest.raises(ConvnextError, match=f"imagenet-a:.* is not laid out as that set .*{name} is not one of the classes"):
        measure(f"imagenet-a:{tmp_path}")


def test_the_folders_of_imagenet_v2_are_numbers(tmp_path):
    for label in (2, 10, 100, 999):
        coded(tmp_path / str(label) / "x.jpeg", label)
    found = measure(f"imagenet-v2:{tmp_path}")
    assert found.result.metrics["top1"] == 100
    assert found.source.classes == ONE_K
    assert [found.result.details["totals"][label] for label in (2, 10, 100, 999)] == [1, 1, 1, 1]


def test_a_set_may_come_in_shards(tmp_path):
    files = []
    for label in (5, 6):
        coded(tmp_path / "x.png", label, 3)
        files += [(f"{label}.png", (tmp_path / "x.png").read_bytes()), (f"{label}.cls", b"5")]
    shard(tmp_path / "val-000.tar", files)
    found = measure(f"imagenet:{tmp_path / 'val-000.tar'}").result
    assert (found.metrics["count"], found.details["hits"][5], found.details["totals"][5]) == (2, 1, 2)


def test_sketch_is_evaluated_over_all_classes(tmp_path):
    coded(tmp_path / ONE_K[5] / "x.png", 5)
    coded(tmp_path / ONE_K[6] / "x.png", 5, 6)
    found = measure(f"imagenet-sketch:{tmp_path}").result.metrics
    assert (found["top1"], found["top5"]) == (50, 100)


def test_real_labels_are_sets_and_images_without_one_are_left_out(tmp_path):
    """The first four validation images: ReaL has no label for 1, and {970, 795}, {230, 231} and {809} for the others."""
    for number, label, answer in ((1, 0, 0), (2, 795, 970), (3, 230, 229), (4, 900, 900)):
        coded(tmp_path / ONE_K[label] / f"ILSVRC2012_val_{number:08d}.JPEG", answer, 231)
    found = measure(f"imagenet-real:{tmp_path}")
    metrics = found.result.metrics
    assert (metrics["count"], metrics["top1"]) == (3, pytest.approx(100 / 3))
    assert metrics["top5"] == pytest.approx(200 / 3)  # 231 is second for number 3
    total = math.log(math.e**4 + math.e**2 + 998)
    wanted = (total - math.log(math.e**4 + 1)) + (total - math.log(math.e**2 + 1)) + total
    assert metrics["loss"] == pytest.approx(wanted / 3, rel=1e-6)
    totals = found.result.details["totals"]
    assert [label for label in range(1000) if totals[label]] == [230, 809, 970]  # 809, not the folder's 900
    assert found.remarks == ["skipped 1 of 4 images, which have no ReaL label"]
    coded(tmp_path / ONE_K[0] / "photo.png", 0)
    with pytest.raises(ConvnextError, match="photo.png does not have its published name"):
        measure(f"imagenet-real:{tmp_path}")


def test_real_accuracy_equals_timm(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)]
    labels = imagenet.real_labels()
    for number, name in enumerate(names[:40]):
        near = labels[number] + [0]
        coded(tmp_path / ONE_K[number] / name, int(rng.choice([near[0], near[-1], 7])), int(rng.choice([near[0], 9])))
    theirs = RealLabelsImagenet(names)
    for number, name in enumerate(names[:40]):
        image = Image.open(tmp_path / ONE_K[number] / name)
        theirs.add_result(Coded()(AS_THEY_ARE.transform()(image)[None]))
    ours = measure(f"imagenet-real:{tmp_path}").result.metrics
    assert (ours["top1"], ours["top5"]) == (pytest.approx(theirs.get_accuracy(1)), pytest.approx(theirs.get_accuracy(5)))
    assert ours["count"] == len(theirs.is_correct[1]) < 40
    assert 20 < ours["top1"] < 90


@pytest.mark.parametrize("count", [21841, 21843])
def test_a_22k_head_is_mapped_to_1k(tmp_path, count):
    names = imagenet.synsets(count)
    tench, goldfish = (names.index(name) for name in ONE_K[:2])
    other = next(i for i, name in enumerate(names) if name not in ONE_K)
    coded(tmp_path / ONE_K[0] / "right.png", tench)
    coded(tmp_path / ONE_K[0] / "right_of_the_1000.png", other, tench)
    coded(tmp_path / ONE_K[1] / "wrong.png", tench, goldfish)
    coded(tmp_path / "n04399382" / "teddy.png", other)
    found = measure(f"imagenet:{tmp_path}", loaded(count))
    assert found.result.metrics["top1"] == 50
    assert math.isfinite(found.result.metrics["loss"])
    assert found.remarks == ["the network has no output for n04399382 (teddy): its images count as errors"]
    (tmp_path / "n04399382" / "teddy.png").unlink()
    (tmp_path / "n04399382").rmdir()
    assert measure(tmp_path, loaded(count)).result.metrics["top1"] == pytest.approx(100 / 3)  # a plain folder: all outputs compete


def test_a_network_of_other_classes_is_told_so(tmp_path):
    coded(tmp_path / ONE_K[0] / "x.png", 0)
    with pytest.raises(
        ConvnextError, match="needs a network with ImageNet's classes: this one, with 10, has no output called n01440764 nor 999"
    ):
        measure(f"imagenet:{tmp_path}", loaded(10))
    turned = ONE_K[::-1]
    assert measure(f"imagenet:{tmp_path}", loaded(1000, turned)).result.metrics["top1"] == 0
    coded(tmp_path / ONE_K[0] / "x.png", turned.index(ONE_K[0]))
    assert measure(f"imagenet:{tmp_path}", loaded(1000, turned)).result.metrics["top1"] == 100


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("imagent-a:/x", "unknown dataset 'imagent-a:/x'; did you mean 'imagenet-a:'"),
        ("imagenet-cbar:/x", "did you mean 'imagenet-c-bar:'"),
        ("imagenet-a:", "names no folder: give imagenet-a:FOLDER, with folders named by its 200 synsets"),
        ("imagenet-c:/nowhere", "no folder /nowhere"),
        ("imagenet-v2:/nowhere", "no folder /nowhere"),
    ],
)
def test_mistakes_are_told_with_the_nearest_name(where, message):
    with pytest.raises(UsageError, match=message):
        measure(where)


def corrupted(root, kind):
    """Two images of each part: all wrong under the first corruption, else one of the two at severities 4 and 5."""
    for number, name in enumerate(CORRUPTIONS[kind]):
        for severity in range(1, 6):
            for i in range(2):
                is_wrong = number == 0 or (severity > 3 and i == 1)
                coded(root / name / str(severity) / ONE_K[3] / f"ILSVRC2012_val_{i:08d}.JPEG", 4 if is_wrong else 3)


def test_imagenet_c_gives_the_error_of_each_part_and_the_mce(tmp_path):
    corrupted(tmp_path, "c")
    found = measure(f"imagenet-c:{tmp_path}")
    metrics, rows = found.result.metrics, found.result.details["corruptions"]
    assert metrics["count"] == 150
    assert metrics["mean_error"] == pytest.approx((100 + 14 * 20) / 15)
    assert metrics["top1"] == pytest.approx(100 - metrics["mean_error"])
    assert metrics["mce"] == pytest.approx((100 / 0.886428 + sum(20 / error for error in list(ALEXNET_ERRORS.values())[1:])) / 15)
    assert rows[0]["errors"] == dict.fromkeys(range(1, 6), 100)
    assert rows[1]["errors"] == {1: 0, 2: 0, 3: 0, 4: 50, 5: 50}
    assert rows[1]["corruption"] == "shot_noise"
    assert rows[1]["ce"] == pytest.approx(20 / 0.894468)
    lines = found.to_text().splitlines()
    assert lines[0] == f"top-1 accuracy {metrics['top1']:.2f} % (112 of 150)"
    assert " ".join(lines[2].split()) == "error in % at 1 at 2 at 3 at 4 at 5 mean CE"
    assert " ".join(lines[4].split()) == "shot_noise 0.0 0.0 0.0 50.0 50.0 20.0 22.4"
    told = json.loads(json.dumps(found.to_json()))
    assert len(told["corruptions"]) == 15
    assert told["corruptions"][0]["errors"]["5"] == 100
    assert "Error by corruption" in found.to_page("x")


def test_imagenet_c_in_the_folders_of_its_archives_and_c_bar(tmp_path):
    corrupted(tmp_path / "noise", "c")
    assert measure(f"imagenet-c:{tmp_path}").result.metrics["count"] == 150
    corrupted(tmp_path / "bar", "c-bar")
    found = measure(f"imagenet-c-bar:{tmp_path / 'bar'}").result
    assert found.metrics["mean_error"] == pytest.approx((100 + 9 * 20) / 10)
    assert "mce" not in found.metrics
    with pytest.raises(ConvnextError, match="has none of blue_noise_sample, .* and no maintained library generates these"):
        measure(f"imagenet-c-bar:{tmp_path / 'noise'}")


def test_parts_that_are_missing_or_short_are_told(tmp_path):
    corrupted(tmp_path, "c")
    (tmp_path / "snow" / "3" / ONE_K[3] / "ILSVRC2012_val_00000001.JPEG").unlink()
    remark = measure(f"imagenet-c:{tmp_path}").remarks[0]
    assert remark == "the parts differ in their number of images: snow/3 has 1, zoom_blur/5 has 2"
    (tmp_path / "fog").rename(tmp_path / "fogg")
    (tmp_path / "snow" / "5").rename(tmp_path / "snow" / "6")
    with pytest.raises(ConvnextError, match=r"lacks snow/5, fog/1, fog/2, fog/3, fog/4 … \(6 of 75\)"):
        measure(f"imagenet-c:{tmp_path}")


def test_corrupted_images_are_not_cropped_again(tmp_path):
    for name in CORRUPTIONS["c-bar"]:
        for severity in range(1, 6):
            coded(tmp_path / name / str(severity) / ONE_K[3] / "x.png", 3)
    source = CLASSIFY.open_labelled(f"imagenet-c-bar:{tmp_path}", None, 1000)
    opened = source.read(0)
    opened.putpixel((0, 0), (255, 255, 255))
    how = AS_THEY_ARE.__class__(**AS_THEY_ARE.to_json() | {"crop_ratio": 0.5})
    samples = CLASSIFY.evaluation_samples(source, how)
    image = samples.transform(opened)
    assert image.shape == (3, SIZE, SIZE)
    assert torch.equal((image * 255).round().byte().permute(1, 2, 0), torch.from_numpy(np.array(opened)))


@pytest.mark.parametrize("kind", ["c", "real"])
def test_processes_together_measure_what_one_does(tmp_path, kind):
    """Each with every other image; what they gather holds counts, not the names of millions of images."""
    if kind == "c":
        corrupted(tmp_path, "c")
    else:
        for number in range(1, 12):
            coded(tmp_path / ONE_K[number] / f"ILSVRC2012_val_{number:08d}.JPEG", number, 231)
    source = CLASSIFY.open_labelled(f"imagenet-{kind}:{tmp_path}", None, 1000)
    samples, metrics = CLASSIFY.evaluation_samples(source, AS_THEY_ARE), []
    for rank, world in ((0, 1), (0, 3), (1, 3), (2, 3)):
        metric = CLASSIFY.metric(1000, source)
        for batch in make_loader(samples, InOrder(len(samples), 4, rank, world), CLASSIFY.collate, 0, pin=False):
            metric.update(Coded()(batch.images), batch)
        metrics.append(metric)
    alone, main, *others = metrics
    for other in others:
        content = pickle.dumps(other)
        assert b"ILSVRC" not in content
        main.merge(pickle.loads(content))
    assert main.compute() == pytest.approx(alone.compute())
    assert main.details() == alone.details()


def test_the_page_and_the_json_of_an_evaluation_are_complete(tmp_path):
    for label in range(3):
        coded(tmp_path / ONE_K[label] / "a.png", label)
        coded(tmp_path / ONE_K[label] / "b.png", 0, label)
    (tmp_path / ONE_K[0] / "broken.png").write_text("no")
    (tmp_path / ONE_K[0] / "notes.txt").write_text("no")
    found = measure(f"imagenet:{tmp_path}", max_corrupt=0.5)
    told = json.loads(json.dumps(found.to_json()))
    assert told.keys() == {
        *("top1", "top1_low", "top1_high", "top5", "balanced_accuracy", "f1", "loss", "ece", "count", "classes", "totals", "hits"),
        *("confusion", "calibration", "by_class", "mistakes", "remarks", "corrupt"),
    }
    assert told["by_class"][1] | {"recall_interval": None} == {
        "images": 2, "predicted": 1, "precision": 100, "recall": 50, "recall_interval": None, "f1": pytest.approx(200 / 3), "auroc": None,
    }  # fmt: skip
    assert told["count"] == 6
    assert told["totals"][:3] == [2, 2, 2]
    assert told["hits"][:3] == [2, 1, 1]
    assert told["classes"][:2] == ["n01440764", "n01443537"]
    assert [mistake["image"] for mistake in told["mistakes"]] == [str(tmp_path / ONE_K[label] / "b.png") for label in (1, 2)]
    assert told["remarks"] == [f"1 file is not an image and was skipped: {ONE_K[0]}/notes.txt"]
    assert "broken.png" in told["corrupt"][0]
    html = found.to_page("a network on some images")
    assert parsed(html).outside == []
    for part in (
        "top-1 accuracy 66.67 % (4 of 6)",
        "Most confused",
        "Calibration",
        "Scores by class",
        "Worst mistakes",
        "broken.png",
        "goldfish",
    ):
        assert part in html


def test_the_json_of_a_network_that_gives_no_numbers_has_none_either(tmp_path):
    for label in range(2):
        coded(tmp_path / ONE_K[label] / "a.png", label)
    network = loaded()
    network.model.forward = lambda images: torch.full((len(images), 1000), torch.nan)
    told = json.loads(json.dumps(measure(f"imagenet:{tmp_path}", network).to_json(), allow_nan=False))
    assert told["loss"] is None
    assert without_nan({"a": [math.inf, (1.5, -math.inf)], "b": {1: math.nan, 2: "nan", 3: 4}}) == {
        "a": [None, [1.5, None]],
        "b": {1: None, 2: "nan", 3: 4},
    }


def test_no_part_of_an_evaluation_replaces_another():
    assert disjoint({"a": 1}, {}, {"b": 2}) == {"a": 1, "b": 2}
    with pytest.raises(ValueError, match="'classes' is given twice"):
        disjoint({"classes": 1}, {"b": 1}, {"classes": 2})


def test_a_terminal_shows_scores_by_class_of_many_the_worst_and_the_best(tmp_path):
    for label in range(3):
        coded(tmp_path / ONE_K[label] / "a.png", label)
        coded(tmp_path / ONE_K[label] / "b.png", 0, label)
    lines = [line.split() for line in measure(f"imagenet:{tmp_path}").to_text().splitlines()]
    assert lines[2:6] == [
        ["class", "images", "recall", "%", "precision", "%", "F1", "%"],
        ["tench", "2", "100.0", "50.0", "66.7"],
        ["goldfish", "2", "50.0", "100.0", "66.7"],
        ["great", "white", "shark", "2", "50.0", "100.0", "66.7"],
    ]
    rows = [{"class": str(i), "ap": None if i == 7 else (i * 37 % 60) / 2} for i in range(60)]
    text = tables.by_class([tables.Column("class", "class"), tables.Column("ap", "AP %", 1)], rows, "ap").splitlines()
    values = [float(line.split()[1]) for line in [*text[1:9], *text[10:]]]
    assert values == sorted(values)
    assert len(values) == 12
    assert (values[0], values[-1]) == (0, 29.5)
    assert text[9] == "… 47 classes between (--json has all)"


def test_a_set_to_evaluate_on_is_not_trained_on(tmp_path):
    with pytest.raises(UsageError, match="is a set for `convnext eval --data` alone; to train on its images give the folder, /x"):
        open_source("imagenet-a:/x")


def test_what_counts_is_the_source_and_not_how_it_is_named(tmp_path):
    """Two of the network's outputs can be made to compete by hand."""
    coded(tmp_path / "x" / "a.png", 9, 5)
    plain = open_source(str(tmp_path), ["w", "x"])
    both = EvaluationSet(plain, ["w", "x"], [4, 5])
    samples = CLASSIFY.evaluation_samples(both, AS_THEY_ARE)
    assert samples[EVALUATION, 0].label == 1
    metric = CLASSIFY.metric(1000, both)
    metric.update(Coded()(samples[EVALUATION, 0].image[None]), CLASSIFY.collate([samples[EVALUATION, 0]]))
    assert metric.compute()["top1"] == 100
