"""Tables: encoded by hand from the training rows alone, a fixed test, and every bad file in one sentence."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch

from steppe.compare.data import models, tables, tasks
from steppe.compare.data.examples import Amounts
from steppe.compare.data.tables import Table
from steppe.compare.engine.measure import metrics
from steppe.compare.engine.spec import resolve

ROWS = 60


def cells(**columns: list) -> dict[str, list]:
    rng = np.random.default_rng(0)
    size = rng.normal(5, 2, ROWS).round(3)
    colour = rng.choice(["red", "green", "blue"], ROWS)
    price = (100 + 30 * size + 20 * (colour == "red") + rng.normal(0, 5, ROWS)).round(2)
    sort = np.where(size + rng.normal(0, 1, ROWS) > 5, "big", "small")
    return {"size": list(size), "colour": list(colour), "price": list(price), "sort": list(sort)} | columns


def write(folder, data: dict[str, list], name: str = "table.csv") -> str:
    lines = [",".join(data), *(",".join(map(str, row)) for row in zip(*data.values(), strict=True))]
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder / name)


def fresh(place: str, target: str = "sort", seed: int = 0, amounts: Amounts = Amounts(), **more):  # noqa: B008
    tables.read.cache_clear()
    tables._source.cache_clear()
    return tables.task("table", Table(place, target, **more), seed, amounts)


def with_hole(name: str, *rows: int) -> dict[str, list]:
    data = cells()
    for row in rows:
        data[name][row - 1] = ""
    return data


def test_columns_by_hand(tmp_path):
    """Scaled number, its hole, a column for each word: by the rows that train, which a column of row numbers tells."""
    data = with_hole("size", *range(1, 31)) | {"row": list(range(ROWS))}
    made = fresh(write(tmp_path, data), leave_out=("price",))
    assert made.train.x.shape[1] == 2 + 3 + 1
    size = np.array([np.nan if cell == "" else cell for cell in data["size"]], float)
    order = made.train.x[:, 5].double()
    numbers = torch.cat([getattr(made, part).x[:, 5] for part in ("train", "val", "test")]).argsort().argsort().numpy()
    train = numbers[: len(order)]
    median = np.nanmedian(size[train])
    filled = np.where(np.isnan(size), median, size)
    mean, deviation = filled[train].mean(), filled[train].std()
    start = 0
    for part in ("train", "val", "test"):
        split = getattr(made, part)
        rows = numbers[start : start + len(split)]
        start += len(split)
        np.testing.assert_allclose(split.x[:, 0], (filled[rows] - mean) / deviation, atol=1e-5)
        np.testing.assert_array_equal(split.x[:, 1], np.isnan(size)[rows])
        for column, word in enumerate(("blue", "green", "red"), 2):
            np.testing.assert_array_equal(split.x[:, column], np.array(data["colour"])[rows] == word)
        assert [["big", "small"][label] for label in split.y] == list(np.array(data["sort"])[rows])


def test_the_test_is_fixed_and_the_seed_draws_the_rest(tmp_path):
    place = write(tmp_path, cells(row=list(range(ROWS))))
    one, other = (fresh(place, seed=seed, leave_out=("size", "colour", "price")) for seed in (0, 1))
    assert torch.equal(one.test.y, other.test.y) and not torch.equal(one.train.y, other.train.y)
    assert (len(one.test), len(one.val), len(one.train)) == (12, 9, 39)


def test_the_test_rows_change_nothing_else(tmp_path):
    """What stands in the rows that test is exchanged: training and validation stay the same bit for bit."""
    data = cells(row=list(range(ROWS)))
    before = fresh(write(tmp_path, data), target="sort")
    kept = {part: set(getattr(before, part).x[:, 0].tolist()) for part in ("train", "val", "test")}
    scaled = before.test.x[:, 0].tolist()
    every = torch.cat([getattr(before, part).x[:, 0] for part in ("train", "val", "test")])
    assert len(every) == ROWS and kept["test"] == set(scaled)
    sizes = {float(np.float32(value)): row for row, value in zip(range(ROWS), data["size"], strict=True)}
    assert len(sizes) == ROWS
    ranks = torch.tensor(data["size"]).float().argsort().tolist()
    testing = [ranks[place] for place in every.argsort().argsort()[-len(before.test) :].tolist()]
    for row in testing:
        data["size"][row], data["colour"][row], data["price"][row] = 1e6, "violet", -1e6
    after = fresh(write(tmp_path, data, "other.csv"), target="sort")
    assert not torch.equal(before.test.x, after.test.x)
    for part in ("train", "val"):
        assert torch.equal(getattr(before, part).x, getattr(after, part).x)


def test_numbers_are_told_in_their_own_unit(tmp_path):
    """A model that always gives 0 says the mean of the training part; its errors by hand, in the unit of the file."""
    data = cells()
    made = fresh(write(tmp_path, data), target="price", leave_out=("sort",))
    assert made.classes == 0 and made.loss == "mse"
    zero = torch.nn.Module()
    zero.forward = lambda x: torch.zeros(len(x), 1)
    found = metrics(zero, made.test, made.measured, 1)
    unit = (found["mse"] / float(made.test.y.double().square().mean())) ** 0.5
    assert found["mae"] == pytest.approx(unit * float(made.test.y.double().abs().mean()))
    values = np.array(data["price"])
    known = made.train.y.double().numpy()
    assert known.mean() == pytest.approx(0, abs=1e-6) and known.std() == pytest.approx(1, abs=1e-6)
    spread = (made.test.y.max() - made.test.y.min()).item() * unit
    assert any(abs(a - b) == pytest.approx(spread, rel=1e-5) for a in values for b in values)
    assert torch.equal(made.rows["the mean"](made.test.x), torch.zeros(len(made.test), 1))


def test_the_commonest_class_is_a_row(tmp_path):
    made = fresh(write(tmp_path, cells(sort=["a"] * 40 + ["b"] * 20)), leave_out=("price",))
    assert (made.rows["commonest class"](made.test.x).argmax(1) == 0).all()


@pytest.mark.parametrize(
    ("goal", "kind", "classes"),
    [
        (list(range(6)) * 10, None, 6), (list(range(12)) * 5, None, 0), (list(range(6)) * 10, "numbers", 0),
        ([0.5, 1.5] * 30, None, 0), ([0.5, 1.5] * 30, "classes", 2), (["1", "2", "x"] * 20, None, 3),
    ],
)  # fmt: skip
def test_what_the_target_is(tmp_path, goal, kind, classes):
    assert fresh(write(tmp_path, cells(sort=goal)), kind=kind).classes == classes


def test_a_network_fits(tmp_path):
    made = fresh(write(tmp_path, cells()))
    assert models.build("mlp", made)(made.train.x[:5]).shape == (5, 2)
    with pytest.raises(ValueError, match="sequences of tokens"):
        models.build("gpt", made)


BAD = {
    "no target": (cells, {"target": "worth"}, "no column 'worth' for --target; the columns are"),
    "a misspelled target": (cells, {"target": "prize"}, "did you mean 'price'[?] the columns are price, "),
    "a wide table": (lambda: cells(**{f"x{i}": range(60) for i in range(20)}), {"target": "Sizes"}, "size, .* 14 more"),
    "no column to leave out": (cells, {"leave_out": ("colours",)}, "did you mean 'colour'"),
    "nothing but the target": (cells, {"leave_out": ("size", "colour", "price")}, "no column beside 'sort'"),
    "few rows": (lambda: {name: words[:9] for name, words in cells().items()}, {}, "9 rows; expected at least 10"),
    "one row": (lambda: {name: words[:1] for name, words in cells().items()}, {}, "has 1 row; expected at least 10"),
    "target missing": (lambda: with_hole("sort", 7), {}, "column 'sort' has no value in row 7"),
    "single class": (lambda: cells(sort=["a"] * ROWS), {}, "has a single class, a"),
    "single number": (lambda: cells(sort=[7] * ROWS), {"kind": "numbers"}, "has one value throughout"),
    "a rare class": (lambda: cells(sort=["a"] * 58 + ["b"] * 2), {}, "has 2 rows; .* leave out such rows$"),
    "too many classes": (lambda: cells(sort=list(range(ROWS))), {"kind": "classes"}, "expected at least 3 of each"),
    "words as numbers": (cells, {"kind": "numbers"}, "which is no number; use --kind classes"),
    "infinite target": (lambda: cells(sort=[1.5, float("inf")] * 30), {}, "column 'sort' is infinite in row 2"),
    "infinite": (lambda: cells(size=[1.5, float("inf")] * 30), {}, "column 'size' is infinite in row 2"),
    "constant": (lambda: cells(size=[3] * ROWS), {}, "column 'size' has one value throughout; leave it out with"),
    "empty column": (lambda: cells(size=["", "NA"] * 30), {}, "column 'size' has no value throughout; leave it out"),
    "too many validate": (cells, {"amounts": Amounts(validation=48)}, "lower --labelled or --validation"),
    "too many labelled": (cells, {"amounts": Amounts(labelled=45)}, "lower --labelled or --validation"),
    "noise on numbers": (cells, {"target": "price", "amounts": Amounts(noise=0.1)}, "noise changes labels"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_is_refused_in_one_sentence(tmp_path, name):
    data, settings, sentence = BAD[name]
    with pytest.raises(ValueError, match=sentence) as error:
        fresh(write(tmp_path, data()), **settings)
    assert "\n" not in str(error.value)


def test_names_are_no_categories(tmp_path):
    data = {"name": [f"n{i}" for i in range(120)], "y": ["a", "b"] * 60}
    with pytest.raises(ValueError, match=r"column 'name' has 120 different words \(row 1: 'n0'\), too many"):
        fresh(write(tmp_path, data), target="y")


def test_a_column_that_is_the_same_where_it_trains_is_no_yardstick(tmp_path):
    """numpy's deviation of many 0.1 is 1e-17, by which another value, first seen in the test, was 1e15 large."""
    held = 0
    for row in range(0, ROWS, 4):
        size = [0.1] * ROWS
        size[row] = 0.2
        made = fresh(write(tmp_path, cells(size=size)), leave_out=("price",))
        held += float(made.train.x[:, 0].abs().max()) < 1e-6
        assert max(float(getattr(made, part).x[:, 0].abs().max()) for part in ("val", "test")) < 100
    assert held  # the odd row was somewhere else


def test_decimal_commas_between_semicolons(tmp_path):
    """What Excel writes where a comma is the decimal point was words, of which a hundred are categories."""
    data = cells()
    german = data | {name: [str(value).replace(".", ",") for value in data[name]] for name in ("size", "price")}
    place = tmp_path / "german.csv"
    lines = [";".join(german), *(";".join(map(str, row)) for row in zip(*german.values(), strict=True))]
    place.write_text("\ufeff" + "\n".join(lines))
    for target in ("sort", "price"):
        here, there = fresh(str(place), target), fresh(write(tmp_path, data), target)
        assert torch.equal(here.train.x, there.train.x) and torch.equal(here.test.y, there.test.y)


def test_names_with_underscores_are_no_numbers(tmp_path):
    """Python reads 1_2 as 12."""
    made = fresh(write(tmp_path, cells(size=["1_2", "2_1", "1_1"] * 20)), leave_out=("price",))
    assert made.train.x[:, :3].unique().tolist() == [0, 1]


def test_the_number_of_the_row_is_no_input_unless_it_has_a_name(tmp_path):
    """pandas writes it first, without a name; of a sorted table it tells all."""
    data = cells(sort=["a"] * 30 + ["b"] * 30)
    alone = fresh(write(tmp_path, data))
    for name in ("", "Unnamed: 0"):
        made = fresh(write(tmp_path, {name: range(ROWS)} | data))
        assert torch.equal(made.train.x, alone.train.x) and not made.notes
    named = fresh(write(tmp_path, {"id": range(1, ROWS + 1)} | data))
    assert named.train.x.shape[1] == alone.train.x.shape[1] + 1 and "--leave-out id" in named.notes[0]
    assert fresh(write(tmp_path, {"": data["size"]} | data)).train.x.shape[1] == named.train.x.shape[1]


def test_settings_of_a_study(tmp_path):
    place = write(tmp_path, cells())
    with pytest.raises(ValueError, match="name it with --target: its columns are size, .*, sort$"):
        tasks.load(resolve({"task": f"table:{place}"}).data_options(), 0)
    with pytest.raises(ValueError, match="does not take 'horizon'"):
        resolve({"task": f"table:{place}", "target": "sort", "horizon": 3})
    spec = resolve({"task": f"table:{place}", "target": "sort", "labelled": 20})
    assert len(tasks.load(spec.data_options(), 0).train) == 20
    wide = write(tmp_path, {f"x{i}": range(20) for i in range(12)})
    with pytest.raises(ValueError, match="its columns are x0, x1, .*, x9 and 2 more; the last is x11$"):
        tasks.load(resolve({"task": f"table:{wide}"}).data_options(), 0)


def test_columns_that_are_no_inputs_are_told_at_once(tmp_path):
    """A passenger list needed a run for its names, one for its tickets and one for what is the same throughout."""
    many = [f"n{i}" for i in range(120)]
    data = {"name": many, "size": list(range(120)), "ticket": many, "same": [1] * 120, "y": ["a", "b"] * 60}
    with pytest.raises(ValueError, match=r"'name' has .*; 'ticket' has .*; 'same' has one value .*") as error:
        fresh(write(tmp_path, data), target="y")
    assert str(error.value).endswith("--leave-out name,ticket,same")


@pytest.mark.parametrize(("rows", "told"), [(150, "numbers but for 2 of its cells, such as '-' in row 3"), (60, "")])
def test_numbers_with_a_word_among_them_are_told(tmp_path, rows, told):
    """Words for what is missing made a column of numbers categories, or too many words, of which nothing was said."""
    size = [str(i) for i in range(rows)]
    size[2], size[7] = "-", "unknown"
    place = write(tmp_path, {"size": size, "y": ["a", "b"] * (rows // 2)})
    if told:
        with pytest.raises(ValueError, match=told):
            fresh(place, target="y")
    else:
        (note,) = fresh(place, target="y").notes
        assert note.startswith("Column 'size' has numbers but for '-' in row 3 and 1 other cell, and is taken as words")


def test_few_numbers_and_a_word_are_categories(tmp_path):
    data = {"size": ["0", "1", "2", "3", "3+"] * 24, "y": ["a", "b"] * 60}
    assert fresh(write(tmp_path, data), target="y").notes == ()  # and rows that recur so often are no copies


def test_rows_of_the_test_that_were_trained_on_are_told(tmp_path):
    data = cells()
    assert not fresh(write(tmp_path, data)).notes
    (note,) = fresh(write(tmp_path, {name: words * 3 for name, words in data.items()})).notes
    assert "of the 36 test rows" in note and "Of copies keep one" in note


def test_a_target_of_a_few_giants_is_told(tmp_path):
    price = [float(i % 7) for i in range(ROWS)]
    assert not fresh(write(tmp_path, cells(price=price)), "price", kind="numbers").notes
    price[17] = 1e5
    (note,) = fresh(write(tmp_path, cells(price=price)), "price", kind="numbers").notes
    assert note.startswith("98.3 % of the target's variance is that of 1 of 60 rows")


def test_a_packed_table(tmp_path):
    place = write(tmp_path, cells())
    packed = tmp_path / "table.csv.gz"
    packed.write_bytes(gzip.compress((tmp_path / "table.csv").read_bytes()))
    assert torch.equal(fresh(str(packed)).train.x, fresh(place).train.x)
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(ValueError, match="cannot be unpacked .* is the download complete"):
        fresh(str(packed))


WRITTEN = {
    "per cent": "{} %", "thousands": '"1,0{}"', "prices": "€{}.50", "dates": "2024-05-{}", "clock": "{}:30",
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITTEN)
def test_numbers_and_dates_that_are_no_plain_numbers_are_told(tmp_path, kind):
    """Fourteen prices were fourteen categories, of which the order was lost without a word."""
    size = [WRITTEN[kind].format(10 + i % 14) for i in range(120)]
    made = fresh(write(tmp_path, {"size": size, "y": ["a", "b"] * 60}), target="y")
    told = [note for note in made.notes if note.startswith("Column 'size' reads as numbers or dates (")]
    assert len(told) == 1 and "written as plain numbers, it would be such" in told[0]


@pytest.mark.parametrize("word", ["18-25", "12a", "B4", "3+", "route {}", "1-{}"])
def test_categories_with_digits_are_none(tmp_path, word):
    size = [word.format(i % 30) for i in range(120)]
    size[0] = "other"
    assert not any(
        "reads as" in note for note in fresh(write(tmp_path, {"size": size, "y": ["a", "b"] * 60}), "y").notes
    )


def test_too_many_numbers_with_thousands_say_what_they_are(tmp_path):
    data = {"size": [f'"{i},000"' for i in range(150)], "y": ["a", "b"] * 75}
    with pytest.raises(
        ValueError, match="150 different words that read as numbers or dates .row 1: '0,000'. and are no pla"
    ):
        fresh(write(tmp_path, data), target="y")


def test_a_comma_at_the_end_of_every_line_is_no_column(tmp_path):
    data = cells()
    alone = fresh(write(tmp_path, data))
    path = tmp_path / "last.csv"
    for end in (",", ",,"):
        path.write_text("".join(f"{line}{end}\n" for line in (tmp_path / "table.csv").read_text().splitlines()))
        made = fresh(str(path))
        assert torch.equal(made.train.x, alone.train.x) and made.notes == alone.notes


def test_whole_numbers_that_recur_may_be_classes(tmp_path):
    """Twenty-six letters as numbers were told by their mean square, and nothing said so but the metric."""
    data = {"size": [i * 0.5 for i in range(600)], "y": [i % 26 for i in range(600)]}
    (note,) = fresh(write(tmp_path, data), target="y").notes
    assert note.startswith("The target 'y' has 26 different whole numbers, and is taken as numbers; were they names")
    assert not fresh(write(tmp_path, data), target="y", kind="numbers").notes
    assert not fresh(write(tmp_path, data | {"y": [i / 2 for i in data["y"]]}), target="y").notes


def test_classes_that_differ_in_case_are_told(tmp_path):
    made = fresh(write(tmp_path, cells(sort=["yes", "no", "Yes"] * 20)), leave_out=("price",))
    assert made.classes == 3 and made.notes == (
        "'Yes' and 'yes' are different classes, and differ in the case of letters alone.",
    )
