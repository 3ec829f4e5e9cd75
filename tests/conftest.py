"""Settings shared by all tests: one torch thread per process, the same hypothesis examples each run."""

import json
import os
from pathlib import Path

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("steppe", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("steppe")

# Which method ran in which loop: tests say so with record_property, `make loops` keeps it for the table of docs/loops.
_LOOPS: dict[str, dict[str, bool]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    noted = dict(report.user_properties)
    if report.when == "call" and "loop" in noted and not report.skipped:
        methods = _LOOPS.setdefault(str(noted["loop"]), {})
        for method in str(noted["method"]).split(","):
            methods[method] = methods.get(method, True) and report.passed


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = os.environ.get("STEPPE_LOOPS")
    if target and not hasattr(session.config, "workerinput"):
        Path(target).write_text(json.dumps(_LOOPS, indent=1, sort_keys=True) + "\n")
