"""All views of a capture in one ``transforms.json`` that is read in its place."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from lightning_nerf.cameras.cameras import LENS_MODELS, Cameras
from lightning_nerf.data.camera_files import camera_entry
from lightning_nerf.data.captured_box import cameras_to_world
from lightning_nerf.data.images import picture_size
from lightning_nerf.data.scene import Scene
from lightning_nerf.files import whole_file

_FISHEYE = LENS_MODELS.index("fisheye")


def write_views(path: Path, scenes: Mapping[str, Scene], to_world: torch.Tensor | None = None) -> None:
    """Write the views of splits as a ``transforms.json`` of instant-ngp and nerfstudio, each frame with its ``split``.

    Frames name the pictures that the views were read from, and their masks and depths, from the file's folder. Intrinsics
    are in pixels of those files. A view without a file has its name instead.

    Args:
        path: the file; it is there in full or not at all.
        scenes: by split, "train", "val" and "test"; they may be in units of their own.
        to_world: [4, 4] from the scenes' units to those of the file; None: they are the same.
    """
    frames: list[dict[str, object]] = []
    for split, scene in scenes.items():
        cameras = scene.cameras.to("cpu")
        if to_world is not None:
            cameras = cameras_to_world(cameras, to_world)
        cameras = _of_files(cameras, scene.picture_paths)
        for i in range(scene.n_views):
            flag = cameras.lens_model is not None and int(cameras.lens_model[i]) == _FISHEYE
            frames.append(
                {
                    **_files(scene, i, path.parent),
                    "split": split,
                    **camera_entry(cameras, i),
                    **({"is_fisheye": True} if flag else {}),  # as instant-ngp has it
                }
            )
    with whole_file(path) as file:
        file.write(json.dumps({**_depth_unit(scenes), "frames": frames}, indent=2).encode())


def _depth_unit(scenes: Mapping[str, Scene]) -> dict[str, float]:
    """What depths in files are multiples of, where there are such files."""
    units = [scene.depth_unit for scene in scenes.values() if scene.depth_paths is not None]
    return {"integer_depth_scale": units[0]} if units else {}


def _of_files(cameras: Cameras, paths: list[Path] | None) -> Cameras:
    """The cameras of pictures as they are in their files, where they were read smaller."""
    if not paths:
        return cameras
    size = torch.tensor([picture_size(path) for path in paths], dtype=torch.int64)
    scale = (size.double() / cameras.size).repeat(1, 2)
    return cameras._replace(size=size, intrinsics=(cameras.intrinsics.double() * scale).float())


def _files(scene: Scene, index: int, folder: Path) -> dict[str, object]:
    if scene.picture_paths is None:
        return {"file_path": scene.names[index]}
    files = {
        "file_path": scene.picture_paths[index],
        "mask_path": None if scene.mask_paths is None else scene.mask_paths[index],
        "depth_file_path": None if scene.depth_paths is None else scene.depth_paths[index],
    }
    folder = folder.resolve()
    return {key: os.path.relpath(os.path.abspath(path), folder) for key, path in files.items() if path is not None}
