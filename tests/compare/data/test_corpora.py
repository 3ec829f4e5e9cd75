import json
import sys
from types import ModuleType

import pytest
import torch
from tests.compare import words
from tests.text.tiny import save

from steppe.compare.data import corpora, tasks
from steppe.compare.data.examples import Amounts, Split, Texts, choose, generator
from steppe.text.tokens import note_on_cut


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("model"))


def texts(lengths: list[int], classes: int = 2) -> Texts:
    """Texts of given lengths, whose tokens are their number plus one."""
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, length in enumerate(lengths):
        ids[i, :length], mask[i, :length] = i + 1, 1
    return Texts({"input_ids": ids, "attention_mask": mask}, torch.arange(len(lengths)) % classes)


def test_what_is_taken_is_as_long_as_its_longest_text():
    every = texts([3, 9, 5, 1])
    taken = every.take(torch.tensor([2, 0]))
    assert isinstance(taken, Texts) and taken.lengths.tolist() == [5, 3]
    assert taken.x["input_ids"].tolist() == [[3] * 5, [1, 1, 1, 0, 0]]
    assert taken.x["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert taken.y.tolist() == [0, 0]


def test_texts_by_length_and_on_a_device_are_the_same_texts():
    every = texts([3, 9, 5, 1])
    ordered = every.by_length()
    assert ordered.x["input_ids"][:, 0].tolist() == [4, 1, 3, 2] and ordered.lengths.tolist() == [1, 3, 5, 9]
    assert torch.equal(every.to("cpu").x["input_ids"], every.x["input_ids"]) and isinstance(every.to("cpu"), Texts)


@pytest.mark.parametrize("name", ["words.{part}.all", "{part}.txt", "My-{part}-Set"])
def test_siblings_are_the_files_that_differ_in_their_part_alone(tmp_path, name):
    path = words.write(tmp_path, name, dev=4, test=6)
    (tmp_path / "other.test.all").write_text("0 x\n")
    found = corpora.files(path)
    assert {part: file.name for part, file in found.items()} == {
        "train": name.format(part="train"), "val": name.format(part="dev"), "test": name.format(part="test"),
    }  # fmt: skip
    if name != "words.{part}.all":
        (tmp_path / "other.test.all").unlink()
    assert corpora.files(str(tmp_path)) == found


def test_a_word_inside_another_names_no_part(tmp_path):
    (tmp_path / "training.txt").write_text("0 a\n1 b\n")
    (tmp_path / "testing.txt").write_text("0 a\n")
    assert list(corpora.files(str(tmp_path / "training.txt"))) == ["train"]


@pytest.mark.parametrize("column", ["text", "sentence"])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_tables_are_read_by_their_columns(tmp_path, model, ending, column):
    rows = [{column: text, "kind": ("no", "yes")[label]} for label, text in words.lines(10)]
    path = tmp_path / f"train.{ending}"
    if ending == "csv":
        path.write_text("\n".join([f"{column},kind", *(f"{row[column]},{row['kind']}" for row in rows)]))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    made = corpora.source(str(path), model, None, column, "kind")
    assert made.classes == 2 and len(made.pool) == 8 and len(made.test) == 2 and made.val is None


def test_a_source_is_tokenised_with_the_models_words_and_cut(tmp_path, model):
    path = words.write(tmp_path, dev=4, test=6)
    made = corpora.source(path, model, None, None, None)
    assert (len(made.pool), len(made.val), len(made.test), made.classes) == (24, 4, 6, 2)
    assert made.pool.y.tolist() == [0, 1] * 12
    assert made.pool.x["input_ids"][2].tolist()[:3] == [2, 19, 3]  # [CLS] dull [SEP]
    assert made.test.lengths.tolist() == sorted(made.test.lengths.tolist())
    assert int(corpora.source(path, model, 4, None, None).pool.lengths.max()) == 4


def test_how_many_texts_are_cut_is_said_with_what_takes_them_whole(tmp_path, model):
    path = words.write(tmp_path, train=8, dev=4, test=6)
    lengths = [len(text.split()) + 2 for _, text in [*words.lines(8), *words.lines(4), *words.lines(6)]]
    for length in (4, 6):
        long = sum(each > length for each in lengths)
        (note,) = corpora.source(path, model, length, None, None).notes
        assert note == f"{long} of 18 texts are longer than {length} tokens and cut; --max-length 12 takes them whole."
    for length in (max(lengths), None):
        assert corpora.source(path, model, length, None, None).notes == ()
    assert max(lengths) == 12


def test_what_no_length_takes_whole_is_said_too():
    said = "1 of 2 texts is longer than 5 tokens and cut; the longest has 9, and the model takes 8"
    assert note_on_cut([3, 9], 5, 8) == said
    assert note_on_cut([3, 9], 5, None).endswith("--max-length 9 takes them whole") and note_on_cut([], 5, 8) == ""


def test_the_test_set_keeps_the_training_datas_names_of_classes(tmp_path, model):
    (tmp_path / "train.txt").write_text("pos good\nneg bad\npos joy\nneg dull\n")
    (tmp_path / "test.txt").write_text("pos fine\npos joy\n")
    made = corpora.source(str(tmp_path / "train.txt"), model, None, None, None)
    assert made.pool.y.tolist() == [1, 0, 1, 0] and made.test.y.tolist() == [1, 1]


class _Part(list):
    features = {"text": None, "label": None}


def _hub(monkeypatch, **parts):
    module = ModuleType("datasets")
    rows = {name: _Part({"text": text, "label": label} for label, text in made) for name, made in parts.items()}
    module.load_dataset = lambda name, configuration: rows
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr("steppe.text.rows.silent", lambda name, kind: False)  # the hub answers


def test_the_hubs_parts_are_found_and_a_secret_test_is_none(monkeypatch):
    _hub(monkeypatch, train=words.lines(10), validation=words.lines(4), test=words.lines(6))
    assert {part: len(each) for part, each in corpora.parts("hf:a/b", "text", "label").items()} == {
        "train": 10, "val": 4, "test": 6,
    }  # fmt: skip
    _hub(monkeypatch, train=words.lines(10), test=[(-1, "good"), (-1, "bad")])
    assert set(corpora.parts("hf:a/b2", "text", "label")) == {"train"}


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        ({}, "must hold one file with 'train' in its name, it has none"),
        ({"a.train": "0 a\n", "b.train": "0 b\n"}, "it has several: a.train, b.train"),
        ({"train.txt": "0 a\n0 b\n"}, "has 1 class, 0; expected at least 2"),
        ({"train.txt": "0 a\n1 b\n", "test.txt": "2 c\n"}, "the test part of .* has the label '2'"),
        ({"train.txt": "0 a\n1\n"}, "line 2"),
        ({"train.txt": ""}, "holds no examples"),
        ({"train.csv": "words,label\na,0\nb,1\n"}, "has no column 'text'"),
        ({"train.jsonl": '{"text": "a", "label": 0}\nnothing\n'}, "line 2 is not JSON"),
    ],
)
def test_texts_that_cannot_be_used_are_refused(tmp_path, model, files, hint):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=hint):
        corpora.source(str(tmp_path), model, None, None, None)


@pytest.mark.parametrize("missing", [("peft",), ("transformers", "peft")], ids=len)
def test_without_its_extra_a_text_says_what_to_install(tmp_path, model, monkeypatch, missing):
    there = corpora.importlib.util.find_spec
    monkeypatch.setattr(corpora.importlib.util, "find_spec", lambda name: None if name in missing else there(name))
    with pytest.raises(
        ValueError, match=rf"needs {' and '.join(missing)}; run: pip install 'steppe\[study,finetune\]'"
    ):
        corpora.source(words.write(tmp_path), model, None, None, None)


def test_more_tokens_than_the_model_takes_are_refused(tmp_path, model):
    with pytest.raises(ValueError, match="max_length"):
        corpora.source(words.write(tmp_path), model, 1000, None, None)


def test_a_missing_place_is_refused_with_what_to_give():
    with pytest.raises(ValueError, match="give text:FILE, text:FOLDER or text:hf:DATASET"):
        tasks.check_name("text:nowhere/train.txt")


def test_corrected_labels_change_the_fingerprint(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("0 good\n1 bad\n")
    before = tasks.fingerprint(f"text:{path}")
    path.write_text("1 good\n0 bad\n")
    assert before != tasks.fingerprint(f"text:{path}")


def test_changed_texts_change_the_fingerprint(tmp_path):
    path = words.write(tmp_path, test=4)
    before = tasks.fingerprint(f"text:{path}")
    assert before == tasks.fingerprint(f"text:{path}") == tasks.fingerprint(f"text:{tmp_path}")
    words.write(tmp_path, test=6)
    assert before != tasks.fingerprint(f"text:{path}")
    assert tasks.fingerprint("text:hf:owner/data") == tasks.fingerprint("digits-few")


def few(lengths: int, per_class: int | None, seed: int = 0, **more):
    source = corpora.Source(texts([3] * lengths), texts([2] * 4), 2)
    return choose(source, "made up", seed, Amounts(per_class=per_class, **more))


def test_a_limit_per_class_holds_for_the_training_texts_alone():
    task = few(60, 7, validation=20)
    assert torch.bincount(task.train.y).tolist() == [7, 7] and len(task.val) == 20
    assert torch.bincount(few(60, 100, validation=20).train.y).tolist() == [20, 20]  # there are no more
    numbers = [set(part.x["input_ids"][:, 0].tolist()) for part in (task.train, task.val)]
    assert not numbers[0] & numbers[1]
    assert not torch.equal(few(60, 7, 1, validation=20).train.x["input_ids"], task.train.x["input_ids"])


def test_noise_leaves_the_texts_and_is_as_in_images():
    clean, noisy = (few(60, 10, validation=20, noise=noise) for noise in (0.0, 0.4))
    assert torch.equal(clean.train.x["input_ids"], noisy.train.x["input_ids"]) and isinstance(noisy.train, Texts)
    assert int((clean.train.y != noisy.train.y).sum()) == 8 and int((clean.val.y != noisy.val.y).sum()) == 8


def test_a_part_of_an_owners_validation_set_is_drawn_anew_for_each_seed():
    val = Split(torch.arange(40.0).reshape(-1, 1, 1, 1), torch.arange(40) % 4)
    pool = Split(torch.randn(20, 1, 1, 1, generator=generator(1)), torch.arange(20) % 4)
    source = corpora.Source(pool, pool, 4, val)
    parts = [choose(source, "made up", seed, Amounts(validation=8)).val for seed in (0, 0, 1)]
    assert torch.bincount(parts[0].y).tolist() == [2, 2, 2, 2]
    assert torch.equal(parts[0].x, parts[1].x) and not torch.equal(parts[0].x, parts[2].x)
    with pytest.raises(ValueError, match="50 validation examples are more than the 40"):
        choose(source, "made up", 0, Amounts(validation=50))
