"""The state that the Python subjects save: a small trading bot's, about 12 KB of JSON."""

import os

VERSIONS = int(os.environ.get("VERSIONS", "4"))


def sample(version):
    return {
        "version": version,
        "saved_at": f"2026-01-01T00:{version:02}:00Z",
        "current_balance": 1_000_000 + 137 * version,
        "peak_balance": 1_000_000 + 137 * version,
        "positions": [
            {"symbol": f"SYM{n:04}", "quantity": n + version, "entry_price": 1000 + 7 * n}
            # Every other version is shorter, so that an overwrite without truncation shows.
            for n in range(200 - 20 * (version % 2))
        ],
    }
