"""How much faster CSPVNet and CSPNet are than their readable forms: one forward pass, one training step with AdamW.

    python -m benchmarks.network --batch 64 --hidden 512 --repeats 5 --threads 1 --json network.json

Both forms have the same weights and see the same batch, whose numbers of atoms are drawn from those of the MP-20
training split. They take turns, so that a busy machine slows both; reported are medians of the CPU time of the process
(of the GPU's own clock on a GPU).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import torch
from torch import Tensor

from kldm.crystals import Layout
from kldm.files import atomic_write
from kldm.interfaces import Channel, Interface
from kldm.networks import CSPNet, CSPNetPlain, CSPVNet, CSPVNetPlain
from kldm.networks.pair_network import PairNetwork

# Crystals of the MP-20 training split with 1, 2, ... 20 atoms; 10.4 on average.
MP20_SIZES = torch.tensor(
    [60, 572, 539, 4154, 1286, 2304, 576, 2130, 934, 2657, 361, 2615, 584, 1766, 390, 1797, 264, 1440, 287, 2417]
)

VELOCITY = Channel("velocity", 3, "atom", "tangent")
LATTICE = Channel("lattice", 6, "crystal", "real")
SPECIES = Channel("species", 100, "atom", "token")
FRACTIONAL = Channel("fractional", 3, "atom", "periodic")
MATRIX = Channel("lattice", 9, "crystal", "matrix")
SCORE = Channel("score", 3, "atom", "tangent")
KLDM = Interface(reads=(SPECIES, FRACTIONAL, VELOCITY, LATTICE), predicts=(VELOCITY, LATTICE))
DIFFCSP = Interface(reads=(SPECIES, FRACTIONAL, MATRIX), predicts=(SCORE, MATRIX))

# Fast and readable form, on the interface that their paper gives them.
NETWORKS: dict[str, tuple[Callable[..., PairNetwork], Callable[..., PairNetwork], Interface]] = {
    "cspvnet": (CSPVNet, CSPVNetPlain, KLDM),
    "cspnet": (CSPNet, CSPNetPlain, DIFFCSP),
}

# The least that CSPVNet must be faster by, at batch 64, width 512 and one thread. CSPNet has no bar: without velocities
# its readable form has fewer columns to lose.
BARS = {"cspvnet": {"forward": 2.2, "training step": 3.0}}


@attrs.frozen
class Timing:
    """Median seconds of either network, their ratio, and the smallest and largest ratio of a single turn."""

    fast: float
    plain: float
    ratio: float
    least: float
    most: float

    @classmethod
    def of(cls, fast: list[float], plain: list[float]) -> "Timing":
        ratios = [slow / quick for quick, slow in zip(fast, plain, strict=True)]
        quick, slow = statistics.median(fast), statistics.median(plain)
        return cls(quick, slow, slow / quick, min(ratios), max(ratios))


def seconds(work: Callable[[], None], device: torch.device) -> float:
    """What one run of ``work`` takes."""
    if device.type == "cuda":
        start, end = torch.Event(device, enable_timing=True), torch.Event(device, enable_timing=True)
        start.record()
        work()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000
    begin = time.process_time()
    work()
    return time.process_time() - begin


def forward(network: PairNetwork, latent: dict[str, Tensor], s: Tensor, layout: Layout) -> Callable[[], None]:
    def work() -> None:
        with torch.no_grad():
            network(latent, s, layout)

    return work


def training_step(network: PairNetwork, latent: dict[str, Tensor], s: Tensor, layout: Layout) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, amsgrad=True)

    def work() -> None:
        optimizer.zero_grad()
        prediction = network(latent, s, layout)
        torch.autograd.backward([value.square().mean() for value in prediction.values()])
        optimizer.step()

    return work


def batch_of(count: int, device: torch.device) -> tuple[Layout, dict[str, Tensor], Tensor]:
    """Layout, times and every channel but the lattice, whose width the interface says."""
    rng = torch.Generator().manual_seed(0)
    sizes = 1 + torch.multinomial(MP20_SIZES.double(), count, True, generator=rng)
    layout = Layout.of(sizes.tolist(), device)
    atoms = layout.total
    latent = {
        "species": torch.randint(100, (atoms,), generator=rng),
        "fractional": torch.rand(atoms, 3, generator=rng),
        "velocity": torch.randn(atoms, 3, generator=rng),
    }
    return layout, {name: value.to(device) for name, value in latent.items()}, torch.rand(count, generator=rng)


def compare(name: str, batch: int, hidden: int, repeats: int, device: torch.device) -> dict[str, Timing]:
    """Timings of a network by the kind of work, after one unmeasured turn of each."""
    quick, readable, interface = NETWORKS[name]
    layout, latent, s = batch_of(batch, device)
    width = next(channel.width for channel in interface.reads if channel.name == "lattice")
    latent["lattice"], s = (
        torch.randn(batch, width, generator=torch.Generator().manual_seed(1)).to(device),
        s.to(device),
    )
    torch.manual_seed(0)
    fast, plain = quick(interface, hidden=hidden).to(device), readable(interface, hidden=hidden).to(device)
    plain.load_state_dict(fast.state_dict())
    timings = {}
    for kind, make in (("forward", forward), ("training step", training_step)):
        works = [make(network, latent, s, layout) for network in (fast, plain)]
        turns = [[seconds(work, device) for work in works] for _ in range(repeats + 1)][1:]
        timings[kind] = Timing.of([turn[0] for turn in turns], [turn[1] for turn in turns])
    return timings


def main() -> None:
    parser = argparse.ArgumentParser(description="CSPVNet and CSPNet against their readable forms")
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=64, help="crystals")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    layout, _, _ = batch_of(options.batch, options.device)
    edges = 2 * len(layout.pairs.i)
    print(
        f"{options.batch} crystals of MP-20's numbers of atoms, {layout.total} atoms, {edges} edges; width "
        f"{options.hidden}, {options.threads} threads, {options.device}, torch {torch.__version__}"
    )
    print(f"{'':23}{'fast (s)':>10}{'plain (s)':>11}{'ratio':>8}{'range':>14}{'bar':>6}")
    found = {}
    for name in options.networks:
        found[name] = compare(name, options.batch, options.hidden, options.repeats, options.device)
        for kind, timing in found[name].items():
            spread, bar = f"{timing.least:.2f} - {timing.most:.2f}", BARS.get(name, {}).get(kind, "")
            row = f"{name:9}{kind:14}{timing.fast:10.3f}{timing.plain:11.3f}{timing.ratio:8.2f}{spread:>14}{bar:>6}"
            print(row, flush=True)
    if options.json:
        settings = {name: getattr(options, name) for name in ("batch", "hidden", "repeats", "threads")}
        record = {
            **settings,
            "device": str(options.device),
            "torch": torch.__version__,
            "atoms": layout.total,
            "edges": edges,
            "seconds": {
                name: {kind: attrs.asdict(timing) for kind, timing in timings.items()}
                for name, timings in found.items()
            },
        }
        with atomic_write(options.json) as part:
            part.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
