"""Evaluate: load tasks and model, let lm-eval measure, and put its figures into one record."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import lm_eval

from steppe._command.provenance import ended, made_with
from steppe.evaluate import catalog, model
from steppe.evaluate.catalog import Catalog
from steppe.evaluate.lengths import Lengths
from steppe.evaluate.request import Request

SCHEMA = 1


def evaluate(request: Request) -> dict[str, Any]:
    """Measure a model or adapter on every task of the request.

    Args:
        request: model, tasks and settings.

    Returns:
        A record of plain JSON values. ``tasks`` has, for each task, its ``metrics`` (name -> value and standard error,
        of lm-eval: the standard error of a mean over examples), the number of ``examples`` measured and there,
        ``num_fewshot``, and for a file its path, SHA-256 and ``chance``, the accuracy of guessing at the questions
        asked; ``groups`` the same for groups such as mmlu_stem. ``cut`` tells of questions that the model cannot take
        whole.

    Raises:
        ValueError: something given cannot be used; nothing was written.
    """
    start = time.perf_counter()
    tasks = catalog.load(request)
    lm = model.load(request)
    base, adapter = model.sources(request)
    lengths = Lengths(lm)
    results = lm_eval.evaluate(lm=lm, task_dict=tasks.loaded, limit=request.limit, log_samples=False)
    packages = {name: version(name) for name in ("lm_eval", "transformers", "peft", "datasets")}
    return {
        "schema": SCHEMA, "model": base, "adapter": adapter, **_figures(results, tasks),
        "settings": request.settings(), "measured": model.described(lm),
        "cut": {"sequences": lengths.cut, "of": lengths.seen, "note": lengths.said()}, **ended(start),
        "provenance": made_with(str(lm.device)) | packages,
    }  # fmt: skip


def _figures(results: dict[str, Any], tasks: Catalog) -> dict[str, Any]:
    return {
        "tasks": {name: _task(name, results, tasks) for name in results["n-samples"]},
        "groups": {name: {"metrics": _metrics(row)} for name, row in results.get("groups", {}).items()},
    }


def _task(name: str, results: dict[str, Any], tasks: Catalog) -> dict[str, Any]:
    counted = results["n-samples"][name]
    figures = {
        "metrics": _metrics(results["results"][name]),
        "examples": counted["effective"], "of": counted["original"],
        "num_fewshot": results["n-shot"][name], "version": results["versions"][name],
    }  # fmt: skip
    questions = tasks.questions.get(name)
    if questions is None:
        return figures | {"source": "lm-eval"}
    return figures | {
        "source": questions.path,
        "sha256": questions.digest,
        "chance": questions.chance(counted["effective"]),
    }


def _metrics(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """`acc,none` and `acc_stderr,none` of lm-eval as one entry; a filter other than none stays in the name."""
    found = {}
    for key, value in row.items():
        metric, comma, filter_ = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            stderr = row.get(f"{metric}_stderr,{filter_}")
            name = metric if filter_ == "none" else key
            found[name] = {"value": value, "stderr": stderr if isinstance(stderr, float) else None}
    return found
