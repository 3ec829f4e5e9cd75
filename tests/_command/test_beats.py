"""Claims of several machines: what a lock does not reach is known by its signs of life."""

import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from steppe._command import beats
from steppe._command.beats import claim, failed, holds


def holding(path: Path, say: Connection) -> None:
    held = claim(path, "a test")
    say.send(held is not None)
    time.sleep(60)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch):
    """From here on, this process is on another machine, which the locks of this one do not reach."""

    def move(locks: bool | None, name: str = "another") -> None:
        monkeypatch.setattr(beats, "kernel", lambda: name)
        monkeypatch.setattr(beats, "_lock", lambda handle: locks)

    return move


def silent(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_a_killed_process_of_this_machine_leaves_no_claim(tmp_path: Path) -> None:
    path = tmp_path / "run"
    hear, say = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=holding, args=(path, say), daemon=True)
    process.start()
    assert hear.recv()
    assert claim(path, "here") is None and holds(path)
    process.kill()
    process.join()
    assert path.exists() and not holds(path)
    again = claim(path, "here")
    assert again is not None and holds(path)
    again.free()
    assert not list(tmp_path.iterdir()) and not holds(path)


@pytest.mark.parametrize("locks", [True, None], ids=["locks that do not reach it", "no locks at all"])
def test_another_machine_takes_a_claim_when_it_has_been_silent(tmp_path: Path, elsewhere, locks: bool | None) -> None:
    path = tmp_path / "run"
    first = claim(path, "a test")
    elsewhere(locks)
    assert first and claim(path, "there") is None and holds(path)
    silent(path, beats.DEAD - 5)
    assert claim(path, "there") is None and holds(path)
    silent(path, beats.DEAD + 5)
    assert not holds(path)
    second = claim(path, "there")
    assert second
    elsewhere(locks, "a third")
    first.free()  # it was alive after all: what it held is another's now
    assert path.exists() and holds(path)
    second.free()
    assert not list(tmp_path.iterdir())


def test_what_is_held_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = claim(tmp_path / "run", "a test")
    silent(tmp_path / "run", 1000)
    naps: list[float] = []

    class Over:
        def wait(self, seconds: float) -> bool:
            naps.append(seconds)
            return len(naps) > 1

    monkeypatch.setattr(beats._Heart, "_over", Over())
    beats._Heart().run()
    assert held and naps == [beats.BEAT] * 2
    assert time.time() - (tmp_path / "run").stat().st_mtime < 100
    held.free()
    held.beat()


def test_a_failure_is_told_to_others_as_long_as_its_maker_lives(tmp_path: Path) -> None:
    held = claim(tmp_path / "run", "a test")
    assert held and failed(tmp_path / "run") is None
    held.note("the model is broken")
    assert failed(tmp_path / "run") == "the model is broken" and claim(tmp_path / "run", "there") is None
    held.free()
    assert failed(tmp_path / "run") is None and claim(tmp_path / "run", "there")
