"""README and the pages in docs/ are true: whatever they show as a step is run here, as it stands there.

A step is a block of ``console`` or ``python``. Each is taken by the story of its page, below, or has a line
``<!-- not run: why -->`` above it. Only ports, hosts and the number of simulated runs are replaced: see SUBSTITUTED.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

import srup
from srup.demo.host import FirmwareHost
from srup.monitor import Collector, Monitor
from srup.transport import LocalBroker, MemoryNetwork, MemoryTransport
from srup.transport.broker import free_port

from .command import Command
from .fleet import wait_until
from .programs import need
from .pseudoterminal import Program
from .redis_server import redis_server

ROOT = Path(__file__).parents[1]
STEPS = ("console", "python")
BLOCK = re.compile(r"^ *(?:<!-- not run: (?P<why>.+) -->\n *)?```(?P<language>\w+)\n(?P<text>.*?)^ *```$", re.M | re.S)
AS_ROOT = " --user root" if os.geteuid() == 0 else ""  # pytest's folders are for their owner alone
IMAGE = bytes(range(256)) * 400


class Block(NamedTuple):
    language: str
    text: str
    why_not: str | None

    @property
    def commands(self) -> list[str]:
        """The commands of a console, without the output that it shows."""
        lines = self.text.replace("\\\n", "").splitlines()
        return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]

    @property
    def file(self) -> str:
        """The file that a block of Python is to be saved as."""
        named = re.match(r"# (\w+\.py)\n", self.text)
        assert named is not None, self.text
        return named[1]


def blocks(page: str) -> list[Block]:
    found = BLOCK.finditer((ROOT / page).read_text())
    return [Block(each["language"], each["text"], each["why"]) for each in found if each["language"] in STEPS]


PAGES = [str(path.relative_to(ROOT)) for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])]
WITH_STEPS = [page for page in PAGES if any(block.why_not is None for block in blocks(page))]

# What stands in the pages, and what for in a test: a name of Site, or a text.
SUBSTITUTED = {
    "localhost:1883": "broker",
    "srup broker": "broker_command",
    "srup init site": "init_command",
    "http.server 8000": "host_command",
    "localhost:8000": "host",
    '("127.0.0.1", 8443)': "https_address",
    "localhost:8443": "https",
    "redis://localhost:6379/0": "redis",
    "--metrics 9464": "metrics_option",
    'Monitor("9464"': "monitor",
    "https://updates.example/firmware.bin": "firmware",
    "--runs 100": "runs",
}


class Site:
    """A folder in which a page is followed, and the processes that run there."""

    def __init__(self, folder: Path, stage: ExitStack) -> None:
        self.folder = folder
        self.stage = stage
        port, host, https, metrics = (free_port() for _ in range(4))
        self.metrics = f"http://127.0.0.1:{metrics}/metrics"
        self.values = {
            "broker": f"localhost:{port}",
            "broker_command": f"srup broker --port {port}",
            "host_command": f"http.server {host}",
            "host": f"localhost:{host}",
            "https_address": f'("127.0.0.1", {https})',
            "https": f"localhost:{https}",
            "init_command": f"srup init site --port {port} --keyex-port {https}{AS_ROOT}",
            "metrics_option": f"--metrics {metrics}",
            "monitor": f'Monitor("{metrics}"',
            "runs": "--runs 1",
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "200"}
        self._steps: list[list[Block]] = []

    @contextmanager
    def following(self, page: str) -> Iterator[None]:
        """Follow a page, from another one perhaps; every step of it has to be taken."""
        self._steps.append([block for block in blocks(page) if block.why_not is None])
        yield
        assert [block.text for block in self._steps.pop()] == []

    def take(self, language: str) -> Block:
        """Return the page's next step, for this machine."""
        block = self._steps[-1].pop(0)
        assert block.language == language, block.text
        text = block.text
        for shown, name in SUBSTITUTED.items():
            if shown in text:
                text = text.replace(shown, self.values[name])
        return block._replace(text=text)

    def steps_left(self) -> int:
        """Return how many steps of the page have not been taken yet."""
        return len(self._steps[-1])

    def run(self, block: Block | None = None, folder: str = ".", status: int = 0) -> str:
        """Run the commands of a console, all of which end by themselves; return what they print."""
        script = "\n".join((self.take("console") if block is None else block).commands)
        done = subprocess.run(
            ["sh", "-e", "-c", script],
            cwd=self.folder / folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def save(self) -> str:
        """Save a block of Python as it asks to be; return the name."""
        block = self.take("python")
        (self.folder / block.file).write_text(block.text)
        return block.file

    def start(self, command: str, folder: str = ".") -> Command:
        program = ("sh", "-c", f"exec {command}")
        place = self.folder / folder
        return self.stage.enter_context(Command(program=program, folder=place, environment=self.environment))

    def terminal(self, command: str, folder: str = ".") -> Program:
        """Start a command of srup in a terminal."""
        program, *arguments = shlex.split(command, comments=True)
        assert program == "srup"
        return self.stage.enter_context(Program(arguments, folder=self.folder / folder))

    def broker(self) -> None:
        self.values["broker"] = self.stage.enter_context(LocalBroker()).url.removeprefix("mqtt://")

    def redis_server(self) -> None:
        self.values["redis"] = self.stage.enter_context(redis_server(self.folder / "redis")).url


STORIES: dict[str, Callable[[Site], None]] = {}


def story(page: str) -> Callable[[Callable[[Site], None]], Callable[[Site], None]]:
    def decorate(follow: Callable[[Site], None]) -> Callable[[Site], None]:
        STORIES[page] = follow
        return follow

    return decorate


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stage:
        yield Site(tmp_path, stage)


@pytest.mark.process
@pytest.mark.backend
@pytest.mark.timeout(300)  # some pages start ten programs, one after the other
@pytest.mark.parametrize("page", WITH_STEPS)
def test_the_steps_of(page: str, site: Site) -> None:
    assert page in STORIES, "nothing here runs its steps; write a story, or <!-- not run: why --> above each"
    with site.following(page):
        STORIES[page](site)


def test_every_story_has_its_page() -> None:
    assert set(STORIES) == set(WITH_STEPS)


@pytest.mark.parametrize("page", PAGES)
def test_python_in_the_pages_is_python(page: str) -> None:
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, page, "exec")


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_refers_to_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#\s]+)?(?:#[^)]*)?\)", text) + re.findall(r"not run: .*?(tests/\w+\.py)", text):
        if target and not target.startswith("https://"):
            base = ROOT if target.startswith("tests/") else (ROOT / page).parent
            assert (base / target).exists(), target


# --- README


def do_readme(site: Site) -> list[str]:
    """Do what README says before anything runs; return its commands: broker, host, server, device."""
    make, codec = site.take("console"), site.take("python")
    assert [command.split("#")[0].strip() for command in make.commands] == ["make demo", "make test"]
    exec(codec.text, names := {"srup": srup})
    assert names["message"] == srup.Action(sequence_id=7, sender_id=0x51, token=b"a-token", action_id=3)
    assert names["results"] == [names["message"]]
    site.run()
    assert [site.save(), site.save()] == ["server.py", "device.py"]
    return site.take("console").commands


def after_readme(site: Site) -> list[str]:
    """Do the same for a page that goes on from there."""
    with site.following("README.md"):
        return do_readme(site)


@story("README.md")
def follow_readme(site: Site) -> None:
    broker_command, host_command, server_command, device_command = do_readme(site)
    broker, _ = site.start(broker_command), site.start(host_command)
    broker.heard("Ctrl-C stops it")
    device = site.start(device_command)
    device.heard("connected to")
    server = site.start(server_command)
    for image in (b"the new firmware\n", b"a newer one\n"):
        if image != b"the new firmware\n":
            (site.folder / "files" / "firmware.bin").write_bytes(image)
            assert server.end() == 0
            server = site.start(server_command)
        digest = srup.file_digest(site.folder / "files" / "firmware.bin")
        device.heard(f"now running firmware/{digest}\n")
        server.heard(f"update of d1 to {digest[:16]}: ACTIVATED")
        assert (site.folder / "firmware" / digest).read_bytes() == image
    assert (server.end(), device.end(), broker.end()) == (0, 0, 0)
    assert "Traceback" not in "".join(server.lines + device.lines)


def test_readme_is_one_screen_and_its_programs_about_ten_lines() -> None:
    text = (ROOT / "README.md").read_text()
    before, _, rest = text.partition("<!-- figures: begin -->\n")
    table, _, after = rest.partition("<!-- figures: end -->\n")
    assert table
    assert len((before + after).splitlines()) <= 96
    for block in blocks("README.md"):
        assert len([line for line in block.text.splitlines() if line.strip()]) <= 12


# --- the pages


@story("docs/quickstart.md")
def follow_the_quickstart(site: Site) -> None:
    need("openssl")
    broker_command, _, *commands = after_readme(site)
    fingerprint = srup.PublicKey.load(site.folder / "device.pem.pub").fingerprint
    assert fingerprint in site.run()
    site.run()  # makes the certificate
    site.save()
    https = site.take("console")
    site.start(broker_command).heard("Ctrl-C stops it")
    site.start(*https.commands)
    for file, shown, instead in (
        ("server.py", f"http://{site.values['host']}/", f"https://{site.values['https']}/"),
        ("device.py", "allow_http=True", 'ca_file="host.crt"'),
    ):
        text = (site.folder / file).read_text()
        assert shown in text
        (site.folder / file).write_text(text.replace(shown, instead))
    page = (ROOT / "docs/quickstart.md").read_text()
    assert "`https://localhost:8443/firmware.bin`" in page
    assert '`fetch=srup.FetchPolicy(ca_file="host.crt")`' in page
    server, device = (site.start(command) for command in commands)
    device.heard("now running firmware/")
    server.heard("ACTIVATED")

    def shape(line: str) -> str:
        return re.sub(r"\d\d:\d\d:\d\d|[0-9a-f]{16,64}|localhost:\d+ with MQTT.*", "@", line).strip()

    [shown] = re.findall(r"^```text\n(.*?)^```", page, re.M | re.S)
    assert {shape(line) for line in shown.splitlines()} <= {shape(line) for line in server.lines}
    assert (server.end(), device.end()) == (0, 0)
    commands_and_values = site.take("python")
    (site.folder / "values.py").write_text(commands_and_values.text)
    said = site.run(Block("console", "$ python values.py", None)).splitlines()
    assert said == ["a lamp", "blinking", "ACTION_SUCCESS", "d1 says temperature = 21.5"]
    (site.folder / "loop.py").write_text(site.take("python").text)
    assert site.run(Block("console", "$ python loop.py", None)).splitlines() == ["blinking", "ACTION_SUCCESS"]


def shown_value(program: Program) -> list[str]:
    """Wait for the value of a join on a small terminal; return its words and its numbers."""
    found = program.expect(r"Words([a-z\s]+)Numbers([\d\s]+)\(a larger")
    return [" ".join(found[form].split()) for form in (1, 2)]


@story("docs/tutorial.md")
def follow_the_tutorial(site: Site) -> None:
    need("mosquitto")

    def in_site() -> str:
        entering, command = site.take("console").commands
        assert entering == "cd site"
        return command

    assert "srup" in site.run()
    assert "srup.toml" in site.run()
    assert "https://localhost:8443" in (ROOT / "docs/tutorial.md").read_text()
    site.start(in_site(), "site").heard("running")
    site.start(in_site(), "site").heard("https://")
    server = site.terminal(in_site(), "site")
    server.expect("connected to")
    token = site.run().strip()
    enrol = site.take("console")
    assert "TOKEN" in enrol.text
    assert "d1 is enrolled" in site.run(enrol._replace(text=enrol.text.replace("TOKEN", token)))
    site.run()
    device = site.terminal(*site.take("console").commands)
    assert shown_value(server) == shown_value(device)
    server.send("a\r")
    device.expect("joined server")
    assert re.search(r"^d1 .* yes ", site.run(folder="site"), re.M)
    assert site.run(folder="site").endswith("DONE ACTION_SUCCESS\n")
    assert site.run(folder="site") == "blinked\n"
    site.run(folder="site")
    site.start(in_site(), "site").heard("Serving HTTP")
    assert site.run(folder="site").endswith("ACTIVATED\n")
    assert site.run(folder="site") == "version 2\n"
    assert "UPDATE_FAIL_DIGEST" in site.run(folder="site", status=1).splitlines()[-1]
    assert (site.folder / "images" / "current").read_text() == "version 2\n"
    assert (device.end(), server.end()) == (0, 0)


@story("docs/joins.md")
def follow_joins(site: Site) -> None:
    site.run()
    [broker_command] = site.take("console").commands
    site.start(broker_command).heard("Ctrl-C stops it")
    server = site.terminal(*site.take("console").commands)
    server.expect("connected to")
    [simply] = site.take("console").commands
    device = site.terminal(simply)
    assert shown_value(server) == shown_value(device)
    server.send("a\r")
    device.expect("joined server 5e")
    assert (server.end(), device.end()) == (0, 0)
    server = site.terminal(*site.take("console").commands)
    server.expect("connected to")
    observer = site.terminal(*site.take("console").commands)
    assert shown_value(server) == shown_value(observer)
    server.send("a\r")
    observer.expect("joined server 5e")
    device = site.terminal(*site.take("console").commands)
    words, _ = shown_value(device)
    observer.expect("It shows:")
    observer.send(words)
    observer.expect(words.split()[-1])
    observer.send("\r")
    device.expect("joined server 5e")
    server.expect("d1 has joined")
    assert (device.end(), observer.end(), server.end()) == (0, 0, 0)
    follow_joins_from_elsewhere(site, simply)


def follow_joins_from_elsewhere(site: Site, simply: str) -> None:
    [serve] = site.take("console").commands
    service = site.start(serve)
    service.heard("connected to")
    first = site.terminal(simply)
    value = shown_value(first)
    beside = site.terminal(*site.take("console").commands)
    assert shown_value(beside) == value
    beside.send("a\r")
    first.expect("joined server 5e")
    assert beside.wait() == 0
    second = site.terminal(simply.replace("d1", "d2"))
    shown_value(second)
    with chdir(site.folder):
        exec(site.take("python").text, {"srup": srup})
    second.expect("joined server 5e")
    assert (first.end(), second.end(), service.end()) == (0, 0, 0)


@story("docs/device.md")
def follow_device(site: Site) -> None:
    after_readme(site)
    site.broker()
    for name, line in {"activate": "exit 0", "blink": "touch blinked"}.items():
        (site.folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (site.folder / name).chmod(0o700)
    (site.folder / "temperature").write_text("21.5\n")
    key, devices = srup.PrivateKey.load(site.folder / "server.pem"), srup.KeyRing.load(site.folder / "devices")
    heard: list[float] = []
    server = srup.Server(0x5E, key, devices=devices, broker=f"mqtt://{site.values['broker']}")
    server.on_data("temp", "double")(lambda device, name, value: heard.append(value))
    [command] = site.take("console").commands
    with server:
        device = site.start(command)
        device.heard("joined server 5e")
        assert server.action(0xD1, 3).result(60) is srup.Status.ACTION_SUCCESS
        assert (site.folder / "blinked").exists()
        wait_until(lambda: heard, "a value is reported")
        assert heard == [21.5]
        assert device.end() == 0
        (site.folder / "version").write_text("41\n")
        device = site.start(*site.take("console").commands)
        wait_until(lambda: server.inventory(0xD1) == {"type": "lock", "name": "front-door"}, "facts are reported")
        wait_until(lambda: server.facts(0xD1).get("version") == "41", "a fact is reported by a program")
        assert device.end() == 0


@story("docs/parts.md")
def follow_parts(site: Site) -> None:
    (site.folder / "parts.py").write_text(site.take("python").text)
    said = site.run(Block("console", "$ python parts.py", None))
    assert said.startswith("refused: ")
    assert len(said.splitlines()) == 1


@story("docs/durability.md")
def follow_durability(site: Site) -> None:
    network = MemoryNetwork()
    key, other = (srup.PrivateKey.generate("ed25519") for _ in range(2))
    names: dict[str, Any] = {"srup": srup, "key": key, "ring": srup.KeyRing(), "server_key": other.public_key}
    for line in site.take("python").text.splitlines():
        exec(line, names | {"url": MemoryTransport(network, line[:6])}, names)
    installed: list[object] = []
    names |= {"install_and_reboot": installed.append, "running_version": lambda: 1, "version_of": lambda path: 1}
    exec(site.take("python").text, names)


@story("docs/deployment.md")
def follow_deployment(site: Site) -> None:
    site.redis_server()
    after_readme(site)
    site.broker()
    site.save()
    create, serve = site.take("console").commands
    site.run(Block("console", f"$ {create}", None))
    workers = site.start(serve)
    with device_of(site) as device:
        device.wait_joined(30)
        workers.heard("d1 has joined")
    children = psutil.Process(workers.process.pid).children()
    assert len(children) == 4
    workers.send_signal(signal.SIGKILL)  # what it has started does not outlive it
    wait_until(lambda: not any(runs(child) for child in children))


@story("docs/observability.md")
def follow_observability(site: Site) -> None:
    after_readme(site)
    site.broker()
    [serve] = site.take("console").commands
    server = site.start(serve)
    server.heard("metrics at")
    wait_until(lambda: b"srup_agents_connected 1.0" in urllib.request.urlopen(site.metrics).read())
    assert server.end() == 0
    first, second = site.take("python"), site.take("python")
    exec(first.text, {"server": a_server()})
    exec(second.text, names := {"Collector": Collector, "Monitor": Monitor, "server": a_server()})
    with names["server"], names["monitor"]:
        assert b'srup_agents{partition="17"} 1.0' in urllib.request.urlopen(site.metrics).read()


@story("docs/orders.md")
def follow_orders(site: Site) -> None:
    after_readme(site)
    site.broker()
    host = site.stage.enter_context(FirmwareHost(IMAGE, site.folder))
    (site.folder / "firmware.bin").write_bytes(IMAGE)
    site.values["firmware"] = host.url(0xD1)
    site.run(Block("console", "$ srup keygen d2.pem\n", None))
    serve = "srup -v server --identity 5e --key server.pem --devices devices --store server.db --broker"
    site.start(f"{serve} mqtt://{site.values['broker']}")
    console, code, listing, shown_devices = (site.take(each) for each in ("console", "python", "python", "console"))
    with device_of(site, fetch=srup.FetchPolicy(ca_file=host.certificate)) as device:
        device.on_action(3)(lambda server: None)
        device.wait_joined(30)
        with chdir(site.folder):
            exec(code.text, names := {"srup": srup})
            with srup.Fleet("server.db", 0x5E) as fleet:
                assert fleet.find(names["order"].id).result(0) is srup.Status.ACTION_SUCCESS
            exec(listing.text, names)
        said = site.run(console)
        assert "last contact" in site.run(shown_devices)
    shown = [line for line in console.text.splitlines() if re.match(r"d1\.[0-9a-f]{32} ", line)]
    states = [line.split()[1] for line in said.splitlines() if len(line.split()) == 2]
    assert [line.split()[1] for line in shown] == states[: len(shown)]


@story("docs/audit.md")
def follow_the_audit(site: Site) -> None:
    after_readme(site)
    site.broker()
    serve = "srup -v server --identity 5e --key server.pem --devices devices --store server.db --broker"
    site.start(f"{serve} mqtt://{site.values['broker']}")
    commands = site.take("console")
    with device_of(site) as device:
        device.on_action(3)(lambda server: None)
        device.wait_joined(30)
        with chdir(site.folder):
            exec(site.take("python").text, {"srup": srup})
        said = site.run(commands)
    assert "night shift" in said
    assert "invalid" not in said.replace("0 invalid", "")


@story("docs/campaigns.md")
def follow_campaigns(site: Site) -> None:
    after_readme(site)
    site.broker()
    host = site.stage.enter_context(FirmwareHost(IMAGE, site.folder))
    (site.folder / "firmware.bin").write_bytes(IMAGE)
    page = (ROOT / "docs/campaigns.md").read_text()
    [file] = re.findall(r"^```toml\n# locks.toml\n(.*?)^```", page, re.M | re.S)
    (site.folder / "locks.toml").write_text(file.replace("https://updates.example/firmware.bin", host.url(0xD1)))
    site.environment["SRUP_CAMPAIGN_APPLY_FETCH_CA"] = str(host.certificate)
    serve = "srup -v server --identity 5e --key server.pem --devices devices --store server.db --broker"
    server = site.start(f"{serve} mqtt://{site.values['broker']}")
    with device_of(site, fetch=srup.FetchPolicy(ca_file=host.certificate)) as device:
        device.on_activate(lambda path: None)
        device.wait_joined(30)
        said = site.run()
        assert "500 devices: " in said
        assert "locks-4.2 would be running" in said
        server.heard("campaign locks-4.2: d1 is healthy")
        server.heard("campaign locks-4.2: finished")
    with chdir(site.folder):
        exec(site.take("python").text, {"srup": srup})


@story("docs/console.md")
def follow_the_console(site: Site) -> None:
    after_readme(site)
    site.broker()
    serve = "srup server --identity 5e --key server.pem --devices devices --store server.db --broker"
    site.start(f"{serve} mqtt://{site.values['broker']}").heard("server 5e")
    *users, console = site.take("console").commands
    said = site.run(Block("console", "\n".join(f"$ {command}" for command in users), None))
    assert said.endswith("ada administrator\n")
    site.environment["SRUP_CONSOLE_PORT"] = "0"
    url = site.start(console).heard("console of server 5e at").split()[-1]
    with urllib.request.urlopen(url) as answer:
        assert "Password" in answer.read().decode()


@story("docs/simulation.md")
def follow_the_simulation(site: Site) -> None:
    assert "seed 17" in site.run()


def follow_examples(site: Site) -> None:
    """Run all blocks of Python of a page in one namespace, in an empty folder: they need no process."""
    names: dict[str, Any] = {"__name__": "example"}
    with chdir(site.folder):
        while site.steps_left():
            exec(site.take("python").text, names)


STORIES |= {page: follow_examples for page in WITH_STEPS if page.startswith("docs/api/")}  # one of them differs
STORIES |= {f"docs/howto/{page}.md": follow_examples for page in ("backup", "codec", "keys")}


@story("docs/api/agents.md")
def follow_agents(site: Site) -> None:
    site.redis_server()
    follow_examples(site)


@story("docs/howto/pysrup.md")
def follow_from_pysrup(site: Site) -> None:
    need("openssl")
    follow_examples(site)


@story("docs/howto/asyncio.md")
def follow_asyncio(site: Site) -> None:
    site.run()
    program = site.save()
    broker_command, server_command, device_command = site.take("console").commands
    assert server_command == f"python {program}"
    site.start(broker_command).heard("Ctrl-C stops it")
    server, device = site.start(server_command), site.start(device_command)
    server.heard("d1 is a lamp")
    assert (device.end(), server.end()) == (0, 0)
    assert "Traceback" not in device.text + server.text


@story("docs/howto/benchmarks.md")
def follow_benchmarks_in_ci(site: Site) -> None:
    site.save()
    for command in site.take("console").commands:
        assert "3 passed" in site.run(Block("console", f"$ {command} -p no:cacheprovider", None))


def a_server() -> srup.Server:
    broker = MemoryTransport(MemoryNetwork(), "server")
    return srup.Server(0x5E, srup.PrivateKey.generate("ed25519"), devices=srup.KeyRing(), broker=broker)


def device_of(site: Site, **options: Any) -> srup.Device:
    """The device of README, in this process."""
    return srup.Device(
        0xD1,
        srup.PrivateKey.load(site.folder / "device.pem"),
        server=0x5E,
        server_key=srup.PublicKey.load(site.folder / "server.pem.pub"),
        broker=f"mqtt://{site.values['broker']}",
        firmware=site.folder / "firmware",
        **options,
    )


def runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


# --- other pages


def test_the_attack_table_names_tests_that_exist():
    """Every row of the threat model, T1 to T41, has a test in every file that its row names."""
    docs = Path(__file__).parents[1] / "docs"
    rows = [line for line in (docs / "security.md").read_text().splitlines() if line.startswith("| T")]
    assert [line.split("|")[1].strip() for line in rows] == [f"T{number}" for number in range(1, 42)]
    for number, row in enumerate(rows, start=1):
        files = re.findall(r"\]\((\.\./tests/[a-z_]+\.py)\)", row)
        assert f"`test_t{number}_*`" in row
        assert files
        for file in files:
            assert f"def test_t{number}_" in (docs / file).read_text(), (number, file)
