"""After a stretch of trying out nothing is changed, whatever was done in it."""

import random
from itertools import islice

import pytest
import torch
from tests import problems
from torch import nn

import steppe
from steppe.diagnostics._untouched import around, same_order, twin, untouched


def prepared(base: str = "sgd") -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model with momentum, statistics and gradients from a few steps."""
    model = problems.net()
    optimizer = problems.BASES[base](model)
    problems.train(model, optimizer, None, steps=3)
    problems.loss_of(model)(problems.BATCH).backward()
    return model, optimizer


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Weights, buffers, gradients, optimizer state and generators, as tensors by name."""
    found = problems.everything(model)
    found |= {f"grad {k}": g for k, g in problems.grads(model).items() if g is not None}
    for number, kept in enumerate(optimizer.state.values()):
        found |= {f"state {number} {k}": v.clone() for k, v in kept.items() if isinstance(v, torch.Tensor)}
    python = torch.tensor(random.getstate()[1], dtype=torch.float64)
    return found | {"torch generator": torch.get_rng_state(), "python generator": python}


def rummage(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for batch in problems.batches(3, seed=5):
        problems.loss_of(model)(batch).backward()
        optimizer.step()
    torch.randn(3), random.random()


@pytest.mark.parametrize("base", problems.BASES)
def test_everything_is_as_before(base):
    model, optimizer = prepared(base)
    before, gradients = state(model, optimizer), [p.grad for p in model.parameters()]
    with untouched(model, optimizer) as copy:
        assert all(p.grad is None for p in model.parameters())
        rummage(model, copy)
        assert not problems.same(before, state(model, optimizer)), "nothing was tried"
    assert problems.same(before, state(model, optimizer))
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))


def test_everything_is_as_before_after_an_error():
    model, optimizer = prepared()
    before = state(model, optimizer)
    with pytest.raises(KeyError, match="enough"), untouched(model, optimizer) as copy:
        rummage(model, copy)
        raise KeyError("enough")
    assert problems.same(before, state(model, optimizer))


def test_an_inner_stretch_returns_to_where_the_outer_stands():
    model, optimizer = prepared()
    before = state(model, optimizer)
    with untouched(model, optimizer) as outer:
        rummage(model, outer)
        outer.zero_grad()
        here = state(model, outer)
        with untouched(model, outer) as inner:
            rummage(model, inner)
        assert problems.same(here, state(model, outer))
    assert problems.same(before, state(model, optimizer))


def test_no_hook_of_a_method_stays_behind():
    model, optimizer = prepared()
    mine = model.register_forward_hook(lambda *_: None)
    hung = [len(m._state_dict_pre_hooks) for m in model.modules()]
    with untouched(model, optimizer) as copy:
        sharp = steppe.SAM(model, copy)
        sharp.backward(problems.loss_of(model), problems.BATCH)
        assert [len(m._state_dict_pre_hooks) for m in model.modules()] != hung, "a method hangs none any more"
    assert [len(m._state_dict_pre_hooks) for m in model.modules()] == hung
    assert list(model._forward_hooks) == [mine.id]


def test_gradients_written_in_place_come_back():
    model, optimizer = prepared()
    before = problems.grads(model)
    held = next(p.grad for p in model.parameters() if p.grad is not None)
    with untouched(model, optimizer):
        held.fill_(7.0)
    problems.close(before, problems.grads(model), rtol=0, atol=0)


def test_statistics_of_a_model_in_evaluation_come_back():
    model, optimizer = prepared()
    model.eval()
    before = problems.everything(model)
    with untouched(model, optimizer):
        model.norm.running_mean.fill_(9.0)
    assert problems.same(before, problems.everything(model))


def test_weights_that_the_optimizer_does_not_hold_come_back():
    model, _ = prepared()
    optimizer = torch.optim.SGD([model.last.weight], lr=0.1)
    before = problems.everything(model)
    with untouched(model, optimizer), torch.no_grad():
        model.first.weight.zero_()
    assert problems.same(before, problems.everything(model))


def test_the_copy_steps_as_the_original_would():
    model, optimizer = prepared("adamw")
    with untouched(model, optimizer) as copy:
        rummage(model, copy)
        tried = problems.everything(model)
    optimizer.zero_grad()
    rummage(model, optimizer)
    assert problems.same(tried, problems.everything(model))


def test_nobody_hears_of_the_copy():
    model, optimizer = prepared()
    sharp = steppe.SAM(model, optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    hooks = len(optimizer._optimizer_step_post_hooks)
    with untouched(model, optimizer) as copy:
        rummage(model, copy)
    assert sharp.step == 0 and not calls
    assert not getattr(optimizer, "_opt_called", False), "what the scheduler is told by a step"
    assert scheduler.get_last_lr() == [0.05]
    assert len(optimizer._optimizer_step_post_hooks) == hooks


def test_what_an_optimizer_holds_beside_its_state_is_copied():
    class Counting(torch.optim.SGD):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.seen = [0]

        def step(self, closure=None):
            self.seen[0] += 1
            return super().step(closure)

    model = problems.net()
    optimizer = Counting(model.parameters(), lr=0.1)
    copy = twin(optimizer)
    copy.step()
    assert (copy.seen, optimizer.seen) == ([1], [0])
    assert all(a is b for a, b in zip(copy.param_groups[0]["params"], model.parameters(), strict=False))


def test_a_loader_with_a_generator_of_its_own_goes_on_in_the_same_order():
    generator = torch.Generator().manual_seed(3)
    loader = torch.utils.data.DataLoader(list(range(20)), batch_size=4, shuffle=True, generator=generator)
    before = generator.get_state()
    with pytest.raises(KeyError), same_order(loader):
        list(loader)
        assert not torch.equal(before, generator.get_state())
        raise KeyError  # also then
    assert torch.equal(before, generator.get_state())


def test_batches_come_around():
    assert list(islice(around([1, 2, 3]), 7)) == [1, 2, 3, 1, 2, 3, 1]


@pytest.mark.parametrize("batches", [[], iter(()), iter([1, 2])])
def test_batches_that_end_are_refused(batches):
    with pytest.raises(ValueError, match="expected a list of batches or a loader that can start again"):
        list(islice(around(batches), 5))
