import warnings

import pytest
from tests.evaluate import tiny


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return tiny.gpt2(tmp_path_factory.mktemp("models") / "tiny-gpt2")


@pytest.fixture(scope="session")
def lora(tmp_path_factory, base):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tiny.adapter(tmp_path_factory.mktemp("models") / "lora", base)


@pytest.fixture(scope="session")
def questions(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("data") / "animals.jsonl", tiny.rows(40, seed=2))
