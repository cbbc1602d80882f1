"""How many operators torch runs for a piece of work: on a GPU, the kernels that are launched."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.timing import Work


def operators(work: Work) -> int:
    """Operators that compute or move values; views and unfilled memory cost no kernel and do not count."""
    counter = _Counter()
    with counter:
        work()
    return counter.count


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += not (func.is_view or func.overloadpacket is torch.ops.aten.empty)
        return func(*args, **(kwargs or {}))
