"""The folder of a key exchange service: its database, its two keys, and what it publishes for the broker.

====================  ==================================================================================================
file                  what it is
====================  ==================================================================================================
keyex.db              the database, and beside it its log and its lock (see :mod:`srup.keyex.store`)
service.key           the key with which the service signs; RSA, because deployed clients know nothing else
ca.key, ca.pem        the certificate authority
https.key, https.pem  the service's own certificate, made when it is started and renewed while it runs
broker/               Mosquitto's configuration: mosquitto.conf, access lists and filters.json, crl.pem, ca.pem,
                      server.pem, server.key
broker/data/          where Mosquitto keeps its sessions
====================  ==================================================================================================

Keys and the database have mode 0600 and are not encrypted: whoever reads them is the service. Only ``broker/data/``
belongs to the user that Mosquitto runs as. That user may read ``broker/`` (the key by way of its group) and write
nothing there, so whoever takes the broker over cannot make the service write elsewhere.
"""

import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from ..errors import InvalidKeyError, KeyServiceError
from ..files import PUBLIC, complaint, sync_folder, write_file
from ..identity import parse_identity
from ..keys import PrivateKey
from ..transport import access_list, broker_configuration, filter_list, find_plugin
from .authority import Authority
from .certificates import DAY, CertificateAuthority, tls_pem
from .folders import is_own_file, take_folder
from .store import Store

__all__ = ["ServiceFolder", "account_of"]

_DEFAULT_USER: Final = "mosquitto"  # whom a Mosquitto that root has started becomes by itself
_RENEW_BEFORE: Final = 90 * DAY  # a host's certificate is good for 397 days


class ServiceFolder:
    """A folder as above, at ``path``. KeyServiceError names the file that is missing or wrong."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.broker = self.path / "broker"

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], identity: int, clock: Callable[[], float], key: PrivateKey | None = None
    ) -> Self:
        """Make the folder of a new service, in one step; ``key`` must be RSA (default: a new one).

        KeyServiceError if there is one, or anything else.
        """
        path = Path(path)
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
            write_file(fresh / "ca.pem", authority.pem, PUBLIC)
            write_file(fresh / "service.key", key.to_pem())
            store = Store(fresh / "keyex.db")
            with store.writing():
                store.set("identity", f"{identity:x}")
            store.close()
            fresh.chmod(0o711)  # Mosquitto, as a user of its own, must get through to broker/
            fresh.rename(path)
            sync_folder(path.parent)
        except OSError as error:
            if path.exists():
                raise KeyServiceError(0, "", f"{path} is there already; nothing is changed in it") from None
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
            raise KeyServiceError(
                0, "", f"{self.path} holds no key exchange service; srup keyex create --folder {self.path} makes one"
            )
        certificates = self._certificates()
        try:
            key = PrivateKey.load(self.path / "service.key")
        except InvalidKeyError as error:
            raise KeyServiceError(0, "", str(error)) from None
        store = Store(self.path / "keyex.db")
        try:
            identity = store.setting("identity")
            if identity is None:
                raise KeyServiceError(0, "", f"{self.path / 'keyex.db'} has lost the service's identity")
            return Authority(
                store, certificates, parse_identity(identity), key, clock=clock, entropy=entropy, **options
            )
        except BaseException:
            store.close()
            raise

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

    def _host_certificate(
        self, cert: Path, key: Path, names: Sequence[str], now: float, mode: int = 0o600, group: int = -1
    ) -> tuple[Path, Path]:
        certificates = self._certificates()
        private = _key_at(key)
        if private is None or not _serves(cert, private, certificates, names, now):
            pem, chain = certificates.issue_host(names, now)
            write_file(key, pem, mode, group)
            write_file(cert, chain, PUBLIC)
        elif group != key.stat().st_gid and group != -1:
            write_file(key, tls_pem(private), mode, group)
        return cert, key

    def publish(self, authority: Authority) -> bool:
        """Write the revocation list and the access lists for the broker, if :meth:`write_broker` has made its folder.

        The broker reads them at SIGHUP, and the list of filters when it starts. Return whether there was a folder.
        """
        try:
            found = self.broker.lstat()
        except FileNotFoundError:
            return False
        if not stat.S_ISDIR(found.st_mode):
            raise KeyServiceError(0, "", f"{self.broker} is no folder, or a link to one; remove it")
        if found.st_uid not in (os.geteuid(), self.path.stat().st_uid):
            raise KeyServiceError(
                0,
                "",
                f"{self.broker} belongs to another user, who may have put links there; srup keyex mosquitto mends it",
            )
        servers, revoked = authority.servers(), authority.revoked()
        try:
            write_file(self.broker / "crl.pem", authority.revocation_list(), PUBLIC)
            write_file(self.broker / "acl", access_list(servers, revoked), PUBLIC)
            write_file(self.broker / "acl.servers", access_list(servers, revoked, devices=False), PUBLIC)
            write_file(self.broker / "filters.json", filter_list(authority.devices()), PUBLIC)
        except OSError as error:
            raise _unusable(self.broker, error) from None
        return True

    def write_broker(
        self,
        authority: Authority,
        names: Sequence[str],
        now: float,
        *,
        user: str = "",
        plugin: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Path:
        """Write everything that Mosquitto needs to serve at these host names; return its ``mosquitto.conf``.

        ``user`` is who it runs as when root starts it: ``mosquitto`` unless it is given or does not exist. That user
        owns the folder for the broker's data and may read its key, and nothing more. ``plugin`` is Mosquitto's dynamic
        security plugin (default: where systems have it, if they do). ``options`` are those of
        :func:`~srup.transport.broker_configuration`. ValueError for bad values.
        """
        if not user and os.geteuid() == 0 and _DEFAULT_USER in {entry.pw_name for entry in pwd.getpwall()}:
            user = _DEFAULT_USER
        if plugin is not None and not Path(plugin).is_file():
            raise ValueError(f"{plugin} is no file; mosquitto_dynamic_security.so comes with Mosquitto")
        found = plugin or find_plugin()
        library = Path(found).absolute() if found else ""
        text = broker_configuration(self.broker, user=user, plugin=library, **options)
        try:
            ours = self.path.stat()
            account = account_of(user) if user and os.geteuid() == 0 else None
            uid, gid = (account.pw_uid, account.pw_gid) if account else (ours.st_uid, ours.st_gid)
            take_folder(self.broker, 0o755, ours.st_uid, ours.st_gid)
            take_folder(self.broker / "data", 0o700, uid, gid)
            self._move_sessions()
            shared = (0o640, gid) if account else (0o600, -1)
            self._host_certificate(self.broker / "server.pem", self.broker / "server.key", names, now, *shared)
            write_file(self.broker / "ca.pem", authority.certificates.pem, PUBLIC)
            write_file(self.broker / "mosquitto.conf", text, PUBLIC)
        except OSError as error:
            raise _unusable(self.broker, error) from None
        self.publish(authority)
        return self.broker / "mosquitto.conf"

    def _move_sessions(self) -> None:
        """Keep the sessions of a broker that had its data among its configuration."""
        old, new = self.broker / "mosquitto.db", self.broker / "data" / "mosquitto.db"
        if old.is_file() and not old.is_symlink() and not new.exists():
            old.rename(new)

    @property
    def broker_user(self) -> str:
        """The name of the user that the broker runs as, or the number if it has none. Raises OSError."""
        data = self.broker / "data"
        try:
            return data.owner()
        except LookupError:
            return str(data.stat().st_uid)


def _key_at(path: Path) -> PrivateKey | None:
    try:
        return PrivateKey.load(path) if is_own_file(path) else None
    except InvalidKeyError:
        return None


def _serves(path: Path, key: PrivateKey, certificates: CertificateAuthority, names: Sequence[str], now: float) -> bool:
    if not is_own_file(path):
        return False
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        certificate.verify_directly_issued_by(certificates.certificate)
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    encoding = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    own = certificate.public_key().public_bytes(*encoding) in key.public_key.to_pem()
    named = {str(name.value) for name in alternatives}
    return own and named == set(names) and certificate.not_valid_after_utc.timestamp() - now > _RENEW_BEFORE


def _unusable(path: Path, error: OSError) -> KeyServiceError:
    return KeyServiceError(0, "", complaint(error, path))


def account_of(user: str) -> pwd.struct_passwd:
    """Return the entry of a user of this machine; KeyServiceError if there is none."""
    try:
        return pwd.getpwnam(user)
    except LookupError:
        raise KeyServiceError(0, "", f"this machine has no user {user!a:.80}; --user names the broker's") from None
