"""Which parameters there are, under which names, in which groups, and how their gradients are moved about."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import steppe
from steppe._gradients import Gradients, aligned
from steppe._optimizers import Optimizers
from steppe._parameters import Parameters, bare, names_of


def sgd(params, **options):
    return torch.optim.SGD(params, lr=0.1, **options)


def pair():
    torch.manual_seed(0)
    return nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 1)})


NAMES = ["body.weight", "body.bias", "head.weight", "head.bias"]


# --- names --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    store = tmp_path_factory.mktemp("gloo") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled(model):
    return torch.compile(model, backend="eager")


WRAPS = {
    "bare": lambda m: m,
    "compiled": compiled,
    "parallel": DistributedDataParallel,
    "parallel of compiled": lambda m: DistributedDataParallel(compiled(m)),
    "compiled of parallel": lambda m: compiled(DistributedDataParallel(m)),
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_names_are_the_same_however_the_model_is_wrapped(wrap, one_process):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    names = list(names_of(WRAPS[wrap](model)).values())
    assert names == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_names_of_a_compiled_part_of_a_model():
    model = pair()
    model["body"] = compiled(model["body"])
    assert list(names_of(model).values()) == NAMES


def test_bare_goes_through_nested_wrappers(one_process):
    model = nn.Linear(2, 1)
    assert bare(model) is model
    assert bare(DistributedDataParallel(model)) is model


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_state_moves_between_wrappers(wrap, one_process):
    def trained(how):
        torch.manual_seed(0)
        model = WRAPS[how](nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
        sharp = steppe.FSAM(model, sgd(model.parameters()))
        sharp.backward(lambda: model(torch.ones(3, 2)).square().mean())
        sharp.optimizer.step()
        return sharp

    one, other = trained(wrap), trained("bare")
    other.load_state_dict(one.state_dict())
    assert list(other.memory["ascent"]["average"]) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_tied_weights_have_one_name_and_one_entry():
    model = pair()
    model["tail"] = nn.Linear(2, 2)
    model["tail"].weight = model["body"].weight
    entries = Parameters(model, Optimizers(sgd(model.parameters())), "all").entries
    assert [e.name for e in entries] == [*NAMES, "tail.bias"]


def test_a_tied_weight_is_perturbed_once():
    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    model[1].weight = model[0].weight
    before = model[0].weight.detach().clone()
    sharp = steppe.SAM(model, sgd(model.parameters()), rho=0.3)
    model[1](model[0](torch.ones(1, 2))).sum().backward()
    with sharp.perturbed():
        assert float((model[0].weight - before).detach().norm()) == pytest.approx(0.3, rel=1e-5)
    assert torch.equal(model[1].weight, before)


# --- groups -------------------------------------------------------------------------------------------------


def test_entries_name_their_group_or_none():
    model = pair()
    optimizer = sgd([{"params": model["head"].parameters()}, {"params": [model["body"].weight], "perturb": False}])
    parameters = Parameters(model, Optimizers(optimizer), "all")
    assert [(e.name, e.group) for e in parameters.entries] == list(zip(NAMES, [1, None, 0, 0], strict=True))
    assert [parameters.perturbable(e) for e in parameters.entries] == [False, False, True, True]
    assert parameters.group_of(parameters.entries[0]) is optimizer.param_groups[1]


def test_a_group_added_later_is_found():
    model = pair()
    optimizer = sgd(model["body"].parameters())
    sharp = steppe.SAM(model, optimizer, rho=0.5)
    optimizer.add_param_group({"params": model["head"].parameters(), "rho": 0.25})
    optimizer.param_groups[0]["perturb"] = False
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    model["head"](model["body"](torch.ones(1, 2))).sum().backward()
    with sharp.perturbed():
        moved = {k: float((p - before[k]).detach().norm()) for k, p in model.named_parameters()}
    assert moved["body.weight"] == moved["body.bias"] == 0
    assert moved["head.weight"] > 0 and moved["head.bias"] > 0


def test_a_layer_added_later_is_found():
    model = pair()
    optimizer = sgd(model.parameters())
    parameters = Parameters(model, Optimizers(optimizer), "all")
    model["tail"] = nn.Linear(1, 1)
    optimizer.add_param_group({"params": model["tail"].parameters()})
    parameters.refresh()
    assert [e.name for e in parameters.entries] == [*NAMES, "tail.weight", "tail.bias"]


def test_a_flag_or_radius_changed_later_is_read():
    model = pair()
    optimizer = sgd([{"params": model["body"].parameters()}, {"params": model["head"].parameters()}])
    parameters = Parameters(model, Optimizers(optimizer), "all")
    optimizer.param_groups[0]["perturb"] = False
    assert [parameters.perturbable(e) for e in parameters.entries] == [False, False, True, True]


def test_foreign_parameters_added_later_are_refused():
    """Their gradient would be counted in both passes."""
    model, foreign = pair(), nn.Linear(1, 1)
    optimizer = sgd(model.parameters())
    sharp = steppe.SAM(model, optimizer)
    optimizer.add_param_group({"params": foreign.parameters()})
    with pytest.raises(ValueError, match=r"holds 2 parameter\(s\) that the model does not"):
        sharp.backward(lambda: foreign(model["head"](model["body"](torch.ones(1, 2)))).sum())


@pytest.mark.parametrize("group", [{"rho": -1.0}, {"rho": "big"}, {"perturb": "no"}])
def test_a_bad_group_added_later_is_refused(group):
    model = pair()
    optimizer = sgd(model["body"].parameters())
    sharp = steppe.SAM(model, optimizer)
    optimizer.add_param_group({"params": model["head"].parameters(), **group})
    with pytest.raises(ValueError, match="an optimizer group has"):
        sharp.backward(lambda: model["head"](model["body"](torch.ones(1, 2))).sum())


REFUSED = {
    "foreign": (lambda m: sgd([*m.parameters(), nn.Parameter(torch.ones(5))]), "all", r"holds 1 .* shape \(5,\)"),
    "rho below 0": (lambda m: sgd([{"params": m.parameters(), "rho": -0.1}]), "all", "group has rho=-0.1; expected"),
    "rho inf": (lambda m: sgd([{"params": m.parameters(), "rho": float("inf")}]), "all", "group has rho=inf; expected"),
    "rho nan": (lambda m: sgd([{"params": m.parameters(), "rho": float("nan")}]), "all", "group has rho=nan; expected"),
    "rho true": (lambda m: sgd([{"params": m.parameters(), "rho": True}]), "all", "group has rho=True; expected"),
    "perturb": (lambda m: sgd([{"params": m.parameters(), "perturb": 1}]), "all", "group has perturb=1; expected"),
    "nothing left": (lambda m: sgd([{"params": m.parameters(), "perturb": False}]), "all", "nothing to perturb"),
    "no normalisation": (lambda m: sgd(m.parameters()), "norm", "nothing to perturb: subset='norm'"),
    "empty subset": (lambda m: sgd(m.parameters()), lambda name, p: False, "nothing to perturb"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name):
    optimizer_of, subset, words = REFUSED[name]
    model = pair()
    with pytest.raises(ValueError, match=words) as caught:
        Parameters(model, Optimizers(optimizer_of(model)), subset)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rho", [None, 0, 0.0, 1, 0.5])
def test_good_radii_of_groups(rho):
    model = pair()
    Parameters(model, Optimizers(sgd([{"params": model.parameters(), "rho": rho}])), "all")


# --- gradients ----------------------------------------------------------------------------------------------


def filled(value=1.0):
    model = pair()
    for p in model.parameters():
        p.grad = torch.full_like(p, value)
    return model, Gradients(Parameters(model, Optimizers(sgd(model.parameters())), "all"))


def test_take_takes_all_and_give_gives_back():
    model, gradients = filled()
    own = {k: p.grad for k, p in model.named_parameters()}
    grads = gradients.take()
    assert list(grads) == NAMES and all(grads[k] is own[k] for k in NAMES)
    assert not gradients.there() and all(p.grad is None for p in model.parameters())
    gradients.give({k: g for k, g in grads.items() if k != "head.bias"})
    assert model["head"].bias.grad is None and model["head"].weight.grad is own["head.weight"]


def test_take_leaves_out_what_has_no_gradient():
    model, gradients = filled()
    model["body"].weight.grad = None
    assert list(gradients.take()) == NAMES[1:]


def test_a_frozen_parameter_keeps_what_it_has():
    """Also when it is frozen after the start; a leftover gradient is the user's."""
    model, gradients = filled()
    model["body"].weight.requires_grad_(False)
    left = model["body"].weight.grad
    assert list(gradients.take()) == NAMES[1:]
    assert model["body"].weight.grad is left and not gradients.there()


def test_a_view_is_copied_because_its_buffer_is_somebody_elses():
    model, gradients = filled()
    flat = torch.zeros(6)
    model["body"].weight.grad, model["body"].bias.grad = flat[:4].view(2, 2), flat[4:]
    grads = gradients.take()
    flat.fill_(7.0)
    assert not grads["body.weight"].any() and not grads["body.bias"].any()


def test_gradients_outside_the_optimizer_are_kept_apart():
    model = pair()
    gradients = Gradients(Parameters(model, Optimizers(sgd(model["head"].parameters())), "all"))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    assert len(gradients.handed()) == 2
    assert list(gradients.take()) == ["head.weight", "head.bias"]
    assert all(p.grad is None for p in model.parameters()) and not gradients.there()
    gradients.give_others()
    assert [k for k, p in model.named_parameters() if p.grad is not None] == ["body.weight", "body.bias"]
    assert not gradients.there(), "the optimizer's step would take none"
    gradients.take()
    gradients.drop_others()
    gradients.give_others()
    assert all(p.grad is None for p in model.parameters())


def test_parameters_of_a_group_may_be_exchanged_for_as_many_others():
    model = pair()
    optimizer = sgd([model["body"].weight])
    parameters = Parameters(model, Optimizers(optimizer), "all")
    optimizer.param_groups[0]["params"] = [model["head"].weight]
    parameters.refresh()
    assert [e.name for e in parameters.entries if e.group is not None] == ["head.weight"]


def test_aside_copies_a_view_too():
    model, gradients = filled(2.0)
    flat = torch.full((4,), 2.0)
    model["body"].weight.grad = flat.view(2, 2)
    with gradients.aside():
        flat.fill_(7.0)
        model["body"].weight.grad = torch.ones(2, 2)
    assert model["body"].weight.grad.unique().tolist() == [3.0]


def test_aside_adds_what_was_there_in_its_own_tensor():
    model, gradients = filled(2.0)
    model["head"].bias.grad = None
    own = model["body"].weight.grad
    with gradients.aside():
        assert not gradients.there()
        model["body"].weight.grad, model["head"].bias.grad = torch.full((2, 2), 0.5), torch.ones(1)
    assert model["body"].weight.grad is own and own.unique().tolist() == [2.5]
    assert model["body"].bias.grad.tolist() == [2.0, 2.0] and model["head"].bias.grad.tolist() == [1.0]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_aside_leaves_everything_as_it_was_on_an_error(error):
    model, gradients = filled(2.0)
    model["head"].bias.grad = None
    own = {k: p.grad for k, p in model.named_parameters()}
    with pytest.raises(error), gradients.aside():
        for p in model.parameters():
            p.grad = torch.full_like(p, 9.0)
        raise error
    assert all(p.grad is own[k] for k, p in model.named_parameters())
    assert all(g is None or g.unique().tolist() == [2.0] for g in own.values())


def test_sparse_gradients_are_refused_and_nothing_is_lost():
    model = nn.ModuleDict({"table": nn.Embedding(3, 2, sparse=True), "head": nn.Linear(2, 1)})
    sharp = steppe.SAM(model, sgd(model.parameters()))
    model["head"].weight.grad = torch.full((1, 2), 3.0)
    with pytest.raises(ValueError, match="table.weight has a sparse gradient"):
        sharp.backward(lambda: model["head"](model["table"](torch.tensor([1]))).sum())
    assert model["head"].weight.grad.tolist() == [[3.0, 3.0]] and model["table"].weight.grad is None


def test_aligned_fills_with_zeros_in_one_order():
    a, b = {"x": torch.ones(1), "y": torch.ones(2)}, {"z": torch.ones(3), "y": torch.full((2,), 4.0)}
    clean, perturbed = aligned(a, b)
    assert list(clean) == list(perturbed) == ["x", "y", "z"]
    assert [v.tolist() for v in clean.values()] == [[1.0], [1.0, 1.0], [0.0, 0.0, 0.0]]
    assert [v.tolist() for v in perturbed.values()] == [[0.0], [4.0, 4.0], [1.0, 1.0, 1.0]]
