"""Loads a file of ``torch.save`` without running anything in it.

``torch.load(weights_only=True)`` builds tensors and plain containers and refuses every other class. The files of
CDVAE, DiffCSP and FlowMM also hold their command line and a torch-geometric batch, which are not needed here. Their
classes are never imported: an inert class stands in for them, by name. NumPy arrays are read as bytes with a shape.
Any other class or function is refused.
"""

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from kldm.errors import KldmError

UNWANTED = re.compile(
    r"(argparse\.Namespace$|pathlib\.|omegaconf\.|torch_geometric\.|numpy\.(_?core\.)?multiarray\.scalar$)"
)
"""Names of classes whose objects come with the samples and are ignored."""

_TENSORS = (
    "load it where you trust it, and save the tensors alone: torch.save({name: data[name] for name in ('frac_coords', "
    "'num_atoms', 'atom_types', 'lengths', 'angles')}, 'samples.pt')"
)

_STRUCTURES = "load it where you trust it, and save a .json of [structure.as_dict() for structure in structures]"


class Inert:
    """Stands for an object of a class that is not loaded. The file may do anything with it; it does nothing."""

    def __new__(cls, *_: object) -> Self:
        return super().__new__(cls)

    def __call__(self, *_: object) -> Self:
        return self

    def __setstate__(self, _: object) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        return other is Inert  # a file may call what it built; torch allows a call of what equals an allowed class

    def __hash__(self) -> int:
        return hash(Inert)


class DType:
    """Stands for a NumPy dtype."""

    def __init__(self, code: object, *_: object) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])


class Array:
    """Stands for a NumPy array, which the file describes by shape, dtype and bytes."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def tensor(self) -> Tensor:
        """The values of the array. Raises ``ValueError`` if they are no plain numbers."""
        if len(self.state) != 5:
            raise ValueError("an array holds no plain numbers")
        _, shape, dtype, by_columns, raw = self.state
        if not isinstance(dtype, DType) or not re.fullmatch(r"[fiu][1248]", dtype.code) or not isinstance(raw, bytes):
            raise ValueError("an array holds no plain numbers")
        order = dtype.order if dtype.order in ("<", ">") else "="
        values = np.frombuffer(raw, np.dtype(order + dtype.code))
        values = values.reshape(shape, order="F" if by_columns else "C")
        with np.errstate(invalid="ignore"):  # converting a NaN of single precision warns, but gives NaN
            return torch.from_numpy(values.astype("f8" if dtype.code.startswith("f") else "i8"))


_NUMPY = {
    "numpy.ndarray": Array,
    "numpy.core.multiarray._reconstruct": Array,
    "numpy._core.multiarray._reconstruct": Array,
    "numpy.dtype": DType,
}


def load_inert(path: Path) -> Any:
    """The content of the file, on the CPU: tensors, ``Array``, containers and, for all else, ``Inert``.

    Raises:
        KldmError: it is no file of ``torch.save``, or holds a class or function that is neither data nor ``UNWANTED``.
    """
    allowed: list[Any] = []
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                    raise _broken(path)  # torch.save does not compress, and what it grows to is not known
            for name in sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)):
                if name not in _NUMPY and not UNWANTED.match(name):
                    raise _refused(path, name)
                allowed.append((_NUMPY.get(name, Inert), name))
        else:  # the format of torch before 1.6, whose classes cannot be listed beforehand
            allowed = [(Inert, "argparse.Namespace"), *((stand_in, name) for name, stand_in in _NUMPY.items())]
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of odd pickle protocols; what cannot be read raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except (KldmError, OSError):
        raise
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL (\S+) was not an allowed global|blocklisted global (\S+)", str(error))
        if match:
            raise _refused(path, match[1] or match[2]) from None
        raise _broken(path) from error
    except Exception as error:  # a damaged file makes the reader raise anything
        raise _broken(path) from error


def _refused(path: Path, name: str) -> KldmError:
    remedy = _STRUCTURES if name.startswith("pymatgen.") else _TENSORS
    problem = f"it holds {name}, which is not loaded because that might run code"
    return KldmError(problem, place=str(path), remedy=remedy)


def _broken(path: Path) -> KldmError:
    remedy = "get it again, or write it by torch.save (a plain pickle is not read, because that might run code)"
    return KldmError("not a file of torch.save, or a damaged one", place=str(path), remedy=remedy)
