"""What one backward runs, and the first samples of batches of every make."""

import collections
import functools
import re
from collections.abc import MutableMapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steppe._batch import NOTHING, Work, batch_size, first_samples
from steppe._hardest import PerSample


class Pair(NamedTuple):
    x: Any
    y: Any


class Encoding(collections.UserDict):
    """As Hugging Face's BatchEncoding: attributes and methods beside the items."""

    def __init__(self, data=None, encodings="kept"):
        super().__init__(data)
        self.encodings = encodings

    def __getattr__(self, name):
        if name == "data":
            raise AttributeError(name)
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device):
        self.data = {k: v.to(device) for k, v in self.data.items()}
        return self


class Store(MutableMapping):
    """A mapping that keeps its items in an attribute of its own."""

    def __init__(self, items):
        self.items_ = dict(items)

    def __getitem__(self, key):
        return self.items_[key]

    def __setitem__(self, key, value):
        self.items_[key] = value

    def __delitem__(self, key):
        del self.items_[key]

    def __iter__(self):
        return iter(self.items_)

    def __len__(self):
        return len(self.items_)


X, Y = torch.arange(24.0).reshape(8, 3), torch.arange(8)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


WORDS = list("abcdefgh")
BATCHES = {
    "tensor": (X, X[:2]),
    "tuple": ((X, Y), (X[:2], Y[:2])),
    "list": ([X, Y], [X[:2], Y[:2]]),
    "dict": ({"x": X, "y": Y}, {"x": X[:2], "y": Y[:2]}),
    "named tuple": (Pair(X, Y), Pair(X[:2], Y[:2])),
    "nested": (
        {"in": (X, [Y, {"deep": Y}]), "out": Pair(Y, None)},
        {"in": (X[:2], [Y[:2], {"deep": Y[:2]}]), "out": Pair(Y[:2], None)},
    ),
    "0-dim tensor stays": ((torch.tensor(3.0), X), (torch.tensor(3.0), X[:2])),
    "list of strings": ((X, WORDS), (X[:2], ["a", "b"])),
    "tuple of strings": ((X, tuple(WORDS)), (X[:2], ("a", "b"))),
    "list of numbers": ((X, [1, 2, 3, 4, 5, 6, 7, 8]), (X[:2], [1, 2])),
    "list of lists": ((X, [[1], [2, 3], [], [4], [5], [6], [7], [8]]), (X[:2], [[1], [2, 3]])),
    "list of another length": ((X, ["u", "v"]), (X[:2], ["u", "v"])),
    "a word of eight letters": ((X, "abcdefgh", b"abcdefgh"), (X[:2], "abcdefgh", b"abcdefgh")),
    "other things": ((X, 3, None, 0.5, True), (X[:2], 3, None, 0.5, True)),
    "a range": ((X, range(3)), (X[:2], range(3))),
    "empty list": ((X, []), (X[:2], [])),
    "ordered": (collections.OrderedDict(b=X, a=Y), collections.OrderedDict(b=X[:2], a=Y[:2])),
}


@pytest.mark.parametrize("name", BATCHES)
def test_the_first_two_of_eight(name):
    batch, expected = BATCHES[name]
    assert same(first_samples(batch, 2), expected)


@pytest.mark.parametrize("name", BATCHES)
def test_more_than_there_are_is_all(name):
    batch, _ = BATCHES[name]
    assert same(first_samples(batch, 8), batch) and same(first_samples(batch, 100), batch)


@pytest.mark.parametrize("name", BATCHES)
def test_the_batch_itself_is_left_alone(name):
    batch, expected = BATCHES[name]
    first_samples(batch, 2)
    assert same(first_samples(batch, 2), expected)


def test_a_slice_is_a_view_without_a_copy():
    assert first_samples((X, Y), 2)[0].data_ptr() == X.data_ptr()


def test_a_batch_of_hugging_face_keeps_its_methods():
    batch = Encoding({"input_ids": X, "labels": Y})
    few = first_samples(batch, 2)
    assert torch.equal(few["labels"], Y[:2]) and torch.equal(few.input_ids, X[:2])
    assert torch.equal(few.to("cpu").input_ids, X[:2]) and few.encodings == "kept"
    assert torch.equal(batch.input_ids, X) and torch.equal(batch["labels"], Y)


def test_a_defaultdict_keeps_its_factory():
    few = first_samples(collections.defaultdict(list, x=X), 2)
    assert torch.equal(few["x"], X[:2]) and few["nothing"] == []


def test_a_mapping_of_ones_own_is_not_written_on():
    """The second pass must see the whole batch."""
    batch = Store({"x": X, "y": Y})
    few = first_samples(batch, 2)
    assert torch.equal(few["x"], X[:2]) and torch.equal(few["y"], Y[:2])
    assert torch.equal(batch["x"], X) and torch.equal(batch["y"], Y)


@given(st.integers(1, 300), st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_a_fraction_is_rounded_and_at_least_one(size, fraction):
    count = len(first_samples(torch.zeros(size), fraction))
    assert 1 <= count <= size
    assert count == 1 or abs(count - fraction * size) <= 0.5


def test_a_fraction_rounds_halves_up():
    assert [len(first_samples(torch.zeros(n), 0.5)) for n in (1, 2, 3, 4, 5, 7)] == [1, 1, 2, 2, 3, 4]
    assert len(first_samples(torch.zeros(100), 0.001)) == 1


def test_the_size_is_that_of_all_tensors_with_a_length():
    assert batch_size((3, torch.tensor(1.0), {"a": [X]}, torch.zeros(8))) == 8


@pytest.mark.parametrize("batch", [None, 3, "words", [], (), {}, torch.tensor(1.0), (torch.tensor(1.0),)])
def test_nothing_to_slice_is_said(batch):
    with pytest.raises(TypeError, match="holds no tensor with a first dimension; expected"):
        first_samples(batch, 2)


# --- work ---------------------------------------------------------------------------------------------------

W = torch.nn.Parameter(torch.tensor([2.0]))


@pytest.fixture(autouse=True)
def no_gradient():
    W.grad = None


def loss_of(batch):
    return (W * batch).sum()


def test_a_closure_is_called_without_arguments():
    work = Work.of(lambda *arguments: (W * len(arguments)).sum() + W.sum(), NOTHING, None, None)
    assert float(work.run()) == 2.0 and W.grad.tolist() == [1.0]


@pytest.mark.parametrize("batch", [torch.ones(3), torch.zeros(1)])
def test_a_batch_is_handed_on_as_it_is(batch):
    seen = []
    Work.of(lambda b: seen.append(b) or loss_of(b), batch, None, None).run()
    assert seen[0] is batch


def test_none_is_a_batch():
    assert float(Work.of(lambda b: W.sum() if b is None else 1 / 0, None, None, None).run()) == 2.0


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_micro_batches_are_summed_and_can_be_run_twice(kind):
    work = Work.of(loss_of, NOTHING, kind([torch.ones(3), torch.ones(4)]), None)
    assert float(work.run()) == 14.0 and W.grad.tolist() == [7.0]
    assert float(work.run()) == 14.0 and W.grad.tolist() == [14.0]


def test_few_samples_of_each_micro_batch():
    work = Work.of(loss_of, NOTHING, [torch.ones(4), torch.ones(6)], None).first(0.5)
    assert float(work.run()) == 10.0


def test_the_hosts_backward_takes_the_place_of_the_ordinary_one():
    seen = []
    work = Work.of(loss_of, torch.ones(3), None, lambda loss: (seen.append(loss.item()), (loss * 8).backward()))
    assert float(work.run()) == 6.0 and seen == [6.0] and W.grad.tolist() == [24.0]
    work.first(1).run()
    assert seen == [6.0, 2.0]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("pieces", [1, 2])
def test_the_loss_is_detached_and_0_dim(shape, pieces):
    loss = Work.of(lambda b: W.sum().reshape(shape), NOTHING, [1] * pieces, None).run()
    assert loss.shape == () and not loss.requires_grad and float(loss) == 2.0 * pieces


def one(taken: str) -> str:
    return re.escape(f"takes {taken}, and is called with the batch as ONE argument; expected a")


REFUSED = {
    "a loss in place of a function": (lambda: Work.of(W.sum(), NOTHING, None, None), TypeError, "expected a function"),
    "both": (lambda: Work.of(loss_of, X, [X], None), TypeError, "both batch and micro_batches were given"),
    "no micro-batch": (lambda: Work.of(loss_of, NOTHING, [], None), ValueError, "micro_batches is empty"),
    "no loss": (lambda: Work.of(lambda: None, NOTHING, None, None).run(), TypeError, "returned NoneType"),
    "a number": (lambda: Work.of(lambda: 1.0, NOTHING, None, None).run(), TypeError, "returned float"),
    "many losses": (lambda: Work.of(lambda: W * X[:, 0], NOTHING, None, None).run(), ValueError, r"shape \(8,\)"),
    "no graph": (lambda: Work.of(lambda: X.sum(), NOTHING, None, None).run(), ValueError, "no graph"),
    "two arguments": (lambda: Work.of(lambda x, y, w=W: w, (X, X), None, None).run(), TypeError, one("(x, y, w)")),
    "two of micro-batches": (lambda: Work.of(lambda x, y: W, NOTHING, [(X, X)], None).run(), TypeError, one("(x, y)")),
    "a closure and a batch": (lambda: Work.of(lambda: W, X, None, None).run(), TypeError, one("()")),
    "two under autocast": (
        lambda: Work.of(lambda x, y: W, X, None, None).under(nullcontext).run(),
        TypeError,
        one("(x, y)"),
    ),
    "the hardest of two": (lambda: PerSample.of(lambda x, y: W, (X, X), None, None).seen(), TypeError, one("(x, y)")),
    "no batch": (
        lambda: Work.of(lambda b: W, NOTHING, None, None).run(),
        TypeError,
        r"takes \(b\), and is called with no",
    ),
    "a slice of a closure": (lambda: Work.of(lambda: 1, NOTHING, None, None).first(2), TypeError, r"loss_of, batch"),
}


def inner(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return W.sum()


@functools.wraps(inner)
def unpacking(batch: Any) -> torch.Tensor:
    """Its signature says (x, y), as that of a decorated function does."""
    return inner(*batch)


def test_an_error_that_arises_in_the_function_stays_as_it_is():
    assert float(Work.of(unpacking, (X, X), None, None).run()) == 2.0
    for function in (unpacking, lambda b: inner(b), functools.partial(inner, X, z=1)):
        with pytest.raises(TypeError, match=r"inner\(\) (missing|got)"):
            Work.of(function, (X,), None, None).run()


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name):
    action, error, words = REFUSED[name]
    with pytest.raises(error, match=words) as caught:
        action()
    assert "\n" not in str(caught.value)
    assert W.grad is None
