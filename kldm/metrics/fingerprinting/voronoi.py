"""At which sites CrystalNN's search for neighbours is certain to succeed, found at a fraction of its cost.

``CrystalNN.get_nn_data`` (pymatgen.core.local_env) takes the Voronoi cell of the site among all atoms within a cutoff,
weighs its faces, and turns the weights into those of coordination numbers. This is all that can go wrong there:

1. ``scipy.spatial.Voronoi`` raises (too few points, all on a plane, facets that Qhull cannot merge), or the cell has
   a vertex at infinity. Both are ``RuntimeError``, and the cutoff is doubled until it exceeds the cell's diagonals;
   only the last one is raised.
2. The site has no face, as when another atom sits on it; or none with a solid angle above 0.
3. A face without area or a neighbour at no distance give infinite weights or NaN.
4. An element has no radius (covalent, else atomic), a site more than one species, or a species no oxidation state.

If 1, 2 and 4 are excluded, the rest follows. A face of three or more finite vertices has a solid angle above 0:
each of its triangles adds an arctangent moved to (0, pi]. The neighbour is at a distance above 0, so that only the area
can vanish. Then the weight is infinite and, divided by the largest weight, NaN, and every finite weight 0; of NaN and
zeros none is kept, and coordination number 0 has weight 1. Else all weights are finite, in [0, 1] after that
division and the distance factor, rounded to three digits and sorted: the semicircle is integrated between distinct
bounds of which only the upper one may be 1, where the integral has a case of its own. Electronegativities that are
missing are NaN, and skipped.
"""

import warnings
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, cast

import numpy as np

from kldm.runtime.numbers import Float

if TYPE_CHECKING:
    from pymatgen.core.lattice import Lattice
    from pymatgen.core.periodic_table import Element
    from pymatgen.core.structure import Structure


APART = 0.3
"""Angstrom; nothing is claimed of a site with a nearer neighbour, its own images included."""

FARTHEST = 100.0
"""Angstrom from a site to the vertices of its Voronoi cell; one that is farther may be at infinity, up to rounding."""

OPTIONS = "Qbb Qc Qz"
"""The Qhull options that ``scipy.spatial.Voronoi`` uses in three dimensions."""


def surely_found(structure: "Structure", cutoff: float) -> Iterator[bool]:
    """For each site, in order: True if ``CrystalNN.get_nn_data`` surely has finite weights; False if that is not known.

    Qhull gets the points of the first search, in its order and with its options: the Voronoi diagram is the dual of the
    Delaunay triangulation, and both read the same hull. ``Delaunay`` cuts the facets that were merged into simplices
    afterwards. If that succeeds, so does ``Voronoi``, and the cell of the site is bounded if no simplex at the site has
    a face on the hull's boundary. This saves the neighbours as objects and the lists of their faces. Larger cutoffs are
    not tried.

    Args:
        structure: any structure.
        cutoff: angstrom, the ``search_cutoff`` of the ``CrystalNN``.
    """
    if not _ordinary(structure):
        yield from (False for _ in structure)
        return
    sites = structure.frac_coords
    for site in structure:
        yield _bounded(structure.lattice, sites, site.coords, cutoff)


def _ordinary(structure: "Structure") -> bool:
    """Whether each site has one element of known radius, without oxidation state."""
    from pymatgen.core.periodic_table import Element

    return all(site.is_ordered and type(site.specie) is Element and _known(site.specie) for site in structure)


@cache
def _known(element: "Element") -> bool:
    """Whether it has a covalent radius and an electronegativity, which may be NaN."""
    from pymatgen.core.molecule_structure_comparator import CovalentRadius

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no electronegativity
        return element.symbol in CovalentRadius.radius and isinstance(element.X, int | float)


def _bounded(lattice: "Lattice", sites: Float, center: Float, cutoff: float) -> bool:
    """Whether Qhull gives the site at ``center`` a bounded cell among the ``sites`` (fractional) within the cutoff."""
    from scipy.spatial import Delaunay, QhullError

    neighbours = cast(tuple[Float, ...], lattice.get_points_in_sphere(sites, center, cutoff, zip_results=False))
    fractional, distances = neighbours[:2]
    if len(fractional) < 5:
        return False  # a bounded cell has four neighbours
    order = np.argsort(distances, kind="stable")
    if not (distances[order[0]] < 1e-6 and distances[order[1]] > APART):
        return False
    # One by one, as a product of matrices may round differently from that of a vector and a matrix.
    points = np.array([lattice.get_cartesian_coords(point) for point in fractional[order]])
    try:
        triangulation = Delaunay(points, qhull_options=OPTIONS)
    except (QhullError, ValueError):
        return False
    is_site = triangulation.simplices == 0
    at_site = is_site.any(axis=1)
    corner = is_site[at_site]
    if not len(corner) or (triangulation.neighbors[at_site] < 0)[~corner].any():  # the face opposite the site may be
        return False
    # A simplex is a facet n . (x, s |x|^2 + t) + d = 0 of the hull of points on a paraboloid: its circumcentre is
    # -n / 2 s n_z, and a vertex of the Voronoi cell.
    normals = triangulation.equations[at_site, :4]
    centres = -normals[:, :3] / (2 * triangulation.paraboloid_scale * normals[:, 3:])
    return bool((np.linalg.norm(centres - points[0], axis=1) < FARTHEST).all())
