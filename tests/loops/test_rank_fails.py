"""A rank that fails in its second pass: the others hear of it, and no rank is left with perturbed weights."""

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.loops import distributed as d
from torch import Tensor, nn

import steppe


def _one_rank_fails(kind: str, waits: bool) -> tuple[bool, str]:
    """Rank 1 raises in its second pass; whether this rank's weights are as before, and what it heard."""
    group = dist.new_group() if waits else None
    model = d.wrap(kind, d.network(), **({"process_group": group} if waits else {}))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sharp = steppe.SAM(model, optimizer, rho=0.5)
    batch, before = next(d.batches(1)), d.pieces(model)
    for error in _second_pass(model, sharp, batch, group):
        same = all(torch.equal(a, b) for a, b in zip(before, d.pieces(model), strict=True))
        if waits and dist.get_rank() == 1:
            time.sleep(3)  # is there, but sends nothing: the other rank has to run out of patience
        return same, error
    return False, "nobody failed"


def _second_pass(model: nn.Module, sharp: steppe.SharpnessAware, batch: Any, group: Any) -> Iterator[str]:
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if dist.get_rank() == 1 and calls == 2:
            raise MemoryError("out of memory")
        if group is not None and calls == 2:  # not before: a busy machine may be late for the first pass
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1), group)
        return d.loss_of(model)(batch)

    try:
        sharp.backward(closure)
    except Exception as error:
        yield f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("kind, waits", [("DDP", False), ("DDP", True), ("FSDP2", False)])
def test_a_rank_that_fails_leaves_no_rank_perturbed(kind: str, waits: bool) -> None:
    (same, heard), (same_too, raised) = d.run(2, _one_rank_fails, kind, waits)
    assert same and same_too
    assert raised == "MemoryError: out of memory"
    assert heard.startswith(("RuntimeError", "DistBackendError")), heard
