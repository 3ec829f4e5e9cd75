"""A look whose few samples have no loss (no label, no spread) climbs nowhere: the step is the base's, and not NaN."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.problems import batches, same
from torch import Tensor, nn

import steppe

STEPS, EMPTY, FEW = 5, 3, 2
Loss = Callable[[nn.Module, Any], Tensor]


def masked_mean(model: nn.Module, batch: Any) -> Tensor:
    """0/0 with NaN gradients, where nothing is labelled."""
    x, y, labelled = batch
    losses = nn.functional.cross_entropy(model(x), y, reduction="none")
    return (losses * labelled).sum() / labelled.sum()


def ignored(model: nn.Module, batch: Any) -> Tensor:
    """NaN with gradients of zero, where nothing is labelled."""
    x, y, labelled = batch
    return nn.functional.cross_entropy(model(x), torch.where(labelled > 0, y, -100))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def stream() -> list[Any]:
    """Batches whose first samples are labelled, but in one of them."""
    found = []
    for t, (x, y) in enumerate(batches(STEPS)):
        labelled = torch.ones(len(y), dtype=torch.float64)
        labelled[:FEW] = float(t != EMPTY)
        found.append((x, y, labelled))
    return found


def trained(loss: Loss, make: Callable[[nn.Module, Any], Any]) -> tuple[nn.Module, list[Tensor]]:
    model, losses = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sharp = make(model, optimizer)
    for batch in stream():
        losses.append(sharp.backward(lambda b: loss(model, b), batch))
        optimizer.step()
        optimizer.zero_grad()
    return model, losses


def by_hand(loss: Loss) -> nn.Module:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    params = list(model.parameters())
    for t, batch in enumerate(stream()):
        before = [p.detach().clone() for p in params]
        if t != EMPTY:
            look = torch.autograd.grad(loss(model, tuple(part[:FEW] for part in batch)), params)
            length = torch.sqrt(sum((g**2).sum() for g in look))
            with torch.no_grad():
                for p, g in zip(params, look, strict=True):
                    p += 0.1 * g / length
        found = torch.autograd.grad(loss(model, batch), params)
        with torch.no_grad():
            for p, w, g in zip(params, before, found, strict=True):
                p.copy_(w)
                p.grad = g
        optimizer.step()
    return model


@pytest.mark.parametrize("loss", [masked_mean, ignored])
def test_the_step_is_the_bases_and_the_loss_is_that_of_the_batch(loss: Loss) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a look later on that sees nothing is no fault of the settings
        model, losses = trained(loss, lambda m, o: steppe.SAM(m, o, rho=0.1, samples=FEW))
    for p, q in zip(model.parameters(), by_hand(loss).parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)
    assert all(bool(each.isfinite()) for each in losses)


def test_the_loss_returned_is_that_of_the_whole_batch_at_the_weights() -> None:
    model, batch = network(), stream()[EMPTY]
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), samples=FEW)
    expected = masked_mean(model, batch).detach()
    with pytest.warns(UserWarning, match="the look's gradient is NaN or inf"):
        assert torch.equal(sharp.backward(lambda b: masked_mean(model, b), batch), expected)


def test_a_loss_that_few_samples_never_have_is_told_at_the_first_step() -> None:
    model = network()
    sharp = steppe.recommended(model, torch.optim.SGD(model.parameters(), lr=0.1))
    ((x, _),) = batches(1)
    spread = lambda b: (model(b[0]).std(0) - 1).square().mean()  # noqa: E731
    with pytest.warns(UserWarning, match="give the look more samples"):
        sharp.backward(spread, (x,))
    base = network()
    (base(x).std(0) - 1).square().mean().backward()
    assert same(*({n: p.grad for n, p in m.named_parameters()} for m in (model, base)))


def test_a_gradient_of_all_samples_that_is_no_number_is_still_shown() -> None:
    model = network()
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    sharp.backward(lambda b: masked_mean(model, b), tuple(part[:FEW] for part in stream()[EMPTY]))
    assert bool(model[0].weight.grad.isnan().all())


def test_a_look_at_one_sample_of_a_contrastive_loss_is_told_at_the_first_step() -> None:
    """The softmax over one pair is 1, whatever the weights: a loss of 0 and no direction, on every step."""
    model = network()
    ((x, _),) = batches(1)

    def contrastive(views: Any) -> Tensor:
        one, two = (nn.functional.normalize(model(view)) for view in views)
        return nn.functional.cross_entropy(one @ two.T, torch.arange(len(one)))

    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), samples=1)
    with pytest.warns(UserWarning, match="the look's gradient is zero.*negatives.*give the look more samples"):
        sharp.backward(contrastive, (x, x + 0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sharp.backward(contrastive, (x, x + 0.1))
