"""The benchmark of the host's work: its page is its file's, and its twelve-line loop is SAM."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import torch
from tests import bare
from torch import nn

import steppe

ROOT = Path(__file__).parents[1]


def loaded(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{Path(path).stem}_loaded", ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


page, benchmark = loaded("docs/overhead.py"), loaded("benchmarks/host_overhead.py")


def test_the_page_is_written_from_the_file():
    assert page.TARGET.read_text() == page.page(json.loads(page.RESULT.read_text()))


def test_the_loop_is_sam():
    torch.manual_seed(0)
    model, batch = benchmark.chain(6).double(), (torch.randn(8, 16).double(), torch.randn(8, 16).double())
    makes = {"loop": benchmark.loop_of, "sam": benchmark.method(steppe.SAM, rho=0.05)}
    built = {}

    def keeping(name):
        def make(twin, *rest):
            built[name] = twin
            return makes[name](twin, *rest)

        return make

    steps = benchmark.contenders(model, batch, nn.functional.mse_loss, {name: keeping(name) for name in makes})
    for step in steps.values():
        step(), step()
    for a, b in zip(built["loop"].parameters(), built["sam"].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert not torch.equal(next(built["loop"].parameters()), next(copy.deepcopy(model).parameters()))


def test_a_small_run_has_every_figure():
    found = {
        "command": "x", "note": "Busy.", "tensors": [benchmark.of_tensors(4, 4)], "cnn": benchmark.of_cnn(4),
        "entered": benchmark.entered(), "entered_skipping": benchmark.entered(benchmark.skipping),
        "provenance": {"torch": "2", "python": "3", "load_average": [0.5]},
    }  # fmt: skip
    text = page.page(found)
    assert "Busy." in text and f"by {found['entered_skipping']['calls']} calls.\n" in text
    assert "| 4 |" in text and "MSAM (one pass)" in text and found["entered"]["calls"] > 20
    assert page.shown({"median": 1.0, "low": 0.5, "high": 2.0, "quick": 0.7}, 1) == "1.0 (0.5 to 2.0); 0.7"
    assert page.aim(100) == 0.25


def test_a_step_enters_no_more_functions_than_it_did():
    """Counts, which no busy machine moves; in a process of its own, as what else one has loaded adds to them.

    12 of the functions watch for closures that clear gradients or write what they are given.
    """
    code = "import json, host_overhead as h; print(json.dumps([h.entered(), h.entered(h.skipping)]))"
    folder = ROOT / "benchmarks"
    made = bare.run(code, folder)
    assert made.returncode == 0, made.stderr
    found, skipping = json.loads(made.stdout)
    assert found["calls"] <= 250 and found["functions"] <= 190 and found["depth"] <= 14, found
    assert skipping["calls"] <= 44 and skipping["functions"] <= 41 and skipping["depth"] <= 7, skipping
