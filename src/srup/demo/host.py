"""An HTTPS server on loopback for one firmware file, with a certificate of its own, and able to lie."""

import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

from ..keyex.certificates import CertificateAuthority

__all__ = ["FirmwareHost"]

_ADDRESS: Final = "127.0.0.1"
_PATH: Final = "/firmware.bin"
_CHUNK: Final = 1 << 16


def _make_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a key and a certificate for this host, its authority behind it; return the paths (certificate, key)."""
    authority = CertificateAuthority.create("srup demo", time.time())
    key, chain = authority.issue_host([_ADDRESS], time.time())
    certificate_path, key_path = folder / "host.crt", folder / "host.key"
    certificate_path.write_bytes(chain)
    key_path.touch(mode=0o600)
    key_path.write_bytes(key)
    return certificate_path, key_path


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512
    tls: ssl.SSLContext
    image: bytes
    victims: frozenset[str] = frozenset()
    served = 0

    def get_request(self) -> tuple[Any, Any]:
        sock, address = super().get_request()
        # The handshake is left to the connection's own thread: one slow client must not keep the others waiting.
        return self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is its own affair."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path != _PATH:
            self.send_error(404)
            return
        image = self.server.image
        if parse_qs(url.query).get("device", [""])[0] in self.server.victims:
            middle = len(image) // 2
            image = image[:middle] + bytes([image[middle] ^ 1]) + image[middle + 1 :]
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(image)))
        self.end_headers()
        for start in range(0, len(image), _CHUNK):
            self.wfile.write(image[start : start + _CHUNK])
        self.server.served += 1

    def log_message(self, format: str, *args: object) -> None:
        pass


class FirmwareHost:
    """Serves one image over HTTPS; to the devices in ``tamper_for`` with one bit changed."""

    def __init__(self, image: bytes, folder: Path) -> None:
        self.certificate, key = _make_certificate(folder)
        self._server = _Server((_ADDRESS, 0), _Handler)
        self._server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server.tls.load_cert_chain(self.certificate, key)
        self._server.image = image
        self._thread = threading.Thread(target=self._server.serve_forever, name="firmware-host", daemon=True)

    def url(self, device: int) -> str:
        """Return where a device finds the image; the query only tells the host who asks."""
        return f"https://{_ADDRESS}:{self._server.server_address[1]}{_PATH}?device={device:x}"

    def tamper_for(self, *devices: int) -> None:
        """Change one bit of the image for these devices from now on."""
        self._server.victims = frozenset(f"{device:x}" for device in devices)

    @property
    def served(self) -> int:
        """How many downloads were answered in full."""
        return self._server.served

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
