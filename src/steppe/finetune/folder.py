"""The folder of a fine-tuning: what it was begun with, its checkpoints, what it leaves; files are whole or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from steppe._command.files import read_json, write_json

SETTINGS, RESULT, CHECKPOINTS = "settings.json", "result.json", "checkpoints"


class Folder:
    """Where one fine-tuning writes.

    Args:
        path: made when training begins. It holds ``settings.json``, ``checkpoints/``, then ``adapter/`` (or ``model/``)
            and last ``result.json``.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / CHECKPOINTS

    def begun_with(self) -> dict[str, Any] | None:
        """What an earlier run here was begun with, or None."""
        found = read_json(self.path / SETTINGS)
        return found if isinstance(found, dict) and "settings" in found else None

    def check_fresh(self, overwrite: bool) -> None:
        """Refuse a folder in which something lies that a new run would mix with.

        Raises:
            ValueError: it holds a run, or other files.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; name a folder with --out")
        if self.begun_with() is not None:
            if not overwrite:
                finished = (self.path / RESULT).is_file()
                state = "a finished run: give" if finished else "a run that was interrupted: give --resume,"
                raise ValueError(f"{self.path} holds {state} --overwrite or another --out")
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise ValueError(f"{self.path} holds files that are not of a fine-tuning; name another folder with --out")

    def check_resumable(self) -> dict[str, Any]:
        """What the run here was begun with, if there is one to go on with.

        Raises:
            ValueError: nothing was begun here, no checkpoint was written yet, or the run is finished.
        """
        begun = self.begun_with()
        if begun is None:
            raise ValueError(f"{self.path} holds no run to resume; leave --resume out, or name its folder with --out")
        if (self.path / RESULT).is_file():
            raise ValueError(f"the run in {self.path} is finished: see {self.path / RESULT}; nothing is left to resume")
        return begun

    def begin(self, settings: dict[str, Any], data: list[str], shared: dict[str, int]) -> None:
        """Make the folder; what an earlier run left goes.

        Args:
            settings: that decide the result.
            data: the files' fingerprints.
            shared: among how many processes and devices a batch is shared out.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / RESULT).unlink(missing_ok=True)
            for name in (CHECKPOINTS, "adapter", "model"):
                shutil.rmtree(self.path / name, ignore_errors=True)
            write_json(self.path / SETTINGS, {"settings": settings, "data": data, "shared": shared})
            self.tidy()

    def tidy(self) -> None:
        """Remove what a killed process left half-written."""
        for partial in self.path.glob(".*.tmp"):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)

    def save(self, name: str, write: Callable[[str], Any]) -> Path:
        """Let ``write(folder)`` fill a folder beside the place ``name``, then move it there in one step."""
        place, partial = self.path / name, self.path / f".{name}.{os.getpid()}.tmp"
        with writing(self.path):
            try:
                write(str(partial))
                shutil.rmtree(place, ignore_errors=True)
                os.replace(partial, place)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return place

    def finish(self, result: dict[str, Any]) -> Path:
        """Write the result, the last of all files; the checkpoints have served."""
        with writing(self.path):
            try:
                write_json(self.path / RESULT, result)
            finally:
                self.tidy()
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        return self.path / RESULT


class DiskError(ValueError):
    """Something could not be written; the message is one sentence."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Errors of the disk, from whichever library writes, as one sentence.

    Raises:
        DiskError: no space, no permission, or no folder.
    """
    try:
        yield
    except OSError as error:
        raise DiskError(_sentence(folder, error.strerror or str(error))) from error
    except SafetensorError as error:
        raise DiskError(_sentence(folder, str(error))) from error
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
            raise
        raise DiskError(_sentence(folder, "a checkpoint could not be written to its end")) from error


def _sentence(folder: Path, why: str) -> str:
    return (
        f"cannot write to {folder} ({' '.join(why.split())}); make room or name another --out, and where checkpoints "
        "were written --resume goes on from the last"
    )
