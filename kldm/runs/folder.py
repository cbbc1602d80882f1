"""Which recipe a run folder is bound to."""

import math
from pathlib import Path
from typing import Any

from kldm.errors import KldmError
from kldm.recipe import Tree, read_recipe, write_recipe
from kldm.runs.experiment import assemble

# Keys that may differ when a run folder is used again: they change what is done with the model, not the model (but for
# the score of validation).
_FREE = ("sampler", "evaluation", "execution", "metrics", "validation")


def claim(folder: Path, tree: Tree) -> None:
    """Take the folder for a complete recipe: a new or empty one, or one that holds the same run.

    Raises:
        KldmError: it holds a run of another recipe, or something else, or cannot be made.
    """
    path = folder / "recipe.cfg"
    if path.exists():
        there = read_recipe(path)
        difference = _difference(_bound(there), _bound(tree))
        if difference:  # or it is but of defaults that are newer than the run
            difference = _difference(_bound(_complete(there)), _bound(tree))
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
            f"cannot be made ({error.strerror})", place=str(folder), remedy="choose another --out"
        ) from error
    write_recipe(tree, path)


def _complete(tree: Tree) -> Tree:
    """The recipe of a run with the defaults of keys that are newer than the run."""
    try:
        return assemble(tree)[1]
    except KldmError:  # of parts that are gone: another recipe than any that can be run now
        return tree


def _bound(tree: Tree) -> Tree:
    """The part of a recipe that a run folder is bound to; training may be prolonged, and cut into other pieces. The
    best is that of one score."""
    kept = {name: value for name, value in tree.items() if name not in _FREE}
    kept["validation"] = {"score": (tree.get("validation") or {}).get("score")}
    free = ("epochs", "minutes", "max_pairs")
    training = {name: value for name, value in tree.get("training", {}).items() if name not in free}
    return {**kept, "training": training}


def _difference(old: Any, new: Any, place: str = "") -> str:
    """The dotted key of the first difference of two trees, or nothing."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            found = _difference(old.get(key), new.get(key), f"{place}.{key}".lstrip("."))
            if found:
                return found
        return ""
    return "" if _same(old, new) else place


def _same(old: Any, new: Any) -> bool:
    """Equal but for the last digits, in which fitted statistics may differ from one machine to another."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new))
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=1e-9)
    return bool(old == new)
