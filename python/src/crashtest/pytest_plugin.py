"""The pytest fixture ``crashtest``.

    import sys

    def test_save(crashtest):
        crashtest.check([sys.executable, "bot.py"])

A violation fails the test with the command's message alone. What the machine lacks skips the test, unless
CRASHTEST_REQUIRE is set in the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from crashtest import Checker, Error, Violation

MACHINE_LACKS = 5


class Found(pytest.fail.Exception):
    """A violation, as the outcome of a test."""


class PytestChecker(Checker):
    """A Checker whose findings are the outcome of the test."""

    def _run(self, words: Sequence[str]) -> str:
        __tracebackhide__ = True
        # Failed outside of the handler: pytest would show the message twice, as what it came from too.
        try:
            return super()._run(words)
        except Violation as violation:
            found = str(violation)
        except Error as error:
            if error.status != MACHINE_LACKS or os.environ.get("CRASHTEST_REQUIRE"):
                raise
            pytest.skip(str(error))
        raise Found(found, pytrace=False)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    """Keeps the summary of a violation to its first line: all of it stands above already.

    pytest cuts its summary to the width of the terminal by itself, but not on CI, nor with ``-vv``.
    """
    outcome = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, Found):
        outcome.get_result().longrepr.reprcrash.message = str(call.excinfo.value).partition("\n")[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("crashtest")
    group.addoption(
        "--crashtest-results",
        metavar="DIR",
        help="where the results of crashtest are kept, instead of pytest's temporary directory",
    )
    group.addoption(
        "--crashtest-seed",
        metavar="N",
        type=int,
        default=1,
        help="seed of the checks that name none (default: 1)",
    )


@pytest.fixture
def crashtest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PytestChecker:
    """Checks how a program saves its state: ``crashtest.check([sys.executable, "bot.py"])``.

    The results, from which ``crashtest replay`` shows a violation again, are in a directory of the test's own below
    pytest's base temporary directory. pytest keeps that of its last three runs; --crashtest-results keeps them
    elsewhere, for longer.
    """
    kept = request.config.getoption("--crashtest-results")
    if kept is None:
        # Not in tmp_path: what a test puts there may be copied into each trial.
        name = re.sub(r"\W", "_", request.node.name)[:30]
        results = tmp_path_factory.mktemp(f"crashtest-{name}")
    else:
        results = Path(request.config.invocation_params.dir, kept)
    return PytestChecker(results, request.config.getoption("--crashtest-seed"))
