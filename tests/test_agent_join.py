"""Joins of running devices: moderated by a person, observed by a machine, commanded; and leaving for good."""

import pytest

from srup import JoinValue, KeyRing, PolicyError, Status, encode, messages
from srup.agent.admission import Admission
from srup.agent.joining import Joining
from srup.agent.members import Members
from srup.session import Policy
from srup.session.events import ObservedJoinRequested
from srup.tokens import bind

from .fleet import SERVER, Fleet, key_of

HOME, AWAY = 0xD0, 0xD1


STRICT = Policy(require_bound_tokens=True)


def human(tmp_path, scheme="ed25519", policy=None, **options):
    """A server that wants a person to compare, and one device; what each of them shows."""
    options = {"admission": "human"} | options
    fleet = Fleet(tmp_path, size=0, scheme=scheme, server_options=options, device_policy=policy)
    pending, shown = [], []
    fleet.server.on_moderation(pending.append)
    device = fleet.add(HOME, join="human")
    device.on_join_value(shown.append)
    return fleet, device, pending, shown


@pytest.mark.parametrize("scheme", ["rsa2048", "ed25519"])
def test_a_person_compares_and_accepts(tmp_path, scheme):
    fleet, device, pending, shown = human(tmp_path, scheme)
    with fleet.start():
        fleet.settle()
        assert not device.joined
        [join] = pending
        [value] = shown
        assert join.value == value
        assert fleet.server.pending_joins == [join]
        join.accept()
        fleet.settle()
        assert fleet.all_joined()
        assert join.status is Status.JOIN_SUCCESS
        assert fleet.server.pending_joins == []
        with pytest.raises(PolicyError, match="is over"):
            join.refuse()
        assert fleet.faults() == 0


@pytest.mark.parametrize(
    ("decision", "status"), [("refuse", Status.JOIN_REFUSED), ("fail", Status.JOIN_FAIL)], ids=["refuse", "fail"]
)
def test_a_person_says_no(tmp_path, decision, status):
    fleet, device, pending, _ = human(tmp_path)
    with fleet.start():
        fleet.settle()
        getattr(pending[0], decision)()
        fleet.settle()
        assert (device.joined, fleet.server.members, pending[0].status) == (False, frozenset(), status)
        with pytest.raises(PolicyError, match=status.name):
            device.wait_joined(0)


def test_nobody_answers_in_time(tmp_path):
    fleet, device, pending, _ = human(tmp_path)
    with fleet.start():
        fleet.settle()
        fleet.run(lambda: pending[0].status, seconds=1000)
        fleet.settle()
        assert pending[0].status is Status.JOIN_FAIL
        assert (device.joined, fleet.server.pending_joins) == (False, [])


def test_without_a_person_a_human_join_is_refused(tmp_path):
    fleet = Fleet(tmp_path, size=0)
    device = fleet.add(HOME, join="human")
    device.on_join_value(lambda value: None)
    with fleet.start():
        fleet.settle()
        with pytest.raises(PolicyError, match="JOIN_REFUSED"):
            device.wait_joined(0)


def test_a_device_that_cannot_show_a_value_says_so_at_the_start(tmp_path):
    fleet = Fleet(tmp_path, size=0)
    device = fleet.add(HOME, join="human")
    with pytest.raises(ValueError, match="on_join_value"):
        device.start(threads=False)
    device.stop()
    fleet.server.stop()


def test_a_simple_join_does_not_get_round_the_person(tmp_path):
    fleet, _, pending, _ = human(tmp_path)
    sneaky = fleet.add(AWAY)
    with fleet.start():
        fleet.settle()
        assert not sneaky.joined
        assert [join.device for join in pending] == [HOME]


def test_a_member_asks_again_without_a_person_and_a_forgetful_server_gets_the_person_again(tmp_path):
    fleet, device, pending, shown = human(tmp_path)
    with fleet.start():
        fleet.settle()
        pending[0].accept()
        fleet.settle()
        device.join()
        fleet.settle()
        assert (device.joined, len(pending), len(shown)) == (True, 1, 1)
        fleet.server.engine.part(Members).identities.clear()  # as after a restart
        fleet.server.debug.session.known.peers[HOME].member = False
        device.join()
        fleet.settle()
        assert (device.joined, len(pending), len(shown)) == (False, 2, 2)
        pending[1].accept()
        fleet.settle()
        assert fleet.all_joined()


def test_the_latest_join_counts(tmp_path):
    fleet, device, pending, shown = human(tmp_path)
    with fleet.start():
        fleet.settle()
        device.join()
        fleet.settle()
        first, second = pending
        assert (first.status, second.status, len(shown)) == (Status.JOIN_FAIL, None, 2)
        with pytest.raises(PolicyError):
            first.accept()
        assert not device.joined
        second.accept()
        fleet.settle()
        assert fleet.all_joined()
        assert shown[1] == second.value
        assert shown[0] != second.value


@pytest.mark.parametrize("seed", range(5))
def test_a_human_join_on_a_bad_link(tmp_path, seed):
    strict = Policy(require_bound_tokens=True)
    faults = {"loss": 0.4, "duplicate": 0.3, "delay": (0.0, 2.0)}
    fleet = Fleet(
        tmp_path,
        size=0,
        seed=seed,
        server_policy=strict,
        device_policy=strict,
        server_options={"admission": "human"},
        **faults,
    )
    device = fleet.add(HOME, join="human")
    pending, shown = [], []
    fleet.server.on_moderation(pending.append)
    device.on_join_value(shown.append)
    with fleet.start():
        fleet.run(lambda: pending and pending[-1].value in shown, seconds=1800)
        pending[-1].accept()
        fleet.run(fleet.all_joined, seconds=1800)
        assert fleet.faults() == 0


def observed(tmp_path, read, **options):
    """A device that joins, and another that reads what the first one shows."""
    fleet = Fleet(tmp_path, size=0, server_options={"admission": "observed", "observers": [AWAY]} | options)
    device = fleet.add(HOME, join="observed", observer=AWAY)
    screen = []
    device.on_join_value(screen.append)
    observer = fleet.add(AWAY, join="human")
    observer.on_join_value(lambda value: None)
    fleet.server.on_moderation(lambda join: join.accept())  # the observer itself
    observer.on_observation(lambda identity: read(screen))
    observer.start(threads=False)
    fleet.server.start(threads=False)
    fleet.settle()
    assert observer.joined
    device.start(threads=False)
    fleet.settle()
    return fleet, device, screen


@pytest.mark.parametrize("form", ["text", "groups", "words"])
def test_an_observer_vouches(tmp_path, form):
    fleet, _, _ = observed(tmp_path, lambda screen: getattr(screen[0], form))
    with fleet:
        assert fleet.all_joined()
        assert fleet.faults() == 0


@pytest.mark.parametrize(
    ("read", "status"),
    [
        (lambda screen: JoinValue.new(bytes(16)), "JOIN_REFUSED"),
        (lambda screen: "", "JOIN_REFUSED"),
        (lambda screen: None, "JOIN_FAIL"),
        (lambda screen: 7, "JOIN_FAIL"),
        (lambda screen: screen[99], "JOIN_FAIL"),
    ],
    ids=["another value", "nothing legible", "nothing", "junk", "raises"],
)
def test_an_observer_that_does_not_see_the_value(tmp_path, read, status):
    fleet, device, _ = observed(tmp_path, read)
    with fleet:
        assert fleet.server.members == {AWAY}
        with pytest.raises(PolicyError, match=status):
            device.wait_joined(0)


def test_an_observer_that_dies(tmp_path):
    fleet, device, _ = observed(tmp_path, lambda screen: None)
    with fleet:
        fleet.devices.pop(AWAY).stop()
        device.join()
        fleet.settle()
        assert not device.joined
        fleet.run(lambda: device.debug.part(Joining).answer.done(), seconds=2000)
        with pytest.raises(PolicyError, match="JOIN_FAIL"):
            device.wait_joined(0)


def test_an_observer_whose_word_does_not_count(tmp_path):
    fleet, device, screen = observed(tmp_path, lambda screen: screen[0], observers=[])
    with fleet:
        assert screen == []
        with pytest.raises(PolicyError, match="JOIN_REFUSED"):
            device.wait_joined(0)


def test_nobody_observes_himself(tmp_path):
    fleet = Fleet(tmp_path, size=0, server_options={"admission": "observed", "observers": [HOME]})
    device = fleet.add(HOME, join="observed", observer=HOME)
    device.on_join_value(lambda value: None)
    device.on_observation(lambda identity: "anything")
    with fleet.start():
        fleet.settle()
        assert not device.joined


def test_a_refused_simple_join_is_told_of_an_observer(tmp_path):
    fleet, _, _ = observed(tmp_path, lambda screen: screen[-1])
    with fleet:
        other = fleet.add(0xD2)
        screen = []
        other.on_join_value(screen.append)
        observer = fleet.devices.pop(AWAY)
        fleet.devices[AWAY] = observer  # looks after the other has shown something
        observer.on_observation(lambda identity: screen[-1])
        other.start(threads=False)
        fleet.settle()
        assert other.joined
        plain = fleet.add(0xD3)  # has nothing to show a value with
        plain.start(threads=False)
        fleet.settle()
        assert not plain.joined
        with pytest.raises(PolicyError, match="JOIN_REFUSED"):
            plain.wait_joined(0)


@pytest.mark.parametrize("admission", ["simple", "observed"])
@pytest.mark.parametrize("again", [True, False])
def test_a_key_that_changes_while_a_join_is_decided_is_not_let_in(tmp_path, admission, again):
    """What was compared is the thing with the old key; the new one has proved nothing."""
    fleet = Fleet(tmp_path, size=0, server_options={"observers": [AWAY]})
    joined, screen = [], []
    fleet.server.on_joined(joined.append)
    fleet.add(AWAY)
    with fleet.joined():
        fleet.server.engine.part(Admission).kind = admission

        def replace(*_):
            fleet.ring.remove(HOME)
            if again:
                fleet.ring.add(HOME, key_of(0x99).public_key)
            return screen[-1] if screen else None

        if admission == "simple":
            device = fleet.add(HOME)
            fleet.server.on_join(replace)
        else:
            device = fleet.add(HOME, join="observed", observer=AWAY)
            device.on_join_value(screen.append)
            fleet.devices[AWAY].on_observation(replace)
            fleet.devices[AWAY] = fleet.devices.pop(AWAY)  # looks after the device has shown something
        device.start(threads=False)
        fleet.settle()
        assert len(screen) == (admission == "observed")
        assert (device.joined, fleet.server.members, joined) == (False, {AWAY}, [AWAY])
        assert fleet.faults() == 0


def test_nothing_is_decided_when_the_server_was_stopped(tmp_path):
    fleet, _, pending, _ = human(tmp_path)
    with fleet.start():
        fleet.settle()
        fleet.server.stop()
        with pytest.raises(PolicyError, match="stopped"):
            pending[0].accept()


def test_the_server_may_name_another_observer_the_next_time(tmp_path):
    """The word of the first one counts as long as it is there; then the device is told of the second."""
    fleet = Fleet(tmp_path, size=0, server_options={"observers": [AWAY, 0xD2]})
    screen, not_joined = [], []
    device = fleet.add(HOME)  # asks simply, and does as it is told
    device.on_join_value(screen.append)
    device.on_not_joined(not_joined.append)
    for observer in (AWAY, 0xD2):
        fleet.add(observer).on_observation(lambda identity: screen[-1])
    with fleet.joined():
        fleet.server.engine.part(Admission).kind = "observed"
        for gone in (None, AWAY, 0xD2):
            waiting = device.resign()
            fleet.settle()
            assert waiting.result(0) is None
            if gone is not None:
                fleet.devices[gone].resign()
                fleet.settle()
            device.join()
            fleet.settle()
            assert device.joined is (gone != 0xD2)
        assert len(screen) == 2
        assert not_joined == [Status.JOIN_REFUSED]  # nobody is left who could be named
        assert fleet.faults() == 0


def test_who_waits_for_a_join_waits_for_the_one_that_the_server_has_advised(tmp_path):
    fleet, _, _ = observed(tmp_path, lambda screen: screen[-1])
    with fleet:
        other = fleet.add(0xD2)
        screen = []
        other.on_join_value(screen.append)
        fleet.devices[AWAY] = fleet.devices.pop(AWAY)  # looks after the other has shown something
        waited = other.debug.part(Joining).answer
        fleet.devices[AWAY].on_observation(lambda identity: screen[-1])
        other.start(threads=False)
        fleet.settle()
        assert waited.result(0) is None


def test_an_advice_is_followed_once(tmp_path):
    """A server that refuses the join that it has advised, and advises another, is not asked for ever."""
    fleet, _, _ = observed(tmp_path, lambda screen: screen[-1])
    with fleet:
        other = fleet.add(0xD2)
        other.on_join_value(lambda value: None)
        asked = []

        def refuse(transaction, event):
            asked.append(event.observer)
            named = AWAY if len(asked) < 10 else None
            session, now = fleet.server.debug.session, fleet.clock()
            outputs = session.answer_join(event.peer, event.token, Status.JOIN_REFUSED, now, named)
            fleet.server.engine.perform(transaction, outputs[::-1])  # the refusal comes first

        fleet.server.engine.listeners(ObservedJoinRequested)[:] = [refuse]
        not_joined = []
        other.on_not_joined(not_joined.append)
        other.start(threads=False)
        fleet.settle()
        assert (asked, not_joined) == ([AWAY], [Status.JOIN_REFUSED])


# Commands.


def two_servers(tmp_path, **options):
    """A device at one server that knows another; both servers on one network."""
    fleet = Fleet(tmp_path, size=0)
    other = Fleet.__new__(Fleet)
    other.__dict__.update(fleet.__dict__)
    from srup import Server
    from srup.transport import MemoryTransport

    second = Server(
        0x5F,
        key_of(0x5F),
        devices=fleet.ring,
        broker=MemoryTransport(fleet.network, "second"),
        clock=fleet.clock,
        entropy=fleet.randbytes,
    )
    fleet.devices["second"] = second  # steps with the others
    device = fleet.add(HOME, servers=KeyRing({0x5F: key_of(0x5F).public_key}), **options)
    fleet.start()
    fleet.settle()
    assert device.joined
    return fleet, device, second


def test_the_present_server_hands_a_device_over(tmp_path):
    fleet, device, second = two_servers(tmp_path)
    with fleet:
        answer = fleet.server.command_join(HOME, server=0x5F)
        fleet.settle()
        assert answer.result(0) is Status.JOIN_SUCCESS
        assert device.server == 0x5F
        assert (fleet.server.members, second.members) == (frozenset(), {HOME})
        assert second.action(HOME, 1)
        fleet.settle()
        assert fleet.faults() == 0


def test_a_command_to_come_where_one_is(tmp_path):
    fleet, device, _ = two_servers(tmp_path)
    with fleet:
        here, nowhere = fleet.server.command_join(HOME, server=SERVER), fleet.server.command_join(HOME, server=HOME)
        fleet.settle()
        assert here.result(0) is Status.JOIN_SUCCESS
        with pytest.raises(PolicyError, match="itself"):
            nowhere.result(0)
        assert device.joined


def test_a_commander_takes_a_device(tmp_path):
    fleet, device, second = two_servers(tmp_path, commanders=[0x5F])
    with fleet:
        answer = second.command_join(HOME)
        fleet.settle()
        assert answer.result(0) is Status.JOIN_SUCCESS
        assert (device.server, fleet.server.members, second.members) == (0x5F, frozenset(), {HOME})


def test_a_hand_over_to_a_server_that_the_device_does_not_know(tmp_path):
    fleet, device, _ = two_servers(tmp_path)
    with fleet:
        answer = fleet.server.command_join(HOME, server=0x99)
        fleet.settle()
        assert answer.result(0) is Status.JOIN_REFUSED
        assert (device.server, device.joined) == (SERVER, True)


# Leaving for good.


def test_a_device_deregisters(tmp_path):
    with Fleet(tmp_path).joined() as fleet:
        gone = []
        fleet.server.on_deregistered(gone.append)
        fleet.device.on_deregistered(gone.append)
        done = fleet.device.deregister()
        fleet.settle()
        assert done.result(0) is None
        assert gone == [fleet.device.identity, SERVER] or gone == [SERVER, fleet.device.identity]
        assert fleet.ring == {}
        assert fleet.server.members == frozenset()
        assert SERVER not in fleet.device.debug.session.servers
        fleet.device.join()
        fleet.settle()
        assert fleet.server.members == frozenset()


def test_a_server_deregisters_a_device(tmp_path):
    with Fleet(tmp_path).joined() as fleet:
        done = fleet.server.deregister(fleet.device.identity)
        fleet.settle()
        assert done.result(0) is None
        assert (fleet.ring, fleet.server.members, fleet.device.joined) == ({}, frozenset(), False)
        assert SERVER not in fleet.device.debug.session.servers


def test_a_device_changes_its_owner_under_a_new_identity(tmp_path):
    with Fleet(tmp_path).joined() as fleet:
        old = fleet.device
        old.deregister()
        fleet.settle()
        fleet.devices.clear()
        old.stop()
        new = fleet.add(0xE0)
        new.start(threads=False)
        fleet.settle()
        assert fleet.all_joined()
        assert old.identity not in fleet.ring
        message = messages.Action(sequence_id=1 << 63, sender_id=old.identity, token=b"t", action_id=1)
        assert message.sender_id not in fleet.ring


# What the application is told.


def test_the_end_of_a_join_is_told_at_both_ends(tmp_path):
    fleet, device, pending, _ = human(tmp_path)
    ended, refused = [], []
    device.on_not_joined(ended.append)
    device.on_joined(lambda: ended.append("joined"))
    fleet.server.on_not_joined(lambda *about: refused.append(about))
    with fleet.start():
        fleet.settle()
        pending[0].refuse()
        fleet.settle()
        assert (ended, refused) == ([Status.JOIN_REFUSED], [(HOME, Status.JOIN_REFUSED)])
        device.join()
        fleet.settle()
        pending[1].accept()
        fleet.settle()
        assert ended == [Status.JOIN_REFUSED, "joined"]
        assert len(refused) == 1


def test_a_value_is_void_when_the_server_is_silent(tmp_path):
    fleet, device, _, shown = human(tmp_path)
    ended = []
    device.on_not_joined(ended.append)
    with fleet.start():
        fleet.settle()
        fleet.server.stop()
        fleet.run(lambda: ended, seconds=2000)
        assert ended[0] is None
        assert (len(shown), device.joined) == (1, False)


def test_a_pending_join_knows_its_end(tmp_path):
    """The device's patience counts as well as the server's: whichever ends first."""
    for own, others, expected in ((60.0, 900.0, 60.0), (900.0, 60.0, 60.0)):
        fleet = Fleet(
            tmp_path,
            size=0,
            server_options={"admission": "human"},
            server_policy=Policy(join_lifetime=own),
            device_policy=Policy(join_lifetime=others),
        )
        pending = []
        fleet.server.on_moderation(pending.append)
        device = fleet.add(HOME, join="human")
        device.on_join_value(lambda value: None)
        with fleet.start():
            fleet.settle()
            assert 0 < pending[0].expires - fleet.clock() <= expected + Policy().clock_skew + 1


def test_a_simple_join_that_goes_on_with_an_observer_has_not_ended(tmp_path):
    fleet, _, _ = observed(tmp_path, lambda screen: None)
    with fleet:
        other, ended, screen = fleet.add(0xD2), [], []
        other.on_join_value(screen.append)
        other.on_not_joined(lambda status: ended.append((status, len(screen))))
        other.start(threads=False)
        fleet.settle()
        assert ended == [(Status.JOIN_FAIL, 1)]  # not before the observer has answered


def test_the_link_is_told(tmp_path):
    fleet = Fleet(tmp_path, size=0)
    device, told = fleet.add(HOME), []
    device.on_link(lambda *about: told.append(about))
    with fleet.start():
        fleet.settle()
        [(connected, why)] = told
        assert connected
        assert isinstance(why, str)


def test_the_value_of_a_server_that_starts_anew_is_shown(tmp_path):
    """It knows nothing of the first value; without this the two sides would never be the same."""
    from srup import Server
    from srup.transport import MemoryTransport

    fleet, _, _, shown = human(tmp_path, policy=STRICT)
    with fleet.start():
        fleet.settle()
        fleet.server.stop()
        fleet.server = Server(
            SERVER,
            key_of(SERVER),
            devices=fleet.ring,
            broker=MemoryTransport(fleet.network, "server"),
            clock=fleet.clock,
            entropy=fleet.randbytes,
            admission="human",
        )
        pending = []
        fleet.server.on_moderation(pending.append)
        fleet.server.start(threads=False)
        fleet.run(lambda: len(shown) == 2, seconds=200)
        assert pending[-1].value == shown[-1] != shown[0]
        pending[-1].accept()
        fleet.settle()
        assert fleet.all_joined()


def test_a_value_that_is_sent_again_is_shown_once(tmp_path):
    fleet, device, pending, shown = human(tmp_path, policy=STRICT)
    with fleet.start():
        fleet.settle()
        sent = device.counts["sent"]
        fleet.run(lambda: device.counts["sent"] == sent + 3, seconds=200)
        fleet.settle()
        assert len(shown) == len(pending) == 1
        assert device.counts["received"] >= 4


# What a fresh reader found.


def exhaust(fleet, device):
    """Let a device use up all sequence ids, as only its owner can."""
    wire = encode(
        messages.Data(
            sequence_id=2**64 - 1,
            sender_id=device.identity,
            token=bind(device.identity, SERVER, fleet.clock() + 60, fleet.randbytes(16)),
            data_id="x",
            data=b"",
        ),
        key_of(device.identity),
    )
    fleet.network.inject(f"SRUP/{device.identity:x}", wire)
    fleet.settle()


@pytest.mark.parametrize("way", ["terminate", "deregister"])
def test_a_device_without_sequence_ids_can_be_put_out(tmp_path, way):
    with Fleet(tmp_path).joined() as fleet:
        fleet.server.on_data()(lambda *_: None)
        exhaust(fleet, fleet.device)
        done = getattr(fleet.server, way)(fleet.device.identity)
        fleet.settle()
        assert done.result(0) is None
        assert fleet.server.members == frozenset()
        assert (fleet.device.identity in fleet.ring) is (way == "terminate")


def test_a_device_without_sequence_ids_is_no_trouble_for_others(tmp_path):
    fleet, device, pending, _ = human(tmp_path)
    good = fleet.add(AWAY, join="human")
    good.on_join_value(lambda value: None)
    with fleet.start():
        fleet.settle()
        exhaust(fleet, device)
        fleet.run(lambda: all(join.status for join in pending), seconds=2000)
        assert [join.status for join in pending] == [Status.JOIN_FAIL] * 2
        assert fleet.server.pending_joins == []
        assert fleet.faults() == 0


@pytest.mark.parametrize("way", ["deregistered", "replaced"])
def test_nobody_inherits_the_join_of_another_key(tmp_path, way):
    fleet, _, pending, _ = human(tmp_path)
    stranger = key_of(0xEE).public_key
    with fleet.start():
        fleet.settle()
        if way == "deregistered":
            fleet.server.deregister(HOME)
            fleet.settle()
            fleet.ring.add(HOME, stranger)
        else:
            fleet.ring.replace(HOME, stranger)
        with pytest.raises(PolicyError):
            pending[0].accept()
        fleet.settle()
        assert fleet.server.members == frozenset()


def test_nobody_inherits_the_membership_or_the_sequence_ids_of_another_key(tmp_path):
    with Fleet(tmp_path).joined() as fleet:
        heard = []
        fleet.server.on_data("x")(lambda *value: heard.append(value))
        exhaust(fleet, fleet.device)
        heard.clear()
        fleet.ring.remove(fleet.device.identity)
        fleet.ring.add(fleet.device.identity, key_of(0xEE).public_key)
        fields = {"sender_id": fleet.device.identity, "data_id": "x", "data": b""}
        token = bind(fleet.device.identity, SERVER, fleet.clock() + 60, fleet.randbytes(16))
        fleet.network.inject(
            f"SRUP/{fleet.device.identity:x}",
            encode(messages.Data(sequence_id=7, token=token, **fields), key_of(0xEE)),
        )
        fleet.settle()
        assert (heard, fleet.server.members) == ([], frozenset())
        fleet.scheme = "p256"  # a third key: the first one has used up its sequence ids for good
        owner = fleet.add(fleet.device.identity, server_key=key_of(SERVER).public_key)
        fleet.ring.replace(owner.identity, key_of(owner.identity, fleet.scheme).public_key)
        owner.start(threads=False)
        fleet.settle()
        assert fleet.server.members == {owner.identity}


def test_a_join_is_decided_once_and_in_time(tmp_path):
    fleet, _, pending, _ = human(tmp_path)
    with fleet.start():
        fleet.settle()
        pending[0].accept()
        with pytest.raises(PolicyError, match="has been decided"):
            pending[0].refuse()
        fleet.settle()
        assert fleet.all_joined()
    fleet, _, pending, _ = human(tmp_path)
    with fleet.start():
        fleet.settle()
        fleet.clock.now += 5000
        with pytest.raises(PolicyError, match="time was up"):
            pending[0].accept()


def test_a_device_that_has_parted_for_good_says_so_when_it_is_to_join(tmp_path):
    with Fleet(tmp_path).joined() as fleet:
        fleet.device.deregister()
        fleet.settle()
        fleet.device.join()
        fleet.settle()
        with pytest.raises(PolicyError, match="none of this device's servers"):
            fleet.device.wait_joined(0)
        assert fleet.faults() == 0


def test_a_device_that_left_before_it_was_let_in_is_out(tmp_path):
    fleet, device, pending, _ = human(tmp_path)
    with fleet.start():
        fleet.settle()
        assert device_resigns(fleet, device) is None  # the join is taken back
        with pytest.raises(PolicyError, match="is over"):
            pending[0].accept()
        fleet.settle()
        assert (device.joined, fleet.server.members) == (False, frozenset())


def device_resigns(fleet, device):
    """Let a device that is not a member yet say that it leaves."""
    done = device.resign()
    fleet.settle()
    return done.result(0)


@pytest.mark.parametrize("way", ["revoke", "terminate", "deregister", "another key", "resign"])
def test_a_join_does_not_wait_for_an_observer_that_is_gone(tmp_path, way):
    looks = []
    fleet, device, _ = observed(tmp_path, lambda screen: looks.append(1))
    with fleet:
        fleet.network.cut(f"device-{AWAY:x}")  # it hears nothing from here on
        device.join()
        fleet.settle()
        assert not device.debug.part(Joining).answer.done()
        match way:
            case "another key":
                fleet.ring.replace(AWAY, key_of(0x77).public_key)
                wire = messages.JoinRequest(sequence_id=2**60, sender_id=AWAY, token=b"another")
                fleet.network.inject(f"SRUP/servers/{SERVER:x}/{AWAY:x}", encode(wire, key_of(0x77)))
            case "resign":
                token = bind(AWAY, SERVER, fleet.clock() + 60, bytes(16))
                wire = messages.ResignRequest(sequence_id=2**60, sender_id=AWAY, token=token)
                fleet.network.inject(f"SRUP/{AWAY:x}", encode(wire, key_of(AWAY)))
            case _:
                getattr(fleet.server, way)(AWAY)
        fleet.settle()  # which takes no time
        with pytest.raises(PolicyError, match="JOIN_FAIL"):
            device.wait_joined(0)
        assert AWAY not in fleet.server.members or way == "another key"
        assert (len(looks), fleet.faults()) == (1, 0)


def test_a_command_to_join_that_reaches_a_member_is_answered(tmp_path):
    with Fleet(tmp_path).joined() as fleet:
        answer = fleet.server.command_join(fleet.device.identity)
        fleet.settle()
        assert answer.result(0) is Status.JOIN_SUCCESS
        assert fleet.all_joined()


# Why a device was not let in.

WHY_NOT = {
    "simple is not enough": (
        {"admission": "human"},
        {},
        "a simple join is not enough, this server wants one that is human",
    ),
    "nobody compares": ({}, {"join": "human"}, "nobody compares values at this server"),
    "a stranger observes": ({}, {"join": "observed", "observer": AWAY}, f"{AWAY:x} is none of this server's observers"),
    "the observer is away": (
        {"observers": [AWAY]},
        {"join": "observed", "observer": AWAY},
        f"the observer {AWAY:x} has not joined",
    ),
}


@pytest.mark.parametrize(("server_options", "options", "why"), WHY_NOT.values(), ids=WHY_NOT)
@pytest.mark.parametrize("seed", range(3))
def test_both_sides_know_why_a_join_is_refused(tmp_path, seed, server_options, options, why, caplog):
    caplog.set_level("INFO", "srup.agent")
    fleet = Fleet(tmp_path, size=0, seed=seed, server_options=server_options, delay=(0.0, 2.0))
    device = fleet.add(HOME, **options)
    device.on_join_value(lambda value: None)
    with fleet.start():
        fleet.run(lambda: device.debug.part(Joining).answer.done() and device.refusal, seconds=600)
        assert why in fleet.server.refusal_of(HOME)
        assert why in device.refusal
        with pytest.raises(PolicyError, match="JOIN_REFUSED"):
            device.wait_joined(0)
    assert f"{HOME:x} was not let in: JOIN_REFUSED: {why}" in caplog.text
    assert caplog.text.count(why) >= 2  # in the log of the device, too, in whatever order it came


def test_a_reason_of_the_network_steers_no_terminal(tmp_path):
    fleet = Fleet(tmp_path, size=0, server_options={"admission": "human"})
    device = fleet.add(HOME)
    with fleet.start():
        session = fleet.server.debug.session
        answer = session.answer_join
        session.answer_join = lambda *about: answer(*about[:-1], "no\x1b[2J\n" + "x" * 1000)
        fleet.settle()
        assert device.refusal.startswith("no\\x1b[2J\\n")
        assert len(device.refusal) < 450
        session.answer_join = answer
        fleet.server.debug.part(Admission).kind = "simple"
        device.join()
        fleet.settle()
        assert (device.joined, device.refusal, fleet.server.refusal_of(HOME)) == (True, "", "")


def test_a_mistyped_value_is_asked_for_again(tmp_path):
    typed, mistakes = [], []
    fleet, device, _ = observed(tmp_path, lambda screen: None)
    with fleet:
        fleet.devices[AWAY].on_observation(
            lambda identity: typed.pop(0), attempts=3, on_mistake=lambda *about: mistakes.append(about)
        )
        for lines, status in ((["x", "y", "z"], "JOIN_REFUSED"), (["x", None], "JOIN_FAIL")):
            typed[:], mistakes[:] = lines, []
            device.join()
            fleet.settle()
            with pytest.raises(PolicyError, match=status):
                device.wait_joined(0)
            assert (typed, mistakes) == ([], [(HOME, 2), (HOME, 1)][: len(lines) - 1])
            fleet.clock.now += 10.0  # an observer is asked about a device twice in five seconds at most
        device.on_join_value(lambda value: typed.__setitem__(slice(None), ["x", "y", value.groups]))
        device.join()
        fleet.settle()
        assert device.joined
        with pytest.raises(ValueError, match="attempts"):
            device.on_observation(lambda identity: None, attempts=0)


@pytest.mark.parametrize("fails", [True, False])
def test_a_member_that_is_put_out_by_one_answer_is_not_let_in_unseen_by_the_next(tmp_path, fails):
    """A member may ask in a simple way. It has asked twice, and the first answer ends its membership."""
    fleet, device, pending, _ = human(tmp_path, policy=STRICT)
    answers = [Status.JOIN_FAIL if fails else Status.JOIN_SUCCESS, Status.JOIN_SUCCESS]
    with fleet.start():
        fleet.settle()
        pending.pop().accept()
        fleet.settle()
        assert fleet.all_joined()
        fleet.server.on_join(lambda _: answers.pop(0))
        for _ in range(2):
            device.join()
            device.step()
        fleet.settle()
        assert answers == []
        assert bool(fleet.server.members) is not fails
        fleet.server.on_join(lambda _: True)
        device.join()
        fleet.settle()
        assert len(pending) == fails  # a person compares again
        assert fleet.all_joined() is not fails
