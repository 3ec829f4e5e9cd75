"""`torchrun ... steppe compare --parallel ddp|fsdp`: the same study, every run on two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.loops import distributed

from steppe.finetune.folder import DiskError
from steppe.study import parallel
from steppe.study.spec import resolve

SMALL = ["--methods", "sam", "--rho", "0.1", "--seeds", "1", "--epochs", "2", "--labelled", "100"]


def study(out: Path, kind: str | None) -> dict[str, dict]:
    launch = ["-m", "steppe"] if kind is None else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    more = [] if kind is None else ["-m", "steppe"]
    choice = [] if kind is None else ["--parallel", kind]
    command = [sys.executable, *launch, *more, "compare", *SMALL, *choice, "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (out / "report.html").exists() and done.stdout.count("Report:") == 1, "rank 0 alone speaks"
    records = [json.loads(path.read_text()) for path in (out / "runs").glob("*.json")]
    return {f"{r['method']}-{r['variant']}": r for r in records}


@pytest.mark.slow
def test_both_kinds_equal_one_process(tmp_path: Path) -> None:
    plain = study(tmp_path / "plain", None)
    for kind in ("ddp", "fsdp"):
        together = study(tmp_path / kind, kind)
        assert together.keys() == plain.keys()
        for name, record in together.items():
            assert record["passes_per_step"] == plain[name]["passes_per_step"]
            loss, expected = (torch.tensor(r["curve"]["train_loss"]) for r in (record, plain[name]))
            torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_without_torchrun_one_sentence_says_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2 -m steppe compare --parallel fsdp"):
        parallel.begin(resolve({"parallel": "fsdp"}))


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="batch_size=50 does not divide into 3 equal shares"):
        parallel.begin(resolve({"parallel": "ddp"}))


def test_alone_everything_is_as_it_was() -> None:
    model, batch = torch.nn.Linear(2, 1), (torch.zeros(4, 2), torch.zeros(4))
    assert parallel.ranks() == 1 and parallel.first()
    assert parallel.share(batch) is batch and parallel.agree(batch) is batch
    assert parallel.once(lambda: batch) is batch
    assert parallel.spread(model, None) is model and parallel.whole(model, lambda: None) is model


def once_each(folder: Path) -> tuple[Path, int, str]:
    """A file that is begun once, and an error of rank 0."""

    def begin() -> Path:
        (folder / f"{dist.get_rank()}").touch()
        return folder / "begun"

    def fail() -> None:
        raise DiskError(f"rank {dist.get_rank()} cannot write")

    place = parallel.once(begin)
    try:
        parallel.once(fail)
    except DiskError as error:
        return place, len(list(folder.iterdir())), str(error)
    raise AssertionError("nothing was raised")


def test_rank_0_writes_once_and_its_error_is_everybodys(tmp_path: Path) -> None:
    assert distributed.run(2, once_each, tmp_path) == [(tmp_path / "begun", 1, "rank 0 cannot write")] * 2
