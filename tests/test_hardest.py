"""The second pass on the samples whose loss rose most: which they are, what it costs, and what must not move."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from tests.problems import (
    BASES,
    BATCH,
    batches,
    close,
    everything,
    grads,
    losses_of,
    make,
    net,
    same,
    weights,
)
from torch import Tensor, nn

import steppe
from steppe._hardest import PerSample

RHO = 0.5


def hard(share: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"ascent": steppe.Ascent(RHO, **more), "hardest": share}


def slowly(model: nn.Module, parts: list[Any], share: float) -> tuple[dict[str, Tensor | None], list[list[int]], float]:
    """The gradient on a copy, one step after the other; the samples taken of each part; the loss at w + eps."""
    twin = copy.deepcopy(model)
    f = losses_of(twin)
    first = [f(part) for part in parts]
    sum(losses.mean() for losses in first).backward()  # type: ignore[union-attr]
    moved = [p for p in twin.parameters() if p.grad is not None]
    length = torch.sqrt(sum((p.grad**2).sum() for p in moved))  # type: ignore[arg-type, misc]
    with torch.no_grad():
        for p in moved:
            p += RHO * p.grad / length
            p.grad = None
        above = [f(part) for part in parts]
    taken = []
    for part, then, now in zip(parts, first, above, strict=True):
        rise = [(b, i) for i, b in enumerate((now - then.detach()).tolist())]
        rows = sorted(i for _, i in sorted(rise)[-max(1, round(share * len(rise))) :])
        taken.append(rows)
        f((part[0][rows], part[1][rows])).mean().backward()
    return grads(twin), taken, sum(float(losses.mean()) for losses in above)


def watched(model: nn.Module, seen: list[tuple[Any, bool]]) -> Callable[[Any], Tensor]:
    """The loss, noting each call's batch and whether a graph was built."""

    def losses(batch: Any) -> Tensor:
        seen.append((batch, torch.is_grad_enabled()))
        return losses_of(model)(batch)

    return losses


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_it_is_the_gradient_of_the_chosen_samples_at_the_perturbed_weights(share: float) -> None:
    model, seen = net(dropout=0), []
    expected, (rows,), above = slowly(model, [BATCH], share)
    _, sharp = make(model, **hard(share))
    loss = sharp.backward(watched(model, seen), BATCH)
    close(grads(model), expected)
    assert [(len(x), graph) for (x, _), graph in seen] == [(8, True), (8, False), (len(rows), True)]
    assert torch.equal(seen[2][0][0], BATCH[0][rows]) and torch.equal(seen[2][0][1], BATCH[1][rows])
    assert sharp.last.ascended and loss.ndim == 0 and not loss.requires_grad
    assert float(sharp.last.perturbed_loss) == pytest.approx(above, rel=1e-12), "of the whole batch, not of the chosen"


def test_another_choice_would_give_another_gradient() -> None:
    model = net(dropout=0)
    half, few = (slowly(model, [BATCH], share)[0] for share in (0.5, 0.25))
    assert not torch.allclose(half["last.weight"], few["last.weight"], rtol=1e-3)  # type: ignore[arg-type]


def test_each_micro_batch_chooses_its_own() -> None:
    model, seen = net(dropout=0), []
    parts = [(BATCH[0][:5], BATCH[1][:5]), (BATCH[0][5:], BATCH[1][5:])]
    expected, rows, above = slowly(model, parts, 0.6)
    _, sharp = make(model, **hard(0.6))
    loss = sharp.backward(watched(model, seen), micro_batches=parts)
    close(grads(model), expected)
    assert [len(batch[0]) for batch, _ in seen] == [5, 3, 5, 3, 3, 2] and [len(r) for r in rows] == [3, 2]
    assert float(sharp.last.perturbed_loss) == pytest.approx(above, rel=1e-12)
    with torch.no_grad():
        twin = net(dropout=0)
        assert float(loss) == pytest.approx(float(sum(losses_of(twin)(p).mean() for p in parts)), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("base", BASES)
def test_with_everything_chosen_and_moved_it_is_sam_of_the_mean(base: str, dtype: torch.dtype) -> None:
    results = []
    for recipe, reduce in ((lambda m, o: steppe.ESAM(m, o, beta=1, gamma=1), False), (steppe.SAM, True)):
        model = net(dtype)
        optimizer = BASES[base](model)
        sharp = recipe(model, optimizer)
        torch.manual_seed(7)
        for batch in batches(12, dtype):
            sharp.backward(lambda b, m=model, r=reduce: losses_of(m)(b).mean() if r else losses_of(m)(b), batch)
            optimizer.step()
            optimizer.zero_grad()
        results.append(everything(model))
    assert same(*results)


@pytest.mark.parametrize("base", BASES)
def test_without_a_radius_it_is_the_base_of_the_mean(base: str) -> None:
    results = []
    for plain in (True, False):
        model = net()
        optimizer = BASES[base](model)
        sharp = None if plain else steppe.ESAM(model, optimizer, rho=0)
        torch.manual_seed(7)
        for batch in batches(6):
            losses_of(model)(batch).mean().backward() if sharp is None else sharp.backward(losses_of(model), batch)
            optimizer.step()
            optimizer.zero_grad()
        results.append(everything(model))
    assert same(*results)


def test_the_forward_pass_draws_the_first_passes_masks_and_moves_no_statistics() -> None:
    model, drawn = net(dropout=0.5), []
    model.drop.register_forward_hook(lambda module, inputs, out: drawn.append((out != 0)[:, :4].clone()))
    _, sharp = make(model, **hard())
    plain = copy.deepcopy(model)
    torch.manual_seed(3)
    sharp.backward(losses_of(model), BATCH)
    after = torch.get_rng_state()
    assert torch.equal(drawn[0], drawn[1]) and len(drawn[2]) == 4
    torch.manual_seed(3)
    plain(BATCH[0])
    assert torch.equal(after, torch.get_rng_state()), "the generator goes on from the first pass"
    buffers = (dict(m.named_buffers()) for m in (model, plain))
    assert same(*buffers) and model.norm.num_batches_tracked == 1


class Counting(nn.Module):
    """A forward that reads what earlier forwards left: a look that left a trace would change the second pass."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.calls * (x * self.weight).sum(1)


def test_every_pass_reads_the_statistics_that_the_first_one_read() -> None:
    model, seen = Counting(), []
    _, sharp = make(model, **hard())

    def losses(batch: Tensor) -> Tensor:
        out = model(batch).square()
        seen.append(float(model.calls))
        return out

    sharp.backward(losses, BATCH[0])
    assert seen == [1, 1, 1] and float(model.calls) == 1


class Pair(NamedTuple):
    x: Tensor
    names: list[str]


SIX = torch.arange(6.0)
SHAPES: dict[str, tuple[Any, Any]] = {
    "tensor": (SIX, SIX[[1, 4, 5]]),
    "list": ([SIX, SIX.view(6, 1)], [SIX[[1, 4, 5]], SIX.view(6, 1)[[1, 4, 5]]]),
    "nested": ({"a": {"b": (SIX, None)}, "rate": 0.5}, {"a": {"b": (SIX[[1, 4, 5]], None)}, "rate": 0.5}),
    "strings": (Pair(SIX, list("abcdef")), Pair(SIX[[1, 4, 5]], list("bef"))),
    "a number": ((SIX, torch.tensor(2.0)), (SIX[[1, 4, 5]], torch.tensor(2.0))),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_sub_batch_has_the_shape_of_the_batch(shape: str) -> None:
    batch, expected = SHAPES[shape]
    rise = iter((torch.zeros(6), torch.tensor([0.0, 3, 1, -5, 2, 9])))
    work = PerSample.of(lambda b: next(rise).requires_grad_(), batch, None, None)
    work.run()
    losses, whole = work.seen()
    chosen = work.taken(work.rises(losses), 0.5)
    found = chosen.batches[0][0]
    if shape == "strings":
        assert found.names == expected.names
        found, expected = found.x, expected.x
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert type(chosen.batches[0][0]) is type(batch) and float(whole) == pytest.approx(10 / 6)


def test_nobody_waits_for_the_choice() -> None:
    """On the meta device there are no values to read: whatever would wait for the device raises."""
    batch = (torch.ones(8, 3, device="meta"), torch.ones(8, device="meta"))
    work = PerSample.of(lambda b: (b[0].sum(1) * b[1]).requires_grad_(), batch, None, None)
    work.losses = [torch.ones(8, device="meta")]  # type: ignore[attr-defined]
    losses, whole = work.seen()
    chosen = work.taken(work.rises(losses), 0.3)
    assert [t.shape for t in chosen.batches[0][0]] == [(2, 3), (2,)] and whole.device.type == "meta"


@pytest.mark.parametrize("cache", [True, False])
def test_under_an_autocast_around_the_whole_step_every_weight_has_its_gradient(cache: bool) -> None:
    results = []
    for around in (True, False):
        model = net(torch.float32, dropout=0)
        _, sharp = make(model, **hard())
        cast = torch.autocast("cpu", torch.bfloat16, cache_enabled=cache)

        def losses(batch: Any, model: nn.Module = model, own: Any = cast, around: bool = around) -> Tensor:
            if around:
                return losses_of(model)(batch)
            with own:
                return losses_of(model)(batch)

        batch = next(batches(1, torch.float32))
        if around:
            with cast:
                sharp.backward(losses, batch)
        else:
            sharp.backward(losses, batch)
        results.append(grads(model))
    close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_weights_and_masks_are_exact_after_an_error_in_any_pass(at: int) -> None:
    model, calls = net(), 0
    _, sharp = make(model, **hard())
    before = everything(model)

    def losses(batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == at:
            raise RuntimeError("out of memory")
        return losses_of(model)(batch)

    with pytest.raises(RuntimeError, match="out of memory"):
        sharp.backward(losses, BATCH)
    assert same(weights(before), weights(everything(model)))
    assert int(model.norm.num_batches_tracked) == (0 if at == 1 else 1)
    model.zero_grad()
    assert sharp.backward(losses, BATCH).isfinite()


def test_the_hosts_own_backward_sees_scalars() -> None:
    results = []
    for scale in (1.0, 1024.0):
        model, shapes = net(dropout=0), []
        _, sharp = make(model, **hard(beta=0.5))
        host = lambda loss, s=scale, seen=shapes: (seen.append(loss.shape), (loss * s).backward())  # noqa: E731
        sharp.backward(losses_of(model), BATCH, backward=host)
        assert shapes == [(), ()]
        results.append({n: None if g is None else g / scale for n, g in grads(model).items()})
    close(*results, rtol=1e-9)


@pytest.mark.parametrize(
    "parts",
    [
        {"combine": steppe.Mix(0.6)}, {"combine": steppe.Reuse(), "schedule": steppe.Every(2)},
        {"schedule": steppe.AboveNorm(6)}, {"select": steppe.Sparse(0.5)}, {"same_dropout": False},
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_it_composes_with_the_other_parts_and_resumes(parts: dict[str, Any]) -> None:
    def built() -> tuple[nn.Module, Any, Any]:
        model = net()
        return model, *make(model, **hard(beta=0.6), **parts)

    def go_on(model: nn.Module, optimizer: Any, sharp: Any) -> dict[str, Tensor]:
        torch.manual_seed(7)
        for batch in batches(3):
            sharp.backward(losses_of(model), batch)
            optimizer.step()
            optimizer.zero_grad()
        return everything(model)

    model, optimizer, sharp = built()
    start = go_on(model, optimizer, sharp)
    other, again, state = built()
    other.load_state_dict(start)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    state.load_state_dict(sharp.state_dict())
    assert state.hardest == 0.5
    on = go_on(model, optimizer, sharp)
    assert same(on, go_on(other, again, state)) and not same(on, start)
    assert all(v.isfinite().all() for v in on.values())
