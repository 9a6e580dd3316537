#!/usr/bin/env python3
"""Saves its state by json.dump into the open state file. Bad: a kill leaves half a file."""

import json

from state import VERSIONS, sample


def save(path, state):
    with open(path, "w") as file:
        json.dump(state, file)


for version in range(1, VERSIONS + 1):
    save("state.json", sample(version))
    print("saved", version, flush=True)
