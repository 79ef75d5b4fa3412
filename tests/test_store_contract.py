"""What every store promises (srup.store.base): one suite for all of them. A new store adds a line to FACTORIES."""

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from srup import MemoryStore, SqliteStore, StoreError
from srup.records import (
    AuditRow,
    Changes,
    ExchangeRecord,
    Fact,
    InboxEntry,
    KeyRecord,
    OutboxEntry,
    PartnerRecord,
    State,
)
from srup.store import Lease, Leases, RedisStore, Store

from .redis_server import RedisServer

OWNER = 0x5E
LARGEST = 2**64 - 1
FULL = 2**1024 - 1


def memory(folder: Path) -> Callable[[], Store]:
    store = MemoryStore()
    return lambda: store


def sqlite(folder: Path) -> Callable[[], Store]:
    return lambda: SqliteStore(folder / "state.db")


class OfRedis:
    """A RedisStore that is set up for whoever opens it first: nobody needs to be told for whom a lease will be."""

    server: RedisServer | None = None
    lease: Lease | None = None

    def __init__(self) -> None:
        self.store = RedisStore(self.lease or self.set_up(OWNER))

    @classmethod
    def set_up(cls, owner: int) -> Lease:
        cls.server.client.flushall()
        RedisStore.create(cls.server.url, owner, partitions=1)
        return Leases(cls.server.url, owner, ttl=3600.0).step().gained[0]

    def open(self, owner: int) -> State:
        if self.lease is None:
            type(self).lease = self.set_up(owner)
            self.store = RedisStore(self.lease)
        return self.store.open(owner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


def in_redis(folder: Path) -> Callable[[], Store]:
    if OfRedis.server is None:
        OfRedis.server = RedisServer(Path(tempfile.mkdtemp())).start()
    OfRedis.lease = None
    return OfRedis


@pytest.fixture(scope="module", autouse=True)
def redis_ends() -> Iterator[None]:
    yield
    if OfRedis.server is not None:
        OfRedis.server.stop()
        OfRedis.server.client.close()
        shutil.rmtree(OfRedis.server.folder)
        OfRedis.server = None


# A factory gets an empty folder and returns what makes a store object, each time on the same durable state.
FACTORIES = {"memory": memory, "sqlite": sqlite, "redis": in_redis}
STORES = ["memory", "sqlite", pytest.param("redis", marks=pytest.mark.process)]


class Kept:
    """Durable state, and the store object that is open on it."""

    def __init__(self, make: Callable[[], Store]) -> None:
        self.make = make
        self.store = make()
        self.first = self.store.open(OWNER)

    def commit(self, **lists: Any) -> None:
        self.store.commit(Changes(**lists))

    def state(self) -> State:
        """What a new object finds."""
        self.store.close()
        self.store = self.make()
        return plain(self.store.open(OWNER))


def plain(state: State) -> State:
    """The state in lists, of which those without an order are sorted."""
    partners, exchanges, inbox, outbox, keys, barred, facts, adopted = state
    by_name = sorted(keys, key=lambda record: record.identity)
    return State(
        sorted(partners), sorted(exchanges), [*inbox], [*outbox], by_name, sorted(barred), sorted(facts), adopted
    )


@pytest.fixture(params=STORES)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    return FACTORIES[request.param](tmp_path)


@pytest.fixture
def kept(make: Callable[[], Store]) -> Iterator[Kept]:
    kept = Kept(make)
    yield kept
    kept.store.close()


def partner(identity: int = 7, **values: Any) -> PartnerRecord:
    return PartnerRecord(identity, True, False, 64, 5, 0b11111)._replace(**values)


def entry(number: int = 1, partner: int = 7, body: bytes = b"body") -> InboxEntry:
    return InboxEntry(number, partner, b"token", "data", body)


def row(at: float = 1.0, partner: int = 7, outcome: str = "accepted") -> AuditRow:
    return AuditRow(at, partner, 9, 3, b"token", outcome)


EVERYTHING = Changes(
    partners=[partner()],
    exchanges=[ExchangeRecord(7, b"token", 12.5, '{"a": 1}')],
    inbox=[entry()],
    outbox=[OutboxEntry(1, 7, "a/topic", b"signed", 3.5)],
    keys=[KeyRecord(7, b"pem", b"old", 9.25, b"first")],
    barred=["aa:bb"],
    facts=[Fact(7, "version", "1.2")],
    audit=[row()],
)


# --- Round trips.


def test_a_new_store_is_empty(kept):
    assert plain(kept.first) == State([], [], [], [], [], [], [])
    assert [*kept.store.audit()] == []


RECORDS = {
    "partners": [
        partner(),
        partner(0, member=False, binds=True, reserved=0, highest=0, seen=0),
        partner(LARGEST, reserved=LARGEST, highest=LARGEST, seen=FULL),
        partner(2**63, reserved=2**63, highest=2**63 - 1, seen=FULL - (1 << 1023)),
        *(partner(8, seen=seen) for seen in (1, 0xFF, 0x100, 1 << 1023, FULL - 1, FULL >> 1, (1 << 512) - 1, 1 << 511)),
    ],
    "exchanges": [
        ExchangeRecord(7, b"token", 12.5, '{"a": 1}'),
        ExchangeRecord(LARGEST, b"", 0.0, ""),
        ExchangeRecord(0, bytes(range(256)) * 254 + bytes(233), 1e300, "grüße \N{SNOWMAN} \x00 \N{GRINNING FACE}"),
    ],
    "inbox": [
        entry(),
        InboxEntry(LARGEST, LARGEST, b"\xff" * 65_257, "jöined", b"\x00" * 3_000_000),
        InboxEntry(0, 0, b"", "", b""),
    ],
    "outbox": [
        OutboxEntry(1, 7, "a/topic", b"signed", 3.5),
        OutboxEntry(LARGEST, LARGEST, "", b"\x00" * 3_000_000, 0.0),
        OutboxEntry(0, 0, "töpic", b"", 1e10),
    ],
    "keys": [
        KeyRecord(7, b"pem", b"old", 9.25, b"first"),
        KeyRecord(LARGEST, None),
        KeyRecord(0, b"", b"", 0.0, b""),
        KeyRecord(8, b"pem", None, 2.0, b"pin"),
        KeyRecord(9, None, b"old"),
    ],
    "barred": ["aa:bb", "", "ü" * 100],
    "facts": [Fact(7, "version", "1.2"), Fact(LARGEST, "", ""), Fact(0, "näme", "\N{SNOWMAN}" * 70_000)],
}


@pytest.mark.parametrize(
    ("name", "record"),
    [pytest.param(name, record, id=f"{name}-{n}") for name, many in RECORDS.items() for n, record in enumerate(many)],
)
def test_a_record_comes_back_as_it_was(kept, name, record):
    kept.commit(**{name: [record]})
    state = kept.state()
    assert getattr(state, name) == [record]
    assert state == State(*([] for _ in State._fields[:-1]))._replace(**{name: [record]})
    assert [*map(type, getattr(state, name)[0])] == [*map(type, record)]


@pytest.mark.parametrize("name", RECORDS)
def test_many_records_at_once(kept, name):
    named = {(record if isinstance(record, str) else record[:2]): record for record in RECORDS[name]}
    records = [*({record[0]: record for record in RECORDS[name]} if name in ("partners", "keys") else named).values()]
    kept.commit(**{name: records})
    assert sorted(map(str, getattr(kept.state(), name))) == sorted(map(str, records))


def test_audit_rows_come_back_as_they_were(kept):
    rows = [
        AuditRow(0.0, 0, 0, 0, b"", ""),
        AuditRow(1.25, LARGEST, LARGEST, 255, b"\xff" * 65_257, "zurück \N{SNOWMAN}"),
        row(2.0),
        row(1e12),
    ]
    kept.commit(audit=rows)
    kept.state()
    assert [*kept.store.audit()] == rows
    assert [*map(type, next(kept.store.audit()))] == [*map(type, rows[0])]


def test_everything_in_one_step_and_nothing(kept):
    kept.store.commit(EVERYTHING)
    kept.store.commit(Changes())
    expected = State(*(getattr(EVERYTHING, name) for name in State._fields[:-1]))
    assert kept.state() == expected
    assert [*kept.store.audit()] == EVERYTHING.audit


def test_what_is_kept_is_the_callers_no_more(kept):
    changes = Changes(partners=[partner()], inbox=[entry()], audit=[row()])
    kept.store.commit(changes)
    changes.partners.clear()
    changes.inbox.append(entry(2))
    changes.audit.clear()
    state = kept.state()
    assert state.partners == [partner()]
    assert state.inbox == [entry()]
    state.inbox.clear()
    assert kept.state().inbox == [entry()]
    assert [*kept.store.audit()] == [row()]


# --- Names, order, and what goes.


def test_a_record_replaces_the_one_of_its_name(kept):
    kept.store.commit(EVERYTHING)
    new = {
        "partners": partner(binds=True, highest=9, seen=FULL),
        "exchanges": ExchangeRecord(7, b"token", 99.0, "new"),
        "inbox": entry(body=b"new"),
        "outbox": OutboxEntry(1, 7, "", b"", 0.0),
        "keys": KeyRecord(7, None),
        "facts": Fact(7, "version", ""),
    }
    kept.commit(**{name: [record] for name, record in new.items()}, barred=["aa:bb"])
    assert kept.state() == State(**{name: [record] for name, record in new.items()}, barred=["aa:bb"])


def test_of_two_with_one_name_the_later_counts(kept):
    kept.commit(
        partners=[partner(), partner(highest=6)],
        inbox=[entry(body=b"a"), entry(body=b"b")],
        facts=[Fact(7, "a", "1"), Fact(7, "a", None), Fact(7, "b", None), Fact(7, "b", "2")],
    )
    state = kept.state()
    assert state.partners == [partner(highest=6)]
    assert state.inbox == [entry(body=b"b")]
    assert state.facts == [Fact(7, "b", "2")]


def test_names_have_two_parts(kept):
    pairs = [(1, 1), (1, 2), (2, 1), (2, 2)]
    kept.commit(
        exchanges=[ExchangeRecord(p, b"%d" % n, 0.0, "") for p, n in pairs],
        inbox=[entry(n, p) for p, n in pairs],
        outbox=[OutboxEntry(n, p, "", b"", 0.0) for p, n in pairs],
        facts=[Fact(p, str(n), "v") for p, n in pairs],
    )
    kept.commit(ended=[(1, b"2")], finished=[(1, 2)], settled=[(1, 2)], facts=[Fact(1, "2", None)])
    pairs.remove((1, 2))
    state = kept.state()
    assert [(record.partner, int(record.token)) for record in state.exchanges] == pairs
    assert {(record.partner, record.number) for record in state.inbox} == {*pairs}
    assert {(record.partner, record.number) for record in state.outbox} == {*pairs}
    assert [(record.identity, int(record.name)) for record in state.facts] == pairs


def test_entries_come_in_the_order_of_their_numbers(kept):
    numbers = [2**63, 3, LARGEST, 256, 0, 255, 2**32, 1]
    for part in (numbers[:4], numbers[4:]):
        kept.commit(
            inbox=[entry(number, LARGEST - number) for number in part],
            outbox=[OutboxEntry(number, LARGEST - number, "", b"", 0.0) for number in part],
        )
    state = kept.state()
    assert [each.number for each in state.inbox] == sorted(numbers)
    assert [each.number for each in state.outbox] == sorted(numbers)


def test_what_is_not_there_can_end(kept):
    kept.commit(ended=[(7, b"token")], finished=[(7, 1)], settled=[(7, 1)], forgotten=[7], facts=[Fact(7, "n", None)])
    kept.store.commit(EVERYTHING)
    kept.commit(ended=[(8, b"token"), (7, b"")], finished=[(8, 1), (7, 2)], settled=[(8, 1)], forgotten=[8])
    assert kept.state() == State(*(getattr(EVERYTHING, name) for name in State._fields[:-1]))


def test_written_and_ended_in_one_step_is_gone(kept):
    kept.commit(inbox=[entry(body=b"old")])
    kept.commit(
        exchanges=[ExchangeRecord(7, b"token", 0.0, "")],
        ended=[(7, b"token")],
        inbox=[entry(), entry(2)],
        finished=[(7, 1)],
        outbox=[OutboxEntry(1, 7, "", b"", 0.0)],
        settled=[(7, 1)],
    )
    assert kept.state() == State([], [], [entry(2)], [], [], [], [])


def test_a_forgotten_partner_leaves_keys_facts_and_audit_rows(kept):
    other = 8
    kept.store.commit(EVERYTHING)
    kept.commit(
        partners=[partner(other)],
        exchanges=[ExchangeRecord(other, b"token", 1.0, ""), ExchangeRecord(7, b"second", 1.0, "")],
        inbox=[entry(2, other), entry(3)],
        outbox=[OutboxEntry(2, other, "", b"", 0.0), OutboxEntry(3, 7, "", b"", 0.0)],
    )
    kept.commit(forgotten=[7])
    assert kept.state() == State(
        [partner(other)],
        [ExchangeRecord(other, b"token", 1.0, "")],
        [entry(2, other)],
        [OutboxEntry(2, other, "", b"", 0.0)],
        EVERYTHING.keys,
        EVERYTHING.barred,
        EVERYTHING.facts,
    )
    assert [*kept.store.audit()] == EVERYTHING.audit


def test_the_forgotten_go_first(kept):
    kept.commit(partners=[partner()], inbox=[entry(1), entry(2)], exchanges=[ExchangeRecord(7, b"old", 1.0, "")])
    kept.commit(
        forgotten=[7],
        partners=[partner(highest=0, seen=1)],
        inbox=[entry(3)],
        exchanges=[ExchangeRecord(7, b"new", 1.0, "")],
        outbox=[OutboxEntry(4, 7, "", b"", 0.0)],
    )
    state = kept.state()
    assert state.partners == [partner(highest=0, seen=1)]
    assert state.inbox == [entry(3)]
    assert state.outbox == [OutboxEntry(4, 7, "", b"", 0.0)]
    assert [record.token for record in state.exchanges] == [b"new"]


# --- Audit rows.


def test_audit_rows_of_a_time_and_of_a_partner(kept):
    rows = [row(float(at), at % 3, str(at)) for at in range(30)]
    kept.commit(audit=rows[10:])
    kept.commit(audit=rows[:10])
    assert [*kept.store.audit()] == rows
    assert [*kept.store.audit(12.0)] == rows[12:]
    assert [*kept.store.audit(11.5)] == rows[12:]
    assert [*kept.store.audit(12.0, 1)] == rows[13::3]
    assert [*kept.store.audit(partner=5)] == []
    assert [*kept.store.audit(30.0)] == []


def test_audit_rows_of_one_time_stay_in_order(kept):
    rows = [row(5.0, outcome=str(number)) for number in range(600)]
    for start in range(0, 600, 200):
        kept.commit(audit=rows[start : start + 200])
        kept.state()
    assert [*kept.store.audit()] == rows


def test_equal_audit_rows_are_all_kept(kept):
    kept.commit(audit=[row(), row()])
    kept.commit(audit=[row()])
    assert [*kept.store.audit()] == [row()] * 3


def test_more_audit_rows_than_are_read_at_once(kept):
    rows = [row(float(at // 7)) for at in range(3500)]
    kept.commit(audit=rows)
    assert [*kept.store.audit()] == rows
    assert [*kept.store.audit(100.0)] == rows[700:]


def test_audit_rows_may_be_added_while_others_are_read(kept):
    kept.commit(audit=[row(float(at)) for at in range(2500)])
    reading = kept.store.audit()
    first = [next(reading) for _ in range(1500)]
    kept.commit(partners=[partner()], audit=[row(1.0)])
    kept.store.prune(100.0)
    assert [each.at for each in [*first, *reading]] == [float(at) for at in range(2500)]


def test_pruning(kept):
    kept.commit(audit=[row(float(at)) for at in range(25_000)])
    assert kept.store.prune(0.0) == 0
    assert kept.store.prune(24_990.0, 0) == 0
    assert kept.store.prune(24_990.0, 12_345) == 12_345
    assert next(kept.store.audit()).at == 12_345.0
    assert kept.store.prune(24_990.0, 20_000) == 24_990 - 12_345
    assert kept.store.prune(24_990.0) == 0
    kept.state()
    assert [each.at for each in kept.store.audit()] == [24_990.0 + at for at in range(10)]


# --- All or nothing.

BAD = {
    "number": {"partners": [partner(LARGEST + 1)]},
    "negative": {"partners": [partner(reserved=-1)]},
    "window": {"partners": [partner(seen=-1)]},
    "long window": {"partners": [partner(seen=FULL + 1)]},
    "entry": {"inbox": [entry(), entry(LARGEST + 1)]},
    "nothing": {"outbox": [None]},
    "exchange": {"exchanges": [ExchangeRecord(-1, b"", 0.0, "")]},
    "key": {"keys": [KeyRecord(-1, None)]},
    "fact": {"facts": [Fact(-1, "", "")]},
    "row": {"audit": [row(), row(partner=-1)]},
    "time of a row": {"audit": [row(), row(at=float("nan"))]},
    "endless time of a row": {"audit": [row(float("inf"))]},
    "negative time of a row": {"audit": [row(-1.0)]},
    "late time of a row": {"audit": [row(1e16)]},
    "ended": {"ended": [(-1, b"")]},
    "finished": {"finished": [(7, -1)]},
    "settled": {"settled": [None]},
    "forgotten": {"forgotten": [LARGEST + 1]},
    "barred": {"barred": [None]},
}


@pytest.mark.parametrize("name", BAD)
def test_one_bad_record_and_nothing_is_kept(kept, name):
    kept.store.commit(EVERYTHING)
    before = kept.state()
    good = {
        "forgotten": [7],
        "partners": [partner(8)],
        "inbox": [entry(8)],
        "facts": [Fact(7, "version", "2")],
        "audit": [row(2.0)],
        "ended": [(7, b"token")],
        "finished": [(7, 1)],
        "settled": [(7, 1)],
    }
    for each, bad in BAD[name].items():
        good[each] = [*good.get(each, []), *bad]
    with pytest.raises(StoreError):
        kept.commit(**good)
    assert kept.state() == before
    assert [*kept.store.audit()] == [row()]
    kept.commit(partners=[partner(9)])
    assert kept.state().partners == [partner(), partner(9)]


# --- Whose it is, and who uses it.


# --- Numbers that make no sense.

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("owner", [-1, 1 << 64, 10**400, 1.0, True, None, "5e", NAN])
def test_an_owner_that_is_none_is_refused(make, owner):
    with pytest.raises(ValueError, match="owner must be an int from 0 to 18446744073709551615"):
        make().open(owner)


@pytest.mark.parametrize("arguments", [(NAN,), ("1",), (None,), (True,), (5.0, -1), (5.0, 1 << 64), (5.0, 1.0)])
def test_pruning_with_numbers_that_are_none_prunes_nothing(kept, arguments):
    kept.commit(audit=[row(1.0), row(2.0), row(3.0)])
    with pytest.raises(ValueError, match="must be"):
        kept.store.prune(*arguments)
    assert len([*kept.store.audit()]) == 3


@pytest.mark.parametrize("before", [-INF, 0, -(10**400), 10**16, 1 << 63, 10**400, INF])
@pytest.mark.parametrize("limit", [0, 1, (1 << 64) - 1, None])
def test_pruning_with_extreme_numbers(kept, before, limit):
    kept.commit(audit=[row(1.0), row(2.0), row(3.0)])
    due = 3 if before > 3 else 0
    assert kept.store.prune(before, limit) == (due if limit is None else min(limit, due))


@pytest.mark.parametrize("since", [-INF, -1, 0, -(10**400)])
def test_reading_from_a_time_before_all(kept, since):
    kept.commit(audit=[row(0.0), row(2.0)])
    assert len([*kept.store.audit(since)]) == 2


@pytest.mark.parametrize("since", [INF, 10**400, 10**16, 1 << 63])
def test_reading_from_a_time_after_all(kept, since):
    kept.commit(audit=[row(0.0), row(2.0)])
    assert not [*kept.store.audit(since)]


@pytest.mark.parametrize("arguments", [(NAN,), ("0",), (None,), (0.0, -1), (0.0, 1 << 64), (0.0, 1.0), (0.0, True)])
def test_reading_with_numbers_that_are_none(kept, arguments):
    with pytest.raises(ValueError, match="must be"):
        kept.store.audit(*arguments)


def test_another_owner_is_refused(kept):
    kept.store.commit(EVERYTHING)
    kept.store.close()
    other = kept.make()
    with pytest.raises(StoreError, match=r"belongs to 5e, not to 5f"):
        other.open(OWNER + 1)
    other.close()
    assert kept.state().partners == [partner()]


@pytest.mark.parametrize("owner", [0, LARGEST])
def test_any_identity_can_own(make, owner):
    store = make()
    store.open(owner)
    store.close()
    store = make()
    with pytest.raises(StoreError):
        store.open(OWNER)
    store = make()
    store.open(owner)
    store.close()


def test_nothing_before_it_is_open(make):
    with pytest.raises(StoreError, match="not open"):
        make().commit(EVERYTHING)


def test_closing_twice(kept):
    kept.store.commit(EVERYTHING)
    kept.store.close()
    kept.store.close()
    assert kept.state().partners == [partner()]


def test_opening_again_is_reading_again(kept):
    kept.store.commit(EVERYTHING)
    assert plain(kept.store.open(OWNER)).partners == [partner()]
    kept.commit(partners=[partner(8)])
    assert kept.state().partners == [partner(), partner(8)]


def test_many_threads(kept):
    failures = []

    def work(identity: int) -> None:
        try:
            for number in range(1, 41):
                kept.commit(
                    partners=[partner(identity, highest=number)],
                    inbox=[entry(number, identity)],
                    finished=[(identity, number - 1)],
                    audit=[row(float(number), identity)],
                )
                if number % 10 == 0:
                    assert len([*kept.store.audit(partner=identity)]) == number
        except (AssertionError, StoreError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(identity,)) for identity in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    state = kept.state()
    assert state.partners == [partner(identity, highest=40) for identity in range(8)]
    assert {(each.partner, each.number) for each in state.inbox} == {*product(range(8), [40])}
    assert len([*kept.store.audit()]) == 8 * 40


# --- Against a model.

IDENTITIES = st.sampled_from([0, 1, 2**63, LARGEST])
NUMBERS = st.sampled_from([0, 1, 2, 2**63, LARGEST])
TOKENS = st.sampled_from([b"", b"a", b"00001", b"a\x00", b"\xff" * 300])
TIMES = st.sampled_from([0.0, 1.0, 1.5, 1e9])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
BODIES = st.binary(max_size=20)
PEMS = st.none() | BODIES


def lists(kind: Any, *fields: Any) -> Any:
    return st.lists(st.builds(kind, *fields), max_size=4)


def pair(*fields: Any) -> tuple[Any, ...]:
    return fields


CHANGES = st.builds(
    Changes,
    lists(PartnerRecord, IDENTITIES, st.booleans(), st.booleans(), NUMBERS, NUMBERS, st.integers(0, FULL)),
    st.lists(IDENTITIES, max_size=1),
    lists(ExchangeRecord, IDENTITIES, TOKENS, TIMES, TEXTS),
    lists(pair, IDENTITIES, TOKENS),
    lists(InboxEntry, NUMBERS, IDENTITIES, TOKENS, TEXTS, BODIES),
    lists(pair, IDENTITIES, NUMBERS),
    lists(OutboxEntry, NUMBERS, IDENTITIES, TEXTS, BODIES, TIMES),
    lists(pair, IDENTITIES, NUMBERS),
    lists(KeyRecord, IDENTITIES, PEMS, PEMS, TIMES, PEMS),
    st.lists(TEXTS, max_size=2),
    lists(Fact, IDENTITIES, TEXTS, st.none() | TEXTS),
    lists(AuditRow, TIMES, IDENTITIES, NUMBERS, st.integers(0, 255), TOKENS, TEXTS),
)


class Model:
    """One dictionary from (list, name) to record, and the audit rows."""

    def __init__(self) -> None:
        self.records: dict[Any, Any] = {}
        self.audit: list[AuditRow] = []

    def commit(self, changes: Changes) -> None:
        self.records = {
            (name, key): record
            for (name, key), record in self.records.items()
            if name in ("keys", "barred", "facts") or key[0] not in changes.forgotten
        }
        for name in ("partners", "exchanges", "inbox", "outbox", "keys", "barred", "facts"):
            for record in getattr(changes, name):
                self.records[name, self.key(record)] = record
        for gone, name in {"ended": "exchanges", "finished": "inbox", "settled": "outbox"}.items():
            for key in getattr(changes, gone):
                self.records.pop((name, key), None)
        self.audit = sorted(self.audit + changes.audit, key=lambda row: row.at)

    def forward(self, record: PartnerRecord) -> PartnerRecord:
        """No window goes back, and no reserved id; a store may insist on that."""
        known = self.records.get(("partners", (record.identity,)), record)
        return record._replace(
            reserved=max(record.reserved, known.reserved), highest=max(record.highest, known.highest)
        )

    @staticmethod
    def key(record: Any) -> Any:
        match record:
            case PartnerRecord() | KeyRecord():
                return (record.identity,)
            case ExchangeRecord():
                return record.partner, record.token
            case InboxEntry() | OutboxEntry():
                return record.partner, record.number
            case Fact():
                return record.identity, record.name
        return record

    def state(self) -> State:
        def named(name: str) -> list[Any]:
            return [record for (other, _), record in self.records.items() if other == name]

        facts = [fact for fact in named("facts") if fact.value is not None]
        entries = [sorted(named(name)) for name in ("inbox", "outbox")]
        return plain(State(named("partners"), named("exchanges"), *entries, named("keys"), named("barred"), facts))


@pytest.mark.slow
@pytest.mark.parametrize("name", STORES)
def test_it_does_what_a_dictionary_does(name):
    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.folder = Path(tempfile.mkdtemp())
            self.kept = Kept(FACTORIES[name](self.folder))
            self.model = Model()

        @rule(changes=CHANGES)
        def commit(self, changes: Changes) -> None:
            changes.partners = [*map(self.model.forward, changes.partners)]
            self.kept.store.commit(changes)
            self.model.commit(changes)

        @rule(changes=CHANGES)
        def fail(self, changes: Changes) -> None:
            changes.audit.append(row(partner=-1))
            with pytest.raises(StoreError):
                self.kept.store.commit(changes)

        @rule(before=TIMES)
        def prune(self, before: float) -> None:
            kept = [row for row in self.model.audit if row.at >= before]
            assert self.kept.store.prune(before) == len(self.model.audit) - len(kept)
            self.model.audit = kept

        @rule()
        def reopen(self) -> None:
            assert self.kept.state() == self.model.state()

        @rule(since=TIMES, partner=st.none() | IDENTITIES)
        def look(self, since: float, partner: int | None) -> None:
            expected = [row for row in self.model.audit if row.at >= since and partner in (None, row.partner)]
            assert [*self.kept.store.audit(since, partner)] == expected

        @invariant()
        def same(self) -> None:
            assert plain(self.kept.store.open(OWNER)) == self.model.state()

        def teardown(self) -> None:
            self.kept.store.close()
            shutil.rmtree(self.folder)

    run_state_machine_as_test(Machine, settings=settings(max_examples=40, stateful_step_count=15, deadline=None))
