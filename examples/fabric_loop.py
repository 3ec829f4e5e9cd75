"""Lightning Fabric: `fabric.backward` goes in as `backward=`, and `sharp` into the checkpoint beside the rest.

Build the method after `fabric.setup`, from what it returns.
"""

import tempfile
from pathlib import Path

import lightning as L  # noqa: N812
import torch
from torch import nn

import steppe

STEPS, STOP = 30, 13


def train(steps: int, path: Path, resume: bool = False) -> list[torch.Tensor]:
    fabric = L.Fabric(accelerator="cpu", precision="bf16-mixed")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    sharp = steppe.LookSAM(model, optimizer, rho=0.05, k=5, alpha=0.1)  # new
    state = {"model": model, "optimizer": optimizer, "sharp": sharp}  # "sharp" is new
    if resume:
        fabric.load(path, state)
    for step in range(sharp.step, steps):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(32, 6, generator=generator), torch.randint(3, (32,), generator=generator)
        # Was: fabric.backward(nn.functional.cross_entropy(model(x), y))
        sharp.backward(lambda: nn.functional.cross_entropy(model(x), y), backward=fabric.backward)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
    fabric.save(path, state)
    return [p.detach().clone() for p in model.parameters()]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = train(STEPS, Path(folder) / "whole.ckpt")
        train(STOP, Path(folder) / "half.ckpt")
        resumed = train(STEPS, Path(folder) / "half.ckpt", resume=True)
    different = sum(int((a != b).sum()) for a, b in zip(whole, resumed, strict=True))
    print(f"stopped after {STOP} of {STEPS} steps, resumed: {different} weights differ")
    assert different == 0


if __name__ == "__main__":
    main()
