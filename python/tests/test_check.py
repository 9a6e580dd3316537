"""The function `crashtest.check`, without the fixture."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import crashtest

FEW = {"VERSIONS": "2"}


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def script(directory: Path, text: str) -> str:
    """A stand-in for the command."""
    path = directory / "stand-in"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_an_in_place_save_is_a_violation_that_can_be_replayed(in_place: str) -> None:
    with pytest.raises(crashtest.Violation) as caught:
        crashtest.check(
            [sys.executable, in_place], scenarios=["sigkill", "errno"], trials=20, env=FEW, results="kept here"
        )
    message = str(caught.value)
    assert isinstance(caught.value, AssertionError)
    assert "state.json" in message
    assert re.search(r"in_place\.py:1[01] in save", message), message
    assert re.search(r"state\.json is (cut short|empty)", message), message
    assert "rename" in message and "fsync" in message
    again = re.search(r"again:  (crashtest replay .*)", message)
    assert again, message
    replay = [crashtest.binary(), *shlex.split(again[1])[1:]]
    # Values of the environment are not kept: the replay asks for them by name.
    shown = subprocess.run(replay, capture_output=True, text=True)
    assert shown.returncode == 2 and "--env VERSIONS=VALUE" in shown.stderr, shown.stderr
    shown = subprocess.run([*replay, "--env", "VERSIONS=2"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "verdict:" in shown.stdout


def test_a_sound_save_passes(durable: str) -> None:
    said = crashtest.check([sys.executable, durable], scenarios=["sigkill", "enospc"], trials=20, env=FEW)
    assert said.startswith("PASS: durable.py kept state.json")
    assert os.listdir("results/runs")


def test_a_program_that_fails_is_no_violation() -> None:
    Path("fails.py").write_text("raise SystemExit('there is no configuration')")
    with pytest.raises(crashtest.Error, match="there is no configuration") as caught:
        crashtest.check([sys.executable, "fails.py"])
    assert caught.value.status == 3
    assert not isinstance(caught.value, AssertionError)


def test_an_option_that_is_wrong_is_named(durable: str) -> None:
    with pytest.raises(crashtest.Error, match=r"there is no scenario `sigkil`(.|\n)*did you mean `sigkill`") as caught:
        crashtest.check([sys.executable, durable], scenarios=["sigkil"])
    assert caught.value.status == 2


def test_a_relative_script_is_found_and_all_options_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRASHTEST_BINARY", script(tmp_path, 'printf "%s\\n" "$@"'))
    said = crashtest.check(
        ["python3", Path("bot.py"), "--fast"],
        scenarios=["sigkill", "errno"],
        seed=7,
        trials=20,
        jobs=1,
        strict=True,
        ack="^saved",
        state=["a.json", "b c"],
        check="true",
        recover="python3 bot.py load",
        restore="cp {backup} a.json",
        schema=Path("schema.json"),
        invariants=["state.a > 0"],
        init="start",
        env={"A": "b=c"},
        sandbox=True,
        timeout=5,
        results=Path("kept"),
        options=["--promise", "recoverable"],
    )
    words = said.splitlines()
    assert words[0] == "check" and words[-4:] == ["--", "python3", "bot.py", "--fast"]
    assert words[-6:-4] == ["--promise", "recoverable"]
    assert set(words[1:-6]) == {
        "--quiet",
        "--scenario=sigkill,errno",
        "--seed=7",
        "--trials=20",
        "--jobs=1",
        "--strict",
        "--ack=^saved",
        "--state=a.json",
        "--state=b c",
        "--check=true",
        "--recover=python3 bot.py load",
        "--restore=cp {backup} a.json",
        "--schema=schema.json",
        "--invariant=state.a > 0",
        "--init=start",
        "--env=A=b=c",
        "--sandbox",
        "--timeout=5",
        "--results=kept",
    }


def test_the_real_command_takes_all_options(in_place: str) -> None:
    text = Path(in_place).read_text()
    Path("bot.py").write_text(text.replace("sample(version)", '{"version": version, "sold": "x" * 5000}'))
    Path("state.py").write_text("VERSIONS = 2\ndef sample(_): pass\n")
    Path("schema.json").write_text('{"type": "object", "required": ["version"]}')
    Path("start").mkdir()
    Path("start/settings.ini").write_text("[bot]\n")
    with pytest.raises(crashtest.Violation, match=r"bot\.py:1[01] in save"):
        crashtest.check(
            [sys.executable, "bot.py"],
            scenarios="sigkill",
            trials=10,
            jobs=1,
            strict=True,
            ack="^saved",
            state="state.json",
            check="test -f settings.ini",
            recover="true",
            restore="cp {backup} state.json",
            schema="schema.json",
            invariants="state.version > 0",
            init="start",
            env={"BOT": "1"},
            timeout=20,
            options=["--max-processes", "8"],
        )


def test_a_program_is_a_list() -> None:
    with pytest.raises(TypeError, match="is a list"):
        crashtest.check("python3 bot.py")


def test_a_missing_command_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRASHTEST_BINARY", "/nowhere/crashtest")
    with pytest.raises(crashtest.Error, match="CRASHTEST_BINARY names no program: /nowhere/crashtest; correct it"):
        crashtest.check(["true"])
    monkeypatch.delenv("CRASHTEST_BINARY")
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(crashtest.Error, match="nor in PATH; install this package again") as caught:
        crashtest.check(["true"])
    assert caught.value.status is None


def test_the_command_comes_with_the_package_or_is_in_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert crashtest.binary() == os.path.join(os.path.dirname(sys.executable), "crashtest")
    Path(script(tmp_path, "true")).rename(tmp_path / "crashtest")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert crashtest.binary() == os.path.join(os.path.dirname(sys.executable), "crashtest")
    monkeypatch.setattr("sysconfig.get_path", lambda *_: "/nowhere")
    assert crashtest.binary() == str(tmp_path / "crashtest")


def test_a_command_that_cannot_be_started_or_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRASHTEST_BINARY", script(tmp_path, "kill -9 $$"))
    with pytest.raises(crashtest.Error, match="ended by signal 9"):
        crashtest.check(["true"])
    (tmp_path / "stand-in").write_text("#!/nowhere/sh\n")
    with pytest.raises(crashtest.Error, match=r"cannot start .*stand-in: No such file"):
        crashtest.check(["true"])


def test_two_checks_at_once_share_a_results_directory(in_place: str, durable: str) -> None:
    code = (
        "import crashtest, sys; "
        "crashtest.check([sys.executable, sys.argv[1]], scenarios=['sigkill'], trials=20, results='kept')"
    )

    def one(program: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, program]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **FEW})

    with ThreadPoolExecutor() as pool:
        broken, sound = pool.map(one, [in_place, durable])
    assert sound.returncode == 0, sound.stderr
    assert broken.returncode == 1 and "crashtest.Violation: FAIL: in_place.py" in broken.stderr, broken.stderr
    assert len(os.listdir("kept")) == 2
