"""What --help prints: every command under a heading, and examples that the command line takes."""

import shlex

import pytest
from command import run
from typed import CLI, check_values, parsed

from convnext.cli.help import GROUPS


def leaves(command, words=()):
    """Yield the words and the command of each that does something."""
    for name, one in command.commands.items():
        if hasattr(one, "commands"):
            yield from leaves(one, (*words, name))
        else:
            yield (*words, name), one


LEAVES = list(leaves(CLI))


def test_every_command_has_a_heading_and_a_whole_sentence(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("--help").stdout.splitlines()
    assert [line.rstrip(":") for line in lines if line.rstrip(":") in GROUPS] == list(GROUPS)
    for name in CLI.commands:
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert line.endswith("."), "the first sentence is too long"
        assert not line.endswith("..."), "the first sentence is too long"
    assert not [line for line in lines if len(line) > 80]


@pytest.mark.parametrize(("words", "command"), LEAVES, ids=[" ".join(words) for words, _ in LEAVES])
def test_examples_are_shown_and_parse(words, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    examples = (command.epilog or "").splitlines()
    assert len(examples) >= 2
    for example in examples:
        first, *rest = shlex.split(example.split("|")[0])
        assert first == "convnext"
        assert rest[: len(words)] == list(words)
        check_values(*parsed(rest))
    shown = run(*words, "--help").stdout
    assert shown.endswith("\n\nExamples:\n" + "".join(f"  {example}\n" for example in examples))
    assert not [line for line in shown.splitlines() if len(line) > 80]
