import csv
import gzip
import json
from pathlib import Path

import pytest

from steppe.text import rows
from steppe.text.readers import Labelled, labelled, read, read_dialogues


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_lines_of_label_and_text(tmp_path: Path) -> None:
    source = write(tmp_path / "stsa.train", "1 a good film .\n0 dull  stuff\n\n10 fine\n2 so so\r\n")
    texts = ["a good film .", "dull  stuff", "fine", "so so"]
    assert read(source) == Labelled(texts, [1, 0, 3, 2], ("0", "1", "2", "10"))


def test_words_as_labels_stand_in_order_of_the_alphabet(tmp_path: Path) -> None:
    found = read(write(tmp_path / "t.txt", "NUM how many ?\nDESC what is a film ?\n"))
    assert (found.names, found.labels) == (("DESC", "NUM"), [1, 0])


def test_what_is_not_utf8_is_read_as_latin1_or_what_windows_makes_of_it(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a", "1 caf\u00e9".encode("latin-1"))).texts == ["caf\u00e9"]
    quoted = "text,label\n\u201cit\u2019s \u20ac 5\u201d,1\n"
    assert read(write(tmp_path / "a.csv", quoted.encode("cp1252"))).texts == ["\u201cit\u2019s \u20ac 5\u201d"]
    assert read(write(tmp_path / "b", b"1 \x81 caf\xe9")).texts == ["\x81 caf\xe9"]
    assert read(write(tmp_path / "b", "\ufeff1 caf\u00e9")).texts == ["caf\u00e9"]


def test_lines_end_where_editors_end_them(tmp_path: Path) -> None:
    source = write(tmp_path / "a", "1 good\u2028film\n0 dull\x85film\r1 fine\x0bfilm\r\n")
    assert read(source).texts == ["good\u2028film", "dull\x85film", "fine\x0bfilm"]


def test_a_tab_parts_label_and_text(tmp_path: Path) -> None:
    found = read(write(tmp_path / "a", "pos\ta good film\nneg \tdull\n"))
    assert (found.texts, found.names) == (["a good film", "dull"], ("neg", "pos"))


def test_quotation_marks_between_tabs_are_text(tmp_path: Path) -> None:
    source = write(tmp_path / "d.tsv", 'text\tlabel\n"Oh no\t0\nnice\t1\nshe said"\t0\n')
    assert read(source) == Labelled(['"Oh no', "nice", 'she said"'], [0, 1, 0], ("0", "1"))


def test_long_cells_are_read(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    assert len(read(write(tmp_path / "d.csv", f"text,label\n{'a ' * 70_000},1\nb,0\n")).texts[0]) == 140_000
    assert csv.field_size_limit() == before


def test_blanks_around_a_label_are_no_part_of_it(tmp_path: Path) -> None:
    assert read(write(tmp_path / "d.csv", "text,label\na,pos\nb, pos \nc,neg\n")).labels == [1, 1, 0]


def test_digits_that_are_no_numbers_are_words(tmp_path: Path) -> None:
    assert read(write(tmp_path / "d.csv", "text,label\na,²\nb,1\nc,--1\n")).names == ("--1", "1", "²")


def test_json_lines_by_column(tmp_path: Path) -> None:
    given = [{"sentence": "good", "gold": True, "id": 1}, {"sentence": "bad\u2028 film", "gold": False, "id": 2}]
    source = write(tmp_path / "d.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in given))
    found = read(source, text="sentence", label="gold")
    assert found == Labelled(["good", "bad\u2028 film"], [1, 0], ("False", "True"))


def test_a_table_with_semicolons_as_excel_writes_it_where_commas_are_decimal_points(tmp_path: Path) -> None:
    assert read(write(tmp_path / "d.csv", "\ufefftext;label\ngood, really;1\nbad;0\n")).texts == ["good, really", "bad"]


def test_tables_with_quotes_and_numbers_as_a_spreadsheet_writes_them(tmp_path: Path) -> None:
    source = write(tmp_path / "d.csv", 'text,label\n"good, really",1.0\n"two\nlines",0.0\n')
    assert read(source) == Labelled(["good, really", "two\nlines"], [1, 0], ("0", "1"))
    assert read(write(tmp_path / "d.tsv", "label\ttext\nx\tgood, really\n")).texts == ["good, really"]


@pytest.mark.parametrize("text", ["premise,hypothesis", ("premise", "hypothesis")])
def test_two_columns_give_pairs(tmp_path: Path, text: str | tuple[str, str]) -> None:
    source = write(tmp_path / "d.csv", "premise,hypothesis,label\na,b,yes\nc,d,no\n")
    assert read(source, text=text).texts == [("a", "b"), ("c", "d")]


def test_dialogues(tmp_path: Path) -> None:
    source = write(tmp_path / "d.jsonl", '{"q": "Hi\\n", "a": " there"}\n{"q": "", "a": "x"}\n')
    found = read_dialogues(source, prompt="q", response="a")
    assert (found.prompts, found.responses) == (["Hi\n", ""], [" there", "x"])
    assert found.take([1]).responses == ["x"] and len(found) == 2


def test_labels_of_a_test_file_are_counted_in_those_of_training() -> None:
    train, test = labelled(["a", "b", "c"], ["x", "y", "z"]), labelled(["d", "e"], ["z", "x"])
    assert test.under(train.names).labels == [2, 0]
    with pytest.raises(ValueError, match="the test file has the label 'z', which the training data has not"):
        test.under(("x", "y"), "the test file")


def test_take_keeps_the_names() -> None:
    assert labelled(["a", "b", "c"], ["x", "y", "z"]).take([2]) == Labelled(["c"], [2], ("x", "y", "z"))


BAD = [
    ("none.txt", None, {}, "cannot read .*none.txt .No such file"),
    ("empty.txt", "\n\n", {}, "holds no examples"),
    ("empty.jsonl", "", {}, "holds no examples"),
    ("only_header.csv", "text,label\n", {}, "holds no examples"),
    ("label_alone.txt", "1 good\n0\n", {}, "line 2 is '0'; expected a label, a space and the text"),
    ("broken.jsonl", '{"text": "a", "label": 1}\n{"text": \n', {}, "line 2 is not JSON"),
    ("list.jsonl", "[1, 2]\n", {}, "lists 1; expected objects with the columns as keys"),
    ("a.csv", "words,label\ngood,1\n", {}, "no column 'text', its columns are words, label; name it with --text"),
    ("b.csv", "text,class\ngood,1\n", {}, "no column 'label'.*name it with --label"),
    ("c.csv", "text,label\ngood\n", {}, "example 1 has None in column 'label'"),
    ("d.csv", "text,label\ngood,\n", {}, "example 1 has nothing in column 'label'"),
    ("e.csv", "text,label\na,b,c\n", {}, "line 2 has more cells than the header's 2"),
    ("f.csv", 'text,label\n"a,b\n', {}, "is no row of a table"),
    ("g.jsonl", '{"text": ["a"], "label": 1}', {}, r"example 1 has \['a'\] in column 'text'"),
    ("h.jsonl", '{"text": "a", "label": null}', {}, "example 1 has None in column 'label'"),
    ("i.csv", "a,b,c,label\n1,2,3,4\n", {"text": "a,b,c"}, "text names 3 columns"),
    ("k.jsonl", '{"text": "a", "label": NaN}', {}, "example 1 has nan in column 'label'.*fill it or leave"),
    ("l.jsonl", '{"text": Infinity, "label": 1}', {}, "example 1 has inf in column 'text'.*fill it or leave"),
    ("m.csv", "text,label\na,1\nb,NaN\n", {}, "example 2 has 'NaN' in column 'label'.*fill it or leave"),
    ("n.csv", "text,label,label\na,1,0\n", {}, "has 2 columns 'label'; give each column its own name"),
    ("o.csv", "text,label\ngrö,1\n".encode() + b"x \xff,1\n", {}, "line 3 is not UTF-8 .*; save the file as UTF-8"),
    ("p.csv", "text,label\na,1\n".encode("utf-16"), {}, "line 1 is not UTF-8 .*; save the file as UTF-8"),
    ("j.txt", "1 good\n", {"split": "train"}, "is a file and has no split 'train'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "options", "message"), BAD, ids=[row[0] for row in BAD])
def test_bad_sources(
    tmp_path: Path, name: str, content: str | bytes | None, options: dict[str, str], message: str
) -> None:
    source = str(tmp_path / name) if content is None else write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        read(source, **options)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; give the file"):
        read(str(tmp_path))


def test_dialogues_need_columns_and_responses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no columns; expected .jsonl, .csv, .tsv or .parquet"):
        read_dialogues(write(tmp_path / "d.txt", "a b\n"))
    with pytest.raises(ValueError, match="no column 'response'.*--response"):
        read_dialogues(write(tmp_path / "d.jsonl", '{"prompt": "a"}'))
    rows = '{"prompt": "a", "response": "b"}\n{"prompt": "a", "response": " "}'
    with pytest.raises(ValueError, match="example 2 has nothing in column 'response'"):
        read_dialogues(write(tmp_path / "e.jsonl", rows))


class Names:
    @staticmethod
    def int2str(index: int) -> str:
        return ("negative", "positive")[index]


class Part(list):  # type: ignore[type-arg]
    features = {"text": object(), "label": Names()}


class FakeHub:
    """What `datasets.load_dataset` gives, for a data set that the hub has and one that it has not."""

    def load(self, name: str, configuration: str | None) -> dict[str, Part]:
        if name != "someone/films":
            raise ConnectionError(f"Couldn't reach {name!r} on the Hub (LocalEntryNotFoundError)\nmore\n")
        self.configuration = configuration
        rows = [{"text": "good", "label": 1}, {"text": "bad", "label": 0}]
        return {"train": Part(rows), "validation": Part(rows[:1]), "test": Part([{"text": "x", "label": -1}])}


def test_data_sets_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets, hub = pytest.importorskip("datasets"), FakeHub()
    monkeypatch.setattr(datasets, "load_dataset", hub.load)
    monkeypatch.setattr(rows, "silent", lambda name, kind: False)
    assert read("hf:someone/films:small") == Labelled(["good", "bad"], [1, 0], ("negative", "positive"))
    assert hub.configuration == "small"
    assert read("hf:someone/films", split="validation").names == ("positive",)
    with pytest.raises(ValueError, match="has no split 'validatoin'; did you mean 'validation'?"):
        read("hf:someone/films", split="validatoin")
    message = r"^cannot get hf:someone/filsm: Couldn't reach .*; give hf:DATASET of the hub, or a file$"
    with pytest.raises(ValueError, match=message):
        read("hf:someone/filsm")


def test_a_hub_without_an_answer_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(rows, "silent", lambda name, kind: True)
    with pytest.raises(ValueError, match="^cannot get hf:someone/nothing: .*give hf:DATASET of the hub, or a file"):
        read("hf:someone/nothing")
    assert datasets.config.HF_HUB_OFFLINE


ROWS = [{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}]


def test_json_may_be_a_list_and_files_packed(tmp_path: Path) -> None:
    """What is called .json is a list more often than lines, and was “not JSON”."""
    pretty, lines = json.dumps(ROWS, indent=1), "\n".join(map(json.dumps, ROWS))
    packed = write(tmp_path / "a.jsonl.gz", gzip.compress(lines.encode()))
    for source in (write(tmp_path / "a.json", pretty), packed):
        assert read_dialogues(source).responses == ["b", "d"]
    bad = {"[1]": "lists 1; expected objects", "[{": "expected a list of objects", "[]": "no examples"}
    for text, told in bad.items():
        with pytest.raises(ValueError, match=told):
            read_dialogues(write(tmp_path / "bad.json", text))


def test_parquet_has_columns(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert read_dialogues(str(tmp_path / "a.parquet")).prompts == ["a", "c"]
    with pytest.raises(ValueError, match="is not a Parquet file"):
        read(write(tmp_path / "b.parquet", "1 a good film"))


def test_a_chat_is_told_how_to_be_written(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "how are you today ?"}, {"role": "assistant", "content": "fine"}]}
    with pytest.raises(ValueError, match="the last answer as the response") as error:
        read_dialogues(write(tmp_path / "a.jsonl", json.dumps(chat)), prompt="messages")
    assert "today" not in str(error.value)
