"""Code in a process that has torch imported and nothing else is as ``python -c`` runs it."""

from pathlib import Path

import pytest
from tests import bare


def test_every_code_begins_with_torch_alone_and_other_hashes(tmp_path: Path) -> None:
    code = (
        "import os, sys; print('steppe' in sys.modules, 'torch' in sys.modules, os.getcwd(), hash('x'))\nimport steppe"
    )
    first, second = bare.run(code, tmp_path), bare.run(code, tmp_path)
    assert first.stdout == second.stdout and first.stdout.startswith(f"False True {tmp_path} ")
    assert not first.stdout.endswith(f" {hash('x')}\n") and first.returncode == 0 and not first.stderr


@pytest.mark.parametrize(("error", "ended"), [("KeyError", 1), ("SystemExit(3)", 3), ("SystemExit", 0)])
def test_how_it_ends_is_told(error: str, ended: int) -> None:
    done = bare.run(f"import sys; print('aside', file=sys.stderr); raise {error}")
    assert done.returncode == ended and done.stderr.startswith("aside\n")
    assert ("KeyError" in done.stderr) == (ended == 1)
