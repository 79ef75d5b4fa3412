"""Draw docs/states.md from the tables that drive the sessions: ``python docs/states.py`` (``make pages``)."""

from collections import defaultdict
from enum import Enum
from pathlib import Path
from typing import Final

from srup.session import AwaySide, DeviceSession, HomeSide, ServerSession, SyndicationServerSession
from srup.session.engine import Session
from srup.session.flow import Flow
from srup.session.table import Cause, Table, Trigger

PAGE: Final = Path(__file__).with_name("states.md")
SUBJECTS: Final[dict[str, str]] = {
    "JoinState": "Joins, join commands and observations",
    "UpdateState": "Updates",
    "ActionState": "Actions",
    "DataState": "Values",
    "ReceiptState": "Receipts",
    "KeyState": "Changes of keys",
    "LeavingState": "Leaving",
    "IdentificationState": "Identification",
    "HomeState": "Syndication: what home asks for",
    "AwayState": "Syndication: what the away server decides",
    "RelayState": "Relays of a syndication device",
}
ROLES: Final[dict[str, type[Session]]] = {
    "the device's end": DeviceSession,
    "the server's end": ServerSession,
    "both servers' ends": SyndicationServerSession,
    "its side towards home": HomeSide,
    "its side towards the away server": AwaySide,
}
"""Each flow is drawn at the first of these that has it."""

INTRODUCTION: Final = """\
# The states of an exchange

For people who change the sessions, or want to know what exactly an end does with a message.

Drawn by `make pages` from the tables that drive the sessions; a test sees to it that they agree. An exchange is a
question and its answers, held together by a token, with one partner. An arrow reads: when this comes, do that. What
comes is a message, the status of a Response, or a word in *italics*: a decision of the application, or time. `-` does
nothing: the message is genuine and counts as seen. No effect changes the state by itself: where one decides that things
go another way, it takes another arrow from the state that it has just come to.

**Whatever has no arrow here changes nothing**: the message counts as seen, and the application is told `Unexpected`. A
message that is not genuine, not fresh or not for us does not get this far ([security](security.md)).
"""


def name_of(cause: Cause) -> str:
    """Return how what comes is written on an arrow."""
    if isinstance(cause, type):
        return cause.__name__
    return f"*{cause.name.lower()}*" if isinstance(cause, Trigger) else cause.name


def flows() -> list[tuple[str, type[Flow]]]:
    """Return every flow once, with a title: by subject, then by end."""
    found: dict[type[Flow], str] = {}
    ends: dict[type[Flow], list[str]] = defaultdict(list)
    for end, role in ROLES.items():
        for flow in role.flow_types:
            ends[flow].append(end)
            found.setdefault(flow, SUBJECTS[flow.states.__name__])
    titles = {
        flow: f"{subject}: {'either end' if len(ends[flow]) == len(ROLES) else ends[flow][0]}"
        for flow, subject in found.items()
    }
    order = list(SUBJECTS)
    return [(titles[flow], flow) for flow in sorted(titles, key=lambda flow: order.index(flow.states.__name__))]


def diagram(table: Table) -> list[str]:
    """Return one Mermaid diagram: the rows of one kind of exchange at one end."""
    arrows: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    states: dict[str, Enum] = {}
    for (state, cause), to in table.items():
        arrows[state.name, to.state.name, to.effect].append(name_of(cause))
        states |= {state.name: state, to.state.name: to.state}
    lines = ["```mermaid", "stateDiagram-v2"]
    for name, state in states.items():
        lines.append(f"    {name}: {name}<br/>{state.value.replace(';', ',')}")  # ; ends a statement
    labels: dict[tuple[str, str], list[str]] = defaultdict(list)  # one arrow for a pair: of several only one is drawn
    for (before, after, effect), causes in arrows.items():
        labels[before, after].append(f"{', '.join(causes)} / {effect or '-'}")
    lines += [f"    {before} --> {after}: {'<br/>'.join(texts)}" for (before, after), texts in labels.items()]
    return [*lines, "```", ""]


def page() -> str:
    """Return the whole document."""
    lines = [INTRODUCTION]
    for title, flow in flows():
        lines += [f"## {title}", "", *diagram(flow.table)]
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
