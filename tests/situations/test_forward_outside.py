"""What is computed outside of the function does not see w + eps: one sentence, with retain_graph too."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.problems import BATCH, batches, grads, loss_of, losses_of, net
from tests.situations.standins import MECHANISMS
from torch import Tensor, nn

import steppe
from steppe.methods import METHODS

X, Y = BATCH
ce = nn.functional.cross_entropy
SENTENCES = "computed before the function was called|used up before this backward"
Backward = Callable[[Tensor], Any] | None
KEPT: Callable[[Tensor], Any] = lambda loss: loss.backward(retain_graph=True)  # noqa: E731


def built(name: str) -> tuple[nn.Module, Any]:
    row = METHODS[name]
    model = net()
    base = row.optimizer or (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    optimizer = base(model.parameters())
    sharp = row.recipe(model, optimizer, **dict(row.good[0]))
    for batch in batches(3):  # MSAM and S2-SAM know a direction now
        sharp.backward((losses_of if row.per_sample else loss_of)(model), batch)
        optimizer.step()
        optimizer.zero_grad()
    return model, sharp


CALLED = [(name, None) for name in MECHANISMS] + [(name, KEPT) for name in ("sam", "look_sam", "msam")]


@pytest.mark.parametrize(("name", "backward"), CALLED)
def test_logits_from_outside_are_said_before_any_step_goes_wrong(name: str, backward: Backward) -> None:
    model, sharp = built(name)
    reduction = "none" if sharp.needs.per_sample else "mean"
    out = model(X)
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    function = (lambda: ce(out, Y)) if not sharp.needs.per_sample else (lambda batch: ce(out, Y, reduction=reduction))
    given = (BATCH,) if sharp.needs.per_sample else ()
    with pytest.raises(RuntimeError, match="computed before the function was called .*; expected the forward inside"):
        sharp.backward(function, *given, backward=backward)
    assert all(torch.equal(p, before[k]) for k, p in model.named_parameters())
    assert all(g is None for g in grads(model).values())


class Keeper:
    """Keeps its output on itself, where no closure shows it."""

    def __init__(self, model: nn.Module) -> None:
        self.out = model(X)

    def loss(self) -> Tensor:
        return ce(self.out, Y)


def _with_default(given: Tensor) -> Callable[[], Tensor]:
    def loss(out: Tensor = given) -> Tensor:
        return ce(out, Y)

    return loss


HIDDEN: dict[str, Callable[[nn.Module], Callable[[], Tensor]]] = {
    "a method": lambda model: Keeper(model).loss,
    "a partial": lambda model: functools.partial(ce, model(X), Y),
    "a default": lambda model: _with_default(model(X)),
    "a dict": lambda model: (lambda out: lambda: ce(out["logits"], Y))({"logits": model(X)}),
    "features": lambda model: (lambda h: lambda: ce(model.last(h), Y))(torch.tanh(model.norm(model.first(X)))),
    "the loss itself": lambda model: (lambda loss: lambda: loss)(ce(model(X), Y)),
    "a penalty made before": lambda model: (lambda p: lambda: ce(model(X), Y) + p)(model.first.weight.square().sum()),
}


@pytest.mark.parametrize("where", HIDDEN)
def test_wherever_it_lies(where: str) -> None:
    model, sharp = built("sam")
    with pytest.raises(RuntimeError, match="computed before the function was called"):
        sharp.backward(HIDDEN[where](model), backward=KEPT)


def test_as_the_batch() -> None:
    model, sharp = built("sam")
    with pytest.raises(RuntimeError, match="computed before the function was called"):
        sharp.backward(lambda out: ce(out, Y), model(X), backward=KEPT)


def closed_over(model: nn.Module) -> Callable[[], Tensor]:
    out = model(X)
    return lambda: ce(out, Y)


def named_within_a_comprehension(model: nn.Module) -> Callable[[], Tensor]:
    global outside
    outside = model(X)
    return lambda: torch.stack([ce(outside, y) for y in (Y,)]).mean()


outside = torch.zeros(())


@pytest.mark.parametrize("made", [closed_over, named_within_a_comprehension])
def test_it_is_said_at_the_first_step_also_where_that_one_does_not_ascend(made: Any) -> None:
    model = net()
    sharp = steppe.LateSAM(model, torch.optim.SGD(model.parameters(), lr=0.1), start=1000)
    with pytest.raises(RuntimeError, match="computed before the function was called"):
        sharp.backward(made(model))


def test_torchs_own_words_are_translated_later_too() -> None:
    model, sharp = built("sam")
    forward = [lambda: model(X)]
    function = lambda: ce(forward[0](), Y)  # noqa: E731
    sharp.backward(function)
    out = model(X)
    forward[0] = lambda: out  # the same function, and it was in order then
    with pytest.raises(RuntimeError, match="used up before this backward; expected a function that computes"):
        sharp.backward(function)


def test_an_output_for_each_pass_made_before_both() -> None:
    model, sharp = built("sam")
    outputs = iter([model(X), model(X)])
    with pytest.raises(RuntimeError, match="computed before the function was called"):
        sharp.backward(lambda: ce(next(outputs), Y))


def test_what_is_no_fault_passes() -> None:
    """Detached outputs, a frozen teacher, another trained module's output kept by retain_graph."""
    model, sharp = built("sam")
    teacher, other = net(), nn.Linear(5, 5).double()
    soft, shift, old = teacher(X).softmax(1).detach(), other(X), model(X)
    function = lambda: ce(model(shift), soft) + 0 * old.detach().sum()  # noqa: E731
    sharp.backward(function, backward=KEPT)
    sharp.backward(function, backward=KEPT)
    assert sharp.last.ascended


@pytest.mark.parametrize("name", ["sam", "rst", "msam"])
@pytest.mark.parametrize("kept", [False, True])
def test_a_closure_that_calls_backward_is_told_so(name: str, kept: bool) -> None:
    model, sharp = built(name)

    def closure() -> Tensor:
        loss = ce(model(X), Y)
        loss.backward(retain_graph=kept)
        return loss

    with pytest.raises(RuntimeError, match=r"called .backward\(\) by itself; expected one that computes the loss"):
        sharp.backward(closure)


# Graphs of gradients


class AdaHessian(torch.optim.SGD):
    """The name of timm's and pytorch_optimizer's."""


class SecondOrder(torch.optim.SGD):
    is_second_order = True


@pytest.mark.parametrize("kind", [AdaHessian, SecondOrder])
@pytest.mark.parametrize("method", [steppe.SAM, functools.partial(steppe.BAR, schedule="constant")])
def test_a_base_that_takes_a_hessian_is_refused_at_construction(kind: type, method: Any) -> None:
    model = net()
    with pytest.raises(TypeError, match=r"is an? \w+, which wants loss.backward\(create_graph=True\)"):
        method(model, kind(model.parameters(), lr=0.1))


def test_the_one_of_pytorch_optimizer_too() -> None:
    library = pytest.importorskip("pytorch_optimizer")
    model = net()
    for base in (library.AdaHessian, library.SophiaH):
        with pytest.raises(TypeError, match="takes a Hessian of that graph"):
            steppe.SAM(model, base(model.parameters()))


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("name", ["sam", "late_sam", "look_sam"])
def test_a_backward_that_keeps_a_graph_of_the_gradients_is_refused(name: str) -> None:
    model, sharp = built(name)
    with pytest.raises(RuntimeError, match=r"came with a graph \(create_graph=True\), as AdaHessian"):
        sharp.backward(lambda: ce(model(X), Y), backward=lambda loss: loss.backward(create_graph=True))


@pytest.mark.filterwarnings("ignore:Using backward")
def test_ascend_refuses_a_graph_too() -> None:
    model, sharp = built("sam")
    ce(model(X), Y).backward(create_graph=True)
    with pytest.raises(RuntimeError, match="came with a graph"):
        sharp.ascend()


# Nothing to climb along, and too little


@pytest.mark.parametrize("name", ("sam", "look_sam", "gsam", "wsam", "fsam", "aesam"))
def test_ascend_with_nothing_in_grad_says_so(name: str) -> None:
    model, sharp = built(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match=r"ascend\(\) found nothing in .grad .* after loss.backward\(\)"):
            sharp.ascend()
    assert model(X).isfinite().all() and sharp._making.climb.perturbation is None


def test_a_look_at_one_sample_through_a_batch_norm() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = steppe.SAM(model, optimizer, samples=1)
    with pytest.raises(ValueError, match="a look at samples=1 leaves one sample, .* expected two samples or more"):
        sharp.backward(loss_of(model), BATCH)
    steppe.SAM(model, optimizer, samples=2).backward(loss_of(model), BATCH)


def test_the_hardest_one_through_a_batch_norm() -> None:
    model = net()
    sharp = steppe.ESAM(model, torch.optim.SGD(model.parameters(), lr=0.1), gamma=0.01)
    with pytest.raises(ValueError, match="hardest=0.01 leaves one sample"):
        sharp.backward(losses_of(model), BATCH)


# In the user's words


def test_settings_that_nobody_has() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="roh=0.1 was given, which is no setting of this method; did you mean 'rho'?"):
        steppe.SAM(model, optimizer, roh=0.1)
    with pytest.raises(TypeError, match="total_steps=9 was given, .*; other methods have it; expected it left out"):
        steppe.SAM(model, optimizer, total_steps=9)
    with pytest.raises(TypeError, match="adaptive=True was given, .* a method of its own here: steppe.ASAM"):
        steppe.SAM(model, optimizer, adaptive=True)
    with pytest.raises(TypeError, match="lr=0.1 was given, .* it belongs to the optimizer"):
        steppe.LookSAM(model, optimizer, lr=0.1)


@pytest.mark.parametrize("method", [steppe.BAR, METHODS["nbar"].recipe, steppe.FlatLoRA, steppe.BiLoRA])
def test_settings_that_a_method_of_lora_has_not(method: Callable[..., Any]) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="sed=1 was given, which is no setting of this method; did you mean 'seed'?"):
        method(model, optimizer, sed=1)
    with pytest.raises(TypeError, match="samples=4 was given, .* known here are "):
        method(model, optimizer, samples=4)


def test_the_old_libraries_way_to_build() -> None:
    model = net()
    with pytest.raises(TypeError, match="not its parameters.* and an optimizer that is already built"):
        steppe.SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    for maker in (torch.optim.SGD, functools.partial(torch.optim.SGD, lr=0.1)):
        with pytest.raises(TypeError, match="which makes one; expected a torch.optim.Optimizer that is already built"):
            steppe.SAM(model, maker, lr=0.1)
    with pytest.raises(TypeError, match="not its parameters"):
        steppe.recommended(model.parameters(), torch.optim.SGD)
