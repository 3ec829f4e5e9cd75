"""Processes that share a machine with several GPUs each take another one."""

import tempfile
from pathlib import Path

import pytest
import torch

from steppe._command import devices


class Four:
    """A machine with four GPUs, of which this process sees the last three."""

    chosen: list[int]

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.chosen = []
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
        monkeypatch.setattr(torch.cuda, "set_device", self.chosen.append)
        monkeypatch.setattr(devices, "_identity", lambda gpu: f"gpu-{gpu + 1}")
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        monkeypatch.setattr(devices, "_places", [])

    def process(self) -> int:
        """The GPU that one more process takes."""
        devices._own_gpu.cache_clear()
        devices.take_gpu("cuda")
        return self.chosen[-1]


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    yield Four(monkeypatch, tmp_path)
    devices._own_gpu.cache_clear()


def test_each_process_takes_the_gpu_with_the_fewest(four: Four) -> None:
    assert [four.process() for _ in range(5)] == [0, 1, 2, 0, 1]
    devices._places[2].free()  # the process on the third GPU has ended
    assert [four.process() for _ in range(2)] == [2, 2], "the free place first"
    devices.take_gpu("cuda")
    assert four.chosen[-1] == 2, "a process keeps its own"


def test_one_gpu_a_gpu_by_number_and_none_are_left_as_they_are(four: Four, monkeypatch: pytest.MonkeyPatch) -> None:
    devices.take_gpu("cpu")
    devices.take_gpu("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    devices.take_gpu("cuda")
    assert four.chosen == [] and devices.gpus("cuda:1") == devices.gpus("cuda") == devices.gpus("cpu") == 1
