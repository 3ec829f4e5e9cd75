"""Forecasts: windows by hand, scaled on the training part alone, naive rows, and every bad file in one sentence."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pytest
import torch

from steppe.compare.data import forecasts, models, tasks
from steppe.compare.data.forecasts import Forecast
from steppe.compare.data.windows import Windows, sizes
from steppe.compare.engine.spec import resolve

ROWS, LOOKBACK, HORIZON = 100, 12, 4


def table(rows: int = ROWS, step: timedelta = timedelta(hours=6), **columns: list) -> list[list[str]]:
    """Cells of a made-up series, header first."""
    rng = np.random.default_rng(0)
    start = datetime(2024, 1, 1)
    data = {
        "date": [str(start + i * step) for i in range(rows)], "a": list(3 + 2 * rng.standard_normal(rows)),
        "b": list(np.cumsum(rng.standard_normal(rows))),
    } | columns  # fmt: skip
    return [list(data), *([str(cell) for cell in row] for row in zip(*data.values(), strict=True))]


def write(folder, cells: list[list[str]], name: str = "series.csv") -> str:
    path = folder / name
    path.write_text("\n".join(",".join(row) for row in cells) + "\n")
    return str(path)


def wanted(place: str, **more) -> Forecast:
    return Forecast(place, **{"lookback": LOOKBACK, "horizon": HORIZON, "parts": (0.6, 0.2, 0.2)} | more)


def task(place: str, **more):
    return forecasts.task.__wrapped__("forecast", wanted(place, **more))


def numbers(cells: list[list[str]], *names: str) -> np.ndarray:
    return np.array([[float(row[cells[0].index(name)]) for name in names] for row in cells[1:]])


def test_windows_by_hand(tmp_path):
    """Every window of every part, cut out in a loop: a part's targets lie in it, its look-back may begin before."""
    cells = table()
    made = task(write(tmp_path, cells), targets=("b",), stride=3)
    series = numbers(cells, "b", "a")
    scaled = (series - series[:60].mean(0)) / series[:60].std(0)
    for part, first, end, stride in (("train", LOOKBACK, 60, 3), ("val", 60, 80, 1), ("test", 80, 100, 1)):
        split = getattr(made, part)
        starts = list(range(first, end - HORIZON + 1, stride))
        assert len(split) == len(starts)
        taken = split.take(torch.arange(len(split)))
        for x, y, at in zip(taken.x, taken.y, starts, strict=True):
            np.testing.assert_allclose(x, scaled[at - LOOKBACK : at], rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(y, scaled[at : at + HORIZON, :1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("row", "unsound"), [(3, [False, False]), (5, [False, True]), (0, [True, False])])
def test_a_window_is_unsound_by_its_own_rows(row, unsound):
    series = torch.zeros(7, 2)
    series[row, 1] = torch.nan
    assert Windows(series, length=2, ahead=2, target=1, stride=4).unsound().tolist() == unsound


def test_what_is_not_taken_is_not_copied(tmp_path):
    split = task(write(tmp_path, table())).train
    assert split.x.untyped_storage().data_ptr() == split.series.untyped_storage().data_ptr()
    assert split.to("cpu").take(torch.tensor([2, 0])).x.shape == (2, LOOKBACK, 2)


def test_the_test_part_changes_nothing_before_it(tmp_path):
    """Scale, training and validation windows are the same bit for bit, whatever the test part holds."""
    cells = table()
    before = task(write(tmp_path, cells))
    for row in cells[81:]:
        row[1], row[2] = "1e6", "-3e5"
    after = task(write(tmp_path, cells, "other.csv"))
    assert not torch.equal(before.test.y, after.test.y)
    for part in ("train", "val"):
        for which in ("x", "y"):
            assert torch.equal(getattr(getattr(before, part), which), getattr(getattr(after, part), which))


def test_naive_forecasts_by_hand(tmp_path):
    """Six hours a row: the last value again and again, and the four values of the last day in turn."""
    made = task(write(tmp_path, table()), targets=("b",), horizon=6)
    assert list(made.rows) == ["last value", "a day ago"]
    x = made.test.take(torch.arange(3)).x
    for name, season in (("last value", 1), ("a day ago", 4)):
        by_hand = torch.stack([x[:, LOOKBACK - season + h % season, :1] for h in range(6)], 1)
        assert torch.equal(made.rows[name](x), by_hand)


@pytest.mark.parametrize(
    ("step", "season", "names"),
    [
        (timedelta(days=2), None, ["last value"]),
        (timedelta(hours=7), None, ["last value"]),
        (timedelta(hours=1), None, ["last value"]),  # a day is longer than the look-back
        (timedelta(hours=6), 7, ["last value", "7 rows ago"]),
        (timedelta(days=1), None, ["last value"]),  # a day ago is the last value
    ],
)
def test_which_naive_forecasts_there_are(tmp_path, step, season, names):
    assert list(task(write(tmp_path, table(step=step)), season=season).rows) == names


def test_months_are_evenly_spaced_and_a_file_may_have_no_time(tmp_path):
    months = [f"{2000 + i // 12}-{i % 12 + 1:02}-01" for i in range(ROWS)]
    assert len(task(write(tmp_path, table(date=months))).test) == 20 - HORIZON + 1
    plain = [row[1:] for row in table()]
    assert list(task(write(tmp_path, plain, "plain.csv")).rows) == ["last value"]


def test_explicit_sizes_leave_the_end_of_the_file_out(tmp_path):
    made = task(write(tmp_path, table()), parts=(50, 20, 20))
    assert (len(made.train), len(made.val), len(made.test)) == (50 - 16 + 1, 17, 17)
    assert sizes((0.7, 0.1, 0.2), 17420, "rows") == (12194, 1742, 3484)


@pytest.mark.parametrize("name", ["channel_attention", "linear", "mlp"])
def test_networks_have_the_shape_of_the_target(tmp_path, name):
    made = task(write(tmp_path, table()), targets=("b",))
    few = made.train.take(torch.arange(5))
    output = models.build(name, made)(few.x)
    assert output.numel() == few.y.numel()


def test_channel_attention_by_hand(tmp_path):
    """RevIN, softmax(QK^T / 4) V between the columns, the residual, one layer: in float64 against a plain loop."""
    torch.manual_seed(0)
    made = task(write(tmp_path, table()))
    model = models.build("channel_attention", made).double()
    torch.nn.init.normal_(model.scale, 1.0, 0.1)
    torch.nn.init.normal_(model.offset)
    x = torch.randn(3, LOOKBACK, 2, dtype=torch.float64)
    for example, output in zip(x, model(x), strict=True):
        h, mean = example.T, example.T.mean(1, keepdim=True)
        deviation = ((h - mean).square().mean(1, keepdim=True) + 1e-5).sqrt()
        h = (h - mean) / deviation * model.scale + model.offset
        weights = (model.query(h) @ model.key(h).T / 4).softmax(1)
        h = model.head(h + model.out(weights @ model.value(h)))
        assert torch.allclose(output, ((h - model.offset) / model.scale * deviation + mean).T, rtol=0, atol=1e-10)


def test_the_linear_one_has_no_word_between_columns(tmp_path):
    model = models.build("linear", task(write(tmp_path, table())))
    x = torch.randn(2, LOOKBACK, 2)
    other = x.clone()
    other[:, :, 1] += torch.randn(2, LOOKBACK)
    assert torch.equal(model(x)[:, :, 0], model(other)[:, :, 0])


def put(row: int, column: int, cell: str):
    """Cells with one of them replaced."""
    return lambda: [
        [cell if (i, j) == (row, column) else old for j, old in enumerate(line)] for i, line in enumerate(table())
    ]


def twice(row: int):
    return lambda: (lambda cells: [*cells[: row + 1], *cells[row:]])(table())


def without(row: int):
    return lambda: (lambda cells: [*cells[:row], *cells[row + 1 :]])(table())


BAD = {
    "no target column": (table, {"targets": ("c",)}, "no column 'c' for --targets; the columns are a, b"),
    "no time column": (table, {"time": "when"}, "no column 'when' for --time-column"),
    "no column to leave out": (table, {"leave_out": ("c",)}, "no column 'c' for --leave-out"),
    "nothing left": (table, {"leave_out": ("date", "a", "b")}, "has no column left"),
    "only dates": (table, {"leave_out": ("a", "b")}, "targets must be columns of numbers"),
    "target twice": (table, {"targets": ("a", "a")}, "each named once"),
    "too short": (lambda: table(20), {}, "training part has 12 rows, fewer than lookback 12 and horizon 4 together"),
    "look-back too long": (table, {"lookback": 60}, "fewer than lookback 60 and horizon 4 together"),
    "horizon too long": (table, {"horizon": 21}, "validation part has 20 rows, fewer than the horizon of 21"),
    "test too short": (table, {"parts": (0.7, 0.27, 0.03)}, "test part has 3 rows, fewer than the horizon of 4"),
    "season too long": (table, {"season": 13}, "season=13 is longer than the lookback of 12"),
    "shares above one": (table, {"parts": (0.7, 0.2, 0.2)}, "add up to 1.1"),
    "more rows than there are": (table, {"parts": (70, 20, 20)}, "are 110 rows, and there are 100"),
    "shares and rows": (table, {"parts": (0.7, 10, 20)}, "neither three shares below 1 nor three whole numbers"),
    "a hole": (put(7, 1, ""), {}, "column 'a' has no value in row 7"),
    "NaN": (put(7, 1, "NaN"), {}, "column 'a' has no value in row 7"),
    "infinite": (put(7, 1, "inf"), {}, "column 'a' has 'inf' in row 7"),
    "a word": (put(9, 2, "closed"), {}, "column 'b' has 'closed' in row 9"),
    "constant": (lambda: table(a=[1.5] * ROWS), {}, "column 'a' never changes in the training part"),
    "out of order": (put(5, 0, "2023-01-01"), {}, r"row 5 \(2023-01-01\) is earlier than row 4 .*; sort the rows"),
    "same time": (twice(5), {}, "rows 5 and 6 have the same time 2024-01-02 00:00:00; keep one, or, where"),
    "a gap": (without(5), {}, r"from row 4 \(2024-01-01 18:00:00\) to the next it is 12:00:00 where the step is 6:00"),
    "no date": (put(3, 0, "soon"), {}, "row 3 has 'soon', which is no date"),
    "other dates": (
        lambda: table(a=[f"{1 + i % 28}.{1 + i // 28}.2024 18:00" for i in range(ROWS)]), {},
        "column 'a' has dates such as '1.1.2024 18:00'; write them as 2024-05-31 18:00, or leave it out with --",
    ),
    "date missing": (put(3, 0, ""), {}, "row 3 has no time"),
    "zones mixed": (put(3, 0, "2024-01-01T12:00:00+02:00"), {}, "with and without a time zone"),
    "short row": (lambda: [*table(), ["x"]], {}, "row 101 has 1 cell where the header has 3"),
    "two of a name": (lambda: [["date", "a", "a"], *table()[1:]], {}, "two columns 'a'"),
    "header only": (lambda: table()[:1], {}, "a header and no rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_series_is_refused_in_one_sentence(tmp_path, name):
    cells, settings, sentence = BAD[name]
    with pytest.raises(ValueError, match=sentence) as error:
        task(write(tmp_path, cells()), **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"", "is empty"), (b"  \n", "is empty"), (b"a,b\n1,\0\n", "not a text file"), (b"a\n\xff\n", "is not UTF-8")],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, content, sentence):
    path = tmp_path / "file.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        task(str(path))


def test_parquet_is_read_as_csv_is(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    cells = table()
    dates = [datetime.fromisoformat(row[0]) for row in cells[1:]]
    values = numbers(cells, "a", "b")
    place = tmp_path / "series.parquet"
    parquet.write_table(arrow.table({"date": dates, "a": values[:, 0], "b": values[:, 1]}), place)
    one, other = task(write(tmp_path, cells)), task(str(place))
    assert torch.equal(one.train.series, other.train.series) and list(one.rows) == list(other.rows)
    place.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="is not a Parquet file"):
        task(str(place))


def test_settings_of_a_study(tmp_path):
    place = write(tmp_path, table())
    spec = resolve({"task": f"forecast:{place}", "lookback": 12, "parts": [60, 20, 20], "horizon": 4})
    assert (spec.model, spec.batch_size, spec.stride, spec.optimizer) == ("channel_attention", 256, 1, "adamw")
    assert tasks.load(spec.data_options(), 0) is tasks.load(spec.data_options(), 1)
    changed = write(tmp_path, table(99), "series.csv")
    assert changed == place and spec.hash() != spec.model_copy(update={"lookback": 13}).hash()


def test_another_content_is_another_study(tmp_path):
    place = write(tmp_path, table())
    before = tasks.fingerprint(f"forecast:{place}")
    write(tmp_path, put(90, 1, "0.25")())
    assert tasks.fingerprint(f"forecast:{place}") != before


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"task": "forecast:{place}", "labelled": 10}, "does not take 'labelled'"),
        ({"task": "forecast:{place}", "noise": 0.1}, "does not take 'noise'"),
        ({"task": "digits-few", "horizon": 10}, "task 'digits-few' does not take 'horizon'"),
        ({"task": "forecast:nowhere.csv"}, "nowhere.csv is not a file"),
        ({"task": "{place}"}, "is a file; say what it holds: forecast:"),
        ({"task": "forecast:{place}", "model": "hf:bert"}, "cannot read task"),
        ({"task": "forecast:{place}", "parts": [0.5, 0.5]}, "parts must be three shares"),
        ({"task": "forecast:{place}", "horizon": 0}, "horizon must be a whole number of at least 1"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path, flags, sentence):
    place = write(tmp_path, table())
    with pytest.raises(ValueError, match=sentence):
        resolve({key: value.format(place=place) if isinstance(value, str) else value for key, value in flags.items()})


def test_a_network_for_other_inputs_is_refused(tmp_path):
    made = task(write(tmp_path, table()))
    with pytest.raises(ValueError, match="needs images"):
        models.build("resnet18", made)
    with pytest.raises(ValueError, match="one answer for a signal, not a series"):
        models.build("cnn", made)
    with pytest.raises(ValueError, match="did you mean 'channel_attention'"):
        models.build("chanel_attention", made)
