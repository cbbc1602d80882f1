"""Recipes as text, with sections of JSON values: reads them into trees and writes them.

    [recipe]
    extends = "base.cfg"

    [model.lattice]
    @processes = "vp_euclidean.v1"
    beta_max = ${schedule.beta_max}

confection parses and interpolates them. ``$$`` stands for a plain dollar sign.
"""

import configparser
import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from confection import Config, ConfigValidationError

from kldm.errors import KldmError, nearest
from kldm.interfaces import Json
from kldm.recipe.building import Tree
from kldm.runtime.files import atomic_write
from kldm.runtime.opening import in_place_of

# Stands for a literal dollar sign on the way through confection, which has no escape inside JSON lists and loses its
# own escapes when it interpolates twice. No recipe holds this text.
_DOLLAR = f"\ufdd0{uuid.uuid4().hex}"
_REFERENCE = re.compile(r"\$\{[\w.:]+\}")
_NAME = re.compile(r"@?\w[\w-]*")
_LONGEST = 2**20  # characters of a recipe, and of what its references stand for
_DEEPEST = 16  # sections in each other, and recipes that extend each other
_MOST = 1000  # sections of a recipe
_RESERVED = {"recipe", "DEFAULT"}


def read_recipe(path: Path | str, overrides: Mapping[str, Json] = {}) -> Tree:
    """The sections of a recipe, merged with those that it extends, then overridden, then interpolated.

    Args:
        path: the recipe; ``extends`` in its section ``[recipe]`` names the recipes that it changes, relative to it.
        overrides: values by dotted key, as from ``parse_overrides``.

    Raises:
        KldmError: a file is missing or has a syntax error (with its line), recipes extend each other in a cycle, or a
            reference names nothing.
    """
    try:
        tree = _merged(_extended(Path(path), (), {}), _nested(overrides))
        if _length(tree, tree, "", {}) > _LONGEST:
            problem = f"it holds more than {_LONGEST:,} characters, with what its references stand for"
            raise KldmError(problem, place=str(path))
        return _interpolated(tree, str(path))
    except RecursionError:
        raise KldmError("is nested too deeply", place=str(path)) from None


def overridden(tree: Tree, overrides: Mapping[str, Json]) -> Tree:
    """A complete recipe with some values replaced, by dotted key."""
    return _merged(tree, _nested(overrides))


def parse_overrides(arguments: Sequence[str]) -> dict[str, Json]:
    """The values of ``--model.lattice.beta_max 20 --training.seed=3`` by dotted key; what is not JSON is a string."""
    overrides: dict[str, Json] = {}
    rest = iter(arguments)
    for argument in rest:
        key, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or "." not in key:
            raise KldmError(f"cannot read {argument!r}", remedy="write --section.key value, after RECIPE or MODEL")
        if not equals:
            text = next(rest, "--")
            if text.startswith("--"):
                raise KldmError("has no value", place=f"--{key}", remedy=f"write --{key} value")
        try:
            overrides[key] = json.loads(text)
        except ValueError:
            overrides[key] = text
    return overrides


def recipe_text(tree: Tree) -> str:
    """The text that ``read_recipe`` turns back into an equal tree; a section that is None is left out."""
    try:
        return "\n\n".join(_sections(tree, lambda value: json.dumps(value).replace("$", "$$")))
    except TypeError as error:
        raise KldmError(f"a recipe can only hold JSON values ({error})") from error


def write_recipe(tree: Tree, path: Path) -> None:
    """Write ``recipe_text(tree)`` atomically. Raises ``KldmError`` if the file cannot be written."""
    text = recipe_text(tree) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _extended(path: Path, chain: tuple[Path, ...], known: dict[Path, Tree]) -> Tree:
    """The tree of a file merged over those that it extends; references are still text. Each file is read once."""
    path = path.resolve()
    if path in chain:
        cycle = " -> ".join(member.name for member in (*chain[chain.index(path) :], path))
        raise KldmError(f"extends itself ({cycle})", place=str(path), remedy="break the cycle")
    if len(chain) > _DEEPEST:
        raise KldmError(f"more than {_DEEPEST} recipes extend each other", place=str(path))
    if path in known:
        return known[path]
    tree = _parsed(path, chain[-1] if chain else None)
    head = tree.pop("recipe", {})
    for key in head:
        if key != "extends":
            raise KldmError("unknown key", place=f"{path}: recipe.{key}", remedy="[recipe] takes 'extends' alone")
    bases = head.get("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise KldmError("wants the name of a recipe or a list of them", place=f"{path}: recipe.extends")
    merged: Tree = {}
    for base in bases:
        if not base or "\0" in base:
            raise KldmError("wants names of recipes", place=f"{path}: recipe.extends")
        merged = _merged(merged, _extended(path.parent / base, (*chain, path), known))
    known[path] = _merged(merged, tree)
    return known[path]


def _parsed(path: Path, extended_by: Path | None) -> Tree:
    try:
        if path.exists() and not path.is_file():
            raise KldmError("is not a file", place=str(path))
        with path.open(encoding="utf-8") as file:
            text = file.read(_LONGEST + 1)
        if len(text) > _LONGEST:
            raise KldmError(f"is longer than {_LONGEST:,} characters, which no recipe is", place=str(path))
    except (OSError, UnicodeDecodeError) as error:
        near = path.parent.glob("*.cfg") if path.parent.is_dir() else ()
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        problem = f"cannot read the recipe ({reason})" + (f", which {extended_by.name} extends" if extended_by else "")
        raise KldmError(problem, place=str(path), remedy=nearest(path.name, (file.name for file in near))) from error
    headers = [line for line in text.split("\n") if line.startswith("[")]
    if len(headers) > _MOST or any(line.count(".") > _DEEPEST for line in headers):
        raise KldmError(f"has more than {_MOST} sections, or more than {_DEEPEST} in each other", place=str(path))
    if other := in_place_of(text[:100]):
        raise KldmError(f"is {other[0]}, not a recipe", place=str(path), remedy=other[1])
    lines = _parents_first(text.replace("$$", _DOLLAR))
    try:
        return dict(Config().from_str("\n".join(line for _, line in lines), interpolate=False))
    except (configparser.Error, ConfigValidationError) as error:
        raise _syntax_error(error, str(path), lines) from error


def _parents_first(text: str) -> list[tuple[int, str]]:
    """The lines of a recipe with their numbers; every section follows its parents, as confection requires."""
    blocks: list[tuple[str, list[tuple[int, str]]]] = [("", [])]
    for number, line in enumerate(text.split("\n"), start=1):
        if header := re.match(r"\[(.+)\]", line):
            blocks.append((header[1], []))
        blocks[-1][1].append((number, line))
    names = {name for name, _ in blocks}
    parents = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 1)}
    blocks += [(name, [(0, f"[{name}]")]) for name in sorted(parents - names)]
    blocks.sort(key=lambda block: block[0].count(".") + bool(block[0]))
    return [line for _, block in blocks for line in block]


def _syntax_error(error: Exception, path: str, lines: Sequence[tuple[int, str]]) -> KldmError:
    """An error of configparser or confection in one sentence, with the line of the file if it is known."""
    cause = error.__context__ if isinstance(error.__context__, configparser.Error) else error
    if isinstance(cause, configparser.MissingSectionHeaderError):
        return KldmError(f"{cause.line.strip()!r} is not in a section", place=f"{path}:{lines[cause.lineno - 1][0]}")
    if isinstance(cause, configparser.ParsingError) and cause.errors:
        number, line = lines[cause.errors[0][0] - 1]
        problem = f"cannot read {line.strip()!r}"
        return KldmError(problem, place=f"{path}:{number}", remedy="write key = value or [section]")
    if isinstance(cause, configparser.DuplicateOptionError | configparser.DuplicateSectionError):
        place = path if cause.lineno is None else f"{path}:{lines[cause.lineno - 1][0]}"
        if isinstance(cause, configparser.DuplicateSectionError):
            return KldmError(f"[{cause.section}] is there twice", place=place)
        return KldmError(f"{cause.option!r} is given twice in [{cause.section}]", place=place)
    if isinstance(error, ConfigValidationError) and error.errors:
        first = next(iter(error.errors))
        return KldmError(str(first["msg"]), place=f"{path}: {'.'.join(map(str, first['loc']))}")
    return KldmError(" ".join(str(error).split()), place=path)


def _reference_error(error: Exception, path: str, known: Iterable[str]) -> KldmError:
    cause = error.__context__ if isinstance(error.__context__, configparser.Error) else error
    if isinstance(cause, configparser.InterpolationMissingOptionError):
        place = f"{cause.section}.{cause.option}"
        return KldmError(
            f"${{{cause.reference}}} refers to nothing", place=place, remedy=nearest(cause.reference, known)
        )
    if isinstance(cause, configparser.InterpolationDepthError):
        return KldmError("refers to itself", place=f"{cause.section}.{cause.option}")
    return KldmError(" ".join(str(error).split()), place=path)


def _merged(old: Tree, new: Mapping[str, Any]) -> Tree:
    """``new`` over ``old``, section by section; a section that names another component replaces the old one."""
    merged = dict(old)
    for key, value in new.items():
        replaced = merged.get(key)
        if isinstance(value, Mapping):
            old_section = dict(replaced) if isinstance(replaced, Mapping) else {}
            same = all(old_section.get(mark) == name for mark, name in value.items() if mark.startswith("@"))
            merged[key] = _merged(old_section if same else {}, value)
        else:
            merged[key] = value
    return merged


def _nested(overrides: Mapping[str, Json]) -> Tree:
    tree: Tree = {}
    for key, value in overrides.items():
        *sections, name = key.split(".")
        if not sections or not all((*sections, name)):
            raise KldmError("is not a key of a section", place=key, remedy="write section.key")
        for section in reversed(sections):
            name, value = section, {name: value}
        tree = _merged(tree, {name: value})
    return tree


def _sections(tree: Mapping[str, Any], text: Callable[[Any], str], place: str = "") -> Iterator[str]:
    """The text of a section, then of those in it; a dict whose keys are no plain names stays on one line."""
    inner = {key: value for key, value in tree.items() if _NAME.fullmatch(key) and _is_section(value)}
    outer = [key for key in tree if key not in inner and (place or tree[key] is not None)]
    if place:
        yield "\n".join([f"[{place}]", *(f"{key} = {text(tree[key])}" for key in outer)])
    elif outer or not _RESERVED.isdisjoint(inner):
        problem = "cannot stand at the top of a recipe, which holds sections of named values"
        raise KldmError(problem, place=next(iter([*outer, *(_RESERVED & set(inner))])), remedy="write section.key")
    for key, value in inner.items():
        yield from _sections(value, text, f"{place}.{key}" if place else key)


def _is_section(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_NAME.fullmatch(key) for key in value)


def _interpolated(tree: Tree, path: str) -> Tree:
    def text(value: Any) -> str:
        # A value that is or contains a reference is still the text of the recipe.
        written = value if isinstance(value, str) and _REFERENCE.search(value) else json.dumps(value)
        return re.sub(r"\$(?!\{[\w.:]+\})", _DOLLAR, " ".join(written.split("\n")))

    try:
        parsed = Config().from_str("\n\n".join(_sections(tree, text)))
    except (configparser.Error, ConfigValidationError) as error:
        raise _reference_error(error, path, _keys(tree)) from error
    plain: Tree = _with_dollars(dict(parsed), "", ())
    return plain


def _length(value: Any, tree: Tree, key: str, known: dict[str, int]) -> int:
    """How long the text at a dotted key becomes when its references are replaced. Cycles are told later."""
    if key in known:
        return known[key]
    known[key] = 0
    if isinstance(value, Mapping):
        length = sum(_length(item, tree, f"{key}.{name}".lstrip("."), known) for name, item in value.items())
    else:
        text = value if isinstance(value, str) else json.dumps(value)
        length = len(text)
        for reference in _REFERENCE.findall(text):
            target: Any = tree
            names = reference[2:-1].replace(":", ".").split(".")
            for name in names:
                target = target.get(name, "") if isinstance(target, Mapping) else ""
            length += _length(target, tree, ".".join(names), known)
    known[key] = length
    return length


def _keys(tree: Mapping[str, Any], place: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{place}{key}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{place}{key}.")


def _with_dollars(value: Any, place: str, above: tuple[int, ...]) -> Any:
    if id(value) in above:
        raise KldmError("refers to a section that holds it", place=place)
    if isinstance(value, str):
        return value.replace(_DOLLAR, "$")
    if isinstance(value, Mapping):
        inside = (*above, id(value))
        return {
            key.replace(_DOLLAR, "$"): _with_dollars(item, f"{place}.{key}".strip("."), inside)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_with_dollars(item, place, (*above, id(value))) for item in value]
    return value
