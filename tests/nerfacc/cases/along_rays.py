"""Scans, packing, volume rendering and losses: functions of samples in rows or in one list."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
from torch import Tensor

from tests.nerfacc.cases.case import EPS, LONGEST, Case, part, row
from tests.ops.harness import rand

COUNTS = [0, *((7 * i) % (LONGEST + 1) for i in range(120)), 0]
N, RAYS = sum(COUNTS), len(COUNTS)


def segments(form: str) -> dict[str, Any]:
    ends = list(itertools.accumulate(COUNTS))
    if form == "packed_info":
        return {"packed_info": torch.tensor([[e - c, c] for e, c in zip(ends, COUNTS, strict=True)])}
    if form == "ray_indices":
        return {"ray_indices": torch.arange(RAYS).repeat_interleave(torch.tensor(COUNTS)), "n_rays": RAYS}
    return {}


def samples(form: str, *names: str) -> dict[str, Any]:
    """Ascending intervals of lengths about 1 / 10 with gaps, densities up to 3, opacities up to 0.9, factors about 1."""
    shape = (N,) if form in ("packed_info", "ray_indices") else {"rows": (40, LONGEST), "one ray": (LONGEST,)}[form]
    first = torch.cat([torch.arange(c) for c in COUNTS]) if shape == (N,) else torch.arange(LONGEST).expand(shape)
    t_starts = (first + 0.3 * rand(*shape, seed=1)) / 10
    values = {
        "t_starts": t_starts,
        "t_ends": t_starts + rand(*shape, seed=2, low=0.01, high=0.07),
        "sigmas": rand(*shape, seed=3, low=0.1, high=3.0),  # none so thin that a depth over an opacity cancels
        "alphas": rand(*shape, seed=4, low=0.05, high=0.8),
        "inputs": rand(*shape, seed=5, low=0.9, high=1.05),
        "weights": rand(*shape, seed=6),
        "values": rand(*shape, 3, seed=7),
        "prefix_trans": rand(*shape, seed=8),
    }
    return {name: values[name] for name in names} | segments(form)


# A gradient sums up to 2 LONGEST such terms of up to 3 (a density), from each of up to 6 results.
GRADS = {"atol": 6 * 3 * 2 * LONGEST * LONGEST * EPS}
DENSITY = ("t_starts", "t_ends", "sigmas")


def from_alpha_or_density() -> list[Case]:
    cases = []
    for kind, form in itertools.product(("alpha", "density"), ("rows", "packed_info", "ray_indices")):
        names = DENSITY if kind == "density" else ("alphas",)
        for what in ("transmittance", "weight"):
            path = f"volrend.render_{what}_from_{kind}"
            cases.append(row(path, samples(form, *names), *names, on_cpu=form == "rows", form=form, **GRADS))
            # Without gradients: its own fail behind a prefix.
            prefixed = samples(form, *names, "prefix_trans")
            cases.append(row(path, prefixed, on_cpu=form == "rows", form=f"{form}, prefix"))
        visible = samples(form, *names) | {"early_stop_eps": 0.3, "alpha_thre": 0.06}
        cases.append(row(f"volrend.render_visibility_from_{kind}", visible, on_cpu=form == "rows", form=form))
    return cases


def render(function: Any, kind: str, absorbers: Tensor, values: Tensor, **arguments: Any) -> list[Tensor]:
    *out, extras = function(**arguments, **{kind: lambda *_: (values, absorbers)})
    return [*out, *(extras[name] for name in ("weights", "trans", "alphas", "rgbs"))]


def rendering() -> list[Case]:
    cases = []
    forms = itertools.product(("sigma", "alpha"), ("rows", "one ray", "ray_indices"), (None, 3, 1))
    for kind, form, n_channels in forms:
        inputs = samples(form, "t_starts", "t_ends", f"{kind}s", "values")
        inputs["absorbers"] = inputs.pop(f"{kind}s")
        if n_channels is not None:
            inputs["render_bkgd"] = rand(n_channels, seed=9)
        learned = [name for name in inputs if name not in ("ray_indices", "n_rays")]
        through = functools.partial(render, kind=f"rgb_{kind}_fn")
        form_ = f"{kind}, {form}, background {n_channels}"
        on_cpu = form != "ray_indices"
        cases.append(row("volrend.rendering", inputs, *learned, on_cpu=on_cpu, through=through, form=form_, **GRADS))
    return cases


def accumulating() -> list[Case]:
    def in_place(function: Any, outputs: Tensor, **arguments: Any) -> Tensor:
        arguments.pop("n_rays", None)
        function(**arguments, outputs=outputs)
        return outputs

    cases = []
    for form, names in itertools.product(("rows", "ray_indices"), (("weights",), ("weights", "values"))):
        inputs, width = samples(form, *names), 3 if "values" in names else 1
        path, form_ = "volrend.accumulate_along_rays", f"{form}, {' '.join(names)}"
        cases.append(row(path, inputs, *names, on_cpu=True, form=form_, atol=LONGEST**2 * EPS))
        outputs = rand(40 if form == "rows" else RAYS, width, seed=10)
        added = inputs | {"outputs": outputs}
        cases.append(row(f"{path}_", added, on_cpu=True, through=in_place, form=form_, atol=LONGEST**2 * EPS))
    return cases


def scans() -> list[Case]:
    return [
        # All terms are positive: one rounding each in sums and factors, three in a product's gradient.
        row(f"scan.{name}", samples(form, "inputs"), "inputs", on_cpu=form == "rows", form=form, atol=0.0)
        for name in ("inclusive_sum", "exclusive_sum", "inclusive_prod", "exclusive_prod")
        for form in ("rows", "packed_info")
    ]


def packing() -> list[Case]:
    indices = torch.randint(0, 900, (5000,), generator=torch.Generator().manual_seed(1)).sort().values
    return [row("pack.pack_info", {"ray_indices": indices, "n_rays": n}, form=f"{n} rays") for n in (None, 1000)]


def distortion() -> Case:
    """NerfAcc's main branch has it: the formula in terms of the released package's sums."""

    def run(package: Any, device: str) -> list[Tensor]:
        given = samples("rows", "weights", "t_starts", "t_ends")
        w, start, end = inputs = [v.to(device).requires_grad_() for v in given.values()]
        if package.__name__ == "nerfacc":
            middle, rows = (start + end) / 2, package.inclusive_sum
            pairs = w * (middle * rows(w) - rows(w * middle))
            loss = (w.square() * (end - start) / 3 + 2 * pairs).sum(-1, keepdim=True)
        else:
            rays = torch.arange(40, device=device).repeat_interleave(LONGEST)
            loss = part(package, "losses.distortion")(w.flatten(), start.flatten(), end.flatten(), rays, 40)
        return [loss, *torch.autograd.grad(loss, inputs, rand(40, 1, seed=11).to(device))]

    # Its two sums of up to LONGEST^2 / 2 terms of up to 3 cancel.
    return Case("losses.distortion", run, True, atol=4 * 3 * LONGEST**2 * LONGEST * EPS / 2)
