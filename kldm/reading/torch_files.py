"""The ``.pt`` files that CDVAE, DiffCSP and FlowMM write.

The content is a dict of five tensors, for E evaluations of B crystals with N atoms in all (the axis E may be missing):
``frac_coords`` [E, N, 3], ``atom_types`` [E, N] atomic numbers, ``num_atoms`` [E, B], ``lengths`` [E, B, 3] angstrom,
``angles`` [E, B, 3] DEGREES. Lists of tensors, one for each batch, and a list of such dicts are joined along N and B.
A list (or E lists) of crystals with ``frac_coords``, ``atom_types``, ``lengths`` and ``angles`` each is read as well.
Other keys are ignored.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor
from tqdm import tqdm

from kldm.crystals import CrystalStore
from kldm.data.convert import to_structure_or_reason
from kldm.errors import KldmError
from kldm.reading.inert import REMEDY, Array, load_inert
from kldm.reading.rows import Row

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

_CHUNK = 256
"""Crystals between two updates of the progress bar."""


@attrs.frozen(eq=False)
class _Evaluation:
    """The crystals of one evaluation: float64 [N, 3], int64 [N], int64 [B], float64 [B, 6] (angstrom and radians)."""

    fractional: Tensor
    species: Tensor
    num_atoms: Tensor
    lattice: Tensor


def read_torch(path: Path) -> Sequence[Row]:
    """The crystals of the file. Of several evaluations, crystal b of evaluation e is candidate e of target b."""
    content = load_inert(path)
    _refuse_asymmetric_units(content, path)
    try:
        evaluations = _evaluations(content)
        _check_degrees(evaluations)
    except (
        ValueError,
        TypeError,
        RuntimeError,
        OverflowError,
    ) as error:  # our messages, or torch's
        raise KldmError(str(error).splitlines()[0] or "odd contents", place=str(path), remedy=REMEDY) from error
    rows = []
    total = sum(len(evaluation.num_atoms) for evaluation in evaluations)
    with tqdm(total=total, desc=f"reading {path.name}", unit="crystal", delay=2) as bar:
        for number, evaluation in enumerate(evaluations):
            for crystal, (structure, reason) in enumerate(_structures(evaluation, bar)):
                place = f"{path}, crystal {crystal}"
                if len(evaluations) == 1:
                    rows.append(Row(place, structure, reason))
                else:
                    rows.append(Row(f"{place} of evaluation {number}", structure, reason, crystal, number))
    return rows


def _structures(evaluation: _Evaluation, bar: "tqdm[Any]") -> "list[tuple[Structure | None, str]]":
    result: list[tuple[Structure | None, str]] = []
    ends = evaluation.num_atoms.cumsum(0)
    for first in range(0, len(evaluation.num_atoms), _CHUNK):
        counts = evaluation.num_atoms[first : first + _CHUNK]
        atoms = slice(int(ends[first] - counts[0]), int(ends[first] - counts[0] + counts.sum()))
        has_atoms = counts > 0
        store = CrystalStore(
            fractional=evaluation.fractional[atoms],
            species=evaluation.species[atoms],
            lattice=evaluation.lattice[first : first + _CHUNK][has_atoms],
            sizes=tuple(counts[has_atoms].tolist()),
            ids=(),
        )
        built = iter(to_structure_or_reason(store))
        result += [next(built) if count else (None, "there are no atoms") for count in counts.tolist()]
        bar.update(len(counts))
    return result


def _evaluations(content: Any) -> list[_Evaluation]:
    """The evaluations of a file. Raises ``ValueError`` with a message for the user."""
    if isinstance(content, Mapping):
        return _of_batch(content) if "num_atoms" in content else [_of_crystals([content])]
    if not isinstance(content, list) or not content:
        raise ValueError("it holds no crystals (wants a dict with frac_coords, num_atoms, atom_types, lengths, angles)")
    if all(isinstance(item, list) for item in content):
        return [_of_crystals(crystals) for crystals in content]
    if not all(isinstance(item, Mapping) for item in content):
        raise ValueError("it holds a list of something else than crystals")
    if not any("num_atoms" in item for item in content):
        return [_of_crystals(content)]
    batches = [_of_batch(batch) for batch in content]
    if len({len(batch) for batch in batches}) > 1:
        raise ValueError("its batches have different numbers of evaluations")
    return [_joined(parts) for parts in zip(*batches, strict=True)]


def _check_degrees(evaluations: Sequence[_Evaluation]) -> None:
    """No cell has three angles below 3.15 degrees: if all cells have, the angles were written in radians."""
    degrees = torch.rad2deg(torch.cat([evaluation.lattice[:, 3:] for evaluation in evaluations]))
    if len(degrees) and bool(((degrees > 0) & (degrees <= torch.pi)).all()):
        raise ValueError("all angles lie below 3.15, as if they were radians; they must be degrees")


def _of_batch(content: Mapping[Any, Any]) -> list[_Evaluation]:
    fractional, species = _field(content, "frac_coords", 2), _field(content, "atom_types", 1)
    num_atoms, lattice = _field(content, "num_atoms", 1), _lattice(content, 1)
    if fractional.dim() == 2:
        fractional, species, num_atoms, lattice = (
            field.unsqueeze(0) for field in (fractional, species, num_atoms, lattice)
        )
    if fractional.dim() != 3 or species.dim() != 2 or num_atoms.dim() != 2 or lattice.dim() != 3:
        shapes = (
            f"frac_coords has {fractional.dim()}, atom_types {species.dim()}, num_atoms {num_atoms.dim()} dimensions"
        )
        raise ValueError(f"the tensors have other dimensions than CDVAE's ({shapes}, evaluations included)")
    evaluations = {len(field) for field in (fractional, species, num_atoms, lattice)}
    if len(evaluations) > 1:
        raise ValueError(f"the tensors disagree on the number of evaluations ({sorted(evaluations)})")
    species, num_atoms = _whole("atom_types", species), _whole("num_atoms", num_atoms)
    return [_checked(*fields) for fields in zip(fractional, species, num_atoms, lattice, strict=True)]


def _of_crystals(crystals: Sequence[Any]) -> _Evaluation:
    """The evaluation that dicts of one crystal each make up."""
    if not crystals or not all(isinstance(crystal, Mapping) for crystal in crystals):
        raise ValueError("it holds a list of something else than crystals")
    return _joined(
        [
            _checked(
                fractional := _field(crystal, "frac_coords", 2).reshape(-1, 3),
                _whole("atom_types", _field(crystal, "atom_types", 1)),
                torch.tensor([len(fractional)]),
                _lattice(crystal, 0).reshape(1, -1),
            )
            for crystal in crystals
        ]
    )


def _joined(parts: Sequence[_Evaluation]) -> _Evaluation:
    names = ("fractional", "species", "num_atoms", "lattice")
    return _Evaluation(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _checked(fractional: Tensor, species: Tensor, num_atoms: Tensor, lattice: Tensor) -> _Evaluation:
    atoms, crystals = int(num_atoms.sum()), len(num_atoms)
    if species.dim() != 1 or fractional.shape[1:] != (3,) or lattice.shape[1:] != (6,):
        raise ValueError("frac_coords, lengths and angles must hold three numbers for each atom or crystal")
    if bool((num_atoms < 0).any()) or not atoms == len(fractional) == len(species) or crystals != len(lattice):
        raise ValueError(
            f"num_atoms counts {atoms} atoms in {crystals} crystals, but there are {len(fractional)} coordinates, "
            f"{len(species)} atom types and {len(lattice)} cells"
        )
    return _Evaluation(fractional, species, num_atoms, lattice)


def _lattice(content: Mapping[Any, Any], axis: int) -> Tensor:
    """[..., 6], angstrom and radians."""
    lengths, angles = _field(content, "lengths", axis + 1), _field(content, "angles", axis + 1)
    return torch.cat([lengths, torch.deg2rad(angles)], -1)


def _field(content: Mapping[Any, Any], name: str, dimensions: int) -> Tensor:
    """A tensor in float64; lists of tensors are joined along their atoms or crystals.

    Args:
        content: the dict of tensors.
        name: the key of the tensor.
        dimensions: number of axes of the tensor, without that of evaluations.
    """
    if name not in content:
        raise ValueError(f"it lacks {name!r} (found: {', '.join(sorted(map(str, content))[:8])})")
    value = content[name]
    if isinstance(value, Array):
        value = value.tensor()
    elif isinstance(value, list | tuple):
        parts = [part.tensor() if isinstance(part, Array) else part for part in value]
        if parts and all(isinstance(part, Tensor) and part.dim() for part in parts):
            value = torch.cat(parts, dim=0 if parts[0].dim() == dimensions else 1)
        else:
            value = torch.tensor(value, dtype=torch.float64)
    if not isinstance(value, Tensor) or value.is_complex():
        raise ValueError(f"{name!r} holds {type(value).__name__} and no tensor")
    return value.detach().to(torch.float64)


def _whole(name: str, values: Tensor) -> Tensor:
    if name == "atom_types":  # a number that is not finite becomes no element, which fails its own crystal alone
        values = values.nan_to_num(nan=0, posinf=0, neginf=0)
    if not bool((values == values.round()).all()):
        hint = "; one-hot vectors or logits must become atomic numbers first" if name == "atom_types" else ""
        raise ValueError(f"{name!r} holds numbers that are not whole{hint}")
    return values.to(torch.int64)


def _refuse_asymmetric_units(content: Any, path: Path) -> None:
    """SymmCD writes one atom of every orbit: read as they are, these would be other crystals."""
    parts = content if isinstance(content, list | tuple) else [content]
    found = {
        key for part in parts if isinstance(part, Mapping) for key in ("site_symm", "site_symmetries") if key in part
    }
    if found:
        problem = f"it holds asymmetric units, with their symmetry under {min(found)!r}"
        raise KldmError(problem, place=str(path), remedy="expand them, and write whole cells")
