"""What the servers did, written by themselves as it happens, and the verdict on it.

Each server process appends records of fixed size to a file of its own, so whoever counts needs no word of theirs, and a
process that is killed takes nothing with it. Times are of CLOCK_MONOTONIC, which all processes of a machine share.
"""

import os
import struct
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Entry", "Kind", "Ledger", "Reading", "Value", "Verdict", "judge"]


class Kind(IntEnum):
    """What happened: a server (of a partition) is connected, a device has joined, the application has got a value."""

    READY = 0
    JOINED = 1
    VALUE = 2


class Entry(NamedTuple):
    """``number`` and ``due`` are those of the :class:`Value`; ``done`` is when it happened, in ns."""

    kind: int
    device: int
    number: int
    due: int
    done: int


class Value(NamedTuple):
    """What a device sends: its number, counted from 1, and when that was due, in ns from the beginning of the load."""

    device: int
    number: int
    due: int

    def pack(self) -> bytes:
        """The bytes of a Data message."""
        return _VALUE.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> "Value":
        """Read them; ValueError if they are none."""
        if len(data) != _VALUE.size:
            raise ValueError(f"a value has {_VALUE.size} bytes, not {len(data)}")
        return cls(*_VALUE.unpack(data))


_VALUE: Final = struct.Struct("<QQq")
_ENTRY: Final = struct.Struct("<QQQqq")


class Ledger:
    """The file of one server process."""

    def __init__(self, folder: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.open(folder / f"{os.getpid()}.ledger", flags, 0o600)

    def write(self, kind: Kind, device: int = 0, number: int = 0, due: int = 0) -> None:
        """Note what has just happened."""
        os.write(self._file, _ENTRY.pack(kind, device, number, due, time.monotonic_ns()))


class Reading:
    """All ledgers of a folder, read as they grow."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: Counter[Path] = Counter()
        self.counts: Counter[int] = Counter()
        """How many entries of each :class:`Kind` there are."""
        self.connected: set[Path] = set()
        """The ledgers of the processes that have been connected."""
        self.values: list[Entry] = []

    def update(self) -> "Reading":
        """Read what is new."""
        for path in self._folder.glob("*.ledger"):
            with path.open("rb") as file:
                file.seek(self._read[path])
                new = file.read()
            whole = len(new) - len(new) % _ENTRY.size
            self._read[path] += whole
            for entry in map(Entry._make, _ENTRY.iter_unpack(new[:whole])):
                self.counts[entry.kind] += 1
                if entry.kind == Kind.READY:
                    self.connected.add(path)
                if entry.kind == Kind.VALUE:
                    self.values.append(entry)
        return self


@dataclass(frozen=True)
class Verdict:
    """What became of the values that were sent. Delays are in ms, from when a value was due to when it was handled."""

    executed: int
    """Different values that the application was handed."""
    in_time: int
    """Those among them that came before the load was over."""
    lost: int
    executed_twice: int
    reordered: int
    """Values that came after a later one of the same device, repetitions aside."""
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


def judge(entries: Iterable[Entry], sent: Mapping[int, int], began: int, ended: int) -> Verdict:
    """Compare what was executed with what was sent: ``sent`` has the last number of each device.

    ``began`` and ``ended`` are when the load did, in ns. ValueError if something was executed that nobody sent.
    """
    seen: dict[int, set[int]] = {}
    latest: Counter[int] = Counter()
    twice = reordered = in_time = 0
    delays = []
    for entry in sorted(entries, key=lambda entry: entry.done):
        if not 1 <= entry.number <= sent.get(entry.device, 0):
            raise ValueError(f"value {entry.number} of device {entry.device:x} was executed and never sent")
        numbers = seen.setdefault(entry.device, set())
        if entry.number in numbers:
            twice += 1
            continue
        numbers.add(entry.number)
        reordered += entry.number < latest[entry.device]
        latest[entry.device] = max(latest[entry.device], entry.number)
        in_time += entry.done < ended
        delays.append((entry.done - began - entry.due) / 1e6)
    delays.sort()
    return Verdict(
        executed=len(delays),
        in_time=in_time,
        lost=sum(sent.values()) - len(delays),
        executed_twice=twice,
        reordered=reordered,
        p50_ms=_quantile(delays, 0.50),
        p95_ms=_quantile(delays, 0.95),
        p99_ms=_quantile(delays, 0.99),
        max_ms=_quantile(delays, 1.0),
    )


def _quantile(ordered: list[float], part: float) -> float:
    """The smallest value that so great a part of all does not exceed; 0 of nothing."""
    return round(ordered[max(0, -int(-len(ordered) * part // 1) - 1)], 3) if ordered else 0.0
