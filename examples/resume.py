"""Stop in the middle of a LookSAM cycle, start again, and end with the same weights to the last bit.

The checkpoint holds three ordinary state dicts and loads with `weights_only=True`.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

import steppe

STEPS, STOP = 40, 17  # 17 is not a multiple of k = 5: the reused gradient is in the checkpoint


Run = tuple[nn.Module, torch.optim.Optimizer, steppe.SharpnessAware]


def build() -> Run:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return model, optimizer, steppe.LookSAM(model, optimizer, rho=0.05, k=5, alpha=0.1)


def train(run: Run, stop: int) -> None:
    model, optimizer, sharp = run
    while sharp.step < stop:
        generator = torch.Generator().manual_seed(sharp.step)
        x, y = torch.randn(32, 6, generator=generator), torch.randint(3, (32,), generator=generator)
        sharp.backward(lambda: nn.functional.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    uninterrupted = build()
    train(uninterrupted, STEPS)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        first = build()
        train(first, STOP)
        torch.save([part.state_dict() for part in first], path)

        resumed = build()
        for part, state in zip(resumed, torch.load(path, weights_only=True), strict=True):
            part.load_state_dict(state)
    assert resumed[2].step == STOP
    train(resumed, STEPS)

    pairs = zip(uninterrupted[0].parameters(), resumed[0].parameters(), strict=True)
    different = sum(int((a != b).sum()) for a, b in pairs)
    print(f"stopped after {STOP} of {STEPS} steps, resumed: {different} weights differ")
    assert different == 0


if __name__ == "__main__":
    main()
