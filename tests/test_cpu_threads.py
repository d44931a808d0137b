"""Threads of the command line sleep while they wait; what the doctor says of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_nerf import cpu_threads, doctor

ROOT = Path(__file__).parents[1]
NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# A command in place of doctor: the CPU seconds that other threads than the main one spend in 200 pauses of 2 ms.
PROBE = """
import time, torch

def main():
    x = torch.ones(100_000)
    torch.add(x, 1.0)  # starts the threads
    own, all_threads = time.thread_time(), time.process_time()
    for _ in range(200):
        torch.add(x, 1.0)  # a parallel region: long enough for two threads
        time.sleep(0.002)
    print(torch.get_num_threads(), (time.process_time() - all_threads) - (time.thread_time() - own))
"""


def seconds_in_pauses(folder: Path, **environment: str) -> float:
    (folder / "probe.py").write_text(PROBE)
    code = (
        "import sys; sys.argv = ['lightning-nerf', 'doctor']\n"
        "from lightning_nerf import __main__ as program\nprogram.COMMANDS['doctor'] = 'probe'\nprogram.main()"
    )
    own = {name: value for name, value in os.environ.items() if name not in NAMES}
    paths = os.pathsep.join([str(ROOT), str(folder)])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**own, "PYTHONPATH": paths, "OMP_NUM_THREADS": "2", **environment},
    )  # fmt: skip
    threads, seconds = done.stdout.split()
    assert threads == "2"
    return float(seconds)


@pytest.mark.skipif(cpu_threads.usable_cpus() < 2, reason="OpenMP's threads never spin on one CPU")
def test_threads_of_a_command_leave_the_cpu_to_others_while_they_wait(tmp_path: Path) -> None:
    asleep = seconds_in_pauses(tmp_path)
    spinning = seconds_in_pauses(tmp_path, OMP_WAIT_POLICY="active")  # what the environment says is obeyed
    assert asleep < 0.05 < 0.1 < spinning, (asleep, spinning)


@pytest.mark.parametrize(
    ("environment", "says", "spin"),
    [
        ({}, False, True),
        ({"OMP_WAIT_POLICY": "passive"}, True, False),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, True, False),
        ({"OMP_WAIT_POLICY": "active"}, True, True),
        ({"GOMP_SPINCOUNT": "0"}, True, False),
        ({"GOMP_SPINCOUNT": "1000"}, True, True),
        ({"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}, True, True),
        ({"KMP_BLOCKTIME": "0"}, True, False),
    ],
)
def test_what_the_environment_says_stays(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], says: bool, spin: bool
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cpu_threads.says_how_to_wait() is says
    assert cpu_threads.threads_spin() is spin
    monkeypatch.setenv("OMP_WAIT_POLICY", environment.get("OMP_WAIT_POLICY", ""))  # so that it is taken back afterwards
    if "OMP_WAIT_POLICY" not in environment:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    cpu_threads.sleep_while_waiting()
    wanted = environment if says else {"OMP_WAIT_POLICY": "passive"}
    assert {name: os.environ[name] for name in NAMES if name in os.environ} == wanted


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu.max": "nonsense"}, None),
    ],
)
def test_a_containers_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], limit: int | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_threads.usable_cpus(tmp_path) == (64 if limit is None else limit)


@pytest.mark.parametrize(
    ("threads", "cpus", "policy", "said", "advice"),
    [
        (64, 2, "passive", "64 on 2 CPUs; they sleep", "export OMP_NUM_THREADS=2"),
        (2, 2, "active", "2 on 2 CPUs; they spin", "export OMP_WAIT_POLICY=passive"),
        (2, 2, "passive", "2 on 2 CPUs; they sleep while they wait for each other (a script's only after: export ", None),
        (1, 1, "active", "1 on 1 CPU;", None),
    ],
)
def test_the_doctor_says_what_to_do_about_threads(
    monkeypatch: pytest.MonkeyPatch, threads: int, cpus: int, policy: str, said: str, advice: str | None
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(cpu_threads, "usable_cpus", lambda: cpus)
    (line,) = doctor.threads()
    assert said in line.text
    assert not line.broken
    assert (line.advice is None) if advice is None else (line.advice is not None and advice in line.advice)
