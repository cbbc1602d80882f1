"""Builds typed objects from a recipe's tree: the annotations of a constructor say what each key may hold.

A parameter typed with an interface of ``kldm.registry`` takes a section that names a component of its shelf. One typed
``Callable[[...], interface]`` takes the same, and becomes a function of the positional-only arguments. Every default
that is used is written into the tree that is returned, so that building from it again gives the same objects.
"""

import collections.abc
import enum
import functools
import json
import math
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from kldm.errors import KldmError, nearest
from kldm.recipe.signatures import (
    Absent,
    Parameter,
    UnwritableError,
    is_open,
    is_section,
    mark_of,
    parameters,
    positional_only,
    shelf_of,
    type_text,
    written,
)
from kldm.registry import Shelf

Tree = dict[str, Any]
"""A recipe's sections: nested dicts of JSON values."""

T = TypeVar("T")

_MAPPINGS = (dict, collections.abc.Mapping)
_SEQUENCES = (list, tuple, collections.abc.Sequence)
_SCALARS = (bool, int, float, str, type(None))


def build(tree: Tree, kind: Callable[..., T]) -> tuple[T, Tree]:
    """Build an object from the sections of a recipe.

    Args:
        tree: the sections; it is not changed.
        kind: a class, or a function that returns the object. The type hints of its parameters say what the sections
            may hold.

    Returns:
        The object, and the complete tree: with every default that JSON can hold, recursively.

    Raises:
        KldmError: a value does not fit; with its dotted key and the nearest valid one.
    """
    if shelf_of(kind):
        built, complete = _read(kind, tree, "")
        return built, complete
    keywords, complete = _arguments(kind, tree, "")
    return _call(kind, keywords, ""), complete


def _read(annotation: Any, value: Any, place: str) -> tuple[Any, Any]:
    """The object that a JSON value stands for under an annotation, and the completed value."""
    origin, members = get_origin(annotation) or annotation, get_args(annotation)
    if shelf := shelf_of(annotation):
        to_come = members[0] if origin is collections.abc.Callable else None
        return _component(shelf, to_come, value, place)
    if is_open(annotation):
        return value, value
    if origin in (Union, types.UnionType):
        return _any_of(annotation, members, value, place)
    if origin is Literal:
        if any(type(value) is type(member) and value == member for member in members):
            return value, value
        raise _wants(annotation, value, place, nearest(str(value), [str(member) for member in members]))
    if origin in _MAPPINGS:
        return _mapping(annotation, members or (str, Any), value, place)
    if origin in _SEQUENCES:
        return _sequence(annotation, origin, members or (Any, ...), value, place)
    if is_section(annotation):
        return _section(annotation, value, place)
    if isinstance(annotation, type) or annotation is None:
        return _scalar(annotation or type(None), value, place)
    raise KldmError(f"a recipe cannot hold its type {type_text(annotation)}", place=place)


def _scalar(kind: type, value: Any, place: str) -> tuple[Any, Any]:
    if issubclass(kind, enum.Enum):
        for member in kind:
            if (type(value) is type(member.value) and value == member.value) or value == member.name:
                return member, value
        raise _wants(kind, value, place, nearest(str(value), [str(written(member)) for member in kind]))
    if type(value) is int and kind in (int, float) and not -(2**63) <= value < 2**63:
        raise KldmError("must have at most 63 bits", place=place)
    if type(value) is float and not math.isfinite(value):
        raise KldmError(f"must be a finite number, got {value}", place=place)
    if kind is float and type(value) is int:
        return float(value), float(value)
    if kind in _SCALARS and type(value) is kind:
        return value, value
    if issubclass(kind, Path):
        if isinstance(value, str) and "\0" not in value:
            return kind(value), value
    elif kind not in _SCALARS:
        raise KldmError(f"a recipe cannot hold its type {type_text(kind)}", place=place)
    raise _wants(kind, value, place)


def _any_of(annotation: Any, members: Sequence[Any], value: Any, place: str) -> tuple[Any, Any]:
    """The first alternative that fits. If none does, the error at the deepest key tells best what the user meant."""
    errors = {}
    for member in sorted(members, key=lambda member: member is not type(value)):
        try:
            return _read(member, value, place)
        except KldmError as error:
            errors[member] = error
    if isinstance(value, Mapping):
        candidates = [error for member, error in errors.items() if _takes_mapping(member)]
        if candidates:
            raise max(candidates, key=lambda error: len(error.place or ""))
    remedies = [error.remedy for error in errors.values() if error.remedy]
    raise _wants(annotation, value, place, remedies[0] if remedies else None)


def _takes_mapping(annotation: Any) -> bool:
    origin = get_origin(annotation) or annotation
    return bool(shelf_of(annotation)) or is_section(annotation) or origin in _MAPPINGS or origin in _SEQUENCES


def _mapping(annotation: Any, members: Sequence[Any], value: Any, place: str) -> tuple[Any, Any]:
    if not isinstance(value, Mapping):
        raise _wants(annotation, value, place)
    built, complete = {}, {}
    for key, item in value.items():
        name, _ = _read(members[0], key, _dotted(place, key))
        built[name], complete[key] = _read(members[1], item, _dotted(place, key))
    return built, complete


def _sequence(annotation: Any, origin: Any, members: Sequence[Any], value: Any, place: str) -> tuple[Any, Any]:
    """A list, or a section whose values become the items, in their order."""
    if isinstance(value, str) or not isinstance(value, Mapping | Sequence):
        raise _wants(annotation, value, place)
    entries = value if isinstance(value, Mapping) else {str(number): item for number, item in enumerate(value)}
    kinds = [members[0]] * len(entries)
    if origin is tuple and members[-1] is not ...:
        if len(entries) != len(members):
            raise KldmError(f"wants {len(members)} values, got {len(entries)}", place=place)
        kinds = list(members)
    pairs = [_read(kind, item, _dotted(place, key)) for kind, (key, item) in zip(kinds, entries.items(), strict=True)]
    built = [item for item, _ in pairs]
    complete = [item for _, item in pairs]
    completed = dict(zip(entries, complete, strict=True)) if isinstance(value, Mapping) else complete
    return built if origin is list else tuple(built), completed


def _section(kind: Any, value: Any, place: str) -> tuple[Any, Any]:
    """A class that is on no shelf, or a component itself; if the section names a component, it must be this one."""
    if not isinstance(value, Mapping):
        raise _wants(kind, value, place)
    marks = {key: value[key] for key in value if key.startswith("@")}
    if marks and marks != mark_of(kind):
        raise KldmError(f"takes no {next(iter(marks))}", place=place, remedy=f"it is a plain section {kind.__name__}")
    keywords, complete = _arguments(kind, {key: value[key] for key in value if key not in marks}, place)
    return _call(kind, keywords, place), marks | complete


def _component(shelf: Shelf, to_come: Any, value: Any, place: str) -> tuple[Any, Any]:
    """A component of a shelf; ``to_come`` are the positional-only arguments that a Callable still takes, else None."""
    mark = f"@{shelf.kind}"
    if not isinstance(value, Mapping):
        raise KldmError(f"wants a section with {mark}, got {_text(value)}", place=place)
    marks = [key for key in value if key.startswith("@")]
    if not marks:
        raise KldmError(f"missing {mark}", place=place, remedy=f"it names one of {', '.join(shelf.names())}")
    if len(marks) > 1:
        raise KldmError(f"has several @-keys ({', '.join(marks)})", place=place, remedy=f"keep {mark} alone")
    if marks != [mark]:
        raise KldmError(f"wants {mark}, got {marks[0]}", place=place, remedy=f"name a component of {mark}")
    name = value[mark]
    if not isinstance(name, str):
        raise _wants(str, name, _dotted(place, mark))
    try:
        component = shelf.get(name)
    except KldmError as error:
        raise _at_key(error, place, ()) from error
    needed, most = positional_only(component)
    if to_come is None and needed:
        raise KldmError(f"{name!r} waits for {needed} positional-only argument(s), which nobody gives", place=place)
    if isinstance(to_come, list) and not needed <= len(to_come) <= most:
        problem = f"{name!r} must take {len(to_come)} positional-only argument(s), it takes {most}"
        raise KldmError(problem, place=place, remedy="put a '/' after them in its signature")
    keywords, complete = _arguments(component, {key: value[key] for key in value if key != mark}, place)
    complete = {mark: name} | complete
    if to_come is not None:
        return functools.partial(component, **keywords), complete
    built = _call(component, keywords, place)
    lacking = [member for member in _members(shelf.interface) if member not in dir(built)]
    if lacking:
        problem = f"{name!r} built a {type(built).__name__}, which has no {', '.join(lacking)}"
        raise KldmError(problem, place=place, remedy=f"components of {mark} satisfy {shelf.interface.__name__}")
    return built, complete


def _members(interface: type) -> list[str]:
    return [name for name in vars(interface) if name == "__call__" or not name.startswith("_")]


def _arguments(component: Callable[..., Any], given: Mapping[str, Any], place: str) -> tuple[Tree, Tree]:
    """The keyword arguments of a component, and its section with the defaults filled in."""
    known = parameters(component)
    for key in given:
        if key not in known:
            remedy = nearest(key, known) or (f"it takes {', '.join(known)}" if known else "it takes no keys")
            raise KldmError("unknown key", place=_dotted(place, key), remedy=remedy)
    keywords, complete = {}, {}
    for name, parameter in known.items():
        key = _dotted(place, name)
        if name in given:
            keywords[name], complete[name] = _read(parameter.annotation, given[name], key)
        elif parameter.default is Absent.REQUIRED:
            raise _missing(parameter, key)
        elif parameter.default is not Absent.DERIVED and (default := _default(parameter, key)):
            keywords[name], complete[name] = default
    return keywords, complete


def _default(parameter: Parameter, place: str) -> tuple[Any, Any] | None:
    """A default rebuilt from its JSON, so that the recipe describes it; None if it must be left to Python."""
    default = parameter.default
    try:
        built, complete = _read(parameter.annotation, written(default), place)
    except (UnwritableError, KldmError):
        return None
    return (built, complete) if not is_section(type(default)) or type(built) is type(default) else None


def _call(component: Callable[..., T], keywords: Tree, place: str) -> T:
    try:
        return component(**keywords)
    except KldmError as error:
        raise _at_key(error, place, keywords) from error
    except ValueError as error:
        raise KldmError(str(error.args[0]) if error.args else "is refused", place=place or None) from error


def _at_key(error: KldmError, place: str, keys: collections.abc.Collection[str]) -> KldmError:
    """The same error at a dotted key; if its place names a parameter, that becomes part of the key."""
    if error.place and error.place.partition(".")[0] in keys:
        place = _dotted(place, error.place)
    elif error.place:
        place = f"{place}: {error.place}" if place else error.place
    return KldmError(error.problem, place=place or None, remedy=error.remedy)


def _missing(parameter: Parameter, place: str) -> KldmError:
    origin = get_origin(parameter.annotation) or parameter.annotation
    problem = "missing section" if _takes_mapping(parameter.annotation) and origin not in _SEQUENCES else "missing"
    return KldmError(problem, place=place, remedy=f"it wants {type_text(parameter.annotation)}")


def _wants(annotation: Any, value: Any, place: str, remedy: str | None = None) -> KldmError:
    return KldmError(f"wants {type_text(annotation)}, got {_text(value)}", place=place, remedy=remedy)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a section"
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _dotted(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key
