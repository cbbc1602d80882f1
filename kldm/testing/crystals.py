"""What the checks share: random crystals and latents, and comparisons."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from kldm.crystals import Crystals, Layout
from kldm.interfaces import Channel, Interface

SIZES = (4, 1, 2, 7, 1)
"""Numbers of atoms of the crystals in checks: several sizes, with crystals of one atom."""


def random_crystals(
    sizes: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64, columns: Sequence[str] = ()
) -> Crystals:
    """Crystals with uniform positions, sensible cells and random types.

    Args:
        sizes: the number of atoms of each.
        seed: seed of the random numbers.
        dtype: type of all real numbers.
        columns: names of columns with one number per crystal; every third number is missing.
    """
    rng = generator(seed)
    layout = Layout.of(sizes)
    fractional = torch.rand(layout.total, 3, generator=rng, dtype=dtype)
    lengths = 3 + 5 * torch.rand(len(layout), 3, generator=rng, dtype=dtype)
    angles = 1.2 + 0.7 * torch.rand(len(layout), 3, generator=rng, dtype=dtype)
    species = torch.randint(1, 101, (layout.total,), generator=rng)
    numbers = torch.arange(len(layout), dtype=dtype) - 2
    numbers[::3] = torch.nan
    return Crystals(fractional, torch.cat([lengths, angles], -1), species, layout, dict.fromkeys(columns, numbers))


def random_latent(
    interface: Interface, layout: Layout, rng: torch.Generator, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Values of every channel that a network reads, as a prior would draw them."""
    latent = {}
    for channel in interface.reads:
        count = rows(channel, layout)
        if channel.kind == "token":
            latent[channel.name] = torch.randint(channel.width, (count,), generator=rng)
        elif channel.kind == "periodic":
            latent[channel.name] = torch.rand(count, channel.width, generator=rng, dtype=dtype)
        else:
            latent[channel.name] = torch.randn(count, channel.width, generator=rng, dtype=dtype)
    return latent


def rows(channel: Channel, layout: Layout) -> int:
    """How many rows a channel has."""
    return layout.total if channel.per == "atom" else len(layout)


def generator(seed: int) -> torch.Generator:
    """A random generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def expect(holds: object, sentence: str) -> None:
    """Raise ``AssertionError`` with the sentence unless the condition holds, under ``python -O`` too."""
    if not holds:
        raise AssertionError(sentence)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> bool:
    """Whether two tensors agree up to a tolerance, relative to their size and absolute near 0."""
    return actual.shape == expected.shape and torch.allclose(actual, expected, rtol=tolerance, atol=tolerance)


def run_checks(checks: Iterable[Callable[..., None]], component: object, *more: object) -> None:
    """Make every check on a component; what it raises itself becomes an ``AssertionError`` that names the check."""
    for check in checks:
        try:
            check(component, *more)
        except AssertionError:
            raise
        except Exception as error:
            name = getattr(check, "__name__", "a check").replace("_", " ")
            raise AssertionError(f"{name}: it raises {type(error).__name__}: {error}") from error
