"""Adds rows to an SQLite database, one a transaction, and prints the number of each when it is committed.

    sqlite.py write JOURNAL_MODE SYNCHRONOUS
    sqlite.py whole             is the database whole, and no row missing before the last?
    sqlite.py acked             the same, and is all there that was acknowledged?
"""

import os
import sqlite3
import sys


def write(journal_mode, synchronous):
    database = sqlite3.connect("rows.db", isolation_level=None)
    database.execute(f"pragma journal_mode={journal_mode}")
    database.execute(f"pragma synchronous={synchronous}")
    database.execute("create table if not exists rows (n integer primary key, filler blob)")
    n = 0
    while True:
        n += 1
        database.execute("insert into rows values (?, ?)", (n, bytes([n % 251 + 1]) * (n * 97 % 3000)))
        print(n, flush=True)


def check(owed):
    database = sqlite3.connect("rows.db")
    result = database.execute("pragma integrity_check").fetchone()[0]
    assert result == "ok", result
    there = database.execute("select 1 from sqlite_master where name = 'rows'").fetchone()
    rows = database.execute("select n, filler from rows order by n").fetchall() if there else []
    for place, (n, filler) in enumerate(rows, 1):
        assert n == place, f"row {place} is missing"
        assert filler == bytes([n % 251 + 1]) * (n * 97 % 3000), f"row {n} is not what was added"
    assert len(rows) >= owed, f"{owed} rows were acknowledged, {len(rows)} are there"


match sys.argv[1]:
    case "write":
        write(*sys.argv[2:])
    case "whole":
        check(0)
    case "acked":
        check(int(os.environ["CRASHTEST_ACKS"]))
