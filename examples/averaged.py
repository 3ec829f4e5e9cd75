"""The average of the iterates, beside SAM or without: torch's AveragedModel as it is, in the loop as it is.

steppe perturbs the weights inside `backward` only (MSAM's too), so an average that is taken between two steps is one of
the weights themselves. EMA: exponential; WASAM: SAM and the equal average of a tail; LAWA: of the latest few snapshots.
"""

from collections import deque
from copy import deepcopy

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import steppe

STEPS, TAIL, EVERY, LATEST = 300, 150, 10, 6


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))


def main() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    x = torch.randn(2256, 8)
    y = teacher(x).argmax(1)
    wrong = torch.rand(256) < 0.3  # of the training labels
    y[:256] = torch.where(wrong, torch.randint(3, (256,)), y[:256])
    train = list(zip(x[:256].split(32), y[:256].split(32), strict=True))

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sharp = steppe.SAM(model, optimizer, rho=0.1)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98), use_buffers=True)
    wasam = AveragedModel(model)
    snapshots: deque[dict[str, torch.Tensor]] = deque(maxlen=LATEST)
    for step in range(STEPS):
        bx, by = train[step % len(train)]
        sharp.backward(lambda bx=bx, by=by: nn.functional.cross_entropy(model(bx), by))
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(model)  # after the step: between ascend() and restore() it would be of w + eps
        if step >= TAIL:
            wasam.update_parameters(model)
        if step % EVERY == 0:
            snapshots.append({name: value.clone() for name, value in model.state_dict().items()})
    update_bn(train, wasam)  # without use_buffers the statistics are those of the start
    lawa = network()
    lawa.load_state_dict({name: sum(s[name] for s in snapshots) / len(snapshots) for name in snapshots[0]})

    for title, each in {"SAM": model, "SAM, EMA": ema, "WASAM": wasam, "SAM, LAWA": lawa}.items():
        with torch.no_grad():
            right = (deepcopy(each).eval()(x[256:]).argmax(1) == y[256:]).float().mean()
        print(f"{title:10} {right:.1%} of the test set right")
        assert right > 0.5


if __name__ == "__main__":
    main()
