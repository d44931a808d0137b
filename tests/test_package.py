"""What an installed package promises before anything is computed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lightning_nerf
from lightning_nerf import data
from lightning_nerf.ops import library
from tests.ops_table import CUDA_ONLY, OPS
from tests.wheel.audit import foreign_libraries, unstable_symbols


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


def test_import_is_silent_quick_and_needs_no_lightning() -> None:
    code = (
        "import time, torch; t = time.perf_counter(); import lightning_nerf; t = time.perf_counter() - t\n"
        "import sys; assert 'lightning' not in sys.modules and 'wandb' not in sys.modules; print(t)"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert float(done.stdout) <= 0.3


def test_backend_needs_no_lightning() -> None:
    code = (
        "import sys, lightning_nerf.estimators, lightning_nerf.fields, lightning_nerf.renderers\n"
        "assert not any(m == 'lightning' or m.startswith(('lightning.', 'pytorch_lightning')) for m in sys.modules)"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_what_other_packages_import_has_no_leading_underscore() -> None:
    root = Path(lightning_nerf.__file__).parent
    private = re.compile(r"(?:from|import) lightning_nerf\.(\w+)(?:\.\w+)*?(?:\._\w+| import (?:.*, )?_[a-z]\w*)")
    found = [
        f"{file.relative_to(root)}: {line}"
        for file in sorted(root.rglob("*.py"))
        for line in file.read_text().splitlines()
        if (match := private.search(line)) and match[1] != file.relative_to(root).parts[0].removesuffix(".py")
    ]
    assert found == []


def test_every_public_name_exists() -> None:
    for name in lightning_nerf.__all__:
        assert getattr(lightning_nerf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        lightning_nerf.Nonsense  # noqa: B018


@pytest.mark.parametrize("name", data.__all__)
def test_every_data_module_is_a_name_of_the_package(name: str) -> None:
    assert getattr(lightning_nerf, name) is getattr(data, name)


def test_the_table_names_every_op() -> None:
    assert set(OPS) == set(library.schemas())


@pytest.mark.skipif(not library.loaded, reason="no compiled library")
@pytest.mark.parametrize("op", OPS)
def test_library_and_python_agree_on_the_schema(op: str) -> None:
    compiled = str(getattr(torch.ops.lightning_nerf, op).default._schema)
    ours = str(torch._C.parse_schema(f"lightning_nerf::{op}{library.schemas()[op]}"))
    assert compiled == ours


# CI says what it has compilers for; elsewhere nothing is required.
REQUIRED = os.environ.get("LIGHTNING_NERF_REQUIRED_KERNELS", "").split()


@pytest.mark.skipif(not REQUIRED, reason="LIGHTNING_NERF_REQUIRED_KERNELS names no backend")
@pytest.mark.parametrize("op", OPS)
def test_every_op_has_its_kernels(op: str) -> None:
    """Where nvcc built the library, CUDA kernels are registered on every torch, a CPU build of it included."""
    assert library.loaded, library.load_error
    for backend in REQUIRED:
        if backend == "CPU" and op in CUDA_ONLY:
            continue
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lightning_nerf::{op}", backend), backend


@pytest.mark.skipif(not library.loaded or shutil.which("nm") is None, reason="no compiled library, or no binutils")
def test_the_library_needs_torchs_stable_abi_only() -> None:
    path = library.library_path()
    assert unstable_symbols(path) == []
    assert foreign_libraries(path) == []


USE_AN_OP_TWICE = (
    "import warnings; warnings.simplefilter('always')\n"
    "import lightning_nerf.ops.random as r\n"
    "key = r.make_key(1); print(r.random_uniform(key, 0, 3, 2).tolist()); r.random_uniform(key, 0, 3, 2)"
)


def test_without_the_library_the_references_serve_with_one_warning(tmp_path) -> None:
    done = run(USE_AN_OP_TWICE, LIGHTNING_NERF_LIBRARY=str(tmp_path / "absent.so"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RuntimeWarning") == 1
    assert "4 to 100 times slower" in done.stderr
    assert done.stdout == run(USE_AN_OP_TWICE).stdout


def test_a_library_that_does_not_load_is_reported_not_raised(tmp_path) -> None:
    broken = tmp_path / "_C.so"
    broken.write_bytes(b"no library")
    done = run(USE_AN_OP_TWICE, LIGHTNING_NERF_LIBRARY=str(broken))
    assert done.returncode == 0, done.stderr
    assert str(broken) in done.stderr
