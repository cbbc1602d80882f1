"""The ``.pt`` files that CDVAE, DiffCSP and FlowMM write.

The content is a dict of five tensors, for E evaluations of B crystals with N atoms in all (the axis E may be missing):
``frac_coords`` [E, N, 3], ``atom_types`` [E, N] atomic numbers, ``num_atoms`` [E, B], ``lengths`` [E, B, 3] angstrom,
``angles`` [E, B, 3] DEGREES. Lists of tensors, one for each batch, and a list of such dicts are joined along N and B.
A list (or E lists) of crystals with ``frac_coords``, ``atom_types``, ``lengths`` and ``angles`` each is read as well.
The row of the reference that a crystal answers is its number in ``batch_indices`` (FlowMM, [B] or [E, B]) or its
``sample_idx`` (ADiT, one for each crystal); texts under a key of ``kldm.data.published.NAMES`` are names. Dicts or
lists that answer the same rows are evaluations. Other keys are ignored.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor
from tqdm import tqdm

from kldm.crystals import CrystalStore
from kldm.data.convert import to_structure_or_reason
from kldm.data.published import NAMES
from kldm.data.structures import known_species
from kldm.errors import KldmError
from kldm.reading.inert import Array, load_inert
from kldm.reading.rows import Row, name_of

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

_LAYOUT = "give a dict of the tensors frac_coords [N, 3], atom_types [N], num_atoms [B], lengths and angles [B, 3]"

_ONE_HOT = "take the atomic numbers: of one-hot vectors or logits whose first column is hydrogen, x.argmax(-1) + 1"

_FROM_ZERO = "atom_types holds 0, so that it may count the elements from 0; atomic numbers count from 1"

_EXPANDED = 10**7
"""A tensor of more numbers than the file holds for it (one that was expanded) may have at most this many."""

_CHUNK = 256
"""Crystals between two updates of the progress bar."""


@attrs.frozen(eq=False)
class _Evaluation:
    """The crystals of one evaluation: float64 [N, 3], int64 [N], int64 [B], float64 [B, 6] (angstrom and radians), and
    the rows of the reference that they answer and their names, if the file says so."""

    fractional: Tensor
    species: Tensor
    num_atoms: Tensor
    lattice: Tensor
    rows: tuple[int, ...] | None = None
    names: tuple[str, ...] = ()


def read_torch(path: Path) -> Sequence[Row]:
    """The crystals of the file. Of several evaluations, crystal b of evaluation e is candidate e of target b."""
    content = load_inert(path)
    _refuse_asymmetric_units(content, path)
    try:
        evaluations = _evaluations(content)
        _check_degrees(evaluations)
    except KldmError as error:
        raise KldmError(error.problem, place=str(path), remedy=error.remedy) from None
    except (ValueError, TypeError, RuntimeError, OverflowError, IndexError) as error:  # torch's messages
        problem = f"odd contents ({(str(error).splitlines() or [type(error).__name__])[0]})"
        raise KldmError(problem, place=str(path), remedy=_LAYOUT) from error
    zero = any(bool((evaluation.species == 0).any()) for evaluation in evaluations)
    rows = []
    total = sum(len(evaluation.num_atoms) for evaluation in evaluations)
    with tqdm(total=total, desc=f"reading {path.name}", unit="crystal", delay=2) as bar:
        for number, evaluation in enumerate(evaluations):
            many, targets = len(evaluations) > 1, evaluation.rows
            for crystal, (structure, reason, species) in enumerate(_structures(evaluation, bar)):
                place = f"{path}, crystal {crystal}" + (f" of evaluation {number}" if many else "")
                name, note = evaluation.names[crystal] if evaluation.names else "", _FROM_ZERO if zero else ""
                row = Row(place, structure, reason, name=name, species=species, note=note)
                if targets is not None or many:
                    target = crystal if targets is None else targets[crystal]
                    row = attrs.evolve(row, target=target, candidate=number)
                rows.append(row)
    return rows


def _structures(evaluation: _Evaluation, bar: "tqdm[Any]") -> "list[tuple[Structure | None, str, tuple[int, ...]]]":
    """(structure, reason, atomic numbers where there is no structure) of each crystal."""
    result: list[tuple[Structure | None, str, tuple[int, ...]]] = []
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
        built, species = iter(to_structure_or_reason(store)), torch.split(store.species, list(store.sizes))
        numbers = iter([part.tolist() for part in species])
        for count in counts.tolist():
            structure, reason = next(built) if count else (None, "there are no atoms")
            own = next(numbers) if count else []
            result.append((structure, reason, known_species(own) if structure is None else ()))
        bar.update(len(counts))
    return result


def _evaluations(content: Any) -> list[_Evaluation]:
    """The evaluations of a file. Raises ``KldmError`` without a place."""
    if isinstance(content, Mapping) and "frac_coords" not in content:
        lists = [value for value in content.values() if _is_list_of_crystals(value)]
        content = lists[0] if len(lists) == 1 else content
    if isinstance(content, Mapping):
        if "num_atoms" not in content:
            return [_of_crystals([content])]
        indices = content.get("batch_indices")
        in_parts = isinstance(indices, list | tuple) and not any(isinstance(part, int | float) for part in indices)
        content = _taken_apart(content, len(indices)) if in_parts and indices else [content]
    if isinstance(content, tuple) or not isinstance(content, list) or not content:
        raise KldmError("it holds no crystals", remedy=_LAYOUT)
    if all(isinstance(item, list) for item in content):
        return _by_rows([_of_crystals(crystals) for crystals in content], are_evaluations=True)
    if not all(isinstance(item, Mapping) for item in content):
        raise KldmError("it holds a list of something else than crystals", remedy=_LAYOUT)
    if not any("num_atoms" in item for item in content):
        return _by_rows([_of_crystals(content)])
    batches = [_of_batch(batch) for batch in content]
    if len({len(batch) for batch in batches}) > 1:
        raise KldmError("its batches have different numbers of evaluations", remedy="save each in a file of its own")
    if len(batches) > 1 and len(batches[0]) == 1:
        return _by_rows([batch[0] for batch in batches])
    return _by_rows([_joined(parts) for parts in zip(*batches, strict=True)], are_evaluations=True)


def _is_list_of_crystals(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) and "frac_coords" in v for v in value)


def _taken_apart(content: Mapping[Any, Any], count: int) -> list[Mapping[Any, Any]]:
    """The dicts whose values a dict of lists holds, one entry for each."""
    lists = {name: value for name, value in content.items() if isinstance(value, list | tuple) and len(value) == count}
    return [{name: value[number] for name, value in lists.items()} for number in range(count)]


def _by_rows(parts: list[_Evaluation], are_evaluations: bool = False) -> list[_Evaluation]:
    """The evaluations that the parts of a file are: those that answer the same rows are several, and those that answer
    different rows are one."""
    given = [part.rows or () for part in parts]
    same = len(parts) > 1 and any(given) and all(sorted(rows) == sorted(given[0]) for rows in given)
    evaluations = parts if are_evaluations or same else [_joined(parts)]
    for evaluation in evaluations:
        rows = evaluation.rows or ()
        if len(set(rows)) < len(rows):
            raise KldmError(
                "its batch_indices or sample_idx name a row twice, so that it is not clear which crystal answers it",
                remedy="keep one of each (a DistributedSampler repeats rows to give all processes equally many)",
            )
    return evaluations


def _check_degrees(evaluations: Sequence[_Evaluation]) -> None:
    """No cell has three angles below 3.15 degrees: if all cells have, the angles were written in radians."""
    degrees = torch.rad2deg(torch.cat([evaluation.lattice[:, 3:] for evaluation in evaluations]))
    if len(degrees) and bool(((degrees > 0) & (degrees <= torch.pi)).all()):
        remedy = "convert them by torch.rad2deg"
        raise KldmError("all angles lie below 3.15, as if they were radians; they must be degrees", remedy=remedy)


def _of_batch(content: Mapping[Any, Any]) -> list[_Evaluation]:
    fractional, species = _field(content, "frac_coords", 2), _field(content, "atom_types", 1)
    num_atoms, lattice = _field(content, "num_atoms", 1), _lattice(content, 1)
    rows = _rows(content)
    if fractional.dim() == 2:
        fractional, species, num_atoms, lattice = (
            field.unsqueeze(0) for field in (fractional, species, num_atoms, lattice)
        )
    shapes = f"frac_coords has {fractional.dim()}, atom_types {species.dim()}, num_atoms {num_atoms.dim()} dimensions"
    if fractional.dim() == 3 and species.dim() == 3:
        raise KldmError("'atom_types' is no list of atomic numbers", remedy=_ONE_HOT)
    if fractional.dim() == 3 and num_atoms.dim() == 1:
        raise KldmError(
            "frac_coords has an axis that num_atoms lacks, as in a trajectory",
            remedy="keep the last step: data[name] = [x[-1] for x in data[name]] for frac_coords, atom_types, lengths "
            "and angles (x = data[name] if it is a tensor)",
        )
    if fractional.dim() != 3 or species.dim() != 2 or num_atoms.dim() != 2 or lattice.dim() != 3:
        raise KldmError(f"the tensors have other dimensions than CDVAE's ({shapes})", remedy=_LAYOUT)
    evaluations = {len(field) for field in (fractional, species, num_atoms, lattice)}
    if len(evaluations) > 1:
        problem = f"the tensors disagree on the number of evaluations ({sorted(evaluations)})"
        raise KldmError(problem, remedy="give all of them the same first axis")
    species, num_atoms = _whole("atom_types", species), _whole("num_atoms", num_atoms)
    names = _names(content, num_atoms.shape[1])
    parts = [_checked(*fields, None, names) for fields in zip(fractional, species, num_atoms, lattice, strict=True)]
    if rows is None:
        return parts
    if len(rows) not in (1, len(parts)) or any(len(own) != len(parts[0].num_atoms) for own in rows):
        problem = "batch_indices has not one number for each crystal"
        raise KldmError(problem, remedy="correct it, or remove it if the crystals are in the order of the reference")
    pairs = zip(parts, rows if len(rows) == len(parts) else rows * len(parts), strict=True)
    return [attrs.evolve(part, rows=own) for part, own in pairs]


def _rows(content: Mapping[Any, Any]) -> list[tuple[int, ...]] | None:
    """The rows of the reference that the crystals answer: one tuple, or one for each evaluation."""
    given = [key for key in ("batch_indices", "sample_idx") if content.get(key) is not None]
    value = content[given[0]] if given else None
    if value is None or isinstance(value, str) or _are_texts(value):
        return None
    value = [value] if isinstance(value, int | float) else value
    indices = _whole("batch_indices", _field({"batch_indices": value}, "batch_indices", 1))
    indices = indices.reshape(1) if indices.dim() == 0 else indices
    if indices.dim() not in (1, 2) or bool((indices < 0).any()):
        problem = "batch_indices holds no numbers of rows"
        raise KldmError(problem, remedy="correct it, or remove it if the crystals are in the order of the reference")
    return [tuple(own.tolist()) for own in (indices if indices.dim() == 2 else indices.unsqueeze(0))]


def _names(content: Mapping[Any, Any], count: int) -> tuple[str, ...]:
    """The names of the crystals of a batch; empty ones if it gives none."""
    given: list[Any] = [[value] if isinstance(value, str) else value for value in map(content.get, NAMES)]
    named = (tuple(map(str, value)) for value in given if _are_texts(value) and len(value) == count)
    return next(named, ("",) * count)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(part, str) for part in value)


def _of_crystals(crystals: Sequence[Any]) -> _Evaluation:
    """The evaluation that dicts of one crystal each make up."""
    if not crystals or not all(isinstance(crystal, Mapping) for crystal in crystals):
        raise KldmError("it holds a list of something else than crystals", remedy=_LAYOUT)
    return _joined(
        [
            _checked(
                fractional := _field(crystal, "frac_coords", 2).reshape(-1, 3),
                _whole("atom_types", _field(crystal, "atom_types", 1)),
                torch.tensor([len(fractional)]),
                _lattice(crystal, 0).reshape(1, -1),
                *_row_and_name(crystal),
            )
            for crystal in crystals
        ]
    )


def _row_and_name(crystal: Mapping[Any, Any]) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """``sample_idx`` of a crystal as the row that it answers, or as its name if it is a text."""
    given = crystal.get("sample_idx")
    name = name_of({key: value for key, value in crystal.items() if key != "sample_idx"})
    if given is None or isinstance(given, str):
        return None, (given or name,)
    try:
        value = float(given.tensor() if isinstance(given, Array) else given)
        if isinstance(given, bool) or not value.is_integer() or value < 0:
            raise ValueError
    except (TypeError, ValueError, RuntimeError, OverflowError):
        remedy = "write it as an int, or leave it out if the crystals are in the order of the reference"
        raise KldmError("a 'sample_idx' is not read as the number of a row", remedy=remedy) from None
    return (int(value),), (name,)


def _joined(parts: Sequence[_Evaluation]) -> _Evaluation:
    fields = ("fractional", "species", "num_atoms", "lattice")
    given = [part.rows for part in parts if part.rows is not None]
    if given and len(given) < len(parts):
        problem = "only some of its crystals say which rows they answer"
        raise KldmError(problem, remedy="give batch_indices or sample_idx to all of them or to none")
    rows = tuple(chain.from_iterable(given)) if given else None
    names = tuple(chain.from_iterable(part.names for part in parts))
    fractional, species, num_atoms, lattice = (torch.cat([getattr(part, name) for part in parts]) for name in fields)
    return _Evaluation(fractional, species, num_atoms, lattice, rows, names)


def _checked(
    fractional: Tensor,
    species: Tensor,
    num_atoms: Tensor,
    lattice: Tensor,
    rows: tuple[int, ...] | None = None,
    names: tuple[str, ...] = (),
) -> _Evaluation:
    atoms, crystals = int(num_atoms.sum()), len(num_atoms)
    if species.dim() != 1:
        raise KldmError("'atom_types' is no list of atomic numbers", remedy=_ONE_HOT)
    if fractional.shape[1:] != (3,) or lattice.shape[1:] != (6,):
        problem = "frac_coords, lengths and angles must hold three numbers for each atom or crystal"
        raise KldmError(problem, remedy=_LAYOUT)
    sizes_fit = not bool(((num_atoms < 0) | (num_atoms > len(fractional))).any())
    if not sizes_fit or not atoms == len(fractional) == len(species) or crystals != len(lattice):
        problem = (
            f"num_atoms counts {atoms} atoms in {crystals} crystals, but there are {len(fractional)} coordinates, "
            f"{len(species)} atom types and {len(lattice)} cells"
        )
        raise KldmError(problem, remedy="save the tensors of the same samples together")
    return _Evaluation(fractional, species, num_atoms, lattice, rows, names)


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
        found = ", ".join(sorted(map(str, content))[:8])
        matrices = name in ("lengths", "angles") and ("lattices" in content or "lattice" in content)
        remedy = "save edges (angstrom) and angles (degrees) of its lattices under these names" if matrices else _LAYOUT
        raise KldmError(f"it lacks {name!r} (found: {found})", remedy=remedy)
    value = content[name]
    if isinstance(value, Array):
        value = value.tensor()
    elif isinstance(value, list | tuple):
        parts = [part.tensor() if isinstance(part, Array) else part for part in value]
        if parts and all(isinstance(part, Tensor) and part.dim() for part in parts):
            value = torch.cat([_plain(part, name) for part in parts], dim=0 if parts[0].dim() == dimensions else 1)
        else:
            value = torch.tensor(value, dtype=torch.float64)
    return _plain(value, name).detach().to(torch.float64)


def _plain(value: Any, name: str) -> Tensor:
    """The value, if it is a tensor of real numbers which are all in the file."""
    if not isinstance(value, Tensor) or value.is_complex() or value.is_quantized or value.layout != torch.strided:
        raise KldmError(f"{name!r} holds {type(value).__name__} and no tensor of numbers", remedy=_LAYOUT)
    stored = value.untyped_storage().nbytes() // value.element_size()
    if value.device.type != "cpu" or value.numel() > max(stored, _EXPANDED):
        raise KldmError(f"{name!r} holds fewer numbers than its shape says", remedy="save tensors with .clone()")
    return value


def _whole(name: str, values: Tensor) -> Tensor:
    if name == "atom_types":  # a number that is not finite becomes no element, which fails its own crystal alone
        values = values.nan_to_num(nan=-1, posinf=-1, neginf=-1)
    if not bool((values == values.round()).all()):
        is_type = name == "atom_types"
        remedy = _ONE_HOT if is_type else "save it as it was"
        raise KldmError(f"{name!r} holds numbers that are not whole", remedy=remedy)
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
