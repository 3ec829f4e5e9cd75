import copy
import math

import peft
import pytest
import torch
from tests.lora.peft_models import (
    BATCH,
    adapted,
    close,
    frozen,
    gpt2,
    gradients,
    llama,
    loss_of,
    sgd,
    tokens,
    trained,
    with_weights_moved,
)
from tests.problems import same
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import steppe

CONSTANT = {"sigma": 0.5, "schedule": "constant"}


def built(model=None, **settings):
    model = llama() if model is None else model
    optimizer = sgd(model)
    return model, optimizer, steppe.FlatLoRA(model, optimizer, **(CONSTANT | settings))


def merged(layer):
    a, b, s = next(layer.factors())
    change = s * b @ a
    return layer.base.weight + (change.T if layer.module.fan_in_fan_out else change)


@pytest.mark.parametrize("make", [llama, gpt2, lambda: llama(use_rslora=True)], ids=["llama", "gpt2", "rslora"])
def test_the_gradient_is_that_at_weights_really_moved(make):
    model, _, flat = built(make())
    moves = {layer.name: flat.noise(i) for i, layer in enumerate(flat.layers)}
    assert all(move.abs().max() > 0 for move in moves.values())
    loss = loss_of(model)
    loss.backward()
    close(gradients(model), with_weights_moved(model, moves))
    assert (loss - loss_of(model.eval())).abs() > 1e-4


def test_every_layer_and_every_step_draws_noise_of_its_own():
    _, optimizer, flat = built()
    alike = [i for i, layer in enumerate(flat.layers) if layer.weight.shape == flat.layers[0].weight.shape]
    assert len(alike) > 1
    drawn = [flat.noise(i) / flat.noise(i).norm() for i in alike]
    optimizer.step()
    drawn += [flat.noise(i) / flat.noise(i).norm() for i in alike]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert abs(float((one * other).sum())) < 0.5, "independent, so nearly orthogonal"


@pytest.mark.parametrize("make", [llama, gpt2], ids=["llama", "gpt2"])
def test_the_noise_follows_the_norm_of_each_merged_row(make):
    model, optimizer, flat = built(make())
    layer = flat.layers[0]
    m, n = layer.shape
    drawn = []
    for _ in range(300):
        drawn.append(flat.noise(0))
        optimizer.step()
    deviation = torch.stack(drawn).std(dim=0)
    rows, seen = (merged(layer), deviation) if make is llama else (merged(layer).T, deviation.T)
    wanted = 0.5 / math.sqrt(n) * rows.norm(dim=1)
    assert rows.shape == (m, n)
    torch.testing.assert_close(seen.square().mean(1).sqrt(), wanted, rtol=0.05, atol=0)
    assert torch.stack(drawn).mean(0).abs().max() < 6 * wanted.max() / math.sqrt(300)


def test_two_active_adapters_are_merged_both():
    model = llama()
    model.add_adapter("second", peft.LoraConfig(r=3, target_modules=["q_proj", "v_proj", "down_proj"]))
    model.base_model.set_adapter(["default", "second"])
    model.to(torch.float64)
    for name, param in model.named_parameters():
        if "lora_B.second" in name:
            nn.init.normal_(param, std=0.3)
    _, _, flat = built(model)
    layer = flat.layers[0]
    whole = layer.base.weight + sum(s * b @ a for a, b, s in layer.factors())
    wanted = 0.5 / math.sqrt(layer.shape[1]) * whole.norm(dim=1)
    torch.testing.assert_close(flat._deviations(0)[:, 0], wanted.detach())


def test_base_weights_stay_bit_for_bit_and_in_their_place():
    model, optimizer, flat = built()
    before, names = frozen(model), list(model.state_dict())
    pointers = {n: p.data_ptr() for n, p in model.named_parameters()}
    for batch in tokens(5):
        flat.backward(lambda b: loss_of(model, b), batch)
        optimizer.step()
        optimizer.zero_grad()
    assert same(before, frozen(model)) and list(model.state_dict()) == names
    assert pointers == {n: p.data_ptr() for n, p in model.named_parameters()}


class _Error(Exception):
    pass


@pytest.mark.parametrize("error", [_Error, KeyboardInterrupt])
def test_a_pass_that_raises_leaves_the_model_as_it_was(error):
    model, _, flat = built()
    clean, before = float(loss_of(model.eval())), frozen(model)
    model.train()
    base = flat.layers[1].base

    def fail(*_):
        raise error

    handle = base.register_forward_pre_hook(fail)
    with pytest.raises(error):
        flat.backward(lambda: loss_of(model))
    handle.remove()
    assert "weight" not in vars(base) and "weight" not in vars(flat.layers[0].base)
    assert same(before, frozen(model)) and float(loss_of(model.eval())) == clean


def test_eval_mode_shows_the_model_itself_and_backward_perturbs_there_too():
    model, _, flat = built()
    model.eval()
    plain = loss_of(model)
    with_noise = flat.backward(lambda: loss_of(model))
    assert plain != with_noise and flat.last.loss is with_noise
    flat.remove()
    model.train()
    assert loss_of(model) == plain


def test_a_reference_model_without_adapters_sees_no_noise():
    model, _, flat = built()
    with model.disable_adapter():
        seen = loss_of(model)
        flat.remove()
        assert seen == loss_of(model)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_recomputes_with_the_same_noise(reentrant):
    model, _, _ = built()
    loss_of(model).backward()
    plain = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    loss_of(model).backward()
    close(gradients(model), plain)


def test_the_backward_makes_the_noise_again_instead_of_keeping_it(monkeypatch):
    drawn = []
    draw = steppe.FlatLoRA._noise

    def noted(self, index, step, deviations):
        drawn.append((index, step))
        return draw(self, index, step, deviations)

    monkeypatch.setattr(steppe.FlatLoRA, "_noise", noted)
    model, optimizer, _ = built()
    loss = loss_of(model)
    assert drawn == [(0, 0), (1, 0), (2, 0)]
    loss.backward()
    # The input of layers 0 and 1 comes from a frozen embedding: their weights are not asked for on the way back.
    assert drawn[3:] == [(2, 0)]


def test_micro_batches_share_the_noise_and_steps_do_not():
    model, optimizer, flat = built()
    pieces = list(BATCH.split(1))
    flat.backward(lambda b: loss_of(model, b) / 2, micro_batches=pieces)
    together = gradients(model)
    model.zero_grad()
    flat.backward(lambda: loss_of(model))
    close(gradients(model), together)
    before = flat.noise(0)
    optimizer.step()
    assert flat.step == 1 and not torch.equal(before, flat.noise(0))


def test_noise_depends_on_seed_step_and_layer_alone():
    (_, _, one), (_, _, same_seed), (_, _, other) = built(), built(), built(seed=1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(one.noise(0), same_seed.noise(0))
    assert not torch.equal(one.noise(0), other.noise(0))
    assert one.noise(0).shape == one.noise(1).shape and not torch.equal(one.noise(0), one.noise(1))
    assert torch.equal(state, torch.get_rng_state()), "the global generator is not touched"


def test_the_strength_grows_along_half_a_cosine():
    model, optimizer, flat = built(schedule="cosine", total_steps=4, sigma=0.2)
    seen = []
    for _ in range(6):
        seen.append(flat.strength)
        optimizer.step()
    wanted = [0.1 * (1 - math.cos(math.pi * t / 4)) for t in range(5)]
    assert seen == pytest.approx([*wanted, 0.2])


def test_no_noise_is_lora_bit_for_bit():
    results = []
    for make in (lambda m, o: None, lambda m, o: steppe.FlatLoRA(m, o, sigma=0.0, total_steps=5)):
        model = llama(torch.float32)
        optimizer = sgd(model)
        flat = make(model, optimizer)
        for batch in tokens(4):
            (loss_of(model, batch).backward() if flat is None else flat.backward(lambda b: loss_of(model, b), batch))
            optimizer.step()
            optimizer.zero_grad()
        results.append(model.state_dict())
    assert same(*results)


def test_resumed_equals_uninterrupted(tmp_path):
    def run(model, optimizer, flat, batches):
        for batch in batches:
            flat.backward(lambda b: loss_of(model, b), batch)
            optimizer.step()
            optimizer.zero_grad()

    batches = list(tokens(6))
    model, optimizer, flat = built(schedule="cosine", total_steps=6)
    run(model, optimizer, flat, batches[:3])
    torch.save(flat.state_dict(), tmp_path / "flat.pt")
    later = copy.deepcopy(model.state_dict())
    run(model, optimizer, flat, batches[3:])
    again, fresh, resumed = built(schedule="cosine", total_steps=6)
    again.load_state_dict(later)
    resumed.load_state_dict(torch.load(tmp_path / "flat.pt", weights_only=True))
    assert (resumed.step, resumed.sigma, resumed.seed) == (3, 0.5, 0)
    run(again, fresh, resumed, batches[3:])
    assert same(model.state_dict(), again.state_dict())


def test_a_copy_of_the_model_sees_no_noise_and_a_second_object_takes_over():
    model, optimizer, flat = built()
    twin = copy.deepcopy(model)
    assert loss_of(twin) == loss_of(twin.eval()) == loss_of(model.eval())
    model.train()
    once = loss_of(model)
    steppe.FlatLoRA(model, optimizer, **CONSTANT)
    assert loss_of(model) == once, "not twice the noise"
    assert not flat._handles


def test_bf16_weights_and_autocast_give_finite_gradients():
    for dtype, autocast in ((torch.bfloat16, False), (torch.float32, True)):
        model, _, _ = built(llama(dtype))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss_of(model).backward()
        assert all(g.isfinite().all() and g.any() for g in gradients(model).values())


def test_dora_trains():
    model, _, flat = built(llama(use_dora=True))
    assert flat.backward(lambda: loss_of(model)) != loss_of(model.eval())
    assert all(g.isfinite().all() for g in gradients(model).values())


BAD = [
    ({"sigma": -0.1}, "sigma=-0.1 was given; expected a finite number of at least 0"),
    ({"sigma": float("nan")}, "sigma=nan was given"),
    ({"schedule": "linear"}, "schedule='linear' was given; expected one of 'cosine', 'constant'"),
    ({"schedule": "cosine"}, "schedule='cosine' needs total_steps"),
    ({"total_steps": 0}, "total_steps=0 was given; expected a whole number of at least 1"),
    ({"seed": 0.5}, "seed=0.5 was given; expected a whole number"),
]


@pytest.mark.parametrize(("settings", "hint"), BAD, ids=[hint[:30] for _, hint in BAD])
def test_bad_settings_are_refused(settings, hint):
    with pytest.raises((ValueError, TypeError), match=hint):
        built(**settings)


def test_models_it_cannot_work_on_are_refused():
    plain = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="the model holds no LoRA layer; expected a PEFT model"):
        steppe.FlatLoRA(plain, torch.optim.SGD(plain.parameters(), lr=0.1), **CONSTANT)
    model = llama()
    head = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match="3 LoRA layers, but none that this optimizer trains"):
        steppe.FlatLoRA(model, head, **CONSTANT)
    embedded = adapted(copy.deepcopy(model.unload()), {"r": 2, "target_modules": ["embed_tokens"]}, torch.float32)
    with pytest.raises(ValueError, match="is on an Embedding; expected linear layers|no LoRA layer"):
        built(embedded)


def test_quantised_parametrised_and_trained_bases_are_refused():
    for spoil, hint in (
        (
            lambda base: setattr(base, "weight", nn.Parameter(torch.zeros(4, 1, dtype=torch.uint8), False)),
            "torch.uint8",
        ),
        (lambda base: base._parameters.pop("weight"), "no weight of its own"),
        (lambda base: base.weight.requires_grad_(), "is trained; expected it frozen"),
    ):
        model = llama()
        spoil(model.base_model.model.model.layers[0].self_attn.q_proj.base_layer)
        with pytest.raises(ValueError, match=hint):
            built(model)


def test_a_foreign_state_is_refused():
    model, _, flat = built()
    state = flat.state_dict()
    for wrong in ({}, state | {"format": "BiLoRA 1"}, {**state, "more": 1}):
        with pytest.raises(ValueError, match="not the state of a steppe.FlatLoRA"):
            flat.load_state_dict(wrong)
    with pytest.raises(ValueError, match="the state is of 1 LoRA layers, the model has 3"):
        flat.load_state_dict(state | {"layers": ["x"]})
    assert "layers=3, step=0" in repr(flat)
    assert len(trained(model)) == 6


def test_a_checkpoint_module_that_steps_to_make_the_optimizer_s_state_is_no_step():
    saved, target = built(), built()
    for _ in range(3):
        loss_of(saved[0]).backward()
        saved[1].step()
        saved[1].zero_grad()
    state = get_optimizer_state_dict(saved[0], saved[1])
    target[2].load_state_dict(saved[2].state_dict())
    set_optimizer_state_dict(target[0], target[1], state)
    assert target[2].step == saved[2].step == 3
