"""What every score network must do, whatever its architecture."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from kldm.crystals import Layout
from kldm.errors import KldmError
from kldm.interfaces import Channel, Interface, Latent, ScoreNetwork
from kldm.testing.crystals import close, expect, generator, random_latent, rows

FRACTIONAL = Channel("fractional", 3, "atom", "periodic")
VELOCITY = Channel("velocity", 3, "atom", "tangent")
LATTICE = Channel("lattice", 6, "crystal", "real")
SPECIES = Channel("species", 100, "atom", "token")
ONE_HOT = Channel("species", 100, "atom", "real")
MASKED = Channel("species", 101, "atom", "token")
SCORE = Channel("score", 3, "atom", "tangent")
VOLUME = Channel("volume", 1, "crystal", "real")
CHARGE = Channel("charge", 9, "atom", "token")
MATRIX = Channel("lattice", 9, "crystal", "matrix")
STRAIN = Channel("strain", 9, "crystal", "matrix")

INTERFACES: Mapping[str, Interface] = {
    "structure prediction": Interface((SPECIES, FRACTIONAL, VELOCITY, LATTICE), (VELOCITY, LATTICE)),
    "generation, one-hot": Interface((FRACTIONAL, VELOCITY, LATTICE, ONE_HOT), (VELOCITY, LATTICE, ONE_HOT)),
    "generation, masked": Interface((FRACTIONAL, VELOCITY, LATTICE, MASKED), (VELOCITY, LATTICE, SPECIES)),
    "no velocity": Interface((SPECIES, FRACTIONAL, LATTICE), (SCORE, LATTICE)),
    "coordinates alone": Interface((FRACTIONAL,), (SCORE,)),
    "several of each": Interface(
        (VOLUME, CHARGE, SPECIES, FRACTIONAL, VELOCITY, LATTICE), (LATTICE, SCORE, VELOCITY, CHARGE, VOLUME)
    ),
    "diffcsp": Interface((FRACTIONAL, MATRIX, SPECIES), (SCORE, MATRIX)),
    "diffcsp dng": Interface((FRACTIONAL, MATRIX, ONE_HOT), (SCORE, MATRIX, ONE_HOT)),
    "several matrices": Interface((VOLUME, STRAIN, FRACTIONAL, VELOCITY, MATRIX), (MATRIX, VOLUME, VELOCITY)),
}
"""Interfaces as the processes of real models declare them. A network may refuse some with ``KldmError``."""

NetworkFactory = Callable[[Interface], ScoreNetwork]
"""What builds the network for an interface: a class, or ``functools.partial`` of it with its options."""

NetworkCheck = Callable[[NetworkFactory], None]

MIXED = (1, 52, 3, 20, 1, 2, 7)


def takes_crystal_structure_prediction(factory: NetworkFactory) -> None:
    """Structure prediction, with velocities or without, is what a network must be able to serve."""
    titles = ("structure prediction", "no velocity")
    expect(any(title in titles for title, _, _ in _built(factory)), f"it refuses both of {' and '.join(titles)}")


def predicts_what_it_declares(factory: NetworkFactory) -> None:
    """Every channel that is asked for, one row per atom or crystal, for batches of any sizes."""
    for title, network, interface in _built(factory):
        for sizes in (MIXED, (1, 1), (5,)):
            latent, s, layout = case(interface, sizes)
            prediction = network(latent, s, layout)
            names = {channel.name for channel in interface.predicts}
            expect(
                set(prediction) == names, f"{title}: it predicts {sorted(prediction)} where {sorted(names)} is asked"
            )
            for channel in interface.predicts:
                values, shape = prediction[channel.name], (rows(channel, layout), channel.width)
                expect(values.shape == shape, f"{title}: {channel.name} is {tuple(values.shape)}, not {shape}")
                expect(values.dtype == s.dtype, f"{title}: {channel.name} is of {values.dtype}, not of {s.dtype}")
                expect(values.isfinite().all(), f"{title}: {channel.name} is not finite for the sizes {sizes}")


def ignores_a_translation_of_each_crystal(factory: NetworkFactory) -> None:
    """Periodic channels are known up to a common translation of the atoms of a crystal."""
    for title, network, interface in _built(factory):
        latent, s, layout = case(interface, MIXED)
        shift = layout.per_atom(torch.rand(len(layout), 3, generator=generator(1), dtype=s.dtype))
        moved = {
            channel.name: (latent[channel.name] + shift) % 1 if channel.kind == "periodic" else latent[channel.name]
            for channel in interface.reads
        }
        before, after = network(latent, s, layout), network(moved, s, layout)
        for name, values in before.items():
            expect(close(after[name], values), f"{title}: {name} changes when a crystal is translated")


def turns_matrices_with_the_crystal(factory: NetworkFactory) -> None:
    """Where matrices turn, in what is read and in what is predicted, nothing else does."""
    for title, network, interface in _built(factory):
        latent, s, layout = case(interface, MIXED)
        by = torch.linalg.qr(torch.randn(len(layout), 3, 3, generator=generator(1), dtype=s.dtype)).Q
        by[::2] *= -1  # a reflection is no less a change of axes
        before = network(latent, s, layout)
        after = network(_turned(interface.reads, latent, by), s, layout)
        for name, values in _turned(interface.predicts, before, by).items():
            expect(
                close(after[name], values), f"{title}: {name} is not what it was, turned, when the crystal is turned"
            )


def follows_a_permutation_of_the_atoms(factory: NetworkFactory) -> None:
    """The order of the atoms of a crystal means nothing."""
    for title, network, interface in _built(factory):
        latent, s, layout = case(interface, MIXED)
        order = torch.argsort(layout.owner + 0.9 * torch.rand(layout.total, generator=generator(1)))
        of_atoms = {channel.name for channel in interface.reads if channel.per == "atom"}
        permuted = {name: values[order] if name in of_atoms else values for name, values in latent.items()}
        before, after = network(latent, s, layout), network(permuted, s, layout)
        for channel in interface.predicts:
            wanted = before[channel.name][order] if channel.per == "atom" else before[channel.name]
            sentence = f"{title}: {channel.name} does not follow a permutation of the atoms"
            expect(close(after[channel.name], wanted), sentence)


def does_not_mix_crystals(factory: NetworkFactory) -> None:
    """The prediction for a crystal is the same whatever else is in the batch."""
    for title, network, interface in _built(factory):
        latent, s, layout = case(interface, MIXED)
        together = network(latent, s, layout)
        per = {channel.name: channel.per for channel in (*interface.reads, *interface.predicts)}
        for b, size in enumerate(MIXED):
            first = int(layout.ptr[b])
            of = {"atom": slice(first, first + size), "crystal": slice(b, b + 1)}
            alone = network({n: v[of[per[n]]] for n, v in latent.items()}, s[b : b + 1], Layout.of([size]))
            for name, values in alone.items():
                sentence = f"{title}: {name} of a crystal depends on the other crystals of the batch"
                expect(close(values, together[name][of[per[name]]]), sentence)


def uses_every_input(factory: NetworkFactory) -> None:
    """All symmetries are also had by ignoring the input."""
    for title, network, interface in _built(factory):
        latent, s, layout = case(interface, (4, 6))
        other, later, _ = case(interface, (4, 6), seed=1)
        before = network(latent, s, layout)
        changes: dict[str, tuple[Tensor, Latent]] = {"the time": (later, latent)}
        changes |= {c.name: (s, {**latent, c.name: other[c.name]}) for c in interface.reads}
        for what, (times, changed) in changes.items():
            after = network(changed, times, layout)
            for name, values in before.items():
                expect((after[name] - values).abs().max() > 1e-8, f"{title}: {name} does not depend on {what}")


def gives_every_parameter_a_gradient(factory: NetworkFactory) -> None:
    """A parameter that no prediction depends on is not learnt."""
    for title, network, interface in _built(factory):
        latent, s, layout = case(interface, MIXED)
        torch.autograd.backward([values.square().sum() for values in network(latent, s, layout).values()])
        for name, parameter in network.named_parameters():
            gradient = parameter.grad
            expect(gradient is not None and gradient.abs().max() > 0, f"{title}: {name} gets no gradient")
            expect(gradient is not None and gradient.isfinite().all(), f"{title}: {name} gets a gradient without end")


def is_all_in_its_state(factory: NetworkFactory) -> None:
    """What is saved and loaded decides the prediction, random features included."""
    for (title, network, interface), (_, other, _) in zip(_built(factory), _built(factory, seed=1), strict=True):
        latent, s, layout = case(interface, (3, 5))
        other.load_state_dict(network.state_dict())
        again = other(latent, s, layout)
        for name, values in network(latent, s, layout).items():
            expect(torch.equal(again[name], values), f"{title}: {name} depends on what its state_dict does not hold")


NETWORK_CHECKS: tuple[NetworkCheck, ...] = (
    takes_crystal_structure_prediction,
    predicts_what_it_declares,
    ignores_a_translation_of_each_crystal,
    turns_matrices_with_the_crystal,
    follows_a_permutation_of_the_atoms,
    does_not_mix_crystals,
    uses_every_input,
    gives_every_parameter_a_gradient,
    is_all_in_its_state,
)


def check_network(factory: NetworkFactory) -> None:
    """Every check on what a factory builds for each of ``INTERFACES`` that it does not refuse, in float64.

    Args:
        factory: builds the network for an interface, small, as it is called some hundred times.

    Raises:
        AssertionError: one sentence on what does not hold.
    """
    for check in NETWORK_CHECKS:
        check(factory)


def _built(factory: NetworkFactory, seed: int = 0) -> Iterator[tuple[str, nn.Module, Interface]]:
    """The network for every interface that it takes, with its title."""
    for title, interface in INTERFACES.items():
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                network = factory(interface)
            except KldmError:
                continue
        if not isinstance(network, nn.Module):
            raise AssertionError(f"{type(network).__name__} is not a torch.nn.Module")
        yield title, network.double(), interface


def case(
    interface: Interface, sizes: Sequence[int], dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[dict[str, Tensor], Tensor, Layout]:
    """Latent, times and layout of one network call."""
    layout, rng = Layout.of(sizes), generator(seed)
    latent = random_latent(interface, layout, rng, dtype)
    return latent, torch.rand(len(layout), generator=rng, dtype=dtype), layout


def _turned(channels: Sequence[Channel], values: Mapping[str, Tensor], by: Tensor) -> dict[str, Tensor]:
    """The values, of which matrices [B, 9] are turned by orthogonal matrices [B, 3, 3]."""
    matrices = {channel.name for channel in channels if channel.kind == "matrix"}
    return {
        name: (value.reshape(-1, 3, 3) @ by).flatten(1) if name in matrices else value for name, value in values.items()
    }
