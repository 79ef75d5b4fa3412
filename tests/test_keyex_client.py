"""srup.keyex.client and enrolment: what a client believes, and what it keeps in its folder."""

import json
import re
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from srup import Device, KeyRing, KeyServiceError, PrivateKey, Server, TransportError
from srup.agent.enrolment import broker_transport, load_or_enroll
from srup.keyex import Enrolment, KeyService, ServiceFolder, enroll, rotate
from srup.keyex import enrolment as enrolment_module
from srup.keyex.certificates import DAY, CertificateAuthority
from srup.keyex.store import Store
from srup.keys import SCHEMES

from .fleet import WAIT, FirmwareHost, full_queue, key_of
from .keyex_site import BASE, BROKER, DEVICE, OTHER, SERVER, SERVICE, make_site, named, text

__all__ = ["make_site"]


@pytest.fixture
def site(make_site):
    site = make_site()
    site.authority.add(SERVER, key_of(SERVER).public_key, "c2", server=True)
    return site


@pytest.fixture
def url(site):
    with site.serving() as url:
        yield url


def enrolled(site, url, identity=DEVICE, key=None, **options):
    return enroll(url, identity, key or key_of(identity), token=site.authority.invite(identity), **options)


# --- enrolling


@pytest.mark.parametrize("scheme", SCHEMES)
def test_enrolling_gives_everything_and_the_folder_keeps_it(site, url, scheme_keys, tmp_path, scheme):
    made = enrolled(site, url, key=scheme_keys[scheme])
    assert (made.identity, made.broker, made.service, made.server) == (DEVICE, BROKER, SERVICE, SERVER)
    assert made.service_key == key_of(SERVICE, "rsa2048").public_key
    assert made.server_key == key_of(SERVER).public_key
    certificate = x509.load_pem_x509_certificate(made.certificate)
    assert certificate.subject.rfc4514_string() == "CN=d1"
    assert (made.tls_key is made.key) == (not scheme.startswith("mldsa"))
    assert site.authority.key_of(named(DEVICE)) == made.key.public_key

    folder = tmp_path / "a" / "identity"
    made.save(folder)
    again = Enrolment.load(folder)
    assert again.key.public_key == made.key.public_key
    assert again.tls_key.to_pem().startswith(b"-----BEGIN PRIVATE KEY-----")
    for name in ("url", "identity", "type", "broker", "service", "server", "server_key", "certificate", "authority"):
        assert getattr(again, name) == getattr(made, name)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    ssl.create_default_context(cafile=folder / "ca.pem").load_cert_chain(folder / "client.pem")
    assert again.renewed().certificate == made.certificate
    assert "PRIVATE" not in repr(again)


def test_a_token_is_enough_to_know_whom_to_believe_and_a_ca_is_too(site, url):
    made = enrolled(site, url)
    assert made.trust == site.authority.certificates.pem
    part = site.authority.invite(OTHER).partition(".")[0]
    assert enroll(url, OTHER, key_of(OTHER), token=part, ca=made.trust).trust == made.trust


@pytest.mark.parametrize(
    "damage",
    [lambda whole: whole[:-1], lambda whole: whole[:20], lambda whole: whole[:33], lambda whole: f"{whole[:-1]}!"],
)
def test_a_token_that_is_not_whole_is_named_before_anything_is_sent(site, url, damage):
    whole = site.authority.invite(DEVICE)
    damaged = damage(whole)
    why = "in it that no token has" if len(damaged) == 76 else f"it has {len(damaged)} characters, a whole one 76"
    with pytest.raises(KeyServiceError, match=rf"token: is damaged: .*{why}; copy it again"):
        enroll("https://127.0.0.1:1", DEVICE, key_of(DEVICE), token=damaged)
    assert enroll(url, DEVICE, key_of(DEVICE), token=f" {whole[:40]}\n{whole[40:]}\n").identity == DEVICE


def test_a_token_without_the_part_that_says_whom_to_trust(site, url):
    part = site.authority.invite(DEVICE).partition(".")[0]
    with pytest.raises(TransportError, match="no part behind a dot, which says whom to trust: is it whole"):
        enroll(url, DEVICE, key_of(DEVICE), token=part)


def test_the_operator_approves_and_the_same_call_goes_on(site, url):
    arguments = {"ca": site.authority.certificates.pem, "kind": "RSYND"}
    with pytest.raises(KeyServiceError, match=key_of(DEVICE).public_key.fingerprint) as caught:
        enroll(url, DEVICE, key_of(DEVICE), **arguments)
    assert caught.value.status == 403
    site.authority.approve(DEVICE, key_of(DEVICE).public_key.fingerprint)
    assert enroll(url, DEVICE, key_of(DEVICE), **arguments).type == "RSYND"


def test_a_server_is_not_told_to_join_itself(site, url):
    made = enroll(url, SERVER, key_of(SERVER), ca=site.authority.certificates.pem, kind="c2")
    assert made.server is made.server_key is None
    other = enrolled(site, url, server=SERVER)
    assert other.server == SERVER
    with pytest.raises(KeyServiceError) as caught:
        enrolled(site, url, OTHER, server=DEVICE)
    assert caught.value.status == 404


@pytest.mark.parametrize(("told", "meant"), [("broker.example", "mqtts://broker.example"), (BROKER, BROKER)])
def test_a_broker_is_named_by_url_or_host(make_site, told, meant):
    site = make_site(broker=told)
    with site.serving() as url:
        assert enrolled(site, url).broker == meant


def test_a_broker_without_tls_is_refused(make_site):
    site = make_site(broker="mqtt://broker.example")
    with site.serving() as url, pytest.raises(KeyServiceError, match="without TLS"):
        enrolled(site, url)


# --- renewal and rotation


def test_a_certificate_is_due_when_half_its_time_is_over_and_is_renewed(site, url, tmp_path):
    made = enrolled(site, url)
    made.save(tmp_path / "d")
    assert not made.is_due(site.clock.now + 3.4 * DAY)
    assert made.is_due(site.clock.now + 3.6 * DAY)
    site.clock.now += 3.6 * DAY
    renewed = made.renewed()
    assert renewed.expires == made.expires + 3.6 * DAY
    renewed.save(tmp_path / "d")
    assert Enrolment.load(tmp_path / "d").certificate == renewed.certificate


def test_a_revoked_identity_is_not_renewed(site, url):
    made = enrolled(site, url)
    site.authority.revoke(DEVICE)
    with pytest.raises(KeyServiceError, match="revoked"):
        made.renewed()


@pytest.mark.parametrize("scheme", ["ed25519", "rsa2048", "mldsa44"])
def test_a_key_is_changed(site, url, tmp_path, scheme_keys, scheme):
    if scheme not in SCHEMES:
        pytest.skip(f"this installation has no {scheme}")
    folder = tmp_path / "d"
    enrolled(site, url).save(folder)
    new = scheme_keys[scheme]
    changed = rotate(folder, new)
    assert changed.key.public_key == new.public_key
    assert Enrolment.load(folder).key.public_key == new.public_key
    assert not (folder / "next.pem").exists()
    service = changed.key_service()
    assert service.key_of(DEVICE, pinned=key_of(DEVICE).public_key) == new.public_key
    assert rotate(folder).key.public_key == new.public_key  # nothing to finish


class Crash(Exception):
    pass


@pytest.mark.parametrize("place", ["rotate", "access", "save", "unlink"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_a_change_that_was_interrupted_anywhere_is_finished(site, url, tmp_path, monkeypatch, place, late):
    folder = tmp_path / "d"
    enrolled(site, url).save(folder)
    new = PrivateKey.generate("ed25519")
    owner = {"rotate": KeyService, "access": KeyService, "save": Enrolment, "unlink": enrolment_module.Path}[place]
    real = getattr(owner, place)

    def broken(*arguments, **options):
        if late:
            real(*arguments, **options)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(owner, place, broken)
        with pytest.raises(Crash):
            rotate(folder, new)
    assert load_or_enroll(folder).key.public_key == new.public_key
    assert site.authority.key_of(named(DEVICE)) == new.public_key
    assert not (folder / "next.pem").exists()


def test_a_server_that_changed_its_key_is_followed_over_several_steps(site, url, tmp_path):
    made = enrolled(site, url)
    server = enroll(url, SERVER, key_of(SERVER), ca=made.trust, kind="c2")
    server.save(tmp_path / "s")
    latest = None
    for _ in range(3):
        latest = rotate(tmp_path / "s", PrivateKey.generate("ed25519"))
    followed = made.followed()
    assert followed.server_key == latest.key.public_key
    assert followed.followed().server_key == followed.server_key


# --- several at once in one folder


def both(*jobs):
    """Do these at the same time, each on a thread of its own; return what they give."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result(4 * WAIT) for future in [pool.submit(job) for job in jobs]]


def meeting(monkeypatch, owner, name):
    """Let two calls of a method meet, if they can: where a lock keeps one out, the other goes on alone."""
    real, barrier = getattr(owner, name), threading.Barrier(2)

    def together(*arguments, **options):
        with suppress(threading.BrokenBarrierError):
            barrier.wait(1.0)
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, together)


def test_two_first_starts_in_one_folder_have_one_key(site, url, tmp_path, monkeypatch):
    token = site.authority.invite(DEVICE)
    meeting(monkeypatch, PrivateKey, "generate")
    made = both(*2 * [lambda: load_or_enroll(tmp_path / "d", url, DEVICE, token=token, scheme="ed25519")])
    registered = site.authority.key_of(named(DEVICE))
    assert {each.key.public_key for each in (*made, Enrolment.load(tmp_path / "d"))} == {registered}


def test_two_changes_of_a_key_at_once_are_made_one_after_the_other(site, url, tmp_path, monkeypatch):
    enrolled(site, url).save(tmp_path / "d")
    meeting(monkeypatch, KeyService, "rotate")
    both(*(lambda: rotate(tmp_path / "d", PrivateKey.generate("ed25519")) for _ in range(2)))
    assert site.authority.key_of(named(DEVICE)) == Enrolment.load(tmp_path / "d").key.public_key
    assert len(site.authority.rotations(named(DEVICE))) == 2
    assert not (tmp_path / "d" / "next.pem").exists()


def test_a_renewal_does_not_bring_back_a_key_that_was_changed_meanwhile(site, url, tmp_path, monkeypatch):
    enrolled(site, url).save(tmp_path / "d")
    renew = broker_transport(tmp_path / "d", Enrolment.load(tmp_path / "d"))._endpoint.before_connect
    site.clock.now += 4 * DAY
    monkeypatch.setattr("srup.agent.enrolment.time.time", site.clock)
    real, new = Enrolment.renewed, PrivateKey.generate("ed25519")
    changes = []

    def slow(enrolment):
        """Get the new certificate, and give the change time to come before it is written."""
        renewed = real(enrolment)
        changes.append(pool.submit(rotate, tmp_path / "d", new))
        wait(changes, 1.0)
        return renewed

    monkeypatch.setattr(Enrolment, "renewed", slow)
    with ThreadPoolExecutor(1) as pool:
        renew()
        assert changes[0].result(4 * WAIT).key.public_key == new.public_key
    assert site.authority.key_of(named(DEVICE)) == new.public_key
    assert Enrolment.load(tmp_path / "d").key.public_key == new.public_key


# --- folders


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_is_a_path_or_its_text(site, url, tmp_path, kind):
    folder = kind(tmp_path / "d")
    made = enrolled(site, url)
    made.save(folder)
    assert Enrolment.load(folder).identity == DEVICE
    assert rotate(folder).identity == DEVICE
    assert load_or_enroll(folder).identity == DEVICE
    assert broker_transport(folder, made)
    service = kind(tmp_path / "service")
    ServiceFolder.create(service, 1, site.clock, key_of(SERVICE, "rsa2048"))
    ServiceFolder(service).open(clock=site.clock, entropy=bytes).close()
    Store(kind(tmp_path / "service" / "keyex.db")).close()


@pytest.mark.parametrize("name", ["enrolment.json", "client.pem", "ca.pem", "key.pem"])
@pytest.mark.parametrize("content", [None, b"", b"junk", b"{}", b'{"version": 2}', b"[]"])
def test_a_damaged_folder_is_told(site, url, tmp_path, name, content):
    folder = tmp_path / "d"
    enrolled(site, url).save(folder)
    path = folder / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    if name == "ca.pem" and content is not None:
        return  # TLS will tell
    with pytest.raises(KeyServiceError, match=str(folder)):
        Enrolment.load(folder)


def test_a_folder_of_another_identity_is_not_overwritten(site, url, tmp_path):
    enrolled(site, url).save(tmp_path / "d")
    with pytest.raises(KeyServiceError, match="another identity"):
        enrolled(site, url, OTHER).save(tmp_path / "d")
    assert Enrolment.load(tmp_path / "d").identity == DEVICE
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyServiceError, match="file"):
        enrolled(site, url, 0xD3).save(tmp_path / "file" / "d")


# --- devices and servers


def test_a_device_and_a_server_enrol_themselves(site, url, tmp_path):
    token = site.authority.invite(DEVICE)
    device = Device.enroll(tmp_path / "d", url, DEVICE, token=token, scheme="ed25519", firmware=tmp_path / "f")
    assert (device.identity, device.server) == (DEVICE, SERVER)
    assert site.authority.key_of(named(DEVICE)) == device.debug.key.public_key
    again = Device.enroll(tmp_path / "d", firmware=tmp_path / "f")
    assert again.debug.key.public_key == device.debug.key.public_key
    site.authority.invite(0x5F, server=True)
    server = Server.enroll(
        *(tmp_path / "s", url, 0x5F), devices=KeyRing(), token=site.authority.invite(0x5F, server=True), scheme="p256"
    )
    assert server.identity == 0x5F
    assert site.authority.servers() == {SERVER, 0x5F}


def test_a_device_that_waits_for_the_operator_keeps_its_key(site, url, tmp_path):
    ca = tmp_path / "ca.pem"
    ca.write_bytes(site.authority.certificates.pem)
    for _ in range(2):
        with pytest.raises(KeyServiceError, match="waits for the operator"):
            Device.enroll(tmp_path / "d", url, DEVICE, ca_file=ca, scheme="ed25519")
    (candidate,) = site.authority.candidates()
    site.authority.approve(DEVICE, candidate.fingerprint)
    device = Device.enroll(tmp_path / "d", url, DEVICE, ca_file=ca)
    assert device.debug.key.public_key.fingerprint == candidate.fingerprint


def test_a_device_starts_without_the_service_once_it_is_enrolled(site, tmp_path, caplog):
    with site.serving() as url:
        enrolled(site, url).save(tmp_path / "d")
    device = Device.enroll(tmp_path / "d")
    assert device.server == SERVER
    assert "goes on with what it has" in caplog.text


def test_a_mistake_is_named(site, url, tmp_path):
    with pytest.raises(
        KeyServiceError, match=r"none holds no enrolment: srup keyex enroll .* \(a program: give url and identity\)"
    ):
        Device.enroll(tmp_path / "none")
    enrolled(site, url).save(tmp_path / "d")
    with pytest.raises(KeyServiceError, match="holds the enrolment of d1, not of d2"):
        Device.enroll(tmp_path / "d", identity=OTHER)
    with pytest.raises(KeyServiceError, match=r"nowhere\.pem"):
        Device.enroll(tmp_path / "e", url, DEVICE, ca_file=tmp_path / "nowhere.pem", scheme="ed25519")


def test_a_device_needs_a_server_to_join(make_site, tmp_path):
    site = make_site()
    with site.serving() as url:
        token = site.authority.invite(DEVICE)
        for _ in range(2):
            with pytest.raises(KeyServiceError, match="names no server"):
                Device.enroll(tmp_path / "d", url, DEVICE, token=token, scheme="ed25519")
        site.authority.add(SERVER, key_of(SERVER).public_key, "c2", server=True)
        device = Device.enroll(tmp_path / "d")
        assert (device.identity, device.server) == (DEVICE, SERVER)


def test_the_link_renews_the_certificate_before_it_connects(site, url, tmp_path, monkeypatch):
    folder = tmp_path / "d"
    enrolled(site, url).save(folder)
    before = Enrolment.load(folder)
    transport = broker_transport(folder, before)
    transport._endpoint.before_connect()
    assert Enrolment.load(folder).certificate == before.certificate
    site.clock.now += 4 * DAY
    monkeypatch.setattr("srup.agent.enrolment.time.time", site.clock)
    transport._endpoint.before_connect()
    assert Enrolment.load(folder).expires == before.expires + 4 * DAY


def test_a_link_whose_service_is_gone_keeps_the_certificate(site, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "d"
    with site.serving() as url:
        enrolled(site, url).save(folder)
    before = Enrolment.load(folder)
    monkeypatch.setattr("srup.agent.enrolment.time.time", lambda: before.expires)
    broker_transport(folder, before)._endpoint.before_connect()
    assert Enrolment.load(folder).certificate == before.certificate
    assert "is not renewed" in caplog.text


# --- answers that are not to be believed


@contextmanager
def lying(**answers):
    """A service that answers with these, each a status and a body, or ``page(handler)``."""

    def page(answer):
        return answer if callable(answer) else lambda handler: handler.answer(*answer)

    pages = {f"{BASE}/{path}": page(answer) for path, answer in answers.items()}
    with FirmwareHost(pages).running() as host:
        yield KeyService(host.url, allow_http=True)


JUNK = [b"", b"junk", b"[]", b"null", b"{}", b"[" * 100_000, b"\xff", b'{"identity": 5, "key": 5, "broker": 5}']


@pytest.mark.parametrize("body", JUNK)
def test_junk_for_an_answer_is_told(body):
    routes = dict.fromkeys(("status", "validate", "access", f"get_key/{DEVICE:x}"), (200, body))
    with lying(**routes | {"register": (201, body)}) as service:
        for call in (
            service.status,
            lambda: service.register(DEVICE, key_of(DEVICE), "device"),
            lambda: service.validate(DEVICE, key_of(DEVICE), key_of(1).public_key),
            lambda: service.access(DEVICE, key_of(DEVICE), key_of(DEVICE)),
            lambda: service.key_of(DEVICE),
        ):
            with pytest.raises(KeyServiceError, match="not to be believed"):
                call()


def test_an_answer_that_is_cut_is_no_answer():
    """What has arrived of a type would be another type."""

    def cut(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "20")
        handler.end_headers()
        handler.wfile.write(b"device")

    with (
        lying(**{f"get_type/{DEVICE:x}": cut}) as service,
        pytest.raises(TransportError, match="key exchange service at"),
    ):
        service.type_of(DEVICE)


def test_an_answer_without_end_is_cut(monkeypatch):
    with (
        lying(status=(200, b" " * ((1 << 20) + 1))) as service,
        pytest.raises(KeyServiceError, match="too long"),
    ):
        service.status()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": "no\\nthanks\\u001b", "field": "key"}', r"key: no\nthanks\x1b"),
        (b'{"error": "no", "field": ""}', "the key exchange service refuses: no"),
        (b'{"error": 5, "field": "a\\nb"}', r"a\nb: 5"),
        (b"<html>", "answers with HTTP status 403"),
        (b'{"error": {}}', "answers with HTTP status 403"),
    ],
)
def test_a_refusal_is_told_in_printable_words(body, said):
    with lying(status=(403, body)) as service, pytest.raises(KeyServiceError, match=re.escape(said)) as caught:
        service.status()
    assert str(caught.value).isprintable()
    assert caught.value.status == 403


def test_a_redirect_is_not_followed():
    with lying(status=(302, b"")) as service, pytest.raises(KeyServiceError, match="HTTP status 302"):
        service.status()


def test_a_certificate_for_another_key_is_not_taken(site):
    site.authority.add(DEVICE, key_of(DEVICE).public_key)
    certificates = site.authority.certificates
    other = certificates.certify_client(DEVICE, key_of(OTHER).public_key, site.clock(), DAY)
    pem = other.public_bytes(serialization.Encoding.PEM)
    answer = {"certificate": text(pem), "CA_certificate": text(certificates.pem)}
    with (
        lying(access=(200, json.dumps(answer).encode())) as service,
        pytest.raises(KeyServiceError, match="not for our key"),
    ):
        service.access(DEVICE, key_of(DEVICE), key_of(DEVICE))


def test_a_certificate_by_a_namesake_of_the_authority_is_not_taken(site):
    site.authority.add(DEVICE, key_of(DEVICE).public_key)
    real = site.authority.certificates
    (name,) = real.certificate.subject
    namesake = CertificateAuthority.create(name.value, site.clock())
    forged = namesake.certify_client(DEVICE, key_of(DEVICE).public_key, site.clock(), DAY)
    answer = {
        "certificate": text(forged.public_bytes(serialization.Encoding.PEM)),
        "CA_certificate": text(real.pem),
    }
    with (
        lying(access=(200, json.dumps(answer).encode())) as service,
        pytest.raises(KeyServiceError, match="not by the authority that came with it"),
    ):
        service.access(DEVICE, key_of(DEVICE), key_of(DEVICE))


def test_a_service_that_drips_is_cut_off(monkeypatch):
    monkeypatch.setattr("srup.keyex.client._TIMEOUT", 0.05)
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        over = threading.Event()

        def drip():
            connection, _ = listener.accept()
            with connection:
                while not over.wait(0.01):
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        stack.callback(thread.join)
        stack.callback(over.set)
        service = KeyService(f"http://127.0.0.1:{listener.getsockname()[1]}", allow_http=True)
        with pytest.raises(TransportError, match="key exchange service at"):
            service.status()


def test_a_host_of_many_addresses_that_do_not_answer_is_given_up(monkeypatch):
    """The time for the whole counts, however many steps there are."""
    monkeypatch.setattr("srup.keyex.client._TIMEOUT", 0.1)
    with full_queue() as port:
        real = socket.getaddrinfo("127.0.0.1", port, 0, socket.SOCK_STREAM)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: real * 20)
        service = KeyService(f"http://localhost:{port}", allow_http=True)
        with pytest.raises(TransportError, match=r"the answer took longer than 0\.3 s"):
            service.status()


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    for scheme in ("http", "https"):
        with pytest.raises(TransportError, match=f"key exchange service at {scheme}://127.0.0.1:{port}"):
            KeyService(f"{scheme}://127.0.0.1:{port}", allow_http=True).status()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "keyex",
        "ftp://x",
        "https://",
        "https://u:secret@x",
        "https://x:99999",
        "https://x/y",
        "https://x?y",
        "https://ho st",
        " https://x",
        "https://x\n",
        "https://x\ty",
        "https://x?",
        "https://x#",
        "https://x:0",
        "https://x\\y",
        "https://.x",
        "https://" + "a" * 70,
    ],
)
def test_a_url_that_is_none(url):
    with pytest.raises(ValueError, match="url") as caught:
        KeyService(url)
    assert "secret" not in str(caught.value)


def test_a_ca_that_is_none():
    for junk in (b"junk", b"\xff", b""):
        with pytest.raises(ValueError, match="no PEM certificates"):
            KeyService("https://x", ca=junk)
