"""A run and its folder: fit, sample, evaluate, report, each skipped where its results are there already.

The folder holds ``recipe.cfg`` (complete), ``checkpoints/``, ``train.jsonl``, ``tensorboard/``,
``samples/<split>/`` and ``report.json``; the same command resumes whatever was interrupted.
"""

import math
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from kldm.errors import KldmError
from kldm.evaluation.report import Judgement, Report
from kldm.evaluation.results import library_versions, write_json, write_samples
from kldm.execution import set_execution, used_precision
from kldm.memory import sampling_pairs
from kldm.metrics.matching.selection import CONSENSUS, consensus
from kldm.reading import read_samples
from kldm.recipe import Tree, overridden, read_recipe, write_recipe
from kldm.runs.experiment import Experiment, assemble, assemble_fitted, prepare
from kldm.runs.request import Wish
from kldm.runs.splits import EvaluationSplit, Validator, evaluate_splits
from kldm.runtime.distributed import world
from kldm.runtime.files import make_writable
from kldm.runtime.pool import check_work
from kldm.samplers import replaying
from kldm.sampling.constraints import violations
from kldm.sampling.generation import candidates, generate, requests
from kldm.training import checkpoint as checkpoints
from kldm.training import fit, set_precision
from kldm.training.checkpoint import Checkpoint, Rounding

# Keys that may differ when a run folder is used again: they change what is done with the model, not the model (but for
# the score of validation).
_FREE = ("sampler", "evaluation", "execution", "metrics", "validation")


def run(
    recipe: Path,
    folder: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
    evaluate: bool = True,
) -> Report:
    """Train, sample, evaluate and report, resuming what ``folder`` holds already."""
    started = time.monotonic()
    device = device or default_device()
    tree = read_recipe(recipe, overrides or {})
    experiment, _ = assemble(tree)
    prepare(experiment)
    train = experiment.data.load("train").to(device)
    experiment, tree = assemble_fitted(tree, train, _start(experiment, folder))
    with world().writer_first():
        _claim(folder, tree)
    model = experiment.model.to(device)
    set_execution(model.network, experiment.execution)
    validate = Validator(experiment, device) if experiment.validation and experiment.training.validate_every else None
    with replaying(experiment.execution.graphs):
        fit(model, train, experiment.training, folder, tree, validate)
    if world().is_writer:
        write_recipe(tree, folder / "recipe.cfg")  # of a run that was prolonged or is sampled in another way
    training = checkpoints.load(folder / "checkpoints" / "best.safetensors").state
    judgements: Mapping[str, Judgement] = {}
    if evaluate:
        with replaying(experiment.execution.graphs):
            judgements = evaluate_splits(experiment, tree, folder, device)
    elif (earlier := _report(folder)) and earlier.about.get("training") == training:
        judgements = earlier.evaluation
    about = {
        "recipe": recipe.stem,
        "device": _device_name(device),
        "precision": used_precision(model.precision, device),
        "processes": world().size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training": training,
        "seeds": {"training": experiment.training.seed, "evaluation": experiment.evaluation.seed},
        "seconds": round(time.monotonic() - started, 1),
    }
    report = Report(about=about, libraries=library_versions(), evaluation=judgements)
    if world().is_writer:
        report.write(folder)
    return report


def load_run(path: Path, overrides: Mapping[str, Any] | None = None) -> tuple[Experiment, Checkpoint, Path]:
    """The experiment of a run folder, of a folder of weights, or of one checkpoint file, with its trained weights.

    Args:
        overrides: of keys of its recipe that say how it is sampled, by dotted key; see ``_resampled``.
    """
    file = checkpoints.locate(path)
    record = checkpoints.load(file)
    experiment, _ = _resampled(record, overrides or {})
    record.load_weights(experiment.model)
    set_precision(experiment.model, experiment.training.precision)
    set_execution(experiment.model.network, experiment.execution)
    return experiment, record, file


def _resampled(record: Checkpoint, overrides: Mapping[str, Any]) -> tuple[Experiment, Tree]:
    """The experiment and the complete recipe of trained weights that are sampled in another way.

    Raises:
        KldmError: a key is not the sampler's, of [execution], training.precision, or an option of a process that is
            marked as one of sampling (``OF_SAMPLING``).
    """
    experiment, tree = assemble(overridden(record.recipe, overrides))
    for key in overrides:
        section, _, rest = key.partition(".")
        modality, _, name = rest.partition(".")
        process = experiment.model.processes.get(modality) if section == "model" else None
        fields = getattr(type(process), "__attrs_attrs__", ())
        of_process = any(field.name == name and field.metadata.get("of_sampling") for field in fields)
        if section not in ("sampler", "execution") and key != "training.precision" and not of_process:
            remedy = "keys of the sampler and of execution can be overridden, e.g. --sampler.steps 500"
            raise KldmError("belongs to a model that is trained already", place=f"--{key}", remedy=remedy)
    return experiment, tree


def export(path: Path, out: Path, rounding: Rounding = "fp16", overrides: Mapping[str, Any] | None = None) -> None:
    """Write the weights that a run folder or checkpoint samples with, and the recipe, to one file to be shared.

    Args:
        overrides: another way of sampling for the recipe of the file; see ``_resampled``.
    """
    if out.exists():
        raise KldmError("there is such a file already", place=str(out), remedy="remove it, or choose another --out")
    record = checkpoints.load(checkpoints.locate(path))
    if overrides:
        record = attrs.evolve(record, recipe=_resampled(record, overrides)[1])
    checkpoints.save(out, record.to_share(rounding))


def sample_run(
    path: Path,
    wish: Wish,
    out: Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
    max_pairs: int | None = None,
    graphs: bool | None = None,
    workers: int = 1,
    time_limit: float | None = 60.0,
) -> tuple[dict[str, Any], Path]:
    """Generate what is wished for with the model of a run folder or checkpoint.

    Writes the samples and ``report.json`` (what they depend on, how many could not be built and why, and by how many
    structures each constraint is violated) to ``out``, by default a new folder beside the model. With ``wish.select``
    the samples mark the selected candidate of each target.

    Args:
        overrides: see ``load_run``.
        max_pairs: see ``Evaluation``.
        graphs: see ``Execution``; by default as the model's recipe says.
        workers, time_limit: of the selection, see ``kldm.metrics.matching.selection``.

    Returns:
        the report, and the folder.
    """
    if wish.select:
        check_work(workers, time_limit, "select")
    experiment, _, file = load_run(path, overrides)
    # The writer's choice: the others may look when there is the folder already.
    folder = world().writers(out or fresh_folder(file.parent if path.is_file() else path, "samples"))
    if (folder / "samples.jsonl").exists():
        raise KldmError("the folder holds samples already", place=str(folder), remedy="choose another --out")
    targets, count = wish.targets(experiment)
    targets.constraints.check(experiment.model.processes, targets.store)
    with world().writer_first():
        make_writable(folder)
    place = device or default_device()
    max_pairs = sampling_pairs(max_pairs, experiment.model.network, place)
    wanted = requests(len(targets.store), count)
    with replaying(experiment.execution.graphs if graphs is None else graphs):
        generated = generate(
            experiment.model.to(place),
            experiment.sampler,
            targets.store.to(place),
            wanted,
            seed=wish.seed,
            max_pairs=max_pairs,
            constraints=targets.constraints,
        )
    made = candidates(generated, wanted)
    started = time.monotonic()
    if wish.select:
        made = consensus(made, workers=workers, time_limit=time_limit)
    selection = {"rule": f"consensus: {CONSENSUS}", "of": count, "seconds": round(time.monotonic() - started, 1)}
    if world().is_writer:
        numbered = [attrs.evolve(one, target=targets.number(one.target)) for one in made]
        write_samples(folder, numbered, {targets.number(row): name for row, name in enumerate(targets.store.ids)})
    broken = violations(made, [request.target for request in wanted], targets.store, targets.constraints)
    asked = {name: value for name, value in attrs.asdict(wish).items() if value not in (None, ())}
    report: dict[str, Any] = {
        "checkpoint": str(file),
        "wish": {name: str(value) if isinstance(value, Path) else value for name, value in asked.items()},
        "overrides": dict(overrides or {}),
        "max_pairs": max_pairs,
        "device": _device_name(place),
        "precision": used_precision(experiment.model.precision, place),
        "libraries": library_versions(),
        "requests": len(wanted),
        "not_built": dict(Counter(candidate.reason for candidate in made if candidate.structure is None)),
        "violations": broken,
        **({"selection": selection} if wish.select else {}),
    }
    if world().is_writer:
        write_json(folder / "report.json", report)
    return report, folder


def evaluate_run(folder: Path, out: Path | None = None) -> Report:
    """Judge the samples of a run folder again, with the metrics of its recipe."""
    experiment, tree = assemble(read_recipe(folder / "recipe.cfg"))
    results: dict[str, Judgement] = {}
    for split in experiment.evaluation.splits:
        for label in (split, f"{split}_untrained"):
            place = folder / "samples" / label
            if not (place / "samples.jsonl").exists():
                continue
            rows = (out / f"{label}.csv") if out else place / "results.csv"
            found = read_samples(place / "samples.jsonl")
            results[label] = EvaluationSplit.of(experiment, split).judged(experiment, tree, found, rows)
    if not results:
        raise KldmError("the run has no samples yet", place=str(folder), remedy="finish it with kldm run")
    earlier = _report(folder)
    report = Report(about=earlier.about if earlier else {}, libraries=library_versions(), evaluation=results)
    if world().is_writer:
        report.write(out or folder)
    return report


def _report(folder: Path) -> Report | None:
    """The report that the folder holds; None where there is none that can be read."""
    try:
        return Report.read(folder / "report.json")
    except KldmError:
        return None


def default_device() -> torch.device:
    """The first GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fresh_folder(parent: Path, stem: str) -> Path:
    """A folder name that is not taken: stem-1, stem-2, ..."""
    number = 1
    while (parent / f"{stem}-{number}").exists():
        number += 1
    return parent / f"{stem}-{number}"


def _claim(folder: Path, tree: Tree) -> None:
    """Take the folder for this recipe: a new one, or one that holds the same run."""
    path = folder / "recipe.cfg"
    if path.exists():
        difference = _difference(_bound(_complete(read_recipe(path))), _bound(tree))
        if difference:
            raise KldmError(
                f"the folder holds a run of another recipe ({difference} differs)",
                place=str(folder),
                remedy="choose another --out, or remove the folder",
            )
        return
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise KldmError("it is neither an empty folder nor a run", place=str(folder), remedy="choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KldmError(
            f"cannot be made ({error.strerror})", place=str(folder), remedy="choose another --out"
        ) from error
    write_recipe(tree, path)


def _start(experiment: Experiment, folder: Path) -> Experiment | None:
    """What training starts from, if not from nothing: of a run that has begun, its own recipe says enough."""
    training, own = experiment.training, folder / "recipe.cfg"
    if training.start_from is None:
        return None
    if own.exists():
        return assemble(read_recipe(own))[0]
    file = checkpoints.locate(training.start_from, state=training.start_with == "state")
    return assemble(checkpoints.load(file).recipe)[0]


def _complete(tree: Tree) -> Tree:
    """The recipe of a run with the defaults of keys that are newer than the run."""
    try:
        return assemble(tree)[1]
    except KldmError:  # of parts that are gone: another recipe than any that can be run now
        return tree


def _bound(tree: Tree) -> Tree:
    """The part of a recipe that a run folder is bound to; training may be prolonged, and cut into other pieces. The
    best is that of one score."""
    kept = {name: value for name, value in tree.items() if name not in _FREE}
    kept["validation"] = {"score": (tree.get("validation") or {}).get("score")}
    free = ("epochs", "minutes", "max_pairs")
    training = {name: value for name, value in tree.get("training", {}).items() if name not in free}
    return {**kept, "training": training}


def _difference(old: Any, new: Any, place: str = "") -> str:
    """The dotted key of the first difference of two trees, or nothing."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            found = _difference(old.get(key), new.get(key), f"{place}.{key}".lstrip("."))
            if found:
                return found
        return ""
    return "" if _same(old, new) else place


def _same(old: Any, new: Any) -> bool:
    """Equal but for the last digits, in which fitted statistics may differ from one machine to another."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new))
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=1e-9)
    return bool(old == new)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"
