"""What ``bench ops`` times: one small function per op, in the table CASES, each yielding its cases on a given setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_nerf.bench import peers
from lightning_nerf.bench.table import Report
from lightning_nerf.bench.timing import Work
from lightning_nerf.cameras import Cameras
from lightning_nerf.data import Images, Scene
from lightning_nerf.encodings import HashGrid
from lightning_nerf.estimators import OccupancyGrid
from lightning_nerf.fields import InstantNGPField
from lightning_nerf.fields.mlp import mlp
from lightning_nerf.ops import composite, draw_rays, hash_grid, march, sample_points, spherical_harmonics
from lightning_nerf.ops.random import make_key
from lightning_nerf.ops.visibility import prune
from lightning_nerf.optim import FusedAdam, HalfMirror
from lightning_nerf.types import PackedSamples, Rays, SceneBox

Run = Callable[[], object]


class Setting(NamedTuple):
    """Rays towards a thick spherical shell in [-1.5, 1.5]^3, their samples, and points in the unit cube."""

    device: str
    rays: Rays
    occupancy: Tensor  # [1, G, G, G]
    aabb: Tensor
    step: float
    samples: PackedSamples  # marched
    densities: Tensor  # [N]
    channels: Tensor  # [N, 3]
    points: dict[str, tuple[Tensor, Tensor]]  # "random" and "ray-like": unit positions and directions [P, 3]

    @property
    def n(self) -> int:
        """Marched samples."""
        return len(self.samples.t_starts)

    @property
    def capacity(self) -> int | None:
        """What ops that count are given: nothing on a CPU, where a count is free."""
        return self.n if self.device == "cuda" else None


class Case(NamedTuple):
    """One row."""

    name: str
    run: Run
    items: int  # samples, points, rays or cells
    work: Work
    reference: Run | None = None  # pure torch, timed on a CPU
    peer: Run | None = None  # NerfAcc, timed on CUDA


def setting(device: str, n_rays: int, n_points: int, resolution: int = 128, step: float = 0.0049) -> Setting:
    """The same rays and numbers on every device."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    origins = torch.nn.functional.normalize(torch.randn(n_rays, 3, generator=generator), dim=-1) * 4
    directions = torch.nn.functional.normalize((uniform(n_rays, 3) - 0.5) * 2 - origins, dim=-1)
    axis = (torch.arange(resolution) + 0.5) / resolution * 3 - 1.5
    radius = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).norm(dim=-1)
    occupancy = ((radius > 0.9) & (radius < 1.02))[None].to(device)
    rays = Rays(*(t.to(device) for t in (origins, directions, torch.zeros(n_rays), torch.full((n_rays,), 10.0))))
    aabb = torch.tensor([[-1.5] * 3, [1.5] * 3], device=device)
    samples = march.march(rays, occupancy, aabb, step_size=step)
    n = len(samples.t_starts)
    # As a trained field leaves them: about five visible samples in a row on each ray that hits.
    visible = prune(torch.full((n,), 1.8 / step, device=device), samples)
    positions, along, _ = sample_points.sample_points(rays, visible)
    unit = ((positions - aabb[0]) / (aabb[1] - aabb[0])).clamp(0, 1)
    sphere = torch.nn.functional.normalize(torch.randn(n_points, 3, generator=generator), dim=-1)
    return Setting(
        device=device,
        rays=rays,
        occupancy=occupancy,
        aabb=aabb,
        step=step,
        samples=samples,
        densities=(uniform(n) * 20).to(device),
        channels=uniform(n, 3).to(device),
        points={
            "random": (uniform(n_points, 3).to(device), sphere.to(device)),
            "ray-like": (unit[:n_points].contiguous(), along[:n_points].contiguous()),
        },
    )


def drawing(s: Setting) -> Iterator[Case]:
    """Training rays from 100 images of 800 x 800 (on a CPU: 4 of 100 x 100)."""
    views, side = (100, 800) if s.device == "cuda" else (4, 100)
    pictures = torch.randint(256, (views, side, side, 4), dtype=torch.uint8)
    intrinsics = torch.tensor([1111.0, 1111.0, side / 2, side / 2])
    poses = torch.eye(4)[:3].expand(views, 3, 4).contiguous()
    cameras = Cameras.of_one_size(poses, intrinsics, side, side, near=0.0, far=10.0)
    scene = Scene(cameras, Images.from_pictures(list(pictures)), [str(i) for i in range(views)])
    pixels = scene.to(s.device).pixels()
    key, n = make_key(0).to(s.device), len(s.rays.origins)
    written, read = 61, 32  # ray, footprint, color, alpha, mask and index; one sector of an image
    yield Case(
        "draw_rays",
        lambda: draw_rays.draw_rays(pixels, key, n),
        n,
        Work((written + read) * n),
        lambda: draw_rays.reference(*pixels, key, None, n),
    )


def marching(s: Setting) -> Iterator[Case]:
    """Count, pack and write."""
    n_rays = len(s.rays.origins)
    yield Case(
        "march",
        lambda: march.march(s.rays, s.occupancy, s.aabb, step_size=s.step, capacity=s.capacity),
        s.n,
        Work(12 * s.n + 40 * n_rays),
        lambda: march.reference(s.rays, s.occupancy, s.aabb, step_size=s.step),
        peers.march(s.rays, s.occupancy, s.aabb, s.step),
    )


def pruning(s: Setting) -> Iterator[Case]:
    """Count, pack and write; about half of the samples survive."""
    left = len(prune(s.densities, s.samples, early_stop_eps=0.1).t_starts)
    yield Case(
        "visibility",
        lambda: prune(s.densities, s.samples, early_stop_eps=0.1, capacity=left if s.capacity else None),
        s.n,
        Work(12 * s.n + 12 * left + 9 * len(s.rays.origins)),
        peer=peers.visibility(s.densities, s.samples, 0.1),
    )


def placing(s: Setting) -> Iterator[Case]:
    """Positions and directions of samples."""
    arguments = (s.rays.origins, s.rays.directions, None, *s.samples[:3], None)
    yield Case(
        "sample_points",
        lambda: sample_points.sample_points(s.rays, s.samples),
        s.n,
        Work(36 * s.n + 24 * len(s.rays.origins)),
        lambda: sample_points.reference(*arguments),
    )


def compositing(s: Setting) -> Iterator[Case]:
    """Three channels; nothing of size N is kept for the backward pass."""
    fixed = (s.samples.t_starts, s.samples.t_ends, s.samples.offsets)
    per_ray = 28 * len(s.rays.origins)
    peer = peers.composite(s.samples, s.densities, s.channels)
    op = torch.ops.lightning_nerf.composite

    def arguments(eps: float = 0.0, wanted: int = 0) -> tuple[Any, ...]:
        return *fixed, eps, False, False, *(i < wanted for i in range(3)), None

    for name, eps, wanted in [
        ("", 0.0, 0),
        (", early stop at 1e-4", 1e-4, 0),
        (", weights", 0.0, 1),
        (", weights, trans and alphas", 0.0, 3),
    ]:
        given = arguments(eps, wanted)
        yield Case(
            f"composite forward{name}",
            lambda a=given: op(s.densities, s.channels, *a),
            s.n,
            Work((24 + 4 * wanted) * s.n + per_ray),
            lambda a=given: composite.reference(s.densities, s.channels, *a),
            None if name or peer is None else lambda: peer(s.densities, s.channels),
        )
    inputs = [s.densities, s.channels]
    yield Case(
        "composite forward + backward",
        both(lambda d, c: op(d, c, *arguments())[0], inputs),
        s.n,
        Work(64 * s.n + 2 * per_ray),
        both(lambda d, c: composite.reference(d, c, *arguments())[0], inputs),
        None if peer is None else both(peer, inputs),
    )


def hashing(s: Setting) -> Iterator[Case]:
    """Tables of 2^19 rows and 16 levels of 2 features, or 8 of 4 (on a CPU: 2^16, 8 levels of 2)."""
    shapes = [(16, 2, 19), (8, 4, 19)] if s.device == "cuda" else [(8, 2, 16)]
    for levels, features, log2_size in shapes:
        encoding = HashGrid(n_levels=levels, n_features=features, log2_table_size=log2_size).to(s.device)
        rows, table = encoding.levels, encoding.table.detach()
        tables: list[tuple[str, Report, int]] = [("float32", {}, 4)]
        if s.device == "cuda":
            tables.append(("float16 copy", {"working": table.half(), "dtype": torch.bfloat16}, 2))
        for label, options, size in tables:
            for kind, (positions, _) in s.points.items():
                n = len(positions)
                name = f"hash_grid {levels} x {features} {label}, {kind}"
                passed = n * (12 + levels * features * size)  # positions and features
                # Corners that are neighbors along x share a row of up to 8 bytes, if the table is laid out well.
                gathers = n * levels * (4 if features * size == 4 else 8)
                forward = lambda t, p=positions, r=rows, o=options: hash_grid.hash_grid(p, t, r, **o)  # noqa: E731
                plain = lambda t, p=positions, r=rows: hash_grid.reference(p, t, r)  # noqa: E731
                yield Case(
                    f"{name}, forward",
                    lambda t=table, f=forward: f(t),
                    n,
                    Work(passed, gathers=gathers),
                    lambda t=table, f=plain: f(t),
                )
                yield Case(
                    f"{name}, backward",
                    _backward(forward, [table]),
                    n,
                    Work(passed + 4 * table.numel(), atomics=n * levels * 8 * features / 2),
                    _backward(plain, [table]) if s.device == "cpu" else None,
                )


def harmonics(s: Setting) -> Iterator[Case]:
    """Degree 4."""
    directions = s.points["random"][1]
    n = len(directions)
    yield Case(
        "spherical_harmonics",
        lambda: spherical_harmonics.spherical_harmonics(directions, 4),
        n,
        Work((12 + 64) * n),
        lambda: spherical_harmonics.reference(directions, 4),
    )


def grid_update(s: Setting) -> Iterator[Case]:
    """Of 128^3 cells (on a CPU: 64^3), without the field's time: a quarter at random and a quarter occupied, or all."""
    resolution = 128 if s.device == "cuda" else 64
    grid = OccupancyGrid(resolution=resolution)
    grid.bind(SceneBox(s.aabb.cpu()))
    grid = grid.to(s.device)
    key, cells = make_key(0).to(s.device), resolution**3
    density = torch.rand(cells, device=s.device)
    for name, step, evaluated in [("half of the cells", grid.warmup_steps, cells // 2), ("all cells", 0, cells)]:
        yield Case(
            f"occupancy update, {name}",
            lambda t=step: grid.update(lambda positions: density[: len(positions)], step=t, key=key),
            evaluated,
            Work(13 * cells + (4 + 12 + 4) * evaluated),  # state and newest value; cell, point and density
            peer=peers.update(s.aabb, resolution, density, step),
        )


def perceptrons(s: Setting) -> Iterator[Case]:
    """Instant-NGP's density and color networks, bf16 on CUDA; bytes are those of inputs and outputs."""
    for name, inputs, outputs, hidden in [("32-64-16", 32, 16, 1), ("32-64-64-3", 32, 3, 2)]:
        net = mlp(inputs, outputs, hidden_layers=hidden).to(s.device)
        n = len(s.points["random"][0])
        x = torch.rand(n, inputs, device=s.device, dtype=torch.bfloat16 if s.device == "cuda" else torch.float32)
        weights = sum(p.numel() for p in net.parameters())
        size = x.element_size() * (inputs + outputs)
        yield Case(
            f"mlp {name}, forward", _under(s, torch.no_grad()(lambda f=net, x=x: f(x))), n, Work(n * size, 2 * n * weights)
        )
        parameters = [x, *net.parameters()]
        run = both(lambda x, *_, f=net: f(x), parameters, _precision(s))
        yield Case(f"mlp {name}, forward + backward", run, n, Work(2 * n * size, 6 * n * weights))


def fields(s: Setting) -> Iterator[Case]:
    """Instant-NGP's whole field, 16 levels of 2 features, 2^19 rows; as many flops as its perceptrons have."""
    field = InstantNGPField() if s.device == "cuda" else InstantNGPField(n_levels=8, log2_table_size=16)
    field.bind(SceneBox(torch.tensor([[0.0] * 3, [1.0] * 3])))
    field = field.to(s.device)
    levels = field.position_encoding.n_levels
    table = field.position_encoding.table
    weights = sum(p.numel() for p in field.parameters()) - table.numel()
    for kind, (positions, directions) in s.points.items():
        n = len(positions)
        density = lambda p=positions: field.density(p)  # noqa: E731
        yield Case(
            f"instant_ngp density, {kind}",
            _under(s, torch.no_grad()(density)),
            n,
            Work(16 * n, gathers=4 * n * levels),
        )
        trained = both(
            lambda *_, p=positions, d=directions: field(p, d)[:2], list(field.parameters()), _precision(s), detach=False
        )
        yield Case(
            f"instant_ngp field, {kind}, forward + backward",
            trained,
            n,
            Work(80 * n + 4 * table.numel(), 6 * n * weights, 4 * n * levels, 8 * n * levels),
        )


def optimizers(s: Setting) -> Iterator[Case]:
    """Adam over the parameters of Instant-NGP's default field: 28 bytes each."""
    sizes = [p.shape for p in InstantNGPField(log2_table_size=19 if s.device == "cuda" else 14).parameters()]
    parameters = [torch.nn.Parameter(torch.rand(size, device=s.device)) for size in sizes]
    for parameter in parameters:
        parameter.grad = torch.rand_like(parameter)
    n = sum(p.numel() for p in parameters)
    adam = torch.optim.Adam(parameters, lr=1e-2, betas=(0.9, 0.99), eps=1e-15, fused=True)
    yield Case("torch.optim.Adam(fused)", adam.step, n, Work(28 * n))
    table = max(parameters, key=torch.numel)
    HalfMirror.made_for(table).current(table)
    for name, decay, extra in [("", None, 0), (", average", 0.95, 8)]:
        ours = FusedAdam(parameters, ema_decay=decay)
        ours.zero_grads = True
        # Gradients are read twice, because one that is not finite must be known before the first weight changes.
        work = Work((28 + 4 + 4 + extra) * n + 2 * table.numel())
        yield Case(f"FusedAdam, check, fp16 table, zero gradients{name}", ours.step, n, work)


CASES: Sequence[Callable[[Setting], Iterator[Case]]] = (
    drawing,
    marching,
    pruning,
    placing,
    compositing,
    hashing,
    harmonics,
    perceptrons,
    fields,
    grid_update,
    optimizers,
)


def _precision(s: Setting) -> Callable[[], AbstractContextManager[object]]:
    return lambda: torch.autocast(s.device, torch.bfloat16, enabled=s.device == "cuda")


def _under(s: Setting, run: Run) -> Run:
    def inside() -> object:
        with _precision(s)():
            return run()

    return inside


def _leaves(inputs: Sequence[Tensor], detach: bool) -> list[Tensor]:
    return [i.detach().requires_grad_() for i in inputs] if detach else list(inputs)


def both(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    precision: Callable[[], AbstractContextManager[object]] | None = None,
    detach: bool = True,
) -> Run:
    """Forward and backward, all inputs' gradients wanted; the parameters of a module must not be detached."""
    leaves = _leaves(inputs, detach)

    def outputs() -> list[Tensor]:
        if precision is None:
            found = function(*leaves)
        else:
            with precision():
                found = function(*leaves)
        return [found] if isinstance(found, Tensor) else list(found)

    with torch.no_grad():
        cotangents = [torch.ones_like(o) for o in outputs()]
    return lambda: torch.autograd.grad(outputs(), leaves, cotangents, allow_unused=True)


def _backward(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Run:
    """The backward pass alone."""
    leaves = _leaves(inputs, True)
    output = function(*leaves)
    cotangent = torch.ones_like(output)
    return lambda: torch.autograd.grad(output, leaves, cotangent, retain_graph=True)
