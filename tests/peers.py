"""Running pytorch_optimizer and steppe on the same network from the same start."""

import pytest
import torch
from tests import reference
from torch import nn

STEPS = 50
RHO = 0.1
SGD = {"lr": 0.1, "momentum": 0.9}
ADAMW = {"lr": 0.01, "weight_decay": 0.1}
BASES = {"sgd": (torch.optim.SGD, SGD), "adamw": (torch.optim.AdamW, ADAMW)}
PROBLEM = reference.MLP()

# The peer takes every global norm in float32, also of float64 gradients: off by at most about (n + 4)/2 units
# of 2^-24 for n = 8 tensors, 4e-7 relative. A step then moves by lr/(1 - momentum) * L * rho * 4e-7 with a
# curvature L of a few units: 2e-7 for lr .1, momentum .9, rho .1, L 5. Errors of one sign in all 50 steps
# would make 1e-5; they change sign, so a tenth of that is the bound FLOAT32_NORM (measured: 2e-8). With a
# norm of float64 in its place and perturb_eps = 0 only rounding is left: the bound EXACT (measured: 1e-15).
FLOAT32_NORM = 1e-6
EXACT = 1e-12


def peer():
    return pytest.importorskip("pytorch_optimizer", reason="pytorch_optimizer is an extra: pip install '.[oracles]'")


def weights(model):
    return {k: p.detach().numpy().copy() for k, p in model.named_parameters()}


def vector(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gap(path, other):
    return max(abs(a[k] - b[k]).max() for a, b in zip(path, other, strict=True) for k in a)


def ours(build, base="sgd", problem=PROBLEM, steps=STEPS):
    """The weights after each step of steppe; `build(model, optimizer)` makes the sharpness-aware object."""
    model = problem.module()
    kind, settings = BASES[base]
    optimizer = kind(model.parameters(), **settings)
    sharp = build(model, optimizer)
    path = []
    for t in range(steps):
        sharp.backward(lambda t=t: problem.torch_loss(model, problem.torch_batch(t)))
        optimizer.step()
        optimizer.zero_grad()
        path.append(weights(model))
    return path


def float64_norm(param_groups, device=None, *, weight_adaptive=False):
    """What get_global_gradient_norm says it returns, the squared norm, in the dtype of the gradients."""
    squares = [
        (p.grad * p.abs() if weight_adaptive and group.get("adaptive") else p.grad).square().sum()
        for group in param_groups
        for p in group["params"]
        if p.grad is not None
    ]
    return torch.stack(squares).sum().reshape(1)


def repair(monkeypatch):
    """Give pytorch_optimizer a global norm in float64, for the length of one test."""
    peer()
    from pytorch_optimizer.optimizer import sam

    monkeypatch.setattr(sam, "get_global_gradient_norm", float64_norm)


def documented_step(model, optimizer, t, problem=PROBLEM):
    """The loop of the peer's docstrings: one pass by hand, then step(closure) with a second."""

    def closure():
        optimizer.zero_grad()
        loss = problem.torch_loss(model, problem.torch_batch(t))
        loss.backward()
        return loss

    closure()
    return optimizer.step(closure)


def theirs(make, step=documented_step, problem=PROBLEM, steps=STEPS):
    model = problem.module()
    optimizer = make(model)
    path = []
    for t in range(steps):
        step(model, optimizer, t)
        path.append(weights(model))
    return path


class Radius:
    """A rho scheduler for the peer's GSAM."""

    def __init__(self, *values):
        self.values = list(values)

    def step(self):
        return self.values.pop(0) if len(self.values) > 1 else self.values[0]


def their_sam(base, **more):
    kind, settings = BASES[base]
    return theirs(lambda m: peer().SAM(m.parameters(), kind, rho=RHO, **settings, **more))


def make_gsam(model, rho=RHO, lr=0.1, momentum=0.9, **more):
    base = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    return peer().GSAM(model.parameters(), base, model, Radius(rho), **more)


def gsam_step(model, optimizer, t):
    x, y = PROBLEM.torch_batch(t)
    optimizer.set_closure(nn.functional.cross_entropy, x, y)
    return optimizer.step()


def their_fsam(sigma, decay, aligned, **more):
    """F-SAM of the peer; `aligned` brings its memory to what steppe's holds.

    The peer subtracts the OLD momentum and then updates it, and starts it at the first gradient:
    direction g - s m_old. The paper updates first: g - sigma (decay m_old + (1 - decay) g), which is
    (1 - sigma (1 - decay)) times g - s m_old with s = sigma decay / (1 - sigma (1 - decay)), so points
    the same way (s = 1 at sigma = 1). After the first step the paper's memory is (1 - decay) g_0, the
    peer's is g_0.
    """
    s = sigma * decay / (1 - sigma * (1 - decay)) if aligned else sigma

    def step(model, optimizer, t):
        documented_step(model, optimizer, t)
        if aligned and t == 0:
            for p in model.parameters():
                optimizer.state[p]["momentum"].mul_(1 - decay)

    return theirs(
        lambda m: peer().FriendlySAM(m.parameters(), torch.optim.SGD, rho=RHO, sigma=s, lmbda=decay, **SGD, **more),
        step,
    )


def wsam_step(model, optimizer, t):
    def closure():
        model.zero_grad()
        loss = PROBLEM.torch_loss(model, PROBLEM.torch_batch(t))
        loss.backward()
        return loss

    return optimizer.step(closure)


def their_wsam(base, **more):
    kind, settings = BASES[base]
    return theirs(lambda m: peer().WSAM(m, m.parameters(), kind, rho=RHO, gamma=0.6, **settings, **more), wsam_step)
