import pytest
import torch
from tests.problems import Adapted

from steppe._command.choices import parse, parse_all, settings_of, split_list
from steppe.methods import METHODS


@pytest.mark.parametrize(
    ("text", "methods"),
    [
        ("sam", ["sam"]),
        ("sam,asam", ["sam", "asam"]),
        ("sam asam", ["sam", "asam"]),
        ("sam,look_sam:k=5,push=natural,rst:p=0.3", ["sam", "look_sam:k=5,push=natural", "rst:p=0.3"]),
        (" sam ,, asam ", ["sam", "asam"]),
    ],
)
def test_a_list_of_methods_is_split_where_a_new_one_begins(text, methods):
    assert split_list(text) == methods


def test_settings_are_read_as_the_recipe_wants_them_and_sorted():
    choice = parse("look_sam:push=natural,k=10,alpha=1")
    assert choice.settings == {"push": "natural", "k": 10, "alpha": 1.0}
    assert isinstance(choice.settings["k"], int) and isinstance(choice.settings["alpha"], float)
    assert choice.text == "look_sam:alpha=1.0,k=10,push=natural"
    assert choice.label == "LookSAM (alpha=1.0, k=10, push=natural)"
    assert parse("look_sam:k=10,alpha=1.0,push=natural") == choice


def test_the_grid_is_in_the_methods_units_unless_rho_is_set():
    assert parse("sam").grid({"rho": [0.1, 0.2]}) == [0.1, 0.2]
    factor = METHODS["asam"].rho_factor
    assert parse("asam").grid({"rho": [0.1, 0.2]}) == [round(0.1 * factor, 10), round(0.2 * factor, 10)]
    assert parse("sam:rho=0.3").grid({"rho": [0.1, 0.2]}) == [0.3]


def test_without_radii_each_method_has_its_own():
    """The climb on few samples lies around the default of its recipe, and takes what is given as it is."""
    assert parse("sam").grid({}) == parse("sam:samples=4").grid({}) == [0.05, 0.1, 0.2]
    assert parse("asam").grid({}) == [0.5, 1.0, 2.0]
    default = settings_of("recommended")["rho"].default
    assert parse("recommended:ramp=0.1").grid({}) == [default / 2, default, 2 * default]
    assert parse("recommended").grid({"rho": [0.2, 0.4]}) == [0.2, 0.4]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "sam_on"])
def test_every_method_can_be_chosen_and_built(name):
    model = Adapted(3, 2) if METHODS[name].lora else torch.nn.Linear(3, 2)
    own = METHODS[name].optimizer
    optimizer = own(model.parameters()) if own else torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sharp = parse(name).build(model, optimizer, value=0.1, seed=3, total_steps=10)
    assert sharp.seed == 3


def test_total_steps_reaches_the_schedules_that_need_it():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert parse("rst:p=0.2,schedule=linear2").build(model, optimizer, value=0.1, seed=0, total_steps=10)


def test_each_method_once():
    assert [choice.text for choice in parse_all(["sam,rst", "rst:p=0.25"])] == ["sam", "rst", "rst:p=0.25"]
