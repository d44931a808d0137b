"""Lenses as camera files name them, and as :class:`~lightning_nerf.Cameras` keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nerf.cameras.cameras import LENS_MODELS
from lightning_nerf.checks import BadArgument
from lightning_nerf.data.json_file import is_number, shorten

_ORDER = {"opencv": ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"), "fisheye": ("k1", "k2", "k3", "k4")}
_POLYNOMIAL = ("k1", "k2", "p1", "p2", "k3")
MODELS = {  # by COLMAP's names: the lens, and those of its coefficients that the name allows, in OpenCV's order
    "PINHOLE": ("pinhole", ()),
    "SIMPLE_PINHOLE": ("pinhole", ()),
    "PERSPECTIVE": ("opencv", _POLYNOMIAL),  # nerfstudio's name for all of OpenCV's
    "SIMPLE_RADIAL": ("opencv", ("k1",)),
    "RADIAL": ("opencv", ("k1", "k2")),
    "OPENCV": ("opencv", _POLYNOMIAL),
    "FULL_OPENCV": ("opencv", _ORDER["opencv"]),
    "OPENCV_FISHEYE": ("fisheye", _ORDER["fisheye"]),
    "SIMPLE_RADIAL_FISHEYE": ("fisheye", ("k1",)),
    "RADIAL_FISHEYE": ("fisheye", ("k1", "k2")),
    "EQUIRECTANGULAR": ("equirectangular", ()),
}
_FLAGS = {"is_fisheye": "OPENCV_FISHEYE", "equirectangular": "EQUIRECTANGULAR"}  # of instant-ngp's files
_REFUSED_FLAGS = ("latlong", "orthographic", "ftheta_p0")
_NAMES = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
_LISTED = ("k1", "k2", "k3", "k4", "p1", "p2")  # the order of nerfstudio's distortion_params


class Lens(NamedTuple):
    """One of ``LENS_MODELS`` and its eight coefficients, the unused ones 0."""

    model: str = "pinhole"
    coefficients: tuple[float, ...] = (0.0,) * 8


def make_lens(where: str, name: str, values: Mapping[str, float]) -> Lens:
    """The lens of a model by COLMAP's name, "OPENCV" for example, and its coefficients by OpenCV's names, "k1" for example.

    A lens without distortion is a pinhole.

    Raises:
        BadArgument: another model, or a coefficient that the model does not have.
    """
    if name not in MODELS:
        raise BadArgument(
            f"{where}: camera model {shorten(name)} is not supported, expected one of {', '.join(MODELS)}; undistort the "
            "pictures (say with COLMAP's image_undistorter) and give their new camera file"
        )
    model, allowed = MODELS[name]
    if model in ("pinhole", "equirectangular"):  # stray coefficients beside such a name have no meaning
        return Lens(model)
    extra = [key for key, value in values.items() if value and key not in allowed]
    if extra:
        # nerfstudio's k4 multiplies r^8 and OpenCV's divides: taking one for the other bends the picture without a word.
        raise BadArgument(
            f"{where}: camera model {name} has {', '.join(allowed)}, got {extra[0]}={values[extra[0]]:g}; if all follow "
            "OpenCV's rational lens, set camera_model to FULL_OPENCV, else undistort the pictures"
        )
    if model == "opencv" and not any(values.values()):
        return Lens()
    coefficients = [float(values.get(key, 0.0)) for key in _ORDER[model]]
    return Lens(model, tuple(coefficients + [0.0] * (8 - len(coefficients))))


def read_lens(where: str, file: Mapping[str, object], frame: Mapping[str, object]) -> Lens:
    """The lens of one frame of a ``transforms.json``.

    The frame's model counts before the file's. A frame that states a coefficient takes none from the file.
    """
    values = _coefficients(where, frame)
    if values is None:
        values = _coefficients(where, file) or {}
    name = _model_name(where, frame) or _model_name(where, file)
    if name is None:
        name = "FULL_OPENCV" if values.get("k5") or values.get("k6") else "OPENCV"
    return make_lens(where, name, values)


def lens_tensors(lenses: Sequence[Lens]) -> tuple[Tensor | None, Tensor | None]:
    """``Cameras.lens_model`` [V] and ``Cameras.lens`` [V, 8]; None, None where all are pinholes."""
    if all(lens.model == "pinhole" for lens in lenses):
        return None, None
    models = torch.tensor([LENS_MODELS.index(lens.model) for lens in lenses], dtype=torch.int64)
    return models, torch.tensor([lens.coefficients for lens in lenses], dtype=torch.float32)


def _model_name(where: str, entry: Mapping[str, object]) -> str | None:
    for flag in _REFUSED_FLAGS:
        if entry.get(flag):
            raise BadArgument(f"{where}: {flag}={shorten(entry[flag])} is not supported; undistort the pictures")
    for flag, name in _FLAGS.items():
        if entry.get(flag):
            return name
    model = entry.get("camera_model")
    if model is None or model == "":
        return None
    if not isinstance(model, str):
        raise BadArgument(f"{where}: expected a name for camera_model, got {shorten(model)}")
    return model.upper()


def _coefficients(where: str, entry: Mapping[str, object]) -> dict[str, float] | None:
    """Those that an entry states; None: none."""
    listed = entry.get("distortion_params")
    values: dict[str, object] = {name: entry[name] for name in _NAMES if entry.get(name) is not None}
    if listed is not None:
        if not isinstance(listed, list) or len(listed) not in (4, 6):
            raise BadArgument(f"{where}: expected distortion_params to be k1, k2, k3, k4, p1, p2, got {shorten(listed)}")
        values = dict(zip(_LISTED, listed, strict=False))
    for name, value in values.items():
        if not is_number(value):
            raise BadArgument(f"{where}: expected a finite number for {name}, got {shorten(value)}")
    return {name: float(value) for name, value in values.items()} if values else None  # type: ignore[arg-type]
