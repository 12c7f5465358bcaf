"""The arms that choose what to ask, and what `v_optimal` is told about a pool."""

import functools
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from shatter import exploration
from shatter.cli.label.config import ArmName, ProposeConfig
from shatter.exploration import QueryArm
from shatter.types import Array, Key

ARMS: dict[str, QueryArm] = {
    "random": exploration.uniform_queries,
    "boltzmann": exploration.boltzmann_queries,
    "thompson": exploration.thompson_queries,
    "double_thompson": exploration.double_thompson_queries,
    "infomax": exploration.infomax_queries,
    "variance": exploration.variance_queries,
    "joint_infomax": exploration.joint_infomax_queries,
    "v_optimal": exploration.v_optimal_choices,
}
assert tuple(ARMS) == get_args(ArmName)
TEMPERED = ("boltzmann",)  # arms with a temperature
MOST_RESPONSES = {"v_optimal": 2000}  # of all candidates, for arms that hold their covariance


def num_candidates(config: ProposeConfig) -> int:
    """Returns among how many comparisons a batch is chosen."""
    most = MOST_RESPONSES.get(config.arm)
    if most is None:
        return config.num_candidates
    return min(config.num_candidates, max(most // config.num_responses, config.num_queries))


def compiled_arm(config: ProposeConfig, items: np.ndarray, prompt_ids: np.ndarray) -> QueryArm:
    """Returns the compiled arm of a project.

    Where utilities are log-probs, or these up to the frozen model's, v_optimal is about the law of
    the responses, in which every prompt has the same weight (`law_of_prompts`).

    Args:
      config: the arm, its temperature, and the kind of utilities.
      items: `[Q, K]`, the candidates' items; -1 = an empty slot.
      prompt_ids: of each item, the number of its prompt.
    """
    is_of_law = config.ensemble == "adapters" and config.utility in ("sum", "tilt")
    if config.arm == "v_optimal" and is_of_law:
        _, prompts = np.unique(np.asarray(prompt_ids)[items[:, 0]], return_inverse=True)
        law = jnp.asarray(law_of_prompts(items, prompt_ids))
        same = jnp.asarray(items[:, :, None, None] == items)
        return functools.partial(_v_optimal_law, law=law, prompts=jnp.asarray(prompts), same=same)
    return _compiled(config.arm, config.temperature)


def law_of_prompts(items: np.ndarray, prompt_ids: np.ndarray) -> np.ndarray:
    """Returns the law of candidates: every prompt alike, and every text alike among its prompt's.

    Texts that the model sampled stand for its law like that, once each. Log-probs summed over
    tokens cannot weigh the texts of several prompts, because they are no law over all of them: the
    shortest texts would have nearly all the weight.

    Args:
      items: `[Q, K]`, the candidates' items; -1 = an empty slot.
      prompt_ids: of each item, the number of its prompt.

    Returns:
      `[Q, K]`, log-weights whose sum over each prompt is 1, -inf on empty slots. The copies of a
      text that several candidates have share its weight.
    """
    texts, number, copies = np.unique(items, return_inverse=True, return_counts=True)
    prompts = np.where(texts < 0, -1, np.asarray(prompt_ids)[texts])
    _, prompt, num_texts = np.unique(prompts, return_inverse=True, return_counts=True)
    log_weights = np.where(texts < 0, -np.inf, -np.log(num_texts[prompt] * copies))
    return log_weights[number.reshape(items.shape)]


@functools.cache
def _compiled(name: ArmName, temperature: float) -> Callable[..., Array]:
    """Returns the compiled arm of a name."""
    settings: dict[str, Any] = {"temperature": temperature} if name in TEMPERED else {}
    return jax.jit(functools.partial(ARMS[name], **settings), static_argnames="num_queries")


@functools.partial(jax.jit, static_argnames="num_queries")
def _v_optimal_law(
    key: Key,
    log_probs: Array,
    *,
    valid: Array,
    num_queries: int,
    law: Array,
    prompts: Array,
    same: Array,
) -> Array:
    """Asks about the laws of the prompts: the variance of log-probs `[M, Q, K]` within a prompt.

    KL(q || pi) of a prompt is about the log-probs relative to their mean under its law; that mean
    itself, which differs between members, is no error of the law.
    """
    sums = jnp.sum(jnp.exp(law)[None] * log_probs, axis=2)
    means = jax.vmap(lambda some: jax.ops.segment_sum(some, prompts, len(prompts)))(sums)
    centred = log_probs - means[:, prompts, None]
    return exploration.v_optimal_queries(
        key, centred, valid=valid, num_queries=num_queries, law=law, same=same
    )
