"""Settings that are not typed: a file, variables of the environment, and which of them counts."""

import inspect
import json
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from typer.testing import CliRunner

import srup
from srup.cli.app import app
from srup.cli.config import PATHS, SHARED, Settings

from .fleet import key_of
from .test_cli_conventions import ALL

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    key_of(0x5E).public_key.save(tmp_path / "5e.pub")
    return tmp_path


def keygen(*arguments, **variables):
    """The scheme of the key that ``srup keygen`` makes with these settings."""
    made = RUNNER.invoke(app, [*arguments, "keygen", "made.pem", "--json"], env=variables)
    assert made.exit_code == 0, made.output
    for path in ("made.pem", "made.pem.pub"):
        Path(path).unlink()
    return json.loads(made.stdout)["scheme"]


def test_what_is_typed_counts_before_the_environment_before_the_file(folder):
    assert keygen() == "rsa2048"
    (folder / "srup.toml").write_text('[keygen]\nscheme = "ed25519"\n')
    assert keygen() == "ed25519"
    assert keygen(SRUP_KEYGEN_SCHEME="p256") == "p256"
    typed = RUNNER.invoke(app, ["keygen", "k", "--scheme", "mldsa44", "--json"], env={"SRUP_KEYGEN_SCHEME": "p256"})
    assert json.loads(typed.stdout)["scheme"] == "mldsa44"


def test_the_file_is_named_by_option_or_variable(folder):
    (folder / "srup.toml").write_text('[keygen]\nscheme = "mldsa44"\n')
    (folder / "other.toml").write_text('[keygen]\nscheme = "ed25519"\n')
    assert keygen("--config", "other.toml") == "ed25519"
    assert keygen(SRUP_CONFIG="other.toml") == "ed25519"
    done = RUNNER.invoke(app, ["--config", "none.toml", "version", "--json"])
    assert (done.exit_code, "none.toml does not exist" in done.output) == (2, True)


def test_flags_lists_and_subcommands(folder):
    (folder / "settings").mkdir()
    (folder / "settings" / "srup.toml").write_text('[inspect]\njson = true\nkey = ["../5e.pub"]\n')
    wire = srup.encode(srup.Action(sequence_id=1, sender_id=0x5E, token=b"t", action_id=1), key_of(0x5E)).hex()
    shown = RUNNER.invoke(app, ["--config", "settings/srup.toml", "inspect", wire])
    assert json.loads(shown.stdout)["signature"]["verdict"] == "valid"
    shown = RUNNER.invoke(app, ["inspect", wire], env={"SRUP_INSPECT_JSON": "1", "SRUP_INSPECT_KEY": "5e.pub"})
    assert json.loads(shown.stdout)["signature"]["verdict"] == "valid"
    (folder / "srup.toml").write_text('[keyex.list]\nfolder = "nowhere"\n')
    done = RUNNER.invoke(app, ["keyex", "list"])
    assert (done.exit_code, "nowhere holds no key exchange service" in done.output) == (2, True)


@pytest.mark.parametrize(
    ("text", "command", "said"),
    [
        ('[server]\n\nstor = "x"\n', "server", "srup.toml, line 3: [server] has no option 'stor'"),
        ('[servr]\nstore = "x"\n', "version --json", "srup.toml, line 1: no command or common option is named 'servr'"),
        ('stor = "x"\n', "version --json", "srup.toml, line 1: no command or common option is named 'stor'"),
        ("a = \n", "version --json", "srup.toml: Invalid value (at line 1, column 5)"),
        ("[keyex]\nlist = 1\n", "keyex list", "srup.toml, line 2: 'list' must be a table"),
        ('[keyex.lst]\nfolder = "x"\n', "keyex list", "srup.toml, line 1: [keyex] has no option 'lst'"),
        ('[simulate]\nruns = "many"\n', "simulate", "(srup.toml, line 2)"),
        ('identity = "0x5e"\n', "server", "leave out the 0x"),
    ],
)
def test_mistakes_in_a_file_are_named(folder, text, command, said):
    (folder / "srup.toml").write_text(text)
    done = RUNNER.invoke(app, command.split())
    assert (done.exit_code, said in done.output) == (2, True), done.output


def test_a_mistake_in_a_variable_is_named(folder, monkeypatch):
    monkeypatch.setenv("SRUP_SIMULATE_RUNS", "many")
    done = RUNNER.invoke(app, ["simulate"])
    assert (done.exit_code, "'--runs'" in done.output, "(SRUP_SIMULATE_RUNS)" in done.output) == (2, True, True)


def test_paths_are_relative_to_the_file(tmp_path):
    settings = Settings(tmp_path / "srup.toml", {"store": "server.db", "ca": "/etc/ca.pem", "broker": "a"}, "")
    assert settings.of("server").find("store").value == str(tmp_path / "server.db")
    assert settings.of("server").find("ca").value == "/etc/ca.pem"
    assert settings.of("server").find("broker").value == "a"
    redis = Settings(tmp_path / "srup.toml", {"store": "redis://h/0"}, "")
    assert redis.of("server").find("store").value == "redis://h/0"


def test_a_table_counts_before_what_counts_for_all(tmp_path, monkeypatch):
    settings = Settings(tmp_path, {"broker": "all", "server": {"broker": "own"}}, "")
    assert [settings.of(name).find("broker").value for name in ("server", "device")] == ["own", "all"]
    monkeypatch.setenv("SRUP_BROKER", "variable")
    assert settings.of("server").find("broker").value == "variable"
    monkeypatch.setenv("SRUP_SERVER_BROKER", "own variable")
    assert settings.of("server").find("broker").value == "own variable"
    assert settings.of("device").find("broker").value == "variable"


def test_common_options_belong_to_several_commands():
    for name in SHARED:
        option = f"--{name.replace('_', '-')}"
        having = [command for command in ALL.values() if any(option in each.opts for each in command.params)]
        assert len(having) > 1, name


def test_each_option_for_a_path_is_known_as_one():
    found = set()
    for command in ALL.values():
        hints = get_type_hints(inspect.unwrap(command.callback)) if command.callback else {}
        for option in command.params:
            hint = hints.get(option.name)
            inner = [each for kind in get_args(hint) for each in get_args(kind)]
            if option.param_type_name == "option" and Path in (hint, *get_args(hint), *inner):
                found.add(max(option.opts, key=len).lstrip("-").replace("-", "_"))
    assert found - PATHS == {"config"}
    assert PATHS - found <= {"store"}  # which may be a URL
