"""What `steppe finetune` left in its folder, wherever a model is asked for."""

from __future__ import annotations

from pathlib import Path

from steppe._command.files import read_json


def trained_in(path: str) -> str:
    """The adapter's or model's folder within ``path`` where that is the ``--out`` of a fine-tuning; else ``path``.

    Raises:
        ValueError: the fine-tuning there has saved nothing yet.
    """
    begun = read_json(Path(path) / "settings.json")
    if not (isinstance(begun, dict) and "settings" in begun):
        return path
    for name in ("adapter", "model"):
        if (Path(path) / name).is_dir():
            return str(Path(path) / name)
    raise ValueError(
        f"{path} holds a fine-tuning that has saved nothing yet; go on with steppe finetune --resume --out {path}"
    )


def base_and_adapter(path: str) -> tuple[str, str | None]:
    """The model that ``path`` (a folder, one of a fine-tuning, or a hub id) stands for, and its adapter if it has one.

    Raises:
        ValueError: the adapter does not name its base.
    """
    place = trained_in(path)
    notes = read_json(Path(place) / "adapter_config.json")
    if not isinstance(notes, dict):
        return place, None
    base = notes.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"the adapter in {place} does not name its base model; give that model, and this as --adapter")
    return str(base), place
