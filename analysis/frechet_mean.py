"""Whether noise moves a crystal as a whole: Figs. 2 and 3 of the paper (appendix D).

    python -m analysis.frechet_mean --out analysis-of-the-mean

A crystal of ten atoms on a circle is noised a thousand times by the kernel of Eq. 16, with and without the constraint
of zero net translation, and the Frechet mean of its atoms (Eq. 28) is compared with that of the crystal. Writes
``frechet_mean.png`` and ``frechet_mean.json``.

What the paper leaves open is chosen here: its noise sigma^2 is the variance of the displacement of an atom, velocity
included, before the projection; the atoms of the drawn crystal are uniform on half of the circle. The record also holds
the shares over many crystals, on half and on the whole circle, for the first result depends on it.
"""

import argparse
import json
from math import pi
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, Layout
from kldm.processes import TrivializedTorus
from kldm.processes.kinetic import Kernel
from kldm.runtime.files import atomic_write
from kldm.torus import unit, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TURN = 2 * pi
ATOMS = 10
VARIANCES = (0.1, 0.7)
SPREADS = {"half of the circle": 0.5, "the whole circle": 1.0}
PRESERVED = 1e-6  # radians: far above rounding, far below the jumps of 2 pi / n


@attrs.frozen(eq=False)
class Shifts:
    """How far the Frechet mean of one crystal moved.

    Attributes:
        variance: of an atom's displacement, square radians.
        constrained: whether velocities have zero net translation.
        values: [samples], radians in [-pi, pi).
    """

    variance: float
    constrained: bool
    values: Tensor

    @property
    def preserved(self) -> float:
        """Share of samples whose mean stays."""
        return (self.values.abs() < PRESERVED).double().mean().item()

    @property
    def discrete(self) -> float:
        """Share of samples whose mean stays or moves by a multiple of 2 pi / n."""
        return (wrap(self.values, TURN / ATOMS).abs() < PRESERVED).double().mean().item()

    def record(self) -> dict[str, float | bool]:
        return {
            "variance": self.variance,
            "zero_net_translation": self.constrained,
            "time": kernel_time(self.variance),
            "share_preserved": self.preserved,
            "share_preserved_or_moved_by_multiples_of_2pi_over_n": self.discrete,
            "root_mean_square_shift": self.values.square().mean().sqrt().item(),
        }


def frechet_mean(angles: Tensor) -> Tensor:
    """The point of the circle with the least sum of squared arcs to the given angles, exactly, in O(n log n).

    The arcs from the best point leave one gap of the sorted angles uncrossed. Cutting the circle there, that is adding
    2 pi to the k smallest angles, makes it the plain mean, m_k = mean(theta) + 2 pi k / n; the best of the n cuts wins.

    Args:
        angles: [..., n], radians.

    Returns:
        [...], in [0, 2 pi); one of the best where there are several.
    """
    theta = angles.remainder(TURN).sort(-1).values
    n = theta.shape[-1]
    k = torch.arange(n, dtype=theta.dtype, device=theta.device)
    means = theta.mean(-1, keepdim=True) + TURN * k / n
    before = theta.cumsum(-1) - theta  # sum of the k smallest
    squares = theta.square().sum(-1, keepdim=True) + 2 * TURN * before + TURN**2 * k
    best = (squares - n * means.square()).argmin(-1, keepdim=True)
    return means.gather(-1, best).squeeze(-1).remainder(TURN)


def kernel_time(variance: float) -> float:
    """The time t at which the displacement of an atom that starts at rest has this variance, by bisection.

    r = tanh(t/2) v_t + sigma_r eps, so its variance is tanh(t/2)^2 sigma_v^2 + sigma_r^2, which grows with t.
    """
    low, high = 0.0, 2.0 + variance  # the variance is 2t - 3 + 4 exp(-t) - exp(-2t), above 2t - 3
    for _ in range(60):
        middle = (low + high) / 2
        kernel = Kernel.at(torch.tensor(middle, dtype=torch.float64))
        found = kernel.gain.square() * kernel.velocity_variance + kernel.position_variance
        low, high = (middle, high) if found < variance else (low, middle)
    return (low + high) / 2


def crystals_on_a_circle(count: int, spread: float, rng: torch.Generator) -> Tensor:
    """[count, n] angles in radians, uniform on this share of the circle, which begins anywhere."""
    place = torch.rand(count, 1, generator=rng, dtype=torch.float64)
    return TURN * unit(place + spread * torch.rand(count, ATOMS, generator=rng, dtype=torch.float64))


def shifts(crystal: Tensor, variance: float, constrained: bool, samples: int, rng: torch.Generator) -> Shifts:
    """Noise one crystal ([n] angles) so many times with ``trivialized_torus.v1`` and follow its Frechet mean."""
    layout = Layout.of([ATOMS] * samples)
    fractional = torch.zeros(layout.total, 3, dtype=torch.float64)
    fractional[:, 0] = (crystal / TURN).repeat(samples)  # the other two axes do not matter
    lattice = torch.ones(samples, 6, dtype=torch.float64)
    clean = Crystals(fractional, lattice, torch.ones(layout.total, dtype=torch.int64), layout)
    time = kernel_time(variance)
    process = TrivializedTorus(zero_net_translation=constrained, variance_floor=0.0, horizon=time)
    noised = process.noise(clean, torch.ones(samples, dtype=torch.float64), rng)
    angles = TURN * noised.latent["fractional"][:, 0].view(samples, ATOMS)
    return Shifts(variance, constrained, wrap(frechet_mean(angles) - frechet_mean(crystal)))


def over_crystals(spread: float, crystals: int, rng: torch.Generator) -> list[dict[str, float]]:
    """Mean and range over random crystals of the share of samples whose mean the constraint preserves; 100 each."""
    rows = []
    for variance in VARIANCES:
        drawn = crystals_on_a_circle(crystals, spread, rng)
        shares = [shifts(crystal, variance, True, 100, rng).preserved for crystal in drawn]
        rows.append(
            {
                "variance": variance,
                "mean_share_preserved": sum(shares) / len(shares),
                "least_share_preserved": min(shares),
                "largest_share_preserved": max(shares),
            }
        )
    return rows


def draw(found: list[Shifts], path: Path) -> None:
    """Histograms of the shifts: a row for each constraint, a column for each noise."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(VARIANCES), sharex=True, sharey=True, squeeze=False)
    for one in found:
        _panel(panels[0 if one.constrained else 1][VARIANCES.index(one.variance)], one)
    for panel, variance in zip(panels[0], VARIANCES, strict=True):
        panel.set_title(rf"$\sigma^2 = {variance}$ rad$^2$", fontsize=10)
    for row, name in zip(panels, ("zero net translation", "without the constraint"), strict=True):
        row[0].set_ylabel(f"{name}\n\nshare of samples (%)", fontsize=9)
    for panel in panels[1]:
        panel.set_xlabel("shift of the Fréchet mean (rad)", fontsize=9)
    panels[0][0].legend(loc="upper left", fontsize=8, frameon=False, handlelength=1.0)
    with atomic_write(path) as part:
        figure.savefig(part, dpi=300, format="png")


def _panel(axes: "Axes", found: Shifts) -> None:
    bins = 5 * ATOMS  # five to a jump, and one centred on every jump
    edges = TURN / bins * (torch.arange(bins + 2) - (bins + 1) / 2)
    percent = torch.full_like(found.values, 100 / len(found.values))
    colour = "#2a6f97" if found.constrained else "#c1666b"
    axes.hist(found.values.numpy(), edges.tolist(), weights=percent.numpy(), color=colour, zorder=2)
    tenths = [TURN * k / ATOMS for k in range(-ATOMS // 2, ATOMS // 2 + 1)]
    axes.vlines(tenths, 0.05, 130, color="0.8", linewidth=0.6, zorder=1, label=rf"multiples of $2\pi/{ATOMS}$")
    axes.set_yscale("log")
    axes.set_ylim(0.08, 1500)
    axes.set_xlim(-pi * 1.04, pi * 1.04)
    axes.set_xticks([-pi, -pi / 2, 0, pi / 2, pi], ["$-\\pi$", "$-\\pi/2$", "0", "$\\pi/2$", "$\\pi$"])
    axes.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    axes.minorticks_off()
    axes.tick_params(labelsize=8)
    label = f"mean preserved:\n{100 * found.preserved:.1f} %"
    axes.text(0.97, 0.94, label, transform=axes.transAxes, ha="right", va="top", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def analyse(folder: Path, samples: int = 1000, crystals: int = 200, seed: int = 0) -> None:
    """Write the figure and the record of it."""
    rng = torch.Generator().manual_seed(seed)
    (crystal,) = crystals_on_a_circle(1, SPREADS["half of the circle"], rng)
    found = [
        shifts(crystal, variance, constrained, samples, rng) for variance in VARIANCES for constrained in (True, False)
    ]
    record = {
        "atoms": ATOMS,
        "samples": samples,
        "seed": seed,
        "crystal": crystal.tolist(),
        "frechet_mean": frechet_mean(crystal).item(),
        "shifts": [one.record() for one in found],
        "crystals": crystals,
        "zero_net_translation_over_crystals": {
            name: over_crystals(spread, crystals, rng) for name, spread in SPREADS.items()
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "frechet_mean.json") as part:
        part.write_text(json.dumps(record, indent=2) + "\n")
    draw(found, folder / "frechet_mean.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the figure and the record")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--crystals", type=int, default=200, help="random crystals for the mean shares")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    analyse(options.out, options.samples, options.crystals, options.seed)


if __name__ == "__main__":
    main()
