"""How much faster the metrics are than the plain loops that define them, on the same structures, with equal results.

    python -m benchmarks.evaluation --data mp_20 --targets 10 --candidates 20 --repeats 3 --json evaluation.json

Samples are made of the first structures of a data set's test split: each target gets candidates of its own
composition, most of them its own structure with noise on positions and cell, the rest with random positions. Every
turn takes other targets, so that no cache helps from one turn to the next; in a turn both take the same structures,
one after the other, on one thread. Reported are medians of the CPU time of the process.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from benchmarks import plain_evaluation as plain
from kldm.data import Data
from kldm.data.convert import to_structures
from kldm.interfaces import Candidate, Samples
from kldm.metrics import DeNovo, MatchRate
from kldm.runtime.files import atomic_write

BARS = {"CSP, structural rule": 2.0, "CSP, full rule": 10.0, "de-novo": 1.0}


@attrs.frozen
class Turn:
    """CPU seconds of one turn, and whether the results agreed."""

    ours: float
    plain: float
    equal: bool


def perturbed(structure: Structure, rng: np.random.Generator) -> Structure:
    """Another answer for the same composition: noise of 0 to 0.3 angstrom, or random positions one time in four."""
    lengths = np.array(structure.lattice.abc) * rng.normal(1, 0.02, 3)
    angles = np.array(structure.lattice.angles) + rng.normal(0, 1.5, 3)
    moved = structure.frac_coords + rng.normal(0, rng.uniform(0, 0.3), structure.frac_coords.shape) / lengths
    positions = rng.random(moved.shape) if rng.random() < 0.25 else moved
    return Structure(Lattice.from_parameters(*lengths, *angles), structure.species, positions)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.process_time()
    result = work()
    return time.process_time() - begin, result


def predicted(reference: Sequence[Structure], answers: Sequence[Sequence[Structure]], full: bool) -> Turn:
    """Crystal structure prediction at 1 and at k."""
    candidates = tuple(Candidate(t, c, one) for t, each in enumerate(answers) for c, one in enumerate(each))
    metric = MatchRate(rules=("full",) if full else ("structural",), metre=False)
    slow, expected = seconds(lambda: plain.match_rates(reference, answers, full))
    fast, found = seconds(lambda: metric.measure(Samples(candidates, tuple(reference))))
    rule, k = "full" if full else "structural", len(answers[0])
    names = ("match_rate@1", "rmse@1", f"match_rate@{k}", f"rmse@{k}")
    values = [math.nan if (value := found.values[f"{rule}.{name}"]) is None else value for name in names]
    return Turn(fast, slow, bool(np.allclose(values, expected, rtol=0, atol=1e-9, equal_nan=True)))


def generated(structures: Sequence[Structure]) -> Turn:
    """Validity and fingerprints of de-novo generation, without a reference."""
    candidates = tuple(Candidate(number, 0, one) for number, one in enumerate(structures))
    slow, (structural, compositional, fingerprints) = seconds(lambda: plain.validity_and_fingerprints(structures))
    fast, found = seconds(lambda: DeNovo().measure(Samples(candidates, ())))
    made = [row["fingerprint"] for row in found.rows]
    values = found.values["struct_valid"], found.values["comp_valid"]
    expected = structural / len(structures), compositional / len(structures)
    return Turn(fast, slow, values == expected and made == [one is not None for one in fingerprints])


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluation against its plain loops")
    parser.add_argument("--data", default="aflow_prototypes", help="data set whose test split is taken")
    parser.add_argument("--targets", type=int, default=10, help="of a turn")
    parser.add_argument("--candidates", type=int, default=20, help="of a target")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    rng = np.random.default_rng(0)
    store = Data(name=options.data).load("test")
    wanted = options.targets * (options.repeats + 1)
    if wanted > len(store):
        sys.exit(f"{options.data}/test has {len(store)} structures, {wanted} are needed: lower --targets or --repeats")
    structures = to_structures(store.subset(range(wanted)))
    turns: dict[str, list[Turn]] = {name: [] for name in BARS}
    for turn in range(options.repeats + 1):  # the first turn warms up and is not counted
        reference = structures[turn * options.targets : (turn + 1) * options.targets]
        answers = [[perturbed(one, rng) for _ in range(options.candidates)] for one in reference]
        done = (
            predicted(reference, answers, full=False),
            predicted(reference, answers, full=True),
            generated([each[0] for each in answers]),
        )
        if turn:
            for name, one in zip(BARS, done, strict=True):
                turns[name].append(one)
    print(
        f"{options.data}: {options.repeats} turns of {options.targets} targets x {options.candidates} candidates, one "
        "worker, CPU seconds"
    )
    print(f"{'':22}{'ours':>9}{'plain':>9}{'ratio':>8}{'range':>15}{'bar':>6}  equal")
    record: dict[str, Any] = {}
    for name, each in turns.items():
        ours, slow = (statistics.median(times) for times in ([t.ours for t in each], [t.plain for t in each]))
        ratios = [t.plain / t.ours for t in each]
        equal = all(t.equal for t in each)
        spread = f"{min(ratios):.1f} - {max(ratios):.1f}"
        print(f"{name:22}{ours:9.2f}{slow:9.2f}{slow / ours:8.1f}{spread:>15}{BARS[name]:6.1f}  {equal}")
        record[name] = {"ours": ours, "plain": slow, "ratio": slow / ours, "ratios": ratios, "equal": equal}
    if options.json:
        settings = {name: getattr(options, name) for name in ("data", "targets", "candidates", "repeats")}
        with atomic_write(options.json) as part:
            part.write_text(json.dumps({**settings, "seconds": record}, indent=2) + "\n")
    if not all(entry["equal"] for entry in record.values()):
        sys.exit("the results differ")


if __name__ == "__main__":
    main()
