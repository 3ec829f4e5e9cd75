"""benchmarks/look_sam_default.py: the candidates are the library's pushes, harm is that of the same seeds; MNIST-1D."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import look_sam_default as study  # noqa: E402

sys.path.remove(str(Path(__file__).parents[2] / "benchmarks"))


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, generator=generator, dtype=torch.float64) for name in "ab"}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("name", "bounds", "agree"),
    [("guarded", ("ratio", "alpha"), True), ("natural", ("ratio",), False), ("paper, alpha .7", ("alpha",), False)],
)
def test_a_candidate_is_the_smallest_of_its_bounds(name, bounds, agree, seed):
    memory = study.CANDIDATES[name].ascended(0, drawn(seed), drawn(seed + 10), {}).memory
    kept = study.CANDIDATES[name].skipped(1, drawn(seed + 20), memory)
    by_bounds = study.Bounded(0.7, bounds=bounds, agree=agree).skipped(1, drawn(seed + 20), memory)
    assert all(torch.allclose(kept[k], by_bounds[k], rtol=1e-12) for k in kept)


def test_harm_is_the_worst_radius_beside_the_base_of_the_same_seeds():
    tests = {"SAM": {"0.05": [81.0, 82.0], "0.2": [79.0, 79.0]}, "pilot": {"0.05": [70.0], "0.2": [80.5]}}
    assert study.worst([80.0, 81.0], tests) == {"SAM": -1.5, "pilot": -10.0}
