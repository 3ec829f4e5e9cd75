"""fp16 with a GradScaler: one changed line, and a step that the scaler skips never happened.

The recipe is torch's own (autocast, scale, unscale, clip, step, update). The loss scale starts far too high on purpose,
so that the first steps overflow, as they do in any fp16 training.
"""

import torch
from torch import nn

import steppe

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS = 80


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 1)).to(DEVICE)
    x = torch.randn(128, 12, device=DEVICE)
    y = x[:, :3].prod(1, keepdim=True).sign()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**32)
    sharp = steppe.LookSAM(model, optimizer, rho=0.05, k=5, alpha=0.1)  # changed 1: added
    losses, tries = [], 0

    while sharp.step < STEPS:
        start = [p.detach().clone() for p in model.parameters()]
        done, memory = sharp.step, sharp.memory

        def loss_of() -> torch.Tensor:
            with torch.autocast(DEVICE, dtype=torch.float16):
                return nn.functional.mse_loss(model(x), y)

        loss = sharp.backward(loss_of, backward=lambda loss: scaler.scale(loss).backward())  # changed 2: both passes
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

        tries += 1
        if sharp.step == done:  # skipped: neither weights nor memory nor schedule know of it
            assert all(torch.equal(p, w) for p, w in zip(model.parameters(), start, strict=True))
            assert sharp.memory is memory
        else:
            losses.append(float(loss))

    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {STEPS} steps; {tries - STEPS} skipped by the scaler")
    assert tries > STEPS
    assert losses[-1] < losses[0] / 2


if __name__ == "__main__":
    main()
