"""The keys that an operator lists, in a folder for example: what has changed since they were listed last."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import PolicyError
from ..keys import PublicKey
from ..records import KeyRecord, State
from .answer import Answer
from .duty import Duty
from .members import Members
from .requests import end_future
from .transaction import Transaction, after_commit

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["KeyChanges", "KeyList"]

LISTED: Final = "listed"
"""The fact about a device that says which key was listed for it last; under our own identity, that any ever were."""


class KeyChanges(NamedTuple):
    """What a new list has changed: identities, in order; and whose key was refused, with the reason."""

    added: tuple[int, ...] = ()
    replaced: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()
    refused: Mapping[int, str] = {}


def compare(before: Mapping[int, str], listed: Mapping[int, PublicKey]) -> KeyChanges:
    """Return how ``listed`` differs from what was listed before, which is known by fingerprint."""
    changed = [device for device, key in sorted(listed.items()) if before.get(device) != key.fingerprint]
    return KeyChanges(
        added=tuple(device for device in changed if device not in before),
        replaced=tuple(device for device in changed if device in before),
        removed=tuple(sorted(before.keys() - listed.keys())),
    )


def reconciled(records: Iterable[KeyRecord], changes: KeyChanges) -> Iterator[KeyRecord]:
    """Return the records of a store as they are to be taken over: without keys that are listed no more.

    That a key was dropped once counts only until another one is listed, or the same one again.
    """
    fresh, removed = {*changes.added, *changes.replaced}, {*changes.removed}
    for record in records:
        if record.identity not in removed and not (record.key is None and record.identity in fresh):
            yield record
    for device in removed:
        yield KeyRecord(device, None)


class KeyList(Duty):
    """Lets the keys of devices follow an operator's list."""

    def __init__(self, engine: "Engine", members: Members) -> None:
        self._engine = engine
        self._members = members
        self._first: tuple[Mapping[int, PublicKey], Future[KeyChanges]] | None = None  # for the start
        self._changes = KeyChanges()

    def reload(self, listed: Mapping[int, PublicKey]) -> Answer[KeyChanges]:
        """See :meth:`Server.reload_keys`."""
        listed, done = dict(listed), Answer[KeyChanges]()
        engine = self._engine
        if engine.started:
            engine.post(
                lambda transaction: engine.requests.resolve(transaction, done, self._follow(transaction, listed))
            )
        elif engine.store is not None:
            self._first = listed, done
        else:
            self._note(Transaction(), listed, KeyChanges())  # without a store there is nothing to commit
            done.set_result(KeyChanges())
        return done

    def amend(self, state: State) -> State:
        """See :meth:`Duty.amend`: what is listed no more is not taken over."""
        if self._first is None:
            return state
        facts = {fact.identity: fact.value for fact in state.facts if fact.name == LISTED and fact.value is not None}
        ever = facts.pop(self._engine.identity, None)
        self._changes = KeyChanges() if ever is None else compare(facts, self._first[0])
        return state._replace(keys=list(reconciled(state.keys, self._changes)))

    def restored(self, transaction: Transaction, state: State) -> None:
        """See :meth:`Duty.restored`."""
        if self._first is None:
            return
        (listed, done), self._first = self._first, None
        engine, changes = self._engine, self._changes
        transaction.changes.keys += [KeyRecord(device, None) for device in changes.removed]
        barred = {device: key for device, key in listed.items() if engine.keys.bars(key)}
        refused = {device: f"the key {key.signing_fingerprint[:16]} was revoked" for device, key in barred.items()}
        for device in changes.removed:
            engine.journal.log(logging.WARNING, "%s: %x was removed", device, partner=device)
        end_future(done, self._note(transaction, listed, changes._replace(refused=refused)))

    def _follow(self, transaction: Transaction, listed: Mapping[int, PublicKey]) -> KeyChanges:
        """Let a new list take effect while we run."""
        engine = self._engine
        refused = {}
        changes = compare(self._listed(), listed)
        for device in changes.removed:
            known = device in engine.keys
            engine.keys.remove(device)
            with suppress(PolicyError):  # it had been put out before
                outputs = self._members.shut_out(transaction, device, known, "remove", engine.clock())
                engine.perform(transaction, outputs)
        for device in (*changes.added, *changes.replaced):
            key = listed[device]
            try:
                if device not in engine.keys:
                    engine.keys.add(device, key)
                elif key not in (engine.keys[device], engine.keys.pin(device)):
                    engine.keys.replace(device, key)
                    self._members.detect_replaced_key(transaction, device)
            except PolicyError as error:
                refused[device] = str(error)
        changes = self._note(transaction, listed, changes._replace(refused=refused))
        for device in (*changes.added, *changes.replaced):
            after_commit(transaction, partial(self._members.expect, device))
        return changes

    def _listed(self) -> dict[int, str]:
        """Return the fingerprints of the keys that were listed last, by device."""
        named = self._engine.facts.named(LISTED)
        named.pop(self._engine.identity, None)
        return named

    def _note(self, transaction: Transaction, listed: Mapping[int, PublicKey], changes: KeyChanges) -> KeyChanges:
        """Keep what is listed now; return the changes without those that were refused."""
        facts = self._engine.facts
        facts.set(transaction, self._engine.identity, LISTED, "yes")
        for device in changes.removed:
            facts.drop(transaction, device, LISTED)
        for device, key in listed.items():
            if device not in changes.refused:
                facts.set(transaction, device, LISTED, key.fingerprint)
        added, replaced = (
            tuple(device for device in devices if device not in changes.refused)
            for devices in (changes.added, changes.replaced)
        )
        return changes._replace(added=added, replaced=replaced)
