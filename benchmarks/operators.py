"""How many operators torch runs for a piece of work: on a GPU, the kernels that are launched."""

from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.timing import Work
from kldm import compiling


def operators(work: Work) -> int:
    """Operators that compute or move values; views and unfilled memory cost no kernel and do not count."""
    counter = _Counter()
    with counter:
        work()
    return counter.count


def compiled_operators(work: Work) -> int:
    """The same with ``execution.compile``: what the compiler's schedule holds after fusion, and what is run around it.

    On a CPU it may join loops further; here each counts.
    """
    counter, nodes = _Counter(), list[Any]()

    def scheduled(found: list[Any]) -> list[Any]:
        nodes.extend(found)
        return found

    def left_out(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            counter.paused = True
            try:
                return function(*args)
            finally:
                counter.paused = False

        return call

    from torch._inductor import config

    compiling.fuse(True)
    try:
        with patch.object(compiling, "compiled", left_out), counter:
            work()
        torch._dynamo.reset()
        compiling.compiled.cache_clear()
        # A schedule from a cache would not be seen.
        with config.patch(_post_fusion_custom_pass=scheduled, fx_graph_cache=False):
            work()
    finally:
        compiling.fuse(False)
        compiling.compiled.cache_clear()
        torch._dynamo.reset()
    return counter.count + sum(map(_kernels, nodes))


def _kernels(node: Any) -> int:
    """Kernels of one node of a schedule: none for views and for one of several results of another node."""
    from torch._inductor.ir import MultiOutput
    from torch._inductor.scheduler import NopKernelSchedulerNode

    parts = node.get_outer_nodes() if hasattr(node, "get_outer_nodes") else [node]
    return sum(
        not isinstance(part, NopKernelSchedulerNode) and not isinstance(part.node, MultiOutput) for part in parts
    )


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count, self.paused = 0, False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += not (self.paused or func.is_view or func.overloadpacket is torch.ops.aten.empty)
        return func(*args, **(kwargs or {}))
