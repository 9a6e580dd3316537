#!/usr/bin/env python3
"""Whether the state in the directory agrees with the broker: check.py ADDRESS"""

import json
import sys

from client import ledger

books = ledger(sys.argv[1])
with open("state.json") as file:
    state = json.load(file)
actions = [order["action"] for order in books["orders"]]
twice = {action for action in actions if actions.count(action) > 1}
if twice:
    sys.exit(f"sent twice: {', '.join(sorted(twice))}")
if [order["id"] for order in state["orders"]] != [order["id"] for order in books["orders"]]:
    sys.exit("the orders differ")
if (state["cash"], state["held"]) != (books["cash"], books["held"]):
    sys.exit(f"the bot has {state['cash']} and {state['held']}, the broker {books['cash']} and {books['held']}")
