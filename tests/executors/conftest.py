from __future__ import annotations

import pytest

from tests.executors.replay import replay_without_gpu


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def accelerator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where graphs are captured and replayed: in pretence on the CPU, and in fact on a GPU."""
    if request.param == "cpu":
        replay_without_gpu(monkeypatch)
    return request.param
