"""The experiment that a recipe describes: its settings, and how it is assembled from the recipe's tree."""

from collections.abc import Mapping

import attrs
import torch
from attrs.validators import optional

from kldm.crystals import CrystalStore
from kldm.data import Data
from kldm.data.sources import SPLITS
from kldm.errors import KldmError, nearest
from kldm.execution import Execution
from kldm.interfaces import Metric, Prepares, Sampler, Samples
from kldm.model import JointModel, statistics
from kldm.recipe import Tree, build, overridden
from kldm.sampling.generation import MOST_REQUESTS
from kldm.sampling.targets import EMPIRICAL, atom_range, histogram
from kldm.training import Training
from kldm.validators import at_least, each, one_of, within


@attrs.frozen(kw_only=True)
class Evaluation:
    """What is sampled and judged after training.

    Args:
        splits: splits of the data set to judge against, in this order. A model that takes its species from the
            composition is asked for the compositions of the split; one that generates species, for new crystals.
        limit: largest number of crystals of each split, drawn once by the seed; all by default.
        candidates: structures per composition.
        count: structures to generate where species are generated; by default as many as the split has crystals.
        atoms: numbers of atoms of generated crystals: ``empirical`` (as often as in the training set), a number, or
            a range such as ``4-20``.
        histogram: number of crystals of the training set by number of atoms; measured when a run starts.
        seed: seed of the drawn crystals and of sampling.
        max_pairs: largest number of ordered pairs of atoms in a batch; memory grows with it. By default 64,000, or
            fewer where half of the free memory does not suffice.
        untrained: whether the untrained network is sampled and judged too, on the first split, as a baseline.
    """

    splits: tuple[str, ...] = attrs.field(default=("test",), validator=each(one_of(*SPLITS)))
    limit: int | None = attrs.field(default=None, validator=optional(at_least(1)))
    candidates: int = attrs.field(default=1, validator=within(1, 10**5))
    count: int | None = attrs.field(default=None, validator=optional(within(1, MOST_REQUESTS)))
    atoms: int | str = EMPIRICAL
    histogram: Mapping[str, int] | None = None
    seed: int = 0
    max_pairs: int | None = attrs.field(default=None, validator=optional(at_least(1)))
    untrained: bool = False

    def __attrs_post_init__(self) -> None:
        if self.atoms != EMPIRICAL:
            atom_range(self.atoms)


@attrs.frozen(kw_only=True)
class Validation:
    """What is sampled and judged during training to choose the best checkpoint.

    Args:
        sampler: usually a cheaper sampler than the final one.
        size: number of crystals of the split, drawn once by the seed, and of samples.
        split: the split that the crystals come from.
        score: name of the value that decides: the higher, the better; with a minus before the name, as in
            ``-structural.crmse@1``, the lower, the better.
        seed: seed of the drawn crystals and of sampling.
        metrics: metrics to measure, by name; by default those of the experiment.
    """

    sampler: Sampler
    size: int = attrs.field(default=1024, validator=at_least(1))
    split: str = attrs.field(default="val", validator=one_of(*SPLITS))
    score: str = "structural.match_rate@1"
    seed: int = 0
    metrics: Mapping[str, Metric] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True, eq=False)
class Experiment:
    """A recipe as objects.

    Args:
        data: the data set; it also loads the columns that the model's conditions need.
        model: processes and network.
        sampler: the sampler of the evaluation and of ``kldm sample``.
        training: settings of ``fit``.
        evaluation: what is judged at the end.
        validation: what is judged during training; without it the last weights are kept as the best.
        execution: how the network is computed.
        metrics: metrics by their names in the report.
    """

    data: Data
    model: JointModel
    sampler: Sampler
    training: Training = attrs.field(factory=Training)
    evaluation: Evaluation = attrs.field(factory=Evaluation)
    validation: Validation | None = None
    execution: Execution = attrs.field(factory=Execution)
    metrics: Mapping[str, Metric] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        columns = dict.fromkeys((*self.data.columns, *self.model.columns))
        object.__setattr__(self, "data", attrs.evolve(self.data, columns=tuple(columns)))
        self.sampler.check(self.model.processes)
        if self.validation is not None:
            self.validation.sampler.check(self.model.processes)

    @property
    def validates(self) -> bool:
        """Whether training samples and judges the validation split."""
        return self.validation is not None and self.training.validate_every > 0


def assemble(tree: Tree) -> tuple[Experiment, Tree]:
    """Build the experiment of a recipe's tree, with the network's weights drawn from ``training.seed``.

    Returns the experiment and the complete tree, in which every default is written out.
    """
    training = tree.get("training")
    seed = training.get("seed", 0) if isinstance(training, dict) else 0
    # Weights are drawn on the host. Without a list of devices torch would open every GPU of the machine.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed if type(seed) is int and abs(seed) < 2**63 else 0)
        return build(tree, Experiment)


def fitted(
    experiment: Experiment, tree: Tree, train: CrystalStore, start: Experiment | None = None
) -> tuple[Experiment, Tree]:
    """Measure the statistics of the training split, and return the experiment and its tree with them.

    The processes of the model are replaced in place, and its network keeps its weights. The experiment is built again
    only if a fitted process has other channels, or if the statistics of ``start`` are taken over.

    Args:
        experiment, tree: the result of ``assemble``.
        train: the training split.
        start: the experiment whose weights training starts from. Its statistics are taken over, because its weights
            were trained with them.

    Raises:
        KldmError: the model has other statistics than that of ``start``.
    """
    model = experiment.model
    processes = model.fitted(train)
    measured = statistics(processes)
    if start is not None:
        earlier = statistics(start.model.processes)
        for place in {*measured, *earlier}:
            if measured.get(place, {}).keys() != earlier.get(place, {}).keys():
                problem = "it takes other statistics of the training split than in the model of training.start_from"
                remedy = "give it the process and the codec of that model"
                raise KldmError(problem, place=f"model.{place}", remedy=remedy)
        measured = earlier
    for place, values in measured.items():
        tree = overridden(tree, {f"model.{place}": values})
    if not takes_compositions(model):
        counts = histogram(train)
        tree = overridden(tree, {"evaluation.histogram": counts})
        experiment = attrs.evolve(experiment, evaluation=attrs.evolve(experiment.evaluation, histogram=counts))
    replaced = start is None and model.replace(processes)
    return (experiment, tree) if replaced else assemble(tree)


def takes_compositions(model: JointModel) -> bool:
    """Whether the species of samples come from a given composition, because the model does not predict them."""
    return not model.processes["species"].predicts


def prepare(experiment: Experiment, *, everything: bool = True) -> None:
    """Check before training that the splits to be judged can be read and are not empty, that the metrics have the
    files and packages that they need, and that one gives the score of validation. Raises ``KldmError``.

    Args:
        everything: whether splits are read that take minutes, or must be downloaded.
    """
    validation = experiment.validation.metrics if experiment.validation else {}
    for metric in (*experiment.metrics.values(), *validation.values()):
        if isinstance(metric, Prepares):
            metric.prepare()
    if experiment.validation is not None:
        score_of(experiment, Samples((), ()))
    validated = [experiment.validation.split] if experiment.validation and experiment.validates else []
    data = experiment.data
    for split in dict.fromkeys((*experiment.evaluation.splits, *validated)):
        if (everything or data.columns or data.loads_at_once(split)) and not len(data.load(split)):
            remedy = "take another split, or more crystals"
            raise KldmError("the split is empty", place=f"{data.name}/{split}", remedy=remedy)


def score_of(experiment: Experiment, samples: Samples) -> tuple[float | None, dict[str, float | None]]:
    """The value that ``validation.score`` names, without its sign, and all values of the metrics of validation.

    Raises:
        KldmError: no metric gives a value of that name.
    """
    assert experiment.validation is not None
    name = experiment.validation.score.removeprefix("-")
    metrics = experiment.validation.metrics or experiment.metrics
    values = {key: value for metric in metrics.values() for key, value in metric.measure(samples).values.items()}
    if name not in values:
        known = f"known are {', '.join(sorted(values)) or 'none, because the recipe has no [metrics]'}"
        raise KldmError(f"no metric gives {name!r}", place="validation.score", remedy=nearest(name, values) or known)
    return values[name], values
