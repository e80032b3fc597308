"""Shared by all tests: a scratch folder that is not the user's, the real sample data where it is there, slow tests.

Tests marked slow are left out unless -m asks for them; with OUTLAST_TESTS_SLOW=N, as in CI, one is run: the Nth,
counted round and round.
"""

import os
from pathlib import Path

import pytest

# Several test processes share the cores: threads that spin while they wait would slow each other down.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Tests import ONNX Runtime themselves, which would report its use over the network.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

SHARED = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(config, items):
    if config.option.markexpr:
        return
    slow = sorted((item for item in items if item.get_closest_marker("slow")), key=lambda item: item.nodeid)
    number = os.environ.get("OUTLAST_TESTS_SLOW", "")
    if slow and number:
        del slow[int(number) % len(slow)]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


@pytest.fixture(autouse=True)
def own_scratch(tmp_path_factory, monkeypatch):
    """Caches and synthetic sets go to a temporary folder that the whole test session shares."""
    monkeypatch.setenv("OUTLAST_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("OUTLAST_DATA", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def real_data():
    """The folder of real samples; the test is skipped, saying so, where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"the real sample data is not at {SHARED}")
    return SHARED
