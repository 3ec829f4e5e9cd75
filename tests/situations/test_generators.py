"""Whatever a closure draws from, both passes draw the same, and the loop goes on after the first."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

import steppe
from steppe._randomness import _python_words
from steppe.methods import METHODS

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Mixing(nn.Module):
    """A loss that is drawn anew at each call: mixup's share."""

    def __init__(self, draw):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, 4, dtype=torch.float64))
        self.draw, self.drawn = draw, []

    def forward(self, x, seen):
        share = self.draw()
        seen.append(share)
        return (x @ self.w - share).square().mean()


def kinds():
    """Name -> (the draw, what is to be named)."""
    own = torch.Generator().manual_seed(5)
    new, old, python = np.random.default_rng(5), np.random.RandomState(5), random.Random(5)
    return {
        "numpy": (lambda: float(np.random.beta(0.4, 0.4)), []),
        "numpy, normal": (lambda: float(np.random.normal()), []),
        "torch": (lambda: float(torch.rand(())), []),
        "python": (random.random, []),
        "python, a whole block": (lambda: sum(random.getrandbits(32) for _ in range(624)) / 2**42, []),
        "python, seeded anew": (reseeded, []),
        "numpy, a whole block": (lambda: sum(np.random.bytes(4 * 624)) / 2**19, []),
        "own torch": (lambda: float(torch.rand((), generator=own)), [own]),
        "own numpy": (lambda: float(new.beta(0.4, 0.4)), [new]),
        "own old numpy": (lambda: float(old.normal()), [old]),
        "own python": (lambda: python.gauss(0, 1), [python]),
        "several": (lambda: python.random() + float(new.random()) + float(np.random.random()), [python, new]),
    }


def reseeded():
    """A draw that ends where every seeded generator begins: at the same place of another block."""
    drawn = random.random()
    random.seed(drawn)
    return drawn


class Held:
    """Of one's own class."""

    def __init__(self, generator):
        self.generator = generator


class Drawing(nn.Module):
    """A layer that draws from a generator of its own."""

    def __init__(self, generator, deep):
        super().__init__()
        self.w, self.seen = nn.Parameter(torch.ones(4, dtype=torch.float64)), []
        self.source = [Held(generator)] if deep else generator

    def forward(self, x):
        generator = self.source[0].generator if isinstance(self.source, list) else self.source
        drawn = (
            torch.rand((), generator=generator).item() if isinstance(generator, torch.Generator) else generator.random()
        )
        DRAWN.append(drawn)
        return (x @ self.w * drawn - 1).square().mean()


DRAWN = []
OWN = [torch.Generator, np.random.default_rng, np.random.RandomState, random.Random]


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("make", OWN)
def test_generators_that_modules_have_need_no_naming(make, deep):
    model = Drawing(make(), deep)
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    DRAWN.clear()
    for _ in range(3):
        sharp.backward(lambda: model(X))
    assert DRAWN[::2] == DRAWN[1::2] and len(set(DRAWN)) == 3


class Masked(nn.Module):
    """A loss that draws from a generator of its own."""

    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def forward(self, out):
        DRAWN.append(self.generator.random())
        return (out * DRAWN[-1] - 1).square().mean()


@pytest.mark.parametrize("same", [False, True])
def test_nor_need_those_of_a_loss_beside_the_model(same):
    model, criterion = nn.Linear(4, 2).double(), Masked(random.Random(1))
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), same_dropout=same)
    DRAWN.clear()
    for _ in range(5):
        sharp.backward(lambda: criterion(model(X)))
    assert (DRAWN[::2] == DRAWN[1::2]) == same and len(set(DRAWN)) == (5 if same else 10)
    untouched = random.Random(1)
    assert not same or DRAWN[::2] == [untouched.random() for _ in range(5)]


def test_they_are_left_alone_where_passes_draw_apart():
    model = Drawing(random.Random(1), False)
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), same_dropout=False)
    DRAWN.clear()
    sharp.backward(lambda: model(X))
    assert len(set(DRAWN)) == 2


def test_one_without_a_state_is_no_error():
    model = Drawing(random.SystemRandom(), False)
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    sharp.backward(lambda: model(X))


def test_draws_of_the_second_pass_alone_are_taken_back():
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    model = nn.Linear(4, 1).double()
    sharp, calls = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1)), []

    def loss():
        calls.append(0)
        if len(calls) == 2:
            torch.rand(3), random.random(), np.random.normal()
        return model(X).square().mean()

    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    sharp.backward(loss)
    drawn = float(torch.rand(())), random.random(), float(np.random.normal())
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    assert len(calls) == 2 and drawn == (float(torch.rand(())), random.random(), float(np.random.normal()))


def plain(name, count):
    """What a loop of one pass a step draws."""
    np.random.seed(1), random.seed(1), torch.manual_seed(1)
    draw, _ = kinds()[name]
    return [draw() for _ in range(count)]


@pytest.mark.parametrize("name", kinds())
@pytest.mark.parametrize("way", ["backward", "phases", "look", "micro_batches"])
def test_both_passes_draw_alike_and_the_loop_goes_on(name, way):
    wanted = plain(name, 6)
    np.random.seed(1), random.seed(1), torch.manual_seed(1)
    draw, named = kinds()[name]
    model, seen = Mixing(draw), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    more = {"samples": 2} if way == "look" else {}
    sharp = steppe.SAM(model, optimizer, rho=0.3, generators=named, **more)
    for step in range(6 if way != "micro_batches" else 3):
        del seen[:]
        if way == "backward":
            sharp.backward(lambda: model(X, seen))
        elif way == "look":
            sharp.backward(lambda x: model(x, seen), X)
        elif way == "micro_batches":
            sharp.backward(lambda x: model(x, seen), micro_batches=X.split(3))
        else:
            sharp.mark()
            model(X, seen).backward()
            assert sharp.ascend()
            model(X, seen).backward()
            sharp.restore()
        one = wanted[2 * step : 2 * step + 2] if way == "micro_batches" else [wanted[step]]
        assert seen == [*one, *one]
        optimizer.step()
        optimizer.zero_grad()


def test_the_gradient_is_that_of_one_share():
    """g~ by hand with the share that the first pass drew."""
    share = plain("own numpy", 1)[0]
    draw, named = kinds()["own numpy"]
    model = Mixing(draw)
    w = model.w.detach().clone()
    steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.3, generators=named).backward(
        lambda: model(X, [])
    )
    g = 2 * X.t() @ (X @ w - share) / 6
    there = 2 * X.t() @ (X @ (w + 0.3 * g / g.norm()) - share) / 6
    assert float((model.w.grad - there).abs().max()) <= 1e-10


def test_generators_that_are_exchanged_are_found() -> None:
    """Which ones there are is kept from step to step: by what they are, not by the list that holds them."""
    first, second, held = random.Random(1), random.Random(2), [random.Random(3)]
    model = Mixing(lambda: sum(g.random() for g in (first, second, *held)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = steppe.SAM(model, optimizer, generators=[first, second, *held])

    def drawn() -> list[float]:
        seen: list[float] = []
        sharp.backward(lambda: model(X, seen))
        optimizer.step()
        return seen

    def alike(seen: list[float]) -> bool:
        return len(seen) == 2 and seen[0] == seen[1]

    assert alike(drawn()) and alike(drawn())
    second = random.Random(4)
    assert not alike(drawn())  # it is not named
    sharp.generators = (first, second, *held)
    assert alike(drawn())
    sharp.generators = named = [first, second, *held]
    assert alike(drawn())
    held[0] = named[2] = random.Random(5)
    assert alike(drawn())


def test_fresh_masks_on_request_leave_named_generators_alike():
    np.random.seed(1), random.seed(1), torch.manual_seed(1)
    own = random.Random(5)
    seen = []
    model = Mixing(lambda: (own.random(), float(np.random.random()))[0])
    model.draw = lambda: seen.append(pair := (own.random(), float(np.random.random()))) or pair[0]
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), generators=[own], same_dropout=False)
    sharp.backward(lambda: model(X, []))
    (mine, shared), (mine_again, shared_again) = seen
    assert mine == mine_again and shared != shared_again


@pytest.mark.parametrize("wrong", [[random.SystemRandom()], ["cpu"], [None], [torch.Generator], 7, torch.Generator()])
def test_what_cannot_be_put_back_is_refused(wrong):
    model = nn.Linear(2, 1)
    with pytest.raises(TypeError, match="expected .*torch.Generator, numpy.random.Generator"):
        steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), generators=wrong)


@pytest.mark.parametrize("name", [n for n in METHODS if not METHODS[n].lora])
def test_every_recipe_takes_them_and_no_state_holds_them(name):
    row, model, own = METHODS[name], nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 1)), random.Random(5)
    make = row.optimizer or (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    sharp = row.recipe(model, make(model.parameters()), **row.good[0], generators=[own])
    assert sharp.generators == (own,)
    assert "generators" not in sharp.state_dict()


def test_what_lies_in_a_twisters_memory_is_its_state_or_is_not_read() -> None:
    known = random.Random(7)
    words = _python_words(known)
    before = words()
    assert before and before == words()
    known.random()
    assert words() != before

    class Other(random.Random):
        def getstate(self):
            return (3, (0,) * 625, None)

    assert _python_words(Other())() == b""


@pytest.mark.parametrize(
    ("seed", "get", "put", "normal"),
    [
        (random.seed, random.getstate, random.setstate, lambda: random.gauss(0.0, 1.0)),
        (np.random.seed, np.random.get_state, np.random.set_state, np.random.standard_normal),
    ],
    ids=["python", "numpy"],
)
def test_a_kept_normal_number_that_the_loop_puts_back_is_seen(seed, get, put, normal):
    """The same words as before, but a number beside them: both passes draw that one."""
    model, seen = nn.Linear(2, 1), []
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    seed(3)
    normal()
    kept = get()
    for _ in range(2):
        put(kept)
        sharp.backward(lambda: model(torch.ones(3, 2)).sum() + (seen.append(float(normal())) or 0.0))
    assert len(set(seen)) == 1 and len(seen) == 4
