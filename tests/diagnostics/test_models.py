"""The finder on models, batches and optimizers of every kind; what must not change its findings."""

import pytest
import torch
from tests import problems
from tests.diagnostics.test_untouched import state
from torch import nn

import steppe

F = nn.functional


def two_layers(scale=1.0, dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, 3, bias=False)).to(dtype)
    with torch.no_grad():
        model[0].weight.mul_(scale)
        model[2].weight.div_(scale)
    return model


def search(model, optimizer=None, batches=None, loss_of=None, method="sam", **options):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    batches = batches or list(problems.batches(4, next(model.parameters()).dtype))
    loss_of = loss_of or problems.loss_of(model)
    defaults = {"radii": (0.05, 0.1, 0.2, 0.4), "looks": 2, "trial": 0}
    return steppe.find_rho(model, optimizer, loss_of, batches, method, **defaults | options)


def cosines(found):
    return [look.cosine for look in found.curve]


# What must not change the findings


@pytest.mark.parametrize("factor", [1e-3, 1e4])
def test_the_scale_of_the_loss(factor):
    model = two_layers()
    plain = search(model)
    scaled = search(model, loss_of=lambda batch: factor * problems.loss_of(model)(batch))
    assert cosines(scaled) == pytest.approx(cosines(plain), rel=1e-9)
    assert scaled.linear == pytest.approx(plain.linear, rel=1e-9)
    assert scaled.curve[0].rise == pytest.approx(factor * plain.curve[0].rise, rel=1e-6)


@pytest.mark.parametrize(
    "ascent", [steppe.Ascent(metric=steppe.Adaptive(0.0)), steppe.Ascent(scope="trust")], ids=["asam", "trust"]
)
def test_layers_rescaled_against_each_other_in_a_metric_that_does_not_mind(ascent):
    one, other = (search(two_layers(scale), method=ascent) for scale in (1.0, 8.0))
    assert [look.rise for look in other.curve] == pytest.approx([look.rise for look in one.curve], rel=1e-9)


def test_layers_rescaled_do_change_sams_curve():
    one, other = (search(two_layers(scale)) for scale in (1.0, 8.0))
    assert abs(one.curve[0].rise / other.curve[0].rise - 1) > 0.1


def test_the_order_of_the_radii():
    model = two_layers()
    assert search(model, radii=(0.4, 0.05, 0.2, 0.1)) == search(model, radii=(0.05, 0.1, 0.2, 0.4))


def test_gradients_that_are_lying_around():
    model = two_layers()
    clean = search(model, trial=3)
    problems.loss_of(model)(problems.BATCH).backward()
    assert search(model, trial=3) == clean


def test_a_momentum_that_is_there_counts_in_the_trials():
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    fresh = search(model, optimizer, trial=4)
    problems.loss_of(model)(problems.BATCH).backward()
    with torch.no_grad():
        kept = [p.clone() for p in model.parameters()]
        optimizer.step()
        for p, k in zip(model.parameters(), kept, strict=True):
            p.copy_(k)
    moving = search(model, optimizer, trial=4)
    assert moving.curve == fresh.curve and moving.trials != fresh.trials


# Models, batches, optimizers


def test_a_group_that_is_not_perturbed():
    model = two_layers()
    groups = [{"params": model[0].parameters(), "perturb": False}, {"params": model[2].parameters()}]
    first = search(model, torch.optim.SGD(groups, lr=0.1)).curve[0]
    batches = list(problems.batches(2))
    norms = [torch.autograd.grad(problems.loss_of(model)(batch), model[2].weight)[0].norm().item() for batch in batches]
    assert first.predicted == pytest.approx(0.05 * sum(norms) / 2, rel=1e-9)


def test_frozen_weights_do_not_move():
    model = two_layers()
    model[0].weight.requires_grad_(False)
    before = problems.everything(model)
    found = search(model, torch.optim.SGD([model[2].weight], lr=0.1), trial=3)
    assert found.curve and problems.same(before, problems.everything(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_of_few_bits(dtype):
    model = two_layers(dtype=dtype)
    before = problems.everything(model)
    found = search(model, radii=(0.2, 0.4), trial=2)
    assert problems.same(before, problems.everything(model))
    assert 0.5 < found.curve[0].rise / found.curve[0].predicted < 2


def test_batches_that_are_dicts():
    model = two_layers()
    pairs = list(problems.batches(4))
    dicts = [{"x": x, "y": y} for x, y in pairs]
    named = search(model, batches=dicts, loss_of=lambda b: F.cross_entropy(model(b["x"]), b["y"]), samples=2)
    assert named == search(model, batches=pairs, samples=2)


def test_a_shuffled_loader_goes_on_as_if_nothing_had_been_read():
    model = two_layers()
    data = torch.utils.data.TensorDataset(*(torch.cat(parts) for parts in zip(*problems.batches(4), strict=True)))
    orders = []
    for searched in (False, True):
        generator = torch.Generator().manual_seed(2)
        loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True, generator=generator)
        if searched:
            search(model, batches=loader, trial=6)
        orders.append(torch.cat([y for _, y in loader]))
    assert torch.equal(*orders)


def test_a_loader_on_the_global_generator():
    model = two_layers()
    data = torch.utils.data.TensorDataset(*(torch.cat(parts) for parts in zip(*problems.batches(4), strict=True)))
    loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
    torch.manual_seed(4)
    before = torch.get_rng_state()
    found = search(model, batches=loader, trial=6)
    assert torch.equal(before, torch.get_rng_state())
    assert found == search(model, batches=loader, trial=6)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam])
def test_any_optimizer(kind):
    model = problems.net()
    optimizer = kind(model.parameters(), lr=1e-3)
    problems.train(model, optimizer, None, steps=2)
    before = state(model, optimizer)
    search(model, optimizer, trial=3)
    assert problems.same(before, state(model, optimizer))


def test_an_ascent_through_a_view_of_the_batch():
    model = two_layers()
    halved = search(model, method=steppe.Ascent(), look=steppe.Look(view=lambda batch: (batch[0][:4], batch[1][:4])))
    assert halved == search(model, method=steppe.Ascent(), look=steppe.Look(4))


def test_a_model_whose_loss_is_flat():
    model = two_layers()
    found = search(model, loss_of=lambda batch: 0.0 * model(batch[0]).sum(), trial=4)
    assert found.trials == () and "learned nothing" in found.why


@pytest.mark.gpu
def test_on_a_gpu_all_is_as_before():
    model = problems.net(torch.float32).to("cuda")
    optimizer = problems.BASES["sgd"](model)
    batches = [(x.cuda(), y.cuda()) for x, y in problems.batches(4, torch.float32)]
    before, generator = problems.everything(model), torch.cuda.get_rng_state()
    assert search(model, optimizer, batches, trial=3).rho > 0
    assert problems.same(before, problems.everything(model)) and torch.equal(generator, torch.cuda.get_rng_state())
