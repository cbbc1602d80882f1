"""A run: fit, sample, evaluate and report; each part is skipped if the folder holds its results already.

The folder holds the complete ``recipe.cfg``, ``checkpoints/``, ``train.jsonl``, ``tensorboard/``, ``samples/<split>/``
and ``report.json``. The same command resumes an interrupted run.
"""

import copy
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from kldm.errors import KldmError
from kldm.evaluation.report import Judgement, Report
from kldm.evaluation.results import library_versions
from kldm.execution import default_device, device_name, set_execution, used_precision
from kldm.model import of_at_most
from kldm.reading import read_samples
from kldm.recipe import read_recipe, write_recipe
from kldm.runs.experiment import Experiment, assemble, fitted, prepare
from kldm.runs.folder import PARTS, check_free, claim
from kldm.runs.splits import EvaluationSplit, ModelValidation, evaluate_splits
from kldm.runtime.distributed import world
from kldm.runtime.locking import writing_to
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
) -> Report:
    """Train, sample, evaluate and report; a run that ``folder`` holds already is resumed.

    The processes of a run train and sample together. Only the writer judges and writes, while the others wait.
    """
    started = time.monotonic()
    here, device = world(), device or default_device()
    with ExitStack() as held:
        with here.writer_first():  # it alone reports errors, and the others find the files that it has written
            experiment, tree = assemble(read_recipe(recipe, overrides or {}))
            if here.is_writer:
                check_free(folder)
                held.enter_context(writing_to(folder, *PARTS))
                prepare(experiment)
            train = experiment.data.load("train")
            experiment, tree = fitted(experiment, tree, train, _start(experiment, folder))
            if here.is_writer:
                claim(folder, tree)
        untrained = copy.deepcopy(experiment.model) if evaluate and experiment.evaluation.untrained else None
        model, train = experiment.model.to(device), train.to(device)
        set_execution(model.network, experiment.execution)
        validate = ModelValidation(experiment, device) if experiment.validates else None
        with replaying(experiment.execution.graphs):
            fit(model, train, experiment.training, folder, tree, validate)
            if here.is_writer:
                write_recipe(tree, folder / "recipe.cfg")  # it differs if the run goes on in another way
            judgements = evaluate_splits(experiment, tree, folder, device, untrained) if evaluate else None

        def finish() -> Report:
            training, earlier = checkpoints.load(folder / "checkpoints" / "best.safetensors").state, _report(folder)
            about = {
                "recipe": recipe.stem,
                "device": device_name(device),
                "precision": used_precision(model.precision, device),
                "processes": here.size,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "training": training,
                "seeds": {"training": experiment.training.seed, "evaluation": experiment.evaluation.seed},
                "seconds": round(time.monotonic() - started, 1),
            }
            # Without an evaluation, earlier judgements stay if they are of the same training.
            earlier_judgements = earlier.evaluation if earlier and earlier.about.get("training") == training else {}
            evaluation = earlier_judgements if judgements is None else judgements
            report = Report(about=about, libraries=library_versions(), evaluation=evaluation)
            report.write(folder)
            return report

        return here.by_writer(finish)


def evaluation_files(folder: Path) -> list[str]:
    """The files that ``evaluate_run`` may write."""
    labels = sorted(path.parent.name for path in folder.glob("samples/*/samples.jsonl"))
    return ["report.json", *(f"{label}{suffix}" for label in labels for suffix in (".csv", ".jsonl"))]


def evaluate_run(folder: Path, out: Path) -> Report:
    """Judge the samples of a run folder again, with the metrics of its recipe, and write ``report.json`` and one table
    for each set of samples to ``out``."""
    experiment, tree = assemble(read_recipe(folder / "recipe.cfg"))
    results: dict[str, Judgement] = {}
    for split in experiment.evaluation.splits:
        for label in (split, f"{split}_untrained"):
            place = folder / "samples" / label
            if not (place / "samples.jsonl").exists():
                continue
            table = out / f"{label}.csv"
            samples = read_samples(place / "samples.jsonl")
            results[label] = EvaluationSplit.of(experiment, split).judged(experiment, tree, samples, table)
    if not results:
        raise KldmError("the run has no samples yet", place=str(folder), remedy="finish it with kldm run")
    earlier = _report(folder)
    report = Report(about=earlier.about if earlier else {}, libraries=library_versions(), evaluation=results)
    report.write(out)
    return report


def _report(folder: Path) -> Report | None:
    """The report in the folder; None if there is none that can be read."""
    try:
        return Report.read(folder / "report.json")
    except KldmError:
        return None


def _start(experiment: Experiment, folder: Path) -> Experiment | None:
    """The experiment that training starts from, if any; for a run that has begun, its own recipe, which has the same
    statistics."""
    training, own = experiment.training, folder / "recipe.cfg"
    if training.start_from is None:
        return None
    if own.exists():
        return assemble(read_recipe(own))[0]
    file = checkpoints.locate(training.start_from, state=training.start_with == "state")
    record = checkpoints.load(file)
    with of_at_most(record.size):
        return assemble(record.recipe)[0]
