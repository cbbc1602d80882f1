"""What every registered process must do, whatever its mathematics."""

from collections.abc import Mapping

import attrs
import pytest
import torch
from torch import Tensor

import kldm.processes  # noqa: F401  (registers them)
from kldm.crystals import Crystals, Layout
from kldm.errors import KldmError
from kldm.interfaces import (
    Channel,
    DiffusionProcess,
    Estimates,
    Latent,
    Move,
    Noised,
    Restricts,
    Step,
)
from kldm.model import NoisedBatch
from kldm.processes import LogTan
from kldm.registry import processes
from tests.oracles import TURN, aligned_residual, random_crystals

RAW = LogTan(standardise=False)
REQUIRED: Mapping[str, Mapping[str, object]] = {
    "vp_euclidean.v1": {"codec": RAW},
    "euclidean_flow.v1": {"codec": RAW},
    "lattice_flow.v1": {"codec": RAW, "fit": {"mean": [1.7, 1.8, 1.9], "std": [0.1, 0.2, 0.3]}},
    "wrapped_ve.v1": {"sigma_min": 1e-4, "step_lr": 4e-9},
    "com_free_ve.v1": {"sigma_min": 1e-4, "step_lr": 4e-9},
}
"""Arguments without a default, and those without which noise is left at s = 0; a process that is not here must be
buildable without any."""

SIZES = (1, 4, 1, 20, 2)


def build(name: str) -> DiffusionProcess:
    try:
        process: DiffusionProcess = processes.get(name)(**REQUIRED.get(name, {}))
    except TypeError as error:
        raise AssertionError(f"give REQUIRED the arguments that {name} needs: {error}") from error
    return process


@pytest.fixture(params=processes.names())
def process(request: pytest.FixtureRequest) -> DiffusionProcess:
    return build(request.param)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def crystals(request: pytest.FixtureRequest) -> Crystals:
    return random_crystals(SIZES, 100, request.param)  # no seed of a draw below, lest uniform noise be the positions


def moves(process: DiffusionProcess) -> dict[str, Move]:
    """Every move that the process declares, and the one to its estimate."""
    found = {"denoise": process.moves["denoise"], **process.moves}
    if isinstance(process, Estimates):
        found["estimate"] = Move(lambda latent, clean, step: clean, estimate=process.estimate)
    return found


def silence(process: DiffusionProcess, crystals: Crystals) -> dict[str, Tensor]:
    """The prediction of a network that answers 0."""
    return {
        channel.name: crystals.lattice.new_zeros(_rows(channel, crystals), channel.width)
        for channel in process.predicts
    }


def _rows(channel: Channel, crystals: Crystals) -> int:
    return len(crystals) if channel.per == "crystal" else crystals.layout.total


def _assert_declared(latent: Latent, process: DiffusionProcess, crystals: Crystals) -> None:
    assert set(latent) == {channel.name for channel in process.reads}
    for channel in process.reads:
        values = latent[channel.name]
        if channel.kind == "token":
            assert values.shape == (_rows(channel, crystals),)
            assert values.dtype == torch.int64
            assert ((values >= 0) & (values < channel.width)).all()
            continue
        assert values.shape == (_rows(channel, crystals), channel.width)
        assert values.dtype == crystals.fractional.dtype
        assert torch.isfinite(values).all()
        if channel.kind == "periodic":
            assert ((values >= 0) & (values < 1)).all()


def _times(value: float, crystals: Crystals) -> Tensor:
    return torch.full((len(crystals),), value, dtype=crystals.fractional.dtype)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_prior_fills_the_channels_it_declares(process: DiffusionProcess, crystals: Crystals) -> None:
    _assert_declared(process.prior(crystals, _seeded(0)), process, crystals)


@pytest.mark.parametrize("time", [1e-6, 1e-3, 0.5, 1.0])
def test_noise_fills_its_channels_and_has_finite_targets(
    process: DiffusionProcess, crystals: Crystals, time: float
) -> None:
    noised = process.noise(crystals, _times(time, crystals), _seeded(0))
    _assert_declared(noised.latent, process, crystals)
    assert set(noised.target) == {channel.name for channel in process.predicts}
    assert all(torch.isfinite(target).all() for target in noised.target.values())


def test_loss_is_a_finite_scalar_least_at_the_target(process: DiffusionProcess, crystals: Crystals) -> None:
    s = torch.linspace(0.001, 1, len(crystals), dtype=crystals.fractional.dtype)
    noised = process.noise(crystals, s, _seeded(0))
    silent = process.loss(silence(process, crystals), noised, s, crystals.layout)
    assert silent.shape == ()
    assert torch.isfinite(silent)
    kinds = {channel.kind for channel in process.predicts}
    if "token" not in kinds:  # logits are not compared with a target of their own kind
        perfect = process.loss(noised.target, noised, s, crystals.layout)
        assert perfect.abs() < 1e-10
        assert silent > perfect or not kinds


def test_loss_reaches_the_network(process: DiffusionProcess, crystals: Crystals) -> None:
    if not process.predicts:
        pytest.skip("conditions, learns nothing")
    s = _times(0.5, crystals)
    output = {name: values.requires_grad_() for name, values in silence(process, crystals).items()}
    process.loss(output, process.noise(crystals, s, _seeded(0)), s, crystals.layout).backward()  # type: ignore[no-untyped-call]
    for values in output.values():
        assert values.grad is not None
        assert torch.isfinite(values.grad).all()
        assert values.grad.abs().max() > 0


@pytest.mark.parametrize("border", [1, 3, 4])
def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_parts_by_rows(process: DiffusionProcess, border: int) -> None:
    """So that a batch may be divided; the parts differ in sizes, in times and in how much of them is noise."""
    crystals = random_crystals(SIZES, 100)
    s = torch.linspace(0.05, 1, len(SIZES), dtype=torch.float64)
    noised = process.noise(crystals, s, _seeded(0))
    output = {
        name: torch.randn(one.shape, generator=_seeded(1)).double() for name, one in silence(process, crystals).items()
    }
    kinds = {channel.per for channel in process.predicts}
    assert len(kinds) <= 1
    whole, parts = NoisedBatch({"it": noised, "out": Noised(output, {})}, s, crystals.layout), 0.0
    for first, last in ((0, border), (border, len(SIZES))):
        part = whole.part(first, last)
        rows = len(part.layout) / len(SIZES) if kinds == {"crystal"} else part.layout.total / sum(SIZES)
        parts += rows * process.loss(part.draws["out"].latent, part.draws["it"], part.s, part.layout).item()
    assert parts == pytest.approx(process.loss(output, noised, s, crystals.layout).item(), rel=1e-9)


def test_every_move_stays_finite_from_noise_to_data(process: DiffusionProcess, crystals: Crystals) -> None:
    """A silent network, one-atom crystals among the others, ten steps that end exactly at s = 0."""
    for move in moves(process).values():
        latent, rng = process.prior(crystals, _seeded(0)), _seeded(1)
        for k in range(10, 0, -1):
            s, r = _times(k / 10, crystals), _times((k - 1) / 10, crystals)
            latent = move(latent, silence(process, crystals), Step(s, r, s, crystals.layout, rng))
            _assert_declared(latent, process, crystals)
        if move.ends == "now":
            end = Step(_times(0.1, crystals), _times(0, crystals), _times(0, crystals), crystals.layout, rng)
            _assert_declared(move(latent, silence(process, crystals), end), process, crystals)


def test_moves_leave_their_arguments_alone_and_repeat_under_the_same_seed(
    process: DiffusionProcess, crystals: Crystals
) -> None:
    s, r = _times(0.7, crystals), _times(0.6, crystals)
    for move in moves(process).values():
        latent = process.prior(crystals, _seeded(0))
        before = {name: values.clone() for name, values in latent.items()}
        first, second = (
            move(latent, silence(process, crystals), Step(s, r, s, crystals.layout, _seeded(5))) for _ in range(2)
        )
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert all(torch.equal(latent[name], before[name]) for name in before)
    noised = [process.noise(crystals, s, _seeded(3)).latent for _ in range(2)]
    assert all(torch.equal(noised[0][name], noised[1][name]) for name in noised[0])


def test_decoding_gives_crystals_of_the_same_layout(process: DiffusionProcess, crystals: Crystals) -> None:
    blank = attrs.evolve(crystals, fractional=crystals.fractional * 0, lattice=torch.ones_like(crystals.lattice))
    found = process.decode(process.prior(crystals, _seeded(0)), blank)
    assert found.layout.sizes == SIZES
    assert ((found.fractional >= 0) & (found.fractional < 1)).all()
    assert torch.isfinite(found.lattice).all()
    assert ((found.species >= 1) & (found.species <= 100)).all()


def test_almost_no_noise_decodes_to_the_clean_crystals(process: DiffusionProcess) -> None:
    crystals = random_crystals(SIZES, 0)
    latent = process.noise(crystals, _times(1e-9, crystals), _seeded(0)).latent
    found = process.decode(latent, crystals)
    away = (found.fractional - crystals.fractional + 0.5) % 1 - 0.5
    assert away.abs().max() < 2e-3
    torch.testing.assert_close(found.lattice, crystals.lattice, rtol=1e-3, atol=1e-3)
    assert torch.equal(found.species, crystals.species)


@pytest.mark.parametrize("elements", [(3, 8, 25), (100,)])
def test_a_restricted_process_holds_its_samples_to_the_elements(
    process: DiffusionProcess, crystals: Crystals, elements: tuple[int, ...]
) -> None:
    """Whatever the network answers, of every size and not-a-number as well."""
    if not isinstance(process, Restricts) or "species" not in {channel.name for channel in process.predicts}:
        pytest.skip("holds no species that it could choose")
    held: DiffusionProcess = process.restricted(elements)
    assert held.reads == process.reads
    assert held.predicts == process.predicts
    for move in moves(held).values():
        for scale in (1.0, 1e30, float("nan")):
            latent, rng = held.prior(crystals, _seeded(0)), _seeded(1)
            for k in range(5, 0, -1):
                s, r = _times(k / 5, crystals), _times((k - 1) / 5, crystals)
                output = {
                    name: scale * torch.randn(values.shape, generator=rng, dtype=values.dtype)
                    for name, values in silence(held, crystals).items()
                }
                latent = move(latent, output, Step(s, r, s, crystals.layout, rng))
            assert set(held.decode(latent, crystals).species.tolist()) <= set(elements)


@pytest.mark.parametrize("elements", [(), (0,), (3, 101)])
def test_a_restriction_to_what_is_no_element_is_refused(process: DiffusionProcess, elements: tuple[int, ...]) -> None:
    if isinstance(process, Restricts):
        with pytest.raises(KldmError):
            process.restricted(elements)


def _alike(found: Crystals, crystals: Crystals, tolerance: float) -> None:
    """The same crystals up to a translation of each."""
    residual = aligned_residual(found.fractional * TURN, crystals.fractional * TURN, crystals.layout) / TURN
    assert residual.abs().max() < tolerance
    torch.testing.assert_close(found.lattice, crystals.lattice, rtol=tolerance, atol=tolerance)
    assert torch.equal(found.species, crystals.species)


def test_every_process_of_ours_estimates_the_clean_crystals(process: DiffusionProcess) -> None:
    """From the exact prediction at little noise, where no image of an atom but the nearest matters."""
    assert isinstance(process, Estimates)
    crystals = random_crystals(SIZES, 0)
    s = _times(0.1, crystals)
    noised = process.noise(crystals, s, _seeded(0))
    exact = {
        name: value if value.is_floating_point() else 50.0 * torch.nn.functional.one_hot(value, 100).double()
        for name, value in noised.target.items()
    }
    estimate = process.estimate(noised.latent, exact, s, crystals.layout)
    assert set(estimate) == set(noised.latent)
    _alike(process.decode(estimate, crystals), crystals, 1e-6)


def moves_given_the_clean_value(process: DiffusionProcess) -> list[Move]:
    given = [move for move in process.moves.values() if move.estimate is not None]
    if not given:
        pytest.skip("holds no clean value in any of its moves")
    return given


def test_steps_given_the_clean_value_end_at_it(process: DiffusionProcess, crystals: Crystals) -> None:
    given = moves_given_the_clean_value(process)
    clean = process.noise(crystals, _times(1e-9, crystals), _seeded(1)).latent
    s, r = _times(0.8, crystals), _times(0, crystals)
    latent = process.noise(crystals, s, _seeded(0)).latent
    for move in given:
        found = process.decode(move.function(latent, clean, Step(s, r, s, crystals.layout, _seeded(2))), crystals)
        _alike(found, process.decode(clean, crystals), 1e-5)


@pytest.mark.parametrize("r", [0.05, 0.4])
def test_steps_given_the_clean_value_keep_the_law_of_the_noise(process: DiffusionProcess, r: float) -> None:
    """From a draw of the forward process at s they lead to one at r: same moments of what is left of the noise."""
    given = moves_given_the_clean_value(process)
    one = random_crystals((3,), 0)
    count = 3000
    crystals = Crystals(
        one.fractional.repeat(count, 1),
        one.lattice.repeat(count, 1),
        one.species.repeat(count),
        random_crystals((3,) * count, 0).layout,
    )
    s, at_r = _times(0.6, crystals), _times(r, crystals)
    latent, expected = (process.noise(crystals, time, _seeded(seed)).latent for time, seed in ((s, 1), (at_r, 2)))
    clean = {
        name: torch.zeros_like(value) if name == "velocity" else value
        for name, value in process.noise(crystals, _times(1e-12, crystals), _seeded(3)).latent.items()
    }
    for move in given:
        found = move.function(latent, clean, Step(s, at_r, s, crystals.layout, _seeded(4)))
        for channel in process.reads:
            moments = [
                _moments(values[channel.name] - clean[channel.name], channel, crystals.layout)
                for values in (found, expected)
            ]
            torch.testing.assert_close(moments[0], moments[1], rtol=0.1, atol=0.002)


def _moments(residual: Tensor, channel: Channel, layout: Layout) -> Tensor:
    """Standard deviation of every number of the channel, or of its distance on the circle less its translation."""
    if channel.kind == "periodic":
        residual = layout.centred(aligned_residual(residual * TURN, torch.zeros_like(residual), layout) / TURN)
    return residual.reshape(3000, -1).std(0)
