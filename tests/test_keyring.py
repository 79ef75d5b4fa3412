"""The ring of known keys: pinned by add, changed only by what says so."""

import pytest

from srup.errors import InvalidKeyError, PolicyError
from srup.keyring import KeyRing


@pytest.fixture(scope="module")
def keys(scheme_keys):
    return [key.public_key for key in scheme_keys.values()]


def test_it_is_a_mapping(keys):
    ring = KeyRing({5: keys[0], 0: keys[1], 2**64 - 1: keys[2]})
    assert dict(ring) == {5: keys[0], 0: keys[1], 2**64 - 1: keys[2]}
    assert (len(ring), 5 in ring, 6 in ring) == (3, True, False)
    assert ring[5] == ring.get(5) == keys[0]
    assert ring.get(6) is None
    assert ring.get(6, keys[1]) == keys[1]
    with pytest.raises(KeyError):
        ring[6]
    assert repr(ring) == "<KeyRing of 3>"


def test_add_pins_a_key(keys):
    """T15: another key never takes the place of a registered one by accident."""
    ring = KeyRing()
    ring.add(0xAB, keys[0])
    ring.add(0xAB, keys[0])
    with pytest.raises(PolicyError, match=r"^another key is registered for ab; replace\(\) changes it$"):
        ring.add(0xAB, keys[1])
    assert ring[0xAB] == keys[0]


def test_replace_and_remove_say_what_they_do(keys):
    ring = KeyRing({1: keys[0]})
    ring.replace(1, keys[1])
    ring.replace(2, keys[0])
    assert dict(ring) == {1: keys[1], 2: keys[0]}
    ring.remove(1)
    ring.remove(1)
    ring.add(1, keys[0])
    assert ring[1] == keys[0]


@pytest.mark.parametrize(
    "identity",
    [-1, 2**64, True, 1.0, "1", None, 10**5000, -(10**5000)],
    ids=lambda i: repr(i)[:9] if not isinstance(i, int) else f"{i:#x}"[:9],
)
def test_identities_are_64_bits(keys, identity):
    ring = KeyRing()
    for change in (ring.add, ring.replace):
        with pytest.raises(InvalidKeyError, match=r"^an identity is an int in 0\.\.2\*\*64-1, not "):
            change(identity, keys[0])
    assert len(ring) == 0


def test_only_public_keys_are_registered(scheme_keys, keys):
    ring = KeyRing()
    for junk in (None, scheme_keys["p256"], keys[0].to_pem()):
        for change in (ring.add, ring.replace):
            with pytest.raises(
                InvalidKeyError, match=rf"^the key of 1f must be a PublicKey, not {type(junk).__name__}$"
            ):
                change(0x1F, junk)
    assert len(ring) == 0


def test_it_can_be_changed_while_it_is_iterated(keys):
    ring = KeyRing(dict.fromkeys(range(10), keys[0]))
    for identity in ring:
        ring.remove(identity)
        ring.add(identity + 100, keys[0])
    assert len(ring) == 10


def test_load(keys, tmp_path):
    for name, key in (("0", keys[0]), ("1f", keys[1]), ("00AB", keys[2]), ("f" * 16, keys[3])):
        key.save(tmp_path / f"{name}.pem")
    (tmp_path / "README").write_text("not a key")
    (tmp_path / "1e.pem.bak").write_text("not a key")
    assert dict(KeyRing.load(tmp_path)) == {0: keys[0], 0x1F: keys[1], 0xAB: keys[2], 2**64 - 1: keys[3]}
    assert dict(KeyRing.load(str(tmp_path))) == dict(KeyRing.load(tmp_path))


@pytest.mark.parametrize("name", ["server", "0x1f", "-1", "+1", "1_0", " 1", "1" * 17, "1.2", ".pem", "٣"])
def test_load_refuses_other_names(keys, tmp_path, name):
    keys[0].save(tmp_path / f"{name}.pem")
    with pytest.raises(InvalidKeyError, match=r"the name must be the identity in hex") as caught:
        KeyRing.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name}.pem: ")


def test_load_names_the_file_that_is_wrong(keys, vectors, tmp_path):
    keys[0].save(tmp_path / "1.pem")
    for content, reason in (("junk", "not a PEM"), (vectors["keys"]["C1024"]["public_pem"], "RSA key of 1024 bits")):
        (tmp_path / "2.pem").write_text(content)
        with pytest.raises(InvalidKeyError, match=reason) as caught:
            KeyRing.load(tmp_path)
        assert str(caught.value).startswith(f"{tmp_path / '2.pem'}: ")
    (tmp_path / "2.pem").unlink()
    (tmp_path / "2.pem").mkdir()
    with pytest.raises(InvalidKeyError, match=r"2\.pem: Is a directory"):
        KeyRing.load(tmp_path)


def test_load_refuses_two_keys_for_one_identity(keys, tmp_path):
    keys[0].save(tmp_path / "1f.pem")
    keys[0].save(tmp_path / "001f.pem")
    assert len(KeyRing.load(tmp_path)) == 1
    keys[1].save(tmp_path / "01F.pem")
    with pytest.raises(InvalidKeyError, match=r"\.pem: another key is registered for 1f"):
        KeyRing.load(tmp_path)


def test_load_of_what_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(InvalidKeyError) as caught:
            KeyRing.load(folder)
        assert str(caught.value).startswith(f"{folder}: ")
