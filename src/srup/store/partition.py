"""Which partition a device belongs to: the same answer on every machine, in every release."""

from typing import Final

__all__ = ["MAX_PARTITIONS", "PARTITIONS", "partition_of"]

PARTITIONS: Final = 64
"""How many partitions the devices of a server are split into, unless its store was made with another number."""

MAX_PARTITIONS: Final = (1 << 16) - 1
"""The most partitions that a store may be made with."""

_MASK: Final = (1 << 64) - 1


def partition_of(identity: int, partitions: int = PARTITIONS) -> int:
    """Return the partition of a device, 0 to ``partitions`` - 1: the SplitMix64 finalizer of its id, modulo.

    Ids that follow one another, or share their low bits, are spread evenly. Stored state depends on it: it must never
    change (https://prng.di.unimi.it/splitmix64.c).
    """
    mixed = identity & _MASK
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _MASK
    return (mixed ^ mixed >> 31) % partitions
