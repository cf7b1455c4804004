import argparse
import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random_model
from safetensors import SafetensorError
from safetensors.torch import save_file

import convnext
from convnext.errors import ConvnextError, UsageError, writing
from convnext.models.weights.files import read_weights, strip_prefixes, write_atomically, write_weights

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def same(found):
    return found.keys() == STATE.keys() and all(torch.equal(found[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin"])
def test_what_is_written_is_read(tmp_path, name):
    how = {"image_size": 32, "crop_ratio": 1.0, "warp": False, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    about = {"model": {"name": "x", "num_classes": 2}, "task": "classify", "preprocessing": how}
    write_weights(tmp_path / name, STATE, about)
    state, description = read_weights(tmp_path / name)
    assert same(state)
    assert description == (about if name.endswith("safetensors") else {})
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing temporary stays
    (tmp_path / "plain").touch()
    assert (tmp_path / name).stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "content",
    [STATE, {"model": STATE}, {"state_dict": STATE, "meta": 1}, {"model_ema": STATE}, {"model": STATE, "args": argparse.Namespace(lr=1)}],
)
def test_wrappers_are_taken_off(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    assert same(read_weights(tmp_path / "w.pth")[0])


def test_prefixes_of_wrapped_models_are_taken_off():
    assert same(strip_prefixes({f"module._orig_mod.{key}": tensor for key, tensor in STATE.items()}))
    mixed = {"module.a": STATE["a"], "b": STATE["b"]}
    assert strip_prefixes(mixed) == mixed


def test_an_entry_can_be_named(tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}, "model_ema": STATE}, tmp_path / "w.pth")
    assert same(read_weights(tmp_path / "w.pth", "model_ema")[0])
    with pytest.raises(UsageError, match="no entry 'ema'; it has model, model_ema"):
        read_weights(tmp_path / "w.pth", "ema")


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/convnext-was-here",)


def test_pickled_code_is_refused_and_not_run(tmp_path):
    for name, write in (("zip.pth", torch.save), ("raw.pth", lambda x, p: p.write_bytes(pickle.dumps(x)))):
        write({"model": Evil()}, tmp_path / name)
        with pytest.raises(ConvnextError, match=f"{name} (holds more than tensors|is truncated or damaged)"):
            read_weights(tmp_path / name)
    assert not os.path.exists("/tmp/convnext-was-here")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_files_are_named(tmp_path, name, keep):
    write_weights(tmp_path / name, {"a": torch.randn(1000)})
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(ConvnextError, match=name):
        read_weights(tmp_path / name)


def test_a_missing_file_and_a_strange_ending(tmp_path):
    with pytest.raises(ConvnextError, match=r"no weight file .*nowhere\.pth"):
        read_weights(tmp_path / "nowhere.pth")
    (tmp_path / "w.h5").write_bytes(b"\x89HDF\r\n" + bytes(100))
    with pytest.raises(ConvnextError, match=r"w\.h5 is no weight file: its content is neither safetensors nor what torch.save writes"):
        read_weights(tmp_path / "w.h5")


@pytest.mark.parametrize("write", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("name", ["model_best.pth.tar", "last.ckpt", "w.pt", "w.bin", "weights", "w.weights", "w.h5"])
def test_the_content_says_what_a_file_is(tmp_path, write, name):
    write_weights(tmp_path / write, STATE)
    (tmp_path / write).rename(tmp_path / name)
    assert same(read_weights(tmp_path / name)[0])


def test_what_torch_save_wrote_before_its_archives_is_read(tmp_path):
    torch.save({"state_dict": STATE}, tmp_path / "old", _use_new_zipfile_serialization=False)
    assert same(read_weights(tmp_path / "old")[0])


@pytest.mark.parametrize("legacy", [False, True])
def test_a_refused_file_says_what_it_holds_and_how_to_convert_it(tmp_path, legacy):
    for value, named in (
        (np.float64(1), "NumPy values"),
        (Path("/data"), f"pathlib.{type(Path()).__name__}"),
        (argparse.Action([], "x"), "argparse.Action"),
    ):
        torch.save({"state_dict": STATE, "more": value}, tmp_path / "w.ckpt", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(ConvnextError, match="w.ckpt holds more than tensors.*and was not loaded") as found:
            read_weights(tmp_path / "w.ckpt")
        assert named in str(found.value)
        assert "torch.load(FILE, weights_only=False); torch.save(c['state_dict'], NEW)" in str(found.value)
        assert "\x1b" not in str(found.value)


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 128 vs 0"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_a_full_disk_is_said_whatever_the_library_says(tmp_path, error):
    def fail(*_):
        raise error

    path = tmp_path / "w.pth"
    with pytest.raises(ConvnextError, match=f"^disk full while writing {path}: free some space, then resume$"):
        write_atomically(path, fail)
    if isinstance(error, OSError):
        with pytest.raises(ConvnextError, match=f"^disk full while writing {path}: "), writing(path):
            fail()


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "w.pth"
    write_weights(path, STATE)

    def fail(file):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ConvnextError, match="disk full while writing"):
        write_atomically(path, fail)
    assert same(read_weights(path)[0])
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]


def test_a_really_full_disk_leaves_what_was_there(tmp_path):
    """A limit on file size makes the kernel refuse the write halfway, in a process of its own."""
    path = tmp_path / "w.safetensors"
    write_weights(path, STATE)
    code = (
        "import resource, signal, sys, torch; from pathlib import Path; from convnext.models.weights.files import write_weights\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "path = Path(sys.argv[1])\n"
        "for target in (path, path.with_suffix('.pth')):\n"
        "    try: write_weights(target, {'a': torch.zeros(100000)})\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.count("ConvnextError could not write") == 2, done.stdout
    assert same(read_weights(path)[0])
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_files_of_others_need_no_metadata(tmp_path):
    model = random_model("convnext_atto", num_classes=3)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    again = convnext.create_model("convnext_atto", num_classes=3, layer_scale=1.0, weights=tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
