"""Examples that belong together: no group in two parts, sizes as near as whole groups allow, and what is refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.compare import words
from tests.compare.data.test_tables import cells, fresh, write
from tests.compare.records import NOISY, records, spec
from tests.compare.tiny import split
from tests.text.tiny import save

from steppe.compare import Task
from steppe.compare.analysis.summary import summarise
from steppe.compare.data import corpora, readers, tables, tasks, together
from steppe.compare.data.examples import Amounts, Source, Split, choose, drawn, generator, hold_out_test
from steppe.compare.data.sound import noted
from steppe.compare.engine.spec import resolve
from steppe.compare.report import page

ROWS = 60
PATIENTS = [f"p{row // 4}" for row in range(ROWS)]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.just([1, 1, 6]) | st.lists(st.integers(1, 40), min_size=3, max_size=60),
    classes=st.integers(1, 4), seed=st.integers(0, 99), validation=st.none() | st.integers(2, 30),
)  # fmt: skip
def test_no_group_is_in_two_parts_and_shares_are_within_one_group(sizes, classes, seed, validation):
    rng = np.random.default_rng(seed)
    group = torch.from_numpy(rng.permutation(np.repeat(np.arange(len(sizes)), sizes)))
    y = torch.from_numpy(rng.integers(0, classes, len(group)))
    source = hold_out_test(Split(torch.arange(len(group)), y, group), classes)
    amounts = Amounts(validation=validation if (validation or 1) < len(source.pool) else None)
    train, val = drawn(source, seed, amounts)
    parts = train, val, source.test
    rows = torch.cat([part.x for part in parts]).sort().values
    assert torch.equal(rows, torch.arange(len(group))), "every row is in one part"
    assert all(torch.equal(group[part.x], part.group) for part in parts)
    there = [set(part.group.tolist()) for part in parts]
    assert all(there) and sum(map(len, there)) == len(sizes), "and every group"
    assert abs(len(source.test) - max(1, round(0.2 * len(group)))) <= max(sizes)
    wanted = amounts.validation or max(1, len(source.pool) // 5)
    assert abs(len(val) - wanted) <= max(sizes)
    again = drawn(source, seed, amounts)
    assert torch.equal(again[0].x, train.x) and torch.equal(again[1].x, val.x)


def test_the_shares_of_classes_are_near_however_rare_one_is():
    """Eighty patients, every tenth of whom has what two in a hundred rows have: each part has its share of them."""
    rng = np.random.default_rng(0)
    group = torch.from_numpy(np.repeat(np.arange(80), rng.integers(5, 40, 80)))
    y = ((group % 10 == 0) & torch.from_numpy(rng.random(len(group)) < 0.25)).long()
    whole = float(y.double().mean())
    for seed in range(5):
        source = hold_out_test(Split(torch.arange(len(group)), y, group), 2)
        for part, share in zip((*drawn(source, seed, Amounts()), source.test), (0.64, 0.16, 0.2), strict=True):
            assert float(part.y.double().mean()) == pytest.approx(whole, rel=0.4)
            assert len(part) == pytest.approx(share * len(group), rel=0.05)
    one, other = (set(drawn(source, seed, Amounts())[1].group.tolist()) for seed in (0, 1))
    assert one != other, "the seed draws who validates"


def test_so_many_are_labelled_of_the_groups_that_neither_validate_nor_test():
    source = hold_out_test(Split(torch.arange(60), torch.arange(60) % 2, torch.arange(60) // 4), 2)
    train, val = drawn(source, 0, Amounts(labelled=20, validation=10))
    assert len(train) == 20 and abs(len(val) - 10) <= 4
    assert not set(train.group.tolist()) & {*val.group.tolist(), *source.test.group.tolist()}


@pytest.mark.parametrize("target", ["sort", "price"])
def test_a_table(tmp_path, target):
    """The column that says who belongs together is no input; rows of one patient are in one part."""
    rows = [str(row) for row in range(ROWS)]
    place = write(tmp_path, cells(patient=PATIENTS, row=rows))
    others = tuple({"sort", "price", "colour"} - {target})
    made = fresh(place, target, leave_out=others, group="patient")
    assert made.train.x.shape[1] == 2, "size and the row, which tells the rows"
    parts = [getattr(made, part) for part in ("train", "val", "test")]
    order = torch.cat([part.x[:, 1] for part in parts]).argsort().argsort().tolist()
    group = torch.cat([part.group for part in parts]).tolist()
    names = {each: {PATIENTS[row] for row, of in zip(order, group, strict=True) if of == each} for each in set(group)}
    assert all(len(found) == 1 for found in names.values()) and len(names) == 15
    assert [len(part) for part in parts] == [40, 8, 12]
    assert not torch.equal(fresh(place, target, leave_out=(*others, "patient")).test.x, made.test.x)


BAD = {
    "no such column": ({}, "patients", "no column 'patients' for --group; did you mean 'patient'"),
    "nobody known": ({"patient": [*PATIENTS[:6], "NA", *PATIENTS[7:]]}, "patient", "no value in row 7, whose group"),
    "the target": ({}, "sort", "column 'sort' is the target and cannot be the group"),
    "one group": ({"patient": ["p"] * ROWS}, "patient", "--group leaves 1 group to be parted; expected at least 3"),
    "two groups": ({"patient": ["p", "q"] * 30}, "patient", "--group leaves 2 groups to be parted; expected at least"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_one_sentence(tmp_path, name):
    more, group, sentence = BAD[name]
    place = write(tmp_path, cells(patient=PATIENTS) | more)
    with pytest.raises(ValueError, match=sentence) as error:
        fresh(place, group=group)
    assert "\n" not in str(error.value)


def test_three_groups_are_a_part_each(tmp_path):
    made = fresh(write(tmp_path, cells(patient=["a"] * 40 + ["b"] * 12 + ["c"] * 8)), group="patient")
    assert sorted(len(getattr(made, part)) for part in ("train", "val", "test")) == [8, 12, 40]


def test_a_class_of_few_groups_is_told(tmp_path):
    data = cells(sort=["a"] * 56 + ["b"] * 4, patient=PATIENTS)
    (note,) = fresh(write(tmp_path, data), leave_out=("price",), group="patient").notes
    assert note.startswith("Classes with fewer groups than there are parts") and ": b (1); " in note


def test_copies_suggest_the_flag_that_keeps_them_together(tmp_path):
    data = {name: column[:30] * 2 for name, column in cells(patient=PATIENTS).items()}
    place = write(tmp_path, data)
    (note,) = fresh(place, leave_out=("patient",)).notes
    assert "Of copies keep one. Where they belong together" in note and "--group COLUMN" in note
    assert fresh(place, group="patient").notes == ()
    data["patient"][30:] = [f"q{name}" for name in data["patient"][30:]]
    (note,) = fresh(write(tmp_path, data), group="patient").notes
    assert note.endswith("Of copies keep one.")
    pool, test = (Split(torch.arange(10)[:, None], torch.arange(10) % 2) for _ in range(2))
    assert "--group" not in noted(Source(pool, test, 2)).notes[0]


@pytest.mark.parametrize("name", ["patient_id", "PatientID", "user", "Subject No", "document"])
def test_a_column_that_may_say_who_rows_belong_to_is_told(tmp_path, name):
    def told(values) -> tuple[str, ...]:
        return fresh(write(tmp_path, cells(**{name: list(values)})), leave_out=("price",)).notes

    (note,) = told(row // 4 for row in range(ROWS))
    assert f"--group {name} keeps them in one" in note and "15 different values in 60 rows" in note
    assert not told([0, 1] * 30) and not told(range(0, 3 * ROWS, 3))
    assert not fresh(write(tmp_path, cells(**{name: PATIENTS})), leave_out=("price",), group=name).notes
    with pytest.raises(ValueError, match="too many to be categories; if it says which rows belong together, it is for"):
        fresh(write(tmp_path, {name: [f"p{row // 4}" for row in range(480)], "y": ["a", "b"] * 240}), target="y")


def test_it_is_part_of_what_a_study_is(tmp_path):
    place = write(tmp_path, cells(patient=PATIENTS))
    given = {"task": f"table:{place}", "target": "sort", "leave_out": ["price"]}
    one, other = (resolve(given | more) for more in ({"leave_out": ["price", "patient"]}, {"group": "patient"}))
    assert one.hash() != other.hash() != resolve(given | {"group": "colour"}).hash()
    tables.read.cache_clear()
    assert tasks.load(other.data_options(), 0).train.group is not None
    for task in (f"forecast:{place}", f"lm:{place}", f"idx:{tmp_path}", "digits-few", "tests.compare.tiny:task"):
        with pytest.raises(ValueError, match="does not take 'group'; leave it out"):
            resolve({"task": task, "group": "patient"})


def test_texts_of_one_author_stay_together(tmp_path):
    model = save(tmp_path / "model")
    lines = [f"{label}\t{text}\tw{i // 3}" for i, (label, text) in enumerate(words.lines(60))]
    (tmp_path / "one.tsv").write_text("\n".join(["label\ttext\tauthor", *lines]) + "\n")
    source = corpora.source(str(tmp_path / "one.tsv"), model, None, None, None, "author")
    made = choose(source, "t", 0, Amounts())
    parts = [set(getattr(made, part).group.tolist()) for part in ("train", "val", "test")]
    assert sum(map(len, parts)) == 20 == len(set.union(*parts)) and len(made.test) == 12
    with pytest.raises(ValueError, match="no column 'writer', .* name it with --group"):
        corpora.source(str(tmp_path / "one.tsv"), model, None, None, None, "writer")
    with pytest.raises(ValueError, match="has no columns"):
        corpora.source(words.write(tmp_path / "lines"), model, None, None, None, "author")
    for part, rows in {"train": lines[:45], "test": lines[44:]}.items():
        (tmp_path / f"{part}.tsv").write_text("\n".join(["label\ttext\tauthor", *rows]) + "\n")
    source = corpora.source(str(tmp_path / "train.tsv"), model, None, None, None, "author")
    with pytest.raises(ValueError, match="1 group is in training and in the test; part the data by groups, or name no"):
        [choose(source, "t", seed, Amounts()) for seed in range(20)]


def test_images_of_the_hub_stay_together(monkeypatch):
    module, images = ModuleType("datasets"), [Image.new("L", (8, 8), 9 * i) for i in range(24)]
    columns = {"img": images, "label": [i % 2 for i in range(24)], "who": [i // 4 for i in range(24)]}
    train = type("Columns", (dict,), {"column_names": list(columns)})(columns)
    module.load_dataset = lambda name: {"train": train}
    monkeypatch.setitem(sys.modules, "datasets", module)
    made = choose(readers.hugging_face("a/b", None, None, None, "who"), "t", 0, Amounts())
    parts = [set(getattr(made, part).group.tolist()) for part in ("train", "val", "test")]
    assert sorted(map(len, parts)) == [1, 1, 4] and len(set.union(*parts)) == 6
    train["who"][5] = None
    with pytest.raises(ValueError, match="column 'who' has no value in example 5"):
        readers.hugging_face("a/b", None, None, None, "who")
    with pytest.raises(ValueError, match="no column 'whom' for --group; did you mean 'who'"):
        readers.hugging_face("a/b", None, None, None, "whom")


def nested(folder: Path, patients: int = 6) -> Path:
    """Images of a class in folders of patients, two of whom have both."""
    for label, first in (("ill", 0), ("well", patients - 2)):
        for patient in range(first, first + patients):
            place = folder / label / f"p{patient}" / "visit"
            place.mkdir(parents=True)
            for i in range(3):
                Image.new("L", (8, 8), 20 * patient + i).save(place / f"{i}.png")
    return folder


def test_images_in_folders_of_patients(tmp_path):
    """Those below the folder of a class were not read, and nothing told so."""
    assert len(readers.image_folder(nested(tmp_path / "a"), None).pool) == 29
    source = readers.image_folder(tmp_path / "a", None, "folder")
    made = choose(source, "t", 0, Amounts())
    parts = [set(getattr(made, part).group.tolist()) for part in ("train", "val", "test")]
    assert sum(map(len, parts)) == 10 == len(set.union(*parts)) and min(map(len, parts)) > 0
    (tmp_path / "a" / "ill" / ".thumbs").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "a" / "ill" / ".thumbs" / "1.png")
    Image.new("L", (8, 8)).save(tmp_path / "a" / "loose.png")
    source = readers.image_folder(tmp_path / "a", None, "folder")
    assert len(source.pool) + len(source.test) == 36
    assert source.notes == (f"Images in {tmp_path / 'a'} itself, which is no class, were not read: 1.",)
    (tmp_path / "a" / "loose.png").rename(tmp_path / "a" / "ill" / "1.png")
    with pytest.raises(ValueError, match="1.png is in no folder below its class, which would be its group"):
        readers.image_folder(tmp_path / "a", None, "folder")
    with pytest.raises(ValueError, match="group is 'patient'; of images it is 'folder'"):
        tasks.load(resolve({"task": f"images:{tmp_path / 'a'}", "group": "patient"}).data_options(), 0)


def test_a_task_of_ones_own_may_say_so_too():
    parts = [replace(split(6, seed), group=torch.arange(6) + 10 * seed) for seed in range(3)]
    assert Task("own", *parts, 2)
    with pytest.raises(ValueError, match="6 groups are in training and in validation; part the data by groups"):
        Task("own", parts[0], parts[0], parts[2], 2)


def test_how_many_groups_there_are_is_told():
    sizes = {"train": 30, "val": 8, "test": 12}
    runs = [run | {"examples": dict.fromkeys(sizes, 100), "groups": sizes} for run in records(NOISY)]
    summary = summarise(runs, None, spec(NOISY) | {"group": "patient"})
    assert summary["groups"] == {part: [many, many] for part, many in sizes.items()}
    assert summary["hints"] == [
        "Groups of 'patient', none of which is in two parts: 30 for training, 8 for validation and 12 for the test.",
        "Few groups: 8 for validation (what it chooses is partly chance).",
    ]
    told = "<dt>group</dt><dd>patient</dd><dt>groups</dt><dd>30 for training, 8 for validation and 12 for the test</dd>"
    assert told in page.html(summary, runs, None)
    assert "groups" not in summarise(records(NOISY), None, spec(NOISY))


def test_many_groups_take_no_time():
    many = 200_000
    y, group = torch.arange(many) % 3, torch.arange(many) // 2
    taken, rest = together.apart(y, group, many // 5, generator(0))
    assert len(taken) == many // 5 and len(taken) + len(rest) == many
