import copy
import math

import peft
import pytest
import torch
from tests.lora.peft_models import BATCH, close, frozen, gpt2, gradients, llama, loss_of, sgd, tokens, trained
from tests.lora.peft_models import with_weights_moved as moved
from tests.problems import same
from torch import Tensor, nn

import steppe


def built(model=None, lr=0.1, **settings):
    model = llama() if model is None else model
    optimizer = sgd(model, lr)
    return model, optimizer, steppe.BiLoRA(model, optimizer, **settings)


def push(bi, size=0.3, seed=5):
    """Auxiliary factors away from zero, in the model's precision."""
    torch.manual_seed(seed)
    for a, b in bi.auxiliary:
        a.data, b.data = a.data.double(), torch.randn_like(b).double() * size


def products(bi):
    return {e.name: (b @ a).detach() for e, (a, b) in zip(bi.layers, bi.auxiliary, strict=True)}


def run(model, optimizer, bi, batches):
    for batch in batches:
        bi.backward(lambda b: loss_of(model, b), batch)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("make", [llama, gpt2], ids=["llama", "gpt2"])
def test_the_main_factors_get_the_gradient_at_the_perturbed_weights(make):
    model, _, bi = built(make(), rho=10.0)
    push(bi)
    moves = products(bi) if make is llama else {name: move.T for name, move in products(bi).items()}
    loss_of(model).backward()
    close(gradients(model), moved(model, moves))


def by_hand(model, bi, steps, lr, rho):
    """Equations 9 and 10 in the paper, with the weights' own gradient and plain products."""
    twin = copy.deepcopy(model)
    layers = [dict(twin.named_modules())[e.name] for e in bi.layers]
    starts = [layer.base_layer.weight.detach().clone() for layer in layers]
    factors = [(a.detach().clone(), b.detach().clone()) for a, b in bi.auxiliary]
    main = trained(twin)
    for layer in layers:
        layer.base_layer.weight.requires_grad_()
    for batch in steps:
        for layer, start, (a, b) in zip(layers, starts, factors, strict=True):
            layer.base_layer.weight.data = start + b @ a
        twin.zero_grad()
        loss_of(twin, batch).backward()
        with torch.no_grad():
            for p in main:
                p -= lr * p.grad
            grads = [layer.base_layer.weight.grad for layer in layers]
            factors = [(a + lr * b.T @ g, b + lr * g @ a.T) for (a, b), g in zip(factors, grads, strict=True)]
            length = torch.sqrt(sum((b @ a).square().sum() for a, b in factors))
            shrink = torch.sqrt(rho / length) if length > rho else 1.0
            factors = [(a * shrink, b * shrink) for a, b in factors]
    return factors, main


def test_steps_are_those_of_the_papers_equations():
    model, optimizer, bi = built(rho=0.4, rule="sgd")
    push(bi, size=0.1)
    start, steps = float(bi.perturbation_norm()), list(tokens(6))
    wanted, main = by_hand(model, bi, steps, 0.1, 0.4)
    run(model, optimizer, bi, steps)
    for got, want in zip(bi.auxiliary, wanted, strict=True):
        for mine, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(mine.detach(), theirs, rtol=1e-9, atol=1e-11)
    for mine, theirs in zip(trained(model), main, strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=1e-9, atol=1e-11)
    assert start > 0.4 >= float(bi.perturbation_norm()), "else nothing was clipped"


@pytest.mark.parametrize("rule", ["adam", "sgd"])
def test_the_auxiliary_climbs_and_stays_within_rho(rule):
    model = llama(torch.float32)
    optimizer = sgd(model, lr=0.0)
    bi = steppe.BiLoRA(model, optimizer, rho=0.5, rule=rule, lr=0.5 if rule == "sgd" else 0.01)
    losses = []
    for _ in range(30):
        losses.append(float(bi.backward(lambda: loss_of(model))))
        optimizer.step()
        optimizer.zero_grad()
        assert float(bi.perturbation_norm()) <= 0.5 * (1 + 1e-5)
    with torch.no_grad():
        plain = float(loss_of(model.eval()))
    assert losses[0] == pytest.approx(plain, rel=1e-5), "B_2 starts at 0"
    assert losses[-1] > plain + 1e-3 and losses[-1] > losses[5]


def test_adams_ascent_is_adams_step_with_the_sign_turned():
    model, optimizer, bi = built(llama(torch.float32), lr=0.01, rho=100.0)
    start = [[t.detach().clone() for t in pair] for pair in bi.auxiliary]
    bi.backward(lambda: loss_of(model))
    grads = [[t.grad.clone() for t in pair] for pair in bi.auxiliary]
    optimizer.step()
    for pair, before, gs in zip(bi.auxiliary, start, grads, strict=True):
        for t, b, g in zip(pair, before, gs, strict=True):
            wanted = b + 0.01 * g / (g.abs() + 1e-8)  # the first step of Adam
            torch.testing.assert_close(t.detach(), wanted, rtol=1e-4, atol=1e-6)


def test_the_rate_is_that_of_the_main_factors_group():
    model = llama()
    ours = trained(model)
    optimizer = torch.optim.SGD([{"params": ours[:2], "lr": 0.3}, {"params": ours[2:], "lr": 0.07}], lr=0.1)
    bi = steppe.BiLoRA(model, optimizer)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=100)
    run(model, optimizer, bi, tokens(1))
    assert [g["lr"] for g in bi._ascent.param_groups] == pytest.approx([0.15, 0.035, 0.035])
    scheduler.step()


def test_nothing_of_it_is_in_the_model_or_in_a_saved_adapter(tmp_path):
    model, optimizer, bi = built(llama(torch.float32))
    names, before = list(model.state_dict()), frozen(model)
    run(model, optimizer, bi, tokens(3))
    assert list(model.state_dict()) == names and same(before, frozen(model))
    model.eval()
    shown = model(input_ids=BATCH).logits
    model.save_pretrained(tmp_path)
    bi.remove()
    torch.testing.assert_close(model.train()(input_ids=BATCH).logits, shown)
    plain = peft.PeftModel.from_pretrained(copy.deepcopy(llama(torch.float32).unload()), tmp_path).eval()
    torch.testing.assert_close(plain(input_ids=BATCH).logits, shown, rtol=0, atol=0)


def test_eval_mode_and_a_model_without_adapters_show_no_perturbation():
    model, _, bi = built(rho=10.0)
    push(bi)
    perturbed, clean = loss_of(model), loss_of(model.eval())
    assert perturbed != clean and bi.backward(lambda: loss_of(model)) == perturbed
    model.train()
    with model.disable_adapter():
        base = loss_of(model)
    bi.remove()
    with model.disable_adapter():
        assert loss_of(model) == base


def test_rho_zero_is_lora_bit_for_bit():
    results = []
    for rho in (None, 0.0):
        model = llama(torch.float32)
        optimizer = sgd(model)
        bi = None if rho is None else steppe.BiLoRA(model, optimizer, rho=rho)
        for batch in tokens(4):
            (loss_of(model, batch).backward() if bi is None else bi.backward(lambda b: loss_of(model, b), batch))
            optimizer.step()
            optimizer.zero_grad()
        results.append(model.state_dict())
    assert same(*results)


def aux_grads(bi):
    return {f"{i}{j}": t.grad.clone() for i, pair in enumerate(bi.auxiliary) for j, t in enumerate(pair)}


def test_micro_batches_add_up_whichever_way_and_a_loss_scale_is_taken_off():
    model, _, bi = built(rho=10.0)
    push(bi)
    pieces = list(BATCH.split(1))
    bi.backward(lambda b: loss_of(model, b) / 2, micro_batches=pieces)
    together = aux_grads(bi)
    model.zero_grad()
    for piece in pieces:
        bi.backward(lambda b: loss_of(model, b) / 2, piece)
    close(aux_grads(bi), together)
    model.zero_grad()
    for piece in pieces:
        (loss_of(model, piece) / 2).backward()
    close(aux_grads(bi), together)
    model.zero_grad()
    for piece in pieces:
        bi.backward(lambda b: loss_of(model, b) / 2, piece, backward=lambda loss: (loss * 1024).backward())
    close(aux_grads(bi), together)


@pytest.mark.parametrize("plain", [True, False])
def test_a_skipped_step_leaves_nothing(plain):
    model, optimizer, bi = built(rho=10.0)
    push(bi)
    bi.backward(lambda: loss_of(model))
    wanted = aux_grads(bi)
    model.zero_grad()
    bi.backward(lambda: loss_of(model) * float("inf"))
    optimizer.zero_grad()  # a GradScaler skips the step
    assert bi.step == 0
    loss_of(model).backward() if plain else bi.backward(lambda: loss_of(model))
    close(aux_grads(bi), wanted)


def test_gradients_that_are_not_finite_do_not_reach_the_factors():
    model, optimizer, bi = built(llama(torch.float32))
    run(model, optimizer, bi, tokens(2))
    bi.backward(lambda: loss_of(model) * float("nan"))
    for p in trained(model):
        p.grad.zero_()
    optimizer.step()
    run(model, optimizer, bi, tokens(2))
    assert all(t.isfinite().all() for pair in bi.auxiliary for t in pair)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    model, _, bi = built(rho=10.0)
    push(bi)
    loss_of(model).backward()
    plain, theirs = gradients(model), aux_grads(bi)
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    loss_of(model).backward()
    close(gradients(model), plain)
    close(aux_grads(bi), theirs)


@pytest.mark.parametrize("rule", ["adam", "sgd"])
def test_resumed_equals_uninterrupted(rule, tmp_path):
    batches = list(tokens(6))
    model, optimizer, bi = built(llama(torch.float32), rule=rule, lr=0.02)
    run(model, optimizer, bi, batches[:3])
    torch.save(bi.state_dict(), tmp_path / "bi.pt")
    later = copy.deepcopy(model.state_dict())
    run(model, optimizer, bi, batches[3:])
    again, fresh, resumed = built(llama(torch.float32), rule=rule, lr=0.02)
    again.load_state_dict(later)
    resumed.load_state_dict(torch.load(tmp_path / "bi.pt", weights_only=True))
    assert (resumed.step, resumed.rho, resumed.rule) == (3, 0.05, rule)
    run(again, fresh, resumed, batches[3:])
    assert same(model.state_dict(), again.state_dict())
    for mine, theirs in zip(bi.auxiliary, resumed.auxiliary, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))


def test_the_start_depends_on_the_seed_and_the_rank_may_differ():
    (_, _, one), (_, _, two), (_, _, other) = built(), built(), built(seed=4, rank=5)
    a, b = one.auxiliary[0]
    assert torch.equal(a, two.auxiliary[0][0]) and not b.any()
    assert a.abs().max() <= 1 / math.sqrt(a.shape[1]) and a.std() > 0.3 / math.sqrt(a.shape[1])
    assert other.auxiliary[0][0].shape[0] == 5 and other.auxiliary[0][1].shape[1] == 5


class _Quantised(nn.Module):
    """A base whose weight is no matrix of floats."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
        self.hidden = [base]

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden[0](x)


def test_quantised_bases_work():
    model = llama()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.base_layer = _Quantised(layer.base_layer)
    model, optimizer, bi = built(model.train())
    run(model, optimizer, bi, tokens(3))
    assert bi.auxiliary[0][1].any(), "its B_2 has moved"


BAD = [
    ({"rho": -1}, "rho=-1 was given; expected a finite number of at least 0"),
    ({"lr": "fast"}, "lr='fast' was given"),
    ({"rank": 0}, "rank=0 was given; expected a whole number of at least 1"),
    ({"rule": "lion"}, "rule='lion' was given; expected one of 'adam', 'sgd'"),
    ({"seed": "a"}, "seed='a' was given; expected a whole number"),
]


@pytest.mark.parametrize(("settings", "hint"), BAD, ids=[hint[:20] for _, hint in BAD])
def test_bad_settings_are_refused(settings, hint):
    model = llama()
    with pytest.raises((ValueError, TypeError), match=hint):
        steppe.BiLoRA(model, sgd(model), **settings)


def test_foreign_states_and_moved_models_are_refused():
    model, _, bi = built()
    state = bi.state_dict()
    with pytest.raises(ValueError, match="not the state of a steppe.BiLoRA"):
        bi.load_state_dict({**state, "format": "FlatLoRA 1"})
    with pytest.raises(ValueError, match=r"expected \(5, 16\) and \(16, 5\): construct with the same rank"):
        built(rank=5)[2].load_state_dict(state)
    with pytest.raises(ValueError, match="expected a PEFT model"):
        steppe.BiLoRA(nn.Linear(2, 2), sgd(nn.Linear(2, 2)))
    bi.auxiliary = [(nn.Parameter(a.to("meta")), b) for a, b in bi.auxiliary]
    with pytest.raises(RuntimeError, match="expected BiLoRA to be built after the model was moved"):
        loss_of(model)
