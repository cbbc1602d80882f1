"""What every process must do, whatever its mathematics."""

from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, Layout
from kldm.errors import KldmError
from kldm.interfaces import Channel, DiffusionProcess, Estimates, Latent, Move, Noised, ReadsColumns, Restricts, Step
from kldm.model import NoisedBatch
from kldm.testing.crystals import expect, generator, random_crystals, rows
from kldm.torus import wrap

ProcessCheck = Callable[[DiffusionProcess], None]

_SIZES = (1, 4, 1, 20, 2)
_TYPES = (torch.float32, torch.float64)


def fills_the_channels_it_declares(process: DiffusionProcess) -> None:
    """The prior, and noise at any time, have the channels of ``reads``; targets are finite, those of ``predicts``."""
    for crystals in _crystals(process):
        _declared(process.prior(crystals, generator(0)), process, crystals, "the prior")
        for time in (1e-6, 1e-3, 0.5, 1.0):
            noised = process.noise(crystals, _times(time, crystals), generator(0))
            _declared(noised.latent, process, crystals, f"noise at s = {time:g}")
            names = {channel.name for channel in process.predicts}
            expect(
                set(noised.target) == names, f"it has targets for {sorted(noised.target)}, and predicts {sorted(names)}"
            )
            for name, target in noised.target.items():
                expect(torch.isfinite(target).all(), f"the target of {name} at s = {time:g} is not finite")


def has_a_loss_that_is_least_at_the_target(process: DiffusionProcess) -> None:
    """The loss is a finite scalar, 0 for the target, more for silence, and reaches the network."""
    for crystals in _crystals(process):
        s = torch.linspace(0.001, 1, len(crystals), dtype=crystals.fractional.dtype)
        noised = process.noise(crystals, s, generator(0))
        output = {name: values.requires_grad_() for name, values in _silence(process, crystals).items()}
        loss = process.loss(output, noised, s, crystals.layout)
        expect(loss.shape == () and torch.isfinite(loss), "the loss is not one finite number")
        if not process.predicts:
            continue
        if "token" not in {channel.kind for channel in process.predicts}:  # whose answers are logits, not values
            perfect = process.loss(noised.target, noised, s, crystals.layout)
            expect(perfect.abs() < 1e-10, f"the loss of the target itself is {perfect.item():g}")
            expect(loss > perfect, "the loss of a network that answers 0 is no larger than that of the target")
        loss.backward()  # type: ignore[no-untyped-call]
        for name, values in output.items():
            gradient = values.grad
            expect(gradient is not None and gradient.abs().max() > 0, f"the loss gives {name} no gradient")
            expect(gradient is not None and torch.isfinite(gradient).all(), f"the gradient of {name} is not finite")


def has_a_loss_that_is_a_mean_over_rows(process: DiffusionProcess) -> None:
    """The loss of a batch is the mean of those of its parts, by their rows, so that a batch may be divided.

    The parts differ in sizes, in times and in how much of them is noise.
    """
    kinds = {channel.per for channel in process.predicts}
    expect(len(kinds) <= 1, "it predicts numbers of atoms and of crystals: make it two processes")
    crystals = _random(process, 100)
    s = torch.linspace(0.05, 1, len(_SIZES), dtype=torch.float64)
    noised, rng = process.noise(crystals, s, generator(0)), generator(1)
    output = {
        name: torch.randn(values.shape, generator=rng, dtype=values.dtype)
        for name, values in _silence(process, crystals).items()
    }
    whole = NoisedBatch({"it": noised, "out": Noised(output, {})}, s, crystals.layout)
    wanted = process.loss(output, noised, s, crystals.layout).item()
    for border in (1, 3, 4):
        found = 0.0
        for first, last in ((0, border), (border, len(_SIZES))):
            part = whole.part(first, last)
            share = len(part.layout) / len(_SIZES) if kinds == {"crystal"} else part.layout.total / sum(_SIZES)
            found += share * process.loss(part.draws["out"].latent, part.draws["it"], part.s, part.layout).item()
        sentence = f"the loss of a batch is {wanted:g} and the mean of those of its parts, by their rows, {found:g}"
        expect(abs(found - wanted) <= 1e-9 * max(1.0, abs(wanted)), sentence)


def declares_its_moves(process: DiffusionProcess) -> None:
    """``denoise`` is there, and every move says at which time it ends."""
    expect("denoise" in process.moves, "it declares no move 'denoise'")
    for name, move in process.moves.items():
        expect(isinstance(move, Move), f"its move {name} is a {type(move).__name__}, not a Move")


def stays_finite_from_noise_to_data(process: DiffusionProcess) -> None:
    """Every move, with a network that answers 0, in ten steps that end exactly at s = 0."""
    for crystals in _crystals(process):
        for name, move in _moves(process).items():
            latent, rng = process.prior(crystals, generator(0)), generator(1)
            for k in range(10, 0, -1):
                s, r = _times(k / 10, crystals), _times((k - 1) / 10, crystals)
                for now in (s, r) if move.ends == "now" else (s,):
                    step = Step(s=s, r=r, now=now, layout=crystals.layout, rng=rng)
                    latent = move(latent, _silence(process, crystals), step)
                    _declared(latent, process, crystals, f"the move {name} from s = {k / 10:g}")


def leaves_its_arguments_alone(process: DiffusionProcess) -> None:
    """Moves write into nothing that they are given, and repeat under the same seed, as noise does."""
    crystals = _random(process, 100)
    s, r = _times(0.7, crystals), _times(0.6, crystals)
    for name, move in _moves(process).items():
        latent = process.prior(crystals, generator(0))
        before = {channel: values.clone() for channel, values in latent.items()}
        first, second = (
            move(latent, _silence(process, crystals), Step(s=s, r=r, now=s, layout=crystals.layout, rng=generator(5)))
            for _ in range(2)
        )
        expect(_equal(latent, before), f"the move {name} writes into the latent that it is given")
        expect(_equal(first, second), f"the move {name} does not repeat under the same seed")
    first, second = (process.noise(crystals, s, generator(3)).latent for _ in range(2))
    expect(_equal(first, second), "noise does not repeat under the same seed")


def decodes_crystals(process: DiffusionProcess) -> None:
    """A draw of the prior decodes to crystals of the layout that was asked for."""
    for crystals in _crystals(process):
        blank = attrs.evolve(crystals, fractional=crystals.fractional * 0, lattice=torch.ones_like(crystals.lattice))
        found = process.decode(process.prior(crystals, generator(0)), blank)
        expect(found.layout.sizes == _SIZES, "crystals are decoded with other numbers of atoms")
        expect(((found.fractional >= 0) & (found.fractional < 1)).all(), "positions are not all decoded into [0, 1)")
        expect(torch.isfinite(found.lattice).all(), "lattices are decoded to numbers that are not finite")
        expect(((found.species >= 1) & (found.species <= 100)).all(), "species are not all decoded to 1 to 100")


def decodes_what_it_encodes(process: DiffusionProcess) -> None:
    """With almost no noise the clean crystals come back."""
    crystals = _random(process, 0)
    latent = process.noise(crystals, _times(1e-9, crystals), generator(0)).latent
    _alike(process.decode(latent, crystals), crystals, 1e-3, "with almost no noise")


def keeps_to_the_elements(process: DiffusionProcess) -> None:
    """A restricted process holds its samples to the elements, whatever the network answers, not-a-number as well."""
    crystals = _random(process, 100)
    for elements in ((3, 8, 25), (100,)):
        held = _restricted(process, elements)
        if held is None:
            return
        expect((held.reads, held.predicts) == (process.reads, process.predicts), "restricted, it has other channels")
        for name, move in _moves(held).items():
            for scale in (1.0, 1e30, float("nan")):
                latent, rng = held.prior(crystals, generator(0)), generator(1)
                for k in range(5, 0, -1):
                    s, r = _times(k / 5, crystals), _times((k - 1) / 5, crystals)
                    output = {
                        channel: scale * torch.randn(values.shape, generator=rng, dtype=values.dtype)
                        for channel, values in _silence(held, crystals).items()
                    }
                    latent = move(latent, output, Step(s=s, r=r, now=s, layout=crystals.layout, rng=rng))
                outside = set(held.decode(latent, crystals).species.tolist()) - set(elements)
                expect(not outside, f"restricted to {elements}, the move {name} leads to {sorted(outside)}")


def estimates_the_clean_crystals(process: DiffusionProcess) -> None:
    """The exact prediction at little noise, where no image of an atom but the nearest matters, gives x_0."""
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
    expect(set(estimate) == set(noised.latent), "its estimate has other channels than its latent")
    _alike(process.decode(estimate, crystals), crystals, 1e-6, "estimated from the exact prediction")


def ends_at_the_clean_value_it_is_given(process: DiffusionProcess) -> None:
    """Moves that hold a clean value end at it when they end at r = 0."""
    for crystals in _crystals(process):
        clean = process.noise(crystals, _times(1e-9, crystals), generator(1)).latent
        s, r = _times(0.8, crystals), _times(0, crystals)
        latent = process.noise(crystals, s, generator(0)).latent
        for name, move in _holding(process).items():
            step = Step(s=s, r=r, now=s, layout=crystals.layout, rng=generator(2))
            found = process.decode(move.function(latent, clean, step), crystals)
            _alike(found, process.decode(clean, crystals), 1e-5, f"at the end of {name}")


def keeps_the_law_of_the_noise(process: DiffusionProcess) -> None:
    """Moves that hold a clean value lead from a draw of the forward process at s to one at r: the same spread."""
    if not process.predicts:
        return
    count, one = 3000, random_crystals((3,), 0)
    crystals = Crystals(
        one.fractional.repeat(count, 1),
        one.lattice.repeat(count, 1),
        one.species.repeat(count),
        Layout.of((3,) * count),
    )
    clean = {
        name: torch.zeros_like(value) if name == "velocity" else value
        for name, value in process.noise(crystals, _times(1e-12, crystals), generator(3)).latent.items()
    }
    for time in (0.05, 0.4):
        s, r = _times(0.6, crystals), _times(time, crystals)
        latent, wanted = (process.noise(crystals, at, generator(seed)).latent for at, seed in ((s, 1), (r, 2)))
        for name, move in _holding(process).items():
            found = move.function(latent, clean, Step(s=s, r=r, now=s, layout=crystals.layout, rng=generator(4)))
            for channel in process.reads:
                a, b = (
                    _spread(values[channel.name] - clean[channel.name], channel, crystals.layout)
                    for values in (found, wanted)
                )
                sentence = f"{name} to r = {time:g} leaves {channel.name} another spread of its noise than noising does"
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
    """Every check on a process. One whose noise at s = 0 is not nothing must be built with little of it.

    Raises:
        AssertionError: one sentence on what does not hold.
    """
    for check in PROCESS_CHECKS:
        check(process)


def _crystals(process: DiffusionProcess) -> tuple[Crystals, ...]:
    """The same crystals in either floating point type. No draw of a check has their seed: its uniform noise would be
    their positions."""
    return tuple(_random(process, 100, dtype) for dtype in _TYPES)


def _random(process: DiffusionProcess, seed: int, dtype: torch.dtype = torch.float64) -> Crystals:
    """Random crystals, with the columns that the process reads."""
    return random_crystals(_SIZES, seed, dtype, process.columns if isinstance(process, ReadsColumns) else ())


def _silence(process: DiffusionProcess, crystals: Crystals) -> dict[str, Tensor]:
    """The prediction of a network that answers 0."""
    return {c.name: crystals.lattice.new_zeros(rows(c, crystals.layout), c.width) for c in process.predicts}


def _times(value: float, crystals: Crystals) -> Tensor:
    return torch.full((len(crystals),), value, dtype=crystals.fractional.dtype)


def _moves(process: DiffusionProcess) -> Mapping[str, Move]:
    """The moves that it declares, and the one to its estimate."""
    found = {"denoise": process.moves["denoise"], **process.moves}
    if isinstance(process, Estimates):
        found["estimate"] = Move(lambda latent, clean, step: clean, estimate=process.estimate)
    return found


def _holding(process: DiffusionProcess) -> Mapping[str, Move]:
    """The moves that hold a clean value."""
    return {name: move for name, move in process.moves.items() if move.estimate is not None}


def _restricted(process: DiffusionProcess, elements: tuple[int, ...]) -> DiffusionProcess | None:
    """The process held to the elements; None where it is not of species."""
    try:
        return process.restricted(elements) if isinstance(process, Restricts) else None
    except KldmError:
        return None


def _declared(latent: Latent, process: DiffusionProcess, crystals: Crystals, what: str) -> None:
    names = {channel.name for channel in process.reads}
    expect(set(latent) == names, f"{what} has the channels {sorted(latent)}, and it reads {sorted(names)}")
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


def _alike(found: Crystals, wanted: Crystals, tolerance: float, when: str) -> None:
    """The same crystals up to a translation of each."""
    away = _residual(found.fractional - wanted.fractional, wanted.layout).abs().max()
    expect(away < 2 * tolerance, f"{when}, positions are off by up to {away:g} of a cell")
    off = ((found.lattice - wanted.lattice).abs() / (1 + wanted.lattice.abs())).max()
    expect(off < tolerance, f"{when}, lattices are off by up to {off:g} of their size")
    expect(torch.equal(found.species, wanted.species), f"{when}, species are others")


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
