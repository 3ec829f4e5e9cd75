"""One fine-tuning, from its settings to its result.

Started by torchrun, every process goes through all of it; rank 0 alone writes.
"""

from __future__ import annotations

import math
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from steppe._command import ranks, trackers
from steppe._command.locks import refuse_taken
from steppe._command.provenance import finished
from steppe._command.saved import trained_in
from steppe.finetune import data, measure, method
from steppe.finetune.data import Examples, Tokens
from steppe.finetune.folder import CHECKPOINTS, Folder, writing
from steppe.finetune.resume import check_same, check_split, last_checkpoint, split_among
from steppe.finetune.spec import Spec
from steppe.finetune.watch import Noting, Patience, Quiet, Watch, warning, why_diverged
from steppe.text.adapters import with_adapter
from steppe.text.models import causal, classifier, quiet
from steppe.text.tokens import Collator


@dataclass(frozen=True)
class Prepared:
    """A fine-tuning of which all has been checked and nothing been written.

    Attributes:
        settings: complete. found: the examples. tokens: what the Trainer gets of them.
        model: as training begins. tokenizer: its own. arguments: the Trainer's ``TrainingArguments``.
        pairs: of factors that the method acts on; None for those that are not about LoRA. folder: to write to.
        fresh: False: resume there. overwrite: an earlier run there may go.
    """

    settings: Spec
    found: Examples
    tokens: Tokens
    model: Any
    tokenizer: Any
    arguments: Any
    pairs: int | None
    folder: Folder
    fresh: bool
    overwrite: bool


def finetune(
    settings: Spec, *, resume: bool = False, overwrite: bool = False, shown: Quiet | None = None
) -> dict[str, Any]:
    """Fine-tune, write the folder ``settings.out``, and give the result that stands in its ``result.json``.

    Args:
        settings: from :func:`steppe.finetune.spec.resolve`.
        resume: go on from the last checkpoint there (anew before the first); the weights become what they would have
            become without the break.
        overwrite: an earlier run there may go.
        shown: the progress; none by default.

    Raises:
        ValueError: one sentence about what does not fit; nothing has been written then.
        steppe._command.files.DiskError: something could not be written.
    """
    return train(prepare(settings, resume=resume, overwrite=overwrite), shown or Quiet())


def prepare(settings: Spec, *, resume: bool = False, overwrite: bool = False) -> Prepared:
    """Read data and model and check that all fits; nothing is written."""
    folder = Folder(settings.out)
    refuse_taken(folder.path)
    if not resume:
        folder.check_fresh(overwrite)
    found = data.examples(settings)
    if resume:
        check_same(folder, settings)
    model, tokenizer = _model(settings, found)
    _check_finite(model, settings)
    tokens = data.tokens(settings, found, model, tokenizer)
    built = method.rehearse(settings.method, model, settings.training)
    pairs = len(measure.balancedness(model)) if method.on_factors(settings.method) else None
    arguments = _arguments(settings, folder)
    method.fit_processes(settings.method, built, arguments)
    if resume:
        check_split(folder, arguments)
    ready = Prepared(settings, found, tokens, model, tokenizer, arguments, pairs, folder, not resume, overwrite)
    _rehearse(ready)
    return ready


def _rehearse(ready: Prepared) -> None:
    """Build the Trainer and its optimizer once, in a folder that goes: what they lack is refused before they matter."""
    arguments, place = ready.arguments, ready.arguments.output_dir
    with tempfile.TemporaryDirectory() as passing:
        arguments.output_dir = passing
        try:
            make_trainer(ready, Watch(Quiet())).create_optimizer()
        except torch.OutOfMemoryError:
            raise
        except (ValueError, ImportError, RuntimeError) as error:
            raise ValueError(f"the Trainer refuses its arguments: {' '.join(str(error).split())}") from error
        finally:
            arguments.output_dir = place


def _model(settings: Spec, found: Examples) -> tuple[Any, Any]:
    lora = None if settings.adapter else settings.lora
    if settings.language:
        made = causal(settings.model, lora, settings.seed, frozen=settings.adapter is not None)
    else:
        made = classifier(settings.model, found.names, lora, settings.seed)
    if not settings.adapter:
        return made
    adapter = trained_in(settings.adapter)
    return with_adapter(made[0], adapter, classify=not settings.language), made[1]


def _check_finite(model: Any, settings: Spec) -> None:
    """Refuse a checkpoint that has been spoilt before."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            where = settings.adapter if settings.adapter and "lora_" in name else settings.model
            raise ValueError(
                f"{where} holds values that are not finite, the first in {name}: training could only spread them; give "
                "a checkpoint from before"
            )


def _arguments(settings: Spec, folder: Folder) -> Any:
    from transformers import TrainingArguments

    pinned = {"dataloader_pin_memory": torch.cuda.is_available()}  # or torch warns at every loader
    trackers.offline(settings.training.get("report_to", "none"), folder.path)

    try:
        made = TrainingArguments(
            output_dir=str(folder.path / CHECKPOINTS), seed=settings.seed, disable_tqdm=True,
            remove_unused_columns=False, **pinned | settings.training,
        )  # fmt: skip
        _ = made.device  # here the processes meet
    except (ValueError, ImportError, TypeError) as error:
        raise ValueError(f"the Trainer refuses its arguments: {' '.join(str(error).split())}") from error
    ranks.leave_at_exit()
    return made


def train(ready: Prepared, shown: Quiet) -> dict[str, Any]:
    """Train what :func:`prepare` gave, save it, write the result; nobody else writes to the folder meanwhile.

    Raises:
        steppe._command.files.DiskError: something could not be written.
        ValueError: another process writes there, or has begun a run since.
    """
    shown = shown if ranks.first() else Quiet()
    with ExitStack() as stack:
        ranks.once(lambda: stack.enter_context(ready.folder.alone(shown.say)))
        ranks.once(partial(_check_again, ready))
        return _train(ready, shown)


def _check_again(ready: Prepared) -> None:
    """What :func:`prepare` saw of the folder may be another process's by now."""
    if ready.fresh:
        ready.folder.check_fresh(ready.overwrite)
    else:
        check_same(ready.folder, ready.settings)


def _train(ready: Prepared, shown: Quiet) -> dict[str, Any]:
    start, folder, settings = time.perf_counter(), ready.folder, ready.settings
    checkpoint = None if ready.fresh else last_checkpoint(folder)
    if not ready.fresh and checkpoint is None:
        shown.say(f"the run in {folder.path} was interrupted before its first checkpoint: it begins anew")
    if checkpoint is None:
        files = {"data": settings.fingerprint(), "weights": settings.weights()}
        ranks.once(lambda: folder.begin(settings.decisive(), split_among(ready.arguments), **files))
    watch, begin = Watch(shown), measure.balancedness(ready.model)
    trainer = make_trainer(ready, watch)
    with shown, quiet(), writing(folder.path):
        trainer.train(resume_from_checkpoint=checkpoint)
    guessing = _LITTLE if settings.language else math.log(len(ready.found.names))
    seconds, lost = time.perf_counter() - start, why_diverged(trainer.model, watch.losses, guessing)
    if lost:
        shown.say(warning(lost))
    name, balance = "model" if settings.full else "adapter", measure.balancedness(ready.model)
    # Before it is measured, which may fail for want of memory, or cast the model (bf16_full_eval).
    saved = ranks.once(lambda: folder.save(name, partial(_save, trainer.model, ready.tokenizer)))
    with shown:
        metrics, answers = measure.metrics(trainer, ready.tokens.test, settings.language, shown.measured)
        validation = ready.tokens.validation and measure.metrics(trainer, ready.tokens.validation, settings.language)[0]
    result = {
        "schema": measure.SCHEMA, "kind": "finetune", "settings": settings.model_dump(), "metrics": metrics,
        **_of_classes(ready, metrics, answers),
        "validation": validation, "best": _best(trainer),
        "data": _data(ready), "model": _size(ready.model),
        "method": {
            "name": settings.method, "label": method.label(settings.method, settings.full), "pairs": ready.pairs,
            "balancedness": {"begin": begin, "end": balance} if begin else None,
        },
        "diverged": lost is not None, "why_diverged": lost,
        "steps": trainer.state.global_step, "resumed_at": watch.begun_at or None,
        "seconds": {"training": seconds, "step": watch.typical}, "memory": measure.memory(),
        "passes_per_step": watch.passes_per_step, "curve": watch.curve, "saved": str(saved),
        "finished": finished(),
        "provenance": measure.provenance(trainer.args.device),
    }  # fmt: skip
    ranks.once(lambda: folder.finish(result))
    return result


_LITTLE = 0.5
"""The loss of a language model that knows nothing, as it begins with much; of a classifier it is log(classes)."""


def _of_classes(ready: Prepared, metrics: dict[str, float], answers: list[int] | None) -> dict[str, Any]:
    """Each class by itself, and what always giving one answer comes to."""
    if answers is None:
        return {"per_class": None, "majority": None, "at_chance": None}
    train, test, names = ready.found.train.labels, ready.found.test.labels, ready.found.names
    guess = measure.majority(train, test, names)
    return {
        "per_class": measure.per_class(test, answers, names), "majority": guess,
        "at_chance": measure.at_chance(metrics["accuracy"], guess["accuracy"], len(test)),
    }  # fmt: skip


def _best(trainer: Any) -> dict[str, Any] | None:
    """The step whose checkpoint was taken for the best on the validation examples, and by which figure."""
    if not trainer.args.load_best_model_at_end or trainer.state.best_global_step is None:
        return None
    figure = trainer.args.metric_for_best_model.removeprefix("eval_")
    return {"step": trainer.state.best_global_step, "metric": figure, "value": trainer.state.best_metric}


def make_trainer(ready: Prepared, watch: Watch) -> Any:
    """The Hugging Face Trainer, with the method's gradient unless it is the base's."""
    from transformers import DataCollatorWithPadding, PrinterCallback, Trainer

    from steppe.integrations.transformers import SharpTrainer

    settings, own = ready.settings, method.optimizer_of(ready.settings.method, ready.model, ready.settings.training)
    sharp = method.factory(settings.method, settings.seed, measure=bool(ready.arguments.report_to))
    collator: Any = DataCollatorWithPadding(ready.tokenizer)
    if settings.language:
        flash = "flash" in str(ready.model.config._attn_implementation)
        collator = Collator(ready.tokenizer.pad_token_id, mask=not flash, dtype=ready.model.dtype)
    patience = [] if settings.patience is None else [Patience(settings.patience)]
    kind: Any = Trainer if sharp is None else SharpTrainer
    made: Any = type(kind.__name__, (Noting, measure.Looking, kind), {})(
        model=ready.model, args=ready.arguments, train_dataset=ready.tokens.train, eval_dataset=ready.tokens.validation,
        data_collator=collator, callbacks=[watch, *patience], optimizers=(own, None),
        compute_metrics=None if settings.language else measure.answered, **({} if sharp is None else {"sharp": sharp}),
    )  # fmt: skip
    made.remove_callback(PrinterCallback)
    watch.taken = made.taken
    if sharp is not None:
        watch.counted = lambda: made.passes
    return made


def _save(model: Any, tokenizer: Any, place: str) -> None:
    with quiet():
        model.save_pretrained(place)
    tokenizer.save_pretrained(place)


def _data(ready: Prepared) -> dict[str, Any]:
    return {
        "train": len(ready.found.train), "test": len(ready.found.test),
        "validation": len(ready.found.validation) if ready.found.validation else None, "held_out": ready.found.held_out,
        "classes": list(ready.found.names), "max_length": ready.tokens.length, "cut": ready.tokens.cut,
        "test_cut": ready.tokens.test_cut,
        "blocks": len(ready.tokens.train) if ready.settings.packing else None, "notes": list(ready.tokens.notes),
    }  # fmt: skip


def _size(model: Any) -> dict[str, int]:
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "trained": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
    }
