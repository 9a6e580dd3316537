#!/usr/bin/env python3
"""Saves to a temp file, syncs and renames it, but catches every error. Bad: it goes on as if saved."""

import json
import os
import sys

from state import VERSIONS, sample


def save(path, state):
    temp = path + ".tmp"
    try:
        with open(temp, "w") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temp, path)
    except OSError as error:
        print("cannot save:", error, file=sys.stderr)


for version in range(1, VERSIONS + 1):
    save("state.json", sample(version))
    print("saved", version, flush=True)
