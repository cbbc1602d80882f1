"""Loads trained models with their weights, exports them to be shared, and samples them."""

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import torch

from kldm.errors import KldmError
from kldm.evaluation.results import SAMPLE_FILES, library_versions, write_json, write_samples
from kldm.execution import default_device, device_name, set_execution, used_precision
from kldm.metrics.matching import CONSENSUS, consensus
from kldm.model import of_at_most
from kldm.recipe import Tree, overridden
from kldm.runs.experiment import Experiment, assemble
from kldm.runs.request import SamplingRequest
from kldm.runtime.distributed import world
from kldm.runtime.locking import check_place, results_folder
from kldm.runtime.pool import check_work
from kldm.samplers import replaying
from kldm.sampling.constraints import violations
from kldm.sampling.generation import candidates, generate, requests, sampling_pairs
from kldm.training import checkpoint as checkpoints
from kldm.training import set_precision
from kldm.training.checkpoint import Checkpoint, Rounding

WRITTEN = (*SAMPLE_FILES, "report.json")
"""The files that ``sample_run`` writes."""


def load_run(path: Path, overrides: Mapping[str, Any] | None = None) -> tuple[Experiment, Checkpoint, Path]:
    """The experiment of a run folder, a folder of weights or a checkpoint file, with its trained weights.

    Args:
        overrides: new values by dotted key, for keys of the recipe that say how the model is sampled: those of the
            sampler and of execution, ``training.precision``, and options of processes that concern sampling.

    Returns:
        the experiment, the checkpoint, and the file that it was read from.
    """
    file = checkpoints.locate(path)
    record = checkpoints.load(file)
    experiment, _ = _resampled(record, overrides or {})
    record.load_weights(experiment.model)
    set_precision(experiment.model, experiment.training.precision)
    set_execution(experiment.model.network, experiment.execution)
    return experiment, record, file


def _resampled(record: Checkpoint, overrides: Mapping[str, Any]) -> tuple[Experiment, Tree]:
    """The experiment and the complete recipe of a trained model that is sampled in another way.

    Raises:
        KldmError: a key belongs neither to the sampler nor to execution, and is neither ``training.precision`` nor an
            option of a process that is marked as one of sampling (``OF_SAMPLING``).
    """
    with of_at_most(record.size):
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
    """Write the weights that a run folder or checkpoint samples with, and its recipe, to one file to be shared.

    Args:
        overrides: see ``load_run``; they become part of the recipe in the file.
    """
    if out.exists():
        raise KldmError("the file exists already", place=str(out), remedy="remove it, or choose another --out")
    record = checkpoints.load(checkpoints.locate(path))
    if overrides:
        record = attrs.evolve(record, recipe=_resampled(record, overrides)[1])
    checkpoints.save(out, record.to_share(rounding))


def sample_run(
    path: Path,
    request: SamplingRequest,
    out: Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
    max_pairs: int | None = None,
    graphs: bool | None = None,
    workers: int = 1,
    time_limit: float | None = 60.0,
) -> tuple[dict[str, Any], Path]:
    """Generate the requested crystals with the model of a run folder or checkpoint.

    Writes the samples and ``report.json`` to ``out``, by default a new folder beside the model. The report has what the
    samples depend on, how many could not be built and why, and how many structures violate each constraint. With
    ``request.select`` the samples mark the selected candidate of each target.

    The processes of a run generate together. Only the writer selects, verifies and writes.

    Args:
        path: see ``load_run``.
        request: which crystals.
        out: a folder without files of these names.
        overrides: see ``load_run``.
        device: by default the first GPU, or the CPU if there is none.
        max_pairs: see ``Evaluation``.
        graphs: see ``Execution``; by default as the model's recipe says.
        workers, time_limit: settings of the selection, see ``kldm.metrics.matching.selection``.

    Returns:
        the report, and the folder.
    """
    here, device = world(), device or default_device()
    with ExitStack() as held:
        with here.writer_first():  # so that it alone reports an error, and the others find the data that it has cached
            if request.select:
                check_work(workers, time_limit)
            if here.is_writer:
                check_place(out or (path if path.is_dir() else path.parent))
            experiment, _, file = load_run(path, overrides)
            targets, count = request.targets(experiment)
            targets.constraints.check(experiment.model.processes, targets.store)
            if here.is_writer:
                parent = file.parent if path.is_file() else path
                out = held.enter_context(results_folder(out, parent, "samples", WRITTEN))
        max_pairs = sampling_pairs(max_pairs, experiment.model.network, device)
        wanted = requests(len(targets.store), count)
        with replaying(experiment.execution.graphs if graphs is None else graphs):
            generated = generate(
                experiment.model.to(device),
                experiment.sampler,
                targets.store.to(device),
                wanted,
                seed=request.seed,
                max_pairs=max_pairs,
                constraints=targets.constraints,
            )

        def finish() -> tuple[dict[str, Any], Path]:
            assert out is not None
            sampled = candidates(generated, wanted)
            started = time.monotonic()
            if request.select:
                sampled = consensus(sampled, workers=workers, time_limit=time_limit)
            selection = {
                "rule": f"consensus: {CONSENSUS}",
                "of": count,
                "seconds": round(time.monotonic() - started, 1),
            }
            rows = [candidate.target for candidate in wanted]
            numbered = [attrs.evolve(candidate, target=targets.number(candidate.target)) for candidate in sampled]
            write_samples(out, numbered, {targets.number(row): name for row, name in enumerate(targets.store.ids)})
            report: dict[str, Any] = {
                "checkpoint": str(file),
                "request": request.as_json(),
                "overrides": dict(overrides or {}),
                "max_pairs": max_pairs,
                "device": device_name(device),
                "precision": used_precision(experiment.model.precision, device),
                "libraries": library_versions(),
                "requests": len(wanted),
                "not_built": dict(Counter(candidate.reason for candidate in sampled if candidate.structure is None)),
                "violations": violations(sampled, rows, targets.store, targets.constraints),
                **({"selection": selection} if request.select else {}),
            }
            write_json(out / "report.json", report)
            return report, out

        return here.by_writer(finish)
