"""Extended xyz files."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from kldm.errors import KldmError
from kldm.reading.rows import Row, failure_reason, is_selected, labels, open_text

if TYPE_CHECKING:
    from ase import Atoms


def read_frames(path: Path) -> Sequence[Row]:
    """Every frame of an extended xyz file."""
    from ase.io import iread

    with open_text(path) as file:
        text = file.read()
    if not text.strip():
        return []
    try:
        atoms = iread(io.StringIO(text), index=":", format="extxyz")
        frames: list[Atoms] = list(tqdm(atoms, desc=f"reading {path.name}", unit="frame", delay=2, disable=None))
    except Exception as error:  # the reader may raise anything; the file is at fault
        detail = " ".join(str(error).split())[:200]
        raise KldmError(f"not an extended xyz file ({detail})", place=str(path)) from error
    return [_row(atoms, f"{path}, frame {position}") for position, atoms in enumerate(frames)]


def _row(atoms: "Atoms", place: str) -> Row:
    from pymatgen.core.structure import Structure

    target, candidate = labels(atoms.info, place)
    name = str(atoms.info.get("material_id", atoms.info.get("name", "")))
    try:
        structure = Structure(atoms.cell.array, atoms.numbers.tolist(), atoms.positions, coords_are_cartesian=True)
    except Exception as error:  # a flat or missing cell or an unknown element fails this candidate alone
        return Row(place, None, failure_reason(error), target, candidate, name)
    return Row(place, structure, "", target, candidate, name, selected=is_selected(atoms.info, place))
