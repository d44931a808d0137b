from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def scene_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where procedural scenes are rendered once for all tests."""
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(autouse=True)
def left_as_found() -> Iterator[None]:
    """No test decides for the next: a Trainer's determinism outlives it, signal handlers have to be given back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    torch.use_deterministic_algorithms(False)
    left = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert left == handlers
