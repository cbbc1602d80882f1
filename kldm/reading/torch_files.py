"""The ``.pt`` files that CDVAE, DiffCSP and FlowMM write.

A dict of five tensors, for E evaluations of B crystals with N atoms in all (the axis E may be missing):
``frac_coords`` [E, N, 3], ``atom_types`` [E, N] atomic numbers, ``num_atoms`` [E, B], ``lengths`` [E, B, 3] angstrom,
``angles`` [E, B, 3] DEGREES. Lists of tensors, one for each batch, and a list of such dicts are joined along N and B.
A list (or E lists) of crystals with ``frac_coords``, ``atom_types``, ``lengths`` and ``angles`` each is taken as well.
Other keys are not looked at.
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
from kldm.reading.inert import REMEDY, Array, load
from kldm.reading.rows import Row

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

_CHUNK = 256
"""Crystals that are built between two moves of the progress bar."""


@attrs.frozen(eq=False)
class _Set:
    """The crystals of one evaluation: float64 [N, 3], int64 [N], int64 [B], float64 [B, 6] (angstrom and radians)."""

    fractional: Tensor
    species: Tensor
    num_atoms: Tensor
    lattice: Tensor


def read_torch(path: Path) -> Sequence[Row]:
    """The crystals of the file; with several evaluations, number e of crystal b is candidate e of target b."""
    content = load(path)
    try:
        sets = _sets(content)
        _check_degrees(sets)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:  # words of ours, or torch's on odd contents
        raise KldmError(str(error).splitlines()[0] or "odd contents", place=str(path), remedy=REMEDY) from error
    rows = []
    with tqdm(
        total=sum(len(one.num_atoms) for one in sets), desc=f"reading {path.name}", unit="crystal", delay=2
    ) as bar:
        for number, one in enumerate(sets):
            for crystal, (structure, reason) in enumerate(_built(one, bar)):
                place = f"{path}, crystal {crystal}"
                if len(sets) == 1:
                    rows.append(Row(place, structure, reason))
                else:
                    rows.append(Row(f"{place} of evaluation {number}", structure, reason, crystal, number))
    return rows


def _built(one: _Set, bar: "tqdm[Any]") -> "list[tuple[Structure | None, str]]":
    result: list[tuple[Structure | None, str]] = []
    ends = one.num_atoms.cumsum(0)
    for first in range(0, len(one.num_atoms), _CHUNK):
        counts = one.num_atoms[first : first + _CHUNK]
        atoms = slice(int(ends[first] - counts[0]), int(ends[first] - counts[0] + counts.sum()))
        filled = counts > 0
        store = CrystalStore(
            fractional=one.fractional[atoms],
            species=one.species[atoms],
            lattice=one.lattice[first : first + _CHUNK][filled],
            sizes=tuple(counts[filled].tolist()),
            ids=(),
        )
        found = iter(to_structure_or_reason(store))
        result += [next(found) if some else (None, "there are no atoms") for some in filled.tolist()]
        bar.update(len(counts))
    return result


def _sets(content: Any) -> list[_Set]:
    """One set for each evaluation. Raises ``ValueError`` in words for the user."""
    if isinstance(content, Mapping):
        return _of_batch(content) if "num_atoms" in content else [_of_crystals([content])]
    if not isinstance(content, list) or not content:
        raise ValueError("it holds no crystals (wants a dict with frac_coords, num_atoms, atom_types, lengths, angles)")
    if all(isinstance(one, list) for one in content):
        return [_of_crystals(one) for one in content]
    if not all(isinstance(one, Mapping) for one in content):
        raise ValueError("it holds a list of something else than crystals")
    if not any("num_atoms" in one for one in content):
        return [_of_crystals(content)]
    batches = [_of_batch(one) for one in content]
    if len({len(batch) for batch in batches}) > 1:
        raise ValueError("its batches have different numbers of evaluations")
    return [_joined(parts) for parts in zip(*batches, strict=True)]


def _check_degrees(sets: Sequence[_Set]) -> None:
    """No cell has three angles below 3.15 degrees: where all have, they were written in radians."""
    degrees = torch.rad2deg(torch.cat([one.lattice[:, 3:] for one in sets]))
    if len(degrees) and bool(((degrees > 0) & (degrees <= torch.pi)).all()):
        raise ValueError("all angles lie below 3.15, as if they were radians; they must be degrees")


def _of_batch(content: Mapping[Any, Any]) -> list[_Set]:
    fractional, species = _field(content, "frac_coords", 2), _field(content, "atom_types", 1)
    num_atoms, lattice = _field(content, "num_atoms", 1), _lattice(content, 1)
    if fractional.dim() == 2:
        fractional, species, num_atoms, lattice = (
            one.unsqueeze(0) for one in (fractional, species, num_atoms, lattice)
        )
    if fractional.dim() != 3 or species.dim() != 2 or num_atoms.dim() != 2 or lattice.dim() != 3:
        shapes = (
            f"frac_coords has {fractional.dim()}, atom_types {species.dim()}, num_atoms {num_atoms.dim()} dimensions"
        )
        raise ValueError(f"the tensors have other dimensions than CDVAE's ({shapes}, evaluations included)")
    evaluations = {len(one) for one in (fractional, species, num_atoms, lattice)}
    if len(evaluations) > 1:
        raise ValueError(f"the tensors disagree on the number of evaluations ({sorted(evaluations)})")
    species, num_atoms = _whole("atom_types", species), _whole("num_atoms", num_atoms)
    return [_checked(*one) for one in zip(fractional, species, num_atoms, lattice, strict=True)]


def _of_crystals(crystals: Sequence[Any]) -> _Set:
    """A set of dicts of one crystal each."""
    if not crystals or not all(isinstance(one, Mapping) for one in crystals):
        raise ValueError("it holds a list of something else than crystals")
    return _joined(
        [
            _checked(
                fractional := _field(one, "frac_coords", 2).reshape(-1, 3),
                _whole("atom_types", _field(one, "atom_types", 1)),
                torch.tensor([len(fractional)]),
                _lattice(one, 0).reshape(1, -1),
            )
            for one in crystals
        ]
    )


def _joined(parts: Sequence[_Set]) -> _Set:
    return _Set(
        torch.cat([part.fractional for part in parts]),
        torch.cat([part.species for part in parts]),
        torch.cat([part.num_atoms for part in parts]),
        torch.cat([part.lattice for part in parts]),
    )


def _checked(fractional: Tensor, species: Tensor, num_atoms: Tensor, lattice: Tensor) -> _Set:
    atoms, crystals = int(num_atoms.sum()), len(num_atoms)
    if species.dim() != 1 or fractional.shape[1:] != (3,) or lattice.shape[1:] != (6,):
        raise ValueError("frac_coords, lengths and angles must hold three numbers for each atom or crystal")
    if bool((num_atoms < 0).any()) or not atoms == len(fractional) == len(species) or crystals != len(lattice):
        raise ValueError(
            f"num_atoms counts {atoms} atoms in {crystals} crystals, but there are {len(fractional)} coordinates, "
            f"{len(species)} atom types and {len(lattice)} cells"
        )
    return _Set(fractional, species, num_atoms, lattice)


def _lattice(content: Mapping[Any, Any], axis: int) -> Tensor:
    """[..., 6], angstrom and radians."""
    lengths, angles = _field(content, "lengths", axis + 1), _field(content, "angles", axis + 1)
    return torch.cat([lengths, torch.deg2rad(angles)], -1)


def _field(content: Mapping[Any, Any], name: str, dimensions: int) -> Tensor:
    """A tensor in float64; lists of tensors are joined along their atoms or crystals.

    Args:
        dimensions: of the tensor without an axis of evaluations.
    """
    if name not in content:
        raise ValueError(f"it lacks {name!r} (found: {', '.join(sorted(map(str, content))[:8])})")
    value = content[name]
    if isinstance(value, Array):
        value = value.tensor()
    elif isinstance(value, list | tuple):
        parts = [one.tensor() if isinstance(one, Array) else one for one in value]
        if parts and all(isinstance(one, Tensor) and one.dim() for one in parts):
            value = torch.cat(parts, dim=0 if parts[0].dim() == dimensions else 1)
        else:
            value = torch.tensor(value, dtype=torch.float64)
    if not isinstance(value, Tensor) or value.is_complex():
        raise ValueError(f"{name!r} holds {type(value).__name__} and no tensor")
    return value.detach().to(torch.float64)


def _whole(name: str, values: Tensor) -> Tensor:
    if name == "atom_types":  # what is not finite is no element, which fails its own crystal alone
        values = values.nan_to_num(nan=0, posinf=0, neginf=0)
    if not bool((values == values.round()).all()):
        hint = "; one-hot vectors or logits must become atomic numbers first" if name == "atom_types" else ""
        raise ValueError(f"{name!r} holds numbers that are not whole{hint}")
    return values.to(torch.int64)
