"""The certificate authority: whom it certifies as what, and what it takes back. Time is an argument.

A certificate is built from nothing but what was decided here: of a request only the public key gets into it, and the
common name, after it was compared with the identity. There are two kinds, and neither passes for the other: a client's
has no host name and may only authenticate clients, a host's names hosts and may only authenticate servers.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any, Final, NamedTuple, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..errors import InvalidKeyError, KeyServiceError
from ..identity import parse_identity
from ..keys import PrivateKey, PublicKey
from .proof import signing_key

__all__ = [
    "DAY",
    "SKEW",
    "Access",
    "CertificateAuthority",
    "check_host_names",
    "is_certifiable",
    "request_certificate",
    "requested_key",
    "tls_pem",
]

DAY: Final = 86400.0
SKEW: Final = 300.0
"""Seconds by which a broker's clock may be behind; certificates are good from so long before they are issued."""
_CERTIFIABLE: Final = ("rsa", "p256", "ed25519")  # what TLS of today takes for a client's certificate
_AUTHORITY_LIFETIME: Final = 3650 * DAY
_LIST_LIFETIME: Final = 90 * DAY  # OpenSSL lets nobody in when the list is older than it says
_HOST: Final = re.compile(r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")
_MAX_REQUEST: Final = 16384
_PEM: Final = serialization.Encoding.PEM


def is_certifiable(scheme: str) -> bool:
    """Return whether a client's certificate can be for a key of this scheme."""
    return scheme.startswith(_CERTIFIABLE)


def _date(now: float) -> datetime:
    return datetime.fromtimestamp(int(now), UTC)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*allowed: str) -> x509.KeyUsage:
    names = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{name: name in allowed for name in names})


class Access(NamedTuple):
    """A client's certificate and that of the authority, both PEM."""

    certificate: bytes
    authority: bytes


class CertificateAuthority:
    """An authority of one level: it signs certificates and revocation lists, nothing that signs in its turn."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def create(cls, name: str, now: float) -> Self:
        """Make a new authority, on P-256, that is good for ten years."""
        key = ec.generate_private_key(ec.SECP256R1())
        public = key.public_key()
        builder = _builder(_name(name), _name(name), public, now, _AUTHORITY_LIFETIME)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(key, SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, certificate_pem: bytes, key_pem: bytes) -> Self:
        """Read what ``certificate_pem`` and ``key_pem`` have written. Raises ValueError if they do not fit."""
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        key = serialization.load_pem_private_key(key_pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ValueError("the authority's key is not that of its certificate")
        return cls(certificate, key)

    @property
    def pem(self) -> bytes:
        """The authority's certificate."""
        return self.certificate.public_bytes(_PEM)

    @property
    def fingerprint(self) -> bytes:
        """The SHA-256 of the certificate, by which an enrolment token names the authority."""
        return self.certificate.fingerprint(SHA256())

    @property
    def key_pem(self) -> bytes:
        """The authority's private key, not encrypted."""
        return self._key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

    def certify_client(self, identity: int, key: PublicKey, now: float, lifetime: float) -> x509.Certificate:
        """Return a certificate that lets ``identity`` in at the broker; ``lifetime`` in seconds."""
        public = serialization.load_der_public_key(signing_key(key))
        return self._certify(_name(f"{identity:x}"), public, now, lifetime, ExtendedKeyUsageOID.CLIENT_AUTH, None)

    def certify_host(
        self, names: Iterable[str], key: PrivateKey, now: float, lifetime: float = 397 * DAY
    ) -> x509.Certificate:
        """Return a certificate for a broker or service at these host names and addresses.

        The common name is the authority's with a word behind it, which is no identity. ValueError for no, or a bad,
        name.
        """
        alternatives = x509.SubjectAlternativeName([_host(name) for name in names])
        public = serialization.load_der_public_key(signing_key(key.public_key))
        usage = ExtendedKeyUsageOID.SERVER_AUTH
        return self._certify(_name("srup host"), public, now, lifetime, usage, alternatives)

    def issue_host(self, names: Iterable[str], now: float) -> tuple[bytes, bytes]:
        """Return a new key and, with ours behind it, its certificate for these host names and addresses, both PEM."""
        key = PrivateKey.generate("p256")
        return tls_pem(key), self.certify_host(names, key, now).public_bytes(_PEM) + self.pem

    def _certify(
        self,
        subject: x509.Name,
        public: Any,
        now: float,
        lifetime: float,
        usage: x509.ObjectIdentifier,
        alternatives: x509.SubjectAlternativeName | None,
    ) -> x509.Certificate:
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            _builder(subject, self.certificate.subject, public, now, lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage("digital_signature"), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(authority, critical=False)
        )
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        return builder.sign(self._key, SHA256())

    def revocation_list(self, serials: Iterable[int], number: int, now: float) -> bytes:
        """Return the PEM of a list of these certificates' serial numbers (RFC 5280, section 5), good for 90 days."""
        entry = x509.RevokedCertificateBuilder().revocation_date(_date(now - SKEW))
        # add_revoked_certificate copies the whole list each time.
        entries = [entry.serial_number(serial).build() for serial in serials]
        builder = (
            x509.CertificateRevocationListBuilder(revoked_certificates=entries)
            .issuer_name(self.certificate.subject)
            .last_update(_date(now - SKEW))
            .next_update(_date(now + _LIST_LIFETIME))
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        return builder.sign(self._key, SHA256()).public_bytes(_PEM)

    def __repr__(self) -> str:
        return f"<CertificateAuthority {self.certificate.subject.rfc4514_string()} {self.fingerprint.hex()[:16]}>"


def _builder(
    subject: x509.Name, issuer: x509.Name, public: Any, now: float, lifetime: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_date(now - SKEW))
        .not_valid_after(_date(now) + timedelta(seconds=lifetime))
    )


def check_host_names(names: Iterable[str]) -> None:
    """Raise ValueError for the first of these that no certificate of a host can name."""
    for name in names:
        _host(name)


def _host(name: str) -> x509.GeneralName:
    """Return the form in which a certificate names a host that clients connect to; ValueError if none does by this."""
    try:
        address = ip_address(name)
    except ValueError:
        if len(name) > 253 or not _HOST.fullmatch(name):
            raise ValueError(
                f"{name[:80]!a} is no host name: letters, digits, '-' and '.', without port, wildcard or https://"
            ) from None
        return x509.DNSName(name)
    if address.is_unspecified:
        raise ValueError(f"{name} is every address, and none that a client connects to; give --name")
    return x509.IPAddress(address)


# --- requests


def request_certificate(identity: int, key: PrivateKey) -> bytes:
    """Return the PEM of a signing request for this identity and key."""
    private: Any = serialization.load_pem_private_key(key.to_pem(), None)  # the first block
    algorithm = None if key.scheme == "ed25519" else SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(f"{identity:x}")).sign(private, algorithm)
    return request.public_bytes(_PEM)


def tls_pem(key: PrivateKey) -> bytes:
    """Return the PEM of the key that signs, without the X25519 key behind it, for which TLS has no use."""
    private: Any = serialization.load_pem_private_key(key.to_pem(), None)  # the first block
    pem: bytes = private.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem


def requested_key(pem: bytes, identity: int) -> PublicKey:
    """Return the key of a signing request of this identity, in whose possession the request proves it to be.

    Its one common name must be the identity; whatever else it asks for is not given. Raises KeyServiceError (400).
    """

    def bad(reason: str) -> KeyServiceError:
        return KeyServiceError(400, "csr", reason)

    if len(pem) > _MAX_REQUEST:
        raise bad(f"is longer than {_MAX_REQUEST} bytes")
    try:
        request = x509.load_pem_x509_csr(pem)
        names = [name.value for name in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        proven = request.is_signature_valid
        public = request.public_key().public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise bad("is not a PEM certificate signing request") from None
    if not proven:
        raise bad("is not signed by the key in it")
    if len(names) != 1 or not _is_name_of(names[0], identity):
        raise bad(f"its subject must have one common name, {identity:x}")
    try:
        return PublicKey.from_pem(public)
    except InvalidKeyError as error:
        raise bad(str(error)) from None


def _is_name_of(name: str | bytes, identity: int) -> bool:
    try:
        return isinstance(name, str) and parse_identity(name) == identity
    except ValueError:
        return False
