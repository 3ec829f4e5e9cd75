"""AMSGrad in the paper's form: by hand, against numpy over 50 steps, and as any torch optimizer behaves."""

import io
import math

import numpy as np
import pytest
import torch

from steppe.optim import AMSGrad


def parameter(values, dtype=torch.float64):
    return torch.nn.Parameter(torch.tensor(values, dtype=dtype))


def test_two_steps_by_hand():
    """beta = (1/2, 3/4), lr = 1/10; d = 2, then d = 0: v falls to 3/4 and v^ stays at 1."""
    w = parameter([1.0])
    optimizer = AMSGrad([w], lr=0.1, betas=(0.5, 0.75))
    w.grad = torch.tensor([2.0], dtype=torch.float64)
    optimizer.step()
    assert w.item() == pytest.approx(1 - 0.1 * 1 / 1, abs=1e-15)
    w.grad = torch.zeros_like(w)
    optimizer.step()
    assert w.item() == pytest.approx(0.9 - 0.1 * 0.5 / 1, abs=1e-15)
    state = optimizer.state[w]
    assert [state[k].item() for k in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")] == [0.5, 0.75, 1.0]


class Slow:
    """The paper's five lines."""

    def __init__(self, w, lr, beta_1, beta_2, eps, decay):
        self.w, self.settings = w.copy(), (lr, beta_1, beta_2, decay)
        self.m, self.v, self.top = np.zeros_like(w), np.zeros_like(w), np.full_like(w, eps**2)

    def step(self, d):
        lr, beta_1, beta_2, decay = self.settings
        self.m = beta_1 * self.m + (1 - beta_1) * d
        self.v = beta_2 * self.v + (1 - beta_2) * d**2
        self.top = np.maximum(self.top, self.v)
        self.w = self.w * (1 - lr * decay) - lr * self.m / np.sqrt(self.top)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5), (0.3, 0.0)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("eps", [1e-8, 0.5])
def test_fifty_steps_against_numpy(betas, decay, eps):
    numbers = np.random.default_rng(0)
    start = [numbers.normal(size=s) for s in [(3, 2), (4,), ()]]
    ours = [torch.nn.Parameter(torch.tensor(w)) for w in start]
    slow = [Slow(w, 0.05, *betas, eps, decay) for w in start]
    optimizer = AMSGrad(ours, lr=0.05, betas=betas, eps=eps, weight_decay=decay)
    for t in range(50):
        for w, s in zip(ours, slow, strict=True):
            d = numbers.normal(size=s.w.shape) * (10 if t == 7 else 1)
            w.grad = torch.tensor(d)
            s.step(d)
        optimizer.step()
    for w, s in zip(ours, slow, strict=True):
        np.testing.assert_allclose(w.detach().numpy(), s.w, rtol=1e-12, atol=1e-12)


def test_it_is_not_torchs_amsgrad():
    ours, theirs = parameter([1.0]), parameter([1.0])
    one, other = AMSGrad([ours], lr=0.1), torch.optim.Adam([theirs], lr=0.1, amsgrad=True)
    for w in (ours, theirs):
        w.grad = torch.tensor([2.0], dtype=torch.float64)
    one.step(), other.step()
    assert ours.item() == pytest.approx(1 - 0.1 * 0.1 / math.sqrt(0.001), rel=1e-12), "no bias correction"
    assert theirs.item() == pytest.approx(0.9, rel=1e-6)


def test_eps_is_the_floor_of_the_root():
    w = parameter([1.0])
    w.grad = torch.tensor([1e-6], dtype=torch.float64)
    AMSGrad([w], lr=1.0, betas=(0.0, 0.0), eps=0.01).step()
    assert 1 - w.item() == pytest.approx(1e-6 / 0.01, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("eps", [1e-8, 1e-30])
def test_a_zero_gradient_moves_nothing_and_makes_no_nan(dtype, eps):
    """eps^2 is below the range of some types."""
    w = parameter([1.0, -2.0], dtype)
    optimizer = AMSGrad([w], lr=0.1, eps=eps)
    for _ in range(2):
        w.grad = torch.zeros_like(w)
        optimizer.step()
    assert w.tolist() == [1.0, -2.0]


def test_parameters_without_a_gradient_are_left_alone():
    w, other, frozen = parameter([1.0]), parameter([2.0]), parameter([3.0]).requires_grad_(False)
    optimizer = AMSGrad([w, other, frozen], lr=0.1, weight_decay=0.5)
    w.grad = torch.ones_like(w)
    optimizer.step()
    assert other.item() == 2.0 and frozen.item() == 3.0 and set(optimizer.state) == {w}
    AMSGrad([parameter([1.0])]).step()


def test_groups_have_their_own_settings():
    a, b = parameter([1.0]), parameter([1.0])
    for w in (a, b):
        w.grad = torch.ones_like(w)
    AMSGrad([{"params": [a]}, {"params": [b], "lr": 0.2, "betas": (0.0, 0.0)}], lr=0.1, betas=(0.5, 0.75)).step()
    assert a.item() == pytest.approx(1 - 0.1 * 0.5 / 0.5) and b.item() == pytest.approx(1 - 0.2)


def test_decay_is_decoupled_and_comes_first():
    w = parameter([10.0])
    w.grad = torch.ones_like(w)
    AMSGrad([w], lr=0.1, betas=(0.0, 0.0), weight_decay=0.5).step()
    assert w.item() == pytest.approx(10 * 0.95 - 0.1)


def test_a_rate_may_be_a_tensor_and_may_be_scheduled():
    plain, tensor = parameter([1.0, 2.0]), parameter([1.0, 2.0])
    both = [AMSGrad([plain], lr=0.1, weight_decay=0.1), AMSGrad([tensor], lr=torch.tensor(0.1), weight_decay=0.1)]
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in both]
    for _ in range(3):
        for w, o, s in zip((plain, tensor), both, schedules, strict=True):
            w.grad = torch.ones_like(w)
            o.step(), s.step()
    torch.testing.assert_close(plain, tensor, rtol=1e-6, atol=0)


def test_the_closure_is_called_once_with_gradients_on_and_its_loss_comes_back():
    w, calls = parameter([3.0]), []
    optimizer = AMSGrad([w], lr=0.1, betas=(0.0, 0.0))

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert float(optimizer.step(closure).detach()) == 9.0
    assert calls == [True] and w.item() == pytest.approx(2.9)
    assert optimizer.step() is None


def trained(w, optimizer, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        w.grad = torch.randn(w.shape, generator=generator, dtype=w.dtype)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_saved_state_continues_bit_for_bit(dtype):
    w = parameter([[1.0, -2.0, 3.0]], dtype)
    optimizer = AMSGrad([w], lr=0.05, betas=(0.8, 0.9), weight_decay=0.01)
    trained(w, optimizer, 7, seed=0)
    file = io.BytesIO()
    torch.save({"w": w.detach(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = torch.nn.Parameter(saved["w"].clone())
    resumed = AMSGrad([other], lr=9.0)
    resumed.load_state_dict(saved["optimizer"])
    trained(w, optimizer, 5, seed=1), trained(other, resumed, 5, seed=1)
    assert torch.equal(w, other)
    assert resumed.param_groups[0]["lr"] == 0.05
    for k, v in optimizer.state[w].items():
        assert torch.equal(v, resumed.state[other][k])


REFUSED = {
    "lr below 0": {"lr": -0.1},
    "lr nan": {"lr": math.nan},
    "lr inf": {"lr": math.inf},
    "beta 1": {"betas": (1.0, 0.9)},
    "beta above 1": {"betas": (0.9, 1.1)},
    "beta below 0": {"betas": (-0.1, 0.9)},
    "one beta": {"betas": (0.9,)},
    "beta alone": {"betas": 0.9},
    "eps 0": {"eps": 0.0},
    "eps below 0": {"eps": -1e-8},
    "eps nan": {"eps": math.nan},
    "decay below 0": {"weight_decay": -0.1},
    "decay word": {"weight_decay": "none"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name):
    with pytest.raises(ValueError, match="was given; expected") as caught:
        AMSGrad([parameter([1.0])], **REFUSED[name])
    assert "\n" not in str(caught.value)
