"""Camera files as tools write them, and what may become of them on the way: changed values, keys, structure and bytes."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from lightning_nerf.cameras.poses import spiral_poses

POSES = [[*pose.tolist(), [0, 0, 0, 1]] for pose in spiral_poses(4, 4.0, (-10.0, 60.0))]
SIZE = (8, 6)  # width, height of the pictures r_0.png, ..., r_3.png

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e-300, 1e-30, 1e-8, 3.2, 1e9, 1e30, 1e38, 1e300, 10**400),
    *(float("nan"), float("inf"), float("-inf")),
    *("", "0", "a", "OPENCV", "OPENCV_FISHEYE", "r_0.png", "r_9", "../..", "/dev/zero"),
    *("a" * 5000, "a/" * 5000, "\0", "\ud800\n\x1b[2J"),
    *([], {}, [[]], [None], [0.0] * 4, [[0.0] * 4] * 4, [[1.0] * 4] * 3, {"a": {"b": []}}, ["a"] * 50),
)


CAPTURE_KEYS = ("K", "split", "depth_path", "mask_path", "distortion_params", "camera_model", "k1", "k4", "is_fisheye")
_TOKENS = (b"[", b"{", b'"', b"9", b"-", b"e", b"NaN", b"\xff", b"\\u0000", b"\n")


def camera_file(random_: random.Random) -> dict[str, Any]:
    """One that is sound: of NeRF-Synthetic, of colmap2nerf, or with a camera per frame."""
    frames: list[dict[str, Any]] = [{"file_path": f"r_{i}.png", "transform_matrix": POSES[i]} for i in range(4)]
    kind = random_.randrange(3)
    if kind == 0:
        for i, frame in enumerate(frames):
            frame |= {"file_path": f"./r_{i}", "time": i / 3, "rotation": 0.01}
        lists = {"train_filenames": ["r_0", "./r_1.png"], "val_filenames": [], "test_filenames": ["r_2"]}
        return {"camera_angle_x": 0.7, "frames": frames, **(lists if random_.random() < 0.5 else {})}
    camera = {"fl_x": 10.0, "fl_y": 11.0, "cx": 4.5, "cy": 2.5, "w": SIZE[0], "h": SIZE[1], "k1": 0.0, "k2": 0}
    if kind == 1:
        angles = {"camera_angle_x": 0.7610, "camera_angle_y": 0.5325, "is_fisheye": False, "aabb_scale": 4}
        return {**camera, **angles, "frames": frames}
    for frame in frames:
        frame |= {**camera, "camera_model": "OPENCV", "mask_path": "r_0.png"}
    return {"camera_model": "OPENCV", "frames": frames}


def mutated(content: Any, random_: random.Random) -> bytes:
    """The text of the file after one to four changes, of its values or of its bytes."""
    content = copy.deepcopy(content)
    for _ in range(random_.randint(1, 4)):
        if random_.random() < 0.75:
            content = _change_value(content, random_)
    text = json.dumps(content).encode(random_.choice(["utf-8"] * 8 + ["utf-8-sig", "utf-16"]))
    if random_.random() < 0.25:
        text = mutated_bytes(text, random_)
    return text


def mutated_bytes(data: bytes, random_: random.Random) -> bytes:
    """One to four bytes or runs of bytes changed, left out or repeated."""
    changed = bytearray(data)
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(changed) + 1)
        run = random_.choice([1, 1, 1, 4, 100])
        kind = random_.randrange(5)
        if kind == 0:
            changed[at : at + run] = random_.randbytes(run)
        elif kind == 1:
            del changed[at : at + run]
        elif kind == 2:
            changed[at:at] = changed[at : at + run] * random_.choice([1, 50])
        elif kind == 3:
            changed[at:at] = random_.choice(_TOKENS) * run * random_.choice([1, 50])
        elif random_.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def _change_value(content: Any, random_: random.Random) -> Any:
    """Replace, remove, repeat, wrap or rename what a random path leads to."""
    if not isinstance(content, (dict, list)) or not content or random_.random() < 0.03:
        return copy.deepcopy(random_.choice(ODD))
    keys: list[Any] = list(content) if isinstance(content, dict) else list(range(len(content)))
    key = random_.choice(keys)
    if isinstance(content[key], (dict, list)) and random_.random() < 0.8:
        content[key] = _change_value(content[key], random_)
        return content
    kind = random_.randrange(7)
    if kind == 0:
        del content[key]
    elif kind == 1 and isinstance(content, list):
        content.append(content[key])
    elif kind == 2:
        content[key] = [content[key]]
    elif kind == 3 and isinstance(content[key], (int, float)) and abs(content[key]) < 1e300:
        content[key] *= random_.choice([-1, 1e-3, 0.5, 1.02, 2, 1e3, 1e30])
    elif kind == 4 and isinstance(content, dict):
        content[random_.choice([*_NAMES, str(key) * 3])] = content[key]
    elif kind == 5 and isinstance(content, dict):
        content[random_.choice(_NAMES)] = copy.deepcopy(random_.choice(ODD))
    else:
        content[key] = copy.deepcopy(random_.choice(ODD))
    return content


_NAMES = ("frames", "file_path", "transform_matrix", "mask_path", "time", "fl_x", "fl_y", "cx", "cy", "w", "h", "k1", "p2")
_NAMES += ("camera_angle_x", "camera_angle_y", "camera_model", "is_fisheye", "distortion_params", "ftheta_p0", "other")
