"""Completion of the srup command: the script of each shell, and what a real bash makes of it."""

import os
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from srup.cli.app import app

from .command import PATIENCE


@pytest.mark.parametrize(
    ("shell", "has"),
    [("bash", "complete -o default -F"), ("zsh", "#compdef srup"), ("fish", "complete --command srup")],
)
def test_each_shell_has_its_script(shell, has):
    done = CliRunner().invoke(app, ["--show-completion", shell])
    assert (done.exit_code, has in done.stdout, "_SRUP_COMPLETE" in done.stdout) == (0, True, True)


def test_another_shell_is_named():
    done = CliRunner().invoke(app, ["--show-completion", "tcsh"])
    assert (done.exit_code, "'tcsh' is not one of" in done.output) == (2, True)


@pytest.mark.process
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("srup jo", ["join"]),
        ("srup order ac", ["action", "activate"]),
        ("srup server --admission o", ["observed"]),
        ("srup devices --wh", ["--where"]),
    ],
)
def test_bash_completes_commands_options_and_their_values(tmp_path, words, completed):
    srup = tmp_path / "srup"
    run = "import sys; sys.argv[0] = 'srup'; from srup.cli import main; main()"
    srup.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{run}" "$@"\n')
    srup.chmod(0o755)
    typed = " ".join(f"'{word}'" for word in words.split())
    script = (
        'eval "$(srup --show-completion bash)"; '
        f"COMP_WORDS=({typed}); COMP_CWORD={len(words.split()) - 1}; _srup_completion srup; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert done.stdout.split() == completed
