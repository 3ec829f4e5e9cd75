import pytest
import torch
from tests.study import tiny

from steppe.study import models


@pytest.mark.parametrize("name", list(models.MODELS))
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28)])
def test_every_model_takes_every_image_size(name, shape):
    model = models.MODELS[name](shape, 7)
    assert model(torch.randn(2, *shape)).shape == (2, 7)


def test_the_cnn_has_150_thousand_weights():
    assert 140_000 < sum(weight.numel() for weight in models.cnn((1, 8, 8), 10).parameters()) < 160_000


def test_resnet18_is_resnet18():
    assert sum(weight.numel() for weight in models.resnet18((3, 32, 32), 10).parameters()) == 11_173_962


def test_small_images_are_refused_by_convolutions():
    with pytest.raises(ValueError, match="at least 8x8"):
        models.cnn((1, 4, 4), 10)


def test_a_model_of_your_own():
    assert isinstance(models.build("tests.study.tiny:wordy_model", tiny.wordy(0)), tiny.WordyModel)
