#!/usr/bin/env python3
"""Tries a failed fsync again. Bad: Linux has marked the pages clean, and the second fsync writes nothing."""

import json
import os

from state import VERSIONS, sample

ATTEMPTS = 3


def sync(file):
    for left in reversed(range(ATTEMPTS)):
        try:
            return os.fsync(file.fileno())
        except OSError:
            if not left:
                raise


def save(path, state):
    temp = path + ".tmp"
    with open(temp, "w") as file:
        json.dump(state, file)
        file.flush()
        sync(file)
    os.rename(temp, path)


for version in range(1, VERSIONS + 1):
    save("state.json", sample(version))
    print("saved", version, flush=True)
