"""The run of one seed: a language model learns from sampled choices of one population."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.common.chunks import Chunk, Process
from experiments.common.didactic import TRANSFORMER
from experiments.iia.config import Config
from experiments.iia.objectives import Objective
from shatter import choice, documents, evaluation, models, training
from shatter.numerics import masked_sum
from shatter.types import Array, Key, Metrics, Params, item_query

LEARNING_RATE_RATIO = 0.05  # of a transformer's parameters to a table's logits


class Population(NamedTuple):
    """The population that is asked, and the size of its queries.

    Attributes:
      size: int `[]`, K.
      share: `[]`, how often the one message of type 1 is chosen among K - 1 of type 2.
    """

    size: Array
    share: Array


def num_messages(config: Config) -> int:
    """Returns the number of messages of each type."""
    return config.vocab_size**2 // 2


def make_process(config: Config, name: str, objective: Objective) -> Process:
    """Returns the run of one seed of one objective; its input is `(key, Population)`.

    p0 is the model at the start: a uniform table, or a transformer with random parameters.

    Args:
      config: the config.
      name: the objective's name; of "reward_model" the rewards are sums of raw logits, of others
        the scores are log-probs.
      objective: the objective.

    Returns:
      `start` and `rounds`; the metrics are the implied reward gap, a difference of means over the
      messages of each type, and type 1's share of the policy over all messages.
    """
    lm = _language_model(config)
    space = documents.enumerate_documents(vocab_size=config.vocab_size, max_length=2)
    messages = num_messages(config)

    def scores_of(params: Params) -> Array:
        logits = lm.apply(params, space[0])
        if name != "reward_model":
            return documents.log_prob(logits, *space)
        tokens = space[0][:, 1:, None]
        return masked_sum(jnp.take_along_axis(logits[:, :-1], tokens, -1)[..., 0], space[1][:, 1:])

    def mean_loss(params: Params, log_p0: Array, key: Key, population: Population) -> Any:
        query_key, rater_key = jax.random.split(key)
        items, valid = _draw_queries(query_key, config, population)
        ask = lambda key, items: _ask(key, items, valid, population.share)
        choices = jax.vmap(ask)(jax.random.split(rater_key, config.num_queries), items)
        scores = scores_of(params)
        loss = lambda items, choice: objective.choice_loss(
            scores[items], log_p0[items], choice, valid
        )
        return jnp.mean(jax.vmap(loss)(items, choices)), {}

    def evaluate(params: Params, log_p0: Array) -> Metrics:
        scores = scores_of(params)
        rewards = objective.rewards(scores, log_p0)
        policy = scores
        if name == "reward_model":
            policy, _ = evaluation.posterior_optimum(log_p0, rewards, beta=config.beta)
        gap = jnp.mean(rewards[:messages]) - jnp.mean(rewards[messages:])
        return {"gap": gap, "share": jnp.sum(jnp.exp(policy[:messages]))}

    rate = config.learning_rate * (1.0 if config.learner == "tabular" else LEARNING_RATE_RATIO)
    schedule = optax.cosine_decay_schedule(rate, config.num_rounds * config.num_steps)
    learner = training.learner(mean_loss, optax.adam(schedule))

    def start(seed: tuple[Key, Population]) -> tuple[Any, Metrics]:
        key, population = seed
        init_key, run_key = jax.random.split(key)
        params = lm.init(init_key)
        log_p0 = documents.document_log_probs(lm, params, *space)
        return (learner.init(params, run_key), log_p0, population), evaluate(params, log_p0)

    def rounds(carry: Any, first_round: Array, chunk: Chunk) -> tuple[Any, Metrics]:
        del first_round  # because a learner counts its own steps
        state, log_p0, population = carry

        def one_round(state: training.TrainState, _: None) -> tuple[training.TrainState, Metrics]:
            step = lambda state, _: (learner.step(state, log_p0, population)[0], None)
            state, _ = jax.lax.scan(step, state, length=config.num_steps)
            return state, evaluate(state.params, log_p0)

        state, metrics = jax.lax.scan(one_round, state, length=chunk.num_rounds)
        return (state, log_p0, population), metrics

    return Process(start, rounds)


def _language_model(config: Config) -> models.LanguageModel:
    if config.learner == "tabular":
        return models.tabular(vocab_size=config.vocab_size, max_length=2, init_scale=0.0)
    return models.transformer(
        models.TransformerConfig(vocab_size=config.vocab_size, max_length=3, **TRANSFORMER)
    )


def _draw_queries(key: Key, config: Config, population: Population) -> tuple[Array, Array]:
    """Draws queries of one message of type 1, in slot 0, and distinct messages of type 2.

    The queries of a step share one random order of the messages of type 2: each takes consecutive
    ones from a random place on, cyclically. That costs one sort a step, not one a query.

    Args:
      key: a typed key.
      config: has the numbers of queries, slots and messages.
      population: has K.

    Returns:
      Item ids int `[B, slots]`, and bool `[slots]`, true on the first K slots.
    """
    messages, slots = num_messages(config), max(config.sizes)
    first_key, order_key, start_key = jax.random.split(key, 3)
    shape = (config.num_queries, 1)
    firsts = jax.random.randint(first_key, shape, 0, messages)
    starts = jax.random.randint(start_key, shape, 0, messages)
    order = messages + jax.random.permutation(order_key, messages)
    others = order[(starts + jnp.arange(slots - 1)[None, :]) % messages]
    return jnp.concatenate([firsts, others], axis=1), jnp.arange(slots) < population.size


def _ask(key: Key, items: Array, valid: Array, share: Array) -> Array:
    """Draws the slot that a rater chooses."""
    query = item_query(items, valid=valid)
    types = lambda query: jnp.where(jnp.arange(len(items)) == 0, 1, 2)
    ranks = choice.dichotomy_rater(types, share)(key, query)
    return jnp.argmax(ranks == 1)
