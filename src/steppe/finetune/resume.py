"""What a run that goes on must have in common with the one that was begun, and what may be other."""

from __future__ import annotations

from typing import Any

from steppe.finetune import data
from steppe.finetune.folder import Folder
from steppe.finetune.spec import Settings
from steppe.integrations import _trainer

FREE = frozenset((
    "per_device_eval_batch_size", "eval_accumulation_steps", "bf16_full_eval", "fp16_full_eval",
    "eval_use_gather_object", "batch_eval_metrics", "include_for_metrics", "dataloader_num_workers",
    "dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_pin_memory", "logging_steps",
    "logging_strategy", "logging_first_step", "logging_nan_inf_filter", "log_level",
    "log_level_replica", "log_on_each_node", "report_to", "run_name", "save_total_limit", "skip_memory_metrics",
))  # fmt: skip
"""The Trainer's arguments that measure, log and load only: they may be others in the part that goes on."""


def check_same(folder: Folder, settings: Settings) -> None:
    """Refuse to go on with other settings or other data than the run was begun with.

    Raises:
        ValueError: one sentence about the first difference, or that there is nothing to go on with.
    """
    begun = folder.check_resumable()
    before, now = begun["settings"], settings.decisive()
    trained = {key: value for key, value in now.pop("training").items() if key not in FREE}
    _refuse_change(folder, before.get("training", {}), trained)
    _refuse_change(folder, before, now)
    if begun.get("data") != data.fingerprint(settings):
        raise ValueError(f"the data of the run in {folder.path} has changed since; begin anew with another --out")
    last_checkpoint(folder)


def _refuse_change(folder: Folder, before: dict[str, Any], now: dict[str, Any]) -> None:
    for key, value in now.items():
        if before.get(key) != value:
            raise ValueError(
                f"the run in {folder.path} was begun with {key} = {before.get(key)!r}, now it is {value!r}: resume "
                "with the same settings (they need not be given again), or name another --out"
            )


def last_checkpoint(folder: Folder) -> str:
    """The latest whole checkpoint of the run in ``folder``.

    Raises:
        ValueError: there is none yet.
    """
    try:
        return _trainer.last_whole_checkpoint(str(folder.checkpoints))
    except ValueError:
        raise ValueError(
            f"the run in {folder.path} was interrupted before its first checkpoint, so nothing is there to resume: "
            "begin anew with --overwrite"
        ) from None


__all__ = ["FREE", "check_same", "last_checkpoint"]
