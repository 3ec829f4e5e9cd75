"""One folder, one writer; and nothing trained is deleted by an error."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from tests.finetune.cases import FEW, Stop, flags, run

from steppe._command import files, locks
from steppe._command.locks import TakenError
from steppe.finetune import run as running
from steppe.finetune.folder import DiskError, Folder
from steppe.finetune.run import prepare, train
from steppe.finetune.spec import resolve
from steppe.finetune.watch import Quiet


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PATIENCE", 0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_run_in_the_folder_is_refused_at_every_point_and_touches_nothing(tmp_path: Path) -> None:
    settings = resolve(flags(tmp_path), FEW)
    early = prepare(settings)

    class Another(Quiet):
        """Tries in the middle of the first one's training."""

        def step(self, done: int) -> None:
            if done != 3:
                return
            for how in ({}, {"overwrite": True}, {"resume": True}):
                with pytest.raises(TakenError, match=rf"is being written by process {os.getpid()} of this machine"):
                    prepare(settings, **how)
            with pytest.raises(TakenError, match="steppe finetune, since .* name another folder with --out"):
                train(early, Quiet())
            assert names(tmp_path / "out" / "checkpoints") == ["checkpoint-2"]

    train(prepare(settings), Another())
    assert names(tmp_path / "out") == ["adapter", "result.json", "settings.json"]
    with pytest.raises(ValueError, match="holds a finished run"):  # begun and ended since `early` looked
        train(early, Quiet())


def test_what_a_process_killed_at_its_start_leaves_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / locks.LOCK).touch()
    (tmp_path / "out" / ".settings.json.1.tmp").touch()
    run(tmp_path)
    assert names(tmp_path / "out") == ["adapter", "result.json", "settings.json"]


def filled(folder: Folder, text: str, name: str = "adapter") -> Path:
    def write(place: str) -> None:
        Path(place).mkdir()
        Path(place, "weights").write_text(text)

    return folder.save(name, write)


def test_a_link_in_the_adapters_place_gives_way_and_what_it_points_to_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "weights").write_text("old")
    folder = Folder(str(tmp_path / "out"))
    folder.path.mkdir()
    (folder.path / "adapter").symlink_to(tmp_path / "elsewhere")
    assert filled(folder, "new").joinpath("weights").read_text() == "new"
    assert (tmp_path / "elsewhere" / "weights").read_text() == "old" and names(folder.path) == ["adapter"]


def test_what_was_trained_outlives_a_failing_move_and_so_does_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path / "out"))
    folder.path.mkdir()
    filled(folder, "old")
    real = os.rename

    def rename(old: Path, new: Path) -> None:
        if Path(new).name == "adapter" and (Path(old) / "weights").read_text() == "new":
            raise OSError(16, "Device or resource busy")
        real(old, new)

    with monkeypatch.context() as patch, pytest.raises(DiskError, match="Device or resource busy.*lies whole") as said:
        patch.setattr(os, "rename", rename)
        filled(folder, "new")
    assert (folder.path / "adapter" / "weights").read_text() == "old"
    (place,) = re.findall(r"lies whole in (\S+),", str(said.value))
    assert (Path(place) / "weights").read_text() == "new"
    filled(folder, "new")
    folder.finish({})
    assert names(folder.path) == ["adapter", "result.json"]


def test_an_earlier_run_stays_until_the_new_one_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(DiskError, match="No space left on device.*make room"):
        patch.setattr(files.os, "fsync", full)
        run(tmp_path, overwrite=True, method="sam")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_half_an_adapter_makes_room_and_the_checkpoints_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(model: Any, tokenizer: Any, place: str) -> None:
        model.save_pretrained(place)
        raise OSError(28, "No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(DiskError, match="No space left.*--resume goes on from the last"),
    ):
        patch.setattr(running, "_save", full)
        run(tmp_path)
    assert names(tmp_path / "out") == ["checkpoints", "settings.json"]
    assert run(tmp_path, resume=True)["resumed_at"] == 6


def test_an_interrupted_run_frees_its_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(prepare(resolve(flags(tmp_path), FEW)), Stop(3))
    assert names(tmp_path / "out") == ["checkpoints", "settings.json"]
