"""Devices and servers that change their keys, and keys that are taken away, over the in-memory network."""

from collections import Counter

import pytest

import srup
from srup import (
    Action,
    Device,
    KeyRing,
    Policy,
    PolicyError,
    PrivateKey,
    SealError,
    Server,
    Status,
    TransportError,
    UnansweredError,
    decode,
    encode,
    seal,
)
from srup.agent import inbound
from srup.agent.rollout import OFFERS, ServerKey
from srup.agent.serving import PartnerKeys
from srup.transport import MemoryTransport
from srup.update import UpdateState
from srup.wire import KEY_ROTATION

from .fleet import DIGEST, SERVER, URL, WAIT, Fleet, key_of, wait_until

DAY = 86400.0
FAULTS = {"loss": 0.2, "duplicate": 0.2, "delay": (0.01, 2.0), "reorder": 0.2}
QUICK = Policy(first_retry=2.0, max_retry=60.0, lifetime=4 * 3600.0, require_bound_tokens=True)


def fresh(scheme="ed25519"):
    return PrivateKey.generate(scheme)


def signed_by(wire, *keys):
    """Which of these keys has signed a message."""
    for key in keys:
        try:
            decode(wire).verify(key.public_key)
        except srup.SignatureError:
            continue
        return key
    return None


def last(fleet, sender):
    """The last message of a sender that the broker has seen."""
    return next(wire for _, wire in reversed(fleet.network.log) if decode(wire).sender_id == sender)


def works(fleet):
    """Both directions of every link, and nothing refused."""
    fleet.refusals.clear()
    for identity, device in fleet.devices.items():
        device.on_action(1)(lambda partner: None)
        fleet.server.on_action(1)(lambda partner: None)
        futures = [fleet.server.action(identity, 1), device.action(SERVER, 1)]
        fleet.settle()
        assert [future.result(0) for future in futures] == [Status.ACTION_SUCCESS] * 2
    assert fleet.errors() == []
    assert fleet.faults() == 0


@pytest.fixture
def fleet(tmp_path):
    with Fleet(tmp_path) as fleet:
        yield fleet.joined()


# A device changes its key.


@pytest.mark.parametrize("there", ["rsa2048", "rsa3072", "p256", "ed25519", "mldsa44"])
def test_a_device_changes_its_key_and_back(tmp_path, scheme_keys, there):
    with Fleet(tmp_path, scheme="ed25519") as fleet:
        device = fleet.joined().device
        old, new = key_of(device.identity), scheme_keys.get(there) or pytest.skip("not in this installation")
        for before, after in ((old, new), (new, old)):
            future = device.rotate_key(after)
            fleet.settle()
            assert future.result(0) is None
            assert fleet.ring[device.identity] == after.public_key
            assert fleet.ring.retiring(device.identity, fleet.clock()) == before.public_key
            works(fleet)
            assert signed_by(last(fleet, device.identity), old, new) is after


@pytest.mark.parametrize(("here", "there"), [("rsa2048", "ed25519"), ("ed25519", "rsa2048")])
def test_a_change_of_scheme_on_both_sides(tmp_path, here, there):
    with Fleet(tmp_path, 2, scheme=here) as fleet:
        fleet.joined()
        done = fleet.server.rotate_key(fresh(there), overlap=100.0)
        futures = [device.rotate_key(fresh(there)) for device in fleet.devices.values()]
        fleet.settle()
        assert [future.result(0) for future in futures] == [None, None]
        works(fleet)
        fleet.run(done.done, 101.0)
        assert done.result(0) == fleet.devices.keys()
        works(fleet)
        order = fleet.server.update(fleet.device.identity, URL, DIGEST)
        fleet.settle()
        assert order.result(0) is UpdateState.ACTIVATED


def test_the_old_key_signs_until_the_server_has_taken_the_new_one(fleet):
    device, new = fleet.device, fresh()
    fleet.network.cut("server")
    future = device.rotate_key(new)
    fleet.settle()
    device.send("v", b"")
    fleet.settle()
    assert not future.done()
    assert signed_by(last(fleet, device.identity), new, key_of(device.identity)) is key_of(device.identity)
    fleet.network.heal("server")
    fleet.settle()
    assert future.result(0) is None
    works(fleet)
    assert signed_by(last(fleet, device.identity), new) is new


def test_one_change_at_a_time_and_twice_in_a_row(fleet):
    device, first, second = fleet.device, fresh(), fresh("p256")
    futures = [device.rotate_key(first), device.rotate_key(second)]
    fleet.settle()
    assert futures[0].result(0) is None
    assert isinstance(futures[1].exception(0), PolicyError)
    again = device.rotate_key(second)
    fleet.settle()
    assert again.result(0) is None
    works(fleet)
    assert fleet.ring[device.identity] == second.public_key


def test_keys_that_cannot_be_taken_are_not_offered(fleet, vectors):
    device = fleet.device
    weak = PrivateKey.from_pem(vectors["keys"]["C1024"]["private_pem"], minimum_rsa_bits=1024)
    before = len(fleet.network.log)
    for future in (device.rotate_key(weak), fleet.server.rotate_key(weak)):
        fleet.settle()
        assert type(future.exception(0)).__name__ == "InvalidKeyError"
    for future in (device.rotate_key(key_of(device.identity)), fleet.server.rotate_key(key_of(SERVER))):
        fleet.settle()
        assert str(future.exception(0)) == "the new key is the old one"
    for agent in fleet.agents:
        with pytest.raises(TypeError, match="new_key must be a PrivateKey"):
            agent.rotate_key(fresh().public_key)
    assert len(fleet.network.log) == before
    works(fleet)


def test_who_is_not_joined_may_offer_a_key(tmp_path):
    """The answer to an offer may have got lost with the membership; without an answer the offer expires."""
    with Fleet(tmp_path) as fleet:
        fleet.network.cut("server")
        future = fleet.start().device.rotate_key(fresh(), lifetime=60)
        fleet.settle()
        assert not future.done()
        fleet.pass_time(61)
        assert isinstance(future.exception(0), UnansweredError)


def test_after_a_lost_answer_the_same_key_is_offered_again(fleet):
    """The server has taken the key, the device does not know it: the old key is good for the overlap."""
    device, new = fleet.device, fresh()
    future = device.rotate_key(new)
    device.step()
    fleet.network.cut(f"device-{device.identity:x}")
    fleet.settle()
    assert fleet.ring[device.identity] == new.public_key
    fleet.clock.now += 400
    fleet.network.advance(fleet.clock.now)
    device.step()
    assert isinstance(future.exception(0), UnansweredError)
    fleet.network.heal(f"device-{device.identity:x}")
    fleet.settle()
    works(fleet)
    assert signed_by(last(fleet, device.identity), new, key_of(device.identity)) is key_of(device.identity)
    again = device.rotate_key(new)
    fleet.settle()
    assert again.result(0) is None
    works(fleet)
    assert signed_by(last(fleet, device.identity), new) is new
    assert fleet.ring.retiring(device.identity, fleet.clock() + DAY - 399) is None  # the old one got no longer time


def test_what_was_sealed_to_any_of_the_keys_opens(tmp_path):
    for here, there in (("rsa2048", "ed25519"), ("ed25519", "rsa2048"), ("rsa2048", "rsa2048")):
        with Fleet(tmp_path, scheme=here) as fleet:
            device = fleet.joined().device
            old, new = key_of(device.identity, here), fresh(there)
            to_old, to_new = seal(b"o" * 32, old.public_key), seal(b"n" * 32, new.public_key)
            unseal = device.engine.own_keys.unseal
            future = device.rotate_key(new)
            device.step()
            assert [unseal(to_old), unseal(to_new)] == [
                b"o" * 32,
                b"n" * 32,
            ]
            fleet.settle()
            assert future.result(0) is None
            assert [unseal(to_old), unseal(to_new)] == [
                b"o" * 32,
                b"n" * 32,
            ]
            fleet.run(lambda device=device: device.debug.former_key is None, DAY + 2000)
            assert unseal(to_new) == b"n" * 32
            with pytest.raises(SealError, match=r"^the sealed value does not open$"):
                unseal(to_old)


# Who stores a new key, and who does not want it.


def test_a_new_key_is_stored_before_it_is_taken(fleet):
    device, new, stored = fleet.device, fresh(), []

    @fleet.server.on_key_changed
    def store(identity, key):
        stored.append((identity, key, fleet.ring[identity] == key))

    future = device.rotate_key(new)
    fleet.settle()
    assert future.result(0) is None
    assert stored == [(device.identity, new.public_key, False)]


@pytest.mark.parametrize("result", [False, Status.ACTION_FAIL, Status.ACTION_UNKNOWN, ZeroDivisionError])
def test_a_key_that_is_not_stored_is_not_taken(fleet, result):
    @fleet.server.on_key_changed
    def store(identity, key):
        if isinstance(result, type):
            raise result
        return result

    device = fleet.device
    future = device.rotate_key(fresh())
    fleet.settle()
    assert isinstance(future.exception(0), PolicyError)
    assert str(future.exception(0)) == "server 5e answers ACTION_FAIL"
    assert fleet.ring[device.identity] == key_of(device.identity).public_key
    assert fleet.server.counts["key refused"] == 1
    assert fleet.faults() == (result is ZeroDivisionError)


def test_only_keys_that_would_be_taken_are_stored(fleet):
    """Not one that the retiring key names, and not one without a proof."""
    device, stored = fleet.device, []
    fleet.server.on_key_changed(lambda identity, key: stored.append(key))
    new = fresh()
    device.rotate_key(new)
    fleet.settle()
    device.engine.own_keys.current = key_of(device.identity)  # whoever has stolen it
    device.rotate_key(fresh())
    fleet.settle()
    device.send(KEY_ROTATION, b"no proof")
    fleet.settle()
    assert stored == [new.public_key]
    assert fleet.server.counts["key refused"] == 2


def test_a_key_that_the_operator_replaced_meanwhile_stays(fleet):
    device, by_hand = fleet.device, fresh().public_key
    fleet.server.on_key_changed(lambda identity, key: fleet.ring.replace(identity, by_hand))
    device.rotate_key(fresh())
    fleet.settle()
    assert fleet.ring[device.identity] == by_hand
    assert fleet.ring.retiring(device.identity, fleet.clock()) is None


def test_of_two_keys_that_wait_to_be_stored_the_first_is_taken(fleet):
    """The second was signed by a key that does not count any more when its turn comes."""
    device, waiting = fleet.device, []
    handlers = fleet.server.engine.handlers
    handlers.submit = waiting.extend  # a handler that takes its time
    first, second = fresh(), fresh()
    one = device.rotate_key(first)
    fleet.settle()
    device.engine.own_keys.withdraw()  # as after a restart
    other = device.rotate_key(second)
    fleet.settle()
    handlers.run_calls(waiting)
    fleet.settle()
    assert fleet.ring[device.identity] == first.public_key
    assert isinstance(other.exception(0), PolicyError)
    assert one.done()


# A server changes its key.


def test_a_server_changes_its_key_one_device_at_a_time(tmp_path):
    with Fleet(tmp_path, 3) as fleet:
        fleet.joined()
        old, new = key_of(SERVER), fresh("p256")
        asleep = list(fleet.devices)[2]
        fleet.network.cut(f"device-{asleep:x}")
        done = fleet.server.rotate_key(new, overlap=3600.0)
        fleet.settle()
        signers = {}
        for identity in fleet.devices:
            fleet.server.send_data(identity, "v", b"")
            fleet.settle()
            wire = [wire for topic, wire in fleet.network.log if topic == f"SRUP/{identity:x}"][-2:]
            signers[identity] = {signed_by(w, old, new) for w in wire if decode(w).sender_id == SERVER}
        assert list(signers.values()) == [{new}, {new}, {old}]
        late = fleet.add(0xE0)
        late.start(threads=False)
        fleet.run(lambda: late.joined, 60.0)
        fleet.settle()
        assert not done.done()
        fleet.network.heal(f"device-{asleep:x}")
        fleet.run(done.done, 3601.0)
        assert done.result(0) == {*fleet.devices}
        assert fleet.server.debug.key is new
        fleet.settle()
        works(fleet)


def offers(fleet):
    """The offers of keys that the server has sent."""
    messages = [decode(wire).verify(key_of(SERVER).public_key) for _, wire in fleet.network.log if wire[1] == 5]
    return [message for message in messages if message.data_id == KEY_ROTATION]


def test_a_device_is_asked_once_unless_it_leaves_or_does_not_answer(fleet):
    device = fleet.device
    name = f"device-{device.identity:x}"
    fleet.network.cut(name)
    done = fleet.server.rotate_key(fresh(), overlap=10_000.0)
    fleet.settle()
    assert len({offer.token for offer in offers(fleet)}) == 1
    fleet.server.terminate(device.identity)
    fleet.settle()
    fleet.network.heal(
        name
    )  # the first offer and the termination arrive, and cross with a join: it is let in and leaves
    fleet.settle()
    assert not device.joined
    assert not fleet.server.members
    device.join()
    fleet.settle()
    assert fleet.all_joined()
    assert len({offer.token for offer in offers(fleet)}) == 3
    for _ in range(3):
        device.join()
        fleet.settle()
    assert len({offer.token for offer in offers(fleet)}) == 3
    fleet.run(done.done, 10_001.0)
    assert done.result(0) == {device.identity}


def test_a_device_that_wakes_up_late_is_asked_again(fleet):
    name = f"device-{fleet.device.identity:x}"
    fleet.network.cut(name)
    done = fleet.server.rotate_key(fresh(), overlap=10_000.0)
    fleet.run(lambda: fleet.server.counts["unanswered"], 1000.0)
    fleet.clock.now += 1000
    fleet.network.heal(name)
    fleet.run(lambda: fleet.server.debug.part(ServerKey).rotation.has(fleet.device.identity), 10.0)
    fleet.run(done.done, 10_000.0)
    works(fleet)


def test_who_slept_through_the_overlap_does_not_understand_the_server_any_more(tmp_path):
    with Fleet(tmp_path, 2) as fleet:
        fleet.joined()
        awake, asleep = fleet.devices
        fleet.network.cut(f"device-{asleep:x}")
        done = fleet.server.rotate_key(fresh(), overlap=60.0)
        fleet.run(done.done, 61.0)
        assert done.result(0) == {awake}
        fleet.clock.now += 60
        fleet.network.heal(f"device-{asleep:x}")
        fleet.settle()
        assert set(fleet.errors(fleet.devices[asleep])) >= {"SignatureError"}
        future = fleet.server.action(awake, 1)
        fleet.settle()
        assert future.done()


def test_a_large_fleet_is_asked_in_portions(tmp_path):
    with Fleet(tmp_path, 2 * OFFERS + 3) as fleet:
        fleet.joined()
        done = fleet.server.rotate_key(fresh(), overlap=60.0)
        fleet.server.engine.turn()
        assert len(fleet.server.debug.part(ServerKey).rotation._asked) == OFFERS
        assert fleet.server.deadline() <= fleet.clock()
        fleet.run(done.done, 61.0)
        assert done.result(0) == fleet.devices.keys()


def test_one_change_of_the_servers_key_at_a_time_and_then_the_next(fleet):
    done = fleet.server.rotate_key(fresh(), overlap=60.0)
    refused = fleet.server.rotate_key(fresh("p256"))
    fleet.settle()
    assert isinstance(refused.exception(0), PolicyError)
    fleet.run(done.done, 61.0)
    done = fleet.server.rotate_key(fresh("p256"), overlap=60.0)
    fleet.run(done.done, 61.0)
    assert done.result(0) == {fleet.device.identity}
    works(fleet)


def test_a_server_that_starts_anew_rotates_again(tmp_path):
    """It has forgotten who took the new key; the devices take its old one for as long as their overlap lasts."""
    with Fleet(tmp_path, 2) as fleet:
        fleet.joined()
        new = fresh()
        done = fleet.server.rotate_key(new)
        fleet.settle()
        fleet.server.stop()
        assert isinstance(done.exception(0), TransportError)
        fleet.clock.now += 1
        fleet.server = Server(
            SERVER,
            key_of(SERVER),
            devices=fleet.ring,
            broker=MemoryTransport(fleet.network, "server"),
            clock=fleet.clock,
            entropy=fleet.randbytes,
        )
        fleet.server.start(threads=False)
        fleet.settle()
        done = fleet.server.rotate_key(new, overlap=4000.0)
        fleet.run(done.done, 4001.0)
        assert done.result(0) == fleet.devices.keys()
        works(fleet)


def test_a_device_that_stored_the_servers_key_starts_with_it(fleet):
    device, new, stored = fleet.device, fresh(), []
    device.on_key_changed(lambda server, key: stored.append((server, key)))
    done = fleet.server.rotate_key(new, overlap=60.0)
    fleet.run(done.done, 61.0)
    assert stored == [(SERVER, new.public_key)]
    for key, joins in ((key_of(SERVER).public_key, False), (stored[0][1], True)):
        fleet.device.stop()
        fleet.clock.now += 10
        device = fleet.add(device.identity, server_key=key)
        device.start(threads=False)
        fleet.settle()
        assert device.joined is joins


def test_a_device_that_refuses_the_servers_key_goes_on_with_the_old_one(fleet):
    fleet.device.on_key_changed(lambda server, key: False)
    done = fleet.server.rotate_key(fresh(), overlap=60.0)
    fleet.settle()
    works(fleet)
    fleet.run(done.done, 61.0)
    assert done.result(0) == frozenset()


def test_a_device_whose_key_was_replaced_is_a_new_one_for_a_rotation(tmp_path):
    with Fleet(tmp_path) as fleet:
        device = fleet.joined().device
        fleet.server.rotate_key(fresh())
        fleet.settle()
        assert fleet.server.debug.part(ServerKey).rotation.has(device.identity)
        fleet.ring.replace(device.identity, fresh().public_key)
        assert not fleet.server.debug.part(ServerKey).rotation.has(device.identity)


# Whatever the network does.


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8))])
def test_changes_of_all_keys_at_once_whatever_the_network_does(tmp_path, seed):
    done, left = Counter(), []
    with Fleet(tmp_path, 5, seed, device_policy=QUICK, server_policy=QUICK, **FAULTS) as fleet:
        for identity, device in fleet.devices.items():
            device.on_action(1)(lambda partner, identity=identity: done.update([identity]))
            device.on_left(left.append)
        fleet.server.on_action(1)(lambda device: done.update(["server"]))
        fleet.start().run(fleet.all_joined, DAY)
        over = fleet.server.rotate_key(fresh(), overlap=4 * 3600.0)
        futures = []
        for scheme in ("ed25519", "p256"):  # twice in a row, with commands in both directions meanwhile
            futures += [fleet.server.action(identity, 1) for identity in fleet.devices]
            futures += [device.action(SERVER, 1) for device in fleet.devices.values()]
            rotated = [device.rotate_key(fresh(scheme)) for device in fleet.devices.values()]
            fleet.run(lambda rotated=rotated: all(future.done() for future in rotated), DAY)
            assert [future.result(0) for future in rotated] == [None] * 5
        fleet.run(lambda: all(future.done() for future in futures), DAY)
        assert {future.result(0) for future in futures} == {Status.ACTION_SUCCESS}
        assert done == {**dict.fromkeys(fleet.devices, 2), "server": 10}
        fleet.run(over.done, DAY)
        assert over.result(0) == fleet.devices.keys()
        assert {fleet.ring[i].scheme for i in fleet.devices} == {"p256"}
        assert [device.debug.key.public_key for device in fleet.devices.values()] == [
            fleet.ring[i] for i in fleet.devices
        ]
        assert fleet.all_joined()
        assert left == []
        assert fleet.faults() == 0


@pytest.mark.slow
def test_with_real_threads(tmp_path):
    """Keys change under traffic; nothing is lost, refused or done twice."""
    from .test_agent import DEVICE, Pair

    with Pair(tmp_path) as pair:
        heard = []
        pair.server.on_data("n", "uint32")(lambda device, name, value: heard.append(value))
        pair.device.wait_joined(WAIT)
        for value in range(300):
            pair.device.send("n", value, "uint32")
            if value % 100 == 50:
                key = fresh()
                pair.device.rotate_key(key).result(WAIT)
                assert pair.ring[DEVICE] == key.public_key
        over = pair.server.rotate_key(fresh(), overlap=3.0)
        assert over.result(WAIT) == {DEVICE}
        assert pair.action().result(WAIT) is Status.ACTION_UNKNOWN
        wait_until(lambda: len(heard) == 300, "all values")
        assert heard == list(range(300))
        assert pair.server.counts["SignatureError"] == pair.device.counts["SignatureError"] == 0


# Keys that are taken away.


def flood(fleet, count=3, action_id=7):
    """Let the device send commands that lie unread at the server; return what the server does for them."""
    done = []
    fleet.server.on_action(action_id)(done.append)
    for _ in range(count):
        fleet.device.action(SERVER, action_id)
    fleet.device.step()
    return done


@pytest.mark.parametrize("take", ["remove", "replace", "revoke", "rotate"])
def test_what_is_in_the_queue_has_no_effect_once_the_key_is_gone(fleet, take):
    done = flood(fleet)
    arguments = {"replace": [fresh().public_key], "rotate": [fresh().public_key, fleet.clock() - 1]}.get(take, [])
    getattr(fleet.ring, take)(fleet.device.identity, *arguments)
    fleet.server.step()
    assert done == []
    expected = "UnknownSenderError" if take in ("remove", "revoke") else "SignatureError"
    assert fleet.errors(fleet.server) == [expected] * 3


def test_control_what_is_in_the_queue_would_have_had_its_effect(fleet):
    done = flood(fleet)
    fleet.server.step()
    assert len(done) == 3


@pytest.mark.parametrize("take", ["remove", "replace", "revoke", "rotate", None])
def test_what_has_been_verified_has_no_effect_either(fleet, monkeypatch, take):
    """The key goes between the verification of a batch and the handling of its messages."""
    done = flood(fleet)
    arguments = {"replace": [fresh().public_key], "rotate": [fresh().public_key, fleet.clock() - 1]}.get(take, [])
    genuine, taken = inbound.verify_many, []

    def verify_many(wires, keys, threads=1):
        results = genuine(wires, keys, threads)
        if all(isinstance(result, Action) for result in results) and take is not None and not taken:
            taken.append(len(results))
            getattr(fleet.ring, take)(fleet.device.identity, *arguments)
        return results

    monkeypatch.setattr(inbound, "verify_many", verify_many)
    fleet.server.step()
    assert taken == ([] if take is None else [3])
    assert len(done) == (3 if take is None else 0)  # the last one is the control


def test_a_key_that_goes_in_the_middle_of_a_batch(fleet):
    """The first message's handler takes it away; the others were verified together with that one."""
    done = []
    fleet.server.on_action(7)(lambda device: (done.append(device), fleet.ring.remove(device)))
    for _ in range(3):
        fleet.device.action(SERVER, 7)
    fleet.device.step()
    fleet.server.step()
    assert len(done) == 1


def test_what_waits_for_a_handler_has_no_effect_either(fleet):
    waiting, done = [], []
    fleet.server.on_action(7)(done.append)
    fleet.server.on_data("v")(lambda *arguments: done.append(arguments))
    fleet.server.on_join(done.append)
    handlers = fleet.server.engine.handlers
    handlers.submit = waiting.extend  # a handler that takes its time

    def ask():
        fleet.device.action(SERVER, 7)
        fleet.device.send("v", b"")
        fleet.device.join()
        fleet.device.step()
        fleet.server.step()
        return [waiting.pop(0) for _ in range(3)]

    handlers.run_calls(ask())  # control
    assert len(done) == 3
    calls = ask()
    fleet.ring.replace(fleet.device.identity, fleet.ring[fleet.device.identity])  # even by itself: it is a new pin
    fleet.ring.remove(fleet.device.identity)
    fleet.ring.add(fleet.device.identity, fresh().public_key)
    handlers.run_calls(calls)
    assert len(done) == 3


def test_a_change_of_key_that_is_signed_takes_nothing_from_the_queue(fleet):
    waiting, done = [], []
    fleet.server.on_action(7)(done.append)
    fleet.server.engine.handlers.submit = lambda calls: waiting.extend(call.job for call in calls)
    fleet.device.action(SERVER, 7)
    fleet.device.rotate_key(fresh())
    fleet.device.action(SERVER, 7)
    fleet.settle()
    for job in reversed(waiting):  # the key first
        job()
        fleet.server.step()
    assert len(done) == 2


def test_a_forged_flood_costs_one_more_verification_and_only_where_a_key_retires(tmp_path, monkeypatch):
    with Fleet(tmp_path, 2) as fleet:
        fleet.joined()
        changed, other = fleet.devices
        forged = {
            identity: [
                encode(Action(sequence_id=number, sender_id=identity, token=b"t", action_id=1), key_of("an attacker"))
                for number in range(1, 101)
            ]
            for identity in fleet.devices
        }
        tried = []
        genuine = inbound.decode
        monkeypatch.setattr(inbound, "decode", lambda wire: tried.append(wire) or genuine(wire))
        retiring = []
        ask = fleet.ring.retiring
        monkeypatch.setattr(fleet.ring, "retiring", lambda *a: retiring.append(key := ask(*a)) or key)
        fleet.devices[changed].rotate_key(fresh())
        fleet.settle()
        for identity, extra in ((changed, 100), (other, 0)):
            tried.clear(), retiring.clear()
            for wire in forged[identity]:
                fleet.network.inject(f"SRUP/{identity:x}", wire)
            fleet.server.step()
            assert len(tried) == 100
            assert sum(key is not None for key in retiring) == extra
            assert fleet.errors(fleet.server) == ["SignatureError"] * 100
        assert fleet.faults() == 0


# Revocation.


def test_a_revoked_device_is_out_at_once(fleet):
    server, device, left = fleet.server, fleet.device, []
    identity = device.identity
    server.on_left(left.append)
    fleet.network.cut(f"device-{identity:x}")
    futures = [server.action(identity, 1), server.identify(identity)]
    orders = [server.update(identity, URL, DIGEST, hold=True)]
    fleet.settle()
    told = []
    server.on_update(lambda order: told.append(order.state))
    done = flood(fleet)
    future = server.revoke(identity)
    assert identity not in fleet.ring  # even before the server's thread has had its turn
    later = server.action(identity, 1)
    fleet.network.heal(f"device-{identity:x}")
    fleet.settle()
    assert future.result(0) is None
    assert (server.members, left, done) == (frozenset(), [identity], [])
    for ended in (*futures, *(order._done for order in orders)):
        assert str(ended.exception(0)) == f"{identity:x} was revoked"
        assert isinstance(ended.exception(0), PolicyError)
    assert isinstance(later.exception(0), PolicyError)
    assert told == [UpdateState.FAILED]
    assert (server.debug.pending, server.orders) == ([], [])
    device.join()
    device.send("v", b"")
    fleet.settle()
    assert not set(fleet.errors(server)) - {"UnknownSenderError"}
    assert fleet.faults() == 0


def test_a_revoked_device_is_not_heard_on_its_topic(fleet):
    identity = fleet.device.identity
    fleet.server.revoke(identity)
    fleet.settle()
    before = fleet.server.counts["received"]
    fleet.device.send("v", b"")
    fleet.settle()
    assert fleet.server.counts["received"] == before


def test_only_the_revoked_device_is_out(tmp_path):
    with Fleet(tmp_path, 2) as fleet:
        fleet.joined()
        gone, stays = fleet.devices
        future, order = fleet.server.action(stays, 1), fleet.server.update(stays, URL, DIGEST)
        fleet.server.revoke(gone)
        fleet.settle()
        assert future.result(0) is Status.ACTION_UNKNOWN
        assert order.result(0) is UpdateState.ACTIVATED
        assert fleet.server.members == {stays}


def test_who_is_revoked_while_a_person_compares_does_not_get_in(tmp_path):
    with Fleet(tmp_path, 0, server_options={"admission": "human"}) as fleet:
        pending = []
        fleet.server.on_moderation(pending.append)
        device = fleet.add(0xD0, join="human")
        device.on_join_value(lambda value: None)
        fleet.start().settle()
        [join] = pending
        future = fleet.server.revoke(device.identity)
        fleet.settle()
        assert future.result(0) is None
        assert (join.status, fleet.server.pending_joins) == (Status.JOIN_FAIL, [])
        with pytest.raises(PolicyError, match="is over"):
            join.accept()
        fleet.settle()
        assert not device.joined
        assert fleet.server.debug.session.joins.moderated == {}
        assert fleet.faults() == 0


def test_there_must_be_something_to_revoke(fleet):
    nobody = fleet.server.revoke(0x77)
    fleet.settle()
    assert str(nobody.exception(0)) == "there is nothing to revoke: no key is registered for 77"
    with pytest.raises(ValueError, match="device must be an int"):
        fleet.server.revoke("d0")
    # A member whose key is gone already was put out by that.
    fleet.ring.remove(fleet.device.identity)
    future = fleet.server.revoke(fleet.device.identity)
    fleet.settle()
    assert str(future.exception(0)) == "there is nothing to revoke: no key is registered for d0"
    assert fleet.server.members == frozenset()


def test_an_identity_can_come_back_with_another_key(tmp_path):
    with Fleet(tmp_path) as fleet:
        device = fleet.joined().device
        fleet.server.rotate_key(fresh())  # it had taken the server's new key, its successor has not
        fleet.settle()
        fleet.server.revoke(device.identity)
        fleet.settle()
        with pytest.raises(PolicyError, match="was revoked"):
            fleet.ring.add(device.identity, key_of(device.identity).public_key)
        device.stop()
        new = fresh()
        fleet.ring.add(device.identity, new.public_key)
        again = base_device(fleet, device.identity, new)
        again.start(threads=False)
        fleet.settle()
        assert fleet.all_joined()
        works(fleet)


def base_device(fleet, identity, key):
    """A device with a key of its own, in the place of the one with the key of its number."""
    device = fleet.devices[identity] = Device(
        identity,
        key,
        server=SERVER,
        server_key=key_of(SERVER, fleet.scheme).public_key,
        broker=MemoryTransport(fleet.network, f"device-{identity:x}"),
        firmware=fleet.tmp_path / f"{identity:x}",
        fetcher=fleet.fetcher,
        clock=fleet.clock,
        entropy=fleet.randbytes,
    )
    device.on_refused(lambda refusal: fleet.refusals.append((device, refusal)))
    return device


def test_a_revoked_device_under_threads(tmp_path):
    """When revoke() has returned, not one more of its values is handed over, however many are under way."""
    from .test_agent import DEVICE, Pair

    with Pair(tmp_path) as pair:
        heard = []
        pair.server.on_data("n", "uint32")(lambda device, name, value: heard.append(value))
        pair.device.wait_joined(WAIT)
        for value in range(2000):
            pair.device.send("n", value, "uint32")
        wait_until(lambda: heard, "the first value")
        future = pair.server.revoke(DEVICE)
        seen = len(heard)
        future.result(WAIT)
        pair.server.revoke(0x77).exception(WAIT)  # the server's thread has come past all that was there
        assert len(heard) <= seen + 1  # a handler that was running goes on
        assert pair.server.members == frozenset()
        pair.server.stop()
        assert len(heard) <= seen + 1


def test_a_server_takes_a_ring(tmp_path):
    with pytest.raises(TypeError, match="devices must be a KeyRing, not dict"):
        Server(1, key_of(1), devices={}, broker=MemoryTransport(Fleet(tmp_path, 0).network, "x"))


@pytest.mark.parametrize("overlap", [0, -1, float("nan"), float("inf"), True, "60"], ids=repr)
def test_an_overlap_that_makes_no_sense(tmp_path, overlap):
    with Fleet(tmp_path).joined() as fleet, pytest.raises(ValueError, match="overlap must be a number of seconds"):
        fleet.server.rotate_key(fresh(), overlap=overlap)


def test_a_server_does_not_change_its_key_without_an_overlap(tmp_path):
    """Nobody could have taken the new one."""
    wrong = pytest.raises(ValueError, match="overlap must be a number of seconds, more than 0")
    with Fleet(tmp_path, server_policy=Policy(key_overlap=0)).joined() as fleet, wrong:
        fleet.server.rotate_key(fresh())


# A device that is sent to another server while it changes its key.


@pytest.mark.parametrize("late", [None, "taken", "refused"])
def test_a_hand_over_ends_an_offer_and_the_next_server_gets_another(tmp_path, late):
    """The old key is the one that the next server knows, whatever the first one makes of the offer."""
    with Fleet(tmp_path, size=0) as fleet:
        second = Server(
            0x5F,
            key_of(0x5F),
            devices=KeyRing({0xD0: key_of(0xD0).public_key}),
            broker=MemoryTransport(fleet.network, "second"),
            clock=fleet.clock,
            entropy=fleet.randbytes,
        )
        device = fleet.add(0xD0, servers=KeyRing({0x5F: key_of(0x5F).public_key}))
        fleet.devices["second"] = second  # steps with the others
        fleet.start().settle()
        decisions = []
        fleet.server.on_key_changed(lambda identity, key: late != "refused")
        new, again = fresh(), fresh()
        answers = []
        keys = fleet.server.engine.part(PartnerKeys)
        decide = keys.take

        def wait(*arguments):
            decisions.append(arguments)
            return []

        keys.take = wait  # the first server takes its time
        offered = device.rotate_key(new)
        offered.add_done_callback(answers.append)
        fleet.settle()
        assert len(decisions) == 1
        gone = fleet.server.command_join(0xD0, server=0x5F)
        fleet.settle()
        assert gone.result(0) is Status.JOIN_SUCCESS
        with pytest.raises(UnansweredError, match="5e sent us to 5f and has not answered"):
            offered.result(0)
        if late:
            outputs = decide(*decisions[0][:-1], fleet.clock())
            fleet.perform(fleet.server, outputs)
            fleet.settle()
        assert signed_by(last(fleet, 0xD0), key_of(0xD0), new, again).public_key == key_of(0xD0).public_key
        anew = device.rotate_key(again)
        fleet.settle()
        assert anew.result(0) is None
        assert second.devices[0xD0] == again.public_key
        device.on_action(1)(lambda server: None)
        done = second.action(0xD0, 1)
        fleet.settle()
        assert done.result(0) is Status.ACTION_SUCCESS
        assert (len(answers), fleet.faults(), second.counts["faults"]) == (1, 0, 0)


def test_the_end_of_an_offer_that_was_given_up_does_not_end_the_next_one(tmp_path):
    with Fleet(tmp_path, size=0) as fleet:
        options = {"clock": fleet.clock, "entropy": fleet.randbytes}
        ring = KeyRing({0xD0: key_of(0xD0).public_key})
        broker = MemoryTransport(fleet.network, "second")
        second = Server(0x5F, key_of(0x5F), devices=ring, broker=broker, **options)
        device = fleet.add(0xD0, servers=KeyRing({0x5F: key_of(0x5F).public_key}))
        fleet.devices["second"] = second
        fleet.start().settle()
        for server in (fleet.server, second):
            server.engine.part(PartnerKeys).take = lambda *arguments: []  # neither answers
        first = device.rotate_key(fresh())
        fleet.settle()
        fleet.server.command_join(0xD0, server=0x5F)
        fleet.clock.now += 200
        fleet.settle()
        new = fresh()
        offered = device.rotate_key(new)
        fleet.settle()
        assert (first.done(), offered.done()) == (True, False)
        fleet.clock.now += 150  # the first offer's time is over, and the second one's is not
        fleet.settle()
        assert not offered.done()
        another = device.rotate_key(fresh())
        fleet.settle()
        with pytest.raises(PolicyError, match="has not yet answered"):
            another.result(0)
        fleet.run(offered.done, seconds=400)
        with pytest.raises(UnansweredError):
            offered.result(0)
