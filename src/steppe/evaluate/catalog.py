"""From the names a user typed to lm-eval's tasks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from steppe._command.lookup import nearest
from steppe.evaluate import files
from steppe.evaluate.request import Request, translated


@dataclass
class Catalog:
    """The tasks and groups as lm-eval's evaluate() takes them, and the questions of those that are files, by name."""

    loaded: dict[str, Any] = field(default_factory=dict)
    questions: dict[str, files.Questions] = field(default_factory=dict)


def load(request: Request) -> Catalog:
    """Read every file, then find every name; what is on this disk is refused first."""
    named = [name for name in request.tasks if not files.is_file(name)]
    catalog, built = Catalog(), list[Task | Group]()
    for path in (name for name in request.tasks if files.is_file(name)):
        stem = Path(path).stem
        name = path if stem in named or stem in catalog.questions else stem
        catalog.questions[name] = files.read(path)
        built.append(files.task(name, catalog.questions[name], request.delimiter, request.num_fewshot))
    manager = TaskManager(include_defaults=bool(named))  # the index of 14,000 names takes ten seconds
    _refuse_unknown(named, manager.all_tasks)
    for name in named:
        built += _named(manager, name)
    catalog.loaded = translated(lambda: manager.load(built), "these tasks cannot be evaluated together")
    for task in catalog.loaded["tasks"].values():
        _set_few_shots(task, request)
    return catalog


def _set_few_shots(task: Any, request: Request) -> None:
    """As lm_eval.simple_evaluate does: a task that fixes 0 keeps it; the seed draws the examples."""
    own = task.get_config("num_fewshot")
    if own is None or (own != 0 and request.num_fewshot is not None):
        task.set_config(key="num_fewshot", value=request.num_fewshot or 0)
    task.set_fewshot_seed(seed=request.seed)


def _refuse_unknown(names: Iterable[str], known: list[str]) -> None:
    for name in names:
        if name not in known:
            hint = nearest(name, known)
            hint = hint if hint.startswith("did") else "such as hellaswag, arc_easy, openbookqa, boolq, rte, mmlu_stem"
            raise ValueError(f"there is no task {name!r}; {hint} (a file is given as FILE.jsonl)")


def _named(manager: TaskManager, name: str) -> list[Task | Group]:
    sentence = (
        f"task {name!r} could not be loaded: its data comes from the hub, which must be reachable or cached; "
        "offline, give a file of JSON lines instead"
    )
    loaded = translated(lambda: manager.load([name]), sentence)
    for task in loaded["tasks"].values():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise ValueError(f"task {name!r} runs generated code or shows images; expected a task of text alone")
    groups = loaded.get("groups", {})
    return [groups[name]] if name in groups else list(loaded["tasks"].values())
