import json

import pytest
import torch
from tests.compare import tiny

from steppe._command import networks, saved
from steppe.compare.data import models, tasks, transformer
from steppe.compare.engine.spec import Spec, resolve


@pytest.mark.parametrize("name", list(networks.MODELS))
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28)])
def test_every_model_takes_every_image_size(name, shape):
    model = networks.MODELS[name](shape, 7)
    assert model(torch.randn(2, *shape)).shape == (2, 7)


def test_the_cnn_has_150_thousand_weights():
    assert 140_000 < sum(weight.numel() for weight in networks.cnn((1, 8, 8), 10).parameters()) < 160_000


def test_resnet18_is_resnet18():
    assert sum(weight.numel() for weight in networks.resnet18((3, 32, 32), 10).parameters()) == 11_173_962


def test_small_images_are_refused_by_convolutions():
    with pytest.raises(ValueError, match="at least 8x8"):
        networks.cnn((1, 4, 4), 10)


def test_a_model_of_your_own():
    assert isinstance(models.build("tests.compare.tiny:wordy_model", tiny.wordy(0)), tiny.WordyModel)


def test_an_edited_model_is_another_study_s(tmp_path, monkeypatch):
    """Its runs are not taken for those of the model that was there before."""
    code = "from torch import nn\n\ndef net(shape, n):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, n))\n"
    (tmp_path / "edited_net.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = resolve({"model": "edited_net:net"}).hash()
    assert before == resolve({"model": "edited_net:net"}).hash()
    (tmp_path / "edited_net.py").write_text(code.replace("nn.Flatten()", "nn.Flatten(), nn.Identity()"))
    assert before != resolve({"model": "edited_net:net"}).hash()


def test_a_pretrained_model_s_files_are_part_of_the_study(tmp_path):
    assert tasks.model_fingerprint("cnn") is None and tasks.model_fingerprint("hf:owner/model") is None
    (tmp_path / "config.json").write_text('{"hidden": 1}')
    before = tasks.model_fingerprint(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text('{"hidden": 2}')
    assert before and before != tasks.model_fingerprint(f"hf:{tmp_path}")
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    assert len({before, tasks.model_fingerprint(f"hf:{tmp_path}")}) == 2


def test_another_training_of_a_pretrained_model_is_another_study(tmp_path, monkeypatch):
    """The names and sizes of its files are the same, and their numbers others; of large files pieces are read."""
    monkeypatch.setattr(saved, "_PIECE", 16)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    seen = set()
    for size, byte in ((10, b"1"), (10, b"2"), (5000, b"1"), (5000, b"2")):
        (tmp_path / "model.safetensors").write_bytes(size * byte)
        seen |= {transformer.fingerprint(f"hf:{tmp_path}"), transformer.fingerprint(f"hf:{tmp_path / 'adapter'}")}
    assert len(seen) == 4
    assert transformer.fingerprint("hf:owner/model") == transformer.fingerprint("cnn") == ""
    spec = Spec(task="text:x", model=f"hf:{tmp_path}")
    monkeypatch.setattr(tasks, "fingerprint", lambda task: "")
    before = spec.hash()
    (tmp_path / "model.safetensors").write_bytes(5000 * b"3")
    assert spec.hash() != before
