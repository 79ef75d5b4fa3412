"""The audit of a fleet: both directions with their signed bytes, who ordered what, and what a signature is worth."""

import json
import random
from contextlib import closing
from dataclasses import replace

import pytest

from srup import Fleet, MemoryStore, SqliteStore, Status
from srup.agent.audit import BURST, OURS, PLAIN, ROW_BYTES, AuditQuota, Signers
from srup.agent.verbs import DoAction
from srup.fleet import AuditRecord, Verdict
from srup.records import SIGNER_PRECISION, AuditRow, Changes, SignerRecord
from srup.store import Leases, RedisStore
from srup.update import UpdateState

from .fleet import DIGEST, SERVER, URL, key_of
from .redis_server import redis_server
from .test_agent_durable import DAY
from .test_agent_ordered import OrderedFleet

DEVICE = 0xD0


@pytest.fixture
def fleet(tmp_path):
    return OrderedFleet(tmp_path)


def control(fleet, **options):
    return Fleet(fleet.store(SERVER), SERVER, **options)


def lines(records):
    return [(each.direction, each.message, each.outcome) for each in records]


def test_an_order_and_its_answer_are_there_with_who_posted_it(fleet):
    fleet.joined()
    device = fleet.device.identity
    fleet.order("action", action_id=7, posted_by="alice")
    fleet.settle()
    with control(fleet) as plane:
        *before, sent, received, ended = plane.audit(newest_first=False)
        assert lines(before) == [("received", "JoinRequest", "accepted"), ("sent", "Response", "JOIN_SUCCESS")]
        assert lines([sent, received, ended]) == [
            ("sent", "Action", "sent"),
            ("received", "Response", "ACTION_SUCCESS"),
            ("ordered", "action", "ACTION_SUCCESS"),
        ]
        assert {each.posted_by for each in (sent, received, ended)} == {"alice"}
        assert {each.order for each in (sent, received, ended)} == {f"{device:x}.{bytes(16).hex()}"}
        assert {each.posted_by for each in before} == {None}
        assert sent.token == received.token
        assert sent.fingerprint == key_of(SERVER).public_key.fingerprint
        assert received.fingerprint == key_of(device).public_key.fingerprint
        assert [plane.verify(each)[0] for each in (sent, received)] == [Verdict.VALID] * 2
        assert plane.verify(ended) == (Verdict.ABSENT, "it was no message")
        assert [*plane.audit()] == [ended, received, sent, *reversed(before)]


@pytest.mark.parametrize("crash", [False, True], ids=["going on", "after a crash"])
def test_every_message_of_an_update_belongs_to_its_order(fleet, crash):
    fleet.joined()
    reports = fleet.order("update", url=URL, digest=DIGEST, hold=True, posted_by="Zoë, on call")
    fleet.run(lambda: reports[-1].state == "READY", DAY)
    if crash:
        fleet.crash_server()
    fleet.order("activate", update=reports[0].token, posted_by="bob")
    fleet.run(lambda: reports[-1].over, DAY)
    assert reports[-1].result() is UpdateState.ACTIVATED
    with control(fleet) as plane:
        of_update = [each for each in plane.audit(newest_first=False) if each.posted_by == "Zoë, on call"]
        assert lines(of_update) == [
            ("sent", "Initiate", "sent"),
            ("received", "Response", "UPDATE_SUCCESS"),
            ("received", "Response", "ACTIVATE_SUCCESS"),
            ("ordered", "update", "ACTIVATED"),
        ]
        by_bob = [each for each in plane.audit(newest_first=False) if each.posted_by == "bob"]
        assert lines(by_bob) == [("sent", "Activate", "sent"), ("ordered", "activate", "DONE")]


def test_what_is_ordered_without_a_message_is_there_too(fleet):
    fleet.joined()
    fleet.order("tag", name="site", value="berlin", posted_by="alice")
    fleet.settle()
    fleet.order("action", action_id=7, posted_by="alice")
    fleet.order("revoke", posted_by="bob")
    fleet.settle()
    with control(fleet) as plane:
        ended = [each for each in plane.audit(newest_first=False) if each.direction == "ordered"]
        assert [(each.message, each.outcome, each.posted_by) for each in ended] == [
            ("tag", "DONE", "alice"),
            ("revoke", "DONE", "bob"),
            ("action", "FAILED: PolicyError", "alice"),
        ]


def test_what_was_signed_before_a_key_changed_can_still_be_checked(fleet):
    fleet.joined()
    for number, key in ((0, None), (1, key_of(0x77))):
        if key is not None:
            fleet.device.rotate_key(key)
            fleet.settle()
        fleet.order("action", action_id=7, posted_by=str(number))
        fleet.settle()
    with control(fleet) as plane:
        answers = [each for each in plane.audit(newest_first=False) if each.direction == "received" and each.posted_by]
        assert [each.fingerprint for each in answers] == [
            key_of(fleet.device.identity).public_key.fingerprint,
            key_of(0x77).public_key.fingerprint,
        ]
        fleet.order("revoke")
        fleet.settle()
        assert {plane.verify(each)[0] for each in plane.audit() if each.wire} == {Verdict.VALID}


def test_a_request_that_is_repeated_has_one_row(fleet):
    fleet.joined()
    fleet.network.cut(f"device-{fleet.device.identity:x}")
    reports = fleet.order("action", action_id=7)
    until = fleet.clock.now + 300.0
    fleet.run(lambda: fleet.clock.now >= until or reports[-1].over, DAY)
    sent = [each for each in control(fleet).audit() if each.message == "Action"]
    assert fleet.server.counts["sent"] > 3
    assert len(sent) == 1


def test_who_posts_is_the_control_planes_unless_an_order_says_so(tmp_path):
    store = MemoryStore()
    store.open(SERVER)
    with Fleet(store, SERVER, posted_by="alice") as plane:
        plane.action(DEVICE, 1)
        plane.post(DoAction(DEVICE, 2, posted_by="bob"))
        plane.revoke(DEVICE)
        read = store.mailbox(SERVER).read({0: srup_position()}, 0.0)
    posted = [json.loads(entry.order).get("posted_by") for _, entry in read if not entry.urgent]
    assert posted == ["alice", "bob", "alice"]
    for wrong in ("x" * 101, "a\nb", None):
        with pytest.raises((ValueError, TypeError), match="posted_by"):
            Fleet(store, SERVER, posted_by=wrong)


def srup_position():
    from srup.store.mailbox import Position

    return Position()


def test_a_record_that_was_changed_is_not_valid(fleet):
    fleet.joined()
    fleet.order("action", action_id=7)
    fleet.settle()
    plane = control(fleet)
    [sent] = [each for each in plane.audit() if each.message == "Action"]
    assert plane.verify(sent) == (Verdict.VALID, "")
    other = next(each for each in plane.audit() if each.message == "JoinRequest")
    for change, why in {
        "sequence_id": (sent.sequence_id + 1, "sequence_id"),
        "token": ("another", "token"),
        "message": ("Activate", "message"),
        "direction": ("received", "sender"),
        "wire": (sent.wire[:-1] + bytes([sent.wire[-1] ^ 1]), "not signed"),
        "fingerprint": (other.fingerprint, "not signed"),
    }.items():
        verdict, told = plane.verify(replace(sent, **{change: why[0]}))
        assert verdict is Verdict.INVALID, change
        assert why[1] in told
    assert plane.verify(replace(sent, wire=None)) == (Verdict.ABSENT, "its signed bytes are not kept")
    assert plane.verify(replace(sent, fingerprint="00" * 32))[0] is Verdict.UNKNOWN


# --- What every store does with it.


def full(number, at, partner=DEVICE, **more):
    row = AuditRow(at, partner, number, 3, b"token", "sent", True, bytes([number % 256]) * 300, b"f" * 32, b"o" * 16)
    return row._replace(**{"posted_by": "Zoë"} | more)


class Redis:
    """A store of one partition and what reads it."""

    def __init__(self, url):
        RedisStore.create(url, SERVER, partitions=1)
        self.store = RedisStore(Leases(url, SERVER, ttl=3600.0).step().gained[0])
        self.place = url


@pytest.fixture(params=["memory", "sqlite", pytest.param("redis", marks=pytest.mark.process)])
def kept(request, tmp_path):
    """A store that is open, and what a Fleet is told of it."""
    if request.param == "redis":
        with redis_server(tmp_path / "redis") as server:
            redis = Redis(server.url)
            redis.store.open(SERVER)
            yield redis.store, redis.place
        return
    store = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "server.db")
    store.open(SERVER)
    yield store, store if request.param == "memory" else tmp_path / "server.db"
    store.close()


def test_rows_come_back_as_they_were(kept):
    store, place = kept
    rows = [
        full(1, 1.0),
        full(2, 2.0, wire=None, signer=b"", order=b"", sent=False),
        full(3, 3.0, wire=b"", posted_by=""),
        full(4, 4.0, wire=b"\x00" * 65_535, outcome="zurück" * 100),
    ]
    store.commit(Changes(audit=rows))
    assert [*store.audit()] == rows
    with Fleet(place, SERVER) as plane:
        assert [*plane.audit(newest_first=False)] == [AuditRecord.of(row, SERVER) for row in rows]


def test_spans_in_both_orders_over_many_pages(kept):
    store, place = kept
    rows = [full(number, float(number // 3), DEVICE + number % 2, wire=None) for number in range(2_501)]
    store.commit(Changes(audit=rows[:1_100]))
    store.commit(Changes(audit=rows[1_100:]))
    with Fleet(place, SERVER) as plane:
        for since, until, device in ((None, None, None), (10.0, 700.0, None), (3.0, 800.5, DEVICE), (900.0, None, 1)):
            expected = [
                row.sequence_id
                for row in rows
                if (since or 0.0) <= row.at < (until or 1e9) and device in (None, row.partner)
            ]
            for newest_first in (False, True):
                found = plane.audit(device, since, until, newest_first)
                assert [each.sequence_id for each in found] == expected[:: -1 if newest_first else 1]
                own = store.audit(since or 0.0, device, until, newest_first=newest_first)
                assert [row.sequence_id for row in own] == expected[:: -1 if newest_first else 1]


def test_rows_may_be_added_while_the_newest_are_read(kept):
    store, place = kept
    store.commit(Changes(audit=[full(number, 5.0, wire=None) for number in range(1_500)]))
    with Fleet(place, SERVER) as plane:
        reading = plane.audit()
        found = [next(reading) for _ in range(10)]
        store.commit(Changes(audit=[full(number, 5.0 + number % 2, wire=None) for number in range(1_500, 1_700)]))
        found += reading
    assert [each.sequence_id for each in found if each.sequence_id < 1_500] == [*range(1_499, -1, -1)]


def test_keys_stay_as_long_as_a_row_may_need_them(kept):
    store, place = kept
    pem = key_of(1).public_key.to_pem()
    fingerprint = bytes.fromhex(key_of(1).public_key.fingerprint)
    records = [SignerRecord(fingerprint, pem, 1e6), SignerRecord(b"2" * 32, b"two", 2e6)]
    store.commit(Changes(signers=records, audit=[full(1, 1e6, signer=fingerprint), full(2, 2e6, signer=b"2" * 32)]))
    assert (store.signer(fingerprint), store.signer(b"2" * 32), store.signer(b"3" * 32)) == (pem, b"two", None)
    assert store.prune(1e6 + SIGNER_PRECISION) == 1
    assert store.signer(fingerprint) == pem  # a row that is so late could be its
    assert store.prune(1e6 + SIGNER_PRECISION + 1) == 0
    assert (store.signer(fingerprint), store.signer(b"2" * 32)) == (None, b"two")
    store.commit(Changes(signers=[SignerRecord(b"2" * 32, b"two", 3e6)]))  # used again
    assert store.prune(2e6 + 1e5) == 1
    assert store.signer(b"2" * 32) == b"two"
    with Fleet(place, SERVER) as plane:
        assert [*plane.audit()] == []


# --- Bounds.


def test_t24_signed_bytes_count_and_give_way_before_rows():
    quota = AuditQuota()
    size = 10 * ROW_BYTES
    kept = sum(quota.admits(1, 1e9, size) for _ in range(3_000))
    assert kept == int(0.6 * BURST / 11)
    rows = sum(quota.admits(1, 1e9) for _ in range(3_000))
    assert kept * 11 + rows <= 0.8 * BURST
    assert not quota.admits(1, 1e9 + 5.0, size)
    assert quota.admits(1, 1e9 + 5.0)


def test_t24_what_partners_begin_leaves_room_for_what_we_ask():
    quota = AuditQuota()
    for kind in (PLAIN, *[0] * 5_000):
        _ = quota.admits(1, 1e9, 300, kind) or quota.admits(1, 1e9, 0, kind)
    assert not quota.admits(1, 1e9, 0, PLAIN)
    assert quota.admits(1, 1e9)
    for _ in range(5_000):
        _ = quota.admits(1, 1e9, 300) or quota.admits(1, 1e9)
    assert not quota.admits(1, 1e9)
    assert quota.admits(1, 1e9, 300, OURS)
    assert sum(quota.admits(1, 1e9, 0, OURS) for _ in range(1_000)) > 150


def test_t24_the_bytes_of_all_partners_together_have_a_bound():
    quota = AuditQuota()
    size, chosen = 65_535, random.Random(1)
    admitted = sum(quota.admits(chosen.randrange(100_000), 1e9, size) for _ in range(20_000))
    assert admitted * size <= 1_000 * BURST * ROW_BYTES


def test_few_keys_are_remembered_and_written_again_in_time():
    signers, key = Signers(), key_of(1).public_key
    records = []
    for _ in range(3):
        assert signers.note(records, 7, key, 1e9).hex() == key.fingerprint
    assert records == [SignerRecord(bytes.fromhex(key.fingerprint), key.to_pem(), 1e9)]
    signers.note(records, 7, key, 1e9 + SIGNER_PRECISION)
    signers.note(records, 7, key, 1e6)  # the clock was set back
    signers.note(records, 7, key_of(2).public_key, 1e6)
    assert [record.used for record in records] == [1e9, 1e9 + SIGNER_PRECISION, 1e6, 1e6]
    for number in range(5_000):
        signers.note([], number, key, 1e6 + number * 60.0)
    assert len(signers) <= 2 * SIGNER_PRECISION / 60.0 + 1_001


@pytest.mark.slow
def test_t9_a_flood_of_values_costs_no_order_its_row(fleet):
    fleet.joined()
    for _ in range(2 * BURST):
        fleet.device.send_data(SERVER, "n", b"\x05")
        fleet.settle()
    assert fleet.server.counts["not audited"] > 0
    reports = fleet.order("action", action_id=7, posted_by="alice")
    fleet.settle()
    assert reports[-1].result() is Status.ACTION_SUCCESS
    with control(fleet) as plane:
        about = [each for each in plane.audit() if each.posted_by]
        assert [each.wire is not None for each in about] == [False, True, True]  # the end of the order has none


def test_the_store_of_a_device_has_both_directions_too(fleet):
    fleet.joined()
    fleet.order("action", action_id=7)
    fleet.settle()
    rows = [*fleet.store(fleet.device.identity).audit()]
    assert [(row.sent, row.type, row.outcome) for row in rows][-2:] == [
        (False, 4, "accepted"),
        (True, 2, "ACTION_SUCCESS"),
    ]


def test_an_open_store_of_another_server_is_named(tmp_path):
    with closing(SqliteStore(tmp_path / "server.db")) as store:
        store.open(SERVER)
    with Fleet(tmp_path / "server.db", SERVER) as plane, pytest.raises(ValueError, match="since"):
        plane.audit(since=float("nan"))
