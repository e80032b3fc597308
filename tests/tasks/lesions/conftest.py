"""The small lesion data set of toys.lesion_set, for tests that damage a part of it."""

import pytest

from toys.lesion_set import write_set


@pytest.fixture
def lesions(tmp_path):
    return write_set(tmp_path / "lesions")
