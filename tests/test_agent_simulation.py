"""Whole fleets in simulated time, over a network that loses, repeats, delays and reorders."""

import hashlib
from collections import Counter

import pytest

from srup import Policy, PolicyError, Status, UnansweredError, UpdateError
from srup.agent import Server, inbound
from srup.agent.joining import REJOIN
from srup.transport import MemoryTransport
from srup.update import UpdateState

from .fleet import DIGEST, FIRMWARE, SERVER, URL, Fleet, key_of

FAULTS = {"loss": 0.2, "duplicate": 0.2, "delay": (0.01, 2.0), "reorder": 0.2}
QUICK = Policy(first_retry=2.0, max_retry=60.0)
DAY = 86400.0


def fleet_of(tmp_path, size, seed, **options):
    return Fleet(tmp_path, size, seed, device_policy=QUICK, server_policy=QUICK, **options)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8))])
def test_twenty_devices_join_and_are_updated_whatever_the_network_does(tmp_path, seed):
    activated = Counter()
    with fleet_of(tmp_path, 20, seed, **FAULTS) as fleet:
        for device in fleet.devices.values():
            device.on_activate(lambda path, device=device: activated.update([(device.identity, path.name)]))
        fleet.start().run(fleet.all_joined, DAY)
        assert all(device.joined for device in fleet.devices.values())
        orders = [fleet.server.update(identity, URL, DIGEST) for identity in fleet.devices]
        fleet.run(lambda: all(order.done for order in orders), DAY)
        assert [order.result(0) for order in orders] == [UpdateState.ACTIVATED] * 20
        assert activated == {(identity, DIGEST): 1 for identity in fleet.devices}
        assert fleet.fetcher.asked == [URL] * 20
        assert fleet.faults() == 0
        assert set(fleet.errors()) == {"ReplayError"}  # the copies, and nothing else
    for identity in fleet.devices:
        assert (tmp_path / f"{identity:x}" / DIGEST).read_bytes() == FIRMWARE


@pytest.mark.parametrize("seed", range(8))
def test_every_accepted_command_ends_and_none_is_done_twice(tmp_path, seed):
    done = Counter()
    with fleet_of(tmp_path, 5, seed, **FAULTS) as fleet:
        for device in fleet.devices.values():
            device.on_action(1)(lambda partner, device=device: done.update([device.identity]))
            device.on_action(2)(lambda partner: False)
        fleet.start().run(fleet.all_joined, DAY)
        futures = {(i, n, k): fleet.server.action(i, n) for i in fleet.devices for n in (1, 2, 3) for k in range(5)}
        texts = {identity: fleet.server.identify(identity) for identity in fleet.devices}
        fleet.run(lambda: all(future.done() for future in [*futures.values(), *texts.values()]), DAY)
        expected = {1: Status.ACTION_SUCCESS, 2: Status.ACTION_FAIL, 3: Status.ACTION_UNKNOWN}
        assert {key: future.result(0) for key, future in futures.items()} == {key: expected[key[1]] for key in futures}
        assert done == dict.fromkeys(fleet.devices, 5)
        assert {i: future.result(0) for i, future in texts.items()} == {i: f"device {i:x}" for i in fleet.devices}
        assert fleet.faults() == 0
        assert fleet.server.debug.pending == []


@pytest.mark.parametrize("seed", range(4))
def test_on_a_dead_link_every_command_ends_all_the_same(tmp_path, seed):
    ran = []
    with fleet_of(tmp_path, 3, seed, **FAULTS) as fleet:
        fleet.start().run(fleet.all_joined, DAY)
        for identity, device in fleet.devices.items():
            device.on_action(1)(ran.append)
            fleet.network.cut(f"device-{identity:x}")
        server = fleet.server
        futures = [ask for i in fleet.devices for ask in (server.action(i, 1), server.identify(i))]
        orders = [server.update(identity, URL, DIGEST, lifetime=3600.0) for identity in fleet.devices]
        fleet.run(lambda: all(ask.done() for ask in [*futures, *(order._done for order in orders)]), 3600.0)
        for future in futures:
            assert isinstance(future.exception(0), UnansweredError)
        for order in orders:
            assert order.state is UpdateState.UNANSWERED
            with pytest.raises(UnansweredError):
                order.result(0)
        fleet.clock.now += 60.0  # more than clocks may differ by
        for identity in fleet.devices:
            fleet.network.heal(f"device-{identity:x}")
        fleet.run(lambda: fleet.network.next_due() is None, DAY)
        assert ran == []  # what piled up at the broker has expired (T4)
        assert fleet.fetcher.asked == []
        again = [server.action(identity, 1) for identity in fleet.devices]
        fleet.run(lambda: all(future.done() for future in again), DAY)
        assert len(ran) == 3


def signature_of_run(tmp_path, seed):
    with fleet_of(tmp_path, 5, seed, **FAULTS) as fleet:
        fleet.start().run(fleet.all_joined, DAY)
        orders = [fleet.server.update(identity, URL, DIGEST) for identity in fleet.devices]
        fleet.run(lambda: all(order.done for order in orders), DAY)
        digest = hashlib.sha256(repr(fleet.network.log).encode()).hexdigest()
        return digest, fleet.clock.now, [agent.counts for agent in fleet.agents]


def test_the_same_seed_gives_the_same_run_to_the_byte(tmp_path):
    one, same, other = (signature_of_run(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert one == same
    assert one[0] != other[0]


@pytest.mark.parametrize("seed", range(4))
def test_devices_that_start_anew_in_the_middle_come_back_and_finish(tmp_path, seed):
    with fleet_of(tmp_path, 6, seed, **FAULTS) as fleet:
        fleet.start().run(fleet.all_joined, DAY)
        orders = [fleet.server.update(identity, URL, DIGEST) for identity in fleet.devices]
        victims = list(fleet.devices)[:3]
        for identity in victims:
            fleet.network.cut(f"device-{identity:x}")
        fleet.run(lambda: all(order.done for order in orders[3:]), DAY)
        for identity in victims:
            fleet.devices[identity].stop()  # with everything that it knew
            fleet.network.heal(f"device-{identity:x}")
            fleet.add(identity).start(threads=False)
        fleet.run(lambda: all(order.done for order in orders), DAY)
        assert [order.result(0) for order in orders] == [UpdateState.ACTIVATED] * 6
        assert fleet.faults() == 0


@pytest.mark.parametrize("seed", range(4))
def test_a_mixed_fleet_reports_each_failure_as_what_it_is(tmp_path, seed):
    missing, wrong = URL + "/missing", URL + "/wrong"
    with fleet_of(tmp_path, 4, seed, **FAULTS) as fleet:
        fleet.fetcher.contents = {URL: FIRMWARE, wrong: b"something else"}
        good, lost, forged, broken = fleet.devices
        fleet.devices[broken].on_activate(lambda path: False)
        fleet.start().run(fleet.all_joined, DAY)
        order_of = fleet.server.update
        orders = {
            order_of(good, URL, DIGEST): None,
            order_of(lost, missing, DIGEST): Status.UPDATE_FAIL_HTTP_ERROR,
            order_of(forged, wrong, DIGEST): Status.UPDATE_FAIL_DIGEST,
            order_of(broken, URL, DIGEST): Status.ACTIVATE_FAIL,
        }
        fleet.run(lambda: all(order.done for order in orders), DAY)
        for order, status in orders.items():
            if status is None:
                assert order.result(0) is UpdateState.ACTIVATED
                continue
            with pytest.raises(UpdateError) as caught:
                order.result(0)
            assert (caught.value.status, order.status, order.state) == (status, status, UpdateState.FAILED)
        assert fleet.faults() == 0


@pytest.mark.parametrize("seed", range(4))
def test_whoever_leaves_is_out_on_both_sides(tmp_path, seed):
    with fleet_of(tmp_path, 2, seed, delay=(0.01, 2.0), duplicate=0.3, reorder=0.3) as fleet:
        fleet.start().run(fleet.all_joined, DAY)
        quits, fired = fleet.devices.values()
        resigned, terminated = quits.resign(), fleet.server.terminate(fired.identity)
        fleet.run(lambda: resigned.done() and terminated.done() and not fired.joined, DAY)
        assert (resigned.result(0), terminated.result(0)) == (None, None)
        assert not quits.joined
        assert fleet.server.members == frozenset()
        fleet.run(lambda: fleet.network.next_due() is None, DAY)
        refused = [fleet.server.action(identity, 1) for identity in fleet.devices] + [quits.action(SERVER, 1)]
        fleet.settle()
        assert [type(future.exception(0)) for future in refused] == [PolicyError] * 3
        quits.join()
        fleet.run(lambda: quits.joined, DAY)
        assert fleet.server.members == {quits.identity}


def test_a_device_goes_on_trying_while_nobody_answers(tmp_path):
    with fleet_of(tmp_path, 1, 0, delay=(0.01, 0.1)) as fleet:
        fleet.network.cut("server")
        fleet.start()
        fleet.run(lambda: fleet.device.counts["unanswered"] == 3, DAY)
        assert not fleet.device.joined
        with pytest.raises(TimeoutError):
            fleet.device.wait_joined(0)
        fleet.network.heal("server")
        fleet.run(lambda: fleet.device.joined, DAY)
        fleet.device.wait_joined(0)
        assert fleet.errors().count("PolicyError") > 0  # the requests that had expired meanwhile


# What has arrived is verified together.


def test_a_batch_is_what_has_arrived_and_keeps_its_order(tmp_path, monkeypatch):
    fleet = Fleet(tmp_path, size=2).joined()
    sizes, heard = [], []
    genuine = inbound.verify_many

    def counted(wires, keys, threads):
        sizes.append(len(wires))
        return genuine(wires, keys, threads)

    monkeypatch.setattr(inbound, "verify_many", counted)
    fleet.server.on_data(kind="uint32")(lambda device, name, value: heard.append((device, value)))
    for value in range(300):
        for device in fleet.devices.values():
            device.send("n", value, "uint32")
    for device in fleet.devices.values():
        device.step()
    fleet.network.inject(f"SRUP/{min(fleet.devices):x}", b"junk")
    sizes.clear()
    fleet.server.step()
    assert sizes == [256, 256, 89]
    for identity in fleet.devices:
        assert [value for device, value in heard if device == identity] == list(range(300))
    assert fleet.errors(fleet.server) == ["DecodeError"]


def test_more_than_can_wait_is_left_with_the_broker(tmp_path, monkeypatch):
    monkeypatch.setattr(inbound, "MAX_WAITING", 5)
    fleet = Fleet(tmp_path, size=1).joined()
    heard = []
    fleet.server.on_data(kind="uint32")(lambda device, name, value: heard.append(value))
    for value in range(9):
        fleet.device.send("n", value, "uint32")
    fleet.device.step()
    fleet.settle()
    assert heard == [0, 1, 2, 3, 4]
    assert fleet.server.counts["overflow"] == 4
    # They were not acknowledged, so the next connection brings them.
    fleet.network.cut("server")
    fleet.settle()
    fleet.network.heal("server")
    fleet.settle()
    assert heard == list(range(9))


# A server that has forgotten its devices finds them again.


def _restarted(fleet):
    """The server as a new process would be: same identity, key and session at the broker, no memory."""
    fleet.server.stop()
    fleet.clock.now += 1
    fleet.server = Server(
        SERVER,
        key_of(SERVER, fleet.scheme),
        devices=fleet.ring,
        broker=MemoryTransport(fleet.network, "server"),
        clock=fleet.clock,
        entropy=fleet.randbytes,
    )
    fleet.server.start(threads=False)
    fleet.settle()
    assert fleet.server.members == frozenset()
    return fleet.server


def test_after_a_loss_of_the_link_a_device_joins_again(tmp_path):
    fleet = Fleet(tmp_path).joined()
    server = _restarted(fleet)
    for step in (fleet.network.cut, fleet.network.heal):
        step(f"device-{fleet.device.identity:x}")
        fleet.settle()
    assert server.members == fleet.devices.keys()
    assert server.action(fleet.device.identity, 9) is not None


def test_a_member_joins_again_every_now_and_then(tmp_path):
    fleet = Fleet(tmp_path).joined()
    server = _restarted(fleet)
    fleet.run(lambda: bool(server.members), REJOIN * 1.3)
    assert server.members == fleet.devices.keys()
    fleet.device.wait_joined(0)


def test_a_member_that_asks_again_is_not_announced_again(tmp_path):
    fleet = Fleet(tmp_path)
    announced, asked = [], []
    fleet.server.on_joined(announced.append)
    fleet.server.on_join(asked.append)
    fleet.joined()
    fleet.run(lambda: len(asked) == 3, REJOIN * 3)
    assert announced == [fleet.device.identity]
    assert fleet.all_joined()


def test_who_has_left_does_not_come_back_by_itself(tmp_path):
    fleet = Fleet(tmp_path).joined()
    fleet.device.resign()
    fleet.settle()
    for _ in range(5):
        fleet.clock.now += REJOIN
        fleet.network.advance(fleet.clock.now)
        fleet.settle()
    assert not fleet.device.joined
    assert fleet.server.members == frozenset()
