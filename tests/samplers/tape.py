"""A stand-in for a CUDA graph on any device: operators are recorded once and done again on the same memory."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What torch did, with the very tensors and numbers that it was done with; Python takes no part in a replay.

    Like a capture it refuses operators that look at values.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.done: list[tuple[Any, tuple[Any, ...], Mapping[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if torch.Tag.data_dependent_output in func.tags:
            raise RuntimeError("operation not permitted while it is recorded\nand more about it")
        result = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self.done:
            known = {value.untyped_storage().data_ptr() for value in tree_leaves((args, kwargs)) if _is_tensor(value)}
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                # A view, or what was written to, has followed already.
                if _is_tensor(old) and old.untyped_storage().data_ptr() not in known:
                    old.copy_(new)


def record(run: Callable[[], None], rng: torch.Generator) -> Callable[[], None]:
    """As ``capture`` does it: a call to warm up, then one that is recorded, whose end fails where it has failed."""
    run()
    tape = Tape()
    try:
        with tape:
            run()
    except RuntimeError as error:
        raise RuntimeError("operation failed due to a previous error") from error
    return tape.replay


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
