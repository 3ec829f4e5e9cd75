"""Columns that know the answer are told by name; those that only happen to, or part classes by measure, are not."""

from __future__ import annotations

import numpy as np
import pytest
from tests.compare.data.test_tables import fresh, write

from steppe.compare.data.answers import knowing

N = 200
RNG = np.random.default_rng(0)
SORT = RNG.choice(["no", "perhaps", "yes"], N, p=[0.7, 0.2, 0.1])
PRICE = RNG.lognormal(5, 1, N).round(2)
SIZE = RNG.normal(size=N).round(3)
CODE = {"no": 12, "perhaps": 7, "yes": 3}


def notes(folder, target: str, **columns) -> tuple[str, ...]:
    return tuple(fresh(write(folder, {"size": SIZE, **columns}), target).notes)


def test_another_name_of_the_target_is_told(tmp_path):
    """Beside it every method has 100 %, and nothing said why."""
    (note,) = notes(tmp_path, "sort", sort=SORT, code=[CODE[each] for each in SORT])
    assert note.startswith("Column 'code' tells the target 'sort' without any other") and "--leave-out code." in note
    ward = [f"{CODE[each]}{'abc'[i % 3]}" for i, each in enumerate(SORT)]  # each of nine wards has patients of one kind
    ward[5] = f"{CODE[SORT[5]]}z"  # there once
    assert "Column 'ward'" in notes(tmp_path, "sort", sort=SORT, ward=ward)[0]
    half = [CODE[each] + 0.5 if i % 7 else "" for i, each in enumerate(SORT)]
    assert not notes(tmp_path, "sort", sort=SORT, half=half)  # where it is missing it does not know


def test_another_unit_of_a_number_is_told(tmp_path):
    other = {"cents": (100 * PRICE).round().astype(int), "log": np.log(PRICE), "owed": (-0.92 * PRICE).round(2)}
    (note,) = notes(tmp_path, "price", price=PRICE, **other)
    assert note.startswith("Columns 'cents', 'log' and 'owed' tell the target") and "--leave-out cents,log,owed" in note
    noisy = (PRICE * RNG.lognormal(0, 0.05, N)).round(2)
    assert not notes(tmp_path, "price", price=PRICE, noisy=noisy)


@pytest.mark.parametrize("name", ["number", "rare", "parted", "copies", "constant"])
def test_what_is_no_answer_is_not_told(name):
    """Values that are there once, rare classes that a column meets by chance, measures, and copies of rows."""
    many = np.arange(N)
    column, goal = {
        "number": (RNG.permutation(N).astype(float), (many % 2)),
        "rare": (many // 2 * 1.0, (many < 4) * 1),
        "parted": (many.round(-1) / 8.0, (many > 95) * 1),
        "copies": (np.array([f"w{i}" for i in RNG.integers(0, 150, N)]), (many % 2)),
        "constant": (np.where(many < 3, "a", "b"), (many == 199) * 1),
    }[name]
    assert not knowing({name: column}, goal, False, "y")


def test_of_copies_one_counts(tmp_path):
    """In rows that are there thrice every column of many values knows the target."""
    data = {"a": RNG.normal(size=60).round(3), "b": RNG.integers(0, 10**6, 60), "y": RNG.choice(["a", "b"], 60)}
    place = write(tmp_path, {name: np.concatenate([each] * 3) for name, each in data.items()})
    assert not any("without any other" in note for note in fresh(place, "y").notes)
