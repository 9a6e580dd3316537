#!/usr/bin/env python3
"""Saves to a temp file, syncs it and renames it into place."""

import json
import os

from state import VERSIONS, sample


def save(path, state):
    temp = path + ".tmp"
    with open(temp, "w") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temp, path)


for version in range(1, VERSIONS + 1):
    save("state.json", sample(version))
    print("saved", version, flush=True)
