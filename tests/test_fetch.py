"""srup.fetch against real servers on loopback: what is downloaded, what is refused, and what is left on disk."""

import base64
import errno
import gzip
import hashlib
import itertools
import logging
import os
import re
import select
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from srup import fetch as fetch_module
from srup.errors import UpdateError
from srup.fetch import Cancellation, FetchPolicy, HttpFetcher, MemoryFetcher
from srup.fetchpolicy import Verdict, encoding, retry_after, verdict
from srup.images import check_digest, file_digest
from srup.printable import why
from srup.urls import Address
from srup.wire import Status

from .certificates import AUTHORITY
from .fleet import full_queue

HTTP, SERVER, FILE, DIGEST = (
    Status.UPDATE_FAIL_HTTP_ERROR,
    Status.UPDATE_FAIL_SERVER,
    Status.UPDATE_FAIL_FILE,
    Status.UPDATE_FAIL_DIGEST,
)
BODY = bytes(range(256)) * 1024
OTHER = BODY[::-1]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


GOOD = sha256(BODY)


# --- servers -----------------------------------------------------------------------------------------------------


class Exchange(BaseHTTPRequestHandler):
    """One request, answered by the site's next reply; the last reply stays."""

    protocol_version = "HTTP/1.1"
    server: "Site"

    def do_GET(self) -> None:
        replies = self.server.replies
        self.server.requests.append((self.path, self.headers))
        (replies.pop(0) if len(replies) > 1 else replies[0])(self)
        self.close_connection = True

    def answer(self, status: int, body: bytes = b"", *, reason: str | None = None, **headers: str) -> None:
        self.send_response(status, reason)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


Reply = Callable[[Exchange], None]


class Site(ThreadingHTTPServer):
    daemon_threads = False  # closing joins them, so no socket outlives its test

    def __init__(self, *replies: Reply) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.replies = list(replies)
        self.requests: list[tuple[str, HTTPMessage]] = []
        self.over = threading.Event()  # what a reply waits for that must never end by itself
        self.scheme = "http"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}/fw.bin"

    @property
    def ranges(self) -> list[str | None]:
        return [headers["Range"] for _, headers in self.requests]

    def handle_error(self, *_: object) -> None:
        pass  # clients hang up on us here; that is the point


def whole(body: bytes = BODY, **headers: str) -> Reply:
    return lambda exchange: exchange.answer(200, body, **headers)


def status(code: int, reason: str | None = None, **headers: str) -> Reply:
    return lambda exchange: exchange.answer(code, reason=reason, **headers)


def cut(after: int, body: bytes = BODY, **headers: str) -> Reply:
    """Promise ``body``, break off after some of it."""
    return lambda exchange: exchange.answer(200, body[:after], Content_Length=str(len(body)), **headers)


def ranged(body: bytes = BODY, etag: str = '"v1"') -> Reply:
    """A server that knows Range and If-Range."""

    def reply(exchange: Exchange) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", exchange.headers.get("Range", ""))
        if not asked or exchange.headers.get("If-Range", etag) != etag:
            exchange.answer(200, body, ETag=etag)
        elif (start := int(asked[1])) >= len(body):
            exchange.answer(416, Content_Range=f"bytes */{len(body)}")
        else:
            content_range = f"bytes {start}-{len(body) - 1}/{len(body)}"
            exchange.answer(206, body[start:], ETag=etag, Content_Range=content_range)

    return reply


def redirect(location: str | None, code: int = 302) -> Reply:
    return status(code, Location=location or "")


def raw(data: bytes) -> Reply:
    def reply(exchange: Exchange) -> None:
        exchange.wfile.write(data)

    return reply


def silence(exchange: Exchange) -> None:
    exchange.server.over.wait()


def forever(exchange: Exchange) -> None:
    """One byte at a time without end, never idle long enough for a timeout."""
    exchange.answer(200, Content_Length="")
    while not exchange.server.over.is_set():
        exchange.wfile.write(b"x")
        exchange.wfile.flush()


@pytest.fixture
def serve() -> Iterator[Callable[..., Site]]:
    sites: list[tuple[Site, threading.Thread]] = []

    def start(*replies: Reply, tls: ssl.SSLContext | None = None) -> Site:
        site = Site(*replies)
        if tls:
            site.socket = tls.wrap_socket(site.socket, server_side=True, do_handshake_on_connect=False)
            site.scheme = "https"
        thread = threading.Thread(target=site.serve_forever, args=(0.01,))
        thread.start()
        sites.append((site, thread))
        return site

    yield start
    for site, thread in sites:
        site.over.set()
        site.shutdown()
        thread.join()
        site.server_close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of ``localhost``, its authority and its key in one file."""
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    path.write_bytes(b"".join(AUTHORITY.issue_host(["localhost"], time.time())))
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "firmware"


@pytest.fixture
def part(folder: Path) -> Path:
    folder.mkdir()
    return folder / f"{GOOD}.part"


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def make(pauses: list[float]) -> Callable[..., HttpFetcher]:
    """A fetcher that takes http and does not really sleep."""

    def make(**policy: object) -> HttpFetcher:
        return HttpFetcher(FetchPolicy(**{"allow_http": True, **policy}), sleep=pauses.append)

    return make


Make = Callable[..., HttpFetcher]
Serve = Callable[..., Site]


def failure(call: Callable[[], object]) -> UpdateError:
    with pytest.raises(UpdateError) as caught:
        call()
    assert str(caught.value)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    return caught.value


def refused(fetcher: fetch_module.Fetcher, url: str, folder: Path, digest: str = GOOD) -> UpdateError:
    error = failure(lambda: fetcher.fetch(url, digest, folder))
    assert not (folder / GOOD).exists()
    return error


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- a download --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digest", [GOOD, GOOD.upper()], ids=["lower", "upper"])
def test_a_download_is_named_by_its_digest(serve: Serve, make: Make, folder: Path, digest: str) -> None:
    site = serve(whole())
    path = make().fetch(site.url, digest, folder / "a" / "b")
    assert path == folder / "a" / "b" / GOOD
    assert path.read_bytes() == BODY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert leftovers(path.parent) == [GOOD]
    assert site.requests[0][1]["Accept-Encoding"] == "identity"
    assert site.ranges == [None]


@pytest.mark.parametrize("body", [b"", b"x", BODY], ids=len)
def test_sizes(serve: Serve, make: Make, folder: Path, body: bytes) -> None:
    assert make().fetch(serve(whole(body)).url, sha256(body), folder).read_bytes() == body


def test_a_body_without_length(serve: Serve, make: Make, folder: Path) -> None:
    site = serve(whole(Content_Length=""))
    assert make().fetch(site.url, GOOD, folder).read_bytes() == BODY


def test_a_chunked_body(serve: Serve, make: Make, folder: Path) -> None:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in (BODY[:7], BODY[7:])) + b"0\r\n\r\n"
    site = serve(lambda exchange: exchange.answer(200, chunks, Content_Length="", Transfer_Encoding="chunked"))
    assert make().fetch(site.url, GOOD, folder).read_bytes() == BODY


def test_the_bytes_are_hashed_as_served(serve: Serve, make: Make, folder: Path) -> None:
    site = serve(whole(Content_Encoding="gzip"))  # it is not: decoding would fail
    assert make().fetch(site.url, GOOD, folder).read_bytes() == BODY


def test_the_query_is_sent_and_the_fragment_is_not(serve: Serve, make: Make, folder: Path) -> None:
    site = serve(whole())
    make().fetch(f"http://{site.host}?a=%20b#c", GOOD, folder)
    assert [path for path, _ in site.requests] == ["/?a=%20b"]


def test_a_right_file_is_returned_without_a_request(serve: Serve, make: Make, folder: Path) -> None:
    site = serve(whole())
    first = make().fetch(site.url, GOOD, folder)
    assert make().fetch(site.url, GOOD, folder) == first
    assert len(site.requests) == 1


@pytest.mark.parametrize("spoil", ["content", "symlink"])
def test_a_file_that_is_not_right_is_replaced(
    serve: Serve, make: Make, folder: Path, tmp_path: Path, spoil: str
) -> None:
    folder.mkdir()
    if spoil == "content":
        (folder / GOOD).write_bytes(OTHER)
    else:
        (tmp_path / "elsewhere").write_bytes(BODY)
        (folder / GOOD).symlink_to(tmp_path / "elsewhere")
    path = make().fetch(serve(whole()).url, GOOD, folder)
    assert path.read_bytes() == BODY
    assert not path.is_symlink()


# --- the digest --------------------------------------------------------------------------------------------------


def test_a_tampered_body_is_refused_and_removed(serve: Serve, make: Make, folder: Path) -> None:
    site = serve(whole(BODY[:-1] + b"!"))
    assert refused(make(), site.url, folder).status == DIGEST
    assert leftovers(folder) == []
    assert len(site.requests) == 1


@pytest.mark.parametrize(
    "digest",
    ["", "../../x", "a" * 63, "a" * 65, "g" * 64, GOOD + "\n", "/" + "a" * 63, "\0" * 64, "٣" * 64, GOOD[:-1] + "é"],
)
def test_a_junk_digest_never_becomes_a_name(serve: Serve, make: Make, folder: Path, digest: str) -> None:
    site = serve(whole())
    assert refused(make(), site.url, folder, digest).status == DIGEST
    assert refused(MemoryFetcher({site.url: BODY}), site.url, folder, digest).status == DIGEST
    assert not folder.exists()
    assert site.requests == []


@given(st.text())
def test_any_text_as_digest(digest: str) -> None:
    if not re.fullmatch("[0-9a-fA-F]{64}", digest):
        assert failure(lambda: check_digest("/nowhere", digest)).status == DIGEST


def test_file_digest_and_check_digest(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(BODY)
    assert file_digest(file) == file_digest(str(file)) == GOOD
    check_digest(file, GOOD.upper())
    assert failure(lambda: check_digest(file, sha256(OTHER))).status == DIGEST
    assert failure(lambda: check_digest(tmp_path / "none", GOOD)).status == FILE
    assert failure(lambda: check_digest(tmp_path, GOOD)).status == FILE


# --- cuts and resuming -------------------------------------------------------------------------------------------


def test_a_cut_is_resumed(serve: Serve, make: Make, folder: Path, pauses: list[float]) -> None:
    site = serve(cut(100_000, ETag='"v1"'), ranged())
    assert make().fetch(site.url, GOOD, folder).read_bytes() == BODY
    assert site.ranges == [None, "bytes=100000-"]
    assert site.requests[1][1]["If-Range"] == '"v1"'
    assert pauses == [0.5]


def test_a_cut_of_a_resumed_answer_is_resumed_with_the_first_validator(serve: Serve, make: Make, folder: Path) -> None:
    def short(exchange: Exchange) -> None:
        exchange.answer(206, BODY[9:20], Content_Length=str(len(BODY) - 9), Content_Range=f"bytes 9-{len(BODY) - 1}/*")

    site = serve(cut(9, ETag='"v1"'), short, ranged())
    assert make().fetch(site.url, GOOD, folder).read_bytes() == BODY
    assert site.ranges == [None, "bytes=9-", "bytes=20-"]
    assert site.requests[2][1]["If-Range"] == '"v1"'


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        ({"ETag": '"v1"', "Last_Modified": "then"}, '"v1"'),
        ({"ETag": 'W/"v1"', "Last_Modified": "then"}, "then"),
        ({"ETag": 'W/"v1"'}, None),
        ({}, None),
    ],
)
def test_if_range_names_a_strong_validator(
    serve: Serve, make: Make, folder: Path, headers: dict[str, str], sent: str | None
) -> None:
    site = serve(cut(9, **headers), whole())
    make().fetch(site.url, GOOD, folder)
    assert site.requests[1][1]["If-Range"] == sent
    assert site.ranges[1] == "bytes=9-"


def test_a_file_that_changed_after_the_cut_is_taken_whole(serve: Serve, make: Make, folder: Path) -> None:
    site = serve(cut(1000, OTHER, ETag='"old"'), ranged(etag='"new"'))
    assert make().fetch(site.url, GOOD, folder).read_bytes() == BODY
    assert len(site.requests) == 2


@pytest.mark.parametrize(
    "content_range",
    [
        "",
        "bytes 999-262143/262144",
        "bytes 1000-262143/262145",
        "bytes 1000-999/262144",
        "bytes 1000-262144/262144",
        "bytes */262144",
        "bytes 1000-262143/" + "9" * 5000,
    ],
)
def test_a_range_that_does_not_fit_starts_again(serve: Serve, make: Make, folder: Path, content_range: str) -> None:
    site = serve(cut(1000), status(206, Content_Range=content_range), ranged())
    assert make().fetch(site.url, GOOD, folder).read_bytes() == BODY
    assert site.ranges == [None, "bytes=1000-", None]


def test_a_range_that_ends_early_is_a_cut(serve: Serve, make: Make, folder: Path) -> None:
    def bit(exchange: Exchange) -> None:
        exchange.answer(206, BODY[9:20], Content_Range=f"bytes 9-19/{len(BODY)}")

    site = serve(cut(9), bit, ranged())
    assert make().fetch(site.url, GOOD, folder).read_bytes() == BODY
    assert site.ranges == [None, "bytes=9-", "bytes=20-"]


def test_cuts_are_bounded_and_what_came_is_kept(serve: Serve, make: Make, folder: Path, pauses: list[float]) -> None:
    site = serve(cut(10))
    assert refused(make(attempts=3), site.url, folder).status == SERVER
    assert len(site.requests) == 3
    assert len(pauses) == 2
    assert (folder / f"{GOOD}.part").read_bytes() == BODY[:10]


def test_a_cut_chunked_body_is_resumed(serve: Serve, make: Make, folder: Path) -> None:
    def reply(exchange: Exchange) -> None:
        exchange.answer(200, b"5\r\n" + BODY[:5] + b"\r\n9\r\n", Content_Length="", Transfer_Encoding="chunked")

    site = serve(reply, ranged())
    assert make().fetch(site.url, GOOD, folder).read_bytes() == BODY
    assert site.ranges == [None, "bytes=5-"]


def test_the_part_of_an_earlier_run_is_resumed(serve: Serve, make: Make, folder: Path, part: Path) -> None:
    part.write_bytes(BODY[:5000])
    part.chmod(0o666)
    site = serve(ranged())
    path = make().fetch(site.url, GOOD, folder)
    assert path.read_bytes() == BODY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert site.ranges == ["bytes=5000-"]
    assert site.requests[0][1]["If-Range"] is None


def test_a_complete_part_needs_no_request(serve: Serve, make: Make, folder: Path, part: Path) -> None:
    part.write_bytes(BODY)
    site = serve(whole())
    assert make().fetch(site.url, GOOD, folder).read_bytes() == BODY
    assert leftovers(folder) == [GOOD]
    assert site.requests == []


@pytest.mark.parametrize("extra", [0, 1], ids=["as long", "longer"])
def test_416_starts_again(serve: Serve, make: Make, folder: Path, part: Path, extra: int) -> None:
    part.write_bytes(OTHER + b"x" * extra)
    site = serve(ranged())
    assert make(attempts=1).fetch(site.url, GOOD, folder).read_bytes() == BODY
    assert site.ranges == [f"bytes={len(BODY) + extra}-", None]


def test_a_stale_part_costs_one_download_from_zero(serve: Serve, make: Make, folder: Path, part: Path) -> None:
    part.write_bytes(OTHER[:5000])
    site = serve(ranged())
    assert make(attempts=1).fetch(site.url, GOOD, folder).read_bytes() == BODY
    assert site.ranges == ["bytes=5000-", None]


def test_a_stale_part_does_not_hide_a_tampered_body(serve: Serve, make: Make, folder: Path, part: Path) -> None:
    part.write_bytes(BODY[:5000])
    site = serve(ranged(OTHER))
    assert refused(make(), site.url, folder).status == DIGEST
    assert site.ranges == ["bytes=5000-", None]
    assert leftovers(folder) == []


def bits(size: int, etag: str = '"v1"') -> Reply:
    """A server that knows ranges, on a link that is cut after ``size`` bytes."""

    def reply(exchange: Exchange) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", exchange.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        headers = {"ETag": etag, "Content_Length": str(len(BODY) - start)}
        if asked:
            headers["Content_Range"] = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
        exchange.answer(206 if asked else 200, BODY[start : start + size], **headers)

    return reply


def test_progress_renews_the_budget(serve: Serve, make: Make, folder: Path, pauses: list[float]) -> None:
    """A link that is cut every 20 kB takes 14 attempts, of which two in a row may be of no use."""
    site = serve(bits(20_000))
    assert make(attempts=2).fetch(site.url, GOOD, folder).read_bytes() == BODY
    assert site.ranges == [None, *(f"bytes={start}-" for start in range(20_000, len(BODY), 20_000))]
    assert set(pauses) == {0.5}


def test_what_was_reached_before_is_no_progress(serve: Serve, make: Make, folder: Path) -> None:
    """A server without ranges begins anew each time: that never ends by itself."""
    site = serve(cut(10), cut(20), cut(15), cut(21), cut(15), cut(21))
    assert refused(make(attempts=3), site.url, folder).status == SERVER
    assert len(site.requests) == 6  # after 21 bytes the failures are counted anew for the last time


def test_a_body_without_a_length_that_was_cut_is_gone_on_with(serve: Serve, make: Make, folder: Path) -> None:
    site = serve(whole(BODY[:1000], Content_Length=""), ranged())
    assert make().fetch(site.url, GOOD, folder).read_bytes() == BODY
    assert site.ranges == [None, "bytes=1000-"]


def test_a_body_without_a_length_that_is_cut_each_time(serve: Serve, make: Make, folder: Path) -> None:
    sizes = [1000, 900, 800, 700]
    site = serve(*(whole(BODY[:size], Content_Length="") for size in sizes))
    error = refused(make(attempts=4), site.url, folder)
    assert (error.status, len(site.requests)) == (SERVER, 4)
    assert "a body without a length ended after 700 bytes" in error.reason


@pytest.mark.parametrize("server", [whole(OTHER, Content_Length=""), ranged(OTHER)], ids=["no length", "length"])
def test_the_same_wrong_content_twice_is_no_cut(serve: Serve, make: Make, folder: Path, server: Reply) -> None:
    site = serve(whole(OTHER, Content_Length=""), server)
    assert refused(make(), site.url, folder).status == DIGEST
    assert leftovers(folder) == []
    assert len(site.requests) <= 3


def test_a_chunked_body_that_ended_is_not_taken_for_a_cut(serve: Serve, make: Make, folder: Path) -> None:
    body = b"5\r\nwrong\r\n0\r\n\r\n"
    site = serve(lambda exchange: exchange.answer(200, body, Content_Length="", Transfer_Encoding="chunked"))
    assert refused(make(), site.url, folder).status == DIGEST
    assert len(site.requests) == 1


def test_an_encoding_that_nobody_asked_for_is_named_and_asked_away(serve: Serve, make: Make, folder: Path) -> None:
    packed = gzip.compress(BODY)
    site = serve(whole(packed, Content_Encoding="gzip"), whole())
    assert make().fetch(site.url, GOOD, folder).read_bytes() == BODY
    assert site.ranges == [None, None]  # nothing is appended to what was encoded
    other = serve(whole(packed, Content_Encoding="gzip"))
    error = refused(make(attempts=3), other.url, folder / "other")
    assert (error.status, len(other.requests)) == (SERVER, 3)
    assert "encoded as gzip, which nobody asked for" in error.reason


# --- statuses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [204, 206, 300, 304, 400, 401, 403, 404, 410, 416, 418])
def test_a_final_status_ends_at_once(serve: Serve, make: Make, folder: Path, code: int, pauses: list[float]) -> None:
    site = serve(status(code))
    error = refused(make(), site.url, folder)
    assert error.status == HTTP
    assert str(code) in error.reason
    assert len(site.requests) == 1
    assert pauses == []
    assert leftovers(folder) == []


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503])
def test_a_passing_status_is_retried_a_bounded_number_of_times(
    serve: Serve, make: Make, folder: Path, code: int, pauses: list[float]
) -> None:
    site = serve(status(code))
    assert refused(make(attempts=4), site.url, folder).status == HTTP
    assert len(site.requests) == 4
    assert pauses == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": " 0 "}, 0),
        ({"Retry-After": "-7"}, 0),
        ({"Retry-After": "soon"}, 0),
        ({"Retry-After": "9" * 5000}, 0),
        ({"Retry-After": "\u0663"}, 0),
        ({}, 0),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:47 GMT", "Date": "Sun, 06 Nov 1994 08:49:37 GMT"}, 10),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT", "Date": "Sun, 06 Nov 1994 08:49:47 GMT"}, 0),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:47 GMT", "Date": "junk"}, 27),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:47 -0000"}, 27),
        ({"Retry-After": "Sun, 06 Nov 99999 08:49:47 GMT"}, 0),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float) -> None:
    assert retry_after(headers, now=784_111_760.0) == seconds


@pytest.mark.parametrize("code", [408, 425, 429, 503])
def test_a_server_that_asks_for_peace_gets_it(
    serve: Serve, make: Make, folder: Path, pauses: list[float], code: int
) -> None:
    site = serve(
        status(code, Retry_After="20"), status(code, Retry_After="86400"), status(code, Retry_After="0"), whole()
    )
    assert make(max_pause=60).fetch(site.url, GOOD, folder).read_bytes() == BODY
    assert pauses == [20.0, 60.0, 2.0]


def test_a_server_that_recovers(serve: Serve, make: Make, folder: Path) -> None:
    site = serve(status(503), status(429), whole())
    assert make().fetch(site.url, GOOD, folder).read_bytes() == BODY


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\xff" * 40,
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 xyz\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 70_000,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    ],
)
def test_a_garbled_answer(serve: Serve, make: Make, folder: Path, data: bytes) -> None:
    site = serve(raw(data))
    assert refused(make(attempts=2), site.url, folder).status == SERVER
    assert len(site.requests) == 2


@pytest.mark.parametrize("length", [b"-1", b"x", b"9" * 5000])
def test_a_length_that_is_no_number_never_passes(serve: Serve, make: Make, folder: Path, length: bytes) -> None:
    site = serve(raw(b"HTTP/1.1 200 OK\r\nContent-Length: %b\r\n\r\nhello" % length))
    assert refused(make(attempts=2), site.url, folder).status in (SERVER, DIGEST)


def test_nobody_listens(make: Make, folder: Path, serve: Serve, pauses: list[float]) -> None:
    site = serve(whole())
    site.shutdown()
    site.socket.close()
    assert refused(make(attempts=3), site.url, folder).status == SERVER
    assert len(pauses) == 2
    assert leftovers(folder) == []


def test_a_read_that_times_out_is_retried(serve: Serve, make: Make, folder: Path) -> None:
    site = serve(silence, whole())
    assert make(timeout=0.05).fetch(site.url, GOOD, folder).read_bytes() == BODY


# --- redirects ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_within_the_host(serve: Serve, make: Make, folder: Path, code: int) -> None:
    site = serve(redirect("../v2/fw?x", code), whole())
    assert make().fetch(site.url, GOOD, folder).read_bytes() == BODY
    assert [path for path, _ in site.requests] == ["/fw.bin", "/v2/fw?x"]


def test_a_redirect_to_another_port_of_the_host(serve: Serve, make: Make, folder: Path) -> None:
    site = serve(redirect(serve(whole()).url))
    assert make().fetch(site.url, GOOD, folder).read_bytes() == BODY


@pytest.mark.parametrize(
    "location",
    [
        None,
        "file:///etc/passwd",
        "file:/etc/passwd",
        "ftp://127.0.0.1/fw",
        "https://127.0.0.1/fw",
        "http://localhost:{port}/fw",
        "//localhost:{port}/fw",
        "http://user:s3cret@127.0.0.1:{port}/fw",
        "http://127.0.0.1:{port}@localhost/fw",
        "http://127.0.0.1:99999/fw",
        "http://[::1",
        "http://[::1]:{port}/",
        "/a b",
        "\t",
    ],
)
def test_a_redirect_that_is_refused(serve: Serve, make: Make, folder: Path, location: str | None) -> None:
    site = serve(whole())
    site.replies = [redirect(location and location.format(port=site.server_port))]
    error = refused(make(), site.url, folder)
    assert error.status == HTTP
    assert "s3cret" not in str(error)
    assert len(site.requests) == 1


def test_a_redirect_to_a_listed_host(serve: Serve, make: Make, folder: Path) -> None:
    site = serve(whole())
    site.replies = [redirect(f"http://LOCALHOST:{site.server_port}/fw"), whole()]
    fetcher = make(allowed_hosts=frozenset({"127.0.0.1", "LocalHost"}))
    assert fetcher.fetch(site.url, GOOD, folder).read_bytes() == BODY


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        ("/caf\u00e9", "/caf%C3%A9"),
        ("http://127.0.0.1:{port}/\u6f22/%41?q=\u00fc", "/%E6%BC%A2/%41?q=%C3%BC"),
    ],
)
def test_a_redirect_to_utf8_that_is_not_escaped(
    serve: Serve, make: Make, folder: Path, location: str, asked: str
) -> None:
    site = serve(whole())
    as_sent = location.format(port=site.server_port).encode().decode("latin-1")  # send_header() writes Latin-1
    site.replies = [redirect(as_sent), whole()]
    assert make().fetch(site.url, GOOD, folder).read_bytes() == BODY
    assert [path for path, _ in site.requests] == ["/fw.bin", asked]


@pytest.mark.parametrize("location", ["http://h\u00f6st/", "/\u6f22", "/caf\u00e9 x", "/\x85\n"])
def test_what_is_escaped_is_the_path_alone(location: str) -> None:
    policy = FetchPolicy(allow_http=True)
    assert failure(lambda: policy.follow(policy.admit("http://host/"), location)).status == HTTP


@pytest.mark.parametrize("most", [0, 3])
def test_a_redirect_loop_ends(serve: Serve, make: Make, folder: Path, most: int) -> None:
    site = serve(redirect("/fw.bin"))
    assert refused(make(max_redirects=most), site.url, folder).status == HTTP
    assert len(site.requests) == most + 1


# --- URLs --------------------------------------------------------------------------------------------------------

WEIRD_URLS = [
    "",
    " ",
    "fw",
    "//host/fw",
    "http:",
    "http://",
    "http:///fw",
    "file:///etc/passwd",
    "ftp://host/fw",
    "gopher://host/",
    "javascript:alert(1)",
    "http://[::1",
    "http://[::1]x/",
    "http://[::g]/",
    "http://[1:2]/",
    "http://[fe80::1%25eth0]/",
    "http://host:0/",
    "http://host:65536/",
    "http://host:" + "9" * 5000 + "/",
    "http://host:-1/",
    "http://host:٣/",
    "http://host name/",
    "http://host/a b",
    "http://host/\0",
    "http://host/\r\nX: y",
    "http://host\\@evil/",
    "http://a..b/",
    "http://host./",
    "http://" + "a" * 64 + "/",
    "http://" + "a." * 127 + "a/",
    "http://%68ost/",
    "http://h\u00f6st/",
    "http://host/\ud800",
    "http://user:s3cret@host/",
    "http://s3cret@host/",
    "http://user:s3/cret@host:x/",
    "http://user:s3?cret@host:x/",
]


@pytest.mark.parametrize("url", WEIRD_URLS)
def test_a_weird_url_is_refused_without_network(make: Make, folder: Path, url: str) -> None:
    with patch("socket.getaddrinfo", side_effect=AssertionError("network")):
        error = refused(make(), url, folder)
    assert error.status == SERVER
    assert not re.search("s3|cret", error.reason)
    assert not folder.exists()


@given(
    st.one_of(
        st.text(),
        st.text().map("http://".__add__),
        st.text().map("https://host".__add__),
        st.text("@:/?#[]\\.%0a \n").map("HTTP://a".__add__),
    )
)
@example("http://host/")
def test_any_text_as_url(tmp_path_factory: pytest.TempPathFactory, url: str) -> None:
    fetcher = HttpFetcher(FetchPolicy(allow_http=True, attempts=1))
    with patch("socket.getaddrinfo", side_effect=OSError("no network")) as network:
        error = refused(fetcher, url, tmp_path_factory.getbasetemp() / "never")
    assert error.status == SERVER
    assert not network.called or url.lower().startswith(("http://", "https://"))


def test_http_is_refused_by_default(serve: Serve, folder: Path) -> None:
    site = serve(whole())
    assert refused(HttpFetcher(), site.url, folder).status == SERVER
    assert site.requests == []


def test_only_listed_hosts_may_serve(serve: Serve, make: Make, folder: Path) -> None:
    site = serve(whole())
    assert refused(make(allowed_hosts=frozenset({"localhost"})), site.url, folder).status == SERVER
    assert refused(make(allowed_hosts=frozenset()), site.url, folder).status == SERVER
    assert site.requests == []


def test_secrets_of_a_query_are_not_told(
    serve: Serve, make: Make, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "srup")
    site = serve(status(503), redirect("/x?s3cret"), cut(5), redirect("ftp://x/?s3cret"))
    error = refused(make(), site.url + "?s3cret", folder)
    told = [record.getMessage() for record in caplog.records if record.name.startswith("srup")]
    assert len(told) == 2
    assert "s3cret" not in " ".join([str(error), *told])


def test_a_strangers_words_are_escaped(serve: Serve, make: Make, folder: Path) -> None:
    error = refused(make(), serve(status(404, "\x1b[31mno\x07")).url, folder)
    assert "\\x1b[31mno\\x07" in error.reason


# --- decisions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://Host", ("https", "host", 443, "/", "")),
        ("HTTP://host:/?q", ("http", "host", 80, "/", "?q")),
        ("https://h-1.x_y:8443/a//b/../c;d?e?f#g?h", ("https", "h-1.x_y", 8443, "/a//b/../c;d", "?e?f")),
        ("https://[2001:DB8:0::1]:1/", ("https", "2001:db8::1", 1, "/", "")),
        ("https://host/user@v1", ("https", "host", 443, "/user@v1", "")),
    ],
)
def test_an_address(url: str, address: tuple[object, ...]) -> None:
    assert FetchPolicy(allow_http=True).admit(url) == address


def test_an_ipv6_address_keeps_its_brackets_in_a_join() -> None:
    policy = FetchPolicy()
    origin = policy.admit("https://[::1]:8443/a/b?s3cret")
    assert str(origin) == "https://[::1]:8443/a/b"
    assert policy.follow(origin, "c") == ("https", "::1", 8443, "/a/c", "")


@pytest.mark.parametrize(
    ("code", "offset", "content_range", "expected"),
    [
        (200, 0, "", Verdict.WHOLE),
        (200, 5, "", Verdict.WHOLE),
        (206, 5, "bytes 5-9/10", Verdict.REST),
        (206, 5, "bytes 5-7/10", Verdict.REST),
        (206, 5, "bytes 5-9/*", Verdict.REST),
        (206, 5, "bytes 4-9/10", Verdict.RESTART),
        (206, 5, "bytes 5-9/11", Verdict.RESTART),
        (206, 5, "bytes 5-9/9", Verdict.RESTART),
        (206, 5, "bytes 5-4/10", Verdict.RESTART),
        (206, 5, "", Verdict.RESTART),
        (206, 0, "bytes 0-9/10", Verdict.REFUSE),
        (416, 5, "bytes */5", Verdict.RESTART),
        (416, 0, "", Verdict.REFUSE),
        (302, 0, "", Verdict.FOLLOW),
        (304, 5, "", Verdict.REFUSE),
        (404, 0, "", Verdict.REFUSE),
        (429, 0, "", Verdict.RETRY),
        (599, 0, "", Verdict.RETRY),
        (600, 0, "", Verdict.REFUSE),
    ],
)
def test_verdict(code: int, offset: int, content_range: str, expected: Verdict) -> None:
    assert verdict(code, {"Content-Range": content_range}, offset, total=10) is expected


@pytest.mark.parametrize(
    ("content", "transfer", "expected"),
    [
        ("", "", ""),
        ("identity", "chunked", ""),
        ("GZip", "chunked", "gzip"),
        ("identity, gzip", "", "gzip"),
        ("", "gzip, chunked", "gzip"),
        ("br", "deflate, chunked", "br, deflate"),
    ],
)
def test_what_was_encoded_on_its_way_counts_as_encoded(content: str, transfer: str, expected: str) -> None:
    assert encoding({"Content-Encoding": content, "Transfer-Encoding": transfer}) == expected


def test_pauses_double_up_to_a_cap() -> None:
    policy = FetchPolicy(first_pause=1)
    assert [policy.pause(n) for n in (1, 2, 3, 6, 10_000)] == [1, 2, 4, 30, 30]


@pytest.mark.parametrize("field", ["max_bytes", "max_seconds", "timeout", "attempts"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_policy_that_makes_no_sense(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        FetchPolicy(**{field: value})


def test_a_timeout_that_no_socket_takes() -> None:
    with pytest.raises(ValueError, match="timeout is at most"):
        FetchPolicy(timeout=float("inf"))


@pytest.mark.parametrize(
    "host",
    [
        "",
        " fw.example",
        "fw.example:443",
        "https://fw.example",
        "fw.example/",
        "fw.example?",
        "fw.example#",
        "*.example",
        "u@fw.example",
        "[fw.example]",
        "fü.example",
        "fw..example",
        "[::1]:443",
        "fe80::1%lo",
    ],
)
def test_an_allowed_host_that_could_never_match_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="is no host"):
        FetchPolicy(allowed_hosts=frozenset({host}))


def test_allowed_hosts_are_no_text() -> None:
    with pytest.raises(TypeError, match="a set of hosts"):
        FetchPolicy(allowed_hosts="fw.example")  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["FW.Example", "2001:DB8:0::1", "[2001:db8::1]", "192.0.2.1"])
def test_an_allowed_host_is_found_however_it_is_spelled(host: str) -> None:
    policy = FetchPolicy(allowed_hosts=frozenset({host}))
    for asked in ("fw.example", "[2001:db8:0:0::1]", "192.0.2.1"):
        (address,) = policy.allowed_hosts or ()
        if Address.parse(f"https://{asked}").host == address:
            assert policy.admit(f"https://{asked}/x").host == address
            break
    else:
        pytest.fail(f"{host} matches nothing")


def test_a_certificate_that_only_the_strict_check_refuses_is_explained() -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed: Missing Authority Key Identifier")
    error.verify_code, error.verify_message = 85, "Missing Authority Key Identifier"
    said = why(error)
    assert "Issue it again with `authorityKeyIdentifier = keyid`" in said
    assert "SSLContext" not in said  # nobody can give one here


# --- caps --------------------------------------------------------------------------------------------------------


def test_a_file_as_large_as_allowed(serve: Serve, make: Make, folder: Path) -> None:
    assert make(max_bytes=len(BODY)).fetch(serve(whole()).url, GOOD, folder).read_bytes() == BODY


def test_a_length_beyond_the_cap_is_refused_before_the_body(serve: Serve, make: Make, folder: Path) -> None:
    def promise(exchange: Exchange) -> None:
        exchange.answer(200, Content_Length=str(len(BODY)))
        exchange.server.over.wait()

    site = serve(promise)
    assert refused(make(max_bytes=len(BODY) - 1), site.url, folder).status == FILE
    assert len(site.requests) == 1
    assert leftovers(folder) == []


def test_a_resumed_file_beyond_the_cap_is_refused(serve: Serve, make: Make, folder: Path, part: Path) -> None:
    part.write_bytes(BODY[:5])
    site = serve(ranged())
    assert refused(make(max_bytes=len(BODY) - 1), site.url, folder).status == FILE
    assert site.ranges == ["bytes=5-"]
    assert leftovers(folder) == []


def test_an_endless_body_is_refused(serve: Serve, make: Make, folder: Path) -> None:
    site = serve(forever)
    assert refused(make(max_bytes=1000), site.url, folder).status == FILE
    assert len(site.requests) == 1
    assert leftovers(folder) == []


def test_a_slow_drip_is_refused(serve: Serve, folder: Path) -> None:
    ticks = itertools.count()
    fetcher = HttpFetcher(FetchPolicy(allow_http=True, max_seconds=50), clock=lambda: next(ticks))
    site = serve(forever)
    assert refused(fetcher, site.url, folder).status == SERVER
    assert (folder / f"{GOOD}.part").stat().st_size > 0


def test_the_time_cap_counts_pauses(serve: Serve, folder: Path) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    policy = FetchPolicy(allow_http=True, max_seconds=45, attempts=1000, first_pause=20)
    site = serve(status(503))
    assert refused(HttpFetcher(policy, clock=lambda: now[0], sleep=sleep), site.url, folder).status == SERVER
    assert now == [45]  # 20, and what was left of 30
    assert len(site.requests) == 2


def drip_header(exchange: Exchange) -> None:
    exchange.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while not exchange.server.over.wait(0.001):
        exchange.wfile.write(b"x")


@pytest.mark.parametrize("reply", [silence, drip_header])
def test_the_time_cap_ends_a_call_that_blocks(serve: Serve, make: Make, folder: Path, reply: Reply) -> None:
    error = refused(make(max_seconds=0.1), serve(reply).url, folder)
    assert error.status == SERVER
    assert "0.1 s" in error.reason


# --- closing -----------------------------------------------------------------------------------------------------


def test_close_ends_a_running_fetch(serve: Serve, make: Make, folder: Path) -> None:
    fetcher = make()

    def reply(exchange: Exchange) -> None:
        exchange.answer(200, BODY[:10], Content_Length="")
        exchange.wfile.flush()
        fetcher.close()
        exchange.server.over.wait()

    error = refused(fetcher, serve(reply).url, folder)
    assert (error.status, error.reason) == (SERVER, "the fetcher is closed")


def test_close_ends_a_handshake_that_stalls(serve: Serve, make: Make, folder: Path) -> None:
    fetcher = make()
    site = serve(whole())

    def never_shakes_hands(request: object, address: object) -> None:
        fetcher.close()
        site.over.wait()

    site.finish_request = never_shakes_hands
    error = refused(fetcher, f"https://{site.host}/", folder)
    assert (error.status, error.reason) == (SERVER, "the fetcher is closed")


def test_close_ends_a_pause(serve: Serve, folder: Path) -> None:
    fetcher = HttpFetcher(FetchPolicy(allow_http=True, first_pause=30))

    def reply(exchange: Exchange) -> None:
        exchange.answer(503)
        exchange.wfile.flush()
        fetcher.close()

    assert refused(fetcher, serve(reply).url, folder).status == SERVER


def test_a_closed_fetcher_asks_nothing(serve: Serve, make: Make, folder: Path) -> None:
    site, fetcher = serve(whole()), make()
    fetcher.close()
    fetcher.close()
    assert refused(fetcher, site.url, folder).status == SERVER
    assert site.requests == []


def test_an_interrupt_passes_and_what_came_is_kept(serve: Serve, folder: Path) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    fetcher = HttpFetcher(FetchPolicy(allow_http=True), sleep=interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetcher.fetch(serve(cut(10)).url, GOOD, folder)
    assert (folder / f"{GOOD}.part").read_bytes() == BODY[:10]


@pytest.mark.parametrize("when", ["before", "while it runs", "in a pause"])
def test_a_fetch_is_cancelled(serve: Serve, folder: Path, when: str) -> None:
    """The fetcher goes on for others."""
    cancellation = Cancellation()
    fetcher = HttpFetcher(FetchPolicy(allow_http=True, first_pause=30))

    def reply(exchange: Exchange) -> None:
        if when == "in a pause":
            exchange.answer(503)
            exchange.wfile.flush()
            cancellation.cancel("not wanted")
        else:
            exchange.answer(200, BODY[:10], Content_Length="")
            exchange.wfile.flush()
            cancellation.cancel("not wanted")
            exchange.server.over.wait()

    if when == "before":
        cancellation.cancel("not wanted")
        cancellation.cancel("the second reason does not count")
    site = serve(reply)
    error = failure(lambda: fetcher.fetch(site.url, GOOD, folder, cancellation))
    assert (error.status, error.reason) == (SERVER, "not wanted")
    assert len(site.requests) == (0 if when == "before" else 1)
    assert fetcher.fetch(serve(whole()).url, GOOD, folder).read_bytes() == BODY


def test_a_connection_that_nobody_takes_is_cancelled(make: Make, folder: Path) -> None:
    """The other side drops what we send; the policy would wait half a minute."""
    cancellation = Cancellation()
    with full_queue() as port, ThreadPoolExecutor(1) as pool:
        url = f"http://127.0.0.1:{port}/"
        running = pool.submit(make(attempts=1).fetch, url, GOOD, folder, cancellation)
        with pytest.raises(TimeoutError):
            running.result(0.3)
        cancellation.cancel("not wanted")
        assert failure(running.result).reason == "not wanted"


def test_memory_heeds_a_cancellation(folder: Path) -> None:
    cancellation = Cancellation()

    def content() -> bytes:
        cancellation.cancel("not wanted")
        return BODY

    fetcher = MemoryFetcher({"fw": content})
    for _ in range(2):
        assert failure(lambda: fetcher.fetch("fw", GOOD, folder, cancellation)).reason == "not wanted"
    assert fetcher.asked == ["fw"]


# --- proxies -----------------------------------------------------------------------------------------------------


class _Hop(BaseHTTPRequestHandler):
    """A proxy: tunnels, and passes plain requests on."""

    server: "ProxyServer"

    def do_CONNECT(self) -> None:
        self._note()
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port))) as there:
            self.send_response(200)
            self.end_headers()
            self.wfile.flush()
            others = {self.connection: there, there: self.connection}
            with suppress(OSError):
                while True:
                    for end in select.select(list(others), [], [])[0]:
                        data = end.recv(65536)
                        if not data:
                            raise OSError("one side has hung up")
                        others[end].sendall(data)
        self.close_connection = True

    def do_GET(self) -> None:
        self._note()
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(self.path) as answer:
            body = answer.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _note(self) -> None:
        self.server.asked.append((self.command, self.path, self.headers["Proxy-Authorization"]))

    def log_message(self, *_: object) -> None:
        pass


class ProxyServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Hop)
        self.asked: list[tuple[str, str, str | None]] = []

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"


@pytest.fixture
def proxy() -> Iterator[ProxyServer]:
    server = ProxyServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_proxy_by_option(serve: Serve, make: Make, folder: Path, proxy: ProxyServer) -> None:
    site = serve(whole())
    fetcher = make(proxy=f"http://us%40er:s3cret@{proxy.host}/")
    assert fetcher.fetch(site.url + "?q", GOOD, folder).read_bytes() == BODY
    authorization = "Basic " + base64.b64encode(b"us@er:s3cret").decode()
    assert proxy.asked == [("GET", f"http://{site.host}/fw.bin?q", authorization)]
    assert site.requests[0][1]["Proxy-Authorization"] is None
    assert site.requests[0][1]["Host"] == site.host


def test_tls_through_a_proxy_ends_at_the_host(
    serve: Serve, tls: ssl.SSLContext, certificate: Path, folder: Path, proxy: ProxyServer
) -> None:
    site = serve(whole(), tls=tls)
    fetcher = HttpFetcher(FetchPolicy(ca_file=certificate, proxy=proxy.host))
    assert fetcher.fetch(f"https://localhost:{site.server_port}/x", GOOD, folder).read_bytes() == BODY
    assert proxy.asked == [("CONNECT", f"localhost:{site.server_port}", None)]
    assert site.requests[0][0] == "/x"


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY"])
@pytest.mark.parametrize("exempt", ["", "127.0.0.1", "*"])
def test_proxies_of_the_environment(
    serve: Serve, make: Make, folder: Path, proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch, name: str, exempt: str
) -> None:
    monkeypatch.setenv(name, f"http://{proxy.host}")
    monkeypatch.setenv("NO_PROXY", exempt)
    site = serve(whole())
    assert make().fetch(site.url, GOOD, folder).read_bytes() == BODY
    assert len(proxy.asked) == (0 if exempt else 1)
    assert make(proxy="").fetch(site.url, GOOD, folder / "2").read_bytes() == BODY  # none at all
    assert len(proxy.asked) == (0 if exempt else 1)


@pytest.mark.parametrize("text", ["socks5://h:1", "http://h:0", "h h", "http://", "http://u:s3cret@", "http://h/path"])
def test_a_proxy_that_makes_no_sense(make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    with pytest.raises(ValueError, match="proxy") as caught:
        FetchPolicy(proxy=text)
    assert "s3cret" not in str(caught.value)
    monkeypatch.setenv("http_proxy", text)
    error = refused(make(), "http://host.example/", folder)
    assert error.status == SERVER
    assert "proxy" in error.reason
    assert "s3cret" not in error.reason


def test_a_proxy_that_is_not_there(serve: Serve, make: Make, folder: Path, proxy: ProxyServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        site = serve(whole())
        error = refused(make(proxy=f"127.0.0.1:{taken.getsockname()[1]}", attempts=2), site.url, folder)
    assert error.status == SERVER
    assert site.requests == []


# --- TLS ---------------------------------------------------------------------------------------------------------


def test_https_with_extra_trust(serve: Serve, tls: ssl.SSLContext, certificate: Path, folder: Path) -> None:
    site = serve(whole(), tls=tls)
    fetcher = HttpFetcher(FetchPolicy(ca_file=certificate))
    assert fetcher.fetch(f"https://localhost:{site.server_port}/", GOOD, folder).read_bytes() == BODY


@pytest.mark.parametrize("case", ["unknown issuer", "another name"])
def test_a_bad_certificate_is_refused_at_once(
    serve: Serve, tls: ssl.SSLContext, certificate: Path, folder: Path, pauses: list[float], case: str
) -> None:
    site = serve(whole(), tls=tls)
    host, trust = ("localhost", None) if case == "unknown issuer" else ("127.0.0.1", certificate)
    fetcher = HttpFetcher(FetchPolicy(ca_file=trust), sleep=pauses.append)
    error = refused(fetcher, f"https://{host}:{site.server_port}/", folder)
    assert error.status == SERVER
    assert "certificate" in error.reason
    assert site.requests == []
    assert pauses == []


def test_tls_to_a_server_that_speaks_none(serve: Serve, make: Make, folder: Path, pauses: list[float]) -> None:
    site = serve(whole())
    assert refused(make(attempts=2), f"https://{site.host}/", folder).status == SERVER
    assert len(pauses) == 1


@pytest.mark.parametrize("content", [None, b"junk"], ids=["missing", "junk"])
def test_trust_that_cannot_be_read(make: Make, folder: Path, tmp_path: Path, content: bytes | None) -> None:
    ca_file = tmp_path / "ca.pem"
    if content is not None:
        ca_file.write_bytes(content)
    assert refused(make(ca_file=ca_file), "https://127.0.0.1:1/", folder).status == FILE


# --- files -------------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made(serve: Serve, make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    site = serve(whole())
    error = failure(lambda: make().fetch(site.url, GOOD, tmp_path / "file" / "folder"))
    assert error.status == FILE
    assert site.requests == []


def test_a_folder_that_is_not_writable(serve: Serve, make: Make, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: object, *_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    site = serve(whole())
    monkeypatch.setattr(os, "open", denied)  # root may write everywhere, so no chmod shows this
    assert refused(make(), site.url, part.parent).status == FILE
    assert site.requests == []


def test_a_full_disk(serve: Serve, make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = 100_000

    def write(fd: int, data: bytes) -> int:
        if os.fstat(fd).st_size >= room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_write(fd, data)

    real_write = os.write
    site = serve(whole())
    monkeypatch.setattr(os, "write", write)
    error = refused(make(), site.url, folder)
    assert error.status == FILE
    assert os.strerror(errno.ENOSPC) in error.reason
    assert leftovers(folder) == []  # it gives the room back
    assert len(site.requests) == 1


def test_short_writes(serve: Serve, make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write
    site = serve(whole())
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, data[:999]))
    assert make().fetch(site.url, GOOD, folder).read_bytes() == BODY


def test_what_does_not_reach_the_disk_is_not_there(
    serve: Serve, make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    assert refused(make(), serve(whole()).url, folder).status == FILE
    assert leftovers(folder) == []


def test_the_file_then_the_folder_reach_the_disk(
    serve: Serve, make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[bool, bool]] = []

    def fsync(fd: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(fd).st_mode), (folder / GOOD).exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    make().fetch(serve(whole()).url, GOOD, folder)
    assert synced == [(False, False), (True, True)]


@pytest.mark.parametrize("kind", ["symlink", "dangling symlink", "hard link", "fifo", "folder"])
def test_a_part_that_is_not_ours_is_not_touched(
    serve: Serve, make: Make, folder: Path, part: Path, tmp_path: Path, kind: str
) -> None:
    victim = tmp_path / "victim"
    if kind != "dangling symlink":
        victim.write_bytes(b"precious")
    match kind:
        case "hard link":
            part.hardlink_to(victim)
        case "fifo":
            os.mkfifo(part)
        case "folder":
            part.mkdir()
        case _:
            part.symlink_to(victim)
    site = serve(whole())
    assert refused(make(), site.url, folder).status == FILE
    assert site.requests == []
    assert (victim.read_bytes() == b"precious") if kind != "dangling symlink" else not victim.exists()


def test_two_fetches_of_one_digest_share_one_download(serve: Serve, make: Make, folder: Path) -> None:
    second_waits = threading.Event()

    def reply(exchange: Exchange) -> None:
        exchange.answer(200, BODY[:10], Content_Length=str(len(BODY)))
        exchange.wfile.flush()
        follower = pool.submit(second.fetch, site.url, GOOD, folder)
        followers.append(follower)
        second_waits.wait()
        exchange.wfile.write(BODY[10:])

    followers = []
    second = HttpFetcher(FetchPolicy(allow_http=True), sleep=lambda _: second_waits.set())
    site = serve(reply)
    with ThreadPoolExecutor(1) as pool:
        path = make().fetch(site.url, GOOD, folder)
        assert followers[0].result() == path
    assert path.read_bytes() == BODY
    assert len(site.requests) == 1
    assert leftovers(folder) == [GOOD]


def test_a_waiting_fetch_takes_over_after_a_failure(serve: Serve, make: Make, folder: Path) -> None:
    second_waits = threading.Event()

    def reply(exchange: Exchange) -> None:
        followers.append(pool.submit(second.fetch, site.url, GOOD, folder))
        second_waits.wait()
        exchange.answer(404)

    followers = []
    second = HttpFetcher(FetchPolicy(allow_http=True), sleep=lambda _: second_waits.set())
    site = serve(reply, whole())
    with ThreadPoolExecutor(1) as pool:
        assert failure(lambda: make().fetch(site.url, GOOD, folder)).status == HTTP
        assert followers[0].result().read_bytes() == BODY
    assert leftovers(folder) == [GOOD]


def test_a_waiting_fetch_heeds_its_time_cap(serve: Serve, make: Make, folder: Path) -> None:
    def reply(exchange: Exchange) -> None:
        late.append(refused(second, site.url, folder))
        exchange.answer(200, BODY)

    late: list[UpdateError] = []
    ticks = itertools.count()
    second = HttpFetcher(FetchPolicy(allow_http=True, max_seconds=20), clock=lambda: next(ticks), sleep=lambda _: None)
    site = serve(reply)
    assert make().fetch(site.url, GOOD, folder).read_bytes() == BODY
    assert [error.status for error in late] == [SERVER]


# --- memory, and no urllib3 --------------------------------------------------------------------------------------


def test_memory_delivers_the_same_files(folder: Path) -> None:
    fetcher = MemoryFetcher({"mem:fw": BODY, "mem:later": lambda: BODY})
    path = fetcher.fetch("mem:fw", GOOD.upper(), folder)
    assert path == folder / GOOD
    assert path.read_bytes() == BODY
    assert fetcher.fetch("mem:later", GOOD, folder) == path
    assert fetcher.asked == ["mem:fw"]
    assert leftovers(folder) == [GOOD]
    path.unlink()
    assert fetcher.fetch("mem:later", GOOD, folder).read_bytes() == BODY


def test_memory_fails_the_same(folder: Path) -> None:
    def crash() -> bytes:
        raise UpdateError(FILE, "a function fails")

    contents = {"wrong": OTHER, "large": BODY + b"x", "down": UpdateError(SERVER, "down"), "crash": crash}
    fetcher = MemoryFetcher(contents, FetchPolicy(max_bytes=len(BODY)))
    found = {url: refused(fetcher, url, folder).status for url in [*contents, "unknown"]}
    assert found == {"wrong": DIGEST, "large": FILE, "down": SERVER, "crash": FILE, "unknown": HTTP}
    assert leftovers(folder) == []


def test_memory_takes_over_a_stale_part(folder: Path, part: Path) -> None:
    part.write_bytes(OTHER[:100])
    assert MemoryFetcher({"fw": BODY}).fetch("fw", GOOD, folder).read_bytes() == BODY


def test_only_downloading_needs_urllib3(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "urllib3", None)
    assert MemoryFetcher({"fw": BODY}).fetch("fw", GOOD, folder).read_bytes() == BODY
    with pytest.raises(ImportError, match=r"pip install 'srup\[mqtt\]'"):
        HttpFetcher()


@pytest.mark.process
def test_importing_does_not_load_urllib3() -> None:
    code = "import sys, srup.fetch; sys.exit('urllib3' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
