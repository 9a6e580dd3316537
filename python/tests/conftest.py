from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

SUBJECTS = Path(__file__).resolve().parents[2] / "targets" / "python"


@pytest.fixture
def in_place() -> str:
    """A program that saves into the open state file: it loses its state."""
    return str(SUBJECTS / "in_place.py")


@pytest.fixture
def durable() -> str:
    """A program that saves soundly."""
    return str(SUBJECTS / "durable.py")
