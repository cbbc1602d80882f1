"""The formats of samples, by the name of the file."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs

from kldm.errors import KldmError
from kldm.interfaces import Candidate
from kldm.reading.cifs import read_cif, read_folder, read_poscar, read_table, read_tar, read_zip
from kldm.reading.frames import read_frames
from kldm.reading.records import read_json
from kldm.reading.rows import Row, SampleFile, numbered
from kldm.reading.torch_files import read_torch
from kldm.runtime.opening import refuse_irregular

READERS: Mapping[str, Callable[[Path], Sequence[Row]]] = {
    ".jsonl": read_json,
    ".json": read_json,
    ".extxyz": read_frames,
    ".xyz": read_frames,
    ".csv": read_table,
    ".cif": read_cif,
    ".vasp": read_poscar,
    ".poscar": read_poscar,
    ".zip": read_zip,
    ".tar": read_tar,
    ".tgz": read_tar,
    ".pt": read_torch,
    ".pth": read_torch,
}

PACKABLE = (".jsonl", ".json", ".extxyz", ".xyz", ".csv", ".cif", ".vasp", ".poscar", ".tar")
"""Formats that may be compressed by gzip or bzip2, with ``.gz`` or ``.bz2`` after their suffix."""


def read_samples(path: str | Path) -> tuple[Candidate, ...]:
    """The candidates of a file or folder in any format that ``read_file`` takes, without their sources."""
    return tuple(attrs.evolve(candidate, source="") for candidate in read_file(path).candidates)


def read_file(path: str | Path) -> SampleFile:
    """Read the structures of a file or folder, with the targets, names and reasons that it gives.

    - ``.jsonl``: rows ``{"target", "candidate", "structure", "reason"}``, of which only ``structure`` (pymatgen's dict
      or null) is required; a cell whose matrix is null, and NaN, are allowed;
    - ``.json``: pymatgen's dict of one structure, or a list, mapping or table of them or of records with one, in any
      layout of ``kldm.reading.layouts``;
    - ``.extxyz``, ``.xyz``: frames, with ``target`` and ``candidate`` in their info line;
    - ``.csv`` with a column ``cif`` or ``structure``, as the data sets are published (``material_id`` names the rows);
      an entry is a CIF, or pymatgen's dict as JSON or as Python prints it;
    - a folder with its subfolders, a ``.zip``, a ``.tar`` or ``.tar.gz`` of CIFs or POSCARs, in natural order;
      ``<target>_<candidate>_<anything>.cif`` gives targets if all files have such names and hold one structure;
    - one ``.cif`` (each data block with atoms is a structure), one POSCAR or ``.vasp``, or several in one file;
    - ``.pt`` of CDVAE, DiffCSP and FlowMM (``kldm.reading.torch_files``), loaded without running code in them.

    Text may be compressed by gzip or bzip2 (``.jsonl.gz``). A structure that cannot be built (a broken CIF, a cell
    without volume, an unknown element) is a failed candidate with its reason.

    Raises:
        KldmError: the file is missing, of an unknown format, empty or unreadable.
    """
    path = Path(path)
    if not path.exists():
        raise KldmError("there is no such file or folder", place=str(path))
    try:
        if not path.is_dir():
            refuse_irregular(path)
        return numbered(path, (read_folder if path.is_dir() else _reader(path))(path))
    except OSError as error:
        raise KldmError(f"cannot read the file: {error.strerror or error}", place=str(path)) from error
    except (EOFError, zlib.error) as error:
        remedy = "get or write the file again"
        raise KldmError(f"the file is cut short or damaged ({error})", place=str(path), remedy=remedy) from error


def record_of(path: Path) -> Path:
    """The file with all records in a folder of samples that kldm wrote; any other path is returned as it is."""
    return path / "samples.jsonl" if (path / "samples.jsonl").is_file() else path


def _reader(path: Path) -> Callable[[Path], Sequence[Row]]:
    name = path.name.lower()
    if name.startswith(("poscar", "contcar")):
        return read_poscar
    packed = path.suffix.lower() in (".gz", ".bz2")
    suffix = Path(name).with_suffix("").suffix if packed else path.suffix.lower()
    if suffix not in READERS or (packed and suffix not in PACKABLE):
        remedy = f"give a folder of CIFs, a POSCAR or one of {', '.join(READERS)}"
        raise KldmError(f"no samples are read from {path.suffix or 'such'} files", place=str(path), remedy=remedy)
    return READERS[suffix]
