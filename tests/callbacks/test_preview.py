"""Pictures of views beside their truth, and previews of them while a fit goes on."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_nerf.callbacks import Preview
from lightning_nerf.callbacks.clock import clock_of
from lightning_nerf.callbacks.colors import colorize, to_uint8
from lightning_nerf.callbacks.image_logger import GAP, Panel, labelled
from lightning_nerf.callbacks.run_folder import run_folder
from tests.scenes import tiny_module, tiny_scene, trainer


@pytest.mark.parametrize("side", [5, 64, 400])
def test_panels_have_names_gaps_and_scales(side: int) -> None:
    colors = [torch.tensor([0.1 * i, 0.5, 0.25]) for i in range(1, 4)]
    row = [
        Panel(name, color.expand(side, side, 3), scale)
        for name, color, scale in zip(["prediction", "truth", "error"], colors, [None, None, (0.0, 0.2)], strict=True)
    ]
    picture = labelled(row)
    assert picture.dtype == torch.uint8
    white = (picture == 255).all(-1)
    place = []
    for panel in row:
        inside = (picture == to_uint8(panel.image)[0, 0]).all(-1)
        ys, xs = inside.nonzero().unbind(1)
        top, bottom, left, right = (int(v) for v in (ys.min(), ys.max(), xs.min(), xs.max()))
        assert (bottom - top + 1, right - left + 1) == (side, side)  # as it is, and whole
        assert not white[:top, left : left + 40].all()  # its name
        place.append((left, right, bottom))
    for (_, right, bottom), (left, _, _) in pairwise(place):
        assert left - right - 1 >= GAP
        assert white[: bottom + 1, right + 1 : left].any(0).all()
    left, _, bottom = place[-1]
    below = picture[bottom + 1 :, left:]
    for end in colorize(torch.tensor([0.0, 1.0])):  # the error's colors, from 0 to 0.2
        assert (below == to_uint8(end)).all(-1).any()
    assert white[bottom + 1 :, : place[1][1]].all()  # the others have no scale


class Watch(L.Callback):
    """The preview's file after each step."""

    def __init__(self) -> None:
        self.seen: list[bytes | None] = []

    def on_train_batch_start(self, *_: Any) -> None:
        time.sleep(0.1)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        path = run_folder(trainer) / "preview.png"
        self.seen.append(path.read_bytes() if path.exists() else None)


class Album(CSVLogger):
    """A logger that takes pictures."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.pictures: list[tuple[str, int]] = []

    def log_image(self, key: str, images: list[Any], step: int) -> None:
        self.pictures.append((key, step))


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_preview_shows_the_run_and_changes_nothing(
    split: str, tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, previewed = tiny_module(), tiny_module()
    previewed.load_state_dict(plain.state_dict())
    trainer(tmp_path, max_steps=6).fit(plain, tiny_scene(scene_cache))

    monkeypatch.setattr("lightning_nerf.callbacks.preview.SHARE", 1.0)
    render, modes = type(previewed).render_view, []

    def slow(module: Any, *args: Any) -> Any:
        modes.append(module.training)
        time.sleep(0.3)
        return render(module, *args)

    monkeypatch.setattr(type(previewed), "render_view", slow)
    watch, album = Watch(), Album(tmp_path)
    fit = trainer(tmp_path, max_steps=6, callbacks=[Preview(1e-6, view=1, split=split), watch], logger=album)
    fit.fit(previewed, tiny_scene(scene_cache))
    assert all(watch.seen)
    assert len(set(watch.seen)) > 1
    assert album.pictures == [(f"preview/r_{1}", step) for step in range(6)]
    torch.testing.assert_close(previewed.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert modes == [False] * 6  # as in evaluation
    assert 0.6 <= float(clock_of(fit).training_seconds or 0) < 1.8  # six pauses of 0.3 s are not in it


def test_previews_take_a_tenth_of_the_time(tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("lightning_nerf.callbacks.preview.time.monotonic", lambda: now[0])
    monkeypatch.setattr("lightning_nerf.callbacks.preview.clock_of", lambda _: SimpleNamespace(halt=int, resume=int))
    shown: list[float] = []

    def slow(*_: Any) -> None:
        shown.append(now[0])
        now[0] += 5.0

    preview = Preview(every_seconds=10)
    monkeypatch.setattr(preview, "_show", slow)
    module: Any = SimpleNamespace(datamodule=SimpleNamespace(scene=lambda _: SimpleNamespace(n_views=1)))
    run: Any = SimpleNamespace(is_global_zero=True)
    monkeypatch.setattr("lightning_nerf.callbacks.preview.run_folder", lambda _: tmp_path)
    preview.on_fit_start(run, module)
    for _ in range(120):
        now[0] += 1.0
        preview.on_train_batch_end(run, module, None, None, 0)
    assert shown == [10.0, 60.0, 110.0]


def test_a_preview_of_no_view_is_refused(tmp_path: Path, scene_cache: Path) -> None:
    fit = trainer(tmp_path, max_steps=1, callbacks=[Preview(view=7)])
    with pytest.raises(ValueError, match="view: expected one of the 2 views of the test split, got 7"):
        fit.fit(tiny_module(), tiny_scene(scene_cache))
    for options in ({"every_seconds": 0}, {"view": -1}, {"split": "all"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Preview(**options)
