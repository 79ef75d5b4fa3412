"""What happens in the demonstration, without a word about how it is shown."""

import hashlib
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

from ..agent import Device, Refusal, Server, UpdateOrder
from ..errors import PolicyError, ReplayError, SignatureError, SrupError, TransportError, UpdateError
from ..fetch import FetchPolicy
from ..images import file_digest
from ..keyring import KeyRing
from ..keys import PrivateKey
from ..transport import LocalBroker
from ..update import UpdateState
from ..wire import Status
from .attacker import Attacker
from .host import FirmwareHost

__all__ = ["MINIMUM_DEVICES", "BrokerKind", "Check", "Report", "Row", "Scenario"]

MINIMUM_DEVICES: Final = 3
"""One is attacked with forgery and replay, one gets what was meant for it, one gets a tampered download."""

_SERVER: Final = 0x5E0
_FIRST_DEVICE: Final = 0xD100
_UNLOCK: Final = 3
_VICTIMS: Final = ("forgery, replay", "redirection", "tampering")


class Check(NamedTuple):
    """Something that had to happen, whether it did, and what was seen."""

    what: str
    passed: bool
    seen: str


class Row(NamedTuple):
    """One device at the end."""

    device: int
    role: str
    joined: bool
    update: str
    active: str  # the first digits of the active firmware's digest, "" for none
    verified: int
    refused: int


@dataclass
class Report:
    """The outcome: ``passed`` only if everything happened as it should."""

    rows: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    messages: int = 0
    attacks: int = 0
    verified: int = 0
    refused: int = 0
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)


class _Fleet:
    """The devices with what they did, heard and refused."""

    def __init__(self) -> None:
        self.devices: dict[int, Device] = {}
        self.unlocked: list[int] = []
        self.refusals: dict[int, list[Refusal]] = {}  # the server's too
        self.changed = threading.Condition()

    def watch(self, agent: Device | Server) -> None:
        refusals = self.refusals[agent.identity] = []

        @agent.on_refused
        def refused(refusal: Refusal) -> None:
            with self.changed:
                refusals.append(refusal)
                self.changed.notify_all()

    def add(self, device: Device) -> None:
        self.devices[device.identity] = device
        self.watch(device)

        @device.on_action(_UNLOCK)
        def unlock(_server: int) -> None:
            self.unlocked.append(device.identity)

    def wait_refusal(self, agent: int, wire: bytes, count: int, timeout: float) -> SrupError | None:
        """Return why an agent refused these bytes, None if it has not done so ``count`` times within ``timeout``."""

        def matching() -> list[Refusal]:
            return [refusal for refusal in self.refusals[agent] if refusal.wire == wire]

        with self.changed:
            self.changed.wait_for(lambda: len(matching()) >= count, timeout)
            found = matching()
        return found[-1].error if len(found) >= count else None


BrokerKind = Literal["mosquitto", "amqtt"]

Progress = Callable[[str, int, int], None]
"""Told what is going on, how many are done, and of how many."""


class Scenario:
    """A fleet of ``devices`` with keys of ``scheme`` is joined, attacked and updated; ``progress`` hears how it goes.

    ``image_size`` is the firmware's size in bytes; each phase may take ``patience`` seconds.
    """

    def __init__(
        self,
        devices: int = 25,
        scheme: str = "rsa2048",
        image_size: int = 4 << 20,
        patience: float = 120.0,
        broker: BrokerKind | None = None,
        progress: Progress = lambda phase, done, total: None,
        announce: Callable[[str], None] = lambda line: None,
    ) -> None:
        if devices < MINIMUM_DEVICES:
            raise ValueError(f"the demonstration needs at least {MINIMUM_DEVICES} devices, not {devices}")
        self.report = Report()
        self._identities = [_FIRST_DEVICE + index for index in range(devices)]
        self._scheme = scheme
        self._image = os.urandom(image_size)
        self._patience = patience
        self._broker_kind = broker
        self._progress = progress
        self._announce = announce

    def run(self) -> Report:
        """Run it all and return the report. Raises SrupError or TimeoutError when the stage itself cannot be set."""
        began = time.monotonic()
        _allow_open_files(20 * len(self._identities) + 200)
        with ExitStack() as stage:
            folder = Path(stage.enter_context(tempfile.TemporaryDirectory(prefix="srup-demo-")))
            image = folder / "firmware.bin"
            image.write_bytes(self._image)
            broker = stage.enter_context(LocalBroker(self._broker_kind))
            self._announce(f"Broker: {broker.description}")
            host = stage.enter_context(FirmwareHost(self._image, folder))
            size = len(self._image) / 2**20
            self._announce(f"Firmware: {size:.1f} MiB over HTTPS, SHA-256 {file_digest(image)[:8]}…")
            keys = self._make_keys()
            attacker = stage.enter_context(Attacker(broker.url))
            self._progress("Joining", 0, len(self._identities))
            server, fleet = self._populate(stage, broker.url, keys, folder, host)
            self._join(server, fleet)
            self._attack(server, fleet, attacker)
            orders = self._update(server, host, file_digest(image))
            self._judge_updates(orders, folder, file_digest(image))
            self._count(server, fleet, orders, folder)
        self.report.seconds = time.monotonic() - began
        return self.report

    # The stage.

    def _make_keys(self) -> dict[int, PrivateKey]:
        """Make a key for the server and each device, on all cores."""
        everybody = [_SERVER, *self._identities]
        keys: dict[int, PrivateKey] = {}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            made = pool.map(lambda _: PrivateKey.generate(self._scheme), everybody)
            for identity, key in zip(everybody, made, strict=True):
                keys[identity] = key
                self._progress(f"Generating {self._scheme} keys", len(keys), len(everybody))
        return keys

    def _populate(
        self, stage: ExitStack, url: str, keys: dict[int, PrivateKey], folder: Path, host: FirmwareHost
    ) -> tuple[Server, _Fleet]:
        ring = KeyRing({identity: keys[identity].public_key for identity in self._identities})
        server = stage.enter_context(Server(_SERVER, keys[_SERVER], devices=ring, broker=url))
        self._await_connection(server)  # a join that the broker has nobody to pass on to is asked again after seconds
        fleet = _Fleet()
        fleet.watch(server)
        stage.enter_context(self._stopping(fleet))
        for identity in self._identities:
            device = Device(
                identity,
                keys[identity],
                server=_SERVER,
                server_key=keys[_SERVER].public_key,
                broker=url,
                firmware=folder / f"{identity:x}",
                fetch=FetchPolicy(ca_file=host.certificate),
                description=f"demo device {identity:x}",
            )
            fleet.add(device)
            device.start()
        return server, fleet

    def _await_connection(self, server: Server) -> None:
        deadline = time.monotonic() + self._patience
        while not server.connected:
            if time.monotonic() > deadline:
                raise TimeoutError("the server could not connect to the broker")
            time.sleep(0.01)

    @staticmethod
    @contextmanager
    def _stopping(fleet: _Fleet) -> Iterator[None]:
        try:
            yield
        finally:
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(lambda device: device.stop(), fleet.devices.values()))

    # The play.

    def _check(self, what: str, passed: bool, seen: str) -> None:
        self.report.checks.append(Check(what, passed, seen))

    def _join(self, server: Server, fleet: _Fleet) -> None:
        deadline = time.monotonic() + self._patience
        joined = 0
        for device in fleet.devices.values():
            try:
                device.wait_joined(max(0.0, deadline - time.monotonic()))
            except (TimeoutError, SrupError):
                continue
            joined += 1
            self._progress("Joining", joined, len(fleet.devices))
        self._check("every device joins", joined == len(fleet.devices), f"{joined} of {len(fleet.devices)} joined")

    def _attack(self, server: Server, fleet: _Fleet, attacker: Attacker) -> None:
        """Send one genuine command, and three that must be refused, each for its own reason."""
        target, bystander = self._identities[:2]
        answer = server.action(target, _UNLOCK).result(self._patience)
        self._check(
            "a genuine command is obeyed",
            answer is Status.ACTION_SUCCESS and fleet.unlocked == [target],
            f"{target:x} answers {answer.name}",
        )
        genuine = attacker.capture_action(_SERVER, target)
        forged = attacker.forge_action(_SERVER, target, _UNLOCK)
        attacks: list[tuple[str, int, bytes, type[SrupError]]] = [
            ("a forged command is refused", target, forged, SignatureError),
            ("a replayed command is refused", target, genuine, ReplayError),
            ("a redirected command is refused", bystander, genuine, PolicyError),
        ]
        posing = attacker.impersonate(bystander, _SERVER)
        for _, device, wire, _ in attacks:
            attacker.publish(device, wire)
        attacks.insert(0, ("a device with the wrong key is not let in", _SERVER, posing, SignatureError))
        for done, (what, receiver, wire, reason) in enumerate(attacks, 1):
            self.report.attacks += 1
            error = fleet.wait_refusal(receiver, wire, 1, self._patience)
            seen = f"{receiver:x}: {type(error).__name__}: {error}" if error else f"{receiver:x} did not refuse it"
            self._check(what, isinstance(error, reason), seen)
            self._progress("Attacking", done, len(attacks))
        self._check(
            "no attack had an effect", fleet.unlocked == [target], f"{len(fleet.unlocked)} of 1 command was carried out"
        )

    def _update(self, server: Server, host: FirmwareHost, digest: str) -> list[UpdateOrder]:
        host.tamper_for(self._identities[2])
        self._progress("Updating", 0, len(self._identities))
        ended = threading.Semaphore(0)
        orders = [server.update(identity, host.url(identity), digest) for identity in self._identities]
        for order in orders:
            order.add_done_callback(lambda _: ended.release())
        deadline = time.monotonic() + self._patience
        for done in range(1, len(orders) + 1):
            if not ended.acquire(timeout=max(0.0, deadline - time.monotonic())):
                break
            self._progress("Updating", done, len(orders))
        return orders

    def _judge_updates(self, orders: list[UpdateOrder], folder: Path, digest: str) -> None:
        victim = self._identities[2]
        updated = 0
        for order in orders:
            if order.device == victim:
                refused = order.state is UpdateState.FAILED and order.status is Status.UPDATE_FAIL_DIGEST
                seen = f"{victim:x} reports {order.status.name if order.status is not None else order.state.name}"
                code = f" ({order.status:02X})" if order.status is not None else ""
                self._check("a tampered download is refused", refused and not _active(folder, victim), seen + code)
            elif order.state is UpdateState.ACTIVATED and _active(folder, order.device) == digest:
                updated += 1
        expected = len(orders) - 1
        seen = f"{updated} of {expected} run the new firmware"
        self._check("every other device is updated", updated == expected, seen)

    def _count(self, server: Server, fleet: _Fleet, orders: list[UpdateOrder], folder: Path) -> None:
        roles = dict(zip(self._identities, _VICTIMS, strict=False))
        states = {order.device: _outcome(order) for order in orders}
        for identity, device in fleet.devices.items():
            self.report.rows.append(
                Row(
                    device=identity,
                    role=roles.get(identity, ""),
                    joined=identity in server.members,
                    update=states[identity],
                    active=_active(folder, identity)[:8],
                    verified=device.counts["verified"],
                    refused=len(fleet.refusals[identity]),
                )
            )
        agents = [server, *fleet.devices.values()]
        self.report.messages = sum(agent.counts["sent"] for agent in agents)
        self.report.verified = sum(agent.counts["verified"] for agent in agents)
        self.report.refused = sum(map(len, fleet.refusals.values()))
        faults = sum(agent.counts["faults"] for agent in agents)
        self._check(
            "nothing else was refused, and nothing failed",
            self.report.refused == self.report.attacks and not faults,
            f"{self.report.refused} messages refused, {faults} faults",
        )


def _allow_open_files(needed: int) -> None:
    """Raise the soft limit of open files as far as the hard one allows; SrupError if that is not enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        said = f"{needed} open files are needed and {hard} allowed"
        raise TransportError(f"{said}: take fewer devices, or raise the limit (ulimit -n)")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _outcome(order: UpdateOrder) -> str:
    try:
        return order.result(0).name.lower()
    except UpdateError as error:
        return f"refused ({error.status:02X})"
    except (SrupError, TimeoutError) as error:
        return f"{order.state.name.lower()}: {error}"


def _active(folder: Path, device: int) -> str:
    """Return the digest of the firmware that a device runs, "" for none."""
    current = folder / f"{device:x}" / "current"
    return hashlib.sha256(current.read_bytes()).hexdigest() if current.exists() else ""
