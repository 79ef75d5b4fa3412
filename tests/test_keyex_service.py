"""srup.keyex.service over real HTTP: the routes as any client may use them, and what strangers send."""

import hashlib
import logging
import random
import socket
import ssl
from base64 import b64decode
from contextlib import ExitStack, suppress

import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from srup.keyex.certificates import request_certificate
from srup.keyex.client import BASE
from srup.keyex.forms import MAX_BODY
from srup.keyex.proof import enrolment, sign
from srup.keyex.service import ROUTES, Connections, Limiter, origin

from .certificates import csr_of
from .fleet import WAIT, key_of, wait_until
from .keyex_site import (
    BROKER,
    DEVICE,
    OTHER,
    SERVER,
    SERVICE,
    bare,
    calling,
    decoded,
    make_site,
    named,
    text,
)

__all__ = ["make_site"]

SERVICE_KEY = key_of(SERVICE, "rsa2048").public_key
OPEN = Limiter(1e9, 1e9)
SPKI = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo


@pytest.fixture
def site(make_site):
    return make_site()


@pytest.fixture
def caller(site):
    with site.serving(limiter=OPEN) as url, calling(url, site.folder.path / "ca.pem") as caller:
        yield caller


class PlainClient:
    """A device that knows the routes and nothing else: none of this project's code and none of its extensions.

    It has an RSA-2048 key, sends it without PEM lines, and signs with PSS and the longest salt.
    """

    def __init__(self, caller, identity):
        self.caller = caller
        self.identity = identity
        self.private = rsa.generate_private_key(65537, 2048)
        self.pem = self.private.public_key().public_bytes(*SPKI)

    def signature(self, signed):
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.MAX_LENGTH)
        return text(self.private.sign(signed, pss, hashes.SHA256()))

    def register(self, kind="device"):
        return self.caller.post("register", {"identity": self.identity, "key": bare(self.pem), "type": kind})

    def validate(self):
        request = {"identity": self.identity, "signature": self.signature(self.identity.encode())}
        return self.caller.post("validate", request)

    def access(self):
        csr = csr_of(self.private, self.identity, other_names=["Example Ltd"])
        return self.caller.post(
            "access", {"identity": self.identity, "csr": text(csr), "signature": self.signature(csr)}
        )


def check_pss(pem, signature, signed):
    key = serialization.load_pem_public_key(pem)
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.AUTO)
    key.verify(signature, signed, pss, hashes.SHA256())


def whole(key):
    """A key from an answer, as a client makes a PEM of it."""
    return f"-----BEGIN PUBLIC KEY-----\n{key}\n-----END PUBLIC KEY-----".encode()


def test_a_client_with_the_routes_alone_from_registration_to_certificate(site, caller):
    server_key = key_of(SERVER, "rsa2048").public_key
    site.authority.add(SERVER, server_key, "c2", server=True)
    client = PlainClient(caller, "51a3b2c4d5e6f708")

    status = caller.get("status")
    assert (status.status, status.json()) == (200, {"active": True, "identity": "5e41ce"})

    answer = client.register()
    assert answer.status == 403
    site.authority.approve(int(client.identity, 16), site.authority.candidates()[0].fingerprint)
    answer = client.register()
    assert answer.status == 201
    assert answer.json() == {"broker": BROKER, "key": bare(SERVICE_KEY.to_pem()), "default_c2": "5e"}
    service_pem = whole(answer.json()["key"])

    answer = client.validate()
    assert answer.status == 200
    assert answer.json()["identity"] == "5e41ce"
    check_pss(service_pem, decoded(answer, "signature"), b"5e41ce")

    answer = client.access()
    assert answer.status == 200
    assert set(answer.json()) == {"certificate", "CA_certificate"}
    certificate = x509.load_pem_x509_certificate(decoded(answer, "certificate"))
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(decoded(answer, "CA_certificate")))
    assert certificate.subject.rfc4514_string() == f"CN={client.identity}"
    assert certificate.public_key() == client.private.public_key()

    answer = caller.get(f"get_key/{client.identity}")
    assert (answer.status, b64decode(answer.data)) == (200, client.pem)
    answer = caller.get(f"get_type/{client.identity}")
    assert (answer.status, answer.data) == (200, b"device")

    answer = caller.get("c2_check/5e")
    assert answer.status == 200
    server_pem = b64decode(caller.get("get_key/5e").data)
    check_pss(service_pem, decoded(answer, "signature"), hashlib.sha256(server_pem).digest())
    assert caller.get(f"c2_check/{client.identity}").status == 404
    for route in ("get_key", "get_type", "c2_check"):
        assert caller.get(f"{route}/777").status == 404


class DeployedClient(PlainClient):
    """A double of the client in the field (docs/protocol/deployed-peers.md, D-30 to D-34).

    It is somebody else at every attempt, wants a certificate for a key that is for TLS alone, and takes what a
    registration gives it for the key of the server.
    """

    def __init__(self, caller):
        super().__init__(caller, f"{random.getrandbits(64):x}")
        self.tls = rsa.generate_private_key(65537, 2048)

    def request(self):
        return csr_of(self.tls, self.identity)

    @staticmethod
    def server_key(answer):
        return serialization.load_pem_public_key(decoded(answer, "key"))


def test_a_deployed_client_cannot_enrol_by_itself(site, caller):
    """What docs/keyex.md says about it; such a device gets files (test_keyex_enrolled.py)."""
    site.authority.add(SERVER, key_of(SERVER, "rsa2048").public_key, "c2", server=True)
    first = DeployedClient(caller)
    assert first.register("LED sign").status == 403
    (candidate,) = site.authority.candidates()
    site.authority.approve(candidate.identity, candidate.fingerprint)
    second = DeployedClient(caller)
    assert second.register().status == 403  # who was approved does not come again
    assert second.identity != first.identity
    answer = first.register()  # if it did:
    assert answer.status == 201
    with pytest.raises(ValueError, match="PEM"):
        DeployedClient.server_key(answer)
    csr = first.request()
    request = {"identity": first.identity, "csr": text(csr), "signature": first.signature(csr)}
    assert caller.refused(400, "csr", "access", request) == "csr: is for another key than the registered one"


def test_a_deployed_server_confirms_itself_with_the_signature_that_the_operator_got(site, caller):
    key = key_of(SERVER, "rsa2048").public_key
    site.authority.add(SERVER, key, "c2", server=True)
    right = {"identity": "5e", "key": bare(key.to_pem()), "signature": text(site.authority.endorse(key))}
    with site.unchanged():
        for path in ("c2", "c2/"):
            assert caller.post(path, right).status == 201
        other = key_of(OTHER, "rsa2048")
        caller.refused(400, "signature", "c2", right | {"signature": text(sign(other, b"x"))})
        caller.refused(400, "key", "c2", right | {"key": bare(other.public_key.to_pem())})
        endorsed = text(site.authority.endorse(other.public_key))
        caller.refused(400, "key", "c2", right | {"key": bare(other.public_key.to_pem()), "signature": endorsed})
        caller.refused(400, "identity", "c2", right | {"identity": "5f"})


@pytest.mark.parametrize("scheme", ["ed25519", "p256", "mldsa44"])
def test_keys_with_two_blocks_travel_whole(site, caller, scheme_keys, scheme):
    if scheme not in scheme_keys:
        pytest.skip(f"this installation has no {scheme}")
    public = scheme_keys[scheme].public_key
    request = {"identity": "d1", "key": public.to_pem().decode(), "type": "device"}
    caller.refused(403, "identity", "register", request)
    site.authority.approve(DEVICE, public.fingerprint)
    assert caller.post("register", request).status == 201
    assert b64decode(caller.get("get_key/d1").data) == public.to_pem()


def test_the_service_is_found_by_its_own_identity(caller):
    assert b64decode(caller.get("get_key/5e41ce").data) == SERVICE_KEY.to_pem()
    assert caller.get("get_type/5e41ce").data == b"KeyEx"


def test_the_extensions_of_this_project(site, caller):
    assert caller.get("ca").data == site.authority.certificates.pem
    crl = x509.load_pem_x509_crl(caller.get("crl").data)
    assert crl.is_signature_valid(site.authority.certificates.certificate.public_key())
    site.authority.add(DEVICE, key_of(DEVICE).public_key)
    assert caller.get("rotations/d1").json() == []
    assert caller.get("rotations/d2").status == 404


def test_every_route_is_there_with_and_without_a_slash_and_takes_one_method(caller):
    for entry in ROUTES:
        path = entry.path.replace("{identity}", "d1").removeprefix("/")
        for slash in ("", "/"):
            ask = caller.get if entry.method == "GET" else lambda path: caller.post(path, {})
            assert ask(path + slash).status in (200, 400, 404)
            wrong = caller.get if entry.method == "POST" else lambda path: caller.post(path, {})
            assert wrong(path + slash).status == 405


def test_what_is_revoked_is_soon_in_the_list_that_is_served(site, monkeypatch):
    monkeypatch.setattr("srup.keyex.service._HOUSEKEEPING", 0.6)
    told = []
    key = key_of(DEVICE)
    site.authority.add(DEVICE, key.public_key)
    csr = request_certificate(DEVICE, key)
    issued = site.authority.access(named(DEVICE), csr, sign(key, csr)).certificate
    with site.serving(housekeeping=lambda: told.append(1)) as url, calling(url, site.folder.path / "ca.pem") as caller:

        def listed():
            return [entry.serial_number for entry in x509.load_pem_x509_crl(caller.get("crl").data)]

        assert listed() == []
        other = site.open()  # the operator's command
        other.revoke(DEVICE)
        other.close()
        wait_until(listed)
        assert listed() == [x509.load_pem_x509_certificate(issued).serial_number]
        assert told


# --- what strangers send


@pytest.mark.parametrize("path", ["register", "validate", "access", "c2", "rotate"])
def test_junk_is_a_400_and_changes_nothing(site, caller, path):
    with site.unchanged():
        for body in (
            b"",
            b"junk",
            b"[]",
            b"{}",
            b"\xff" * 100,
            b"[" * 10_000,
            b'{"identity": 5}',
            b'{"identity":"\\u0000"}',
        ):
            answer = caller.post(path, body)
            assert (answer.status, set(answer.json())) == (400, {"error", "field"})


def test_a_body_that_is_too_long_is_refused_with_and_without_a_length(site, caller):
    with site.unchanged():
        assert caller.post("register", b" " * (MAX_BODY + 1)).status == 413
        pieces = (b" " * 1024 for _ in range(1000))
        with suppress(urllib3.exceptions.HTTPError):  # it may hang up before all is sent
            answer = caller.pool.request("POST", f"{caller.url}{BASE}/register", body=pieces, chunked=True)
            assert answer.status == 413
    assert caller.get("status").status == 200


def test_a_request_that_is_cut_off_leaves_the_service_as_it_was(site, caller):
    host, port = caller.url.removeprefix("https://").split(":")
    context = ssl.create_default_context(cafile=site.folder.path / "ca.pem")
    with site.unchanged():
        for sent in (b"", b"POST", b"POST /KeyEx/register/register HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"):
            with (
                socket.create_connection((host, int(port))) as raw,
                context.wrap_socket(raw, server_hostname=host) as sock,
            ):
                sock.sendall(sent)
        assert caller.get("status").status == 200


@pytest.mark.parametrize("name", ["", "x", "-1", "0x5e", "5e%00", "..%2f..", "%2a", "5e%0a5e", "f" * 17, "f" * 4000])
def test_a_path_that_names_no_identity(site, caller, name):
    with site.unchanged():
        for route in ("get_key", "get_type", "c2_check", "rotations"):
            assert caller.get(f"{route}/{name}").status in (400, 404)


def test_types_that_only_the_operator_gives(site, caller):
    token = site.authority.invite(DEVICE).partition(".")[0]
    key = key_of(DEVICE)
    request = {
        "identity": "d1",
        "key": key.public_key.to_pem().decode(),
        "type": "C2",
        "token": token,
        "proof": text(sign(key, enrolment(DEVICE, token))),
    }
    caller.refused(403, "type", "register", request)
    assert caller.post("register", request | {"type": "RSYND"}).status == 201
    assert caller.get("get_type/d1").data == b"RSYND"


@given(st.binary(max_size=200))
@settings(max_examples=50)
def test_any_bytes_are_answered(open_caller, body):
    for path in ("register", "access"):
        assert open_caller.post(path, body).status == 400


@pytest.fixture(scope="module")
def open_caller(tmp_path_factory):
    from .keyex_site import Site

    site = Site(tmp_path_factory.mktemp("any") / "keyex")
    with site.serving(tls=False) as url, calling(url, None) as caller:
        yield caller
    site.authority.close()


def test_t9_strangers_fill_neither_disk_nor_table_and_members_are_served(make_site):
    site = make_site()
    site.authority.add(DEVICE, key_of(DEVICE).public_key)
    member = {"identity": "d1", "key": key_of(DEVICE).public_key.to_pem().decode(), "type": "device"}

    def ask(caller, number):
        request = member | {"identity": f"{number:x}", "key": key_of(5000 + number % 20).public_key.to_pem().decode()}
        return caller.post("register", request).status

    with site.serving(limiter=Limiter(0.0, 12.0)) as url, calling(url, site.folder.path / "ca.pem") as caller:
        statuses = [ask(caller, 1000 + number) for number in range(40)]
        assert statuses == [403] * 12 + [429] * 28
        assert len(site.authority.candidates()) == 12
        signature = text(sign(key_of(DEVICE), b"d1"))
        assert caller.post("validate", {"identity": "d1", "signature": signature}).status == 200
    with site.serving(limiter=OPEN) as url, calling(url, site.folder.path / "ca.pem") as caller:
        assert {ask(caller, 2000 + number) for number in range(40)} == {403}  # the control: nobody counts
        assert len(site.authority.candidates()) == 52


def test_t9_strangers_from_everywhere_together_do_not_keep_the_database_busy(site, monkeypatch):
    monkeypatch.setattr("srup.keyex.service._FROM_ALL", (0.0, 5.0))
    with (
        site.serving(limiter=OPEN, proxies=["127.0.0.1"]) as url,
        calling(url, site.folder.path / "ca.pem") as caller,
    ):
        statuses = [forwarded(caller, number, f"198.51.100.{number}") for number in range(8)]
    assert statuses == [403] * 5 + [429] * 3


def forwarded(caller, number, client):
    """Ask to be registered, by way of a proxy that names the client; returns the status."""
    request = {"identity": f"{number:x}", "key": key_of(5000 + number).public_key.to_pem().decode(), "type": "device"}
    headers = {"Content-Type": "application/json", "X-Forwarded-For": client}
    return caller.pool.request("POST", f"{caller.url}{BASE}/register", json=request, headers=headers).status


@pytest.mark.parametrize("proxies", [["127.0.0.1"], ["192.0.2.0/24", "127.0.0.0/8"]])
def test_t9_behind_a_trusted_proxy_each_client_has_limits_of_its_own(site, proxies):
    limiter = Limiter(0.0, 1.0)
    with site.serving(limiter=limiter, proxies=proxies) as url, calling(url, site.folder.path / "ca.pem") as caller:
        clients = ["198.51.100.1", "198.51.100.1", "198.51.100.2", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"]
        statuses = [forwarded(caller, number, client) for number, client in enumerate(clients)]
        assert statuses == [403, 429, 403, 403, 429, 403]
        lie = "203.0.113.9, 198.51.100.1"  # the proxy adds the client's address to what the client has sent
        assert forwarded(caller, 9, lie) == 429
    assert {each.origin for each in site.authority.candidates()} == {
        *("198.51.100.1", "198.51.100.2", "2001:db8::/64", "2001:db8:0:1::/64")
    }


def test_t9_nobody_else_says_where_a_request_comes_from(site):
    limiter = Limiter(0.0, 1.0)
    with site.serving(limiter=limiter) as url, calling(url, site.folder.path / "ca.pem") as caller:
        assert [forwarded(caller, number, f"198.51.100.{number}") for number in range(3)] == [403, 429, 429]


def test_t9_connections_that_say_nothing_keep_nobody_out(site):
    """The control is the number: without a bound on them each would have a place."""
    connections = Connections(each=4, most=6)
    with site.serving(connections=connections) as url, ExitStack() as stack:
        host, port = url.removeprefix("https://").split(":")
        silent = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(40)]
        with calling(url, site.folder.path / "ca.pem"):
            for sock in silent[:-4]:
                sock.settimeout(WAIT)
                assert sock.recv(1) == b""
        assert sum(map(len, connections._open.values())) <= 4


def test_connections_are_bounded_for_each_address_and_altogether_and_in_time():
    connections = Connections(["10.0.0.0/8"], each=3, most=5, lifetime=60.0)
    ours, held = {}, []

    def enter(name, host, now):
        ours[name], theirs = socket.socketpair()
        held.append(theirs)
        connections.enter(theirs, host, now)

    def ended():
        gone = set()
        for name, sock in ours.items():
            sock.setblocking(False)
            with suppress(BlockingIOError):
                assert sock.recv(1) == b""
                gone.add(name)
        return gone

    with ExitStack() as stack:
        stack.callback(lambda: [sock.close() for sock in (*ours.values(), *held)])
        enter("genuine", "192.0.2.1", 0.0)
        for number in range(5):
            enter(f"flood {number}", "198.51.100.1", 1.0)
        assert ended() == {"flood 0", "flood 1"}
        enter("proxy", "10.1.2.3", 2.0)
        enter("other", "192.0.2.2", 2.0)
        assert ended() == {"flood 0", "flood 1"}
        enter("one more", "192.0.2.3", 3.0)  # the sixth: the flood's, which are the most, make room
        assert ended() == {"flood 0", "flood 1", "flood 2"}
        held[1 + 3].close()  # one that ended by itself counts no more
        enter("late", "192.0.2.4", 60.5)
        assert ended() == {"flood 0", "flood 1", "flood 2", "flood 3", "genuine"}


@pytest.mark.parametrize(
    ("host", "counts_as"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::5", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:50000", "192.0.2.1"),
        ("[2001:db8::5]", "2001:db8::/64"),
        ("[2001:db8::6]:50000", "2001:db8::/64"),
        ("[::ffff:192.0.2.1]:1", "192.0.2.1"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(host, counts_as):
    assert origin(host) == counts_as


def test_the_limiter_lets_a_burst_through_then_a_rate_and_remembers_so_many_addresses():
    limiter = Limiter(0.5, 2.0, addresses=3)
    assert [limiter.allows("a", 0.0) for _ in range(3)] == [True, True, False]
    assert not limiter.allows("a", 1.0)
    assert limiter.allows("a", 2.0)
    assert limiter.allows("a", 1e9)
    assert [limiter.allows("a", 0.0) for _ in range(2)] == [True, False]  # a clock that goes back gives nothing
    for address in "bcde":
        assert limiter.allows(address, 1e9)
    assert len(limiter._left) == 3


# --- the log


def test_t17_what_strangers_send_is_escaped_in_the_log_and_secrets_are_not_in_it(site, caller, caplog):
    token = site.authority.invite(DEVICE).partition(".")[0]
    key = key_of(DEVICE)
    proof = text(sign(key, enrolment(DEVICE, token)))
    good = {
        "identity": "d1",
        "key": key.public_key.to_pem().decode(),
        "type": "device",
        "token": token,
        "proof": proof,
    }
    evil = "x\n2026-01-01 INFO all is well\x1b[2J"
    with caplog.at_level(logging.DEBUG, "srup"):
        for name in good:
            caller.post("register", good | {name: evil})
        caller.get("get_key/5e%0aINFO%20all%20is%20well%1b")
        caller.refused(403, "identity", "register", good | {"token": None, "identity": "5e41ce"})
        assert caller.post("register", good).status == 201
    assert len(caplog.records) >= 6
    for record in caplog.records:
        message = record.getMessage()
        assert message.isprintable(), message
        assert "all is well" not in message
        assert token not in message
        assert proof not in message
        assert bare(key.public_key.to_pem())[:40] not in message


def test_trouble_of_the_service_itself_is_a_503_that_tells_nothing(site, caller, caplog):
    site.authority._store.close()
    answer = caller.get("get_key/d1")
    assert answer.status == 503
    assert str(site.folder.path) not in answer.data.decode()
    assert answer.json()["field"] == ""


def test_answers_name_no_file_and_no_secret(site, caller):
    said = caller.refused(400, "key", "register", {"identity": "d1", "key": "junk", "type": "device"})
    assert str(site.folder.path) not in said
    assert "BEGIN" not in said
