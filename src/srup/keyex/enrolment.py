"""What a client has from its key exchange service, and the folder in which it keeps that.

==================  ====================================================================================================
file                what it is
==================  ====================================================================================================
key.pem             the identity's private key
client.pem          the key for TLS and the certificate for it, which the broker wants to see; replaced as one
ca.pem              who signs the broker's certificate
server.pub          the public key of the server to join, for software that reads no enrolment.json
enrolment.json      the rest: identity, addresses, and the keys that are pinned; written last, so an enrolment is there
                    whole or not at all
next.pem            only while the key is being changed: the one that comes
==================  ====================================================================================================

All have mode 0600, and keys are not encrypted.
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

from cryptography import x509

from ..errors import InvalidKeyError, KeyServiceError, TransportError
from ..files import complaint, write_file
from ..identity import parse_identity
from ..keys import PrivateKey, PublicKey
from ..transport.endpoint import parse_url
from .certificates import is_certifiable, tls_pem
from .client import KeyService
from .folders import locked
from .forms import whole_token

__all__ = ["Enrolment", "broker_url", "changing", "enroll", "rotate"]

_VERSION: Final = 1
_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """An identity that is registered. ``server`` and ``server_key`` are whom the service says to join, if it says."""

    url: str
    identity: int
    type: str
    key: PrivateKey
    tls_key: PrivateKey
    """``key`` itself, unless TLS does not know its scheme."""
    broker: str
    """``mqtts://host:port``."""
    service: int
    service_key: PublicKey
    server: int | None
    server_key: PublicKey | None
    certificate: bytes = field(repr=False)
    """For TLS with the broker, PEM."""
    authority: bytes = field(repr=False)
    """Who signs the broker's certificate, PEM."""
    trust: bytes | None = field(repr=False)
    """Who signs the service's certificate, PEM; None for the system's authorities."""
    allow_http: bool = False

    @property
    def expires(self) -> float:
        """When the certificate does, in Unix time."""
        return x509.load_pem_x509_certificate(self.certificate).not_valid_after_utc.timestamp()

    def is_due(self, now: float) -> bool:
        """Whether half of the certificate's time is over."""
        begun = x509.load_pem_x509_certificate(self.certificate).not_valid_before_utc.timestamp()
        return now > (begun + self.expires) / 2

    def key_service(self) -> KeyService:
        """Return the service to ask."""
        return KeyService(self.url, ca=self.trust, allow_http=self.allow_http)

    def renewed(self) -> Self:
        """Return the enrolment with a certificate that is as new as the service gives one; asks the network."""
        access = self.key_service().access(self.identity, self.key, self.tls_key)
        if access.authority != self.authority:
            raise KeyServiceError(0, "", "the service's authority is not the one that this identity was enrolled with")
        return replace(self, certificate=access.certificate)

    def followed(self) -> Self:
        """Return the enrolment with the server's present key, if signed rotations lead to it; asks the network.

        Without a server: with the one that the service has come to name.
        """
        service = self.key_service()
        if self.server is not None and self.server_key is not None:
            return replace(self, server_key=service.server_key(self.server, self.service_key, self.server_key))
        welcome = service.register(self.identity, self.key, self.type)
        if welcome.service_key != self.service_key:
            raise KeyServiceError(0, "", "the service has another key than when this identity was enrolled")
        if welcome.server is None or welcome.server == self.identity:
            return self
        return replace(self, server=welcome.server, server_key=service.server_key(welcome.server, self.service_key))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the folder's files; one that exists is taken over only if it belongs to this identity.

        Raises KeyServiceError naming the file.
        """
        folder = Path(folder)
        document = {
            "version": _VERSION,
            "url": self.url,
            "allow_http": self.allow_http,
            "identity": f"{self.identity:x}",
            "type": self.type,
            "broker": self.broker,
            "service": f"{self.service:x}",
            "service_key": self.service_key.to_pem().decode(),
            "server": None if self.server is None else f"{self.server:x}",
            "server_key": None if self.server_key is None else self.server_key.to_pem().decode(),
            "trust": None if self.trust is None else self.trust.decode(),
        }
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked(folder):
                if (folder / "enrolment.json").exists() and self.load(folder).identity != self.identity:
                    raise KeyServiceError(0, "", f"{folder} holds the enrolment of another identity")
                write_file(folder / "ca.pem", self.authority)
                write_file(folder / "client.pem", tls_pem(self.tls_key) + self.certificate)
                write_file(folder / "key.pem", self.key.to_pem())
                if self.server_key is not None:
                    write_file(folder / "server.pub", self.server_key.to_pem())
                write_file(folder / "enrolment.json", json.dumps(document, indent=1) + "\n")
        except OSError as error:
            raise _unusable(folder, error) from None

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` has written. Raises KeyServiceError naming the file."""
        folder = Path(folder)
        path = folder / "enrolment.json"
        try:
            document = json.loads(path.read_text())
            if document["version"] != _VERSION:
                raise ValueError(f"it has version {document['version']!r}, and this srup knows {_VERSION}")
            client = (folder / "client.pem").read_bytes()
            private, begin, certificate = client.partition(_CERTIFICATE)
            key = PrivateKey.load(folder / "key.pem")
            server, trust = document["server"], document["trust"]
            made = cls(
                url=document["url"],
                allow_http=document["allow_http"] is True,
                identity=parse_identity(document["identity"]),
                type=document["type"],
                key=key,
                tls_key=PrivateKey.from_pem(private),
                broker=broker_url(document["broker"]),
                service=parse_identity(document["service"]),
                service_key=PublicKey.from_pem(document["service_key"]),
                server=None if server is None else parse_identity(server),
                server_key=None if server is None else PublicKey.from_pem(document["server_key"]),
                certificate=begin + certificate,
                authority=(folder / "ca.pem").read_bytes(),
                trust=None if trust is None else trust.encode(),
            )
            made.key_service()
            for name, pem in (("client.pem", made.certificate), ("ca.pem", made.authority)):
                _check_certificate(name, pem)
            return made
        except OSError as error:
            raise _unusable(folder, error) from None
        except (ValueError, KeyError, TypeError, AttributeError, InvalidKeyError, KeyServiceError) as error:
            raise KeyServiceError(0, "", f"{folder}: {error}; remove enrolment.json and enrol again") from None


def enroll(
    url: str,
    identity: int,
    key: PrivateKey,
    *,
    token: str | None = None,
    ca: bytes | None = None,
    kind: str = "device",
    server: int | None = None,
    allow_http: bool = False,
) -> Enrolment:
    """Register ``key`` for ``identity`` and get everything that is needed to join.

    Whom to believe is said by ``ca``, the PEM of the authorities behind ``url``, else by the token, which names one,
    else by the system. Without a token the operator must have approved or added the key: KeyServiceError (403) says so.
    ``kind`` is the type to register as, ``server`` whom to join instead of the server that the service names. What was
    done once can be done again with the same key, and then needs no token. A token that is not whole is a
    KeyServiceError before anything is sent.
    """
    token = None if token is None else whole_token(token)
    if ca is None and token is not None and "." in token and not url.startswith("http:"):
        service = KeyService.pinned(url, token)
    else:
        service = KeyService(url, ca=ca, allow_http=allow_http)
    try:
        welcome = service.register(identity, key, kind, token)
    except TransportError as error:
        if ca is None and token is not None and "." not in token:
            hint = "the token has no part behind a dot, which says whom to trust: is it whole?"
            raise TransportError(f"{error}; {hint}") from error
        raise
    service.validate(identity, key, welcome.service_key)
    tls_key = key if is_certifiable(key.scheme) else PrivateKey.generate("p256")
    access = service.access(identity, key, tls_key)
    named = welcome.server if server is None else server
    if named == identity:
        named = None
    return Enrolment(
        url=service.url,
        identity=identity,
        type=kind,
        key=key,
        tls_key=tls_key,
        broker=broker_url(welcome.broker),
        service=service.status(),
        service_key=welcome.service_key,
        server=named,
        server_key=None if named is None else service.server_key(named, welcome.service_key),
        certificate=access.certificate,
        authority=access.authority,
        trust=service.ca,
        allow_http=allow_http,
    )


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Let nobody else change the enrolment in a folder meanwhile: what was read is still so when it is written.

    Raises KeyServiceError naming the folder when there is none.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder))
        except OSError as error:
            raise _unusable(folder, error) from None
        yield


def rotate(folder: str | os.PathLike[str], new: PrivateKey | None = None) -> Enrolment:
    """Change the key of the identity in a folder to ``new``, or finish a change that was interrupted; save, and return.

    The new key is on disk before the service hears of it. Raises KeyServiceError, and TransportError when the service
    is not to be reached; call it again then, without ``new``.
    """
    path = Path(folder)
    with changing(path):
        return _rotate(path, new)


def _rotate(folder: Path, new: PrivateKey | None) -> Enrolment:
    present = Enrolment.load(folder)
    coming = folder / "next.pem"
    if coming.exists():
        new = PrivateKey.load(coming)
    elif new is None:
        return present
    else:
        try:
            write_file(coming, new.to_pem())
        except OSError as error:
            raise _unusable(folder, error) from None
    service = present.key_service()
    if new.public_key != present.key.public_key:
        service.rotate(present.identity, present.key, new)
    tls_key = new if is_certifiable(new.scheme) else PrivateKey.generate("p256")
    access = service.access(present.identity, new, tls_key)
    changed = replace(present, key=new, tls_key=tls_key, certificate=access.certificate)
    changed.save(folder)
    coming.unlink()
    return changed


def _check_certificate(name: str, pem: bytes) -> None:
    try:
        x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise ValueError(f"{name} holds no certificate") from None


def broker_url(text: str) -> str:
    """Return the URL of a broker that is named by URL, host and port, or host. KeyServiceError for one without TLS."""
    url = text if "://" in text else f"mqtts://{text}"
    try:
        scheme, _, _ = parse_url(url)
    except TransportError as error:
        raise KeyServiceError(0, "", f"no broker is named by {text[:100]!a}: {error}") from None
    if scheme != "mqtts":
        raise KeyServiceError(0, "", f"a broker without TLS is named, {text[:100]!a}")
    return url


def _unusable(folder: Path, error: OSError) -> KeyServiceError:
    return KeyServiceError(0, "", complaint(error, folder))
