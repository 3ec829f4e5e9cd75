"""torch's distributed checkpoint: ``sharp`` as a Stateful, resharded from 2 ranks to 4, back to 2 and to 1."""

import os
import signal
import warnings
from collections.abc import Iterator
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

NAMES = (*d.LOOP_METHODS, "fsam", "aesam")
RESHARDED = ("look_sam", "adasam", "aesam")  # with memory in shards, with state of the base, with numbers
# In the middle of LookSAM's cycles (refreshes at 0 and 3), after draws of G-RST.
FIRST, SECOND = 2, 4
Built = tuple[nn.Module, torch.optim.Optimizer, steppe.SharpnessAware]


def _build(kind: str, name: str) -> Built:
    model = d.wrap(kind, d.network())
    optimizer = d.base(name, model)
    return model, optimizer, d.sharpen(name, model, optimizer)


def _state(trainings: dict[str, Built]) -> dict[str, Any]:
    """Of several trainings in one checkpoint, as it may well be: what a checkpoint costs, it costs once."""
    state: dict[str, Any] = {}
    for name, (model, optimizer, sharp) in trainings.items():
        state[f"{name} model"] = sd.get_model_state_dict(model)
        state[f"{name} optim"] = sd.get_optimizer_state_dict(model, optimizer)
        state[f"{name} sharp"] = sharp
    return state


def _load(trainings: dict[str, Built], folder: Path) -> None:
    state = _state(trainings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process means it
        dcp.load(state, checkpoint_id=folder)
    for name, (model, optimizer, _) in trainings.items():
        sd.set_model_state_dict(model, state[f"{name} model"])
        sd.set_optimizer_state_dict(model, optimizer, state[f"{name} optim"])


def _save(trainings: dict[str, Built], folder: Path) -> None:
    dcp.save(_state(trainings), checkpoint_id=folder)


def _advance(trainings: dict[str, Built], start: int, stop: int) -> None:
    for built in trainings.values():
        d.advance(*built, start, stop)


def _results(trainings: dict[str, Built]) -> dict[str, Tensor]:
    """Weights and what the method remembers: in few steps not everything that is forgotten moves a weight."""
    assert all(sharp.step == d.STEPS for _, _, sharp in trainings.values()), "saving counts no steps"
    return {
        name: torch.cat([d.weights(model), *_numbers(sharp.memory)]) for name, (model, _, sharp) in trainings.items()
    }


def _numbers(memory: Any) -> Iterator[Tensor]:
    if isinstance(memory, dict):
        for key in sorted(memory):
            yield from _numbers(memory[key])
    else:
        yield d.whole(torch.as_tensor(memory)).flatten()


def _begin(kind: str, names: tuple[str, ...], folder: Path) -> dict[str, Tensor]:
    """To the first checkpoint, and on to the end without a break."""
    trainings = {name: _build(kind, name) for name in names}
    _advance(trainings, 0, FIRST)
    _save(trainings, folder)
    _advance(trainings, FIRST, d.STEPS)
    return _results(trainings)


def _go_on(kind: str, names: tuple[str, ...], start: int, folder: Path, to: Path | None = None) -> dict[str, Tensor]:
    """From a checkpoint to the end, with another checkpoint on the way where ``to`` says so."""
    trainings = {name: _build(kind, name) for name in names}
    _load(trainings, folder)
    assert all(sharp.step == start for _, _, sharp in trainings.values())
    if to is not None:
        _advance(trainings, start, SECOND)
        _save(trainings, to)
    _advance(trainings, start if to is None else SECOND, d.STEPS)
    return _results(trainings)


def _two_ranks(folder: Path) -> list[dict[str, Tensor]]:
    ddp = ("look_sam",)
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


def test_from_ddp(ran: dict[str, dict[str, Tensor]]) -> None:
    plain = ran["ddp"]["look_sam"]
    assert torch.equal(ran["ddp to ddp"]["look_sam"], plain)
    assert (ran["ddp to fsdp"]["look_sam"] - plain).abs().max() <= 1e-6


class _Dies(FileSystemWriter):
    """Rank 1 is killed while it writes."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write_data(plan, planner)


def _killed_while_saving(folder: Path) -> str:
    training = {"one": _build("FSDP2", "look_sam")}
    _advance(training, 0, 2)
    _save(training, folder / "good")
    try:
        dcp.save(_state(training), storage_writer=_Dies(folder / "bad"))
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
        _load({"one": built}, tmp_path / "bad")
    _load({"one": built}, tmp_path / "good")
    assert built[2].step == 2
