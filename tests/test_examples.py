"""Every public name of ``lightning_nerf`` and ``lightning_nerf.nerfacc`` has an example in its docstring, and it runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from typing import Any

import pytest
import torch

import lightning_nerf
from lightning_nerf import nerfacc

# Of nerfacc's modules: what is public for use within the package, and errors that are shown by another's example.
NEED_NONE = {"argument_errors", "MissingVDB", "NerfAccState", "NerfAccType", "traverse_vdbs"}
GLOBALS = {"torch": torch, "lightning_nerf": lightning_nerf, "nerfacc": nerfacc}  # what an example need not import


def names_of_nerfacc() -> dict[str, Any]:
    """All functions and classes of its modules, by the path that a user may import them from."""
    found = {}
    for info in pkgutil.walk_packages(nerfacc.__path__, "lightning_nerf.nerfacc."):
        if any(part.startswith("_") for part in info.name.split(".")):
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if callable(value) and getattr(value, "__module__", "") == info.name and not name.startswith("_"):
                found[f"{info.name}.{name}"] = value
    return found


def public() -> dict[str, Any]:
    names = {f"lightning_nerf.{n}": getattr(lightning_nerf, n) for n in lightning_nerf.__all__}
    names |= {f"lightning_nerf.nerfacc.{n}": getattr(nerfacc, n) for n in nerfacc.__all__}
    names |= {"lightning_nerf.nerfacc.NerfAccArgument": nerfacc.NerfAccArgument, **names_of_nerfacc()}
    return {name: value for name, value in names.items() if callable(value)}


PUBLIC = public()


def examples(name: str, value: Any) -> list[doctest.DocTest]:
    """Those of a function, or of a class and its methods."""
    methods = [m for m in vars(value).values() if inspect.isfunction(m)] if inspect.isclass(value) else []
    texts = [inspect.cleandoc(part.__doc__ or "") for part in (value, *methods)]
    parser = doctest.DocTestParser()
    tests = [parser.get_doctest(text, dict(GLOBALS), name, None, None) for text in texts]
    return [test for test in tests if test.examples]


@pytest.mark.parametrize("name", PUBLIC)
def test_the_examples_run(name: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for test in examples(name, PUBLIC[name]):
        said: list[str] = []
        doctest.DocTestRunner(optionflags=flags).run(test, out=said.append)
        assert not said, "".join(said)


def test_every_public_name_has_one() -> None:
    without = {name for name, value in PUBLIC.items() if not examples(name, value)}
    assert {name.rpartition(".")[2] for name in without if name.startswith("lightning_nerf.nerfacc.")} <= NEED_NONE
    of_top_level = {name.rpartition(".")[2] for name in without if name.count(".") == 1}
    assert of_top_level == set(), "each has an example in its docstring"


def test_the_first_lines_are_short_sentences() -> None:
    for name, value in names_of_nerfacc().items():
        first = inspect.cleandoc(value.__doc__ or "").split("\n")[0]
        assert first.endswith("."), f"{name}: {first}"
        assert 10 < len(first) <= 100, f"{name}: {first}"


def test_a_wrong_example_is_told() -> None:
    def wrong() -> None:
        """Add.

        >>> 1 + 1
        3
        """

    said: list[str] = []
    for test in examples("wrong", wrong):
        doctest.DocTestRunner().run(test, out=said.append)
    assert "Expected:" in "".join(said)
