"""A report is a dictionary: scalars, dictionaries of scalars, and tables as lists of rows. Printed, or written as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WIDEST, LONGEST = 72, 60  # characters of a cell and rows of a table; the JSON has all


Report = dict[str, Any]  # what a benchmark found: numbers, words, and rows of such


def show(report: Mapping[str, object]) -> None:
    """Print a report."""
    for name, value in report.items():
        if isinstance(value, Mapping):
            print(f"{name}: " + ", ".join(f"{k} {_cell(v)}" for k, v in value.items()))
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            left_out = f"\n... and {len(value) - LONGEST} more" if len(value) > LONGEST else ""
            print(f"\n{name}\n{table(value[:LONGEST])}{left_out}\n")
        else:
            print(f"{name}: {_cell(value) if isinstance(value, float) else value}")


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as text, a column per key that has a value in any of them; numbers flush right."""
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if any(_given(r.get(key)) for r in rows)]
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    right = [all(not isinstance(row.get(column), str) for row in rows) for column in columns]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]

    def line(texts: Sequence[str]) -> str:
        aligned = (f"{t:>{w}}" if r else f"{t:<{w}}" for t, w, r in zip(texts, widths, right, strict=True))
        return "  ".join(aligned).rstrip()

    return "\n".join([line(columns), line(["-" * width for width in widths]), *map(line, cells)])


def write_json(path: Path, report: Mapping[str, object]) -> None:
    """Write a report; NaN and infinities become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_finite(report), indent=2) + "\n")


def _given(value: object) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _cell(value: object) -> str:
    if not _given(value):
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    text = str(value)
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."


def _finite(value: object) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
