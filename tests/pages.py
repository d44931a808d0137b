"""The documentation's pages, and the fenced blocks on them.

The line above a block may hold one comment: ``<!-- not run: why -->``; above Python ``<!-- continues PAGE -->``, whose
names it uses; above YAML and JSON ``<!-- file: NAME -->``, as which all of the page's commands find it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [str(page.relative_to(ROOT)) for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
NOT_RUN = "not run: "
_BLOCK = re.compile(r"(?:^<!-- ([^\n]*?) -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    comment: str
    language: str
    text: str

    @property
    def is_run(self) -> bool:
        return not self.comment.startswith(NOT_RUN)


def read(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str, *languages: str) -> list[Block]:
    """The blocks of a page in these languages, in order."""
    found = [Block(*groups) for groups in _BLOCK.findall(read(page))]
    return [block for block in found if block.language in languages]
