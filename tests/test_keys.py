"""Keys: every scheme, every way to load one wrongly, and nothing private where it does not belong."""

import copy
import logging
import os
import pickle
import stat
import subprocess
from contextlib import nullcontext

import pytest
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519

import srup
from srup.errors import InvalidKeyError
from srup.keys import SCHEMES, PrivateKey, PublicKey

from .certificates import certificate_of, private_of
from .programs import need

pytestmark = pytest.mark.backend

SIGNED = b"signed bytes"


def private_pem(key, encryption=None):
    return key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, encryption or s.NoEncryption())


def public_pem(key):
    return key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)


def verifies(public_key, signature, signed=SIGNED):
    return public_key.verifier.verify(b"\0\0" + signature + signed, 2, len(signature))


@pytest.fixture(scope="module")
def weak_exponent():
    """An RSA key with e = 3, as ``cryptography`` still makes them."""
    return rsa.generate_private_key(3, 2048)


@pytest.fixture(scope="module")
def others():
    """Keys of kinds that sign nothing here."""
    return {
        "DSA": dsa.generate_private_key(1024),
        "P-384": ec.generate_private_key(ec.SECP384R1()),
        "secp256k1": ec.generate_private_key(ec.SECP256K1()),
        "Ed448": ed448.Ed448PrivateKey.generate(),
        "X25519": x25519.X25519PrivateKey.generate(),
    }


# --- schemes


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme not in ("rsa3072", "rsa4096")])
def test_generate(scheme):
    key = PrivateKey.generate(scheme)
    assert key.scheme == key.public_key.scheme == scheme
    assert verifies(key.public_key, key.sign(SIGNED))
    assert key != PrivateKey.generate("ed25519")
    assert (key.public_key.sealing_key() is None) is False


def test_the_default_is_the_interoperable_scheme():
    assert PrivateKey.generate.__func__.__defaults__ == ("rsa2048",)
    assert list(SCHEMES)[:5] == ["rsa2048", "rsa3072", "rsa4096", "p256", "ed25519"]


@pytest.mark.parametrize("scheme", ["", "rsa", "rsa1024", "RSA2048", "p384", "mldsa99", None, 2048], ids=repr)
def test_unknown_schemes(scheme):
    with pytest.raises(InvalidKeyError, match=rf"^unknown scheme {scheme!r}; there are rsa2048, "):
        PrivateKey.generate(scheme)


def test_signatures_are_over_the_sha256(key):
    signature = key.sign(SIGNED)
    assert verifies(key.public_key, signature)
    assert not verifies(key.public_key, signature, SIGNED + b"\0")
    assert not verifies(key.public_key, b"")
    assert not verifies(key.public_key, signature[:-1])
    assert not verifies(key.public_key, signature + b"\0")


# --- PEM


@pytest.mark.parametrize("password", [None, b"secret", "pässword"], ids=repr)
def test_private_pem_round_trip(key, password):
    pem = key.to_pem(password)
    assert (b"ENCRYPTED" in pem) == (password is not None)
    again = PrivateKey.from_pem(pem, password)
    assert again.scheme == key.scheme
    assert again.public_key == key.public_key
    assert verifies(key.public_key, again.sign(SIGNED))
    assert srup.unseal(srup.seal(b"x" * 32, key.public_key), again) == b"x" * 32


def test_public_pem_round_trip(key):
    again = PublicKey.from_pem(key.public_key.to_pem())
    assert again == key.public_key
    assert hash(again) == hash(key.public_key)
    assert (again.scheme, again.fingerprint) == (key.scheme, key.public_key.fingerprint)
    assert verifies(again, key.sign(SIGNED))
    assert PublicKey.from_pem(key.public_key.to_pem().decode()) == again


def test_pem_of_other_tools(key):
    """Windows line ends, comments before the block, no line end behind it."""
    pem = key.public_key.to_pem()
    for form in (pem.replace(b"\n", b"\r\n"), b"# a comment\n" + pem, pem.rstrip(), b"\n\n" + pem + b"\n\n"):
        assert PublicKey.from_pem(form) == key.public_key


def test_traditional_pem(vectors):
    entry = vectors["keys"]["A2048"]
    one, other = PrivateKey.from_pem(entry["private_pem"]), PrivateKey.from_pem(entry["private_pkcs8_pem"])
    assert one.public_key == other.public_key == PublicKey.from_pem(entry["public_pem"])
    public = s.load_pem_public_key(entry["public_pem"].encode())
    assert PublicKey.from_pem(public.public_bytes(s.Encoding.PEM, s.PublicFormat.PKCS1)) == one.public_key


def test_keys_without_rsa_have_a_second_block(key):
    blocks = 1 if key.scheme.startswith("rsa") else 2
    assert key.to_pem().count(b"-----BEGIN PRIVATE KEY") == blocks
    assert key.to_pem("secret").count(b"-----BEGIN ENCRYPTED PRIVATE KEY") == blocks
    assert key.public_key.to_pem().count(b"-----BEGIN PUBLIC KEY") == blocks


def certificate_pem(key):
    return certificate_of(key).public_bytes(s.Encoding.PEM)


PARAMETERS = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"


def test_the_key_is_found_by_its_label():
    """What ``openssl ecparam -genkey`` writes, and keys that share a file with certificates, whatever stands first."""
    key = ec.generate_private_key(ec.SECP256R1())
    traditional = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.TraditionalOpenSSL, s.NoEncryption())
    assert traditional.startswith(b"-----BEGIN EC PRIVATE KEY-----\n")
    certificate, modern, public = certificate_pem(key), private_pem(key), public_pem(key)
    expected = PublicKey.from_pem(public)
    for pem in (PARAMETERS + traditional, certificate + modern, modern + certificate * 3, public + modern):
        assert PrivateKey.from_pem(pem).public_key == expected
    for pem in (certificate + public, public + certificate, PARAMETERS + public):
        assert PublicKey.from_pem(pem) == expected


def test_an_x25519_key_is_found_behind_other_blocks(scheme_keys):
    key = scheme_keys["p256"]
    signing, sealing = (
        block + b"-----END PRIVATE KEY-----\n" for block in key.to_pem().split(b"-----END PRIVATE KEY-----\n")[:2]
    )
    certificate = certificate_pem(private_of(key))
    assert PrivateKey.from_pem(PARAMETERS + signing + certificate + sealing).public_key == key.public_key


@pytest.mark.process
def test_keys_that_openssl_makes(tmp_path):
    path = tmp_path / "key.pem"
    subprocess.run([need("openssl"), "ecparam", "-name", "prime256v1", "-genkey", "-out", path], check=True)
    assert b"EC PARAMETERS" in path.read_bytes()
    assert PrivateKey.load(path).scheme == "p256"


def test_several_keys_are_not_guessed_at(scheme_keys, vectors):
    one = vectors["keys"]["A2048"]["private_pem"].encode()
    other = vectors["keys"]["B2048"]["private_pem"].encode()
    with pytest.raises(InvalidKeyError, match=r"^sealing key: "):
        PrivateKey.from_pem(one + other)
    with pytest.raises(InvalidKeyError, match=r"^private key: 3 keys, "):
        PrivateKey.from_pem(one + certificate_pem(ec.generate_private_key(ec.SECP256R1())) + other + one)


def test_what_a_pem_holds_instead_is_named(key):
    certificate = certificate_pem(ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(InvalidKeyError, match=r"^public key: there is none, only CERTIFICATE$"):
        PublicKey.from_pem(certificate)
    with pytest.raises(InvalidKeyError, match=r"^public key: there is none, only CERTIFICATE, PRIVATE KEY$"):
        PublicKey.from_pem(key.to_pem() + certificate)


@pytest.mark.parametrize(
    "pem",
    [
        b"-----BEGIN A-----\n-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n-----END A-----\n",
        b"-----END A-----\n-----BEGIN A-----\n",
        b"-----BEGIN A-----\n-----END B-----\n",
        b"-----BEGIN A-----\n-----END A-----\n-----BEGIN PUB",
    ],
)
def test_blocks_that_do_not_close(pem):
    for load in (PrivateKey.from_pem, PublicKey.from_pem):
        with pytest.raises(InvalidKeyError, match="a PEM block is cut off"):
            load(pem)


def test_wrong_missing_and_superfluous_passwords(key):
    for pem, password in ((key.to_pem("right"), "wrong"), (key.to_pem("right"), None), (key.to_pem(), "superfluous")):
        with pytest.raises(InvalidKeyError, match=r"^private key: ") as caught:
            PrivateKey.from_pem(pem, password)
        assert "right" not in str(caught.value)
        assert "superfluous" not in str(caught.value)
    with pytest.raises(InvalidKeyError):
        PrivateKey.from_pem(key.to_pem("right"), "")
    with pytest.raises(InvalidKeyError, match=r"^the password is empty"):
        key.to_pem("")


def test_each_block_has_the_password(scheme_keys):
    key = scheme_keys["ed25519"]
    plain, encrypted = key.to_pem(), key.to_pem("secret")
    mixed = encrypted.split(b"-----END ENCRYPTED PRIVATE KEY-----\n")[0] + b"-----END ENCRYPTED PRIVATE KEY-----\n"
    mixed += plain[plain.rindex(b"-----BEGIN") :]
    with pytest.raises(InvalidKeyError, match=r"^sealing key: "):
        PrivateKey.from_pem(mixed, "secret")


@pytest.mark.parametrize(
    "pem",
    [
        *("", " \n", "junk", "\ud800", "-----END", "-----BEGIN PUBLIC KEY-----\n", "ü", "\0"),
        "-----END PUBLIC KEY-----\n",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        "-----BEGIN PRIVATE KEY-----\n!!!!\n-----END PRIVATE KEY-----\n",
        "-----BEGIN PUBLIC KEY-----\n-----END PRIVATE KEY-----\n",
    ],
    ids=repr,
)
def test_junk(pem):
    for load in (PrivateKey.from_pem, PublicKey.from_pem):
        with pytest.raises(InvalidKeyError):
            load(pem)


def test_every_cut_of_a_pem_is_refused(scheme_keys):
    key = scheme_keys["ed25519"]
    end = b"-----END PUBLIC KEY-----"
    whole = key.public_key.to_pem()
    for size in range(whole.index(end) + len(end)):
        with pytest.raises(InvalidKeyError):
            PublicKey.from_pem(whole[:size])


def test_a_second_block_that_is_cut_off_is_refused(scheme_keys):
    """A torn file must not load as a key that nothing can be sealed to."""
    key = scheme_keys["ed25519"]
    for load, pem in ((PrivateKey.from_pem, key.to_pem()), (PublicKey.from_pem, key.public_key.to_pem())):
        start = pem.rindex(b"-----BEGIN ") + len(b"-----BEGIN ")
        for size in range(start, len(pem) - len(b" KEY-----\n")):
            with pytest.raises(InvalidKeyError):
                load(pem[:size])


@pytest.mark.parametrize("pem", [None, 5, bytearray(b"x"), ["x"]], ids=repr)
def test_a_pem_is_bytes_or_text(pem):
    for load in (PrivateKey.from_pem, PublicKey.from_pem):
        with pytest.raises(TypeError, match=rf"^a PEM is bytes or str, not {type(pem).__name__}$"):
            load(pem)


def test_public_for_private_and_private_for_public(key):
    with pytest.raises(InvalidKeyError, match=r"^private key: "):
        PrivateKey.from_pem(key.public_key.to_pem())
    with pytest.raises(InvalidKeyError, match=r"^public key: "):
        PublicKey.from_pem(key.to_pem())


def test_a_certificate_is_no_public_key():
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(InvalidKeyError, match=r"^public key: "):
        PublicKey.from_pem(certificate_pem(key))


def test_other_kinds_of_key(others):
    for key in others.values():
        with pytest.raises(InvalidKeyError, match=r"is no signing key of a known scheme"):
            PrivateKey.from_pem(private_pem(key))
        with pytest.raises(InvalidKeyError, match=r"is no signing key of a known scheme"):
            PublicKey.from_pem(public_pem(key))


def test_the_second_block_is_an_x25519_key(scheme_keys, others):
    signing = scheme_keys["ed25519"]
    private, public = signing.to_pem(), signing.public_key.to_pem()
    head, public_head = (pem[: pem.index(b"-----END")] for pem in (private, public))
    head += b"-----END PRIVATE KEY-----\n"
    public_head += b"-----END PUBLIC KEY-----\n"
    for other in (others["Ed448"], ed25519.Ed25519PrivateKey.generate()):
        with pytest.raises(InvalidKeyError, match=r"^sealing key: the second block must be an X25519 key$"):
            PrivateKey.from_pem(head + private_pem(other))
        with pytest.raises(InvalidKeyError, match=r"^sealing key: the second block must be an X25519 key$"):
            PublicKey.from_pem(public_head + public_pem(other))
    for load, pem in ((PrivateKey.from_pem, private), (PublicKey.from_pem, public)):
        with pytest.raises(InvalidKeyError, match=r"3 keys, expected a signing key and at most an X25519 key$"):
            load(pem + pem[pem.rindex(b"-----BEGIN") :])
    alone = PublicKey.from_pem(public_head)
    assert alone != signing.public_key
    assert alone.sealing_key() is None


def test_rsa_of_1024_bits(vectors, vector_keys):
    """T7: refused unless the bar is lowered."""
    entry = vectors["keys"]["C1024"]
    for load, pem in ((PrivateKey.from_pem, entry["private_pem"]), (PublicKey.from_pem, entry["public_pem"])):
        for lowered in ({}, {"minimum_rsa_bits": 1025}):
            with pytest.raises(InvalidKeyError, match=r"^RSA key of 1024 bits: .* are accepted"):
                load(pem, **lowered)
        assert load(pem, minimum_rsa_bits=1024).scheme == "rsa1024"
    assert verifies(PublicKey.from_pem(entry["public_pem"], 1024), vector_keys["C1024"].sign(SIGNED))


def test_rsa_with_a_small_exponent(weak_exponent):
    """T7: e = 3 is refused unless the bar is lowered."""
    for load, pem in (
        (PrivateKey.from_pem, private_pem(weak_exponent)),
        (PublicKey.from_pem, public_pem(weak_exponent)),
    ):
        with pytest.raises(InvalidKeyError, match=r"^RSA key with exponent 3: odd ones from 65537 to 4294967295 are "):
            load(pem)
        assert load(pem, minimum_rsa_exponent=3).scheme == "rsa2048"


def test_rsa_with_exponents_that_break_it(vector_keys):
    numbers = vector_keys["A2048"].public_key.sealing_key().public_numbers()
    for exponent in (1, 2, 65536, 65538):
        try:
            public = rsa.RSAPublicNumbers(exponent, numbers.n).public_key()
        except ValueError:
            continue  # refused before us
        pem = public.public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
        with pytest.raises(InvalidKeyError):
            PublicKey.from_pem(pem)


def test_exponents_are_bounded_wherever_a_key_is_loaded(vectors):
    """A public exponent of 3,071 bits made each verification a hundred times as dear."""
    numbers = s.load_pem_private_key(vectors["keys"]["D3072"]["private_pem"].encode(), None).private_numbers()
    public = rsa.RSAPublicNumbers(numbers.d | 1, numbers.public_numbers.n).public_key()
    pem = public.public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    for load in (PublicKey.from_pem, lambda pem: PublicKey.from_pem(pem, minimum_rsa_exponent=0)):
        with pytest.raises(
            InvalidKeyError, match=r"^RSA key with exponent of 30\d\d bits: odd ones from \d+ to 4294967295"
        ):
            load(pem)
    e, d, n = numbers.public_numbers.e, numbers.d, numbers.public_numbers.n
    swapped = rsa.RSAPrivateNumbers(
        numbers.p, numbers.q, e, e % (numbers.p - 1), e % (numbers.q - 1), numbers.iqmp, rsa.RSAPublicNumbers(d, n)
    ).private_key()
    with pytest.raises(InvalidKeyError, match=r"^RSA key with exponent of 30\d\d bits"):
        PrivateKey.from_pem(private_pem(swapped))


@pytest.mark.parametrize(("exponent", "good"), [(65537, True), (2**32 - 1, True), (2**32 + 1, False)])
def test_the_largest_exponent(vectors, exponent, good):
    n = s.load_pem_public_key(vectors["keys"]["A2048"]["public_pem"].encode()).public_numbers().n
    pem = (
        rsa.RSAPublicNumbers(exponent, n).public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    )
    with nullcontext() if good else pytest.raises(InvalidKeyError, match="exponent of 33 bits"):
        assert PublicKey.from_pem(pem).scheme == "rsa2048"


# --- files


def test_public_files_are_for_everybody(scheme_keys, tmp_path):
    """Also where the umask would keep them from others, or an old file did."""
    (tmp_path / "old.pem").write_text("old")
    (tmp_path / "old.pem").chmod(0o600)
    umask = os.umask(0o077)
    try:
        for name in ("old.pem", "new.pem"):
            scheme_keys["p256"].public_key.save(tmp_path / name)
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o644
    finally:
        os.umask(umask)


def test_the_folder_reaches_the_disk_with_the_file(scheme_keys, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: synced.append((stat.S_ISDIR(os.fstat(fd).st_mode), (tmp_path / "key.pem").exists()))
    )
    scheme_keys["p256"].save(tmp_path / "key.pem")
    assert synced == [(False, False), (True, True)]


def test_files_round_trip(key, tmp_path):
    key.save(tmp_path / "private.pem", "secret")
    key.public_key.save(str(tmp_path / "public.pem"))
    assert PrivateKey.load(str(tmp_path / "private.pem"), "secret").public_key == key.public_key
    assert PublicKey.load(tmp_path / "public.pem") == key.public_key
    assert sorted(path.name for path in tmp_path.iterdir()) == ["private.pem", "public.pem"]


def test_private_files_are_for_their_owner(scheme_keys, tmp_path):
    """Also where an old file was open to everybody, and whatever the umask."""
    path = tmp_path / "key.pem"
    path.write_text("old")
    path.chmod(0o644)
    umask = os.umask(0)
    try:
        for name in ("key.pem", "new.pem"):
            scheme_keys["p256"].save(tmp_path / name)
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    finally:
        os.umask(umask)
    assert PrivateKey.load(path).public_key == scheme_keys["p256"].public_key


def test_a_file_is_replaced_whole_or_not_at_all(scheme_keys, tmp_path, monkeypatch):
    path = tmp_path / "key.pem"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InvalidKeyError, match=r"key\.pem: No space left on device$"):
        scheme_keys["p256"].save(path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["key.pem"]


def test_files_that_cannot_be_read_or_written_are_named(scheme_keys, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "file" / "inside", tmp_path / "file"):
        for load in (PrivateKey.load, PublicKey.load):
            with pytest.raises(InvalidKeyError) as caught:
                load(path)
            assert str(caught.value).startswith(f"{path}: ")
    for path in (tmp_path / "absent" / "key", tmp_path, tmp_path / "file" / "inside"):
        for key in (scheme_keys["p256"], scheme_keys["p256"].public_key):
            with pytest.raises(InvalidKeyError) as caught:
                key.save(path)
            assert str(caught.value).startswith(f"{path}: ")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is unreadable for root")
def test_a_folder_without_permission(scheme_keys, tmp_path):
    scheme_keys["p256"].save(tmp_path / "key.pem")
    tmp_path.chmod(0)
    try:
        with pytest.raises(InvalidKeyError, match=r"Permission denied"):
            PrivateKey.load(tmp_path / "key.pem")
    finally:
        tmp_path.chmod(0o700)


def test_a_path_is_named_even_when_its_name_is_part_of_the_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("key", "PEM", "a"):
        (tmp_path / name).write_text("junk")
        with pytest.raises(InvalidKeyError, match=rf"^{name}: private key: not a PEM"):
            PrivateKey.load(name)
        with pytest.raises(InvalidKeyError, match=rf"^{name}: public key: not a PEM"):
            PublicKey.load(name)


def test_files_of_weak_keys(vectors, tmp_path):
    (tmp_path / "weak.pem").write_text(vectors["keys"]["C1024"]["private_pem"])
    with pytest.raises(InvalidKeyError, match=r"weak\.pem: RSA key of 1024 bits"):
        PrivateKey.load(tmp_path / "weak.pem")
    assert PrivateKey.load(tmp_path / "weak.pem", minimum_rsa_bits=1024).scheme == "rsa1024"


# --- secrecy and identity


def test_nothing_private_is_shown(key, caplog):
    """Neither the text nor the DER bytes of the private part, in any form that ends up in a log."""
    caplog.set_level(logging.DEBUG)
    pem = key.to_pem()
    texts = [repr(key), str(key), f"{key}", repr(vars(key)), repr([key])]
    for junk, password in ((pem, "superfluous"), (key.to_pem("x"), "y"), (pem[:-40], None), (pem + pem + pem, None)):
        with pytest.raises(InvalidKeyError) as caught:
            PrivateKey.from_pem(junk, password)
        texts += [str(caught.value), repr(caught.value), repr(caught.value.__cause__)]
    texts.append(caplog.text)
    lines = [line for line in pem.decode().splitlines() if not line.startswith("--")]
    for text in texts:
        assert not [line for line in lines if line in text]
    assert repr(key) == f"<PrivateKey {key.scheme} of {key.public_key.fingerprint[:16]}>"


def test_private_keys_are_not_pickled_or_copied(key):
    for make in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"^a private key is not pickled; use to_pem\(\) with a password$"):
            make(key)


def test_public_keys_are_pickled(key, vector_keys):
    for public in (key.public_key, vector_keys["C1024"].public_key):
        assert public.verifier  # which does not travel
        for again in (pickle.loads(pickle.dumps(public)), copy.copy(public), copy.deepcopy(public)):
            assert again == public
            assert again.verifier is not public.verifier


def test_equality(scheme_keys):
    publics = [key.public_key for key in scheme_keys.values()]
    assert len(set(publics)) == len(publics)
    assert len({public.fingerprint for public in publics}) == len(publics)
    assert publics[0] != publics[0].fingerprint
    assert repr(publics[0]) == f"<PublicKey rsa2048 {publics[0].fingerprint[:16]}>"


def test_only_a_file_is_written_over(tmp_path, vector_keys):
    key = vector_keys["A2048"]
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path in (folder, tmp_path / "pipe", "", "a\0b"):
        with pytest.raises(InvalidKeyError):
            key.save(path)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    (tmp_path / "real.pem").write_text("old")
    (tmp_path / "link.pem").symlink_to("real.pem")
    key.save(tmp_path / "link.pem")
    assert (tmp_path / "link.pem").is_symlink()
    assert PrivateKey.load(tmp_path / "real.pem").public_key == key.public_key


@pytest.mark.parametrize(
    "password", [5, "", "\ud800", "x" * 5000, ["a"]], ids=["int", "empty", "surrogate", "long", "list"]
)
def test_a_password_that_is_none(vector_keys, password):
    with pytest.raises(InvalidKeyError, match="password"):
        vector_keys["A2048"].to_pem(password)
