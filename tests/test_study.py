"""`steppe.study`, the name of `steppe.compare` in version 0.1.0."""

import pytest

from steppe import compare, study


@pytest.mark.parametrize("name", ["Split", "Task"])
def test_the_old_name_is_the_same_and_warns_once(name):
    with pytest.warns(DeprecationWarning, match=f"from steppe.compare import {name}") as seen:
        found = getattr(study, name)
    assert found is getattr(compare, name) and len(seen) == 1
    assert seen[0].filename == __file__


def test_what_was_no_public_name_is_refused():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'; it is steppe.compare now"):
        study.nothing  # noqa: B018
