"""Completion, as a real shell computes it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from widedeep.cli.main import main

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_widedeep
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_bash_completes_verbs_options_and_files(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--install-completion", "bash"]) == 0
    script = home / ".local" / "share" / "bash-completion" / "completions" / "widedeep"
    assert f"wrote {script}" in capsys.readouterr().out

    def completed(*words: str) -> set[str]:
        command = ["bash", "-c", ASK, "bash", str(script), "widedeep", *words]
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    assert {"train", "tune"} == completed("t")
    assert {"--warm-start"} == completed("train", "--warm")
    (home / "ads.toml").touch()
    assert {"ads.toml"} == completed("train", "ad")


def test_the_shell_is_that_of_the_user(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for shell, name in (("zsh", "_widedeep"), ("fish", "widedeep.fish")):
        monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
        assert main(["--install-completion"]) == 0
        (path,) = home.rglob(name)
        assert "--warm-start" in path.read_text() or "warm-start" in path.read_text()
    monkeypatch.setenv("SHELL", "/bin/dash")
    capsys.readouterr()
    assert main(["--install-completion"]) == 2
    assert "got the shell 'dash' of $SHELL, expected one of bash, zsh" in capsys.readouterr().err
