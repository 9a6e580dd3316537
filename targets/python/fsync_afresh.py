#!/usr/bin/env python3
"""Writes a fresh temp file and starts over when anything failed, fsync among it."""

import json
import os
import tempfile

from state import VERSIONS, sample

ATTEMPTS = 3


def attempt(path, state):
    handle, temp = tempfile.mkstemp(dir=".", prefix=".state.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
    except BaseException:
        os.unlink(temp)
        raise


def save(path, state):
    for left in reversed(range(ATTEMPTS)):
        try:
            return attempt(path, state)
        except OSError:
            if not left:
                raise


for version in range(1, VERSIONS + 1):
    save("state.json", sample(version))
    print("saved", version, flush=True)
