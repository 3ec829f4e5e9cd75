import json

import pytest
import torch
from tests._command.clock import counting_modules

from steppe._command.choices import parse_all
from steppe.bench import measure
from steppe.bench.contender import Contender, Loss
from steppe.bench.measure import Request, makers
from steppe.bench.subject import Subject
from steppe.bench.table import COLUMNS, cells, table, title


@pytest.fixture(scope="module")
def record():
    subject = Subject("tests.bench.tiny:wide", 64, dtype="float64")
    with counting_modules():
        return measure.measure(subject, makers(parse_all(["sam,look_sam:k=5,gsam"]), "sgd"), Request(steps=12))


def test_where_modules_alone_take_time_it_is_the_passes(record):
    for name, passes in (("sam", 2.0), ("look_sam:k=5", 1.2), ("gsam", 2.0)):
        row = record["methods"][name]
        assert row["passes"] == pytest.approx(passes)
        for ratio in (row["time_ratio"], row["busy_ratio"]):
            assert ratio == pytest.approx(dict.fromkeys(("low", "median", "high"), passes)), name


def test_steps_in_a_row_are_one_turn_and_their_time_is_of_one(record):
    subject = Subject("tests.bench.tiny:wide", 64)
    with counting_modules():
        made = measure.measure(
            subject, makers(parse_all(["look_sam:k=5"]), "sgd"), Request(steps=12, row=3, memory=False)
        )
    assert made["settings"]["turns"] == 4 and made["base"]["step_ms"] == record["base"]["step_ms"]
    row = made["methods"]["look_sam:k=5"]
    assert row["time_ratio"]["median"] == pytest.approx(1.2) and row["kinds"]["ascends"]["steps"] == 6
    assert "4 turns in rows of 3 steps" in title(made) and "rows" not in title(record)


def test_both_kinds_of_step_are_measured_equally_often(record):
    kinds = record["methods"]["look_sam:k=5"]["kinds"]
    assert kinds["ascends"]["steps"] == kinds["does_not"]["steps"] == 6
    assert (kinds["ascends"]["time_ratio"], kinds["does_not"]["time_ratio"]) == (2, 1)
    assert record["base"]["kinds"]["does_not"]["steps"] == record["settings"]["turns"] == 12


def test_memory_is_counted_in_buffers_of_the_trained_parameters(record):
    """SAM saves the weights; LookSAM keeps g and g_v as well; GSAM keeps g."""
    buffers = {name: row["buffers"] for name, row in record["methods"].items()}
    assert buffers["sam"] == pytest.approx(1, abs=0.1)
    assert buffers["look_sam:k=5"] == pytest.approx(3, abs=0.1)
    assert buffers["gsam"] == pytest.approx(2, abs=0.1)
    assert record["base"]["buffers"] == 0 and record["base"]["memory_ratio"] == 1


def test_frozen_weights_are_told_apart():
    sizes = measure._sizes(Subject("tests.bench.tiny:lora", 4, dtype="float64").make())
    assert sizes == {"parameters": 21, "trained": 14, "trained_tensors": 2, "trained_bytes": 8 * 14}


def test_the_base_holds_weights_gradients_momentum_and_what_lies_between(record):
    """Three buffers of the parameters, and activations that a batch of 64 keeps small."""
    unit = record["subject"]["trained_bytes"]
    assert 3 * unit < record["base"]["memory_bytes"] < 4.5 * unit


def test_what_a_model_holds_is_counted_once_and_whether_checkpoints_have_it_or_not():
    """A weight that is twice in the network, and a buffer half its size, beside what the steps bring."""
    subject = Subject("tests.bench.tiny:tied", 1)
    held, found = 4 * (64 + 32) * 64, measure.measure(subject, {}, Request(steps=1))
    problem = subject.make()
    above = measure.peak(lambda: measure._few_steps(lambda p: measure.base(p, "sgd"), problem), "cpu")
    assert found["base"]["memory_bytes"] == held + above


def test_the_record_says_what_it_was_made_with(record):
    assert record["subject"]["trained"] == 256 * 512 + 512 + 512 * 256 + 256
    assert record["provenance"]["threads"] == 1 and record["provenance"]["torch"] == torch.__version__
    assert json.loads(json.dumps(record)) == record


def test_threads_are_given_back():
    before = torch.get_num_threads()
    measure.measure(Subject("tests.bench.tiny:problem", 4), {}, Request(steps=1, threads=2, memory=False))
    assert torch.get_num_threads() == before


def test_any_other_code_can_be_a_contender():
    calls = []

    def other(problem):
        loss = Loss(problem)

        def step(batch):
            calls.append(len(batch["x"]))
            for _ in range(3):
                loss(batch).backward()

        return Contender("other", step, loss, lambda: True, share=1.0)

    found = measure.measure(Subject("tests.bench.tiny:problem", 4), {"other": other}, Request(steps=3, memory=False))
    assert found["methods"]["other"]["passes"] == 3 and set(calls) == {4}
    assert "memory_bytes" not in found["base"]


def test_every_contender_has_a_base_step_close_by_when_steps_are_slow():
    order = []

    def clock(name):
        return measure.Clock(lambda batch: order.append(name), lambda: False)

    names = ["base", "a", "b", "c"]
    contenders = [Contender(name, lambda batch: None, None) for name in names]  # type: ignore[arg-type]
    for turn in (0, 2):
        measure._round("cpu", contenders, [clock(name) for name in names], None, turn, 2)
    assert "".join(name[0] for name in order) == "babbc" + "bcbba"


def test_the_share_of_a_method_that_tells_none_is_what_was_seen():
    one = Contender("x", lambda batch: None, None, share=None)  # type: ignore[arg-type]
    clock = measure.Clock(lambda batch: None, lambda: True)
    clock.ratios = {True: [2.0], False: [1.0, 1.0, 1.0]}
    assert measure._share(one, clock) == 0.25


def test_of_each_kind_of_step_there_is_one_also_of_a_slow_model(monkeypatch):
    """One round of warm-up, and one step asked for."""
    monkeypatch.setattr(measure, "BRIEF", 0.0)
    contenders = makers(parse_all(["look_sam:k=5"]), "sgd")
    found = measure.measure(Subject("tests.bench.tiny:problem", 4), contenders, Request(steps=1, memory=False))
    (row,) = found["methods"].values()
    assert row["passes"] == pytest.approx(1.2) and {name: k["steps"] for name, k in row["kinds"].items()} == {
        "ascends": 1, "does_not": 1
    }  # fmt: skip


def test_a_method_whose_radius_is_zero_takes_the_one_pass_of_the_base():
    """Its schedule says that it ascends at every step, and it does at none."""
    contenders = makers(parse_all(["tail_sam"]), "sgd")
    found = measure.measure(Subject("tests.bench.tiny:problem", 4), contenders, Request(steps=2, memory=False))
    assert [(row["passes"], row["ascended_share"]) for row in found["methods"].values()] == [(1.0, 0.0)]


def test_the_table_has_a_line_for_the_base_and_each_method(record):
    shown = table(record)
    assert shown.row_count == 4 and len(shown.columns) == len(COLUMNS)
    narrow = [str(column.header) for column in table(record, 60).columns]
    assert narrow == [name for name in COLUMNS if name not in ("quartiles", "buffers")[: len(COLUMNS) - len(narrow)]]
    assert 5 <= len(narrow) < len(COLUMNS)
    assert cells(record["base"])[:3] == ("base", "1", "1")
    sam = cells(record["methods"]["sam"])
    assert sam[:2] == ("SAM", "2.00") and sam[-1].endswith("MiB")
    small = cells({**record["base"], "memory_bytes": 12_345})
    assert small[-1] == "0.012 MiB" and float(sam[-1].split()[0]) > 1
    assert "batch 64" in title(record) and "1 thread(s)" in title(record) and "12 turns" in title(record)
