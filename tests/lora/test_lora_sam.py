"""LoRA-SAM: the library's methods on the factors alone, beside the loop by hand; the frozen base is not touched."""

import copy

import pytest
import torch
from tests.lora.peft_models import close, frozen, gradients, llama, loss_of, sgd, tokens, trained
from tests.problems import same

import steppe
from steppe.methods import METHODS

RHO, STEPS = 0.1, 4
SELECTED = ["sam", "asam", "look_sam", "rst", "grst", "gsam", "wsam", "fsam", "layer_sam", "adasam"]


def norm_of(tensors):
    return torch.sqrt(sum(t.square().sum() for t in tensors))


def grads_of(model, batch):
    model.zero_grad()
    loss_of(model, batch).backward()
    return [p.grad.clone() for p in trained(model)]


def at(model, eps, batch):
    """The gradient at the factors plus eps."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p, e in zip(trained(twin), eps, strict=True):
            p += e
    return grads_of(twin, batch)


def climbed(model, g, batch):
    return at(model, [RHO * x / norm_of(g) for x in g], batch)


def sam(model, batches):
    for batch in batches:
        yield climbed(model, grads_of(model, batch), batch)


def look_sam(model, batches, k=2, alpha=0.7):
    kept = None
    for t, batch in enumerate(batches):
        g = grads_of(model, batch)
        if t % k == 0:
            d = climbed(model, g, batch)
            along = sum((x * y).sum() for x, y in zip(d, g, strict=True)) / norm_of(g) ** 2
            kept = [x - along * y for x, y in zip(d, g, strict=True)]
        else:
            d = [x + alpha * norm_of(g) / norm_of(kept) * v for x, v in zip(g, kept, strict=True)]
        yield d


def asam(model, batches, eta=0.01):
    for batch in batches:
        g, weights = grads_of(model, batch), [p.detach() for p in trained(model)]
        scales = [w.abs() + eta for w in weights]
        length = norm_of([s * x for s, x in zip(scales, g, strict=True)])
        yield at(model, [RHO * s**2 * x / length for s, x in zip(scales, g, strict=True)], batch)


def rst(model, batches, sharp):
    """The draws are the library's own; the gradients are by hand."""
    for batch in batches:
        g = grads_of(model, batch)
        yield climbed(model, g, batch) if sharp.last.ascended else g


def walk(model, optimizer, sharp, wanted, batches):
    for batch, expected in zip(batches, wanted, strict=True):
        optimizer.zero_grad()
        sharp.backward(lambda b: loss_of(model, b), batch)
        yield gradients(model), expected
        optimizer.step()


@pytest.mark.parametrize(
    ("recipe", "by_hand"),
    [
        (lambda m, o: steppe.SAM(m, o, rho=RHO), sam),
        (lambda m, o: steppe.ASAM(m, o, rho=RHO, eta=0.01), asam),
        (lambda m, o: steppe.LookSAM(m, o, rho=RHO, k=2, push="paper"), look_sam),
    ],
    ids=["sam", "asam", "look_sam"],
)
def test_the_gradient_is_that_of_the_loop_by_hand(recipe, by_hand):
    model = llama()
    optimizer, batches = sgd(model), list(tokens(STEPS))
    sharp = recipe(model, optimizer)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    slow = copy.deepcopy(model)
    loop = by_hand(slow, batches)
    for got, expected in walk(model, optimizer, sharp, loop, batches):
        close(got, dict(zip(names, expected, strict=True)), 1e-9)
        with torch.no_grad():
            for p, d in zip(trained(slow), expected, strict=True):
                p -= 0.1 * d


def test_rst_is_sams_gradient_where_it_ascends_and_the_plain_one_elsewhere():
    model = llama()
    optimizer, ascended = sgd(model), []
    sharp = steppe.RST(model, optimizer, rho=RHO, schedule="constant", p=0.5, total_steps=12)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    for batch in tokens(12):
        slow = copy.deepcopy(model)
        optimizer.zero_grad()
        sharp.backward(lambda b: loss_of(model, b), batch)
        g = grads_of(slow, batch)
        expected = climbed(slow, g, batch) if sharp.last.ascended else g
        close(gradients(model), dict(zip(names, expected, strict=True)), 1e-9)
        ascended.append(sharp.last.ascended)
        optimizer.step()
    assert 0 < sum(ascended) < 12


def test_adasam_steps_the_factors_as_the_paper_does():
    model = llama()
    row = METHODS["adasam"]
    optimizer = row.optimizer(trained(model), lr=0.01)
    sharp = steppe.AdaSAM(model, optimizer, rho=RHO)
    group = optimizer.param_groups[0]
    (b1, b2), eps = group["betas"], group["eps"]
    slow = copy.deepcopy(model)
    m = [torch.zeros_like(p) for p in trained(slow)]
    v = [torch.zeros_like(p) for p in trained(slow)]
    top = [torch.full_like(p, eps**2) for p in trained(slow)]
    for batch in tokens(STEPS):
        optimizer.zero_grad()
        sharp.backward(lambda b: loss_of(model, b), batch)
        optimizer.step()
        d = climbed(slow, grads_of(slow, batch), batch)
        m = [b1 * x + (1 - b1) * g for x, g in zip(m, d, strict=True)]
        v = [b2 * x + (1 - b2) * g**2 for x, g in zip(v, d, strict=True)]
        top = [torch.maximum(x, y) for x, y in zip(top, v, strict=True)]
        with torch.no_grad():
            for p, x, y in zip(trained(slow), m, top, strict=True):
                p -= 0.01 * x / y.sqrt()
    for mine, theirs in zip(trained(model), trained(slow), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", SELECTED)
def test_frozen_base_weights_are_untouched_bit_for_bit(name):
    model = llama(torch.float32)
    row = METHODS[name]
    optimizer = row.optimizer(trained(model), lr=0.01) if row.optimizer else sgd(model)
    sharp = row.recipe(model, optimizer, **dict(row.good[0]))
    before, start = frozen(model), [p.detach().clone() for p in trained(model)]
    for batch in tokens(STEPS):
        sharp.backward(lambda b: loss_of(model, b), batch)
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
    assert same(before, frozen(model))
    assert not any(torch.equal(p, q) for p, q in zip(trained(model), start, strict=True))


class _Look:
    """The largest entry of B while the weights are perturbed, in the second forward pass."""

    def __init__(self, model):
        self.model, self.seen = model, []

    def __call__(self, batch):
        factors = [p for n, p in self.model.named_parameters() if "lora_B" in n]
        self.seen.append(max(float(b.detach().abs().max()) for b in factors))
        return loss_of(self.model, batch)


@pytest.mark.parametrize(("eta", "moves"), [(0.01, True), (0.0, False)])
def test_asam_moves_a_zero_b_only_with_eta(eta, moves):
    """PEFT starts B at 0, where |w| + eta = eta: without it the ascent would never look beyond B = 0."""
    model = llama()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.zero_()
    optimizer, look = sgd(model), _Look(model)
    steppe.ASAM(model, optimizer, rho=0.5, eta=eta).backward(look, next(tokens(1)))
    assert look.seen[0] == 0.0 and (look.seen[1] > 0) is moves


def test_at_the_start_sam_perturbs_b_alone():
    """The gradient of A is B' times something: with B = 0 the whole radius goes to B."""
    model = llama()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.zero_()
    optimizer = sgd(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    sharp = steppe.SAM(model, optimizer, rho=RHO)
    loss_of(model).backward()
    assert sharp.ascend()
    moved = {n: float((p - before[n]).norm()) for n, p in model.named_parameters()}
    sharp.restore()
    assert all(size == 0 for n, size in moved.items() if "lora_B" not in n)
    assert sum(size**2 for size in moved.values()) ** 0.5 == pytest.approx(RHO)
