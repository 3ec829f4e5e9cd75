"""Four papers in one constructor: RST x LookSAM x ASAM x layer-wise radii x mixed gradients.

No published method combines them; the parts do not know of each other, so they combine by construction.
"""

import torch
from torch import nn

import steppe

STEPS = 200


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 2))
    x = torch.randn(256, 10)
    y = (x[:, 0] * x[:, 1] > 0).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    sharp = steppe.SharpnessAware(
        model,
        optimizer,
        # ASAM's metric, layer by layer
        ascent=steppe.Ascent(rho=0.02, metric=steppe.Adaptive(eta=0.01), scope="trust"),
        # LookSAM's period, RST's coin
        schedule=steppe.Every(2) & steppe.Bernoulli(p=0.5),
        # LookSAM's push, GNP's mix
        combine=steppe.Reuse(push="natural", refresh=steppe.Mix(gamma=0.8)),
        seed=0,
    )
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    model.register_forward_hook(count)
    losses, ascents = [], 0
    for _ in range(STEPS):
        losses.append(float(sharp.backward(lambda: nn.functional.cross_entropy(model(x), y))))
        ascents += sharp.last.ascended
        optimizer.step()
        optimizer.zero_grad()

    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}; {ascents} ascents, {passes / STEPS:.2f} passes/step")
    assert passes == STEPS + ascents
    assert 0.15 * STEPS < ascents < 0.35 * STEPS  # a quarter of the steps, give or take the coin
    assert losses[-1] < losses[0] / 2


if __name__ == "__main__":
    main()
