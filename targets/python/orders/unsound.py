#!/usr/bin/env python3
"""Bad: sends an order and then writes down that it was sent; its books are its own."""

import json
import os
import sys
import uuid

from client import submit


def save(state):
    with open("state.json.new", "w") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace("state.json.new", "state.json")


def main(address):
    state = {"orders": [], "cash": 10_000, "held": 0}
    if os.path.exists("state.json"):
        with open("state.json") as file:
            state = json.load(file)
    for action, sign in [("buy", 1), ("sell", -1)]:
        if action in [order["action"] for order in state["orders"]]:
            continue
        order_id = str(uuid.uuid4())
        submit(address, order_id, action)
        state["orders"].append({"id": order_id, "action": action})
        state["cash"] -= sign * 700
        state["held"] += sign
        save(state)


main(sys.argv[1])
