from __future__ import annotations

import time
from pathlib import Path

import pytest

from lightning_nerf.checks import BadArgument
from lightning_nerf.cli import build
from lightning_nerf.cli_errors import refusals_in_a_line
from lightning_nerf.recipes import MAX_SIZE, check_recipe, recipe_names, resolve_recipe

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGES = "m0: &m0 {a: 1}\n" + "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (BOMB.encode(), "more than 5000 values"),
        (MERGES.encode(), "more than 5000 values"),
        (b"a: &a [*a]\n", "an alias, *a, within what it stands for"),
        (b"[" * 100_000, "values nested deeper than 50"),
        (b"{a: " * 60_000, "values nested deeper than 50"),
        (b"- " * 100_000, "values nested deeper than 50"),
        (b"".join(b" " * i + b"a:\n" for i in range(500)), "values nested deeper than 50"),
        (b"a: [" + b"1, " * 20_000 + b"]", "more than 5000 values"),
        (b"\x7fELF\x02\x01\x00\xff\xfe", "a file that is no UTF-8 text (byte 7)"),
        (b"\x00\x01\x02", "special characters are not allowed"),
        (b"PK\x03\x04" + b"\x00" * 100, "special characters are not allowed"),
        (b"trainer: {max_steps: 3", "an error in line 1: expected ',' or '}'"),
        (b"trainer:\n\tmax_steps: 3\n", "an error in line 2: found character '\\t'"),
        (b"a: *b\n", ""),
        (b"just words", "a text without keys"),
        (b"- 1\n- 2\n", "a text without keys"),
        (b"#" * (MAX_SIZE + 1), f"{MAX_SIZE + 1} characters, more than {MAX_SIZE}"),
    ],
    ids=range(17),
)  # fmt: skip
def test_what_is_no_recipe_is_refused_soon(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    started = time.perf_counter()
    if said:
        with pytest.raises(BadArgument) as caught:
            resolve_recipe(str(path))
        assert str(caught.value).startswith(f"config {str(path)!r}: expected a recipe in YAML, got ")
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize("content", [BOMB.encode(), b"[" * 50_000, b"\x00\x01\xff", b"a: {", b"x"], ids=range(5))
@pytest.mark.parametrize("key", ["trainer", "model", "data", "trainer.logger", "model.field"])
def test_a_file_that_a_recipe_or_an_argument_names_is_refused_soon(
    content: bytes, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("part.yaml").write_bytes(content)
    *parents, last = key.split(".")
    Path("recipe.yaml").write_text(f"{parents[0]}: {{{last}: part.yaml}}" if parents else f"{last}: part.yaml")
    for words in (["-c", "recipe.yaml"], [f"--{key}", "part.yaml"]):
        started = time.perf_counter()
        with pytest.raises(SystemExit) as caught, refusals_in_a_line():
            build(["-c", "synthetic/instant_ngp", *words])
        said = f"{capsys.readouterr().err}{caught.value.code}"
        assert said.startswith("lightning-nerf: ")
        assert len(said) < 2000
        assert time.perf_counter() - started < 10


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "", "/dev/zero", "."])
def test_a_name_that_is_no_file_is_refused(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such file, nor a shipped recipe; those are blender/") as caught:
        resolve_recipe(name)
    assert len(str(caught.value)) < 500


def test_recipes_that_ship_and_aliases_of_a_few_values_are_taken() -> None:
    for name in recipe_names():
        check_recipe(name, Path(resolve_recipe(name)).read_bytes())
    check_recipe("x", b"a: &a {b: [1, 2]}\nc: *a\nd: {<<: *a}\n")
    check_recipe("x", b"\xef\xbb\xbfa: 1\n")  # with a byte order mark
    check_recipe("x", b"")
