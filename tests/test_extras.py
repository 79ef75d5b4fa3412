"""Each extra alone: an environment with exactly its packages, in which every command runs or names what it lacks."""

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from packaging import requirements

import srup
from srup.cli.app import app
from srup.extras import OPTIONAL, missing_named, what_is_missing

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL_DEPENDENCIES = PROJECT["optional-dependencies"]
# What stands in "all", and so is installed here. "multibuffer" adds no module that is imported (tests/test_lanes.py).
IN_ALL = set(requirements.Requirement(OPTIONAL_DEPENDENCIES["all"][0]).extras) | {"all"}
EXTRAS = ["", *(extra for extra in OPTIONAL_DEPENDENCIES if extra in IN_ALL)]
MISSING = re.compile(r"error: (\S+) is not installed: pip install 'srup\[(\w+)\]'\n")


class Trial(NamedTuple):
    """A command with arguments that get it to its work, what that needs, and how it ends when nothing is missing."""

    arguments: str
    needs: set[str] = set()
    says: str = ""  # in what it prints
    status: int | tuple[int, ...] = 0
    until: str | None = None  # it runs until it is told to end, and that when this is seen


MQTT = {"paho-mqtt", "urllib3"}
CONSOLE = {"itsdangerous", "jinja2", "mnemonic", "segno", "starlette", "uvicorn"}
BROKER = "mqtt://127.0.0.1:1"  # nobody is there, and both sides try again and again
REDIS = "redis://127.0.0.1:1"
JOIN = f"join --store {REDIS} --identity 5e"
JOIN_NEEDS = {"needs": {"mnemonic", "redis", "segno"}}
AUDIT = f"audit --store {REDIS} --identity 5e"
ORDER = f"order --store {REDIS} --identity 5e"
NO_REDIS = {"needs": {"redis"}, "says": "Redis at 127.0.0.1:1", "status": 2}
CAMPAIGN = "campaign --store none.db --identity 5e"
NO_DATABASE = {"says": "none.db is missing", "status": 2}
NOBODY = {"says": "no key waits|d1 is not registered|waiting keys", "status": 2}
SERVER = f"server --identity 5e --key 5e.pem --devices devices --broker {BROKER}"
DEVICE = f"device --identity d1 --key d1.pem --server 5e --server-key 5e.pem.pub --broker {BROKER}"

# Every command that there is. A new one gets a line here.
TRIALS = {
    "version": [Trial("version", says="backend")],
    "keygen": [Trial("keygen new.pem --scheme ed25519", says="fingerprint")],
    "broker": [Trial("broker --broker-kind amqtt --port 0", {"amqtt"}, until="broker at")],
    "server": [
        Trial(SERVER, {"paho-mqtt"}, until="server 5e: 1 device"),
        Trial(f"{SERVER} --store server.db", {"paho-mqtt"}, until="server 5e: 1 device"),
        Trial(f"{SERVER} --metrics 0", {"paho-mqtt", "prometheus-client"}, until="metrics at"),
        Trial(f"{SERVER} --log-format json", {"paho-mqtt", "structlog"}, until="server 5e: 1 device"),
        Trial(f"{SERVER} --store {REDIS}", {"redis"}, says="Redis at 127.0.0.1:1", status=2),
    ],
    "device": [
        Trial(DEVICE, MQTT, until="device d1: asking"),
        Trial(f"{DEVICE} --metrics 0", {*MQTT, "prometheus-client"}, until="metrics at"),
        Trial(f"{DEVICE} --reader cat", {*MQTT, "mnemonic", "segno"}, until="device d1: asking"),
    ],
    "init": [Trial("init new", says="srup server")],
    "devices show": [
        Trial(f"devices --store {REDIS} --identity 5e", **NO_REDIS),
        Trial(f"devices --store {REDIS} --identity 5e show d1", **NO_REDIS),
    ],
    **{
        f"campaign {name}": [Trial(f"{CAMPAIGN} {name} locks", **NO_DATABASE)]
        for name in ("status", "pause", "resume", "abort", "retry", "approve", "activate")
    },
    "campaign apply": [Trial(f"{CAMPAIGN} apply locks.toml", **NO_DATABASE)],
    "campaign rehearse": [Trial("campaign rehearse locks.toml --size 3", says="locks.toml", status=2)],
    "campaign list": [Trial(f"{CAMPAIGN} list", **NO_DATABASE)],
    "campaign run": [Trial(f"{CAMPAIGN} run", **NO_DATABASE)],
    "firmware serve": [
        Trial("firmware serve . --allow-http --port 0", {"starlette", "uvicorn"}, until="firmware of . at")
    ],
    "console user add": [Trial("console user add ada --role boss", CONSOLE, says="--role boss", status=2)],
    "console user remove": [Trial("console user remove ada", CONSOLE, says="there is no user ada", status=2)],
    "console user list": [
        Trial("console user list", CONSOLE, says="nobody"),
        Trial(
            f"console --store {REDIS} --identity 5e --port 0",
            CONSOLE | {"redis"},
            says="Redis at 127.0.0.1:1",
            status=2,
        ),
        Trial("console --store none.db --identity 5e --port 0", CONSOLE, says="none.db is missing", status=2),
    ],
    "inspect": [
        Trial("inspect 0504", says="not an SRUP message", status=1),
        Trial("inspect traffic.pcap", {"dpkt"}, says="cannot be read", status=2),
    ],
    "store create": [Trial(f"store create {REDIS} --identity 5e", **NO_REDIS)],
    "join accept": [Trial(f"{JOIN} accept d1 --id 00", **NO_REDIS)],
    "join refuse": [Trial(JOIN, **NO_REDIS | JOIN_NEEDS), Trial(f"{JOIN} refuse d1", **NO_REDIS)],
    "join fail": [Trial(f"{JOIN} fail d1", **NO_REDIS)],
    "audit export": [Trial(AUDIT, **NO_REDIS), Trial(f"{AUDIT} export out.jsonl", **NO_REDIS)],
    "audit verify": [Trial("audit verify none.jsonl", says="none.jsonl", status=2)],
    "store backup": [Trial("store backup none.db copy.db", says="none.db is missing", status=2)],
    "store audit": [Trial("store audit none.db --identity 5e", says="none.db", status=2)],
    "order action": [Trial(f"{ORDER} action d1 1", **NO_REDIS)],
    "order identify": [Trial(f"{ORDER} identify d1", **NO_REDIS)],
    "order update": [Trial(f"{ORDER} update d1 --url https://x/f --digest {'0' * 64}", **NO_REDIS)],
    "order activate": [Trial(f"{ORDER} activate d1.{'0' * 32}", **NO_REDIS)],
    "order cancel": [Trial(f"{ORDER} cancel d1.{'0' * 32}", **NO_REDIS)],
    "order send": [Trial(f"{ORDER} send d1 name value", **NO_REDIS)],
    "order join": [Trial(f"{ORDER} join d1", **NO_REDIS)],
    "order decide": [Trial(f"{ORDER} decide d1 {'0' * 32} refuse", **NO_REDIS)],
    "order register": [Trial(f"{ORDER} register d1 d1.pem.pub", **NO_REDIS)],
    "order remove": [Trial(f"{ORDER} remove d1", **NO_REDIS)],
    "order revoke": [Trial(f"{ORDER} revoke d1", **NO_REDIS)],
    "order terminate": [Trial(f"{ORDER} terminate d1", **NO_REDIS)],
    "order deregister": [Trial(f"{ORDER} deregister d1", **NO_REDIS)],
    "order tag": [Trial(f"{ORDER} tag d1 site berlin", **NO_REDIS)],
    "order result": [Trial(f"{ORDER} result d1.{'0' * 32}", **NO_REDIS)],
    "order waiting": [Trial(f"{ORDER} waiting", **NO_REDIS)],
    "keyex create": [Trial("keyex create", says="keyex")],
    "keyex renew": [Trial("keyex renew d2", says="d2", status=2)],
    "keyex serve": [Trial("keyex serve --broker b --port 0", {"starlette", "uvicorn"}, until="Key exchange service")],
    "keyex token": [Trial("keyex token d1", says=".")],
    "keyex add": [Trial("keyex add d1 d1.pem.pub", says="d1 is registered")],
    "keyex list": [Trial("keyex list", says="identity")],
    "keyex approve": [Trial(f"keyex approve d2 {'0' * 64}", says="d2", status=2)],
    "keyex refuse": [Trial("keyex refuse d2", says="no key waits for d2", status=2)],
    "keyex revoke": [Trial("keyex revoke d1", says="d1 is revoked")],
    "keyex crl": [Trial("keyex crl", says="BEGIN X509 CRL")],
    "keyex mosquitto": [Trial("keyex mosquitto --name localhost", says="mosquitto -c")],
    "keyex enroll": [
        Trial(
            "keyex enroll https://127.0.0.1:1 d2 --folder d2 --scheme ed25519",
            {"urllib3"},
            says="127.0.0.1:1",
            status=2,
        )
    ],
    "demo": [Trial("demo --devices 3 --scheme ed25519 --broker-kind amqtt", {*MQTT, "amqtt"}, says="as expected")],
    "simulate": [Trial("simulate --seed 1 --devices 1 --steps 1 --scheme ed25519", says="passed")],
    "bench fleet": [
        Trial(
            "bench fleet --devices 1 --rate 5 --seconds 0.1 --keys 1 --scheme ed25519",
            MQTT,
            says="mosquitto",  # counted, or is not installed
            status=(0, 2),
        )
    ],
}


# --- environments


def normal(name: str) -> str:
    """The name of a distribution as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_with(extra: str) -> dict[str, Distribution]:
    """What ``pip install srup[extra]`` installs, srup included, by its name."""
    found: dict[str, Distribution] = {}
    seen = set()
    waiting = [("srup", frozenset({extra}))]
    while waiting:
        name, extras = each = waiting.pop()
        if each in seen:
            continue
        seen.add(each)
        found[normal(name)] = distribution(name)
        for line in found[normal(name)].requires or ():
            requirement = requirements.Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": one}) for one in {"", *extras}):
                waiting.append((requirement.name, frozenset(requirement.extras)))
    return found


def linked(one: Distribution) -> Iterator[Path]:
    """The files and folders of a distribution in site-packages."""
    for name in {path.parts[0] for path in one.files or ()} - {"..", "__pycache__"}:
        yield Path(str(one.locate_file(name)))


class Place(NamedTuple):
    """A virtual environment with exactly the packages of an extra, and a folder to work in."""

    python: Path
    folder: Path
    packages: set[str]

    def run(self, *arguments: str, said: str = "") -> "subprocess.CompletedProcess[str]":
        environment = {"PATH": os.environ["PATH"], "COLUMNS": "200", "TMPDIR": str(self.folder)}
        if "SRUP_BACKEND" in os.environ:
            environment["SRUP_BACKEND"] = os.environ["SRUP_BACKEND"]
        return subprocess.run(
            [self.python, *arguments],
            cwd=self.folder,
            env=environment,
            input=said,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )


def place_with(extra: str, folder: Path) -> Place:
    made = venv.EnvBuilder(symlinks=True)
    made.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    packages = installed_with(extra)
    [site] = (folder / "venv" / "lib").glob("python*/site-packages")
    for one in packages.values():
        for path in linked(one):
            if not (site / path.name).is_symlink():
                (site / path.name).symlink_to(path)
    work = folder / "work"
    (work / "devices").mkdir(parents=True)
    for name in ("5e", "d1"):
        key = srup.PrivateKey.generate("ed25519")
        key.save(work / f"{name}.pem")
        key.public_key.save(work / f"{name}.pem.pub")
    (work / "devices" / "d1.pem").write_bytes((work / "d1.pem.pub").read_bytes())
    (work / "traffic.pcap").write_bytes(b"\xd4\xc3\xb2\xa1")  # the beginning of one
    return Place(python, work, set(packages))


# --- commands


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all groups and commands below a group, itself included."""
    yield path
    for name in group.list_commands(None) if hasattr(group, "list_commands") else ():
        yield from commands(group.get_command(None, name), (*path, name))


PATHS = list(commands(typer.main.get_command(app)))


def test_every_command_is_tried() -> None:
    leaves = {" ".join(path) for path in PATHS if not any(other[:-1] == path for other in PATHS if other)}
    assert set(TRIALS) == leaves


@pytest.mark.process
@pytest.mark.parametrize("extra", EXTRAS)
def test_every_command_runs_or_names_the_extra_that_it_lacks(extra: str, tmp_path: Path) -> None:
    place = place_with(extra, tmp_path)
    trials = [trial for trials in TRIALS.values() for trial in trials]
    helps = [Trial(" ".join([*path, "--help"]), says="Usage") for path in PATHS]
    orders = [(trial.arguments.split(), trial.until) for trial in (*trials, *helps)]
    done = place.run(str(Path(__file__).with_name("extras_driver.py")), said=json.dumps(orders))
    assert done.returncode == 0, done.stderr
    for trial, (status, output, complaints) in zip((*trials, *helps), json.loads(done.stdout), strict=True):
        seen = f"srup {trial.arguments}: {status}\n{output}{complaints}"
        lacking = (trial.needs | ({"typer", "rich"} if trial.arguments != "version" else set())) - place.packages
        if lacking:
            missing = MISSING.fullmatch(complaints)
            assert missing, seen
            assert (status, output) == (2, ""), seen
            assert missing[1] in lacking, seen
            assert missing[1] in installed_with(missing[2]), seen
        else:
            expected = trial.status if isinstance(trial.status, tuple) else (trial.status,)
            assert status in expected, seen
            assert (trial.until or trial.says) in output + complaints, seen
            assert "Traceback" not in complaints, seen


# --- the library


def test_the_table_of_packages_is_that_of_pyproject() -> None:
    extras = {
        extra: {normal(requirements.Requirement(line).name) for line in lines} - {"srup"}
        for extra, lines in OPTIONAL_DEPENDENCIES.items()
        if extra in IN_ALL
    }
    assert {package.distribution for package in OPTIONAL.values()} == set().union(*extras.values())
    for package in OPTIONAL.values():
        assert package.distribution in extras[package.extra]


LIBRARY = {
    "import srup, sys; sys.exit(str(set(sys.modules) & OPTIONAL) if set(sys.modules) & OPTIONAL else 0)": "",
    "import srup; srup.Device; srup.Server; srup.FetchPolicy; srup.SqliteStore; srup.transport.Reactor": "",
    "import srup; srup.RedisStore": "redis",
    "import srup; srup.Worker": "redis",
    "import srup; srup.Fleet('redis://127.0.0.1:1', 1)": "redis",
    "from srup.store import RedisStore": "redis",
    "import srup.monitor": "metrics",
    "import srup; srup.monitor.Monitor": "metrics",
    "import srup.keyex.service": "keyex",
    "import srup.keyex; srup.keyex.enroll; srup.keyex.Authority": "",
    "from srup.transport import MqttTransport; MqttTransport('mqtt://localhost', 'me')": "mqtt",
    "from srup.fetch import HttpFetcher; HttpFetcher()": "mqtt",
    "import srup.keyex; srup.keyex.KeyService('https://keyex')": "mqtt",
    "from srup.transport import LocalBroker; LocalBroker('amqtt')": "demo",
    "import srup; srup.JoinValue.new(bytes(16)).groups": "",
    "import srup; srup.JoinValue.new(bytes(16)).words": "join",
    "import srup; srup.JoinValue.new(bytes(16)).qr()": "join",
}


@pytest.mark.process
def test_the_library_names_the_extra_that_is_missing(tmp_path: Path) -> None:
    place = place_with("", tmp_path)
    for code, extra in LIBRARY.items():
        done = place.run("-c", code.replace("OPTIONAL", repr(set(OPTIONAL))))
        last = done.stderr.splitlines()[-1:]
        if extra:
            assert [f"pip install 'srup[{extra}]'" in line for line in last] == [True], (code, done.stderr)
        else:
            assert (done.returncode, last) == (0, []), (code, done.stderr)


def test_all_leaves_nothing_out_but_what_is_large() -> None:
    assert set(OPTIONAL_DEPENDENCIES) - IN_ALL == {"multibuffer"}


def test_a_module_that_is_missing_for_another_reason_is_not_explained_away() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'srup\.nonsense'$"), missing_named():
        importlib.import_module("srup.nonsense")
    assert what_is_missing(ImportError("cannot import name", name="redis")) is None
    assert what_is_missing(ModuleNotFoundError("No module named 'redis.x'", name="redis.x")) is None


# --- the version, and secrets


@pytest.mark.process
@pytest.mark.parametrize("arguments", ["--version", "version", "--verbose --version", "--version server --nonsense"])
def test_the_version_is_told(arguments: str) -> None:
    command = [sys.executable, "-m", "srup", *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"srup {srup.__version__} ({srup.BACKEND} backend)\n"), done.stderr


def test_the_version_is_written_once() -> None:
    assert distribution("srup").version == srup.__version__
    assert "version" in PROJECT["dynamic"]


SECRET = "correct-horse-battery-staple"
BREAK = """
import sys
from unittest import mock
from srup.cli import main

sys.argv = ["srup", *{arguments!r}.split()]
with mock.patch({where!r}, side_effect=RuntimeError("what nobody expected")):
    main()
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ("keygen new.pem --password --scheme ed25519", "srup.keys.PrivateKey.save"),
        (f"{DEVICE} --password", "srup.keys.PrivateKey.load"),
        (f"{DEVICE} --broker-user me", "srup.cli.options.MqttTransport"),
        (f"keyex enroll https://127.0.0.1:1 d1 --folder d --token {SECRET}", "srup.agent.enrolment.enroll"),
    ],
)
def test_no_secret_is_in_a_traceback(arguments: str, where: str, tmp_path: Path) -> None:
    place = place_with("all", tmp_path)
    done = subprocess.run(
        [place.python, "-c", BREAK.format(arguments=arguments, where=where)],
        cwd=place.folder,
        env={"PATH": os.environ["PATH"], "SRUP_KEY_PASSWORD": SECRET, "SRUP_BROKER_PASSWORD": SECRET},
        input=f"{SECRET}\n{SECRET}\n",
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "what nobody expected" in done.stderr, done.stdout + done.stderr
    assert done.returncode == 1
    assert SECRET not in done.stdout + done.stderr
