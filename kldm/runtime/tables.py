"""Tables of numbers that are computed once."""

from collections.abc import Callable
from functools import cache
from typing import ParamSpec, cast

import torch
from torch import Tensor

P = ParamSpec("P")


def table(make: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """A function of hashable arguments that makes its table once for each of them.

    A table outlives the call and may meet autograd later, whatever mode it is first asked for in.
    """

    def outliving(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return make(*args, **kwargs)

    return cast(Callable[P, Tensor], cache(outliving))
