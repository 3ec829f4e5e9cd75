"""`steppe look`: flags in, a table, one JSON and a picture for each part out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from steppe import diagnostics
from steppe._command.app import app, print_json, refusing
from steppe._command.files import DiskError, finite, named_after, write_json, writing
from steppe._command.flags import given, help_of, taking
from steppe._command.progress import Counted
from steppe._command.provenance import made_with
from steppe._command.tables import table
from steppe.diagnostics.plane import NoScale
from steppe.look.find import find
from steppe.look.pictures import draw
from steppe.look.request import Request
from steppe.look.subjects import Subject, Subjects

SCHEMA = 1
_OUT = "Folder for JSON and pictures (results/look/<what>-<settings given>)."
_THEN = "make room or name another --out"


@app.command(short_help="Look at how the loss lies around trained weights.")
@taking(Request, without=("what",))
def look(
    flags: dict[str, Any],
    what: Annotated[str, typer.Argument(help=help_of(Request, "what"))],
    out: Annotated[Path | None, typer.Option(help=_OUT)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON on stdout.")] = False,
) -> None:
    """Look at how the loss lies around trained weights: Hessian, sharpness, a plane, balance of LoRA's pairs."""
    with refusing():
        request = Request(what, **(asked := given(flags, Request)))
        folder = out or Path("results", "look", named_after([what], asked))
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--out {folder} is a file; name a folder")
        with Counted(Console(stderr=True)) as shown:
            subjects = find(request, shown)
            plane = _plane(subjects, request, shown) if "plane" in request.parts else None  # first: it checks the base
            found = {each.name: _measured(each, request, shown) for each in subjects.each}
    record = _record(request, subjects, found, plane)
    with refusing(DiskError):
        with writing(folder, _THEN):
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "look.json", record)
        paths = draw(found, plane, folder)
    if as_json:
        print_json(record)
        return
    Console().print(_table(found))
    typer.echo(f"Written: {folder / 'look.json'}" + "".join(f", {path.name}" for path in paths))


def _measured(subject: Subject, request: Request, shown: Counted) -> dict[str, Any]:
    """What was found of one model, by part (the plane apart)."""
    about, found = (subject.model, shown.counting(subject.loss_of), subject.batches), dict[str, Any]()
    how: dict[str, Any] = {"seed": request.draw_seed, "weigh": subject.weigh}
    if "curvature" in request.parts:
        shown.begin(f"curvature of {subject.name}")
        found["curvature"] = diagnostics.curvature(
            *about, steps=request.steps, probes=request.probes, runs=request.runs, **how
        )
    if "sharpness" in request.parts:
        shown.begin(f"sharpness of {subject.name}")
        found["sharpness"] = diagnostics.m_sharpness(
            *about, request.radii, m=request.m, climbs=request.climbs, draws=request.draws, **how
        )
    if "balance" in request.parts and (balance := _balance(subject.model, request)) is not None:
        found["balance"] = balance
    return found


def _balance(model: nn.Module, request: Request) -> diagnostics.Balance | None:
    """That of the pairs, where there are any: refused where nothing else was asked for."""
    try:
        return diagnostics.balance(model)
    except ValueError:
        if set(request.parts) == {"balance"}:
            raise
        return None


def _plane(subjects: Subjects, request: Request, shown: Counted) -> diagnostics.Plane | None:
    """The plane; where there is none to draw (biases alone are trained), the other parts are measured."""
    shown.begin(f"a plane of {request.points} x {request.points} points")
    last = subjects.each[-1]
    about = last.model, shown.counting(last.loss_of), last.batches
    try:
        return diagnostics.loss_plane(
            *about, subjects.base, points=request.points, seed=request.draw_seed, weigh=last.weigh
        )
    except NoScale as error:
        if set(request.parts) == {"plane"}:
            raise
        shown.begin(f"no plane: {error}")
        return None


def _record(request: Request, subjects: Subjects, found: dict[str, dict[str, Any]], plane: Any) -> dict[str, Any]:
    device = next(subjects.each[0].model.parameters()).device
    whole: dict[str, Any] = finite({
        "schema": SCHEMA, "kind": "look", "settings": asdict(request),
        "models": {name: {part: each.as_dict() for part, each in parts.items()} for name, parts in found.items()},
        "plane": plane and plane.as_dict(), "provenance": made_with(str(device)),
    })  # fmt: skip
    return whole


def _table(found: dict[str, dict[str, Any]]) -> Table:
    """A row for each figure, a column for each model."""
    made = table(("", *found))
    rows = [_rows(parts) for parts in found.values()]
    for key in dict.fromkeys(key for each in rows for key in each):
        made.add_row(key, *(each.get(key, "") for each in rows))
    return made


def _rows(parts: dict[str, Any]) -> dict[str, str]:
    rows: dict[str, str] = {}
    if (found := parts.get("curvature")) is not None:
        rows["loss"] = f"{found.loss:.4g}"
        for name, end in (("largest eigenvalue", found.lambda_max), ("smallest eigenvalue", found.lambda_min)):
            rows[name] = f"{end.value:.4g} ± {end.error:.1g}"
        rows["trace"] = f"{found.trace.value:.4g}{_beside(found.trace.error)}"
    if (found := parts.get("sharpness")) is not None:
        for rise in found.rises:
            rows[f"rise at rho {rise.rho:g}, worst of {found.m}"] = f"{rise.worst:.3g}"
            rows[f"rise at rho {rise.rho:g}, on average"] = f"{rise.average:.3g}{_beside(rise.error)}"
    if (found := parts.get("balance")) is not None:
        spread = [abs(pair.relative) for pair in found.pairs]
        rows["imbalance of the pairs, 0 to 1, mean"] = f"{sum(spread) / len(spread):.3g}"
    return rows


def _beside(error: float | None) -> str:
    """A standard error behind its figure, where there is one."""
    return "" if error is None else f" ± {error:.1g}"
