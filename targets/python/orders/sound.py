#!/usr/bin/env python3
"""Good: writes each order down with an id of its own before it is sent; at the start asks the broker."""

import json
import os
import sys

from client import ledger, submit


def save(state):
    with open("state.json.new", "w") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace("state.json.new", "state.json")
    directory = os.open(".", os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def believe(state, address):
    """The broker's books are the truth."""
    books = ledger(address)
    state["cash"], state["held"] = books["cash"], books["held"]
    known = [order["id"] for order in books["orders"]]
    for order in state["orders"]:
        if order["id"] not in known:
            submit(address, order["id"], order["action"])
    if any(order["id"] not in known for order in state["orders"]):
        believe(state, address)


def main(address):
    state = {"orders": [], "cash": 0, "held": 0}
    if os.path.exists("state.json"):
        with open("state.json") as file:
            state = json.load(file)
    believe(state, address)
    for action in ["buy", "sell"]:
        if action in [order["action"] for order in state["orders"]]:
            continue
        if action == "sell" and not state["held"]:
            continue
        state["orders"].append({"id": f"order-{action}", "action": action})
        save(state)
        believe(state, address)
    save(state)


main(sys.argv[1])
