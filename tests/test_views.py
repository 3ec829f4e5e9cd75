"""Cheaper looks for the ascent: smaller images, shorter sequences, bf16, by themselves and with everything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tests.problems import BATCH, batches, by_hand, close, everything, grads, loss_of, make, net, same
from torch import Tensor, nn

import steppe
from steppe.views import Length, Resolution

IMAGES = torch.arange(2 * 3 * 8 * 6, dtype=torch.float32).reshape(2, 3, 8, 6)


def test_a_smaller_pixel_is_the_mean_of_those_it_stands_for() -> None:
    small, labels = Resolution(0.5)((IMAGES, torch.tensor([0, 1])))
    assert torch.equal(small, nn.functional.avg_pool2d(IMAGES, 2)) and labels.tolist() == [0, 1]
    assert torch.equal(Resolution(1.0)(IMAGES), IMAGES)


@pytest.mark.parametrize(("scale", "shape"), [(0.5, (4, 3)), (0.3, (2, 2)), (0.75, (6, 4)), (0.01, (1, 1))])
def test_sizes_are_rounded_and_at_least_one(scale: float, shape: tuple[int, int]) -> None:
    assert Resolution(scale)(IMAGES).shape == (2, 3, *shape)


def test_only_images_are_made_smaller_and_the_batch_is_left_alone() -> None:
    batch = {"pixel_values": IMAGES.clone(), "mask": torch.ones(2, 1, 8, 6, dtype=torch.bool), "box": torch.ones(2, 4)}
    small = Resolution()(batch)
    assert (
        small["pixel_values"].shape == (2, 3, 4, 3) and small["mask"] is batch["mask"] and small["box"] is batch["box"]
    )
    assert torch.equal(batch["pixel_values"], IMAGES)


def tokens() -> dict[str, Tensor]:
    ids = torch.arange(24).reshape(2, 12)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([1, 0])}


@pytest.mark.parametrize(("share", "length"), [(0.5, 6), (0.25, 3), (0.01, 1), (1.0, 12), (0.3, 4)])
@pytest.mark.parametrize("keep", ["start", "end"])
def test_shorter_sequences(share: float, length: int, keep: str) -> None:
    short, whole = Length(share, keep)(tokens()), tokens()["input_ids"]
    assert torch.equal(short["input_ids"], whole[:, :length] if keep == "start" else whole[:, 12 - length :])
    assert short["attention_mask"].shape == (2, length) and short["labels"].tolist() == [1, 0]


def in_advance(direction: steppe.ascent.Direction, **look: Any) -> Any:
    return make(net(), ascent=steppe.Ascent(direction=direction), look=steppe.Look(**look))


BAD: dict[str, tuple[Any, str]] = {
    "scale 0": (lambda: Resolution(0), "scale=0 was given; expected a number above 0"),
    "scale over 1": (lambda: Resolution(2), "scale=2 was given; expected a number from 0 to 1"),
    "share nan": (lambda: Length(float("nan")), "expected a number from 0 to 1"),
    "nothing that makes it cheaper": (lambda: steppe.Look(), "expected samples, view or autocast"),
    "a word": (lambda: make(net(), look="half"), "look='half' was given; expected a steppe Look part"),
    "keep": (lambda: Length(0.5, "middle"), "expected one of 'start', 'end'"),
    "no images": (lambda: Resolution()((torch.ones(2, 3), torch.ones(2))), "no floating-point tensor of four dim"),
    "no tokens": (lambda: Length()((torch.ones(2, 3), torch.arange(2))), "no integer tensor of two dimensions"),
    "a view by name": (lambda: steppe.Look(view="half"), "expected a function from a batch"),
    "samples 1.0": (lambda: steppe.Look(1.0), "samples=1.0 was given; expected a whole number"),
    "samples true": (lambda: steppe.Look(True), "expected a whole number of samples"),
    "samples nan": (lambda: steppe.Look(float("nan")), "a fraction between 0 and 1"),
    "autocast fp32": (lambda: steppe.Look(autocast=torch.float32), "expected torch.bfloat16, torch.float16 or None"),
    "autocast by name": (lambda: steppe.Look(autocast="bf16"), "expected torch.bfloat16"),
    "a view of nothing": (lambda: in_advance(steppe.Momentum(), view=Length()), "needs no pass to find"),
    "bf16 of nothing": (
        lambda: in_advance(steppe.Previous(), autocast=torch.bfloat16), "needs no pass to find it"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refused_in_one_sentence(case: str) -> None:
    do, message = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message) as error:
        do()
    assert "\n" not in str(error.value)


# In the loop


class Seen:
    """The loss of a small convolutional net, and the shapes and types it saw."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                   nn.Linear(4, 2))  # fmt: skip
        self.inputs: list[tuple[int, ...]] = []
        self.outputs: list[torch.dtype] = []

    def __call__(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        out = self.model(batch[0])
        self.inputs.append(tuple(batch[0].shape))
        self.outputs.append(out.dtype)
        return nn.functional.cross_entropy(out.float(), batch[1])


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, 8, 8, generator=generator), torch.randint(2, (8,), generator=generator)


def expected(seen: Seen, look: tuple[Tensor, Tensor], cast: bool = False, rho: float = 0.3) -> dict[str, Tensor]:
    """SAM's gradient with the direction of a look, written out."""
    twin, batch = Seen(), images()
    twin.model.load_state_dict(seen.model.state_dict())
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        loss = twin(look)
    loss.backward()
    length = torch.sqrt(sum((p.grad**2).sum() for p in twin.model.parameters()))  # type: ignore[arg-type, operator, misc]
    with torch.no_grad():
        for p in twin.model.parameters():
            p += rho * p.grad / length  # type: ignore[operator]
            p.grad = None
    twin(batch).backward()
    return {n: p.grad for n, p in twin.model.named_parameters()}  # type: ignore[misc]


LOOKS: dict[str, tuple[dict[str, Any], Any, list[tuple[int, ...]]]] = {
    "view": ({"view": Resolution(0.5)}, lambda x, y: (Resolution(0.5)(x), y), [(8, 3, 4, 4), (8, 3, 8, 8)]),
    "view of samples": (
        {"view": Resolution(0.5), "samples": 2}, lambda x, y: (Resolution(0.5)(x[:2]), y[:2]),
        [(2, 3, 4, 4), (8, 3, 8, 8)]),
    "a function": ({"view": lambda b: (b[0][4:], b[1][4:])}, lambda x, y: (x[4:], y[4:]), [(4, 3, 8, 8), (8, 3, 8, 8)]),
    "bf16": ({"autocast": torch.bfloat16}, lambda x, y: (x, y), [(8, 3, 8, 8)] * 2),
    "bf16 of samples": ({"autocast": torch.bfloat16, "samples": 0.5}, lambda x, y: (x[:4], y[:4]),
                        [(4, 3, 8, 8), (8, 3, 8, 8)]),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOKS)
def test_the_direction_is_of_the_look_and_the_gradient_of_the_batch(name: str) -> None:
    settings, look, shapes = LOOKS[name]
    seen = Seen()
    _, sharp = make(seen.model, ascent=steppe.Ascent(0.3), look=steppe.Look(**settings))
    before = everything(seen.model)
    loss = sharp.backward(seen, images())
    cast = "autocast" in settings
    wanted = expected(seen, look(*images()), cast)
    close(grads(seen.model), wanted, rtol=1e-5, atol=1e-7)  # type: ignore[arg-type]
    assert seen.inputs == shapes and same(before, everything(seen.model))
    assert seen.outputs == [torch.bfloat16 if cast else torch.float32, torch.float32]
    assert loss == sharp.last.loss != sharp.last.perturbed_loss


@pytest.mark.parametrize("name", LOOKS)
def test_a_combination_that_needs_g_has_its_own_clean_pass(name: str) -> None:
    settings, _, shapes = LOOKS[name]
    seen = Seen()
    _, sharp = make(seen.model, ascent=steppe.Ascent(0.3), look=steppe.Look(**settings), combine=steppe.Mix(0.5))
    loss = sharp.backward(seen, images())
    assert seen.inputs == [shapes[0], (8, 3, 8, 8), (8, 3, 8, 8)] and seen.outputs[1:] == [torch.float32] * 2
    assert loss == seen(images()).detach()


def test_micro_batches_are_looked_at_each() -> None:
    seen, (x, y) = Seen(), images()
    _, sharp = make(seen.model, ascent=steppe.Ascent(0.3), look=steppe.Look(1, Resolution(0.5)))
    sharp.backward(seen, micro_batches=[(x[:4], y[:4]), (x[4:], y[4:])])
    assert seen.inputs == [(1, 3, 4, 4)] * 2 + [(4, 3, 8, 8)] * 2


def test_statistics_and_masks_are_those_of_one_pass() -> None:
    model, plain = net(torch.float32), net(torch.float32)
    batch = next(batches(1, torch.float32))
    _, sharp = make(model, look=steppe.Look(autocast=torch.bfloat16))
    torch.manual_seed(3)
    sharp.backward(loss_of(model), batch)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    loss_of(plain)(batch)
    assert torch.equal(after, torch.get_rng_state()) and model.norm.num_batches_tracked == 1


def test_autocast_needs_no_batch_and_no_cast_of_it_is_left() -> None:
    """A closure is enough; the second pass is of the perturbed weights also inside an autocast of the user's own."""
    model = net(torch.float32, dropout=0)
    batch = next(batches(1, torch.float32))
    _, sharp = make(model, ascent=steppe.Ascent(0.5), look=steppe.Look(autocast=torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        sharp.backward(lambda: loss_of(model)(batch))
    assert sharp.last.perturbed_loss > sharp.last.loss + 0.01  # type: ignore[operator]


def test_views_of_a_closure_and_of_the_phases_are_refused() -> None:
    seen = Seen()
    _, sharp = make(seen.model, look=steppe.Look(view=Resolution()))
    with pytest.raises(TypeError, match="samples=..., view=..."):
        sharp.backward(lambda: seen(images()))
    seen(images()).backward()
    for settings in ({"view": Resolution()}, {"samples": 2}, {"autocast": torch.bfloat16}):
        _, sharp = make(seen.model, look=steppe.Look(**settings))
        with pytest.raises(RuntimeError, match=r"use backward\(loss_of, batch\), or neither look nor hardest"):
            sharp.ascend()


def test_the_state_is_plain_and_comes_back() -> None:
    model = net()
    look = steppe.Look(view=Length(0.25, "end"), autocast=torch.bfloat16)
    _, sharp = make(model, ascent=steppe.Ascent(0.1), look=look)
    state = sharp.state_dict()
    assert json.loads(json.dumps(state["ascent"])) == state["ascent"]
    _, other = make(net(), ascent=steppe.Ascent(0.1))
    with pytest.warns(UserWarning, match=r"view was Length\(share=0.25, keep='end'\) and is None"):
        other.load_state_dict(state)


def test_the_whole_look_in_fp64_is_sam() -> None:
    """The limits: a view that changes nothing, and all samples."""
    model = net(dropout=0)
    _, sharp = make(model, look=steppe.Look(view=lambda batch: batch))
    sharp.backward(loss_of(model), BATCH)
    close(grads(model), by_hand(net(dropout=0), BATCH))
