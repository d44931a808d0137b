from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_nerf.arguments import build, described
from lightning_nerf.cameras.poses import spiral_poses
from lightning_nerf.data import NeRFDataModule, Scene, SyntheticDynamicScene, SyntheticScene
from lightning_nerf.data.analytic import AnalyticScene
from lightning_nerf.data.moving_solids import moving_solids
from lightning_nerf.data.shapes import Field, box, ellipsoid, twisted
from lightning_nerf.data.sources import SyntheticDynamicSource
from lightning_nerf.data.sources.synthetic import CAMERA_ANGLE_X, ELEVATIONS, RADIUS
from tests.data.test_synthetic import check_alpha_against_geometry
from tests.ops.harness import assert_detected

SPLITS = ("train", "val", "test")
SMALL = {"resolution": 24, "n_train": 3, "n_test": 2, "n_val": 1}
TIMES = (0.0, 0.21, 0.5, 0.77, 1.0)
N_SOLIDS = 9
STILL, DEFORMING = (0, 1), (2, 3)  # the table and the post; the ball and the box


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> SyntheticDynamicScene:
    cache = tmp_path_factory.mktemp("cache")
    data = SyntheticDynamicScene(resolution=64, n_train=5, n_test=2, n_val=1, cache_dir=cache)
    data.prepare_data()
    return data


def times_of(scene: Scene) -> list[float]:
    assert scene.cameras.times is not None
    return scene.cameras.times.tolist()


def test_pictures_show_the_solids_at_the_times_of_their_views(scene: SyntheticDynamicScene) -> None:
    for split, indices in (("train", (0, 2, 4)), ("val", (0,)), ("test", (0, 1))):
        for index in indices:
            check_alpha_against_geometry(scene.scene(split), index)


def test_the_geometric_check_detects_a_wrong_time(scene: SyntheticDynamicScene) -> None:
    train = scene.scene("train")
    later = train.cameras._replace(times=torch.tensor(times_of(train)) + 0.05)
    assert_detected(lambda: check_alpha_against_geometry(train._replace(cameras=later), 0))


@pytest.mark.parametrize("counts", [(2, 1, 1), (2, 3, 4), (3, 1, 1), (5, 4, 4), (50, 5, 10), (80, 5, 10), (7, 100, 100)])
def test_no_split_has_a_time_of_another(counts: tuple[int, int, int], tmp_path: Path) -> None:
    n_train, n_val, n_test = counts
    source = SyntheticDynamicSource(8, n_train, n_test, n_val, cache_dir=tmp_path)
    views = {split: list(source.views(split)) for split in SPLITS}
    times = {split: [np.float32(view.time) for view in views[split]] for split in SPLITS}
    assert [len(times[split]) for split in SPLITS] == [n_train, n_val, n_test]
    assert times["train"] == np.linspace(0, 1, n_train, dtype=np.float32).tolist()
    for split in SPLITS:
        assert times[split] == sorted(times[split])
        assert all(0 <= time <= 1 for time in times[split])
        assert all(np.linalg.norm(view.c2w[:, 3]) == pytest.approx(RADIUS) for view in views[split])
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not set(times[one]) & set(times[other])
        distances = [np.abs(a.c2w - b.c2w).max() for a in views[one] for b in views[other]]
        assert min(distances) > 1e-3


def test_cameras_of_any_tenth_of_the_time_look_from_everywhere(tmp_path: Path) -> None:
    """Else a moment would be seen from one side, or from above alone."""
    views = list(SyntheticDynamicSource(8, 100, cache_dir=tmp_path).views("train"))
    low, high = (RADIUS * np.sin(np.radians(e)) for e in ELEVATIONS)
    places = np.array([view.c2w[:, 3] for view in views])
    assert low <= places[:, 2].min() < low + 0.1
    assert high - 0.1 < places[:, 2].max() <= high
    for i in range(0, 100, 10):
        azimuth = np.sort(np.arctan2(places[i : i + 10, 1], places[i : i + 10, 0]))
        gaps = np.diff([*azimuth, azimuth[0] + 2 * np.pi])
        assert gaps.max() < np.radians(100)
        assert places[i : i + 10, 2].min() < low + 0.3 * (high - low)
        assert places[i : i + 10, 2].max() > high - 0.3 * (high - low)


def test_it_behaves_like_the_other_scenes(scene: SyntheticDynamicScene) -> None:
    train = scene.scene("train")
    assert times_of(train) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert scene.time_range() == (0.0, 1.0)
    assert times_of(scene.scene("test")) == [0.375, 0.875]
    assert times_of(scene.scene("val")) == [0.5625]
    assert train.cameras.size.tolist() == [[64, 64]] * 5
    assert train.picture(3).shape == (64, 64, 4)
    assert scene.scene("test").names == ["r_0", "r_1"]
    assert (scene.scene_name, scene.background) == ("synthetic_dynamic", "white")


def test_arguments_decide_the_pictures_and_the_cache_tells_scenes_apart(tmp_path: Path) -> None:
    def pictures(cache: str, kind: type[SyntheticScene] = SyntheticDynamicScene, **changes: Any) -> torch.Tensor:
        return kind(**{**SMALL, **changes}, cache_dir=tmp_path / cache).scene("train").images.colors

    first = pictures("a")
    assert torch.equal(first, pictures("b"))
    assert not torch.equal(first, pictures("a", seed=1))
    assert not torch.equal(first, pictures("a", kind=SyntheticScene))
    assert torch.equal(first, pictures("a"))
    assert {folder.name for folder in (tmp_path / "a").iterdir()} == {
        "synthetic_dynamic-1-seed0-24px-3-1-2",
        "synthetic_dynamic-1-seed1-24px-3-1-2",
        "synthetic-1-seed0-24px-3-1-2",
    }


def test_a_file_decides_the_cache_only_where_the_scene_lies_there(tmp_path: Path) -> None:
    for cached in (False, True):
        data = SyntheticDynamicScene(**SMALL, cache_dir=tmp_path)
        again = build(described(data), NeRFDataModule)
        assert type(again) is SyntheticDynamicScene
        assert isinstance(again.source, SyntheticDynamicSource)
        assert (again.source.root.parent == tmp_path) is cached
        SyntheticScene(**SMALL, cache_dir=tmp_path).prepare_data()  # the other scene is none
        assert (build(described(data), NeRFDataModule).source.root.parent == tmp_path) is cached
        data.prepare_data()


def check_bound(distance: Field, radius: float, seed: int) -> None:
    """No point outside is nearer to one inside than its distance says; the sphere of ``radius`` holds what is inside."""
    random = np.random.default_rng(seed)
    p = random.uniform(-1.4 * radius, 1.4 * radius, (3, 20_000)).astype(np.float32)
    d = distance(p)
    inside, outside = p[:, d < 0], p[:, d > 0][:, :1500]
    assert inside.shape[1] > 100
    assert np.linalg.norm(inside, axis=0).max() <= radius + 1e-6
    nearest = np.full(outside.shape[1], np.inf)
    for start in range(0, inside.shape[1], 500):
        apart = np.linalg.norm(outside[:, :, None] - inside[:, None, start : start + 500], axis=0)
        nearest = np.minimum(nearest, apart.min(1))
    assert (distance(outside) <= nearest + 2e-6).all()


@pytest.mark.parametrize("time", TIMES)
def test_distances_of_solids_that_change_shape_are_bounds(time: float) -> None:
    for i in DEFORMING:
        solid = moving_solids(0, time)[i]
        check_bound(solid.distance, solid.radius, seed=int(100 * time))


@pytest.mark.parametrize(
    ("distance", "radius", "factor"),
    [(ellipsoid(0.2, 0.3, 0.4), 0.4, 1.5), (twisted(box(0.24, 0.24, 0.36, 0.05), 1.5, 0.5), 0.5, 1.6)],
)
def test_the_check_of_bounds_detects_one_that_is_too_large(distance: Field, radius: float, factor: float) -> None:
    check_bound(distance, radius, 0)
    assert_detected(lambda: check_bound(lambda p: factor * distance(p), radius, 0))


def test_bounds_lose_little_near_the_surface() -> None:
    """A ray that passes a solid at a distance must not need many steps, nor hit what is not there."""
    p = np.random.default_rng(0).uniform(-1.2, 1.2, (3, 20_000)).astype(np.float32)
    away = np.linalg.norm(p, axis=0)
    for time in TIMES:
        for solid in moving_solids(0, time):
            far = away > 1.26 * solid.radius
            assert (solid.distance(p)[far] >= 0.02 * solid.radius).all()


def samples(n: int) -> np.ndarray:
    p = np.random.default_rng(0).uniform(-1.4, 1.4, (3, n)).astype(np.float32)
    return p[:, np.abs(p[2]) < 1.1]


@pytest.mark.parametrize("seed", [0, 3])
def test_the_scene_lies_inside_its_box_and_no_solid_in_another(seed: int, tmp_path: Path) -> None:
    low, high = SyntheticDynamicSource(cache_dir=tmp_path).box().aabb.numpy()
    p, reached = samples(150_000), np.zeros((2, 3))
    for time in np.linspace(0, 1, 11):
        solids = moving_solids(seed, float(time))
        inside = np.stack([s.distance(s.local(p)) < 0 for s in solids])
        for each, its in zip(solids, inside, strict=True):
            assert (np.linalg.norm(each.local(p[:, its]), axis=0) <= each.radius).all()  # _march looks no further
        solid = p[:, inside.any(0)]
        reached = np.stack([np.minimum(reached[0], solid.min(1)), np.maximum(reached[1], solid.max(1))])
        assert np.linalg.norm(solid, axis=0).max() < 1.34
        fixed = inside[[0, 1, 6]].any(0)  # the post stands on the table and in the lantern
        movers = np.delete(inside, [0, 1, 6], axis=0).sum(0)
        assert (movers + fixed).max() == 1
    assert (reached[0] > low).all()
    assert (reached[1] < high).all()
    assert max((reached[0] - low).max(), (high - reached[1]).max()) < 0.08  # of the tightest box, as far as points tell


@pytest.mark.parametrize("seed", [0, 1])
def test_motion_is_smooth_and_moderate_and_the_table_stands_still(seed: int) -> None:
    """No surface moves by more than 3 units per unit of time: by 3 pixels between two of 80 pictures of 160 x 160."""
    p, step = samples(20_000), 1 / 64
    moved = np.zeros(N_SOLIDS)
    for time in np.arange(0, 1, step):
        before, after = moving_solids(seed, time), moving_solids(seed, time + step)
        assert len(before) == N_SOLIDS
        for i, (a, b) in enumerate(zip(before, after, strict=True)):
            d, later = a.distance(a.local(p)), b.distance(b.local(p))
            near = np.abs(d) < 0.1
            change = np.abs(later - d)[near].max() if near.any() else 0.0
            assert change <= 3 * step
            turned = 0.0 if a.rotation is None or b.rotation is None else np.abs(a.rotation - b.rotation).max()
            moved[i] += max(change, turned)
    assert moved[list(STILL)].tolist() == [0, 0]
    assert np.delete(moved, STILL).min() > 0.3


def test_a_ball_and_a_box_change_their_shapes_and_keep_their_textures() -> None:
    random = np.random.default_rng(0)
    p = random.uniform(-0.35, 0.35, (3, 2000)).astype(np.float32)
    for i in DEFORMING:
        shapes = [moving_solids(0, time)[i].distance(p) < 0 for time in (0.25, 0.75)]
        assert np.mean(shapes[0] != shapes[1]) > 0.05
    ball = [moving_solids(0, time)[2] for time in (0.0, 0.25)]
    radii = [np.array(r, np.float32)[:, None] for r in ((0.33, 0.33, 0.33), (0.2805, 0.2805, 0.4125))]
    np.testing.assert_allclose(*(solid.color(p * r) for solid, r in zip(ball, radii, strict=True)), atol=1e-4)
    twist, box_solid = 1.5, moving_solids(0, 0.0)[3]
    turn = twist * p[2]
    q = np.stack([np.cos(turn) * p[0] - np.sin(turn) * p[1], np.sin(turn) * p[0] + np.cos(turn) * p[1], p[2]])
    np.testing.assert_allclose(box_solid.color(q), moving_solids(0, 0.5)[3].color(p), atol=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_objects_cover_a_sixth_of_every_view(seed: int) -> None:
    poses = spiral_poses(20, RADIUS, ELEVATIONS).numpy()
    scenes = [AnalyticScene(seed, time) for time in np.linspace(0, 1, 20)]
    covered = [s.render(c2w, CAMERA_ANGLE_X, 32, 2)[..., 3].mean() / 255 for s, c2w in zip(scenes, poses, strict=True)]
    assert min(covered) > 1 / 6
    assert 0.25 < sum(covered) / 20 < 0.45


BAD: Sequence[dict[str, Any]] = [
    {"n_train": 1},
    {"n_train": 2.5},
    {"n_test": 0},
    {"n_val": -1},
    {"seed": -1},
    {"resolution": 0},
]


@pytest.mark.parametrize("bad", BAD)
def test_bad_arguments_are_named(bad: dict[str, Any]) -> None:
    (name,) = bad
    for kind in (SyntheticDynamicScene, SyntheticDynamicSource):
        with pytest.raises(ValueError, match=f"{name}: expected an integer"):
            kind(**bad)
