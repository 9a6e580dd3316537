#!/usr/bin/env python3
"""Sound: a lock, a new file with a checksum, fsync, rename, fsync of the directory, a second copy."""

import fcntl
import json
import os
import sys
import time
import zlib

from state import VERSIONS, sample


# --- lock: import fcntl, sys
def lock(path):
    """Holds the lock of a state for as long as this process lives."""
    file = open(path + ".lock", "a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"another process works with {path}")
    return file  # keep it: the lock goes when the file is closed
# --- end


# --- replace: import os
def replace(path, data):
    """Puts bytes in the place of a file, so that it is the old or the new one, and on disk."""
    directory = os.path.dirname(os.path.abspath(path))
    # What a process of this number has left there is overwritten.
    temp = os.path.join(directory, f".state-{os.getpid()}.tmp")
    try:
        with open(temp, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temp, path)
    except BaseException:
        if os.path.exists(temp):
            os.unlink(temp)
        raise
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
# --- end


# --- save: import json, zlib
def save(path, sequence, state):
    """Saves twice, so that one copy can be damaged; it is saved when this returns."""
    rest = f'"sequence": {sequence}, "state": {json.dumps(state)}}}\n'.encode()
    data = b'{"crc32": "%08x", ' % zlib.crc32(rest) + rest
    replace(path, data)
    replace(path + ".copy", data)
# --- end


# --- load: import json, os, sys, time, zlib
def whole(path):
    """The number and the state in a file, if all of it is there."""
    try:
        with open(path, "rb") as file:
            data = file.read()
        begin, _, rest = data.partition(b'", ')
        if begin != b'{"crc32": "%08x' % zlib.crc32(rest):
            return None
        found = json.loads(data)
        return found["sequence"], found["state"]
    except (OSError, ValueError):
        return None


def load(path, default):
    """The newest state that is whole; ends the program if there is none, though there was one.

    What is damaged is kept aside.
    """
    copies = [path, path + ".copy"]
    found = [whole(copy) for copy in copies]
    if not any(found):
        if any(os.path.lexists(copy) for copy in copies):
            sys.exit(f"{path} and its copy are damaged")
        print("there is no state: beginning anew", file=sys.stderr)
        return 0, default
    newest = max(filter(None, found), key=lambda one: one[0])
    if found[0] != newest:
        print(f"{path} is damaged or old: taking its copy", file=sys.stderr)
        if os.path.lexists(path):
            os.rename(path, f"{path}.damaged-{time.time_ns()}")
    return newest
# --- end


if __name__ == "__main__":
    held = lock("state.json")
    for name in os.listdir("."):
        if name.startswith(".state-") and name.endswith(".tmp"):
            os.unlink(name)  # a process was killed in the middle of a save
    _, state = load("state.json", None)
    if sys.argv[1:] == ["load"]:
        print(json.dumps(state))
        sys.exit()
    for version in range(1, VERSIONS + 1):
        save("state.json", version, sample(version))
        print("saved", version, flush=True)
