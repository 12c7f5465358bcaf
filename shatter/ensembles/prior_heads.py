"""A point head with randomised-prior particles around it, on the features of a frozen model."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from shatter.ensembles.base import anchor_penalty, gaussian_draws
from shatter.ensembles.heads import apply_mlp, check_widths, zero_mlp
from shatter.ensembles.independent import check_members, exponential_weights
from shatter.types import MEMBER_AXIS, Array, Ensemble, Key, Params


class PriorHead(NamedTuple):
    """The point head or a particle.

    Attributes:
      point: the point head, the same in all members; trained by the first alone.
      differential: what a particle trains.
      prior: the particle's frozen random network.
      particle: `[]`, 0 in the first member, which is the point head, and 1 in the particles.
    """

    point: Params
    differential: Params
    prior: Params
    particle: Array


def prior_heads(
    num_features: int,
    *,
    num_members: int,
    prior_scale: float | Array,
    hidden: Sequence[int] = (),
    prior_hidden: Sequence[int] = (),
) -> Ensemble:
    """Returns a point head and M - 1 particles around it, each with its own frozen prior.

    The first member's score is `c f(x)`, f the point head; that of particle k is
    `c (sg(f(x)) + p_k(x) + d_k(x))`, c = prior_scale, sg = stop_gradient: p_k a random network that
    stays as it is drawn, d_k a network that learns. All are as in `apply_mlp`. The last layers of f
    and d_k start at 0, so that before data the point head's scores are 0 and a particle's those of
    its prior: of mean 0 and, for features of mean square 1, standard deviation c. The point head
    learns as if it were alone. A particle learns what its prior lacks on the data, with the point
    head's output held fixed.

    The first member weighs every observation by 1, particle k by its own Exp(1). Penalties are of
    unit scale around the start, on f in the first member and on d_k in the particles. In a
    linear-Gaussian model the covariance of the particles, with noise on the targets, is the
    posterior's, but their mean is not the point head: it fits the data once more around it.

    Hold particles apart from the point where they vote: `scores[1:]` are theirs. Leave decay to the
    penalty, because an optimiser that decays weights would shrink the priors.

    Source: Osband, Aslanides, Cassirer, Randomized Prior Functions for Deep Reinforcement Learning,
    https://arxiv.org/abs/1806.03335; with a point head: Asghari et al., Efficient Exploration at
    Scale, https://arxiv.org/abs/2603.17378, as other texts report it. The weights and the scales
    are ours.

    Args:
      num_features: D.
      num_members: M, the point head and M - 1 particles.
      prior_scale: c > 0, nats.
      hidden: the widths of the hidden layers of the point head and of the differentials.
      prior_hidden: those of the priors.

    Returns:
      An ensemble of scores: its `apply` takes features `[..., D]`, best of mean square 1, and
      returns scores `[...]`, nats. `valid` changes nothing, since features are scored one by one.
      `own` are M `PriorHead`s, `shared` is empty.

    Raises:
      ValueError: if there is no member, no feature, or a layer of no width.
    """
    check_members(num_members)
    check_widths(num_features, *hidden, *prior_hidden)

    def init(key: Key) -> tuple[Params, PriorHead]:
        point_key, differential_key, prior_key = jax.random.split(key, 3)
        point = _flat_start(point_key, num_features, hidden, 1)
        copy = lambda leaf: jnp.broadcast_to(leaf, (num_members, *leaf.shape[1:]))
        own = PriorHead(
            point=jax.tree.map(copy, point),
            differential=_flat_start(differential_key, num_features, hidden, num_members),
            prior=gaussian_draws(
                prior_key, zero_mlp(num_features, prior_hidden, 1), 1.0, num_members
            ),
            particle=(jnp.arange(num_members) > 0).astype(float),
        )
        return (), own

    def apply(
        shared: Params, own: PriorHead, inputs: Array, *, valid: Array | None = None
    ) -> Array:
        del shared, valid
        is_particle, prior = jax.lax.stop_gradient((own.particle > 0, own.prior))
        point = apply_mlp(own.point, inputs)[..., 0]
        around = apply_mlp(prior, inputs) + apply_mlp(own.differential, inputs)
        particle = jax.lax.stop_gradient(point) + around[..., 0]
        return prior_scale * jnp.where(is_particle, particle, point)

    def penalty(own: PriorHead, anchor: PriorHead) -> Array:
        of_point = anchor_penalty(own.point, anchor.point, 1.0)
        of_particle = anchor_penalty(own.differential, anchor.differential, 1.0)
        return jnp.where(anchor.particle > 0, of_particle, of_point)

    def observation_weights(key: Key, shape: tuple[int, ...]) -> Array:
        return exponential_weights(num_members)(key, shape).at[0].set(1.0)

    return Ensemble(
        init=init,
        apply=apply,
        penalty=penalty,
        observation_weights=observation_weights,
        combine_gradients=_share_point,
    )


def _flat_start(key: Key, num_features: int, hidden: Sequence[int], num_members: int) -> Params:
    """Returns networks with random hidden layers and a last layer of 0, `[M]` on every leaf."""
    *inner, last = zero_mlp(num_features, hidden, 1)
    drawn = gaussian_draws(key, inner, 1.0, num_members) if inner else []
    return [*drawn, jax.tree.map(lambda leaf: jnp.stack([leaf] * num_members), last)]


def _share_point(gradient: PriorHead) -> PriorHead:
    """Returns the first member's gradient of the point head for all, and 0 for what is frozen."""
    point = jax.lax.psum(gradient.point, MEMBER_AXIS)  # it is 0 in the particles
    frozen = jax.tree.map(jnp.zeros_like, (gradient.prior, gradient.particle))
    return PriorHead(point, gradient.differential, *frozen)
