"""The wheels and the sdist hold what they must and nothing else, and work: installed, in a zip, and for mypy."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipapp
import zipfile
from email import message_from_bytes, message_from_string
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py")}
COMPILED_FROM = {
    f"srup_native/{path.name}"
    for path in (SOURCE / "srup_native").iterdir()
    if path.suffix not in (".py", ".typed", "")
}
PAGES = {
    str(path.relative_to(SOURCE))
    for folder in ("templates", "static")
    for path in (SOURCE / "srup" / "console" / folder).iterdir()
}
MARKERS = {"srup/py.typed", "srup_native/py.typed"} | PAGES
METADATA = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
EXTENSION = {f"srup_native/{name}" for name in ("_built.py", f"_codec{SUFFIX}", f"_cut{SUFFIX}", f"_verify{SUFFIX}")}

PROGRAM = """
import sys
import srup

wire, key = sys.argv[1:]
message = srup.decode(bytes.fromhex(wire)).verify(srup.PublicKey.from_pem(key.encode()))
print(srup.__file__, srup.BACKEND, type(message).__name__, srup.Device.__name__)
"""

# What a user writes. An ignored error that mypy does not find is an error itself, so nothing here may be Any.
USER = """
from pathlib import Path
from typing import assert_type

import srup

key = srup.PrivateKey.generate()
wire = srup.encode(srup.Action(sequence_id=7, sender_id=0x51, token=b"a-token", action_id=3), key)
assert_type(wire, bytes)
frame = srup.decode(wire)
assert_type(frame.sequence_id, int)
assert_type(frame.verify(key.public_key), srup.Message)
assert_type(srup.sign_many([srup.TerminateCommand(sequence_id=8, sender_id=0x51, token=b"a-token")], key), list[bytes])
assert_type(srup.verify_many([wire], srup.KeyRing({0x51: key.public_key})), list[srup.Message | srup.SrupError])
srup.Action(sequence_id=7, sender_id=0x51, token="text", action_id=3)  # type: ignore[arg-type]
srup.Action(sequence_id=7, sender_id=0x51, token=b"a-token")  # type: ignore[call-arg]

server = srup.Server(identity=0x5E, key=key, devices=srup.KeyRing.load("devices"), broker="mqtt://localhost:1883")


@server.on_joined
def update(device: int) -> None:
    order = server.update(device, "https://updates.example/firmware.bin", srup.file_digest("firmware.bin"))
    assert_type(order, srup.UpdateOrder)
    server.update(device, 8080, "digest")  # type: ignore[arg-type]


device = srup.Device(
    identity=0xD1, key=key, broker="mqtt://localhost:1883", server=0x5E, server_key=key.public_key, firmware="firmware"
)


@device.on_activate
def activate(path: Path) -> None:
    print("now running", path)
"""


class Distribution(NamedTuple):
    """What was built: the source, and from it a wheel with the extension and one without."""

    sdist: Path
    native: Path
    pure: Path


@pytest.fixture(scope="module")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    if not importlib.util.find_spec("srup_native._built") and not os.environ.get("SRUP_REQUIRE_NATIVE"):
        pytest.skip("this machine gave srup no extension: install a C compiler, CMake and the OpenSSL headers")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, SRUP_REQUIRE_NATIVE="1")  # the wheel from the sdist
    (sdist,) = folder.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-cache-dir"]
    run(*pip, "--wheel-dir", folder / "pure", sdist, CC="/bin/false")
    (native,), (pure,) = folder.glob("*.whl"), (folder / "pure").glob("*.whl")
    return Distribution(sdist, native, pure)


@pytest.fixture(params=["native", "pure"])
def wheel(request: pytest.FixtureRequest, distribution: Distribution) -> Path:
    """Each wheel in turn."""
    return getattr(distribution, request.param)


def run(*command: object, cwd: Path = Path("/"), **changes: str) -> str:
    """Run a command without the variables that choose a backend; return what it prints, or fail with it."""
    done = attempt(*command, cwd=cwd, **changes)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def attempt(*command: object, cwd: Path = Path("/"), **changes: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SRUP_", "PYTHON"))}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment | changes, capture_output=True, text=True
    )


def contents(wheel: Path) -> set[str]:
    """The files of a wheel, those of its .dist-info without the folder."""
    with zipfile.ZipFile(wheel) as archive:
        return {re.sub(r"^srup-[^/]+\.dist-info/", "", name) for name in archive.namelist() if not name.endswith("/")}


def metadata(wheel: Path, name: str = "METADATA") -> Message:
    """A file of headers in a wheel's .dist-info."""
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (path for path in archive.namelist() if path.endswith(f".dist-info/{name}"))
        return message_from_bytes(archive.read(path))


# --- contents


def test_the_native_wheel_holds_the_packages_and_their_extension(distribution: Distribution) -> None:
    assert contents(distribution.native) == MODULES | MARKERS | METADATA | EXTENSION
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    platform = re.sub(r"[-.]", "_", sysconfig.get_platform())
    assert metadata(distribution.native, "WHEEL").get_all("Tag") == [f"{tag}-{tag}-{platform}"]


def test_no_extension_names_the_folder_that_it_was_built_in(distribution: Distribution) -> None:
    """Another folder would make other bytes of the same sources."""
    named = []
    with zipfile.ZipFile(distribution.native) as archive:
        for extension in (name for name in archive.namelist() if name.endswith(".so")):
            named += re.findall(rb"[!-~]+\.(?:c|h|pyx|pxi)\b", archive.read(extension))
    assert named
    assert [name for name in named if name.startswith(b"/")] == []


def test_the_repaired_wheel_holds_its_own_libcrypto_as_well(distribution: Distribution, tmp_path: Path) -> None:
    programs = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", tmp_path, distribution.native, **programs)
    (wheel,) = tmp_path.glob("*.whl")
    libraries = {name for name in contents(wheel) if name.startswith("srup.libs/")}
    bill = "sboms/auditwheel.cdx.json"
    assert contents(wheel) - libraries == MODULES | MARKERS | METADATA | EXTENSION | {bill}
    assert [re.sub("-[0-9a-f]{8}", "", name) for name in libraries] == ["srup.libs/libcrypto.so.3"]
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (path for path in archive.namelist() if path.endswith(bill))
        components = json.loads(archive.read(path))["components"]
    package = next(component for component in components if component["name"] != "srup")
    assert re.search("ssl|crypto", package["name"]), package
    assert package["version"]


def test_the_pure_wheel_holds_the_packages_alone(distribution: Distribution) -> None:
    assert contents(distribution.pure) == MODULES | MARKERS | METADATA
    assert metadata(distribution.pure, "WHEEL").get_all("Tag") == ["py3-none-any"]


def test_the_sdist_holds_what_is_built_and_tested(distribution: Distribution) -> None:
    with tarfile.open(distribution.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {name.removeprefix("src/") for name in names if name.startswith("src/")} == MODULES | MARKERS | COMPILED_FROM
    assert {"CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "PKG-INFO"} <= names
    assert "tests/vectors/wire-v5.json" in names
    assert not [name for name in names if name.startswith((".ci", ".venv", ".git/", "build/", "dist/"))]


def test_the_metadata_say_what_the_project_says(wheel: Path) -> None:
    fields = metadata(wheel)
    assert (fields["Name"], fields["Requires-Python"]) == (PROJECT["name"], PROJECT["requires-python"])
    assert f"srup-{fields['Version']}-" in wheel.name
    assert f'__version__ = "{fields["Version"]}"' in (SOURCE / "srup" / "__init__.py").read_text()
    assert (fields["License-Expression"], fields["License-File"]) == (PROJECT["license"], "LICENSE")
    assert fields.get_all("Provides-Extra") == list(PROJECT["optional-dependencies"])
    assert fields.get_all("Classifier") == PROJECT["classifiers"]
    assert [url.split(", ")[0] for url in fields.get_all("Project-URL", [])] == list(PROJECT.get("urls", {}))
    assert fields["Description-Content-Type"] == "text/markdown"
    described = message_from_string(str(fields)).get_payload()
    assert isinstance(described, str)
    assert described.lstrip().startswith("# srup")


# --- in a zip archive, from where no extension can be loaded


@pytest.fixture
def arguments(vectors: Any) -> list[str]:
    """What the program verifies: a message and the public key of its sender."""
    vector = vectors["messages"][0]
    return [vector["wire"], vectors["keys"][vector["key"]]["public_pem"]]


@pytest.fixture
def archive(wheel: Path, tmp_path: Path) -> Path:
    """A zip application with the wheel installed in it; what the wheel requires is in this environment."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    run(*pip, "--target", tmp_path / "app", wheel)
    (tmp_path / "app" / "__main__.py").write_text(PROGRAM)
    zipapp.create_archive(tmp_path / "app", tmp_path / "app.pyz")
    return tmp_path / "app.pyz"


@pytest.mark.parametrize("wheel", ["native"], indirect=True)
def test_a_zip_of_the_native_wheel_says_what_to_do(archive: Path, arguments: list[str]) -> None:
    done = attempt(sys.executable, archive, *arguments)
    assert done.returncode != 0
    *_, error = done.stderr.splitlines()
    missing = f"srup_native._codec is missing from {archive / 'srup_native'}"
    assert error.startswith(f"ImportError: srup was installed with its native backend, but {missing}. ")
    assert "unpack the archive" in error
    accepted = run(sys.executable, archive, *arguments, SRUP_BACKEND="python")
    assert accepted == f"{archive}/srup/__init__.py python Activate Device\n"


@pytest.mark.parametrize("wheel", ["pure"], indirect=True)
def test_a_zip_of_the_pure_wheel_works(archive: Path, arguments: list[str]) -> None:
    assert run(sys.executable, archive, *arguments) == f"{archive}/srup/__init__.py python Activate Device\n"
    demanded = attempt(sys.executable, archive, *arguments, SRUP_BACKEND="native")
    assert demanded.returncode != 0
    *_, error = demanded.stderr.splitlines()
    assert error.startswith("ImportError: SRUP_BACKEND is 'native', but srup was installed without its native backend")


# --- for mypy


def test_the_installed_types_serve_a_strict_user(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER)
    run(sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", "user.py", cwd=tmp_path)
