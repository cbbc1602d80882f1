"""How much faster a step of sampling is than with the network computed as it is written.

    python -m benchmarks.sampling --batch 64 --hidden 512 --repeats 5 --threads 1 --json sampling.json

KLDM-x0 for crystal structure prediction with random weights, numbers of atoms as in MP-20; one step of Euler-Maruyama
(one network call) and of the predictor-corrector sampler (two), with prior and decoding. Both forms take turns on the
same batch and from the same seed; reported are medians of the CPU time of the process (of the GPU's own clock on a
GPU). The floor is the matrix products of the fast network's calls, alone, in the same turns. ``undivided`` is the fast
network when it does not compute in parts that fit into a CPU's cache, as it does from some thousand edges on.
"""

import argparse
import sys
from functools import partial
from typing import Any
from unittest.mock import patch

import attrs
import torch

from benchmarks.floor import alone, flops, unavoidable
from benchmarks.network import batch_for
from benchmarks.options import add_network, common, described, parsed
from benchmarks.timing import Timing, Work, device_name, interleaved, peak_memory, write_json
from kldm.crystals import Crystals
from kldm.execution import Execution, Messages, Precision, set_execution
from kldm.interfaces import Sampler
from kldm.model import JointModel
from kldm.networks import CSPVNet
from kldm.networks.fast import encoding
from kldm.processes import Given, LogTan, TrivializedTorus, VPEuclidean
from kldm.runtime.seeding import seeded
from kldm.samplers import EulerMaruyama, PredictorCorrector
from kldm.samplers.graphs import replaying
from kldm.training import set_precision

BARS: dict[Precision, float] = {"fp32": 3, "bf16": 4}
"""The least that a step must be faster by than the plain one in float32, at batch 64, width 512 and one thread; in bf16
on a processor that multiplies it natively."""

MESSAGES: tuple[Messages, Messages] = ("manual", "plain")
STEPS = 2
CALLS = {"euler_maruyama": 1, "predictor_corrector": 2}
"""Network calls of a step."""


def model_with(messages: Messages, hidden: int, device: torch.device) -> JointModel:
    torch.manual_seed(0)
    model = JointModel(
        coordinates=TrivializedTorus(),
        lattice=VPEuclidean(codec=LogTan(standardise=False)),
        species=Given(),
        network=partial(CSPVNet, hidden=hidden),
    )
    set_execution(model.network, Execution(messages=messages))
    return model.to(device).eval()


def step_of(sampler: Sampler, model: JointModel, given: Crystals, precision: Precision, graphs: bool) -> Work:
    def work() -> None:
        set_precision(model, precision)
        with replaying(graphs):
            sampler.sample(model, given, seeded(given.device, 0))

    return work


def main() -> None:
    parser = common("a step of sampling against the plain network's")
    add_network(parser)
    parser.add_argument("--graphs", action="store_true", help="replay of CUDA graphs too, and more steps to pay for it")
    options = parsed(parser)
    record = {precision: of_precision(precision, options) for precision in options.precision}
    write_json(options.json, {**described(options), "precisions": record})


def of_precision(precision: Precision, options: argparse.Namespace) -> dict[str, Any]:
    """Measured, printed and for the JSON file."""
    device, steps = options.device, 100 if options.graphs else STEPS
    layout, latent, _ = batch_for("cspvnet", options.batch, device)
    lattice = torch.tensor([5.0, 6.0, 7.0, 1.5, 1.6, 1.7], device=device).expand(options.batch, 6)
    given = Crystals(latent["fractional"], lattice, latent["species"] + 1, layout)
    fast, plain = (model_with(messages, options.hidden, device) for messages in MESSAGES)
    models: dict[str, tuple[JointModel, tuple[Precision, bool]]] = {
        "plain": (plain, ("fp32", False)),
        "manual": (fast, (precision, False)),
    }
    if device.type == "cpu":
        models["undivided"] = (fast, (precision, False))
    if options.graphs:
        models["graphs"] = (fast, (precision, True))
    print(
        f"{options.batch} crystals, {layout.total} atoms, width {options.hidden}, {precision}, "
        f"{device_name(device)}, "
        f"torch {torch.__version__}"
    )
    print(f"{'one step of':22}{'':11}{'seconds':>9}{'ratio':>7}{'range':>14}{'bar':>5}{'/ floor':>9}{'GFLOP':>8}")
    record: dict[str, Any] = {}
    network = fast.network
    assert isinstance(network, CSPVNet)
    call = unavoidable(network, layout, backward=False)
    samplers = {
        "euler_maruyama": EulerMaruyama(steps=steps, s_min=0.5),
        "predictor_corrector": PredictorCorrector(steps=steps, s_min=0.5),
    }
    for name, sampler in samplers.items():
        works = {form: step_of(sampler, model, given, *how) for form, (model, how) in models.items()}
        if "undivided" in works:
            works["undivided"] = patch.object(encoding, "BYTES_IN_CACHE", sys.maxsize)(works["undivided"])
        products = call * CALLS[name]
        # The floor comes after ours, and so in the precision of ours.
        times = interleaved({**works, "floor": alone(products * steps, device, precision)}, options.repeats, device)
        per_step = {form: [one / steps for one in each] for form, each in times.items()}
        floor = Timing.of(per_step["floor"], per_step["plain"]).median
        record[name] = {}
        for form in works:
            timing = Timing.of(per_step[form], per_step["plain"])
            spread, bar = f"{timing.least:.2f} - {timing.most:.2f}", BARS.get(precision, "") if form == "manual" else ""
            gigaflop = "" if form == "plain" else f"{flops(products) / 1e9:.0f}"
            row = f"{name:22}{form:11}{timing.median:9.5f}{timing.ratio:7.2f}{spread:>14}{bar:>5}"
            print(f"{row}{timing.median / floor:9.2f}{gigaflop:>8}", flush=True)
            record[name][form] = {**attrs.asdict(timing), "over_floor": timing.median / floor}
    print(f"peak memory of all forms: {peak_memory(device) / 1e9:.2f} GB")
    return record


if __name__ == "__main__":
    main()
