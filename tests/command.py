"""Programs in processes of their own, without a terminal: what they say is read line by line, as it comes."""

import os
import signal
import subprocess
import sys
import threading
from typing import Self

SRUP = (sys.executable, "-m", "srup")
PATIENCE = 60.0  # seconds until a test gives up; nothing is measured by it


class Command:
    """srup, or another ``program``, with these arguments, in ``folder``; killed at the end of the block.

    ``lines`` are those of both outputs as they come, ``said`` and ``complaints`` those of each.
    """

    def __init__(self, *arguments, program=SRUP, folder=None, environment=None):
        ours = {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "200"}
        self.process = subprocess.Popen(
            [*program, *map(str, arguments)],
            cwd=folder,
            env=os.environ | ours | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines, self.said, self.complaints = [], [], []
        self._news = threading.Condition()
        outputs = (self.process.stdout, self.said), (self.process.stderr, self.complaints)
        self._readers = [threading.Thread(target=self._read, args=output) for output in outputs]
        for reader in self._readers:
            reader.start()

    def _read(self, output, lines):
        with output:
            for line in output:
                with self._news:
                    lines.append(line)
                    self.lines.append(line)
                    self._news.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.wait()

    @property
    def text(self):
        """All that it has said so far."""
        return "".join(self.lines)

    def heard(self, *texts):
        """Wait for a line with all of these in it, and return it."""

        def found():
            return next((line for line in self.lines if all(text in line for text in texts)), None)

        with self._news:
            assert self._news.wait_for(found, PATIENCE), f"no {texts} in {self.text}"
            return found()

    def send_signal(self, number):
        self.process.send_signal(number)

    def wait(self):
        """Wait until it has ended and all is read; return the exit status."""
        status = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        return status

    def end(self, number=signal.SIGINT):
        """Tell it to end; return the exit status."""
        self.send_signal(number)
        return self.wait()
