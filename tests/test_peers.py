"""The same trajectories as other people's implementations: optax.contrib.sam (JAX) and pytorch_optimizer."""

import numpy as np
import pytest
import torch
from tests import peers
from torch import nn

import steppe


@pytest.fixture
def jax64():
    """JAX in float64 on the CPU, for the length of one test."""
    pytest.importorskip("optax", reason="optax is an extra: pip install '.[oracles]'")
    jax = pytest.importorskip("jax", reason="jax is an extra: pip install '.[oracles]'")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    with jax.default_device(jax.devices("cpu")[0]):
        yield jax
    jax.config.update("jax_enable_x64", before)


def optax_path(jax):
    """The weights after each outer step of optax.contrib.sam on the same network, written for JAX."""
    import optax
    from optax.contrib import normalize, sam

    def loss(w, x, y):
        z = x @ w["fc1.weight"].T + w["fc1.bias"]
        z = (z - z.mean(1, keepdims=True)) / jax.numpy.sqrt(z.var(1, keepdims=True) + 1e-5)
        h = jax.numpy.tanh(z * w["ln.weight"] + w["ln.bias"])
        logits = h @ w["fc2.weight"].T + w["fc2.bias"] + h @ w["low.a"].T @ w["low.b"].T
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    outer, ascent = optax.adamw(0.01, weight_decay=0.1), optax.chain(normalize(), optax.sgd(peers.RHO))
    rule, grad = sam(outer, ascent, opaque_mode=True), jax.grad(loss)

    @jax.jit
    def step(w, state, x, y):
        updates, state = rule.update(grad(w, x, y), state, w, grad_fn=lambda v, _: grad(v, x, y))
        return optax.apply_updates(w, updates), state

    w = {k: jax.numpy.asarray(v) for k, v in peers.PROBLEM.start.items()}
    state, path = rule.init(w), []
    for t in range(peers.STEPS):
        rows = peers.PROBLEM.rows(t)
        batch = jax.numpy.asarray(peers.PROBLEM.x[rows]), jax.numpy.asarray(peers.PROBLEM.y[rows])
        w, state = step(w, state, *batch)
        path.append({k: np.asarray(v) for k, v in w.items()})
    return path


def test_sam_equals_optax(jax64):
    """No eps and no cast on either side, so only rounding is left."""
    path = peers.ours(lambda m, o: steppe.SAM(m, o, rho=peers.RHO), "adamw")
    assert peers.gap(path, optax_path(jax64)) <= peers.EXACT


def test_optax_gives_nan_for_a_zero_gradient(jax64):
    from optax.contrib import normalize

    zero = jax64.numpy.zeros(3)
    update, _ = normalize().update(zero, normalize().init(zero))
    assert bool(jax64.numpy.isnan(update).all())
    model = nn.ParameterList([torch.ones(3)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steppe.SAM(model, optimizer, rho=peers.RHO).backward(lambda: (0 * model[0]).sum())
    assert torch.equal(model[0].grad, torch.zeros(3))


@pytest.fixture
def repaired(monkeypatch):
    """pytorch_optimizer with its global norm in float64."""
    peers.repair(monkeypatch)


@pytest.mark.parametrize("base", peers.BASES)
def test_sam(repaired, base):
    path = peers.ours(lambda m, o: steppe.SAM(m, o, rho=peers.RHO), base)
    assert peers.gap(path, peers.their_sam(base, perturb_eps=0.0)) <= peers.EXACT


def test_gsam(repaired):
    path = peers.ours(lambda m, o: steppe.GSAM(m, o, rho=peers.RHO, alpha=0.4))
    other = peers.theirs(lambda m: peers.make_gsam(m, alpha=0.4, perturb_eps=0.0), peers.gsam_step)
    assert peers.gap(path, other) <= peers.EXACT


@pytest.mark.parametrize(("sigma", "decay"), [(1.0, 0.9), (1.0, 0.6), (0.5, 0.6)])
def test_fsam(repaired, sigma, decay):
    path = peers.ours(lambda m, o: steppe.FSAM(m, o, rho=peers.RHO, sigma=sigma, decay=decay))
    assert peers.gap(path, peers.their_fsam(sigma, decay, aligned=True, perturb_eps=0.0)) <= peers.EXACT


@pytest.mark.parametrize("base", peers.BASES)
def test_wsam(repaired, base):
    path = peers.ours(lambda m, o: steppe.WSAM(m, o, rho=peers.RHO, gamma=0.6), base)
    assert peers.gap(path, peers.their_wsam(base, eps=0.0)) <= peers.EXACT


SHIPPED = {
    "SAM": (lambda m, o: steppe.SAM(m, o, rho=peers.RHO), lambda: peers.their_sam("sgd")),
    "GSAM": (
        lambda m, o: steppe.GSAM(m, o, rho=peers.RHO, alpha=0.4),
        lambda: peers.theirs(lambda m: peers.make_gsam(m, alpha=0.4), peers.gsam_step),
    ),
    "FriendlySAM": (
        lambda m, o: steppe.FSAM(m, o, rho=peers.RHO, sigma=1.0, decay=0.9),
        lambda: peers.their_fsam(1.0, 0.9, aligned=True),
    ),
    "WSAM": (lambda m, o: steppe.WSAM(m, o, rho=peers.RHO, gamma=0.6), lambda: peers.their_wsam("sgd")),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_as_shipped_its_norms_are_float32(name):
    peers.peer()
    build, run = SHIPPED[name]
    assert 1e-10 < peers.gap(peers.ours(build), run()) <= peers.FLOAT32_NORM
