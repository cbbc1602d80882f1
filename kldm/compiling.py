"""What is asked of ``torch.compile``."""

SHAPES = 64
"""How often one function is compiled for other shapes; past its limit of 8 torch would silently go on without."""


def allow_shapes() -> None:
    """Let torch compile a function for up to ``SHAPES`` shapes."""
    import torch._dynamo.config  # takes a second, so not before it is used

    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, SHAPES)
