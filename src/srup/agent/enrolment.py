"""How an identity comes by its key, its certificate and its server: from a folder, or from a key exchange service."""

import logging
import os
import time
from pathlib import Path
from typing import Any, Final

from ..errors import KeyServiceError, SrupError, TransportError
from ..keyex import Enrolment, enroll, rotate
from ..keyex.disk import write_file
from ..keys import PrivateKey
from ..transport import MqttTransport

__all__ = ["enter", "link"]

log: Final = logging.getLogger("srup.agent")


def enter(
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
    if (path / "enrolment.json").exists():
        return _refreshed(path, identity)
    if url is None or identity is None:
        raise KeyServiceError(0, "", f"{path} holds no enrolment, so url and identity must be given")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (path / "key.pem").exists():
            write_file(path / "key.pem", PrivateKey.generate(scheme).to_pem())
        ca = None if ca_file is None else Path(ca_file).read_bytes()
    except OSError as error:
        raise KeyServiceError(0, "", f"{error.filename or path}: {error.strerror}") from None
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


def link(folder: str | os.PathLike[str], enrolment: Enrolment) -> MqttTransport:
    """Return a transport to the broker with the certificate in ``folder``, which is renewed before it is needed."""
    path = Path(folder)

    def renew() -> None:
        try:
            present = Enrolment.load(path)
            if present.is_due(time.time()):
                present.renewed().save(path)
        except SrupError as error:
            log.warning("the certificate of %x is not renewed: %s", enrolment.identity, error)

    return MqttTransport(
        enrolment.broker,
        f"srup-{enrolment.identity:x}",
        ca_file=path / "ca.pem",
        cert_file=path / "client.pem",
        before_connect=renew,
    )
