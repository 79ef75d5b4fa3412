"""The ring of known keys: pinned by add, changed only by what says so."""

import pickle
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric import x25519

from srup.errors import InvalidKeyError, PolicyError
from srup.keyring import KeyRing
from srup.keys import PublicKey
from srup.records import KeyRecord

NOW = 1_800_000_000.0


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
    assert dict(KeyRing.load(tmp_path)) == {0: keys[0], 0x1F: keys[1], 0xAB: keys[2], 2**64 - 1: keys[3]}
    assert dict(KeyRing.load(str(tmp_path))) == dict(KeyRing.load(tmp_path))


@pytest.mark.parametrize("name", ["d1.pem", "D1.PEM", "00d1.pem", "d1.pem.pub", "D1.Pem.PUB"])
def test_load_takes_the_names_that_tools_and_other_systems_give(keys, tmp_path, name):
    keys[0].save(tmp_path / name)
    assert dict(KeyRing.load(tmp_path)) == {0xD1: keys[0]}


JUNK_NAMES = ["server", "0x1f", "-1", "+1", "1_0", " 1", "1" * 17, "1.2", ".pem", "٣", "._d1", "d1.pem"]


@pytest.mark.parametrize(
    "name", [*(f"{name}.pem" for name in JUNK_NAMES), "README", "d1.pem.bak", "d1.pub", ".d1.pem.x7"]
)
def test_load_skips_other_names_aloud(keys, tmp_path, caplog, name):
    keys[1].save(tmp_path / "1f.pem")
    (tmp_path / name).write_bytes(b"\0\5\x16\7 whatever")
    assert dict(KeyRing.load(tmp_path)) == {0x1F: keys[1]}
    [record] = caplog.records
    assert (record.levelname, record.name) == ("WARNING", "srup.keyring")
    assert ascii(str(tmp_path / name)) in record.getMessage()
    skipped = []
    assert dict(KeyRing.load(tmp_path, lambda path, why: skipped.append((path, why)))) == {0x1F: keys[1]}
    [(path, why)] = skipped
    assert path == tmp_path / name
    assert why.startswith("its name ")


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


# Changes of keys that are not by hand.


def test_a_rotation_leaves_the_old_key_for_a_while(keys):
    old, new, newer, *_ = keys
    ring = KeyRing({1: old, 2: old})
    assert ring.retiring(1, NOW) is None
    ring.rotate(1, new, NOW + 10)
    assert (ring[1], ring[2], ring.retiring(1, NOW), ring.retiring(2, NOW)) == (new, old, old, None)
    assert ring.retiring(1, NOW + 9.9) == old
    assert ring.retiring(1, NOW + 10) is None
    ring.rotate(1, new, NOW + 99)  # the same again: no longer time for the old one
    assert ring.retiring(1, NOW + 10) is None
    ring.rotate(1, newer, NOW + 10)
    assert (ring[1], ring.retiring(1, NOW)) == (newer, new)
    ring.rotate(1, new, NOW + 10)
    assert (ring[1], ring.retiring(1, NOW)) == (new, newer)


def test_who_has_no_key_has_none_to_rotate(keys):
    ring = KeyRing()
    with pytest.raises(PolicyError, match=r"^no key is registered for 1 that could have a successor; add\(\) it$"):
        ring.rotate(1, keys[0], NOW)
    assert dict(ring) == {}


@pytest.mark.parametrize("change", ["replace", "remove", "revoke"])
def test_a_change_by_hand_ends_the_old_key_too(keys, change):
    ring = KeyRing({1: keys[0]})
    ring.rotate(1, keys[1], NOW + 10)
    assert ring.retiring(1, NOW) == keys[0]  # control
    getattr(ring, change)(*((1, keys[2]) if change == "replace" else (1,)))
    assert ring.retiring(1, NOW) is None
    assert ring.get(1) == (keys[2] if change == "replace" else None)


def test_a_revoked_key_is_barred_for_every_identity(keys):
    old, new, other, *_ = keys
    ring = KeyRing({1: old, 2: old, 3: other})
    ring.rotate(1, new, NOW - 1)
    assert ring.revoke(1) is True
    assert ring.revoke(1) is False
    assert ring.barred == {old.signing_fingerprint, new.signing_fingerprint}
    for key in (old, new):
        for identity in (1, 3, 4):
            for change in (ring.add, ring.replace, lambda *what: ring.rotate(*what, NOW)):
                with pytest.raises(PolicyError, match=rf"^the key {key.signing_fingerprint[:16]} was revoked; "):
                    change(identity, key)
    assert dict(ring) == {2: old, 3: other}  # who shares it keeps it, until he is revoked as well
    ring.add(1, other)
    assert ring[1] == other


def test_another_x25519_key_does_not_make_a_revoked_key_a_new_one(scheme_keys):
    key = scheme_keys["ed25519"].public_key
    disguised = PublicKey.from_pem(key.to_pem().split(b"-----END PUBLIC KEY-----\n")[0] + b"-----END PUBLIC KEY-----\n")
    assert disguised != key
    assert disguised.fingerprint != key.fingerprint
    assert isinstance(key.sealing_key(), x25519.X25519PublicKey)
    ring = KeyRing({1: key})
    KeyRing({1: disguised})  # control
    ring.revoke(1)
    with pytest.raises(PolicyError, match="was revoked"):
        ring.add(1, disguised)


def test_what_was_revoked_is_barred_again_after_a_restart(keys):
    before = KeyRing({1: keys[0]})
    before.revoke(1)
    ring = KeyRing()
    for fingerprint in before.barred:
        ring.bar(fingerprint)
    with pytest.raises(PolicyError, match="was revoked"):
        ring.add(1, keys[0])
    assert ring.barred == before.barred
    for junk in ("", "A" * 64, "a" * 63, b"a" * 64, None):
        with pytest.raises(InvalidKeyError, match=r"^a fingerprint is 64 lower-case hex digits, not "):
            ring.bar(junk)


def test_the_pin_stays_while_keys_succeed_each_other(keys):
    ring = KeyRing({1: keys[0]})
    pin = ring.pin(1)
    assert pin is keys[0]
    for key in (keys[1], keys[2], keys[0]):
        ring.rotate(1, key, NOW)
        assert ring.pin(1) is pin
    ring.replace(1, keys[1])
    assert ring.pin(1) is keys[1]
    ring.remove(1)
    assert ring.pin(1) is None
    ring.add(1, keys[2])
    assert ring.pin(1) is keys[2]


def test_it_tells_when_a_key_has_ceased_to_count(keys):
    ring = KeyRing({1: keys[0]})
    changes = [
        lambda: ring.rotate(1, keys[1], NOW),
        lambda: ring.replace(1, keys[2]),
        lambda: ring.remove(1),
        lambda: (ring.add(1, keys[0]), ring.revoke(1)),
    ]
    for change in changes:
        before = ring.withdrawn
        change()
        assert ring.withdrawn > before
    before = ring.withdrawn
    ring.add(2, keys[1])
    ring.rotate(2, keys[1], NOW)
    ring.bar("a" * 64)
    assert ring.withdrawn == before


def test_whoever_holds_the_lock_keeps_it_as_it_is(keys):
    ring = KeyRing({1: keys[0]})
    begun, done = threading.Event(), threading.Event()

    def revoke():
        begun.set()
        ring.revoke(1)
        done.set()

    with ring.lock:
        thread = threading.Thread(target=revoke)
        thread.start()
        assert begun.wait(30)
        assert not done.wait(0.05)
        assert ring[1] == keys[0]
    thread.join(30)
    assert 1 not in ring


def test_it_is_pickled_without_its_lock(keys):
    ring = KeyRing({1: keys[0], 2: keys[1]})
    ring.rotate(1, keys[2], NOW)
    ring.revoke(2)
    again = pickle.loads(pickle.dumps(ring))
    assert (dict(again), again.retiring(1, NOW - 1), again.barred) == (dict(ring), keys[0], ring.barred)
    again.remove(1)
    assert 1 in ring


def test_a_revoked_key_that_still_stands_in_the_folder_does_not_hide_its_successor(keys):
    """The store has the new one."""
    old, new = keys[:2]
    records = [KeyRecord(1, new.to_pem())]
    ring = KeyRing({1: old})
    assert ring.keep(records, [old.signing_fingerprint], lambda changes: None) == frozenset()
    assert dict(ring) == {1: new}
