import json
import subprocess
import sys
from fractions import Fraction

import pytest
from command import run
from killing import KILLER
from PIL import Image
from tiny_models import classifier, detector, segmenter
from video_files import frames_of, number_in, numbered, write_video

import convnext
from convnext.errors import UsageError
from convnext.inference.inputs import find_items
from convnext.inference.video.drawn import in_order


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("model"))[0]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_frame_is_a_line_and_a_frame_of_the_drawn_video(here, model):
    write_video(here / "clip.mp4", 30, (330, 240))
    done = run("predict", model, "clip.mp4", "--output", "found.jsonl", "--draw", "drawn.mp4", "--batch-size", "7")
    assert "predicted 30 of 30 images, skipped 0" in done.stderr
    assert [(row["image"], row["time"]) for row in rows(here / "found.jsonl")] == [(f"clip.mp4/{i:06d}", i / 25) for i in range(30)]
    predictor = convnext.load(model, device="cpu")
    items = find_items(["clip.mp4"])
    assert rows(here / "found.jsonl")[11]["top"][0]["probability"] == pytest.approx(predictor(items[11].read()).top()[0][1], abs=1e-4)
    found, (width, height), rate = frames_of(here / "drawn.mp4")
    assert found == [(i, round(i / 25, 3)) for i in range(30)]
    assert (width, rate) == (330, 25)
    assert height > 240  # the classes are under it
    assert "30 of 30 images are done already" in run("predict", model, "clip.mp4", "--draw", "drawn.mp4").stderr
    assert not list(here.glob(".drawn.mp4.parts/*.mp4"))


def test_drawings_of_other_tasks_become_videos_of_even_size(here):
    write_video(here / "clip.webm", 2, (410, 98), codec="libvpx")
    convnext.predict(detector(here, masks=False)[0], "clip.webm", draw="boxes.mkv", device="cpu")
    convnext.predict(segmenter(here)[0], "clip.webm", draw="classes.mkv", device="cpu")
    for name, is_same in {"boxes.mkv": True, "classes.mkv": False}.items():  # a legend is under the classes
        found, (width, height), _ = frames_of(here / name)
        assert (len(found), width, height % 2, height == 98) == (2, 410, 0, is_same)


def test_frames_of_a_folder_have_natural_order_and_odd_sizes_one_pixel_more(here, model):
    (here / "frames").mkdir()
    for i in (0, 2, 10, 11):
        numbered(i, (401, 99)).save(here / "frames" / f"frame_{i}.png")
    numbered(12, (200, 300)).save(here / "frames" / "frame_12.png")  # is fitted into the others' size
    run("predict", model, "frames", "--draw", "drawn.mp4", "--fps", "10")
    found, (width, height), rate = frames_of(here / "drawn.mp4")
    assert [(number, time) for number, time in found[:4]] == [(0, 0), (2, 0.1), (10, 0.2), (11, 0.3)]
    assert (len(found), width, height % 2, rate) == (5, 402, 0, 10)


def test_a_variable_rate_is_kept(here, model):
    write_video(here / "clip.mkv", 5, ticks=[0, 10, 25, 500, 700], tick_seconds=Fraction(1, 1000))
    run("predict", model, "clip.mkv", "--draw", "drawn.mp4")
    assert frames_of(here / "drawn.mp4")[0] == [(0, 0), (1, 0.01), (2, 0.025), (3, 0.5), (4, 0.7)]


class StoppedError(Exception):
    pass


def stop_at(count):
    def progress(done, _):
        if done >= count:
            raise StoppedError

    return progress


def test_a_call_that_was_stopped_draws_each_frame_once(here, model, monkeypatch):
    monkeypatch.setattr("convnext.inference.video.drawn._PART", 10)
    write_video(here / "clip.mp4", 60)
    content = (here / "clip.mp4").read_bytes()
    for count in (25, 26, 48):
        with pytest.raises(StoppedError):
            convnext.predict(model, "clip.mp4", "found.jsonl", draw="drawn.mp4", batch_size=4, device="cpu", progress=stop_at(count))
        assert not (here / "drawn.mp4").exists()
    (here / ".drawn.mp4.parts" / "000000040.mp4").write_bytes(b"cut off when it was killed")
    counts = []
    convnext.predict(
        model, "clip.mp4", "found.jsonl", draw="drawn.mp4", batch_size=4, device="cpu", progress=lambda *now: counts.append(now)
    )
    assert counts[0] == (40, 60)
    assert [row["image"] for row in rows(here / "found.jsonl")] == [f"clip.mp4/{i:06d}" for i in range(60)]
    assert frames_of(here / "drawn.mp4")[0] == [(i, round(i / 25, 3)) for i in range(60)]
    (here / "drawn.mp4").unlink()  # is then made again
    convnext.predict(model, "clip.mp4", "found.jsonl", draw="drawn.mp4", device="cpu")
    assert len(frames_of(here / "drawn.mp4")[0]) == 60
    (here / "clip.mp4").write_bytes(content)
    with pytest.raises(UsageError, match=r"clip.mp4 was changed since"):
        convnext.predict(model, "clip.mp4", draw="drawn.mp4", device="cpu")


@pytest.mark.slow
def test_killed_twice_each_frame_is_once_in_the_lines_and_in_the_video(here, model):
    write_video(here / "clip.mp4", 250)
    options = ["predict", model, "clip.mp4", "--output", "found.jsonl", "--draw", "drawn.mp4", "--batch-size", "4"]
    done = subprocess.run(
        [sys.executable, "-c", KILLER, "found.jsonl", "60,170", *map(str, options)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "[-9, -9, 0]\n", done.stderr
    assert done.stderr.count("done already; --overwrite") == 1  # the first was killed before its first part was complete
    assert [row["image"] for row in rows(here / "found.jsonl")] == [f"clip.mp4/{i:06d}" for i in range(250)]
    assert frames_of(here / "drawn.mp4")[0] == [(i, round(i / 25, 3)) for i in range(250)]


def test_a_broken_video_gives_what_it_has_with_one_remark_for_each_fault(here, model):
    write_video(here / "clip.mkv", 60)
    content = (here / "clip.mkv").read_bytes()
    (here / "clip.mkv").write_bytes(content[: 2 * len(content) // 3])
    (here / "text.mp4").write_text("no video")
    done = run("predict", model, "clip.mkv", "text.mp4", "--output", "found.jsonl")
    lines = rows(here / "found.jsonl")
    assert 5 < len(lines) < 50
    assert [row["image"] for row in lines if "error" in row] == ["clip.mkv", "text.mp4"]
    assert done.stderr.count("skipped: ") == 2
    ends = f"it ends after {(len(lines) - 2) / 25:.1f} of 2.4 seconds: the rest of the file is missing or damaged"
    assert f"skipped: clip.mkv: {ends}\n" in done.stderr
    run("predict", model, "clip.mkv", "--draw", "drawn.mp4")
    assert [number for number, _ in frames_of(here / "drawn.mp4")[0]] == list(range(len(lines) - 2))
    assert "none of 1 image could be predicted" in run("predict", model, "text.mp4", code=1).stderr


def test_frames_that_cannot_be_read_are_missing_in_the_video_and_not_tried_again(here, model):
    (here / "frames").mkdir()
    for i in range(4):
        numbered(i, (330, 60)).save(here / "frames" / f"{i}.png")
    (here / "frames" / "1.png").write_text("no image")
    run("predict", model, "frames", "--draw", "drawn.mp4")
    assert frames_of(here / "drawn.mp4")[0] == [(0, 0), (2, 0.08), (3, 0.12)]
    again = run("predict", model, "frames", "--draw", "drawn.mp4").stderr
    assert "4 of 4 images are done already" in again
    assert "skipped: frames/1.png: " in again


def test_frames_drawn_to_a_folder_have_a_folder_for_their_video(here, model):
    (here / "clips").mkdir()
    write_video(here / "clips" / "one.mp4", 3)
    write_video(here / "clips" / "two.mov", 2)
    run("predict", model, "clips/*.mp4", "clips/*.mov", "--draw", "drawn")
    found = {path.relative_to(here / "drawn").as_posix(): path for path in (here / "drawn").rglob("*.jpg")}
    assert sorted(found) == [*(f"one/{i:06d}.jpg" for i in range(3)), *(f"two/{i:06d}.jpg" for i in range(2))]
    with Image.open(found["one/000002.jpg"]) as image:
        assert number_in(image) == 2
    with pytest.raises(UsageError, match=r"--draw drawn.mp4 is a video of the frames of one source"):
        convnext.predict(model, ["clips/*.mp4", "clips/*.mov"], draw="drawn.mp4", device="cpu")
    assert "folder clips holds no images, and its videos have to be named: 'clips/*.mp4'" in run("predict", model, "clips", code=1).stderr


def test_what_cannot_become_a_video_is_refused(here, model):
    write_video(here / "clip.mp4", 3)
    Image.new("RGB", (64, 64)).save(here / "a.png")
    (here / "other.mp4").write_text("of someone else")

    def refusal(*options):
        return run("predict", model, *options, code=2).stderr

    assert "drawn.avi: no .avi can be written: name a .mp4, .mov or .mkv file" in refusal("clip.mp4", "--draw", "drawn.avi")
    assert "would overwrite the video that is read" in refusal("clip.mp4", "--draw", "clip.mp4", "--overwrite")
    assert "is a video of the frames of one source" in refusal("clip.mp4", "a.png", "--draw", "drawn.mp4")
    assert "other.mp4 exists already" in refusal("clip.mp4", "--draw", "other.mp4")
    assert "--fps is of videos" in refusal("a.png", "--fps", "5")
    assert "--fps 0 is no number of frames" in refusal("clip.mp4", "--fps", "0")
    run("predict", model, "clip.mp4", "--draw", "drawn.mp4")
    assert "drawn.mp4 was started with other images" in refusal("clip.mp4", "--draw", "drawn.mp4", "--fps", "5")
    run("predict", model, "clip.mp4", "--draw", "drawn.mp4", "--fps", "5", "--overwrite")
    assert len(frames_of(here / "drawn.mp4")[0]) == 1


def test_images_named_by_the_shell_are_shown_in_natural_order(here):
    for name in ("f10.png", "f2.png", "f1.png"):
        numbered(0).save(here / name)
    items = find_items(["f10.png", "f2.png", "f1.png"])
    assert [item.name for item in in_order(items, here / "drawn.mp4")] == ["f1.png", "f2.png", "f10.png"]
    assert in_order(items, here / "drawn") == in_order(items, None) == items
