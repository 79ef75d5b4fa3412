"""A device's firmware: it is fetched and activated as the server orders, and old images are removed."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import UpdateError
from ..fetch import Cancellation, Fetcher
from ..images import ACTIVATED, ACTIVATING, CURRENT, check_digest, mark, point, prune
from ..records import State
from ..session import DeviceSession
from ..session.events import ActivationRequested, Event, FetchCancelled, FetchRequested
from ..update import FETCH_FAILURES, RestartPending
from ..wire import Status
from .duty import Duty, Listener
from .transaction import Transaction

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["Firmware"]

_FLOOR: Final = "version floor"
"""A fact about ourselves."""


class Firmware(Duty):
    """Fetches images into ``folder``, activates them, and keeps the newest ``keep_images``, or all (None)."""

    def __init__(
        self, engine: "Engine", session: DeviceSession, folder: Path, fetcher: Fetcher, keep_images: int | None
    ) -> None:
        self._engine = engine
        self._session = session
        self._folder = folder
        self.fetcher = fetcher
        self._keep_images = keep_images
        self._fetching: dict[tuple[int, bytes], Cancellation] = {}  # downloads that run or wait, by their orders

    def events(self) -> Mapping[type[Event], Listener]:
        """See :meth:`Duty.events`."""
        return {
            FetchRequested: self._fetch_requested,
            FetchCancelled: self._fetch_cancelled,
            ActivationRequested: self._activation_requested,
        }

    @property
    def fetching(self) -> int:
        """How many downloads run or wait."""
        return len(self._fetching)

    def restore(self, transaction: Transaction, state: State) -> None:
        """See :meth:`Duty.restore`."""
        floor = self._engine.facts.about(self._engine.identity).get(_FLOOR)
        if floor is not None and self._session.version_floor is not None:
            self._session.version_floor = max(self._session.version_floor, int(floor))

    def dismiss(self) -> None:
        """See :meth:`Duty.dismiss`."""
        for cancellation in list(self._fetching.values()):
            cancellation.cancel("the device is stopped")

    def keep(self, transaction: Transaction) -> None:
        """See :meth:`Duty.keep`."""
        engine = self._engine
        if self._session.version_floor is not None:
            engine.facts.set(transaction, engine.identity, _FLOOR, str(self._session.version_floor))

    # Downloads.

    def _fetch_requested(self, transaction: Transaction, event: FetchRequested) -> None:
        key, cancellation = (event.peer, event.token), Cancellation()
        self._fetching[key] = cancellation  # now: whatever ends the order from here on ends the download too

        def job() -> None:
            try:
                if not self._engine.is_over(event):
                    self._fetch(event, cancellation)
            finally:
                self._fetching.pop(key, None)

        self._engine.handlers.run(transaction, self._engine.handlers.downloads, job)

    def _fetch(self, event: FetchRequested, cancellation: Cancellation) -> None:
        """Download what was ordered, and report how that went; on a thread of its own."""
        engine = self._engine
        text, peer, digest = "%s: ordered to update to %s; fetching it", event.peer, event.digest
        engine.journal.log(logging.INFO, text, digest[:16], partner=peer, digest=digest)
        try:
            self._prune(digest)
            path = self.fetcher.fetch(event.url, event.digest, self._folder, cancellation)
        except UpdateError as error:
            if engine.stopping.is_set():
                return  # this is why: the server asks again, and the next start resumes where this one stopped
            if cancellation.reason:
                return  # told when the order ended
            status = Status(error.status) if error.status in FETCH_FAILURES else Status.UPDATE_FAIL_FILE
            self._fetch_failed(event, status, error.reason, error)
        except Exception as error:  # noqa: BLE001 - the server gets an answer whatever happens, and the fault is told here
            engine.journal.counts["faults"] += 1
            engine.journal.log(logging.ERROR, "%s: the download raised", partner=event.peer, exc_info=True)
            self._fetch_failed(event, Status.UPDATE_FAIL_FILE, f"the download raised {type(error).__name__}", error)
        else:
            engine.journal.log(logging.INFO, "%s: fetched %s", path, partner=event.peer, digest=event.digest)
            if cancellation.reason:
                return  # it came too late for the download, and the application was told
            engine.decide(self._session.fetched, event.peer, event.token)
            engine.handlers.notify(None, "update", event.digest, Status.UPDATE_SUCCESS)

    def _fetch_failed(self, event: FetchRequested, status: Status, why: str, error: Exception) -> None:
        text, peer, digest = "%s: update refused: %s: %a", event.peer, event.digest
        log = self._engine.journal.log
        log(logging.WARNING, text, status.name, why, partner=peer, digest=digest, status=status.name, error=error)
        self._engine.decide(partial(self._session.fetch_failed, why=why), peer, event.token, status)
        self._tell_failure(None, digest, status, why)

    def _fetch_cancelled(self, transaction: Transaction, event: FetchCancelled) -> None:
        """The order has ended: so does its download, and whoever waits for one behind it goes on at once."""
        text, peer, digest = "%s: the order of %s by %x ends: %s", event.peer, event.digest
        journal = self._engine.journal
        journal.log(logging.INFO, text, digest[:16], peer, event.why, partner=peer, digest=digest, reason=event.why)
        cancellation = self._fetching.pop((peer, event.token), None)
        if cancellation is not None:
            cancellation.cancel(event.why)
        if event.status is not None:
            self._tell_failure(transaction, digest, event.status, event.why)

    def _tell_failure(self, transaction: Transaction | None, digest: str, status: Status, why: str) -> None:
        self._engine.handlers.notify(transaction, "update", digest, status)
        self._engine.handlers.notify(transaction, "update_failed", digest, status, why)

    # Activation.

    def _activation_requested(self, transaction: Transaction, event: ActivationRequested) -> None:
        engine = self._engine

        def not_done() -> None:
            engine.decide(self._session.activation_failed, event.peer, event.token)

        def job() -> None:
            if engine.is_over(event):
                not_done()
                return
            why = self._activate(event)
            if why is None:
                return  # the next process answers
            text, digest = "%s: %s %s", event.digest
            how = "could not activate" if why else "activated"
            engine.journal.log(logging.INFO, text, how, digest[:16], partner=event.peer, digest=digest)
            if why:
                engine.decide(partial(self._session.activation_failed, why=why), event.peer, event.token)
                self._tell_failure(None, event.digest, Status.ACTIVATE_FAIL, why)
            else:
                engine.decide(self._session.activated, event.peer, event.token)
                engine.handlers.notify(None, "update", event.digest, Status.ACTIVATE_SUCCESS)

        engine.handlers.call_for(transaction, event.peer, event.token, job, lost=not_done)

    def _activate(self, event: ActivationRequested) -> str | None:
        """Check the digest again, for the file may have been changed (T11), and activate.

        Return why not, "" if it is active, None if it will be after a restart.
        """
        engine = self._engine
        path = self._folder / event.digest
        failures: list[str] = []
        pending: list[RestartPending] = []

        def activate() -> object:
            try:
                return engine.handlers.named.get("activate", self._point_current_at)(path)
            except RestartPending as restart:
                pending.append(restart)
                return None
            except UpdateError as error:
                failures.append(error.reason)
                return False
            except (Exception, SystemExit) as error:
                failures.append(f"the activation raised {type(error).__name__}: {error}")
                raise

        try:
            check_digest(path, event.digest)
        except UpdateError as error:
            engine.journal.counts["firmware changed"] += 1
            text, peer, digest = "%s does not activate: %a", event.peer, event.digest
            engine.journal.log(logging.ERROR, text, error.reason, partner=peer, digest=digest, error=error)
            return error.reason
        self._mark(ACTIVATING, event.digest)  # should the handler never return, the image stays where it is
        status = engine.handlers.ask(activate, failure=Status.ACTIVATE_FAIL, success=Status.ACTIVATE_SUCCESS)
        if pending:
            text, digest = "%s: %s is active after a restart", event.digest
            engine.journal.log(logging.INFO, text, digest[:16], partner=event.peer, digest=digest)
            return None
        active = status is Status.ACTIVATE_SUCCESS
        if active:
            self._mark(ACTIVATED, event.digest)
        self._mark(ACTIVATING, None)
        self._prune(event.digest)
        return "" if active else next(iter(failures), "the device did not activate it")

    def _mark(self, name: str, digest: str | None) -> None:
        """Note which image must not be removed; where that cannot be noted, none is removed any more."""
        try:
            mark(self._folder, name, digest)
        except OSError as error:
            self._keep_images = None
            text, why = "%s removes no images any more, for it cannot note which one runs: %a", str(error)
            self._engine.journal.log(logging.WARNING, text, why, error=error)

    def _prune(self, digest: str) -> None:
        if self._keep_images is not None:
            prune(self._folder, self._keep_images, {digest, *self._session.ordered()})

    def _point_current_at(self, path: Path) -> None:
        point(path.parent, CURRENT, path.name)
