"""Write docs/commands.md from the commands themselves: ``python docs/commands.py`` (``make pages``)."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import typer

from srup.cli.app import app

PAGE: Final = Path(__file__).with_name("commands.md")
KINDS: Final = {"path": "PATH", "int": "NUMBER", "float": "NUMBER"}
INTRODUCTION: Final = """\
# Commands

For whoever types `srup` and wants to know what an option does. `make pages` writes this page from the commands;
`srup COMMAND --help` says the same. Options can also stand in `srup.toml` or in the environment: see
[Configuration](configuration.md). Exit statuses are in [Exit status](observability.md#exit-status).
"""


def cell(text: str) -> str:
    """Return a text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def linked(text: str) -> str:
    """Return a text with links in place of the pages in docs/ that it names."""
    return re.sub(r"docs/([\w/-]+)\.md(?:, \"[^\"]+\")?", r"[\1](\1.md)", text)


def commands(command: Any, context: Any) -> Iterator[tuple[str, Any, Any]]:
    """Return a command and all below it, each with its full name and context."""
    yield context.command_path, command, context
    if hasattr(command, "list_commands"):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            yield from commands(below, typer.Context(below, info_name=name, parent=context))


def value(shown: str) -> str:
    """Return what stands for a value; where Typer shows a type, whose names change with its version, a word of ours."""
    if shown == shown.upper():
        return shown
    kind = shown.strip("<>[]")
    return kind if "|" in kind else next((word for name, word in KINDS.items() if name in kind), "TEXT")


def range_of(text: str) -> str:
    """Return a help text with its range in words."""
    text = re.sub(r"([\d.]+)<=x<=([\d.]+)", r"\1 to \2", text)
    return re.sub(r"x>=([\d.]+)", r"at least \1", text)


def parameter(each: Any, context: Any) -> str:
    """Return the row of a table for an option or an argument."""
    names, meaning = each.get_help_record(context)
    if each.param_type_name == "argument":
        shown = each.metavar or each.name.upper()
    else:
        takes = "" if getattr(each, "is_flag", False) else names.rpartition(each.opts[0])[2].strip()
        shown = ", ".join(sorted(each.opts, key=len)) + (f" {value(takes)}" if takes else "")
    return f"| `{shown.replace('|', chr(92) + '|')}` | {linked(cell(range_of(meaning)))} |"


def section(path: str, command: Any, context: Any) -> list[str]:
    """Return what the page says about one command."""
    lines = [f"## {path}", "", linked(" ".join((command.help or "").split())), ""]
    if hasattr(command, "list_commands"):
        names = command.list_commands(context)
        lines += ["Commands: " + ", ".join(f"[{name}](#{path.replace(' ', '-')}-{name})" for name in names) + ".", ""]
    shown = [each for each in command.params if "--help" not in each.opts and not each.hidden]
    if shown:
        lines += ["| | |", "|---|---|", *(parameter(each, context) for each in shown), ""]
    return lines


def page() -> str:
    """Return the whole document."""
    root = typer.main.get_command(app)
    lines = [INTRODUCTION]
    for found in commands(root, typer.Context(root, info_name="srup")):
        lines += section(*found)
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
