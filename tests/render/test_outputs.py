"""What `render` writes beside plain pictures: transparency, numbers; and what it leaves after an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from lightning_nerf.callbacks.films import H264
from lightning_nerf.callbacks.framing import grid_cells, object_box
from lightning_nerf.callbacks.turntable import Turntable, save_video
from lightning_nerf.cameras.paths import orbit
from lightning_nerf.estimators import OccupancyGrid
from lightning_nerf.render.main import choose_cameras, main, parse
from lightning_nerf.render.pictures import numbers, picture
from lightning_nerf.render.scene import load
from lightning_nerf.types import Render
from tests.render.ffmpeg import FAKE, put_on_path
from tests.render.scene import COLOR, RADIUS, write_checkpoint, write_recipe
from tests.render.test_render import refused
from tests.scenes import tiny_module, tiny_scene, trainer

SHOWN = tuple(round(255 * c) for c in COLOR)


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory, scene_cache: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("ball")
    recipe = write_recipe(folder, scene_cache)
    return ["-c", str(recipe), "--ckpt", str(write_checkpoint(folder / "ball.ckpt", recipe))]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("background", ["white", "black"])
def test_a_transparent_picture_has_no_background_in_it(ball: list[str], background: str) -> None:
    (path,) = main([*ball, "--channels", "rgba", "--n_frames", "1", "--out", "x.png", "--data.background", background])
    shot = iio.imread(path)
    assert shot.shape == (24, 24, 4)
    assert tuple(shot[12, 12]) == (*SHOWN, 255)
    assert tuple(shot[0, 0]) == (0, 0, 0, 0)


def test_the_color_of_a_half_transparent_pixel_is_its_own() -> None:
    color, behind, opacity = torch.tensor([0.2, 0.4, 0.8]), torch.tensor([1.0, 0.5, 0.0]), torch.tensor([[0.5, 0.0]])
    rgb = opacity[..., None] * color + (1 - opacity)[..., None] * behind
    render = Render(rgb, opacity, 3.0 * opacity, torch.zeros(1, 2), {})
    assert picture(render, "rgba", (0, 1), behind).tolist() == [[[51, 102, 204, 128], [0, 0, 0, 0]]]
    depth = numbers(render, "depth", behind)
    assert float(depth[0, 0]) == 3.0
    assert bool(depth[0, 1].isnan())


def test_raw_depth_is_the_distance_along_the_ray(ball: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = main([*ball, "--channels", "depth", "--out", "d.npy", "--n_frames", "1"])
    depth = np.load(path)
    assert depth.dtype == np.float32
    assert depth.shape == (24, 24)
    assert depth[12, 12] == pytest.approx(4 - RADIUS, abs=0.05)
    assert np.isnan(depth[0, 0])
    assert "range, not z" in capsys.readouterr().out
    paths = main([*ball, "--channels", "depth", "warm", "normal", "rgba", "--out", "all.npy"])
    assert [str(path) for path in paths] == [f"all_{name}.npy" for name in ("depth", "warm", "normal", "rgba")]
    shapes = [np.load(path).shape for path in paths]
    assert shapes == [(2, 24, 24), (2, 24, 24, 1), (2, 24, 24, 3), (2, 24, 24, 4)]
    assert np.load(paths[1]).max() == pytest.approx(2.4, abs=0.01)  # not clamped
    assert "beyond [0, 1]" not in capsys.readouterr().err


def test_the_training_views_can_be_rendered(ball: list[str]) -> None:
    (folder,) = main([*ball, "--path", "train"])
    assert folder == Path("renders/train")
    assert len(list(folder.iterdir())) == 6
    (path,) = main([*ball, "--path", "train", "--n_frames", "1", "--scale", "0.5", "--out", "one.png"])
    assert iio.imread(path).shape == (12, 12, 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--channels", "depth", "--out", "d.exr"], ["--out", "d.exr", ".npy"]),
        (["--channels", "depth", "--out", "d.tiff"], ["--out", "d.tiff", ".npy"]),
        (["--channels", "rgba", "--out", "x.gif"], ["--channels: rgba", "x.gif"]),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(
    arguments: list[str], said: list[str], ball: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused([*ball, *arguments], capsys)
    for words in said:
        assert words in message
    assert list(Path(".").iterdir()) == []


@pytest.mark.parametrize("name", ["film.gif", "film.npy", "film.mp4"])
@pytest.mark.parametrize("before", [None, b"an older film"])
def test_an_interrupted_film_is_not_left_under_its_name(
    name: str,
    before: bytes | None,
    ball: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    import lightning_nerf.render.main as command

    def interrupted(names: list[str], **_: object) -> Iterator[str]:
        yield from names[:2]
        raise KeyboardInterrupt

    put_on_path(FAKE, tmp_path_factory.mktemp("bin"), monkeypatch)
    if before is not None:
        Path(name).write_bytes(before)
    monkeypatch.setattr(command, "tqdm", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        main([*ball, "--path", "orbit", "--n_frames", "4", "--out", name])
    if before is None:
        assert list(Path(".").iterdir()) == []
    else:
        assert [(path.name, path.read_bytes()) for path in Path(".").iterdir()] == [(name, before)]


@pytest.mark.parametrize("program", [None, FAKE])
def test_a_turntable_that_fails_leaves_the_one_before(
    program: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if program is None:
        monkeypatch.setattr("lightning_nerf.callbacks.turntable.find_ffmpeg", lambda: None)
    else:
        put_on_path(program, tmp_path_factory.mktemp("bin"), monkeypatch)
    frames = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    path = save_video(Path("turn"), frames, fps=10)
    good = path.read_bytes()

    def half(path: Path, *_: object, **__: object) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    def half_film(film: H264) -> None:
        half(film.path)

    monkeypatch.setattr("lightning_nerf.callbacks.turntable.imageio.imwrite", half)
    monkeypatch.setattr(H264, "close", half_film)
    with pytest.raises(KeyboardInterrupt):
        save_video(Path("turn"), frames, fps=10)
    assert [(p.name, p.read_bytes()) for p in Path(".").iterdir()] == [(path.name, good)]


@pytest.mark.parametrize("path", ["orbit", "spiral"])
@pytest.mark.parametrize("size", [[], ["--resolution", "12", "24"], ["--scale", "2"]])
def test_a_path_frames_the_object_as_the_grid_has_it(ball: list[str], path: str, size: list[str]) -> None:
    options, rest = parse([*ball, "--path", path, "--n_frames", "8", *size])
    scene = load(options.ckpt, options.config, rest)
    eyes = choose_cameras(options, scene)[0].c2w[:, :, 3]
    full = eyes.norm(dim=-1).mean()  # the box of half width 1 is around 0, training cameras are at 4
    assert float(full) > 4.01
    assert size[:1] != ["--resolution"] or float(full) > 5  # half as wide
    scene.module.estimator.binaries[:] = False
    scene.module.estimator.binaries[:, 3:5, 3:5, 3:5] = True
    cameras, _ = choose_cameras(options, scene)
    torch.testing.assert_close(cameras.c2w[:, :, 3].norm(dim=-1), torch.full((8,), 4.0))


def test_a_turntable_frames_the_object(tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def seen(*args: Any) -> Any:
        asked.append(args[-1])
        return orbit(*args)

    monkeypatch.setattr("lightning_nerf.callbacks.turntable.orbit", seen)
    module, data = tiny_module(), tiny_scene(scene_cache)
    run = trainer(tmp_path, callbacks=[Turntable(n_frames=1)])
    run.test(module, data, verbose=False)
    assert torch.equal(asked[0], data.scene_box.aabb)


def test_the_box_of_an_object_is_that_of_the_occupied_cells() -> None:
    aabb = torch.tensor([[-1.0, -2.0, 0.0], [1.0, 2.0, 8.0]])
    grid = OccupancyGrid(resolution=4).bind(aabb)
    assert torch.equal(object_box(grid, aabb), aabb)
    grid.binaries.zero_()
    assert torch.equal(object_box(grid, aabb), aabb)
    grid.binaries[0, 1, 0, 3] = True
    grid.binaries[0, 2, 1, 3] = True
    assert object_box(grid, aabb).tolist() == [[-0.5, -2.0, 6.0], [0.5, 0.0, 8.0]]
    grid.binaries[0, 0, 3, 0] = True  # a speck
    assert object_box(grid, aabb).tolist() == [[-0.5, -2.0, 6.0], [0.5, 0.0, 8.0]]
    grid.binaries.zero_()
    grid.binaries[0, 0, 3, 0] = True  # all that there is
    assert object_box(grid, aabb).tolist() == [[-1.0, 1.0, 0.0], [-0.5, 2.0, 2.0]]


def test_the_box_of_what_moves_is_that_of_all_times() -> None:
    aabb = torch.tensor([[-1.0, -2.0, 0.0], [1.0, 2.0, 8.0]])
    grid = OccupancyGrid(resolution=4, n_times=3).bind(aabb)
    grid.binaries.zero_()
    grid.binaries[0, 0, 1, 0, 3] = True
    grid.binaries[2, 0, 2, 1, 3] = True
    assert object_box(grid, aabb).tolist() == [[-0.5, -2.0, 6.0], [0.5, 0.0, 8.0]]
    cells = grid_cells(grid)
    assert cells is not None
    assert cells.shape == (1, 4, 4, 4)
    assert int(cells.sum()) == 2
