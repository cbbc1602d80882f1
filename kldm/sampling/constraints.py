"""Constraints on samples: the allowed elements, and parts of a crystal that are known.

Both hold by construction, for all processes and samplers. The elements are enforced by a mask inside the species
process. The known parts are conditioned on (inpainting, Lugmayr et al. 2022, without its resampling): in the prior and
after every reverse step their rows of the latent are replaced by draws of the forward process at that time.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import attrs
import torch
from torch import Tensor

from kldm.crystals import Crystals, CrystalStore, Layout
from kldm.errors import KldmError
from kldm.interfaces import (
    Candidate,
    Channel,
    DiffusionProcess,
    Estimates,
    GenerativeModel,
    Latent,
    Move,
    Noised,
    Prediction,
    Restricts,
    Step,
)

_CLOSE = 1e-4  # largest deviation of a known coordinate (fractional) or cell parameter (relative) by rounding


@attrs.frozen(kw_only=True, eq=False)
class Constraints:
    """Constraints on the samples for a store of M targets. A mask that is None means that nothing is known.

    Attributes:
        elements: atomic numbers that samples may hold; None allows all.
        positions: bool [sum of atoms], the atoms that have the fractional coordinates of the targets.
        species: bool [sum of atoms], the atoms that have the types of the targets.
        cell: bool [M], the crystals that have the cell of the targets.
    """

    elements: tuple[int, ...] | None = None
    positions: Tensor | None = None
    species: Tensor | None = None
    cell: Tensor | None = None

    def check(self, processes: Mapping[str, DiffusionProcess], targets: CrystalStore) -> None:
        """Raises ``KldmError`` if a model with these processes cannot obey, or if the constraints are contradictory."""
        if self.elements is None:
            return
        species = processes["species"]
        if not isinstance(species, Restricts):
            raise KldmError(
                "the model takes its atom types from the composition, so elements cannot be chosen",
                remedy="give formulas, or take a model for de-novo generation",
            )
        species.restricted(self.elements)
        if self.species is not None:
            known = set(targets.species[self.species.to(targets.device)].tolist())
            if outside := known - set(self.elements):
                raise KldmError(
                    f"atoms of atomic number {min(outside)} are kept, but are not among the allowed elements",
                    remedy="allow them, or keep fewer atoms",
                )

    def names(self) -> tuple[str, ...]:
        """The names of the constraints that are set."""
        return tuple(name for name in ("elements", *_MODALITIES.values()) if getattr(self, name) is not None)


_MODALITIES = {"coordinates": "positions", "species": "species", "lattice": "cell"}


def constrained(
    model: GenerativeModel, constraints: Constraints, targets: CrystalStore, rows: Sequence[int]
) -> "ConstrainedModel":
    """The model that samples crystals for these rows of the targets under the constraints."""
    given = targets.batch(rows)
    processes = dict(model.processes)
    species = processes["species"]
    if constraints.elements is not None and isinstance(species, Restricts):
        processes["species"] = species.restricted(constraints.elements)
    known = _masks(constraints, targets, rows)
    for modality, name in _MODALITIES.items():
        mask = known[name]
        if mask is not None and processes[modality].predicts:
            processes[modality] = ConditionedProcess(processes[modality], given, mask)
    return ConstrainedModel(model, processes, given, known)


class ConstrainedModel:
    """A constrained model as a sampler sees it: the model with other processes, for one batch."""

    def __init__(
        self,
        model: GenerativeModel,
        processes: Mapping[str, DiffusionProcess],
        given: Crystals,
        known: Mapping[str, Tensor | None],
    ) -> None:
        self._model, self._processes, self._given, self._known = model, processes, given, known

    @property
    def processes(self) -> Mapping[str, DiffusionProcess]:
        return self._processes

    def predict(self, latents: Mapping[str, Latent], s: Tensor, layout: Layout) -> Mapping[str, Prediction]:
        return self._model.predict(latents, s, layout)

    def restored(self, sampled: Crystals) -> Crystals:
        """The sampled crystals with exactly the known values, in place of their noisy copies."""
        given, known = self._given, self._known
        return attrs.evolve(
            sampled,
            fractional=_where_known(known["positions"], given.fractional, sampled.fractional),
            species=_where_known(known["species"], given.species, sampled.species),
            lattice=_where_known(known["cell"], given.lattice, sampled.lattice),
        )


class ConditionedProcess:
    """A process with some known rows: after every move they are draws of the forward process for a known crystal.

    It has the moves of the process that it wraps, and no others.

    Args:
        process: the wrapped process.
        clean: the known crystals; rows that are not known hold any valid values.
        known: bool [N] or [B], the known rows in the channels of ``process``.
    """

    def __init__(self, process: DiffusionProcess, clean: Crystals, known: Tensor) -> None:
        self._process, self._clean, self._known = process, clean, known
        self.moves: Mapping[str, Move] = {name: self._conditioned(move) for name, move in process.moves.items()}
        if isinstance(process, Estimates):
            self.estimate = process.estimate

    @property
    def reads(self) -> tuple[Channel, ...]:
        return self._process.reads

    @property
    def predicts(self) -> tuple[Channel, ...]:
        return self._process.predicts

    def prior(self, given: Crystals, rng: torch.Generator) -> Latent:
        start = torch.ones(len(given), dtype=given.lattice.dtype, device=given.device)
        return self._replaced(self._process.prior(given, rng), start, rng)

    def noise(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> Noised:
        noised = self._process.noise(clean, s, rng)
        return attrs.evolve(noised, latent=self._replaced(noised.latent, s, rng))

    def loss(self, prediction: Prediction, noised: Noised, s: Tensor, layout: Layout) -> Tensor:
        return self._process.loss(prediction, noised, s, layout)

    def decode(self, latent: Latent, into: Crystals) -> Crystals:
        return self._process.decode(latent, into)

    def _conditioned(self, move: Move) -> Move:
        def moved(latent: Latent, prediction: Prediction, step: Step) -> Latent:
            end = step.now if move.ends == "now" else step.r
            return self._replaced(move.function(latent, prediction, step), end, step.rng)

        return attrs.evolve(move, function=moved)

    def _replaced(self, latent: Latent, s: Tensor, rng: torch.Generator) -> Latent:
        noisy = self._process.noise(self._clean, s, rng).latent
        return {**latent, **{name: _where_known(self._known, noisy[name], latent[name]) for name in noisy}}


def violations(
    candidates: Sequence[Candidate], rows: Sequence[int], targets: CrystalStore, constraints: Constraints
) -> dict[str, int]:
    """The number of structures that break each constraint, determined from the structures themselves.

    Args:
        candidates: the generated structures; a candidate without structure breaks nothing.
        rows: for each candidate the row of the targets that it answers.
        targets: the known values.
        constraints: the constraints that the candidates were generated under.
    """
    count = dict.fromkeys(constraints.names(), 0)
    store = targets.to("cpu")
    for candidate, row in zip(candidates, rows, strict=True):
        structure = candidate.structure
        if structure is None:
            continue
        given, known = store.batch([row]), _masks(constraints, store, [row])
        species = torch.tensor(structure.atomic_numbers)
        lattice = torch.tensor([*structure.lattice.abc, *structure.lattice.angles], dtype=torch.float64)
        lattice[3:] = torch.deg2rad(lattice[3:])
        offset = torch.as_tensor(structure.frac_coords) - given.fractional
        moved = (offset - offset.round()).abs().amax(-1) > _CLOSE
        deformed = (lattice / given.lattice[0] - 1).abs().amax() > _CLOSE
        broken = {
            "elements": constraints.elements is not None and not set(species.tolist()) <= set(constraints.elements),
            "positions": known["positions"] is not None and bool((moved & known["positions"]).any()),
            "species": known["species"] is not None and bool(((species != given.species) & known["species"]).any()),
            "cell": known["cell"] is not None and bool(deformed & known["cell"][0]),
        }
        for name in count:
            count[name] += broken[name]
    return count


def _masks(constraints: Constraints, targets: CrystalStore, rows: Sequence[int]) -> dict[str, Tensor | None]:
    """The masks of these rows, on the device of the targets."""
    start = list(accumulate(targets.sizes, initial=0))
    atoms = torch.cat([torch.arange(start[row], start[row + 1]) for row in rows])
    index = {"positions": atoms, "species": atoms, "cell": torch.tensor(list(rows))}
    masks = {name: getattr(constraints, name) for name in index}
    return {
        name: None if mask is None else mask.to(targets.device)[index[name].to(targets.device)]
        for name, mask in masks.items()
    }


def _where_known(known: Tensor | None, values: Tensor, otherwise: Tensor) -> Tensor:
    if known is None:
        return otherwise
    mask = known.view(-1, *[1] * (values.dim() - 1))
    return torch.where(mask, values.to(otherwise.dtype), otherwise)
