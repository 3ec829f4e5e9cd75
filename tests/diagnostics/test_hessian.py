"""The Hessian's spectrum beside closed forms and dense Hessians; the model afterwards."""

import copy

import pytest
import torch
from tests import problems
from tests.bowl import H, Tensors, bowl_loss
from tests.diagnostics.test_untouched import prepared, state
from torch import nn
from torch.func import functional_call

from steppe.diagnostics import curvature, lambda_max
from steppe.diagnostics._surface import Surface

pytest.importorskip("hessian_eigenthings")


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def cnn():
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.GELU(), nn.Flatten(), nn.Linear(16, 3)
    ).eval()


class Attention(nn.Module):
    """Attention through torch's fused kernel, which has no second derivative of its own."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv = nn.Linear(2, 4), nn.Linear(4, 12)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(12, 3)

    def forward(self, x):
        tokens = self.embed(x.view(-1, 3, 2))
        seen = nn.functional.scaled_dot_product_attention(*self.qkv(tokens).chunk(3, -1))
        return self.head(self.norm(tokens + seen).flatten(1))


def trained(kind, dtype=torch.float32):
    """A small network after some training, its loss and two batches."""
    torch.manual_seed(0)
    model = kind().to(dtype)
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(20, 6, generator=generator).to(dtype), torch.randint(3, (20,), generator=generator)) for _ in "ab"
    ]
    loss_of = problems.loss_of(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(30):
        optimizer.zero_grad()
        loss_of(batches[step % 2]).backward()
        optimizer.step()
    return model, loss_of, batches


def dense(model, batches):
    """The Hessian of the mean loss in float64, one row after the other."""
    model = copy.deepcopy(model).double()
    names, values = zip(*model.named_parameters(), strict=True)
    sizes = [v.numel() for v in values]

    def loss(flat):
        parts = {n: p.view(v.shape) for n, p, v in zip(names, flat.split(sizes), values, strict=True)}
        losses = [nn.functional.cross_entropy(functional_call(model, parts, (x.double(),)), y) for x, y in batches]
        return torch.stack(losses).mean()

    flat = torch.cat([v.detach().reshape(-1) for v in values])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.autograd.functional.hessian(loss, flat)


@pytest.mark.parametrize("kind", [mlp, cnn, Attention])
def test_both_ends_trace_and_density_of_a_small_network(kind):
    model, loss_of, batches = trained(kind)
    found = curvature(model, loss_of, batches, steps=25, probes=500, runs=2)
    hessian = dense(model, batches)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    assert found.weights == len(eigenvalues) < 500
    assert found.lambda_max.value == pytest.approx(float(eigenvalues[-1]), rel=0.01)
    assert found.lambda_min.value == pytest.approx(float(eigenvalues[0]), abs=0.01 * float(eigenvalues[-1]))
    for end, true in ((found.lambda_max, eigenvalues[-1]), (found.lambda_min, eigenvalues[0])):
        assert abs(end.value - float(true)) < 2 * end.error < 2e-4, "in float32 nothing is known to 1e-26"
    assert found.trace.value == pytest.approx(float(hessian.trace()), rel=0.01)
    assert found.trace.error == 0.0
    grid, density = (torch.tensor(v, dtype=torch.float64) for v in (found.density.eigenvalue, found.density.density))
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=0.02)
    mean = float(torch.trapezoid(density * grid, grid))
    assert mean == pytest.approx(float(eigenvalues.mean()), abs=0.15 * float(eigenvalues[-1]))


@pytest.mark.parametrize("kind", [mlp, cnn, Attention])
def test_a_trace_of_few_probes_says_its_error(kind):
    model, loss_of, batches = trained(kind)
    true = float(dense(model, batches).trace())
    found = curvature(model, loss_of, batches, steps=1, probes=60, runs=0).trace
    assert abs(found.value - true) < 4 * found.error
    assert 0 < found.error < 0.25 * abs(true)
    assert curvature(model, loss_of, batches, steps=1, probes=5, runs=0).trace.error is None, "one sample has no spread"


def test_estimates_follow_the_seed():
    few = {"steps": 5, "probes": 9, "runs": 1}
    first, again, other = (curvature(*trained(mlp), **few, seed=seed) for seed in (0, 0, 1))
    assert first == again
    for name in ("lambda_max", "lambda_min", "trace", "density"):
        assert getattr(first, name) != getattr(other, name)


def test_a_quadratics_spectrum_is_its_matrixs():
    model = Tensors(w=torch.zeros(len(H), dtype=torch.float64))
    loss = bowl_loss(model)
    found = curvature(model, lambda _: loss(), [None], runs=0)
    eigenvalues = torch.linalg.eigvalsh((H + H.T) / 2)
    assert found.lambda_max.value == pytest.approx(float(eigenvalues[-1]), rel=1e-12)
    assert found.lambda_min.value == pytest.approx(float(eigenvalues[0]), rel=1e-9)
    assert found.trace.value == pytest.approx(float(H.trace()), rel=1e-12)
    assert found.density is None and found.loss == 0.0
    assert found.lambda_max.error < 1e-9


def test_an_unfinished_lanczos_is_within_its_error():
    model, loss_of, batches = trained(mlp, torch.float64)
    eigenvalues = torch.linalg.eigvalsh(dense(model, batches))
    found = lambda_max(model, loss_of, batches, steps=5)
    assert found.error > 1e-3
    assert float((eigenvalues - found.value).abs().min()) <= found.error
    assert found.value <= float(eigenvalues[-1])


def test_a_loss_without_curvature_has_none():
    model = Tensors(w=torch.ones(3), b=torch.ones(2))
    found = curvature(model, lambda _: 3 * model.w.sum(), [None], steps=2, runs=1)
    assert (found.lambda_max.value, found.lambda_min.value, found.trace.value) == (0.0, 0.0, 0.0)


def test_products_draw_the_same_masks_each_time():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.5), nn.Tanh(), nn.Linear(7, 3)).double()
    surface = Surface(model, problems.loss_of(model), problems.batches(2))
    a, b = ([torch.randn_like(w) for w in surface.weights] for _ in "ab")
    with surface.lent():
        ha, hb = surface.product(a), surface.product(b)
    left, right = (float(sum((x * y).sum() for x, y in zip(*pair, strict=True))) for pair in ((b, ha), (a, hb)))
    assert left == pytest.approx(right, rel=1e-12), "not symmetric: the passes drew other masks"


def test_everything_is_as_before():
    model, optimizer = prepared()
    before = state(model, optimizer)
    curvature(model, problems.loss_of(model), problems.batches(2), steps=3, probes=3, runs=1)
    assert problems.same(before, state(model, optimizer))


def test_everything_is_as_before_after_an_error():
    model, optimizer = prepared()
    before, calls = state(model, optimizer), []

    def loss_of(batch):
        calls.append(1)
        if len(calls) == 5:
            raise KeyError("enough")
        return problems.loss_of(model)(batch)

    with pytest.raises(KeyError, match="enough"):
        curvature(model, loss_of, problems.batches(2))
    assert problems.same(before, state(model, optimizer))


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (lambda m: m.bfloat16(), {}, "is bfloat16, whose few bits drown second derivatives; expected float32"),
        (lambda m: m.requires_grad_(False), {}, "no parameter of the model requires a gradient"),
        (lambda m: m, {"steps": 0}, "steps=0 was given; expected a whole number of at least 1"),
        (lambda m: m, {"probes": -1}, "probes=-1 was given"),
        (lambda m: m, {"batches": []}, "batches gave no batch"),
        (lambda m: m, {"loss_of": lambda batch: batch[0]}, r"loss_of returned a tensor of shape \(8, 5\)"),
        (lambda m: m, {"loss_of": lambda batch: batch[0].sum()}, "does not depend on the model's trained weights"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(change, options, sentence):
    model = change(problems.net())
    given = {"loss_of": problems.loss_of(model), "batches": list(problems.batches(1))} | options
    with pytest.raises((ValueError, TypeError), match=sentence):
        curvature(model, given.pop("loss_of"), given.pop("batches"), **given)


def test_the_picture_has_the_density_and_marks_the_largest():
    model, loss_of, batches = trained(mlp)
    found = curvature(model, loss_of, batches, steps=10, probes=3, runs=1)
    axes = found.plot(label="base")
    density, mark = axes.get_lines()
    assert tuple(density.get_ydata()) == found.density.density
    assert mark.get_xdata()[0] == found.lambda_max.value
    assert axes.get_legend().get_texts()[0].get_text() == "base"
