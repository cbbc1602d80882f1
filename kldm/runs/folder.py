"""Binds a run folder to its recipe."""

import math
from pathlib import Path
from typing import Any

from kldm.errors import KldmError
from kldm.recipe import Tree, read_recipe, write_recipe
from kldm.runs.experiment import assemble

# Sections that may differ when a run folder is used again: they change what is done with the model, not the model. Only
# the score of validation must stay, because it has chosen the best checkpoint.
_FREE = ("sampler", "evaluation", "execution", "metrics", "validation")


def claim(folder: Path, tree: Tree) -> None:
    """Reserve the folder for a complete recipe. It may be new, empty, or hold a run of the same recipe.

    Raises:
        KldmError: the folder holds a run of another recipe or other files, or it cannot be created.
    """
    path = folder / "recipe.cfg"
    if path.exists():
        earlier = read_recipe(path)
        difference = _difference(_bound(earlier), _bound(tree))
        if difference:  # perhaps only in defaults that are newer than the run
            difference = _difference(_bound(_complete(earlier)), _bound(tree))
        if difference:
            raise KldmError(
                f"the folder holds a run of another recipe ({difference} differs)",
                place=str(folder),
                remedy="choose another --out, or remove the folder",
            )
        return
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise KldmError("it is neither an empty folder nor a run", place=str(folder), remedy="choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KldmError(
            f"cannot be created ({error.strerror})", place=str(folder), remedy="choose another --out"
        ) from error
    write_recipe(tree, path)


def _complete(tree: Tree) -> Tree:
    """The recipe of a run with the defaults of keys that are newer than the run."""
    try:
        return assemble(tree)[1]
    except KldmError:  # it uses components that no longer exist, so no recipe of today equals it
        return tree


def _bound(tree: Tree) -> Tree:
    """The part of a recipe that a run folder is bound to. Training may be prolonged, and its batches cut otherwise."""
    bound = {name: value for name, value in tree.items() if name not in _FREE}
    bound["validation"] = {"score": (tree.get("validation") or {}).get("score")}
    free = ("epochs", "minutes", "max_pairs")
    training = {name: value for name, value in tree.get("training", {}).items() if name not in free}
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
