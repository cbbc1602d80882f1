"""How an experiment is assembled."""

from typing import Any

import pytest
import torch

from kldm.recipe import read_recipe
from kldm.runs.experiment import assemble
from tests.small import OVERRIDES, RECIPES


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
