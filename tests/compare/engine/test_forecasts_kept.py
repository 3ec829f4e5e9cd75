"""The windows that a run of forecasts keeps for the report."""

from __future__ import annotations

import torch
from tests.compare import tiny
from torch import Tensor, nn

from steppe.compare import Task
from steppe.compare.data.windows import Windows
from steppe.compare.engine.forecasts import POINTS, kept

LOOKBACK, ROWS = 12, 60


class Last(nn.Module):
    """Forecasts the last value, and counts what it is asked."""

    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.horizon = horizon

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1:, :1].expand(-1, self.horizon, -1)


def task(rows: int, horizon: int) -> Task:
    """A series whose first column counts its rows."""
    series = torch.stack([torch.arange(rows).float(), torch.zeros(rows)], 1)
    part = Windows(series, LOOKBACK, LOOKBACK, horizon, columns=1)
    return Task("counting", part, part, part, loss="mse")


def test_two_windows_with_what_came_before_and_what_was_told() -> None:
    windows = kept(Last(4), task(ROWS, 4))["forecast"]["windows"]
    count = ROWS - LOOKBACK - 4 + 1
    assert [window["row"] for window in windows] == [count // 4, 3 * count // 4]
    for window in windows:
        first = window["row"] + LOOKBACK
        assert window["at"] == [-2, -1, 0, 1, 2, 3] and window["to"] == [0, 1, 2, 3]
        assert window["truth"] == [float(first + i) for i in window["at"]]
        assert window["told"] == [float(first - 1)] * 4


def test_long_windows_are_thinned() -> None:
    (window, _) = kept(Last(720), task(2000, 720))["forecast"]["windows"]
    assert len(window["at"]) == len(window["truth"]) <= POINTS and len(window["to"]) == len(window["told"])
    first = window["row"] + LOOKBACK
    assert window["truth"] == [float(first + i) for i in window["at"]]


def test_other_tasks_keep_none() -> None:
    assert kept(nn.Identity(), tiny.task(0)) == {}
