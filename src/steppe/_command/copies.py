"""Examples of a test that were trained on: what is measured there is in part memory."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

LEAK = 0.01
"""Share of the test from which on it is told of."""
CROWD = 10
"""Examples of the same inputs, on the mean, from which on these are a few cases that recur, and no copies."""


def shared(pool: Sequence[Hashable], test: Sequence[Hashable], what: str = "examples", cure: str = "") -> list[str]:
    """A sentence where inputs of the test are among those that train or validate.

    Args:
        pool: what the inputs of each example for training and validation are known by.
        test: likewise.
        what: what an example is called.
        cure: what else may be done, behind a space.
    """
    known = set(pool)
    many = sum(key in known for key in test)
    if not many or many < LEAK * len(test) or len(known) * CROWD < len(pool):
        return []
    return [
        f"{many:,} of the {len(test):,} test {what} ({100 * many / len(test):.0f} %) have inputs that are among those "
        f"for training and validation too: in part the test asks for what was shown. Of copies keep one.{cure}"
    ]
