"""The commands that README and docs show: the real command line parses every line, and the slow tests run what can be run."""

import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documented import ALL, EXTRAS, PAGES, ROOT, TINY, build_world, called, commands, fences, inline
from typer.main import get_command

from convnext import cli
from convnext.cli.common import app
from convnext.export import export
from convnext.export.load import ENDINGS
from convnext.models.registry import BACKBONES, find, list_models, names
from convnext.models.weights import convert
from convnext.ops.dispatch import has_amx
from convnext.paper import bench, contestants, published
from convnext.paper.roadmap import parse_steps
from convnext.recipe import load_recipe

CLI = get_command(app)


def parsed(words):
    """Return the name of the command and its parsed parameters. Raises for what the command line would refuse."""
    name, command, words = "", CLI, cli.without_imports(list(words))
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        word = words.pop(0)
        assert word in command.commands, f"convnext has no command {name} {word}"
        name, command = f"{name} {word}".strip(), command.commands[word]
    return name, command.make_context(name, words, resilient_parsing=not name).params


def check_model(source, weights=None):
    """Accept a model name with a tag, or what looks like a file, a run folder or an address."""
    if source in names():
        assert weights is None or weights in find(source).weights or "/" in weights or "." in weights, f"{source} has no weights {weights}"
    else:
        assert re.search(r"[/.]", source), f"{source} is neither a model name nor a file"


def check_recipe(name, overrides):
    """The recipe loads, and the network that it names takes its arguments."""
    recipe = load_recipe(name, overrides or [])
    entry = find(recipe.model.name)
    assert recipe.task in entry.tasks
    given = recipe.model.model_dump(exclude_defaults=True, exclude_none=True).keys() - {"name", "weights", "keep_head", "freeze"}
    assert given <= entry.arguments.keys(), f"{recipe.model.name} takes no {given - entry.arguments.keys()}"
    if recipe.model.weights is not None:
        check_model(recipe.model.name, recipe.model.weights)


def check_values(name, given):
    """Check what the parser leaves to the command itself: names of recipes, models, formats, tables."""
    if name == "train":
        check_recipe(given["recipe"], given["overrides"])
    elif name == "recipes show":
        load_recipe(given["name"], given["overrides"] or [])
    elif name == "roadmap":
        load_recipe("roadmap/small" if given["scale"] == "small" else f"roadmap/regime_{given['regime']}", given["overrides"] or [])
        assert given["steps"] is None or parse_steps(given["steps"])
    elif name == "fit":
        assert given["model"] is None or check_model(given["model"], given["weights"]) is None
    elif name in ("eval", "predict", "export"):
        check_model(given["model"], given["weights"])
        assert name != "export" or given["to"] in export.TARGETS
    elif name == "bench":
        assert all(one in BACKBONES or one.endswith(ENDINGS) for one in given["names"])
        assert given["dtype"] in bench.DTYPES
        assert given["against"] in (None, *contestants.LIBRARIES)
    elif name == "models":
        assert list_models(given["pattern"] or "*"), f"no model matches {given['pattern']}"
    elif name == "cost":
        find(given["name"])
    elif name == "table":
        published.read(given["name"])
    elif name == "convert":
        assert given["to"] in convert.TARGETS


def test_every_block_says_what_it_is():
    """A block of commands without a language would go unchecked."""
    for page in PAGES:
        for language, text in fences(page):
            assert language, f"{page.name}: a block without a language: {text[:60]}"
            assert language in ("bash", "sh", "console") or not re.search(r"^(\$ )?convnext ", text, re.MULTILINE), page.name


@pytest.mark.parametrize("command", [one for one in ALL if one.ours()], ids=str)
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
            known = ("curl", "python", "python3", "kubectl", "tensorboard", "wandb", "trackio", "git", "find")
            assert words[0] in (*known, "pip", "source", "docker", "apt-get"), command


def test_the_api_page_names_what_exists():
    """mkdocs does not notice a member that is gone."""
    text = (ROOT / "docs" / "reference" / "api.md").read_text()
    for path, options in re.findall(r"^::: ([\w.]+)\n((?:    .*\n)*)", text, re.MULTILINE):
        named = pkgutil.resolve_name(path)
        for member in re.findall(r"\w+", "".join(re.findall(r"members: \[(.*)\]", options))):
            assert hasattr(named, member), f"docs/reference/api.md lists {path}.{member}, which does not exist"


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
    return root


def train(root, output, recipe, task, *overrides):
    call(root, shlex.join([sys.executable, "-m", "convnext", "train", recipe, "--output", output, *overrides, *TINY[task]]))


def call(root, text):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{root / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", text], cwd=root, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, f"{text}\n{done.stderr}"


def is_run(command):
    return bool(command.ours() or command.text.startswith("python ")) and not any(re.search(pattern, command.text) for pattern in NOT_RUN)


@pytest.mark.slow
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
        for name, given in (parsed(words) for words in command.ours()):
            if name == "train":
                if given["output"] not in made and not given["resume"]:
                    shutil.rmtree(tmp_path / given["output"], ignore_errors=True)
                made.add(given["output"])
                text = re.sub(r"\s*#.*", "", text)
                text += " " + shlex.join(TINY[load_recipe(given["recipe"], given["overrides"] or []).task])
                text += " --change" if given["resume"] else ""
            elif name == "fit" and given["model"] is None and given["source"] != "digits":
                text += " --model runs/mine --minutes 0"  # nothing is downloaded here
        call(tmp_path, text)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(language == "python" for language, _ in fences(page))], ids=called)
def test_python_of_a_page_runs(page, world):
    """Each block is complete: it runs by itself in a folder with the files that the pages name."""
    for language, text in fences(page):
        if language == "python":
            call(world, shlex.join([sys.executable, "-c", text]))
