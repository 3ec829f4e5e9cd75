"""The bowl w'Hw/2 with its gradients on paper, and small helpers of the tests of closed forms."""

import torch
from tests import reference
from torch import nn

BOWL = reference.Quadratic(noise=0.0)
H = torch.from_numpy(BOWL.H)
W = torch.from_numpy(BOWL.start)
G = H @ W  # gradient of w'Hw/2
N = G.norm()
LR, RHO = 0.1, 0.3
G_TILDE = H @ (W + RHO * G / N)


class Tensors(nn.Module):
    """Parameters of given values, by name."""

    def __init__(self, **values):
        super().__init__()
        for name, value in values.items():
            self.register_parameter(name, nn.Parameter(value.clone()))


def bowl():
    model = Tensors(w=W)
    return model, torch.optim.SGD(model.parameters(), lr=LR)


def bowl_loss(model):
    return lambda: model.w @ H @ model.w / 2


def close(a, b, tolerance=1e-14):
    return float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))
