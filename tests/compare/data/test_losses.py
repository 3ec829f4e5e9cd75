"""Losses by name, one for each example; shapes are never broadcast by accident."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from steppe.compare.data.losses import LOSSES, check_loss, each_of, mean_of

OUTPUT, TARGET = torch.randn(6, 4, 3, dtype=torch.float64), torch.randn(6, 4, 3, dtype=torch.float64)


@pytest.mark.parametrize(("name", "by_torch"), [("mse", F.mse_loss), ("mae", F.l1_loss), ("huber", F.huber_loss)])
def test_numbers(name, by_torch):
    each = each_of(name, OUTPUT, TARGET)
    assert torch.allclose(each, torch.stack([by_torch(o, t) for o, t in zip(OUTPUT, TARGET, strict=True)]))
    assert torch.allclose(mean_of(name, OUTPUT, TARGET), by_torch(OUTPUT, TARGET))


def test_a_sequence_of_labels_is_one_example():
    scores, labels = torch.randn(5, 7, 11, dtype=torch.float64), torch.randint(11, (5, 7))
    wanted = torch.stack([F.cross_entropy(s, y) for s, y in zip(scores, labels, strict=True)])
    assert torch.allclose(each_of("cross_entropy", scores, labels), wanted)
    assert torch.allclose(mean_of("cross_entropy", scores, labels), wanted.mean())


def test_the_mean_of_labels_is_torchs_bit_for_bit():
    scores, labels = torch.randn(33, 10), torch.randint(10, (33,))
    assert torch.equal(mean_of("cross_entropy", scores, labels), F.cross_entropy(scores, labels))


def test_one_number_for_each_example_in_whatever_shape():
    assert torch.equal(each_of("mse", torch.ones(5, 1), torch.zeros(5)), torch.ones(5))
    with pytest.raises(ValueError, match=r"output has shape \(5, 2\) and the target \(5,\)"):
        each_of("mse", torch.ones(5, 2), torch.zeros(5))


def test_a_function_of_your_own():
    assert float(mean_of(lambda o, t: (o - t).abs().mean(), torch.ones(4), torch.zeros(4))) == 1.0
    assert each_of(lambda o, t: (o - t) ** 2, OUTPUT, TARGET).shape == (6,)


def test_an_unknown_one_is_refused():
    with pytest.raises(ValueError, match="did you mean 'mse'"):
        check_loss("mso")
    for name in LOSSES:
        check_loss(name)
