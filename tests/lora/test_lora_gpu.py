"""The same on a CUDA device: noise that the backward repeats, and an ascent under a GradScaler."""

import copy

import pytest
import torch
from tests.lora.peft_models import BATCH, close, frozen, gradients, llama, loss_of, sgd
from tests.problems import same

import steppe

pytestmark = pytest.mark.gpu


def test_flat_loras_gradient_is_that_at_weights_really_moved():
    model = llama().cuda()
    flat = steppe.FlatLoRA(model, sgd(model), sigma=0.5, schedule="constant")
    twin = copy.deepcopy(model)
    modules = dict(twin.named_modules())
    for index, layer in enumerate(flat.layers):
        with torch.no_grad():
            modules[layer.name].base_layer.weight += flat.noise(index)
    for each in (model, twin):
        loss_of(each, BATCH.cuda()).backward()
    close(gradients(model), gradients(twin), 1e-8)


@pytest.mark.parametrize("make", [
    lambda m, o: steppe.FlatLoRA(m, o, sigma=0.1, schedule="constant"), lambda m, o: steppe.BiLoRA(m, o),
], ids=["flat", "bi"])  # fmt: skip
def test_training_in_fp16_with_a_scaler(make):
    model = llama(torch.float32).cuda()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    sharp, before, scaler = make(model, optimizer), frozen(model), torch.amp.GradScaler("cuda", init_scale=2.0**30)
    batch = BATCH.cuda()

    def loss():
        with torch.autocast("cuda", dtype=torch.float16):
            return loss_of(model, batch)

    losses = []
    for _ in range(40):
        losses.append(float(sharp.backward(loss, backward=lambda value: scaler.scale(value).backward())))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert sharp.step < 40, "the first steps overflow and are skipped"
    assert losses[-1] < losses[0] and same(before, frozen(model))
