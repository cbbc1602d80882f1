"""Binds a run folder to its recipe."""

import math
from pathlib import Path
from typing import Any

from kldm.errors import KldmError
from kldm.recipe import Tree, read_recipe, write_recipe
from kldm.runs.experiment import assemble
from kldm.runtime.locking import LOCK, check_place, is_temporary
from kldm.training import RESUMED_WITH
from kldm.training import checkpoint as checkpoints

# Sections that may differ when a run folder is used again: they change what is done with the model, not the model. Only
# the score of validation must stay, because it has chosen the best checkpoint.
_FREE = ("sampler", "evaluation", "execution", "metrics", "validation")


PARTS = ("checkpoints", "samples/*")
"""The subfolders in which a run writes."""


def claim(folder: Path, tree: Tree) -> None:
    """Reserve a folder that ``check_free`` has accepted for a complete recipe, or check that it holds a run of it.

    Raises:
        KldmError: the folder, or a checkpoint in it, is of another recipe.
    """
    path = folder / "recipe.cfg"
    if not path.exists():
        write_recipe(tree, path)
        return
    if difference := _differing(read_recipe(path), tree):
        raise KldmError(
            f"the folder holds a run of another recipe ({difference} differs)",
            place=str(folder),
            remedy="choose another --out, or remove the folder",
        )
    for name in ("last", "best"):
        file = folder / "checkpoints" / f"{name}.safetensors"
        if not file.exists():
            continue
        record, remedy = checkpoints.load(file), "restore the run's own file, or choose another --out"
        if difference := _differing(record.recipe, tree):
            raise KldmError(f"it is of another run ({difference} differs)", place=str(file), remedy=remedy)
        if record.part("optimizer") and name == "best":
            problem = "it holds a state of training, as last.safetensors does, not the best weights"
            raise KldmError(problem, place=str(file), remedy=remedy)


def check_free(folder: Path) -> None:
    """Check that a folder holds a run, or is empty, or can be made; nothing is changed. Raises ``KldmError``."""
    check_place(folder)
    if folder.exists() and not (folder / "recipe.cfg").exists():
        left = (path for path in folder.iterdir() if path.name != LOCK and not is_temporary(path))
        if any(left):
            raise KldmError("it is neither an empty folder nor a run", place=str(folder), remedy="choose another --out")


def _differing(earlier: Tree, tree: Tree) -> str:
    """The dotted key in which a run's earlier recipe differs from one that it shall go on with; empty if in none."""
    if difference := _difference(_bound(earlier), _bound(tree)):  # perhaps only in defaults that are newer than the run
        difference = _difference(_bound(_complete(earlier)), _bound(tree))
    return difference


def _complete(tree: Tree) -> Tree:
    """The recipe of a run with the defaults of keys that are newer than the run."""
    try:
        return assemble(tree)[1]
    except KldmError:  # it uses components that no longer exist, so no recipe of today equals it
        return tree


def _bound(tree: Tree) -> Tree:
    """The part of a recipe that a run folder is bound to."""
    bound = {name: value for name, value in tree.items() if name not in _FREE}
    bound["validation"] = {"score": (tree.get("validation") or {}).get("score")}
    training = {name: value for name, value in tree.get("training", {}).items() if name not in RESUMED_WITH}
    return {**bound, "training": training}


def _difference(old: Any, new: Any, place: str = "") -> str:
    """The dotted key of the first difference between two trees; empty if there is none."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if difference := _difference(old.get(key), new.get(key), f"{place}.{key}".lstrip(".")):
                return difference
        return ""
    return "" if _same(old, new) else place


def _same(old: Any, new: Any) -> bool:
    """Equal up to the last digits, in which fitted statistics may differ between machines."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new))
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=1e-9)
    return bool(old == new)
