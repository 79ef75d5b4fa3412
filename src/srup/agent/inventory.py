"""The inventory of a device: facts that it reports of itself, as values under names of a common form.

They are ordinary values (docs/extensions.md, "Inventory"): a server that does not know of them sees data. Ours keeps
the latest of each as one fact about the device, within bounds, and decides nothing about trust by them.
"""

import json
import logging
import re
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Final

from ..errors import PolicyError, SrupError
from ..session.events import Event, JoinAnswered
from ..wire import Status
from .answer import Answer
from .dataqueue import Value
from .duty import Duty, Listener
from .facts import INVENTORY
from .transaction import Transaction

if TYPE_CHECKING:
    from .engine import Engine
    from .joining import Joining

__all__ = ["MAX_FACTS", "PREFIX", "FactReports", "Inventory", "check_fact", "is_fact", "read_inventory"]

PREFIX: Final = "fact."
"""Begins the ``data_id`` of a value that is a fact; the name of the fact follows."""

MAX_FACTS: Final = 32
"""How many facts a device may report."""

LONGEST_FACT: Final = 200
"""In characters."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,39}")
_OF_FIRMWARE: Final = {"firmware": re.compile("[0-9a-f]{64}"), "version": re.compile("0|[1-9][0-9]{0,17}")}
"""Facts that say what a device runs; they stand where those from its updates do, and the newest word counts."""
_REPEAT: Final = 86400.0  # seconds after which all is reported once more, for a server that has forgotten it


def is_fact(data_id: str) -> bool:
    """Return whether a value under this name is a fact."""
    return data_id.startswith(PREFIX)


def check_fact(name: str, value: str) -> None:
    """Raise ValueError unless a device may report this; an empty value takes the fact away."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r:.80} is no name of a fact: 1 to 40 of a-z, 0-9, '.', '_' and '-', no sign first")
    if not isinstance(value, str) or len(value) > LONGEST_FACT or not value.isprintable():
        raise ValueError(f"fact {name} is a text of up to {LONGEST_FACT} characters, which can be printed")
    if value and (form := _OF_FIRMWARE.get(name)) is not None and not form.fullmatch(value):
        wanted = "a SHA-256 in lower-case hex" if name == "firmware" else "a number below 10**18"
        raise ValueError(f"fact {name} is {wanted}, not {value!r:.80}")


def read_inventory(fact: str | None) -> dict[str, str]:
    """Return what is kept about a device by name; nothing for what cannot be read."""
    try:
        content = json.loads(fact or "{}")
        return {str(name): str(value) for name, value in content.items()}
    except (ValueError, AttributeError):
        return {}


class Inventory(Duty):
    """Takes the facts that devices report, at a server."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine

    def take(self, transaction: Transaction, device: int, value: Value) -> bool:
        """Note a fact; return False, and log why, if it is none, or one too many."""
        name = value.data_id.removeprefix(PREFIX)
        try:
            text = value.data.decode()
            check_fact(name, text)
            self._note(transaction, device, name, text)
        except ValueError as error:  # UnicodeDecodeError is one
            journal = self._engine.journal
            journal.log(logging.WARNING, "%s: a fact about %x is not kept: %s", device, error, partner=device)
            return False
        return True

    def _note(self, transaction: Transaction, device: int, name: str, text: str) -> None:
        facts = self._engine.facts
        if name in _OF_FIRMWARE:
            if text:
                facts.set(transaction, device, name, text)
            else:
                facts.drop(transaction, device, name)
            return
        known = read_inventory(facts.about(device).get(INVENTORY))
        if not text:
            known.pop(name, None)
        elif name not in known and len(known) >= MAX_FACTS:
            raise ValueError(f"{name} would be one more than the {MAX_FACTS} that a device may report")
        else:
            known[name] = text
        if known:
            facts.set(transaction, device, INVENTORY, json.dumps(known, ensure_ascii=False, sort_keys=True))
        else:
            facts.drop(transaction, device, INVENTORY)


class FactReports(Duty):
    """Reports facts to the server of a device: all when it has joined, and then each that changes."""

    def __init__(self, engine: "Engine", joining: "Joining", facts: Mapping[str, str]) -> None:
        self._engine = engine
        self._joining = joining
        self._facts = dict(facts)
        self._told: dict[str, str] = {}  # what the server has,
        self._under_way: dict[str, str] = {}  # or is sent
        self._told_to = -1
        self._began = 0.0  # to tell it all

    def events(self) -> Mapping[type[Event], Listener]:
        """See :meth:`Duty.events`."""
        return {JoinAnswered: self._join_answered}

    def report(self, name: str, value: str) -> None:
        """Report a fact, if it is news; ValueError for what is none, or one too many. On any thread."""
        check_fact(name, value)
        if name not in self._facts and len(self._facts) >= MAX_FACTS:
            raise ValueError(f"a device reports at most {MAX_FACTS} facts")
        self._facts[name] = value
        self._engine.post(self._send)

    def _join_answered(self, transaction: Transaction, event: JoinAnswered) -> None:
        if event.status is not Status.JOIN_SUCCESS or event.peer != self._joining.server:
            return
        now = self._engine.clock()
        if event.peer != self._told_to or now - self._began >= _REPEAT:
            self._told.clear()
            self._told_to, self._began = event.peer, now
        self._send(transaction)

    def _send(self, transaction: Transaction) -> None:
        """Have sent what the server does not know yet, one value a name at a time."""
        if not self._joining.joined:
            return
        engine, server = self._engine, self._joining.server
        until = engine.clock() + engine.session.policy.update_lifetime
        for name, text in list(self._facts.items()):
            if name in self._under_way or self._told.get(name) == text:
                continue
            sent: Answer[str | None] = Answer()
            try:
                engine.values.add(transaction, server, Value(PREFIX + name, text.encode()), until, sent)
            except SrupError as error:  # too many values wait; the next join comes
                said = "%s: fact %s is not reported yet: %s", name, error
                engine.journal.log(logging.WARNING, *said, partner=server, error=error)
                return
            self._under_way[name] = text
            sent.add_done_callback(partial(self._sent, name))

    def _sent(self, name: str, done: "Future[str | None]") -> None:
        """Take note, in a turn, of what became of a value. One that the server does not want is not sent again."""
        reached = done.exception() is None or isinstance(done.exception(), PolicyError)

        def job(transaction: Transaction) -> None:
            text = self._under_way.pop(name, "")
            if reached:
                self._told[name] = text
                self._send(transaction)

        self._engine.inbox.put(job)
