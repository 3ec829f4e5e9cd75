"""The optimizer that was given is stepped, and the real steps are heard beneath it: wrappers of every shape."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests import reference
from tests.situations.standins import (
    STEPS,
    Chained,
    Lookahead,
    Twice,
    backward,
    by_hand,
    cases,
    gap,
    mechanisms,
    recipe,
    torch_base,
)
from tests.trajectory_cases import Case
from torch import nn
from torch.optim import Optimizer

import steppe
from steppe.integrations.closure import SharpOptimizer

po = pytest.importorskip("pytorch_optimizer")

Wrap = Callable[[Optimizer], Optimizer]


def schedule_free(inner: Optimizer) -> Optimizer:
    wrapper = po.ScheduleFreeWrapper(inner)
    wrapper.train()
    return wrapper


WRAPPERS: dict[str, Wrap] = {
    "lookahead": Lookahead,
    "lookahead twice": lambda o: Lookahead(Lookahead(o), k=4),
    "pytorch_optimizer's lookahead": lambda o: po.Lookahead(o, k=3),
    "schedule-free": schedule_free,
    "orthograd": po.OrthoGrad,
    "lookahead of a chain": lambda o: Lookahead(Chained(o)),
}
ALL = cases()


# Methods that reach the step in their own way meet every wrapper; each other way to make a step, the commonest.
HEARD = mechanisms("sam", "look_sam", "wsam", "s2_sam", "msam")
MET = [(case, wrap) for wrap in WRAPPERS for case in HEARD if wrap != "lookahead twice" or case.method == "wsam"]
MET += [(case, "lookahead") for case in mechanisms() if case not in HEARD]


@pytest.mark.parametrize(("case", "wrap"), MET, ids=lambda x: getattr(x, "method", x))
def test_every_method_equals_the_loop_by_hand(case: Case, wrap: str) -> None:
    mine, hand = reference.MLP().module(), reference.MLP().module()
    optimizer = WRAPPERS[wrap](torch_base(case, mine.parameters()))
    sharp = recipe(case, mine, optimizer)
    assert sharp.optimizer is optimizer
    for t in range(STEPS):
        backward(sharp, case, mine, t)
        optimizer.step()
        optimizer.zero_grad()
    inner = torch_base(case, hand.parameters())
    by_hand(case, hand, WRAPPERS[wrap](inner).step, [inner])
    assert sharp.step == STEPS
    assert gap(mine, hand) <= 1e-10


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("case", mechanisms("look_sam", "wsam"), ids=lambda c: c.method)
def test_sharp_optimizer_steps_saves_and_loads_what_was_given(case: Case, wrap: str) -> None:
    def host(model: nn.Module) -> SharpOptimizer:
        return SharpOptimizer(recipe(case, model, WRAPPERS[wrap](torch_base(case, model.parameters()))))

    def go(model: nn.Module, optimizer: SharpOptimizer, steps: Iterator[int] | range) -> None:
        for t in steps:

            def closure(t: int = t) -> torch.Tensor:
                optimizer.zero_grad()
                loss = reference.MLP.torch_loss(model, reference.MLP().torch_batch(t))
                loss.backward()
                return loss

            optimizer.step(closure)

    mine, hand, resumed = (reference.MLP().module() for _ in range(3))
    optimizer = host(mine)
    go(mine, optimizer, range(5))
    resumed.load_state_dict(mine.state_dict())
    later = host(resumed)
    later.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    go(mine, optimizer, range(5, STEPS))
    go(resumed, later, range(5, STEPS))
    inner = torch_base(case, hand.parameters())
    by_hand(case, hand, WRAPPERS[wrap](inner).step, [inner])
    assert gap(mine, hand) <= 1e-10
    assert gap(resumed, mine) == 0 and later.sharp.step == STEPS


def test_a_step_that_calls_its_parents_counts_once() -> None:
    for case in (c for c in ALL if c.method in ("look_sam", "wsam", "s2_sam", "rst")):
        mine, hand = reference.MLP().module(), reference.MLP().module()
        optimizer = Twice(mine.parameters(), lr=0.1, momentum=0.9)
        sharp = recipe(case, mine, optimizer)
        for t in range(STEPS):
            backward(sharp, case, mine, t)
            optimizer.step()
            optimizer.zero_grad()
        plain = torch.optim.SGD(hand.parameters(), lr=0.1, momentum=0.9)
        by_hand(case, hand, plain.step, [plain])
        assert sharp.step == STEPS and gap(mine, hand) <= 1e-10, case.method


def test_a_step_that_raised_does_not_close_the_ears() -> None:
    class Breaks(Twice):
        broken = False

        def step(self, closure: Any = None) -> Any:
            if self.broken:
                raise MemoryError
            return super().step(closure)

    model = reference.MLP().module()
    optimizer = Breaks(model.parameters(), lr=0.1)
    sharp = steppe.SAM(model, optimizer)
    case = next(c for c in ALL if c.method == "sam")
    for t in range(4):
        backward(sharp, case, model, t)
        optimizer.broken = t == 1
        if optimizer.broken:
            with pytest.raises(MemoryError):
                optimizer.step()
        else:
            optimizer.step()
    assert sharp.step == 3


class Silent(Optimizer):
    """Steps by itself, and never called Optimizer.__init__: nobody can hear it."""

    def __init__(self, params: Any) -> None:
        self.param_groups = [{"params": list(params), "lr": 0.1}]
        self.defaults, self.state = {}, {}  # type: ignore[assignment]

    def step(self, closure: Any = None) -> Any:
        raise NotImplementedError


class Half(Silent):
    """Steps one half by itself and holds an optimizer of the other."""

    def __init__(self, params: Any) -> None:
        params = list(params)
        super().__init__(params)
        self.other = torch.optim.SGD(params[:2], lr=0.1)


@pytest.mark.parametrize("kind", [Silent, Half])
def test_an_optimizer_that_cannot_be_heard_is_refused_at_construction(kind: type[Silent]) -> None:
    model = reference.MLP().module()
    for make in (steppe.SAM, steppe.LookSAM, lambda m, o: steppe.BAR(m, o, total_steps=9)):
        with pytest.raises(TypeError, match=rf"{kind.__name__}, .*Optimizer.__init__.*expected") as error:
            make(model, kind(model.parameters()))
        assert "\n" not in str(error.value)


def test_parameters_in_two_optimizers_are_refused() -> None:
    model = reference.MLP().module()
    both = Chained(torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(model.fc1.parameters(), lr=0.1))
    for given in (both, [torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(model.fc1.parameters(), lr=0.1)]):
        with pytest.raises(ValueError, match=r"in two of the optimizers.*expected"):
            steppe.SAM(model, given)


@pytest.mark.parametrize("wrap", ["lookahead", "pytorch_optimizer's lookahead", "schedule-free", "orthograd"])
def test_nothing_of_a_wrapper_steps_saves_or_loads_while_perturbed(wrap: str) -> None:
    model = reference.MLP().module()
    optimizer = WRAPPERS[wrap](torch.optim.SGD(model.parameters(), lr=0.1))
    sharp = steppe.SAM(model, optimizer)
    batch = reference.MLP().torch_batch(0)
    before = [p.detach().clone() for p in model.parameters()]
    state = optimizer.state_dict()
    reference.MLP.torch_loss(model, batch).backward()
    assert sharp.ascend()
    reference.MLP.torch_loss(model, batch).backward()
    for call in (optimizer.step, optimizer.state_dict, lambda: optimizer.load_state_dict(state)):
        with pytest.raises(RuntimeError, match="while the weights are perturbed"):
            call()
    sharp.restore()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_accumulation_of_accelerate_is_honoured_by_the_closure_adapter() -> None:
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, GradientState, PartialState

    def reset() -> None:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()

    reset()
    try:
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        mine, hand = reference.MLP().module(), reference.MLP().module()
        model, prepared = accelerator.prepare(mine, torch.optim.SGD(mine.parameters(), lr=0.1, momentum=0.9))
        optimizer = SharpOptimizer(steppe.SAM(model, prepared, rho=0.1))
        for t in range(8):
            with accelerator.accumulate(model):

                def closure(t: int = t) -> torch.Tensor:
                    optimizer.zero_grad()
                    loss = reference.MLP.torch_loss(model, reference.MLP().torch_batch(t))
                    accelerator.backward(loss)
                    return loss

                optimizer.step(closure)
        assert optimizer.sharp.step == 4
        plain = torch.optim.SGD(hand.parameters(), lr=0.1, momentum=0.9)
        for t in range(8):  # m-sharpness: each micro-batch by itself, half of each added
            problem, names = reference.MLP(), [n for n, _ in hand.named_parameters()]
            w = {n: p.detach().numpy().copy() for n, p in hand.named_parameters()}
            g = problem.grad(w, t)
            eps = reference.perturbations.spherical(w, g, 0.1)
            d = problem.grad({k: w[k] + eps[k] for k in w}, t)
            for n, p in zip(names, hand.parameters(), strict=True):
                add = torch.from_numpy(d[n]) / 2
                p.grad = add if p.grad is None else p.grad + add
            if t % 2:
                plain.step()
                plain.zero_grad()
        assert gap(mine, hand) <= 1e-10
    finally:
        reset()


def test_zero_redundancy_optimizer_alone_in_its_group(tmp_path: Any) -> None:
    """Its groups are copied into those of the optimizer inside at each step: a rate that was changed counts at once."""
    import torch.distributed as dist
    from torch.distributed.optim import ZeroRedundancyOptimizer

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for case in (c for c in ALL if c.method in ("sam", "look_sam", "wsam", "gsam")):
            mine, hand = reference.MLP().module(), reference.MLP().module()
            zero = ZeroRedundancyOptimizer(mine.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
            sharp = recipe(case, mine, zero)
            for t in range(STEPS):
                backward(sharp, case, mine, t)
                zero.param_groups[0]["lr"] = 0.1 / (t + 1)
                zero.step()
                zero.zero_grad()
            plain = torch.optim.SGD(hand.parameters(), lr=0.1, momentum=0.9)
            falls = iter(range(STEPS))

            def step(plain: Optimizer = plain, falls: Iterator[int] = falls) -> None:
                plain.param_groups[0]["lr"] = 0.1 / (next(falls) + 1)
                plain.step()

            by_hand(Case(case.method, case.settings), hand, step, [plain])
            assert sharp.step == STEPS and gap(mine, hand) <= 1e-10, case.method
    finally:
        dist.destroy_process_group()
