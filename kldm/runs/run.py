"""A run and its folder: fit, sample, evaluate, report, each skipped where its results are there already.

The folder holds ``recipe.cfg`` (complete), ``checkpoints/``, ``train.jsonl``, ``tensorboard/``,
``samples/<split>/`` and ``report.json``; the same command resumes whatever was interrupted.
"""

import copy
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kldm.errors import KldmError
from kldm.evaluation.results import library_versions, write_json
from kldm.execution import default_device, device_name, set_execution, used_precision
from kldm.reading import read_samples
from kldm.recipe import read_recipe, write_recipe
from kldm.runs.experiment import Experiment, assemble, fitted, prepare
from kldm.runs.folder import claim
from kldm.runs.splits import Reference, Validator, evaluate_splits
from kldm.runtime.distributed import world
from kldm.samplers import replaying
from kldm.training import checkpoint as checkpoints
from kldm.training import fit


def run(
    recipe: Path,
    folder: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
    evaluate: bool = True,
) -> dict[str, Any]:
    """Train, sample, evaluate and report, resuming what ``folder`` holds already. Returns the report.

    The processes of a run train and sample together; the writer alone judges and writes, while the others wait.
    """
    started = time.monotonic()
    here, device = world(), device or default_device()
    with here.writer_first():  # it alone tells a mistake, and what it leaves on the disk is there for the others
        experiment, tree = assemble(read_recipe(recipe, overrides or {}))
        if here.is_writer:
            prepare(experiment)
        train = experiment.data.load("train")
        experiment, tree = fitted(experiment, tree, train, _start(experiment, folder))
        if here.is_writer:
            claim(folder, tree)
    untrained = copy.deepcopy(experiment.model) if evaluate and experiment.evaluation.untrained else None
    model, train = experiment.model.to(device), train.to(device)
    set_execution(model.network, experiment.execution)
    validate = Validator(experiment, device) if experiment.validation and experiment.training.validate_every else None
    with replaying(experiment.execution.graphs):
        fit(model, train, experiment.training, folder, tree, validate)
        if here.is_writer:
            write_recipe(tree, folder / "recipe.cfg")  # of a run that was prolonged or is sampled in another way
        judged = evaluate_splits(experiment, tree, folder, device, untrained) if evaluate else {}

    def finish() -> dict[str, Any]:
        report: dict[str, Any] = {
            "recipe": recipe.stem,
            "device": device_name(device),
            "precision": used_precision(model.precision, device),
            "processes": here.size,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "training": checkpoints.load(folder / "checkpoints" / "best.safetensors").state,
            "seeds": {"training": experiment.training.seed, "evaluation": experiment.evaluation.seed},
            "libraries": library_versions(),
            "evaluation": judged,
        }
        earlier = _report(folder)
        if not evaluate and earlier.get("training") == report["training"]:
            report["evaluation"] = earlier.get("evaluation", {})
        report["seconds"] = round(time.monotonic() - started, 1)
        write_json(folder / "report.json", report)
        return report

    return here.by_writer(finish)


def evaluate_run(folder: Path, out: Path | None = None) -> dict[str, Any]:
    """Judge the samples of a run folder again, with the metrics of its recipe."""
    experiment, _ = assemble(read_recipe(folder / "recipe.cfg"))
    results: dict[str, Any] = {}
    for split in experiment.evaluation.splits:
        for label in (split, f"{split}_untrained"):
            place = folder / "samples" / label
            if not (place / "samples.jsonl").exists():
                continue
            rows = (out / f"{label}.csv") if out else place / "results.csv"
            found = read_samples(place / "samples.jsonl")
            results[label] = Reference.of(experiment, split).judged(experiment, found, rows)
    if not results:
        raise KldmError("the run has no samples yet", place=str(folder), remedy="finish it with kldm run")
    report = _report(folder) | {"libraries": library_versions(), "evaluation": results}
    write_json((out or folder) / "report.json", report)
    return report


def _report(folder: Path) -> dict[str, Any]:
    """The report that the folder holds, or an empty one."""
    try:
        found = json.loads((folder / "report.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _start(experiment: Experiment, folder: Path) -> Experiment | None:
    """What training starts from, if not from nothing: of a run that has begun, its own recipe says enough."""
    training, own = experiment.training, folder / "recipe.cfg"
    if training.start_from is None:
        return None
    if own.exists():
        return assemble(read_recipe(own))[0]
    file = checkpoints.locate(training.start_from, state=training.start_with == "state")
    return assemble(checkpoints.load(file).recipe)[0]
