#!/usr/bin/env python3
"""Saves to a temp file and os.replace, under a lock, with ten rotating backups."""

import json
import os
import shutil
import threading

from state import VERSIONS, sample

BACKUPS = 10
LOCK = threading.Lock()


def rotate(path):
    if not os.path.exists(path):
        return
    for number in range(BACKUPS - 1, 0, -1):
        older = f"{path}.bak.{number + 1}"
        newer = f"{path}.bak.{number}"
        if os.path.exists(newer):
            os.replace(newer, older)
    shutil.copy2(path, f"{path}.bak.1")


def save(path, state):
    with LOCK:
        rotate(path)
        temp = path + ".tmp"
        with open(temp, "w") as file:
            json.dump(state, file)
        os.replace(temp, path)


for version in range(1, VERSIONS + 1):
    save("state.json", sample(version))
    print("saved", version, flush=True)
