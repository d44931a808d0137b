from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_nerf.cameras import image_rays
from lightning_nerf.cameras.poses import spiral_poses
from lightning_nerf.data import Scene, SyntheticScene
from lightning_nerf.data.analytic import AnalyticScene
from lightning_nerf.data.sources import SyntheticSource
from lightning_nerf.data.sources.synthetic import BOX, CAMERA_ANGLE_X, ELEVATIONS, RADIUS
from tests.ops.harness import assert_detected

SMALL = {"resolution": 24, "n_train": 3, "n_test": 2, "n_val": 1}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> SyntheticScene:
    data = SyntheticScene(resolution=64, n_train=4, n_test=2, n_val=1, cache_dir=tmp_path_factory.mktemp("cache"))
    data.prepare_data()
    return data


def closest(scene: Scene, index: int) -> tuple[Tensor, Tensor]:
    """How near the ray through each pixel's center comes to a surface (up to 1e-4), and at which t."""
    times = scene.cameras.times
    truth = AnalyticScene(0, None if times is None else float(times[index]))
    rays = image_rays(scene.cameras, index)
    o, d = rays.origins.numpy().T, rays.directions.numpy().T
    t = np.full(o.shape[1], 2.0, np.float32)
    best, where = np.full_like(t, np.inf), t.copy()
    for _ in range(250):
        distance = truth.distance(o + t * d)
        nearer = (distance < best) & (t < 6)
        best[nearer], where[nearer] = distance[nearer], t[nearer]
        t = np.minimum(t + distance * (distance > 1e-4), 8).astype(np.float32)
    return torch.from_numpy(best), torch.from_numpy(where)


def check_alpha_against_geometry(scene: Scene, index: int) -> None:
    """The middle one of a pixel's 3 x 3 rays goes through its center: if that hits, alpha > 0; if none can, alpha = 0."""
    alpha = scene.picture(index)[:, :, 3].reshape(-1)
    nearest, t = closest(scene, index)
    hit = nearest <= 1.5e-4  # the renderer calls 2e-4 a hit
    assert bool((alpha[hit] >= 28).all())  # a ninth of 255
    half_diagonal = 0.7072 * t / scene.cameras.intrinsics[index, 0]
    assert bool((nearest[alpha > 0] < half_diagonal[alpha > 0] + 2e-4).all())
    assert 0.2 < float(hit.float().mean()) < 0.6


def test_rays_hit_the_solids_where_alpha_says_so(scene: SyntheticScene) -> None:
    for split in ("train", "test"):
        for index in range(2):
            check_alpha_against_geometry(scene.scene(split), index)


def test_the_geometric_check_detects_mirrored_and_shifted_cameras(scene: SyntheticScene) -> None:
    train = scene.scene("train")
    images, cameras = train.images, train.cameras
    mirrored = images._replace(colors=images.colors.view(4, 64, 64, 4).flip(2).reshape(-1, 4))
    shifted = cameras._replace(intrinsics=cameras.intrinsics + 0.5)
    check_alpha_against_geometry(train, 0)
    assert_detected(lambda: check_alpha_against_geometry(train._replace(images=mirrored), 0))
    assert_detected(lambda: check_alpha_against_geometry(train._replace(cameras=shifted), 0))


def test_it_behaves_like_blender_data(scene: SyntheticScene) -> None:
    train = scene.scene("train")
    assert train.cameras.size.tolist() == [[64, 64]] * 4
    assert train.picture(3).shape == (64, 64, 4)
    torch.testing.assert_close(train.cameras.c2w[:, :, 3].norm(dim=-1), torch.full((4,), RADIUS))
    assert scene.scene("test").names == ["r_0", "r_1"]
    assert scene.scene("val").n_views == 1
    covered = train.images.colors[:, 3].unique()
    assert len(covered) == 10
    torch.testing.assert_close(covered, (torch.arange(10) * 255 / 9 + 0.5).floor().byte(), rtol=0, atol=1)


def test_the_same_arguments_give_the_same_pictures(tmp_path: Path) -> None:
    def pictures(cache: str, **kwargs: Any) -> Tensor:
        return SyntheticScene(**{**SMALL, **kwargs}, cache_dir=tmp_path / cache).scene("train").images.colors

    first = pictures("a")
    assert torch.equal(first, pictures("b"))
    assert not torch.equal(first, pictures("a", seed=1))
    assert torch.equal(first, pictures("a"))  # the other seed did not overwrite it


def test_the_cache_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    SyntheticScene(**SMALL).setup("fit")
    (folder,) = (tmp_path / "lightning-nerf").iterdir()
    assert folder.name == "synthetic-1-seed0-24px-3-1-2"

    def fail(*args: Any) -> None:
        raise AssertionError("rendered twice")

    monkeypatch.setattr(AnalyticScene, "render", fail)
    SyntheticScene(**SMALL).setup("test")
    with pytest.raises(AssertionError, match="rendered twice"):
        SyntheticScene(**SMALL, seed=1).setup("test")
    assert list((tmp_path / "lightning-nerf").iterdir()) == [folder]  # a failure leaves nothing behind


def test_two_processes_may_render_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen no folder when both begin; the second finds the first one's in place."""
    barrier = threading.Barrier(2, timeout=60)
    render = SyntheticSource._render

    def together(self: SyntheticSource, folder: Path) -> None:
        barrier.wait()
        render(self, folder)
        barrier.wait()

    monkeypatch.setattr(SyntheticSource, "_render", together)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            SyntheticScene(**SMALL, cache_dir=tmp_path).prepare_data()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(list(tmp_path.iterdir())) == 1
    assert SyntheticScene(**SMALL, cache_dir=tmp_path).scene("test").cameras.size.tolist() == [[24, 24]] * 2


def test_a_scene_without_validation_views(tmp_path: Path) -> None:
    assert SyntheticScene(**{**SMALL, "n_val": 0}, cache_dir=tmp_path).scene("val").n_views == 0


def test_the_source_knows_its_box_and_what_it_is(tmp_path: Path) -> None:
    source = SyntheticSource(**SMALL, cache_dir=tmp_path)
    assert (source.name, source.resolution, source.seed) == ("synthetic", 24, 0)
    assert source.counts == {"train": 3, "val": 1, "test": 2}
    torch.testing.assert_close(source.box().aabb, torch.tensor(BOX), rtol=0, atol=0)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_objects_cover_a_quarter_of_every_view(seed: int) -> None:
    scene = AnalyticScene(seed)
    poses = spiral_poses(50, RADIUS, ELEVATIONS).numpy()
    covered = [scene.render(c2w, CAMERA_ANGLE_X, 32, samples=2)[..., 3].mean() / 255 for c2w in poses]
    assert min(covered) >= 0.25
    assert 0.3 < sum(covered) / 50 < 0.5


@pytest.mark.parametrize("seed", [0, 3])
def test_the_scene_lies_inside_its_box(seed: int) -> None:
    low, high = SyntheticScene().scene_box.aabb.numpy()
    p = np.random.default_rng(0).uniform(-1.6, 1.6, (3, 200_000)).astype(np.float32)
    inside_box = ((p > low[:, None]) & (p < high[:, None])).all(0)
    solid = AnalyticScene(seed).distance(p) < 0
    assert not (solid & ~inside_box).any()
    assert 0.05 < solid[inside_box].mean() < 0.5  # and most of the box is empty
    reach = p[:, solid]
    slack = np.maximum(reach.min(1) - low, high - reach.max(1))
    assert slack.max() < 0.06  # of the tightest box, as far as the points tell


def test_distances_are_bounds() -> None:
    """No distance changes faster than the place, so no ray steps over a surface."""
    random, scene = np.random.default_rng(1), AnalyticScene(0)
    a = random.uniform(-1.5, 1.5, (3, 50_000)).astype(np.float32)
    b = a + random.normal(0, 0.05, a.shape).astype(np.float32)
    for solid in scene.solids:
        change = abs(solid.distance(solid.local(a)) - solid.distance(solid.local(b)))
        assert (change <= np.linalg.norm(a - b, axis=0) + 2e-6).all()
        outside = solid.distance(solid.local(a)) > 0
        beyond = np.linalg.norm(a - np.array(solid.center, np.float32)[:, None], axis=0) - solid.radius
        assert (solid.distance(solid.local(a))[outside] >= beyond[outside] - 2e-6).all()  # the sphere holds the solid


def test_color_depends_on_the_view_only_by_highlights() -> None:
    scene = AnalyticScene(0)
    ball = next(i for i, solid in enumerate(scene.solids) if solid.shine == 0.6)
    n = np.random.default_rng(0).normal(size=(3, 2000)).astype(np.float32)
    n /= np.linalg.norm(n, axis=0)
    center = np.array(scene.solids[ball].center, np.float32)[:, None]
    points, which = center + (scene.solids[ball].radius - 0.01) * n, np.full(2000, ball)
    views = [np.broadcast_to(np.array(v, np.float32)[:, None], n.shape) for v in ((0, 1, 0), (0.6, 0, -0.8))]
    first, second = (scene._shade(points, view, which) for view in views)
    differs = (abs(first - second) > 1e-3).any(0)
    assert 0.05 < differs.mean() < 0.7
    assert first.min() >= 0
    assert first.max() <= 1


@pytest.mark.parametrize("bad", [{"resolution": 0}, {"n_train": 0}, {"n_test": -1}, {"n_val": -1}, {"seed": -1}])
def test_bad_arguments_are_named(bad: dict[str, int]) -> None:
    (name,) = bad
    for kind in (SyntheticScene, SyntheticSource):
        with pytest.raises(ValueError, match=f"{name}: expected an integer"):
            kind(**bad)
