"""COLMAP's mappers, each so that Ctrl-C ends it at once, and its log. Imports no torch: a new process starts with it."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from types import ModuleType

from lightning_nerf.process.sfm import Count


def log_to(colmap: ModuleType, folder: Path) -> None:
    """Have COLMAP write its messages into a file of a folder in place of the terminal."""
    log = colmap.logging
    log.set_log_destination(log.INFO, str(folder / "log."))
    log.logtostderr = log.alsologtostderr = False
    log.stderrthreshold = 3  # the process is about to die


def map_incrementally(colmap: ModuleType, database: Path, images: Path, folder: Path, threads: int, count: Count) -> None:
    """Start with two pictures, and register the others one by one; ``count`` gets how many there are in a model."""
    options = colmap.IncrementalPipelineOptions()
    options.num_threads = threads
    n = 0

    def began() -> None:
        nonlocal n
        n = 2
        count(n)

    def registered() -> None:
        nonlocal n
        n += 1
        count(n)

    colmap.incremental_mapping(
        database, images, folder, options, initial_image_pair_callback=began, next_image_callback=registered
    )


def map_globally(database: Path, images: Path, folder: Path, threads: int, log: Path) -> None:
    """Find all poses at once."""
    import pycolmap

    log_to(pycolmap, log)
    pycolmap.set_random_seed(0)
    options = pycolmap.GlobalPipelineOptions()
    options.num_threads = threads
    pycolmap.global_mapping(database, images, folder, options)


def map_in_process(database: Path, images: Path, folder: Path, threads: int, log: Path) -> int | None:
    """The exit code of :func:`map_globally` in a process of its own: it looks at Ctrl-C only when it has finished."""
    arguments = database, images, folder, threads, log
    process = multiprocessing.get_context("spawn").Process(target=map_globally, args=arguments, daemon=True)
    process.start()
    try:
        process.join()
    finally:
        process.kill()
        process.join()
    return process.exitcode
