"""Trained models: loaded with their weights, exported to be shared, and sampled on request."""

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from kldm.errors import KldmError
from kldm.evaluation.results import library_versions, write_json, write_samples
from kldm.execution import default_device, device_name, set_execution, used_precision
from kldm.metrics.matching import CONSENSUS, consensus
from kldm.recipe import Tree, overridden
from kldm.runs.experiment import Experiment, assemble
from kldm.runs.request import SamplingRequest
from kldm.runtime.distributed import world
from kldm.runtime.files import fresh_folder, make_writable
from kldm.runtime.pool import check_work
from kldm.samplers import replaying
from kldm.sampling.constraints import violations
from kldm.sampling.generation import candidates, generate, requests, sampling_pairs
from kldm.training import checkpoint as checkpoints
from kldm.training import set_precision
from kldm.training.checkpoint import Checkpoint, Rounding


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
    """Generate what is asked for with the model of a run folder or checkpoint.

    Writes the samples and ``report.json`` (what they depend on, how many could not be built and why, and by how many
    structures each constraint is violated) to ``out``, by default a new folder beside the model. With
    ``request.select`` the samples mark the selected candidate of each target.

    The processes of a run generate together; the writer alone selects, verifies and writes.

    Args:
        path: see ``load_run``.
        request: which crystals.
        out: a folder that holds no samples yet.
        overrides: see ``load_run``.
        device: the first GPU where there is one by default.
        max_pairs: see ``Evaluation``.
        graphs: see ``Execution``; by default as the model's recipe says.
        workers, time_limit: of the selection, see ``kldm.metrics.matching.selection``.

    Returns:
        the report, and the folder.
    """
    here, device = world(), device or default_device()
    with here.writer_first():  # it alone tells a mistake, and the data that it reads are there for the others
        if request.select:
            check_work(workers, time_limit)
        experiment, _, file = load_run(path, overrides)
        targets, count = request.targets(experiment)
        targets.constraints.check(experiment.model.processes, targets.store)
        if here.is_writer:
            out = out or fresh_folder(file.parent if path.is_file() else path, "samples")
            if (out / "samples.jsonl").exists():
                raise KldmError("the folder holds samples already", place=str(out), remedy="choose another --out")
            make_writable(out)
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
        made = candidates(generated, wanted)
        started = time.monotonic()
        if request.select:
            made = consensus(made, workers=workers, time_limit=time_limit)
        selection = {"rule": f"consensus: {CONSENSUS}", "of": count, "seconds": round(time.monotonic() - started, 1)}
        numbered = [attrs.evolve(one, target=targets.number(one.target)) for one in made]
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
            "not_built": dict(Counter(one.reason for one in made if one.structure is None)),
            "violations": violations(made, [one.target for one in wanted], targets.store, targets.constraints),
            **({"selection": selection} if request.select else {}),
        }
        write_json(out / "report.json", report)
        return report, out

    return here.by_writer(finish)
