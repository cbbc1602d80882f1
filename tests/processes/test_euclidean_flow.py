"""Flow matching of a codec's numbers, of the lattice from its informed prior, and of analog bits."""

from math import degrees
from typing import Any, Literal

import attrs
import pytest
import torch
from torch import Tensor

from kldm.crystals import Crystals
from kldm.errors import KldmError
from kldm.interfaces import Channel, Codec, DiffusionProcess, Fits, Restricts, Step
from kldm.processes import EuclideanFlow, Identity, LogTan, bits_flow, lattice_flow
from kldm.processes.code_book import ANALOG_BITS
from kldm.recipe.building import build
from tests.oracles import random_crystals
from tests.small import random_store

RAW = LogTan(standardise=False)
FIT: dict[str, Any] = {"mean": [1.2, 1.5, 2.5], "std": [0.1, 0.2, 0.4]}
INFORMED = lattice_flow(codec=RAW, fit=FIT)
EVERY: list[EuclideanFlow] = [
    EuclideanFlow(codec=RAW),
    EuclideanFlow(codec=RAW, parameterization="x0"),
    INFORMED,
    attrs.evolve(INFORMED, parameterization="x0"),
    bits_flow(),
    bits_flow(parameterization="x0"),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def times(value: float, crystals: Crystals) -> Tensor:
    return torch.full((len(crystals),), value, dtype=crystals.lattice.dtype)


def step(s: float, r: float, crystals: Crystals) -> Step:
    return Step(times(s, crystals), times(r, crystals), times(s, crystals), crystals.layout, seeded())


def name_of(process: EuclideanFlow) -> str:
    return process.codec.channel.name


def drawn(process: EuclideanFlow, crystals: Crystals, s: float) -> tuple[Tensor, Tensor]:
    """x_s and the target, from the same noise at every s."""
    noised = process.noise(crystals, times(s, crystals), seeded())
    return noised.latent[name_of(process)], noised.target[name_of(process)]


@pytest.mark.parametrize("process", EVERY, ids=repr)
def test_the_path_is_straight_from_the_prior_to_the_data(process: EuclideanFlow) -> None:
    crystals = random_crystals((2, 3, 1), 1)
    start, noise = process.codec.encode(crystals), process.prior(crystals, seeded())[name_of(process)]
    assert (start - noise).abs().max() > 0.1
    for s in (1.0, 0.8, 0.3, 1e-9):
        torch.testing.assert_close(drawn(process, crystals, s)[0], s * noise + (1 - s) * start, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("process", EVERY, ids=repr)
def test_the_target_is_the_velocity_along_the_path_or_its_end(process: EuclideanFlow) -> None:
    crystals, s, h = random_crystals((2, 3), 2), 0.6, 1e-4
    moved = (drawn(process, crystals, s - h)[0] - drawn(process, crystals, s + h)[0]) / (2 * h)
    expected = process.codec.encode(crystals) if process.parameterization == "x0" else moved
    torch.testing.assert_close(drawn(process, crystals, s)[1], expected, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("process", EVERY, ids=repr)
def test_its_own_target_leads_to_the_data_in_any_number_of_steps(process: EuclideanFlow) -> None:
    crystals, name = random_crystals((4, 3), 7), name_of(process)
    latent = {name: drawn(process, crystals, 1.0)[0]}
    for s, r in ((1.0, 0.6), (0.6, 0.5), (0.5, 0.0)):
        answer = {name: drawn(process, crystals, s)[1]}
        torch.testing.assert_close(latent[name], drawn(process, crystals, s)[0], rtol=0.0, atol=1e-12)
        latent = dict(process.flow(latent, answer, step(s, r, crystals)))
    found = process.decode(latent, attrs.evolve(crystals, lattice=crystals.lattice * 0, species=crystals.species * 0))
    if process.codec == ANALOG_BITS:
        assert torch.equal(found.species, crystals.species)
    else:
        torch.testing.assert_close(found.lattice, crystals.lattice)


@pytest.mark.parametrize("parameterization", ["velocity", "x0"])
def test_a_step_is_the_published_multiple_of_the_velocity(parameterization: Literal["velocity", "x0"]) -> None:
    crystals = random_crystals((3, 2), 6)
    process = EuclideanFlow(codec=RAW, parameterization=parameterization, anti_annealing=2.0)
    x, answer = (torch.randn(2, 6, generator=seeded(k), dtype=torch.float64) for k in (1, 2))
    velocity = (answer - x) / 0.5 if parameterization == "x0" else answer
    found = process.flow({"lattice": x}, {"lattice": answer}, step(0.5, 0.4, crystals))["lattice"]
    torch.testing.assert_close(found, x + 0.1 * (1 + 2 * 0.5) * velocity)


def test_the_loss_is_the_mean_square_error() -> None:
    crystals, s = random_crystals((2, 3), 3), torch.tensor([0.2, 0.7], dtype=torch.float64)
    process = EuclideanFlow(codec=RAW)
    noised = process.noise(crystals, s, seeded())
    off = {"lattice": noised.target["lattice"] + torch.tensor([[0.0], [2.0]], dtype=torch.float64)}
    assert process.loss(off, noised, s, crystals.layout) == pytest.approx(2.0)


def test_the_plain_prior_is_standard_normal() -> None:
    crystals = random_crystals((1,) * 20_000, 0)
    for process in (EuclideanFlow(codec=RAW), bits_flow()):
        x = process.prior(crystals, seeded())[name_of(process)]
        assert x.mean(0).abs().max() < 5 / 20_000**0.5
        torch.testing.assert_close(x.std(0), torch.ones_like(x[0]), rtol=0.03, atol=0.0)


# The informed prior of the lattice


@pytest.mark.parametrize("codec", [RAW, Identity()], ids=repr)
def test_informed_noise_is_a_cell_of_the_fitted_law(codec: Codec) -> None:
    """Whatever the codec: 10,000 draws, decoded."""
    crystals = random_crystals((1,) * 10_000, 0)
    process = lattice_flow(codec=codec, fit=FIT)
    at_one = process.noise(crystals, times(1.0, crystals), seeded(1)).latent
    for latent in (process.prior(crystals, seeded()), at_one):
        cell = process.decode(latent, crystals).lattice
        logs = cell[:, :3].log()
        mean, std = (torch.tensor(FIT[key], dtype=torch.float64) for key in ("mean", "std"))
        assert ((logs.mean(0) - mean).abs() < 5 * std / 100).all()
        torch.testing.assert_close(logs.std(0), std, rtol=0.04, atol=0.0)
        assert torch.corrcoef(torch.cat([logs, cell[:, 3:]], -1).T).fill_diagonal_(0).abs().max() < 0.05
        low, high = degrees(cell[:, 3:].min()), degrees(cell[:, 3:].max())
        assert 60 - 1e-9 <= low < 60.1
        assert 119.9 < high <= 120 + 1e-9
        shares = ((cell[:, 3:] - torch.pi / 3) / (torch.pi / 3)).sort(0).values
        grid = (torch.arange(10_000, dtype=torch.float64) + 0.5).unsqueeze(-1) / 10_000
        assert (shares - grid).abs().max() < 0.022  # Kolmogorov-Smirnov: 1 in 10,000


def test_the_fit_is_that_of_maximum_likelihood_per_axis() -> None:
    train = random_store((2, 5, 1, 7), 3)
    logs = train.lattice[:, :3].double().log()
    spread = ((logs - logs.mean(0)) ** 2).mean(0).sqrt()
    fitted = lattice_flow(codec=RAW).fitted(train)
    assert isinstance(fitted, Fits)
    found: Any = fitted.statistics()
    assert set(found) == {"fit"}
    assert found["fit"]["mean"] == pytest.approx(logs.mean(0).tolist())
    assert found["fit"]["std"] == pytest.approx(spread.tolist())
    assert spread.min() > 0.01


def test_equal_cells_keep_a_spread() -> None:
    found: Any = lattice_flow(codec=RAW).fitted(random_store((2,), 3)).statistics()
    assert found["fit"]["std"] == [0.01] * 3


@pytest.mark.parametrize("codec", ["log_tan.v1", "identity.v1"])
def test_a_recipe_rebuilds_the_fitted_process(codec: str) -> None:
    tree: dict[str, Any] = {"@processes": "lattice_flow.v1", "codec": {"@codecs": codec}}
    process, complete = build(tree, DiffusionProcess)
    assert isinstance(process, EuclideanFlow)
    train = random_store((2,) * 30, 3)
    fitted = process.fitted(train)
    found: Any = fitted.statistics()
    merged = {**complete, **found, "codec": {**complete["codec"], **found.get("codec", {})}}
    again, whole = build(merged, DiffusionProcess)
    assert again == fitted
    assert whole == merged
    crystals = random_crystals((2, 2), 0)
    assert torch.equal(again.prior(crystals, seeded())["lattice"], fitted.prior(crystals, seeded())["lattice"])


def test_informed_noise_is_standardised_as_the_data_are() -> None:
    """By number of atoms; decoding gives back the law in angstrom."""
    train = random_store((2,) * 30 + (4,) * 30, 3)
    fitted = lattice_flow(codec=LogTan()).fitted(train)
    crystals = random_crystals((2,) * 2000 + (4,) * 2000, 0)
    logs = fitted.decode(fitted.prior(crystals, seeded()), crystals).lattice[:, :3].log()
    expected = train.lattice[:, :3].double().log().mean(0)
    for part in (logs[:2000], logs[2000:]):
        torch.testing.assert_close(part.mean(0), expected, rtol=0.0, atol=0.05)


@pytest.mark.parametrize(
    "fit",
    [
        {},
        {"mean": [1.0, 1.0, 1.0]},
        {"mean": [1.0, 1.0], "std": [0.1, 0.1]},
        {"mean": [1.0, 1.0, 1.0], "std": [0.1, 0.0, 0.1]},
        {"mean": [1.0, float("nan"), 1.0], "std": [0.1, 0.1, 0.1]},
        {"mean": 1.0, "std": 0.1},
        {"mean": ["a", "b", "c"], "std": [0.1, 0.1, 0.1]},
    ],
)
def test_a_fit_of_another_form_is_refused(fit: dict[str, Any]) -> None:
    with pytest.raises(KldmError, match="log lengths"):
        lattice_flow(codec=RAW, fit=fit)


def test_use_before_the_fit_is_refused() -> None:
    with pytest.raises(KldmError, match="before it is fitted"):
        lattice_flow(codec=RAW).prior(random_crystals((2,), 0), seeded())


# Analog bits


def test_bits_are_seven_real_numbers_per_atom() -> None:
    channel = Channel("species", 7, "atom", "real")
    assert bits_flow().reads == bits_flow().predicts == (channel,)
    assert isinstance(bits_flow(), Restricts)


@pytest.mark.parametrize("parameterization", ["velocity", "x0"])
def test_every_move_clamps_the_end_that_the_answer_implies(parameterization: Literal["velocity", "x0"]) -> None:
    crystals, s = random_crystals((3, 2), 0), 0.6
    process = bits_flow(parameterization=parameterization)
    x, end = (torch.randn(5, 7, generator=seeded(k), dtype=torch.float64) for k in (1, 2))
    end = 2 * end
    assert end.abs().max() > 1
    assert end.abs().min() < 1
    answer = end if parameterization == "x0" else (end - x) / s
    found = process.flow({"species": x}, {"species": answer}, step(s, 0.3, crystals))["species"]
    torch.testing.assert_close(found, x + 0.5 * (end.clamp(-1, 1) - x))


@pytest.mark.parametrize("parameterization", ["velocity", "x0"])
def test_bits_that_all_allowed_elements_share_are_known(parameterization: Literal["velocity", "x0"]) -> None:
    """Z - 1 is 0000010 for Li, 0000111 for O, 0000011 for Be: the last step ends on the bits that they share."""
    crystals = random_crystals((3, 2), 0)
    process = bits_flow(parameterization=parameterization).restricted((3, 8, 4))
    x, answer = (torch.randn(5, 7, generator=seeded(k), dtype=torch.float64) for k in (1, 2))
    found = process.flow({"species": x}, {"species": answer}, step(0.2, 0.0, crystals))["species"]
    shared = torch.tensor([-1, -1, -1, -1, 1], dtype=torch.float64)
    torch.testing.assert_close(found[:, [0, 1, 2, 3, 5]], shared.expand(5, 5))
    assert not torch.isclose(found[:, [4, 6]].abs(), torch.tensor(1.0, dtype=torch.float64)).all()
    assert set(process.decode({"species": found}, crystals).species.tolist()) <= {3, 4, 8}


def test_an_absurd_velocity_is_clamped_like_any_other() -> None:
    """In float32 nothing is left of x beside it."""
    crystals = random_crystals((3, 2), 0, torch.float32)
    x = torch.randn(5, 7, generator=seeded(1))
    found = bits_flow().flow({"species": x}, {"species": torch.full((5, 7), 1e30)}, step(0.5, 0.0, crystals))
    torch.testing.assert_close(found["species"], torch.ones(5, 7))


def test_restrictions_narrow_and_refuse() -> None:
    assert bits_flow(elements=(3, 8)).restricted((8, 9)) == bits_flow(elements=(8,))
    with pytest.raises(KldmError):
        bits_flow(elements=(3, 8)).restricted((9,))
    with pytest.raises(KldmError):
        bits_flow(elements=(0,))


@attrs.frozen
class Odd:
    """A codec of tokens."""

    @property
    def channel(self) -> Channel:
        return Channel("species", 100, "atom", "token")

    def encode(self, crystals: Crystals) -> Tensor:
        return crystals.species

    def decode(self, values: Tensor, into: Crystals) -> Crystals:
        return into


def test_options_that_do_not_fit_are_refused() -> None:
    for annealing in (-1.0, float("nan"), float("inf")):
        with pytest.raises(KldmError, match="anti_annealing"):
            EuclideanFlow(codec=RAW, anti_annealing=annealing)
    with pytest.raises(KldmError, match="parameterization"):
        EuclideanFlow(codec=RAW, parameterization="eps")  # type: ignore[arg-type]
    with pytest.raises(KldmError, match="real or matrix"):
        EuclideanFlow(codec=Odd())
    with pytest.raises(KldmError, match="per crystal"):
        lattice_flow(codec=ANALOG_BITS)
