"""accelerate: `accelerator.backward` goes in as `backward=`, and `save_state` saves the method too.

Build the method after `accelerator.prepare`, from what it returns. Under `accelerator.accumulate` the optimizer's
real steps are counted, not its calls.
"""

import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

import steppe

BATCHES, STOP, ACCUMULATE = 60, 26, 2


def train(batches: int, folder: Path, resume: bool = False) -> tuple[list[torch.Tensor], int]:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model, optimizer = accelerator.prepare(model, optimizer)
    sharp = steppe.LookSAM(model, optimizer, rho=0.05, k=5, alpha=0.1)  # new
    accelerator.register_for_checkpointing(sharp)  # new
    if resume:
        accelerator.load_state(str(folder))
    for i in range(sharp.step * ACCUMULATE, batches):
        generator = torch.Generator().manual_seed(i)
        x, y = torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator)
        with accelerator.accumulate(model):
            # Was: accelerator.backward(nn.functional.cross_entropy(model(x), y))
            sharp.backward(lambda: nn.functional.cross_entropy(model(x), y), backward=accelerator.backward)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    accelerator.save_state(str(folder))
    return [p.detach().clone() for p in model.parameters()], sharp.step


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        whole, steps = train(BATCHES, Path(name) / "whole")
        _, stop = train(STOP, Path(name) / "half")
        resumed, _ = train(BATCHES, Path(name) / "half", resume=True)
    different = sum(int((a != b).sum()) for a, b in zip(whole, resumed, strict=True))
    print(f"stopped after {stop} of {steps} steps, resumed: {different} weights differ")
    assert steps == BATCHES // ACCUMULATE
    assert stop % 5 != 0
    assert different == 0


if __name__ == "__main__":
    main()
