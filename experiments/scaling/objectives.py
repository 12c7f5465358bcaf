"""What is learned from which texts: the losses of all arms, of one seed of one model."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.scaling.config import Config
from experiments.scaling.language import Documents, Language
from shatter import documents, losses
from shatter.types import Array, Key, Params

Loss = tuple[Array, dict[str, Array]]
"""The loss and no metrics, as a learner takes them."""


class Material(NamedTuple):
    """A seed's texts as the tokens of one model; of several seeds with an axis S before the others.

    Attributes:
      demonstrations: `[N, L]` on every leaf.
      pairs: `[N, 2, L]`.
      choices: int `[N]`.
      prompts: int `[N, P]`, and bool `[N, P]`.
      evaluated: int `[E, P']`, and bool `[E, P']`.
      shots: the same prompts after demonstrations, int `[E, P'']`, and bool `[E, P'']`.
    """

    demonstrations: Documents
    pairs: Documents
    choices: Any
    prompts: tuple[Any, Any]
    evaluated: tuple[Any, Any]
    shots: tuple[Any, Any]


class Setting(NamedTuple):
    """What is static: the config, the model, and the largest number of a response's tokens."""

    config: Config
    language: Language
    max_length: int


def log_prob(setting: Setting, params: Params, seen: Documents) -> Array:
    """Returns the log-probs of responses, summed over their tokens, `[...]`, nats."""
    logits = setting.language.lm.apply(params, seen.tokens, valid=seen.valid)
    return documents.log_prob(logits, seen.tokens, seen.mask)


def reward(setting: Setting, reward_params: Params, seen: Documents) -> Array:
    """Returns the reward of documents: linear in the features of the last token, `[...]`, nats."""
    features: Any = setting.language.lm.features
    found = features(reward_params["model"], seen.tokens, valid=seen.valid)
    last = seen.mask.shape[-1] - 1 - jnp.argmax(seen.mask[..., ::-1], axis=-1)
    ends = jnp.take_along_axis(found, last[..., None, None], axis=-2)[..., 0, :]
    return ends @ reward_params["head"]


def draw(
    setting: Setting, params: Params, key: Key, prompts: tuple[Array, Array], number: int
) -> tuple[Documents, Array]:
    """Draws responses `[B, number, L]`, with their log-probs `[B, number]`, nats."""
    tokens, valid = prompts
    drawn = documents.sample(
        setting.language.lm,
        params,
        key,
        tokens,
        num_samples=number,
        max_length=setting.max_length,
        eos=setting.language.ends,
        valid=valid,
    )
    shape = drawn.mask.shape
    before = jnp.broadcast_to(valid[:, None], (*shape[:2], valid.shape[1]))
    after = jnp.ones((*shape[:2], setting.max_length), bool)
    seen = Documents(drawn.tokens, drawn.mask, jnp.concatenate([before, after], axis=-1))
    return seen, drawn.raw_log_probs


def _rows(tree: Any, rows: Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def sft_loss(setting: Setting, params: Params, frozen: Any, key: Key, rows: Array) -> Loss:
    """Returns the mean loss of demonstrations."""
    _, material = frozen
    seen = _rows(material.demonstrations, rows)
    logits = setting.language.lm.apply(params, seen.tokens, valid=seen.valid)
    log_probs = documents.token_log_probs(logits, seen.tokens)
    return jnp.mean(losses.sft_loss(log_probs, seen.mask)), {}


def pairs_loss(setting: Setting, params: Params, frozen: Any, key: Key, rows: Array) -> Loss:
    """Returns the mean loss of comparisons by scaled utilities.

    By the tilt it is ILHF's, and with the scale beta DPO's; by the whole log-prob it is ILHF's in
    the literal form.
    """
    base, (material, how) = frozen
    seen, choices = _rows((material.pairs, material.choices), rows)
    now, before = log_prob(setting, params, seen), log_prob(setting, base, seen)
    utilities = how[0] * losses.tilted_utilities(now, before, base_share=how[1])
    return jnp.mean(losses.ilhf_loss(utilities, choices)), {}


def reward_loss(setting: Setting, params: Params, frozen: Any, key: Key, rows: Array) -> Loss:
    """Returns the mean loss of the reward model on comparisons."""
    _, material = frozen
    seen, choices = _rows((material.pairs, material.choices), rows)
    return jnp.mean(losses.reward_model_loss(reward(setting, params, seen), choices)), {}


def rl_loss(setting: Setting, params: Params, frozen: Any, key: Key, rows: Array) -> Loss:
    """Returns RLOO's mean loss on fresh samples, with the KL from the reference in the reward."""
    _, (material, reference, reward_params) = frozen
    config = setting.config
    prompts = _rows(material.prompts, rows)
    seen, _ = draw(setting, jax.lax.stop_gradient(params), key, prompts, config.num_samples)
    now = log_prob(setting, params, seen)
    penalty = config.beta * (now - log_prob(setting, reference, seen))
    gains = reward(setting, reward_params, seen) - jax.lax.stop_gradient(penalty)
    return jnp.mean(losses.rloo_loss(now, gains)), {}
