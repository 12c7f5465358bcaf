"""An epinet on the features of a frozen model: members that differ by an index alone."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from shatter.ensembles.base import anchor_penalty, gaussian_draws
from shatter.ensembles.heads import apply_mlp, check_widths, zero_mlp
from shatter.ensembles.independent import check_members, exponential_weights
from shatter.types import MEMBER_AXIS, Array, Ensemble, Key, Params


class EpinetParams(NamedTuple):
    """The trained parameters of an epinet: a linear head, and a network of features and index."""

    mean: Params
    learnable: Params


@struct.dataclass
class EpinetMember:
    """A member of an epinet.

    Attributes:
      params: `EpinetParams`, the same for all members.
      index: `[I]`, the epistemic index z, never trained.
    """

    params: EpinetParams
    index: Array


def epinet(
    num_features: int,
    *,
    num_members: int,
    prior_scale: float | Array,
    index_size: int = 8,
    hidden: Sequence[int] = (32,),
) -> Ensemble:
    """Returns an epinet at M fixed indices: one set of trained parameters, many members.

    `score(x, z) = c (f(x) + [l(sg(x), z) . z + sum_i z_i p_i(sg(x))] / sqrt(I))`, c = prior_scale,
    sg = stop_gradient: a linear head f that starts at 0; a learnable network l of features and
    index whose last layer starts at 0; and fixed random networks p_1 .. p_I. All are as in
    `apply_mlp`, so that for features of mean square 1 the prior part of a score has mean 0 and
    standard deviation c over draws of networks and index.

    The members' gradients are averaged, so that the parameters stay the same in all to the bit.
    Leave decay to the penalty, because an optimiser that decays weights would shrink the indices.
    The prior is Gaussian around the start, of unit scale on f and of the wider scale sqrt(I) on l,
    because each of the I directions of the index has only its share of the averaged loss. A network
    l that is simple as a function of the index averages the members' data weights in part: with l
    linear and M far above I, members are closer together on the data than those of `heads`.

    Source: Osband et al., Epistemic Neural Networks, https://arxiv.org/abs/2107.08924; Dwaracherla
    et al., Efficient Exploration for LLMs, https://arxiv.org/abs/2402.00396. There every step draws
    its indices afresh; here each member keeps its own, z_m ~ N(0, I), and its own data weights.

    Args:
      num_features: D.
      num_members: M.
      prior_scale: c > 0, nats.
      index_size: I, the size of the index.
      hidden: the widths of the hidden layers, of the learnable network and of each of the p_i.

    Returns:
      An ensemble of scores: its `apply` takes features `[..., D]`, best of mean square 1, and
      returns scores `[...]`, nats. `valid` changes nothing, since features are scored one by one.
      `own` is an `EpinetMember`, `shared` the p_i, with a leading axis I on every leaf.

    Raises:
      ValueError: if there is no member, no feature, no index, or a layer of no width.
    """
    check_members(num_members)
    check_widths(num_features, index_size, *hidden)

    def init(key: Key) -> tuple[Params, EpinetMember]:
        prior_key, learnable_key, index_key = jax.random.split(key, 3)
        prior = gaussian_draws(prior_key, zero_mlp(num_features, hidden, 1), 1.0, index_size)
        *inner, last = zero_mlp(num_features + index_size, hidden, index_size)
        inner = jax.tree.map(lambda leaf: leaf[0], gaussian_draws(learnable_key, inner, 1.0, 1))
        params = EpinetParams(mean=zero_mlp(num_features, (), 1), learnable=[*inner, last])
        index = jax.random.normal(index_key, (num_members, index_size))
        copy = lambda leaf: jnp.broadcast_to(leaf, (num_members, *leaf.shape))
        return prior, EpinetMember(jax.tree.map(copy, params), index)

    def apply(
        shared: Params, own: EpinetMember, inputs: Array, *, valid: Array | None = None
    ) -> Array:
        del valid
        fixed, index, prior = jax.lax.stop_gradient((inputs, own.index, shared))
        indices = jnp.broadcast_to(index, (*inputs.shape[:-1], index_size))
        learned = apply_mlp(own.params.learnable, jnp.concatenate([fixed, indices], axis=-1))
        drawn = jax.vmap(apply_mlp, in_axes=(0, None), out_axes=-1)(prior, fixed)[..., 0, :]
        mean = apply_mlp(own.params.mean, inputs)[..., 0]
        return prior_scale * (mean + (learned + drawn) @ index / jnp.sqrt(index_size))

    def penalty(own: EpinetMember, anchor: EpinetMember) -> Array:
        params, start = own.params, anchor.params
        learned = anchor_penalty(params.learnable, start.learnable, index_size**0.5)
        return anchor_penalty(params.mean, start.mean, 1.0) + learned

    return Ensemble(
        init=init,
        apply=apply,
        penalty=penalty,
        observation_weights=exponential_weights(num_members),
        combine_gradients=_tie_params,
    )


def _tie_params(gradient: EpinetMember) -> EpinetMember:
    params = jax.lax.pmean(gradient.params, MEMBER_AXIS)
    return EpinetMember(params, jnp.zeros_like(gradient.index))
