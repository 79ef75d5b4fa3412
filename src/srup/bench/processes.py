"""Child processes: started, spoken to, measured and ended."""

import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

__all__ = ["BenchError", "Consumption", "Process", "allow_connections", "consumption"]

_END: Final = 40.0  # seconds until a process that was told to end is killed; workers have 30
_OTHER_FILES: Final = 200  # descriptors that a process needs besides its connections
_PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


class BenchError(RuntimeError):
    """The benchmark cannot be run, or a part of it has failed."""


class Consumption(NamedTuple):
    """What processes have used: CPU seconds, and the sum of the most memory that each had at a time, in bytes."""

    processes: int
    cpu: float
    memory: int


def allow_connections(count: int) -> None:
    """Let this process, and those that it starts, have so many connections to one broker on this machine, or say how.

    BenchError if the machine does not allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + _OTHER_FILES
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise BenchError(
            f"{count} connections need {needed} file descriptors in the broker, and a process here may have {hard}: "
            f"raise the hard limit (as root: ulimit -Hn {needed}; docker run --ulimit nofile={needed}; or "
            f"LimitNOFILE={needed} in a unit of systemd), or take fewer devices"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    with suppress(OSError, ValueError):
        lowest, highest = map(int, _PORTS.read_text().split())
        if highest - lowest < needed:
            raise BenchError(
                f"{count} connections need {needed} ports, and this machine has {highest - lowest} for them: "
                f"widen {_PORTS}, or take fewer devices"
            )


def consumption(roots: Iterable[int], descendants: bool = True) -> Consumption:
    """Measure processes with what they have started, from /proc; processes that have ended count for nothing."""
    parents, seconds = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
                seconds[int(entry.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    family = {root for root in roots if root in parents}
    while descendants and (more := {pid for pid, parent in parents.items() if parent in family} - family):
        family |= more
    return Consumption(len(family), sum(seconds[pid] for pid in family), sum(map(_peak, family)))


def _peak(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


class Process:
    """A child process, which ends with us. What it says on standard error goes to a file in ``folder``.

    One that ``talks`` is heard on standard output; what another one says there goes to the same file.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        *,
        talks: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._log = folder / f"{name.replace(' ', '-')}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if talks else log,
                stderr=log,
                env=os.environ | (environment or {}),
                text=True,
                start_new_session=True,  # the terminal's Ctrl-C is for us, and we end it
            )
        self.pid = self._process.pid

    def ask(self, progress: Callable[[str, int], None], **order: Any) -> dict[str, Any]:
        """Give an order and return the answer to it; ``progress(phase, done)`` hears what is said meanwhile."""
        assert self._process.stdin is not None  # noqa: S101 - for mypy
        with suppress(OSError):
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        while True:
            said: dict[str, Any] = json.loads(self.hear())
            if "answer" in said:
                return dict(said["answer"])
            progress(said["phase"], said["done"])

    def hear(self) -> str:
        """The next line that it says; BenchError if it has ended."""
        assert self._process.stdout is not None  # noqa: S101 - for mypy
        line = self._process.stdout.readline()
        if not line:
            raise self.failure()
        return line

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def check(self) -> None:
        """BenchError if it has ended."""
        if not self.running:
            raise self.failure()

    def signal(self, number: int) -> None:
        """Send it a signal; nothing happens if it has ended."""
        self._process.send_signal(number)

    def failure(self, why: str = "has ended") -> BenchError:
        """What to raise when it has failed: with the end of what it said."""
        said = self._log.read_text(errors="replace").strip().rpartition("\n")[2]
        return BenchError(f"the {self.name} {why}{': ' if said else ''}{said[-300:]}")

    def end(self) -> None:
        """Have it end, and wait until it has."""
        self._process.terminate()
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was still to be written
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
