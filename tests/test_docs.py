"""The Python in the documentation runs as it stands, or says why it does not."""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from lightning_nerf import nerfacc

ROOT = Path(__file__).parents[1]
PAGES = [str(page.relative_to(ROOT)) for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
# A snippet, and the comment right above it: "not run: why", or "continues PAGE", whose names it uses.
SNIPPET = re.compile(r"(?:<!-- (.*?) -->\n)?^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHORTER = {
    "max_steps=300": "max_steps=3",
    "SyntheticScene(resolution=100, n_train=30, n_test=4)": "SyntheticScene(resolution=24, n_train=4, n_test=2, n_val=1)",
}


def read(page: str) -> str:
    return (ROOT / page).read_text()


@functools.cache
def run(page: str) -> dict[str, Any]:
    """Run a page's snippets one after the other, with one set of names; once."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for comment, snippet in SNIPPET.findall(read(page)):
        if comment.startswith("not run: "):
            continue
        if comment:
            names |= run(comment.removeprefix("continues "))
        for long, short in SHORTER.items():
            snippet = snippet.replace(long, short)
        exec(compile(snippet, page, "exec"), names)
    return names


@pytest.mark.parametrize("page", [page for page in PAGES if SNIPPET.search(read(page))])
def test_snippets_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scene_cache: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(scene_cache))
    run(page)


def test_every_snippet_is_one_that_runs_or_says_why_not() -> None:
    text = "".join(read(page) for page in PAGES)
    found = SNIPPET.findall(text)
    assert len(found) == len(re.findall(r"^\s*(?:```|~~~)\s*(?:py|python\d?|pycon)\b", text, re.MULTILINE)) > 5
    for comment, _ in found:
        assert re.fullmatch(r"(not run: .{10,}|continues docs/\S+\.md)?", comment), comment
    for long in SHORTER:
        assert text.count(long) == 1


def test_the_short_examples_are_short() -> None:
    snippets = [snippet for _, snippet in SNIPPET.findall(read("docs/bring-your-own-field.md"))]
    (trainer,) = [snippet for snippet in snippets if "L.Trainer" in snippet]
    for snippet, most in ((snippets[0], 10), (trainer, 20)):
        assert len([line for line in snippet.splitlines() if line.strip()]) <= most


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", read(page)):
        assert ((ROOT / page).parent / target).exists(), target


def test_every_name_of_nerfacc_has_a_row_that_says_where_it_is() -> None:
    listed: dict[str, str] = {}
    for names, module in re.findall(
        r"^\| (`\w+`(?:, `\w+`)*) \| `([\w.]+)` \|", read("docs/coming-from-nerfacc.md"), re.MULTILINE
    ):
        listed |= dict.fromkeys(re.findall(r"\w+", names), module)
    assert set(nerfacc.__all__) <= set(listed)
    for name, module in listed.items():
        assert hasattr(importlib.import_module(f"lightning_nerf.nerfacc.{module}"), name), (name, module)
