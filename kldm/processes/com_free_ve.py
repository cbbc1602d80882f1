"""Periodic CoM-free noising (EquiCSP): noise on the torus that does not translate the crystal."""

import attrs
import torch
from torch import Tensor

from kldm.crystals import Layout
from kldm.processes.wrapped_ve import WrappedVE
from kldm.registry import process
from kldm.torus import wrap


@process("com_free_ve.v1")
@attrs.frozen(kw_only=True)
class ComFreeVE(WrappedVE):
    """``WrappedVE`` whose noise leaves the periodic centre of mass in place (Lin et al., 2024: EquiCSP).

    With the angles u_i = sigma eps_i of the atoms of a crystal, per axis,

        d_i = wrap(u_i - c),    c = arg sum_j exp(i u_j),    f_s = f_0 + d / (2 pi) mod 1.

    c is the circular mean, so that d has circular mean 0. u, u less its mean (``zero_net_translation``) and d are the
    same noise up to a translation, to which the network is blind: the three differ in the target alone. Here it is a
    function of what the network can see, the score of the wrapped normal at d, less its mean over the atoms:

        target_i = -(g(d_i) - mean_j g(d_j)) / sqrt(n(sigma)),    g = d/dmu log WN.

    That is the score of d itself, grad log q with q(d) = integral over c of prod_i WN(d_i + c), where d determines c:
    at small sigma, where both are -d / sigma^2, and for many atoms. Where sigma is so large that c is a guess, the
    target is too large: at sigma = 0.13 it is off by 3 % (rms) for eight atoms and by 23 % for two, at 0.2 by a quarter
    for eight, and at 0.5, where the noise is all but uniform, grad log q is all but 0. Published, the law of d is a von
    Mises law estimated by Monte Carlo; here it is the wrapped normal of the noise, and nothing is fitted. Noise in the
    reverse moves, and what the network predicts, are made mean-free.

    Args:
        sigma_min, sigma_max, step_lr: see ``WrappedVE``.
    """

    zero_net_translation: bool = attrs.field(default=True, init=False)

    def _displacement(self, noise: Tensor, layout: Layout) -> Tensor:
        centre = torch.atan2(layout.sum(noise.sin()), layout.sum(noise.cos()))
        return wrap(noise - layout.per_atom(centre))
