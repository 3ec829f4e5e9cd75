"""Rows in order of time, or alike from row to row, that are parted at random: told where it is so, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from tests.compare.data.test_tables import fresh, write

from steppe.compare.data import order

N = 300
RNG = np.random.default_rng(0)
DAYS = [str(np.datetime64("2021-01-01") + i // 2) for i in range(N)]
MIXED = RNG.permutation(N)
WAY = np.sin(np.arange(N) / 20)


def german(day: str) -> str:
    return f"{day[8:]}.{day[5:7]}.{day[:4]}"


def american(day: str) -> str:
    return f"{int(day[5:7])}/{int(day[8:])}/{day[:4]} 9:05 PM"


def table(folder, **columns) -> str:
    return write(folder, columns | {"size": RNG.normal(size=N).round(9), "price": RNG.normal(size=N).round(9)})


@pytest.mark.parametrize("write_day", [str, german, american, lambda day: day + " 18:00", lambda day: day[:7]])
def test_rows_in_order_of_time_are_told_and_in_turn_they_are_not(tmp_path, write_day):
    """A column of dates that was left out told nothing of the leak, and accuracy was of days that were shown."""
    days = [write_day(day) for day in DAYS]
    made = {"leave_out": ("when",), "kind": "numbers"}
    for when, how in (
        (days, "are in order of time (column 'when')"),
        (days[::-1], "are in order of time, the latest first (column 'when')"),
        ([days[i] for i in MIXED], "have times (column 'when')"),
    ):
        place = table(tmp_path, when=when)
        (note,) = fresh(place, "price", **made).notes
        assert how in note and "--parts 0.7,0.1,0.2" in note
        told = fresh(place, "price", parts=(0.7, 0.1, 0.2), **made).notes
        assert [each.startswith("--parts takes the rows as they stand, ") for each in told] == [True] * (when != days)


def test_what_looks_like_times_and_is_none(tmp_path):
    """How long something took, codes with dashes, one day throughout."""
    for name, column in (
        ("time", [int(i) for i in MIXED]),
        ("code", [f"{1000 + i % 90}-{i % 60}" for i in range(N)]),
        ("when", ["2024-05-31", "2024-06-01"] * (N // 2)),
    ):
        assert not fresh(table(tmp_path, **{name: column}), "price", leave_out=(name,)).notes
    years = sorted(2000 + i % 20 for i in range(N))
    assert "in order of time (column 'Year')" in fresh(table(tmp_path, Year=years), "price").notes[0]


def test_neighbours_that_are_alike_are_told_unless_a_column_sorts_them(tmp_path):
    place = table(tmp_path, way=(WAY + RNG.normal(0, 0.1, N)).round(9))
    (note,) = fresh(place, "way").notes
    assert note.startswith("Neighbouring rows are alike (the target goes on from row to row, with a correlation of 0.9")
    assert not fresh(place, "way", parts=(0.7, 0.1, 0.2)).notes
    walks = {name: RNG.normal(size=N).cumsum().round(9) for name in "ab"}
    (note,) = fresh(table(tmp_path, **walks, sort=RNG.choice(["x", "y"], N)), "sort", leave_out=("price",)).notes
    assert "(2 of 3 columns of numbers go on from row to row)" in note
    one = RNG.normal(size=N).round(9)
    for rows in (np.argsort(one), np.argsort(one)[::-1]):  # how a file was sorted says nothing of how rows came about
        data = {"one": one[rows], "other": (one + RNG.normal(0, 0.3, N)).round(9)[rows]}
        assert not fresh(write(tmp_path, data), "one").notes and not fresh(write(tmp_path, data), "other").notes
    blocks = np.repeat([5, 0, 9], 100) + one
    data = {"site": np.repeat(["b", "a", "c"], 100), "one": blocks, "other": blocks + RNG.normal(size=N)}
    assert not fresh(write(tmp_path, data), "other").notes


def test_ranks_by_hand():
    assert order.ranks(np.array([3.0, 1.0, 3.0, 7.0])).tolist() == [2.5, 1, 2.5, 4]


def test_parts_in_turn(tmp_path):
    """The first rows train, the next validate, the last test, whatever the seed; a class that none trains is told."""
    place = write(tmp_path, {"n": [i * i for i in range(100)], "y": ["a", "b"] * 45 + ["c"] * 10})
    one, other = (fresh(place, "y", seed, parts=(0.6, 0.2, 0.2)) for seed in (0, 1))
    assert [len(part) for part in (one.train, one.val, one.test)] == [60, 20, 20]
    last = [part.x[:, 0] for part in (one.train, one.val, one.test)]
    assert last[0].max() < last[1].min() and last[1].max() < last[2].min()
    assert one.test.y.equal(other.test.y) and one.val.x.equal(other.val.x)
    assert "No row that trains is of the target's class 'c': no network can know it." in one.notes
    rest = fresh(place, "y", parts=(50, 20, 10))
    assert len(rest.train) == 50 and (len(rest.val), len(rest.test)) == (20, 10)
    with pytest.raises(ValueError, match="are 120 rows, and there are 100"):
        fresh(place, "y", parts=(50, 50, 20))
