"""Sampling and judging: the same for validation, for the end of a run and for samples from elsewhere."""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kldm.crystals import CrystalStore
from kldm.data import Data
from kldm.errors import KldmError
from kldm.experiment import Experiment, assemble
from kldm.interfaces import Candidate, Measurement, Metric, Samples
from kldm.model import JointModel
from kldm.recipe import Tree
from kldm.results import library_versions, read_samples, write_json, write_samples, write_table
from kldm.sampling import candidates, generate, requests
from kldm.seeding import seeded
from kldm.training import set_precision

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure


class Validator:
    """Samples a fixed part of the validation split and returns the deciding score first."""

    def __init__(self, experiment: Experiment, device: torch.device) -> None:
        assert experiment.validation is not None
        self.experiment, self.settings = experiment, experiment.validation
        store = draw(experiment.data.load(self.settings.split), self.settings.size, self.settings.seed)
        self.reference = reference_structures(store)
        self.targets = store.to(device)
        # A score that no metric gives is found before training rather than at the first validation.
        self._values(Samples((), self.reference))

    def __call__(self, model: JointModel) -> dict[str, float]:
        settings, wanted = self.settings, requests(len(self.targets), 1)
        generated = generate(
            model,
            settings.sampler,
            self.targets,
            wanted,
            seed=settings.seed,
            max_pairs=self.experiment.evaluation.max_pairs,
            description="validate",
        )
        values = self._values(Samples(candidates(generated, wanted), self.reference))
        score = values.pop(settings.score)
        if score is None:
            raise KldmError("has no value for these samples", place=f"validation.score = {settings.score}")
        return {settings.score: score, **{key: value for key, value in values.items() if value is not None}}

    def _values(self, samples: Samples) -> dict[str, float | None]:
        score = self.settings.score
        values = {
            key: value
            for found in measure(self.experiment.metrics, samples).values()
            for key, value in found.values.items()
        }
        if score not in values:
            known = ", ".join(sorted(values)) or "none, for want of [metrics]"
            raise KldmError(f"no metric gives {score!r}", place="validation.score", remedy=f"known are {known}")
        return values


def evaluate_splits(experiment: Experiment, tree: Tree, folder: Path, device: torch.device) -> dict[str, Any]:
    """Sample and judge every split of ``[evaluation]`` with the model of ``experiment`` (on its device)."""
    settings = experiment.evaluation
    results: dict[str, Any] = {}
    untrained = assemble(tree)[0].model.to(device) if settings.untrained else None
    if untrained is not None:
        set_precision(untrained, experiment.training.precision)
    for number, split in enumerate(settings.splits):
        targets = draw(experiment.data.load(split), settings.limit, settings.seed)
        for name, model in (("trained", experiment.model), ("untrained", untrained)):
            if model is None or (name == "untrained" and number):
                continue
            label = split if name == "trained" else f"{split}_untrained"
            results[label] = _evaluate(experiment, tree, model, targets, folder, label, device)
    return results


def _evaluate(
    experiment: Experiment,
    tree: Tree,
    model: JointModel,
    targets: CrystalStore,
    folder: Path,
    label: str,
    device: torch.device,
) -> dict[str, Any]:
    started, settings, place = time.monotonic(), experiment.evaluation, folder / "samples" / label
    wanted = requests(len(targets), settings.candidates)
    origin = {
        "weights": _digest(model),
        "sampler": tree["sampler"],
        "targets": len(targets),
        "candidates": settings.candidates,
        "limit": settings.limit,
        "seed": settings.seed,
        "max_pairs": settings.max_pairs,
    }
    found = _stored(place, origin)
    if found is None:
        generated = generate(
            model,
            experiment.sampler,
            targets.to(device),
            wanted,
            seed=settings.seed,
            max_pairs=settings.max_pairs,
            description=f"sample {label}",
        )
        found = candidates(generated, wanted)
        write_samples(place, found, targets.ids)
        write_json(place / "origin.json", origin)
    samples = Samples(found, reference_structures(targets))
    measured = measure(experiment.metrics, samples)
    write_rows(place / "results.csv", measured, samples, targets.ids)
    return {**summary(measured, samples), "seconds": round(time.monotonic() - started, 1)}


def evaluate_file(path: Path, reference: str, out: Path) -> dict[str, Any]:
    """Judge a file of samples beside ``DATASET/SPLIT``, with the match rate of crystal structure prediction."""
    from kldm.metrics import MatchRate

    name, _, split = reference.rpartition("/")
    if not name:
        raise KldmError("wants DATASET/SPLIT", place=f"--reference {reference}", remedy="write it like mp_20/test")
    found = read_samples(path)
    targets = Data(name=name).load(split)
    beyond = max((candidate.target for candidate in found), default=-1)
    if not found or beyond >= len(targets):
        problem = f"asks for row {beyond} of {len(targets)}" if found else "holds no samples"
        raise KldmError(problem, place=str(path), remedy=f"check that {reference} is what was sampled")
    samples = Samples(found, reference_structures(targets))
    measured = measure({"match_rate": MatchRate()}, samples)
    write_rows(out / "results.csv", measured, samples, targets.ids)
    report: dict[str, Any] = {
        "reference": reference,
        "libraries": library_versions(),
        "evaluation": {path.stem: summary(measured, samples)},
    }
    write_json(out / "report.json", report)
    return report


def measure(metrics: Mapping[str, Metric], samples: Samples) -> dict[str, Measurement]:
    """Every metric on the same samples."""
    return {name: metric.measure(samples) for name, metric in metrics.items()}


def summary(measured: Mapping[str, Measurement], samples: Samples) -> dict[str, Any]:
    """The part of a report that belongs to one set of samples."""
    return {
        "targets": len(samples.reference),
        "requests": len(samples.candidates),
        "not_built": sum(candidate.structure is None for candidate in samples.candidates),
        "metrics": {
            name: {"values": found.values, "definition": found.definition, "notes": list(found.notes)}
            for name, found in measured.items()
        },
    }


def write_rows(path: Path, measured: Mapping[str, Measurement], samples: Samples, names: tuple[str, ...]) -> None:
    """The per-structure table: one row per candidate, the columns of all metrics side by side."""
    rows: list[dict[str, Any]] = []
    for index, candidate in enumerate(samples.candidates):
        row: dict[str, Any] = {"target": candidate.target, "candidate": candidate.candidate}
        row["name"] = names[candidate.target] if candidate.target < len(names) else ""
        for found in measured.values():
            if found.rows:
                row |= found.rows[index]
        rows.append(row)
    write_table(path, rows)


def draw(store: CrystalStore, limit: int | None, seed: int) -> CrystalStore:
    """At most ``limit`` crystals, drawn by the seed, in the order of the store."""
    if limit is None or limit >= len(store):
        return store
    rows = torch.randperm(len(store), generator=seeded(torch.device("cpu"), seed, "draw"))[:limit]
    return store.subset(sorted(rows.tolist()))


def _stored(place: Path, origin: Mapping[str, Any]) -> tuple[Candidate, ...] | None:
    """The samples of an earlier, equal request, so that a repeated command does not sample again."""
    try:
        if json.loads((place / "origin.json").read_text()) == json.loads(json.dumps(origin)):
            return read_samples(place / "samples.jsonl")
    except (OSError, ValueError, KldmError):
        return None
    return None


def _digest(model: JointModel) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def reference_structures(store: CrystalStore) -> tuple["Structure", ...]:
    """The crystals of a data set as structures, to judge samples against."""
    from kldm.convert import to_structures

    return tuple(to_structures(store))
