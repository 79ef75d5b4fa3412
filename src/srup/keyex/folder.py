"""The folder of a key exchange service: its database, its two keys, and what it publishes for the broker.

====================  ==================================================================================================
file                  what it is
====================  ==================================================================================================
keyex.db              the database (see :mod:`srup.keyex.store`)
service.key           the key with which the service signs; RSA, because deployed clients know nothing else
ca.key, ca.pem        the certificate authority
https.key, https.pem  the service's own certificate, made when it is started and renewed while it runs
broker/               Mosquitto's configuration: mosquitto.conf, acl, crl.pem, ca.pem, server.pem, server.key
====================  ==================================================================================================

Keys and the database have mode 0600 and are not encrypted: whoever reads them is the service.
"""

import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ..errors import InvalidKeyError, KeyServiceError
from ..keys import PrivateKey
from ..transport import access_list, broker_configuration
from .authority import Authority
from .certificates import DAY, CertificateAuthority, tls_pem
from .disk import write_file
from .store import Store

__all__ = ["ServiceFolder"]

_DEFAULT_USER: Final = "mosquitto"  # whom a Mosquitto that root has started becomes by itself
_RENEW_BEFORE: Final = 90 * DAY  # a host's certificate is good for 397 days


class ServiceFolder:
    """A folder as above, at ``path``. KeyServiceError names the file that is missing or wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.broker = path / "broker"

    @classmethod
    def create(cls, path: Path, identity: int, clock: Callable[[], float], key: PrivateKey | None = None) -> Self:
        """Make the folder of a new service, in one step; ``key`` must be RSA (default: a new one).

        KeyServiceError if there is one.
        """
        key = key or PrivateKey.generate()
        if not key.scheme.startswith("rsa"):
            raise KeyServiceError(0, "", f"the service's key must be RSA for deployed clients, not {key.scheme}")
        authority = CertificateAuthority.create(f"srup keyex {identity:x}", clock())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))  # mode 0700
        except OSError as error:
            raise _unusable(path, error) from None
        try:
            write_file(fresh / "ca.key", authority.key_pem)
            write_file(fresh / "ca.pem", authority.pem, 0o644)
            write_file(fresh / "service.key", key.to_pem())
            store = Store(fresh / "keyex.db")
            with store.writing():
                store.set("identity", f"{identity:x}")
            store.close()
            fresh.chmod(0o711)  # Mosquitto, as a user of its own, must get through to broker/
            fresh.rename(path)
        except OSError as error:
            raise _unusable(path, error) from None
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return cls(path)

    @property
    def exists(self) -> bool:
        """Whether there is a service in it."""
        return (self.path / "keyex.db").exists()

    def open(self, *, clock: Callable[[], float], entropy: Callable[[int], bytes], **options: Any) -> Authority:
        """Return the authority of the folder; ``options`` are those of :class:`~srup.keyex.authority.Authority`."""
        if not self.exists:
            raise KeyServiceError(0, "", f"{self.path} is not the folder of a key exchange service")
        certificates = self._certificates()
        try:
            key = PrivateKey.load(self.path / "service.key")
        except InvalidKeyError as error:
            raise KeyServiceError(0, "", str(error)) from None
        store = Store(self.path / "keyex.db")
        identity = store.setting("identity")
        if identity is None:
            store.close()
            raise KeyServiceError(0, "", f"{self.path / 'keyex.db'} has lost the service's identity")
        return Authority(store, certificates, int(identity, 16), key, clock=clock, entropy=entropy, **options)

    def _certificates(self) -> CertificateAuthority:
        try:
            return CertificateAuthority.load((self.path / "ca.pem").read_bytes(), (self.path / "ca.key").read_bytes())
        except OSError as error:
            raise _unusable(self.path, error) from None
        except (ValueError, TypeError) as error:
            raise KeyServiceError(0, "", f"{self.path}/ca.pem and ca.key: {error}") from None

    def https(self, names: Sequence[str], now: float) -> tuple[Path, Path]:
        """Return certificate and key for these host names and addresses, new ones if there are none that still serve.

        ValueError for a bad name.
        """
        return self._host_certificate(self.path / "https.pem", self.path / "https.key", names, now)

    def _host_certificate(self, cert: Path, key: Path, names: Sequence[str], now: float) -> tuple[Path, Path]:
        certificates = self._certificates()
        private = _key_at(key)
        if private is None or not _serves(cert, private, certificates, names, now):
            private = PrivateKey.generate("p256")
            pem = certificates.certify_host(names, private, now).public_bytes(serialization.Encoding.PEM)
            write_file(key, tls_pem(private))
            write_file(cert, pem + certificates.pem, 0o644)
        return cert, key

    def publish(self, authority: Authority) -> bool:
        """Write the revocation list and the access list for the broker, if :meth:`write_broker` has made its folder.

        The broker reads them at SIGHUP. Return whether there was a folder.
        """
        if not self.broker.is_dir():
            return False
        try:
            write_file(self.broker / "crl.pem", authority.revocation_list(), 0o644)
            write_file(self.broker / "acl", access_list(authority.servers(), authority.revoked()), 0o644)
        except OSError as error:
            raise _unusable(self.broker, error) from None
        return True

    def write_broker(
        self,
        authority: Authority,
        names: Sequence[str],
        now: float,
        *,
        port: int = 8883,
        address: str = "",
        user: str = "",
    ) -> Path:
        """Write everything that Mosquitto needs to serve at these host names; return its ``mosquitto.conf``.

        ``user`` is who it runs as when root starts it, and owns the key then: ``mosquitto`` unless it is given or does
        not exist. ValueError for bad values.
        """
        if not user and os.geteuid() == 0 and _DEFAULT_USER in {entry.pw_name for entry in pwd.getpwall()}:
            user = _DEFAULT_USER
        try:
            self.broker.mkdir(exist_ok=True)
            self.broker.chmod(0o755)
            text = broker_configuration(self.broker, port, address, user)
            _, key = self._host_certificate(self.broker / "server.pem", self.broker / "server.key", names, now)
            write_file(self.broker / "ca.pem", authority.certificates.pem, 0o644)
            write_file(self.broker / "mosquitto.conf", text, 0o644)
            if user and os.geteuid() == 0:
                shutil.chown(key, user)
                shutil.chown(self.broker, user)  # its sessions and its process id go there
        except (OSError, LookupError) as error:
            raise _unusable(self.broker, error) from None
        self.publish(authority)
        return self.broker / "mosquitto.conf"


def _key_at(path: Path) -> PrivateKey | None:
    try:
        return PrivateKey.load(path)
    except InvalidKeyError:
        return None


def _serves(path: Path, key: PrivateKey, certificates: CertificateAuthority, names: Sequence[str], now: float) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        certificate.verify_directly_issued_by(certificates.certificate)
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, x509.ExtensionNotFound):
        return False
    encoding = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    own = certificate.public_key().public_bytes(*encoding) in key.public_key.to_pem()
    named = {str(name.value) for name in alternatives}
    return own and named == set(names) and certificate.not_valid_after_utc.timestamp() - now > _RENEW_BEFORE


def _unusable(path: Path, error: Exception) -> KeyServiceError:
    where = getattr(error, "filename", None) or path
    return KeyServiceError(0, "", f"{where}: {getattr(error, 'strerror', None) or error}")
