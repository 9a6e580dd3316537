"""What is left of the state that a program saves when it is killed, a call fails, the disk is full or the power goes.

    import sys, crashtest
    crashtest.check([sys.executable, "bot.py"])

With pytest, take the fixture ``crashtest`` instead; see :mod:`crashtest.pytest_plugin`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from typing import Union

__all__ = ["Checker", "Error", "Violation", "binary", "check"]

StrPath = Union[str, "os.PathLike[str]"]


class Violation(AssertionError):
    """The program loses its state. The text says by what, what was left, where in the source, and what to do."""


class Error(Exception):
    """The check was not made, so nothing is known of the program. The text says why, and what to do.

    ``status`` is the exit status of the command: 2 an option is wrong, 3 the unbroken run of the program failed,
    4 nothing struck, 5 the machine lacks something, 70 an error of crashtest itself, 130 it was interrupted;
    negative if a signal ended it; None if it could not be started.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def binary() -> str:
    """The path of the command: CRASHTEST_BINARY, else what came with this package, else what is in PATH."""
    named = os.environ.get("CRASHTEST_BINARY")
    if named:
        if shutil.which(named) is None:
            raise Error(f"CRASHTEST_BINARY names no program: {named}; correct it, or unset it")
        return named
    schemes = [sysconfig.get_path("scripts"), sysconfig.get_path("scripts", f"{os.name}_user")]
    found = shutil.which("crashtest", path=os.pathsep.join(schemes)) or shutil.which("crashtest")
    if found is None:
        raise Error(
            "the command crashtest is neither in "
            + " nor in ".join([*schemes, "PATH"])
            + "; install this package again (pip install --force-reinstall crashtest),"
            " or name the command in CRASHTEST_BINARY"
        )
    return found


class Checker:
    """Makes checks that share a directory for their results and a seed."""

    def __init__(self, results: StrPath | None = None, seed: int = 1) -> None:
        self.results = results
        self.seed = seed

    def check(
        self,
        program: Sequence[StrPath],
        *,
        scenarios: Sequence[str] = (),
        seed: int | None = None,
        trials: int | None = None,
        jobs: int | None = None,
        strict: bool = False,
        ack: str | None = None,
        state: Sequence[str] = (),
        check: str | None = None,
        recover: str | None = None,
        restore: str | None = None,
        schema: StrPath | None = None,
        invariants: Sequence[str] = (),
        init: StrPath | None = None,
        env: Mapping[str, str] | None = None,
        sandbox: bool = False,
        timeout: int | None = None,
        results: StrPath | None = None,
        options: Sequence[str] = (),
    ) -> str:
        """Harms the program while it saves, again and again, and looks at what is left of its state.

        Returns what the command says of a program that passes. Raises Violation if the program loses its state,
        and Error if that could not be found out.

        ``program`` is the program with its arguments. It runs in an empty directory of its own, for which
        ``{dir}`` stands; the program and scripts among its arguments are found from the current directory.

        scenarios:  names; default sigkill, errno, enospc and poweroff
        seed:       draws everything that is drawn; default 1
        trials:     how many in each scenario that has no end by itself, and the most in one that has; default
                    100, and all
        jobs:       worker processes; default the CPUs that may be used
        strict:     raise Violation for risks of medium level too, such as a save that is acknowledged before it is
                    on disk; default False
        ack:        regular expression for a line on stdout that acknowledges a save; exit status 0 acknowledges the
                    last one in any case
        state:      globs of the state files, relative to the directory; default the files that an unbroken run
                    leaves changed
        check:      shell command, run where the state was left; status 0 says that it is sound
        recover:    shell command, run there too, that loads the state as the program does at its start
        restore:    shell command, run there too, that restores the state from the copy that ``{backup}`` stands for
        schema:     file with a JSON Schema that the state must satisfy
        invariants: CEL expressions that must hold, such as ``state.peak >= state.balance``
        init:       directory that is copied into the program's directory before each run
        env:        environment variables for the program, besides those of this process
        sandbox:    redirect all that the program writes anywhere into its directory; default False
        timeout:    how long an unbroken run may take, in whole seconds; default 30
        results:    directory where results are kept; default that of the Checker, else results/runs
        options:    further options of ``crashtest check``, as in a shell: ``["--promise", "recoverable"]``
        """
        __tracebackhide__ = True
        if isinstance(program, (str, os.PathLike)):
            raise TypeError("the program is a list, with its arguments: [sys.executable, 'bot.py']")
        words = ["check", "--quiet", f"--seed={self.seed if seed is None else seed}"]
        results = self.results if results is None else results
        single = {
            "scenario": ",".join(_several(scenarios)) or None,
            "trials": trials,
            "jobs": jobs,
            "ack": ack,
            "check": check,
            "recover": recover,
            "restore": restore,
            "schema": None if schema is None else os.fspath(schema),
            "init": None if init is None else os.fspath(init),
            "timeout": timeout,
            "results": None if results is None else os.fspath(results),
        }
        words += [f"--{name}={value}" for name, value in single.items() if value is not None]
        words += [f"--{name}" for name, on in {"strict": strict, "sandbox": sandbox}.items() if on]
        words += [f"--state={glob}" for glob in _several(state)]
        words += [f"--invariant={expression}" for expression in _several(invariants)]
        words += [f"--env={name}={value}" for name, value in (env or {}).items()]
        return self._run([*words, *options, "--", *[os.fspath(word) for word in program]])

    def _run(self, words: Sequence[str]) -> str:
        __tracebackhide__ = True
        status, said, complaint = _finished([binary(), *words])
        if status == 0:
            return said
        if status == 1:
            raise Violation(said)
        if status < 0:
            complaint = f"crashtest was ended by signal {-status}"
        raise Error(complaint or said or f"crashtest ended with status {status}", status)


check = Checker().check


def _several(value: Sequence[str]) -> Sequence[str]:
    return [value] if isinstance(value, str) else value


def _finished(command: Sequence[str]) -> tuple[int, str, str]:
    """How the command ended, and what it said on stdout and stderr."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise Error(f"cannot start {command[0]}: {error.strerror}") from error
    try:
        said, complaint = process.communicate()
    except BaseException:
        # Ctrl-C, or a time limit of the test. It ends its workers and removes their directories.
        process.terminate()
        process.communicate()
        raise
    return process.returncode, said.rstrip("\n"), complaint.rstrip("\n").removeprefix("error: ")
