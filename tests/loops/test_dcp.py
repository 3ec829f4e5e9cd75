"""torch's distributed checkpoint: ``sharp`` as a Stateful, resharded from 2 ranks to 4, back to 2 and to 1."""

import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from tests.loops import distributed as d
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as sd
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter

import steppe

NAMES = (*d.LOOP_METHODS, "fsam", "aesam", "msam", "s2_sam")
RESHARDED = ("grst", "look_sam", "adasam", "fsam", "aesam")  # with memory, or draws, or state of the base
# In the middle of LookSAM's cycles (refreshes at 0, 3, 6, 9, ...), after draws of G-RST.
FIRST, SECOND = 4, 8
Built = tuple[nn.Module, torch.optim.Optimizer, steppe.SharpnessAware]


def _build(kind: str, name: str) -> Built:
    model = d.wrap(kind, d.network())
    optimizer = d.base(name, model)
    return model, optimizer, d.sharpen(name, model, optimizer)


def _state(built: Built) -> dict[str, Any]:
    model, optimizer, sharp = built
    return {
        "model": sd.get_model_state_dict(model),
        "optim": sd.get_optimizer_state_dict(model, optimizer),
        "sharp": sharp,
    }


def _load(built: Built, folder: Path) -> None:
    state = _state(built)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process means it
        dcp.load(state, checkpoint_id=folder)
    sd.set_model_state_dict(built[0], state["model"])
    sd.set_optimizer_state_dict(built[0], built[1], state["optim"])


def _save(built: Built, folder: Path) -> None:
    dcp.save(_state(built), checkpoint_id=folder)


def _begin(kind: str, names: tuple[str, ...], folder: Path) -> dict[str, Tensor]:
    """To the first checkpoint, and on to the end without a break."""
    ends = {}
    for name in names:
        built = _build(kind, name)
        d.advance(*built, 0, FIRST)
        _save(built, folder / name)
        d.advance(*built, FIRST, d.STEPS)
        assert built[2].step == d.STEPS, "saving counts no steps"
        ends[name] = d.weights(built[0])
    return ends


def _go_on(kind: str, names: tuple[str, ...], start: int, folder: Path, to: Path | None = None) -> dict[str, Tensor]:
    """From a checkpoint to the end, with another checkpoint on the way where ``to`` says so."""
    ends = {}
    for name in names:
        built = _build(kind, name)
        _load(built, folder / name)
        assert built[2].step == start
        if to is not None:
            d.advance(*built, start, SECOND)
            _save(built, to / name)
        d.advance(*built, SECOND if to is not None else start, d.STEPS)
        ends[name] = d.weights(built[0])
    return ends


def _two_ranks(folder: Path) -> list[dict[str, Tensor]]:
    ddp = ("look_sam", "fsam")
    return [
        _begin("FSDP2", NAMES, folder / "two"),
        _go_on("FSDP2", NAMES, FIRST, folder / "two"),
        _begin("DDP", ddp, folder / "ddp"),
        _go_on("DDP", ddp, FIRST, folder / "ddp"),
        _go_on("FSDP2", ddp, FIRST, folder / "ddp"),  # sharded from what every rank had whole
    ]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("dcp")
    whole, again, ddp, ddp_again, ddp_sharded = d.run(2, _two_ranks, folder)[0]
    return {
        "whole": whole,
        "2 to 2": again,
        "2 to 4": d.run(4, _go_on, "FSDP2", RESHARDED, FIRST, folder / "two", folder / "four")[0],
        "4 to 2": d.run(2, _go_on, "FSDP2", RESHARDED, SECOND, folder / "four")[0],
        "4 to 1": _go_on("single", RESHARDED, SECOND, folder / "four"),
        "ddp": ddp,
        "ddp to ddp": ddp_again,
        "ddp to fsdp": ddp_sharded,
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_same_ranks_go_on_bit_for_bit(
    name: str, ran: dict[str, dict[str, Tensor]], record_property: d.Record
) -> None:
    d.record(record_property, "DCP", name)
    assert torch.equal(ran["2 to 2"][name], ran["whole"][name])


@pytest.mark.parametrize("name", RESHARDED)
@pytest.mark.parametrize("ranks", ["2 to 4", "4 to 2", "4 to 1"])
def test_other_numbers_of_ranks_go_on_alike(ranks: str, name: str, ran: dict[str, dict[str, Tensor]]) -> None:
    assert (ran[ranks][name] - ran["whole"][name]).abs().max() <= 1e-6


@pytest.mark.parametrize("name", ["look_sam", "fsam"])
def test_from_ddp(name: str, ran: dict[str, dict[str, Tensor]]) -> None:
    assert torch.equal(ran["ddp to ddp"][name], ran["ddp"][name])
    assert (ran["ddp to fsdp"][name] - ran["ddp"][name]).abs().max() <= 1e-6


class _Dies(FileSystemWriter):
    """Rank 1 is killed while it writes."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write_data(plan, planner)


def _killed_while_saving(folder: Path) -> str:
    built = _build("FSDP2", "look_sam")
    d.advance(*built, 0, 2)
    _save(built, folder / "good")
    try:
        dcp.save(_state(built), storage_writer=_Dies(folder / "bad"))
    except BaseException as error:
        return type(error).__name__
    return "saved"


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    """DCP writes its index last, by rename: without it nothing is loaded, and the checkpoint before is untouched."""
    heard, killed = d.run(2, _killed_while_saving, tmp_path, may_die=True)
    assert killed is None and heard != "saved"
    assert not (tmp_path / "bad" / ".metadata").exists()
    built = _build("single", "look_sam")
    with pytest.raises(CheckpointException, match="metadata"):
        _load(built, tmp_path / "bad")
    _load(built, tmp_path / "good")
    assert built[2].step == 2
