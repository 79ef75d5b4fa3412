"""What every store promises: the state of one end, and that a crash loses nothing of what it has confirmed."""

from collections.abc import Iterator
from typing import Protocol

from ..records import AuditRow, Changes, State

__all__ = ["Store"]


class Store(Protocol):
    """The durable state of one identity, or of one partition of a server's devices. Any thread may call any method.

    In :class:`Changes` the ``forgotten`` go first: what else is said about the same partner is about a new one. What a
    partner's keys, facts and audit rows say outlives it. Then comes what is written, of two records with one name the
    later; what is ended, finished or settled goes last. Ending, finishing or settling what is not there is no error.

    Every method raises StoreError when the state cannot be read or written, or is not what it should be; then nothing
    has changed, and the caller may try again. ValueError for an argument that makes no sense: an identity or a limit
    that has not 64 bits, a time that is no number.
    """

    def open(self, owner: int) -> State:
        """Return what is kept for ``owner``; a store that was never used becomes that identity's.

        StoreError when it belongs to another identity, is of a newer version, is damaged, has less than it had (an old
        backup, lost data), or is in use by another process.
        """

    def commit(self, changes: Changes) -> None:
        """Write all of this or nothing; when it returns, it is on durable storage.

        LeaseLostError when somebody else has taken this partition over: nothing has been written then, and nothing can
        be any more.
        """

    def audit(
        self,
        since: float = 0.0,
        partner: int | None = None,
        until: float | None = None,
        *,
        newest_first: bool = False,
    ) -> Iterator[AuditRow]:
        """Return the audit rows from ``since`` on and before ``until``, read in pages; of one partner or of all."""

    def signer(self, fingerprint: bytes) -> bytes | None:
        """Return the key with this fingerprint that has signed rows, as PEM; None if it is not kept."""

    def prune(self, before: float, limit: int | None = None) -> int:
        """Delete the audit rows that are older than that, the oldest first, ``limit`` at most; return how many.

        When there are no more, keys go that have signed none of the others.
        """

    def close(self) -> None:
        """Let go of the files and connections. A second call does nothing."""
