"""What became of the pictures, and what to do where few have a pose."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_nerf.files import whole_file
from lightning_nerf.process.sfm import Model

FEW_FEATURES = 200
FEW = 0.9  # share of registered pictures, below which there is advice
HIGH_ERROR = 1.5  # pixels
_SHOWN = 8  # names in a line

UNREADABLE = "cannot be read as a picture"
PLAIN = f"fewer than {FEW_FEATURES} features: blurred, dark or plain"
ALONE = "matches no other picture"
ELSEWHERE = "in another model"
UNFIT = "matches others, but no pose fits"


class Report(NamedTuple):
    """The result of a run."""

    pictures: int
    registered: int
    error: float  # mean reprojection error in pixels
    points: int
    models: list[int]  # how many pictures each model has, the largest first
    failed: dict[str, str]  # why, for each picture without a pose
    cameras: list[dict[str, object]]
    advice: list[str]


def make_report(
    models: Sequence[Model],
    names: Sequence[str],
    unreadable: Sequence[str],
    n_features: Mapping[str, int],
    n_partners: Mapping[str, int],
    matcher: str,
    mapper: str,
    camera_model: str,
) -> Report:
    """The report on the largest of the models.

    Args:
        models: the largest first; may be empty.
        names: the pictures.
        unreadable: files that are none.
        n_features: how many each picture has.
        n_partners: how many others each matches.
        matcher, mapper, camera_model: what was used, which the advice knows alternatives to.
    """
    elsewhere = {name for model in models[1:] for name in model.poses}
    largest = models[0] if models else Model({}, {}, 0, 0.0)
    failed = dict.fromkeys(unreadable, UNREADABLE)
    for name in names:
        if name not in largest.poses:
            failed[name] = _why(name, elsewhere, n_features, n_partners)
    cameras: list[dict[str, object]] = [
        {"model": lens.model, "w": lens.width, "h": lens.height, "params": list(lens.params)}
        for lens in largest.lenses.values()
    ]
    counted = [len(model.poses) for i, model in enumerate(models) if i == 0 or not set(model.poses) <= set(largest.poses)]
    total = len(names) + len(unreadable)
    found = Report(total, len(largest.poses), largest.error, largest.n_points, counted, failed, cameras, [])
    return found._replace(advice=advise(found, matcher, mapper, camera_model))


def advise(report: Report, matcher: str, mapper: str, camera_model: str) -> list[str]:
    """What to do, the likeliest first; nothing where the result is good."""
    advice: list[str] = []
    reasons = list(report.failed.values())
    if report.registered < FEW * report.pictures:
        if matcher == "sequential":
            advice.append("--matcher exhaustive compares every two pictures: slower, and needs no order of the pictures")
        if ELSEWHERE in reasons:
            advice.append("take pictures between the parts: neighbors should share half of what they show")
        if ALONE in reasons or UNFIT in reasons:
            advice.append("take more pictures in smaller steps, and walk around the scene: do not turn on the spot")
        if PLAIN in reasons:
            advice.append("leave out blurred pictures, add light, or put things with texture (a newspaper) into the scene")
        other = "global" if mapper == "incremental" else "incremental"
        advice.append(f"--mapper {other} looks for the poses in another way; features and matches are kept")
    if report.error > HIGH_ERROR:
        other = "OPENCV" if camera_model != "OPENCV" else "FULL_OPENCV"
        advice.append(f"--camera_model {other} knows more distortion (OPENCV_FISHEYE for action cameras and wide lenses)")
        advice.append("--no-single_camera gives each picture its own focal length, for a zoom that was moved")
    return advice


def show(report: Report) -> list[str]:
    """The lines that are printed."""
    share = 100 * report.registered / report.pictures
    lines = [f"registered {report.registered} of {report.pictures} pictures ({share:.0f} %)"]
    if report.registered:
        lines.append(f"mean reprojection error {report.error:.2f} pixels over {report.points} points")
    for camera in report.cameras[:3]:
        params = " ".join(f"{value:.5g}" for value in camera["params"])  # type: ignore[union-attr]
        lines.append(f"camera {camera['model']}, {camera['w']} x {camera['h']}: {params}")
    if len(report.cameras) > 3:
        lines.append(f"and {len(report.cameras) - 3} cameras more")
    if len(report.models) > 1:
        sizes = ", ".join(map(str, report.models[1:]))
        lines.append(
            f"{len(report.models)} models without a link: the largest is taken, left out are those of {sizes} pictures"
        )
    for reason in dict.fromkeys(report.failed.values()):
        names = [name for name, why in report.failed.items() if why == reason]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        lines.append(f"without a pose, {reason}: {', '.join(names[:_SHOWN])}{more}")
    return [*lines, *(f"-> {text}" for text in report.advice)]


def write_report(path: Path, report: Report, used: Mapping[str, object]) -> None:
    """Write it as JSON, with what was used."""
    content = {
        "registered": report.registered,
        "pictures": report.pictures,
        "mean_reprojection_error": report.error,
        "points": report.points,
        "models": report.models,
        "failed": report.failed,
        "cameras": report.cameras,
        "advice": report.advice,
        **used,
    }
    with whole_file(path) as file:
        file.write(json.dumps(content, indent=2).encode())


def _why(name: str, elsewhere: set[str], n_features: Mapping[str, int], n_partners: Mapping[str, int]) -> str:
    if name in elsewhere:
        return ELSEWHERE
    if name not in n_features:
        return UNREADABLE
    if n_features[name] < FEW_FEATURES:
        return PLAIN
    return UNFIT if n_partners.get(name, 0) else ALONE
