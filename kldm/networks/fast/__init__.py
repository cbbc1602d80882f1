"""``CSPVNet`` up to its heads with about a third of the arithmetic: the same function of the same parameters.

- ``encoding``: the embedding, and a batch in parts that fit into the cache of a CPU.
- ``rounds``: the rounds of messages, in which nothing is computed more than once per atom, crystal, pair or call;
  ``compiled``: the same through ``torch.compile``.
- ``messages``: the sum of an atom's messages, by torch's own operators or with a backward pass written by hand;
  ``triton_messages``: the same in one kernel (``triton_kernel``).
- ``products``, ``sums``: linear maps and sums over edges, in the way that is fast on the device.
"""

from kldm.networks.fast.encoding import encode

__all__ = ["encode"]
