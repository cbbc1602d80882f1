"""How an experiment is assembled."""

from typing import Any

import pytest
import torch

from kldm.model import JointModel, statistics
from kldm.recipe import read_recipe
from kldm.runs.experiment import assemble, fitted
from tests.small import OVERRIDES, RECIPES, random_store


def test_weights_are_drawn_without_opening_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with several, each of a run's processes would open all of them."""

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("a GPU is opened")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    for name in ("get_rng_state", "set_rng_state", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, opened)
    before = torch.get_rng_state()
    first, second = (
        assemble(read_recipe(RECIPES / "kldm_eps_em_mp20.cfg", OVERRIDES))[0].model.state_dict() for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("recipe", ["kldm_x0_em_mp20", "flowmm_mp20", "kldm_x0_bits_mp20_dng"])
@pytest.mark.parametrize("other_channels", [False, True])
def test_a_model_is_fitted_as_its_completed_recipe_says(
    recipe: str, other_channels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: what the completed recipe builds. In place, unless the network was built for other channels."""
    if other_channels:
        monkeypatch.setattr(JointModel, "replace", lambda self, processes: False)
    train = random_store((3,) * 30 + (5,) * 25)
    experiment, complete = assemble(read_recipe(RECIPES / f"{recipe}.cfg", OVERRIDES))
    found, tree = fitted(experiment, complete, train)
    expected, again = assemble(tree)
    assert again == tree != complete
    assert statistics(found.model.processes) == statistics(expected.model.processes) != {}
    assert found.evaluation == expected.evaluation
    assert (found.evaluation.histogram == {"3": 30, "5": 25}) == recipe.endswith("dng")
    weights = expected.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in found.model.state_dict().items())
    assert (found.model is experiment.model) != other_channels
