#!/usr/bin/env python3
"""Saves by way of mkstemp and tries again. Bad: each failed attempt leaves its temp file, and space."""

import json
import os
import tempfile

from state import VERSIONS, sample

ATTEMPTS = 3


def attempt(path, state):
    handle, temp = tempfile.mkstemp(dir=".", prefix=".state.", suffix=".tmp")
    with os.fdopen(handle, "w") as file:
        json.dump(state, file)
    os.replace(temp, path)


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
