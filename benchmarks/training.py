"""How much faster a whole step of training is than with everything in its plain form, and where its time goes.

    python -m benchmarks.training --batch 64 --hidden 512 --repeats 5 --threads 1 --json training.json

KLDM-x0 for crystal structure prediction on made-up crystals with the numbers of atoms of MP-20. Ours: a batch from the
store, noise and targets, the network, AdamW, the moving average. Plain: a batch from torch-geometric's loader, targets
by sums over 27 images, the network computed as it is written, AdamW and the same average. Both take turns; reported are
medians of the CPU time of the process (of the GPU's own clock on a GPU, where the plain form pays for its input as
well). The parts of our step are timed in the same turns.
"""

import argparse
import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor

from benchmarks import plain_targets
from benchmarks.floor import alone, flops, unavoidable
from benchmarks.input import loaders, made_up
from benchmarks.options import add_network, common, described, parsed
from benchmarks.timing import Timing, Work, device_name, interleaved, peak_memory, write_json
from kldm.crystals import Crystals, CrystalStore, Layout
from kldm.execution import Execution, Precision, set_execution
from kldm.interfaces import Noised
from kldm.model import JointModel
from kldm.networks import CSPVNet
from kldm.processes import Given, LogTan, TrivializedTorus, VPEuclidean
from kldm.training import set_precision
from kldm.training.averaging import MovingAverage

BARS: dict[Precision, float] = {"fp32": 4, "bf16": 6}
"""The least that a step must be faster by than the plain one in float32, at batch 64, width 512 and one thread; in bf16
on a processor that multiplies it natively."""


@attrs.frozen(kw_only=True)
class PlainTorus(TrivializedTorus):
    """KLDM's coordinates with noise and targets by definition.

    Args:
        size: of ``plain_targets.sizes``.
    """

    size: Tensor

    def noise(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> Noised:
        like = clean.fractional
        draw = torch.randn(len(like), 2, 3, generator=rng, dtype=like.dtype, device=like.device)
        fractional, velocity, target = plain_targets.noised(clean, s, draw, self.size)
        return Noised({"fractional": fractional, "velocity": velocity}, {"velocity": target})


@attrs.define
class Learner:
    """A model in training.

    Attributes:
        model: on its device.
        optimizer, average: as in ``kldm.training.loop``.
        rng: of times and noise.
    """

    model: JointModel
    optimizer: torch.optim.Optimizer
    average: MovingAverage[JointModel]
    rng: torch.Generator

    @classmethod
    def of(cls, coordinates: TrivializedTorus, execution: Execution, hidden: int, device: torch.device) -> "Learner":
        torch.manual_seed(0)
        model = JointModel(
            coordinates=coordinates,
            lattice=VPEuclidean(codec=LogTan(standardise=False)),
            species=Given(),
            network=partial(CSPVNet, hidden=hidden),
        ).to(device)
        set_execution(model.network, execution)
        optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True, fused=device.type in ("cuda", "cpu"))
        return cls(model, optimizer, MovingAverage(model, 0.999), torch.Generator(device).manual_seed(0))

    def times(self, crystals: Crystals) -> Tensor:
        """Multiples of 1 / LEVELS, which the table of the plain targets has."""
        level = torch.randint(1, plain_targets.LEVELS + 1, (len(crystals),), generator=self.rng, device=crystals.device)
        return level / plain_targets.LEVELS

    def learn(self, crystals: Crystals) -> None:
        loss = self.model.total(self.model.losses(crystals, self.times(crystals), self.rng))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.update()

    def update(self) -> None:
        self.optimizer.step()
        self.average.update(self.model)


def crystals_of(graphs: Any, device: torch.device) -> Crystals:
    """A batch of torch-geometric as ours."""
    graphs = graphs.to(device)
    counts = graphs.ptr.diff()
    layout = Layout(counts, tuple(counts.tolist()))
    return Crystals(graphs.pos, graphs.lengths_angles, graphs.h, layout)


def parts(learner: Learner, store: CrystalStore, rows: Iterator[list[int]], batch: int) -> dict[str, Work]:
    """Our step in pieces, on one batch."""
    crystals = store.batch(list(range(batch)))
    s = learner.times(crystals)
    processes = learner.model.processes
    latents = {name: process.noise(crystals, s, learner.rng).latent for name, process in processes.items()}

    def network() -> None:
        predictions = learner.model.predict(latents, s, crystals.layout)
        values = [value for prediction in predictions.values() for value in prediction.values()]
        torch.autograd.backward([value.square().mean() for value in values])

    return {
        "input": lambda: store.batch(next(rows)).layout.pairs,
        "noise and targets": lambda: [process.noise(crystals, s, learner.rng) for process in processes.values()],
        "network": network,
        "optimiser and average": learner.update,
    }


def main() -> None:
    parser = common("a whole step of training against its plain form")
    add_network(parser)
    parser.add_argument("--compile", action="store_true", help="ours through torch.compile; takes minutes")
    options = parsed(parser)
    record = {precision: of_precision(precision, options) for precision in options.precision}
    write_json(options.json, {**described(options), "precisions": record})


def of_precision(chosen: Precision, options: argparse.Namespace) -> dict[str, Any]:
    """Measured, printed and for the JSON file."""
    device, batch, hidden = options.device, options.batch, options.hidden
    host = made_up()
    store = host.to(device)
    order = torch.randperm(len(store), generator=torch.Generator().manual_seed(0)).tolist()
    rows = itertools.cycle([order[at : at + batch] for at in range(0, len(order) - batch, batch)])
    loader = loaders(host, batch)["plain"]
    by_definition = PlainTorus(size=plain_targets.sizes().float().to(device))
    plain = Learner.of(by_definition, Execution(messages="plain"), hidden, device)
    ours = Learner.of(TrivializedTorus(), Execution(compile=options.compile), hidden, device)

    def in_precision(work: Work, precision: Precision) -> Work:
        def done() -> object:
            set_precision(ours.model, precision)
            return work()

        return done

    network, layout = ours.model.network, store.batch(order[:batch]).layout
    assert isinstance(network, CSPVNet)
    products = unavoidable(network, layout, backward=True)
    works = {
        "plain": in_precision(lambda: plain.learn(crystals_of(loader(), device)), "fp32"),
        "ours": in_precision(lambda: ours.learn(store.batch(next(rows))), chosen),
        "its products": in_precision(alone(products, device, chosen), chosen),
        **{name: in_precision(work, chosen) for name, work in parts(ours, store, rows, batch).items()},
    }
    print(
        f"batches of {batch} with MP-20's numbers of atoms, width {hidden}, {chosen}, "
        f"{device_name(device)}, torch {torch.__version__}; products {flops(products) / 1e9:.0f} GFLOP"
    )
    times = interleaved(works, options.repeats, device)
    print(f"{'training step':24}{'seconds':>10}{'ratio':>7}{'range':>14}{'bar':>5}")
    record = {name: Timing.of(times[name], times["plain"]) for name in works}
    for name, timing in record.items():
        whole = name in ("plain", "ours")
        spread, bar = (
            (f"{timing.least:.2f} - {timing.most:.2f}", BARS.get(chosen, "") if name == "ours" else "")
            if whole
            else ("", "")
        )
        ratio = f"{timing.ratio:.2f}" if whole else ""
        print(f"{name if whole else '  ' + name:24}{timing.median:10.5f}{ratio:>7}{spread:>14}{bar:>5}")
    floor = record["its products"].median / record["ours"].median
    peak = peak_memory(device)
    print(f"share of the floor reached: {floor:.0%}; peak memory of all forms: {peak / 1e9:.2f} GB")
    found = {"gigaflop": flops(products) / 1e9, "share_of_floor": floor, "peak": peak}
    seconds = {name: attrs.asdict(timing) for name, timing in record.items()}
    return {**found, "seconds": seconds}


if __name__ == "__main__":
    main()
