"""The commands that README and docs show: the real command line parses every line; the slow tests run them and compare what they print."""

import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documented import ALL, EXTRAS, PAGES, ROOT, TINY, build_world, called, commands, fences, inline, long_lines, scripts
from transcripts import check
from typed import CLI, check_values, parsed

from convnext import cli, tasks
from convnext.cli.demo import write_example
from convnext.ops.dispatch import has_amx
from convnext.recipe import load_recipe


def test_every_block_says_what_it_is():
    """A block of commands without a language would go unchecked."""
    for page in PAGES:
        for language, text in fences(page):
            assert language, f"{page.name}: a block without a language: {text[:60]}"
            assert language in ("bash", "sh", "console") or not re.search(r"^(\$ )?convnext ", text, re.MULTILINE), page.name


@pytest.mark.parametrize("command", [one for one in ALL if one.ours() and not one.fails()], ids=str)
def test_the_command_line_takes_it(command):
    for words in command.ours():
        assert "…" not in words, "write it out, so that it can be checked"
        check_values(*parsed(words))


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_commands_in_running_text_exist(page):
    for words in inline(page):
        name, command, rest = "", CLI, list(words)
        while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
            word = rest.pop(0)
            assert word in command.commands, f"convnext has no command {name} {word}"
            name, command = f"{name} {word}".strip(), command.commands[word]
        known = {option for parameter in command.params for option in parameter.opts}
        known |= {"--help", "-h", "--debug", "--version", "--import"}
        assert {word for word in rest if word.startswith("-") and word != "-"} <= known, f"convnext {' '.join(words)}"


# Programs that print nothing, or nothing worth reading.
PRINTS_NOTHING = r"(cd|mkdir|cp|mv|rm|export|source|\.) |[^|]*[^0-9]> |[A-Z_]+=\S+$"


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_output_is_shown_under_commands(page):
    without = [one for one in commands(page) if one.is_console and not one.shown and is_run(one)]
    silent = [one.text for one in without if not re.match(PRINTS_NOTHING, one.text)]
    assert not silent, "show what these commands of a console block print, or add them to PRINTS_NOTHING:\n" + "\n".join(silent)


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_commands_are_not_cut_off(page):
    found = long_lines(page)
    assert not found, "break these lines after at most 100 characters, with a \\:\n" + "\n".join(found)


NO_GUIDE = r"[A-Z_]+\.md|docs/index\.md|docs/(about|reference)/"  # pages that one looks things up in


@pytest.mark.parametrize("page", [page for page in PAGES if not re.match(NO_GUIDE, called(page))], ids=called)
def test_a_page_says_what_one_needs_and_gets(page):
    beginning = " ".join(page.read_text().split("\n## ")[0].split())
    for words in ("**You need**", "**You get**", "**Time"):
        assert words in beginning, f"{called(page)}: {words} must come before the first section"


PROGRAMS = {
    *(
        "apt-get",
        "cat",
        "cd",
        "cp",
        "curl",
        "docker",
        "export",
        "find",
        "git",
        "head",
        "kubectl",
        "ls",
        "mkdir",
        "mv",
        "pip",
        "python",
        "python3",
        "rm",
    ),
    *("sbatch", "scancel", "serve", "source", "squeue", "tail", "tensorboard", "trackio", "unzip", "wandb"),
}


@pytest.mark.parametrize("command", [one for one in ALL if not one.ours()], ids=str)
def test_other_programs_are_given_what_exists(command):
    """Targets of make and extras of pip exist; pages use no other program than those listed here."""
    for words in command.parts():
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif Path(words[0]).name == "pip" and words[1] == "install":
            asked = re.search(r"\[(.*)\]", words[2])
            assert asked is None or set(asked[1].split(",")) <= EXTRAS.keys()
        else:
            assert words[0] in PROGRAMS, command


@pytest.mark.parametrize("page", [page for page in PAGES if "\n::: " in page.read_text()], ids=called)
def test_the_api_pages_name_what_exists(page):
    """mkdocs does not notice a member that is gone."""
    for path, options in re.findall(r"^::: ([\w.]+)\n((?:    .*\n)*)", page.read_text(), re.MULTILINE):
        named = pkgutil.resolve_name(path)
        for member in re.findall(r"\w+", "".join(re.findall(r"members: \[(.*)\]", options))):
            assert hasattr(named, member), f"{called(page)} lists {path}.{member}, which does not exist"


def is_quick(words):
    """Return whether the command takes well under a second: it only reads and counts."""
    return words[0] in ("recipes", "cost", "--version") or (words[0] == "models" and words[1:2] == ["convnext_*"])


def test_quick_ones_run(monkeypatch, capsys):
    quick = {tuple(words): command for command in ALL for words in command.ours() if is_quick(words)}
    assert len(quick) >= 4
    for words, command in quick.items():
        monkeypatch.setattr(sys, "argv", ["convnext", *words])
        with pytest.raises(SystemExit) as done:
            cli.main()
        assert done.value.code in (0, None), command
        assert capsys.readouterr().out.strip(), command


# Commands that are not run here, with the reason.
NOT_RUN = {
    r"convnext serve\b": "runs until it is stopped: tests/serve/test_serve.py",
    r"convnext demo\b": "takes minutes: tests/cli/test_demo.py and `make demo`",
    r"convnext roadmap\b": "trains many networks: tests/paper/test_roadmap.py",
    r"convnext bench convnext_": "takes minutes: tests/paper/test_bench.py",
    r"shards/": "needs shards: tests/inference/test_inputs.py",
    r"--engine ray": "needs Ray: tests/inference/test_ray_bulk.py",
    r"s3://": "needs a bucket: tests/inference/test_ray_cluster.py, and in memory tests/inference/test_uploads.py",
    r"convnext push (?!.*--dry-run)": "needs the hub: tests/export/test_push.py",
    r"python examples/": "takes minutes: tests/examples",
    r"python benchmarks/": "needs minutes and data that are not here",
    r"\.pt2": "needs a compiler and a minute: tests/export/test_export.py",
    r"/data/|hf://|imagenet1k/|--weights|torchrun": "needs data, weights or machines that are not here",
    **({} if has_amx() else {r"--optimize int8": "needs a CPU with AMX"}),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the files that the pages name, and the runs that they assume to exist."""
    root = build_world(tmp_path_factory.mktemp("world"))
    train(root, "runs/demo", "digits", "classify")
    train(root, "runs/mine", "finetune", "classify", "data.train=photos")
    train(root, "runs/fruit", "detect_finetune", "detect", "data.train=coco:fruit/train.json:fruit", "data.val=coco:fruit/val.json:fruit")
    train(root, "runs/roads", "segment_finetune", "segment", "data.train=roads:train", "data.val=roads:val")
    for other, name in {"ants-and-bees": "mine", "demo-detect": "fruit", "demo-segment": "roads"}.items():
        shutil.copytree(root / "runs" / name, root / "runs" / other)
    for name, run in {"classify": "demo", "detect": "demo-detect", "segment": "demo-segment"}.items():
        write_example(tasks.get(name), tasks.get(name).demo_recipe, root / "runs" / run / "example.png")
    return root


def train(root, output, recipe, task, *overrides):
    call(root, shlex.join([sys.executable, "-m", "convnext", "train", recipe, "--output", output, *overrides, *TINY[task]]))


def call(root, text, shown=()):
    """Type a line in a folder, and compare what it prints with what its page shows. It fails only where the page shows an error."""
    settings = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "140", "PATH": f"{root / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", text], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | settings, timeout=1800
    )  # both streams in one, as on a terminal
    fails = any(line.startswith("error:") for line in shown)
    assert (done.returncode != 0) == fails, f"{text}\nended with exit code {done.returncode}\n{done.stdout}"
    check(text, shown, done.stdout)


def is_run(command):
    """Return whether the slow tests type a command. Tutorials run the demos as they are."""
    barred = [pattern for pattern in NOT_RUN if not (command.page.startswith("docs/start/") and "demo" in pattern)]
    return bool(command.ours() or command.text.startswith("python ")) and not any(re.search(one, command.text) for one in barred)


@pytest.mark.slow
@pytest.mark.timeout(3600)  # tutorials train the demos
@pytest.mark.parametrize("page", [page for page in PAGES if any(map(is_run, commands(page)))], ids=called)
def test_a_page_is_typed_from_top_to_bottom(page, world, tmp_path):
    """Each page runs in a copy of the world, with small trainings; a run folder that the page creates does not exist before."""
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    (tmp_path / "bin").mkdir()
    for name, means in {"convnext": f"{sys.executable} -m convnext", "python": sys.executable}.items():
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {means} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    made = set()
    for command in filter(is_run, commands(page)):
        text = command.text
        for name, given in (parsed(words) for words in command.ours() if not command.fails()):
            if name == "train":
                if given["output"] not in made and not given["resume"]:
                    shutil.rmtree(tmp_path / given["output"], ignore_errors=True)
                made.add(given["output"])
                text = re.sub(r"\s*#.*", "", text)
                text = re.sub(r"train\.iterations=\d+", "train.iterations=4", text)
                if re.search(r"examples\.own_(head|detector)", text):  # networks without the keys of the tiny ones
                    text += " train.warmup_steps=1"
                elif not given["recipe"].startswith("examples/"):  # which is small already
                    text += " " + shlex.join(TINY[load_recipe(given["recipe"], given["overrides"] or []).task])
                text += " --change" if given["resume"] else ""
            elif name == "fit" and given["model"] is None and given["source"] != "digits":
                text += " --model runs/mine --minutes 0"  # nothing is downloaded here
            elif name == "demo":
                shutil.rmtree(
                    tmp_path / "runs" / Path(given["output"] or ("demo" if given["task"] == "classify" else f"demo-{given['task']}")).name
                )
        call(tmp_path, text, command.shown)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if scripts(page)], ids=called)
def test_python_of_a_page_runs(page, world):
    """Each block is complete: it runs by itself in a folder with the files that the pages name, and prints what the page shows."""
    for text, shown in scripts(page):
        call(world, shlex.join([sys.executable, "-c", text]), shown)
