"""Draw docs/states.md from the tables that drive the sessions: ``python docs/states.py`` (``make docs``)."""

from collections import defaultdict
from enum import Enum
from pathlib import Path
from typing import Final

from srup.session import device, relay, server, syndication
from srup.session.base import ActionState, DataState, KeyState, ReceiptState
from srup.session.device import DeviceState
from srup.session.join import JoinState
from srup.session.relay import RelayState
from srup.session.server import ServerState
from srup.session.syndication import SyndicationState
from srup.update import Table, Trigger, UpdateState, Word

PAGE: Final = Path(__file__).with_name("states.md")
ROLES: Final[dict[str, Table]] = {"device": device.TABLE, "server": server.TABLE}
SUBJECTS: Final[dict[type[Enum], str]] = {
    JoinState: "Joins, join commands and observations",
    UpdateState: "Updates",
    ActionState: "Actions",
    DataState: "Values",
    ReceiptState: "Receipts",
    KeyState: "Changes of keys",
    DeviceState: "Leaving and identification, as the device sees them",
    ServerState: "Leaving and identification, as the server sees them",
}
SYNDICATION: Final[list[tuple[str, type[Enum], Table]]] = [
    ("Syndication: the home server's end", SyndicationState, syndication.HOME_TABLE),
    ("Syndication: the away server's end", SyndicationState, syndication.AWAY_TABLE),
    ("Syndication: the device's side towards home", RelayState, relay.HOME_TABLE),
    ("Syndication: the device's side towards the away server", RelayState, relay.AWAY_TABLE),
]

INTRODUCTION: Final = """\
# The states of an exchange

Drawn by `make docs` from the tables that drive the sessions; a test sees to it that they agree. An exchange is a
question and its answers, held together by a token, with one partner. An arrow reads: when this comes, do that. What
comes is a message, the status of a Response, or a word in *italics*: a decision of the application, or time. `-` does
nothing: the message is genuine and counts as seen.

**Whatever has no arrow here changes nothing**: the message counts as seen, and the application is told `Unexpected`. A
message that is not genuine, not fresh or not for us does not get this far ([security](security.md)).
"""


def name_of(trigger: Trigger) -> str:
    """Return how a trigger is written on an arrow."""
    if isinstance(trigger, type):
        return trigger.__name__
    return f"*{trigger.name.lower()}*" if isinstance(trigger, Word) else trigger.name


def diagram(table: Table, kind: type[Enum]) -> list[str]:
    """Return one Mermaid diagram: the rows of one kind of exchange at one end."""
    arrows: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for (state, trigger), step in table.items():
        if isinstance(state, kind):
            arrows[state.name, step.state.name, step.effect].append(name_of(trigger))
    if not arrows:
        return []
    lines = ["```mermaid", "stateDiagram-v2"]
    used = {name for before, after, _ in arrows for name in (before, after)}
    for state in kind:
        if state.name in used:
            lines.append(f"    {state.name}: {state.name}<br/>{state.value.replace(';', ',')}")  # ; ends a statement
    labels: dict[tuple[str, str], list[str]] = defaultdict(list)  # one arrow for a pair: of several only one is drawn
    for (before, after, effect), triggers in arrows.items():
        labels[before, after].append(f"{', '.join(triggers)} / {effect or '-'}")
    lines += [f"    {before} --> {after}: {'<br/>'.join(texts)}" for (before, after), texts in labels.items()]
    return [*lines, "```", ""]


def page() -> str:
    """Return the whole document."""
    lines = [INTRODUCTION]
    for kind, subject in SUBJECTS.items():
        for role, table in ROLES.items():
            drawing = diagram(table, kind)
            if drawing:
                lines += [f"## {subject}: the {role}'s end", "", *drawing]
    for title, kind, table in SYNDICATION:
        lines += [f"## {title}", "", *diagram(table, kind)]
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
