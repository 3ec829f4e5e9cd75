"""Bugs to plant: a text of the source, what stands there instead, and the tests that must notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """One bug.

    Args:
        name: what is wrong.
        old: text that stands exactly once in ``src/steppe``; where, is found.
        new: what takes its place.
        tests: a file of tests and, behind ``-k``, words of the names of those that must notice; none: all of it.
    """

    name: str
    old: str
    new: str
    tests: str

    @property
    def file(self) -> str:
        """The file of tests."""
        return self.tests.partition(" -k ")[0]

    @property
    def words(self) -> str:
        """What picks the tests there: all of the file where nothing is said."""
        return self.tests.partition(" -k ")[2] or Path(self.file).stem


RUN, COST, STUDY = (f"tests/compare/engine/test_{name}.py" for name in ("run", "cost", "study"))
SUMMARY, EXAMPLES = "tests/compare/analysis/test_summary.py", "tests/compare/data/test_examples.py"
PLAN = "tests/compare/engine/test_plan.py"
RESUME, DATA = "tests/finetune/test_resume.py", "tests/finetune/test_data.py -k decides_which or share_of_the_training"
LEFT = """            yield
        finally:
            self.looking = False
"""  # at the end of a pass without a trace
STOPPED = f"{RUN} -k early_stopping"


def raising(there: str) -> str:
    """The same, where a pass that raises has ``there`` put back in place of what was noted at its start."""
    broken = f"        except BaseException:\n            before = ({there})\n            raise\n"
    return LEFT.replace("        finally:\n", f"{broken}        finally:\n")


COMPARE = [
    Mutant(
        "early stopping chooses its epoch by the test accuracy",
        '{"epoch": self.epoch[self.best],', '{"epoch": self.epoch[self.test.index(max(self.test))],', STOPPED,
    ),
    Mutant(
        "early stopping keeps the weights of the best test accuracy",
        "if not self.val or self.judge.better(val, self.val[self.best]):",
        "if not self.val or self.judge.better(self._judged(model, self.seen), self.test[self.best]):", STOPPED,
    ),
    Mutant(
        "early stopping takes the latest of equal epochs",
        "if not self.val or self.judge.better(val, self.val[self.best]):",
        "if not self.val or not self.judge.better(self.val[self.best], val):", STOPPED,
    ),
    Mutant(
        "the weights of the best epoch are never loaded again",
        "        model.load_state_dict(self.weights, strict=False)\n", "", STOPPED,
    ),
    Mutant(
        "a gain is counted upward where lower is better",
        "return 1 if self.higher else -1", "return 1", "tests/compare/analysis/test_direction.py",
    ),
    Mutant(
        "label noise does not follow the seed",
        "generator(_NOISE_SEED, seed)", "generator(_NOISE_SEED, 0)", f"{EXAMPLES} -k wrong_follows_the_seed",
    ),
    Mutant(
        "the order of batches does not follow the seed",
        "rng = generator(_ORDER_SEED, seed)", "rng = generator(_ORDER_SEED, 0)", f"{RUN} -k order_of_batches",
    ),
    Mutant(
        "the longer base stopped early is not compared",
        '"double_early": _double_early(groups, against),', '"double_early": None,', f"{SUMMARY} -k longer_base_stopped",
    ),
    Mutant(
        "the share of SAM's gain pairs the seeds in reverse",
        "found = share(part, whole) if", "found = share(part, whole[::-1]) if", f"{SUMMARY} -k paired_by_seed",
    ),
    Mutant(
        "a kept cost counts whatever it was measured of",
        'kept if isinstance(kept, dict) and kept.get("key") == session.cost_key() else None',
        "kept if isinstance(kept, dict) else None", f"{STUDY} -k kept_cost",
    ),
    Mutant(
        "the counted passes are not written into the cost",
        'measured["methods"].get(method, {})["passes"] = passes', "pass", f"{STUDY} -k passes_of_the_cost",
    ),
    Mutant(
        "every block of turns starts at step 0",
        "forward(trainer, block * max(0, steps - BLOCK) // max(1, blocks - 1))", "forward(trainer, 0)",
        f"{COST} -k blocks_are_spread",
    ),
    Mutant(
        "warm-up turns are counted",
        "take_turn(spec.device, clocks, next(stream), keep=False)",
        "take_turn(spec.device, clocks, next(stream))", f"{COST} -k blocks_are_spread",
    ),
    Mutant(
        "label noise is not in the study's hash",
        "decisive = self.model_dump(exclude=_NOT_IN_RESULT | plain)",
        'decisive = self.model_dump(exclude=_NOT_IN_RESULT | plain | {"noise"})', f"{PLAN} -k decides_the_examples",
    ),
    Mutant(
        "a run's id does not have its learning rate",
        "chosen: list[Any] = [] if self.lr is None else [self.lr]", "chosen: list[Any] = []",
        f"{PLAN} -k ids_are_file_names",
    ),
]  # fmt: skip

FINETUNE = [
    Mutant(
        "which examples are held out and learned from does not follow the seed",
        "torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()",
        "torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()", DATA,
    ),
    Mutant(
        "the cut of the training examples does not follow the seed",
        "order = _order(len(train), settings.seed)", "order = _order(len(train), 0)", DATA,
    ),
    Mutant(
        "the loss per token is a mean over batches",
        "total, count = total + float(model(**batch).loss) * tokens, count + tokens",
        "total, count = total + float(model(**batch).loss), count + 1",
        "tests/finetune/test_run.py -k per_token_of_the_responses",
    ),
    Mutant(
        "--overwrite keeps the old result",
        'self._aside(RESULT, CHECKPOINTS, "adapter", "model")', 'self._aside(CHECKPOINTS, "adapter", "model")',
        f"{RESUME} -k begun_anew",
    ),
    Mutant(
        "resume accepts changed data",
        'if begun.get("data") != settings.fingerprint():', "if False:",
        "tests/finetune/test_bad_inputs.py -k other_settings_or_other_data",
    ),
    Mutant(
        "resume accepts another learning rate of the Trainer's",
        '"logging_strategy", "logging_first_step",', '"logging_strategy", "logging_first_step", "learning_rate",',
        f"{RESUME} -k another_learning_rate",
    ),
    Mutant(
        "resume accepts another learning rate in the method's text",
        "    _refuse_change(folder, before, now)\n", "", f"{RESUME} -k another_learning_rate",
    ),
]  # fmt: skip

HEART = [
    Mutant(
        "WSAM's correction takes the learning rate of the first group",
        'parameters.group_of(entry)["lr"]', 'parameters.optimizer.param_groups[0]["lr"]',
        "tests/test_combine.py -k wsam_by_hand",
    ),
    Mutant(
        "the correction of a second backward overwrites the first's",
        "tensor if earlier is None else earlier.add_(tensor)", "tensor", "tests/test_combine.py -k wsam_by_hand",
    ),
    Mutant(
        "perturbed() leaves what its direction remembers",
        "self.climb.up(grads, {}, scale, None, Draft())", "self.climb.up(grads, {}, scale, None, self.draft)",
        "tests/test_perturbation.py -k perturbed_leaves_nothing",
    ),
    Mutant(
        "perturbed() leaves buffers moved when it raises",
        LEFT, raising("before[0], self.watch.start(), before[2]"),
        "tests/test_perturbation.py -k brings_every_buffer_back",
    ),
    Mutant(
        "a look that raises leaves statistics moved",
        LEFT, raising("before[0], self.watch.start(), before[2]"), "tests/test_perturbation.py -k look_that_raises",
    ),
    Mutant(
        "a look that raises leaves the generators moved",
        LEFT, raising("self.draws(), *before[1:]"), "tests/test_perturbation.py -k look_that_raises",
    ),
    Mutant(
        "a kept average drops parameters without a gradient",
        '{"average": old | fresh}', '{"average": fresh}', "tests/test_ahead_memory.py -k without_a_gradient_does",
    ),
    Mutant(
        "Flat-LoRA's noise does not depend on the layer",
        'f"flat_lora:{layer.name}"', '"flat_lora"', "tests/lora/test_flat.py -k noise_of_its_own",
    ),
    Mutant(
        "ESAM draws the same weights at every step",
        "thin_(eps.values(), now.ascent.beta, now.seed, now.step)",
        "thin_(eps.values(), now.ascent.beta, now.seed, 0)", "tests/test_thin.py -k subset_of_its_own",
    ),
]  # fmt: skip

LOOPS = [
    Mutant(
        "gradients of earlier micro-batches are summed over the ranks, not averaged",
        "    flat /= dist.get_world_size(group)\n", "", "tests/loops/test_ddp.py -k accumulation",
    ),
    Mutant(
        "weights stay moved after an error in the only pass of a method",
        "        self._saved.back()\n", "        if not broken:\n            self._saved.back()\n",
        "tests/methods/test_contract.py -k exact_after_an_error",
    ),
    Mutant(
        "a checkpoint that was not written to its end is resumed from",
        "isdigit() and _is_whole(p)]", "isdigit()]", f"{RESUME} -k while_it_writes",
    ),
]  # fmt: skip

MUTANTS = COMPARE + FINETUNE + HEART + LOOPS
