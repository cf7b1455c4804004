import gc
import os
import pickle
import struct
import sys
import time
from fractions import Fraction
from threading import Thread

import av
import numpy as np
import pytest
from PIL import Image
from video_files import CODECS, number_in, numbered, write_video

from convnext.data.images import CorruptImageError, Reading
from convnext.data.sources.packed.video import list_frames
from convnext.errors import UsageError


def numbers(listed):
    return [number_in(frame.read("frame")) for frame in listed.frames]


@pytest.mark.parametrize("ending", CODECS)
def test_frames_are_in_the_order_of_showing_with_their_times(tmp_path, ending):
    found = list_frames(write_video(tmp_path / f"clip{ending}", 20))
    assert not found.fault
    assert numbers(found) == list(range(20))
    assert [frame.seconds for frame in found.frames] == pytest.approx([i / 25 for i in range(20)])


@pytest.mark.parametrize("ending", [".avi", ".wmv", ".mpg"])
def test_videos_whose_time_stamps_are_of_another_order_are_read_by_number(tmp_path, ending):
    found = list_frames(write_video(tmp_path / f"clip{ending}", 20, codec="libx264"))
    assert numbers(found) == list(range(20))
    assert found.frames[-1].seconds == pytest.approx(19 / 25)


def test_times_of_a_variable_rate_are_those_of_the_file(tmp_path):
    ticks = [0, 10, 25, 500, 501, 700]
    found = list_frames(write_video(tmp_path / "clip.mkv", 6, ticks=ticks, tick_seconds=Fraction(1, 1000)))
    assert [frame.seconds for frame in found.frames] == [tick / 1000 for tick in ticks]
    assert numbers(found) == list(range(6))
    assert [frame.index for frame in list_frames(tmp_path / "clip.mkv", fps=10).frames] == [0, 3, 5]


@pytest.mark.parametrize(
    ("fps", "wanted"), [(5, [0, 5, 10, 15]), (10, [0, 3, 5, 8, 10, 13, 15, 18]), (25, list(range(20))), (60, list(range(20)))]
)
def test_a_rate_takes_the_first_frame_of_each_period(tmp_path, fps, wanted):
    found = list_frames(write_video(tmp_path / "clip.mp4", 20), fps)
    assert [frame.index for frame in found.frames] == numbers(found) == wanted


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_videos_of_phones_are_turned_upright(tmp_path, turn):
    upright = numbered(77)
    stored = upright.rotate(-turn, expand=True)  # the matrix turns it counter-clockwise
    with av.open(str(tmp_path / "phone.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = *stored.size, "yuv420p"
        stream.set_display_rotation(turn)
        container.mux(stream.encode(av.VideoFrame.from_image(stored)))
        container.mux(stream.encode(None))
    (frame,) = list_frames(tmp_path / "phone.mp4").frames
    image = frame.read("frame")
    assert image.size == upright.size
    assert np.abs(np.asarray(image, float) - np.asarray(upright, float)).mean() < 20


def test_frames_are_the_same_in_any_order_in_threads_and_from_a_pickle(tmp_path):
    frames = list_frames(write_video(tmp_path / "clip.mp4", 20)).frames
    assert [number_in(frames[i].read("frame")) for i in (7, 3, 3, 19, 0)] == [7, 3, 3, 19, 0]
    assert number_in(pickle.loads(pickle.dumps(frames[5])).read("frame")) == 5
    found = {}
    threads = [Thread(target=lambda i=i: found.update({i: number_in(frames[i].read("frame"))})) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: i for i in range(8)}


def exit_code(pid, seconds):
    """The exit code of a forked process; -9 if it has to be killed because it takes longer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, 9)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("is_used", [True, False])
def test_a_fork_decodes_anew_and_does_not_wait_for_the_threads_of_a_decoder_that_it_inherits(tmp_path, is_used):
    gc.collect()
    frames = list_frames(write_video(tmp_path / "clip.mp4", 60, (640, 480))).frames
    assert number_in(frames[3].read("frame")) == 3
    gc.disable()  # so that the decoder, which is part of a cycle, is garbage when the process forks
    try:
        if not is_used:
            del frames
        if (child := os.fork()) == 0:
            try:
                code = int(number_in(frames[10].read("frame")) != 10) if is_used else gc.collect() * 0
            except BaseException:
                code = 2
            os._exit(code)
        assert exit_code(child, 20) == 0
    finally:
        gc.enable()


@pytest.mark.parametrize(("ending", "options"), [(".mp4", {"movflags": "faststart"}), (".mkv", {}), (".avi", {}), (".webm", {})])
def test_a_file_that_was_cut_off_gives_what_it_has_and_says_so(tmp_path, ending, options):
    path = write_video(tmp_path / f"clip{ending}", 60, options=options)
    content = path.read_bytes()
    path.write_bytes(content[: 2 * len(content) // 3])
    found = list_frames(path)
    assert found.fault.startswith(f"{path}: it ends after ")
    assert 10 < len(found.frames) < 60
    assert [number_in(frame.read("frame")) for frame in found.frames[:-4]] == list(range(len(found.frames) - 4))  # one of the last is cut


@pytest.mark.parametrize("ending", [".ts", ".mpg"])
def test_mpeg_streams_have_no_length_and_may_be_cut_and_joined(tmp_path, ending):
    content = write_video(tmp_path / f"clip{ending}", 40).read_bytes()
    cut, joined = tmp_path / f"cut{ending}", tmp_path / f"joined{ending}"
    cut.write_bytes(content[: 2 * len(content) // 3])
    found = list_frames(cut)
    assert 10 < len(found.frames) < 40
    assert [number_in(frame.read("frame")) for frame in found.frames[:-4]] == list(range(len(found.frames) - 4))
    joined.write_bytes(2 * content)
    found = list_frames(joined)
    assert numbers(found) == 2 * list(range(40))
    assert found.frames[-1].seconds == pytest.approx(79 / 25)


def test_damage_in_the_middle_costs_no_frame_outside_of_it(tmp_path):
    path = write_video(tmp_path / "clip.mp4", 60)
    with av.open(str(path)) as container:
        keys = [packet for packet in container.demux(video=0) if packet.is_keyframe]
        packet, (first, last) = keys[2], (round(packet.pts * packet.time_base * 25) for packet in (keys[1], keys[3]))
    content = bytearray(path.read_bytes())
    content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(content)
    good, errors = {}, []
    for frame in list_frames(path).frames:
        try:
            good[frame.index] = number_in(frame.read("frame"))
        except CorruptImageError as error:
            errors.append(str(error))
    assert len(set(errors)) == 1
    assert f"{path}: some of its frames can't be decoded (" in errors[0]
    assert all(good[i] == i for i in [*range(first), *range(last, 60)])


def test_a_video_that_an_edit_list_trims_is_complete(tmp_path):
    path = write_video(tmp_path / "clip.mp4", 60)
    content = bytearray(path.read_bytes())
    at = content.index(b"elst") + 12  # its duration in milliseconds, and where it begins in ticks
    begin = struct.unpack_from(">i", content, at + 4)[0]
    struct.pack_into(">Ii", content, at, 800, begin + 12800)
    path.write_bytes(content)
    found = list_frames(path)
    assert not found.fault
    assert numbers(found) == list(range(25, 45))
    assert [frame.seconds for frame in found.frames] == pytest.approx([i / 25 for i in range(20)])


def test_what_is_no_video_is_said(tmp_path):
    write_video(tmp_path / "clip.mp4", 2)
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "playlist.mp4").write_text(f"ffconcat version 1.0\nfile '{tmp_path}/clip.mp4'\n")  # would read other files
    with av.open(str(tmp_path / "sound.mov"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame(format="s16", layout="mono", samples=1024)
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for name, fault in {"text.mp4": "it is not a video", "playlist.mp4": "it is not a video", "sound.mov": "it has no video"}.items():
        found = list_frames(tmp_path / name)
        assert not found.frames
        assert found.fault.startswith(f"{tmp_path / name}: ")
        assert fault in found.fault


def test_frames_have_a_largest_size_and_the_wanted_channels(tmp_path):
    (frame,) = list_frames(write_video(tmp_path / "clip.mp4", 1)).frames
    with pytest.raises(CorruptImageError, match=r"clip.mp4: 96 x 64 pixels .*--max-pixels 6144"):
        frame.read("frame", Reading(max_pixels=6143))
    assert frame.read("frame", Reading(max_pixels=6144)).size == (96, 64)
    assert frame.read("frame", Reading(channels=1)).mode == "L"


def test_without_pyav_the_error_names_what_to_install(tmp_path, monkeypatch):
    write_video(tmp_path / "clip.mp4", 1)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match=r"needs av: run pip install '.\[video\]'"):
        list_frames(tmp_path / "clip.mp4")


def test_colours_are_those_that_were_encoded(tmp_path):
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.colorspace = stream.codec_context.color_range = 1  # BT.709, as HD videos have
        frame = av.VideoFrame.from_image(Image.new("RGB", (64, 64), (200, 30, 60)))
        container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode(None))
    (frame,) = list_frames(tmp_path / "clip.mp4").frames
    assert np.abs(np.asarray(frame.read("frame"), int) - (200, 30, 60)).max() <= 3
