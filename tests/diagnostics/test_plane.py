"""The loss over a plane: a quadratic on paper, the scale of the filters, both models where they are, all as before."""

import copy
import math

import pytest
import torch
from tests import problems
from tests.bowl import Tensors
from tests.diagnostics.test_untouched import prepared, state
from torch import nn

from steppe.diagnostics import loss_plane

START, END = torch.tensor([[3.0, 4.0], [0.0, 2.0]]).double(), torch.tensor([[5.0, 0.0], [2.0, 2.0]]).double()


def test_a_quadratic_on_paper():
    model = Tensors(w=END)
    found = loss_plane(model, lambda _: model.w.square().sum() / 2, [None], {"w": START}, points=5)
    middle = (START + END) / 2
    unit, way = float(middle.norm()), END - START
    half = float(way.norm()) / unit / 2
    base, centre, end = found.points
    assert [p.name for p in found.points] == ["base", "middle", "model"]
    assert (base.x, centre.x, end.x) == pytest.approx((-half, 0, half), rel=1e-12)
    for point, w in zip(found.points, (START, middle, END), strict=True):
        assert point.loss == pytest.approx(float(w.square().sum()) / 2, rel=1e-12)
    assert found.x[0] == pytest.approx(-1.6 * half) and found.x == found.y
    along = [float((middle + x * unit * way / way.norm()).square().sum()) / 2 for x in found.x]
    assert found.loss[2] == pytest.approx(along, rel=1e-9), "a row is along x, the middle one through the models"
    # ||c + x a + y d||^2 / 2 with <c, a>, <c, d>, <a, d> known but for d: the second differences are the unit's.
    step = found.x[1] - found.x[0]
    for i in range(5):
        row, column = found.loss[i], [r[i] for r in found.loss]
        for values in (row, column):
            second = (values[2] - 2 * values[1] + values[0]) / step**2
            assert second == pytest.approx(unit**2, rel=1e-9)
    mixed = (found.loss[1][1] - found.loss[1][0] - found.loss[0][1] + found.loss[0][0]) / step**2
    assert mixed == pytest.approx(unit**2 * found.cosine, rel=1e-9)


def test_every_filter_moves_by_its_own_length_and_vectors_stay():
    model, seen = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(6, 2)).double(), []
    start = {n: w.detach().clone() for n, w in model.named_parameters()}

    def loss_of(batch):
        seen.append({n: w.detach() - start[n] for n, w in model.named_parameters()})
        return model(batch).square().mean()

    loss_plane(model, loss_of, [torch.randn(4, 2, 3).double()], points=3)
    moved = seen[1]  # the grid's first row, second column: x = 0, y = -1
    for name, eps in moved.items():
        if eps.ndim < 2:
            assert not eps.any()
        else:
            torch.testing.assert_close(eps.flatten(1).norm(dim=1), start[name].flatten(1).norm(dim=1))


def test_random_axes_follow_the_seed():
    model = Tensors(w=END)
    for base in (None, {"w": START}):
        first, again, other = (
            loss_plane(model, lambda _: model.w.square().sum() / 2, [None], base, points=3, seed=seed).loss
            for seed in (0, 0, 1)
        )
        assert first == again != other


def test_both_models_have_their_own_loss_with_batch_statistics():
    model, optimizer = prepared()
    base = copy.deepcopy(model).train()
    problems.train(model, optimizer, None, steps=5)
    model.eval(), model.drop.train(False)
    batches = list(problems.batches(2))
    found = loss_plane(model, problems.loss_of(model), batches, base.state_dict(), points=2)
    assert found.batch_statistics
    for point, net in (("base", base), ("model", model)):
        twin = copy.deepcopy(net).eval()
        twin.norm.train()
        mine = next(p for p in found.points if p.name == point)
        expected = sum(float(problems.loss_of(twin)(b).detach()) for b in batches) / 2
        assert mine.loss == pytest.approx(expected, rel=1e-9)
    assert not model.norm.training


def test_everything_is_as_before():
    model, optimizer = prepared()
    base = {n: w + 0.1 for n, w in model.state_dict().items()}
    before = state(model, optimizer)
    loss_plane(model, problems.loss_of(model), problems.batches(1), base, points=2)
    assert problems.same(before, state(model, optimizer))


def test_everything_is_as_before_after_an_error():
    model, optimizer = prepared()
    model.eval()
    before, calls = state(model, optimizer), []

    def loss_of(batch):
        calls.append(1)
        if len(calls) == 4:
            raise KeyError("enough")
        return problems.loss_of(model)(batch)

    with pytest.raises(KeyError, match="enough"):
        loss_plane(model, loss_of, problems.batches(1), {n: w + 0.1 for n, w in model.state_dict().items()}, points=3)
    assert problems.same(before, state(model, optimizer))
    assert not any(m.training for m in model.modules())


def test_a_loss_that_is_not_a_number_is_infinite():
    model = Tensors(w=END)
    found = loss_plane(model, lambda _: (model.w.sum() - 9.5).log(), [None], points=3)
    assert math.inf in {v for row in found.loss for v in row}
    found.plot()


def test_a_loss_of_zero_everywhere_is_drawn_without_contours():
    axes = loss_plane(model := Tensors(w=END), lambda _: 0 * model.w.sum(), [None], points=3).plot()
    assert not axes.collections


@pytest.mark.parametrize(
    ("base", "options", "sentence"),
    [
        ({"w": END}, {}, "base and model have the same weights"),
        ({"v": END}, {}, r"its parameter w, of shape \(2, 2\), is missing there"),
        ({"w": END[0]}, {}, r"has the shape \(2,\) there"),
        (None, {"points": 1}, "points=1 was given; expected a whole number of at least 2"),
        (None, {"reach": 0.0}, "reach=0.0 was given"),
    ],
)
def test_what_spans_no_plane_is_refused(base, options, sentence):
    model = Tensors(w=END)
    with pytest.raises(ValueError, match=sentence):
        loss_plane(model, lambda _: model.w.square().sum(), [None], base, **options)


def test_vectors_alone_have_no_filters():
    model = Tensors(w=END[0])
    with pytest.raises(ValueError, match="the trained weights are vectors only"):
        loss_plane(model, lambda _: model.w.square().sum(), [None])


def test_the_picture_marks_the_models():
    model = Tensors(w=END)
    found = loss_plane(model, lambda _: model.w.square().sum() / 2, [None], {"w": START}, points=5)
    axes = found.plot()
    assert [text.get_text().split()[0] for text in axes.texts] == ["base", "middle", "model"]
    assert axes.collections, "no contours"
