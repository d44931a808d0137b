from __future__ import annotations

import copy
import enum
import functools
import importlib
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_nerf.arguments import Recorded, build, described, differences
from lightning_nerf.checks import BadArgument
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
    whole = Whole(Heir(1), things, folder=Path("x"), act=torch.nn.Sigmoid)
    assert described(whole)["init_args"]["things"][:3] == [0.5, True, None]  # and not what the constructor appended
    again = rebuilt(whole)
    assert again.part.depth == 1
    assert again.folder == Path("x")
    assert again.act is torch.nn.Sigmoid
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


FUNCTIONS = [
    "os._exit",
    "torch.sigmoid",
    f"{HERE}.rebuilt",
    "builtins.print",
    "lightning_nerf.cli.main",
    f"{HERE}.Part.forward",
]


@pytest.mark.parametrize("path", FUNCTIONS)
def test_functions_are_never_taken_from_a_file(path: str) -> None:
    """Not even of allowed packages: whoever gets one calls it."""
    name = {"class_path": path}
    with pytest.raises(BadArgument, match=r"^act: the checkpoint names .*functions are never taken from one; pass act="):
        build(
            {"class_path": f"{HERE}.Whole", "init_args": {"part": described(Part()), "act": name}},
            Recorded,
            allow=["tests"],
        )
    schedule = {"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": name}}
    with pytest.raises(BadArgument, match=r"^things\.lr_lambda: the checkpoint names .*functions are never taken"):
        build({"class_path": f"{HERE}.Whole", "init_args": {"part": described(Part()), "things": schedule}}, Recorded)


def test_a_constructors_own_function_is_its_default() -> None:
    whole = Whole(Part())
    assert described(whole)["init_args"]["act"] == {"class_path": "torch.relu"}
    assert rebuilt(whole).act is torch.relu


@pytest.mark.parametrize(
    "path",
    [
        "subprocess.Popen",
        "tempfile.TemporaryDirectory",
        "lightning_nerf.cli.NeRFCLI",
        "pathlib.Path",
        "lightning_nerf.files.Path",
    ],
)
def test_a_class_that_would_do_something_when_called_is_not_handed_on(path: str) -> None:
    with pytest.raises(BadArgument, match=r"^act: the checkpoint names "):
        build(
            {"class_path": f"{HERE}.Whole", "init_args": {"part": described(Part()), "act": {"class_path": path}}}, Recorded
        )


@pytest.mark.parametrize("act", [torch.nn.ReLU, Part, FusedAdam, torch.float64, Shade.DARK, Shade])
def test_names_that_are_harmless_are_handed_on(act: Any) -> None:
    assert rebuilt(Whole(Part(), act=act)).act is act


@pytest.mark.parametrize(
    "path", ["lightning_nerf.files.os.PathLike", "lightning_nerf.cli.NeRFModule.__init__", f"{HERE}.torch.nn.ReLU"]
)
def test_a_module_within_a_module_leads_nowhere(path: str) -> None:
    with pytest.raises(BadArgument, match=r"not to be found|functions are never"):
        build(
            {"class_path": f"{HERE}.Whole", "init_args": {"part": described(Part()), "act": {"class_path": path}}}, Recorded
        )


def whole(part: Any, **more: Any) -> dict[str, Any]:
    return {"class_path": f"{HERE}.Whole", "init_args": {"part": part, **more}}


MALFORMED_SPECS = {
    "a list": [1], "none": None, "a number": 3, "empty": {}, "dots": {"class_path": "..a.b"}, "a dot": {"class_path": "."},
    "no name": {"class_path": None}, "long": {"class_path": "a." * 10_000 + "b"}, "zero": {"class_path": "a\0.b"},
    "no init_args": {"class_path": f"{HERE}.Part", "init_args": None},
    "keys": {"class_path": f"{HERE}.Part", "init_args": {1: 2}},
    "a list of init_args": {"class_path": f"{HERE}.Part", "init_args": [1]},
    "rest": {"class_path": f"{HERE}.Part", "init_args": {"rest": 5}},
    "raises": {"class_path": f"{HERE}.Raises", "init_args": {"value": "x\ny"}},
    "abstract": {"class_path": "lightning_nerf.fields.base.RadianceField", "init_args": {}},
    "an inner one": whole({"class_path": f"{HERE}.Part", "init_args": None}),
    "an inner list": whole({"class_path": [1], "init_args": {}}),
    "parameters": whole({"class_path": "torch.optim.SGD", "init_args": {"params": [1]}}),
    "an option": whole({"class_path": "torch.optim.SGD", "init_args": {"x": 1}}),
    "unnamed": {"unnamed": 3}, "unnamed list": {"unnamed": [[]]},
    "digits": {"class_path": f"{HERE}.Raises", "init_args": {"value": 10**5000}},
}  # fmt: skip


class Raises(Recorded):
    def __init__(self, value: Any) -> None:
        raise RuntimeError(value if isinstance(value, str) else "digits")


@pytest.mark.parametrize("spec", MALFORMED_SPECS.values(), ids=MALFORMED_SPECS)
def test_a_malformed_description_is_an_error_of_one_line(spec: Any) -> None:
    with pytest.raises(BadArgument) as caught:
        build(spec, Recorded)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "came", [None, 3, [1], {}, {"class_path": [1]}, {"class_path": 5, "init_args": None}, torch.zeros(2, 2)]
)
def test_a_malformed_description_differs(came: Any) -> None:
    assert differences(came, described(Part()), "part")


class Writes(Recorded):
    def __init__(self, root: str = "r", cache_dir: str | None = None) -> None:
        self.root, self.cache_dir = root, cache_dir


def test_a_file_does_not_say_where_this_machine_is_written_to() -> None:
    spec = described(Writes("pictures", "/somewhere"))
    assert spec["init_args"]["cache_dir"] == "/somewhere"
    assert vars(build(spec, Writes))["cache_dir"] is None
    assert build(spec, Writes).root == "pictures"
    assert build(spec, Writes, cache_dir="/mine").cache_dir == "/mine"
    inner = {"class_path": f"{HERE}.Whole", "init_args": {"part": spec}}
    assert build(inner, Whole).part.cache_dir is None  # type: ignore[attr-defined]


# -- packages ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that is installed and not imported; importing any of it leaves a file."""
    name = "strange_package"
    (tmp_path / name).mkdir()
    mark = f"from pathlib import Path; Path({str(tmp_path)!r}, 'ran').touch()\n"
    (tmp_path / name / "__init__.py").write_text(mark)
    (tmp_path / name / "field.py").write_text(f"{mark}from {HERE} import Part\nclass Field(Part): ...\ndef run(x): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        del sys.modules[module]


def test_a_package_is_imported_only_where_it_is_allowed(package: str, tmp_path: Path) -> None:
    spec = {"class_path": f"{package}.field.Field", "init_args": {"width": 5}}
    refusal = rf"{package}.field.Field.*--allow {package} \(in Python allow=\['{package}'\]\)"
    with pytest.raises(BadArgument, match=rf"^class_path: .*{refusal}"):
        build(spec, Recorded)
    with pytest.raises(BadArgument, match=rf"^part: .*{refusal}"):
        build({"class_path": f"{HERE}.Whole", "init_args": {"part": spec}}, Recorded)
    for allow in ([], ["strange"], [f"{package}.other"]):
        with pytest.raises(BadArgument, match=refusal):
            build(spec, Recorded, allow=allow)
    assert not (tmp_path / "ran").exists()
    assert build(spec, Part, allow=[package]).width == 5
    assert (tmp_path / "ran").exists()
    assert build(spec, Part).width == 5  # it is imported by now
    act = {"class_path": f"{package}.field.run"}
    with pytest.raises(BadArgument, match="functions are never taken"):
        build({"class_path": f"{HERE}.Whole", "init_args": {"part": spec, "act": act}}, Recorded, allow=[package])


def test_a_module_of_an_imported_package_is_asked_for_too(package: str, tmp_path: Path) -> None:
    importlib.import_module(package)
    with pytest.raises(BadArgument, match=f"--allow {package}"):
        build({"class_path": f"{package}.field.Field", "init_args": {}}, Recorded)
    assert f"{package}.field" not in sys.modules


@pytest.mark.parametrize("allow", [["a-b"], [""], [5], ["a..b"], [None]])
def test_what_is_allowed_has_to_be_a_package(allow: Any) -> None:
    with pytest.raises(BadArgument, match="allow: expected names of packages"):
        build(described(Part()), Part, allow=allow)


@pytest.mark.parametrize("path", [f"{HERE}.Gone", "no_such_package.fields.Mine", "__main__.Mine", "", 3])
def test_a_class_that_is_gone_is_named(path: Any) -> None:
    with pytest.raises(ValueError, match=r"class_path: .*not to be found"):
        build({"class_path": path, "init_args": {}}, Recorded)
    with pytest.raises(ValueError, match=r"part: .*not to be found.*pass part="):
        build({"class_path": f"{HERE}.Whole", "init_args": {"part": {"class_path": path, "init_args": {}}}}, Recorded)


def test_an_argument_that_is_gone_is_named() -> None:
    spec = {"class_path": f"{HERE}.Whole", "init_args": {"part": described(Part()), "color": 1}}
    with pytest.raises(ValueError, match=r"color: .*Whole"):
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


@pytest.mark.parametrize("kind", [{"class_path": torch.zeros(9, 9)}, {"class_path": "a\n" * 999}, {"x": torch.zeros(9, 9)}])
def test_a_difference_is_one_short_line_whatever_a_file_names_as_the_class(kind: dict[str, Any]) -> None:
    (line,) = differences({"init_args": {}, **kind}, described(Part()), "part")
    assert line.startswith("part: came ")
    assert line.endswith(f", expected {HERE}.Part")
    assert line.isprintable()
    assert len(line) < 300


def test_a_scripts_class_is_itself_when_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    came = {"class_path": "__main__.Heir", "init_args": {"depth": 2}}
    assert differences(came, described(Heir(2)), "part") == []
    monkeypatch.setattr(sys.modules["__main__"], "Heir", Heir, raising=False)
    assert build(came, Part).depth == 2  # type: ignore[attr-defined]
