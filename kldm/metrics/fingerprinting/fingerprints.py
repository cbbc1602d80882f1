"""Fingerprints of structures and compositions, between which coverage measures distances."""

import hashlib
import json
import threading
import warnings
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache, partial
from importlib.metadata import version
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import numpy.typing as npt

from kldm.data.cache import folder, load_or_make
from kldm.data.formulas import reduced_counts
from kldm.errors import KldmError, reason_of
from kldm.metrics.fingerprinting.voronoi import surely_found
from kldm.metrics.structure import elements_only, structural_validity, structure_bytes
from kldm.runtime.files import atomic_write
from kldm.runtime.numbers import Float
from kldm.runtime.pool import Failure, parallel_map

if TYPE_CHECKING:
    from matminer.featurizers.composition import ElementProperty
    from matminer.featurizers.site import CrystalNNFingerprint
    from pymatgen.analysis.local_env import LocalStructOrderParams
    from pymatgen.core.composition import Composition
    from pymatgen.core.structure import Structure


STRUCTURE_WIDTH, COMPOSITION_WIDTH = 61, 132

FINGERPRINT_SECONDS = 60.0
"""Seconds per structure. An ordinary one takes less than one second; a nearly flat cell may take forever."""

_FORMAT = "kldm.fingerprints.v1"

SMALLEST_CACHED = 32
"""Smaller sets are not cached: they take seconds."""

SOUTH_POLE = frozenset(
    ("tri_bipyr", "sq_bipyr", "pent_bipyr", "hex_bipyr", "oct_max", "sq_plan_max", "hex_plan_max", "see_saw_rect")
)
"""Order parameters with a term that pymatgen adds only to the last order parameter of a joint call."""


@attrs.frozen(eq=False)
class Fingerprint:
    """Both fingerprints of a structure, or neither and the reason.

    Attributes:
        structure: [61], or None.
        composition: [132], or None.
        reason: why there is none.
    """

    structure: Float | None
    composition: Float | None
    reason: str = ""

    @property
    def exists(self) -> bool:
        return self.structure is not None and self.composition is not None


def structure_fingerprint(structure: "Structure") -> Float:
    """[61]: matminer's ``CrystalNNFingerprint.from_preset("ops")`` of every site, mean over the sites, not scaled
    (Zimmermann and Jain, RSC Adv. 10, 6063, 2020; used for coverage since Xie et al. 2022, CDVAE).

    Oxidation states are ignored: the published data sets have none.

    Raises:
        Exception: of any kind, if matminer has no fingerprint for one of the sites.
    """
    structure = elements_only(structure)
    featurizer = _site_featurizer(threading.get_ident())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two for every site: no oxidation states, covalent radii
        sites = [featurizer.featurize(structure, site) for site in range(len(structure))]
    mean: Float = np.mean(np.array(sites, dtype=np.float64), axis=0)
    return mean


def has_structure_fingerprint(structure: "Structure") -> bool:
    """Whether ``structure_fingerprint`` succeeds, at a tenth of its cost.

    Only the search for neighbours (Voronoi cells) can fail: order parameters are functions of angles between
    neighbours, clamped, that are defined if no neighbour coincides with the site or another neighbour. So this is for
    structures that ``structural_validity`` allows. A site is searched only where success is not certain
    (``voronoi.surely_found``).

    Raises:
        Exception: of any kind, if the search fails for one of the sites.
    """
    structure = elements_only(structure)
    featurizer = _site_featurizer(threading.get_ident())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        certain = surely_found(structure, featurizer.cutoff)
        return all(sure or featurizer.has_neighbours(structure, site) for site, sure in enumerate(certain))


def composition_fingerprint(composition: "Composition") -> Float:
    """[132]: matminer's ``ElementProperty.from_preset("magpie", impute_nan=False)`` (Ward et al., npj Comput. Mater. 2,
    16028, 2016), scaled as (x - mean) / std; what is NaN then (noble gases, heavy elements) becomes 0.

    Mean and std are the 132 + 132 constants that CDVAE (Xie et al. 2022) published with its code: statistics of the
    Materials Project, used by all for every data set.

    Raises:
        Exception: of any kind, if matminer does not know an element.
    """
    amounts = composition.get_el_amt_dict()
    if all(amount == int(amount) for amount in amounts.values()):
        amounts = {**reduced_counts({symbol: int(amount) for symbol, amount in amounts.items()})}
    return _composition_fingerprint(tuple(sorted((symbol, float(amount)) for symbol, amount in amounts.items())))


def fingerprint(structure: "Structure | None") -> Fingerprint:
    """Both fingerprints. It never raises: a structure without fingerprints has a reason.

    Cells that are not finite, flat or below 0.1 A^3 are refused first, because a search for neighbours would not end
    in them. Atoms may be arbitrarily close.
    """
    if structure is None or (fault := structural_validity(structure, cutoff=0.0)):
        return Fingerprint(None, None, "no structure" if structure is None else fault)
    try:
        composition = composition_fingerprint(structure.composition)
        sites = structure_fingerprint(structure)
    except Exception as error:  # matminer and pymatgen raise all sorts; each is one structure without fingerprint
        return Fingerprint(None, None, f"no fingerprint: {reason_of(error)}")
    if not np.isfinite(sites).all():
        return Fingerprint(None, None, "no fingerprint: not finite")
    return Fingerprint(sites, composition)


def fingerprints_of(
    structures: Sequence["Structure | None"],
    *,
    workers: int = 1,
    time_limit: float | None = FINGERPRINT_SECONDS,
    description: str = "fingerprints",
) -> tuple[Fingerprint, ...]:
    """The fingerprints of all structures, in their order; see ``parallel_map`` for the arguments."""
    results = parallel_map(fingerprint, structures, workers=workers, time_limit=time_limit, description=description)
    return tuple(
        Fingerprint(None, None, f"no fingerprint: {result.reason}") if isinstance(result, Failure) else result
        for result in results
    )


def cached_fingerprints(
    structures: Sequence["Structure | None"],
    *,
    workers: int = 1,
    time_limit: float | None = FINGERPRINT_SECONDS,
    description: str = "fingerprints",
) -> tuple[Fingerprint, ...]:
    """``fingerprints_of`` a reference set, read from the cache folder if they were computed before.

    They are read only for the same numbers to the last bit, libraries and time limit. A broken file is written anew;
    if the file cannot be written, the fingerprints are returned all the same.
    """
    make = partial(fingerprints_of, structures, workers=workers, time_limit=time_limit, description=description)
    if len(structures) < SMALLEST_CACHED:
        return make()
    path = folder() / "fingerprints" / f"{_key(structures, time_limit)}.safetensors"
    return load_or_make(path, "fingerprints", lambda path: _load(path, len(structures)), make, _save)


def fingerprint_versions() -> dict[str, str]:
    """Versions of the libraries that a fingerprint depends on; scipy computes its Voronoi cells."""
    return {name: version(name) for name in ("pymatgen", "matminer", "scipy", "numpy")}


class _SiteFeaturizer:
    """``CrystalNNFingerprint.featurize`` with joint calls for the order parameters of one coordination number.

    The angles between neighbours, most of the work, are then computed once rather than for each of up to five order
    parameters. The numbers are the same to the last bit.
    """

    def __init__(self, plain: "CrystalNNFingerprint") -> None:
        self._neighbours, self._width = plain.cnn, sum(map(len, plain.op_types.values()))
        self._parts: list[tuple[int, int, list[tuple[list[int], LocalStructOrderParams]]]] = []
        start = 0
        for number in sorted(plain.op_types):
            ops = plain.ops[number]
            assert ops[0] == "wt", "the weight of a coordination number comes before its order parameters"
            self._parts.append((number, start, _joint(ops[1:])))
            start += len(ops)

    @property
    def cutoff(self) -> float:
        """Angstrom within which neighbours are first searched for."""
        return float(self._neighbours.search_cutoff)

    def has_neighbours(self, structure: "Structure", site: int) -> bool:
        """Whether the weights of the site's coordination numbers can be computed and are finite."""
        weights = self._neighbours.get_nn_data(structure, site).cn_weights.values()
        return all(isfinite(weight) for weight in weights)

    def featurize(self, structure: "Structure", site: int) -> list[float]:
        """[61] of one site: for each coordination number its weight, then weight times order parameter."""
        neighbours = self._neighbours.get_nn_data(structure, site)
        values = [0.0] * self._width
        for number, start, calls in self._parts:
            weight = neighbours.cn_weights.get(number, 0)
            if weight == 0:
                continue
            values[start] = weight
            sites: Any = [structure[site], *(neighbour["site"] for neighbour in neighbours.cn_nninfo[number])]
            for indices, joint in calls:
                answers = joint.get_order_parameters(sites, 0, indices_neighs=list(range(1, len(sites))))
                for index, answer in zip(indices, answers, strict=True):
                    values[start + 1 + index] = weight * (answer or 0)  # None: too few neighbours
        return values


def _joint(ops: Sequence["LocalStructOrderParams"]) -> "list[tuple[list[int], LocalStructOrderParams]]":
    """The fewest joint calls that equal separate ones: each has at most one of ``SOUTH_POLE``, as its last."""
    from pymatgen.analysis.local_env import LocalStructOrderParams

    types: list[str] = [op.get_type(0) for op in ops]  # type: ignore[no-untyped-call]
    parameters: list[Any] = [op.get_parameters(0) for op in ops]
    alone = [index for index, name in enumerate(types) if name in SOUTH_POLE]
    shared = [index for index in range(len(ops)) if index not in alone]
    calls = [indices for indices in (shared + alone[:1], *([index] for index in alone[1:])) if indices]
    return [(c, LocalStructOrderParams([types[p] for p in c], [parameters[p] for p in c])) for c in calls]


@cache
def _site_featurizer(thread: int) -> _SiteFeaturizer:
    """One per thread, because order parameters store intermediate values in themselves."""
    from matminer.featurizers.site import CrystalNNFingerprint

    return _SiteFeaturizer(CrystalNNFingerprint.from_preset("ops"))


@cache
def _magpie() -> "ElementProperty":
    from matminer.featurizers.composition import ElementProperty

    return ElementProperty.from_preset("magpie", impute_nan=False)


@cache
def _scaler() -> tuple[Float, Float]:
    constants = json.loads((files("kldm.metrics.fingerprinting") / "magpie_scaler.json").read_text(encoding="utf-8"))
    return np.array(constants["means"]), np.array(constants["stds"])


@lru_cache(maxsize=100_000)
def _composition_fingerprint(amounts: tuple[tuple[str, float], ...]) -> Float:
    """The amounts come sorted and without a common divisor, so that neither matters."""
    from pymatgen.core.composition import Composition

    means, stds = _scaler()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NaN among the properties
        raw = np.array(_magpie().featurize(Composition(dict(amounts))), dtype=np.float64)
    scaled: Float = np.where(np.isnan(raw), 0.0, (raw - means) / stds)
    scaled.setflags(write=False)  # the cache returns the same array to every caller
    return scaled


def _key(structures: Sequence["Structure | None"], time_limit: float | None) -> str:
    digest = hashlib.sha256(json.dumps([_FORMAT, fingerprint_versions(), time_limit]).encode())
    for structure in structures:
        digest.update(b"\nnone\n" if structure is None else structure_bytes(structure))
    return digest.hexdigest()


def _save(path: Path, fingerprints: Sequence[Fingerprint]) -> None:
    from safetensors.numpy import save

    count = len(fingerprints)
    structure, composition = np.zeros((count, STRUCTURE_WIDTH)), np.zeros((count, COMPOSITION_WIDTH))
    for row, fingerprint in enumerate(fingerprints):
        if fingerprint.structure is not None and fingerprint.composition is not None:
            structure[row], composition[row] = fingerprint.structure, fingerprint.composition
    present = np.array([fingerprint.exists for fingerprint in fingerprints], dtype=np.uint8)
    metadata = {"format": _FORMAT, "reasons": json.dumps([fingerprint.reason for fingerprint in fingerprints])}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save({"structure": structure, "composition": composition, "present": present}, metadata))


def _load(path: Path, count: int) -> tuple[Fingerprint, ...]:
    """Raises ``KldmError`` where the file is missing, damaged or of another kind."""
    from safetensors import SafetensorError, safe_open

    arrays: dict[str, npt.NDArray[Any]]
    try:
        with safe_open(path, framework="numpy") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"its format is not {_FORMAT}")
            arrays = {name: file.get_tensor(name) for name in ("structure", "composition", "present")}
        reasons = json.loads(metadata["reasons"])
        shapes = [arrays[name].shape for name in ("structure", "composition", "present")]
        if shapes != [(count, STRUCTURE_WIDTH), (count, COMPOSITION_WIDTH), (count,)] or len(reasons) != count:
            raise ValueError("its arrays have other shapes than expected")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise KldmError(f"cannot be read as fingerprints ({error})", place=str(path)) from None
    rows = zip(arrays["structure"], arrays["composition"], arrays["present"], reasons, strict=True)
    return tuple(Fingerprint(s, c) if present else Fingerprint(None, None, str(why)) for s, c, present, why in rows)
