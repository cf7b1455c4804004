"""What Windows and macOS lack is not needed: training, resuming, evaluation, prediction and reports work without it."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import image_folder, sample_image

import convnext
from convnext.data.archives.positional import read_at
from convnext.inference.inputs import Item, file_names
from convnext.models.weights.files import write_text
from convnext.training.folder.environment import environment

# Takes from a process what Windows does not have, and starts others as Windows and macOS do. `shutil` would open folders to remove them.
ELSEWHERE = """
import multiprocessing, os, shutil, signal, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
gone = {
    os: "sysconf sched_getaffinity geteuid getuid fork killpg setsid pread O_DIRECTORY getpgid",
    signal: "alarm setitimer SIGALRM SIGUSR1 SIGUSR2 SIGHUP SIGKILL",
}
for module, names in gone.items():
    for name in names.split():
        delattr(module, name)
shutil._use_fd_functions = False
whole = os.open
def opened(path, *arguments, **options):
    if not isinstance(path, int) and os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return whole(path, *arguments, **options)
os.open = opened
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    from convnext.cli import main
    for line in sys.argv[1].splitlines():
        sys.argv = ["convnext", *line.split()]
        try:
            main()
        except SystemExit as end:
            assert not end.code, line
"""
SMALL = "model.depths=[1,1,1,1] model.widths=[8,8,8,8] augment.rand_augment=null train.warmup_epochs=0 train.batch_size=8"


def elsewhere(folder, *lines):
    """Run lines of the command line one after another in a process that lacks these, in that folder."""
    (folder / "elsewhere.py").write_text(ELSEWHERE)
    command = [sys.executable, "elsewhere.py", "\n".join(lines)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_part_of_a_file_is_read_without_pread(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(bytes(range(100)))
    with (tmp_path / "file").open("rb") as file:
        whole = read_at(file, 5, 90), read_at(file, 20, 95)
        monkeypatch.delattr(os, "pread")
        assert (read_at(file, 5, 90), read_at(file, 20, 95)) == whole == (bytes(range(90, 95)), bytes(range(95, 100)))


def test_a_file_is_written_where_folders_cannot_be_opened(tmp_path, monkeypatch):
    whole = os.open

    def opened(path, *arguments, **options):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path, *arguments, **options)

    monkeypatch.setattr(os, "open", opened)
    write_text(tmp_path / "file", "kept")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["kept"]


def test_a_system_may_not_say_its_memory(monkeypatch):
    assert environment(torch.device("cpu"))["hardware"]["memory_gib"] > 0
    monkeypatch.delattr(os, "sysconf")
    assert environment(torch.device("cpu"))["hardware"]["memory_gib"] is None


def test_files_made_from_images_have_names_that_windows_takes(monkeypatch):
    names = ["a:b/what?.jpg", "c./d.jpg", "plain/é.jpg"]
    items, folder = [Item(name, name, None) for name in names], Path("out")
    assert list(file_names(items, folder, ".png").values()) == ["a:b/what?.png", "c./d.png", "plain/é.png"]
    with monkeypatch.context() as patched:
        patched.setattr(os, "name", "nt")
        found = list(file_names(items, folder, ".png").values())
    assert found == ["a_b/what_.png", "c_/d.png", "plain/é.png"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_needs_nothing_that_windows_lacks(tmp_path, workers):
    sample_image().save(tmp_path / "a.jpg")
    image_folder(tmp_path / "photos", each=12)
    settings = f"--output run data.workers={workers} {SMALL}"
    out = elsewhere(
        tmp_path,
        f"train digits {settings} train.iterations=2",
        f"train digits {settings} train.iterations=4 --resume --change",
        "predict run a.jpg --output found.jsonl --draw drawn",
        f"eval run --workers {workers}",
        "report run",
        "fit photos --output fitted --model run --minutes 0",
        "predict fitted photos/**/* --output known.csv",
        "export run --to onnx --output run.onnx",
        "predict run.onnx a.jpg",
        "info",
    )
    assert "memory_gib   None" in out
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "found.jsonl").read_text().count("\n") == 1
    assert [path.name for path in (tmp_path / "drawn").iterdir() if not path.name.startswith(".")] != []


@pytest.mark.slow
def test_packed_images_are_read_without_pread(tmp_path):
    image_folder(tmp_path / "photos", each=8)
    shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "photos")
    shutil.make_archive(str(tmp_path / "packed"), "tar", tmp_path / "photos")
    settings = f"data.image_size=32 data.workers=1 {SMALL} train.iterations=2 model.name=convnext_atto"
    for name in ("photos.zip", "packed.tar"):
        elsewhere(tmp_path, f"train finetune data.train={name} --output {name}-run model.weights=null {settings}")


def test_a_function_that_uses_the_package_can_be_sent_to_another_process():
    assert pickle.loads(pickle.dumps(convnext)) is convnext  # by its name, as Python's own modules
