"""Two problems whose gradients are written by hand, and the same problems as torch modules.

`MLP` has what has broken implementations before: LayerNorm, biases, tensors that start at zero
(||w_l|| = 0), a low-rank pair whose first factor has a zero gradient at the start (||g_l|| = 0), and a new
mini-batch each step.
"""

import numpy as np
import torch
from torch import nn

LN_EPS = 1e-5


class MLP:
    """x -> Linear -> LayerNorm -> tanh -> Linear + low-rank pair -> cross-entropy, mean over a batch."""

    inputs, hidden, outputs, rank, samples, batch = 6, 8, 3, 2, 96, 16

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(self.samples, self.inputs))
        self.y = rng.integers(self.outputs, size=self.samples)
        self.x[np.arange(self.samples), self.y] += 1.0  # learnable
        self.order = rng.permuted(np.tile(np.arange(self.samples), (100, 1)), axis=1)
        self.start = {
            "fc1.weight": rng.normal(size=(self.hidden, self.inputs)) * 0.5,
            "fc1.bias": np.zeros(self.hidden),
            "ln.weight": np.ones(self.hidden) + 0.1 * rng.normal(size=self.hidden),
            "ln.bias": 0.1 * rng.normal(size=self.hidden),
            "fc2.weight": rng.normal(size=(self.outputs, self.hidden)) * 0.5,
            "fc2.bias": 0.1 * rng.normal(size=self.outputs),
            "low.a": rng.normal(size=(self.rank, self.hidden)) * 0.5,
            "low.b": np.zeros((self.outputs, self.rank)),
        }

    def weights(self):
        return {k: v.copy() for k, v in self.start.items()}

    def rows(self, t):
        """Indices of the mini-batch of step t: a fresh order in every epoch."""
        per_epoch = self.samples // self.batch
        i = t % per_epoch
        return self.order[t // per_epoch][i * self.batch : (i + 1) * self.batch]

    def loss(self, w, t, rows=None):
        return self._run(w, self.rows(t) if rows is None else rows)[0]

    def grad(self, w, t, rows=None):
        return self._run(w, self.rows(t) if rows is None else rows)[1]

    def _run(self, w, rows):
        x, y, n = self.x[rows], self.y[rows], len(rows)
        z = x @ w["fc1.weight"].T + w["fc1.bias"]
        centred = z - z.mean(1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(1, keepdims=True) + LN_EPS)
        unit = centred / deviation
        h = np.tanh(unit * w["ln.weight"] + w["ln.bias"])
        down = h @ w["low.a"].T
        logits = h @ w["fc2.weight"].T + w["fc2.bias"] + down @ w["low.b"].T
        logits = logits - logits.max(1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        loss = -log_p[np.arange(n), y].mean()

        d_logits = np.exp(log_p)
        d_logits[np.arange(n), y] -= 1.0
        d_logits /= n
        d_down = d_logits @ w["low.b"]
        d_h = d_logits @ w["fc2.weight"] + d_down @ w["low.a"]
        d_pre = d_h * (1 - h**2)
        d_unit = d_pre * w["ln.weight"]
        # LayerNorm: the mean and the component along `unit` are taken out of the gradient
        d_z = d_unit - d_unit.mean(1, keepdims=True) - unit * (d_unit * unit).mean(1, keepdims=True)
        d_z = d_z / deviation
        return loss, {
            "fc1.weight": d_z.T @ x,
            "fc1.bias": d_z.sum(0),
            "ln.weight": (d_pre * unit).sum(0),
            "ln.bias": d_pre.sum(0),
            "fc2.weight": d_logits.T @ h,
            "fc2.bias": d_logits.sum(0),
            "low.a": d_down.T @ h,
            "low.b": d_logits.T @ down,
        }

    def module(self):
        """The same network for torch, float64, at the same start."""
        net = _Net(self)
        with torch.no_grad():
            for name, p in net.named_parameters():
                p.copy_(torch.from_numpy(self.start[name]))
        return net

    def torch_batch(self, t):
        rows = self.rows(t)
        return torch.from_numpy(self.x[rows]), torch.from_numpy(self.y[rows])

    @staticmethod
    def torch_loss(net, batch):
        return nn.functional.cross_entropy(net(batch[0]), batch[1])


class _LowRank(nn.Module):
    def __init__(self, inputs, rank, outputs):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(rank, inputs, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(outputs, rank, dtype=torch.float64))

    def forward(self, h):
        return h @ self.a.T @ self.b.T


class _Net(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.fc1 = nn.Linear(p.inputs, p.hidden, dtype=torch.float64)
        self.ln = nn.LayerNorm(p.hidden, eps=LN_EPS, dtype=torch.float64)
        self.fc2 = nn.Linear(p.hidden, p.outputs, dtype=torch.float64)
        self.low = _LowRank(p.hidden, p.rank, p.outputs)

    def forward(self, x):
        h = torch.tanh(self.ln(self.fc1(x)))
        return self.fc2(h) + self.low(h)


class Quadratic:
    """L_t(w) = w'Hw/2 - b_t'w with a positive definite H; `noise=0` gives the plain bowl w'Hw/2."""

    def __init__(self, dimension=6, noise=0.3, seed=1):
        rng = np.random.default_rng(seed)
        basis, _ = np.linalg.qr(rng.normal(size=(dimension, dimension)))
        self.H = basis @ np.diag(np.linspace(0.2, 2.0, dimension)) @ basis.T
        self.b = noise * rng.normal(size=(1000, dimension))
        self.start = rng.normal(size=dimension)

    def weights(self):
        return {"w": self.start.copy()}

    def loss(self, w, t):
        return float(w["w"] @ self.H @ w["w"] / 2 - self.b[t] @ w["w"])

    def grad(self, w, t):
        return {"w": self.H @ w["w"] - self.b[t]}

    def module(self):
        return _Point(self.start)

    def torch_batch(self, t):
        return torch.from_numpy(self.H), torch.from_numpy(self.b[t])

    @staticmethod
    def torch_loss(net, batch):
        return net.w @ batch[0] @ net.w / 2 - batch[1] @ net.w


class _Point(nn.Module):
    def __init__(self, start):
        super().__init__()
        self.w = nn.Parameter(torch.from_numpy(start.copy()))
