#!/usr/bin/env python3
"""Saves to a temp file with a random name and os.replace; removes it on error."""

import json
import os
import tempfile

from state import VERSIONS, sample


def save(path, state):
    handle, temp = tempfile.mkstemp(dir=".", prefix=".state.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(state, file)
        os.replace(temp, path)
    except BaseException:
        os.unlink(temp)
        raise


for version in range(1, VERSIONS + 1):
    save("state.json", sample(version))
    print("saved", version, flush=True)
