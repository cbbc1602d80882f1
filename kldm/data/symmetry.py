"""The symmetry operations of a CIF: those that it lists, or those of the one setting of a space group that it names."""

import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import attrs
import numpy as np

from kldm.data.structures import StructureError
from kldm.runtime.numbers import Float

LISTED = ("_symmetry_equiv_pos_as_xyz", "_space_group_symop_operation_xyz")
NUMBERS = ("_space_group_it_number", "_symmetry_int_tables_number")
HALL = ("_space_group_name_hall", "_symmetry_space_group_name_hall")
NAMES = (
    "_symmetry_space_group_name_h-m",
    "_space_group_name_h-m_alt",
    "_space_group_name_h-m",
    "_space_group_name_h-m_ref",
    "_space_group_name_h-m_full",
)
"""Names of data items in lower case, with dots written as underscores."""

MISFIT = 0.1
"""The largest change of a scalar product of cell vectors under an operation, as a part of the longest edge squared."""

E_GLIDES = {"aem2": "abm2", "aea2": "aba2"}
"""The older symbols of two groups, which the tables have by the newer ones alone."""

FRACTIONS = 24
"""Translations of space groups are multiples of a 24th; those that are written with three digits are rounded to it."""

_LAST_SETTING = 530


@attrs.frozen
class Operations:
    """Symmetry operations x -> Rx + t on fractional coordinates.

    Attributes:
        rotations: [m, 3, 3].
        translations: [m, 3].
    """

    rotations: Float
    translations: Float

    def __len__(self) -> int:
        return len(self.rotations)

    def fit(self, matrix: Float) -> bool:
        """Whether they keep the lengths and angles of a cell (vectors as rows, [3, 3]), about."""
        metric = matrix @ matrix.T
        kept = np.einsum("mji,jk,mkl->mil", self.rotations, metric, self.rotations)
        return bool(np.abs(kept - metric).max() <= MISFIT * metric.diagonal().max())


IDENTITY = Operations(np.eye(3)[None], np.zeros((1, 3)))


@attrs.frozen
class _Setting:
    """One of the 530 settings of the 230 space groups. ``choice`` is that of the axes, the cell or the origin."""

    hall_number: int
    number: int
    hall: str
    names: frozenset[str]
    choice: str


def operations(items: Mapping[str, str | list[str]], matrix: Float) -> tuple[Operations, bool]:
    """The operations of a data block, and whether they are all those of the space group that it names.

    A block that neither lists operations nor names a space group has the identity alone.

    Args:
        items: the data items, by name as in ``NAMES``.
        matrix: [3, 3], the cell vectors as rows.

    Raises:
        StructureError: the operations cannot be read, do not fit the cell, or are not listed although the space group
            that is named is unknown or has several settings; the message is the reason alone.
    """
    settings, named, known = _named(items)
    listed = next((items[key] for name in LISTED for key in (name, name + "_") if items.get(key)), None)
    if listed is None:
        if any("_magn_" in key or "_magn." in key for key in items):
            raise StructureError("it lists magnetic symmetry operations alone")
        return (_of_setting(settings if known else (), named, matrix) if named else IDENTITY), True
    found = _parsed((listed,) if isinstance(listed, str) else tuple(listed))
    if not found.fit(matrix):
        raise StructureError("its symmetry operations do not fit its cell")
    return found, not settings or any(_complete(found, setting) for setting in settings)


def _of_setting(settings: Sequence[_Setting], named: str, matrix: Float) -> Operations:
    """The operations of the only setting that fits the cell."""
    if not settings:
        raise StructureError(f"it lists no symmetry operations, and the space group {named[:30]!r} is not known")
    fitting = [found for setting in settings if (found := _tabulated(setting.hall_number)).fit(matrix)]
    if not fitting:
        raise StructureError("its space group does not fit its cell")
    if len(fitting) > 1:
        problem = f"it lists no symmetry operations, and the space group {named[:30]!r} has several settings"
        raise StructureError(f"{problem} (origins or axes)")
    return fitting[0]


def _complete(found: Operations, setting: _Setting) -> bool:
    """Whether as many rotations, and as many centrings of the cell, are listed as the setting has."""
    wanted = _tabulated(setting.hall_number)
    centrings = [_pure_translations(each) for each in (wanted, found)]
    return _rotations(wanted) == _rotations(found) and centrings[1] >= centrings[0]


def _rotations(found: Operations) -> int:
    return len(np.unique(found.rotations.reshape(-1, 9), axis=0))


def _pure_translations(found: Operations) -> int:
    return int((found.rotations == np.eye(3)).all((1, 2)).sum())


_OPERATION = re.compile(r"[xyz\d+\-/. ]+(?:,[xyz\d+\-/. ]+){2}", re.IGNORECASE | re.ASCII)


@lru_cache(256)
def _parsed(texts: tuple[str, ...]) -> Operations:
    from pymatgen.core.operations import SymmOp

    rotations, translations = [], []
    for text in texts:
        try:
            found = SymmOp.from_xyz_str(text)
        except (ValueError, IndexError, ZeroDivisionError):
            raise StructureError(f"the symmetry operation {text[:30]!r} cannot be read") from None
        if not _OPERATION.fullmatch(text) or not np.isclose(abs(np.linalg.det(found.rotation_matrix)), 1):
            raise StructureError(f"the symmetry operation {text[:30]!r} cannot be read")
        rotations.append(found.rotation_matrix)
        exact = np.round(found.translation_vector * FRACTIONS) / FRACTIONS
        near = np.abs(exact - found.translation_vector) < 2e-3
        translations.append(np.where(near, exact, found.translation_vector))
    return Operations(np.array(rotations), np.array(translations))


def _named(items: Mapping[str, str | list[str]]) -> tuple[list[_Setting], str, bool]:
    """The settings that a block means by the Hall symbol, the names and the number that it gives; one of these; and
    whether a symbol is known. A number alone means a setting only if no symbol is given.

    Raises:
        StructureError: they contradict each other.
    """
    hall, names, numbers = ([text for key in keys if (text := _given(items, key))] for keys in (HALL, NAMES, NUMBERS))
    symbols = [group for group in [*map(_of_hall, hall), *map(_called, names)] if group]
    numbered = [[s for s in _settings() if str(s.number) == text and s.choice in _STANDARD] for text in numbers]
    meant = [*symbols, *(group for group in numbered if group)]
    if meant and not set.intersection(*({setting.number for setting in group} for group in meant)):
        raise StructureError("the symbols and numbers that it gives for its space group contradict each other")
    named = next(iter([*names, *hall, *numbers]), "")
    return (meant[0] if meant else []), named, bool(symbols) or not (hall or names)


def _given(items: Mapping[str, str | list[str]], key: str) -> str:
    value = next((items[name] for name in (key, key + "_") if items.get(name)), "")
    text = (value if isinstance(value, str) else " ".join(value)).strip()
    return "" if text in ("?", ".") else text


_STANDARD = ("", "b", "b1", "1", "2", "H", "R")
"""Choices among which a number, without a name, is meant: the unique axis b, both origins, both axes."""

_SUFFIX = re.compile(r"(.+?):?([12HRSZ])", re.IGNORECASE)


def _of_hall(symbol: str) -> list[_Setting]:
    """The settings of a Hall symbol. Without its spaces, it may be that of two."""
    words = symbol.replace("_", " ").lower().split()
    exact = [setting for setting in _settings() if setting.hall.lower().split() == words]
    return exact or [setting for setting in _settings() if _compact(setting.hall) == _compact(symbol)]


def _called(name: str) -> list[_Setting]:
    """The settings that a Hermann-Mauguin symbol means; none if it is unknown.

    A suffix tells the setting: 1 and 2, or S and Z, are the two origins; H and R the axes.
    """
    wanted = _compact(name)
    if found := [setting for setting in _settings() if wanted in setting.names]:
        unique_b = [setting for setting in found if setting.choice.lstrip("-").startswith("b")]
        monoclinic = 3 <= found[0].number <= 15
        return unique_b if monoclinic and unique_b else found
    if match := _SUFFIX.fullmatch(wanted):
        choice = {"s": "1", "z": "2"}.get(match[2], match[2].upper())
        return [setting for setting in _settings() if match[1] in setting.names and setting.choice.startswith(choice)]
    return []


@cache
def _settings() -> tuple[_Setting, ...]:
    import spglib

    settings: list[_Setting] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another way to handle errors, which do not occur here
        for hall_number in range(1, _LAST_SETTING + 1):
            kind: Any = spglib.get_spacegroup_type(hall_number)
            symbols = [part.strip() for part in kind.international.split("=")]
            names = {kind.international_full, symbols[-1]}
            if len(symbols) == 1 or kind.choice in _STANDARD:
                names |= {kind.international_short, symbols[0]}
            if 3 <= kind.number <= 15:  # P 1 21/c 1 is P 21/c
                names |= {" ".join(word for word in name.split() if word != "1") for name in names}
            if kind.number >= 195:  # F m -3 m was F m 3 m
                names |= {name.replace("-3", "3") for name in names}
            compact = set(map(_compact, names))
            compact |= {E_GLIDES[name] for name in compact & E_GLIDES.keys()}
            settings.append(_Setting(hall_number, kind.number, kind.hall_symbol, frozenset(compact), kind.choice))
    return tuple(settings)


@cache
def _tabulated(hall_number: int) -> Operations:
    import spglib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: Any = spglib.get_symmetry_from_database(hall_number)
    return Operations(
        np.asarray(found["rotations"], dtype=np.float64), np.asarray(found["translations"], dtype=np.float64)
    )


def _compact(name: str) -> str:
    return re.sub(r"[\s_]", "", name).lower()
