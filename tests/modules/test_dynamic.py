"""Fits of scenes that move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_nerf.cameras.cameras import Cameras, image_rays
from lightning_nerf.cameras.poses import spiral_poses
from lightning_nerf.checks import BadArgument
from lightning_nerf.data import Images, NeRFDataModule, Scene, Source
from lightning_nerf.estimators import Hierarchical, OccupancyGrid
from lightning_nerf.fields import DeformedField, VanillaField
from lightning_nerf.losses import PerturbationTV, Photometric, TemporalSmoothness, WarpSize
from lightning_nerf.modules import DynamicNeRF, NeRFModule, WarmupDecay
from tests.executors.fits import PlainField
from tests.fields.test_deformed import D_NERF
from tests.scenes import tiny_scene, trainer

pytestmark = pytest.mark.filterwarnings("ignore:(The dirpath has changed|Checkpoint directory)")
FIRST, LAST = 2.0, 5.0
SIDE, RADIUS = 16, 0.45


class Ball(Source):
    """A red ball that moves along x from -0.4 at the first time to 0.4 at the last."""

    def read(self, split: str) -> Scene:
        n = {"train": 12, "val": 0, "test": 3}[split]
        poses = spiral_poses(n, 3.0, (0.0, 60.0), 0.1 * len(split))
        times = torch.linspace(FIRST, LAST, n) if split == "train" else FIRST + (LAST - FIRST) * torch.arange(n) / 4
        intrinsics = torch.tensor([SIDE, SIDE, SIDE / 2, SIDE / 2])
        cameras = Cameras.of_one_size(poses, intrinsics, SIDE, SIDE, near=1.0, far=5.0, times=times)
        pictures = [self.picture(cameras, i) for i in range(n)]
        return Scene(cameras, Images.from_pictures(pictures), [f"{split}_{i}" for i in range(n)])

    @staticmethod
    def picture(cameras: Cameras, index: int) -> Tensor:
        rays = image_rays(cameras, index)
        assert rays.times is not None
        center = torch.zeros(len(rays.origins), 3)
        center[:, 0] = -0.4 + 0.8 * (rays.times - FIRST) / (LAST - FIRST)
        to_center = center - rays.origins
        along = (to_center * rays.directions).sum(-1, keepdim=True)
        hit = (to_center - along * rays.directions).norm(dim=-1) < RADIUS
        rgba = torch.tensor([220, 30, 40, 255], dtype=torch.uint8) * hit[:, None]
        return rgba.to(torch.uint8).view(SIDE, SIDE, 4)


def ball() -> NeRFDataModule:
    return NeRFDataModule(Ball(), [[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])


def module(**options: Any) -> DynamicNeRF:
    torch.manual_seed(0)
    canonical = VanillaField(
        width=32, hidden_layers=2, skip=None, view_width=16, position_frequencies=4, density_activation="softplus"
    )
    estimator = OccupancyGrid(resolution=16, warmup_steps=16, step_size=0.1, decay=0.99)
    defaults: dict[str, Any] = {"samples_per_step": 4096, "max_rays": 512, "initial_rays": 128, "seed": 3}
    return DynamicNeRF(**{"field": DeformedField(canonical, width=32), "estimator": estimator, **defaults, **options})


def mse(run_module: DynamicNeRF, scene: NeRFDataModule) -> float:
    """Of the test views."""
    errors = []
    for i in range(scene.scene("test").n_views):
        render = run_module.render_view("test", i, scene)
        errors.append((render.rgb - scene.scene("test").truth(i, torch.ones(3))).square().mean())
    return float(torch.stack(errors).mean())


def fitted(folder: Path, steps: int = 20, **options: Any) -> DynamicNeRF:
    run = trainer(folder, max_steps=steps)
    run.fit(trained := module(**options), ball())
    return trained


# -- fits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {**D_NERF, "width": 32, "hidden_layers": 6}], ids=["t-nerf", "d-nerf"])
def test_twenty_steps_learn_and_move_the_warp(tmp_path: Path, options: Any) -> None:
    torch.manual_seed(0)
    canonical = VanillaField(
        width=32, hidden_layers=2, skip=None, view_width=16, position_frequencies=4, density_activation="softplus"
    )
    before = mse(fresh := module(field=DeformedField(canonical, **options)), _bound(fresh))
    warp = [p.detach().clone() for p in fresh.field.warp.parameters()]
    trainer(tmp_path, max_steps=20).fit(fresh, scene := ball())
    assert mse(fresh, scene) < 0.7 * before
    for old, new in zip(warp, fresh.field.warp.parameters(), strict=True):
        assert not torch.equal(old, new)


def _bound(untrained: DynamicNeRF) -> NeRFDataModule:
    scene = ball()
    untrained.field.bind(scene.scene_box)
    untrained.field.bind_times(FIRST, LAST)
    untrained.estimator.bind(scene.scene_box)
    return scene


def test_a_users_field_is_moved_as_well(tmp_path: Path) -> None:
    field = DeformedField(PlainField())
    trained = fitted(tmp_path, field=field)
    assert torch.isfinite(trained.render_view("test", 0, ball()).rgb).all()
    assert field.canonical.is_bound


class Said(L.Callback):
    """The names that steps log, and how many samples they had."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.samples: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.names |= set(outputs)
        self.samples.append(int(outputs["n_samples"]))


def test_all_losses_go_together(tmp_path: Path) -> None:
    losses = [Photometric(), WarpSize(0.01), TemporalSmoothness(), TemporalSmoothness("offset", name="steady")]
    trainer(tmp_path, max_steps=3, callbacks=[said := Said()]).fit(module(losses=losses), ball())
    assert {"photometric", "warp_size", "temporal_smoothness", "steady"} <= said.names


def test_a_loss_on_an_encoding_says_which_fields_have_one(tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match=r"needs one with encoded\(positions, times\)"):
        fitted(tmp_path, 1, losses=[Photometric(), PerturbationTV()])


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_brings_all_back(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=3)
    run.fit(trained := module(curriculum_steps=7), ball())
    run.save_checkpoint(tmp_path / "moving.ckpt")
    loaded = DynamicNeRF.load_from_checkpoint(tmp_path / "moving.ckpt")
    assert loaded.curriculum_steps == 7
    assert isinstance(loaded.field, DeformedField)
    for name, value in trained.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    scene = NeRFDataModule.load_from_checkpoint(tmp_path / "moving.ckpt")
    here, there = (each.eval().render_view("test", 1, scene).rgb for each in (trained, loaded))
    assert torch.equal(here, there)


@pytest.mark.parametrize("options", [{}, {"curriculum_steps": 18}], ids=["all", "curriculum"])
def test_resumed_equals_uninterrupted_to_the_bit(tmp_path: Path, options: Any) -> None:
    losses = lambda: [Photometric(), WarpSize(0.01), TemporalSmoothness()]  # noqa: E731
    schedule = {"lr_scheduler": lambda optimizer: WarmupDecay(optimizer, 24)}
    trainer(tmp_path, max_steps=24).fit(whole := module(losses=losses(), **schedule, **options), ball())
    first = trainer(tmp_path, max_steps=13)
    first.fit(module(losses=losses(), **schedule, **options), ball())
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed = module(losses=losses(), **schedule, **options)
    trainer(tmp_path, max_steps=24).fit(resumed, ball(), ckpt_path=tmp_path / "half.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    ("options", "allowed"),
    [({"identity_at_zero": True}, False), ({"width": 16}, False), ({"fused": False}, True)],
    ids=["identity", "width", "fused"],
)
def test_a_checkpoint_of_another_warp_is_refused(tmp_path: Path, options: Any, allowed: bool) -> None:
    def field(**more: Any) -> DeformedField:
        fused = more.get("fused", True)
        return DeformedField(VanillaField(width=16, hidden_layers=2, skip=None, fused=fused), **{"width": 32, **more})

    run = trainer(tmp_path, max_steps=1)
    run.fit(module(field=field()), ball())
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = trainer(tmp_path, max_steps=2)
    if allowed:
        again.fit(module(field=field(**options)), ball(), ckpt_path=tmp_path / "a.ckpt")
        return
    with pytest.raises(BadArgument, match="of another architecture"):
        again.fit(module(field=field(**options)), ball(), ckpt_path=tmp_path / "a.ckpt")


# -- arguments ---------------------------------------------------------------------------------------------------------


def test_defaults_are_a_deformed_field_on_a_grid_that_forgets_slowly() -> None:
    run = DynamicNeRF(samples_per_step=2**10)
    assert isinstance(run.field, DeformedField)
    assert isinstance(run.estimator, OccupancyGrid)
    assert run.estimator.decay == 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"field": PlainField()}, "field: expected one that wants times, got PlainField"),
        ({"curriculum_steps": -1}, "curriculum_steps: expected an integer >= 0, got -1"),
    ],
)
def test_wrong_arguments_are_refused(options: Any, message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        module(**options)


def test_data_without_times_are_refused(tmp_path: Path, scene_cache: Path) -> None:
    with pytest.raises(BadArgument, match="data: DeformedField wants times, but these training views have none"):
        trainer(tmp_path, max_steps=1).fit(module(), tiny_scene(scene_cache))


def test_data_without_the_times_that_a_coarse_field_wants_are_refused(tmp_path: Path, scene_cache: Path) -> None:
    static = NeRFModule(PlainField(), Hierarchical(8, 8, field=DeformedField(PlainField())), max_rays=64, initial_rays=16)
    message = r"data: DeformedField \(estimator\.field\) wants times, but these training views have none"
    with pytest.raises(BadArgument, match=message):
        trainer(tmp_path, max_steps=1).fit(static, tiny_scene(scene_cache))
