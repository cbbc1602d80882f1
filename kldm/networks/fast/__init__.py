"""``CSPVNet`` up to its heads with about a third of the arithmetic: the same function of the same parameters.

- ``encoding``: the embedding, and a batch in parts that the cache of a CPU can hold.
- ``rounds``: the rounds of messages, with what can be computed once per atom, crystal, pair or call computed so;
  ``compiled``: the same through ``torch.compile``.
- ``messages``: the sum of an atom's messages, by torch's own operators or with a backward pass written by hand;
  ``triton_messages``: the same in one kernel (``triton_kernel``).
- ``products``, ``sums``: linear maps and sums over edges, as the device is fast with them.
"""

from kldm.networks.fast.encoding import encode

__all__ = ["encode"]
