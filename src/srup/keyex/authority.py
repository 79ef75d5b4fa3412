"""Who is who: the decisions of the key exchange service (docs/protocol/flows.md#key-exchange-service; T14, T15).

An identity gets in by one of three doors, all of which the operator opens: a one-time token that was made for it, the
approval of a key that asked, or a key that the operator adds himself. There is one registration per identity, for ever:
a second key gets in only by a rotation that the first has signed, and what is revoked stays revoked. Every method
either does all that it says or raises KeyServiceError, with the HTTP status of the answer, and has changed nothing; the
one thing that a refusal leaves behind is a candidate, for the operator to decide about, and those are bounded.
"""

import logging
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ..errors import KeyServiceError
from ..keys import PrivateKey, PublicKey
from .certificates import DAY, SKEW, Access, CertificateAuthority, is_certifiable, requested_key
from .forms import Identity
from .proof import endorsement, enrolment, is_signed, rotation, sign, signing_key
from .store import Candidate, Invitation, Issued, Registration, Rotation, Store

__all__ = ["Authority", "EnrolmentPolicy", "Registered"]

log: Final = logging.getLogger("srup.keyex")

SERVICE_TYPE: Final = "KeyEx"
_SERVER_TYPES: Final = frozenset({"c2", "server", SERVICE_TYPE.lower()})
_SHORTEST_PREFIX: Final = 32  # digits of a fingerprint that name a key: 128 bits, which nobody can make another key for
_MOST_ENDORSED: Final = 1024  # signatures over servers' keys that are kept; making one takes longer than all else
_MOST_CERTIFICATES: Final = 16  # of one identity at a time; renewing in time takes three


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentPolicy:
    """How long things last, in seconds, and how many there may be."""

    certificate_lifetime: float = 7 * DAY
    """Of a client's certificate; it can be renewed when half of that is over."""
    token_lifetime: float = DAY
    candidate_lifetime: float = 7 * DAY
    """How long a key that asked waits for the operator."""
    approval: bool = True
    """Whether a key may ask at all; without it only tokens and the operator's own additions let anybody in."""
    max_candidates: int = 1000
    """Altogether. Where there are too many, the oldest from the address with the most goes."""
    max_candidates_each: int = 8
    """For one identity: others may ask for the name of a device, and must not displace it from one address."""
    max_rotations: int = 100
    """Of one identity; all are kept, so that whoever pinned the first key can follow."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if name != "approval" and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive")


class Registered(NamedTuple):
    """The answer to a registration."""

    broker: str
    key: PublicKey
    default_server: int | None


def _refused(reason: str, field: str = "identity") -> KeyServiceError:
    return KeyServiceError(403, field, reason)


def _bad(field: str, reason: str) -> KeyServiceError:
    return KeyServiceError(400, field, reason)


def _digest_of(key: PublicKey) -> bytes:
    return bytes.fromhex(key.signing_fingerprint)


class Authority:
    """The service's decisions over its database. Methods may be called from any thread.

    ``identity`` and ``key`` are the service's own, ``broker`` what it tells clients to connect to, ``default_server``
    whom it tells them to join (default: the server that was registered first). ``clock`` is Unix time.
    """

    def __init__(
        self,
        store: Store,
        certificates: CertificateAuthority,
        identity: int,
        key: PrivateKey,
        *,
        clock: Callable[[], float],
        entropy: Callable[[int], bytes],
        broker: str = "",
        default_server: int | None = None,
        policy: EnrolmentPolicy | None = None,
    ) -> None:
        self.identity = identity
        self.key = key
        self.certificates = certificates
        self.broker = broker
        self.policy = policy or EnrolmentPolicy()
        self._default_server = default_server
        self._store = store
        self._clock = clock
        self._entropy = entropy
        self._list = "", b""  # the number of the revocation list, and the list
        self._vouch = lru_cache(_MOST_ENDORSED)(self._endorse)

    # What clients ask. The routes of deployed services:

    def register(
        self,
        identity: Identity,
        key: PublicKey,
        kind: str,
        token: str | None = None,
        proof: bytes | None = None,
        origin: str = "",
    ) -> Registered:
        """Register a key, or say again what was said when it was registered.

        With a token, ``proof`` is the key's signature over :func:`~srup.keyex.proof.enrolment`. Without one the key
        becomes a candidate from ``origin``, an address, and is refused until the operator has approved it.
        """
        now = self._clock()
        if self._known(identity, key):
            return self._registered()
        if token is None:
            self._propose(identity.number, key, kind, origin, now)
            raise _refused(f"waits for the operator, who must approve the key with fingerprint {key.fingerprint}")
        if proof is None:
            raise _bad("proof", "is missing: a token needs the key's signature")
        self._invited(identity.number, token, now)  # a stranger gets no further, and has taken no lock
        if not is_signed(key, enrolment(identity.number, token), proof):
            raise _bad("proof", "is not a signature of this key over this registration")
        with self._store.writing():
            if self._known(identity, key):
                return self._registered()
            invitation = self._invited(identity.number, token, now)
            self._enter(identity.number, key, kind, invitation.server, now)
        log.info("%x is registered by token: %s, type %a", identity.number, key.fingerprint, kind)
        return self._registered()

    def validate(self, identity: Identity, signature: bytes) -> bytes:
        """Check that whoever asks has the registered key; return the service's signature over its own identity."""
        _, key = self._trusted(identity)
        if not is_signed(key, identity.text.encode(), signature):
            raise _bad("signature", "is not one of the registered key over the identity")
        return sign(self.key, f"{self.identity:x}".encode())

    def access(self, identity: Identity, csr: bytes, signature: bytes) -> Access:
        """Certify a client for the broker; ``signature`` is the registered key's over the signing request.

        The request is for the registered key itself. Only where TLS does not know its scheme (ML-DSA) it is for
        another one, which signs the request, so that both keys have signed that they belong together. Until half of
        its time is over the same certificate is given again.
        """
        now = self._clock()
        registration, key = self._trusted(identity)
        if not is_signed(key, csr, signature):
            raise _bad("signature", "is not one of the registered key over the request")
        wanted = requested_key(csr, identity.number)
        if is_certifiable(key.scheme):
            if signing_key(wanted) != signing_key(key):
                raise _bad("csr", "is for another key than the registered one")
        elif not is_certifiable(wanted.scheme) or self._store.owner_of(_digest_of(wanted)) is not None:
            raise _bad("csr", f"a {key.scheme} identity needs a key of its own for TLS: RSA, P-256 or Ed25519")
        with self._store.writing():
            if self._store.registration(identity.number) != registration:
                raise _bad("identity", "was changed meanwhile")
            pem = self._certificate(identity.number, key, wanted, now)
        return Access(pem, self.certificates.pem)

    def _certificate(self, identity: int, key: PublicKey, wanted: PublicKey, now: float) -> bytes:
        lifetime = self.policy.certificate_lifetime
        public = signing_key(wanted)
        present = [issued for issued in self._store.issued(identity) if issued.expires > now]
        for issued in present:
            begun = issued.issued <= now + SKEW  # else the clock was ahead then
            fresh = begun and issued.key == _digest_of(key) and issued.expires - now > lifetime / 2
            if fresh and issued.pem and _key_in(issued.pem) == public:
                return issued.pem
        if len(present) >= _MOST_CERTIFICATES:
            raise _bad("csr", "there are too many certificates of this identity; wait until one expires")
        certificate = self.certificates.certify_client(identity, wanted, now, lifetime)
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        expires = certificate.not_valid_after_utc.timestamp()
        self._store.issue(Issued(certificate.serial_number, identity, _digest_of(key), now, expires, pem))
        log.info("%x is certified, serial number %x", identity, certificate.serial_number)
        return pem

    def key_of(self, identity: Identity) -> PublicKey:
        """Return the key of an identity; KeyServiceError (404) when it is unknown or revoked."""
        if identity.number == self.identity:
            return self.key.public_key
        return self._trusted(identity, 404)[1]

    def type_of(self, identity: Identity) -> str:
        """Return the type that an identity registered as; KeyServiceError (404) when it is unknown or revoked."""
        if identity.number == self.identity:
            return SERVICE_TYPE
        return self._trusted(identity, 404)[0].type

    def server(self, identity: Identity) -> tuple[PublicKey, bytes]:
        """Return the key of a server and the service's signature over its SHA-256; KeyServiceError (404) for others."""
        registration, key = self._trusted(identity, 404)
        if not registration.server:
            raise KeyServiceError(404, "identity", "is no server")
        return key, self._vouch(registration.key)

    def register_server(self, identity: Identity, key: PublicKey, signature: bytes) -> None:
        """Confirm a server that the operator has added, and that shows the signature he was given for it."""
        registration = self._store.registration(identity.number)
        if registration is None or registration.revoked is not None or not registration.server:
            raise _bad("identity", "the operator has not added this server")
        if PublicKey.from_pem(registration.key) != key:
            raise _bad("key", "another key is registered for this server")
        if not is_signed(self.key.public_key, endorsement(key), signature):
            raise _bad("signature", "is not the service's over this key")

    # Routes of ours:

    def rotate(self, identity: Identity, new: PublicKey, signature: bytes, new_signature: bytes) -> None:
        """Put ``new`` in the place of the registered key; both have signed :func:`~srup.keyex.proof.rotation`.

        The certificates of the old key are revoked. Asking again for what has happened does nothing.
        """
        registration, old = self._trusted(identity)
        if old == new:
            return
        signed = rotation(identity.number, old, new)
        if not is_signed(old, signed, signature):
            raise _bad("signature", "is not one of the registered key over this rotation")
        if not is_signed(new, signed, new_signature):
            raise _bad("new_signature", "is not one of the new key over this rotation")
        with self._store.writing():
            if self._store.registration(identity.number) != registration:
                raise _bad("identity", "was changed meanwhile")
            self._check_unused(new, "new_key")
            if len(self._store.rotations(identity.number)) >= self.policy.max_rotations:
                raise _refused(f"its key was changed {self.policy.max_rotations} times already")
            change = Rotation(new.to_pem().decode(), signature, new_signature)
            self._store.rotate(identity.number, change, _digest_of(new))
        log.info("%x has a new key: %s after %s", identity.number, new.fingerprint, old.fingerprint)

    def rotations(self, identity: Identity) -> list[Rotation]:
        """Return how the key of an identity has changed, the oldest first."""
        self._trusted(identity, 404)
        return self._store.rotations(identity.number)

    def revocation_list(self) -> bytes:
        """Return the PEM list of certificates that the broker must not accept, signed anew if it is not of today.

        Those of revoked identities are in it, and those that were issued for a key which another has replaced. Signing
        takes as long as the list is; what strangers ask for is :meth:`signed_list`.
        """
        while (state := self._list_state()) != self._store.setting("revocation state"):
            number = int(self._store.setting("revocation number") or 0)
            serials = self._store.revoked_serials()
            text = self.certificates.revocation_list(serials, number + 1, self._clock()).decode()
            with self._store.writing():
                if number == int(self._store.setting("revocation number") or 0):  # else another process was faster
                    for name, value in (("number", str(number + 1)), ("state", state), ("list", text)):
                        self._store.set(f"revocation {name}", value)
        return self.signed_list()

    def signed_list(self) -> bytes:
        """Return the revocation list as :meth:`revocation_list` made it last, here or in another process."""
        number = self._store.setting("revocation number") or ""
        if number != self._list[0]:
            self._list = number, (self._store.setting("revocation list") or "").encode()
        if not self._list[1]:
            raise KeyServiceError(0, "", "no revocation list was signed yet")
        return self._list[1]

    @property
    def is_list_signed(self) -> bool:
        """Whether the revocation list is of today and nothing was revoked since."""
        return self._list_state() == self._store.setting("revocation state")

    def _list_state(self) -> str:
        return f"{self._store.revocations} {int(self._clock() // DAY)}"

    # What the operator does.

    def invite(self, identity: int, server: bool = False) -> str:
        """Return a one-time token with which ``identity`` can be registered, as a server or not.

        An earlier token for the same identity is void. The part behind the dot names the authority, so that whoever
        has the token knows whom to trust.
        """
        now = self._clock()
        secret = urlsafe_b64encode(self._entropy(24)).decode()
        with self._store.writing():
            self._check_free(identity)
            digest = sha256(secret.encode()).digest()
            self._store.invite(Invitation(digest, identity, server, now + self.policy.token_lifetime))
        log.info("a token was made for %x", identity)
        return f"{secret}.{urlsafe_b64encode(self.certificates.fingerprint).decode().rstrip('=')}"

    def add(self, identity: int, key: PublicKey, kind: str = "device", server: bool = False) -> None:
        """Register a key that the operator knows to be this identity's."""
        with self._store.writing():
            self._check_free(identity)
            self._enter(identity, key, kind, server, self._clock())
        log.info("%x is registered by the operator: %s, type %a", identity, key.fingerprint, kind)

    def approve(self, identity: int, fingerprint: str, server: bool = False) -> None:
        """Register the candidate whose key has this fingerprint, of which the first 32 digits are enough."""
        with self._store.writing():
            self._check_free(identity)
            candidate = self._candidate(identity, fingerprint)
            self._enter(identity, PublicKey.from_pem(candidate.key), candidate.type, server, self._clock())
        log.info("%x is approved: %s, type %a", identity, candidate.fingerprint, candidate.type)

    def refuse(self, identity: int, fingerprint: str | None = None) -> int:
        """Drop the candidate with this fingerprint (as for :meth:`approve`), or all for an identity and its token.

        Return how many candidates there were; they may ask again. KeyServiceError when there is nothing to drop.
        """
        with self._store.writing():
            if fingerprint is not None:
                return self._store.dismiss(identity, self._candidate(identity, fingerprint).fingerprint)
            gone = self._store.dismiss(identity)
            if not self._store.disinvite(identity) and not gone:
                raise KeyServiceError(404, "identity", f"no key waits for {identity:x}, and no token for it is out")
            return gone

    def _candidate(self, identity: int, fingerprint: str) -> Candidate:
        """Return the candidate that an operator names; KeyServiceError when that is none, or could be another one."""
        wanted = fingerprint.lower()
        if len(wanted) < _SHORTEST_PREFIX:
            raise _bad("fingerprint", f"give at least its first {_SHORTEST_PREFIX} digits; srup keyex list shows it")
        found = [each for each in self._waiting(identity) if each.fingerprint.startswith(wanted)]
        if len(found) != 1:
            raise KeyServiceError(404, "fingerprint", f"no key with it waits for {identity:x}; see srup keyex list")
        return found[0]

    def revoke(self, identity: int) -> None:
        """End the trust in an identity, for ever. The broker learns it by :meth:`revocation_list`."""
        with self._store.writing():
            registration = self._store.registration(identity)
            if registration is None:
                raise KeyServiceError(404, "identity", f"{identity:x} is not registered")
            if registration.revoked is None:
                self._store.revoke(identity, self._clock())
        log.info("%x is revoked", identity)

    def registrations(self) -> list[Registration]:
        """Return all registrations, the oldest first."""
        return self._store.registrations()

    def candidates(self) -> list[Candidate]:
        """Return the keys that wait for the operator, the oldest first."""
        return self._waiting()

    def invitations(self) -> list[Invitation]:
        """Return the tokens that are out."""
        now = self._clock()
        return [invitation for invitation in self._store.invitations() if invitation.expires > now]

    def servers(self) -> set[int]:
        """Return who may act as a server at the broker: registered servers, and those with a token."""
        return {*self._store.servers(), *(each.identity for each in self.invitations() if each.server)}

    def devices(self) -> set[int]:
        """Return who may be a device at the broker: those who are registered, and those with a token."""
        return {*self._store.devices(), *(each.identity for each in self.invitations() if not each.server)}

    def revoked(self) -> set[int]:
        """Return who is revoked."""
        return set(self._store.revoked())

    def endorse(self, server_key: PublicKey) -> bytes:
        """Return the service's signature over the SHA-256 of a server's PEM."""
        return self._endorse(server_key.to_pem().decode())

    def _endorse(self, pem: str) -> bytes:
        return sign(self.key, endorsement(PublicKey.from_pem(pem)))

    def expire(self) -> None:
        """Forget what has expired; to be called now and then."""
        now = self._clock()
        with self._store.writing():
            self._store.expire(now, now - self.policy.candidate_lifetime)

    def close(self) -> None:
        """Close the database."""
        self._store.close()

    # Checks. They raise, or let pass.

    def _registered(self) -> Registered:
        default = self._default_server
        if default is None:
            default = next(iter(self._store.servers()), None)
        return Registered(self.broker, self.key.public_key, default)

    def _known(self, identity: Identity, key: PublicKey) -> bool:
        """Return whether this very key is registered for this identity; raise if another is."""
        if identity.number == self.identity:
            raise _refused("is the service's own")
        registration = self._store.registration(identity.number)
        if registration is None:
            self._check_unused(key)
            return False
        if registration.revoked is not None:
            raise _refused("is revoked")
        if PublicKey.from_pem(registration.key) != key:
            raise _refused("is registered with another key")
        return True

    def _invited(self, identity: int, token: str, now: float) -> Invitation:
        invitation = self._store.invitation(identity)
        digest = sha256(token.encode()).digest()
        if invitation is None or invitation.digest != digest or invitation.expires <= now:
            raise _refused("is not good for this identity: wrong, used or expired", "token")
        return invitation

    def _waiting(self, identity: int | None = None) -> list[Candidate]:
        since = self._clock() - self.policy.candidate_lifetime
        return [candidate for candidate in self._store.candidates(identity) if candidate.asked > since]

    def _check_unused(self, key: PublicKey, field: str = "key") -> None:
        if _digest_of(key) == _digest_of(self.key.public_key) or self._store.owner_of(_digest_of(key)) is not None:
            raise _refused("was registered before, for this or another identity", field)

    def _check_free(self, identity: int) -> None:
        if identity == self.identity:
            raise _refused("is the service's own")
        if self._store.registration(identity) is not None:
            raise _refused(f"{identity:x} is registered, or revoked; it never gets another registration")

    def _propose(self, identity: int, key: PublicKey, kind: str, origin: str, now: float) -> None:
        if not self.policy.approval:
            raise _refused("needs an enrolment token", "token")
        invitation = self._store.invitation(identity)
        if identity == self._default_server or (invitation is not None and invitation.expires > now):
            raise _refused("is reserved for the holder of its enrolment token", "token")
        if any(each.fingerprint == key.fingerprint for each in self._waiting(identity)):
            return
        candidate = Candidate(identity, key.fingerprint, key.to_pem().decode(), kind, now, origin)
        with self._store.writing():
            if self._store.registration(identity) is None:
                self._store.expire(now, now - self.policy.candidate_lifetime)
                self._store.propose(candidate, self.policy.max_candidates_each, self.policy.max_candidates)
        log.info("%x asks to be registered: %s, type %a", identity, key.fingerprint, kind)

    def _enter(self, identity: int, key: PublicKey, kind: str, server: bool, now: float) -> None:
        self._check_unused(key)
        if kind.lower() in _SERVER_TYPES and not server:
            raise _refused("only the operator makes a server", "type")
        self._store.register(Registration(identity, key.to_pem().decode(), kind, server, now, None), _digest_of(key))
        self._store.disinvite(identity)
        self._store.dismiss(identity)

    def _trusted(self, identity: Identity, status: int = 400) -> tuple[Registration, PublicKey]:
        registration = self._store.registration(identity.number)
        if registration is None or registration.revoked is not None:
            raise KeyServiceError(status, "identity", "is revoked" if registration else "is not registered")
        return registration, PublicKey.from_pem(registration.key)


def _key_in(certificate_pem: bytes) -> bytes:
    key: Any = x509.load_pem_x509_certificate(certificate_pem).public_key()
    der: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return der
