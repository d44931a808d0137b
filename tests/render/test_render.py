from __future__ import annotations

import functools
import http.server
import itertools
import json
import shutil
import threading
from importlib.util import find_spec
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from lightning_nerf.callbacks.colors import to_uint8
from lightning_nerf.cameras.poses import turntable_poses
from lightning_nerf.cli import build
from lightning_nerf.data import BlenderData, NeRFDataModule
from lightning_nerf.render import writers
from lightning_nerf.render.main import main
from lightning_nerf.render.scene import load
from lightning_nerf.renderers import FrameRenderer
from lightning_nerf.types import Rays, Render
from tests.modules.thirdparty import BlobModule
from tests.render.scene import COLOR, RADIUS, Ball, write_checkpoint, write_recipe
from tests.scenes import tiny_module, tiny_scene, trainer

SHOWN = tuple(round(255 * c) for c in COLOR)


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory, scene_cache: Path) -> list[str]:
    """The arguments that name recipe and checkpoint."""
    folder = tmp_path_factory.mktemp("ball")
    recipe = write_recipe(folder, scene_cache)
    return ["-c", str(recipe), "--ckpt", str(write_checkpoint(folder / "ball.ckpt", recipe))]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message with which the command line ends."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code not in (0, None)
    return f"{caught.value} {capsys.readouterr().err}"


def test_held_out_views_are_png_files_by_name(ball: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = main(ball)
    assert folder == Path("renders/test")
    assert sorted(p.name for p in folder.iterdir()) == ["r_0.png", "r_1.png"]
    picture = iio.imread(folder / "r_0.png")
    assert picture.shape == (24, 24, 3)
    assert tuple(picture[12, 12]) == SHOWN
    assert tuple(picture[0, 0]) == (255, 255, 255)
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == str(folder)
    assert "2/2" in err  # the progress bar


def test_frames_are_those_of_a_test(tmp_path: Path, scene_cache: Path) -> None:
    """With a trained module: the same picture as its own render_view gives within a Trainer."""
    data, module = tiny_scene(scene_cache), tiny_module()
    fit = trainer(tmp_path, max_steps=20)
    fit.fit(module, data)
    fit.save_checkpoint("tiny.ckpt")
    content = {
        "trainer": {"accelerator": "cpu", "logger": False, "enable_checkpointing": False},
        "model": {
            "class_path": "lightning_nerf.modules.InstantNGP",
            "init_args": {
                "field": {
                    "class_path": "lightning_nerf.fields.InstantNGPField",
                    "init_args": {"n_levels": 4, "log2_table_size": 10, "max_resolution": 64, "width": 16},
                },
                "estimator": {
                    "class_path": "lightning_nerf.estimators.OccupancyGrid",
                    "init_args": {"resolution": 16, "warmup_steps": 16, "step_size": 0.05},
                },
            },
        },
        "data": {
            "class_path": "lightning_nerf.data.SyntheticScene",
            "init_args": {"resolution": 24, "n_train": 6, "n_test": 2, "cache_dir": str(scene_cache)},
        },
    }
    Path("tiny.yaml").write_text(yaml.safe_dump({**content, "ckpt_path": None}))  # as in a run's config.yaml
    (folder,) = main(["-c", "tiny.yaml", "--ckpt", "tiny.ckpt"])
    expected = to_uint8(module.render_view("test", 1).rgb).numpy()
    assert expected.std() > 1
    assert np.array_equal(iio.imread(folder / "r_1.png"), expected)


def test_a_gif_has_the_frames_the_size_and_the_pace(ball: list[str]) -> None:
    (path,) = main(
        [*ball, "--path", "orbit", "--n_frames", "5", "--resolution", "30", "17", "--fps", "10", "--out", "o.gif"]
    )
    with Image.open(path) as film:
        assert film.size == (30, 17)
        assert film.info["loop"] == 0
        durations = []
        for i in range(getattr(film, "n_frames", 1)):
            film.seek(i)
            durations.append(film.info["duration"])
            middle = np.asarray(film.convert("RGB"))[8, 15]
            assert np.abs(middle - np.array(SHOWN)).max() <= 2  # of 256 colors of its own
    assert sum(durations) == 500  # frames that look the same may be one


@pytest.mark.skipif(not find_spec("imageio_ffmpeg"), reason="imageio-ffmpeg is not installed")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # its reader leaves two pipes to the collector
def test_an_mp4_has_the_frames_and_an_even_size(ball: list[str]) -> None:
    import imageio_ffmpeg

    (path,) = main(
        [*ball, "--path", "orbit", "--n_frames", "6", "--resolution", "65", "33", "--fps", "12", "--out", "o.mp4"]
    )
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert frames == 6
    assert seconds == pytest.approx(0.5, abs=0.05)
    reader = imageio_ffmpeg.read_frames(str(path))
    assert next(reader)["size"] == (66, 34)
    reader.close()


def test_without_ffmpeg_an_mp4_is_refused_at_once(
    ball: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(writers, "find_ffmpeg", lambda: None)
    message = refused([*ball, "--out", "film.mp4"], capsys)
    assert "pip install 'imageio[ffmpeg]'" in message
    assert ".gif" in message
    assert not Path("film.mp4").exists()


def test_all_channels_at_once(ball: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    channels = ["rgb", "depth", "opacity", "normal", "heat", "warm"]
    arguments = ["--channels", *channels, "--depth_range", "3.5", "4.5", "--n_frames", "1", "--out", "all"]
    assert main([*ball, *arguments]) == [Path("all", channel) for channel in channels]
    pictures = {channel: iio.imread(Path("all", channel, "r_0.png")) for channel in channels}
    middle = {channel: tuple(int(x) for x in picture[12, 12]) for channel, picture in pictures.items()}
    assert middle["rgb"] == SHOWN
    assert middle["normal"] == SHOWN[::-1]
    assert middle["opacity"] == (255, 255, 255)
    assert middle["heat"] == (153, 153, 153)
    assert middle["warm"] == (255, 255, 255)
    assert all(tuple(pictures[channel][0, 0]) == (0, 0, 0) for channel in channels if channel != "rgb")
    # The ball is 4 - 0.5 in front of the camera: the low end of the range, up to a step and the pixel's offset.
    assert np.abs(np.array(middle["depth"]) - 255 * np.array([0.27, 0.0, 0.33])).max() < 12
    captured = capsys.readouterr()
    assert "warm has values beyond [0, 1]" in captured.err
    assert "heat has" not in captured.err
    assert "depth: violet at 3.5, yellow at 4.5" in captured.out


def test_several_channels_of_one_file_name(ball: list[str]) -> None:
    arguments = ["--path", "orbit", "--n_frames", "2", "--channels", "rgb", "opacity", "--out", "films/turn.gif"]
    assert main([*ball, *arguments]) == [Path("films/turn_rgb.gif"), Path("films/turn_opacity.gif")]
    assert all(path.stat().st_size > 0 for path in Path("films").iterdir())


def test_depth_range_is_from_the_cameras_to_the_box(ball: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main([*ball, "--path", "orbit", "--elevation", "0", "--n_frames", "4", "--channels", "depth"])
    # Cameras 4 from the middle of a box of half width 1, over its faces: 3 to the face, sqrt(25 + 2) to the far corners.
    assert "depth: violet at 3, yellow at 5.196" in capsys.readouterr().out


def test_a_wider_frame_sees_more_on_both_sides(ball: list[str]) -> None:
    wide, tall = ([*ball, "--n_frames", "1", "--out", out] for out in ("wide.png", "square.png"))
    main([*wide, "--resolution", "48", "24"])
    main(tall)
    a, b = iio.imread("wide.png"), iio.imread("square.png")
    assert a.shape == (24, 48, 3)
    assert np.array_equal(a[:, 12:36], b)
    assert (a[:, :12] == 255).all()


def test_scale(ball: list[str]) -> None:
    (folder,) = main([*ball, "--scale", "2.5"])
    assert iio.imread(folder / "r_0.png").shape == (60, 60, 3)


def test_a_camera_file_needs_no_pictures(ball: list[str]) -> None:
    pose = [*turntable_poses(3, 2.0, 20.0)[1].tolist(), [0.0, 0.0, 0.0, 1.0]]
    frames = [{"file_path": "absent.png", "transform_matrix": pose}, {"transform_matrix": pose}]
    Path("cameras.json").write_text(json.dumps({"fl_x": 20.0, "w": 32, "h": 16, "frames": frames}))
    (folder,) = main([*ball, "--path", "cameras.json", "--channels", "opacity", "--scale", "2"])
    assert folder == Path("renders/cameras")
    assert sorted(p.name for p in folder.iterdir()) == ["0000.png", "0001.png"]
    picture = iio.imread(folder / "0000.png")
    assert picture.shape == (32, 64, 3)
    # Seen from 2, a ball of radius 0.5 has the half angle asin(1/4): 40 tan(asin(1/4)) = 10.3 pixels at this focal length.
    width = (picture[15, :, 0] > 127).sum()
    assert width == pytest.approx(2 * 40 * np.tan(np.arcsin(RADIUS / 2.0)), abs=2)

    Path("sizeless.json").write_text(json.dumps({"camera_angle_x": 0.69, "frames": frames}))
    (folder,) = main([*ball, "--path", "sizeless.json"])
    assert iio.imread(folder / "0001.png").shape == (24, 24, 3)


def test_a_view_of_many_bands_is_the_same(ball: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    scene = load(Path(ball[3]), [ball[1]], [])
    cameras = scene.data.scene("test").cameras
    whole = scene.module.render_camera(cameras, 0)
    monkeypatch.setattr("lightning_nerf.renderers.frame.BAND_RAYS", 50)  # not a divisor of 24 * 24
    seen: list[int] = []
    rendered = FrameRenderer.rays

    def counted(self: FrameRenderer, rays: Rays, background: Tensor | None = None) -> Render:
        seen.append(len(rays.origins))
        return rendered(self, rays, background)

    monkeypatch.setattr(FrameRenderer, "rays", counted)
    banded = scene.module.render_camera(cameras, 0)
    assert seen == [50] * 11 + [26]
    assert float(whole.opacity.max()) > 0.99
    for name in ("rgb", "opacity", "depth", "n_samples"):
        torch.testing.assert_close(getattr(banded, name), getattr(whole, name))
    torch.testing.assert_close(banded.extras, whole.extras)


@pytest.fixture
def own(scene_cache: Path) -> str:
    """A checkpoint that a script wrote, of a module that LightningCLI cannot parse: its class takes ``*widths``."""
    module, data = BlobModule(5, field=Ball(), eval_samples=2**14), tiny_scene(scene_cache)
    module.field.bind(data.scene_box)
    module.estimator.bind(data.scene_box)
    module.field.radius.fill_(RADIUS)
    script = trainer(Path("."))
    script.test(module, data, verbose=False)
    script.save_checkpoint("own.ckpt")
    return "own.ckpt"


def test_a_checkpoint_is_enough(own: str) -> None:
    assert sorted(torch.load(own, weights_only=True)["datamodule_hyper_parameters"]) == ["class_path", "init_args"]
    (folder,) = main([own])
    assert sorted(p.name for p in folder.iterdir()) == ["r_0.png", "r_1.png"]
    assert tuple(iio.imread(folder / "r_0.png")[12, 12]) == SHOWN


def test_arguments_go_before_the_checkpoints(own: str, scene_cache: Path) -> None:
    arguments = [
        "--data.resolution=20",
        "--data.n_test",
        "1",
        "--data.background",
        "black",
        f"--data.cache_dir={scene_cache}",
    ]
    (folder,) = main([own, *arguments, "--trainer.accelerator", "cpu"])
    (picture,) = (iio.imread(path) for path in folder.iterdir())
    assert picture.shape == (20, 20, 3)
    assert tuple(picture[0, 0]) == (0, 0, 0)
    assert load(Path(own), [], ["--model.eval_samples", "99"]).module.eval_samples == 99


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data.n_tests=1"], ["n_tests", "SyntheticScene"]),
        (["--data.n_test=-1"], ["n_test: expected", "-1"]),
        (["--model.eval_samples=0"], ["eval_samples: expected an integer from 1"]),
        (["--model.field.color=0"], ["field.color", "Ball"]),
        (["--trainer.precision=3"], ["precision"]),
        (["--date.n_test=1"], ["no key 'date.n_test'; did you mean 'data'?"]),
        (["--trainer.precisoin=3"], ["no key 'trainer.precisoin'; did you mean 'trainer.precision'?"]),
        (["--model.field.extras=false"], ["does not fit the model", "field.extras: came True, expected False"]),
    ],
)
def test_bad_arguments_beside_a_checkpoint_are_named(
    arguments: list[str], said: list[str], own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused([own, *arguments], capsys)
    for words in said:
        assert words in message
    assert "usage" not in message


def test_a_checkpoint_does_not_say_where_pictures_are_written_to(
    own: str, tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ``cache_dir`` counts where the scene already lies there; else the default does, or what the user says."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    content = torch.load(own, weights_only=True)
    data = content["datamodule_hyper_parameters"]["init_args"]
    assert load(Path(own), [], []).data.source.root.parent == scene_cache
    data["cache_dir"] = str(tmp_path / "elsewhere")
    torch.save(content, "moved.ckpt")
    main(["moved.ckpt", "--n_frames=1"])
    assert [p.name for p in (tmp_path / "home/lightning-nerf").iterdir()] == ["synthetic-1-seed0-24px-6-5-2"]
    assert NeRFDataModule.load_from_checkpoint("moved.ckpt").source.root.parent == tmp_path / "home/lightning-nerf"
    main(["moved.ckpt", "--n_frames=1", f"--data.cache_dir={tmp_path / 'mine'}"])
    assert (tmp_path / "mine").is_dir()
    assert not (tmp_path / "elsewhere").exists()


def test_a_checkpoint_by_its_url(own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(Path(own).parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        (folder,) = main([f"{url}/own.ckpt"])
        (other,) = main(["--ckpt", f"{url}/own.ckpt", "--out=again"])
        message = refused([f"{url}/absent.ckpt"], capsys)
        server.shutdown()
    for rendered in (folder, other):
        assert tuple(iio.imread(rendered / "r_0.png")[12, 12]) == SHOWN
    assert f"404 File not found: {url}/absent.ckpt" in message


def test_pictures_that_have_moved_are_named(capsys: pytest.CaptureFixture[str], scene_cache: Path) -> None:
    (pictures,) = (p for p in scene_cache.iterdir() if "24px-6-5-2" in p.name)
    box = [[-1.12, -1.12, -0.75], [1.12, 1.12, 1.01]]
    script = trainer(Path("."), max_steps=1)
    shutil.copytree(pictures, "lego")
    script.fit(tiny_module(), BlenderData("lego", aabb=box, n_test=1))
    script.save_checkpoint("lego.ckpt")
    Path("lego").rename("moved")
    message = refused(["lego.ckpt"], capsys)
    assert "root: no folder lego" in message
    assert "--data.root" in message
    (folder,) = main(["lego.ckpt", "--data.root", "moved"])
    assert len(list(folder.iterdir())) == 1
    assert NeRFDataModule.load_from_checkpoint("lego.ckpt", root="moved").scene("test").names == ["r_0"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--channels", "rgb", "albedo"], ["--channels", "'albedo'", "normal, heat"]),
        (["--channels", "code"], ["--channels", "'code' has 5"]),
        (["--channels", "rgb", "rgb"], ["--channels", "once"]),
        (["--ckpt", "absent.ckpt"], ["--ckpt: no file absent.ckpt"]),
        (["--path", "circle"], ["--path", "'circle'"]),
        (["--path", "absent.json"], ["--path: no file absent.json"]),
        (["--ckpt", 5000 * "a"], ["File name too long: aaa"]),
        (["--path", 5000 * "a" + ".json"], ["File name too long: aaa"]),
        (["--out", 5000 * "a" + ".png"], ["File name too long: aaa"]),
        (["--n_frames", "0"], ["--n_frames", "got 0"]),
        (["--n_frames", "3"], ["--n_frames", "at most 2"]),
        (["--resolution", "0", "8"], ["--resolution", "0 8"]),
        (["--scale", "0"], ["--scale"]),
        (["--scale", "0.01"], ["--scale", "0 x 0 pixels"]),
        (["--scale", "2", "--resolution", "8", "8"], ["not allowed with"]),
        (["--fps", "0"], ["--fps"]),
        (["--elevation", "90"], ["--elevation"]),
        (["--depth_range", "2", "1"], ["--depth_range", "2.0 1.0"]),
        (["--out", "film.avi"], ["--out", "film.avi", ".mp4"]),
        (["--out", "two.png"], ["--out", "there are 2"]),
        (["-c", "no/such"], ["no/such", "blender/instant_ngp"]),
        (["--data.n_test", "-1"], ["n_test"]),
        (["--nframes", "2"], ["lightning-nerf render: no key 'nframes'; did you mean 'n_frames'?\n"]),
    ],
)
def test_bad_input_is_named(
    arguments: list[str], said: list[str], ball: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused([*ball, *arguments], capsys)
    for words in said:
        assert words in message
    assert not Path("renders").exists()


def test_bad_checkpoints_are_named(ball: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    recipe, checkpoint = ball[1], ball[3]
    Path("junk.ckpt").write_bytes(b"junk")
    assert "junk.ckpt cannot be read as a checkpoint" in refused(["-c", recipe, "--ckpt", "junk.ckpt"], capsys)
    torch.save({"weights": torch.zeros(1)}, "other.ckpt")
    assert "other.ckpt is no Lightning checkpoint" in refused(["-c", recipe, "--ckpt", "other.ckpt"], capsys)
    assert "--ckpt: expected a checkpoint, got none" in refused(["-c", recipe], capsys)
    assert "does not describe its model nor its data: name the recipe" in refused([checkpoint], capsys)
    assert "given twice" in refused([checkpoint, "--ckpt", checkpoint], capsys)
    cli = build(["-c", recipe])
    torch.save({"state_dict": {"field.color": torch.zeros(1), **cli.model.state_dict()}}, "more.ckpt")
    message = refused(["-c", recipe, "--ckpt", "more.ckpt"], capsys)
    assert (
        "more.ckpt does not fit the model (by itself it says what it is of: lightning-nerf render more.ckpt): " in message
    )
    assert "field.color" in message


def test_a_checkpoint_of_another_field_is_refused_in_short_lines(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused([own, "--model.field.extras=false"], capsys).strip()
    head, *lines = said.splitlines()
    assert "does not fit the model: " in head
    assert lines
    assert max(map(len, lines)) < 200


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(20.0, ""), (31.0, "2 frames will take about 1 minute;"), (1500.0, "2 frames will take about 50 minutes;")],
)
def test_a_long_film_says_once_how_long_it_will_take(
    seconds: float, said: str, ball: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.count(0.0, seconds)
    monkeypatch.setattr("lightning_nerf.render.main.monotonic", lambda: next(clock))
    main([*ball, "--path=orbit", "--n_frames=2", "--resolution", "2", "2", "--out=orbit.gif"])
    printed = capsys.readouterr().err
    assert printed.count("will take about") == bool(said)
    assert said in printed
