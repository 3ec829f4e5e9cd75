"""Running statistics of every make move in the first pass only, whoever owns them and however they are written."""

import copy

import pytest
import torch
from torch import nn

import steppe
from steppe._state import Watch

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


class InPlace(nn.Module):
    """A running mean of its own, moved in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.mean.lerp_(x.detach().mean(0), 0.5)
        self.seen += 1
        return x - self.mean


class Rebound(InPlace):
    """The same, rebound to new tensors."""

    def forward(self, x):
        self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)
        self.seen = self.seen + 1
        return x - self.mean


class ReboundTwice(InPlace):
    """Rebound twice a pass, so that an id may come back."""

    def forward(self, x):
        self.mean = self.mean + 0.0
        self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)
        self.seen = self.seen + 1
        self.seen = self.seen + 0
        return x - self.mean


class ThroughData(InPlace):
    """Moved behind autograd's back, where no version is counted."""

    def forward(self, x):
        self.mean.data.lerp_(x.detach().mean(0), 0.5)
        self.seen += 1
        return x - self.mean


class Functional(nn.Module):
    """The kernel of batch norm in a module of another make: it moves its statistics without counting a version."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))

    def forward(self, x):
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, training=self.training)


class FirstInForward(nn.Module):
    """Registers its buffers in its first pass."""

    def forward(self, x):
        if "mean" not in self._buffers:
            self.register_buffer("mean", torch.zeros(3))
            self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.mean.lerp_(x.detach().mean(0), 0.5)
        self.seen += 1
        return x - self.mean


class NoneAtFirst(nn.Module):
    """A buffer that is None until its first pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", None)

    def forward(self, x):
        now = x.detach().mean(0)
        self.mean = now if self.mean is None else 0.5 * self.mean + 0.5 * now
        return x - self.mean


class Deleting(nn.Module):
    """Drops a buffer in its first pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("once", torch.ones(3))

    def forward(self, x):
        if "once" in self._buffers:
            del self.once
        return x


LAYERS = {
    "batch norm": lambda: nn.BatchNorm1d(3),
    "cumulative batch norm": lambda: nn.BatchNorm1d(3, momentum=None),
    "in place": InPlace,
    "rebound": Rebound,
    "rebound twice": ReboundTwice,
    "through data": ThroughData,
    "functional": Functional,
    "registered in forward": FirstInForward,
    "none at first": NoneAtFirst,
    "deleting": Deleting,
}


def network(name, train=True):
    torch.manual_seed(1)
    layer = LAYERS[name]()
    model = nn.Sequential(nn.Linear(3, 3), layer, nn.Linear(3, 1))
    layer.train(train)
    return model


def buffers(model):
    return {k: b.clone() for k, b in model.named_buffers()}


def equal(a, b):
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def loss_of(model, x=X):
    return lambda: (model(x) - 1).square().sum()


@pytest.mark.parametrize("name", LAYERS)
def test_statistics_move_in_the_first_pass_only(name):
    model, once = network(name), network(name)
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
    for _ in range(3):
        once(X)
        sharp.backward(loss_of(model))
        assert equal(buffers(model), buffers(once))


@pytest.mark.parametrize("name", ["batch norm", "cumulative batch norm", "functional"])
def test_statistics_of_a_frozen_norm_do_not_move_at_all(name):
    model, once = network(name, train=False), network(name, train=False)
    steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5).backward(loss_of(model))
    assert equal(buffers(model), buffers(once))


@pytest.mark.parametrize("name", ["batch norm", "in place", "rebound", "functional"])
def test_statistics_by_phases(name):
    model, once = network(name), network(name)
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
    sharp.mark()
    loss_of(model)().backward()
    once(X)
    assert sharp.ascend()
    loss_of(model)().backward()
    sharp.restore()
    assert equal(buffers(model), buffers(once))


def test_batch_norm_without_a_mark_is_held_too():
    model, once = network("batch norm"), network("batch norm")
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
    loss_of(model)().backward()
    once(X)
    sharp.ascend()
    loss_of(model)().backward()
    sharp.restore()
    assert equal(buffers(model), buffers(once))


@pytest.mark.parametrize("name", ["in place", "rebound", "rebound twice"])
def test_a_module_in_evaluation_mode_that_moves_its_buffers_moves_them_once(name):
    model, once = network(name, train=False), network(name, train=False)
    steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5).backward(loss_of(model))
    once(X)
    assert int(model[1].seen) == 1 and equal(buffers(model), buffers(once))


def test_a_rebound_buffer_is_the_object_of_the_first_pass():
    model = network("rebound")
    seen = []
    model[1].register_forward_hook(lambda m, *_: seen.append(m.mean))
    steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1)).backward(loss_of(model))
    assert len(seen) == 2 and model[1].mean is seen[0]


def test_statistics_are_back_when_the_second_pass_raises():
    model, once = network("batch norm"), network("batch norm")
    calls = []

    def loss():
        value = loss_of(model)()
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return value

    with pytest.raises(KeyboardInterrupt):
        steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5).backward(loss)
    once(X)
    assert equal(buffers(model), buffers(once))


def test_a_state_puts_back_objects_and_values():
    layer = InPlace()
    mean = layer.mean
    state = Watch(lambda: [layer], lambda: []).start()
    layer(X)
    layer.mean = torch.full((3,), 9.0)
    state.back()
    assert layer.mean is mean and not mean.any() and int(layer.seen) == 0


def test_compiled_statistics_move_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), InPlace(), nn.BatchNorm1d(3))
    once = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager")
    sharp = steppe.SAM(compiled, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
    sharp.backward(loss_of(compiled))
    once(X)
    got, wanted = buffers(model), buffers(once)
    assert list(got) == list(wanted)
    assert all(torch.allclose(got[k], wanted[k], rtol=1e-5, atol=1e-6) for k in wanted)
    assert int(model[1].seen) == int(model[2].num_batches_tracked) == 1
