"""Samples and judges a model, for validation and at the end of a run."""

import hashlib
import json
import time
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import attrs
import torch

from kldm.crystals import CrystalStore
from kldm.errors import KldmError
from kldm.evaluation.judging import Judge, judge
from kldm.evaluation.overlap import of_store, overlap_note
from kldm.evaluation.report import Judgement
from kldm.evaluation.results import write_json, write_samples
from kldm.execution import set_execution
from kldm.interfaces import Candidate, Samples
from kldm.model import JointModel
from kldm.reading import Reference, read_samples
from kldm.recipe import Tree
from kldm.runs.experiment import Experiment, score_of, takes_compositions
from kldm.runtime.distributed import world
from kldm.runtime.seeding import seeded
from kldm.sampling.generation import candidates, generate, requests, sampling_pairs
from kldm.sampling.targets import de_novo, drawn_sizes
from kldm.training import set_precision


class ModelValidation:
    """Samples and judges a fixed part of the validation split.

    A call returns the deciding score first, under the name in ``validation.score``, and then all values of the metrics.
    The higher the score, the better: a name with a minus stands for the negative of a value.
    """

    def __init__(self, experiment: Experiment, device: torch.device) -> None:
        assert experiment.validation is not None
        self.experiment, self.settings = experiment, experiment.validation
        split, size, seed = self.settings.split, self.settings.size, self.settings.seed
        self.store = world().by_writer(lambda: draw(experiment.data.load(split), size, seed))
        self.targets = requested(experiment, self.store, len(self.store), seed).to(device)
        # Chosen once, so that all validations of a run draw the same batches.
        self.max_pairs = sampling_pairs(experiment.evaluation.max_pairs, experiment.model.network, device)

    def __call__(self, model: JointModel) -> dict[str, float]:
        settings, wanted = self.settings, requests(len(self.targets), 1)
        generated = generate(
            model,
            settings.sampler,
            self.targets,
            wanted,
            seed=settings.seed,
            max_pairs=self.max_pairs,
            description="validate",
        )
        score, values = world().by_writer(lambda: self._judged(candidates(generated, wanted)))
        if score is None:
            raise KldmError("has no value for these samples", place=f"validation.score = {settings.score}")
        signed = -score if settings.score.startswith("-") else score
        return {settings.score: signed, **{name: value for name, value in values.items() if value is not None}}

    def _judged(self, sampled: tuple[Candidate, ...]) -> tuple[float | None, dict[str, float | None]]:
        return score_of(self.experiment, Samples(sampled, self._reference.structures, self._reference.name))

    @cached_property
    def _reference(self) -> Reference:
        """Built where it is used: in the process that judges."""
        return Reference.of_store(f"{self.experiment.data.name}/{self.settings.split}", self.store, whole=False)


def evaluate_splits(
    experiment: Experiment, tree: Tree, folder: Path, device: torch.device, untrained: JointModel | None = None
) -> dict[str, Judgement]:
    """Sample and judge every split of ``[evaluation]`` with the model of ``experiment``, which is on ``device``. The
    first split is judged with the ``untrained`` model too, if there is one."""
    settings = experiment.evaluation
    results: dict[str, Judgement] = {}
    if untrained is not None:
        untrained.to(device)
        set_precision(untrained, experiment.training.precision)
        set_execution(untrained.network, experiment.execution)
    for number, split in enumerate(settings.splits):
        evaluated = world().by_writer(partial(EvaluationSplit.of, experiment, split))
        for name, model in (("trained", experiment.model), ("untrained", untrained)):
            if model is None or (name == "untrained" and number):
                continue
            label = split if name == "trained" else f"{split}_untrained"
            results[label] = _evaluate(experiment, tree, model, evaluated, folder, label, device)
    return results


@attrs.frozen(slots=False, eq=False)
class EvaluationSplit:
    """The part of a split that a run is judged against.

    Attributes:
        store: its crystals.
        name: data set and split, such as ``mp_20/test``.
        whole: whether it is the whole split.
        notes: sentences that a reader of the results must see.
    """

    store: CrystalStore
    name: str
    whole: bool
    notes: tuple[str, ...]

    @cached_property
    def reference(self) -> Reference:
        """The crystals as structures. Built where it is used, so that other processes are sent the crystals alone."""
        return Reference.of_store(self.name, self.store, self.whole)

    @classmethod
    def of(cls, experiment: Experiment, split: str) -> "EvaluationSplit":
        """The part of a split that the evaluation of an experiment takes."""
        full, settings = experiment.data.load(split), experiment.evaluation
        store = draw(full, settings.limit, settings.seed)
        whole = len(store) == len(full) and experiment.data.max_atoms is None
        notes = overlap_note(of_store(store), of_store(experiment.data.load("train")), "the training set")
        return cls(store, f"{experiment.data.name}/{split}", whole, notes)

    def judged(self, experiment: Experiment, tree: Tree, sampled: tuple[Candidate, ...], table: Path) -> Judgement:
        """Judge samples by the metrics of the experiment, and write the table of all structures to ``table``.

        Args:
            tree: the complete recipe, which names the metrics.
        """
        judges = {name: Judge(tree["metrics"][name]["@metrics"], metric) for name, metric in experiment.metrics.items()}
        samples = Samples(sampled, self.reference.structures, self.reference.name)
        names = requested(experiment, self.store, experiment.evaluation.count, experiment.evaluation.seed).ids
        return judge(judges, [samples], self.reference, table=table, names=[names], notes=self.notes)


def requested(experiment: Experiment, reference: CrystalStore, count: int | None, seed: int) -> CrystalStore:
    """The crystals that the model is asked for: the compositions of the reference, or crystals with drawn numbers of
    atoms. Properties that the model conditions on are taken from the rows of the reference in order, cyclically."""
    if takes_compositions(experiment.model):
        return reference
    settings = experiment.evaluation
    targets = de_novo(drawn_sizes(settings.atoms, settings.histogram, count or len(reference), seed)).store
    rows = torch.arange(len(targets)) % len(reference)
    return attrs.evolve(targets, per_crystal={name: values[rows] for name, values in reference.per_crystal.items()})


def _evaluate(
    experiment: Experiment,
    tree: Tree,
    model: JointModel,
    evaluated: EvaluationSplit,
    folder: Path,
    label: str,
    device: torch.device,
) -> Judgement:
    started, settings, place = time.monotonic(), experiment.evaluation, folder / "samples" / label
    targets = requested(experiment, evaluated.store, settings.count, settings.seed)
    wanted = requests(len(targets), settings.candidates if takes_compositions(experiment.model) else 1)
    max_pairs = sampling_pairs(settings.max_pairs, model.network, device)
    origin = {
        "weights": _digest(model),
        "sampler": tree["sampler"],
        "targets": len(targets),
        "candidates": settings.candidates,
        "atoms": settings.atoms,
        "limit": settings.limit,
        "seed": settings.seed,
        "max_pairs": max_pairs,
    }
    here = world()
    sampled = here.by_writer(lambda: _stored(place, origin, any_max_pairs=settings.max_pairs is None))
    if sampled is None:
        generated = generate(
            model,
            experiment.sampler,
            targets.to(device),
            wanted,
            seed=settings.seed,
            max_pairs=max_pairs,
            description=f"sample {label}",
        )
        sampled = candidates(generated, wanted)
        if here.is_writer:
            write_samples(place, sampled, dict(enumerate(targets.ids)))
            write_json(place / "origin.json", origin)
    judged = here.by_writer(lambda: evaluated.judged(experiment, tree, sampled, place / "results.csv"))
    return attrs.evolve(judged, seconds=round(time.monotonic() - started, 1))


def draw(store: CrystalStore, limit: int | None, seed: int) -> CrystalStore:
    """At most ``limit`` crystals, drawn by the seed, in the order of the store."""
    rows = drawn_rows(len(store), limit, seed)
    return store.subset(rows) if len(rows) < len(store) else store


def drawn_rows(count: int, limit: int | None, seed: int) -> list[int]:
    """The rows of a store of ``count`` crystals that ``draw`` takes, in order."""
    if limit is None or limit >= count:
        return list(range(count))
    rows = torch.randperm(count, generator=seeded(torch.device("cpu"), seed, "draw"))[:limit]
    return sorted(rows.tolist())


def _stored(place: Path, origin: Mapping[str, Any], *, any_max_pairs: bool) -> tuple[Candidate, ...] | None:
    """The samples of an earlier, equal request, so that a repeated command does not sample again.

    With ``any_max_pairs`` they may have been drawn in batches of another size.
    """
    try:
        earlier = json.loads((place / "origin.json").read_text())
        if any_max_pairs:
            origin = {**origin, "max_pairs": earlier["max_pairs"]}
        if earlier == json.loads(json.dumps(origin)):
            return read_samples(place / "samples.jsonl")
    except (OSError, ValueError, KeyError, TypeError, KldmError):
        return None
    return None


def _digest(model: JointModel) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
