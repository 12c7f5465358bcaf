"""Stacked members: anchored, with prior functions, and the point estimate as an ensemble of one."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax

from shatter.ensembles.base import anchor_penalty, gaussian_draws
from shatter.models import LanguageModel
from shatter.types import Array, Ensemble, Key, Params

Start = Literal["draw", "centre"]
"""Where the training of a member starts: at its own prior draw, or at the centre of the prior."""


def anchored(
    lm: LanguageModel,
    params: Params,
    *,
    num_members: int,
    prior_scale: float | Array,
    start: Start = "draw",
) -> Ensemble:
    """Returns M stacked members, each with its own prior draw as anchor and its own data weights.

    Member m minimises `sum_i w_mi nll_i(theta) + |theta - theta_m|^2 / (2 sigma^2)`,
    `theta_m = theta_0 + sigma eps_m`, `w_mi ~ Exp(1)`. The minimiser is
    approximately a sample of the posterior.

    Source: Pearce et al., Uncertainty in Neural Networks: Approximately Bayesian Ensembling,
    https://arxiv.org/abs/1810.05546; Newton and Raftery, Approximate Bayesian Inference
    with the Weighted Likelihood Bootstrap (1994), for the weights.

    Args:
      lm: the language model.
      params: theta_0, the pretrained parameters.
      num_members: M.
      prior_scale: sigma > 0.
      start: where training starts: "draw", at theta_m, or "centre", at theta_0, so that the members
        predict like the pretrained model until there is data. The minimiser is the same.

    Returns:
      An ensemble; `own` are M copies of the parameters, `shared` is empty.

    Raises:
      ValueError: if there is no member, or no such start.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from shatter import ensembles, models
      >>> lm = models.tabular(vocab_size=3, max_length=2)
      >>> params = lm.init(jax.random.key(0))
      >>> ensemble = ensembles.anchored(lm, params, num_members=4, prior_scale=0.5)
      >>> shared, own = ensemble.init(jax.random.key(1))
      >>> logits = jax.vmap(ensemble.apply, in_axes=(None, 0, None))
      >>> logits(shared, own, jnp.array([0, 2, 1])).shape  # members, tokens, vocabulary
      (4, 3, 3)
    """
    check_members(num_members)

    def init(key: Key) -> tuple[Params, Params]:
        return (), gaussian_draws(key, params, prior_scale, num_members)

    return Ensemble(
        init=init,
        apply=_apply_own(lm),
        penalty=lambda own, anchor: anchor_penalty(own, anchor, prior_scale),
        observation_weights=exponential_weights(num_members),
        start=start_at(start, lambda anchor: params),
    )


class PriorFunction(NamedTuple):
    """A member with a prior function: the parameters it trains, and those of its fixed prior."""

    params: Params
    prior: Params


def prior_functions(
    lm: LanguageModel,
    params: Params,
    *,
    num_members: int,
    prior_scale: float | Array,
    prior_lm: LanguageModel | None = None,
) -> Ensemble:
    """Returns members with logits `f_theta_m + c p_m`, p_m a frozen random prior function.

    All members start at, and are pulled to, the pretrained theta_0 (with unit scale); they differ
    by their frozen p_m and their own exponential weights.

    Source: Osband, Aslanides, Cassirer, Randomized Prior Functions for Deep Reinforcement Learning,
    https://arxiv.org/abs/1806.03335.

    Args:
      lm: the language model f.
      params: theta_0, the pretrained parameters.
      num_members: M.
      prior_scale: c >= 0, the scale of the prior functions' logits.
      prior_lm: the network of the p_m, drawn by its `init`; `lm` if None.

    Returns:
      An ensemble; `own` are M `PriorFunction`s, `shared` is empty.

    Raises:
      ValueError: if there is no member.
    """
    check_members(num_members)
    prior_lm = lm if prior_lm is None else prior_lm

    def init(key: Key) -> tuple[Params, Params]:
        trained = gaussian_draws(key, params, 0.0, num_members)
        prior = jax.vmap(prior_lm.init)(jax.random.split(jax.random.fold_in(key, 1), num_members))
        return (), PriorFunction(trained, prior)

    def apply(
        shared: Params, own: PriorFunction, tokens: Array, *, valid: Array | None = None
    ) -> Array:
        del shared
        prior = prior_lm.apply(jax.lax.stop_gradient(own.prior), tokens, valid=valid)
        return lm.apply(own.params, tokens, valid=valid) + prior_scale * prior

    return Ensemble(
        init=init,
        apply=apply,
        penalty=lambda own, anchor: anchor_penalty(own.params, anchor.params, 1.0),
        observation_weights=exponential_weights(num_members),
    )


def point_estimate(lm: LanguageModel, params: Params, *, prior_scale: float | Array) -> Ensemble:
    """Returns the maximum a posteriori learner as an ensemble of one.

    It minimises `sum_i nll_i(theta) + |theta - theta_0|^2 / (2 sigma^2)`: the anchor are the
    pretrained parameters, and all weights are 1. A member of another ensemble is not a point
    estimate but a sample of the posterior.

    Args:
      lm: the language model.
      params: theta_0, the pretrained parameters.
      prior_scale: sigma > 0.

    Returns:
      An ensemble of one.
    """

    def init(key: Key) -> tuple[Params, Params]:
        del key
        return (), jax.tree.map(lambda leaf: leaf[None], params)

    return Ensemble(
        init=init,
        apply=_apply_own(lm),
        penalty=lambda own, anchor: anchor_penalty(own, anchor, prior_scale),
    )


def _apply_own(lm: LanguageModel) -> Callable[..., Array]:
    def apply(shared: Params, own: Params, tokens: Array, *, valid: Array | None = None) -> Array:
        del shared
        return lm.apply(own, tokens, valid=valid)

    return apply


def exponential_weights(num_members: int) -> Callable[[Key, tuple[int, ...]], Array]:
    """Returns `(key, shape) -> [M, *shape]`, each member's own Exp(1) weights."""

    def observation_weights(key: Key, shape: tuple[int, ...]) -> Array:
        return jax.random.exponential(key, (num_members, *shape))

    return observation_weights


def start_at(start: Start, centre: Callable[[Params], Params]) -> Callable[[Params], Params]:
    """Returns `(anchor_of_one) -> own_of_one`: the anchor itself, or the centre of its prior.

    Args:
      start: "draw" or "centre".
      centre: `(anchor_of_one) -> own_of_one`, the centre.

    Returns:
      The function.

    Raises:
      ValueError: if there is no such start.
    """
    if start not in get_args(Start):
        raise ValueError(f'start must be "draw" or "centre", found {start!r}')
    return centre if start == "centre" else lambda anchor: anchor


def check_members(num_members: int) -> None:
    """Raises an error if an ensemble has no members.

    Raises:
      ValueError: naming the number found.
    """
    if num_members < 1:
        raise ValueError(f"an ensemble needs num_members >= 1, found {num_members}")
