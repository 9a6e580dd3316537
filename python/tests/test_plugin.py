"""The fixture `crashtest`: what pytest says of suites that use it."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SUITE = """
    import sys
    import pytest

    @pytest.mark.parametrize("program", {programs})
    def test_save(crashtest, program):
        crashtest.check([sys.executable, program], scenarios=["sigkill"], trials=20, env={{"VERSIONS": "2"}})
"""


def stand_in(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Takes the place of the command."""
    path = pytester.path / "stand-in"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CRASHTEST_BINARY", str(path))


@pytest.mark.parametrize("where", ["on CI", "at a terminal"])
def test_the_message_is_the_failure_and_its_replay_works(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, in_place: str, durable: str, where: str
) -> None:
    monkeypatch.delenv("BUILD_NUMBER", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("CI", "true" if where == "on CI" else "")
    pytester.makepyfile(SUITE.format(programs=[in_place, durable]))
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=1, passed=1)
    text = result.stdout.str()
    assert "FAIL: in_place.py loses state.json" in text
    assert re.search(r"where:  \S*in_place\.py:1[01] in save", text), text
    # The message alone, and once: no line of the suite or of the plugin.
    assert text.count("What to do:") == 1, text
    result.stdout.re_match_lines([r"FAILED \S+in_place\.py\] - FAIL: in_place\.py loses .*"])
    assert "crashtest.check(" not in text and "pytest_plugin.py" not in text and "hidden" not in text
    again = re.search(r"again:  (crashtest replay .*)", text)
    assert again and "--results" in again[1], text
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    # The value that the suite gave is not kept.
    environment = {**os.environ, "PATH": path, "VERSIONS": "2"}
    shown = subprocess.run(shlex.split(again[1]), capture_output=True, text=True, cwd="/", env=environment)
    assert shown.returncode == 0 and "verdict:" in shown.stdout, shown.stderr


def test_a_relative_script_is_found_from_where_the_test_is(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(bot="open('state.json', 'w').write('{}' * 3000)")
    pytester.makepyfile(SUITE.format(programs=["bot.py"]))
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*FAIL: bot.py loses state.json*", "*where:  bot.py:1 in <module>*"])


def test_results_and_seed_are_options(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(pytester, monkeypatch, 'echo "$@" >> "$SAID"')
    monkeypatch.setenv("SAID", str(pytester.path / "said"))
    pytester.makepyfile(
        """
        import os

        def test_save(crashtest, tmp_path, monkeypatch):
            monkeypatch.chdir(tmp_path)
            crashtest.check(["true"])
            crashtest.check(["true"], seed=3)
            assert os.listdir(tmp_path) == []
        """
    )
    pytester.runpytest_subprocess("--crashtest-results=kept", "--crashtest-seed=9").assert_outcomes(passed=1)
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
    lines = (pytester.path / "said").read_text().splitlines()
    assert [re.search(r"--seed=(\d+)", line)[1] for line in lines] == ["9", "3", "1", "3"]
    assert all(f"--results={pytester.path}/kept " in line for line in lines[:2])
    assert all(re.search(r"--results=\S*/crashtest-test_save0 ", line) for line in lines[2:])


@pytest.mark.parametrize("required", ["", "ptrace"])
def test_what_the_machine_lacks_skips_unless_required(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, required: str
) -> None:
    stand_in(pytester, monkeypatch, "echo 'error: cannot trace the program' >&2; exit 5")
    monkeypatch.setenv("CRASHTEST_REQUIRE", required)
    pytester.makepyfile(SUITE.format(programs=["bot.py"]))
    result = pytester.runpytest_subprocess("-rs")
    result.assert_outcomes(failed=int(bool(required)), skipped=int(not required))
    result.stdout.fnmatch_lines(["*cannot trace the program*"])


def test_a_check_that_was_not_made_shows_the_line_of_the_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(fails="raise SystemExit('there is no configuration')")
    pytester.makepyfile(SUITE.format(programs=["fails.py"]))
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*crashtest.check(*", "*crashtest.Error: *there is no configuration*"])
    assert "subprocess" not in result.stdout.str()


def interrupted(pytester: pytest.Pytester, begun: Path, to_all: bool) -> None:
    """Runs the suite, and sends it Ctrl-C when the check has begun."""
    suite = subprocess.Popen(
        [sys.executable, "-m", "pytest"], cwd=pytester.path, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 30
        while not any(begun.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert any(begun.iterdir())
        (os.killpg if to_all else os.kill)(suite.pid, signal.SIGINT)
        said, _ = suite.communicate(timeout=30)
        assert suite.returncode == pytest.ExitCode.INTERRUPTED, said
        assert "KeyboardInterrupt" in said
        with pytest.raises(ProcessLookupError):
            os.killpg(suite.pid, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(suite.pid, signal.SIGKILL)


@pytest.mark.parametrize("to_all", [True, False], ids=["from the terminal", "to pytest alone"])
def test_an_interrupt_ends_the_check_and_leaves_nothing(pytester: pytest.Pytester, durable: str, to_all: bool) -> None:
    trials = pytester.mkdir("trials")
    pytester.makepyfile(
        f"""
        import sys

        def test_save(crashtest):
            crashtest.check([sys.executable, {durable!r}], trials=100_000, options=["--dir", {str(trials)!r}])
        """
    )
    interrupted(pytester, trials, to_all)
    assert list(trials.iterdir()) == []


@pytest.mark.parametrize("to_all", [True, False], ids=["from the terminal", "to pytest alone"])
def test_an_interrupt_waits_for_a_clean_up(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, to_all: bool
) -> None:
    begun = pytester.mkdir("begun")
    clean_up = "trap '' INT TERM; sleep 1; rm begun/here; exit 130"
    stand_in(pytester, monkeypatch, f'trap "{clean_up}" INT TERM; touch begun/here; while :; do sleep 0.1; done')
    pytester.makepyfile(SUITE.format(programs=["bot.py"]))
    interrupted(pytester, begun, to_all)
    assert list(begun.iterdir()) == []
