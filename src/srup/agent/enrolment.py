"""How an identity comes by its key, its certificate and its server: from a folder, or from a key exchange service."""

import logging
import math
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ..errors import KeyServiceError, SrupError, TransportError
from ..files import complaint, write_file
from ..keyex import Enrolment, KeyService, enroll, rotate
from ..keyex.client import trusted
from ..keyex.enrolment import changing
from ..keyring import KeyRing
from ..keys import PrivateKey
from ..transport import MqttTransport, Reactor

__all__ = ["EnrolledKeys", "broker_transport", "load_or_enroll", "renew"]

log: Final = logging.getLogger("srup.agent")

_MAX_LOOK_UPS: Final = 64  # that wait for an answer of the service
_MAX_REMEMBERED: Final = 4096  # identities that were asked for


def load_or_enroll(
    folder: str | os.PathLike[str],
    url: str | None = None,
    identity: int | None = None,
    *,
    scheme: str = "rsa2048",
    ca_file: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Enrolment:
    """Return the enrolment in ``folder``, or enrol ``identity`` at the service at ``url`` and put it there.

    The key is made (with this ``scheme``) and on disk before it is registered, so that what was interrupted, or waits
    for the operator, goes on with the same key at the next call. ``options`` are those of :func:`srup.keyex.enroll`.
    """
    path = Path(folder)
    if not (path / "enrolment.json").exists():
        if url is None or identity is None:
            raise KeyServiceError(
                0,
                "",
                f"{path} holds no enrolment: srup keyex enroll URL IDENTITY --folder {path} makes one (a program: give "
                "url and identity)",
            )
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise KeyServiceError(0, "", complaint(error, path)) from None
    with changing(path):
        if (path / "enrolment.json").exists() or url is None or identity is None:
            return _refreshed(path, identity)
        try:
            if not (path / "key.pem").exists():
                write_file(path / "key.pem", PrivateKey.generate(scheme).to_pem())
            ca = None if ca_file is None else Path(ca_file).read_bytes()
            trusted(ca)
        except OSError as error:
            raise KeyServiceError(0, "", complaint(error, path)) from None
        except ValueError as error:
            raise KeyServiceError(0, "", f"{os.fspath(ca_file or path)}: {error}") from None
        enrolment = enroll(url, identity, PrivateKey.load(path / "key.pem"), ca=ca, **options)
        enrolment.save(path)
    log.info("%x is enrolled with %s", identity, enrolment.url)
    return enrolment


def _refreshed(path: Path, identity: int | None) -> Enrolment:
    enrolment = Enrolment.load(path)
    if identity is not None and identity != enrolment.identity:
        raise KeyServiceError(0, "", f"{path} holds the enrolment of {enrolment.identity:x}, not of {identity:x}")
    try:
        enrolment = rotate(path).followed()
        enrolment.save(path)
    except (KeyServiceError, TransportError) as error:
        # What was known before is still good, and a device must not depend on the service to start.
        log.warning("%x goes on with what it has: %s", enrolment.identity, error)
    return enrolment


def renew(folder: str | os.PathLike[str]) -> Enrolment:
    """Return the enrolment in ``folder``, whose certificate is renewed first if half of its time is over."""
    path = Path(folder)
    with changing(path):
        enrolment = Enrolment.load(path)
        if enrolment.is_due(time.time()):
            enrolment = enrolment.renewed()
            enrolment.save(path)
    return enrolment


def broker_transport(
    folder: str | os.PathLike[str],
    enrolment: Enrolment,
    *,
    broker: str | None = None,
    reactor: Reactor | None = None,
) -> MqttTransport:
    """Return a transport to the broker with the certificate in ``folder``, which is renewed before it is needed.

    ``broker`` is a URL instead of the one that the key exchange service has named.
    """
    path = Path(folder)

    def renew_in_time() -> None:
        try:
            renew(path)
        except SrupError as error:
            log.warning("the certificate of %x is not renewed: %s", enrolment.identity, error)

    return MqttTransport(
        broker or enrolment.broker,
        ca_file=path / "ca.pem",
        cert_file=path / "client.pem",
        before_connect=renew_in_time,
        reactor=reactor,
    )


class EnrolledKeys:
    """Learns the keys of identities that a ring lacks from the key exchange service, on a thread of its own.

    What the service does not know is asked for again after ``pause`` seconds at the earliest.
    """

    def __init__(
        self,
        service: KeyService,
        ring: KeyRing,
        *,
        pause: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._ring = ring
        self._pause = pause
        self._clock = clock
        self._lock = threading.Lock()  # guards the rest
        self._asked: OrderedDict[int, float] = OrderedDict()  # when each was asked for, the latest last
        self._waiting: deque[tuple[int, Callable[[], object]]] = deque()
        self._busy = False

    def look_up(self, identity: int, then: Callable[[], object]) -> bool:
        """Ask for the key of an identity, and call ``then`` when the ring has it or the service has none.

        Return whether it is asked: not if it was a moment ago, or too many wait.
        """
        now = self._clock()
        with self._lock:
            if now < self._asked.get(identity, -math.inf) + self._pause or len(self._waiting) >= _MAX_LOOK_UPS:
                return False
            self._asked[identity] = now
            self._asked.move_to_end(identity)
            while len(self._asked) > _MAX_REMEMBERED:
                self._asked.popitem(last=False)
            self._waiting.append((identity, then))
            if not self._busy:
                self._busy = True
                threading.Thread(target=self._work, name="srup-keys", daemon=True).start()
        return True

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._busy = False
                    return
                identity, then = self._waiting.popleft()
            try:
                self._ring.add(identity, self._service.key_of(identity))
                log.info("the key of %x comes from %s", identity, self._service.url)
            except SrupError as error:
                log.info("the key of %x is not to be had from %s: %s", identity, self._service.url, error)
            then()
