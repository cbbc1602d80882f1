"""Masked (absorbing) diffusion of atom types in continuous time."""

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import attrs
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kldm.crystals import Crystals, Layout
from kldm.interfaces import OF_SAMPLING, Channel, Latent, Move, Noised, Prediction, Step
from kldm.processes.draws import uniform
from kldm.processes.masking import Masking, masked, rate
from kldm.processes.vocabulary import VOCABULARY, check_elements, narrowed
from kldm.registry import process
from kldm.runtime.tables import table
from kldm.validators import one_of

_MASK = VOCABULARY  # the token after the last type


@process("absorbing.v1")
@attrs.frozen(kw_only=True)
class Absorbing:
    """Each atom's type is replaced by a mask at a random time and is drawn anew on the way back (KLDM D, section 5.3;
    Austin et al., 2021; Shi et al., 2024).

    Tokens are Z - 1 in 0..99 and 100 for the mask. At time s an atom is masked with probability m(s) = 1 - alpha(s),
    independently of the others; at s = 0 itself none is. The network predicts the logits of p(type | what is seen).
    A reverse step from s to r unmasks an atom with probability (alpha(r) - alpha(s)) / (1 - alpha(s)), and with
    probability 1 where r = 0, so that no mask is left there. Jumps have no probability flow: there is no ``flow``.

    A sampler that stops at s_min > 0 leaves a share m(s_min) of the atoms masked; ``decode`` then gives each of them
    the commonest type of its crystal. s_min = 0 is the exact choice, and safe: nothing here diverges at s = 0.

    Args:
        schedule: m(s); see ``kldm.processes.masking``.
        loss_weight: ``weighted`` is the bound on the likelihood, ``simple`` the plain cross-entropy of masked atoms.
        elements: atomic numbers that samples may contain; None: all. Training does not depend on it.
        remask: whether ``correct`` changes anything; False, as in the paper, leaves all to the ancestral steps.

    Raises:
        KldmError: an option is not one of those named, or ``elements`` is empty or has a number outside 1..100.
    """

    schedule: Masking = attrs.field(default="linear", validator=one_of())
    loss_weight: Literal["weighted", "simple"] = attrs.field(default="weighted", validator=one_of())
    elements: tuple[int, ...] | None = None
    remask: bool = attrs.field(default=False, metadata=OF_SAMPLING)

    def __attrs_post_init__(self) -> None:
        if self.elements is not None:
            check_elements(self.elements)

    @property
    def reads(self) -> tuple[Channel, ...]:
        return (Channel("species", VOCABULARY + 1, "atom", "token"),)

    @property
    def predicts(self) -> tuple[Channel, ...]:
        return (Channel("species", VOCABULARY, "atom", "token"),)

    def restricted(self, elements: Sequence[int]) -> Self:
        """The same process restricted to ``elements``, beside any earlier restriction: other logits are -inf."""
        return attrs.evolve(self, elements=narrowed(self.elements, elements))

    @property
    def moves(self) -> Mapping[str, Move]:
        return {
            "denoise": Move(self.denoise),
            "predict": Move(self.denoise),  # jumps have no deterministic predictor
            "correct": Move(self.correct, ends="now"),
        }

    def prior(self, given: Crystals, rng: torch.Generator) -> Latent:
        """All masked."""
        return {"species": torch.full_like(given.species, _MASK)}

    def noise(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> Noised:
        """Each atom masked with probability m(s); the target is the clean token of every atom."""
        tokens = clean.species - 1
        probability = clean.layout.per_atom(torch.where(s > 0, masked(self.schedule, s), 0.0))
        noisy = torch.where(_happens(probability, rng), _MASK, tokens)
        return Noised({"species": noisy}, {"species": tokens})

    def loss(self, prediction: Prediction, noised: Noised, s: Tensor, layout: Layout) -> Tensor:
        """Mean over all N atoms of w(s) times the cross-entropy, 0 for those that are not masked (Shi et al., 2024).

        ``weighted``: w = -alpha'(s) / (1 - alpha(s)). The integral over s of its mean is at least the entropy of the
        data per atom, in nats; the exact posterior reaches it, but for the shares EDGE at the schedule's ends.
        ``simple``: w = 1.
        """
        entropy = cross_entropy(prediction["species"], noised.target["species"], reduction="none")
        if self.loss_weight == "weighted":
            entropy = entropy * layout.per_atom(rate(self.schedule, s) / masked(self.schedule, s))
        return torch.where(noised.latent["species"] == _MASK, entropy, 0.0).mean()

    def denoise(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """Masked atoms unmask with probability (alpha(r) - alpha(s)) / (1 - alpha(s)), the others stay as they are."""
        tokens = latent["species"]
        before = masked(self.schedule, step.s)
        probability = torch.where(step.r > 0, (before - masked(self.schedule, step.r)) / before, 1.0)
        unmasks = (tokens == _MASK) & _happens(step.layout.per_atom(probability), step.rng)
        return {"species": torch.where(unmasks, self._draw(prediction, step.rng), tokens)}

    def estimate(self, latent: Latent, prediction: Prediction, s: Tensor, layout: Layout) -> Latent:
        """The most probable allowed type of every atom that is masked, and the type of every other.

        No move uses it: ``denoise`` draws from the whole distribution, and is exact for it.
        """
        tokens = latent["species"]
        return {"species": torch.where(tokens == _MASK, self._finite(prediction).argmax(-1), tokens)}

    def correct(self, latent: Latent, prediction: Prediction, step: Step) -> Latent:
        """With ``remask``, one atom of each crystal, chosen at random, is masked if it was not, else drawn.

        A masked one is drawn with probability q = min(1, alpha / m), an unmasked one masked with p = min(1, m / alpha).
        Given the other atoms, the chosen one is masked with probability m and else of a type from the posterior; as
        m q = alpha p, the move is in detailed balance with that law, and so keeps the joint law at ``step.now``,
        exactly if the logits are the posterior given the unmasked atoms. Moving several atoms of a crystal at once
        would draw them as if they were independent. tau is not used.
        """
        if not self.remask:
            return latent
        tokens, layout = latent["species"], step.layout
        share = masked(self.schedule, step.now)
        ratio = (1 - share) / share
        draws = layout.per_atom(torch.where(step.now > 0, ratio, 1.0))
        masks = layout.per_atom(torch.where(step.now > 0, 1 / ratio, 0.0))
        hidden = tokens == _MASK
        moves = _one_atom_each(layout, step.rng) & _happens(torch.where(hidden, draws, masks), step.rng)
        return {"species": torch.where(moves, torch.where(hidden, self._draw(prediction, step.rng), _MASK), tokens)}

    def decode(self, latent: Latent, into: Crystals) -> Crystals:
        """Atomic numbers; an atom still masked gets the commonest allowed type of its crystal (the lightest of several,
        and the lightest element allowed where none is unmasked)."""
        tokens = latent["species"]
        types = torch.arange(VOCABULARY, device=tokens.device)
        count = into.layout.sum((tokens.unsqueeze(-1) == types).double()) - types / (2 * VOCABULARY)
        commonest = self._allowed(count).argmax(-1)
        tokens = torch.where(tokens == _MASK, into.layout.per_atom(commonest), tokens)
        return attrs.evolve(into, species=tokens + 1)

    def _draw(self, prediction: Prediction, rng: torch.Generator) -> Tensor:
        """A token per atom from softmax(logits) over the allowed types, by the Gumbel-max trick, whatever the logits.

        In float64: on the coarse grid of float32 numbers the tail of the Gumbel law is cut off, and draws are sharper
        than softmax (Zheng et al., 2025).
        """
        finite = self._finite(prediction)
        below = finite - finite.amax(-1, keepdim=True)
        draws = uniform(below, rng).clamp(min=torch.finfo(below.dtype).tiny)
        gumbel = -torch.log(-torch.log(draws))
        return (below + gumbel).argmax(-1)

    def _finite(self, prediction: Prediction) -> Tensor:
        """Logits in float64; NaN counts as the smallest number, inf as the largest, and -inf is what is not allowed."""
        return self._allowed(prediction["species"].double().nan_to_num(nan=torch.finfo(torch.float64).min))

    def _allowed(self, values: Tensor) -> Tensor:
        """Values [..., 100] with -inf for the types that are not allowed."""
        if self.elements is None:
            return values
        return values.masked_fill(_forbidden(self.elements, values.device), float("-inf"))


@table
def _forbidden(elements: tuple[int, ...], device: torch.device) -> Tensor:
    """bool [100], True for the types that are not among the elements."""
    allowed = set(elements)
    return torch.tensor([number not in allowed for number in range(1, VOCABULARY + 1)], device=device)


def _happens(probability: Tensor, rng: torch.Generator) -> Tensor:
    """Independent draws, True with the given probability."""
    return uniform(probability, rng) < probability


def _one_atom_each(layout: Layout, rng: torch.Generator) -> Tensor:
    """bool [N], True for one atom of every crystal, uniformly chosen."""
    share = uniform(layout.num_atoms.double(), rng)
    chosen = layout.ptr[:-1] + (share * layout.num_atoms).long()
    return layout.per_atom(chosen) == torch.arange(layout.total, device=layout.device)
