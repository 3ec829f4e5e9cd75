import pytest
import torch

from steppe.compare.data import tasks
from steppe.compare.data.examples import (
    Amounts,
    Source,
    Split,
    Task,
    choose,
    generator,
    hold_out_test,
    stratified,
    with_noise,
)


def _numbered(count: int, classes: int = 4) -> Split:
    """Images whose only pixels are their own number."""
    x = torch.arange(count).float().reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    return Split(x, torch.arange(count) % classes)


def test_stratified_takes_exactly_the_count_and_every_class_in_its_share():
    y = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    taken, rest = stratified(y, 33, generator(1))
    assert len(taken) == 33 and len(rest) == 67
    assert sorted(torch.cat([taken, rest]).tolist()) == list(range(100))
    assert torch.bincount(y[taken]).tolist() == [20, 10, 3]  # of 19.8, 9.9 and 3.3


def test_a_generator_is_of_its_words_in_their_order():
    assert len({generator(*words).initial_seed() for words in ((1, 2), (2, 1), (3, 0), (3,), (1, 1, 1))}) == 5


def test_stratified_refuses_more_than_there_is():
    with pytest.raises(ValueError, match="cannot take 5 of 4"):
        stratified(torch.zeros(4), 5, generator(1))


def test_noise_makes_exactly_the_share_wrong():
    y = torch.arange(1000) % 10
    noisy = with_noise(y, 0.4, 10, generator(3))
    assert int((noisy != y).sum()) == 400
    assert noisy.min() >= 0 and noisy.max() <= 9


def test_which_labels_are_wrong_follows_the_seed():
    """In training and validation; the test's labels are clean."""
    source = hold_out_test(_numbered(400), 4)
    wrong = []
    for seed in (0, 1, 0):
        clean, noisy = (choose(source, "made up", seed, Amounts(100, 100, share)) for share in (0.0, 0.3))
        wrong.append([(getattr(clean, part).y != getattr(noisy, part).y) for part in ("train", "val", "test")])
    assert all(int(part.sum()) == count for one in wrong for part, count in zip(one, (30, 30, 0), strict=True))
    for first, other, again in list(zip(*wrong, strict=True))[:2]:
        assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_test_set_is_the_same_for_all_seeds_and_never_trained_or_tuned_on():
    source = hold_out_test(_numbered(100), 4)
    raw = source.test.x[:, 0, 0, 0].tolist()
    for seed in range(5):
        task = choose(source, "made up", seed, Amounts(20, 30, 0.0))
        assert len(task.train) == 20 and len(task.val) == 30 and len(task.test) == 20
        numbers = [_original(task, part, source) for part in (task.train, task.val, task.test)]
        assert not numbers[0] & numbers[1] and not numbers[0] & set(raw) and not numbers[1] & set(raw)
        assert numbers[2] == set(raw)


def _original(task, part, source) -> set:
    """Numbers of the images of `part`, with the standardisation undone by way of the test set, which is known."""
    shown, true = task.test.x[:, 0, 0, 0], source.test.x[:, 0, 0, 0]
    scale = (true[1] - true[0]) / (shown[1] - shown[0])
    return set(((part.x[:, 0, 0, 0] - shown[0]) * scale + true[0]).round().tolist())


def test_a_seed_fixes_the_choice_and_seeds_differ():
    source = hold_out_test(_numbered(200), 4)
    one, again, other = (choose(source, "made up", seed, Amounts(20, 30, 0.3)) for seed in (1, 1, 2))
    assert torch.equal(one.train.x, again.train.x) and torch.equal(one.train.y, again.train.y)
    assert not torch.equal(one.train.x, other.train.x)


def test_noise_falls_on_validation_too_and_never_on_the_test():
    source = hold_out_test(_numbered(400), 4)
    clean, noisy = (choose(source, "made up", 0, Amounts(100, 100, noise)) for noise in (0.0, 0.4))
    assert torch.equal(clean.train.x, noisy.train.x)
    assert int((clean.train.y != noisy.train.y).sum()) == 40
    assert int((clean.val.y != noisy.val.y).sum()) == 40
    assert torch.equal(clean.test.y, noisy.test.y)


def test_an_owners_validation_set_is_used():
    val = _numbered(12)
    task = choose(Source(_numbered(100), _numbered(20), 4, val), "made up", 0, Amounts(None, None, 0.0))
    assert len(task.train) == 100 and len(task.val) == 12
    fewer = choose(Source(_numbered(100), _numbered(20), 4, val), "made up", 0, Amounts(None, 8, 0.0)).val
    assert torch.bincount(fewer.y).tolist() == [2, 2, 2, 2]


def test_too_many_labels_are_refused_with_what_to_lower():
    with pytest.raises(ValueError, match="lower --labelled or --validation"):
        choose(hold_out_test(_numbered(100), 4), "made up", 0, Amounts(70, 30, 0.0))


def test_another_metric_judges_and_the_others_stay_behind_it():
    part = Split(torch.zeros(2, 1), torch.tensor([0, 1]))
    task = Task("mine", part, part, part, 2)
    for judge, metrics in ((None, "accuracy nll"), ("nll", "nll accuracy"), ("f1", "f1 accuracy nll")):
        assert [metric.name for metric in task.judged_by(judge).measured] == metrics.split()


def test_an_input_or_a_target_that_is_not_finite_is_unsound():
    x, y = torch.tensor([[0.0, torch.inf], [0.0, 0.0], [0.0, 0.0]]), torch.tensor([0.0, torch.nan, 1.0])
    assert Split(x, y).unsound().tolist() == [True, True, False]


def test_notes_are_sentences():
    part = Split(torch.zeros(2, 1), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="notes='a tenth' was given; expected a list of sentences"):
        Task("mine", part, part, part, 2, notes="a tenth")


def test_inputs_are_standardised_by_the_training_images_alone():
    task = choose(hold_out_test(_numbered(400), 4), "made up", 0, Amounts(100, 100, 0.0))
    assert task.train.x.mean().abs() < 1e-5 and (task.train.x.std() - 1).abs() < 0.02
    assert task.val.x.mean().abs() > 1e-5


@pytest.mark.parametrize(("name", "sizes"), [("digits-few", (200, 800, 797)), ("digits-noisy", (1000, 300, 497))])
def test_the_built_in_tasks(name, sizes):
    recipe = tasks.recipe_of(name)
    task = tasks.load(tasks.DataOptions(name, recipe["labelled"], recipe["validation"], recipe["noise"]), 0)
    assert (len(task.train), len(task.val), len(task.test)) == sizes
    assert task.train.x.shape[1:] == (1, 8, 8) and task.classes == 10
