"""Which method is named beside the best."""

from steppe.compare.analysis.verdict import _frugal


def priced(mean, cost, clear=1):
    return {"gain": {"mean": mean, "clear": clear}, "cost": cost}


def test_the_cheapest_of_those_that_clearly_gain_nearly_as_much():
    top, wanted = priced(1.0, 2.0), priced(0.8, 1.2)
    others = [priced(0.9, 1.5), priced(0.95, 1.1, clear=0), priced(0.79, 1.0)]
    assert _frugal(top, [top, *others, wanted]) is wanted
    assert _frugal(top, [top, priced(1.0, 1.81)]) is None, "hardly cheaper"
