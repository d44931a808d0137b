"""Programs that catch NerfAcc's assertions work: what is refused here is an AssertionError, too."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest
import torch

from lightning_nerf import nerfacc
from lightning_nerf.checks import BadArgument, BadType
from lightning_nerf.nerfacc import cameras, losses, volrend
from lightning_nerf.nerfacc.errors import NerfAccArgument, NerfAccState, NerfAccType
from lightning_nerf.nerfacc.estimators import prop_net
from tests.fuzz.calls import CALLS
from tests.fuzz.test_wrong_arguments import choices, spoilt
from tests.fuzz.test_wrong_types import wrong_types

OTHERS = ("OccupancyGrid", "composite", "rendering")
OF_NERFACC = [name for name in CALLS if not name.startswith(OTHERS)]
TAKE_ANYTHING = {"RayIntervals", "RaySamples", "get_proposal_requires_grad_fn"}


def public_functions() -> dict[str, Any]:
    """All that a user calls: functions, and the constructors and methods of classes."""
    found = {name: getattr(nerfacc, name) for name in nerfacc.__all__ if name != "__version__"}
    for module in (cameras, losses, volrend, prop_net):
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"):
                found[name] = value
    for name, value in list(found.items()):
        if inspect.isclass(value) and name not in TAKE_ANYTHING:
            methods = {m: f for m, f in vars(value).items() if inspect.isfunction(f) and not m.startswith("_")}
            found |= {f"{name}.{m}": f for m, f in methods.items()}
    return {name: value for name, value in found.items() if name not in TAKE_ANYTHING}


def refused(name: str) -> list[tuple[str, Exception]]:
    """What a function says to each wrong argument."""
    errors = []
    for argument, how in choices(name):
        function, arguments = CALLS[name]("cpu")
        arguments[argument] = spoilt(arguments[argument], "cpu", alone=True).get(how, arguments[argument])
        try:
            function(**arguments)
        except Exception as error:
            errors.append((f"{argument} {how}", error))
    for argument, value in CALLS[name]("cpu")[1].items():
        for other in wrong_types(value):
            function, arguments = CALLS[name]("cpu")
            try:
                function(**{**arguments, argument: other})
            except Exception as error:
                errors.append((f"{argument} = {other!r}", error))
    return errors


@pytest.mark.parametrize("name", OF_NERFACC)
@pytest.mark.filterwarnings("ignore")
def test_what_is_refused_is_an_assertion_and_a_value_error(name: str) -> None:
    errors = refused(name)
    assert errors
    for what, error in errors:
        assert isinstance(error, (NerfAccArgument, NerfAccState)), f"{what}: {error!r}"
        assert isinstance(error, AssertionError)
    arguments = [error for _, error in errors if isinstance(error, NerfAccArgument)]
    assert all(isinstance(error, BadArgument) for error in arguments)
    assert any(isinstance(error, NerfAccType) and isinstance(error, TypeError) for error in arguments)


def test_every_public_function_is_among_them() -> None:
    called = {name.split()[0] for name in OF_NERFACC}
    missing = {name.removeprefix("nerfacc.") for name in public_functions()} - {c.removeprefix("nerfacc.") for c in called}
    # One row calls all of PropNetEstimator.
    assert missing == {f"PropNetEstimator.{name}" for name in ("sampling", "compute_loss", "update_every_n_steps")}


def test_an_estimator_that_cannot_learn_yet_says_so_in_both_ways() -> None:
    trans = torch.ones(2, 3)
    without = nerfacc.PropNetEstimator()
    early = nerfacc.PropNetEstimator(torch.optim.SGD([torch.ones(1, requires_grad=True)], 0.1))
    for estimator, message in ((without, "no optimizer"), (early, "nothing to learn from")):
        for kind in (AssertionError, RuntimeError):
            with pytest.raises(kind, match=message):
                estimator.update_every_n_steps(trans, requires_grad=True)


def test_an_error_is_told_once_and_where_it_arose() -> None:
    with pytest.raises(NerfAccArgument) as caught:
        nerfacc.render_transmittance_from_alpha(torch.tensor(0.5))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert any(entry.name == "_check_samples" for entry in caught.traceback)
    with pytest.raises(NerfAccType, match="alphas: expected a tensor, got list") as of_type:
        nerfacc.render_transmittance_from_alpha([0.5])  # type: ignore[arg-type]
    assert isinstance(of_type.value, BadType)
    assert isinstance(pickle.loads(pickle.dumps(of_type.value)), NerfAccType)


def test_errors_of_a_users_function_pass() -> None:
    class OfMineError(Exception):
        pass

    def fails(*_: Any) -> Any:
        raise OfMineError("mine")

    def asserts(*_: Any) -> Any:
        raise AssertionError("mine")

    t = torch.zeros(2)
    for function, kind in ((fails, OfMineError), (asserts, AssertionError)):
        with pytest.raises(kind, match="mine"):
            nerfacc.rendering(t, t + 1, torch.zeros(2).long(), 1, function)


def test_other_surfaces_raise_what_they_raised() -> None:
    from lightning_nerf import rendering

    t = torch.zeros(2)
    with pytest.raises(BadArgument) as caught:
        rendering(t, t[:1])
    assert not isinstance(caught.value, AssertionError)
