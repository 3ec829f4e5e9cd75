"""How things, and numbers of them, are written in sentences."""

from __future__ import annotations


def count(number: int, what: str) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def an(name: str) -> str:
    """A name behind its article: `an AdamW`, `a SAM`, `an SGD`, whose letters are spoken one by one."""
    spoken = name[:2].isupper() and name[0] in "FHLMNRSX" and name[1] not in "AEIOU"
    return f"an {name}" if spoken or name[:1].lower() in tuple("aeio") else f"a {name}"
