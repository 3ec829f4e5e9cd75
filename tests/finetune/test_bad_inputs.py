"""Whatever is wrong: exit code 2, one sentence on stderr, and nothing half-written."""

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.finetune.cases import Stop, dialogues, run, sentences
from tests.text import tiny

from steppe.cli import main
from steppe.finetune import arguments, folder
from steppe.finetune import run as running
from steppe.finetune.spec import resolve


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, an adapter of one, and data, good and bad."""
    folder = tmp_path_factory.mktemp("inputs")
    run(folder, "gpt2", method="base", training={"max_steps": 1})
    run(folder, "bert", method="base", training={"max_steps": 1}, out=str(folder / "done"))
    tiny.save(folder / "llama", "llama")
    sentences(folder)
    dialogues(folder)
    sentences(folder, "dev.txt")
    (folder / "link.txt").symlink_to("train.txt")
    (folder / "empty.txt").write_text("")
    (folder / "empty_file.jsonl").write_text("\n")
    (folder / "table.csv").write_text("text,label\ngood film,1\ndull,0\n")
    (folder / "one.csv").write_text("text,label\ngood film,1\n")
    (folder / "same.csv").write_text("text,label\ngood film,1\njoy,1\n")
    (folder / "nolabel.csv").write_text("text,label\ngood film,1\ndull,\n")
    (folder / "blank.csv").write_text("text,label\n ,1\n ,0\n ,1\n ,0\n")
    (folder / "strange.csv").write_text("text,label\ngood,1\njoy,7\n")
    (folder / "broken.jsonl").write_text('{"prompt": "a", "resp')
    (folder / "file").write_text("x")
    (folder / "other").mkdir()
    (folder / "other" / "notes.txt").write_text("keep me")
    (folder / "mine.toml").write_text('metod = "sam"\n')
    (folder / "broken.toml").write_text("metod = \n")
    return folder


OK = "--model bert --data train.txt"
LM = "--task causal-lm --model gpt2 --data train.jsonl"
BAD = [
    # what is typed after `steppe finetune`, in that folder, and what the one sentence must contain
    ("--model bert", "--data is missing: give a file or hf:DATASET"),
    ("--data train.txt", "--model is missing"),
    ("--model nowhere --data train.txt", "cannot get the model 'nowhere'"),
    ("--model other --data train.txt", "cannot load a model from the folder other"),
    ("--model bert --data nowhere.txt", "cannot read nowhere.txt (No such file"),
    ("--model bert --data other", "other is a folder; give the file in it"),
    ("--model bert --data empty.txt", "empty.txt holds no examples"),
    ("--task causal-lm --model gpt2 --data empty_file.jsonl", "holds no examples"),
    ("--task causal-lm --model gpt2 --data broken.jsonl", "line 1 is not JSON"),
    ("--model bert --data table.csv --text words", "no column 'words', its columns are text, label; name"),
    ("--model bert --data table.csv --label klass", "no column 'klass'"),
    (f"{LM} --prompt question", "no column 'question'"),
    (f"{LM} --response answer", "no column 'answer'"),
    ("--model gpt2 --data blank.csv", "3 of 3 texts, such as ' ', are no token to the model"),
    ("--model bert --data nolabel.csv", "example 2 has nothing in column 'label'"),
    ("--model bert --data table.csv --test strange.csv", "has the label '7', which the training data has not"),
    ("--model bert --data same.csv", "at least 2 classes, got 1"),
    ("--model bert --data one.csv", "of which none would be left to train on; give --test"),
    ("--model bert --data table.csv", "has 2 examples, one of each class, and every label needs training examples"),
    (f"{OK} --split train", "is a file and has no split 'train'"),
    (f"{OK} --test-split test", "given without test"),
    (f"{OK} --test dev.txt --held-out 0.2", "leave one out"),
    (f"{OK} --test train.txt", "--test train.txt is the training data itself; give other examples"),
    (f"{OK} --test other/../train.txt", "is the training data itself"),
    (f"{OK} --test link.txt", "is the training data itself"),
    (f"{OK} --test nowhere.txt", "cannot read nowhere.txt (No such file"),
    ("--model bert --data hf:a/b --test hf:a/b", "--test hf:a/b is given without --test-split"),
    (f"{OK} --test hf:a/b", "name one, such as --test-split validation"),
    ("--model bert --data hf:a/b --test hf:a/b --test-split train", "hf:a/b, split 'train', is the training data"),
    ("--model bert --data hf:a/b --split all --test hf:a/b --test-split all", "split 'all', is the training data"),
    (f"{OK} --held-out 0", "held_out must be a share between 0 and 1, got 0.0"),
    (f"{OK} --task clasify", "task must be 'classify' or 'causal-lm', got 'clasify'"),
    (f"{OK} --method nbra", "did you mean 'nbar'?"),
    (f"{OK} --method esam", "needs a loss for each example, and the Trainer has their mean only"),
    (f"{OK} --method look_sam:kk=5", "did you mean 'k'?"),
    (f"{OK} --method sam:rho=-1", "method 'sam:rho=-1.0': "),
    (f"{OK} --method nbar --full", "method 'nbar'"),
    (f"{OK} --method nbar:mu=2 --learning-rate 0.6", "needs a learning rate below 0.5, got 0.6"),
    (f"{OK} --method obar:schedule=constant --learning-rate 2", "needs a learning rate below 2, got 2"),
    (f"{OK} --method nbar:schedule=step", "'linear', 'cosine', 'constant'"),
    (f"{OK} --full --r 4", "r is a setting of new LoRA adapters, but everything is trained"),
    (f"{OK} --r 0", "r must be a whole number of at least 1, got 0"),
    (f"{OK} --dropout 1", "dropout must be a share"),
    (f"{OK} --kind adalora", "kind must be one of lora, rslora, dora"),
    (f"{OK} --targets qeury", "did you mean 'query'?"),
    (f"{OK} --seed -1", "seed must be a whole number from 0"),
    (f"{OK} --packing", "packing has no effect with the task 'classify'"),
    (f"{LM} --text words", "text has no effect with the task 'causal-lm'"),
    (f"{OK} --max-length 25", "max_length 25 is more than the 24 tokens that the model takes; set it to at most 24"),
    (f"{OK} --max-length 1", "max_length must be a whole number of at least 2"),
    (f"{OK} --set learnig_rate=1", "has no argument 'learnig_rate'; did you mean 'learning_rate'?"),
    (f"{OK} --learnig-rate 1", "unknown flag --learnig-rate; did you mean --learning-rate?"),
    (f"{OK} --set learning_rate", "write --set name=value"),
    (f"{OK} --set learning_rate=fast", "learning_rate = 'fast' is not what the Trainer takes"),
    (f"{OK} --set learning_rate=0", "learning_rate must be a number above 0, got 0.0"),
    (f"{OK} --set per_device_train_batch_size=0", "per_device_train_batch_size must be a number above 0, got 0"),
    (f"{OK} --max-steps 0", "max_steps must be at least 1"),
    (f"{OK} --max-steps 1 --set max_steps=2", "given as a flag and after --set"),
    (f"{OK} --set max_steps=1 --set max_steps=2", "max_steps is given twice"),
    (f"{OK} --set output_dir=x", "use --out"),
    (f"{OK} --optim sdg", "optim = 'sdg' is not what the Trainer takes: invalid choice"),
    (f"{OK} --lr-scheduler-type cosin", "lr_scheduler_type = 'cosin'"),
    (f"{OK} --fsdp full_shard", "the Trainer refuses its arguments: Using fsdp only works in distributed training"),
    (f"{OK} sst2", "unexpected argument 'sst2'; every setting is a flag"),
    (f"{OK} --recipe roberta-large-fewshot", "did you mean 'roberta-large-few-shot'?"),
    (f"{OK} --recipe nowhere.toml", "give the path of a TOML file to --recipe"),
    (f"{OK} --recipe broken.toml", "is not TOML"),
    (f"{OK} --recipe mine.toml", "unknown setting 'metod'; did you mean 'method'?"),
    ("--recipe gpt2-medium-webnlg", "--data is missing: give a file or hf:DATASET; the recipe"),
    (f"{OK} --adapter other", "other holds no PEFT adapter"),
    (f"{OK} --adapter out/adapter", "is of the task CAUSAL_LM and holds no classification head, so that a random one"),
    ("--task causal-lm --model llama --data train.jsonl --adapter out/adapter", "does not belong to the model llama"),
    (f"{OK} --adapter done/adapter --r 4", "an adapter is given, which brings its own"),
    (f"{OK} --out file", "file is a file; name a folder with --out"),
    (f"{OK} --out other", "holds files that are not of a fine-tuning"),
    (f"{OK} --out done", "done holds a finished run: give --overwrite or another --out"),
    (f"{OK} --out done --resume", "is finished"),
    (f"{OK} --out new --resume", "new holds no run to resume"),
    ("--resume", "--model is missing"),
    (f"{OK} --out /dev/null/results", "cannot write to /dev/null/results (Not a directory)"),
    ("--out other", "holds files that are not of a fine-tuning"),
]  # fmt: skip


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(words: str | list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence on stderr."""
    capsys.readouterr()
    assert main(["finetune", *(words.split() if isinstance(words, str) else words)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    told = [line for line in printed.err.splitlines() if not line.startswith("Reading ")]
    sentence = next(line for line in told if line.startswith("steppe: "))
    assert told[-1] == sentence and "Traceback" not in printed.err
    return sentence


@pytest.mark.parametrize(("typed", "message"), BAD, ids=[row[0] for row in BAD])
def test_bad_inputs(
    here: Path, typed: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = tree(here)
    sentence = refused(typed, capsys)
    assert message in sentence
    assert tree(here) == before


def interrupted(folder: Path) -> list[str]:
    """The words of a run that was broken off in ``folder``."""
    words = ["--model", tiny.save(folder / "bert"), "--data", sentences(folder), "--out", str(folder / "out")]
    words += ["--max-steps", "6", "--save-steps", "2", "--per-device-train-batch-size", "4"]

    training = arguments.flags(words[6:], ())
    ready = running.prepare(resolve({"model": words[1], "data": words[3], "out": words[5]}, training))
    with pytest.raises(KeyboardInterrupt):
        running.train(ready, Stop(5))
    return words


def test_resuming_with_other_settings_or_other_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = interrupted(tmp_path)
    before = tree(tmp_path)
    assert "was begun with seed = 0, now it is 3" in refused([*words, "--seed", "3", "--resume"], capsys)
    assert "learning_rate = 0.0005, now it is 0.1" in refused([*words, "--learning-rate", "0.1", "--resume"], capsys)
    out = ["--out", str(tmp_path / "out"), "--resume"]
    assert "was begun with method = 'nbar', now it is 'sam'" in refused([*out, "--method", "sam"], capsys)
    assert "max_steps = 6, now it is 9" in refused([*out, "--max-steps", "9"], capsys)
    assert "holds a run that was interrupted: give --resume," in refused(words, capsys)
    with open(words[3], "a") as file:
        file.write("\n1 good")
    assert "the data of the run in" in refused(out, capsys)
    Path(words[3]).write_text(Path(words[3]).read_text().removesuffix("\n1 good"))
    weights = Path(words[1], "model.safetensors")
    trained = weights.read_bytes()
    weights.write_bytes(trained[:-1] + bytes([trained[-1] ^ 1]))
    assert "the model that the run in" in refused(out, capsys)
    weights.write_bytes(trained)
    assert tree(tmp_path) == before
    assert main(["finetune", *out]) == 0


def test_resuming_before_the_first_checkpoint_begins_that_very_run_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = interrupted(tmp_path)
    for state in (tmp_path / "out" / "checkpoints").glob("*/trainer_state.json"):
        state.unlink()
    assert "was begun with learning_rate" in refused([*words, "--resume", "--learning-rate", "0.1"], capsys)
    (tmp_path / "out" / "adapter").mkdir()  # trained to its end, without checkpoints
    assert "and what it trained lies in" in refused([*words, "--resume"], capsys)
    (tmp_path / "out" / "adapter").rmdir()
    assert main(["finetune", "--out", words[5], "--resume"]) == 0
    told = capsys.readouterr().err.splitlines()
    assert sum("was interrupted before its first checkpoint: it begins anew" in line for line in told) == 1
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["resumed_at"] is None and result["steps"] == 6
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("where", "error"),
    [("create_optimizer", ImportError("install bitsandbytes")), ("__init__", RuntimeError("install wandb"))],
)
def test_what_the_trainer_lacks_costs_no_earlier_result(
    tmp_path: Path, where: str, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, training={"max_steps": 1})
    before = tree(tmp_path)

    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(f"transformers.Trainer.{where}", fails)
    words = ["--model", str(tmp_path / "bert"), "--data", str(tmp_path / "train.txt"), "--out", str(tmp_path / "out")]
    assert f"the Trainer refuses its arguments: {error}" in refused([*words, "--overwrite"], capsys)
    assert tree(tmp_path) == before


class FullDisk:
    """Lets nothing more be written from the moment that ``armed`` says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
        monkeypatch.setattr(where, self)

    def __call__(self, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


PLACES = {
    "the settings": "steppe.finetune.folder.write_json",
    "a checkpoint": "torch.save",
    "the adapter": "peft.peft_model.safe_save_file",
    "the tokenizer": "transformers.PreTrainedTokenizerBase.save_pretrained",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", tiny.save(tmp_path / "bert"), "--data", sentences(tmp_path), "--out", str(tmp_path / "out")]
    FullDisk(monkeypatch, PLACES[place])
    sentence = refused([*words, "--max-steps", "2"], capsys)
    assert "No space left on device" in sentence and "make room or name another --out" in sentence
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left <= {"settings.json", "checkpoints"}, "half of something is left"


def test_a_disk_that_fills_up_at_the_result_keeps_the_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    whole: Callable[..., None] = folder.write_json

    def write(path: Path, value: Any) -> None:
        if path.name == "result.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(path, value)

    monkeypatch.setattr(folder, "write_json", write)
    words = ["--model", tiny.save(tmp_path / "bert"), "--data", sentences(tmp_path), "--out", str(tmp_path / "out")]
    assert "No space left" in refused([*words, "--max-steps", "2"], capsys)
    assert not (tmp_path / "out" / "result.json").exists()
    monkeypatch.undo()
    assert main(["finetune", "--out", str(tmp_path / "out"), "--resume"]) == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["resumed_at"] == 2


def test_a_folder_without_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def mkdir(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    words = ["--model", tiny.save(tmp_path / "bert"), "--data", sentences(tmp_path), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert "(Permission denied)" in refused([*words, "--max-steps", "2"], capsys)
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_with_its_extra(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    monkeypatch.setitem(sys.modules, "peft", None)  # type: ignore[arg-type]
    sentence = refused(OK + " --method base", capsys)
    assert sentence == "steppe: this needs peft, which is not installed; run: pip install 'steppe[study,finetune]'"
