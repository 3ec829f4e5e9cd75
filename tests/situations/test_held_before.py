"""Loops with a backward, a forward or a weight of their own, each against SAM written out by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import steppe

RHO, LR = 0.3, 0.1
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
Y = torch.randn(8, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def taken(model):
    grads = [p.grad for p in model.parameters()]
    for p in model.parameters():
        p.grad = None
    return grads


@torch.no_grad()
def climb(model, grads):
    length = torch.sqrt(sum((g**2).sum() for g in grads))
    for p, g in zip(model.parameters(), grads, strict=True):
        p += RHO * g / length


@torch.no_grad()
def descend(model, grads):
    for p, g in zip(model.parameters(), grads, strict=True):
        p -= LR * g


def by_hand(model, gradient):
    """A step of SAM with SGD: ``gradient(model)`` is evaluated at w, and on a copy at w + eps."""
    there = copy.deepcopy(model)
    climb(there, gradient(model))
    found = gradient(there)
    descend(model, found)
    return found


def same(model, wanted):
    assert max(float((p.grad - g).abs().max()) for p, g in zip(model.parameters(), wanted, strict=True)) <= 1e-10


def equal(model, other):
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) <= 1e-10


def pair(make=network):
    model, hand = make(), make()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    return model, hand, optimizer, steppe.SAM(model, optimizer, rho=RHO)


def step(optimizer):
    optimizer.step()
    optimizer.zero_grad()


# PCGrad: the gradients of two tasks, each without what contradicts the other


def tasks(model):
    out = model(X)
    return [(out[:, 0] - Y[:, 0]).square().mean(), (out[:, 1] + out[:, 0] + Y[:, 1]).square().mean()]


def projected(losses, params):
    each = [torch.autograd.grad(one, params, retain_graph=True) for one in losses]
    flat = [torch.cat([g.flatten() for g in grads]) for grads in each]
    out = []
    for mine, other in ((0, 1), (1, 0)):
        along = (flat[mine] @ flat[other]).clamp(max=0) / flat[other].square().sum()
        out.append(flat[mine] - along * flat[other])
    total = out[0] + out[1]
    return [g.view_as(p) for g, p in zip(total.split([p.numel() for p in params]), params, strict=True)]


def test_pcgrad_through_backward():
    model, hand, optimizer, sharp = pair()
    losses = []

    def closure():
        losses[:] = tasks(model)
        return losses[0] + losses[1]

    def backward(loss):
        params = list(model.parameters())
        for p, g in zip(params, projected(losses, params), strict=True):
            p.grad = g.clone() if p.grad is None else p.grad + g

    for _ in range(3):
        sharp.backward(closure, backward=backward)
        same(model, by_hand(hand, lambda m: projected(tasks(m), list(m.parameters()))))
        step(optimizer)
        equal(model, hand)


# Gradient cache: a contrastive loss of the whole batch, whose features are made in pieces


def contrastive(features):
    logits = features @ features.t() - 10 * torch.eye(len(features), dtype=torch.float64)
    return nn.functional.cross_entropy(logits, torch.arange(len(features)).roll(1))


def cached_loss(model):
    """The loss, and by a hook on it the gradient: features without a graph first, then again piece by piece."""
    with torch.no_grad():
        features = torch.cat([model(x) for x in X.split(3)])
    features.requires_grad_()
    loss = contrastive(features)
    (cache,) = torch.autograd.grad(loss, features, retain_graph=True)

    def hook(scale):
        for x, g in zip(X.split(3), cache.split(3), strict=True):
            with torch.enable_grad():
                torch.autograd.backward(model(x), g * scale)

    loss.register_hook(hook)
    return loss


def test_gradient_cache_hooks():
    model, hand, optimizer, sharp = pair()

    def whole(m):
        contrastive(m(X)).backward()
        return taken(m)

    for _ in range(3):
        sharp.backward(lambda: cached_loss(model))
        same(model, by_hand(hand, whole))
        step(optimizer)
        equal(model, hand)


# Ensembles: one functional call over stacked weights


class Ensemble(nn.Module):
    def __init__(self):
        super().__init__()
        members = []
        for seed in range(3):
            torch.manual_seed(seed)
            members.append(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double())
        weights, _ = torch.func.stack_module_state(members)
        self.weights = nn.ParameterDict({k.replace(".", "_"): nn.Parameter(v.detach()) for k, v in weights.items()})
        self.names = list(weights)
        self._base = [copy.deepcopy(members[0]).to("meta")]  # in a list: no submodule

    def forward(self, x):
        def one(weights):
            return torch.func.functional_call(self._base[0], weights, (x,))

        return torch.func.vmap(one)({k: self.weights[k.replace(".", "_")] for k in self.names})


def test_ensembles_by_functional_call():
    model, hand, optimizer, sharp = pair(Ensemble)

    def gradient(m):
        (m(X) - Y).square().mean().backward()
        return taken(m)

    for _ in range(3):
        sharp.backward(lambda: (model(X) - Y).square().mean())
        same(model, by_hand(hand, gradient))
        step(optimizer)
        equal(model, hand)


# Embedding(max_norm): forward itself shortens the rows that it looks up


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(7, 4, max_norm=0.7, dtype=torch.float64)
        self.last = nn.Linear(4, 2).double()

    def forward(self, i):
        return self.last(self.words(i))


@pytest.mark.parametrize("perturbed", [True, False])
def test_an_embedding_with_max_norm(perturbed):
    """What the first pass shortened stays short; what only the second would shorten, of w + eps, comes back."""
    model, hand = Words(), Words()
    groups = [{"params": [model.words.weight], "perturb": perturbed}, {"params": model.last.parameters()}]
    optimizer = torch.optim.SGD(groups, lr=LR)
    sharp = steppe.SAM(model, optimizer, rho=RHO)
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        i = torch.randint(7, (8,), generator=generator)
        sharp.backward(lambda: (model(i) - Y).square().mean())
        (hand(i) - Y).square().mean().backward()
        grads = taken(hand)
        there = copy.deepcopy(hand)
        climb(there, grads if perturbed else [torch.zeros_like(grads[0]), *grads[1:]])
        (there(i) - Y).square().mean().backward()
        wanted = taken(there)
        same(model, wanted)
        equal(model, hand)
        descend(hand, wanted)
        step(optimizer)
        equal(model, hand)


# WGAN-GP: the closure holds a backward of its own, twice differentiable


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Softplus(), nn.Linear(6, 1)).double()

    def forward(self, x):
        return self.net(x)


def critic_loss(critic):
    real, fake = X, X.flip(0) * 0.5 + 0.2
    share = torch.rand(len(X), 1, dtype=torch.float64)
    between = (share * real + (1 - share) * fake).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return critic(fake).mean() - critic(real).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()


def test_wgan_with_gradient_penalty():
    model, hand, optimizer, sharp = pair(Critic)
    for seed in range(3):
        torch.manual_seed(seed)
        sharp.backward(lambda: critic_loss(model))

        def gradient(m):
            torch.manual_seed(seed)
            critic_loss(m).backward()
            return taken(m)

        same(model, by_hand(hand, gradient))
        step(optimizer)
        equal(model, hand)
