"""Reads the file that an offline W&B run leaves."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

BLOCK = 2**15
HEADER = struct.Struct("<IHB")  # checksum, length, type: whole record, first, middle, last part


def offline_runs(save_dir: Path) -> list[SimpleNamespace]:
    """Each finished run's id, config, rows of history and media files, oldest first."""
    import wandb

    wandb.teardown()  # W&B's own process writes the files: wait for its end
    runs = [read_run(path) for path in (save_dir / "wandb").glob("offline-run-*/run-*.wandb")]
    return sorted(runs, key=lambda run: run.started)


def read_run(path: Path) -> SimpleNamespace:
    from wandb.proto.wandb_internal_pb2 import Record

    run = SimpleNamespace(id="", name="", project="", started=0, config={}, config_keys=[], rows=[], media=[])
    for record in (Record.FromString(data) for data in records(path)):
        if record.HasField("run"):
            run.id, run.name, run.project = record.run.run_id, record.run.display_name, record.run.project
            run.started = record.run.start_time.ToNanoseconds()
        updates = record.run.config.update if record.HasField("run") else record.config.update
        for item in updates:
            if item.key and not item.key.startswith("_"):
                run.config_keys.append(item.key)
                run.config[item.key] = json.loads(item.value_json)
        if record.HasField("history"):
            run.rows.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
    run.media = sorted(p for p in (path.parent / "files/media").rglob("*") if p.is_file())
    return run


def records(path: Path) -> list[bytes]:
    """The records of a LevelDB log: parts in blocks, none of which crosses a block's end."""
    data, at, found, parts = path.read_bytes(), 0, [], b""
    assert data[:4] == b":W&B"
    at = 7  # the first block begins with the file's own header
    while at + HEADER.size <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER.size:
            at += left
            continue
        _, length, kind = HEADER.unpack_from(data, at)
        parts += data[at + HEADER.size : at + HEADER.size + length]
        at += HEADER.size + length
        if kind in (1, 4):
            found.append(parts)
            parts = b""
    return found


def column(run: SimpleNamespace, key: str) -> list[tuple[int, Any]]:
    """``(trainer/global_step, value)`` of each row with a key."""
    return [(row["trainer/global_step"], row[key]) for row in run.rows if key in row]
