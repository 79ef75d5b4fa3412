"""Attacks on the key exchange service and on its clients (T14, T15; T18 is in test_keyex_broker.py).

Every test shows three things: the attack is refused, nothing has changed by it, and the same bytes take effect once the
guard is off, so it is the guard that refuses them.
"""

import sqlite3
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from srup import KeyServiceError, TransportError
from srup.keyex import EnrolmentPolicy, KeyService, ServiceFolder, authority, certificates, enroll, forms, store
from srup.keyex.certificates import CertificateAuthority
from srup.keyex.proof import enrolment, rotation, sign

from .certificates import csr_of
from .fleet import WAIT, key_of, wait_until
from .keyex_site import (
    DEVICE,
    OTHER,
    SERVER,
    SERVICE,
    Site,
    calling,
    decoded,
    make_site,
    named,
    text,
)

__all__ = ["make_site"]

ATTACKER = 0xBAD
LOOK_UPS = ("get_key", "get_type", "c2_check", "rotations")
THIEF = key_of(ATTACKER)


@pytest.fixture
def site(make_site):
    """A service with a server, a device, and the attacker, who has an identity and a key of his own."""
    site = make_site()
    site.authority.add(SERVER, key_of(SERVER).public_key, "server", server=True)
    site.authority.add(DEVICE, key_of(DEVICE).public_key)
    site.authority.add(ATTACKER, THIEF.public_key)
    return site


@pytest.fixture
def caller(site):
    with site.serving() as url, calling(url, site.folder.path / "ca.pem") as caller:
        yield caller


def registration(identity, key=THIEF, **more):
    return {"identity": f"{identity:x}", "key": key.public_key.to_pem().decode(), "type": "device"} | more


def request_for(identity, csr, key=THIEF):
    return {"identity": f"{identity:x}", "csr": text(csr), "signature": text(sign(key, csr))}


def name_in(answer):
    return x509.load_pem_x509_certificate(decoded(answer, "certificate")).subject.rfc4514_string()


# --- T14: registration squatting


@pytest.mark.parametrize("victim", [SERVER, DEVICE])
def test_t14_a_registered_identity_is_not_taken_over(site, caller, monkeypatch, victim):
    thief = key_of(0xBAD2)
    with site.unchanged():
        caller.refused(403, "identity", "register", registration(victim, thief))
        caller.refused(403, "identity", "register", registration(victim, thief) | {"identity": f"00{victim:X}"})
        with pytest.raises(KeyServiceError):
            site.authority.invite(victim)
    # The control: a service that looks only whether the key is known, as deployed ones do not even.
    monkeypatch.setattr(authority.Authority, "_check_free", lambda *_: None)
    monkeypatch.setattr(site.authority._store, "registration", lambda _: None)
    monkeypatch.setattr(
        site.authority._store,
        "register",
        lambda new, digest: site.authority._store._do(
            "UPDATE registrations SET key = ? WHERE identity = ?", new.key, f"{new.identity:x}"
        ),
    )
    token = site.authority.invite(victim).partition(".")[0]
    proof = text(sign(thief, enrolment(victim, token)))
    assert caller.post("register", registration(victim, thief, token=token, proof=proof)).status == 201
    monkeypatch.undo()
    assert site.authority.key_of(named(victim)) == thief.public_key


def test_t14_the_services_own_identity_and_key_are_not_taken(site, caller, monkeypatch):
    service_key = key_of(SERVICE, "rsa2048")
    attack = registration(SERVICE, key_of(0xBAD2))
    with site.unchanged():
        caller.refused(403, "identity", "register", attack)
        caller.refused(403, "key", "register", registration(OTHER, service_key))
    monkeypatch.setattr(site.authority, "identity", 1)  # the control: it no longer knows who it is
    caller.refused(403, "identity", "register", attack)
    assert [each.identity for each in site.authority.candidates()] == [SERVICE]


def test_t14_nobody_comes_in_without_token_or_approval(site, caller):
    thief = key_of(0xBAD2)
    attack = registration(OTHER, thief)
    caller.refused(403, "identity", "register", attack)
    assert caller.get(f"get_key/{OTHER:x}").status == 404
    csr = csr_of(thief, f"{OTHER:x}")
    caller.refused(400, "identity", "access", request_for(OTHER, csr, thief))
    caller.refused(400, "identity", "validate", {"identity": f"{OTHER:x}", "signature": text(sign(thief, b"d2"))})
    site.authority.approve(OTHER, thief.public_key.fingerprint)  # the control: all it took was the operator
    assert caller.post("register", attack).status == 201
    assert name_in(caller.post("access", request_for(OTHER, csr, thief))) == "CN=d2"


def test_t14_an_identity_that_has_a_token_out_is_reserved_for_its_holder(site, caller):
    token = site.authority.invite(OTHER, server=True).partition(".")[0]
    owner, thief = key_of(OTHER), key_of(0xBAD2)
    right = registration(OTHER, owner, token=token, proof=text(sign(owner, enrolment(OTHER, token))))
    with site.unchanged():
        caller.refused(403, "token", "register", registration(OTHER, thief))
        guess = "A" * 32
        proof = text(sign(thief, enrolment(OTHER, guess)))
        caller.refused(403, "token", "register", registration(OTHER, thief, token=guess, proof=proof))
        caller.refused(400, "proof", "register", right | {"key": thief.public_key.to_pem().decode()})
        caller.refused(403, "token", "register", registration(ATTACKER - 1, owner, token=token, proof=right["proof"]))
    assert caller.post("register", right).status == 201  # the control


def test_t14_a_key_is_not_registered_by_somebody_else(site, caller, monkeypatch):
    """Who has a token for himself must not lock the key of another out, or pass for its owner."""
    token = site.authority.invite(OTHER).partition(".")[0]
    victim = key_of(0x77)
    attack = registration(OTHER, victim, token=token, proof=text(sign(THIEF, enrolment(OTHER, token))))
    known = registration(OTHER, key_of(DEVICE), token=token, proof=text(b"x"))
    with site.unchanged():
        caller.refused(400, "proof", "register", attack)
        caller.refused(403, "key", "register", known)
    monkeypatch.setattr(authority, "is_signed", lambda *_: True)  # the control
    assert caller.post("register", attack).status == 201


def test_t14_nobody_gets_a_certificate_for_another_name(site, caller, monkeypatch):
    csr = csr_of(THIEF, f"{SERVER:x}")
    attacks = {
        "csr": request_for(ATTACKER, csr),  # my identity, the server's name
        "signature": request_for(SERVER, csr),  # the server's identity, my signature
    }
    with site.unchanged():
        for field, attack in attacks.items():
            caller.refused(400, field, "access", attack)
        caller.refused(400, "csr", "access", request_for(ATTACKER, csr_of(THIEF, f"{ATTACKER:x}", f"{SERVER:x}")))
    # The control: without the look at the name a certificate comes, in which the request has no say even then.
    monkeypatch.setattr(certificates, "_is_name_of", lambda *_: True)
    assert name_in(caller.post("access", attacks["csr"])) == "CN=bad"
    # Without the look at the signature and the key, the thief is the server.
    monkeypatch.setattr(authority, "is_signed", lambda *_: True)
    monkeypatch.setattr(authority, "signing_key", lambda _: b"")
    assert name_in(caller.post("access", attacks["signature"])) == "CN=5e"


def test_t14_the_key_in_the_request_is_the_registered_one(site, caller, monkeypatch):
    """Else the owner of an identity could lend its name to the key of another."""
    csr = csr_of(key_of(DEVICE), f"{ATTACKER:x}")
    with site.unchanged():
        caller.refused(400, "csr", "access", request_for(ATTACKER, csr))
    monkeypatch.setattr(authority, "signing_key", lambda _: b"")
    assert name_in(caller.post("access", request_for(ATTACKER, csr))) == "CN=bad"


def test_t14_a_request_smuggles_nothing_into_the_certificate(site, caller):
    evil = [
        x509.SubjectAlternativeName([x509.DNSName("broker.example"), x509.DNSName("*"), x509.DNSName(f"{SERVER:x}")]),
        x509.BasicConstraints(ca=True, path_length=None),
        x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
    ]
    csr = csr_of(THIEF, f"{ATTACKER:x}", extensions=evil, other_names=[f"{SERVER:x}"])
    assert len(x509.load_pem_x509_csr(csr).extensions) == 3  # the control: the request does ask for them
    answer = caller.post("access", request_for(ATTACKER, csr))
    certificate = x509.load_pem_x509_certificate(decoded(answer, "certificate"))
    assert name_in(answer) == "CN=bad"
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)


@pytest.mark.parametrize("name", ["+", "#", "*", "bad/+", "bad/#", "SRUP/#", "bad\n5e", "", "5e,CN=bad"])
def test_t14_a_wildcard_or_junk_for_a_name_is_refused(site, caller, monkeypatch, name):
    csr = csr_of(THIEF, *([name] if name else []))
    with site.unchanged():
        caller.refused(400, "csr", "access", request_for(ATTACKER, csr))
    monkeypatch.setattr(certificates, "_is_name_of", lambda *_: True)
    caller.post("access", request_for(ATTACKER, csr_of(THIEF, name or "x"))).json()["certificate"]


@pytest.mark.parametrize(("bits", "exponent", "said"), [(1024, 65537, "1024 bits"), (2048, 3, "exponent 3")])
def test_t14_weak_keys_are_refused(site, caller, monkeypatch, bits, exponent, said):
    private = rsa.generate_private_key(exponent, bits)
    pem = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    attack = {"identity": "d2", "key": pem.decode(), "type": "device"}
    with site.unchanged():
        assert said in caller.refused(400, "key", "register", attack)
        signed = rotation(ATTACKER, THIEF.public_key, THIEF.public_key)
        both = {"signature": text(sign(THIEF, signed)), "new_signature": text(b"x")}
        assert said in caller.refused(400, "new_key", "rotate", {"identity": "bad", "new_key": pem.decode()} | both)
    real = forms.PublicKey.from_pem
    monkeypatch.setattr(
        forms.PublicKey, "from_pem", lambda pem: real(pem, minimum_rsa_bits=512, minimum_rsa_exponent=3)
    )
    caller.refused(403, "identity", "register", attack)
    assert [each.identity for each in site.authority.candidates()] == [OTHER]


def test_t14_a_captured_request_gives_nothing_new(site, caller, monkeypatch):
    """Whoever hears it can say it again: he gets what the owner got, no other certificate, and none after the end."""
    csr = csr_of(key_of(DEVICE), f"{DEVICE:x}")
    captured = request_for(DEVICE, csr, key_of(DEVICE))
    first = caller.post("access", captured)
    assert first.status == 200
    with site.unchanged():
        for _ in range(20):
            assert caller.post("access", captured).data == first.data
    site.authority.revoke(DEVICE)
    with site.unchanged():
        caller.refused(400, "identity", "access", captured)
    store = site.authority._store  # the control: what the revocation has ended
    monkeypatch.setattr(store, "registration", lambda _: type(store).registration(store, DEVICE)._replace(revoked=None))
    assert caller.post("access", captured).status == 200


def test_t14_a_token_is_used_once_and_not_after_its_time(site, caller, monkeypatch):
    token = site.authority.invite(OTHER).partition(".")[0]
    owner = key_of(OTHER)
    request = registration(OTHER, owner, token=token, proof=text(sign(owner, enrolment(OTHER, token))))
    site.clock.now += 86400
    with site.unchanged():
        caller.refused(403, "token", "register", request)
    site.clock.now -= 1
    assert caller.post("register", request).status == 201  # the control
    again = registration(OTHER, key_of(9), token=token, proof=text(sign(key_of(9), enrolment(OTHER, token))))
    with site.unchanged():
        caller.refused(403, "identity", "register", again)
        proof = text(sign(key_of(9), enrolment(0xD3, token)))
        caller.refused(403, "token", "register", registration(0xD3, key_of(9), token=token, proof=proof))


# --- T9: what strangers ask for neither waits for the database nor keeps others from it


@contextmanager
def write_locked(site):
    """Another process writes to the database, for as long as it likes."""
    with closing(sqlite3.connect(site.folder.path / "keyex.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def is_held(lock):
    """Whether another thread has it."""
    if lock.acquire(blocking=False):
        lock.release()
        return False
    return True


def test_t9_nothing_that_a_stranger_asks_for_takes_the_write_lock_or_signs(site, caller, monkeypatch):
    known = registration(DEVICE, key_of(DEVICE))
    token = text(bytes(24))
    stranger = key_of(0x99)
    proof = text(sign(stranger, enrolment(OTHER, token)))
    assert caller.get(f"c2_check/{SERVER:x}").status == 200
    monkeypatch.setattr(CertificateAuthority, "revocation_list", lambda *_: pytest.fail("signed for a stranger"))
    monkeypatch.setattr(authority, "sign", lambda *_: pytest.fail("signed for a stranger"))
    site.clock.now += 86400  # the list is not of today any more
    with write_locked(site):
        for path in ("status", "ca", "crl", *(f"{route}/{SERVER:x}" for route in LOOK_UPS)):
            assert caller.get(path).status == 200
        assert caller.post("register", known).status == 201
        caller.refused(403, "token", "register", registration(OTHER, stranger, token=token, proof=proof))
        caller.refused(403, "identity", "register", registration(DEVICE))
        caller.refused(400, "signature", "access", request_for(DEVICE, csr_of(THIEF, "d1")))
        caller.refused(400, "signature", "validate", {"identity": "5e", "signature": text(b"x")})
        rotated = {"identity": "5e", "new_key": known["key"], "signature": text(b"x"), "new_signature": text(b"x")}
        caller.refused(400, "signature", "rotate", rotated)


def test_t9_look_ups_do_not_wait_for_writers(site, caller, monkeypatch):
    """Not even when all threads that may write wait for another process, and more requests wait for them."""
    monkeypatch.setattr(store, "_PATIENCE", 4 * WAIT)
    site.authority._store._db.execute(f"PRAGMA busy_timeout = {int(4000 * WAIT)}")
    csr = csr_of(key_of(DEVICE), f"{DEVICE:x}")
    writing = request_for(DEVICE, csr, key_of(DEVICE))
    with ThreadPoolExecutor(60) as pool:
        with write_locked(site):
            waiting = [pool.submit(caller.post, "access", writing) for _ in range(60)]
            wait_until(lambda: is_held(site.authority._store._lock))
            assert caller.get(f"get_key/{SERVER:x}").status == 200
            assert not any(each.done() for each in waiting)
        assert {each.result(WAIT).status for each in waiting} == {200}


def test_t9_a_stranger_from_one_address_displaces_nobody(site):
    def ask(identity, key, origin):
        with pytest.raises(KeyServiceError, match="waits for the operator"):
            site.authority.register(named(identity), key.public_key, "device", origin=origin)

    owner, elsewhere = key_of(OTHER), key_of(0xD3)
    ask(OTHER, owner, "192.0.2.1")
    ask(0xD3, elsewhere, "192.0.2.2")
    for number in range(20):
        ask(OTHER, key_of(7000 + number), "198.51.100.1")
    waiting = [each.fingerprint for each in site.authority.candidates() if each.identity == OTHER]
    assert len(waiting) == site.authority.policy.max_candidates_each
    assert owner.public_key.fingerprint in waiting
    site.authority.policy = EnrolmentPolicy(max_candidates=20)
    for number in range(30):
        ask(0x1000 + number, key_of(7000 + number), "198.51.100.1")
    waiting = [each.fingerprint for each in site.authority.candidates()]
    assert len(waiting) == 20
    assert {owner.public_key.fingerprint, elsewhere.public_key.fingerprint} <= set(waiting)
    site.authority.approve(OTHER, owner.public_key.fingerprint)


# --- T15: key service impersonation


@contextmanager
def fake_service(tmp_path, **options):
    """The attacker's own service, with keys of his under the names of the genuine ones."""
    fake = Site(tmp_path / "fake", **options)
    fake.authority.add(SERVER, THIEF.public_key, "server", server=True)
    fake.authority.revocation_list()  # what a service does before its first request
    try:
        with fake.serving() as url:
            yield fake, url
    finally:
        fake.authority.close()


def test_t15_a_fake_service_is_not_believed(site, tmp_path):
    token = site.authority.invite(OTHER)
    with fake_service(tmp_path) as (fake, url):
        asked = fake.state()
        with pytest.raises(KeyServiceError, match="not the one that the token names"):
            enroll(url, OTHER, key_of(OTHER), token=token)
        with pytest.raises(TransportError, match="certificate"):
            enroll(url, OTHER, key_of(OTHER), token=token, ca=site.authority.certificates.pem)
        with pytest.raises(TransportError, match="certificate"):
            enroll(url, OTHER, key_of(OTHER), token=token.partition(".")[0])
        with pytest.raises(TransportError, match="certificate"):
            KeyService(url, ca=site.authority.certificates.pem).key_of(SERVER)
        assert fake.state() == asked  # it did not even learn the token
        # The control: whoever lets the fake say whom to believe, believes it.
        fake.authority.add(OTHER, key_of(OTHER).public_key)
        fooled = enroll(url, OTHER, key_of(OTHER), ca=fake.authority.certificates.pem)
        assert fooled.server_key == THIEF.public_key


@contextmanager
def claiming(site, monkeypatch):
    """Let a service answer with any text for its authority; yields a function that sets it."""
    real, said = CertificateAuthority.pem.fget, {}

    def pem(authority):
        return said.get(id(authority)) or real(authority)

    with monkeypatch.context() as patch:
        patch.setattr(CertificateAuthority, "pem", property(pem))
        yield lambda text: said.update({id(site.authority.certificates): text})


def test_t15_beside_the_authority_that_the_token_names_nobody_is_believed(site, tmp_path, monkeypatch):
    """The attacker's answer begins with the genuine certificate, which is public, and goes on with the attacker's."""
    token = site.authority.invite(OTHER)
    genuine = site.authority.certificates.pem
    with fake_service(tmp_path) as (fake, url), claiming(fake, monkeypatch) as claim:
        fake.authority.add(OTHER, key_of(OTHER).public_key)
        own = fake.authority.certificates.pem
        for answer in (genuine + own, genuine.replace(b"\n", b"\r\n") + own, b"hello\n" + genuine + b"\n\n" + own):
            claim(answer)
            with pytest.raises(TransportError, match="certificate"):
                enroll(url, OTHER, key_of(OTHER), token=token)
        for answer in (own + genuine, b"junk", genuine[:100]):
            claim(answer)
            with pytest.raises(KeyServiceError, match="not the one that the token names"):
                enroll(url, OTHER, key_of(OTHER), token=token)
        claim(own)  # the control: whoever trusts the whole answer believes the fake
        fooled = enroll(url, OTHER, key_of(OTHER), ca=genuine + own)
        assert fooled.server_key == THIEF.public_key


def test_t15_who_may_pass_for_the_broker_is_one_certificate(site, tmp_path, monkeypatch):
    """Nothing that comes with it is kept, and a renewal must name the same one."""
    genuine = site.authority.certificates.pem
    stranger = CertificateAuthority.create("stranger", site.clock()).pem
    with site.serving() as url, claiming(site, monkeypatch) as claim:
        claim(genuine + stranger)
        made = enroll(url, ATTACKER, THIEF, ca=genuine)
        assert made.authority == genuine
        assert made.renewed().authority == genuine
        made.save(tmp_path / "folder")
        assert (tmp_path / "folder" / "ca.pem").read_bytes() == genuine
        claim(stranger + genuine)
        with pytest.raises(KeyServiceError, match="authority"):
            made.renewed()


def test_t15_a_certificate_of_the_right_authority_for_another_host_is_not_believed(site):
    with site.serving(names=["keyex.example"]) as url:
        service = KeyService(url, ca=site.authority.certificates.pem)
        with pytest.raises(TransportError, match="127"):
            service.status()
        service._tls.check_hostname = False  # the control
        assert service.status() == SERVICE


def test_t15_a_device_does_not_pass_for_the_service(site, tmp_path, monkeypatch):
    """Its certificate is of the same authority, but for clients."""
    key = key_of(DEVICE, "p256")
    certificate = site.authority.certificates.certify_client(DEVICE, key.public_key, site.clock(), 86400.0)
    cert, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(certificates.tls_pem(key))
    monkeypatch.setattr(ServiceFolder, "https", lambda *_: (cert, private))
    with site.serving() as url:
        service = KeyService(url, ca=site.authority.certificates.pem)
        service._tls.check_hostname = False
        with pytest.raises(TransportError, match="purpose"):
            service.status()
        service._tls.verify_mode = ssl.CERT_NONE  # the control
        assert service.status() == SERVICE


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "http://keyex.example", "http://10.0.0.1"]
)
def test_t15_plain_http_is_refused(url):
    with pytest.raises(ValueError, match="plain http is refused"):
        KeyService(url)
    if "example" in url or "10.0.0.1" in url:
        with pytest.raises(ValueError, match="plain http is refused"):
            KeyService(url, allow_http=True)
    else:
        KeyService(url, allow_http=True)


def test_t15_plain_http_would_be_believed_if_it_were_let(site):
    """The control of the test above: nothing but the scheme tells the fake from the genuine."""
    with site.serving(tls=False) as url:
        assert KeyService(url, allow_http=True).key_of(SERVER) == key_of(SERVER).public_key


def test_t15_a_pinned_key_is_not_exchanged(site):
    """Not even by the service itself: somebody has its database."""
    site.authority.add(OTHER, key_of(OTHER).public_key)
    with site.serving() as url:
        made = enroll(url, OTHER, key_of(OTHER), ca=site.authority.certificates.pem)
        site.authority._store._do(
            "UPDATE registrations SET key = ? WHERE identity = ?", key_of(0x99).public_key.to_pem().decode(), "5e"
        )
        with pytest.raises(KeyServiceError, match="the known one has not signed that"):
            made.followed()
        service = made.key_service()
        assert service.key_of(SERVER) == key_of(0x99).public_key  # the control: who has pinned nothing, believes it


def test_t15_a_rotation_that_the_old_key_did_not_sign_leads_nowhere(site, monkeypatch):
    site.authority.add(OTHER, key_of(OTHER).public_key)
    old, new = key_of(SERVER), key_of(0x99)
    signed = rotation(SERVER, old.public_key, new.public_key)

    def rotate(signer):
        site.authority.rotate(named(SERVER), new.public_key, sign(signer, signed), sign(new, signed))

    with site.unchanged(), pytest.raises(KeyServiceError, match="signature"):
        rotate(THIEF)
    with site.serving() as url:
        made = enroll(url, OTHER, key_of(OTHER), ca=site.authority.certificates.pem)
        with monkeypatch.context() as patch:  # a service that lets it pass
            patch.setattr(authority, "is_signed", lambda *_: True)
            rotate(THIEF)
        with pytest.raises(KeyServiceError, match="the known one has not signed that"):
            made.followed()
        site.authority._store._do("UPDATE rotations SET old_signature = ?", sign(old, signed))
        assert made.followed().server_key == new.public_key  # the control


def test_t15_a_service_without_its_key_is_found_out(site):
    site.authority.add(OTHER, key_of(OTHER).public_key)
    with site.serving() as url:
        service = KeyService(url, ca=site.authority.certificates.pem)
        service.validate(OTHER, key_of(OTHER), key_of(SERVICE, "rsa2048").public_key)  # the control
        with pytest.raises(KeyServiceError, match="does not have the key"):
            service.validate(OTHER, key_of(OTHER), key_of(1, "rsa2048").public_key)
        with pytest.raises(KeyServiceError, match="has not signed the key of server"):
            service.server_key(SERVER, key_of(1, "rsa2048").public_key)


def test_a_request_with_a_hash_that_nobody_should_use_is_no_way_round(site, caller):
    """SHA-1 in the request's own signature proves nothing, and is not needed: the registered key signs it too."""
    csr = csr_of(key_of(SERVICE, "rsa2048"), "bad", algorithm=hashes.SHA512())
    with site.unchanged():
        caller.refused(400, "csr", "access", request_for(ATTACKER, csr))
