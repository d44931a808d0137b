from __future__ import annotations

import copy
import enum
import functools
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_nerf.arguments import Recorded, build, described, differences
from lightning_nerf.optim import FusedAdam

HERE = __name__


class Shade(enum.Enum):
    DARK = 0


class Part(Recorded, nn.Module):
    def __init__(self, width: int = 3, *rest: int, name: str = "a", **options: Any) -> None:
        super().__init__()
        self.width, self.rest, self.name, self.options = width, rest, name, options


class Heir(Part):
    """Hands on what it does not know."""

    def __init__(self, depth: int, pair: tuple[int, int] = (1, 2), **kwargs: Any) -> None:
        super().__init__(depth * 2, **kwargs)
        self.depth, self.pair = depth, pair


class Silent(Part):
    """Has no constructor of its own, and one in between."""


class Whole(Recorded):
    def __init__(self, part: Part, things: Any = None, /, *, folder: Path | None = None, act: Any = torch.relu) -> None:
        self.part, self.things, self.folder, self.act = part, things, folder, act
        if isinstance(things, list):
            things.append("changed by the constructor")


def rebuilt(value: Recorded) -> Any:
    spec = described(value)
    text = json.dumps(spec)
    assert described(value) == spec
    return build(json.loads(text), Recorded)


def test_arguments_are_named_as_the_constructor_names_them() -> None:
    assert described(Part(5, 6, 7, name="b", extra=None))["init_args"] == {
        "width": 5, "rest": [6, 7], "name": "b", "extra": None
    }  # fmt: skip
    assert described(Silent()) == {"class_path": f"{HERE}.Silent", "init_args": {"width": 3, "name": "a"}}
    assert described(Heir(2, name="c"))["init_args"] == {"depth": 2, "pair": [1, 2], "name": "c"}


@pytest.mark.parametrize("part", [Part(), Part(5, 6, 7, name="b", extra=[1.5]), Silent(4), Heir(2, (3, 4), name="c")])
def test_rebuilt_is_the_same(part: Part) -> None:
    again = rebuilt(part)
    assert type(again) is type(part)
    for name in ("width", "rest", "name", "options", "depth", "pair"):
        assert getattr(again, name, None) == getattr(part, name, None)
    assert described(again) == described(part)


def test_values_keep_their_kind() -> None:
    things = [np.float32(0.5), True, None, {"a": (1, Shade.DARK)}, torch.float16, functools.partial(FusedAdam, lr=0.5)]
    whole = Whole(Heir(1), things, folder=Path("x"), act=torch.sigmoid)
    assert described(whole)["init_args"]["things"][:3] == [0.5, True, None]  # and not what the constructor appended
    again = rebuilt(whole)
    assert again.part.depth == 1
    assert again.folder == Path("x")
    assert again.act is torch.sigmoid
    assert again.things[3] == {"a": [1, Shade.DARK]}
    assert again.things[4] is torch.float16
    assert again.things[5].func is FusedAdam
    assert again.things[5].keywords == {"lr": 0.5}


def test_what_changes_later_does_not_show() -> None:
    mine: Any = {"n": [1]}
    part = Part(extra=mine)
    before = described(part)
    mine["n"].append(2)
    part.width = 9
    described(part)["init_args"]["extra"]["n"].append(3)
    assert described(part) == before
    assert before["init_args"]["extra"] == {"n": [1]}


def test_copies_keep_the_record() -> None:
    heir = Heir(2)
    for again in (copy.deepcopy(heir), copy.copy(heir), pickle.loads(pickle.dumps(heir))):
        assert described(again) == described(heir)


def test_no_tensor_is_kept() -> None:
    table = torch.zeros(1000)
    spec = described(Part(extra=table))
    assert spec["init_args"]["extra"] == {"unnamed": "a tensor of shape [1000]"}


def local_part() -> Part:
    class Local(Part):
        pass

    return Local()


@pytest.mark.parametrize(
    ("thing", "says"),
    [
        (lambda x: x, "lambda"),
        (local_part(), "Local"),
        (nn.Linear(1, 1), "Linear"),
        (torch.zeros(2, 3), r"tensor of shape \[2, 3\]"),
        (functools.partial(print, "x"), "partial"),
        ({"class_path": "os.getcwd"}, "dict"),
        ({1, 2}, "set"),
    ],
)
def test_what_has_no_name_is_named_when_it_is_missed(thing: Any, says: str) -> None:
    spec = json.loads(json.dumps(described(Whole(Part(inner=[thing])))))
    with pytest.raises(ValueError, match=rf"^part\.inner\[0\].*{says}.*pass part="):
        build(spec, Recorded)
    assert build(spec, Recorded, part=Part(8)).part.width == 8
    assert differences(spec, spec, "whole") == []


def test_a_default_without_a_name_needs_none() -> None:
    class_path = f"{HERE}.{Odd.__name__}"
    assert described(Odd()) == {"class_path": class_path, "init_args": {}}
    assert "unnamed" in described(Odd(lambda: 1))["init_args"]["act"]
    assert rebuilt(Odd()).act() == 0


class Odd(Recorded):
    def __init__(self, act: Any = lambda: 0) -> None:
        self.act = act


def test_only_what_is_expected_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in ({"class_path": "os.system", "init_args": {"command": "false"}}, {"class_path": f"{HERE}.Shade"}):
        with pytest.raises(ValueError, match=r"class_path: expected a subclass of"):
            build(spec, Recorded)
    inner = {"class_path": "subprocess.Popen", "init_args": {"args": "false"}}
    with pytest.raises(ValueError, match=r"^part: .*subprocess\.Popen"):
        build({"class_path": f"{HERE}.Whole", "init_args": {"part": inner}}, Recorded)
    with pytest.raises(ValueError, match=r"expected a subclass of .*Whole"):
        build(described(Part()), Whole)


@pytest.mark.parametrize("path", [f"{HERE}.Gone", "no_such_package.fields.Mine", "__main__.Mine", "", 3])
def test_a_class_that_is_gone_is_named(path: Any) -> None:
    with pytest.raises(ValueError, match=r"class_path: .*not to be found"):
        build({"class_path": path, "init_args": {}}, Recorded)
    with pytest.raises(ValueError, match=r"part: .*not to be found.*pass part="):
        build({"class_path": f"{HERE}.Whole", "init_args": {"part": {"class_path": path, "init_args": {}}}}, Recorded)


def test_an_argument_that_is_gone_is_named() -> None:
    spec = {"class_path": f"{HERE}.Whole", "init_args": {"part": described(Part()), "colour": 1}}
    with pytest.raises(ValueError, match=r"colour: .*Whole"):
        build(spec, Recorded)


def test_wrong_arguments_are_the_constructors_to_refuse() -> None:
    with pytest.raises(TypeError, match="depth"):
        Heir()  # type: ignore[call-arg]


def test_differences_name_the_argument() -> None:
    came, expected = described(Whole(Heir(2))), described(Whole(Heir(3)))
    assert differences(came, expected, "whole") == ["whole.part.depth: came 2, expected 3"]
    other = described(Whole(Silent()))
    assert differences(other, expected, "whole") == [f"whole.part: came {HERE}.Silent, expected {HERE}.Heir"]
    assert differences(came, came, "whole") == []
    nan = described(Part(extra=float("nan")))
    assert differences(nan, described(Part(extra=float("nan"))), "part") == []


def test_a_scripts_class_is_itself_when_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    came = {"class_path": "__main__.Heir", "init_args": {"depth": 2}}
    assert differences(came, described(Heir(2)), "part") == []
    monkeypatch.setattr(sys.modules["__main__"], "Heir", Heir, raising=False)
    assert build(came, Part).depth == 2  # type: ignore[attr-defined]
