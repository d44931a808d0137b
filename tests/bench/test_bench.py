from __future__ import annotations

import json
import logging
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_nerf import __main__ as entry
from lightning_nerf.bench.cases import CASES
from lightning_nerf.bench.kernels import op_of
from lightning_nerf.bench.main import COMMANDS, main
from lightning_nerf.bench.table import table, write_json
from lightning_nerf.bench.timing import H200, Limits, Work, median_seconds
from lightning_nerf.cli import build

NAMES = (
    "draw_rays", "march", "visibility", "sample_points", "composite forward", "hash_grid", "spherical_harmonics", "mlp",
    "instant_ngp field", "occupancy update", "FusedAdam", "nerfacc sampling", "nerfacc occupancy update",
)  # fmt: skip


def recipe(cache: Path, *more: str) -> list[str]:
    return [
        "-c", "synthetic/instant_ngp", "--trainer.accelerator=cpu", "--trainer.logger=false",
        "--data.resolution=24", "--data.n_train=5", "--data.n_test=3", f"--data.cache_dir={cache}",
        "--model.samples_per_step=1024", "--model.field.log2_table_size=10", "--model.estimator.resolution=16",
        "--trainer.callbacks=[{class_path: lightning_nerf.callbacks.EMAWeights}]",
        "--trainer.enable_progress_bar=false", *more,
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-nerf", "bench"])


def numbers(row: dict[str, Any], *names: str) -> None:
    for name in names:
        assert math.isfinite(row[name]), name
        assert row[name] > 0, name


def test_ops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["ops", "--device=cpu", "--repeats=1", "--rays=64", "--points=64", f"--output={tmp_path}/out/ops.json"]
    main(arguments)
    report = json.loads((tmp_path / "out/ops.json").read_text())
    for row in report["ops"]:
        numbers(row, "ms", "n", "M_bytes", "limit_ms", "percent_of_limit")
    assert any("speedup" in row for row in report["ops"])
    names = [row["op"] for row in report["ops"]]
    assert len(set(names)) == len(names) >= len(CASES)
    shown = capsys.readouterr().out
    for op in NAMES:
        assert any(op in name for name in names), op
        assert op in shown, op


def test_ops_of_one_name() -> None:
    report = main(["ops", "--device=cpu", "--repeats=1", "--rays=16", "--points=16", "--only=harmonics"])
    assert [row["op"] for row in report["ops"]] == ["spherical_harmonics"]
    with pytest.raises(SystemExit, match="no op is called 'nonsense'"):
        main(["ops", "--device=cpu", "--repeats=1", "--rays=16", "--points=16", "--only=nonsense"])


@pytest.mark.parametrize(
    ("kernel", "op"),
    [
        ("void lightning_nerf::march::count_kernel<true>(lightning_nerf::march::Arguments, int*)", "march"),
        ("lightning_nerf::random::(anonymous namespace)::uniform_kernel(long const*, unsigned int)", "random"),
        ("void lightning_nerf::sum_partials_kernel<lightning_nerf::fused_mlp::Layers>(float const*, int)", "fused_mlp"),
        ("lightning_nerf::ray_loss", "ray_loss"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>(int)", None),
    ],
)
def test_a_kernels_name_tells_its_op(kernel: str, op: str | None) -> None:
    assert op_of(kernel) == op


def test_step(scene_cache: Path) -> None:
    report = main(["step", *recipe(scene_cache, "--trainer.max_steps=60"), "--from=2", "--to=6", "--profile"])
    step = report["step"]
    numbers(step, "ms_per_step", "n_rays", "n_samples", "samples_per_second", "first_step_seconds", "kernel_ms_per_step")
    assert step["to"] - step["from"] == 4
    assert step["n_samples"] <= 1024
    assert sum(row["percent"] for row in report["kernels"]) == pytest.approx(100)
    assert any("hash_grid" in row["kernel"] for row in report["kernels"])
    assert "hash_grid" in {row["op"] for row in report["kernels"]}
    assert [row["points"] > 0 for row in report["field"]] == [True, True]


@pytest.mark.parametrize(("sweep", "values"), [("samples", [512, 1024]), ("table", [8, 10]), ("images", [2, 7])])
def test_sweep(sweep: str, values: list[int], scene_cache: Path) -> None:
    report = main(["step", *recipe(scene_cache), "--steps=4", f"--sweep={sweep}", "--values", *map(str, values)])
    rows = report[f"sweep of {sweep}"]
    assert [row[sweep] for row in rows] == values
    for row in rows:
        numbers(row, "ms_per_step", "n_samples")
    if sweep == "samples":
        assert rows[0]["n_samples"] <= 512 < rows[1]["n_samples"]


def test_a_window_outside_the_run_is_refused(scene_cache: Path) -> None:
    with pytest.raises(SystemExit, match=r"expected 1 <= from < to <= 80 .* got 36 and 90"):
        main(["step", *recipe(scene_cache, "--trainer.max_steps=80"), "--to=90"])


def test_a_benchmark_is_as_quiet_as_a_fit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def run(*_: object) -> dict[str, object]:
        logger.warning("💡 Tip: buy")
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated", UserWarning, stacklevel=1)
        return {}

    monkeypatch.setattr("lightning_nerf.bench.quality.run", run)
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    main(["quality"])
    assert not caplog.messages
    assert not recwarn.list


def test_quality(scene_cache: Path) -> None:
    arguments = recipe(scene_cache, "--trainer.max_steps=12", "--trainer.enable_checkpointing=false")
    report = main(["quality", *arguments, "--marks", "0.001", "1000", "--views-every=2"])
    assert [row["mark"] for row in report["marks"]] == ["0.001 s", "end"]
    assert report["marks"][0]["step"] == 1
    assert report["marks"][-1]["step"] == report["steps"] == 12
    assert report["marks"][-1]["psnr"] == pytest.approx(report["psnr_every_2"], abs=1e-3)
    assert report["views"] == 3
    assert 5 < report["psnr"] < 60
    counts = report["samples of the first view"]
    assert counts["visible"] <= counts["grid"] <= counts["uniform"]


@pytest.mark.filterwarnings("ignore:`trainer.test:UserWarning")
def test_frame_after_a_fit_and_of_a_checkpoint(scene_cache: Path, tmp_path: Path) -> None:
    report = main(["frame", *recipe(scene_cache), "--steps=4", "--repeats=1", "--views-every=2"])
    assert [row["view"] for row in report["views"]] == ["r_0", "r_2"]
    assert report["size"] == "24 x 24"
    numbers(report, "median_ms", "mean_ms", "psnr", "marched_per_ray")
    assert report["moving"] is None
    assert report["largest_psnr_difference"] < 0.02

    cli = build(recipe(scene_cache, "--trainer.max_steps=4", "--trainer.enable_checkpointing=false"))
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    cli.trainer.save_checkpoint(tmp_path / "four.ckpt")
    of_checkpoint = main(["frame", *recipe(scene_cache), f"--ckpt={tmp_path}/four.ckpt", "--repeats=1", "--views-every=2"])
    assert of_checkpoint["psnr"] == pytest.approx(report["psnr"], abs=1e-3)  # the same seed, the same steps

    with pytest.raises(SystemExit, match="either --ckpt PATH or --steps N"):
        main(["frame", *recipe(scene_cache)])


@pytest.mark.filterwarnings("ignore:`trainer.test:UserWarning")
def test_frames_at_several_times_beside_frames_at_one(tmp_path: Path) -> None:
    scene = [f"--data.cache_dir={tmp_path}", "--data.resolution=16", "--data.n_train=4", "--data.n_test=2"]
    small = ["--model.field.log2_table_size=10", "--model.samples_per_step=1024", "--trainer.logger=false"]
    moving = ["frame", "-c", "synthetic/dynamic", *scene, *small, "--steps=2", "--repeats=1", "--times=3"]
    report = main([*moving, "--trainer.callbacks=[{class_path: lightning_nerf.callbacks.EMAWeights}]"])["moving"]
    assert report["times"] == 3
    assert len(report["ms_at_one_time"]) == 3
    numbers(report, "ms", "ratio")


def test_help_names_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-nerf", "bench", "--help"])
    with pytest.raises(SystemExit) as stop:
        entry.main()
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert command in shown
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "--output" in capsys.readouterr().out


def test_an_unknown_recipe_or_argument_is_named() -> None:
    with pytest.raises(SystemExit, match="no_such"):
        main(["step", "-c", "no_such"])
    with pytest.raises(SystemExit):
        main(["ops", "--nonsense"])


def test_the_scarcest_resource_is_the_limit() -> None:
    limits = Limits(bytes=100.0, flops=10.0)
    assert limits.seconds(Work(bytes=100.0, flops=1.0)) == 1.0
    assert limits.seconds(Work(bytes=100.0, flops=50.0)) == 5.0
    assert limits.seconds(Work(bytes=100.0, atomics=1e9)) == 1.0  # unknown rate
    assert math.isnan(limits.seconds(Work()))
    assert H200.seconds(Work(bytes=4.29e12)) == 1.0


def test_median_of_calls() -> None:
    calls = []
    assert 0 <= median_seconds(lambda: calls.append(0), "cpu", 5) < 0.1
    assert len(calls) == 7


def test_tables_and_json(tmp_path: Path) -> None:
    rows = [{"op": "a", "ms": 1.23456, "peer": None}, {"op": "long name", "ms": math.nan, "peer": None}]
    lines = table(rows).splitlines()
    assert lines[0].split() == ["op", "ms"]  # a column without values is left out
    assert lines[2].split() == ["a", "1.235"]
    assert lines[3].split()[-1] == "-"
    write_json(tmp_path / "x.json", {"rows": rows, "inf": math.inf})
    assert json.loads((tmp_path / "x.json").read_text())["rows"][1]["ms"] is None


@pytest.mark.gpu
def test_device_time_leaves_out_the_launches() -> None:
    x = torch.ones(2**26, device="cuda")
    assert 1e-5 < median_seconds(lambda: x.mul_(1.0), "cuda", 5) < 5e-3
    report = main(["ops", "--device=cuda", "--repeats=2", "--rays=1024", "--points=4096"])
    for row in report["ops"]:
        numbers(row, "ms", "limit_ms")
