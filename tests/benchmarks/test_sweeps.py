"""The benchmarks' own arithmetic and bookkeeping, on tasks that train in a blink."""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from steppe.compare.data.examples import Split
from steppe.compare.engine.runs import Run

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import large_batch  # noqa: E402
import rho_finder  # noqa: E402
import suite  # noqa: E402
import sweep  # noqa: E402

sys.path.remove(str(ROOT / "benchmarks"))
TINY = "tests.compare.tiny:task"


def test_a_finished_run_is_not_repeated(tmp_path, monkeypatch):
    spec = sweep.settings(TINY, "")
    runs = [Run("sam", 0.1, 0), Run("base", None, 1)]
    first = sweep.records(spec, runs, tmp_path)
    assert [(each["method"], each["seed"]) for each in first] == [("sam", 0), ("base", 1)]
    monkeypatch.setattr(sweep, "train", lambda *_: pytest.fail("trained again"))
    assert sweep.records(spec, runs[::-1], tmp_path) == first[::-1]


def test_other_settings_are_other_runs(tmp_path):
    one, other = (
        sweep.records(sweep.settings(TINY, "", lr=lr), [Run("base", None, 0)], tmp_path) for lr in (0.05, 0.5)
    )
    assert one[0]["curve"] != other[0]["curve"]


def test_fashion_is_read_from_the_users_folder(tmp_path):
    assert sweep.settings(sweep.FASHION, str(tmp_path)).task == f"idx:{tmp_path}"


def test_one_case_of_the_finder_from_the_sweep_to_its_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(rho_finder, "RADII", (0.1, 0.3))
    monkeypatch.setattr(rho_finder, "AFTER", (0, 3))
    found = rho_finder.case(TINY, {}, "sam", 2, "", tmp_path)
    tests = {row["rho"]: row["test"] for row in found["sweep"]}
    assert found["best"]["test"] == max(tests.values()) and set(tests) == {0.1, 0.3}
    assert found["finder"]["short_of_best"] == pytest.approx(max(tests.values()) - found["finder"]["test"])
    assert set(found["linear_after_steps_of_the_base"]) == {"0", "3"}
    assert found["finder"]["in_trainings"] > 0
    assert json.loads(json.dumps(found)) == rho_finder.case(TINY, {}, "sam", 2, "", tmp_path), "all of it was kept"


def test_asams_sweep_is_in_its_units(tmp_path, monkeypatch):
    monkeypatch.setattr(rho_finder, "RADII", (0.1,))
    monkeypatch.setattr(rho_finder, "AFTER", (0,))
    assert [row["rho"] for row in rho_finder.case(TINY, {}, "asam", 1, "", tmp_path)["sweep"]] == [1.0]


def test_the_cost_of_a_search_in_passes():
    search = {"curve": [None] * 9, "trials": [None] * 3}
    # 4 looks at 1 + 9 points; 80 steps of the base and 3 x 80 of SAM; beside 400 steps of SAM
    assert rho_finder.cost(search, 80, {"steps": 400, "passes": 2.0}) == pytest.approx((40 + 80 + 480) / 800)
    assert rho_finder.cost(search | {"trials": []}, 0, {"steps": 400, "passes": 2.0}) == pytest.approx(40 / 800)


def test_every_schedule_ascends_on_half_of_the_steps():
    from steppe._command.choices import parse_all

    for choice in parse_all([suite.CLAIMS["schedules"].methods])[1:]:
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sharp = choice.build(model, optimizer, value=0.1, seed=0, total_steps=2000)
        taken = [sharp.schedule.decide(step, 0, lambda: torch.zeros(()), {})[0] for step in range(2000)]
        assert sum(taken) / 2000 == pytest.approx(0.5, abs=0.04), choice.text


def test_the_rate_rises_and_falls():
    shares = [large_batch.shape(step, 20) for step in range(20)]
    assert shares[:3] == pytest.approx([0.5, 1.0, 1.0]) and shares == [*shares[:2], *sorted(shares[2:], reverse=True)]
    assert 0 < shares[-1] < 0.02
    assert large_batch.shape(0, 1) == 1.0


def test_the_small_vit_reads_every_pixel_of_a_patch():
    torch.manual_seed(0)
    model, x = large_batch.small_vit(), torch.randn(2, 1, 12, 12, requires_grad=True)
    model(x).sum().backward()
    assert model(x).shape == (2, 10) and bool((x.grad != 0).all())
    assert model.position.shape == (1, 10, large_batch.WIDTH)


@pytest.fixture
def images(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(64) % 10
    x = torch.randn(64, 1, 12, 12, generator=rng) + F.one_hot(y, 12).float()[:, None, None, :] * 2
    monkeypatch.setattr(large_batch, "data", lambda *_: (Split(x, y),) * 3)
    monkeypatch.setattr(large_batch, "BATCHES", (16, 32))
    monkeypatch.setattr(large_batch, "PIECE", 16)
    return large_batch.Size(64, 2, "cpu")


@pytest.mark.parametrize("method", large_batch.METHODS)
def test_one_training(method, images):
    rho = None if method == "lamb" else 0.02
    found = large_batch.train(large_batch.Training(method, 32, 0.01, rho, 0), images, "")
    assert found["steps"] == 4 and 0 <= found["test"] <= 1 and found["method"] == method


def test_pieces_add_up_to_the_batch(images, monkeypatch):
    run = large_batch.Training("look_layer_sam", 32, 0.01, 0.02, 0)
    ends = []
    for piece in (16, 32):
        monkeypatch.setattr(large_batch, "PIECE", piece)
        ends.append([])
        monkeypatch.setattr(
            large_batch.measure, "accuracy", lambda model, _, end=ends[-1]: end.append(flat(model)) or 0.5
        )
        large_batch.train(run, images, "")
    # LAMB divides by the root of tiny moments: rounding grows, so the whole is compared and not each weight.
    assert (ends[0][0] - ends[1][0]).norm() < 1e-3 * ends[0][0].norm()


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_rows_choose_on_validation_and_keep_what_is_done(images, tmp_path, monkeypatch):
    made = []

    def train(run, size, fashion):
        made.append(run)
        good = run.rate == 0.01 and run.rho in (None, 0.005)
        return asdict(run) | {"val": 0.9 if good else 0.1, "test": 0.8 + 0.01 * run.seed, "steps": 4, "seconds": 1.0}

    monkeypatch.setattr(large_batch, "train", train)
    bench = large_batch.Bench(images, "", tmp_path, math.inf)
    found = bench.row("layer_sam", 32, seeds=3)
    assert (found["rate"], found["rho"]) == (0.01, 0.005)
    assert found["tests"] == pytest.approx([0.80, 0.81, 0.82]) and found["deviation"] == pytest.approx(0.01)
    assert len(made) == 2 + 2 + 2, "two rates, two radii, two more seeds"
    assert large_batch.Bench(images, "", tmp_path, math.inf).row("layer_sam", 32, seeds=3) == found and len(made) == 6


def test_no_run_begins_after_the_minutes(images, tmp_path):
    with pytest.raises(large_batch._LateError):
        large_batch.Bench(images, "", tmp_path, -1.0).row("lamb", 32, seeds=1)
