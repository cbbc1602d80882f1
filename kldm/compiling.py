"""What a compiler gets to see of the arithmetic around a network: pure functions of tensors, and constant tables."""

import logging
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, Generic, ParamSpec, TypeVar, TypeVarTuple, Unpack

import torch
from torch import Tensor

from kldm.crystals import Crystals, Layout

P = ParamSpec("P")
R = TypeVar("R")
Key = TypeVarTuple("Key")

SHAPES = 64
"""How often one function is compiled for other shapes; past its limit of 8 torch would silently go on without."""

_log = logging.getLogger("kldm.compiling")
_on = False
_refused: set[Callable[..., object]] = set()


def fuse(on: bool) -> None:
    """Whether ``fused`` functions are compiled from now on, in the whole process."""
    global _on
    _on = on


def fused(function: Callable[P, R]) -> Callable[P, R]:
    """A pure function of tensors that becomes a few kernels where ``execution.compile`` asks for it.

    It may take crystals, layouts and frozen objects with options beside tensors, and returns tensors. What
    ``torch.compile`` cannot follow belongs outside: draws from a generator, and records that are made (of ``attrs``).
    Numbers are the same to rounding. Where compiling fails, a warning is logged and the function is called as it is
    from then on.
    """

    @wraps(function)
    def chosen(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _on or function in _refused or torch.compiler.is_compiling():
            return function(*args, **kwargs)
        for argument in (*args, *kwargs.values()):
            _make_indices(argument)
        try:
            result: R = compiled(function)(*args, **kwargs)
            return result
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler fails in many ways; what is wrong with the call itself, the call says
            result = function(*args, **kwargs)
            _refused.add(function)
            reason = (str(error) or type(error).__name__).splitlines()[0]
            _log.warning("%s is not compiled (%s); it is computed plainly", function.__qualname__, reason)
            return result

    return chosen


@cache
def compiled(function: Callable[..., R]) -> Callable[..., R]:
    """``torch.compile`` for any number of atoms and crystals."""
    allow_shapes()
    for one in _tables:
        one.hide()
    return torch.compile(function, dynamic=True)


def allow_shapes() -> None:
    """Let torch compile a function for up to ``SHAPES`` shapes."""
    import torch._dynamo.config

    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, SHAPES)


def _make_indices(argument: object) -> None:
    """Index tensors of a layout, which are made when asked for: a compiler would make them for these sizes alone."""
    layout = argument.layout if isinstance(argument, Crystals) else argument
    if isinstance(layout, Layout):
        _ = layout.owner, layout.ptr


class table(Generic[*Key]):
    """A function of hashable arguments that makes a table once for each of them.

    Compilers see through the dictionary to a table that is there, and leave it to Python to make one that is not.
    """

    def __init__(self, make: Callable[[Unpack[Key]], Tensor]) -> None:
        self._make, self._kept = make, dict[tuple[*Key], Tensor]()
        self._made = self._outliving
        _tables.append(self)

    def __call__(self, *key: *Key) -> Tensor:
        return self._kept[key] if key in self._kept else self._made(*key)

    def hide(self) -> None:
        """Keep compilers from following what makes a table. Importing torch's takes a second: not before it is used."""
        self._made = torch.compiler.disable(self._outliving)  # type: ignore[no-untyped-call]

    def _outliving(self, *key: *Key) -> Tensor:
        # The table outlives the call and may meet autograd later, whatever mode it is first asked for in.
        with torch.inference_mode(False), torch.no_grad():
            self._kept[key] = self._make(*key)
        return self._kept[key]


_tables: list[table[*tuple[Any, ...]]] = []
