"""Parts that ``torch.compile`` wraps: the checkpoint is the same, and goes in both directions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_nerf.callbacks.ema import RAW_WEIGHTS, EMAWeights
from lightning_nerf.fields import InstantNGPField
from lightning_nerf.modules import InstantNGP
from lightning_nerf.optim import FusedAdam
from lightning_nerf.scene_box import SceneBox
from tests.scenes import tiny_module, tiny_scene, trainer

pytestmark = [
    # torch's own, while it traces
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


def module(**options: Any) -> InstantNGP:
    torch.manual_seed(0)
    return tiny_module(optimizer=functools.partial(FusedAdam, lr=0.01, ema_decay=0.9), **options)


def compiled(part: Any) -> Any:
    return torch.compile(part, backend="eager")  # the wrapper is what counts


def with_field(it: InstantNGP) -> InstantNGP:
    it.field = compiled(it.field)
    return it


def with_estimator(it: InstantNGP) -> InstantNGP:
    it.estimator = compiled(it.estimator)
    return it


def with_a_part_of_the_field(it: InstantNGP) -> InstantNGP:
    it.field.density_net = compiled(it.field.density_net)
    return it


def with_both_in_the_constructor(it: InstantNGP) -> InstantNGP:
    return module(field=compiled(it.field), estimator=compiled(it.estimator))


def as_a_whole(it: InstantNGP) -> InstantNGP:
    return compiled(it)


def compiled_in_place(it: InstantNGP) -> InstantNGP:
    it.field.compile(backend="eager")
    return it


Way = Callable[[InstantNGP], InstantNGP]
ways = pytest.mark.parametrize(
    "way",
    [with_field, with_estimator, with_a_part_of_the_field, with_both_in_the_constructor, as_a_whole, compiled_in_place],
)


def fitted(it: InstantNGP, path: Path, scene: Path, steps: int, resumed: Path | None = None) -> dict[str, Any]:
    """The content of the checkpoint after a fit up to ``steps``."""
    fit = trainer(path.parent, max_steps=steps, callbacks=[EMAWeights()])
    fit.fit(it, tiny_scene(scene), ckpt_path=resumed)
    fit.save_checkpoint(path)
    return torch.load(path, weights_only=True)


def assert_same(came: dict[str, Any], expected: dict[str, Any]) -> None:
    for section in ("state_dict", RAW_WEIGHTS):
        assert list(came[section]) == list(expected[section])
        for name, weight in expected[section].items():
            torch.testing.assert_close(came[section][name], weight, rtol=0, atol=0, equal_nan=True)
    for section in ("nerf_parts", "hyper_parameters"):
        assert came[section] == expected[section]


@ways
def test_the_checkpoint_is_the_same_and_loads_and_resumes_in_both_directions(
    tmp_path: Path, scene_cache: Path, way: Way
) -> None:
    torch._dynamo.reset()
    plain, wrapped = tmp_path / "plain.ckpt", tmp_path / "wrapped.ckpt"
    expected = fitted(module(), plain, scene_cache, 3)
    assert_same(fitted(way(module()), wrapped, scene_cache, 3), expected)
    assert_same({**expected, "state_dict": InstantNGP.load_from_checkpoint(wrapped).state_dict()}, expected)
    went_on = fitted(module(), tmp_path / "5.ckpt", scene_cache, 5, resumed=plain)
    assert_same(fitted(way(module()), tmp_path / "a.ckpt", scene_cache, 5, resumed=plain), went_on)
    assert_same(fitted(module(), tmp_path / "b.ckpt", scene_cache, 5, resumed=wrapped), went_on)


def test_a_checkpoint_that_has_the_wrappers_names_is_taken(tmp_path: Path, scene_cache: Path) -> None:
    path = tmp_path / "it.ckpt"
    content = fitted(module(), path, scene_cache, 3)
    for section in ("state_dict", RAW_WEIGHTS):
        content[section] = {n.replace("field.", "field._orig_mod.", 1): w for n, w in content[section].items()}
    torch.save(content, path)
    expected = fitted(module(), tmp_path / "plain.ckpt", scene_cache, 3)
    assert_same({**expected, "state_dict": InstantNGP.load_from_checkpoint(path).state_dict()}, expected)
    went_on = fitted(module(), tmp_path / "5.ckpt", scene_cache, 5, resumed=tmp_path / "plain.ckpt")
    assert_same(fitted(module(), tmp_path / "a.ckpt", scene_cache, 5, resumed=path), went_on)


def test_weights_by_hand_go_in_both_directions() -> None:
    plain, wrapped = module(), with_field(module())
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(1)
    wrapped.load_state_dict(plain.state_dict())
    assert list(wrapped.state_dict()) == list(plain.state_dict())
    for mine, its in zip(wrapped.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, its)
    whole = as_a_whole(module())
    whole.load_state_dict(whole.state_dict())  # whose names are torch's own
    module().load_state_dict(with_field(module()).state_dict())


def test_a_wrapped_field_is_compiled_after_all() -> None:
    torch._dynamo.reset()
    calls = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        calls.append(graph)
        return graph.forward

    it = module()
    it.field = torch.compile(it.field, backend=backend)
    it.state_dict()
    assert type(it.field) is InstantNGPField
    it.field.bind(SceneBox(torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])))
    it.field(torch.zeros(2, 3), torch.ones(2, 3))
    assert calls
