"""Tables of numbers that are computed once and cached."""

from collections.abc import Callable
from functools import cache
from typing import ParamSpec, cast

import torch
from torch import Tensor

P = ParamSpec("P")


def table(make: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Cache the tables that ``make`` computes for its hashable arguments.

    A table may be used with autograd later, even if it is first requested in inference mode.
    """

    def ordinary(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return make(*args, **kwargs)

    return cast(Callable[P, Tensor], cache(ordinary))
