"""What a parameter is in its layer: an additive bias (ASAM), or a scale or shift of a normalisation (SAM-ON)."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import is_parametrized

_PARAMETRISED = re.compile(r"(.*\.)?parametrizations\.([^.]+)\.original\d*")
_BIAS = re.compile(r"(.*_)?bias(_orig)?|bias_(ih|hh)(_l\d+)?(_reverse)?(_orig)?")
_NORM = re.compile(r"(?i:norm)(?![a-z])")
_TORCHS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@functools.lru_cache(maxsize=2**16)
def is_bias(name: str) -> bool:
    """Whether a parameter of this full name is added to a layer's output as it is.

    Its own name is the last of the path (in a ParameterList, the list's); of a tensor that is parametrised
    (``parametrizations.bias.original0``), the name of what it parametrises; of a pruned one (``bias_orig``) likewise.
    A bias is what is then called ``bias``, ``..._bias`` (attention's ``in_proj_bias``), or as in torch's RNNs and their
    cells ``bias_ih...`` and ``bias_hh...``. Attention's ``bias_k`` and ``bias_v`` are a key and a value, not added to
    anything: no biases.

    >>> is_bias("rnn.bias_hh_l0_reverse"), is_bias("rnn.parametrizations.bias_ih_l0.original"), is_bias("attn.bias_k")
    (True, True, False)
    """
    if (inside := _PARAMETRISED.fullmatch(name)) is not None:
        return _BIAS.fullmatch(inside.group(2)) is not None
    path = [part for part in name.split(".") if not part.isdigit()]
    return bool(path) and _BIAS.fullmatch(path[-1]) is not None


def scales_and_shifts(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of normalisation layers, parametrised ones too.

    A normalisation layer is one of torch's own (batch, instance, layer, group, RMS norm and what is derived of them),
    or a module whose class has the word "Norm" in its name (LlamaRMSNorm, not NormalizedLinear) and whose own
    parameters each stretch along one dimension at most: one that owns a matrix (a fused LayerNormMLP) is no
    normalisation, nor is a parametrisation (weight norm). What a module holds in other modules is theirs.
    """
    for module in _layers(model):
        own = _own(module)
        if isinstance(module, _TORCHS) or (_NORM.search(type(module).__name__) and not any(map(_is_matrix, own))):
            yield from own


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Every module but parametrisations."""
    seen: set[nn.Module] = set()
    waiting = [module]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            yield module
            apart = "parametrizations" if is_parametrized(module) else None
            waiting += [m for name, m in module.named_children() if name != apart]


def _own(module: nn.Module) -> list[nn.Parameter]:
    lists: Any = module.parametrizations if is_parametrized(module) else {}
    return [*module.parameters(recurse=False), *(p for each in lists.values() for p in each.parameters(recurse=False))]


def _is_matrix(param: nn.Parameter) -> bool:
    return sum(size > 1 for size in param.shape) > 1
