"""What steppe cannot hear or does not know is said once, in a sentence, and only where it is so."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests import reference
from torch import Tensor, nn

import steppe


@pytest.fixture(autouse=True)
def _no_other_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def turn(sharp: Any, model: nn.Module, t: int) -> None:
    sharp.backward(lambda b: reference.MLP.torch_loss(model, b), reference.MLP().torch_batch(t))


# An optimizer that is never heard


def test_fifty_gradients_and_no_step_are_one_warning() -> None:
    """As when the weights are moved by hand."""
    model = reference.MLP().module()
    stepped = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = steppe.LookSAM(model, stepped)
    for t in range(49):
        turn(sharp, model, t)
        stepped.zero_grad()
    with pytest.warns(UserWarning, match=r"50 gradients.*no step of the SGD.*expected") as caught:
        turn(sharp, model, 49)
    assert len(caught) == 1
    for t in range(50, 120):
        stepped.zero_grad()
        turn(sharp, model, t)


@pytest.mark.parametrize("phases", [False, True])
@pytest.mark.parametrize("heard", [0, 3])
def test_another_optimizer_that_takes_over_is_named_at_its_second_step(heard: int, phases: bool) -> None:
    """As where a second stage of the training makes an optimizer of its own, and the method is the first one's."""
    model = reference.MLP().module()
    given, other = (torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.AdamW(model.parameters(), lr=0.01))
    sharp = steppe.LookSAM(model, given, k=2)

    def step(t: int, optimizer: torch.optim.Optimizer) -> None:
        if phases:
            reference.MLP.torch_loss(model, reference.MLP().torch_batch(t)).backward()
            if sharp.ascend():
                reference.MLP.torch_loss(model, reference.MLP().torch_batch(t)).backward()
                sharp.restore()
        else:
            turn(sharp, model, t)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for t in range(heard):
        step(t, given)
    step(heard, other)
    with pytest.warns(UserWarning, match=r"AdamW steps 8 parameters.* of the SGD .*stands still; expected") as caught:
        step(heard + 1, other)
    assert len(caught) == 1 and "\n" not in str(caught[0].message) and sharp.step == heard
    for t in range(heard + 2, heard + 5):
        step(t, other)


def test_a_wrapper_around_the_optimizer_that_is_heard_is_no_other() -> None:
    model = reference.MLP().module()
    given = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp, around = steppe.LookSAM(model, given, k=2), Around(given)
    turn(sharp, model, 0)
    given.zero_grad()  # a gradient that is given up
    for t in range(1, 4):
        turn(sharp, model, t)
        around.step()
        given.zero_grad()
    assert sharp.step == 3


class Around(torch.optim.Optimizer):
    """Steps the optimizer that it was made for."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__([p for g in inner.param_groups for p in g["params"]], {})
        self.inner = inner

    def step(self, closure: Any = None) -> None:
        self.inner.step()


def test_accumulation_evaluation_and_a_heard_step_are_no_reason() -> None:
    model = reference.MLP().module()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sharp = steppe.SAM(model, optimizer)
    for t in range(70):  # one accumulated step of 70 micro-batches
        turn(sharp, model, t % 20)
    optimizer.step()
    optimizer.zero_grad()
    for t in range(70):  # gradients that are only looked at, after the optimizer was heard
        turn(sharp, model, t % 20)
        optimizer.zero_grad()


# A second optimizer that steppe does not know


def two(model: nn.Module, make: Callable[..., torch.optim.Optimizer]) -> tuple[Any, Any]:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    return make(matrices, lr=0.02), torch.optim.AdamW([p for p in model.parameters() if p.ndim != 2], lr=0.01)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("known_first", [False, True])
def test_a_second_optimizer_on_the_same_gradients_is_named_once(known_first: bool, clip: bool) -> None:
    model = reference.MLP().module()
    known, unknown = two(model, torch.optim.Muon)
    sharp = steppe.SAM(model, known)

    def step(t: int) -> None:
        turn(sharp, model, t)
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (known, unknown) if known_first else (unknown, known):
            optimizer.step()
        model.zero_grad()

    with pytest.warns(UserWarning, match=r"AdamW steps 4 parameters.*fc1\.bias.*expected.*\[optimizer, ") as caught:
        step(0)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    for t in range(1, 5):
        step(t)


def test_a_head_that_nobody_steps_is_no_reason() -> None:
    model = reference.MLP().module()
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if n.startswith("fc1")], lr=0.1)
    sharp = steppe.SAM(model, optimizer)
    for t in range(5):
        turn(sharp, model, t)
        optimizer.step()
        model.zero_grad()


@pytest.mark.parametrize("to_none", [True, False])
def test_two_networks_in_one_module_that_take_turns_are_no_reason(to_none: bool) -> None:
    """A GAN: the discriminator's optimizer steps gradients of its own, which are not those of the generator's step."""
    model = nn.ModuleDict({"g": nn.Linear(2, 2), "d": nn.Linear(2, 1)})
    opt_g, opt_d = (torch.optim.SGD(model[k].parameters(), lr=0.1) for k in "gd")
    sharp = steppe.SAM(model, opt_g)
    z = torch.ones(3, 2)
    for _ in range(4):
        opt_d.zero_grad(set_to_none=to_none)
        (model["d"](z) - model["d"](model["g"](z).detach())).mean().backward()
        opt_d.step()
        opt_g.zero_grad(set_to_none=to_none)
        sharp.backward(lambda: model["d"](model["g"](z)).mean())
        opt_g.step()


def test_no_hook_stays_where_nothing_can_be_unknown_or_the_object_is_gone() -> None:
    import gc

    from torch.optim.optimizer import _global_optimizer_post_hooks

    gc.collect()
    before = len(_global_optimizer_post_hooks)
    model = reference.MLP().module()
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    turn(sharp, model, 0)
    assert len(_global_optimizer_post_hooks) == before
    sharp = steppe.SAM(model, torch.optim.SGD(model.fc1.parameters(), lr=0.1))
    turn(sharp, model, 0)
    del sharp
    gc.collect()
    assert len(_global_optimizer_post_hooks) == before


# Lightning's manual optimisation with two optimizers


def test_a_gan_in_lightnings_manual_optimisation_equals_the_loop_by_hand() -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    data = torch.randn(6, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    class GAN(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.g = nn.Linear(2, 2, dtype=torch.float64)
            self.d = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
            self.automatic_optimization = False

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            return [torch.optim.SGD(self.g.parameters(), lr=0.1), torch.optim.SGD(self.d.parameters(), lr=0.05)]

        def losses(self, z: Tensor) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
            fake = lambda: self.d(self.g(z))  # noqa: E731
            return (lambda: -fake().mean()), (lambda: (self.d(self.g(z).detach()) - self.d(z)).mean())

        def on_train_start(self) -> None:
            self.sharp = [steppe.SAM(self, o, rho=0.1) for o in self.optimizers()]

        def training_step(self, batch: Tensor, index: int) -> None:
            for optimizer, sharp, loss in zip(self.optimizers(), self.sharp, self.losses(batch), strict=True):
                optimizer.zero_grad()
                sharp.backward(loss, backward=self.manual_backward)
                optimizer.step()

    def fitted() -> GAN:
        module = GAN()
        loader = torch.utils.data.DataLoader(data, batch_size=None)
        trainer = lightning.Trainer(
            max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, accelerator="cpu",
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(module, loader)
        assert [s.step for s in module.sharp] == [6, 6]
        return module

    mine, hand = fitted(), GAN()
    optimizers = hand.configure_optimizers()
    for z in data:
        for net, optimizer, loss in zip((hand.g, hand.d), optimizers, hand.losses(z), strict=True):
            params = list(net.parameters())
            g = torch.autograd.grad(loss(), params)
            length = torch.cat([x.flatten() for x in g]).norm()
            eps = [0.1 * x / length if length > 0 else x * 0 for x in g]
            with torch.no_grad():
                for p, e in zip(params, eps, strict=True):
                    p += e
            for p, d in zip(params, torch.autograd.grad(loss(), params), strict=True):
                p.grad = d
            with torch.no_grad():
                for p, e in zip(params, eps, strict=True):
                    p -= e
            optimizer.step()
    for a, b in zip(mine.parameters(), hand.parameters(), strict=True):
        assert float((a - b).detach().abs().max()) <= 1e-10


def test_two_optimizers_of_lightnings_manual_optimisation_are_one_perturbation() -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    from tests.situations.standins import STEPS, by_hand, cases, gap
    from tests.situations.test_several_optimizers import muon_and_adamw
    from tests.situations.test_several_optimizers import step as step_all

    case = next(c for c in cases() if c.method == "look_sam")

    class Both(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = reference.MLP().module()
            self.automatic_optimization = False

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            return muon_and_adamw(self.net)

        def on_train_start(self) -> None:
            self.sharp = steppe.LookSAM(self.net, self.optimizers(), **case.settings)

        def training_step(self, batch: Any, index: int) -> None:
            self.sharp.backward(lambda b: reference.MLP.torch_loss(self.net, b), batch, backward=self.manual_backward)
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    module, hand = Both(), reference.MLP().module()
    loader = torch.utils.data.DataLoader([reference.MLP().torch_batch(t) for t in range(STEPS)], batch_size=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning.Trainer(
            max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, accelerator="cpu",
        ).fit(module, loader)  # fmt: skip
    theirs = muon_and_adamw(hand)
    by_hand(case, hand, lambda: step_all(theirs), theirs)
    assert module.sharp.step == STEPS and gap(module.net, hand) <= 1e-10
