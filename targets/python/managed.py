"""The state manager `managed` in Python: the same files as `crashtest_targets::managed`.

    python3 managed.py load DIR             print the state, as the next start would load it
    python3 managed.py restore DIR BACKUP   go back to a backup: it becomes the newest state
    python3 managed.py backups DIR          list the backups, the newest first

A state is saved by a temp file with a random name, fsync, rename and fsync of the directory, in an
envelope with a checksum. One process at a time holds the lock, which ends with it. A load that finds
damage takes the newest backup that is whole, says so, and keeps the damaged file aside.
"""

import copy
import datetime
import errno
import fcntl
import json
import os
import re
import secrets
import stat
import sys
import threading
import zlib

FORMAT, SCHEMA = "managed-state", 1
STATE_FILE, LOCK_FILE, BACKUPS = "state.json", "state.lock", "backups"
TEMP_PREFIX, DAMAGED_PREFIX = ".state.json.", "state.json.damaged-"
TOLERANCE = 100  # cents: one unit of currency
PEAK_STALE_DAYS = 7
FINAL = ("filled", "cancelled", "rejected")
_TAIL = re.compile(rb',"crc32":"([0-9a-f]{8})"\}\n\Z')
_BACKUP = re.compile(r"state-(\d{8}T\d{9}Z)-(\d{10,})-([a-z0-9-]+)\.json\Z")
UTC = datetime.timezone.utc


class Damage(Exception):
    """What lies there is no whole state."""


class Newer(Exception):
    """The state was saved by a later version of the program."""


class Lost(Exception):
    """There is a state, and nothing of it is whole; nothing was changed."""


class Locked(Exception):
    """Another process holds the lock."""


class Invalid(Exception):
    """The state holds what can't be."""


class Unknown(Exception):
    """A broker's answer did not come: what was asked may have been done, or not."""


class Refused(Exception):
    """A broker does not take an order."""


def rfc3339(at):
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def seal(sequence, saved_at, state):
    """The envelope of a state, as bytes."""
    head = {"format": FORMAT, "schema": SCHEMA, "sequence": sequence, "saved_at": rfc3339(saved_at)}
    covered = json.dumps(head, separators=(",", ":"))[:-1] + ',"state":'
    covered = (covered + json.dumps(state, separators=(",", ":"))).encode()
    return covered + b',"crc32":"%08x"}\n' % zlib.crc32(covered)


def unseal(data):
    """Sequence, time and state of an envelope; raises Damage or Newer."""
    if not data:
        raise Damage("it is empty")
    tail = _TAIL.search(data)
    if tail is None:
        raise Damage("it does not end with its checksum: it was cut short")
    found = b"%08x" % zlib.crc32(data[: tail.start()])
    if found != tail.group(1):
        raise Damage(f"its checksum is {tail.group(1).decode()}, and that of its bytes is {found.decode()}")
    try:
        envelope = json.loads(data)
        if envelope["format"] != FORMAT:
            raise Damage(f"its format is {envelope['format']}")
        if envelope["schema"] > SCHEMA:
            raise Newer(f"it has schema {envelope['schema']}, and this program reads up to {SCHEMA}")
        return envelope["sequence"], parse_time(envelope["saved_at"]), envelope["state"]
    except (ValueError, KeyError, TypeError) as error:
        raise Damage(f"it is no state: {error}") from error


def read(path):
    """The bytes of a regular file; None if there is nothing of that name."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise Damage("it is no regular file")
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Damage(f"it can't be read: {error}") from error


def replace(directory, name, data):
    """Replaces a file durably."""
    temp = os.path.join(directory, TEMP_PREFIX + secrets.token_hex(8))
    try:
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temp, os.path.join(directory, name))
    except BaseException:
        try:
            os.unlink(temp)
        except OSError:
            pass  # What stays is removed at the next start.
        raise
    sync_directory(directory)


def make_directory(directory):
    """Makes a directory, and those on the way to it, for good."""
    if not os.path.isdir(directory):
        parent = os.path.dirname(os.path.abspath(directory))
        make_directory(parent)
        os.mkdir(directory)
        sync_directory(parent)


def sync_directory(directory):
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def backups(directory):
    """The backups as (sequence, time, reason, name), the newest first."""
    try:
        names = os.listdir(os.path.join(directory, BACKUPS))
    except OSError:
        return []
    found = [(match, name) for name in names if (match := _BACKUP.match(name))]
    time = "%Y%m%dT%H%M%S%f%z"
    parsed = [
        (int(m[2]), datetime.datetime.strptime(m[1][:-1] + "000+0000", time), m[3], name)
        for m, name in found
    ]
    return sorted(parsed, key=lambda one: one[:2], reverse=True)


def find(directory):
    """Sequence, time, state, the name of the backup it comes from (or None), and what was found on the way.

    Nothing is changed. None if there is no state and no backup. Raises Lost or Newer.
    """
    events, file, why = [], None, None
    try:
        data = read(os.path.join(directory, STATE_FILE))
        file = unseal(data) if data is not None else None
    except Damage as damage:
        why = damage
    for sequence, _, _, name in backups(directory):
        if file and file[0] >= sequence:
            break
        try:
            data = read(os.path.join(directory, BACKUPS, name))
            found = unseal(data if data is not None else b"")
        except (Damage, Newer) as damage:
            events.append(f"the backup {name} is passed over: {damage}")
            continue
        if file:
            events.append(f"the state file is number {file[0]}, and the backup {name} number {found[0]}, which is taken")
        elif why:
            events.append(f"the state file is not taken, {why}; the backup {name} is")
        else:
            events.append(f"the state file is not there; the backup {name} is taken")
        return (*found, name, events)
    if file:
        return (*file, None, events)
    if why or events:
        raise Lost(f"the state can't be used ({why or events[0]}), and there is no whole backup of it")
    return None


class StateManager:
    """Keeps the state of one directory; for all threads of one process."""

    def __init__(self, directory, settings_hash="", first_balance=0, clock=None, every=300, count=10, days=30, say=None):
        self.directory, self.settings_hash = os.fspath(directory), settings_hash
        self.clock = clock or (lambda: datetime.datetime.now(UTC))
        self.every, self.count, self.days = datetime.timedelta(seconds=every), count, days
        self.say = say or (lambda text: print(text, file=sys.stderr))
        self._guard, self._outside = threading.RLock(), threading.Lock()
        make_directory(self.directory)
        self._lock = self._take_lock()
        try:
            self._prepare()
            self._load(first_balance)
        except BaseException:
            self.close()
            raise

    def close(self):
        if self._lock is not None:
            # A child that was forked meanwhile has the file open, too.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = None

    __enter__ = lambda self: self
    __exit__ = lambda self, *_: self.close()

    def _take_lock(self):
        path = os.path.join(self.directory, LOCK_FILE)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(fd, b"process %010d\n" % os.getpid(), 0)
            return fd
        except OSError as error:
            who = os.pread(fd, 64, 0).decode(errors="replace").strip()
            os.close(fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise Locked(f"the state is in use by {who}: end that first") from error
            raise

    def _prepare(self):
        path = os.path.join(self.directory, BACKUPS)
        if not os.path.isdir(path):
            os.mkdir(path)
            sync_directory(self.directory)
        for directory in (self.directory, path):
            for name in os.listdir(directory):
                if name.startswith(TEMP_PREFIX):
                    os.unlink(os.path.join(directory, name))
                    self.say(f"{name} was left by a crash, and is removed")

    def _load(self, first_balance):
        found = find(self.directory)
        now = self.clock()
        if found is None:
            self.say("there is no state and no backup: the default is taken")
            self._state, self._sequence, self._saved_at = default(first_balance, self.settings_hash, now), 0, None
        else:
            self._sequence, self._saved_at, self._state, backup, events = found
            for event in events:
                self.say(event)
            mended = validate(self._state)
            if self._state["settings_hash"] != self.settings_hash:
                self.say(f"the settings have changed from {self._state['settings_hash']} to {self.settings_hash}")
                self._state["settings_hash"] = self.settings_hash
            if now < self._saved_at:
                self.say(f"the clock says {now}, and the last save was at {self._saved_at}")
            for event in mended:
                self.say(event)
            if backup is not None:
                self._put_back()
        scheduled = [at for _, at, reason, _ in backups(self.directory) if reason == "schedule"]
        self._last_backup = scheduled[0] if scheduled else None

    def _put_back(self):
        path = os.path.join(self.directory, STATE_FILE)
        if os.path.lexists(path):
            stem = DAMAGED_PREFIX + self._saved_at.strftime("%Y%m%dT%H%M%SZ")
            names = (stem if n == 0 else f"{stem}-{n}" for n in range(1 << 30))
            name = next(name for name in names if not os.path.lexists(os.path.join(self.directory, name)))
            os.rename(path, os.path.join(self.directory, name))
            self.say(f"what was the state file is kept as {name}")
        replace(self.directory, STATE_FILE, seal(self._sequence, self._saved_at, self._state))

    @property
    def state(self):
        """A copy of the state."""
        with self._guard:
            return copy.deepcopy(self._state)

    def update(self, change, reason=None):
        """Changes the state by `change(state)`. When this returns, that is on disk; when it raises, nothing changed."""
        with self._guard:
            state = copy.deepcopy(self._state)
            value = change(state)
            state["updated_at"] = rfc3339(self.clock())
            self._save(state, reason)
            return value

    def _save(self, state, reason=None):
        with self._guard:
            now = self.clock()
            if wrong := complaints(state):
                raise Invalid(wrong[0])
            data = seal(self._sequence + 1, now, state)
            replace(self.directory, STATE_FILE, data)
            self._state, self._sequence, self._saved_at = state, self._sequence + 1, now
            last = self._last_backup
            due = last is None or now < last or now - last >= self.every
            if reason or due:
                self._back_up(data, now, reason or "schedule")

    def _back_up(self, data, now, reason):
        directory = os.path.join(self.directory, BACKUPS)
        plain = re.sub(r"[^a-z0-9]", "-", reason.lower())[:32] or "wanted"
        time = now.astimezone(UTC).strftime("%Y%m%dT%H%M%S") + f"{now.microsecond // 1000:03d}Z"
        name = f"state-{time}-{self._sequence:010d}-{plain}.json"
        try:
            replace(directory, name, data)
            unseal(read(os.path.join(directory, name)) or b"")
            self._rotate(now, name)
        except (OSError, Damage) as error:
            self.say(f"saved, but there is no backup of it: {error}")
            return
        if reason == "schedule":
            self._last_backup = now

    def _rotate(self, now, good):
        """Keeps the newest, the last of each hour of a day and of each day; nothing older; never less than `good`."""
        hours, days, safe = set(), set(), True
        for n, (_, at, _, name) in enumerate(backups(self.directory)):
            age, keep = now - at, n < self.count
            if age <= datetime.timedelta(hours=24) and (hour := (at.date(), at.hour)) not in hours:
                hours.add(hour)
                keep = True
            if age <= datetime.timedelta(days=self.days) and at.date() not in days:
                days.add(at.date())
                keep = True
            if not safe and not (keep and age <= datetime.timedelta(days=self.days)):
                os.unlink(os.path.join(self.directory, BACKUPS, name))
            safe = safe and name != good

    def restore(self, name):
        """Goes back to a backup: it becomes the newest state."""
        with self._guard:
            if os.path.basename(name) != name:
                raise ValueError("give the name of a backup alone")
            _, _, state = unseal(read(os.path.join(self.directory, BACKUPS, name)) or b"")
            for event in validate(state):
                self.say(event)
            self._save(state)

    def realise(self, cents, why):
        """Books realised cash; only this raises the peak."""
        return self.update(lambda state: self._realise(state, cents, why))

    def _realise(self, state, cents, why):
        state["realised_profit"] += cents
        state["consecutive_losses"] = state["consecutive_losses"] + 1 if cents < 0 else 0
        self._set_balance(state, state["current_balance"] + cents, why)

    def _set_balance(self, state, cents, why):
        state["current_balance"] = cents
        if cents > state["peak_balance"]:
            self.say(f"the peak goes from {state['peak_balance']} to {cents} cents: {why}")
            state["peak_balance"], state["peak_changed_at"] = cents, rfc3339(self.clock())

    def peak_alert(self):
        """A text if the peak has not changed for long."""
        days = (self.clock() - parse_time(self.state["peak_changed_at"])).days
        return f"the peak has not changed for {days} days" if days >= PEAK_STALE_DAYS else None

    def submit(self, order, broker):
        """Sends an order that is written down first; one that was sent is not sent again. Returns its status."""
        with self._outside:
            with self._guard:
                if self._state["halted"]:
                    raise Invalid(f"no order may be sent: {self._state['halted']['reason']}")
                known = [one for one in self._state["orders"] if one["id"] == order["id"]]
                if known:
                    return known[0]["status"]
                order = {**order, "status": "submitting"}
                for link in ("parent", "stop", "profit"):
                    order.setdefault(link, None)
                self.update(lambda state: state["orders"].append(order))
            try:
                broker.submit(order)
            except Refused:
                pass  # The ledger does not have it, so that it becomes what it is: rejected.
            self._bring_in_line(broker)
            return next(one["status"] for one in self.state["orders"] if one["id"] == order["id"])

    def reconcile(self, broker):
        """Brings the state in line with the ledger, and cancels open orders that nobody knows."""
        with self._outside:
            self._bring_in_line(broker)

    def _bring_in_line(self, broker):
        ledger = broker.ledger()
        with self._guard:
            state = self.state
            self._apply(state, ledger)
            if state != self._state:
                self.update(lambda current: (current.clear(), current.update(state)))
            known = {order["id"] for order in state["orders"]}
        for order in ledger["orders"]:
            if order["status"] == "open" and order["id"] not in known:
                broker.cancel(order["id"])
                self.say(f"order {order['id']} is nobody's, and is cancelled")

    def _fill(self, state, order, price):
        quantity = order["quantity"] if order["action"] == "buy" else -order["quantity"]
        for position in state["positions"]:
            if position["symbol"] == order["symbol"]:
                position["quantity"] += quantity
                break
        else:
            state["positions"].append(
                {"symbol": order["symbol"], "quantity": quantity, "entry_price": price, "order": order["id"]}
            )
        state["positions"] = [p for p in state["positions"] if p["quantity"]]
        self._set_balance(state, state["current_balance"] - price * quantity, f"order {order['id']} filled")

    def _apply(self, state, ledger):
        theirs = {order["id"]: order for order in ledger["orders"]}
        for order in state["orders"]:
            status = theirs[order["id"]]["status"] if order["id"] in theirs else order["status"]
            if order["id"] not in theirs and order["status"] not in FINAL:
                status = "rejected"
            if status != order["status"]:
                order["status"] = status
                self.say(f"order {order['id']} is {status}")
                if status == "filled":
                    self._fill(state, order, theirs[order["id"]]["price"])
        for settlement in ledger["settlements"]:
            if settlement["id"] not in state["settled"]:
                state["settled"] = sorted([*state["settled"], settlement["id"]])
                ended = [p for p in state["positions"] if p["symbol"] == settlement["symbol"]]
                # What it had cost is cash again.
                state["current_balance"] += sum(p["entry_price"] * p["quantity"] for p in ended)
                state["positions"] = [p for p in state["positions"] if p not in ended]
                self.say(f"settlement {settlement['id']}: {settlement['profit']} cents")
                self._realise(state, settlement["profit"], f"settlement {settlement['id']}")
        held = {position["symbol"]: position for position in state["positions"]}
        for symbol in sorted(held.keys() | ledger["positions"].keys()):
            quantity = ledger["positions"].get(symbol, 0)
            was = held[symbol]["quantity"] if symbol in held else 0
            if was == quantity:
                continue
            self.say(f"{symbol}: {was} were held, and by the ledger {quantity}")
            state["positions"] = [p for p in state["positions"] if p["symbol"] != symbol]
            filled = [o for o in ledger["orders"] if o["symbol"] == symbol and o["status"] == "filled"]
            if quantity and filled:
                order = filled[-1]
                if not any(one["id"] == order["id"] for one in state["orders"]):
                    links = {"parent": None, "stop": None, "profit": None}
                    fields = ("id", "symbol", "action", "quantity", "status")
                    state["orders"].append({**{name: order[name] for name in fields}, **links})
                price = held[symbol]["entry_price"] if symbol in held else order["price"]
                by = held[symbol]["order"] if symbol in held else order["id"]
                state["positions"].append({"symbol": symbol, "quantity": quantity, "entry_price": price, "order": by})
        if abs(state["current_balance"] - ledger["cash"]) > TOLERANCE:
            self.say(f"the balance was {state['current_balance']} cents, and by the ledger is {ledger['cash']}")
            self._set_balance(state, ledger["cash"], "the ledger says so")


def default(balance, settings_hash, now):
    return {
        "settings_hash": settings_hash,
        "updated_at": rfc3339(now),
        "current_balance": balance,
        "peak_balance": balance,
        "peak_changed_at": rfc3339(now),
        "realised_profit": 0,
        "consecutive_losses": 0,
        "halted": None,
        "positions": [],
        "orders": [],
        "settled": [],
    }


def complaints(state):
    """All that a state can't be; raises Invalid of one that is no state at all."""
    try:
        found = []
        if state["current_balance"] < 0:
            found.append(f"the balance is {state['current_balance']} cents")
        if state["peak_balance"] < state["current_balance"]:
            found.append(f"the peak is {state['peak_balance']} cents, below the balance of {state['current_balance']}")
        ids = [order["id"] for order in state["orders"]]
        found += [f"two orders are called {one}" for one in sorted(set(ids)) if ids.count(one) > 1]
        found += [f"the order {o['id']} has no quantity" for o in state["orders"] if o["quantity"] <= 0]
        orphans = [p["symbol"] for p in state["positions"] if p["order"] not in ids]
        return found + [f"no order has opened the position in {symbol}" for symbol in orphans]
    except (KeyError, TypeError) as error:
        raise Invalid(f"the state is whole, and no state of this program: {error!r}") from error


def validate(state):
    """Mends a peak that is too low, and says so; raises Invalid of everything else."""
    wrong = complaints(state)
    mended = [text for text in wrong if text.startswith("the peak is")]
    if len(mended) < len(wrong):
        raise Invalid(next(text for text in wrong if text not in mended))
    if mended:
        state["peak_balance"] = state["current_balance"]
    return [f"mended: {text}" for text in mended]


def main(arguments):
    what, directory, *rest = arguments if len(arguments) > 1 else ("", "")
    if what == "load" and not rest:
        found = find(directory)
        if found is None:
            print("there is no state and no backup", file=sys.stderr)
            return 0
        for event in found[4]:
            print(event, file=sys.stderr)
        print(json.dumps(found[2], separators=(",", ":")))
    elif what == "restore" and len(rest) == 1:
        with StateManager(directory, find(directory)[2]["settings_hash"]) as manager:
            manager.restore(rest[0])
    elif what == "backups" and not rest:
        for _, _, _, name in backups(directory):
            print(name)
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (Damage, Newer, Lost, Locked, Invalid, OSError) as error:
        sys.exit(f"managed: {error}")
