"""Which examples a fine-tuning learns from and which it holds out."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.finetune.cases import FEW, flags

from steppe.finetune import data
from steppe.finetune.spec import resolve

LINES = [f"{i % 2} a film number {i} ." for i in range(30)]


def parted(folder: Path, **more: object) -> tuple[list[str], list[str]]:
    """Texts to learn from, and those held out."""
    given = flags(folder)
    Path(given["data"]).write_text("\n".join(LINES))
    found = data.examples(resolve(given | more, FEW))
    return list(found.train.texts), list(found.test.texts)


@pytest.mark.parametrize("more", [{"held_out": 0.3}, {"held_out": 0.3, "examples": 8}, {"per_class": 4}])
def test_the_seed_and_it_alone_decides_which_examples(tmp_path: Path, more: dict[str, object]) -> None:
    first, other, again = (parted(tmp_path, seed=seed, **more) for seed in (0, 1, 0))
    assert first == again
    assert set(first[0]) != set(other[0]) and set(first[1]) != set(other[1])
    for train, test in (first, other):
        assert train and test and not set(train) & set(test)


def test_a_share_of_the_training_examples_follows_the_seed_too(tmp_path: Path) -> None:
    """The test is of its own, so nothing but the cut can tell the seeds apart."""
    (tmp_path / "test.txt").write_text("\n".join(LINES[:6]))
    test = str(tmp_path / "test.txt")
    first, other = (parted(tmp_path, seed=seed, test=test, examples=8) for seed in (0, 1))
    assert len(first[0]) == 8 and set(first[0]) != set(other[0]) and first[1] == other[1]
