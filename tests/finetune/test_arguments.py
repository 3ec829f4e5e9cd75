import pytest

from steppe.finetune import arguments
from steppe.finetune.spec import Spec, resolve


def settings(**more: object) -> Spec:
    return resolve({"model": "m", "data": "d.csv"} | more)


def test_pairs_after_set() -> None:
    assert arguments.pairs(["learning_rate=3e-4", "lr-scheduler-type = cosine", "optim_args=a=1,b=2"]) == {
        "learning_rate": "3e-4", "lr_scheduler_type": "cosine", "optim_args": "a=1,b=2",
    }  # fmt: skip


@pytest.mark.parametrize(
    "words", ["--max-steps 20 --bf16 --weight-decay -1", "--max-steps=20 --bf16=true --weight_decay=-1"]
)
def test_flags_of_the_trainer(words: str) -> None:
    assert arguments.flags(words.split(), ()) == {"max_steps": "20", "bf16": "true", "weight_decay": "-1"}


def test_the_hint_knows_the_commands_own_flags() -> None:
    with pytest.raises(ValueError, match="unknown flag --pakcing; did you mean --packing?"):
        arguments.flags(["--pakcing"], ("packing",))


def test_values_are_read_as_the_trainers_types() -> None:
    asked = {
        "learning_rate": "1e-4", "max_steps": "5", "bf16": "true", "lr_scheduler_type": "cosine", "warmup_steps": "0.1",
        "gradient_checkpointing_kwargs": '{"use_reentrant": false}', "save_total_limit": "3",
        "include_num_input_tokens_seen": "all",
    }  # fmt: skip
    found = arguments.complete(asked, settings())
    assert {key: found[key] for key in asked} == {
        "learning_rate": 1e-4, "max_steps": 5, "bf16": True, "lr_scheduler_type": "cosine", "warmup_steps": 0.1,
        "gradient_checkpointing_kwargs": {"use_reentrant": False}, "save_total_limit": 3,
        "include_num_input_tokens_seen": "all",
    }  # fmt: skip
    assert isinstance(found["max_steps"], int) and isinstance(found["learning_rate"], float)


def test_values_from_a_recipe_are_read_alike() -> None:
    asked = {"learning_rate": 1e-4, "bf16": False, "max_steps": 5, "gradient_checkpointing_kwargs": {"a": 1}}
    found = arguments.complete(asked, settings())
    assert {key: found[key] for key in asked} == asked


def test_the_usual_settings_depend_on_what_is_trained() -> None:
    rates = {
        (task, full): settings(task=task, full=full).training["learning_rate"]
        for task in ("classify", "causal-lm") for full in (True, False)
    }  # fmt: skip
    assert all(rates[task, True] < rates[task, False] for task in ("classify", "causal-lm"))
    assert settings().training["report_to"] == "none"


def test_completed_arguments_stay_as_they_are() -> None:
    once = settings(task="causal-lm").training
    assert arguments.complete(once, settings(task="causal-lm")) == once


def test_the_default_method_fits_what_is_trained() -> None:
    assert settings().method == "nbar" and settings(full=True).method == "sam"
    assert settings(method=" base ").method == "base"


def test_the_default_folder_names_model_data_method_and_seed() -> None:
    found = resolve({"model": "/x/gpt2/", "data": "/y/train.v2.csv", "method": "sam:rho=0.1", "seed": 3})
    assert found.out == "results/finetune/gpt2-train.v2-sam_rho_0.1-seed3"
    assert resolve({"model": "org/mini/model", "data": "hf:a/b:c"}).out == "results/finetune/mini-a_b_c-nbar"


def test_arguments_have_the_names_of_compare_too() -> None:
    words = "--epochs 2 --lr 1e-3 --batch-size 4 --lr-schedule cosine --warmup 0.1".split()
    found = arguments.flags(words, ())
    assert found == arguments.pairs([f"{w[2:]}={v}" for w, v in zip(words[::2], words[1::2], strict=True)])
    taken = arguments.complete(found, settings())
    assert (taken["num_train_epochs"], taken["learning_rate"], taken["per_device_train_batch_size"]) == (2.0, 1e-3, 4)
    assert (taken["lr_scheduler_type"], taken["warmup_steps"]) == ("cosine", 0.1)


def test_one_argument_under_both_names_is_refused() -> None:
    with pytest.raises(ValueError, match="learning_rate is given twice; give it once"):
        arguments.flags("--lr 1 --learning-rate 2".split(), ())
