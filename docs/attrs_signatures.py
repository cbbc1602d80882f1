"""Gives attrs classes their signature in the reference: the fields are the parameters, with types and defaults."""

from collections.abc import Iterator
from typing import Any

import griffe

_DECORATORS = {"attrs.frozen", "attrs.define"}


class AttrsSignatures(griffe.Extension):
    """Adds ``__init__`` to the classes of a package that attrs decorates, as attrs does when they are imported."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        for found in _classes(pkg):
            if _decorator(found) is not None and "__init__" not in found.members:
                fields = {p.name: p for owner in [*reversed(found.mro()), found] for p in _parameters(owner)}
                self_ = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
                found.set_member(
                    "__init__", griffe.Function("__init__", parameters=griffe.Parameters(self_, *fields.values()))
                )


def _classes(owner: griffe.Module | griffe.Class) -> Iterator[griffe.Class]:
    for member in list(owner.members.values()):
        if isinstance(member, griffe.Class):
            yield member
        if isinstance(member, griffe.Module | griffe.Class):
            yield from _classes(member)


def _decorator(found: griffe.Class) -> griffe.Expr | None:
    values = (decorator.value for decorator in found.decorators)
    return next((v for v in values if isinstance(v, griffe.Expr) and v.canonical_path in _DECORATORS), None)


def _parameters(found: griffe.Class) -> Iterator[griffe.Parameter]:
    decorator = _decorator(found)
    if decorator is None:
        return
    keywords = griffe.ParameterKind.keyword_only if _arguments(decorator).get("kw_only") == "True" else None
    for member in found.members.values():
        if isinstance(member, griffe.Attribute) and member.annotation is not None and "property" not in member.labels:
            options = _arguments(member.value) if _is_field(member.value) else {"default": member.value}
            if options.get("init") != "False":
                yield griffe.Parameter(
                    member.name,
                    annotation=member.annotation,
                    kind=keywords or griffe.ParameterKind.positional_or_keyword,
                    default=f"{options['factory']}()" if "factory" in options else options.get("default"),
                )


def _is_field(value: str | griffe.Expr | None) -> bool:
    return isinstance(value, griffe.ExprCall) and value.canonical_path == "attrs.field"


def _arguments(call: str | griffe.Expr | None) -> dict[str, Any]:
    """The keyword arguments of a call, none of a bare name."""
    found = call.arguments if isinstance(call, griffe.ExprCall) else ()
    values = {a.name: a.value for a in found if isinstance(a, griffe.ExprKeyword)}
    return {name: value if name in ("default", "factory") else str(value) for name, value in values.items()}
