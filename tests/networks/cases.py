"""Interfaces as the processes of real models declare them, and random latents for any interface."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kldm.crystals import Layout
from kldm.interfaces import Channel, Interface

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

INTERFACES = {
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

MIXED = (1, 52, 3, 20, 1, 2, 7)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_latent(
    interface: Interface, layout: Layout, rng: torch.Generator, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """A latent as the prior would draw it."""
    latent = {}
    for channel in interface.reads:
        rows = layout.total if channel.per == "atom" else len(layout)
        if channel.kind == "token":
            latent[channel.name] = torch.randint(channel.width, (rows,), generator=rng)
        elif channel.kind == "periodic":
            latent[channel.name] = torch.rand(rows, channel.width, generator=rng, dtype=dtype)
        else:
            latent[channel.name] = torch.randn(rows, channel.width, generator=rng, dtype=dtype)
    return latent


def case(
    interface: Interface, sizes: Sequence[int], dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[dict[str, Tensor], Tensor, Layout]:
    """Latent, times and layout of one network call."""
    layout, rng = Layout.of(sizes), generator(seed)
    return random_latent(interface, layout, rng, dtype), torch.rand(len(layout), generator=rng, dtype=dtype), layout
