"""What a form leads to, once: a double click, or a form that a browser sends again, leads to the same page."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

__all__ = ["Done", "Once"]

_REMEMBERED: Final = 10_000


class Done(NamedTuple):
    """What was done: the page that shows it, and a sentence about it."""

    location: str
    notice: str = ""


class _Running:
    def __init__(self) -> None:
        self.over = threading.Event()
        self.done: Done | None = None


class Once:
    """Remembers what the newest forms have led to, by key. Threads may share one of these."""

    def __init__(self, remembered: int = _REMEMBERED) -> None:
        self._remembered = remembered
        self._runs: OrderedDict[str, _Running] = OrderedDict()
        self._lock = threading.Lock()

    def do(self, key: str, act: Callable[[], Done]) -> Done:
        """Do something unless that was done under this key; return what it has led to.

        Who comes with the same key meanwhile waits. What raises an error has not been done, and may be tried again.
        """
        while True:
            with self._lock:
                run = self._runs.get(key)
                if run is None:
                    ours = self._runs[key] = _Running()
                    while len(self._runs) > self._remembered:
                        self._runs.popitem(last=False)
                    break
            run.over.wait()
            if run.done is not None:
                return run.done
        try:
            ours.done = act()
        finally:
            if ours.done is None:
                with self._lock:
                    self._runs.pop(key, None)
            ours.over.set()
        return ours.done
