"""Reads constructors: the parameters of a component that a recipe may set, their types, and their defaults as JSON.

Recipes set the parameters that can be given by keyword; positional-only ones are left to Python.
"""

import dataclasses
import enum
import functools
import inspect
import json
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from kldm.errors import KldmError
from kldm.interfaces import Json
from kldm.registry import SHELVES, Shelf


class Absent(enum.Enum):
    """Why a parameter has no fixed default: it is required, or the constructor derives it from other parameters."""

    REQUIRED = "required"
    DERIVED = "derived"


@attrs.frozen
class Parameter:
    """A parameter that a recipe may set: its type hint is resolved, and its default factory was called."""

    name: str
    annotation: Any
    default: Any


class UnwritableError(Exception):
    """JSON cannot hold a default, which is then left to Python."""


def parameters(component: Callable[..., Any]) -> dict[str, Parameter]:
    """The parameters of a component that a recipe may set, in their order."""
    hints, factories = _hints_and_factories(component)
    settable = {}
    for entry in inspect.signature(component).parameters.values():
        if entry.kind in (entry.KEYWORD_ONLY, entry.POSITIONAL_OR_KEYWORD):
            default = Absent.REQUIRED if entry.default is entry.empty else entry.default
            annotation = hints.get(entry.name, Any)
            settable[entry.name] = Parameter(entry.name, annotation, factories.get(entry.name, default))
    return settable


def positional_only(component: Callable[..., Any]) -> tuple[int, int]:
    """How many positional-only arguments a component needs, and how many it takes."""
    entries = [
        entry for entry in inspect.signature(component).parameters.values() if entry.kind is entry.POSITIONAL_ONLY
    ]
    return sum(entry.default is entry.empty for entry in entries), len(entries)


def describe(component: Callable[..., Any]) -> list[tuple[str, str, str]]:
    """(name, type, default) of each parameter that a recipe may set, as text."""
    rows = []
    for parameter in parameters(component).values():
        if isinstance(parameter.default, Absent):
            default = parameter.default.value
        else:
            try:
                default = json.dumps(written(parameter.default), ensure_ascii=False)
            except UnwritableError:
                default = repr(parameter.default)
        rows.append((parameter.name, type_text(parameter.annotation), default))
    return rows


def summary(component: Callable[..., Any]) -> str:
    """The first line of a component's docstring; empty if it has none."""
    return (component.__doc__ or "").strip().partition("\n")[0].strip()


def shelf_of(annotation: Any) -> Shelf | None:
    """The shelf of a parameter typed with an interface, or with a Callable that returns one."""
    if get_origin(annotation) is Callable:
        annotation = get_args(annotation)[-1]
    return next((shelf for shelf in SHELVES.values() if shelf.interface is annotation), None)


def is_open(annotation: Any) -> bool:
    """Whether any JSON value fits: ``Any``, ``object`` and ``Json``."""
    if annotation is Any or annotation is object:
        return True
    # A resolved Json does not equal the alias, so it is recognised by its members.
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()
    origins = {get_origin(member) or member for member in members}
    return {type(None), bool, int, float, str, Sequence, Mapping} <= origins


def is_section(annotation: Any) -> bool:
    """Whether a type is written as a section without a name: a class, but no Protocol, with a constructor in Python."""
    if (
        not isinstance(annotation, type)
        or issubclass(annotation, enum.Enum | Path)
        or vars(annotation).get("_is_protocol")
    ):
        return False
    return isinstance(vars(_maker(annotation))["__init__"], types.FunctionType)


def _maker(kind: type) -> type:
    """The class that defines the ``__init__`` of a class."""
    return next(base for base in kind.__mro__ if "__init__" in vars(base))


def type_text(annotation: Any) -> str:
    """A type in the words of a recipe."""
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if shelf := shelf_of(annotation):
        return f"@{shelf.kind}"
    if is_open(annotation):
        return "any value"
    if annotation is None or annotation is type(None):
        return "null"
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(member) for member in arguments)
    if origin is Literal:
        return " or ".join(json.dumps(value) for value in arguments)
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return " or ".join(json.dumps(written(member)) for member in origin)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"section of {type_text(arguments[1] if arguments else Any)}"
    if isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str:
        kinds = [argument for argument in arguments if argument is not ...] or [Any]
        return f"list of {', '.join(type_text(kind) for kind in kinds)}"
    if is_section(annotation):
        return f"section {annotation.__name__}"
    if isinstance(annotation, type) and issubclass(annotation, Path):
        return "path"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def written(value: Any) -> Any:
    """The JSON of a default in a recipe: registered objects by name, other records as sections.

    Raises:
        UnwritableError: a recipe cannot hold the value, such as a tensor or a function.
    """
    if isinstance(value, enum.Enum):
        return value.value if isinstance(value.value, bool | int | float | str) else value.name
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {str(key): written(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [written(item) for item in value]
    if isinstance(value, functools.partial) and not value.args and (mark := mark_of(value.func)):
        return mark | {key: written(item) for key, item in value.keywords.items()}
    if attrs.has(type(value)):
        section: dict[str, Any] = dict(mark_of(type(value)))
        for field in attrs.fields(type(value)):
            item = getattr(value, field.name)
            try:
                if field.init:
                    section[field.alias or field.name] = written(item)
            except UnwritableError:
                if (
                    item is not field.default
                ):  # the default is taken again when it is rebuilt; another value would be lost
                    raise
        return section
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return mark_of(type(value)) | {name: written(getattr(value, name)) for name in names}
    if callable(value) and (mark := mark_of(value)):
        return mark
    raise UnwritableError(repr(value))


def mark_of(component: Any) -> dict[str, str]:
    """``{"@processes": "name.v1"}`` for a registered component; empty for any other."""
    for shelf in SHELVES.values():
        for name in shelf.names():
            if shelf.get(name) is component:
                return {f"@{shelf.kind}": name}
    return {}


def _hints_and_factories(component: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Resolved type hints by parameter, and the defaults that a generated constructor makes for each object."""
    hinted: Any = component
    aliases: dict[str, str] = {}
    factories: dict[str, Any] = {}
    if isinstance(component, type):
        owner = _maker(component)
        hinted = vars(owner)["__init__"]
        # A constructor that attrs generates does not know the module of its annotations, but its class does.
        if "__attrs_attrs__" in vars(owner) and "__attrs_init__" not in vars(owner):
            hinted = owner
            for field in attrs.fields(owner):
                aliases[field.name] = name = field.alias or field.name
                factory = getattr(field.default, "factory", None)
                if factory is not None:
                    derived = getattr(field.default, "takes_self", False)
                    factories[name] = Absent.DERIVED if derived else factory()
        elif dataclasses.is_dataclass(owner):
            for entry in dataclasses.fields(owner):
                if entry.default_factory is not dataclasses.MISSING:
                    factories[entry.name] = entry.default_factory()
    try:
        hints = get_type_hints(hinted, localns={"Json": Json})
    except (NameError, TypeError) as error:
        place = f"{component.__module__}.{component.__qualname__}"
        raise KldmError(f"its annotations cannot be read ({error})", place=place) from error
    return {aliases.get(name, name): hint for name, hint in hints.items()}, factories
