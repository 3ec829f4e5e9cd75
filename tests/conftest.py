"""Settings shared by all tests: one torch thread per process, the same hypothesis examples each run, little garbage.

A GPU is seen by the tests that need one (`make gpu`), and by no other: hosts would train on it unasked, and what has
touched it cannot be forked.
"""

import functools
import gc
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest
import torch
from tests import costs

torch.set_num_threads(1)
hypothesis.settings.register_profile("steppe", derandomize=True, deadline=None, database=None, max_examples=30)
hypothesis.settings.load_profile("steppe")
# Torch, transformers and the rest are some 700,000 objects that never die: not looked through while they are imported,
# nor at any collection after it. It is a fifth of the time that a worker needs to begin.
gc.disable()
# No test outlives a power cut: what is written is not waited for until the disk has it.
os.fsync = lambda _: None


pytest_addoption = costs.options


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        # Autograd counts devices at its first backward: now there are none. A torch built for CUDA counts one, if not a
        # real one, once anything was compiled; then it starts a thread for it, and ranks can no longer be forked.
        torch.zeros((), requires_grad=True).backward()
        # torch.manual_seed notes where it was called, in words, for each kind of device that may yet wake up: under
        # pytest's fifty frames a millisecond, thousands of times.
        for device in (torch.cuda, torch.xpu, torch.mtia):
            device.traceback = SimpleNamespace(format_stack=list)  # type: ignore[attr-defined]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    costs.dearest_first(config, items)
    if not torch.cuda.is_available():
        without = pytest.mark.skip(reason="needs a CUDA device, and -m gpu")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(without)


pytest_runtest_setup = pytest.hookimpl(tryfirst=True)(costs.begin)
pytest_runtest_call = pytest.hookimpl(wrapper=True)(costs.end)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if count := config.getoption("--dearest"):
        costs.table(terminalreporter, count)


# Which method ran in which loop: tests say so with record_property, `make loops` keeps it for the table of docs/loops.
_LOOPS: dict[str, dict[str, bool]] = {}
_SEEN = [0]
"""How many modules there were when garbage was told from what stays."""


def pytest_collection_finish() -> None:
    # A command is built of the annotations of all of them, each time that it is called: once is enough here.
    if typer := sys.modules.get("typer.main"):
        typer.get_params_from_function = functools.cache(typer.get_params_from_function)  # type: ignore[attr-defined]
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_runtest_teardown() -> None:
    """What a test imports is not looked through again either: hosts collect garbage with every training."""
    if len(sys.modules) > _SEEN[0]:
        _SEEN[0] = len(sys.modules)
        gc.freeze()


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
