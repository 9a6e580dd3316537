#!/usr/bin/env python3
"""A broker over HTTP for the bots beside it: broker.py PORT

    GET /ledger               {"cash": ..., "held": ..., "orders": [{"id": ..., "action": ...}]}
    POST /orders ID ACTION    carried out at once; an id that is known is not carried out again
    POST /settle              what is held is sold at a profit

Its ledger is on disk before it answers.
"""

import http.server
import json
import os
import sys

PRICE, PROFIT = 700, 50
LEDGER = "ledger.json"


def load():
    if os.path.exists(LEDGER):
        with open(LEDGER) as file:
            return json.load(file)
    return {"cash": 10_000, "held": 0, "orders": []}


def save(ledger):
    with open(LEDGER + ".new", "w") as file:
        json.dump(ledger, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(LEDGER + ".new", LEDGER)


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, what):
        text = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self.answer(load())

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        ledger = load()
        if self.path == "/settle":
            ledger["cash"] += ledger["held"] * (PRICE + PROFIT)
            ledger["held"] = 0
        else:
            order_id, action = body.split()
            if order_id not in [order["id"] for order in ledger["orders"]]:
                sign = 1 if action == "buy" else -1
                ledger["orders"].append({"id": order_id, "action": action})
                ledger["held"] += sign
                ledger["cash"] -= sign * PRICE
        save(ledger)
        self.answer("done")

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
