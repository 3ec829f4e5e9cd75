"""Flat-LoRA: the gradient at merged weights with random noise, whose size follows each row: flat in the full space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from steppe._length import check_length
from steppe._optimizers import Given
from steppe._parts import check, check_choice
from steppe._rounding import generator
from steppe._wiring import refusing_unknown
from steppe.curves import Cosine
from steppe.lora._in_forward import InForward
from steppe.lora._layers import Layer

SCHEDULES = ("cosine", "constant")
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class FlatLoRA(InForward):
    """Random weight perturbation of the merged weights, in the one pass of each step.

    For every LoRA layer with frozen W (m x n) and merged weight W' = W + s B A, at optimizer step t:

        eps_ij ~ N(0, sigma_t^2 ||W'_i,:||^2 / n),    A and B get the gradient of L(W + s B A + eps)

    eps is drawn anew for every step from (seed, t, layer) and never kept: the layer's forward pass sees W + eps, and
    its backward pass makes the same W + eps again. Nothing is written into W, so W stays as it is bit for bit, also
    when a pass raises. All micro-batches of a step, all ranks, and the recomputation under gradient checkpointing see
    the same eps. With DoRA the norms are those of W + s B A, before its magnitudes.

        flat = steppe.FlatLoRA(model, optimizer, sigma=0.05, total_steps=1000)
        ...                                   # train as ever: loss.backward(); optimizer.step(); optimizer.zero_grad()

    Args:
        model: with PEFT's LoRA layers on linear layers of plain weights. Noise is there in training mode only.
        optimizer: any, or a list of several; its real steps are t. It keeps this object alive.
        sigma: noise relative to a row's norm, at least 0; 0.05 for language models, 0.15 for CLIP in the paper; 0 is
            LoRA.
        total_steps: T, optimizer steps of the whole training; needed by "cosine".
        schedule: "cosine": sigma_t = sigma (1 - cos(pi t / T)) / 2, which grows to sigma (the paper's
            "cosine-increasing strategy"; this form of it is [recalled]). "constant": sigma.
        seed: of the noise; torch's own generators are not touched. CPU and CUDA draw different numbers.

    Cost: 1 pass; per layer one draw of m x n numbers forward and one backward; memory for one layer's W + eps at a
    time, and m numbers per layer until its backward. Under autocast the cast copy of W + eps is kept for the backward,
    as that of W is in LoRA.

    Raises:
        TypeError, ValueError: there is no LoRA layer that the optimizer trains, a base weight is quantised, trained or
            no plain parameter, or a setting is out of range.

    Source: Li et al., ICML 2025, arXiv 2409.14396, equations 6 and 7.
    """

    FORMAT = "FlatLoRA 1"
    SETTINGS = ("sigma", "total_steps", "schedule", "seed")
    HOOKS = ("_enter", "_leave")

    sigma: float
    total_steps: int | None
    schedule: str
    seed: int

    @refusing_unknown
    def __init__(
        self,
        model: nn.Module,
        optimizer: Given,
        *,
        sigma: float = 0.05,
        total_steps: int | None = None,
        schedule: str = "cosine",
        seed: int = 0,
    ) -> None:
        self._saving: dict[int, saved_tensors_hooks] = {}
        settings = {"sigma": sigma, "total_steps": total_steps, "schedule": schedule, "seed": seed}
        super().__init__(model, optimizer, settings)

    def _fit(self, layers: tuple[Layer, ...]) -> None:
        for layer in layers:
            _check_base(layer)

    @property
    def strength(self) -> float:
        """sigma_t at the present step."""
        if self.schedule == "constant" or not self.total_steps:
            return self.sigma
        return Cosine(0.0, self.sigma, self.total_steps)(self.step)

    def noise(self, layer: int) -> Tensor:
        """eps of layer number ``layer`` at the present step, m x n, in the weight's dtype and layout."""
        weight = self.layers[layer].weight
        return self._noise(layer, self.step, self._deviations(layer)) if self.strength else torch.zeros_like(weight)

    @staticmethod
    def _check(settings: Mapping[str, Any]) -> None:
        check("sigma", settings["sigma"], 0.0)
        check_choice("schedule", settings["schedule"], SCHEDULES)
        check_length(settings["schedule"], settings["total_steps"])

    # The noise

    @torch.no_grad()
    def _deviations(self, index: int) -> Tensor:
        """sigma_t ||W'_i,:|| / sqrt(n) of every row, as W lies: (m, 1), or (1, m) where W is transposed."""
        layer = self.layers[index]
        weight, by_rows = layer.weight, not _transposed(layer)
        wide = torch.promote_types(weight.dtype, torch.float32)
        squares = torch.linalg.vector_norm(weight, dim=int(by_rows), dtype=wide).square()
        merged = [(a.to(wide), b.to(wide), s) for a, b, s in layer.factors()]
        for i, (a, b, s) in enumerate(merged):
            images = (weight if by_rows else weight.T).to(wide) @ a.T  # no m x n product: ||w + c||^2 by its terms
            squares += 2 * s * (images * b).sum(1)
            for a2, b2, s2 in merged[: i + 1]:
                both = s * s2 * ((b @ (a @ a2.T)) * b2).sum(1)
                squares += both if a2 is a else 2 * both
        rows = squares.clamp(min=0).sqrt() * (self.strength / math.sqrt(layer.shape[1]))
        return rows[:, None] if by_rows else rows[None, :]

    @torch.no_grad()
    def _noise(self, index: int, step: int, deviations: Tensor) -> Tensor:
        layer, weight = self.layers[index], self.layers[index].weight
        rng = generator(weight.device, f"flat_lora:{layer.name}", self.seed, step)
        draws = torch.randn(weight.shape, generator=rng, device=weight.device, dtype=weight.dtype)
        return draws.mul_(deviations.to(weight.dtype))

    # The forward pass of a base layer

    def _enter(self, index: int, module: nn.Module, args: Any, output: Any) -> None:
        self._leave(index, module, args, output)  # what an interrupted pass left
        if not self.strength or not self._active(self.layers[index]):
            return
        step, deviations = self.step, self._deviations(index)

        def noisy() -> Tensor:
            return self._noise(index, step, deviations).add_(self.layers[index].weight)

        seen = noisy()
        self._saving[index] = _made_again(seen, noisy)
        self._saving[index].__enter__()
        # An attribute of the instance is found before the parameter of that name, which stays where it is.
        module.__dict__["weight"] = seen

    def _leave(self, index: int, module: nn.Module, args: Any, output: Any) -> None:
        module.__dict__.pop("weight", None)
        saving = self._saving.pop(index, None)
        if saving is not None:
            saving.__exit__()

    def _end(self) -> None:
        for index in list(self._saving):
            self._leave(index, self.layers[index].base, None, None)


def _made_again(seen: Tensor, make: Any) -> saved_tensors_hooks:
    """Autograd, which would keep W + eps for the backward, keeps its place in it and asks ``make`` for it anew."""
    where = seen.untyped_storage().data_ptr()

    def pack(tensor: Tensor) -> Any:
        if tensor.untyped_storage().data_ptr() != where:
            return tensor
        return tensor.size(), tensor.stride(), tensor.storage_offset()

    def unpack(packed: Any) -> Tensor:
        return packed if isinstance(packed, Tensor) else make().as_strided(*packed)

    return saved_tensors_hooks(pack, unpack)


def _transposed(layer: Layer) -> bool:
    """Whether W lies as n x m (GPT-2's Conv1D)."""
    return bool(getattr(layer.module, "fan_in_fan_out", False))


def _check_base(layer: Layer) -> None:
    weight, shape = layer.base._parameters.get("weight"), layer.shape
    if (
        weight is None
        or weight.dtype not in _FLOATS
        or tuple(weight.shape) != (shape[::-1] if _transposed(layer) else shape)
    ):
        kind = "no weight of its own" if weight is None else f"a weight {tuple(weight.shape)} of {weight.dtype}"
        raise ValueError(
            f"the base of LoRA layer {layer.name} has {kind}; expected a plain floating-point weight {shape}: noise "
            "cannot be added to a quantised or parametrised one, load the model without quantisation"
        )
    if weight.requires_grad:
        raise ValueError(
            f"the base weight of LoRA layer {layer.name} is trained; expected it frozen, as PEFT leaves it"
        )
