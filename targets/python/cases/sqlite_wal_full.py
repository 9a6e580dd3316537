# each commit is synced to the log; at the end a checkpoint moves it into the database
import sqlite3
c=sqlite3.connect("a.db"); c.execute("pragma journal_mode=wal"); c.execute("pragma synchronous=full")
c.execute("create table if not exists t(i integer)"); c.commit()
for i in range(2):
    c.execute("insert into t values(?)",(i,)); c.commit(); print("saved",i,flush=True)
