"""Write docs/errors.md from the errors and their advice: ``python docs/errors.py`` (``make pages``)."""

import re
from inspect import getdoc
from pathlib import Path
from typing import Final

from srup.errors import ADVICE, SrupError

PAGE: Final = Path(__file__).with_name("errors.md")
INTRODUCTION: Final = """\
# Errors

For whoever gets an error of srup, in a program, in a log or from a command. All are subclasses of
[SrupError](#sruperror). `make pages` writes this page from `src/srup/errors.py`.

Commands print `error:` and the text of the error; their exit status is explained in
[Exit status](observability.md#exit-status). For a device that does not join, begin with
[When nothing happens](quickstart.md#when-nothing-happens). Status codes are in the
[wire format](protocol/wire-format.md#status-codes).
"""


def markdown(text: str) -> str:
    """Return a text of a docstring for a Markdown page in docs/."""

    def link(cited: re.Match[str]) -> str:
        return f"[{Path(cited[1]).stem.replace('-', ' ')}]({cited[1]}{cited[2] or ''})"

    text = " ".join(text.split()).replace("``", "`")
    return re.sub(r"docs/([\w/-]+\.md)(#[\w-]+)?", link, text)


def section(error: type[SrupError]) -> list[str]:
    """Return what the page says about one error."""
    reason, remedy = ADVICE[error]
    base = error.__bases__[0].__name__
    kind = f" It is a [{base}](#{base.lower()})." if issubclass(error.__bases__[0], SrupError) else ""
    return [
        f"## {error.__name__}",
        "",
        "```{eval-rst}",
        f".. py:exception:: srup.{error.__name__}",
        "```",
        "",
        f"**What happened:** {markdown(getdoc(error) or '')}{kind if base != 'SrupError' else ''}",
        "",
        f"**Why:** {markdown(reason)}",
        "",
        f"**What to do:** {markdown(remedy)}",
        "",
    ]


def page() -> str:
    """Return the whole document."""
    table = ["| error | what happened |", "|---|---|"]
    for error in ADVICE:
        first = markdown((getdoc(error) or "").split("\n\n")[0])
        table.append(f"| [{error.__name__}](#{error.__name__.lower()}) | {first} |")
    sections = [line for error in ADVICE for line in section(error)]
    return "\n".join([INTRODUCTION, *table, "", *sections]).rstrip("\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
