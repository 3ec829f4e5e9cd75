"""Models that the benchmark of step times adds to those of `steppe bench`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from steppe._command.networks import _ViT

WORDS = 32_000
IMAGE = 224


def vit192(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A vision transformer of width 192 and depth 6: 1.8 M weights, 65 tokens from an image of 32 x 32."""
    return _ViT(shape, classes, width=192, depth=6)


class Language(nn.Module):
    """A causal language model with tied words."""

    def __init__(self, width: int, depth: int, length: int, words: int = WORDS) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        block = nn.TransformerEncoderLayer(
            width, max(1, width // 64), 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, tokens.device, self.words.weight.dtype)
        h = self.words(tokens) + self.places.weight[:length]
        return F.linear(self.blocks(h, mask=mask, is_causal=True), self.words.weight)


def next_token(model: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1).float(), tokens[:, 1:].flatten())


def transformer100m(batch_size: int) -> tuple[nn.Module, Any, Any]:
    """110 M weights: width 768, depth 12, 32,000 words, sequences of 512 tokens."""
    return Language(768, 12, 512), torch.randint(WORDS, (batch_size, 513)), next_token


def transformer_tiny(batch_size: int) -> tuple[nn.Module, Any, Any]:
    """The same in small, to try the benchmark where there is no GPU."""
    return Language(64, 2, 32, 500), torch.randint(500, (batch_size, 33)), next_token


def autocast_images(model: nn.Module, batch: Any) -> Tensor:
    """The loss of images in bf16 autocast, as vision models are trained on a GPU."""
    with torch.autocast(batch[0].device.type, torch.bfloat16):
        return F.cross_entropy(model(batch[0]), batch[1])


def resnet50(batch_size: int) -> tuple[nn.Module, Any, Any]:
    """torchvision's ResNet-50 on images of 224 x 224, channels last: 25.6 M weights."""
    from torchvision.models import resnet50 as build

    with _quickly():
        return build().to(memory_format=torch.channels_last), _images(batch_size), autocast_images


def vit_b16(batch_size: int) -> tuple[nn.Module, Any, Any]:
    """torchvision's ViT-B/16 on images of 224 x 224: 86.6 M weights."""
    from torchvision.models import vit_b_16 as build

    with _quickly():
        return build(), _images(batch_size), autocast_images


def _quickly() -> torch.device:
    """Where a billion weights are drawn in no time."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _images(batch_size: int) -> tuple[Tensor, Tensor]:
    images = torch.randn(batch_size, 3, IMAGE, IMAGE).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(1000, (batch_size,))


def resnet50_graphs(batch_size: int) -> tuple[nn.Module, Any, Any]:
    """The same ResNet-50 in CUDA graphs, without Inductor's kernels."""
    return _in_graphs(resnet50(batch_size))


def vit_b16_graphs(batch_size: int) -> tuple[nn.Module, Any, Any]:
    """The same ViT-B/16 in CUDA graphs, without Inductor's kernels."""
    return _in_graphs(vit_b16(batch_size))


def _in_graphs(made: tuple[nn.Module, Any, Any]) -> tuple[nn.Module, Any, Any]:
    """What is made, compiled by a backend that only records; a batch of another size is recorded by itself."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 64  # every contender has a model, and looks a batch, of its own
    model, batch, loss_of = made
    return torch.compile(model, backend="cudagraphs", dynamic=False), batch, loss_of  # type: ignore[return-value]


def llama1b_lora(batch_size: int) -> tuple[nn.Module, Any, Any]:
    """A Llama of 1.2 billion random weights with adapters of rank 16 on all linear layers, sequences of 512 tokens."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8,
    )  # fmt: skip
    with _quickly():
        model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=16, target_modules="all-linear"))
    return model, torch.randint(WORDS, (batch_size, 513)), _next_token_of_logits


def _next_token_of_logits(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
