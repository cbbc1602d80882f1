"""The interfaces of kldm and the small records they exchange. It imports only torch, attrs and the crystals.

A *process* noises one modality of a crystal and steps it back; a *network* reads the noisy channels of all
processes and predicts; a *sampler* orders the steps; a *metric* judges what came out. Everything else composes
them. Shapes: N atoms and B crystals of a batch, C numbers of a channel.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self, runtime_checkable

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, CrystalStore, Layout

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator
    from pymatgen.core.structure import Structure

Latent = Mapping[str, Tensor]
"""Named channels of one process or of all, [N, C] per atom or [B, C] per crystal; a token channel is int64 [N]."""

Prediction = Mapping[str, Tensor]
"""The network's answers by channel name; a token channel is answered with logits [N, C]."""

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]


class Channel(NamedTuple):
    """One named tensor between processes and network. A named tuple, which compilers can follow.

    Attributes:
        name: unique among all processes of a model.
        width: numbers per atom or crystal; of a token channel, the size of its vocabulary.
        per: one row per atom or one per crystal.
        kind: ``periodic`` in [0, 1), known only up to a common translation of the atoms of a crystal;
            ``tangent``, a velocity or score on the torus; ``real``, plain numbers; ``matrix``, width 9, the lattice
            vectors of a crystal row by row, which turn with it; ``token``, an integer in 0..width - 1 (predicted
            as ``width`` logits).
    """

    name: str
    width: int
    per: Literal["atom", "crystal"]
    kind: Literal["periodic", "tangent", "real", "matrix", "token"]


@attrs.frozen
class Interface:
    """What a network is built for.

    Attributes:
        reads: the channels it reads.
        predicts: those it predicts.
        log_noise: log of the standard deviation of the coordinates' noise at unit times s > 0 of any shape, in
            radians, from which networks may make time features; None if the process does not give it.
    """

    reads: tuple[Channel, ...]
    predicts: tuple[Channel, ...]
    log_noise: Callable[[Tensor], Tensor] | None = attrs.field(default=None, eq=False)


OF_SAMPLING: Mapping[str, bool] = {"of_sampling": True}
"""``metadata`` of an attrs field of a process that changes how a trained model samples, but not what it has learnt;
``kldm sample`` may override it."""


@attrs.frozen(eq=False)
class Noised:
    """One draw of the forward process: the noisy latent that the network reads and the targets of its prediction, each
    with one row per atom or per crystal."""

    latent: Latent
    target: Mapping[str, Tensor]


@attrs.frozen
class Correction:
    """Options of a Langevin move x <- x + delta S + sqrt(2 delta) eps at fixed time.

    Attributes:
        tau: signal-to-noise ratio of the move, delta = tau / (square of the score); > 0.
        positions: whether a process with velocities also moves its positions along them.
        step_size: which square. ``observed``, as published, is the mean of S^2 over the numbers of a crystal, so that
            delta depends on the state and the move does not preserve the law. ``expected`` is E[S^2] at that time (for
            x = alpha x_0 + sigma eps, delta = tau sigma^2), and the stationary variance is 1 / (1 - tau / 2) times the
            right one, whatever the size of a crystal.
    """

    tau: float = 0.25
    positions: bool = True
    step_size: Literal["observed", "expected"] = "observed"


_PUBLISHED = Correction()


@attrs.frozen(eq=False)
class Step:
    """One reverse step. Times are unit time, 1 = noise, 0 = data.

    Attributes:
        s: [B] time at which the step starts.
        r: [B] time at which it ends, r < s.
        now: [B] time at which the network was called: s, or r for a stage at the end of the step.
        layout: the layout of the batch.
        rng: source of all randomness, on the device of the batch.
        correction: options of the moves that are Langevin moves.
    """

    s: Tensor
    r: Tensor
    now: Tensor
    layout: Layout
    rng: torch.Generator
    correction: Correction = _PUBLISHED


@attrs.frozen(eq=False)
class Move:
    """One way of stepping a process back: ``move(latent, prediction, step)`` is the latent after the move.

    Attributes:
        function: (latent, prediction, step) to the new latent; it does not change its arguments.
        ends: the time that the new latent belongs to: ``r``, or ``now`` for a move at a fixed time.
        estimate: ``Estimates.estimate`` of the process, for a move that holds the clean value fixed: ``function`` then
            takes that estimate in place of the prediction, and is exact for it. By default None.
    """

    function: Callable[[Latent, Prediction, Step], Latent]
    ends: Literal["r", "now"] = "r"
    estimate: Callable[[Latent, Prediction, Tensor, Layout], Latent] | None = None

    def __call__(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        if self.estimate is not None:
            prediction = self.estimate(latent, prediction, step.now, step.layout)
        return self.function(latent, prediction, step)


class _Staying(Mapping[str, Move]):
    def __getitem__(self, name: str) -> Move:
        return Move(lambda latent, prediction, step: latent, ends="now")

    def __iter__(self) -> Iterator[str]:
        return iter(("denoise",))

    def __len__(self) -> int:
        return 1


STAYING: Mapping[str, Move] = _Staying()
"""A move of every name, which leaves the latent as it is: the moves of conditioning processes, for any sampler."""


class DiffusionProcess(Protocol):
    """One modality of a crystal: how it is noised, what the network learns, and how it is stepped back.

    Maps unit time to its own schedule inside. A process that predicts nothing conditions the others.
    """

    @property
    def reads(self) -> tuple[Channel, ...]:
        """Channels that the network reads: those of its latent, or of what ``Shows.shown`` makes of it."""
        ...

    @property
    def predicts(self) -> tuple[Channel, ...]:
        """Channels that the network must predict for it; empty for conditioning."""
        ...

    @property
    def moves(self) -> Mapping[str, Move]:
        """The ways in which samplers can step it, by name. Every process has the first; the others are optional:

        - ``denoise``: a stochastic reverse step from s to r;
        - ``exponential``: a stochastic reverse step by an exponential integrator;
        - ``flow``: a step along the probability flow;
        - ``predict``: the predictor of a predictor-corrector sampler, deterministic but for jumps;
        - ``correct``: a move at the fixed time ``now`` towards the law there: a Langevin move, whose finite step leaves
          a bias (see ``Correction.step_size``), or a move in detailed balance;
        - ``flow_given``: along the probability flow of the law given x_0, at r = 0 to x_0 (of a Gaussian law DDIM);
        - ``draw_given``: a draw from p(x_r | x_s, x_0), at r = 0 x_0 (of a Gaussian law DDPM).

        A sampler asks for moves by these names, or by any other that a process declares.
        """
        ...

    def prior(self, given: Crystals, rng: torch.Generator) -> Latent:
        """A draw at s = 1 for crystals with the layout of ``given``; conditioning processes use its values too."""
        ...

    def noise(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> Noised:
        """A draw at times s [B] in (0, 1], and the network's target."""
        ...

    def loss(self, prediction: Prediction, noised: Noised, s: Tensor, layout: Layout) -> Tensor:
        """Scalar training loss, before the weight of the modality.

        A mean over the rows that the process predicts, all N atoms or all B crystals, of terms that each depend on one
        crystal only; rows that contribute nothing count too. So the loss of a batch is the mean of the losses of its
        parts, weighted by their numbers of rows, and a batch can be divided into pieces and among processes.
        """
        ...

    def decode(self, latent: Latent, into: Crystals) -> Crystals:
        """``into`` with this modality replaced by that of the latent at s = 0."""
        ...


@runtime_checkable
class Estimates(Protocol):
    """A process that can turn a prediction into an estimate of the clean latent."""

    def estimate(self, latent: Latent, prediction: Prediction, s: Tensor, layout: Layout) -> Latent:
        """The estimate of x_0 at times s [B]: a latent at s = 0, which ``decode`` makes crystals of.

        For real numbers it is the posterior mean that the network has learnt, for tokens the most probable ones.
        """
        ...


@runtime_checkable
class Shows(Protocol):
    """A process that shows the network something other than its latent."""

    def shown(self, latent: Latent, s: Tensor, layout: Layout) -> Latent:
        """The channels of ``reads`` at times s [B]."""
        ...


@runtime_checkable
class KnowsItsNoise(Protocol):
    """A process whose noise has a standard deviation, from which a network can make time features."""

    def log_noise(self, s: Tensor) -> Tensor:
        """The logarithm of that standard deviation at unit times s > 0 of any shape."""
        ...


@runtime_checkable
class ReadsColumns(Protocol):
    """A process that needs columns of the crystals (``Crystals.per_crystal``, ``per_atom``); the data load them."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Their names."""
        ...


@runtime_checkable
class Restricts(Protocol):
    """A species process, or its codec, whose samples can be restricted to some elements."""

    def restricted(self, elements: Sequence[int]) -> Self:
        """The same process or codec, whose samples contain no element outside ``elements``.

        Raises:
            KldmError: no element is left, or its modality is not species.
        """
        ...


@runtime_checkable
class Fits(Protocol):
    """A component with statistics of the training split."""

    def fitted(self, train: CrystalStore) -> Self:
        """The same component with its statistics measured on the training split."""
        ...

    def statistics(self) -> Mapping[str, Json]:
        """The keyword arguments (nested for parts) with which the recipe rebuilds the fitted component."""
        ...


class Codec(Protocol):
    """A one-to-one map between a modality and the real numbers that a Euclidean process diffuses."""

    @property
    def channel(self) -> Channel: ...

    def encode(self, crystals: Crystals) -> Tensor:
        """[B, C] or [N, C]."""
        ...

    def decode(self, values: Tensor, into: Crystals) -> Crystals:
        """``into`` with the modality replaced."""
        ...


@runtime_checkable
class Cleans(Protocol):
    """A codec that knows what the numbers of all crystals have in common."""

    def clean(self, values: Tensor) -> Tensor:
        """Estimates of encoded crystals, [B, C] or [N, C], with that knowledge applied."""
        ...


class Schedule(Protocol):
    """A variance-preserving noise schedule: x_s = alpha(s) x_0 + sigma(s) eps, alpha^2 + sigma^2 = 1."""

    def alpha(self, s: Tensor) -> Tensor: ...

    def sigma(self, s: Tensor) -> Tensor: ...

    def beta(self, s: Tensor) -> Tensor:
        """-2 d log alpha / ds, the rate of the SDE dx = -beta x / 2 ds + sqrt(beta) dw."""
        ...


class ScoreNetwork(Protocol):
    """Predicts every channel of its ``Interface`` from the noisy channels of all processes.

    Must be equivariant to permutations of atoms, invariant to a common translation of periodic channels, and
    independent of the other crystals of the batch. Where matrix channels are rotated, the predictions of matrix
    channels must rotate with them, and all others stay the same.
    Registered networks are classes of ``torch.nn.Module`` whose first, positional-only argument is the ``Interface``.
    """

    def __call__(self, latent: Latent, s: Tensor, layout: Layout) -> Prediction: ...


@runtime_checkable
class Sizes(Protocol):
    """A network that can estimate how much memory it takes."""

    def bytes_per_pair(self, training: bool) -> int:
        """Memory that a call takes for each ordered pair of atoms of one crystal, in training with what its gradient
        needs; rather too much than too little."""
        ...


class Augmentation(Protocol):
    """Another description of the same crystals, drawn anew for every training step."""

    def augmented(self, crystals: Crystals, rng: torch.Generator) -> Crystals:
        """The crystals, described in another way: same sizes, positions in [0, 1)."""
        ...


class LearningRate(Protocol):
    """A learning-rate schedule: a pure function of how far training is, so that a resumed run repeats it."""

    def factor(self, step: int, progress: float) -> float:
        """What the learning rate is multiplied by in a step.

        Args:
            step: steps done before.
            progress: share of training done before, in [0, 1], counted in steps or in minutes.
        """
        ...


class GenerativeModel(Protocol):
    """What a sampler needs of a model."""

    @property
    def processes(self) -> Mapping[str, DiffusionProcess]: ...

    def predict(self, latents: Mapping[str, Latent], s: Tensor, layout: Layout) -> Mapping[str, Prediction]:
        """One network call: latents by modality in, predictions by modality out."""
        ...


class Sampler(Protocol):
    """Turns noise into crystals."""

    @property
    def steps(self) -> int:
        """How many reverse steps ``sample`` reports to its ``progress``."""
        ...

    def check(self, processes: Mapping[str, DiffusionProcess]) -> None:
        """Raises ``KldmError`` where a process lacks a move this sampler makes. Called before training."""
        ...

    def sample(
        self,
        model: GenerativeModel,
        given: Crystals,
        rng: torch.Generator,
        progress: Callable[[int], None] | None = None,
    ) -> Crystals:
        """One crystal for each of ``given`` (its layout, and whatever the model conditions on).

        ``progress`` is called with the number of reverse steps just done.
        """
        ...


UNPLACED = -1
"""Target of a sample that answers no row of the reference."""


@attrs.frozen(eq=False)
class Candidate:
    """One requested structure, or the reason why there is none.

    Attributes:
        target: row of the reference that it answers (CSP), or its own number (de-novo generation); ``UNPLACED`` if it
            was read from a file that does not say which row it answers.
        candidate: number among the candidates of the same target, from 0.
        structure: the structure, or None if none could be built.
        reason: why there is none.
        species: atomic numbers of its atoms, where they are known although there is no structure.
        selected: whether it was selected among the candidates of its target when they were generated.
        source: where it stands, if it was read from a file: the file and its line, frame or entry.
    """

    target: int
    candidate: int
    structure: "Structure | None"
    reason: str = ""
    species: tuple[int, ...] = ()
    selected: bool = False
    source: str = ""


@attrs.frozen(eq=False)
class Samples:
    """What a metric judges: every requested structure, failures included, beside the reference.

    Attributes:
        candidates: in any order.
        reference: its structures by row; None where a row of a file could not be read as a structure.
        source: the name of the reference, such as ``mp_20/test``; empty if unknown.
    """

    candidates: tuple[Candidate, ...]
    reference: "tuple[Structure | None, ...]"
    source: str = ""


@attrs.frozen(eq=False)
class Measurement:
    """The result of a metric.

    Attributes:
        values: named results; None where undefined (never a silent 0).
        rows: one record per candidate, in their order, for the per-structure table (may be empty).
        definition: tolerances, rules and counts behind the values.
        notes: sentences that a reader of the values must see.
    """

    values: Mapping[str, float | None]
    rows: tuple[Mapping[str, Any], ...] = ()
    definition: Mapping[str, Json] = attrs.field(factory=dict)
    notes: tuple[str, ...] = ()


class Metric(Protocol):
    """Judges samples. It never raises on a bad structure, which counts as a failure with a reason."""

    def measure(self, samples: Samples) -> Measurement: ...


@attrs.frozen(kw_only=True)
class Terms:
    """Which samples a metric takes, and what its values may be compared with. Reports keep the terms beside the values.

    Attributes:
        answers: whether a candidate answers the row of the reference that is its target (crystal structure prediction).
            Files of samples are then aligned with the reference, and several files are several candidates of every
            row. Otherwise each file is a set of its own, and of several sets the mean and the standard deviation of
            the values are reported.
        needs_reference: whether it uses the reference; a metric that does not can judge files without one.
        agree: what must be equal in two definitions for their values to be comparable: a name for it, and the keys of
            ``Measurement.definition`` that hold it, dotted within a section. A key that ends with a dot
            stands for all keys of that section; one that ends with a question mark is compared only among the
            definitions that have it.
        shares: prefixes of the names of values in [0, 1], which are printed in percent (for a dotted name, of its last
            part).
    """

    answers: bool = False
    needs_reference: bool = True
    agree: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    shares: tuple[str, ...] = ()


@runtime_checkable
class StatesTerms(Protocol):
    """A metric that states its terms; one that does not has the defaults of ``Terms``."""

    @property
    def terms(self) -> Terms: ...


@runtime_checkable
class Prepares(Protocol):
    """A metric that needs more than samples: files, packages, a device."""

    def prepare(self) -> None:
        """Raises ``KldmError`` if any of it is missing. Called before training."""
        ...


EnergyScale = Literal["own", "uncorrected", "mp2020"]
"""What the energies of a potential may be compared with: ``own``, only with others of the same potential;
``uncorrected``, with raw PBE(+U) energies in the settings of the Materials Project; ``mp2020``, with such energies
after the corrections of ``MaterialsProject2020Compatibility``."""


class Potential(Protocol):
    """The energy of atoms as a function of their positions, species and cell, with which structures are relaxed.

    Must be hashable, equal to any other that computes the same, and able to travel between processes: a frozen record
    of settings, which loads its weights in ``calculator``.
    """

    def __hash__(self) -> int: ...

    @property
    def label(self) -> str:
        """Its name for a reader, such as the file of its weights."""
        ...

    @property
    def scale(self) -> EnergyScale: ...

    @property
    def identity(self) -> Mapping[str, Json]:
        """Everything that its energies depend on (name, version, digest of the weights), but not the device.

        Raises:
            KldmError: its weights or its package are missing.
        """
        ...

    def calculator(self) -> "Calculator":
        """A new ASE calculator with energy (eV per cell), forces (eV/angstrom) and stress (eV/angstrom^3).

        Raises:
            KldmError: its weights or its package are missing.
        """
        ...


@runtime_checkable
class StatesCutoff(Protocol):
    """A potential that states how far its atoms see each other."""

    @property
    def cutoff(self) -> float:
        """Angstrom. An atom without another one that near has an energy, but not that of a crystal."""
        ...
