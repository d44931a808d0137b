from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.data import Images, picture_memory
from lightning_nerf.data.picture_memory import device_view, kept_on_host, scene_on_device
from lightning_nerf.ops.draw_rays import draw_rays
from lightning_nerf.ops.random import make_key
from lightning_nerf.types import RayBatch
from tests.data.numbered import MIXED, NumberedData, numbered_scene
from tests.ops.harness import rand


@pytest.mark.parametrize(
    ("channels", "listed", "budget", "kept"),
    [
        (3, None, None, (False, False)),
        (3, None, 300, (False, False)),
        (3, None, 299, (True, False)),
        (4, None, 399, (True, False)),
        (3, 10, 380, (False, False)),
        (3, 10, 379, (True, False)),  # the list fits alone
        (3, 10, 80, (True, False)),
        (3, 10, 79, (True, True)),
        (3, 10, 0, (True, True)),
        (3, 0, 0, (True, False)),
    ],
)
def test_pixels_that_do_not_fit_stay_on_the_host(channels: int, listed: int | None, budget: int | None, kept: Any) -> None:
    drawable = None if listed is None else torch.arange(listed)
    images = Images(torch.zeros(100, channels, dtype=torch.uint8), torch.tensor([0, 100]), drawable)
    assert kept_on_host(images, budget) == kept


@pytest.mark.parametrize(
    ("budget_gib", "free", "stay"),
    [(None, 4000, False), (None, 500, True), (None, None, False), (0, 4000, True), (1, 0, False), (380 / 2**30, 0, True)],
)
def test_a_scene_moves_by_its_budget_or_by_what_is_free(
    budget_gib: float | None,
    free: int | None,
    stay: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On a device that no machine needs to have: "moved" means copied, "viewed" read from where it is."""
    scene, done = numbered_scene(MIXED, masked=torch.arange(61) % 2 == 0), list[str]()
    size = scene.images.colors.nbytes + scene.images.drawable.nbytes  # type: ignore[union-attr]
    assert size == 61 * 4 + 30 * 8

    def viewed(tensor: Tensor, device: torch.device) -> Tensor:
        done.append("viewed")
        return tensor.clone()

    monkeypatch.setattr(picture_memory, "device_view", viewed)
    monkeypatch.setattr(picture_memory, "available_bytes", lambda device: free)
    monkeypatch.setattr(type(scene), "to", lambda self, device: self)
    with caplog.at_level("INFO"):
        there = scene_on_device(scene, torch.device("cuda", 0), budget_gib, "train")
    assert bool(done) == stay
    assert ("train pictures: " in caplog.text and "pinned host memory" in caplog.text) == stay
    torch.testing.assert_close(there.images, scene.images)


def test_devices_that_share_the_hosts_memory_have_no_budget() -> None:
    data = NumberedData(device_budget=0)
    assert data.scene_on("cpu").images.colors is data.scene("train").images.colors
    with pytest.raises(ValueError, match=r"device_budget: expected a number in \[0, inf\), got -1"):
        NumberedData(device_budget=-1)


def drawn(colors: Tensor, drawable: Tensor | None, budget: float, n_rays: int | None) -> tuple[RayBatch, RayBatch]:
    """A draw of the device's pictures and one of the host's, the second also replayed by a CUDA graph."""
    scene, side = numbered_scene(((5, 4),)), int(len(colors) ** 0.5)
    images = Images(colors, torch.tensor([0, side * side]), drawable)
    scene = scene._replace(cameras=scene.cameras._replace(size=torch.tensor([[side, side]])), images=images)
    device, key = torch.device("cuda", 0), make_key(3, device="cuda")
    count = None if n_rays is None else torch.tensor(n_rays, dtype=torch.int32, device=device)
    here = scene_on_device(scene, device, 100.0, "train").pixels()
    there = scene_on_device(scene, device, budget, "train").pixels()
    assert there.colors.device == device
    eager = draw_rays(there, key, 4096, count)
    torch.testing.assert_close(eager, draw_rays(here, key, 4096, count), rtol=0, atol=0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = draw_rays(there, key, 4096, count)
    key[2] = 77
    graph.replay()
    return captured, draw_rays(here, key, 4096, count)


@pytest.mark.gpu
@pytest.mark.parametrize("n_rays", [None, 1000])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("side", "channels"), [(7, 3), (7, 4), (1024, 3), (1024, 4)])
def test_draws_from_the_hosts_memory_are_those_from_the_devices(
    side: int, channels: int, masked: bool, n_rays: int | None
) -> None:
    """To the bit; of small pictures in a pinned copy, and of large ones whose own memory is pinned."""
    colors = (rand(side * side, channels, seed=1) * 256).byte()
    drawable = torch.arange(0, side * side, 2) if masked else None
    captured, expected = drawn(colors, drawable, 0.0, n_rays)
    torch.testing.assert_close(captured, expected, rtol=0, atol=0)


@pytest.mark.gpu
def test_a_view_lives_longer_than_its_tensor_and_two_share_its_memory() -> None:
    colors = (rand(2**20, 3, seed=1) * 256).byte()
    expected, device = colors.clone(), torch.device("cuda", 0)
    first, second = device_view(colors, device), device_view(colors, device)
    assert colors.is_pinned()
    assert first.data_ptr() == second.data_ptr() == colors.data_ptr()
    del first
    assert colors.is_pinned()
    del colors
    assert torch.equal(second.clone().cpu(), expected)


@pytest.mark.gpu
def test_memory_is_pinned_only_while_it_is_viewed() -> None:
    colors = torch.zeros(2**21, dtype=torch.uint8)
    view = device_view(colors, torch.device("cuda", 0))
    assert colors.is_pinned()
    del view
    assert not colors.is_pinned()
    assert int(torch.ones(1, device="cuda")) == 1  # no error is left behind
