"""The files of a client's TLS: whom it trusts, and its own certificate and key. They are read for each connection."""

import hashlib
import ssl
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from srup.certificates import explain
from srup.errors import TransportError

__all__ = ["TlsFiles"]


class TlsFiles:
    """``ca`` or the system's authorities; ``cert`` and ``key`` in PEM; ``alpn`` are the protocols to offer."""

    def __init__(
        self, ca: str | Path | None, cert: str | Path | None, key: str | Path | None, alpn: Sequence[str]
    ) -> None:
        if cert is None and key is not None:
            raise TransportError("key_file needs cert_file")
        self._ca, self._cert, self._key = ca, cert, key
        self._alpn = tuple(alpn)
        self._named = [(name, path) for name, path in (("ca_file", ca), ("cert_file", cert), ("key_file", key)) if path]
        self._read = b""  # the digest of what the last context was made of

    @property
    def changed(self) -> bool:
        """Whether the files are others than those of the last context."""
        return self._digest() != self._read

    def context(self) -> ssl.SSLContext:
        """Return a context with the files as they are now; TransportError says what is wrong with them."""
        for name, path in self._named:
            if not Path(path).is_file():
                problem = "is no file" if Path(path).exists() else "does not exist"
                raise TransportError(f"{name} {str(path)!a} {problem}")
        digest = self._digest()  # before: what is written meanwhile counts as a change
        try:
            context = ssl.create_default_context(cafile=self._ca)
        except OSError as error:
            text = f"ca_file {str(self._ca)!a} holds no certificates that can be read: {explain(error)}"
            raise TransportError(text) from error
        if self._cert is not None:
            try:
                context.load_cert_chain(self._cert, self._key, password=lambda: b"")  # or OpenSSL would ask for it
            except OSError as error:
                why = f"they must be PEM, belong together and have no password: {explain(error)}"
                raise TransportError(f"cert_file {str(self._cert)!a} and its key do not load; {why}") from error
        if self._alpn:
            try:
                context.set_alpn_protocols(self._alpn)
            except (ssl.SSLError, UnicodeError) as error:
                raise TransportError(f"alpn {self._alpn!a} cannot be offered: {error}") from error
        self._read = digest
        return context

    def _digest(self) -> bytes:
        digest = hashlib.sha256()
        for name, path in self._named:
            digest.update(name.encode())
            with suppress(OSError):  # context() says so
                digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
        return digest.digest()
