"""Loading a file of ``torch.save`` without running anything in it.

``torch.load(weights_only=True)`` builds tensors and plain containers and refuses every other class. The files of
CDVAE, DiffCSP and FlowMM also hold their command line and a torch-geometric batch, of which nothing is wanted here.
The classes of these are never imported: an inert stand-in takes their place, by name. NumPy arrays are taken as
bytes with a shape. Any other class or function is refused.
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
"""Names of classes that come with the samples and are not looked at."""

REMEDY = (
    "load it where you trust it and save the tensors alone: torch.save({name: data[name] for name in ('frac_coords', "
    "'num_atoms', 'atom_types', 'lengths', 'angles')}, 'samples.pt')"
)


class Inert:
    """Stands for an object of a class that is not loaded: accepts whatever the file does with it, does nothing."""

    def __new__(cls, *_: object) -> Self:
        return super().__new__(cls)

    def __call__(self, *_: object) -> Self:
        return self

    def __setstate__(self, _: object) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        return other is Inert  # a file may call what it built; torch allows that where it equals an allowed class

    def __hash__(self) -> int:
        return hash(Inert)


class Kind:
    """Stands for a NumPy dtype."""

    def __init__(self, code: object, *_: object) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])


class Array:
    """Stands for a NumPy array, of which the file gives shape, kind and bytes."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def tensor(self) -> Tensor:
        """The numbers. Raises ``ValueError`` where they are none."""
        if len(self.state) != 5:
            raise ValueError("an array holds no plain numbers")
        _, shape, kind, by_columns, raw = self.state
        if not isinstance(kind, Kind) or not re.fullmatch(r"[fiu][1248]", kind.code) or not isinstance(raw, bytes):
            raise ValueError("an array holds no plain numbers")
        order = kind.order if kind.order in ("<", ">") else "="
        values = np.frombuffer(raw, np.dtype(order + kind.code))
        values = values.reshape(shape, order="F" if by_columns else "C")
        with np.errstate(invalid="ignore"):  # a NaN of single precision stays one
            return torch.from_numpy(values.astype("f8" if kind.code.startswith("f") else "i8"))


_NUMPY = {
    "numpy.ndarray": Array,
    "numpy.core.multiarray._reconstruct": Array,
    "numpy._core.multiarray._reconstruct": Array,
    "numpy.dtype": Kind,
}


def load(path: Path) -> Any:
    """What the file holds, on the CPU: tensors, ``Array``, containers and, for all else, ``Inert``.

    Raises:
        KldmError: it is no such file, or holds a class or function that is neither data nor known to be unwanted.
    """
    allowed: list[Any] = []
    try:
        if zipfile.is_zipfile(path):
            for name in sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)):
                if name not in _NUMPY and not UNWANTED.match(name):
                    raise _refused(path, name)
                allowed.append((_NUMPY.get(name, Inert), name))
        else:  # torch before 1.6 wrote another format, whose contents cannot be listed beforehand
            allowed = [(Inert, "argparse.Namespace"), *((stand_in, name) for name, stand_in in _NUMPY.items())]
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd pickle protocols; what cannot be read raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except (KldmError, OSError):
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+) was not an allowed global|blocklisted global (\S+)", str(error))
        if found:
            raise _refused(path, found[1] or found[2]) from None
        raise _broken(path) from error
    except Exception as error:  # a damaged file makes the reader raise all sorts
        raise _broken(path) from error


def _refused(path: Path, name: str) -> KldmError:
    return KldmError(f"it holds {name}, which is not loaded, as that might run code", place=str(path), remedy=REMEDY)


def _broken(path: Path) -> KldmError:
    remedy = "write or get it again"
    return KldmError("not a file of torch.save, or a damaged one", place=str(path), remedy=remedy)
