"""Small salts, the files that hold them, and what is read back."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from pymatgen.io.cif import CifWriter

from kldm.interfaces import Candidate


def salt(a: float = 4.0, elements: tuple[str, str] = ("Na", "Cl")) -> Structure:
    return Structure(Lattice.cubic(a), list(elements), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]))


def cif(structure: Structure) -> str:
    return str(CifWriter(structure))


def edges(found: Sequence[Candidate]) -> list[float | None]:
    """The cell edge of each structure, by which the tests tell them apart."""
    return [None if c.structure is None else round(c.structure.lattice.a, 6) for c in found]


def in_zip(path: Path, files: Mapping[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path
