"""`steppe rho`: a radius for a method on a study's task, without a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from steppe._command.app import app, print_json, refusing
from steppe._command.choices import Choice, parse
from steppe._command.flags import taking
from steppe._command.progress import Counted
from steppe._command.tables import table
from steppe.compare.engine import rehearsal
from steppe.compare.engine.run import batches, fresh, load_task, make_trainer
from steppe.compare.engine.runs import Run
from steppe.compare.engine.shown import SHOWN
from steppe.compare.engine.spec import SPELLED, Spec, resolve, steps_per_epoch
from steppe.diagnostics import RhoSearch, find_rho
from steppe.diagnostics.rho import ENOUGH

ONE_IN = 5
"""A trial lasts a training's steps divided by this."""


_NOT_HERE = (
    "methods", "seeds", "tune_seeds", "rho", "mu", "lr_grid", "epochs_grid", "tune_lr", "eval_every", "test_curve",
    "sharpness_rho", "sharpness_examples", "jobs", "parallel", "out", "script", "settings", "tune", "grow", "metric",
    "also", "on", "shard", "log", "warmup", "lr_schedule", "step_back", "half", "season",
)  # fmt: skip
"""Settings of a comparison that the search for a radius has no use for."""

_SAID = {
    "epochs": "Epochs of the training that the radius is for; the check is a fifth of it.",
    "max_steps": "Steps of that training, instead of epochs.",
}
"""Settings that are something else to the search than to a comparison."""

_CURVE = (
    ("rise", "rise"), ("predicted", "predicted"), ("cosine", "cos(g, g~)"), ("change", "change"), ("moved", "moved"),
)  # fmt: skip
_ROOM = 64
"""Columns of a terminal below which the curve's last two are left out, before a figure is cut."""


@app.command(short_help="Propose a radius for a method.")
@taking(Spec, without=_NOT_HERE, spelled=SPELLED, shown=SHOWN, said=_SAID)
def rho(
    flags: dict[str, Any],
    method: Annotated[str, typer.Argument(help="sam, look_sam:k=10, my.py:MySAM, ...; see `steppe methods`.")] = "sam",
    seed: Annotated[int, typer.Option(help="Seed of weights, examples and order.")] = 0,
    trial: Annotated[int | None, typer.Option(help="Steps of the check, 0 for none (a fifth of the training).")] = None,
    after: Annotated[int, typer.Option(help="Steps that the base trains first.")] = 0,
    looks: Annotated[int, typer.Option(help="Batches for the curve.")] = 4,
    keep: Annotated[float, typer.Option(help="Share of the base's progress that a radius must keep.")] = 0.5,
    config: Annotated[Path | None, typer.Option(help="TOML file as for `steppe compare`; flags win.")] = None,
    plot: Annotated[Path | None, typer.Option(help="File for a picture of the curve, such as rho.png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON on stdout.")] = False,
) -> None:
    """Propose a radius: where the ascent leaves the linear regime, checked by a short training."""
    with refusing():
        spec, choice = resolve(flags, config), parse(method)
        if seed < 0:
            raise ValueError(f"seed must be a whole number of at least 0, got {seed}")
        if plot is not None:
            _check_picture(plot)
        with Counted(Console(stderr=True)) as shown:
            found = prepared(spec, choice, seed, trial, shown, after=after, looks=looks, keep=keep)()
    found = replace(found, why=found.why.replace(ENOUGH, f"--{ENOUGH.replace('=', ' ')}"))  # as it is typed
    _say(found, choice, as_json)
    if plot is not None:
        with refusing():
            _draw(found, plot)


def _say(found: RhoSearch, choice: Choice, as_json: bool) -> None:
    if as_json:
        print_json(found.as_dict())
        return
    console = Console()
    shown = _CURVE if console.width >= _ROOM else _CURVE[:-2]
    curve = ((f"{at.rho:g}", *(f"{getattr(at, name):.3g}" for name, _ in shown)) for at in found.curve)
    trials = ((f"{trial.rho:g}", f"{trial.loss:.3g}", f"{trial.kept:.0%}") for trial in found.trials)
    console.print(_table(("rho", *(header for _, header in shown)), curve))
    console.print(_table(("rho", "loss after", "learned, beside the base"), trials) if found.trials else "")
    console.print(f"{choice.label}: rho = {found.rho:g}\n{found.why}", highlight=False, markup=False)


def prepared(
    spec: Spec, choice: Choice, seed: int, trial: int | None = None, shown: Counted | None = None, **options: Any
) -> Callable[[], RhoSearch]:
    """The search for `choice` on the task, model and base of a study, ready to begin.

    Args:
        spec: the study's settings.
        choice: the method.
        seed: of the run that the radius is for.
        trial: steps of a trial; a fifth of the study's by default.
        shown: told what begins and each pass.
        options: those of :func:`steppe.find_rho`.
    """
    if choice.method.tunes != "rho" or "rho" in choice.settings:
        why = "its settings fix rho" if "rho" in choice.settings else "it has none"
        raise ValueError(f"method {choice.text!r}: there is no radius to find, as {why}")
    if spec.epochs_grid:
        raise ValueError("epochs_grid: a radius is searched for a training of one length; give that as epochs instead")
    choice.with_the_mean("the search")
    task = load_task(spec, seed)
    rehearsal.check_targets(task)
    rehearsal.check_model(spec.model, fresh(spec, task, seed), task)
    per_epoch = steps_per_epoch(len(task.train), spec.batch_size)
    total = spec.steps(per_epoch)
    trial = max(1, total // ONE_IN) if trial is None else trial
    # A run of the method itself, for its own optimizer where it brings one; the search makes the rest anew.
    trainer = make_trainer(spec, task, Run(choice.text, None, seed), total, bare=True)
    for group in trainer.optimizer.param_groups:
        group["lr"] = group["initial_lr"]  # not the first step of a warm-up
    order = batches(task, spec.batch_size, seed)
    needed = max(trial, options.get("after", 0), options.get("looks", 1))
    epochs = min(-(-needed // per_epoch), -(-total // per_epoch))
    first = [batch for _, epoch in zip(range(epochs), order, strict=False) for batch in epoch]

    def build(model: torch.nn.Module, optimizer: Any, rho: float) -> Any:
        return choice.build(model, optimizer, value=rho, seed=seed, total_steps=total)

    loss_of = shown.counting(trainer.loss_of) if shown else trainer.loss_of
    told = options | {"trial": trial, "tell": shown and shown.begin}
    return partial(find_rho, trainer.model, trainer.optimizer, loss_of, first, build, **told)


def _check_picture(path: Path) -> None:
    """Refuse a picture that could not be written, before anything is trained."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix[1:].lower() not in known:
        raise ValueError(f"--plot {path} is no picture that can be drawn; end it in one of .{', .'.join(known)}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--plot {path}: there is no folder {path.parent}; make it, or name another file")


def _draw(found: RhoSearch, path: Path) -> None:
    try:
        found.plot().figure.savefig(path)  # type: ignore[union-attr]
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror}); name another file with --plot") from error


def _table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    made = table(headers, left=0)
    for row in rows:
        made.add_row(*row)
    return made
