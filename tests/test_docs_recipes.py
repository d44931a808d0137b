"""docs/recipes.md describes every key that a recipe has, and no key, class or default that the code has not."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml

from lightning_nerf.recipes import recipe_names, resolve_recipe
from tests.pages import read

PAGE = "docs/recipes.md"
REQUIRED = "required"


@cache
def described() -> dict[str, dict[str, str]]:
    """Of each class path that heads a section: its keys, and the default that is stated for each."""
    sections = re.findall(r"^#+ `([\w.]+\.[A-Z]\w*)`\n(.*?)(?=^#|\Z)", read(PAGE), re.DOTALL | re.MULTILINE)
    return {name: dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", text, re.MULTILINE)) for name, text in sections}


def load(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def arguments(kind: type) -> dict[str, Any]:
    """The constructor's arguments that a recipe may set, and their defaults; those that it hands on, too."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self"]
        found = {p.name: REQUIRED if p.default is p.empty else p.default for p in named} | found
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def keys(recipe: dict[str, Any]) -> Iterator[tuple[str | None, str]]:
    """Each key of a recipe below the top level, with the class path whose argument it is (None: not said here)."""

    def walk(node: Any, kind: str | None) -> Iterator[tuple[str | None, str]]:
        for part in node if isinstance(node, list) else []:
            yield from walk(part, None)
        if not isinstance(node, dict):
            return
        if {"class_path", "init_args"} & set(node):
            kind = node.get("class_path")
            node = node.get("init_args", {})
            yield kind, ""
        for key, value in node.items():
            yield kind, key
            yield from walk(value, None)

    for key, value in recipe.items():
        yield from walk(value, "lightning.Trainer" if key == "trainer" else None)


@pytest.mark.parametrize("name", recipe_names())
def test_every_key_of_a_recipe_is_described(name: str) -> None:
    assert f"`{name}`" in read(PAGE)
    with open(resolve_recipe(name), encoding="utf-8") as file:
        recipe = yaml.safe_load(file)
    assert set(recipe) <= {"seed_everything", "trainer", "model", "data"}
    pages = {load(path): rows for path, rows in described().items()}
    for kind, key in keys(recipe):
        rows = {name for some in pages.values() for name in some} if kind is None else pages.get(load(kind), {})
        assert kind is None or load(kind) in pages, f"{PAGE} has no section '### `{kind}`'"
        assert not key or key in rows, f"{PAGE}, {kind}: no row for {key}"


@pytest.mark.parametrize("path", sorted(described()))
def test_what_is_described_is_what_the_code_has(path: str) -> None:
    rows, actual = described()[path], arguments(load(path))
    if path.startswith("lightning_nerf."):
        assert set(rows) == set(actual) - {"optimizer" if path.endswith("WarmupDecay") else "", "params"}
    for key, stated in rows.items():
        assert key in actual, f"{path} has no argument {key}"
        default = actual[key]
        default = list(default) if isinstance(default, tuple) else getattr(default, "__name__", default)
        assert yaml.safe_load(stated) == default, f"{path}, {key}: the default is {default!r}, not {stated}"
