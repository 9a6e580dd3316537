"""Works with a Redis on its usual port.

    redis.py push               appends numbers to a list, and prints each that was answered
    redis.py acked              are all there that were acknowledged?
"""

import os
import socket
import sys
import time


class Redis:
    def __init__(self):
        """Waits until it serves."""
        while True:
            try:
                self.socket = socket.create_connection(("127.0.0.1", 6379))
                self.answers = self.socket.makefile("rb")
                if self.ask("PING") == b"+PONG\r\n":
                    return
            except OSError:
                pass
            time.sleep(0.005)

    def ask(self, command):
        self.socket.sendall(command.encode() + b"\r\n")
        return self.answers.readline()

    def count(self, command):
        answer = self.ask(command)
        assert answer.startswith(b":"), answer
        return int(answer[1:])


def push():
    redis = Redis()
    n = 0
    while True:
        n += 1
        assert redis.count(f"RPUSH numbers {n}") == n
        print(n, flush=True)


def check(owed):
    redis = Redis()
    count = redis.count("LLEN numbers")
    assert count >= owed, f"{owed} numbers were acknowledged, {count} are there"
    redis.socket.sendall(b"LRANGE numbers 0 -1\r\n")
    assert int(redis.answers.readline()[1:]) == count
    for n in range(1, count + 1):
        redis.answers.readline()
        found = redis.answers.readline()
        assert found == b"%d\r\n" % n, f"number {n} is {found}"


match sys.argv[1]:
    case "push":
        push()
    case "acked":
        check(int(os.environ["CRASHTEST_ACKS"]))
