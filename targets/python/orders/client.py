"""What the bots ask the broker: broker.py beside this."""

import json
import sys
import urllib.request


def ask(address, path, body=None):
    url = f"http://{address}{path}"
    with urllib.request.urlopen(url, body and body.encode(), timeout=5) as answer:
        return json.loads(answer.read())


def ledger(address):
    return ask(address, "/ledger")


def submit(address, order_id, action):
    ask(address, "/orders", f"{order_id} {action}")


if __name__ == "__main__":
    # client.py ADDRESS PATH [BODY]
    print(ask(*sys.argv[1:]))
