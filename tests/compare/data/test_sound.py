"""What is told of labelled examples: copies in the test, rare classes, one class that is nearly all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.compare import tiny

from steppe.compare.data import sound, tasks
from steppe.compare.data.examples import Source, Split, Task, Texts
from steppe.compare.data.options import DataOptions
from steppe.compare.data.sound import copied, lopsided, noted
from steppe.compare.data.windows import Windows


def images(start: int, many: int, classes: int = 2) -> Split:
    x = torch.arange(start, start + many, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    return Split(x, torch.arange(many) % classes)


def texts(start: int, many: int, length: int) -> Texts:
    """Each text begins with its number; the padding is as long as the longest of the part."""
    ids = torch.zeros(many, length, dtype=torch.long)
    ids[:, 0], ids[:, 1] = torch.arange(start, start + many), 7
    return Texts({"input_ids": ids, "attention_mask": (ids > 0).long()}, torch.arange(many) % 2)


@pytest.mark.parametrize(
    ("pool", "test"),
    [(images(1, 100), images(81, 40)), (texts(1, 100, 9), texts(81, 40, 5))],
    ids=["images", "texts"],
)
def test_copies_in_the_test_are_counted(pool, test):
    (note,) = noted(Source(pool, test, 2)).notes
    assert note.startswith("20 of the 40 test examples (50 %) have inputs")


def test_other_inputs_are_no_copies_whatever_their_labels():
    assert noted(Source(images(1, 100), images(101, 40), 2)).notes == ()
    own = images(81, 40)
    assert noted(Source(images(1, 100), replace(own, y=1 - own.y), 2)).notes


def test_a_handful_among_many_is_not_told():
    pool, test = (Split(torch.arange(*ends)[:, None], torch.arange(*ends) % 2) for ends in ((0, 500), (499, 700)))
    assert noted(Source(pool, test, 1)).notes == ()


def test_rare_classes_are_named():
    pool = Split(torch.arange(9)[:, None], torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3]))
    test = Split(torch.arange(20, 22)[:, None], torch.tensor([0, 1]))
    (note,) = noted(Source(pool, test, 4, names=("ant", "bee", "cat", "dog"))).notes
    assert ": cat (1); " in note


def labelled(metrics: tuple[str, ...] = (), ones: int = 2) -> Task:
    part = Split(torch.zeros(40, 2), torch.tensor([0] * (40 - ones) + [1] * ones))
    return Task("t", part, part, part, 2, metrics=metrics)


def test_accuracy_where_one_class_is_nearly_all():
    (note,) = lopsided(labelled())
    assert note.startswith("95 % of the test examples are of one class") and "--metric balanced_accuracy, f1" in note
    assert lopsided(labelled(("f1",))) == [] == lopsided(labelled(ones=9))
    numbers = Split(torch.zeros(4, 2), torch.zeros(4))
    assert lopsided(Task("t", numbers, numbers, numbers, loss="mse")) == []


def test_copies_in_a_task_of_ones_own_are_told(monkeypatch):
    monkeypatch.setattr(
        tiny, "leaking", lambda seed: replace(tiny.task(seed), test=tiny.split(40, seed)), raising=False
    )
    tasks.load.cache_clear()
    (note,) = tasks.load(DataOptions("tests.compare.tiny:leaking"), 0).notes
    assert note.startswith("40 of the 40 test examples (100 %) have inputs that are among those for training")
    assert tasks.load(DataOptions("tests.compare.tiny:task"), 0).notes == ()
    monkeypatch.setattr(sound, "HUGE", 100)
    assert copied(replace(tiny.task(0), test=tiny.split(40, 0))) == []
    series = Windows(torch.arange(40.0)[:, None], 4, 4, 2)
    assert copied(Task("t", series, series, series, loss="mse")) == []


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.bool])
def test_copies_are_seen_in_inputs_of_any_kind(kind):
    """Of embeddings in bfloat16, or those that require a gradient, the study ended in NumPy's TypeError."""
    x, y = (torch.arange(30) % 20 + 1.0)[:, None] * torch.tensor([1.0, 2.0]), torch.arange(30) % 2
    x = x % 3 > 1 if kind is torch.bool else x.to(kind)
    x = x.conj() if kind.is_complex else x
    x = x.requires_grad_() if kind is torch.bfloat16 else x
    task = Task("t", *(Split(x[part], y[part]) for part in (slice(10), slice(10, 20), slice(20, 30))), classes=2)
    assert len(copied(task)) == 1 and len(set(task.train.keys())) > 1
    assert task.train.keys()[0] == task.train.take(torch.tensor([0])).keys()[0]


def test_a_network_that_nobody_named_is_told(monkeypatch):
    """A task of one's own without a network was given a small convolutional one, and nothing said so."""
    monkeypatch.setattr(tiny, "unnamed", lambda seed: replace(tiny.task(seed), recipe={}), raising=False)
    tasks.load.cache_clear()
    (note,) = tasks.load(DataOptions("tests.compare.tiny:unnamed", model="cnn"), 0).notes
    assert note.startswith("The task names no network, and cnn is trained")
    assert tasks.load(DataOptions("tests.compare.tiny:unnamed", model="mlp"), 0).notes == ()
    assert tasks.load(DataOptions("tests.compare.tiny:task", model="cnn"), 0).notes == ()
