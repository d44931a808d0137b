"""Cameras from a file, to render with, and to a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from lightning_nerf.cameras.cameras import LENS_MODELS, Cameras
from lightning_nerf.checks import BadArgument
from lightning_nerf.data.captured_box import cameras_to_scene_units
from lightning_nerf.data.frame_times import near_miss
from lightning_nerf.data.frames import MAX_FRAMES, Transforms
from lightning_nerf.data.intrinsics import full_sphere
from lightning_nerf.data.json_file import read_json_object
from lightning_nerf.data.lenses import MODELS, lens_tensors
from lightning_nerf.files import whole_file


def read_cameras(path: Path, train: Cameras, reads_times: bool = True, to_world: torch.Tensor | None = None) -> Cameras:
    """The cameras of a ``transforms.json``, with their lenses; its pictures need not exist.

    The size is the file's ``w`` and ``h``, else that of the first training camera, whose bounds are taken too. With
    ``reads_times=False`` the cameras have no times, and those in the file may be anything. With ``to_world`` [4, 4], from
    a scene's units to those of its files, the file's poses are in the latter, and those of the cameras in the former.

    Raises:
        MissingFile, BadArgument: naming the file and the frame.
    """
    transforms = Transforms(path, cameras_only=True, reads_times=reads_times, lenses=True)
    frames = transforms.frames
    size = transforms.size(frames[0])
    if size is None:
        height, width = train.shape(0)
        size = width, height
    times = None if frames[0].time is None else torch.tensor([f.time for f in frames], dtype=torch.float32)
    c2w = torch.tensor([f.c2w for f in frames], dtype=torch.float32)
    around = [frame.lens.model == "equirectangular" for frame in frames]
    intrinsics = torch.tensor(
        [full_sphere(*size) if a else transforms.intrinsics(f, *size) for f, a in zip(frames, around, strict=True)]
    )
    lens_model, lens = lens_tensors([frame.lens for frame in frames])
    cameras = Cameras.of_one_size(c2w, intrinsics, *size, times=times)._replace(lens_model=lens_model, lens=lens)
    if to_world is not None:
        cameras = cameras_to_scene_units(cameras, to_world)
    bounds = train.bounds
    return cameras if bounds is None else cameras._replace(bounds=bounds[:1].expand(len(frames), 2).contiguous())


def time_hint(path: Path) -> str:
    """A hint such as "; frame 0 has 'tiem'" for a file of cameras without times, or an empty string."""
    entries = read_json_object(path, "transform_matrix", MAX_FRAMES).get("frames")
    hints = (near_miss(f"frame {i}", entry, "time") for i, entry in enumerate(entries if isinstance(entries, list) else []))
    return next(filter(None, hints), "")


def write_cameras(path: Path, cameras: Cameras, names: Sequence[str]) -> None:
    """Write cameras as a ``transforms.json`` of nerfstudio, each frame with intrinsics, size, lens and time of its own.

    Args:
        path: the file; it is there in full or not at all.
        cameras: V of them.
        names: V paths of pictures, from the file's folder.
    """
    if len(names) != cameras.n_views:
        raise BadArgument(f"names: expected {cameras.n_views}, one of each camera, got {len(names)}")
    cameras = cameras.to("cpu")
    frames = [{"file_path": name, **camera_entry(cameras, i)} for i, name in enumerate(names)]
    with whole_file(path) as file:
        file.write(json.dumps({"frames": frames}, indent=2).encode())


def camera_entry(cameras: Cameras, index: int) -> dict[str, object]:
    """What a frame of a ``transforms.json`` states of one camera, its lens by nerfstudio's names.

    A lens whose coefficients k4, k5 or k6 are not 0 has COLMAP's name FULL_OPENCV: nerfstudio's k4 of an OPENCV camera is
    another coefficient.
    """
    width, height = cameras.size[index].tolist()
    fx, fy, cx, cy = cameras.intrinsics[index].tolist()
    matrix = [*cameras.c2w[index].tolist(), [0.0, 0.0, 0.0, 1.0]]
    time = {} if cameras.times is None else {"time": cameras.times[index].item()}
    return {
        "fl_x": fx,
        "fl_y": fy,
        "cx": cx,
        "cy": cy,
        "w": width,
        "h": height,
        **_lens_keys(cameras, index),
        **time,
        "transform_matrix": matrix,
    }


def _lens_keys(cameras: Cameras, index: int) -> dict[str, object]:
    if cameras.lens_model is None or cameras.lens is None:
        return {"camera_model": "PINHOLE"}
    model, values = LENS_MODELS[int(cameras.lens_model[index])], cameras.lens[index].tolist()
    names = {"pinhole": "PINHOLE", "fisheye": "OPENCV_FISHEYE", "equirectangular": "EQUIRECTANGULAR"}
    name = names.get(model) or ("FULL_OPENCV" if any(values[5:]) else "OPENCV")
    return {"camera_model": name, **dict(zip(MODELS[name][1], values, strict=False))}
