"""How well the samplers do by numbers of network calls: the table and the plot of docs/which_sampler.md.

    python -m benchmarks.samplers --weights weights/perov5_small --data perov_5/test --targets 1000 --out runs/samplers

Every sampler answers the same targets, with the same seed. Each run adds a row to ``samplers.csv`` in the folder and is
not repeated there: an interrupted benchmark goes on where it was. Then it prints the rows as a table and draws
``samplers.png``, for one candidate a target. Seconds are of CPU time (of the GPU's own clock on a GPU), sampling alone.
"""

import argparse
import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from benchmarks.timing import seconds
from kldm import Data, KldmError, load_run
from kldm.crystals import CrystalStore
from kldm.data.convert import to_structures
from kldm.evaluation.results import write_table
from kldm.execution import default_device
from kldm.interfaces import Json, Sampler, Samples
from kldm.metrics import MatchRate
from kldm.registry import SHELVES
from kldm.runs.splits import drawn_rows
from kldm.runtime.files import atomic_write, digest, make_writable
from kldm.sampling.generation import candidates, generate, requests, sampling_pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURES = ("match_rate", "rmse", "share_below_0.02", "share_below_0.1", "crmse")
PANELS = {
    "share_below_0.1": "share of targets with rms < 0.1",
    "match_rate": "match rate",
    "rmse": "RMSE of the matched",
}
TICKS = (5, 10, 20, 50, 100, 200, 500, 2000)
SETTINGS = ("weights", "data", "targets", "candidates", "seed")


@attrs.frozen
class Curve:
    """A sampler with its options, at several numbers of network calls.

    Attributes:
        options: of the sampler; others have their defaults.
        per_step: network calls of a step.
        color: of its line in the plot.
    """

    label: str
    sampler: str
    calls: tuple[int, ...]
    options: Mapping[str, Json] = attrs.field(factory=dict)
    per_step: int = 1
    color: str = "black"

    def row(self, calls: int, settings: Mapping[str, Any]) -> dict[str, str]:
        """What identifies a run, as the file has it."""
        options = json.dumps(dict(self.options))
        row = {"label": self.label, "sampler": self.sampler, "options": options, "calls": calls, **settings}
        return {name: str(value) for name, value in row.items()}

    def at(self, calls: int) -> Sampler:
        """With that many calls, and the sampler's own defaults instead of a recipe's."""
        made: Sampler = SHELVES["samplers"].get(self.sampler)(steps=calls // self.per_step, **self.options)
        return made


FEW = (5, 10, 20, 50)
MANY = (10, 20, 50, 100, 200)
CURVES = (
    Curve("x0 flow, over 4", "x0_flow.v1", FEW, {"over": {"coordinates": 4.0}}, color="#c0392b"),
    Curve("x0 flow, over 2", "x0_flow.v1", FEW, {"over": {"coordinates": 2.0}}, color="#e67e22"),
    Curve("x0 flow", "x0_flow.v1", (*FEW, 100, 200), color="#8e44ad"),
    Curve("x0 draws", "x0_flow.v1", (*FEW, 100, 200), {"stochastic": True}, color="#d17fc4"),
    Curve("probability flow", "probability_flow.v1", (5, *MANY), color="#16a085"),
    Curve("EM, landing", "euler_maruyama.v1", MANY, {"land": True}, color="#5dade2"),
    Curve("EM", "euler_maruyama.v1", (*MANY, 1000), color="#1f4e9e"),
    Curve(
        "PC, expected step",
        "predictor_corrector.v1",
        MANY,
        {"step_size": "expected", "correct_positions": False},
        per_step=2,
        color="#999999",
    ),
    Curve("PC", "predictor_corrector.v1", (*MANY, 2000), per_step=2, color="#111111"),
)


def measured(
    weights: Path, curve: Curve, calls: int, targets: CrystalStore, count: int, seed: int
) -> dict[str, str | float | None]:
    """The figures of ``count`` candidates for each target (the best of them), their standard errors, and seconds."""
    experiment, _, _ = load_run(weights)
    sampler, device, wanted = curve.at(calls), default_device(), requests(len(targets), count)
    sampler.check(experiment.model.processes)
    model, made = experiment.model.to(device), list[CrystalStore]()

    def sample() -> None:
        made.append(
            generate(
                model,
                sampler,
                targets.to(device),
                wanted,
                seed=seed,
                max_pairs=sampling_pairs(None, model.network, device),
                description=f"{curve.label}, {calls} calls",
            )
        )

    spent = seconds(sample, device)
    metric = MatchRate(rules=("structural",), metre=False)
    found = metric.measure(Samples(candidates(made[0], wanted), tuple(to_structures(targets))))
    figures = {name: found.values[f"structural.{name}@{count}"] for name in FIGURES}
    best: dict[int, float] = {}
    for row in found.rows:
        if row["rms"] is not None:
            best[row["target"]] = min(row["rms"], best.get(row["target"], math.inf))
    whole = [best.get(target, metric.stol) for target in range(len(targets))]
    errors = {
        "rmse": _standard_error(list(best.values())),
        "crmse": _standard_error(whole),
        **{
            name: math.sqrt(rate * (1 - rate) / len(targets))
            for name, rate in figures.items()
            if "rmse" not in name and rate is not None
        },
    }
    times = {"seconds": round(spent, 2), "seconds_per_structure": round(spent / len(wanted), 5)}
    return {**figures, **{f"{name}_error": errors[name] for name in FIGURES}, **times}


def _standard_error(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Markdown; in brackets the standard error, in units of the last digit."""
    names = ("sampler", "calls", "match rate", "RMSE", "share < .02", "share < .1", "cRMSE")
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [row["label"], row["calls"], *(_with_error(row[name], row[f"{name}_error"]) for name in FIGURES)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _with_error(value: str, error: str) -> str:
    text = f"{float(value):.3f}" if value else ""
    return f"{text} ({1000 * float(error):.0f})" if error else text


def plot(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise KldmError("matplotlib is not installed", remedy="pip install 'kldm[plot]'") from error
    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Sequence[Axes] = figure.subplots(1, len(PANELS))
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        starts = []
        for curve in CURVES:
            points = sorted((int(row["calls"]), float(row[name])) for row in rows if row["label"] == curve.label)
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3.5, linewidth=1.3, color=curve.color)
                starts.append((*points[0], curve))
        axes.set(xscale="log", xlabel="network calls", title=title, xlim=(0.4, 3000))
        axes.set_xticks(TICKS, [str(calls) for calls in TICKS], fontsize=8)
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
        lowest, highest = axes.get_ylim()
        apart, least = (highest - lowest) * 0.032, -math.inf
        for calls, value, curve in sorted(starts, key=lambda start: start[1]):
            least = max(value, least + apart)
            text = axes.text(calls * 0.85, least, curve.label, color=curve.color, fontsize=8, ha="right", va="center")
            text.set_zorder(1)
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.3, "alpha": 0.7})
    with atomic_write(path) as part:
        figure.savefig(part, dpi=110, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description="samplers by numbers of network calls")
    parser.add_argument("--weights", type=Path, default=Path("weights/perov5_small/model.safetensors"))
    parser.add_argument("--data", default="perov_5/test", help="DATASET/SPLIT")
    parser.add_argument("--targets", type=int, default=1000)
    parser.add_argument("--candidates", type=int, default=1, help="of each target; the best of them counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/samplers"))
    parser.add_argument("--only", nargs="+", choices=[curve.label for curve in CURVES], help="these samplers alone")
    parser.add_argument("--calls", nargs="+", type=int, help="these numbers of network calls alone")
    options = parser.parse_args()
    weights = options.weights / "model.safetensors" if options.weights.is_dir() else options.weights
    name, _, split = options.data.rpartition("/")
    store = Data(name=name).load(split)
    targets = store.subset(drawn_rows(len(store), options.targets, options.seed))
    settings = {name: getattr(options, name) for name in SETTINGS} | {
        "weights": digest(weights)[:16],
        "targets": len(targets),
    }
    make_writable(options.out)
    path = options.out / "samplers.csv"
    runs = [
        (curve, calls)
        for curve in CURVES
        for calls in curve.calls
        if curve.label in (options.only or [curve.label]) and calls in (options.calls or [calls])
    ]
    for curve, calls in sorted(runs, key=lambda run: run[1]):
        row = curve.row(calls, settings)
        if not any(row.items() <= known.items() for known in read(path)):
            figures = measured(weights, curve, calls, targets, options.candidates, options.seed)
            write_table(path, [*read(path), {**row, **figures}])
    wanted = [curve.row(calls, settings) for curve, calls in runs]
    rows = [known for row in wanted for known in read(path) if row.items() <= known.items()]
    print(table(rows))
    plot(rows, options.out / "samplers.png")


if __name__ == "__main__":
    main()
