"""Adds rows to an LMDB database, one a transaction, and prints the number of each when it is committed.

    lmdb_rows.py make           makes an empty one: half-made, LMDB refuses it
    lmdb_rows.py write sync|nosync
    lmdb_rows.py acked          is all there, and right, that was acknowledged?
"""

import os
import sys

import lmdb

SIZE = 8 << 20


def filler(n):
    return bytes([n % 251 + 1]) * (n * 97 % 3000)


def write(sync):
    # A map that is written to is what only a recording below the file system sees.
    rows = lmdb.open("rows", map_size=SIZE, sync=sync, writemap=True)
    n = 0
    while True:
        n += 1
        with rows.begin(write=True) as transaction:
            # Some are written again, so that it never grows full.
            transaction.put(b"%08d" % (n % 500), b"%d " % n + filler(n))
            transaction.put(b"last", b"%d" % n)
        print(n, flush=True)


def check(owed):
    rows = lmdb.open("rows", map_size=SIZE)
    with rows.begin() as transaction:
        last = int(transaction.get(b"last") or b"0")
        assert last >= owed, f"{owed} rows were acknowledged, {last} are there"
        for n in range(max(1, last - 499), last + 1):
            found = transaction.get(b"%08d" % (n % 500))
            assert found == b"%d " % n + filler(n), f"row {n} of {last} is not what was added"


match sys.argv[1]:
    case "make":
        lmdb.open("rows", map_size=SIZE, writemap=True).close()
    case "write":
        write(sys.argv[2] == "sync")
    case "acked":
        check(int(os.environ["CRASHTEST_ACKS"]))
