"""How numbers of things are written in sentences."""

from __future__ import annotations


def count(number: int, what: str) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
