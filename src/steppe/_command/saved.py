"""What `steppe finetune` left in its folder, wherever a model is asked for."""

from __future__ import annotations

import hashlib
from pathlib import Path

from steppe._command.files import read_json


def trained_in(path: str) -> str:
    """The adapter's or model's folder within ``path`` where that is the ``--out`` of a fine-tuning; else ``path``."""
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
    """The model that ``path`` (a folder, one of a fine-tuning, or a hub id) stands for, and its adapter if there is."""
    place = trained_in(path)
    notes = read_json(Path(place) / "adapter_config.json")
    if not isinstance(notes, dict):
        return place, None
    base = notes.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"the adapter in {place} does not name its base model; give that model, and this as --adapter")
    return str(base), place


_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_PIECES, _PIECE = 64, 1 << 20
"""Of a file that is longer than so many pieces of so many bytes these are read, evenly spread."""


def weights(path: str) -> str:
    """A hash of the weights in a folder, of an adapter's base too; empty where there are none, as behind an id.

    Another training of the same network leaves the names and sizes of its files as they were. Of large files pieces are
    read, as any training changes all of a tensor.
    """
    places = [Path(place) for place in base_and_adapter(path) if place is not None]
    files = [file for place in places if place.is_dir() for file in sorted(place.iterdir()) if file.suffix in _WEIGHTS]
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        digest.update(f"{file.name}:{file.stat().st_size};".encode())
        _read_into(digest, file)
    return digest.hexdigest() if files else ""


def _read_into(digest: hashlib.blake2b, file: Path) -> None:
    size = file.stat().st_size
    apart = max(_PIECE, (size - _PIECE) // (_PIECES - 1))
    with file.open("rb") as opened:
        for start in range(0, size, apart):
            opened.seek(start)
            digest.update(opened.read(_PIECE))
