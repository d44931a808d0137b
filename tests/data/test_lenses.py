from __future__ import annotations

from typing import Any

import pytest

from lightning_nerf.cameras.cameras import LENS_MODELS
from lightning_nerf.data.lenses import Lens, lens_tensors, read_lens

FISHEYE = {"is_fisheye": True, "k1": 0.1, "k2": 0.2, "k3": 0.3, "k4": 0.4}


def eight(*values: float) -> tuple[float, ...]:
    return tuple([*values] + [0.0] * (8 - len(values)))


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Lens]] = {
    "nothing": ({}, {}, Lens()),
    "zeros": ({"camera_model": "OPENCV", "k1": 0.0, "p1": 0}, {}, Lens()),
    "a pinhole's name": ({"camera_model": "PINHOLE", "k1": 0.1}, {}, Lens()),
    "no name": ({"k1": 0.1, "k2": 0.2, "p1": 0.3, "p2": 0.4}, {}, Lens("opencv", eight(0.1, 0.2, 0.3, 0.4))),
    "k3": ({"camera_model": "OPENCV", "k3": 0.5}, {}, Lens("opencv", eight(0, 0, 0, 0, 0.5))),
    "rational": (
        {"camera_model": "FULL_OPENCV", "k1": 1, "k2": 2, "p1": 3, "p2": 4, "k3": 5, "k4": 6, "k5": 7, "k6": 8},
        {},
        Lens("opencv", eight(1, 2, 3, 4, 5, 6, 7, 8)),
    ),
    "rational without a name": ({"k4": 6, "k6": 8}, {}, Lens("opencv", eight(0, 0, 0, 0, 0, 6, 0, 8))),
    "simple radial": ({"camera_model": "SIMPLE_RADIAL", "k1": 0.1}, {}, Lens("opencv", eight(0.1))),
    "radial": ({"camera_model": "radial", "k1": 0.1, "k2": 0.2}, {}, Lens("opencv", eight(0.1, 0.2))),
    "instant-ngp's fisheye": (FISHEYE, {}, Lens("fisheye", eight(0.1, 0.2, 0.3, 0.4))),
    "a fisheye without distortion": ({"camera_model": "OPENCV_FISHEYE"}, {}, Lens("fisheye")),
    "a panorama": ({"camera_model": "EQUIRECTANGULAR"}, {}, Lens("equirectangular")),
    "nerfstudio's list": ({"distortion_params": [1, 2, 3, 0, 5, 6]}, {}, Lens("opencv", eight(1, 2, 5, 6, 3))),
    "a frame's before the file's": ({"k1": 0.1, "k2": 0.2}, {"k1": 0.3}, Lens("opencv", eight(0.3))),
    "a frame's model": ({"k1": 0.1}, {"camera_model": "OPENCV_FISHEYE"}, Lens("fisheye", eight(0.1))),
}


@pytest.mark.parametrize("case", CASES)
def test_lenses_of_camera_files(case: str) -> None:
    file, frame, expected = CASES[case]
    assert read_lens("x.json", file, frame) == expected


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"camera_model": "THIN_PRISM_FISHEYE"}, "x.json: camera model 'THIN_PRISM_FISHEYE' is not supported"),
        ({"camera_model": 5}, "x.json: expected a name for camera_model, got 5"),
        ({"latlong": True}, "x.json: latlong=True is not supported"),
        ({"k1": "a"}, "x.json: expected a finite number for k1, got 'a'"),
        ({"k1": float("nan")}, "x.json: expected a finite number for k1"),
        ({"camera_model": "OPENCV", "k4": 0.1}, "camera model OPENCV has k1, k2, p1, p2, k3, got k4=0.1"),
        ({"camera_model": "SIMPLE_RADIAL", "k2": 0.1}, "camera model SIMPLE_RADIAL has k1, got k2=0.1"),
        ({"distortion_params": [1, 2]}, "expected distortion_params to be k1, k2, k3, k4, p1, p2"),
    ],
)
def test_lenses_that_cannot_be_honored_are_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_lens("x.json", entry, {})


def test_pinholes_need_no_tensors_and_others_have_their_numbers() -> None:
    assert lens_tensors([Lens(), Lens()]) == (None, None)
    models, coefficients = lens_tensors([Lens(), Lens("fisheye", eight(0.5)), Lens("equirectangular")])
    assert models is not None
    assert coefficients is not None
    assert [LENS_MODELS[i] for i in models] == ["pinhole", "fisheye", "equirectangular"]
    assert coefficients[:, 0].tolist() == [0.0, 0.5, 0.0]
    assert coefficients.shape == (3, 8)
