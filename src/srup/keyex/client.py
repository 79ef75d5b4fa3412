"""Asking a key exchange service (docs/protocol/flows.md#f-91; T15).

Nothing is believed before TLS has shown whom it comes from, and keys once known change only by a rotation that the old
key has signed. Redirects are not followed. Failures to get an answer are TransportError, refusals and answers that must
not be believed KeyServiceError.
"""

import binascii
import json
import ssl
from base64 import b64decode, b64encode, urlsafe_b64decode
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.hashes import SHA256

from ..errors import KeyServiceError, TransportError
from ..extras import require
from ..keys import PrivateKey, PublicKey
from ..leash import Leash
from ..printable import printable, why
from ..urls import Address
from .certificates import Access, request_certificate
from .forms import parse_identity, parse_key
from .proof import endorsement, enrolment, is_signed, rotation, sign, signing_key

__all__ = ["BASE", "KeyService", "Welcome", "trusted"]

BASE: Final = "/KeyEx/register"
"""Where the routes begin."""

_MAX_ANSWER: Final = 1 << 20  # a hundred rotations of ML-DSA keys are in it
_TIMEOUT: Final = 10.0  # seconds for each step; the whole may take three times that
_WORST: Final = 200  # characters of a stranger's text that are shown


class Welcome(NamedTuple):
    """The answer to a registration: where the broker is, the service's key, and the server to join if it names one."""

    broker: str
    service_key: PublicKey
    server: int | None


def _untrue(reason: str) -> KeyServiceError:
    return KeyServiceError(0, "", f"the key exchange service's answer is not to be believed: {reason}")


class KeyService:
    """The service at ``url``, ``https://host:port``.

    ``ca`` is the PEM of the authorities to trust (default: the system's); :meth:`pinned` takes a fingerprint. Plain
    ``http`` is for tests: only to this machine itself, and only with ``allow_http``. ValueError for another URL,
    ModuleNotFoundError without urllib3.
    """

    def __init__(self, url: str, *, ca: bytes | None = None, allow_http: bool = False) -> None:
        require("urllib3")
        try:
            address = Address.parse(url)
        except ValueError as error:
            raise ValueError(f"a key exchange service's url is https://host:port; this one {error}") from None
        if "#" in url or address.target not in ("/", BASE, f"{BASE}/"):
            raise ValueError("a key exchange service's url is https://host:port; this one goes on after the port")
        if address.scheme == "http" and not (allow_http and _is_loopback(address.host)):
            raise ValueError("plain http is refused: anyone on the way could put other keys in (T15)")
        self.url = f"{address.scheme}://{urlsplit(url).netloc}"
        self.ca = ca
        self._host = address.host
        self._port = address.port
        self._tls = trusted(ca) if address.scheme == "https" else None

    @classmethod
    def pinned(cls, url: str, token: str) -> Self:
        """Return the service whose authority an enrolment token names by the SHA-256 of its certificate.

        The certificate is asked for without trust, and used only if it has that digest. KeyServiceError if it has not.
        """
        try:
            wanted = urlsafe_b64decode(token.partition(".")[2] + "=")
        except (binascii.Error, ValueError):
            wanted = b""
        if len(wanted) != 32:
            raise KeyServiceError(0, "token", "does not name the service's authority: give ca=, or the whole token")
        stranger = cls(url)
        stranger._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        stranger._tls.check_hostname = False
        stranger._tls.verify_mode = ssl.CERT_NONE
        answer = stranger._ask("GET", "/ca", 200)
        try:
            authority = x509.load_pem_x509_certificate(answer)
        except ValueError:
            authority = None
        if authority is None or authority.fingerprint(SHA256()) != wanted:
            raise _untrue("its authority is not the one that the token names")
        return cls(url, ca=authority.public_bytes(serialization.Encoding.PEM))  # not the answer: more may be in it

    # The routes.

    def status(self) -> int:
        """Return the service's identity."""
        return _identity(self._json("GET", "/status", 200), "identity")

    def register(self, identity: int, key: PrivateKey, kind: str, token: str | None = None) -> Welcome:
        """Register a key. Without a token the service's operator has to approve it first (KeyServiceError, 403)."""
        request = {"identity": f"{identity:x}", "key": _pem(key.public_key), "type": kind}
        if token is not None:
            secret = token.partition(".")[0]
            request["token"] = secret
            request["proof"] = _text(sign(key, enrolment(identity, secret)))
        answer = self._json("POST", "/register", 201, request)
        server = _identity(answer, "default_c2") if answer.get("default_c2") else None
        return Welcome(_string(answer, "broker"), _key(answer, "key"), server)

    def validate(self, identity: int, key: PrivateKey, service_key: PublicKey) -> None:
        """Show the service that ``key`` is in our possession, and have it show the same."""
        name = f"{identity:x}"
        request = {"identity": name, "signature": _text(sign(key, name.encode()))}
        answer = self._json("POST", "/validate", 200, request)
        if not is_signed(service_key, _string(answer, "identity").encode(), _bytes(answer, "signature")):
            raise _untrue("it does not have the key that it says it has")

    def access(self, identity: int, key: PrivateKey, tls_key: PrivateKey) -> Access:
        """Get a certificate for ``tls_key``, which is ``key`` wherever TLS knows its scheme."""
        csr = request_certificate(identity, tls_key)
        request = {"identity": f"{identity:x}", "csr": _text(csr), "signature": _text(sign(key, csr))}
        answer = self._json("POST", "/access", 200, request)
        try:
            certificate = x509.load_pem_x509_certificate(_bytes(answer, "certificate"))
            authority = x509.load_pem_x509_certificate(_bytes(answer, "CA_certificate"))
            certificate.verify_directly_issued_by(authority)
            form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            ours = certificate.public_key().public_bytes(*form) == signing_key(tls_key.public_key)
        except (ValueError, TypeError, InvalidSignature):
            ours = False
        if not ours:
            raise _untrue("the certificate is not for our key, or not by the authority that came with it")
        return Access(*(each.public_bytes(serialization.Encoding.PEM) for each in (certificate, authority)))

    def key_of(self, identity: int, pinned: PublicKey | None = None) -> PublicKey:
        """Return the key of an identity; one other than ``pinned`` only if signed rotations lead to it."""
        pem = self._ask("GET", f"/get_key/{identity:x}", 200)
        key = _key({"key": _decoded(pem.decode(errors="replace")).decode(errors="replace")}, "key")
        if pinned is None or key == pinned:
            return key
        return self._follow(identity, pinned, key)

    def _follow(self, identity: int, pinned: PublicKey, key: PublicKey) -> PublicKey:
        steps = self._json("GET", f"/rotations/{identity:x}", 200, kind=list)
        present: PublicKey | None = None
        for step in steps:
            if not isinstance(step, dict):
                raise _untrue("a rotation is no object")
            new = _key(step, "key")
            old = present or pinned
            signed = rotation(identity, old, new)
            both = is_signed(old, signed, _bytes(step, "signature")) and is_signed(
                new, signed, _bytes(step, "new_signature")
            )
            if both:
                present = new
            elif present is not None:
                raise _untrue(f"the key of {identity:x} has changed, and the key before has not signed that")
        if present != key:
            raise _untrue(f"the key of {identity:x} has changed, and the known one has not signed that")
        return key

    def type_of(self, identity: int) -> str:
        """Return the type that an identity registered as."""
        return printable(self._ask("GET", f"/get_type/{identity:x}", 200).decode(errors="replace"), _WORST)

    def server_key(self, identity: int, service_key: PublicKey, pinned: PublicKey | None = None) -> PublicKey:
        """Return the key of a server, for which the service vouches; see :meth:`key_of`."""
        key = self.key_of(identity, pinned)
        answer = self._json("GET", f"/c2_check/{identity:x}", 200)
        if not is_signed(service_key, endorsement(key), _bytes(answer, "signature")):
            raise _untrue(f"it has not signed the key of server {identity:x}")
        return key

    def rotate(self, identity: int, old: PrivateKey, new: PrivateKey) -> None:
        """Put ``new`` in the place of ``old``; does nothing when that was done before."""
        signed = rotation(identity, old.public_key, new.public_key)
        request = {
            "identity": f"{identity:x}",
            "new_key": _pem(new.public_key),
            "signature": _text(sign(old, signed)),
            "new_signature": _text(sign(new, signed)),
        }
        self._json("POST", "/rotate", 200, request)

    # One request.

    def _json(
        self, method: str, path: str, expected: int, request: Mapping[str, str] | None = None, kind: type = dict
    ) -> Any:
        try:
            answer = json.loads(self._ask(method, path, expected, request))
        except (ValueError, RecursionError):
            raise _untrue("it is not JSON") from None
        if not isinstance(answer, kind):
            raise _untrue(f"it is not a JSON {'object' if kind is dict else 'list'}")
        return answer

    def _ask(self, method: str, path: str, expected: int, request: Mapping[str, str] | None = None) -> bytes:
        import urllib3

        body = None if request is None else json.dumps(request).encode()
        headers = {"User-Agent": "srup", "Accept-Encoding": "identity", "Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        pool = urllib3.HTTPConnectionPool(self._host, self._port)
        try:
            with (
                Leash("the answer", 3 * _TIMEOUT, self._failure) as leash,
                leash.request(pool, method, BASE + path, headers, body, timeout=_TIMEOUT, tls=self._tls) as answer,
            ):
                content = b""
                while (more := _MAX_ANSWER + 1 - len(content)) and (part := answer.read(more)):
                    content += part  # only the read after the last one tells that the answer was cut
                leash.check()
        except urllib3.exceptions.HTTPError as error:
            raise self._failure(why(error)) from None
        if len(content) > _MAX_ANSWER:
            raise _untrue("it is too long")
        if answer.status != expected:
            raise _refusal(answer.status, content)
        return content

    def _failure(self, reason: str) -> TransportError:
        return TransportError(f"key exchange service at {self.url}: {reason}")

    def __repr__(self) -> str:
        return f"<KeyService {self.url}>"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def trusted(ca: bytes | None) -> ssl.SSLContext:
    """Return how TLS trusts these authorities, PEM, or the system's; ValueError when there are none in it."""
    if ca is None:
        return ssl.create_default_context()
    try:
        if not ca.strip():  # create_default_context would take the system's instead
            raise ValueError
        return ssl.create_default_context(cadata=ca.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise ValueError("it holds no PEM certificates to trust") from None


def _refusal(status: int, content: bytes) -> KeyServiceError:
    try:
        answer = json.loads(content)
        reason, field = answer["error"], answer["field"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return KeyServiceError(status, "", f"the key exchange service answers with HTTP status {status}")
    return (
        KeyServiceError(status, "", f"the key exchange service refuses: {printable(str(reason), _WORST)}")
        if not field
        else (KeyServiceError(status, printable(field), printable(str(reason), _WORST).removeprefix(f"{field}: ")))
    )


def _text(content: bytes) -> str:
    return b64encode(content).decode()


def _pem(key: PublicKey) -> str:
    return key.to_pem().decode()


def _string(answer: Any, name: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str) or not value.isprintable():
        raise _untrue(f"{name} is not text")
    return value


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _untrue("something is not base64") from None


def _bytes(answer: Any, name: str) -> bytes:
    return _decoded(_string(answer, name))


def _identity(answer: Any, name: str) -> int:
    try:
        return parse_identity(_string(answer, name)).number
    except KeyServiceError as error:
        raise _untrue(f"{name} {error.reason}") from None


def _key(answer: Any, name: str) -> PublicKey:
    text = answer.get(name)
    if not isinstance(text, str):
        raise _untrue(f"{name} is not text")
    try:
        return parse_key(text)
    except KeyServiceError as error:
        raise _untrue(f"{name}: {printable(error.reason)}") from None
