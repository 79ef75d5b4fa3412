"""srup.store.memory: what tests and simulations do with it, beyond the contract."""

import pytest

from srup import MemoryStore, StoreError
from srup.records import AuditRow, Changes, PartnerRecord

STEP = Changes(partners=[PartnerRecord(7, True, False, 0, 0, 0)], audit=[AuditRow(1.0, 7, 1, 3, b"", "accepted")])


def partners(store):
    return [record.identity for record in store.open(1).partners]


def test_commits_that_fail_as_they_are_told_to():
    store = MemoryStore(failures=2)
    assert partners(store) == []
    for _ in range(2):
        with pytest.raises(StoreError, match="told to fail"):
            store.commit(STEP)
    assert partners(store) == []
    assert [*store.audit()] == []
    store.commit(STEP)
    assert partners(store) == [7]
    store.failures = 1
    with pytest.raises(StoreError):
        store.commit(STEP)
    store.commit(STEP)
    assert len([*store.audit()]) == 2


def test_a_copy_goes_its_own_way():
    store = MemoryStore()
    store.open(1)
    store.commit(STEP)
    old = store.copy()
    store.commit(Changes(forgotten=[7], audit=STEP.audit))
    assert (partners(store), len([*store.audit()])) == ([], 2)
    assert (partners(old), len([*old.audit()])) == ([7], 1)
    with pytest.raises(StoreError, match="belongs to 1"):
        old.open(2)


def test_an_adopted_store_says_so_until_a_commit():
    store = MemoryStore()
    assert not store.open(1).adopted
    store.adopt()
    assert store.open(1).adopted
    store.commit(Changes())
    store.failures = 1
    with pytest.raises(StoreError):
        store.commit(STEP)
    assert store.open(1).adopted
    store.commit(STEP)
    assert not store.open(1).adopted
