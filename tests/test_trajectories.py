"""25 steps of every method against the slow reference in tests/reference, in float64, to 1e-12."""

import functools
import math

import numpy as np
import pytest
import torch
from tests import reference
from tests.trajectory_cases import ADAMW, CASES, SGD, STEPS, Case

import steppe
from steppe.methods import METHODS

TOLERANCE = 1e-12  # weights are of order 1: some 2,500 roundings of float64
OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
RECIPES = {
    "sam": "SAM", "asam": "ASAM", "layer_sam": "LayerSAM", "rst": "RST", "grst": "GRST", "gnp": "GNP",
    "look_sam": "LookSAM", "look_layer_sam": "LookLayerSAM", "adasam": "AdaSAM", "gsam": "GSAM",
    "fsam": "FSAM", "wsam": "WSAM", "aesam": "AESAM", "sam_on": "SAMON", "late_sam": "LateSAM", "tail_sam": "TailSAM",
    "sl_sam": "SLSAM",
    "msam": "MSAM", "s2_sam": "S2SAM", "rwp": "RWP", "arwp": "ARWP", "esam": "ESAM",
    "k_sam": "KSAM", "le_sam": "LESAM", "muon_sam": "MuonSAM",
}  # fmt: skip


def optimizer_of(model, base, groups=None):
    name, settings = base
    kind = steppe.optim.AMSGrad if name == "amsgrad" else OPTIMIZERS[name]
    named = dict(model.named_parameters())
    return kind(groups(named) if groups else named.values(), **settings)


def recipe_of(method):
    return getattr(steppe, RECIPES[method]) if method in RECIPES else METHODS[method].recipe


def whole(sharp, problem, model, t):
    sharp.backward(lambda: problem.torch_loss(model, problem.torch_batch(t)))


def sliced(sharp, problem, model, t):
    sharp.backward(lambda batch: problem.torch_loss(model, batch), problem.torch_batch(t))


def per_sample(sharp, problem, model, t):
    losses = functools.partial(torch.nn.functional.cross_entropy, reduction="none")
    sharp.backward(lambda b: losses(model(b[0]), b[1]), problem.torch_batch(t))


def accumulated(sharp, problem, model, t):
    x, y = problem.torch_batch(t)
    micro = list(zip(x.split(6), y.split(6), strict=True))  # 6, 6 and 4 samples: a sum of unequal parts
    sharp.backward(
        lambda b: problem.torch_loss(model, b) * len(b[1]) / len(y),
        micro_batches=micro,
    )


def phases(sharp, problem, model, t):
    problem.torch_loss(model, problem.torch_batch(t)).backward()
    if sharp.ascend():
        problem.torch_loss(model, problem.torch_batch(t)).backward()
        sharp.restore()


def steppe_path(build, base, problem, how=whole, groups=None):
    """The weights after each step of steppe."""
    model = problem.module()
    optimizer = optimizer_of(model, base, groups)
    sharp = build(model, optimizer)
    path = []
    for t in range(STEPS):
        how(sharp, problem, model, t)
        optimizer.step()
        optimizer.zero_grad()
        path.append({k: p.detach().numpy().copy() for k, p in model.named_parameters()})
    return path


def gap(path, expected):
    """Largest difference of any weight at any step."""
    assert len(path) == len(expected) and path[0].keys() == expected[0].keys()
    return max(abs(a[k] - b[k]).max() for a, b in zip(path, expected, strict=True) for k in a)


_KEPT = {}


def expected_path(case):
    """Of the slow reference, which is as slow as it says: once for each case."""
    if str(case) not in _KEPT:
        _KEPT[str(case)] = _reference(case)
    return _KEPT[str(case)]


def _reference(case):
    problem = getattr(reference, case.problem)()
    name, settings = case.base
    return reference.trajectory(reference.METHODS[case.method], problem, name, STEPS, settings, **case.settings)


def check(case, how=whole):
    problem = getattr(reference, case.problem)()
    recipe = recipe_of(case.method)
    path = steppe_path(lambda m, o: recipe(m, o, **case.settings), case.base, problem, how)
    assert gap(path, expected_path(case)) <= TOLERANCE


@pytest.mark.parametrize("problem", [reference.MLP(), reference.Quadratic()], ids=["MLP", "Quadratic"])
def test_the_hand_written_gradients_are_those_of_torch(problem):
    rng = np.random.default_rng(2)
    model = problem.module()
    w = {k: v + 0.3 * rng.normal(size=v.shape) for k, v in problem.weights().items()}
    with torch.no_grad():
        for k, p in model.named_parameters():
            p.copy_(torch.from_numpy(w[k]))
    loss = problem.torch_loss(model, problem.torch_batch(9))
    loss.backward()
    grads = {k: p.grad.numpy() for k, p in model.named_parameters()}
    assert abs(loss.item() - problem.loss(w, 9)) <= 1e-14
    assert gap([grads], [problem.grad(w, 9)]) <= 1e-14


@pytest.mark.parametrize("case", CASES, ids=str)
def test_trajectory(case):
    check(case, per_sample if METHODS[case.method].per_sample else whole)


def test_every_method_of_the_registry_has_a_trajectory():
    ascents = {name for name, row in METHODS.items() if not row.lora}  # BAR's references are in tests/lora
    assert ascents == {case.method for case in CASES} == set(reference.METHODS)


@pytest.mark.parametrize("method", RECIPES)
def test_the_registry_holds_the_public_recipe(method):
    assert METHODS[method].recipe is getattr(steppe, RECIPES[method])


@pytest.mark.parametrize("method", sorted(set(reference.METHODS) - {"sam_adamw"}))
def test_no_two_methods_share_a_trajectory(method):
    """A tolerance says nothing where the methods do not differ: each is far from SAM and from the base."""
    case = next(c for c in CASES if c.method == method and c.problem == "MLP")
    problem, (name, settings) = reference.MLP(), case.base
    path = expected_path(case)
    others = [reference.trajectory(lambda grad, w, t, memory: grad(w), problem, name, STEPS, settings)]
    if method not in ("sam", "adasam"):
        others.append(reference.trajectory(reference.METHODS["sam"], problem, name, STEPS, settings, rho=0.1))
    assert min(gap(path, other) for other in others) > 1e-4


SOME = {
    "sam": {"rho": 0.1},
    "asam": {"rho": 0.5},
    "look_layer_sam": {"rho": 0.1, "k": 3},
    "grst": {"rho": 0.1, "total_steps": STEPS},
    "gsam": {"rho": 0.1},
    "fsam": {"rho": 0.1},
    "wsam": {"rho": 0.05, "gamma": 0.6},
    "aesam": {"rho": 0.1, "total_steps": STEPS},
    "msam": {"rho": 0.3},
    "s2_sam": {"rho": 0.1},
}


CALLS = [("sam", sliced), ("look_layer_sam", sliced), *((method, accumulated) for method in SOME)]
CALLS += [(method, phases) for method in ("sam", "look_layer_sam", "gsam", "wsam", "msam", "s2_sam")]


@pytest.mark.parametrize(("method", "how"), CALLS, ids=lambda x: getattr(x, "__name__", x))
def test_every_way_to_call_gives_the_trajectory(method, how):
    check(Case(method, SOME[method]), how)


COMBINATIONS = [
    {"rho": 0.3, "p": 0.7, "k": 2, "eta": 0.01, "scope": "trust", "alpha": 0.4, "gamma": 0.6, "seed": 5},
    {"rho": 0.05, "p": 0.6, "k": 3, "eta": 0.1, "scope": "paper", "push": "natural", "gamma": 1.5, "seed": 6},
    {"rho": 0.5, "p": 0.5, "k": 1, "eta": 0.01, "scope": "global", "alpha": 0.1, "gamma": 0.8, "seed": 7},
    {"rho": 0.05, "p": 0.9, "k": 4, "eta": None, "scope": "tensor", "alpha": 0.3, "gamma": 1.0, "seed": 8},
    {"rho": 0.05, "p": 1.0, "k": 2, "eta": 0.05, "scope": "tensor", "alpha": 0.3, "gamma": 0.5, "seed": 9},
]


def composed(c):
    """The constructor call of a combination that nobody has published."""

    def build(model, optimizer):
        return steppe.SharpnessAware(
            model,
            optimizer,
            ascent=steppe.Ascent(
                rho=c["rho"],
                metric=steppe.Identity() if c["eta"] is None else steppe.Adaptive(eta=c["eta"]),
                scope=c["scope"],
            ),
            schedule=steppe.Every(c["k"]) & steppe.Bernoulli(c["p"]),
            combine=steppe.Reuse(c.get("alpha", 0.7), push=c.get("push", "paper"), refresh=steppe.Mix(c["gamma"])),
            seed=c["seed"],
        )

    return build


@pytest.mark.parametrize("base", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("c", COMBINATIONS, ids=lambda c: c["scope"])
def test_combination(c, base):
    problem = reference.MLP()
    expected = reference.trajectory(reference.compose, problem, base[0], STEPS, base[1], **c)
    assert gap(steppe_path(composed(c), base, problem), expected) <= TOLERANCE


def test_groups_with_their_own_radius():
    """eps = rho_group g / ||g||, one global norm; with perturb=False neither moved nor counted."""
    problem, own = reference.MLP(), {"fc1.weight": 0.2, "fc1.bias": 0.2}
    still = ("fc2.weight", "fc2.bias")

    def method(grad, w, t, memory):
        rho = {k: own.get(k, 0.05) for k in w}
        eps = reference.perturbations.spherical(w, grad(w), rho, only=lambda k: k not in still)
        return grad({k: w[k] + eps[k] for k in w})

    def groups(named):
        rest = [p for k, p in named.items() if k not in own and k not in still]
        moved, fixed = [named[k] for k in own], [named[k] for k in still]
        return [{"params": moved, "rho": 0.2}, {"params": fixed, "perturb": False}, {"params": rest}]

    expected = reference.trajectory(method, problem, SGD[0], STEPS, SGD[1])
    path = steppe_path(lambda m, o: steppe.SAM(m, o, rho=0.05), SGD, problem, groups=groups)
    assert gap(path, expected) <= TOLERANCE


@pytest.mark.parametrize("samples", [4, 0.25])
def test_ascent_on_a_few_samples(samples):
    """eps from the first 4 of the 16 samples, d from all of them."""
    problem = reference.MLP()
    path = []
    w, state = problem.weights(), {}
    for t in range(STEPS):
        g = problem.grad(w, t, rows=problem.rows(t)[:4])
        eps = reference.perturbations.spherical(w, g, 0.1)
        d = problem.grad({k: w[k] + eps[k] for k in w}, t)
        w = reference.BASES["sgd"](w, d, state, **SGD[1])
        path.append(w)

    def build(model, optimizer):
        return steppe.SharpnessAware(model, optimizer, ascent=steppe.Ascent(rho=0.1), look=steppe.Look(samples))

    assert gap(steppe_path(build, SGD, problem, how=sliced), path) <= TOLERANCE


def test_scopes_of_two_groups():
    """scope="group": every group has the radius rho of its own."""
    problem = reference.MLP()
    first = ("fc1.weight", "fc1.bias", "ln.weight", "ln.bias")

    def method(grad, w, t, memory):
        g = grad(w)
        one = reference.perturbations.spherical(w, g, 0.05, only=lambda k: k in first)
        two = reference.perturbations.spherical(w, g, 0.05, only=lambda k: k not in first)
        return grad({k: w[k] + one[k] + two[k] for k in w})

    def groups(named):
        rest = [p for k, p in named.items() if k not in first]
        return [{"params": [named[k] for k in first]}, {"params": rest}]

    def build(model, optimizer):
        return steppe.SharpnessAware(model, optimizer, ascent=steppe.Ascent(rho=0.05, scope="group"))

    expected = reference.trajectory(method, problem, SGD[0], STEPS, SGD[1])
    assert gap(steppe_path(build, SGD, problem, groups=groups), expected) <= TOLERANCE


def test_the_loss_is_that_of_the_unperturbed_weights():
    problem = reference.MLP()
    model = problem.module()
    optimizer = optimizer_of(model, SGD)
    sharp = steppe.SAM(model, optimizer, rho=0.1)
    w = problem.weights()
    path = reference.trajectory(reference.METHODS["sam"], problem, "sgd", 5, SGD[1], rho=0.1)
    for t in range(5):
        loss = sharp.backward(lambda t=t: problem.torch_loss(model, problem.torch_batch(t)))
        g = problem.grad(w, t)
        eps = reference.perturbations.spherical(w, g, 0.1)
        assert not loss.requires_grad
        assert math.isclose(loss.item(), problem.loss(w, t), abs_tol=1e-12)
        assert math.isclose(sharp.last.loss.item(), problem.loss(w, t), abs_tol=1e-12)
        above = problem.loss({k: w[k] + eps[k] for k in w}, t)
        assert math.isclose(sharp.last.perturbed_loss.item(), above, abs_tol=1e-12)
        optimizer.step()
        optimizer.zero_grad()
        w = path[t]
