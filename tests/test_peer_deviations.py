"""Where pytorch_optimizer 4.1 deviates from the papers; docs/peers.md names the tests of this file."""

import copy
import importlib.metadata
import math

import pytest
import torch
from tests import peers, reference
from torch import nn

import steppe


@pytest.fixture(autouse=True)
def the_version_that_was_read():
    peers.peer()
    version = importlib.metadata.version("pytorch_optimizer")
    if not version.startswith("4.1."):
        pytest.skip(f"docs/peers.md is about pytorch_optimizer 4.1; this is {version}: read it anew")


@pytest.fixture
def repaired(monkeypatch):
    """pytorch_optimizer with its global norm in float64."""
    peers.repair(monkeypatch)


def test_fsam_subtracts_the_old_momentum(repaired):
    """With the same sigma and decay the runs part; only the first step, which is SAM in both, is shared."""
    path = peers.ours(lambda m, o: steppe.FSAM(m, o, rho=peers.RHO, sigma=0.5, decay=0.6))
    other = peers.their_fsam(0.5, 0.6, aligned=False, perturb_eps=0.0)
    assert peers.gap(path[:1], other[:1]) <= peers.EXACT
    assert peers.gap(path, other) > 1e-3


def test_at_sigma_one_only_the_start_of_the_average_differs(repaired):
    """Its average started at (1 - decay) g_0, not g_0, gives the paper's run; left alone it does not."""
    path = peers.ours(lambda m, o: steppe.FSAM(m, o, rho=peers.RHO, sigma=1.0, decay=0.9))
    assert peers.gap(path, peers.their_fsam(1.0, 0.9, aligned=True, perturb_eps=0.0)) <= peers.EXACT
    assert peers.gap(path, peers.their_fsam(1.0, 0.9, aligned=False, perturb_eps=0.0)) > 1e-3


def their_look_sam(problem, k=5, alpha=0.7):
    def make(model):
        return peers.peer().LookSAM(
            model.parameters(), torch.optim.SGD, rho=peers.RHO, k=k, alpha=alpha, perturb_eps=0.0, **peers.SGD
        )

    return peers.theirs(make, lambda m, o, t: peers.documented_step(m, o, t, problem), problem)


def test_look_sam_is_per_tensor(repaired):
    """With one tensor it is the paper's; with eight it parts from the paper's at the first reuse."""
    single = reference.Quadratic()
    path = peers.ours(lambda m, o: steppe.LookSAM(m, o, rho=peers.RHO, k=5, alpha=0.7, push="paper"), problem=single)
    # its 1e-8 under the reused push: alpha ||g|| 1e-8/||g_v|| of the push at each step
    assert peers.gap(path, their_look_sam(single)) <= 1e-5
    path = peers.ours(lambda m, o: steppe.LookSAM(m, o, rho=peers.RHO, k=5, alpha=0.7, push="paper"))
    other = their_look_sam(peers.PROBLEM)
    assert peers.gap(path[:1], other[:1]) <= peers.EXACT
    assert peers.gap(path[:2], other[:2]) > 1e-3


def test_look_sam_pushes_each_tensor_by_its_own_norm(repaired):
    """On a reuse step ||d_l - g_l|| = alpha ||g_l|| for every tensor, whatever its share of g_v."""
    model = peers.PROBLEM.module()
    optimizer = peers.peer().LookSAM(model.parameters(), torch.optim.SGD, rho=peers.RHO, k=5, alpha=0.5, lr=0.1)
    peers.documented_step(model, optimizer, 0)
    optimizer.zero_grad()
    peers.PROBLEM.torch_loss(model, peers.PROBLEM.torch_batch(1)).backward()
    g = [p.grad.clone() for p in model.parameters()]
    optimizer.zero_grad()
    peers.documented_step(model, optimizer, 1)
    for p, before in zip(model.parameters(), g, strict=True):
        # the base step leaves d in .grad; the 1e-8 in the denominator shortens the push a little
        assert math.isclose(float((p.grad - before).norm()), 0.5 * float(before.norm()), rel_tol=1e-4)


@pytest.mark.parametrize("name", ["SAM", "LookSAM"])
def test_the_documented_closure_runs_two_passes_each_step(name):
    """Also LookSAM between its refreshes: 2 passes where the method has 1 + 1/k = 1.2."""
    model, passes = peers.PROBLEM.module(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    more = {"k": 5} if name == "LookSAM" else {}
    optimizer = getattr(peers.peer(), name)(model.parameters(), torch.optim.SGD, lr=0.1, **more)
    for t in range(10):
        assert peers.documented_step(model, optimizer, t) is None  # nor does step return the closure's loss
    assert len(passes) == 20
    model, passes = peers.PROBLEM.module(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = steppe.LookSAM(model, base, k=5, rho=peers.RHO)
    for t in range(10):
        sharp.backward(lambda t=t: peers.PROBLEM.torch_loss(model, peers.PROBLEM.torch_batch(t)))
        base.step(), base.zero_grad()
    assert len(passes) == 12


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.5])
def test_look_sam_refuses_the_limit_without_reuse(alpha):
    """alpha = 0 (the base between refreshes) and alpha >= 1 are refused."""
    with pytest.raises(ValueError, match="alpha"):
        peers.peer().LookSAM(peers.PROBLEM.module().parameters(), torch.optim.SGD, alpha=alpha, lr=0.1)


@pytest.mark.parametrize(("size", "radius"), [(1e-10, 0.0495), (1e-12, 0.025), (1e-24, 5e-14), (1e20, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_eps_in_the_denominator_shortens_the_radius_of_small_gradients(size, radius, dtype):
    """rho/(||g|| + 1e-12) in place of rho/||g||; past 1e19 the float32 square overflows and nothing moves."""
    g = torch.tensor([1.0, 2.0, 2.0], dtype=dtype) / 3 * size
    p = nn.Parameter(torch.zeros(3, dtype=dtype))
    p.grad = g.clone()
    peers.peer().SAM([p], torch.optim.SGD, rho=0.05, lr=0.1).first_step()
    assert math.isclose(float(p.detach().double().norm()), radius, rel_tol=0.02, abs_tol=1e-15)
    if dtype == torch.float32 and size in (1e-24, 1e20):
        return  # the square of the norm leaves float32
    holder = nn.ParameterList([torch.zeros(3, dtype=dtype)])
    sharp = steppe.SAM(holder, torch.optim.SGD(holder.parameters(), lr=0.1), rho=0.05)
    holder[0].grad = g.clone()
    with sharp.perturbed():
        assert math.isclose(float(holder[0].detach().double().norm()), 0.05, rel_tol=1e-5)


def test_adaptive_has_no_eta_so_zeros_never_move():
    """T = |w|, biases included: LoRA's B = 0 is not perturbed. ASAM's T is |w| + eta, and 1 for biases."""
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    peers.peer().SAM([p], torch.optim.SGD, rho=0.5, adaptive=True, lr=0.1).first_step()
    assert torch.equal(p.detach(), torch.zeros(3))
    holder = nn.ParameterList([torch.zeros(3)])
    sharp = steppe.ASAM(holder, torch.optim.SGD(holder.parameters(), lr=0.1), rho=0.5)
    holder[0].grad = torch.ones(3)
    with sharp.perturbed():
        assert bool((holder[0] > 0).all())


def broken_second_pass(model, backward=True):
    calls = []

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("the second pass")
        loss = peers.PROBLEM.torch_loss(model, peers.PROBLEM.torch_batch(0))
        if backward:
            loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("name", ["SAM", "LookSAM", "FriendlySAM", "WSAM"])
def test_the_weights_stay_perturbed_when_the_second_pass_raises(name):
    model = peers.PROBLEM.module()
    first = (model, model.parameters()) if name == "WSAM" else (model.parameters(),)
    optimizer = getattr(peers.peer(), name)(*first, torch.optim.SGD, rho=peers.RHO, lr=0.1)
    before, closure = peers.vector(model), broken_second_pass(model)
    if name != "WSAM":  # runs its own first pass
        closure()
    with pytest.raises(RuntimeError, match="second pass"):
        optimizer.step(closure)
    assert math.isclose(float((peers.vector(model) - before).norm()), peers.RHO, rel_tol=1e-6)
    model = peers.PROBLEM.module()
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=peers.RHO)
    with pytest.raises(RuntimeError, match="second pass"):
        sharp.backward(broken_second_pass(model, backward=False))
    assert torch.equal(peers.vector(model), before)


@pytest.mark.parametrize("name", ["GSAM", "WSAM"])
def test_weights_restored_by_subtraction_drift(name):
    """100 steps at lr 0 should change nothing; in float32 a third of the weights differ in the last place."""
    model = peers.PROBLEM.module().float()
    before = peers.vector(model)
    if name == "GSAM":
        optimizer = peers.make_gsam(model, lr=0.0)
    else:
        optimizer = peers.peer().WSAM(model, model.parameters(), torch.optim.SGD, rho=peers.RHO, lr=0.0)
    sharp = steppe.GSAM(model, torch.optim.SGD(model.parameters(), lr=0.0), rho=peers.RHO)

    def pass_over(t):
        x, y = peers.PROBLEM.torch_batch(t)
        return nn.functional.cross_entropy(model(x.float()), y)

    for t in range(100):
        sharp.backward(lambda t=t: pass_over(t))
    assert torch.equal(peers.vector(model), before)

    for t in range(100):

        def closure(t=t):
            model.zero_grad()
            loss = pass_over(t)
            loss.backward()
            return (None, loss) if name == "GSAM" else loss

        optimizer.step(torch.enable_grad()(closure))
    assert float((peers.vector(model) != before).float().mean()) > 0.05


def normalised():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()


def batch_norm_after(step, model):
    for t in range(3):
        step(*peers.PROBLEM.torch_batch(t))
    return model[1]


@pytest.mark.parametrize("name", ["SAM", "LookSAM", "FriendlySAM", "GSAM", "WSAM"])
def test_batch_norm_is_counted_twice(name):
    """SAM, LookSAM and FriendlySAM average the statistics of both passes, the perturbed one too.

    GSAM and WSAM keep those of the first but count the second; WSAM leaves every BatchNorm's momentum at 0.
    """
    model = normalised()
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.0), rho=peers.RHO)
    good = batch_norm_after(lambda x, y: sharp.backward(lambda: nn.functional.cross_entropy(model(x), y)), model)
    assert int(good.num_batches_tracked) == 3

    other, kind = normalised(), torch.optim.SGD
    if name == "GSAM":
        optimizer = peers.make_gsam(other, lr=0.0)
    elif name == "WSAM":
        optimizer = peers.peer().WSAM(other, other.parameters(), kind, rho=peers.RHO, lr=0.0)
    else:
        optimizer = getattr(peers.peer(), name)(other.parameters(), kind, rho=peers.RHO, lr=0.0)

    def step(x, y):
        def closure():
            other.zero_grad()
            loss = nn.functional.cross_entropy(other(x), y)
            loss.backward()
            return (None, loss) if name == "GSAM" else loss

        if name not in ("GSAM", "WSAM"):
            closure()
        optimizer.step(torch.enable_grad()(closure))

    norm = batch_norm_after(step, other)
    assert int(norm.num_batches_tracked) == 6
    same = torch.allclose(norm.running_mean, good.running_mean, rtol=0, atol=1e-9)
    assert same == (name in ("GSAM", "WSAM"))
    assert norm.momentum == (0 if name == "WSAM" else 0.1)


@pytest.mark.parametrize("decouple", [True, False])
def test_wsam_clips_one_of_the_two_gradients_and_climbs(decouple):
    """max_norm clips g~ but not g, so g~ - g points backwards: on w^2/2 the loss grows without bound."""
    w = nn.Parameter(torch.tensor([10.0, 0.0], dtype=torch.float64))
    holder = nn.ParameterList([w])

    def run(max_norm):
        with torch.no_grad():
            w.copy_(torch.tensor([10.0, 0.0]))
        optimizer = peers.peer().WSAM(
            holder, [w], torch.optim.SGD, rho=0.05, lr=0.01, max_norm=max_norm, decouple=decouple
        )

        def closure():
            holder.zero_grad()
            loss = (w * w).sum() / 2
            loss.backward()
            return loss

        return [optimizer.step(closure).item() for _ in range(100)]

    assert run(None)[-1] < 10
    assert run(1.0)[-1] > 1e4


def test_gsam_forgets_its_radius_on_resume():
    """rho_t is not in the state_dict: the step after loading uses the radius of construction."""
    model = peers.PROBLEM.module()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = peers.peer().GSAM(model.parameters(), base, model, peers.Radius(0.1, 0.2, 0.3))
    peers.gsam_step(model, optimizer, 0)
    optimizer.update_rho_t()
    optimizer.update_rho_t()
    assert optimizer.rho_t == 0.3
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    again = peers.peer().GSAM(model.parameters(), base, model, peers.Radius(0.1, 0.2, 0.3))
    again.load_state_dict(optimizer.state_dict())
    assert again.rho_t == 0.1


@pytest.mark.parametrize(("name", "buffer"), [("GSAM", "old_g"), ("WSAM", "sharpness")])
def test_a_gradient_sized_buffer_is_kept_and_saved_between_steps(name, buffer):
    """It is overwritten before its next use; steppe keeps nothing for these two."""
    model = peers.PROBLEM.module()
    if name == "GSAM":
        optimizer = peers.make_gsam(model)
        peers.gsam_step(model, optimizer, 0)
    else:
        optimizer = peers.peer().WSAM(model, model.parameters(), torch.optim.SGD, rho=peers.RHO, lr=0.1)
        peers.wsam_step(model, optimizer, 0)
    saved = optimizer.state_dict()["state"].values()
    assert [s[buffer].numel() for s in saved] == [p.numel() for p in model.parameters()]


@pytest.mark.parametrize("name", ["SAM", "LookSAM", "FriendlySAM", "GSAM", "WSAM"])
def test_a_step_without_closure_raises(name):
    """So torch's distributed checkpoints, which call step() to make the state, and GradScaler.step fail."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = peers.PROBLEM.module()
    if name == "GSAM":
        optimizer = peers.make_gsam(model)
    elif name == "WSAM":
        optimizer = peers.peer().WSAM(model, model.parameters(), torch.optim.SGD, rho=peers.RHO, lr=0.1)
    else:
        optimizer = getattr(peers.peer(), name)(model.parameters(), torch.optim.SGD, rho=peers.RHO, lr=0.1)
    refusal = (peers.peer().base.exception.NoClosureError, TypeError)
    with pytest.raises(refusal):
        get_optimizer_state_dict(model, optimizer)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(peers.PROBLEM.torch_loss(model, peers.PROBLEM.torch_batch(0))).backward()
    with pytest.raises(refusal):
        scaler.step(optimizer)


@pytest.mark.parametrize("name", ["SAM", "LookSAM", "FriendlySAM", "WSAM"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_its_resume_is_exact_elsewhere(name, kind):
    """For the record: in 4.1 the others resume bit for bit, also in the middle of a LookSAM cycle."""
    more = {"k": 3} if name == "LookSAM" else {}

    def make():
        model = peers.PROBLEM.module()
        first = (model, model.parameters()) if name == "WSAM" else (model.parameters(),)
        return model, getattr(peers.peer(), name)(*first, kind, rho=peers.RHO, lr=0.05, **more)

    step = peers.wsam_step if name == "WSAM" else peers.documented_step
    model, optimizer = make()
    for t in range(4):
        step(model, optimizer, t)
    again, resumed = make()
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for t in range(4, 8):
        step(model, optimizer, t)
        step(again, resumed, t)
    assert torch.equal(peers.vector(model), peers.vector(again))
