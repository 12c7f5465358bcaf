"""Stacked members: anchored, with prior functions, and the point estimate as an ensemble of one."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from shatter.ensembles.base import anchor_penalty, gaussian_draws
from shatter.models import LanguageModel
from shatter.types import Array, Ensemble, Key, Params


def anchored(
    lm: LanguageModel, params: Params, *, num_members: int, prior_scale: float | Array
) -> Ensemble:
    """M stacked members, each with its own prior draw as anchor and its own data weights.

    Member m minimises `sum_i w_mi nll_i(theta) + |theta - theta_m|^2 / (2 sigma^2)`,
    `theta_m = theta_0 + sigma eps_m`, `w_mi ~ Exp(1)`: its minimiser is a posterior sample, nearly.

    Source: Pearce et al., Uncertainty in Neural Networks: Approximately Bayesian Ensembling,
    https://arxiv.org/abs/1810.05546; Newton and Raftery, Approximate Bayesian Inference
    with the Weighted Likelihood Bootstrap (1994), for the weights.

    Args:
      lm: the language model.
      params: theta_0, the pretrained parameters.
      num_members: M.
      prior_scale: sigma > 0.

    Returns:
      An ensemble; `own` are M copies of the parameters, `shared` is empty.

    Raises:
      ValueError: if there is no member.
    """
    check_members(num_members)

    def init(key: Key) -> tuple[Params, Params]:
        return (), gaussian_draws(key, params, prior_scale, num_members)

    return Ensemble(
        init=init,
        apply=_apply_own(lm),
        penalty=lambda own, anchor: anchor_penalty(own, anchor, prior_scale),
        observation_weights=exponential_weights(num_members),
    )


class PriorFunction(NamedTuple):
    """A member with a prior function: what it trains, and what it never trains."""

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
    """Randomised prior functions: logits `f_theta_m + c p_m`, p_m a frozen random network.

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
    """The maximum a posteriori learner: anchor = pretrained parameters, unit weights, M = 1.

    Minimises `sum_i nll_i(theta) + |theta - theta_0|^2 / (2 sigma^2)`. This, not a member of an
    ensemble, is the point estimate: a member is a posterior sample.

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
    """Each member's own Exp(1) weight on every observation, `(key, shape) -> [M, *shape]`."""

    def observation_weights(key: Key, shape: tuple[int, ...]) -> Array:
        return jax.random.exponential(key, (num_members, *shape))

    return observation_weights


def check_members(num_members: int) -> None:
    """Refuses an ensemble without members.

    Raises:
      ValueError: naming what was found.
    """
    if num_members < 1:
        raise ValueError(f"an ensemble needs num_members >= 1, found {num_members}")
