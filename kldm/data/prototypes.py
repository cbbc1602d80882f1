"""``aflow_prototypes``: a few hundred real structures that pymatgen ships (M. J. Mehl et al., Comput. Mater. Sci. 136,
S1, 2017), a data set without download."""

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

from kldm.data.parsing import Parsed, collect, reduced_or_reason
from kldm.data.structures import structure_of
from kldm.errors import KldmError
from kldm.runtime.opening import open_text

NAME = "aflow_prototypes"

MAX_ATOMS = 20
"""Prototypes with more atoms are left out by default: 250 of 288 remain."""

PLACES = ("prototypes/aflow_prototypes.json.gz", "aflow_prototypes.json.gz", "aflow_prototypes.json")
"""Paths of the file within ``pymatgen/analysis``, in several releases of pymatgen."""


def prototypes_file() -> Path:
    """The file within the installed pymatgen, which is not imported. Raises ``KldmError`` if there is none."""
    try:
        spec = importlib.util.find_spec("pymatgen.analysis")
    except ModuleNotFoundError:
        spec = None
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    for folder in folders:
        for place in PLACES:
            if (folder / place).is_file():
                return folder / place
    raise KldmError(f"the installed pymatgen does not hold the data set {NAME!r}", remedy="pip install -U pymatgen")


def read_prototypes(path: Path) -> Parsed:
    """All prototypes of the file, Niggli-reduced. An id is the mineral's and the AFLOW name, made unique by a number.

    Raises:
        KldmError: the file is damaged.
    """
    try:
        with open_text(path, errors="strict") as file:
            entries: list[dict[str, Any]] = json.load(file)
        ids = _unique([_name(entry["tags"]) for entry in entries])
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise KldmError(f"cannot be read ({error})", place=str(path), remedy="reinstall pymatgen") from None
    results = [reduced_or_reason(lambda entry: structure_of(entry["snl"]), entry) for entry in entries]
    return collect(results, ids, str(path))


def _name(tags: dict[str, str]) -> str:
    return "-".join(word for word in (tags.get("mineral"), tags.get("aflow")) if word).replace(" ", "_")


def _unique(names: list[str]) -> list[str]:
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return result
