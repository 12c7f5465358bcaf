"""Episodes of a model, and what is measured of them on held-out questions."""

import jax
import jax.numpy as jnp

from experiments.agency.agents import Agent
from experiments.agency.config import Config
from experiments.agency.worlds import shown_first
from shatter import documents, environments
from shatter.environments import Transcript
from shatter.numerics import masked_sum
from shatter.types import Array, Key, Metrics, Params

RIGHT = 0.5
"""An action that earns more is the right answer, in the library with the quote that proves it."""


def episodes(
    agent: Agent, params: Params, key: Key, questions: Key, num_tries: int, *, num_shown: int = 0
) -> Transcript:
    """Draws the model's episodes, several of every question.

    Args:
      agent: the model in its world.
      params: the model's parameters.
      key: a typed key.
      questions: the keys of Q questions.
      num_tries: K.
      num_shown: episodes of the expert that are shown before a question.

    Returns:
      Episodes, `[Q, K]` on every leaf.
    """
    world, limits = agent.world, agent.world.limits
    if num_shown:
        limits = limits | {"max_length": agent.context}

    def of_question(question: Key, key: Key) -> Transcript:
        state, prompt = world.environment.reset(question)
        show_key, draw_key = jax.random.split(key)
        if num_shown:
            prompt = shown_first(world, prompt, show_key, num_shown)
        same = world.environment._replace(reset=lambda _: (state, prompt))
        play = lambda key: environments.rollout(agent.lm, params, key, same, **limits)
        return jax.vmap(play)(jax.random.split(draw_key, num_tries))

    return jax.vmap(of_question)(questions, jax.random.split(key, questions.shape[0]))


def draw_questions(keys: Key, key: Key, number: int) -> Key:
    """Returns some of the keys `[N]` of questions, drawn with replacement: `[number]`."""
    return keys[jax.random.randint(key, (number,), 0, keys.shape[0])]


def log_probs(agent: Agent, params: Params, tokens: Array) -> Array:
    """Returns the log-probs of tokens, `[..., T]`, nats."""
    return documents.token_log_probs(agent.lm.apply(params, tokens), tokens)


def returns(config: Config, seen: Transcript) -> Array:
    """Returns the sum of the rewards of every episode.

    An episode that was cut pays for the turns that it did not take, because actions that are too
    long would otherwise save their price by leaving no room.

    Args:
      config: the config.
      seen: episodes.

    Returns:
      `[...]`.
    """
    left = seen.rewards.shape[-1] - seen.num_turns
    return jnp.sum(seen.rewards, axis=-1) - jnp.where(seen.done, 0.0, config.price * left)


def values(agent: Agent, params: Params, seen: Transcript) -> Array:
    """Returns what a model says of finished episodes: log-odds of the reward.

    They are the logit of token 0 less that of token 1, after the last token of an episode, because
    the model has no use for a next one.

    Args:
      agent: the model in its world.
      params: the parameters of the value.
      seen: episodes.

    Returns:
      `[...]`, nats.
    """
    logits = agent.lm.apply(params, seen.tokens)
    last = jnp.sum(seen.valid, axis=-1, keepdims=True) - 1
    ends = jnp.take_along_axis(logits, last[..., None], axis=-2)[..., 0, :]
    return ends[..., 0] - ends[..., 1]


def measure(
    config: Config,
    agent: Agent,
    params: Params,
    reference: Params,
    key: Key,
    *,
    judge: tuple[Params, Array] | None = None,
    num_shown: int = 0,
) -> Metrics:
    """Measures the model's episodes on held-out questions of every kind.

    Args:
      config: the config.
      agent: the model in its world.
      params: the parameters of the policy.
      reference: the parameters that the KL is taken from.
      key: a typed key.
      judge: the parameters of a value, by which one try of every question is chosen, and whether
        it has learned, without which the first one is; None = the mean of all tries.
      num_shown: episodes of the expert that are shown before a question.

    Returns:
      Metrics, each `[]`.
    """
    question_key, draw_key = jax.random.split(key)
    held_out = agent.world.held_out
    asked = [
        draw_questions(keys, jax.random.fold_in(question_key, i), config.num_evaluated)
        for i, keys in enumerate(held_out.values())
    ]
    seen = episodes(
        agent, params, draw_key, jnp.concatenate(asked), config.num_tries, num_shown=num_shown
    )
    weights = jnp.full(seen.done.shape, 1 / config.num_tries)
    if judge is not None:
        best = jnp.where(judge[1], jnp.argmax(values(agent, judge[0], seen), axis=1), 0)
        weights = jax.nn.one_hot(best, config.num_tries)
    metrics: Metrics = {}
    for i, split in enumerate(held_out):
        rows = slice(i * config.num_evaluated, (i + 1) * config.num_evaluated)
        part = jax.tree.map(lambda leaf: leaf[rows], seen)  # noqa: B023
        found = _episode_metrics(config, part, weights[rows])
        metrics |= {f"{name}_{split}": found[name] for name in ("success", "return")}
        if i == 0:
            metrics |= found | {"kl_from_reference": _kl(agent, part, params, reference)}
    return metrics


def _kl(agent: Agent, seen: Transcript, params: Params, reference: Params) -> Array:
    """Returns an estimate of KL(policy || reference), nats an episode."""
    score = lambda params: masked_sum(log_probs(agent, params, seen.tokens), seen.is_action)
    return jnp.mean(score(params) - score(reference))


def _episode_metrics(config: Config, seen: Transcript, weights: Array) -> Metrics:
    """Returns measures of episodes `[Q, K]`, of which some count, and what all have cost."""
    is_right = jnp.max(seen.rewards, axis=-1) > RIGHT
    mean = lambda leaf: jnp.mean(jnp.sum(weights * leaf, axis=1))
    used = jnp.sum(seen.is_action, axis=-1).astype(float)
    return {
        "success": mean(is_right),
        "best_of_tries": jnp.mean(jnp.any(is_right, axis=1)),
        "return": mean(returns(config, seen)),
        "actions": mean(seen.num_turns),
        "invalid": jnp.sum(seen.num_invalid) / jnp.sum(seen.num_turns),
        "written_tokens": jnp.mean(used),
    }
