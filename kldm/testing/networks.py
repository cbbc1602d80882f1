"""Checks of score networks, whatever their architecture."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from kldm.crystals import Layout
from kldm.errors import KldmError
from kldm.interfaces import Channel, Interface, Latent, ScoreNetwork
from kldm.testing.crystals import close, expect, generator, random_latent, rows, run_checks

FRACTIONAL = Channel("fractional", 3, "atom", "periodic")
VELOCITY = Channel("velocity", 3, "atom", "tangent")
LATTICE = Channel("lattice", 6, "crystal", "real")
SPECIES = Channel("species", 100, "atom", "token")
TYPES = Channel("species", 100, "atom", "real")
MASKED = Channel("species", 101, "atom", "token")
SCORE = Channel("score", 3, "atom", "tangent")
VOLUME = Channel("volume", 1, "crystal", "real")
CHARGE = Channel("charge", 9, "atom", "token")
MATRIX = Channel("lattice", 9, "crystal", "matrix")
STRAIN = Channel("strain", 9, "crystal", "matrix")

INTERFACES: Mapping[str, Interface] = {
    "structure prediction": Interface((SPECIES, FRACTIONAL, VELOCITY, LATTICE), (VELOCITY, LATTICE)),
    "generation, one-hot": Interface((FRACTIONAL, VELOCITY, LATTICE, TYPES), (VELOCITY, LATTICE, TYPES)),
    "generation, masked": Interface((FRACTIONAL, VELOCITY, LATTICE, MASKED), (VELOCITY, LATTICE, SPECIES)),
    "no velocity": Interface((SPECIES, FRACTIONAL, LATTICE), (SCORE, LATTICE)),
    "coordinates alone": Interface((FRACTIONAL,), (SCORE,)),
    "several of each": Interface(
        (VOLUME, CHARGE, SPECIES, FRACTIONAL, VELOCITY, LATTICE), (LATTICE, SCORE, VELOCITY, CHARGE, VOLUME)
    ),
    "diffcsp": Interface((FRACTIONAL, MATRIX, SPECIES), (SCORE, MATRIX)),
    "diffcsp dng": Interface((FRACTIONAL, MATRIX, TYPES), (SCORE, MATRIX, TYPES)),
    "several matrices": Interface((VOLUME, STRAIN, FRACTIONAL, VELOCITY, MATRIX), (MATRIX, VOLUME, VELOCITY)),
}
"""Interfaces that the processes of real models declare. A network may refuse some of them with ``KldmError``."""

NetworkFactory = Callable[[Interface], ScoreNetwork]
"""Builds the network for an interface: a class, or ``functools.partial`` of it with its options."""

NetworkCheck = Callable[[NetworkFactory], None]

MIXED = (1, 52, 3, 20, 1, 2, 7)


def takes_crystal_structure_prediction(factory: NetworkFactory) -> None:
    """A network must accept the interface of structure prediction, with velocities or without."""
    titles = ("structure prediction", "no velocity")
    expect(any(title in titles for title, _, _ in _built(factory)), f"it refuses both of {' and '.join(titles)}")


def predicts_what_it_declares(factory: NetworkFactory) -> None:
    """It predicts every declared channel, with one row per atom or crystal, for batches of any sizes."""
    for title, network, interface in _built(factory):
        for sizes in (MIXED, (1, 1), (5,)):
            latent, s, layout = case(interface, sizes)
            prediction = network(latent, s, layout)
            names = {channel.name for channel in interface.predicts}
            expect(
                set(prediction) == names, f"{title}: it predicts {sorted(prediction)} where {sorted(names)} is declared"
            )
            for channel in interface.predicts:
                values, shape = prediction[channel.name], (rows(channel, layout), channel.width)
                expect(values.shape == shape, f"{title}: {channel.name} is {tuple(values.shape)}, not {shape}")
                expect(values.dtype == s.dtype, f"{title}: {channel.name} is of {values.dtype}, not of {s.dtype}")
                expect(values.isfinite().all(), f"{title}: {channel.name} is not finite for the sizes {sizes}")


def ignores_a_translation_of_each_crystal(factory: NetworkFactory) -> None:
    """A common translation of the atoms of a crystal changes no prediction."""
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
    """A change of axes turns the matrices that are predicted with those that are read, and changes nothing else."""
    for title, network, interface in _built(factory):
        latent, s, layout = case(interface, MIXED)
        rotation = torch.linalg.qr(torch.randn(len(layout), 3, 3, generator=generator(1), dtype=s.dtype)).Q
        rotation[::2] *= -1  # a reflection is a change of axes too
        before = network(latent, s, layout)
        after = network(_turned(interface.reads, latent, rotation), s, layout)
        for name, values in _turned(interface.predicts, before, rotation).items():
            expect(close(after[name], values), f"{title}: {name} does not turn with the crystal")


def follows_a_permutation_of_the_atoms(factory: NetworkFactory) -> None:
    """A permutation of the atoms of a crystal permutes the predictions."""
    for title, network, interface in _built(factory):
        latent, s, layout = case(interface, MIXED)
        order = torch.argsort(layout.owner + 0.9 * torch.rand(layout.total, generator=generator(1)))
        of_atoms = {channel.name for channel in interface.reads if channel.per == "atom"}
        permuted = {name: values[order] if name in of_atoms else values for name, values in latent.items()}
        before, after = network(latent, s, layout), network(permuted, s, layout)
        for channel in interface.predicts:
            expected = before[channel.name][order] if channel.per == "atom" else before[channel.name]
            sentence = f"{title}: {channel.name} does not follow a permutation of the atoms"
            expect(close(after[channel.name], expected), sentence)


def does_not_mix_crystals(factory: NetworkFactory) -> None:
    """The prediction for a crystal is the same whatever else is in the batch."""
    for title, network, interface in _built(factory):
        latent, s, layout = case(interface, MIXED)
        together = network(latent, s, layout)
        per = {channel.name: channel.per for channel in (*interface.reads, *interface.predicts)}
        for b, size in enumerate(MIXED):
            first = int(layout.ptr[b])
            rows_of = {"atom": slice(first, first + size), "crystal": slice(b, b + 1)}
            alone = network({n: v[rows_of[per[n]]] for n, v in latent.items()}, s[b : b + 1], Layout.of([size]))
            for name, values in alone.items():
                sentence = f"{title}: {name} of a crystal depends on the other crystals of the batch"
                expect(close(values, together[name][rows_of[per[name]]]), sentence)


def uses_every_input(factory: NetworkFactory) -> None:
    """Predictions depend on every input; a network that ignores its input has all symmetries too."""
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
    """Every parameter gets a gradient that is finite and not 0."""
    for title, network, interface in _built(factory):
        latent, s, layout = case(interface, MIXED)
        torch.autograd.backward([values.square().sum() for values in network(latent, s, layout).values()])
        for name, parameter in network.named_parameters():
            gradient = parameter.grad
            expect(gradient is not None and gradient.abs().max() > 0, f"{title}: {name} gets no gradient")
            expect(gradient is not None and gradient.isfinite().all(), f"{title}: {name} gets an infinite gradient")


def is_all_in_its_state(factory: NetworkFactory) -> None:
    """The state_dict decides the prediction, random features included."""
    for (title, network, interface), (_, other, _) in zip(_built(factory), _built(factory, seed=1), strict=True):
        latent, s, layout = case(interface, (3, 5))
        other.load_state_dict(network.state_dict())
        loaded = other(latent, s, layout)
        for name, values in network(latent, s, layout).items():
            expect(torch.equal(loaded[name], values), f"{title}: {name} depends on what its state_dict does not hold")


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
    """Every check on a network, built for each of ``INTERFACES`` that it does not refuse, in float64.

    Args:
        factory: builds the network for an interface; it should be small, as it is called some hundred times.

    Raises:
        AssertionError: a check fails; one sentence says what is wrong.
    """
    run_checks(NETWORK_CHECKS, factory)


def _built(factory: NetworkFactory, seed: int = 0) -> Iterator[tuple[str, nn.Module, Interface]]:
    """Title, network and interface, for every interface that the factory does not refuse."""
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


def _turned(channels: Sequence[Channel], values: Mapping[str, Tensor], rotation: Tensor) -> dict[str, Tensor]:
    """The values, with the matrices [B, 9] turned by orthogonal matrices [B, 3, 3]."""
    matrices = {channel.name for channel in channels if channel.kind == "matrix"}
    return {
        name: (value.reshape(-1, 3, 3) @ rotation).flatten(1) if name in matrices else value
        for name, value in values.items()
    }
