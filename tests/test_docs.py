"""The Python in the documentation runs as it stands, or says why it does not; links and names lead somewhere."""

from __future__ import annotations

import functools
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lightning_nerf import nerfacc
from lightning_nerf.data.frames import Transforms
from tests.pages import NOT_RUN, PAGES, ROOT, blocks, read

SHORTER = {
    "max_steps=300": "max_steps=3",
    "DynamicScene(resolution=100, n_train=30, n_test=4)": "DynamicScene(resolution=24, n_train=4, n_test=2)",
    "SyntheticScene(resolution=100, n_train=30, n_test=4)": "SyntheticScene(resolution=24, n_train=4, n_test=2, n_val=1)",
}
# What may stand above a block of each language, beside why it is not run; text is what commands print.
COMMENTS = {
    "python": r"(continues docs/\S+\.md)?",
    "bash": "",
    "yaml": r"file: \S+",
    "json": r"file: \S+",
    "text": "",
}


@functools.cache
def run(page: str) -> dict[str, Any]:
    """Run a page's snippets one after the other, with one set of names; once."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        if not block.is_run:
            continue
        if block.comment:
            names |= run(block.comment.removeprefix("continues "))
        snippet = block.text
        for long, short in SHORTER.items():
            snippet = snippet.replace(long, short)
        exec(compile(snippet, page, "exec"), names)
    return names


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_snippets_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scene_cache: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(scene_cache))
    run(page)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page: str) -> None:
    found = blocks(page, *COMMENTS)
    fences = re.findall(r"^\s*(?:```|~~~).*$", read(page), re.MULTILINE)
    assert 2 * len(found) == len(fences), f"a block is indented, or in a language beside {', '.join(COMMENTS)}"
    for block in found:
        why = block.comment.removeprefix(NOT_RUN)
        assert len(why) >= 10 if not block.is_run else re.fullmatch(COMMENTS[block.language], block.comment), block
        if block.language == "text":
            assert not re.search(r"^\s*(\$|>>>|python|pip|lightning-nerf) ", block.text, re.MULTILINE), block
        if block.language == "json":
            json.loads(block.text)


def test_the_frames_of_a_moving_scene_are_read_as_they_stand(tmp_path: Path) -> None:
    (block,) = blocks("docs/dynamic-scenes.md", "json")
    assert len(block.text.splitlines()) == 5
    path = tmp_path / block.comment.removeprefix("file: ")
    path.write_text(block.text)
    frames = Transforms(path, cameras_only=True, needs_times=True).frames
    assert [frame.time for frame in frames] == [0.0, 0.5, 1.0]


def test_shorter_runs_are_of_what_the_pages_say() -> None:
    text = "".join(read(page) for page in PAGES)
    for long in SHORTER:
        assert long in text


def test_the_short_examples_are_short() -> None:
    snippets = [block.text for block in blocks("docs/bring-your-own-field.md", "python")]
    (trainer,) = [snippet for snippet in snippets if "L.Trainer" in snippet]
    for snippet, most in ((snippets[0], 10), (trainer, 20)):
        assert len([line for line in snippet.splitlines() if line.strip()]) <= most


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", read(page)):
        path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text()), f"{target}#{anchor}"


def anchors(text: str) -> set[str]:
    """Of a page's headings, as forges make them: lower case, without punctuation, spaces as hyphens."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_lists_every_page() -> None:
    linked = re.findall(r"\]\((docs/\w[\w-]*\.md)\)", read("README.md"))
    assert set(linked) == set(PAGES) - {"README.md"}


def test_architecture_lists_every_part() -> None:
    table = read("docs/architecture.md").split("## Layers")[1].split("## ")[0]
    listed = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`([\w./]+)`", row)]
    package = ROOT / "lightning_nerf"
    parts = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").is_file()}
    parts |= {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert sorted(listed) == sorted(parts)


def test_every_name_of_nerfacc_has_a_row_that_says_where_it_is() -> None:
    listed: dict[str, str] = {}
    for names, module in re.findall(
        r"^\| (`\w+`(?:, `\w+`)*) \| `([\w.]+)` \|", read("docs/coming-from-nerfacc.md"), re.MULTILINE
    ):
        listed |= dict.fromkeys(re.findall(r"\w+", names), module)
    assert set(nerfacc.__all__) <= set(listed)
    for name, module in listed.items():
        assert hasattr(importlib.import_module(f"lightning_nerf.nerfacc.{module}"), name), (name, module)
