"""Generates the requested candidates in batches with a budget of pairs; results are in the order of the requests."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import attrs
import torch
from torch import nn
from tqdm import tqdm

from kldm.crystals import CrystalStore, concatenated
from kldm.errors import KldmError
from kldm.interfaces import Candidate, GenerativeModel, Sampler
from kldm.memory import most_pairs
from kldm.runtime.allocator import keep_memory
from kldm.runtime.distributed import world
from kldm.runtime.seeding import seeded
from kldm.sampling.constraints import Constraints, constrained

SAMPLING_PAIRS = 64_000
"""Ordered pairs of atoms in a batch of samples if memory suffices: enough to keep a GPU busy."""

MOST_REQUESTS = 10**7
"""Most structures that are asked for at once."""


@attrs.frozen
class CandidateRequest:
    """One structure to generate: the row of the targets that conditions it, and its number among its candidates."""

    target: int
    candidate: int


def requests(targets: int, candidates: int) -> tuple[CandidateRequest, ...]:
    """Requests of ``candidates`` structures for each of ``targets`` rows, candidate by candidate.

    Raises:
        KldmError: there are more than ``MOST_REQUESTS`` structures.
    """
    if targets * candidates > MOST_REQUESTS:
        problem = f"{targets * candidates:,} structures are asked for, more than {MOST_REQUESTS:,}"
        raise KldmError(problem, remedy="ask for fewer at once, with other seeds")
    return tuple(CandidateRequest(target, candidate) for candidate in range(candidates) for target in range(targets))


def batches(sizes: Sequence[int], max_pairs: int) -> list[list[int]]:
    """Indices of ``sizes`` in groups of similar size, each of at most ``max_pairs`` ordered pairs K (K - 1).

    The groups are sorted by size, largest first, so that memory runs out at the beginning or never. A crystal above the
    budget gets a group of its own.
    """
    groups: list[list[int]] = []
    room = 0
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        cost = max(1, sizes[index] * (sizes[index] - 1))
        if not groups or cost > room:
            groups.append([])
            room = max_pairs
        groups[-1].append(index)
        room -= cost
    return groups


def sampling_pairs(requested: int | None, network: object, device: torch.device) -> int:
    """Ordered pairs of atoms in a batch of samples: the requested number, or else 64,000 or as many as fit into memory.

    All processes of a run, which share the batches, must call this, and get the same number.
    """
    if requested is not None:
        return requested
    here = world()
    fitting = here.gather(most_pairs(network, device, training=False, processes=here.neighbours))
    return min([SAMPLING_PAIRS, *(pairs for pairs in fitting if pairs is not None)])


def generate(
    model: GenerativeModel,
    sampler: Sampler,
    targets: CrystalStore,
    wanted: Sequence[CandidateRequest],
    *,
    seed: int,
    max_pairs: int,
    constraints: Constraints | None = None,
    description: str = "sample",
) -> CrystalStore:
    """Generate one crystal per request, in the order of the requests.

    A crystal has the columns of its target, that is the requested values, which it need not fulfil. The processes of a
    run share the batches, which are the same for any number of processes, and every process gets all crystals.

    Args:
        model: on the device of ``targets``.
        sampler: draws the samples.
        targets: layout and conditions by row; coordinates and cells count only if ``constraints`` mark them as known.
        wanted: the requests.
        seed: all randomness depends on it, the requests and the budget alone.
        max_pairs: largest number of ordered pairs of atoms in a batch.
        constraints: what the samples must obey.
        description: label of the progress bar.
    """
    keep_memory()
    rules = constraints or Constraints()
    rules.check(model.processes, targets)
    groups = batches([targets.sizes[request.target] for request in wanted], max_pairs)
    here = world()
    own = range(here.rank, len(groups), here.size)  # the largest batches come first, so that the shares are about equal
    sampled: list[tuple[int, CrystalStore]] = []
    bar = tqdm(
        total=len(own) * sampler.steps,
        desc=description,
        unit="step",
        delay=1,
        dynamic_ncols=True,
        disable=not here.is_writer,
    )
    with _evaluating(model), bar:

        def advance(steps: int) -> None:
            bar.update(steps)

        for number in own:
            rows = [wanted[index].target for index in groups[number]]
            bound = constrained(model, rules, targets, rows)
            rng = seeded(targets.device, seed, "sample", number)
            crystals = bound.restored(sampler.sample(bound, targets.batch(rows), rng, advance)).to("cpu")
            sampled.append((number, CrystalStore.of(crystals, [targets.ids[row] for row in rows])))
    stores = dict(numbered for share in here.gather(sampled) for numbered in share)
    order = [index for group in groups for index in group]
    generated = concatenated([stores[number] for number in range(len(groups))])
    return generated.subset(sorted(range(len(order)), key=order.__getitem__))


@contextmanager
def _evaluating(model: GenerativeModel) -> Iterator[None]:
    """The model in evaluation mode (no dropout) within the block."""
    training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    try:
        yield
    finally:
        if isinstance(model, nn.Module):
            model.train(training)


def candidates(generated: CrystalStore, wanted: Sequence[CandidateRequest]) -> tuple[Candidate, ...]:
    """Generated crystals as candidates; one whose structure cannot be built is kept, with the reason."""
    from kldm.data.convert import to_structure_or_reason

    species = torch.split(generated.species, list(generated.sizes))
    built = to_structure_or_reason(generated)
    return tuple(
        Candidate(request.target, request.candidate, structure, reason, tuple(numbers.tolist()) if reason else ())
        for request, (structure, reason), numbers in zip(wanted, built, species, strict=True)
    )
