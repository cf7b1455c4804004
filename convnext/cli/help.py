"""The text of --help: commands in groups, and examples under each command. Plain text for 80 columns."""

from typer.core import TyperCommand, TyperGroup

GROUPS = ("Start", "Train", "Use", "Measure", "Share", "Look up")  # of commands, in the order of help


class GroupedCommands(TyperGroup):
    """Commands that help lists under the headings of GROUPS."""

    def format_commands(self, ctx, formatter) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001  # types of Typer's own click
        """Write a section for each heading."""
        width = max(map(len, self.commands))
        for group in GROUPS:
            with formatter.section(group):
                formatter.write_dl(
                    [
                        (name.ljust(width), command.get_short_help_str(formatter.width - 6 - width))
                        for name, command in self.commands.items()
                        if getattr(command, "rich_help_panel", None) == group
                    ]
                )


class CommandWithExamples(TyperCommand):
    """A command whose epilog is its examples, one per line."""

    def format_epilog(self, ctx, formatter) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001  # types of Typer's own click
        """Write the examples as they are: click would join their lines."""
        with formatter.section("Examples"):
            for line in (self.epilog or "").splitlines():
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
