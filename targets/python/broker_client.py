"""A client of the broker for tests (`crashtest_targets::managed::server`), for managed.py.

    python3 broker_client.py HOST:PORT DIR [ORDER_ID]   reconcile the state in DIR, and send an order
"""

import json
import socket
import sys

import managed


class Broker:
    """One request and one answer a connection, each a line of JSON."""

    def __init__(self, address, timeout=5):
        self.address, self.timeout = address, timeout

    def _ask(self, request):
        try:
            with socket.create_connection(self.address, self.timeout) as connection:
                connection.sendall(json.dumps(request).encode() + b"\n")
                with connection.makefile("rb") as answers:
                    answer = json.loads(answers.readline())
        except (OSError, ValueError) as error:
            raise managed.Unknown(f"no answer came, it may be done or not: {error}") from error
        if isinstance(answer, dict) and "refused" in answer:
            raise managed.Refused(answer["refused"])
        return answer

    def submit(self, order):
        return self._ask({"submit": order})["order"]

    def cancel(self, order_id):
        self._ask({"cancel": order_id})

    def ledger(self):
        return self._ask("ledger")["ledger"]


def main(address, directory, order_id=None):
    host, port = address.rsplit(":", 1)
    broker = Broker((host, int(port)))
    with managed.StateManager(directory, first_balance=100_000) as manager:
        manager.reconcile(broker)
        if order_id:
            print(manager.submit({"id": order_id, "symbol": "UP", "action": "buy", "quantity": 10}, broker))


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (managed.Unknown, managed.Refused, managed.Locked) as error:
        sys.exit(f"broker_client: {error}")
