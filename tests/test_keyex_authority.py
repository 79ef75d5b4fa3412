"""srup.keyex.authority: who gets in by which door, what is certified, what is taken back, and what stays forbidden."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise

import psutil
import pytest
from cryptography import x509

from srup import KeyServiceError, PrivateKey
from srup.keyex import EnrolmentPolicy, ServiceFolder
from srup.keyex.certificates import DAY, request_certificate
from srup.keyex.forms import Identity
from srup.keyex.proof import enrolment, is_signed, rotation, sign
from srup.keyex.store import Store
from srup.keys import SCHEMES

from .certificates import csr_of
from .fleet import WAIT, key_of
from .keyex_site import BROKER, DEVICE, OTHER, SERVER, SERVICE, make_site, named

__all__ = ["make_site"]


@pytest.fixture
def site(make_site):
    return make_site()


def secret(token):
    return token.partition(".")[0]


def enter(site, identity=DEVICE, key=None, kind="device", server=False):
    """Register with a token; returns the key."""
    key = key or key_of(identity)
    token = secret(site.authority.invite(identity, server))
    proof = sign(key, enrolment(identity, token))
    site.authority.register(named(identity), key.public_key, kind, token, proof)
    return key


def access(site, key, identity=DEVICE, *, csr=None, signer=None, tls_key=None):
    csr = csr or request_certificate(identity, tls_key or key)
    return site.authority.access(named(identity), csr, sign(signer or key, csr))


def refused(site, status, field, call, *arguments):
    """Call something that is refused and changes nothing; returns what it says."""
    with site.unchanged(), pytest.raises(KeyServiceError) as caught:
        call(*arguments)
    assert (caught.value.status, caught.value.field) == (status, field)
    return caught.value.reason


def serials(site):
    return {entry.serial_number for entry in x509.load_pem_x509_crl(site.authority.revocation_list())}


def serial(pem):
    return x509.load_pem_x509_certificate(pem).serial_number


# --- tokens


def test_a_token_lets_its_identity_in_and_is_used_up(site):
    key = enter(site)
    assert site.authority.key_of(named(DEVICE)) == key.public_key
    assert site.authority.type_of(named(DEVICE)) == "device"
    assert site.authority.invitations() == []


def test_the_answer_says_where_the_broker_is_and_whom_to_join(site):
    enter(site, SERVER, kind="server", server=True)
    told = site.authority.register(named(SERVER), key_of(SERVER).public_key, "server")
    assert told == (BROKER, key_of(SERVICE, "rsa2048").public_key, SERVER)


def test_what_was_registered_is_said_again_and_needs_no_token(site):
    key = enter(site)
    with site.unchanged():
        told = site.authority.register(named(DEVICE), key.public_key, "other type")
    assert told.broker == BROKER


def test_a_token_is_good_once(site):
    token = secret(site.authority.invite(DEVICE))
    proof = sign(key_of(1), enrolment(DEVICE, token))
    site.authority.register(named(DEVICE), key_of(1).public_key, "device", token, proof)
    again = sign(key_of(2), enrolment(DEVICE, token))
    refused(site, 403, "identity", site.authority.register, named(DEVICE), key_of(2).public_key, "d", token, again)
    again = sign(key_of(2), enrolment(OTHER, token))
    refused(site, 403, "token", site.authority.register, named(OTHER), key_of(2).public_key, "d", token, again)


def test_of_many_who_have_one_token_at_once_one_gets_in(site):
    token = secret(site.authority.invite(DEVICE))
    keys = [key_of(6000 + number) for number in range(8)]
    begin = threading.Barrier(len(keys))

    def attempt(key):
        begin.wait(WAIT)
        try:
            site.authority.register(named(DEVICE), key.public_key, "device", token, sign(key, enrolment(DEVICE, token)))
        except KeyServiceError:
            return None
        return key

    with ThreadPoolExecutor(len(keys)) as pool:
        winners = [key for key in pool.map(attempt, keys) if key is not None]
    assert len(winners) == 1
    assert site.authority.key_of(named(DEVICE)) == winners[0].public_key


def test_a_token_expires(site):
    token = secret(site.authority.invite(DEVICE))
    proof = sign(key_of(1), enrolment(DEVICE, token))
    arguments = named(DEVICE), key_of(1).public_key, "device", token, proof
    site.clock.now += DAY
    refused(site, 403, "token", site.authority.register, *arguments)
    site.clock.now -= 1
    site.authority.register(*arguments)


def test_a_token_is_for_one_identity(site):
    token = secret(site.authority.invite(DEVICE))
    site.authority.invite(OTHER)
    proof = sign(key_of(1), enrolment(OTHER, token))
    refused(site, 403, "token", site.authority.register, named(OTHER), key_of(1).public_key, "device", token, proof)


def test_a_second_token_makes_the_first_void_and_refusing_makes_it_void_too(site):
    first, second = (secret(site.authority.invite(DEVICE)) for _ in range(2))
    key = key_of(1)

    def register(token):
        site.authority.register(named(DEVICE), key.public_key, "device", token, sign(key, enrolment(DEVICE, token)))

    refused(site, 403, "token", register, first)
    site.authority.refuse(DEVICE)
    refused(site, 403, "token", register, second)


def test_a_token_needs_the_signature_of_the_key_that_comes_with_it(site):
    token = secret(site.authority.invite(DEVICE))
    key, thief = key_of(1), key_of(2)
    for proof in (
        None,
        b"junk",
        sign(thief, enrolment(DEVICE, token)),
        sign(key, enrolment(OTHER, token)),
        sign(key, enrolment(DEVICE, "other")),
        sign(key, b"d1"),
    ):
        refused(site, 400, "proof", site.authority.register, named(DEVICE), key.public_key, "device", token, proof)


def test_only_the_digest_of_a_token_is_kept_and_it_names_the_authority(site):
    token = site.authority.invite(DEVICE)
    assert all(secret(token) not in line for line in site.state())
    assert len(token) == 32 + 1 + 43
    assert site.authority.invite(OTHER).partition(".")[2] == token.partition(".")[2]


# --- the operator


def test_a_key_that_asks_waits_until_the_operator_approves_its_fingerprint(site):
    key, squatter = key_of(1), key_of(2)
    for each in (squatter, key):
        with pytest.raises(KeyServiceError, match=each.public_key.fingerprint) as caught:
            site.authority.register(named(DEVICE), each.public_key, "RSYND")
        assert (caught.value.status, caught.value.field) == (403, "identity")
    assert len(site.authority.candidates()) == 2
    fingerprint = key.public_key.fingerprint
    refused(site, 400, "fingerprint", site.authority.approve, DEVICE, fingerprint[:31])
    refused(site, 404, "fingerprint", site.authority.approve, DEVICE, "0" * 64)
    refused(site, 404, "fingerprint", site.authority.approve, OTHER, fingerprint)
    site.authority.approve(DEVICE, fingerprint[:32].upper())
    assert site.authority.candidates() == []
    assert site.authority.register(named(DEVICE), key.public_key, "RSYND").broker == BROKER
    assert site.authority.type_of(named(DEVICE)) == "RSYND"
    refused(site, 403, "identity", site.authority.register, named(DEVICE), squatter.public_key, "device")


def test_the_operator_does_not_give_the_services_own_identity_away_either(site):
    public = key_of(1).public_key
    refused(site, 403, "identity", site.authority.invite, SERVICE)
    refused(site, 403, "identity", site.authority.add, SERVICE, public)
    refused(site, 403, "identity", site.authority.approve, SERVICE, public.fingerprint)


def test_a_key_that_is_refused_leaves_the_token(site):
    with pytest.raises(KeyServiceError, match="waits"):
        site.authority.register(named(DEVICE), key_of(1).public_key, "device")
    site.authority.invite(DEVICE)
    with pytest.raises(KeyServiceError, match="first 32 digits"):
        site.authority.refuse(DEVICE, key_of(1).public_key.fingerprint[:12])
    assert len(site.authority.candidates()) == len(site.authority.invitations()) == 1
    assert site.authority.refuse(DEVICE, key_of(1).public_key.fingerprint) == 1
    assert len(site.authority.invitations()) == 1
    assert site.authority.refuse(DEVICE) == 0
    assert site.authority.invitations() == []


def test_who_was_sent_away_may_ask_again(site):
    def ask():
        with pytest.raises(KeyServiceError, match="waits"):
            site.authority.register(named(DEVICE), key_of(1).public_key, "device")

    ask()
    for another in (key_of(2).public_key.fingerprint, "", key_of(1).public_key.fingerprint[:8]):
        with pytest.raises(KeyServiceError, match="fingerprint: "):
            site.authority.refuse(DEVICE, another)
    assert len(site.authority.candidates()) == 1
    assert site.authority.refuse(DEVICE, key_of(1).public_key.fingerprint[:32].upper()) == 1
    ask()
    assert site.authority.refuse(DEVICE) == 1
    with pytest.raises(KeyServiceError, match="no key waits for d1, and no token"):
        site.authority.refuse(DEVICE)
    ask()
    assert len(site.authority.candidates()) == 1


def test_a_key_that_the_operator_adds_is_registered(site):
    site.authority.add(SERVER, key_of(SERVER).public_key, "c2", server=True)
    assert site.authority.servers() == {SERVER}
    key, signature = site.authority.server(named(SERVER))
    assert key == key_of(SERVER).public_key
    site.authority.register_server(named(SERVER), key, signature)


def test_without_approval_only_tokens_let_anybody_in(make_site):
    site = make_site(policy=EnrolmentPolicy(approval=False))
    refused(site, 403, "token", site.authority.register, named(DEVICE), key_of(1).public_key, "device")
    enter(site)


def test_candidates_are_bounded_whoever_asks(make_site):
    site = make_site(policy=EnrolmentPolicy(max_candidates=20, max_candidates_each=3))
    for number in range(60):
        with pytest.raises(KeyServiceError, match="waits"):
            site.authority.register(named(number % 3), key_of(1000 + number).public_key, "device")
    assert len(site.authority.candidates()) == 9
    for number in range(100, 130):
        with pytest.raises(KeyServiceError, match="waits"):
            site.authority.register(named(number), key_of(1000 + number).public_key, "device")
    assert [each.identity for each in site.authority.candidates()] == list(range(110, 130))
    site.clock.now += 7 * DAY
    site.authority.expire()
    assert site.authority.candidates() == []


def test_a_policy_says_what_is_wrong_with_it():
    with pytest.raises(ValueError, match="max_candidates must be positive"):
        EnrolmentPolicy(max_candidates=0)


# --- possession and certificates


@pytest.mark.parametrize("scheme", SCHEMES)
def test_possession_is_shown_by_both_sides(site, scheme_keys, scheme):
    key = enter(site, key=scheme_keys[scheme])
    answer = site.authority.validate(named(DEVICE), sign(key, b"d1"))
    assert is_signed(key_of(SERVICE, "rsa2048").public_key, b"5e41ce", answer)
    site.authority.validate(Identity(DEVICE, "00D1"), sign(key, b"00D1"))
    for wrong in (b"junk", sign(key, b"d2"), sign(key_of(77), b"d1"), answer):
        refused(site, 400, "signature", site.authority.validate, named(DEVICE), wrong)
    refused(site, 400, "identity", site.authority.validate, named(OTHER), sign(key, b"d2"))


@pytest.mark.parametrize("scheme", ["rsa2048", "p256", "ed25519"])
def test_a_certificate_is_for_the_registered_key(site, scheme_keys, scheme):
    key = enter(site, key=scheme_keys[scheme])
    issued = access(site, key)
    certificate = x509.load_pem_x509_certificate(issued.certificate)
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(issued.authority))
    assert certificate.subject.rfc4514_string() == "CN=d1"

    def ask(**options):
        return refused(site, 400, options.pop("field"), lambda: access(site, key, **options))

    thief = key_of(2)
    assert "another key" in ask(field="csr", csr=csr_of(thief, "d1"))
    ask(field="csr", csr=csr_of(key, "d2"))
    ask(field="signature", signer=thief)
    ask(field="identity", identity=OTHER)
    ask(field="csr", csr=b"junk")


@pytest.mark.parametrize("scheme", ["mldsa44", "mldsa65"])
def test_an_identity_whose_scheme_tls_does_not_know_has_a_key_of_its_own_for_tls(site, scheme):
    if scheme not in SCHEMES:
        pytest.skip(f"this installation has no {scheme}")
    key, tls_key = enter(site, key=PrivateKey.generate(scheme)), key_of(9, "p256")
    victim = enter(site, OTHER)
    issued = access(site, key, tls_key=tls_key)
    assert issued == access(site, key, tls_key=tls_key)
    assert serial(access(site, key, tls_key=key_of(10, "p256")).certificate) != serial(issued.certificate)
    csr = csr_of(tls_key, "d1")
    refused(site, 400, "signature", site.authority.access, named(DEVICE), csr, sign(tls_key, csr))
    refused(site, 400, "csr", lambda: access(site, key, csr=csr_of(victim, "d1")))
    refused(site, 400, "csr", lambda: access(site, key, csr=csr_of(tls_key, "d2")))


def test_a_replayed_request_gives_what_it_gave_before(site):
    key = enter(site)
    csr = request_certificate(DEVICE, key)
    signature = sign(key, csr)
    first = site.authority.access(named(DEVICE), csr, signature)
    with site.unchanged():
        for _ in range(50):
            assert site.authority.access(named(DEVICE), csr, signature) == first
    site.clock.now += 3.6 * DAY
    renewed = site.authority.access(named(DEVICE), csr, signature)
    assert serial(renewed.certificate) != serial(first.certificate)
    for _ in range(200):
        site.clock.now += DAY / 4
        site.authority.access(named(DEVICE), csr, signature)
        site.authority.expire()
    kept = site.authority._store.issued()
    assert len(kept) == 16
    assert len([each for each in kept if each.pem]) <= 4
    for _ in range(60):
        site.clock.now += 7 * DAY
        site.authority.access(named(DEVICE), csr, signature)
    assert len(site.authority._store.issued()) == 32


def test_a_certificate_of_a_clock_that_was_ahead_is_not_given_again(site):
    """Nobody could use it until that day."""
    key = enter(site)
    site.clock.now += 30 * DAY
    ahead = access(site, key).certificate
    site.clock.now -= 30 * DAY
    present = access(site, key).certificate
    assert serial(present) != serial(ahead)
    assert access(site, key).certificate == present
    site.clock.now -= 60.0  # a little is nothing: certificates are good from before they are issued
    assert access(site, key).certificate == present
    site.authority.revoke(DEVICE)
    assert serials(site) == {serial(ahead), serial(present)}


def test_certificates_of_one_identity_are_bounded(site):
    if "mldsa44" not in SCHEMES:
        pytest.skip("this installation has no mldsa44")
    key = enter(site, key=PrivateKey.generate("mldsa44"))
    for number in range(16):
        access(site, key, tls_key=key_of(2000 + number))
    assert "too many" in refused(site, 400, "csr", lambda: access(site, key, tls_key=key_of(2017)))


# --- revocation


def test_a_revoked_identity_is_gone_for_ever(site):
    key = enter(site)
    certificate = access(site, key).certificate
    assert serials(site) == set()
    site.authority.revoke(DEVICE)
    assert serials(site) == {serial(certificate)}
    assert site.authority.revoked() == {DEVICE}
    refused(site, 400, "identity", lambda: access(site, key))
    refused(site, 400, "identity", site.authority.validate, named(DEVICE), sign(key, b"d1"))
    for answer in (site.authority.key_of, site.authority.type_of, site.authority.server, site.authority.rotations):
        refused(site, 404, "identity", answer, named(DEVICE))
    for each in (key, key_of(2)):
        refused(site, 403, "identity", site.authority.register, named(DEVICE), each.public_key, "device")
    refused(site, 403, "identity", site.authority.invite, DEVICE)
    refused(site, 403, "identity", site.authority.add, DEVICE, key_of(2).public_key)
    refused(site, 403, "key", site.authority.add, OTHER, key.public_key)
    with site.unchanged():
        site.authority.revoke(DEVICE)
    refused(site, 404, "identity", site.authority.revoke, OTHER)


def test_t18_what_is_revoked_stays_so_although_the_clock_goes_ahead_and_back(site):
    """A clock that is set wrongly for an hour must not make a certificate good again that the list had."""
    key = enter(site)
    before = access(site, key).certificate
    site.authority.revoke(DEVICE)
    for days in (30, -30):
        site.clock.now += days * DAY
        enter(site, 1000 + days)
        access(site, key_of(1000 + days), identity=1000 + days)
        site.authority.expire()
        assert serials(site) == {serial(before)}


@pytest.mark.parametrize("times", [1, 15])
def test_t18_what_was_issued_before_the_clock_went_ahead_and_back_can_be_revoked(site, times):
    """Its owner renewed meanwhile, or not."""
    key = enter(site)
    before = access(site, key).certificate
    for _ in range(times):
        site.clock.now += 8 * DAY
        access(site, key)
    site.authority.expire()
    site.clock.now -= 8 * DAY * times
    site.authority.revoke(DEVICE)
    assert serial(before) in serials(site)


def test_the_revocation_list_is_made_again_when_it_changes_and_every_day(site):
    def number():
        crl = x509.load_pem_x509_crl(site.authority.revocation_list())
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number

    key = enter(site)
    access(site, key)
    assert number() == 1
    with site.unchanged():
        assert number() == 1
    site.authority.revoke(DEVICE)
    assert number() == 2
    site.clock.now += DAY
    assert number() == 3


# --- rotation


def rotated(site, old, new, identity=DEVICE):
    signed = rotation(identity, old.public_key, new.public_key)
    site.authority.rotate(named(identity), new.public_key, sign(old, signed), sign(new, signed))


def test_a_key_is_changed_by_the_signatures_of_both(site):
    old, new = enter(site), key_of(2)
    before = access(site, old).certificate
    rotated(site, old, new)
    assert site.authority.key_of(named(DEVICE)) == new.public_key
    assert serials(site) == {serial(before)}
    refused(site, 400, "signature", lambda: access(site, old))
    after = access(site, new).certificate
    assert serials(site) == {serial(before)}
    assert serial(after) not in serials(site)
    with site.unchanged():
        rotated(site, old, new)  # the answer may have been lost
    refused(site, 403, "identity", site.authority.register, named(DEVICE), old.public_key, "device")
    assert [step.key.encode() for step in site.authority.rotations(named(DEVICE))] == [new.public_key.to_pem()]


def test_a_rotation_needs_both_signatures_over_these_keys(site):
    old, new, thief = enter(site), key_of(2), key_of(3)
    signed = rotation(DEVICE, old.public_key, new.public_key)
    right = {"old": sign(old, signed), "new": sign(new, signed)}

    def attempt(field, key=new, identity=DEVICE, **signatures):
        both = right | signatures
        refused(site, 400, field, site.authority.rotate, named(identity), key.public_key, both["old"], both["new"])

    attempt("signature", old=sign(thief, signed))
    attempt("signature", old=sign(old, rotation(OTHER, old.public_key, new.public_key)))
    attempt("signature", old=sign(old, rotation(DEVICE, new.public_key, old.public_key)))
    attempt("signature", key=thief)
    attempt("new_signature", new=sign(thief, signed))
    attempt("new_signature", new=right["old"])
    attempt("identity", identity=OTHER)


def test_no_key_comes_back_and_none_is_taken_from_another(site):
    first, second = enter(site), key_of(2)
    victim = enter(site, OTHER)
    rotated(site, first, second)
    for key in (first, victim):
        refused(site, 403, "new_key", rotated, site, second, key)
    refused(site, 403, "new_key", rotated, site, second, key_of(SERVICE, "rsa2048"))


def test_rotations_are_bounded(make_site):
    site = make_site(policy=EnrolmentPolicy(max_rotations=3))
    keys = [enter(site), *(key_of(3000 + number) for number in range(4))]
    for old, new in pairwise(keys[:4]):
        rotated(site, old, new)
    refused(site, 403, "identity", rotated, site, keys[3], keys[4])


# --- the log


def test_the_log_names_who_and_never_what_is_secret(site, caplog):
    with caplog.at_level(logging.DEBUG):
        token = secret(site.authority.invite(DEVICE))
        key = key_of(DEVICE)
        site.authority.register(named(DEVICE), key.public_key, "device", token, sign(key, enrolment(DEVICE, token)))
        access(site, key)
        with pytest.raises(KeyServiceError):
            site.authority.register(named(OTHER), key_of(2).public_key, "device")
        site.authority.revoke(DEVICE)
    assert key.public_key.fingerprint in caplog.text
    assert token not in caplog.text
    assert "BEGIN" not in caplog.text


# --- folders


def test_a_folder_is_made_once_and_opens_again(site, tmp_path):
    key = enter(site)
    site.authority.close()
    site.authority = site.open()
    assert site.authority.key_of(named(DEVICE)) == key.public_key
    assert site.authority.identity == SERVICE
    with pytest.raises(KeyServiceError):
        ServiceFolder.create(site.folder.path, SERVICE, site.clock, key_of(SERVICE, "rsa2048"))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert {path.name: path.stat().st_mode & 0o777 for path in site.folder.path.iterdir() if "-" not in path.name} == {
        "keyex.db": 0o600,
        "service.key": 0o600,
        "ca.key": 0o600,
        "ca.pem": 0o644,
    }


@pytest.mark.parametrize("name", ["ca.key", "ca.pem", "service.key"])
@pytest.mark.parametrize("content", [None, b"", b"junk"])
def test_a_damaged_folder_is_not_opened(site, name, content):
    path = site.folder.path / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(KeyServiceError, match=name if name != "ca.pem" else r"ca\.pem"):
        site.open()


def test_a_folder_that_is_not_opened_is_let_go_of(site):
    site.authority.close()
    with closing(Store(site.folder.path / "keyex.db")) as store, store.writing():
        store.set("identity", "junk")
    with pytest.raises(ValueError, match="junk") as caught:
        site.open()
    assert caught.tb is not None  # the frames of the failure are still there, and what they refer to
    assert str(site.folder.path / "keyex.db") not in {file.path for file in psutil.Process().open_files()}


def test_a_folder_without_a_service_is_not_opened(tmp_path):
    with pytest.raises(KeyServiceError, match="holds no key exchange service"):
        ServiceFolder(tmp_path).open(clock=float, entropy=bytes)
    with pytest.raises(KeyServiceError, match="must be RSA"):
        ServiceFolder.create(tmp_path / "k", 1, float, key_of(1))


def test_a_hosts_certificate_is_kept_while_it_serves(site):
    def made(*names):
        return [path.read_bytes() for path in site.folder.https(names, site.clock())]

    first = made("127.0.0.1", "keyex.example")
    assert made("keyex.example", "127.0.0.1") == first
    assert made("keyex.example") != first
    second = made("keyex.example")
    site.clock.now += 310 * DAY
    assert made("keyex.example") != second
