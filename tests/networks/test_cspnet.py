"""CSPNet: what sets it apart from CSPVNet. It is computed as it is written: ``test_twins``."""

from typing import Any

import torch

from kldm.networks import CSPNet, CSPVNet
from kldm.recipe.signatures import parameters
from kldm.testing.networks import FRACTIONAL, INTERFACES, MIXED, SCORE, case
from tests.networks.twins import twins

DIFFCSP = INTERFACES["diffcsp"]


def test_diffcsp_settings() -> None:
    with torch.device("meta"):
        network = CSPNet(DIFFCSP)
    # 100 x 512 species, (512 + 256) -> 512 input, six layers, final norm, score and lattice heads.
    layer = 2 * 512 + (2 * 512 + 9 + 2 * 384 + 1) * 512 + 513 * 512 + 1025 * 512 + 513 * 512
    expected = 100 * 512 + 769 * 512 + 6 * layer + 2 * 512 + 512 * 3 + 512 * 9
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_what_a_recipe_may_set_and_how_the_defaults_differ() -> None:
    ours, theirs = (
        {name: parameter.default for name, parameter in parameters(network).items()} for network in (CSPNet, CSPVNet)
    )
    common = {"hidden": 512, "layers": 6, "time_features": 256, "frequencies": 128}
    assert ours == {**common, "time_embedding": "sinusoidal", "self_edges": True, "tangent_head": "linear"}
    assert theirs == {**common, "time_embedding": "fourier", "self_edges": False, "tangent_head": "mlp"}


def test_one_network_is_the_other_with_its_options() -> None:
    """The same names and numbers of weights, from the same draws, and so the same predictions."""
    torch.manual_seed(0)
    ours = CSPNet(DIFFCSP, hidden=8, layers=2)
    torch.manual_seed(0)
    differences: dict[str, Any] = {"time_embedding": "sinusoidal", "self_edges": True, "tangent_head": "linear"}
    other = CSPVNet(DIFFCSP, hidden=8, layers=2, **differences)
    latent, s, layout = case(DIFFCSP, MIXED, torch.float32)
    for name, value in ours(latent, s, layout).items():
        assert torch.equal(value, other(latent, s, layout)[name])


def test_heads_are_linear_and_without_bias_but_for_types() -> None:
    names = set(twins("cspnet", INTERFACES["diffcsp dng"])[0].state_dict())
    assert {name for name in names if name.startswith("heads")} == {
        "heads.0.weight",
        "heads.1.weight",
        "heads.2.weight",
        "heads.2.bias",
    }


def test_an_atom_alone_hears_itself() -> None:
    """Without self-edges the messages could not matter to a crystal of one atom."""
    for family, heard in (("cspnet", True), ("cspvnet", False)):
        for network in twins(family, DIFFCSP, hidden=8, layers=2):
            latent, s, layout = case(DIFFCSP, (1, 1), torch.float32)
            before = network(latent, s, layout)
            with torch.no_grad():
                for name, weight in network.named_parameters():
                    if name.endswith("message_out.weight"):
                        weight.mul_(2)
            after = network(latent, s, layout)
            assert all(bool((after[name] - value).abs().max() > 1e-6) == heard for name, value in before.items())


def test_the_position_of_an_atom_alone_does_not_count() -> None:
    fast, _ = (network.double() for network in twins("cspnet", DIFFCSP, hidden=8, layers=2))
    latent, s, layout = case(DIFFCSP, (1, 1))
    moved = {**latent, FRACTIONAL.name: 1 - latent[FRACTIONAL.name]}
    assert all(torch.equal(value, fast(moved, s, layout)[name]) for name, value in fast(latent, s, layout).items())


def test_equal_atoms_in_equal_places_hear_the_same_mean_whatever_their_number() -> None:
    """The mean over j includes i: copies of one atom in one place are one atom."""
    fast, _ = (network.double() for network in twins("cspnet", DIFFCSP, hidden=8, layers=2))
    latent, _, _ = case(DIFFCSP, (1,))
    found = []
    for count in (1, 2, 5):
        layout = case(DIFFCSP, (count,))[2]
        copies = {name: latent[name].expand(count, *latent[name].shape[1:]) for name in ("fractional", "species")}
        s = torch.full((1,), 0.4, dtype=torch.float64)
        found.append(fast({**latent, **copies}, s, layout)[SCORE.name][0])
    torch.testing.assert_close(found[1], found[0], atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(found[2], found[0], atol=1e-12, rtol=1e-10)


def test_low_precision_stays_near() -> None:
    fast, _ = twins("cspnet", DIFFCSP)
    latent, s, layout = case(DIFFCSP, MIXED, torch.float32)
    exact = fast(latent, s, layout)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = fast(latent, s, layout)
    for name, value in exact.items():
        error = (rounded[name].float() - value).norm() / value.norm()
        assert 1e-5 < error < 3e-2
