"""Batches as data loaders make them: a list of samples is the batch, and what cannot be read in one way is refused."""

from __future__ import annotations

from collections import UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.problems import make
from torch import Tensor, nn

import steppe
from steppe._batch import batch_size, first_samples

DRAW = torch.Generator().manual_seed(0)
Pair = namedtuple("Pair", ["x", "y"])


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=DRAW)


def detection(boxes: list[int], same_size: bool = False) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """What torchvision's detection models take: CHW images and one dict each."""
    images = [rand(3, 8, 8 if same_size else 6 + i) for i in range(len(boxes))]
    return images, [{"boxes": rand(n, 4), "labels": torch.ones(n, dtype=torch.long)} for n in boxes]


@dataclass(frozen=True)
class Sample:
    x: Any
    y: Any


class Graph:
    """As PyTorch Geometric's Data: an object with tensors of several lengths."""

    def __init__(self, nodes: int) -> None:
        self.x, self.edge_index, self.y = rand(nodes, 2), torch.zeros(2, 5, dtype=torch.long), rand(1)


# A list of samples is the batch


def same_objects(few: Any, whole: Any, count: int) -> None:
    assert type(few) is type(whole) and len(few) == count and all(a is b for a, b in zip(few, whole, strict=False))


@pytest.mark.parametrize("boxes", [[2, 5, 1, 4], [3, 3], [3, 3, 3], [4, 4, 4, 4], [1, 1]])
@pytest.mark.parametrize("same_size", [False, True])
@pytest.mark.parametrize("kind", [list, tuple])
def test_detection_batches_keep_whole_images_and_all_boxes(boxes: list[int], same_size: bool, kind: type) -> None:
    images, targets = (kind(part) for part in detection(boxes, same_size))
    few_images, few_targets = first_samples((images, targets), 1)
    same_objects(few_images, images, 1)
    same_objects(few_targets, targets, 1)


LISTS: dict[str, list[Any]] = {
    "pairs": [(rand(10), torch.tensor(i)) for i in range(5)],
    "pairs of the same length": [(rand(10), rand(10)) for _ in range(5)],
    "lists with a number": [[rand(10), i] for i in range(5)],
    "dicts": [{"x": rand(10), "y": i} for i in range(5)],
    "named tuples": [Pair(rand(10), rand(4)) for _ in range(5)],
    "dataclasses": [Sample(rand(3, 6, 6), rand(4)) for _ in range(5)],
    "images of many sizes": [rand(3, 6, 6 + i) for i in range(5)][:2] + [rand(1, 4, 4), rand(3, 4, 4), rand(3, 5, 5)],
    "graphs": [Graph(3 + i) for i in range(5)],
    "words": list("abcde"),
    "tokens": [{"input_ids": [1, 2, 3]} for _ in range(5)],
    "numbers": [torch.tensor(float(i)) for i in range(5)],
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_samples_is_the_batch(name: str) -> None:
    same_objects(first_samples(LISTS[name], 2), LISTS[name], 2)
    assert batch_size(LISTS[name]) == 5 and first_samples(LISTS[name], 9) is LISTS[name]


def test_lists_of_samples_beside_columns() -> None:
    boxes = detection([1, 2, 4, 8])[1]
    batch = {"pixel_values": rand(4, 3, 5, 5), "labels": boxes, "name": list("abcd"), "graphs": [Graph(2)] * 4}
    few = first_samples(batch, 3)
    assert few["pixel_values"].shape[0] == 3 and few["name"] == list("abc") and len(few["graphs"]) == 3
    same_objects(few["labels"], boxes, 3)


# Containers


def test_dataclasses_and_outputs_of_models_are_cut_and_left_alone() -> None:
    batch = Sample(rand(6, 2), {"a": rand(6), "b": None})
    few = first_samples(batch, 2)
    assert isinstance(few, Sample) and few.x.shape == (2, 2) and few.y["a"].shape == (2,) and batch.x.shape == (6, 2)
    outputs = pytest.importorskip("transformers.modeling_outputs")
    made = outputs.SequenceClassifierOutput(logits=rand(6, 2), hidden_states=(rand(6, 3), rand(6, 3)))
    few = first_samples(made, 2)
    assert type(few) is type(made) and few.logits.shape == (2, 2) and few.hidden_states[1].shape == (2, 3)
    assert made.logits.shape == (6, 2)


def test_an_encoding_of_transformers_is_cut() -> None:
    transformers = pytest.importorskip("transformers")
    batch = transformers.BatchEncoding({"input_ids": torch.ones(6, 3), "attention_mask": torch.ones(6, 3)})
    few = first_samples(batch, 2)
    assert isinstance(few, transformers.BatchEncoding) and few.input_ids.shape == few["attention_mask"].shape == (2, 3)


def test_arrays_of_numpy_are_cut() -> None:
    numpy = pytest.importorskip("numpy")
    few = first_samples((rand(6, 2), numpy.arange(6), numpy.float64(3.0)), 2)
    assert few[0].shape == (2, 2) and few[1].tolist() == [0, 1] and few[2] == 3.0


# Refused


def packed() -> Any:
    return nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)])


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "more images than targets": ((detection([1] * 4)[0], detection([2, 5, 9])[1]), ValueError, "disagree .* 4 and 3"),
    "labels of another number": ({"x": rand(8, 2), "y": rand(7)}, ValueError, "disagree .* 8 and 7; expected the same"),
    "time before samples": ((rand(20, 8, 3), rand(8)), ValueError, "disagree .* 20 and 8"),
    "class weights": ((rand(8, 3), rand(8), rand(3)), ValueError, r"class weights, edges\) left out of the batch"),
    "a graph as a dict": (
        {"x": rand(9, 2), "edge_index": torch.zeros(2, 20), "y": rand(3)},
        ValueError,
        "9 and 2 and 3",
    ),
    "more graphs than labels": (([Graph(3)] * 5, rand(4)), ValueError, "disagree .* 5 and 4"),
    "a graph": (Graph(4), TypeError, "holds a Graph, which cannot be cut into samples"),
    "a graph beside labels": ((Graph(4), rand(3)), TypeError, "holds a Graph, .* Look\\(view=...\\)"),
    "packed sequences": ((packed(), rand(2)), TypeError, "holds a PackedSequence"),
    "a sparse tensor": ((rand(4, 4).to_sparse(), rand(4)), TypeError, "holds a sparse_coo tensor"),
    "a nested tensor": ((torch.nested.nested_tensor([rand(2), rand(3)]), rand(2)), TypeError, "holds a nested tensor"),
    "images in a list, alone": ([rand(3, 8, 8) for _ in range(8)], ValueError, "as columns of 3 samples and as a list"),
    "dicts of tensors, alone": ([{"ids": rand(6)} for _ in range(8)], ValueError, "columns of 6 samples and as a list"),
    "as many images as channels": (([rand(3, 8, 8) for _ in range(3)], rand(3)), ValueError, "as columns of 3 samples"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_in_one_way_is_refused_in_one_sentence(name: str) -> None:
    batch, error, words = REFUSED[name]
    with pytest.raises(error, match=words) as caught:
        first_samples(batch, 1)
    assert "\n" not in str(caught.value)


def test_columns_as_torch_collates_them_stay_columns() -> None:
    for size in (1, 2, 8):  # the last batch of an epoch may be as small as there are columns
        for batch in (
            [rand(size, 4), rand(size, 4)],
            [[rand(size, 4), rand(size)], rand(size)],
            [rand(size, 4), rand(size)],
        ):
            few = first_samples(batch, 1)
            flat = [t for part in few for t in (part if isinstance(part, list) else [part])]
            assert len(few) == 2 and all(len(t) == 1 for t in flat)


# Any nesting


def columns(size: int) -> st.SearchStrategy[Any]:
    """Containers of one row for each of ``size`` samples."""
    leaf = st.lists(st.integers(1, 3), max_size=1).map(lambda shape: torch.rand(size, *shape))
    constant = st.sampled_from([None, 3, 0.5, "word", True])
    some = st.one_of(leaf, leaf, constant)

    def more(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        pairs = st.tuples(inner, inner)
        return st.one_of(
            pairs, pairs.map(lambda p: Pair(*p)), pairs.map(lambda p: Sample(*p)),
            st.dictionaries(st.sampled_from("abc"), inner, min_size=1),
            st.dictionaries(st.sampled_from("ab"), inner).map(UserDict),
        )  # fmt: skip

    return st.tuples(leaf, st.recursive(some, more, max_leaves=6))


def leaves(part: Any) -> list[Any]:
    if isinstance(part, Sample):
        return leaves([part.x, part.y])
    if isinstance(part, (dict, UserDict)):
        return leaves(list(part.values()))
    return [leaf for p in part for leaf in leaves(p)] if isinstance(part, (list, tuple)) else [part]


@given(st.data(), st.integers(1, 7), st.integers(1, 9))
def test_columns_in_any_nesting(data: st.DataObject, size: int, count: int) -> None:
    batch = data.draw(columns(size))
    before, few = leaves(batch), first_samples(batch, count)
    assert batch_size(batch) == size
    for old, new in zip(before, leaves(few), strict=True):
        assert torch.equal(new, old[:count]) if isinstance(old, Tensor) else new == old
    assert all(a is b for a, b in zip(before, leaves(batch), strict=True))


@given(st.data(), st.integers(1, 6), st.integers(1, 8))
def test_samples_in_a_list_are_never_cut(data: st.DataObject, size: int, count: int) -> None:
    shapes = st.tuples(st.integers(1, 4), st.integers(1, 4))
    one = shapes.map(lambda s: (torch.rand(*s), torch.rand(s[0])))
    batch: Any = data.draw(st.lists(one, min_size=size, max_size=size))
    same_objects(first_samples(batch, count), batch, min(count, size))


# In a step


def test_a_look_at_two_images_is_sam_on_these_two() -> None:
    """The whole way: an ascent on 2 samples of a detection batch, against two passes by hand."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1).double()
    images, targets = detection([2, 5, 1, 4])
    batch = (images, targets)

    def loss_of(part: Any) -> Tensor:
        return sum(i.double().mean() * model(t["boxes"].double()).square().mean() for i, t in zip(*part, strict=True))

    optimizer, sharp = make(model, ascent=steppe.Ascent(0.1), look=steppe.Look(2))
    sharp.backward(loss_of, batch)
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss_of((images[:2], targets[:2])).backward()
    grads = [p.grad.clone() for p in model.parameters()]
    length = torch.sqrt(sum((g**2).sum() for g in grads))
    model.zero_grad()
    with torch.no_grad():
        for p, g in zip(model.parameters(), grads, strict=True):
            p += 0.1 * g / length
    loss_of(batch).backward()
    for p, g in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=0, atol=1e-10)
