"""The stacked runs are those of a comparison, one by one."""

import itertools
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import mnist1d_rates  # noqa: E402

from steppe.compare.engine import run  # noqa: E402
from steppe.compare.engine.runs import Run  # noqa: E402
from steppe.compare.engine.spec import resolve  # noqa: E402


@pytest.mark.parametrize(("samples", "rho"), [(0, 0.0), (4, 0.2)])
def test_the_stacked_arithmetic_is_that_of_a_comparison(samples, rho):
    jobs = [mnist1d_rates.Job(60, 20, 7, lr, seed, samples, rho) for lr, seed in ((0.01, 3), (0.02, 4))]
    *_, stacked = mnist1d_rates.train(jobs)
    for place, job in enumerate(jobs):
        fixed = {"task": "mnist1d", "device": "cpu", "model": "cnn", "labelled": 60, "batch_size": 20, "lr": job.lr}
        spec = resolve(fixed)
        task = run.load_task(spec, job.seed)
        made = Run("sam:samples=4", rho, job.seed) if samples else Run("base", None, job.seed)
        trainer = run.make_trainer(spec, task, made, job.steps)
        for batch in itertools.islice(itertools.chain.from_iterable(run.batches(task, 20, job.seed)), job.steps):
            trainer.step(batch)
        for own, theirs in zip(stacked, trainer.model.parameters(), strict=True):
            torch.testing.assert_close(own[place], theirs, atol=2e-5, rtol=1e-4)


def test_the_page_quotes_the_file():
    runs = json.loads((ROOT / "benchmarks" / "results" / "mnist1d_rates.json").read_text())["runs"]
    assert {tuple(each[name] for name in mnist1d_rates.Job.__dataclass_fields__) for each in runs} == {
        tuple(getattr(job, name) for name in mnist1d_rates.Job.__dataclass_fields__) for job in mnist1d_rates.wanted()
    }
    page = (ROOT / "docs" / "compare.md").read_text()

    def mean(lr, rho):
        found = [r["test"] for r in runs if (r["labelled"], r["steps"], r["lr"], r["rho"]) == (3000, 2000, lr, rho)]
        return f"{sum(found) / len(found):.1f}"

    for lr in (0.005, 0.01, 0.02, 0.04):
        assert f"| {lr:g} | {mean(lr, 0.0)} | {mean(lr, 0.1)} | {mean(lr, 0.2)} |" in page
