"""What reads the value that another device shows, as a program of its own: a camera, a scanner, a person's script."""

from collections.abc import Sequence
from typing import Final

from ..errors import PolicyError
from ..program import Program

__all__ = ["CommandReader"]

LONGEST: Final = 4096
"""How much of what a command prints is looked at, in bytes."""


class CommandReader:
    """A handler for :meth:`Device.on_observation`: runs ``command``, without a shell, and returns what it printed.

    The identity of the device that joins, in hex, is added as its last argument. A command that fails, cannot be run or
    takes more than ``timeout`` seconds could not read anything: None.
    """

    def __init__(self, command: Sequence[str], timeout: float = 300.0) -> None:
        try:
            self._program = Program(command, timeout)
        except ValueError as error:
            raise PolicyError(f"a reader is a command: {error}") from None

    def __call__(self, identity: int) -> bytes | None:
        """Read what the device ``identity`` shows."""
        outcome = self._program.run(f"{identity:x}")
        return outcome.output[:LONGEST] if outcome.status == 0 else None

    def close(self) -> None:
        """End the command if it runs, and run it no more."""
        self._program.close()
