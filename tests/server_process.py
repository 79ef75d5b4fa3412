"""``srup server`` as a process of its own without a terminal: its log is read line by line, its endpoint asked."""

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

from srup.transport import MqttTransport

from .fleet import WAIT, key_of

SERVER, DEVICE = 0x5E, 0xD1


def keys_in(folder):
    """Write the keys of the server and of one device that it knows."""
    (folder / "devices").mkdir()
    key_of(SERVER).save(folder / "server.pem")
    key_of(DEVICE).public_key.save(folder / "devices" / f"{DEVICE:x}.pem")
    return folder


class ServerProcess:
    """Runs as a context manager; ``options`` go behind those that every server needs, ``first`` before all."""

    def __init__(self, folder, broker, *options, first=()):
        self.lines = []  # of standard error, as they come
        self._cond = threading.Condition()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "srup", *first, "server", "--identity", f"{SERVER:x}"),
                *("--key", str(folder / "server.pem"), "--devices", str(folder / "devices"), "--broker", broker),
                *options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            with self._cond:
                self.lines.append(line)
                self._cond.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdout.close()
        self.process.stderr.close()

    def heard(self, text):
        """Wait for a line of the log that contains ``text``, and return it."""
        deadline = time.monotonic() + WAIT
        with self._cond:
            while not (found := [line for line in self.lines if text in line]):
                assert self._cond.wait(deadline - time.monotonic()), f"no {text!r} in {self.lines}"
        return found[0]

    @property
    def url(self):
        """Where it says that it listens; in JSON or not, the address is the last word of the event."""
        line = self.heard("metrics at http://")
        return line[line.index("http://") :].split("/metrics")[0]

    def get(self, path, url=None):
        """Status and body; of the process itself, or of the worker at a URL."""
        try:
            with urllib.request.urlopen(f"{url or self.url}/{path}", timeout=WAIT) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def samples(self, url=None):
        """All metrics by name and labels, as an independent parser reads them."""
        families = text_string_to_metric_families(self.get("metrics", url)[1])
        return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}

    def problems(self, url=None):
        """What it is not ready for, by part."""
        status, body = self.get("readyz", url)
        report = json.loads(body)
        assert (status == 200) == report["ok"] == (not report["problems"])
        return {problem["part"]: problem["why"] for problem in report["problems"]}


class Publisher:
    """A client of the broker that publishes what it likes."""

    def __init__(self, broker):
        self._transport = MqttTransport(broker, "publisher")
        self._up = threading.Event()

    def __enter__(self) -> Self:
        self._transport.start(lambda delivery: delivery.ack(), lambda up, _: self._up.set() if up else None)
        assert self._up.wait(WAIT)
        return self

    def __exit__(self, *_):
        self._transport.stop()

    def publish(self, topic, payload):
        self._transport.publish(topic, payload)
