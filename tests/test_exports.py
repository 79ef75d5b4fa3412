"""The public names, and the shape of the code: who imports whom, and what must not live where."""

import ast
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import srup
import srup.errors

SOURCE = Path(__file__).parent.parent / "src"
FILES = sorted(SOURCE.rglob("*.py"))

ARCHITECTURE = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text()


def modules(cell):
    return re.findall(r"`(\w+)`", cell)


# docs/architecture.md: imports run downward only. Modules of one level do not know each other, but for SIDEWAYS.
LEVELS = {
    name: int(number)
    for number, names in re.findall(r"^\| (\d+) \| (.*?) \|", ARCHITECTURE, re.MULTILINE)
    for name in modules(names)
}
SIDEWAYS = {
    (name, imported)
    for name, names in re.findall(r"^\| `(\w+)` \| (.*?) \|$", ARCHITECTURE, re.MULTILINE)
    for imported in modules(names)
}
TRUST = {name for name, number in LEVELS.items() if number == LEVELS["codec"]}

FOR_ARCHITECTURE = [
    *("PrivateKey", "PublicKey", "KeyRing", "encode", "decode", "verify_many", "seal", "unseal", "BACKEND", "Frame"),
    *("SrupError", "DecodeError", "EncodeError", "SignatureError", "UnknownSenderError", "ReplayError", "PolicyError"),
    *("TransportError", "UpdateError", "Device", "Server", "UpdateOrder"),
]


def unit(path):
    """The level's name of a source file: srup/keys.py is ``keys``, session/engine.py is ``session``."""
    first, *rest = path.relative_to(SOURCE).with_suffix("").parts
    return first if first == "srup_native" or rest == ["__init__"] else rest[0]


def imports(path):
    """Every module that a file imports, wherever in it, by its full name."""
    package = ".".join(path.relative_to(SOURCE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def units_imported(path):
    """The levels' names that a file imports from."""
    names = {tuple(name.split(".")) for name in imports(path)}
    found = {name[0] for name in names if name[0] == "srup_native"}
    return found | {name[1] for name in names if name[0] == "srup" and len(name) > 1 and is_unit(name[1])}


def is_unit(name):
    return (SOURCE / "srup" / f"{name}.py").exists() or (SOURCE / "srup" / name).is_dir()


def level(name):
    assert name in LEVELS, f"{name} has no level in docs/architecture.md"
    return LEVELS[name]


# --- names


@pytest.mark.parametrize("name", FOR_ARCHITECTURE)
def test_promised_names(name):
    assert name in srup.__all__
    assert getattr(srup, name) is not None


@pytest.mark.parametrize("name", srup.__all__)
def test_every_exported_name_is_there(name):
    assert getattr(srup, name) is not None


def test_the_exports_are_sorted_and_unique():
    """Constants, then classes, then functions, each by name: what ruff's RUF022 keeps."""

    def group(name):
        return (not name.isupper(), not name[0].isupper(), name)

    assert srup.__all__ == sorted(set(srup.__all__), key=group)


def test_every_error_is_exported():
    errors = {name for name, value in vars(srup.errors).items() if inspect.isclass(value)}
    assert errors <= set(srup.__all__)
    assert errors == set(srup.errors.__all__)
    for name in errors:
        assert issubclass(getattr(srup, name), srup.SrupError)
        assert name in srup.errors.__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'srup' has no attribute 'nonsense'$"):
        _ = srup.nonsense


@pytest.mark.parametrize(
    "name",
    ["srup_native", *(f"srup.{name}" for name in ("wire", "errors", "messages", *sorted(TRUST)))],
)
def test_modules_export_what_they_list(name):
    module = importlib.import_module(name)
    assert len(module.__all__) == len(set(module.__all__))
    for exported in module.__all__:
        assert hasattr(module, exported)


def test_the_backend_is_told():
    assert srup.BACKEND in ("native", "python")
    expected = "srup_native._codec" if srup.BACKEND == "native" else "srup_native._codec_py"
    assert srup.Frame.__module__ == expected


# --- layers


def test_the_sources_are_found():
    assert {"keys", "codec", "session", "srup_native", "srup"} <= {unit(path) for path in FILES}
    assert {"srup_native", "errors", "keys", "messages"} == units_imported(SOURCE / "srup" / "codec.py")


def test_the_levels_are_of_modules_that_there_are():
    assert LEVELS.keys() == {unit(path) for path in FILES} - {"srup", "__main__"}
    assert {name for pair in SIDEWAYS for name in pair} <= LEVELS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_downward(path):
    name = unit(path)
    if name in ("srup", "__main__"):
        return  # the package itself gathers everything
    for imported in units_imported(path) - {name}:
        sideways = level(imported) == level(name) and (name, imported) in SIDEWAYS
        assert level(imported) > level(name) or sideways, f"{name} imports {imported}"


PARTS = [path for path in FILES if unit(path) in ("agent", "simulation")]


@pytest.mark.parametrize("path", PARTS, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_part_of_an_agent_uses_private_names_of_another(path):
    """Whatever is private is defined in the module that uses it, the base classes of other modules included."""
    tree = ast.parse(path.read_text())
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    private = [node for node in attributes if re.fullmatch(r"_[a-z]\w*", node.attr)]
    defined = {node.attr for node in private if isinstance(node.ctx, ast.Store)}
    defined |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    defined |= {"_replace", "_asdict"}  # of named tuples
    assert {f"{ast.unparse(node)}, line {node.lineno}" for node in private if node.attr not in defined} == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_the_top_imports_the_package_itself(path):
    """``import srup`` from below would go round in a circle."""
    if unit(path) not in ("srup", "cli", "console", "demo", "__main__"):
        bare = [
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import)
            for alias in node.names
            if alias.name == "srup"
        ]
        assert not bare


def test_one_import_switch():
    """SRUP_BACKEND is read, and the twins are imported, in srup_native alone."""
    for path in FILES:
        if unit(path) != "srup_native":
            assert "SRUP_BACKEND" not in path.read_text(), path
            assert not [name for name in imports(path) if name.startswith("srup_native._")], path


def test_no_edges_in_the_session():
    """No sockets, threads, clocks or randomness: time and random bytes are arguments."""
    edges = {"socket", "threading", "time", "random", "secrets", "asyncio", "selectors", "datetime", "uuid", "os"}
    edges |= {
        "concurrent",
        "subprocess",
        "queue",
        "logging",
        "ssl",
        "http",
        "urllib",
        "paho",
        "select",
        "multiprocessing",
    }
    files = [path for path in FILES if unit(path) in ("session", "update")]
    assert len(files) >= 5
    for path in files:
        assert not {name.split(".")[0] for name in imports(path)} & edges, path


def test_deadlines_do_not_go_by_unix_time():
    """Unix time is read where others have written it: certificates, the time of a posting. LocalTime knows the rest."""
    readers = {"enrolment.py", "orders.py"}
    for path in FILES:
        if unit(path) == "agent":
            calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            assert path.name in readers or "time.time" not in map(ast.unparse, calls), path


def test_no_topic_strings_outside_transport():
    for path in FILES:
        texts = [
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        if unit(path) != "transport":
            assert not [text for text in texts if "SRUP/" in text], path


def broad_handlers(path):
    """The lines of handlers that catch everything and do not raise it again."""
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = {None, "Exception", "BaseException"} & {getattr(kind, "id", kind) for kind in caught}
            again = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            if broad and not again:
                yield text.splitlines()[node.lineno - 1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_below_the_agent_catches_everything(path):
    """Two exceptions: the seal's, where telling causes apart is the oracle, and the fences of threads in transport."""
    name = unit(path)
    lines = list(broad_handlers(path))
    if name == "seal":
        assert len(lines) == 1
        assert "noqa: BLE001" in lines[0]
    elif name == "transport":
        assert all(line.partition("#")[2].strip() for line in lines), lines
    elif name not in ("agent", "cli", "console", "demo", "simulation"):
        assert not lines


def test_no_message_names_in_srup_native():
    from srup.messages import SCHEMA

    names = {message.__name__ for message in SCHEMA[:]}
    for path in SOURCE.glob("srup_native/*.py*"):
        if path.suffix in (".py", ".pyx"):
            assert not names & set(path.read_text().replace("(", " ").replace(".", " ").split()), path


@pytest.mark.process
def test_the_transport_package_is_there_without_asking():
    code = "import srup; print(srup.transport.MqttTransport.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "MqttTransport\n"


def test_documents_have_no_gaps():
    root = Path(__file__).parents[1]
    for path in [*root.glob("*.md"), *root.glob("docs/**/*.md")]:
        assert re.findall(r"@[A-Z]+@|TODO|FIXME", path.read_text()) == [], path
