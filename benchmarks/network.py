"""How much faster CSPVNet and CSPNet are than in their plain form, and how near to the products they cannot avoid.

    python -m benchmarks.network --batch 64 --hidden 512 --repeats 5 --threads 1 --json network.json

All forms have the same weights and see the same batch, whose numbers of atoms are drawn from those of the MP-20
training split. They take turns, so that a busy machine slows all; reported are medians of the CPU time of the process
(of the GPU's own clock on a GPU). The floor is the matrix products of the fast form alone, in the same turns.
Arithmetic is counted by torch; memory is in benchmarks.memory.
"""

import argparse
from collections.abc import Mapping
from typing import Any, Literal

import attrs
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.floor import alone, flops, unavoidable
from benchmarks.options import add_network, common, described, parsed
from benchmarks.timing import Timing, Work, device_name, interleaved, write_json
from kldm.crystals import Layout
from kldm.execution import Execution, Messages, Precision
from kldm.interfaces import Interface
from kldm.networks import CSPNet, CSPVNet
from kldm.testing import INTERFACES

# Crystals with 1, 2, ... atoms: of the MP-20 training split (10.4 on average), and of 12,751 crystals drawn from that
# of MPTS-52 (18.2).
MP20_SIZES = torch.tensor(
    [60, 572, 539, 4154, 1286, 2304, 576, 2130, 934, 2657, 361, 2615, 584, 1766, 390, 1797, 264, 1440, 287, 2417]
)
MPTS52_SIZES = torch.tensor(
    [
        *(59, 411, 308, 669, 642, 866, 211, 678, 367, 502, 104, 907, 185, 461, 120, 622, 77, 429, 62, 544, 73, 352),
        *(29, 635, 16, 159, 38, 536, 109, 171, 7, 378, 24, 74, 15, 455, 18, 139, 25, 378, 11, 115, 4, 230, 10, 78),
        *(8, 226, 13, 37, 11, 153),
    ]
)
SIZES = {"mp_20": MP20_SIZES, "mpts_52": MPTS52_SIZES}

# On the interface that their paper gives them.
NETWORKS: dict[str, tuple[type[CSPVNet], Interface]] = {
    "cspvnet": (CSPVNet, INTERFACES["structure prediction"]),
    "cspnet": (CSPNet, INTERFACES["diffcsp"]),
}

# The least that CSPVNet must be faster by than its plain form in float32, at batch 64, width 512 and one thread; in
# bf16 on a processor that multiplies it natively. CSPNet has no bar: without velocities its plain form has fewer
# columns to lose.
BARS: dict[tuple[str, Precision], dict[str, float]] = {
    ("cspvnet", "fp32"): {"forward": 3, "training step": 4},
    ("cspvnet", "bf16"): {"forward": 4, "training step": 6},
}
OVER_FLOOR = 1.6
"""The most that a training step of CSPVNet may take, in times of its products."""

FAST: tuple[Messages, ...] = ("autograd", "manual")


def forward(network: CSPVNet, latent: Mapping[str, Tensor], s: Tensor, layout: Layout, bf16: bool) -> Work:
    def work() -> None:
        with torch.no_grad(), torch.autocast(s.device.type, torch.bfloat16, enabled=bf16):
            network(latent, s, layout)

    return work


def training_step(network: CSPVNet, latent: Mapping[str, Tensor], s: Tensor, layout: Layout, bf16: bool) -> Work:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, amsgrad=True, fused=s.device.type in ("cuda", "cpu"))

    def work() -> None:
        optimizer.zero_grad()
        with torch.autocast(s.device.type, torch.bfloat16, enabled=bf16):
            prediction = network(latent, s, layout)
        torch.autograd.backward([value.square().mean() for value in prediction.values()])
        optimizer.step()

    return work


def batch_for(
    name: str, count: int, device: torch.device, numbers: Tensor = MP20_SIZES
) -> tuple[Layout, dict[str, Tensor], Tensor]:
    """Layout, channels and times of a random batch for a network of ``NETWORKS``."""
    rng = torch.Generator().manual_seed(0)
    sizes = 1 + torch.multinomial(numbers.double(), count, True, generator=rng)
    layout = Layout.of(sizes.tolist(), device)
    width = next(channel.width for channel in NETWORKS[name][1].reads if channel.name == "lattice")
    latent = {
        "species": torch.randint(100, (layout.total,), generator=rng),
        "fractional": torch.rand(layout.total, 3, generator=rng),
        "velocity": torch.randn(layout.total, 3, generator=rng),
        "lattice": torch.randn(count, width, generator=rng),
    }
    times = torch.rand(count, generator=rng).to(device)
    return layout, {channel: value.to(device) for channel, value in latent.items()}, times


def of_form(name: str, form: Messages | Literal["compiled"], hidden: int, device: torch.device) -> CSPVNet:
    """A network of ``NETWORKS`` in one form, always with the same weights."""
    torch.manual_seed(0)
    build, interface = NETWORKS[name]
    made = build(interface, hidden=hidden).to(device)
    made.execute(Execution(compile=True) if form == "compiled" else Execution(messages=form))
    return made


@attrs.frozen
class Row:
    """One form of a network at one kind of work.

    Attributes:
        timing: beside the plain form.
        over_floor: its time over that of the products that it cannot avoid.
        gigaflop: multiplications and additions.
    """

    timing: Timing
    over_floor: float
    gigaflop: float


def compare(
    name: str,
    batch: int,
    hidden: int,
    repeats: int,
    device: torch.device,
    *,
    compiled: bool = False,
    precision: Precision = "fp32",
) -> dict[str, dict[str, Row]]:
    """Rows by the kind of work and the form."""
    layout, latent, s = batch_for(name, batch, device)
    forms: list[Messages | Literal["compiled"]] = ["plain", *FAST]
    forms += ["triton"] if device.type == "cuda" else []
    forms += ["compiled"] if compiled else []
    networks: dict[str, CSPVNet] = {form: of_form(name, form, hidden, device) for form in forms}
    found: dict[str, dict[str, Row]] = {}
    for kind, make in (("forward", forward), ("training step", training_step)):
        products = unavoidable(networks["manual"], layout, kind == "training step")
        rounded = {form: precision == "bf16" and form != "plain" for form in networks}
        works = {form: make(network, latent, s, layout, rounded[form]) for form, network in networks.items()}
        floor = alone(products, device, precision)
        times = interleaved({**works, "floor": floor}, repeats, device)
        found[kind] = {}
        for form, work in works.items():
            timing, least = Timing.of(times[form], times["plain"]), Timing.of(times["floor"], times["plain"]).median
            # What torch compiled or Triton runs is not seen by torch's counter.
            counted = flops(products) if form in ("compiled", "triton") else operations(work)
            found[kind][form] = Row(timing, timing.median / least, counted / 1e9)
    return found


def operations(work: Work) -> int:
    """Counted by torch, which is told of oneDNN's linear maps: 2 R I O of rows [R, I] and weights [O, I]."""
    onednn = torch.ops.mkldnn._linear_pointwise
    formula = {onednn: lambda values, weight, *_, **__: 2 * values[0] * values[1] * weight[0]}
    with FlopCounterMode(display=False, custom_mapping=formula) as counter:
        work()
    return int(counter.get_total_flops())


def main() -> None:
    parser = common("CSPVNet and CSPNet against their plain forms")
    add_network(parser)
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--compiled", action="store_true", help="torch.compile too; takes minutes")
    options = parsed(parser)
    record = {precision: of_precision(precision, options) for precision in options.precision}
    write_json(options.json, {**described(options), "precisions": record})


def of_precision(precision: Precision, options: argparse.Namespace) -> dict[str, Any]:
    """Measured, printed and for the JSON file; the plain form is in float32 (of a GPU in TF32, but for "fp32")."""
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    layout, _, _ = batch_for("cspvnet", options.batch, options.device)
    edges = 2 * len(layout.pairs.i)
    print(
        f"{options.batch} crystals of MP-20's numbers of atoms, {layout.total} atoms, {edges} edges; width "
        f"{options.hidden}, {precision}, {device_name(options.device)}, torch {torch.__version__}"
    )
    print(f"{'':34}{'seconds':>9}{'ratio':>7}{'range':>14}{'bar':>5}{'/ floor':>9}{'bar':>5}{'GFLOP':>8}")
    record: dict[str, Any] = {}
    for name in options.networks:
        found = compare(
            name,
            options.batch,
            options.hidden,
            options.repeats,
            options.device,
            compiled=options.compiled,
            precision=precision,
        )
        for kind, rows in found.items():
            for form, row in rows.items():
                timing, spread = row.timing, f"{row.timing.least:.2f} - {row.timing.most:.2f}"
                bars = BARS.get((name, precision), {}) if form == "manual" else {}
                bar, most = bars.get(kind, ""), OVER_FLOOR if bars and kind != "forward" else ""
                print(
                    f"{name:9}{kind:15}{form:10}{timing.median:9.5f}{timing.ratio:7.2f}{spread:>14}{bar:>5}"
                    f"{row.over_floor:9.2f}{most:>5}{row.gigaflop:8.0f}",
                    flush=True,
                )
        record[name] = {kind: {form: attrs.asdict(row) for form, row in rows.items()} for kind, rows in found.items()}
    return {"atoms": layout.total, "edges": edges, "networks": record}


if __name__ == "__main__":
    main()
