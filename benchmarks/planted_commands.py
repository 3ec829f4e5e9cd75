"""Bugs of the commands to plant."""

from __future__ import annotations

from mutant import Mutant

RUN, COST, STUDY = (f"tests/compare/engine/test_{name}.py" for name in ("run", "cost", "study"))
SUMMARY, EXAMPLES = "tests/compare/analysis/test_summary.py", "tests/compare/data/test_examples.py"
PLAN, SEARCH, NUMBERS = (f"tests/compare/engine/test_{name}.py" for name in ("plan", "search", "numbers"))
LENGTHS = "tests/compare/test_own_lengths.py"
SIGNALS, STATISTICS = "tests/compare/data/test_signals.py", "tests/_command/test_statistics.py"
RESUME, DATA = "tests/finetune/test_resume.py", "tests/finetune/test_data.py -k decides_which or share_of_the_training"
STOPPED = f"{RUN} -k early_stopping"

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
        "the streams of random numbers follow from the sum of their words alone", "(seed * 1_000_003 + word + 1)",
        "(seed + word + 1)", f"{EXAMPLES} -k words_in_their_order",
    ),
    Mutant(
        "an owner's validation part is taken whole where less was asked for",
        "whole = wanted == len(source.val)", "whole = True", f"{EXAMPLES} -k owners_validation",
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
        "forward(trainer, block * max(0, length - BLOCK) // max(1, blocks - 1))", "forward(trainer, 0)",
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
        "perplexity is a power of two", "math.exp(min(loss, 700.0))", "2 ** min(loss, 700.0)",
        "tests/finetune/test_run.py -k language_models_packed",
    ),
    Mutant(
        "resume accepts another training of the adapter", "for each in (self.model, self.adapter) if each is not None",
        "for each in (self.model,)", "tests/finetune/test_adapters.py -k when_a_run_goes_on",
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
    Mutant(
        "the test examples that were cut are counted as the training's",
        "for lengths in (whole, test_whole))", "for lengths in (whole, whole))",
        "tests/finetune/test_commands.py -k cut",
    ),
]  # fmt: skip

FIGURES = [
    Mutant(
        "the signals that judge are those that choose", "for seed in (2020, 2024)]", "for seed in (2020, 2020)]",
        f"{SIGNALS} -k chooses_and_judges",
    ),
    Mutant(
        "the signals' noise is twice as large", "0.4, 0.25, 2, 0.02, 0.75", "0.4, 0.25, 2, 0.04, 0.75",
        f"{SIGNALS} -k one_at_a_time",
    ),
    Mutant(
        "signals are moved the other way", "(np.arange(signals.shape[1]) - by)", "(np.arange(signals.shape[1]) + by)",
        f"{SIGNALS} -k one_at_a_time",
    ),
    Mutant(
        "the study's times on a CPU are the wall clock's",
        'return spec.device == "cpu" and ranks() == 1', "return False", f"{COST} -k busy_cpu",
    ),
    Mutant(
        "the processor times of several ranks are compared",
        'return spec.device == "cpu" and ranks() == 1', 'return spec.device == "cpu"', f"{COST} -k busy_cpu",
    ),
    Mutant(
        "the ratio of steps is the wall clock's beside processor times",
        "return self.busy if self.processor else self.ratios", "return self.ratios", f"{COST} -k busy_cpu",
    ),
    Mutant(
        "the milliseconds of a step are the wall clock's beside processor ratios",
        "own[1 if self.processor else 0]", "own[0]", f"{COST} -k busy_cpu",
    ),
    Mutant(
        "a step that was never seen has the time of the other kind",
        "known = max(unseen, default=0.0) <= RARE", "known = True", f"{COST} -k never_seen",
    ),
    Mutant(
        "LAWA takes the weights once more", "[:LATEST]", "[: LATEST + 1]", f"{NUMBERS} -k lawa",
    ),
    Mutant(
        "LAWA takes the weights of a short training an epoch apart",
        "max(1, min(per_epoch, steps // (2 * LATEST)))", "max(1, per_epoch)", f"{NUMBERS} -k lawa",
    ),
    Mutant(
        "the exponential average reaches back over a twentieth", "1 - SHARES / steps", "1 - 2 * SHARES / steps",
        f"{NUMBERS} -k exponential_average",
    ),
    Mutant(
        "the exponential average rounds whole numbers down",
        "if averaged[0].is_floating_point() or averaged[0].is_complex():", "if True:", f"{NUMBERS} -k averages_leave",
    ),
    Mutant(
        "the mean of the latest weights takes masks for numbers",
        "count) if averaged.is_floating_point() else latest", "count)", f"{NUMBERS} -k averages_leave",
    ),
    Mutant(
        "the mean of a script's latest weights weighs its first for nothing",
        "share = 1 / (1 + sum(", "share = 1 / max(1, sum(", "tests/compare/script/test_runs.py -k averages_of_the",
    ),
    Mutant(
        "averaged weights of either kind are judged by the exponential average",
        "record.get(FORMS[choice.average])", 'record.get("averaged")', f"{SEARCH} -k averaged_weights_of",
    ),
    Mutant(
        "Fieller's bounds take t for its square", "_t_quantile(len(whole)) ** 2", "_t_quantile(len(whole))",
        f"{STATISTICS} -k share",
    ),
    Mutant(
        "Fieller's bounds forget that the seeds are paired", "a * b - t2 * s_ab", "a * b", f"{STATISTICS} -k share",
    ),
    Mutant(
        "the bounds of a kept share stand in reverse", '("share", "low", "high"), found',
        '("share", "high", "low"), found',
        f"{SUMMARY} -k paired_by_seed",
    ),
    Mutant(
        "Holm's correction begins with the mildest level", "/ (len(ordered) - place)", "/ (place + 1)",
        f"{STATISTICS} -k holm",
    ),
    Mutant(
        "Holm's correction goes on after a p-value too large",
        "            break\n        clear.add(name)", "            continue\n        clear.add(name)",
        f"{STATISTICS} -k holm",
    ),
    Mutant(
        "a clear loss is a clear gain", '(1 if gain["mean"] > 0 else -1) if name in sure', "1 if name in sure",
        f"{SUMMARY} -k worse_methods",
    ),
    Mutant(
        "of a run that is there twice the older one counts",
        'str(r.get("run_id"))))', 'str(r.get("run_id"))), reverse=True)',
        "tests/compare/analysis/test_groups.py -k there_twice",
    ),
    Mutant(
        "the cheaper method beside the best need not gain clearly",
        'if row["gain"]["clear"] == 1 and row["gain"]["mean"] >= gain]', 'if row["gain"]["mean"] >= gain]',
        "tests/compare/analysis/test_verdict.py",
    ),
    Mutant(
        "of equal baselines the one with most training is named",
        "return max(found, key=mean)", "return max(reversed(list(found)), key=mean)", f"{SUMMARY} -k baseline",
    ),
    Mutant(
        "the base of equal cost lies on a straight line between its lengths",
        "math.log2(min(max(cost, 1.0), 2.0))", "min(max(cost, 1.0), 2.0) - 1",
        "tests/compare/analysis/test_equal.py -k between_its_lengths",
    ),
    Mutant(
        "a method with too few seeds to tell is said to be below",
        'above = any(row["gain"]["mean"] > 0 for row in rows)', "above = False", f"{SUMMARY} -k said_to_be_below",
    ),
    Mutant(
        "a difference to the base is in per cent of the best baseline",
        "self._baselines.get(to or self._best)", "self._baselines.get(self._best)",
        "tests/compare/analysis/test_direction.py -k per_cent_of_the_base",
    ),
    Mutant(
        "a handful of rare examples confirms that nothing was learned", "others >= MANY", "others >= 4",
        "tests/compare/analysis/test_lost.py -k confirm_nothing",
    ),
    Mutant(
        "figures below 1e-9 choose nothing", 'float(f"{mean:.9g}")', "round(mean, 9)", f"{SEARCH} -k small_figure",
    ),
    Mutant(
        "a tuning run without a figure has an error of zero",
        "mean = math.nan if None in values else sum(", "mean = sum(", f"{PLAN} -k without_a_figure",
    ),
    Mutant(
        "targets that are not finite are trained on", "pytree.tree_leaves((self.x, self.y))",
        "pytree.tree_leaves(self.x)", f"{EXAMPLES} -k not_finite",
    ),
    Mutant(
        "of equal radii the largest is chosen", "-(run.value or 0.0), -(run.lr or 0.0)",
        "(run.value or 0.0), -(run.lr or 0.0)", f"{PLAN} -k ties_go",
    ),
    Mutant(
        "a grid grows where several are equally good",
        "alone = sum(value >= rank[best] for value in rank.values()) == 1", "alone = True",
        f"{SEARCH} -k tie_at_the_edge",
    ),
    Mutant(
        "momentum is not in the study's hash", '"shard", "on", "log",\n}', '"shard", "on", "log", "momentum",\n}',
        f"{PLAN} -k in_the_hash",
    ),
    Mutant(
        "settings that came later never count in the hash",
        "{name for name in _LATER if getattr(self, name) == type(self).model_fields[name].default}", "_LATER",
        f"{PLAN} -k in_the_hash",
    ),
    Mutant(
        "a run's id does not have the further settings", "([self.more] if self.more else []) + (", "(",
        f"{PLAN} -k ids_are_file_names",
    ),
    Mutant(
        "a run's id does not have its epochs", '[{"epochs": self.epochs}]', "[]", f"{LENGTHS} -k ids_without",
    ),
    Mutant(
        "a run trains the epochs of the settings and not its own", "spec.steps(per_epoch, self.epochs)",
        "spec.steps(per_epoch)", f"{LENGTHS} -k trains_its_own_length",
    ),
    Mutant(
        "of equal lengths the longest is chosen", "return -(run.epochs or 0), ", "return (run.epochs or 0), ",
        f"{LENGTHS} -k own_rates",
    ),
    Mutant(
        "series are scaled by what comes later", "known = series[:train]", "known = series",
        "tests/compare/data/test_forecasts.py -k test_part_changes_nothing",
    ),
    Mutant(
        "windows that choose reach into the training part",
        "(0, ends[0] - wanted.lookback,", "(0, ends[0] - wanted.lookback - wanted.horizon,",
        "tests/compare/data/test_forecasts.py -k by_hand",
    ),
    Mutant(
        "a table's columns are scaled by all rows", "known = column[train]", "known = column",
        "tests/compare/data/test_tables.py -k change_nothing_else",
    ),
    Mutant(
        "counts of n-grams are those of the test part", "Counts(train.series)", "Counts(test.series)",
        "tests/compare/data/test_language.py -k test_part_changes_nothing",
    ),
    Mutant(
        "parts below classes are thrown together", '"train" in below and', "False and",
        "tests/compare/data/test_readers.py -k below_classes",
    ),
]  # fmt: skip
