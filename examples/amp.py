"""Mixed precision: autocast goes inside the closure, the gradient scaler's backward goes in as `backward=`.

Clipping stays what it was: it sees the one gradient that the optimizer will use.
"""

import torch
from torch import nn

import steppe


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 1))
    x = torch.randn(128, 12)
    y = x[:, :3].prod(1, keepdim=True).sign()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    sharp = steppe.SAM(model, optimizer, rho=0.05)
    seen = set()

    def closure() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(x)
            seen.add(output.dtype)
            return nn.functional.mse_loss(output.float(), y)

    losses = []
    for _ in range(150):
        losses.append(float(sharp.backward(closure, backward=lambda loss: scaler.scale(loss).backward())))
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    print(f"bf16 forward, fp32 weights: loss {losses[0]:.3f} -> {losses[-1]:.3f} in {sharp.step} steps")
    assert seen == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert sharp.step == 150
    assert losses[-1] < losses[0] / 2


if __name__ == "__main__":
    main()
