"""Checks of processes, whatever their mathematics."""

from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, Layout
from kldm.errors import KldmError
from kldm.interfaces import Channel, DiffusionProcess, Estimates, Latent, Move, Noised, ReadsColumns, Restricts, Step
from kldm.model import NoisedBatch
from kldm.testing.crystals import expect, generator, random_crystals, rows, run_checks
from kldm.torus import wrap

ProcessCheck = Callable[[DiffusionProcess], None]

_SIZES = (1, 4, 1, 20, 2)
_TYPES = (torch.float32, torch.float64)


def fills_the_channels_it_declares(process: DiffusionProcess) -> None:
    """The prior and noise fill the channels of ``reads``; targets fill those of ``predicts`` and are finite."""
    for crystals in _crystals(process):
        _declared(process.prior(crystals, generator(0)), process, crystals, "the prior")
        for time in (1e-6, 1e-3, 0.5, 1.0):
            noised = process.noise(crystals, _times(time, crystals), generator(0))
            _declared(noised.latent, process, crystals, f"noise at s = {time:g}")
            names = {channel.name for channel in process.predicts}
            expect(
                set(noised.target) == names, f"it has targets for {sorted(noised.target)}, but predicts {sorted(names)}"
            )
            for name, target in noised.target.items():
                expect(torch.isfinite(target).all(), f"the target of {name} at s = {time:g} is not finite")


def has_a_loss_that_is_least_at_the_target(process: DiffusionProcess) -> None:
    """The loss is a finite scalar, 0 for the target and larger for a prediction of 0, with finite gradients."""
    for crystals in _crystals(process):
        s = torch.linspace(0.001, 1, len(crystals), dtype=crystals.fractional.dtype)
        noised = process.noise(crystals, s, generator(0))
        output = {name: values.requires_grad_() for name, values in _zeros(process, crystals).items()}
        loss = process.loss(output, noised, s, crystals.layout)
        expect(loss.shape == () and torch.isfinite(loss), "the loss is not one finite number")
        if not process.predicts:
            continue
        if "token" not in {channel.kind for channel in process.predicts}:  # those are predicted as logits
            perfect = process.loss(noised.target, noised, s, crystals.layout)
            expect(perfect.abs() < 1e-10, f"the loss of the target itself is {perfect.item():g}")
            expect(loss > perfect, "the loss of a network that predicts 0 is not larger than that of the target")
        loss.backward()  # type: ignore[no-untyped-call]
        for name, values in output.items():
            gradient = values.grad
            expect(gradient is not None and gradient.abs().max() > 0, f"the loss gives {name} no gradient")
            expect(gradient is not None and torch.isfinite(gradient).all(), f"the gradient of {name} is not finite")


def has_a_loss_that_is_a_mean_over_rows(process: DiffusionProcess) -> None:
    """The loss of a batch is the mean of those of its parts, weighted by their rows, so that batches can be divided.

    The parts have different sizes, times and amounts of noise.
    """
    kinds = {channel.per for channel in process.predicts}
    expect(len(kinds) <= 1, "it predicts channels per atom and per crystal: make it two processes")
    crystals = _random(process, 100)
    s = torch.linspace(0.05, 1, len(_SIZES), dtype=torch.float64)
    noised, rng = process.noise(crystals, s, generator(0)), generator(1)
    output = {
        name: torch.randn(values.shape, generator=rng, dtype=values.dtype)
        for name, values in _zeros(process, crystals).items()
    }
    whole = NoisedBatch({"it": noised, "out": Noised(output, {})}, s, crystals.layout)
    expected = process.loss(output, noised, s, crystals.layout).item()
    for border in (1, 3, 4):
        actual = 0.0
        for first, last in ((0, border), (border, len(_SIZES))):
            part = whole.part(first, last)
            share = len(part.layout) / len(_SIZES) if kinds == {"crystal"} else part.layout.total / sum(_SIZES)
            actual += share * process.loss(part.draws["out"].latent, part.draws["it"], part.s, part.layout).item()
        sentence = f"the loss of a batch is {expected:g} and the mean of those of its parts, by their rows, {actual:g}"
        expect(abs(actual - expected) <= 1e-9 * max(1.0, abs(expected)), sentence)


def declares_its_moves(process: DiffusionProcess) -> None:
    """There is a move ``denoise``, and every move is a ``Move``."""
    expect("denoise" in process.moves, "it declares no move 'denoise'")
    for name, move in process.moves.items():
        expect(isinstance(move, Move), f"its move {name} is a {type(move).__name__}, not a Move")


def stays_finite_from_noise_to_data(process: DiffusionProcess) -> None:
    """Every move stays finite with a network that predicts 0, in ten steps that end exactly at s = 0."""
    for crystals in _crystals(process):
        for name, move in _moves(process).items():
            latent, rng = process.prior(crystals, generator(0)), generator(1)
            for k in range(10, 0, -1):
                s, r = _times(k / 10, crystals), _times((k - 1) / 10, crystals)
                for now in (s, r) if move.ends == "now" else (s,):
                    step = Step(s=s, r=r, now=now, layout=crystals.layout, rng=rng)
                    latent = move(latent, _zeros(process, crystals), step)
                    _declared(latent, process, crystals, f"the move {name} from s = {k / 10:g}")


def leaves_its_arguments_alone(process: DiffusionProcess) -> None:
    """Moves do not change their arguments, and moves and noise repeat with the same seed."""
    crystals = _random(process, 100)
    s, r = _times(0.7, crystals), _times(0.6, crystals)
    for name, move in _moves(process).items():
        latent = process.prior(crystals, generator(0))
        before = {channel: values.clone() for channel, values in latent.items()}
        first, second = (
            move(latent, _zeros(process, crystals), Step(s=s, r=r, now=s, layout=crystals.layout, rng=generator(5)))
            for _ in range(2)
        )
        expect(_equal(latent, before), f"the move {name} writes into the latent that it is given")
        expect(_equal(first, second), f"the move {name} does not repeat with the same seed")
    first, second = (process.noise(crystals, s, generator(3)).latent for _ in range(2))
    expect(_equal(first, second), "noise does not repeat with the same seed")


def decodes_crystals(process: DiffusionProcess) -> None:
    """A draw of the prior decodes to crystals of the given layout."""
    for crystals in _crystals(process):
        blank = attrs.evolve(crystals, fractional=crystals.fractional * 0, lattice=torch.ones_like(crystals.lattice))
        actual = process.decode(process.prior(crystals, generator(0)), blank)
        expect(actual.layout.sizes == _SIZES, "crystals are decoded with different numbers of atoms")
        expect(((actual.fractional >= 0) & (actual.fractional < 1)).all(), "positions are not all decoded into [0, 1)")
        expect(torch.isfinite(actual.lattice).all(), "lattices are not all decoded to finite numbers")
        expect(((actual.species >= 1) & (actual.species <= 100)).all(), "species are not all decoded to 1 to 100")


def decodes_what_it_encodes(process: DiffusionProcess) -> None:
    """With almost no noise, decoding returns the clean crystals."""
    crystals = _random(process, 0)
    latent = process.noise(crystals, _times(1e-9, crystals), generator(0)).latent
    _alike(process.decode(latent, crystals), crystals, 1e-3, "with almost no noise")


def keeps_to_the_elements(process: DiffusionProcess) -> None:
    """A restricted process generates no other elements, whatever the network predicts, NaN included."""
    crystals = _random(process, 100)
    for elements in ((3, 8, 25), (100,)):
        restricted = _restricted(process, elements)
        if restricted is None:
            return
        same = (restricted.reads, restricted.predicts) == (process.reads, process.predicts)
        expect(same, "restricted to elements, it has different channels")
        for name, move in _moves(restricted).items():
            for scale in (1.0, 1e30, float("nan")):
                latent, rng = restricted.prior(crystals, generator(0)), generator(1)
                for k in range(5, 0, -1):
                    s, r = _times(k / 5, crystals), _times((k - 1) / 5, crystals)
                    output = {
                        channel: scale * torch.randn(values.shape, generator=rng, dtype=values.dtype)
                        for channel, values in _zeros(restricted, crystals).items()
                    }
                    latent = move(latent, output, Step(s=s, r=r, now=s, layout=crystals.layout, rng=rng))
                outside = set(restricted.decode(latent, crystals).species.tolist()) - set(elements)
                expect(not outside, f"restricted to {elements}, the move {name} leads to {sorted(outside)}")


def estimates_the_clean_crystals(process: DiffusionProcess) -> None:
    """The exact prediction gives x_0, at so little noise that only the nearest image of an atom matters."""
    if not isinstance(process, Estimates):
        return
    crystals = _random(process, 0)
    s = _times(0.1, crystals)
    noised = process.noise(crystals, s, generator(0))
    widths = {channel.name: channel.width for channel in process.predicts}
    exact = {
        name: value
        if value.is_floating_point()
        else 50.0 * torch.nn.functional.one_hot(value, widths[name]).to(crystals.fractional.dtype)
        for name, value in noised.target.items()
    }
    estimate = process.estimate(noised.latent, exact, s, crystals.layout)
    expect(set(estimate) == set(noised.latent), "its estimate has different channels than its latent")
    _alike(process.decode(estimate, crystals), crystals, 1e-6, "estimated from the exact prediction")


def ends_at_the_clean_value_it_is_given(process: DiffusionProcess) -> None:
    """Moves with an estimate end at the given clean value if they end at r = 0."""
    for crystals in _crystals(process):
        clean = process.noise(crystals, _times(1e-9, crystals), generator(1)).latent
        s, r = _times(0.8, crystals), _times(0, crystals)
        latent = process.noise(crystals, s, generator(0)).latent
        for name, move in _with_estimate(process).items():
            step = Step(s=s, r=r, now=s, layout=crystals.layout, rng=generator(2))
            actual = process.decode(move.function(latent, clean, step), crystals)
            _alike(actual, process.decode(clean, crystals), 1e-5, f"at the end of {name}")


def keeps_the_law_of_the_noise(process: DiffusionProcess) -> None:
    """Moves with an estimate lead from a draw of the forward process at s to one at r, of the same spread."""
    if not process.predicts:
        return
    count, crystal = 3000, random_crystals((3,), 0)
    crystals = Crystals(
        crystal.fractional.repeat(count, 1),
        crystal.lattice.repeat(count, 1),
        crystal.species.repeat(count),
        Layout.of((3,) * count),
    )
    clean = {
        name: torch.zeros_like(value) if name == "velocity" else value
        for name, value in process.noise(crystals, _times(1e-12, crystals), generator(3)).latent.items()
    }
    for time in (0.05, 0.4):
        s, r = _times(0.6, crystals), _times(time, crystals)
        latent, expected = (process.noise(crystals, at, generator(seed)).latent for at, seed in ((s, 1), (r, 2)))
        for name, move in _with_estimate(process).items():
            actual = move.function(latent, clean, Step(s=s, r=r, now=s, layout=crystals.layout, rng=generator(4)))
            for channel in process.reads:
                a, b = (
                    _spread(values[channel.name] - clean[channel.name], channel, crystals.layout)
                    for values in (actual, expected)
                )
                sentence = f"{name} to r = {time:g} leaves {channel.name} with a different spread than noise at r"
                expect(torch.allclose(a, b, rtol=0.1, atol=0.002), sentence)


PROCESS_CHECKS: tuple[ProcessCheck, ...] = (
    fills_the_channels_it_declares,
    has_a_loss_that_is_least_at_the_target,
    has_a_loss_that_is_a_mean_over_rows,
    declares_its_moves,
    stays_finite_from_noise_to_data,
    leaves_its_arguments_alone,
    decodes_crystals,
    decodes_what_it_encodes,
    keeps_to_the_elements,
    estimates_the_clean_crystals,
    ends_at_the_clean_value_it_is_given,
    keeps_the_law_of_the_noise,
)


def check_process(process: DiffusionProcess) -> None:
    """Every check on a process. If it leaves noise at s = 0, it must be built with little of it.

    Raises:
        AssertionError: a check fails; one sentence says what is wrong.
    """
    run_checks(PROCESS_CHECKS, process)


def _crystals(process: DiffusionProcess) -> tuple[Crystals, ...]:
    """The same crystals in both floating point types. No check draws noise with their seed: uniform noise would equal
    their positions."""
    return tuple(_random(process, 100, dtype) for dtype in _TYPES)


def _random(process: DiffusionProcess, seed: int, dtype: torch.dtype = torch.float64) -> Crystals:
    """Random crystals, with the columns that the process reads."""
    return random_crystals(_SIZES, seed, dtype, process.columns if isinstance(process, ReadsColumns) else ())


def _zeros(process: DiffusionProcess, crystals: Crystals) -> dict[str, Tensor]:
    """The prediction of a network that predicts 0."""
    return {c.name: crystals.lattice.new_zeros(rows(c, crystals.layout), c.width) for c in process.predicts}


def _times(value: float, crystals: Crystals) -> Tensor:
    return torch.full((len(crystals),), value, dtype=crystals.fractional.dtype)


def _moves(process: DiffusionProcess) -> Mapping[str, Move]:
    """The moves that it declares, and one to its estimate."""
    moves = {"denoise": process.moves["denoise"], **process.moves}
    if isinstance(process, Estimates):
        moves["estimate"] = Move(lambda latent, clean, step: clean, estimate=process.estimate)
    return moves


def _with_estimate(process: DiffusionProcess) -> Mapping[str, Move]:
    """The moves with an estimate, which take a clean value."""
    return {name: move for name, move in process.moves.items() if move.estimate is not None}


def _restricted(process: DiffusionProcess, elements: tuple[int, ...]) -> DiffusionProcess | None:
    """The process restricted to the elements; None if it is not one of species."""
    try:
        return process.restricted(elements) if isinstance(process, Restricts) else None
    except KldmError:
        return None


def _declared(latent: Latent, process: DiffusionProcess, crystals: Crystals, what: str) -> None:
    names = {channel.name for channel in process.reads}
    expect(set(latent) == names, f"{what} has the channels {sorted(latent)}, but it reads {sorted(names)}")
    for channel in process.reads:
        values, count = latent[channel.name], rows(channel, crystals.layout)
        if channel.kind == "token":
            whole = values.shape == (count,) and values.dtype == torch.int64
            expect(whole, f"{what}: the tokens of {channel.name} are not int64 [{count}]")
            expect(
                ((values >= 0) & (values < channel.width)).all(), f"{what}: {channel.name} is not all in its vocabulary"
            )
            continue
        shape = (count, channel.width)
        expect(values.shape == shape, f"{what}: {channel.name} is {tuple(values.shape)}, not {shape}")
        dtype = crystals.fractional.dtype
        expect(values.dtype == dtype, f"{what}: {channel.name} is of {values.dtype} where the crystals are of {dtype}")
        expect(torch.isfinite(values).all(), f"{what}: {channel.name} is not finite")
        if channel.kind == "periodic":
            expect(((values >= 0) & (values < 1)).all(), f"{what}: {channel.name} is not all in [0, 1)")


def _equal(first: Latent, second: Latent) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _alike(actual: Crystals, expected: Crystals, tolerance: float, when: str) -> None:
    """Whether crystals are the same up to a translation of each."""
    away = _residual(actual.fractional - expected.fractional, expected.layout).abs().max()
    expect(away < 2 * tolerance, f"{when}, positions are off by up to {away:g} of a cell")
    off = ((actual.lattice - expected.lattice).abs() / (1 + expected.lattice.abs())).max()
    expect(off < tolerance, f"{when}, lattices are off by up to {off:g} of their size")
    expect(torch.equal(actual.species, expected.species), f"{when}, species are different")


def _residual(difference: Tensor, layout: Layout) -> Tensor:
    """Differences of fractional coordinates [N, 3], wrapped, less the circular mean over the atoms of each crystal."""
    angle = 2 * torch.pi * difference
    centre = torch.atan2(layout.mean(angle.sin()), layout.mean(angle.cos()))
    return wrap(angle - layout.per_atom(centre)) / (2 * torch.pi)


def _spread(difference: Tensor, channel: Channel, layout: Layout) -> Tensor:
    """Standard deviation of every number of a channel, or of its distance on the circle less its translation."""
    if channel.kind == "periodic":
        difference = layout.centred(_residual(difference, layout))
    return difference.reshape(len(layout), -1).std(0)
