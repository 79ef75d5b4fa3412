"""Attacks on changes of keys (T15): real devices and servers, real bytes, and an attacker at the broker.

Every test shows that the attack is refused, that no key has changed by it, and that it works with the guard off.
"""

import pytest

from srup import Action, Data, JoinRequest, Policy, PolicyError, PrivateKey, Status, decode, encode, rotation
from srup.agent import inbound
from srup.agent.rollout import ServerKey
from srup.simulation import START
from srup.tokens import bind
from srup.wire import KEY_ROTATION

from .fleet import SERVER, Fleet, key_of

OVERLAP = 1000.0


class Field:
    """Two joined devices, and an attacker who reads and writes everything at the broker and has keys of his own."""

    def __init__(self, fleet):
        self.fleet = fleet.joined()
        self.owned, self.target = fleet.devices
        self.used = 0
        self.own = PrivateKey.generate("ed25519")
        self.done = []
        fleet.server.on_action(1)(self.done.append)

    @property
    def ring(self):
        return self.fleet.ring

    def old(self, identity=None):
        return key_of(self.target if identity is None else identity)

    def message(self, cls, key, sender=None, to=SERVER, **fields):
        """A message that its sender did not send."""
        self.used += 1
        sender = self.target if sender is None else sender
        token = bind(sender, to, self.fleet.clock() + 60, self.fleet.randbytes(16))
        fields = {"token": token} | fields
        return encode(cls(sequence_id=int(START * 1e6) - self.used, sender_id=sender, **fields), key)

    def offer(self, new, old=None, *, signer=None, owner=None, sender=None, partner=SERVER, to=SERVER, **fields):
        """The offer of a key; by default what the target itself would send."""
        owner = self.target if owner is None else owner
        old = old or self.old(owner)
        data = rotation.offer(owner, partner, old.public_key, new)
        sender = owner if sender is None else sender
        return self.message(Data, signer or old, sender, to, data_id=KEY_ROTATION, data=data, **fields)

    def inject(self, *wires, at=None):
        for wire in wires:
            self.fleet.network.inject(f"SRUP/{self.target if at is None else at:x}", wire)
        self.fleet.settle()

    def unchanged(self, *errors, key=None):
        """Assert that the server told these errors, that no key has changed, and that the target goes on."""
        server, device = self.fleet.server, self.fleet.devices[self.target]
        assert self.fleet.errors(server) == list(errors)
        self.fleet.refusals.clear()
        assert self.ring[self.target] == (key or self.old()).public_key
        assert self.done == []
        asked = device.action(SERVER, 1)
        self.fleet.settle()
        assert asked.result(0) is Status.ACTION_SUCCESS
        assert self.done == [self.target]
        self.done.clear()
        assert self.fleet.errors(server) == []
        assert self.fleet.faults() == 0

    def refused_offers(self):
        return self.fleet.server.counts["key refused"]

    def rotate(self, new):
        """Let the target change its key, as it may."""
        future = self.fleet.devices[self.target].rotate_key(new)
        self.fleet.settle()
        assert future.result(0) is None

    def acts(self, key, **fields):
        """Whether a command that ``key`` has signed is done."""
        self.done.clear()
        self.inject(self.message(Action, key, action_id=1, **fields))
        done = bool(self.done)
        self.done.clear()
        self.fleet.refusals.clear()
        return done


@pytest.fixture
def field(tmp_path):
    with Fleet(tmp_path, 2, server_policy=Policy(key_overlap=OVERLAP)) as fleet:
        yield Field(fleet)


# Somebody else's change.


def test_t15_a_new_key_does_not_introduce_itself(field):
    """The attacker has a key of his own and a perfect proof; only the old key is missing."""
    field.inject(field.offer(field.own, signer=field.own))
    field.unchanged("SignatureError")
    field.inject(field.offer(field.own))
    assert field.ring[field.target] == field.own.public_key  # control: signed by the old key it does


def test_t15_a_device_does_not_change_another_ones_key(field):
    """An owned device offers a key for the target: as itself, under the target's name, with the target's proof."""
    mine = field.old(field.owned)
    as_itself = field.offer(field.own, sender=field.owned, signer=mine)
    in_its_name = field.offer(field.own, signer=mine)
    field.inject(as_itself, at=field.owned)
    assert field.refused_offers() == 1
    field.inject(in_its_name)
    field.inject(in_its_name, at=field.owned)
    field.unchanged("SignatureError", "SignatureError")
    assert field.ring[field.owned] == mine.public_key
    field.inject(field.offer(field.own, owner=field.owned), at=field.owned)
    assert field.ring[field.owned] == field.own.public_key  # control: its own key it may change


def test_t15_nobody_registers_a_key_that_he_does_not_have(field, monkeypatch):
    """The owner of a device has another one's new key registered for himself, to pass its messages off as his own."""
    victim = PrivateKey.generate("ed25519")
    genuine = field.offer(victim)
    data = decode(genuine).verify(field.old().public_key).data
    text = rotation._text(field.owned, SERVER, field.old(field.owned).public_key, victim.public_key)
    forged = field.own.sign(text)
    stolen = len(forged).to_bytes(2, "big") + forged + victim.public_key.to_pem()
    for number, content in enumerate((data, stolen), 1):
        wire = field.message(Data, field.old(field.owned), field.owned, data_id=KEY_ROTATION, data=content)
        field.inject(wire, at=field.owned)
        assert field.refused_offers() == number
        assert field.ring[field.owned] == field.old(field.owned).public_key
    field.unchanged()
    monkeypatch.setattr(rotation, "check", lambda *_: victim.public_key)  # control: the proof is what keeps it out
    wire = field.message(Data, field.old(field.owned), field.owned, data_id=KEY_ROTATION, data=stolen)
    field.inject(wire, at=field.owned)
    assert field.ring[field.owned] == victim.public_key


# A genuine change, put to another use.


def capture(field, new):
    """Let the target offer a key that does not arrive; return the bytes."""
    fleet = field.fleet
    fleet.network.cut("server")
    future = fleet.devices[field.target].rotate_key(new)
    fleet.devices[field.target].step()
    topic, wire = fleet.network.log[-1]
    assert topic == f"SRUP/{field.target:x}"
    return wire, future


def test_t15_a_copy_of_the_offer_gives_its_owner_nothing(field):
    """He knows the new public key and the proof; he cannot sign, and cannot make the change more than once."""
    new = PrivateKey.generate("ed25519")
    wire, future = capture(field, new)
    field.inject(wire, wire)
    field.fleet.network.heal("server")
    field.fleet.settle()
    assert future.result(0) is None
    assert field.fleet.errors(field.fleet.server) == ["ReplayError"] * 2
    offered = decode(wire).verify(field.old().public_key)
    again = field.message(Data, field.own, data_id=KEY_ROTATION, data=offered.data)
    field.inject(again)
    field.unchanged("SignatureError", key=new)
    # The same proof, in a message that the old key has signed once more, names no other key: nothing changes.
    field.inject(field.message(Data, field.old(), data_id=KEY_ROTATION, data=offered.data))
    field.unchanged(key=new)
    assert not field.acts(field.own)
    assert field.acts(new)  # control: who has the new private key can sign


def test_t15_an_old_offer_does_not_undo_a_later_change(field):
    """A, then B, then A again: the offer of B comes back."""
    b = PrivateKey.generate("ed25519")
    field.rotate(b)
    offer = [wire for _, wire in field.fleet.network.log if decode(wire).sender_id == field.target and wire[1] == 5][-1]
    field.rotate(field.old())
    field.inject(offer)
    field.unchanged("ReplayError")
    # Control: without the window and the memory of tokens it would, for the key that has signed it counts again.
    partner = field.fleet.server.debug.session.known.peers[field.target]
    partner.window.seen, partner.exchanges = 0, {}
    field.inject(offer)
    assert field.ring[field.target] == b.public_key


def test_t15_an_offer_for_one_device_delivered_to_another(field):
    """The server's new key is not hijacked, but a device would believe in one that the server does not use for it."""
    fleet = field.fleet
    new = PrivateKey.generate("ed25519")
    fleet.network.cut(f"device-{field.target:x}")
    fleet.server.rotate_key(new)
    fleet.settle()
    fleet.refusals.clear()
    for_target = [wire for topic, wire in fleet.network.log if topic == f"SRUP/{field.target:x}" and wire[1] == 5][-1]
    fleet.network.cut(f"device-{field.owned:x}")
    fleet.network.heal(f"device-{field.target:x}")
    fleet.settle()
    assert fleet.devices[field.target].engine.keys[SERVER] == new.public_key  # control: there it works
    victim = fleet.add(0xE0)
    fleet.server.debug.part(ServerKey).rotation.invite = lambda device: None  # it is not asked itself
    victim.start(threads=False)
    fleet.settle()
    assert victim.joined
    fleet.refusals.clear()
    field.inject(for_target, at=victim.identity)
    assert fleet.errors(victim) == ["PolicyError"]  # the token
    offered = decode(for_target).verify(key_of(SERVER).public_key)
    token = bind(SERVER, victim.identity, fleet.clock() + 60, bytes(16))
    resigned = field.message(
        Data, key_of(SERVER), SERVER, victim.identity, data_id=KEY_ROTATION, data=offered.data, token=token
    )
    field.inject(resigned, at=victim.identity)
    assert victim.counts["key refused"] == 1  # and even without it: the proof
    assert victim.engine.keys[SERVER] == key_of(SERVER).public_key
    right = field.offer(new, key_of(SERVER), owner=SERVER, partner=victim.identity, to=victim.identity)
    field.inject(right, at=victim.identity)
    assert victim.engine.keys[SERVER] == new.public_key  # control


def test_t15_an_offer_that_was_held_back(field):
    new = PrivateKey.generate("ed25519")
    wire, _ = capture(field, new)
    field.fleet.clock.now += 86_400
    field.fleet.devices[field.target].step()
    field.fleet.network.advance(field.fleet.clock.now)
    field.fleet.network.heal("server")
    field.fleet.settle()
    assert "PolicyError" in field.fleet.errors(field.fleet.server)
    field.unchanged()
    in_time, _ = capture(field, new)  # control
    field.fleet.network.heal("server")
    field.fleet.settle()
    assert field.ring[field.target] == new.public_key
    assert in_time != wire


# A stolen key.


def test_t15_the_old_key_is_of_no_use_after_the_overlap(field):
    new = PrivateKey.generate("p256")
    field.rotate(new)
    assert field.acts(field.old())  # control: within it, for what is under way
    field.fleet.clock.now += OVERLAP - 1
    assert field.acts(field.old())
    field.fleet.clock.now += 1
    field.inject(field.message(Action, field.old(), action_id=1), field.message(JoinRequest, field.old()))
    field.unchanged("SignatureError", "SignatureError", key=new)


def test_t15_without_an_overlap_the_old_key_is_of_no_use_at_once(tmp_path):
    with Fleet(tmp_path, 2, server_policy=Policy(key_overlap=0.0)) as fleet:
        field = Field(fleet)
        assert field.acts(field.old())  # control
        field.rotate(new := PrivateKey.generate("ed25519"))
        field.inject(field.message(Action, field.old(), action_id=1))
        field.unchanged("SignatureError", key=new)


def test_t15_a_stolen_old_key_names_no_other_successor(field, monkeypatch):
    """Its owner has changed it just because it was stolen; during the overlap it is still good for commands."""
    new = PrivateKey.generate("ed25519")
    field.rotate(new)
    thief = field.offer(field.own)
    field.inject(thief)
    behind_the_new_one = field.offer(field.own, new, signer=field.old())
    field.inject(behind_the_new_one)
    assert field.refused_offers() == 2
    field.unchanged(key=new)
    monkeypatch.setattr(rotation, "check_succession", lambda *_: None)
    field.inject(field.offer(field.own))
    assert field.ring[field.target] == field.own.public_key  # control: it would have taken the device over


def test_t15_the_new_key_alone_is_of_no_use_before_the_change(field):
    """Stolen from where it waited to be offered: the server does not know it yet."""
    new = PrivateKey.generate("ed25519")
    field.inject(field.message(Action, new, action_id=1), field.offer(new, signer=new))
    field.unchanged("SignatureError", "SignatureError")
    field.rotate(new)
    assert field.acts(new)  # control


# Keys that nobody should change to.


def test_t15_no_change_to_a_weak_key(field, vectors, monkeypatch):
    weak = PrivateKey.from_pem(vectors["keys"]["C1024"]["private_pem"], minimum_rsa_bits=1024)
    text = rotation._text(field.target, SERVER, field.old().public_key, weak.public_key)
    proof = weak.sign(text)
    data = len(proof).to_bytes(2, "big") + proof + weak.public_key.to_pem()
    field.inject(field.message(Data, field.old(), data_id=KEY_ROTATION, data=data))
    assert field.refused_offers() == 1
    field.unchanged()
    monkeypatch.setattr(rotation, "check", lambda *_: weak.public_key)
    field.inject(field.message(Data, field.old(), data_id=KEY_ROTATION, data=data))
    assert field.acts(weak)  # control


@pytest.mark.parametrize(
    "junk", [b"", b"\0", b"\0\0", b"\xff\xff" + bytes(60_000), bytes(60_000), b"\0\1x" + b"-----BEGIN "]
)
def test_t15_junk_for_a_key(field, junk):
    field.inject(field.message(Data, field.old(), data_id=KEY_ROTATION, data=junk))
    assert field.refused_offers() == 1
    field.unchanged()


# A revoked key.


def test_t15_a_revoked_key_does_not_come_back(field):
    """Not by being registered, not as the successor of another device's key, not as its own."""
    thief = field.old()
    assert field.acts(thief)  # control
    field.fleet.server.revoke(field.target)
    field.fleet.settle()
    own = field.old(field.owned)
    barred = field.offer(thief, owner=field.owned)
    wires = [field.message(Action, thief, action_id=1), field.message(JoinRequest, thief), field.offer(field.own)]
    field.fleet.network.inject(f"SRUP/servers/{SERVER:x}/{field.target:x}", wires[1])
    field.inject(*wires)
    field.inject(barred, at=field.owned)
    assert field.refused_offers() == 1
    assert field.fleet.errors(field.fleet.server) == ["UnknownSenderError"]  # nobody listens on its own topic any more
    for identity in (field.target, 0x77):
        with pytest.raises(PolicyError, match="was revoked"):
            field.ring.add(identity, thief.public_key)
    assert (field.done, dict(field.ring)) == ([], {field.owned: own.public_key})
    assert field.fleet.server.members == {field.owned}


def test_t15_a_revocation_reaches_the_retiring_key_too(field):
    field.rotate(new := PrivateKey.generate("ed25519"))
    assert field.acts(field.old())  # control
    field.ring.revoke(field.target)
    field.inject(field.message(Action, field.old(), action_id=1), field.message(Action, new, action_id=1))
    assert field.done == []
    assert field.fleet.errors(field.fleet.server) == ["UnknownSenderError"] * 2


def test_t15_a_revocation_takes_effect_in_the_middle_of_a_batch(field, monkeypatch):
    """The operator revokes while 100 commands of a stolen key have been verified and none has been handled."""

    def flood(then):
        wires = [field.message(Action, field.old(), action_id=1) for _ in range(100)]
        genuine = inbound.verify_many

        def verify_many(batch, keys, threads=1):
            results = genuine(batch, keys, threads)
            if len(batch) == 100:
                then()
            return results

        with monkeypatch.context() as patch:
            patch.setattr(inbound, "verify_many", verify_many)
            for wire in wires:
                field.fleet.network.inject(f"SRUP/{field.target:x}", wire)
            field.fleet.server.step()

    flood(lambda: None)
    assert len(field.done) == 100  # control
    field.done.clear()
    flood(lambda: field.ring.revoke(field.target))
    assert field.done == []
    assert field.fleet.errors(field.fleet.server) == ["UnknownSenderError"] * 100
