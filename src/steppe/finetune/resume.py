"""What a run that goes on must have in common with the one that was begun, and what may be other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steppe.finetune.folder import Folder
from steppe.finetune.spec import Spec
from steppe.integrations import _trainer

FREE = frozenset((
    "per_device_eval_batch_size", "eval_accumulation_steps", "bf16_full_eval", "fp16_full_eval",
    "eval_use_gather_object", "batch_eval_metrics", "include_for_metrics", "dataloader_num_workers",
    "dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_pin_memory", "logging_steps",
    "logging_strategy", "logging_first_step", "logging_nan_inf_filter", "log_level",
    "log_level_replica", "log_on_each_node", "report_to", "run_name", "save_total_limit", "skip_memory_metrics",
))  # fmt: skip
"""The Trainer's arguments that measure, log and load only: they may be others in the part that goes on."""


def check_same(folder: Folder, settings: Spec) -> None:
    """Refuse to go on with other settings, other data or another model than the run was begun with."""
    begun = folder.check_resumable()
    before, now = begun["settings"], settings.decisive()
    trained = {key: value for key, value in now.pop("training").items() if key not in FREE}
    _refuse_change(folder, before.get("training", {}), trained)
    _refuse_change(folder, before, now)
    if begun.get("data") != settings.fingerprint():
        raise ValueError(f"the data of the run in {folder.path} has changed since; begin anew with another --out")
    if begun.get("weights") not in (None, settings.weights()):  # None: begun by an older version
        raise ValueError(
            f"the model that the run in {folder.path} began with has changed since; begin anew with another --out"
        )
    last_checkpoint(folder)


def _refuse_change(folder: Folder, before: dict[str, Any], now: dict[str, Any]) -> None:
    for key, value in now.items():
        if before.get(key) != value:
            raise ValueError(
                f"the run in {folder.path} was begun with {key} = {before.get(key)!r}, now it is {value!r}: resume "
                "with the same settings (they need not be given again), or name another --out"
            )


def split_among(arguments: Any) -> dict[str, int]:
    """Among how many a batch is shared out: processes, and devices of each (the Trainer takes all GPUs it sees)."""
    return {"processes": arguments.world_size, "devices": max(1, arguments.n_gpu)}


def check_split(folder: Folder, arguments: Any) -> None:
    """Refuse to go on with another number of processes or devices, with which a step would see another batch.

    A run that older versions began tells the processes by the generators of its checkpoint.
    """
    begun = folder.begun_with() or {}
    before = begun.get("shared")
    last = last_checkpoint(folder)
    if last is None:
        return  # it begins anew, on as many as there are
    if not before:  # each left its generators' state; one process alone writes no number
        before = {"processes": max(1, len(list(Path(last).glob("rng_state_*.pth"))))}
    now = split_among(arguments)
    if any(now[key] != count for key, count in before.items()):
        batch = arguments.per_device_train_batch_size
        raise ValueError(
            f"the run in {folder.path} was begun with a batch of {_product(batch, before)}, now it would be "
            f"{_product(batch, now)}: start it on as many again, or name another --out"
        )


def _product(batch: int, counts: dict[str, int]) -> str:
    factors = [(counts["processes"], "process", "processes"), (counts.get("devices", 1), "device each", "devices each")]
    said = [f"{count} {one if count == 1 else many}" for count, one, many in factors]
    return f"{batch} x {said[0]}" + (f" x {said[1]}" if factors[1][0] > 1 else "")


def last_checkpoint(folder: Folder) -> str | None:
    """The latest whole checkpoint of the run in ``folder``; None where it was interrupted before its first.

    Refused where it has none and was trained to its end all the same (``save_strategy = "no"``).
    """
    try:
        return _trainer.last_whole_checkpoint(str(folder.checkpoints))
    except ValueError:
        if trained := next((path for name in ("adapter", "model") if (path := folder.path / name).exists()), None):
            raise ValueError(
                f"the run in {folder.path} has no checkpoint to resume from, and what it trained lies in {trained}; "
                "begin anew with --overwrite or another --out"
            ) from None
        return None
