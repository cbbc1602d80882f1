"""Catches what would make the host wait for a GPU, on machines that have none."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.small import needs_gpu

META = "meta"
"""Stands for the GPU: its tensors have no values, so that looking at one (``item``, a mask) is an error."""

DEVICES = [META, pytest.param("cuda", marks=needs_gpu)]

_FROM_THE_HOST = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor)


@contextmanager
def unsynchronised(device: str) -> Iterator[None]:
    """What makes the host wait for ``device`` (``META`` or a GPU) is an error inside."""
    if device == META:
        with watched():
            yield
    else:
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def generator(device: str) -> torch.Generator:
    """A seeded source of randomness for tensors on ``device``."""
    return torch.Generator("cpu" if device == META else device).manual_seed(0)


class Synchronisation(RuntimeError):
    """The host would wait for the device here. torch raises a ``RuntimeError`` of its own for values looked at."""


@contextmanager
def watched() -> Iterator[None]:
    """Everything that makes the host wait for ``META`` is an error inside.

    Looking at values, results whose size depends on values, copies between host and device (they are from pageable
    memory, and so wait), and new tensors of numbers of the host. Numbers without dimensions travel with the launch of a
    kernel and cost nothing. What an operator does inside, such as the checks of ``torch.linalg``, is not seen.
    """
    with _Calls(), _Operators():  # type: ignore[no-untyped-call]
        yield


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = _tensors((args, kwargs))
        looks = torch.Tag.data_dependent_output in func.tags or _size_depends_on_values(func, args, kwargs)
        if looks and any(value.device.type == META for value in given):
            raise Synchronisation(f"{func} looks at values")
        result = func(*args, **kwargs)
        tensors = given + _tensors(result)
        if len({value.device for value in tensors if value.dim()}) > 1 or _copies(func, args, result):
            raise Synchronisation(f"{func} copies between the host and the device")
        return result


class _Calls(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _FROM_THE_HOST and result.device.type == META:
            raise Synchronisation(f"{func.__name__} copies numbers of the host")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device.type == META:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list | np.ndarray) for part in index):
                raise Synchronisation("an index that lies on the host is copied")
        return result


def _size_depends_on_values(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if func.overloadpacket is torch.ops.aten.repeat_interleave:
        return kwargs.get("output_size") is None
    tags: list[torch.Tag] = func.tags
    return torch.Tag.dynamic_output_shape in tags


def _tensors(tree: Any) -> list[Tensor]:
    return [value for value in tree_leaves(tree) if isinstance(value, Tensor)]


def _copies(func: Any, args: tuple[Any, ...], result: Any) -> bool:
    """Whether a tensor, of whatever size, changes its device."""
    if func.overloadpacket not in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
        return False
    source: Tensor = args[1] if func.overloadpacket is torch.ops.aten.copy_ else args[0]
    return bool(source.device != result.device)
