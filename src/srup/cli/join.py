"""The command for people who compare joins beside the server: what waits, and what they say to it."""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final, NoReturn

import typer

import srup

from ..agent.admission import Decision
from ..errors import PolicyError, StoreError
from ..extras import require
from .apps import App
from .fleets import OfServer, StoreOfServer, choose, chosen
from .following import LATE
from .joins import ANSWERS, ASKED, VALUE_FORMS, ValueBoard, time_left
from .options import IdentityArgument, Json, this_user
from .tables import iso
from .terminal import Scene, Terminal, console, fail, tell

__all__ = ["app"]

app = App(
    help="Compare joins that wait (srup server --moderation orders): on a terminal one after the other, else listed.",
    no_args_is_help=False,
)

_USAGE: Final = "srup join --store PATH|URL --identity HEX"
_LOOK: Final = 0.5  # seconds between two looks at what waits
_PATIENCE: Final = 10.0  # seconds for which somebody waits to hear that a decision has counted

_By = Annotated[
    str | None, typer.Option("--by", metavar="NAME", help="Who decides; default: the user of this machine.")
]
_Id = Annotated[
    str | None,
    typer.Option(
        "--id", metavar="ID", help="ID of the join that was compared, or its beginning: see srup join --list."
    ),
]


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    store: StoreOfServer = None,
    identity: OfServer = None,
    watch: Annotated[bool, typer.Option("--watch", help="Wait for more joins when none is left.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="List them, on a terminal as well.")] = False,
    by: _By = None,
    as_json: Json = False,
) -> None:
    choose(context, store, identity)
    if context.invoked_subcommand is not None:
        return
    require(*VALUE_FORMS)
    with chosen(context, _USAGE) as fleet:
        joins = fleet.joins()
        terminal = Terminal()
        if not terminal.asks or listed or as_json:
            _list(joins, as_json)
            return
        if not joins and not watch:
            console.print("no join waits to be compared", highlight=False)
            return
        with terminal:
            desk = Desk(fleet, terminal, this_user() if by is None else by, watch)
            with desk:
                terminal.run(desk.look)
    raise typer.Exit(terminal.status)


def _list(joins: Sequence["srup.fleet.WaitingJoin"], as_json: bool) -> None:
    if as_json:
        for join in joins:
            print(json.dumps(_fields(join)))
        return
    for join in joins:
        waits = "for a person" if join.observer is None else f"for its observer {join.observer:x}"
        print(f"{join.device:x}  waits {waits}, {time_left(join.expires - time.time())}")
        print(f"  id       {join.id}\n  key      {join.fingerprint}")
        if join.value is not None:
            print(f"  words    {join.words}\n  numbers  {join.number}\n  QR code  {join.qr}")
    print(f"{len(joins)} {'join waits' if len(joins) == 1 else 'joins wait'}")


def _fields(join: "srup.fleet.WaitingJoin") -> dict[str, Any]:
    return {
        "device": f"{join.device:x}",
        "id": join.id,
        "kind": join.kind,
        "since": iso(join.since),
        "expires": iso(join.expires),
        "fingerprint": join.fingerprint,
        "observer": None if join.observer is None else f"{join.observer:x}",
        "words": join.words,
        "number": join.number,
        "qr": join.qr,
    }


@app.command()
def accept(context: typer.Context, device: IdentityArgument, id: _Id = None, by: _By = None) -> None:
    """Let a device in whose join was compared: the values are the same."""
    if id is None:
        fail(f"which join? srup join shows it, and srup join accept {device:x} --id ID accepts what was compared")
    _decide(context, device, "accept", id, by)


@app.command()
def refuse(context: typer.Context, device: IdentityArgument, id: _Id = None, by: _By = None) -> None:
    """Refuse a join: the values are not the same, or it is not wanted."""
    _decide(context, device, "refuse", id, by)


@app.command("fail")
def give_up(context: typer.Context, device: IdentityArgument, id: _Id = None, by: _By = None) -> None:
    """End a join that cannot be compared; the device may ask again."""
    _decide(context, device, "fail", id, by)


def _decide(context: typer.Context, device: int, decision: Decision, name: str | None, by: str | None) -> NoReturn:
    """Post a decision about the join of a device that waits, and wait until it counts."""
    with chosen(context, _USAGE) as fleet:
        joins = [join for join in fleet.joins() if join.device == device]
        named = [join for join in joins if name is None or join.id.startswith(name.lower())]
        if not named:
            other = f"; the one that waits now is {joins[0].id}, with another value" if joins else ""
            raise PolicyError(f"no such join of {device:x} waits{other}")
        order = fleet.decide_join(device, decision, named[0], by=this_user() if by is None else by)
        try:
            order.result(_PATIENCE)
        except TimeoutError:
            tell(_NOT_TAKEN.format(order.id), "yellow")
            raise typer.Exit(LATE) from None
        except PolicyError as error:
            tell(str(error), "yellow")
            raise typer.Exit(1) from None
    console.print(f"{device:x}: {_DONE[decision]}", highlight=False)
    raise typer.Exit(0)


_NOT_TAKEN: Final = (
    "the server has not taken the decision yet, and counts it if the join waits then: srup order result {}"
)
_DONE: Final = {"accept": "accepted", "refuse": "refused", "fail": "ended, it could not be compared"}


@dataclass
class _Decided:
    """What somebody has decided here, until it is known what came of it."""

    device: int
    decision: Decision
    order: "srup.PostedOrder"
    until: float


class Desk:
    """Where somebody compares: what waits, one at a time and the oldest first, looked up again and again in a thread.

    It ends the terminal's :meth:`~Terminal.run` when nothing waits any more, unless it is to ``watch``.
    """

    def __init__(self, fleet: "srup.Fleet", terminal: Terminal, by: str, watch: bool) -> None:
        self._fleet = fleet
        self._terminal = terminal
        self._by = by
        self._watch = watch
        self._waiting: dict[str, srup.fleet.WaitingJoin] = {}
        self._shown: tuple[srup.fleet.WaitingJoin, ValueBoard] | None = None
        self._done: set[str] = set()  # ids of the joins that were decided here
        self._open: list[_Decided] = []
        self._status = 0
        self._ended = threading.Event()
        self._idle = False  # nothing has waited at the last look
        self._thread = threading.Thread(target=self._keep_looking, name="joins", daemon=True)

    def __enter__(self) -> "Desk":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    # On the thread of the terminal.

    def look(self) -> Scene | None:
        """Return the join that is to be compared now."""
        waiting = [join for join in list(self._waiting.values()) if join.id not in self._done]
        if self._shown is None or self._shown[0].id not in {join.id for join in waiting}:
            self._shown = None
            if waiting and (value := waiting[0].value) is not None:
                self._shown = waiting[0], ValueBoard(value)
        if self._shown is None:
            return None
        join, board = self._shown
        more = f"; {len(waiting) - 1} more waiting" if len(waiting) > 1 else ""
        heading = f"Is this what {join.device:x} shows? {time_left(join.expires - time.time())}{more}"
        return Scene(board, partial(board.body, heading), ASKED, partial(self._answer, join))

    def _answer(self, join: "srup.fleet.WaitingJoin", line: str) -> str | None:
        decision = ANSWERS.get(line.lower())
        if decision is None:
            return "type a, r or f"
        try:
            order = self._fleet.decide_join(join.device, decision, join, by=self._by)
        except StoreError as error:
            return str(error)
        self._open.append(_Decided(join.device, decision, order, time.monotonic() + _PATIENCE))
        self._done.add(join.id)
        return None

    # On a thread of its own.

    def _keep_looking(self) -> None:
        trouble = ""
        while not self._ended.is_set():
            try:
                self._look_up()
                trouble = ""
            except StoreError as error:
                if str(error) != trouble:
                    self._terminal.say(str(error), "yellow")
                trouble = str(error)
            self._terminal.wake()
            self._ended.wait(_LOOK / 5 if self._open else _LOOK)

    def _look_up(self) -> None:
        """See what waits now, and what came of what was decided here."""
        before = self._waiting
        self._waiting = now = {join.id: join for join in self._fleet.joins() if join.value is not None}
        for decided in list(self._open):
            if self._ended_as(decided):
                self._open.remove(decided)
        for gone in before.keys() - now.keys() - self._done:
            late = time.time() >= before[gone].expires
            why = "nobody decided in time" if late else "it was withdrawn, or decided elsewhere"
            self._terminal.say(f"the join of {before[gone].device:x} ended: {why}", "yellow")
        if now.keys() - self._done or self._open:
            self._idle = False
        elif not self._watch:
            self._terminal.end(self._status)
        elif not self._idle:
            self._terminal.say("no join waits; Ctrl-C ends this", "dim")
            self._idle = True

    def _ended_as(self, decided: _Decided) -> bool:
        """Say what came of a decision; return whether that is known, or waited for no more."""
        say, device, order = self._terminal.say, f"{decided.device:x}", decided.order
        report = order.report()
        if report.error is not None:
            say(f"{device}: {report.text}", "yellow")
            self._status = 1
        elif report.over:
            say(f"{device}: {_DONE[decided.decision]}", "green" if decided.decision == "accept" else "")
        elif time.monotonic() >= decided.until:
            say(f"{device}: {_NOT_TAKEN.format(order.id)}", "yellow")
            self._status = LATE
        else:
            return False
        return True
