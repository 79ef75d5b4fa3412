"""What ``srup device`` does by the programs that its operator names: activate firmware, do actions, report values."""

import re
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, get_args

import typer

import srup

from ..errors import SrupError, UpdateError
from ..messages import DataKind
from ..printable import printable
from ..program import Program
from ..tokens import parse
from ..update import RestartPending
from ..versions import shown_version
from ..wire import Status

__all__ = ["Facts", "HookTimeout", "Hooks", "OnAction", "OnActivate", "OnUpdate", "OnValue", "Reports", "facts_of"]

RESTART_PENDING: Final = 75
"""The exit status of an ``--on-activate`` program whose firmware runs after a restart (EX_TEMPFAIL of sysexits.h)."""

_PANEL: Final = "Programs"
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}
_REPORT: Final = re.compile(
    r"(?P<name>[^=:]+)(?::(?P<kind>\w+))?=(?P<command>.+)@(?P<period>\d+(?:\.\d+)?)(?P<unit>[smh])", re.DOTALL
)

OnActivate = Annotated[
    str | None,
    typer.Option(
        metavar="COMMAND",
        help="Activate firmware by this program, called with path, digest and version. Exit status 0: it runs now; 75: "
        "it runs after a restart; anything else: failed. Default: point the link 'current' at the image.",
        rich_help_panel=_PANEL,
    ),
]
OnAction = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ID=COMMAND",
        help="Do this action by a program; exit status 0: done. Repeatable.",
        rich_help_panel=_PANEL,
    ),
]
OnValue = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=COMMAND",
        help="Give values of this name to a program on standard input. Repeatable.",
        rich_help_panel=_PANEL,
    ),
]
OnUpdate = Annotated[
    str | None,
    typer.Option(
        metavar="COMMAND",
        help="Run after each step of an update, with digest, status and reason.",
        rich_help_panel=_PANEL,
    ),
]
Reports = Annotated[
    list[str] | None,
    typer.Option(
        "--report",
        metavar="NAME[:KIND]=COMMAND@TIME",
        help="Send what a program prints as a value, again and again: --report 'temp:double=cat /sys/temp@60s'. "
        "TIME in s, m or h; KIND: text (default), double, int32, ... Repeatable.",
        rich_help_panel=_PANEL,
    ),
]
Facts = Annotated[
    list[str] | None,
    typer.Option(
        "--fact",
        metavar="NAME=VALUE",
        help="A fact that the server is to know, such as type=lock, name=front-door or serial=A17. Repeatable.",
    ),
]
HookTimeout = Annotated[
    float,
    typer.Option(min=0.1, metavar="SECONDS", help="Time limit for each of these programs.", rich_help_panel=_PANEL),
]


def facts_of(texts: Sequence[str]) -> dict[str, str]:
    """Return the facts of these options; ValueError for what is none."""
    facts: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--fact {text!r}: a name, '=' and a value are expected, as in type=lock")
        if name in facts:
            raise ValueError(f"--fact {text!r}: {name!r} has a value already")
        facts[name] = value
    return facts


class _Report(NamedTuple):
    """A value that is sent again and again."""

    name: str
    kind: DataKind
    program: Program
    period: float


class Hooks:
    """Runs programs when a device is told something, and reports values while the block lasts.

    ValueError for an option that makes no sense. ``say`` shows a line to the operator.
    """

    def __init__(
        self,
        device: "srup.Device",
        say: Callable[[str, str], object],
        *,
        on_activate: str | None = None,
        on_action: Sequence[str] = (),
        on_value: Sequence[str] = (),
        on_update: str | None = None,
        reports: Sequence[str] = (),
        timeout: float = 300.0,
    ) -> None:
        self._device = device
        self._say = say
        self._timeout = timeout
        self._programs: list[Program] = []
        self._ended = threading.Event()
        self._update = None if on_update is None else self._program("--on-update", on_update)
        self._reports = [self._report(text) for text in reports]
        if on_activate is not None:
            device.on_activate(partial(self._activate, self._program("--on-activate", on_activate)))
        given: set[int] = set()
        for text in on_action:
            number, program = self._named("--on-action", text)
            if not number.isascii() or not number.isdigit() or int(number) > 0xFF:
                raise ValueError(f"--on-action {text!r}: an action is a number from 0 to 255, not {number!r}")
            if int(number) in given:
                raise ValueError(f"--on-action {text!r}: action {int(number)} has a program already")
            given.add(int(number))
            device.on_action(int(number))(partial(self._act, program, int(number)))
        named: set[str] = set()
        for text in on_value:
            name, program = self._named("--on-value", text)
            if name in named:
                raise ValueError(f"--on-value {text!r}: {name!r} has a program already")
            named.add(name)
            device.on_data(name)(partial(self._take, program))
        self._threads = [
            threading.Thread(target=self._run, args=[report], name=f"report {report.name}", daemon=True)
            for report in self._reports
        ]

    # Options.

    def _program(self, option: str, command: str, timeout: float | None = None, *, complains: bool = True) -> Program:
        try:
            program = Program(shlex.split(command), timeout or self._timeout, complains=complains)
        except ValueError as error:
            raise ValueError(f"{option} {command!r}: {error}") from None
        if shutil.which(program.name) is None:
            raise ValueError(f"{option} {command!r}: there is no program {program.name!r} that may be run")
        self._programs.append(program)
        return program

    def _named(self, option: str, text: str) -> tuple[str, Program]:
        name, equals, command = text.partition("=")
        if not (name and equals):
            raise ValueError(f"{option} {text!r}: what it is for, '=' and a command are expected")
        return name, self._program(option, command)

    def _report(self, text: str) -> _Report:
        match = _REPORT.fullmatch(text)
        if match is None:
            raise ValueError(f"--report {text!r} is not NAME[:KIND]=COMMAND@TIME, such as 'temp:double=cat temp@60s'")
        kind: Any = match["kind"] or "text"
        if kind not in get_args(DataKind) or kind == "bytes":
            kinds = ", ".join(each for each in get_args(DataKind) if each != "bytes")
            raise ValueError(f"--report {text!r}: {kind!r} is not a kind of value; {kinds} are")
        period = float(match["period"]) * _UNITS[match["unit"]]
        if period < 1.0:
            raise ValueError(f"--report {text!r}: at most once a second")
        program = self._program("--report", match["command"], min(self._timeout, period), complains=False)
        return _Report(match["name"], kind, program, period)

    # What the device is told; on the thread of its handlers.

    def _activate(self, program: Program, path: Path) -> None:
        handling = self._device.handling
        version = _version(handling.id) if handling is not None else None
        again = {"SRUP_AGAIN": "1" if handling is not None and handling.again else "0"}
        told = str(path), path.name, "" if version is None else shown_version(version)
        outcome = program.run(*told, environment=again)
        if outcome.status == RESTART_PENDING:
            self._say(f"firmware {path.name} runs after a restart", "")
            raise RestartPending
        if outcome.status != 0:
            raise UpdateError(Status.ACTIVATE_FAIL, printable(outcome.reason, words=True))

    def _act(self, program: Program, number: int, server: int) -> Status:
        outcome = program.run(str(number), f"{server:x}")
        if outcome.status != 0:
            self._say(f"action {number} of {server:x} failed: {printable(outcome.reason, 300, words=True)}", "yellow")
            return Status.ACTION_FAIL
        self._say(f"action {number} of {server:x} is done", "")
        return Status.ACTION_SUCCESS

    def _take(self, program: Program, server: int, name: str, value: bytes) -> None:
        outcome = program.run(name, f"{server:x}", given=value)
        if outcome.status != 0:
            why = printable(outcome.reason, 300, words=True)
            self._say(f"value {printable(name, 100)} of {server:x} was not processed: {why}", "yellow")

    def updated(self, digest: str, status: Status, why: str = "") -> None:
        """Tell of a step of an update."""
        if self._update is not None and (outcome := self._update.run(digest, status.name, why)).status != 0:
            self._say(f"--on-update failed: {printable(outcome.reason, 300, words=True)}", "yellow")

    # Reports, each on a thread of its own.

    def __enter__(self) -> "Hooks":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the programs that run, and run none any more."""
        self._ended.set()
        for program in self._programs:
            program.close()

    def _run(self, report: _Report) -> None:
        trouble = ""
        due = time.monotonic()
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            if not self._device.joined:
                due = time.monotonic() + min(1.0, report.period)
                continue
            due = max(due + report.period, time.monotonic())
            was, trouble = trouble, self._send(report)
            if trouble and trouble != was and not self._ended.is_set():
                self._say(f"{report.name} is not reported: {printable(trouble, 300, words=True)}", "yellow")

    def _send(self, report: _Report) -> str:
        """Run a report's program and send what it prints; return why not, or ""."""
        outcome = report.program.run()
        if outcome.status != 0:
            return outcome.reason
        text = outcome.output.decode("utf-8", "replace").strip()
        try:
            self._device.send(report.name, _READ.get(report.kind, int)(text), report.kind)
        except (SrupError, ValueError) as error:
            return str(error)
        return ""


_READ: Final[dict[str, Callable[[str], Any]]] = {"text": str, "float": float, "double": float}


def _version(order: str) -> int | None:
    """Return the firmware version that an order names: what is handled is called by its token, in hex."""
    bound = parse(bytes.fromhex(order))
    return None if bound is None else bound.version
