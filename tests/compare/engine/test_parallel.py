"""`torchrun ... steppe compare --parallel ddp|fsdp`: the same study, every run on two processes."""

from __future__ import annotations

import io
import json
import os
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.loops import distributed

from steppe._command import ranks
from steppe.cli import main
from steppe.compare.engine import cost, parallel, run
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import Spec, resolve
from steppe.finetune.folder import DiskError

KINDS = ("ddp", "fsdp")
RUNS = [Run("base", None, 0), Run("sam", 0.1, 0)]


def tiny_study(kind: str | None) -> Spec:
    return resolve({"task": "tests.compare.tiny:task", "epochs": 2, "parallel": kind})


def trained(kind: str | None) -> list[dict[str, Any]]:
    return [run.train(tiny_study(kind), each) for each in RUNS]


def both_kinds() -> dict[str, list[dict[str, Any]]]:
    return {kind: trained(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two ranks do, in one group."""
    works = {
        "trained": (both_kinds,),
        "once": (once_each, tmp_path_factory.mktemp("once")),
        **{kind: (measured_by_clocks_that_differ, kind) for kind in KINDS},
    }
    return distributed.run(2, distributed.every, works)


def test_both_kinds_train_what_one_process_does(two: list[dict[str, Any]]) -> None:
    alone = trained(None)
    for kind, together in two[0]["trained"].items():
        for plain, record in zip(alone, together, strict=True):
            assert record["passes_per_step"] == plain["passes_per_step"], kind
            assert record["curve"]["val_accuracy"] == plain["curve"]["val_accuracy"], kind
            loss, expected = (torch.tensor(r["curve"]["train_loss"]) for r in (record, plain))
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def measured_by_clocks_that_differ(kind: str) -> int:
    """Turns that were taken; by its own clock, rank 0 has time for the fewest and rank 1 for the most."""
    cost.WARM_UP, cost.BLOCK, cost.LEAST, cost.MOST, cost.MEMORY_STEPS = 1, 1, 2, 4, 1
    cost.BUDGET = 1e6 * dist.get_rank()
    turns: int = cost.measure(tiny_study(kind), RUNS[1:], {"sam": 1.0})["turns"]
    return turns


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_agree_how_long_they_measure(kind: str, two: list[dict[str, Any]]) -> None:
    assert [rank[kind] for rank in two] == [2, 2]


def as_torchrun_starts_it(words: list[str], port: int, folder: Path) -> tuple[int, str]:
    """The command on a rank, which joins a group of its own: its exit code, and what it says."""
    dist.destroy_process_group()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    tempfile.tempdir = str(folder)
    cost.WARM_UP, cost.BLOCK, cost.LEAST, cost.MOST, cost.MEMORY_STEPS = 1, 2, 2, 2, 1
    with redirect_stdout(io.StringIO()) as said, redirect_stderr(io.StringIO()) as aside:
        code = main(words)
    return code, said.getvalue() if code == 0 else aside.getvalue()


def test_the_command_on_two_processes(tmp_path: Path) -> None:
    small = "--task tests.compare.tiny:task --methods sam --rho 0.1 --seeds 1 --epochs 1 --parallel fsdp".split()
    words = ["compare", *small, "--out", str(tmp_path / "out")]
    (first, said), (second, other) = distributed.run(2, as_torchrun_starts_it, words, distributed.free_port(), tmp_path)
    assert first == second == 0, said + other
    out = tmp_path / "out"
    assert (out / "report.html").exists() and said.count("Report:") == 1 and not other, "rank 0 alone speaks"
    records = [json.loads(path.read_text()) for path in (out / "runs").glob("*.json")]
    assert sorted(record["method"] for record in records) == ["base", "base", "base", "sam"]
    assert set(json.loads((out / "cost.json").read_text())["methods"]) == {"sam"}


def test_without_torchrun_one_sentence_says_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2 -m steppe compare --parallel fsdp"):
        parallel.begin(resolve({"parallel": "fsdp"}))


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="batch_size=100 does not divide into 3 equal shares"):
        parallel.begin(resolve({"parallel": "ddp"}))


@pytest.mark.parametrize(("examples", "count", "fits"), [(50, 4, False), (50, 2, True), (100, 4, True), (3, 2, False)])
def test_one_batch_of_everything_must_be_shared_out_evenly(
    examples: int, count: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "ranks", lambda: count)
    if fits:
        ranks.check_divides(examples, 64)
    else:
        with pytest.raises(ValueError, match=f"the {examples} training examples are one batch, which does not divide"):
            ranks.check_divides(examples, 64)


def test_several_processes_without_parallel_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started, and each would run the whole study; add"):
        parallel.begin(resolve({}))
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert parallel.begin(resolve({})) == resolve({})


def test_one_gpu_for_all_processes_is_refused() -> None:
    spec = resolve({"parallel": "ddp"}).model_copy(update={"device": "cuda:0"})
    with pytest.raises(ValueError, match="device='cuda:0' is one GPU for all processes; give --device cuda"):
        parallel.begin(spec)


def test_alone_everything_is_as_it_was() -> None:
    model, batch = torch.nn.Linear(2, 1), (torch.zeros(4, 2), torch.zeros(4))
    assert ranks.ranks() == 1 and ranks.first()
    assert ranks.own_part(batch) is batch and ranks.agree(batch) is batch
    assert ranks.once(lambda: batch) is batch
    assert ranks.spread(model, None) is model and ranks.whole(model, lambda: None) is model


def once_each(folder: Path) -> tuple[str, int, str]:
    """A file that is begun once, and an error of rank 0."""

    def begin() -> Path:
        (folder / f"{dist.get_rank()}").touch()
        return folder / "begun"

    def fail() -> None:
        raise DiskError(f"rank {dist.get_rank()} cannot write")

    place = ranks.once(begin)
    try:
        ranks.once(fail)
    except DiskError as error:
        return place.name, len(list(folder.iterdir())), str(error)
    raise AssertionError("nothing was raised")


def test_rank_0_writes_once_and_its_error_is_everybodys(two: list[dict[str, Any]]) -> None:
    assert [rank["once"] for rank in two] == [("begun", 1, "rank 0 cannot write")] * 2
