"""From what a user names to the models that are looked at."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from steppe._command.files import read_json
from steppe._command.lookup import named_function
from steppe._command.progress import Counted
from steppe.look.request import Request
from steppe.look.subjects import Subject, Subjects


def find(request: Request, shown: Counted) -> Subjects:
    """The models that ``request.what`` stands for."""
    what, folder = request.what, Path(request.what)
    if ":" in what and not folder.exists():
        _refuse_choice(request, "a function")
        return _of_function(what)
    if isinstance(read_json(folder / "spec.json"), dict):
        from steppe.look.compared import of_study

        return of_study(folder, request, shown)
    if isinstance(read_json(folder / "result.json"), dict) or isinstance(read_json(folder / "settings.json"), dict):
        _refuse_choice(request, "a fine-tuning")
        from steppe.finetune.commands import hush_hosts
        from steppe.look.finetuned import of_run

        hush_hosts()
        return of_run(folder, request)
    raise ValueError(
        f"{what} is neither the folder of a comparison (spec.json) nor of a fine-tuning (result.json); give one, or a "
        "module:function that returns (model, loss_of, batches)"
    )


def _refuse_choice(request: Request, what: str) -> None:
    if request.method is not None or request.seed is not None:
        raise ValueError(f"--method and --seed choose a run of a comparison; leave them out for {what}")


def _of_function(reference: str) -> Subjects:
    made = named_function(reference, "look")()
    three = isinstance(made, tuple) and len(made) in (3, 4)
    if not (three and isinstance(made[0], nn.Module) and callable(made[1])):
        raise ValueError(
            f"{reference} returned {type(made).__name__}; expected (model, loss_of, batches), and perhaps the base's "
            "state_dict() behind them"
        )
    model, loss_of, batches, base = (*made, None)[:4]
    subject = Subject("model", model.eval(), loss_of, list(batches))
    return Subjects((subject,), base)
