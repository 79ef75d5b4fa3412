"""What several test files share: the vectors, keys, both twins of the native layer, and the rules about markers."""

import importlib
import json
import logging
import os
import signal
import sys
import zlib
from base64 import b64decode
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import HealthCheck, settings

from srup.keys import SCHEMES, PrivateKey
from srup.messages import SCHEMA

settings.register_profile("default", max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("default"))
settings.load_profile("default")

# A shell has what it starts in the background ignore Ctrl-C, and so would whatever the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

VECTORS = json.loads((Path(__file__).parent / "vectors" / "wire-v5.json").read_text())

# A test that takes one of these arguments runs once for the entries of that section about one type of message.
SECTIONS = {
    "message_vectors": "messages",
    "negative_vectors": "negatives",
    "quirk_vectors": "quirks",
    "header_vectors": "headers",
    "sealed_vectors": "sealed",
}

VECTOR_KEYS = {"rsa2048": "A2048", "rsa3072": "D3072", "rsa4096": "E4096"}


class Twin(NamedTuple):
    """The modules of one backend."""

    codec: ModuleType
    verify: ModuleType
    cut: ModuleType

    def signer(self, key: PrivateKey) -> Any:
        """What signs with ``key`` on this twin."""
        private = serialization.load_pem_private_key(key.to_pem(), None)  # the first block
        der = private.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return self.verify.signer(algorithm(key.scheme), der)

    def public_key(self, key: PrivateKey) -> Any:
        """The public half of ``key`` as frames of this twin take it."""
        der = serialization.load_pem_public_key(key.public_key.to_pem()).public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return SimpleNamespace(verifier=self.verify.verifier(algorithm(key.scheme), der))

    def schema(self) -> Any:
        """The message table of srup, rebuilt on this twin."""
        schema = self.codec.Schema()
        for message in SCHEMA[:]:
            layout = message.layout
            record = type(layout.name, (self.codec.Record,), {})
            record.bind(self.codec.Layout(layout.type, layout.name, layout.body, layout.padding))
            schema.add(record)
        return schema


def algorithm(scheme: str) -> str:
    """The name of a scheme's algorithm in srup_native."""
    return "rsa" if scheme.startswith("rsa") else SCHEMES[scheme].algorithm


def load_twin(name: str) -> Twin:
    suffix = "" if name == "native" else "_py"
    try:
        return Twin(*(importlib.import_module(f"srup_native.{part}{suffix}") for part in ("_codec", "_verify", "_cut")))
    except ModuleNotFoundError as error:
        if os.environ.get("SRUP_REQUIRE_NATIVE"):
            pytest.fail(f"SRUP_REQUIRE_NATIVE is set, and the extension is not built: {error}")
        pytest.skip("the extension is not built")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for argument, section in SECTIONS.items():
        if argument in metafunc.fixturenames:
            groups: dict[str, list[Any]] = {}
            for entry in VECTORS[section]:
                groups.setdefault(entry.get("message", "all"), []).append(entry)
            metafunc.parametrize(argument, groups.values(), ids=groups)


STARTS_A_PROCESS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
running: pytest.Item | None = None


def _watch(event: str, _arguments: tuple[object, ...]) -> None:
    if event in STARTS_A_PROCESS and running is not None and running.get_closest_marker("process") is None:
        pytest.fail(f"{running.nodeid} starts a process and is not marked so: @pytest.mark.process")


sys.addaudithook(_watch)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let only tests that are marked so start processes: ``make test`` leaves those out and must stay quick."""
    global running
    running = item
    try:
        return (yield)
    finally:
        running = None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why tests were skipped, each reason in one line."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"skipped {count}: {reason}")


@pytest.fixture(autouse=True)
def same_log() -> Iterator[None]:
    """A command that is run in this process says where the log goes; the next test shall not hear of that."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session", params=["native", "python"])
def twin(request: pytest.FixtureRequest) -> Twin:
    """Each twin in turn, whichever of them the process runs."""
    return load_twin(request.param)


@pytest.fixture(scope="session")
def schema(twin: Twin) -> Any:
    """The message table on the twin in turn."""
    return twin.schema()


@pytest.fixture(scope="session")
def twins() -> tuple[Twin, Twin]:
    """Both twins, to be compared."""
    return load_twin("native"), load_twin("python")


@pytest.fixture(scope="session")
def vectors() -> Any:
    """The whole vector file."""
    return VECTORS


@pytest.fixture(scope="session")
def unhex() -> Any:
    """Read bytes as the vectors write them: hex, or zlib in base64 when they are long."""

    def unhex(value: str | dict[str, Any]) -> bytes:
        if isinstance(value, str):
            return bytes.fromhex(value)
        content = zlib.decompress(b64decode(value["zlib_b64"]))
        assert len(content) == value["len"]
        return content

    return unhex


@pytest.fixture(scope="session")
def vector_keys() -> dict[str, PrivateKey]:
    """The private keys of the vectors by name; C1024 is weak, as some deployed keys are."""
    return {
        name: PrivateKey.from_pem(entry["private_pem"], minimum_rsa_bits=1024)
        for name, entry in VECTORS["keys"].items()
    }


@pytest.fixture(scope="session")
def twin_vector_keys(twin: Twin, vector_keys: dict[str, PrivateKey]) -> Any:
    """Signer and public key of each key of the vectors, on the twin in turn."""
    return {name: (twin.signer(key), twin.public_key(key)) for name, key in vector_keys.items()}


@pytest.fixture(scope="session")
def scheme_keys(vector_keys: dict[str, PrivateKey]) -> dict[str, PrivateKey]:
    """One private key for every scheme of this installation."""
    return {
        scheme: vector_keys[VECTOR_KEYS[scheme]] if scheme in VECTOR_KEYS else PrivateKey.generate(scheme)
        for scheme in SCHEMES
    }


@pytest.fixture(scope="session", params=list(SCHEMES))
def key(request: pytest.FixtureRequest, scheme_keys: dict[str, PrivateKey]) -> PrivateKey:
    """A private key of each scheme in turn."""
    return scheme_keys[request.param]
