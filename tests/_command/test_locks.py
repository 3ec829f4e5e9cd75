"""Locks that end with their process, and files that nobody can plant or take away."""

import errno
import json
import multiprocessing
import os
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from steppe._command import files, locks
from steppe._command.locks import TakenError, claim, holder, one_writer, refuse_taken


def holds(place: Path, say: Connection) -> None:
    held = claim(place, "a test")
    say.send(held is not None)
    time.sleep(60)


def test_a_claim_is_had_by_one_and_freed(tmp_path: Path) -> None:
    first = claim(tmp_path / "run", "a test")
    assert first and first.locked and claim(tmp_path / "run", "another") is None
    assert f"process {os.getpid()} of this machine (a test, since 2" in holder(tmp_path / "run")
    first.free()
    first.free()
    assert not list(tmp_path.iterdir())
    assert claim(tmp_path / "run", "another")


def test_a_killed_process_leaves_no_claim(tmp_path: Path) -> None:
    hear, say = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=holds, args=(tmp_path / "run", say), daemon=True)
    process.start()
    assert hear.recv()
    assert claim(tmp_path / "run", "here") is None
    assert f"process {process.pid}" in holder(tmp_path / "run")
    process.kill()
    process.join()
    again = claim(tmp_path / "run", "here")
    assert again and f"process {os.getpid()}" in holder(tmp_path / "run")


def test_a_forked_child_does_not_hold_what_its_parent_held(tmp_path: Path) -> None:
    held = claim(tmp_path / "run", "a test")
    assert held
    (alive, says_alive), (over, says_over) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:  # lives on behind the parent's lock
        os.write(says_alive, b".")
        os.close(says_over)
        os.read(over, 1)
        os._exit(0)
    os.read(alive, 1)
    held.forget()
    again = claim(tmp_path / "run", "another")
    os.close(says_over)
    os.waitpid(child, 0)
    assert again


def test_a_taken_folder_is_refused_with_its_holders_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PATIENCE", 0)
    refuse_taken(tmp_path)
    with one_writer(tmp_path, "steppe finetune"):
        for ask in (lambda: one_writer(tmp_path, "x").__enter__(), lambda: refuse_taken(tmp_path)):
            with pytest.raises(
                TakenError, match=rf"written by process {os.getpid()} .*steppe finetune.*another folder"
            ):
                ask()
    refuse_taken(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links are followed here")
def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / locks.LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"), one_writer(tmp_path / "out", "a test"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_system_without_locks_is_told_of_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    said: list[str] = []
    with one_writer(tmp_path, "a test", said.append):
        refuse_taken(tmp_path)
    assert said == [locks.without_locks(tmp_path)]
    files.write_json(tmp_path / "value.json", 1)
    (tmp_path / ".half.json.tmp").touch()
    files.remove_left(tmp_path)
    assert json.loads((tmp_path / "value.json").read_text()) == 1 and (tmp_path / ".half.json.tmp").exists()


def test_what_is_being_written_stays_and_what_is_left_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody tidies the folder at the very moment in which another is about to move its file in place."""
    (tmp_path / ".left.json.77.tmp").touch()
    real = os.replace

    def replace(partial: Path, path: Path) -> None:
        other = threading.Thread(target=files.remove_left, args=(tmp_path,))
        other.start()
        other.join()
        assert Path(partial).exists()
        real(partial, path)

    monkeypatch.setattr(os, "replace", replace)
    files.write_text(tmp_path / "value.json", "[1]")
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]


def test_a_name_that_was_planted_is_neither_followed_nor_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "77")
    (tmp_path / ".value.json.77.tmp").symlink_to(tmp_path / "precious")
    (tmp_path / "precious").write_text("kept")
    with pytest.raises(FileExistsError):
        files.write_text(tmp_path / "value.json", "[1]")
    assert (tmp_path / "precious").read_text() == "kept" and not (tmp_path / "value.json").exists()


def test_files_have_the_rights_of_any_new_file(tmp_path: Path) -> None:
    files.write_text(tmp_path / "value.json", "[1]")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "value.json").stat().st_mode == (tmp_path / "plain").stat().st_mode
