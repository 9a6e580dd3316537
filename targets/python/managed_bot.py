"""Good: the state manager of managed.py; three saves, five minutes apart."""

import datetime
import json
import os
import sys

import managed

# The same in each run, so that its states can be compared byte for byte.
now = datetime.datetime(2026, 1, 5, 9, 30, tzinfo=managed.UTC)


def clock():
    return now


with managed.StateManager(os.curdir, "5c1f3a0e", 1_000_000, clock) as manager:
    for number in range(1, 4):
        now += datetime.timedelta(minutes=5)
        manager.realise(137 * number, f"trade {number}")
        print("saved", number, flush=True)
