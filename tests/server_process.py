"""``srup server`` as a process of its own without a terminal: its log is read line by line, its endpoint asked."""

import json
import threading
import urllib.error
import urllib.request
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

from srup import Device
from srup.transport import MqttTransport

from .command import Command
from .fleet import WAIT, key_of

SERVER, DEVICE = 0x5E, 0xD1


def keys_in(folder):
    """Write the keys of the server and of one device that it knows."""
    (folder / "devices").mkdir()
    key_of(SERVER).save(folder / "server.pem")
    key_of(DEVICE).public_key.save(folder / "devices" / f"{DEVICE:x}.pem")
    return folder


def lamp(folder, broker, description=""):
    """The device that it knows, in this process."""
    return Device(
        DEVICE,
        key_of(DEVICE),
        server=SERVER,
        server_key=key_of(SERVER).public_key,
        broker=broker,
        firmware=folder / "firmware",
        description=description,
    )


class ServerProcess(Command):
    """``options`` go behind those that every server needs, ``first`` before all."""

    def __init__(self, folder, broker, *options, first=()):
        super().__init__(
            *(*first, "server", "--identity", f"{SERVER:x}", "--key", folder / "server.pem"),
            *("--devices", folder / "devices", "--broker", broker, *options),
        )

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
