from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_nerf import doctor
from lightning_nerf.ops import library
from tests.ops_table import CUDA_ONLY

needs_library = pytest.mark.skipif(not library.loaded, reason="no compiled library")


def run(code: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """``lightning-nerf doctor`` in a process of its own, after ``code``."""
    start = "import sys; sys.argv = ['lightning-nerf', 'doctor']\n"
    code = start + (code or "") + "\nfrom lightning_nerf.__main__ import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


@needs_library
def test_a_good_installation() -> None:
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    for said in (
        "lightning-nerf: 0.", f"Python: {sys.version.split()[0]}", f"torch: {torch.__version__}", "lightning: 2.",
        f"library: {library.library_path()}, loaded", "CPU kernels: ", "CUDA kernels: ", "wandb: ", "imageio-ffmpeg: ",
    ):  # fmt: skip
        assert said in done.stdout, said
    n = len(library.schemas()) - len(CUDA_ONLY)
    assert f"CPU kernels: {n} of {n} ops\n" in done.stdout
    assert "BROKEN" not in done.stdout
    assert done.stdout.splitlines()[-1] == "The installation is whole."


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    done = run(LIGHTNING_NERF_LIBRARY=str(tmp_path / "absent.so"))
    assert done.returncode == 1
    assert f"BROKEN library: {tmp_path / 'absent.so'}, no such file" in done.stdout
    assert "; LIGHTNING_NERF_LIBRARY names it: correct or unset that" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("The installation is broken: ")


def test_a_library_that_does_not_load_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "_C.so"
    broken.write_bytes(b"no library at all")
    done = run(LIGHTNING_NERF_LIBRARY=str(broken))
    assert done.returncode == 1
    assert f"BROKEN library: {broken}, cannot be loaded (" in done.stdout
    assert "file too short" in done.stdout or "invalid ELF header" in done.stdout


def test_it_runs_without_lightning_and_says_so() -> None:
    done = run("sys.modules['lightning'] = None")
    assert done.returncode == 1
    assert "BROKEN lightning: cannot be imported (" in done.stdout
    assert "pip install 'lightning" in done.stdout
    assert "library: " in done.stdout  # the rest is examined all the same


def test_it_runs_without_torch_and_says_so() -> None:
    done = run("sys.modules['torch'] = None")
    assert done.returncode == 1
    assert "BROKEN torch: cannot be imported (" in done.stdout


def test_it_knows_which_ops_a_cpu_does_without() -> None:
    assert set(doctor.CUDA_ONLY) == CUDA_ONLY


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU, as far as torch's answers go."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Test GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    monkeypatch.setattr(library, "loaded", True)
    monkeypatch.setattr(library, "has_kernel", lambda name, key: True)


def failing(message: str):
    def run_kernel(index: int) -> None:
        raise RuntimeError(message)

    return run_kernel


def test_a_gpu_that_the_library_has_no_code_for(one_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "run_kernel", failing("CUDA error: no kernel image is available for execution\nmore"))
    (line,) = doctor.gpus()
    assert line.broken
    assert line.text.startswith("GPU 0: Test GPU, compute capability 7.5, kernels fail (")
    assert "more" not in line.text
    assert line.advice is not None
    assert "sm_75" in line.advice
    assert "reinstall" in line.advice


def test_a_gpu_that_is_full(one_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "run_kernel", failing("CUDA out of memory"))
    (line,) = doctor.gpus()
    assert line.broken
    assert line.advice is not None
    assert "sm_75" not in line.advice


def test_a_gpu_that_works(one_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "run_kernel", lambda index: None)
    assert doctor.gpus() == [doctor.Line("GPU 0: Test GPU, compute capability 7.5, kernels run")]


@needs_library
@pytest.mark.parametrize(("gpu", "broken"), [(True, True), (False, False)])
def test_a_library_without_cuda_kernels_is_broken_where_there_is_a_gpu(
    gpu: bool, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(library, "has_kernel", lambda name, key: key == "CPU")
    lines = {line.text.split(":")[0]: line for line in doctor.library()}
    assert lines["CUDA kernels"].text.startswith(f"CUDA kernels: 0 of {len(library.schemas())} ops")
    assert lines["CUDA kernels"].broken is broken
    assert not lines["CPU kernels"].broken


@needs_library
def test_missing_kernels_and_other_signatures_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "has_kernel", lambda name, key: name != "scan")
    monkeypatch.setattr(library, "schemas", lambda: {"scan": "(Tensor x) -> Tensor", "pack_offsets": "() -> Tensor"})
    lines = doctor.library()
    assert "CPU kernels: 1 of 2 ops; missing: scan" in [line.text for line in lines]
    assert lines[-1].broken
    assert lines[-1].text.endswith("differ in the signatures of pack_offsets, scan")


def test_gpus_that_torch_does_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_nvidia_smi", lambda: ["550.1, NVIDIA A", "550.1, NVIDIA B"])
    monkeypatch.setattr(torch.version, "cuda", None)
    (line,) = doctor.drivers()
    assert line.text == "NVIDIA driver: 550.1, 2 GPUs"
    assert line.advice is not None
    assert "without CUDA" in line.advice
    assert not line.broken
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (line,) = doctor.drivers()
    assert line.advice is not None
    assert "CUDA_VISIBLE_DEVICES='' hides them" in line.advice


@pytest.mark.gpu
def test_kernels_run_on_this_gpu() -> None:
    for index in range(torch.cuda.device_count()):
        doctor.run_kernel(index)
    assert not any(line.broken for line in doctor.gpus())
