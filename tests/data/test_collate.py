"""A user's Dataset of rays in torch's own DataLoader."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from lightning_nerf.cameras.cameras import image_rays
from lightning_nerf.checks import BadArgument
from lightning_nerf.data import SyntheticScene
from lightning_nerf.types import RayBatch, Rays
from tests.scenes import tiny_module, trainer


def rays(*shape: int, start: float = 0.0) -> Rays:
    near = start + torch.arange(shape[0] if shape else 1, dtype=torch.float32).reshape(shape)
    return Rays(near[..., None].expand(*shape, 3), torch.ones(*shape, 3), near, near + 1)


class Pixels(Dataset[RayBatch]):
    """Each item is one pixel of the training pictures."""

    def __init__(self, scene: SyntheticScene) -> None:
        views = scene.scene("train")
        self.rays = image_rays(views.cameras, 0)
        self.pixels = views.picture(0).flatten(0, 1).float() / 255

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> RayBatch:
        pixel = self.pixels[index]
        return RayBatch(self.rays.map(lambda t: t[index]), pixel[:3], alpha=pixel[3])


class OwnLoader(SyntheticScene):
    batch_size: int | None = 128
    workers = 0

    def train_dataloader(self) -> DataLoader[RayBatch]:
        start = {"multiprocessing_context": "spawn"} if self.workers else {}
        return DataLoader(Pixels(self), self.batch_size, shuffle=True, num_workers=self.workers, **start)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_dataset_of_pixels_trains(tmp_path: Path, scene_cache: Path) -> None:
    data = OwnLoader(resolution=24, n_train=6, n_test=2, cache_dir=str(scene_cache))
    module, losses = tiny_module(), []
    module.on_train_batch_end = lambda outputs, batch, index: losses.append((float(outputs["loss"]), len(batch.rgb)))  # type: ignore[method-assign]
    trainer(tmp_path, max_steps=3).fit(module, data)
    assert [n for _, n in losses] == [128] * 3
    assert all(loss > 0 for loss, _ in losses)


def test_worker_processes_that_start_anew_know_it_too() -> None:
    items = [RayBatch(rays(start=float(i)), torch.full((3,), float(i))) for i in range(4)]
    loader = DataLoader(items, batch_size=4, num_workers=1, multiprocessing_context="spawn")  # type: ignore[arg-type,var-annotated]
    (batch,) = loader
    assert isinstance(batch, RayBatch)
    assert batch.rays.near.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(), ()], [0.0, 10.0]),
        ([(2,), (3,)], [0.0, 1.0, 10.0, 11.0, 12.0]),
        ([(2,)], [0.0, 1.0]),
        ([(0,), (1,)], [10.0]),
    ],
)
def test_rays_are_joined_in_the_order_of_the_items(shapes: list[tuple[int, ...]], expected: list[float]) -> None:
    items = []
    for i, shape in enumerate(shapes):
        some = rays(*shape, start=10.0 * i)
        items.append(RayBatch(some, torch.zeros(*shape, 3), mask=torch.ones(shape, dtype=torch.bool)))
    batch = default_collate(items)
    assert isinstance(batch, RayBatch)
    assert isinstance(batch.rays, Rays)
    assert batch.rays.near.tolist() == expected
    assert batch.rays.origins.shape == batch.rgb.shape == (len(expected), 3)
    assert batch.mask is not None
    assert batch.mask.shape == (len(expected),)
    assert batch.alpha is None
    assert batch.rays.times is None
    assert default_collate([item.rays for item in items]).near.tolist() == expected


@pytest.mark.parametrize(
    ("items", "said"),
    [
        (
            [RayBatch(rays(), torch.ones(3), torch.tensor(1.0)), RayBatch(rays(), torch.ones(3))],
            "RayBatch.alpha: expected a",
        ),
        (
            [RayBatch(rays(), torch.ones(3)), RayBatch(rays(2), torch.ones(2, 3))],
            r"RayBatch.rays.origins: .* \[2, 3\], \[3\]",
        ),
    ],
)
def test_items_that_do_not_fit_are_refused_by_name(items: list[RayBatch], said: str) -> None:
    with pytest.raises(BadArgument, match=said):
        default_collate(items)
