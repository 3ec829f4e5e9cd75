"""Training scripts as users write them, small; each is the function that `--script tests/.../loops.py:NAME` names."""

import torch
from torch import nn

import steppe
from steppe.compare.script.sharpen import Sharpen

MODEL = nn.Linear(3, 2)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def data(seed: int, count: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, (x[:, 0] > 0).long()


def figures(model: nn.Module) -> dict:
    found = {}
    for part, seed in (("val", 100), ("test", 200)):
        x, y = data(seed, 40)
        with torch.no_grad():
            output = model(x)
        nll = nn.functional.cross_entropy(output, y)
        found[part] = {"accuracy": (output.argmax(1) == y).double().mean(), "nll": nll}
    return found


def epochs(sharpen: Sharpen, seed: int, length: float = 1.0, count: int = 3, lr: float = 0.1, batch: int = 8):
    """A plain loop that yields after every epoch."""
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    x, y = data(seed)
    count = round(count * length)
    sharp = sharpen(model, optimizer, total_steps=count * (24 // batch))
    for _ in range(count):
        for rows in torch.randperm(24).split(batch):
            sharp.backward(lambda rows: nn.functional.cross_entropy(model(x[rows]), y[rows]), rows)
            optimizer.step()
            optimizer.zero_grad()
        yield figures(model)


def measured(sharpen: Sharpen, seed: int):
    """Says how its model is measured."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x, y = data(seed)
    sharp = sharpen(model, optimizer, total_steps=30, measure=lambda: figures(model))
    for _ in range(30):
        sharp.backward(lambda: nn.functional.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()
    return figures(model)


def once(sharpen: Sharpen, seed: int):
    """Trains to its end and returns one figure for each part; it cannot train longer."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = data(seed)
    sharp = sharpen(model, optimizer)
    for _ in range(4):
        sharp.backward(lambda: nn.functional.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()
    found = figures(model)
    return {part: float(found[part]["nll"]) for part in ("val", "test")}


def phases(sharpen: Sharpen, seed: int):
    """A loop with the phases in place of backward, and a state that is saved and loaded on the way."""
    model, (x, y) = network(), data(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = sharpen(model, optimizer, total_steps=4)
    for _ in range(4):
        sharp.mark()
        nn.functional.cross_entropy(model(x), y).backward()
        if sharp.ascend():
            nn.functional.cross_entropy(model(x), y).backward()
            sharp.restore()
        optimizer.step()
        optimizer.zero_grad()
        sharp.load_state_dict(sharp.state_dict())
    return figures(model)


def pieces(sharpen: Sharpen, seed: int):
    """Accumulation over micro-batches."""
    model, (x, y) = network(), data(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = sharpen(model, optimizer, total_steps=2)

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(x[rows]), y[rows]) / 3

    for _ in range(2):
        sharp.backward(loss_of, micro_batches=(rows for rows in torch.arange(24).split(8)))
        optimizer.step()
        optimizer.zero_grad()
    return figures(model)


def each_sample(sharpen: Sharpen, seed: int):
    """A loss for each sample where the method asks for that."""
    model, (x, y) = network(), data(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = sharpen(model, optimizer, total_steps=2)
    how = "none" if isinstance(sharp, steppe.SharpnessAware) and sharp.needs.per_sample else "mean"
    for _ in range(2):
        loss_of = lambda rows: nn.functional.cross_entropy(model(x[rows]), y[rows], reduction=how)  # noqa: E731
        sharp.backward(loss_of, torch.arange(24))
        optimizer.step()
        optimizer.zero_grad()
    return figures(model)


def one_model(sharpen: Sharpen, seed: int):
    """Its model lives outside of the function: two of these at once would train the same weights."""
    MODEL.reset_parameters()
    optimizer = torch.optim.SGD(MODEL.parameters(), lr=0.1)
    sharp = sharpen(MODEL, optimizer)
    for _ in range(30):
        sharp.backward(lambda: MODEL(torch.randn(4, 3)).square().mean())
        optimizer.step()
        optimizer.zero_grad()
    return {"val": 1.0, "test": 1.0}


def of_their_own(sharpen: Sharpen, seed: int):
    """Seeds itself with a number of its own."""
    yield from epochs(sharpen, 7)


def half_beside(sharpen: Sharpen, seed: int):
    """Every second step is an ordinary backward."""
    model, (x, y) = network(), data(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = sharpen(model, optimizer, total_steps=6)
    for step in range(6):
        if step % 2:
            sharp.backward(lambda: nn.functional.cross_entropy(model(x), y))
        else:
            nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return figures(model)


def scripted(sharpen: Sharpen, seed: int):
    """Figures written down beforehand: the best validation at look 2 and again at 4, the best test at 3."""
    val, test = (0.5, 0.9, 0.6, 0.9, 0.4), (0.3, 0.5, 0.8, 0.6, 0.2)
    for _, v, t in zip(once_each(sharpen, seed), val, test, strict=False):
        yield {"val": {"accuracy": v}, "test": {"accuracy": t}}


def once_each(sharpen: Sharpen, seed: int):
    model, (x, y) = network(), data(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = sharpen(model, optimizer, total_steps=5)
    for _ in range(5):
        sharp.backward(lambda: nn.functional.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()
        yield


def each_sample_wrong(sharpen: Sharpen, seed: int):
    """A loss of every sample where their mean is wanted."""
    model, (x, y) = network(), data(seed)
    sharp = sharpen(model, torch.optim.SGD(model.parameters(), lr=0.1))
    sharp.backward(lambda: nn.functional.cross_entropy(model(x), y, reduction="none"))


def adapters(sharpen: Sharpen, seed: int):
    """LoRA's factors alone, by PEFT."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(network().float(), LoraConfig(r=2, target_modules=["0", "2"]))
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=0.01)
    x, y = data(seed)
    sharp = sharpen(model, optimizer, total_steps=3)
    for _ in range(3):
        sharp.backward(lambda: nn.functional.cross_entropy(model(x.float()), y))
        optimizer.step()
        optimizer.zero_grad()
    return figures(lambda x: model(x.float()).double())
