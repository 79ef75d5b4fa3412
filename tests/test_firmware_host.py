"""srup firmware serve: the files of a folder, and nothing else, to devices that fetch them."""

import hashlib
import os
import re
import signal
import socket
import ssl
import threading
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from srup import FetchPolicy, UpdateError
from srup.cli.app import app
from srup.fetch import HttpFetcher
from srup.firmwarehost import FirmwareHost
from srup.transport.broker import free_port

from .certificates import AUTHORITY, host_files
from .command import Command
from .fleet import WAIT

CONTENT = os.urandom(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def folder(tmp_path):
    files = tmp_path / "files"
    (files / "v4").mkdir(parents=True)
    (files / "firmware.bin").write_bytes(CONTENT)
    (files / "v4" / "lock.bin").write_bytes(b"lock")
    (files / ".secret").write_bytes(b"secret")
    (tmp_path / "outside").write_bytes(b"secret")
    (files / "link").symlink_to(tmp_path / "outside")
    return files


@pytest.fixture
def serve(folder):
    """Serve the folder in a thread."""
    with ExitStack() as stack:

        def start(**options):
            host = FirmwareHost(folder, "127.0.0.1", 0, **options)
            thread = threading.Thread(target=host.run)
            thread.start()
            stack.callback(thread.join)
            stack.callback(host.end)
            return host

        yield start


def get(url, method="GET", **headers):
    """Ask as somebody who means it: nothing of the path is tidied up on the way."""
    where = urlsplit(url)
    with closing(HTTPConnection(where.hostname, where.port)) as connection:
        path = url.partition(f":{where.port}")[2]
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return SimpleNamespace(status=answer.status, headers=answer.headers, data=answer.read())


def test_a_file_is_served_whole_in_part_and_not_again(serve):
    host = serve()
    whole = get(f"{host.url}/firmware.bin")
    assert (whole.status, whole.data, whole.headers["content-length"]) == (200, CONTENT, str(len(CONTENT)))
    assert whole.headers["accept-ranges"] == "bytes"
    part = get(f"{host.url}/firmware.bin", Range="bytes=1000-1999", If_Range=whole.headers["etag"])
    assert (part.status, part.data) == (206, CONTENT[1000:2000])
    assert part.headers["content-range"] == f"bytes 1000-1999/{len(CONTENT)}"
    other = get(f"{host.url}/firmware.bin", Range="bytes=1000-", If_Range='"another"')
    assert (other.status, other.data) == (200, CONTENT)
    assert get(f"{host.url}/firmware.bin", Range=f"bytes={len(CONTENT)}-").status == 416
    assert get(f"{host.url}/firmware.bin", If_None_Match=whole.headers["etag"]).status == 304
    head = get(f"{host.url}/firmware.bin", "HEAD")
    assert (head.status, head.headers["content-length"], head.data) == (200, str(len(CONTENT)), b"")
    assert get(f"{host.url}/v4/lock.bin").data == b"lock"


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/v4", "/v4/", "/unknown", "/.secret", "/link", "/../outside", "/%2e%2e/outside", "/v4/../../outside"),
        *("//etc/passwd", "/..%2foutside", "/v4/%2e%2e/%2e%2e/outside", "/%00", "/firmware.bin/x", "/" + "a" * 5000),
    ],
)
def test_nothing_else_is_there(serve, path):
    answer = get(f"{serve().url}{path}")
    assert answer.status == 404
    assert b"secret" not in answer.data


def test_files_can_be_read_and_nothing_else(serve):
    host = serve()
    for method in ("POST", "PUT", "DELETE"):
        answer = get(f"{host.url}/firmware.bin", method)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    assert get(f"{host.url}/firmware.bin").data == CONTENT


def test_names_are_told_if_that_was_said(serve):
    answer = get(f"{serve(listing=True).url}/")
    assert answer.status == 200
    assert [line.split() for line in answer.data.decode().splitlines()] == [
        ["3000000", "firmware.bin"],
        ["4", "v4/lock.bin"],
    ]


def test_who_says_nothing_does_not_keep_others_out(serve):
    host = serve()
    where = urlsplit(host.url)
    with ExitStack() as stack:
        for _ in range(300):
            silent = stack.enter_context(socket.create_connection((where.hostname, where.port)))
            silent.send(b"GET /firmware.bin HTTP/1.1\r\n")
        assert get(f"{host.url}/firmware.bin").data == CONTENT


def test_over_tls_a_device_fetches_it_by_the_authority_that_it_knows(serve, tmp_path):
    cert, key = host_files(tmp_path)
    (tmp_path / "ca.pem").write_bytes(AUTHORITY.pem)
    host = serve(cert=cert, cert_key=key)
    fetcher = HttpFetcher(FetchPolicy(ca_file=tmp_path / "ca.pem"))
    assert fetcher.fetch(f"{host.url}/firmware.bin", DIGEST, tmp_path / "images").read_bytes() == CONTENT
    with pytest.raises(UpdateError, match="certificate"):
        HttpFetcher(FetchPolicy(attempts=1)).fetch(f"{host.url}/firmware.bin", DIGEST, tmp_path / "others")
    context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--cert and --cert-key are needed for TLS; or --allow-http, on loopback only"),
        (["--cert", "a.pem"], "--cert and --cert-key go together"),
        (["--allow-http", "--host", "0.0.0.0"], "only for loopback, not for 0.0.0.0"),
        (["--cert", "a.pem", "--cert-key", "a.key"], "do not load"),
        (["missing", "--allow-http"], "missing is no folder"),
        (["--allow-http", "--host", "192.0.2.1", "--cert", "a.pem", "--cert-key", "b"], "do not load"),
    ],
)
def test_mistakes_are_named(folder, monkeypatch, arguments, said):
    monkeypatch.chdir(folder)
    place = [] if "missing" in arguments else ["."]
    done = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "200"}).invoke(app, ["firmware", "serve", *place, *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr


class Link:
    """What lies between a device and the host: it passes on so many bytes, and then calls ``broken``, once."""

    def __init__(self, port, most, broken):
        self._port, self._left, self._broken = port, most, broken
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with suppress(OSError), client, socket.create_connection(("127.0.0.1", self._port)) as host:
                    host.sendall(client.recv(65536))
                    while content := host.recv(65536):
                        self._left -= len(content)
                        if self._left < 0:
                            self._left = float("inf")
                            self._broken()
                            break
                        client.sendall(content)

    def close(self):
        self._listener.close()


@pytest.mark.process
def test_a_download_goes_on_where_it_was_when_the_host_was_killed(folder, tmp_path):
    port = free_port()
    with ExitStack() as stack:

        def start():
            options = ("--allow-http", "--port", port, "--log-format", "text")
            host = stack.enter_context(Command("-v", "firmware", "serve", folder, *options))
            host.heard(f"at http://127.0.0.1:{port}")
            return host

        hosts = [start()]

        def kill():
            hosts[0].end(signal.SIGKILL)
            hosts.append(start())

        link = Link(port, 1_000_000, kill)
        stack.callback(link.close)
        fetcher = HttpFetcher(FetchPolicy(allow_http=True, first_pause=0.0, timeout=WAIT))
        path = fetcher.fetch(f"http://127.0.0.1:{link.port}/firmware.bin", DIGEST, tmp_path / "images")
        assert path.read_bytes() == CONTENT
        line = hosts[1].heard("GET /firmware.bin: 206")
        sent = int(re.search(r"206, (\d+) bytes", line)[1])
        assert 0 < len(CONTENT) - sent < 1_000_000
        assert hosts[1].end() == 0
