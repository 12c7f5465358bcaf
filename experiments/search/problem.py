"""The problem of the exact setting: a model, the gold reward, a reward model, a twist."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.common.didactic import EOS, World
from experiments.search.config import Settled
from shatter import choice, documents, ensembles, losses
from shatter.types import Array, Key, Params

PROMPT = jnp.array([0])
_ANCHORS = 1_000  # samples that set the factors of a learned twist


class Problem(NamedTuple):
    """What a seed draws once.

    Attributes:
      params: the model's.
      gold_weights: `[F]`, of the counts, in the gold reward.
      gold_table: the rest of the gold reward, a number for every token after a prefix.
      centre: `[]`, what is taken from the gold reward, so that its mean is 0 under the model.
      weights: `[F]`, the reward model's.
      learned_centre: `[]`, what is taken from its reward, for the same reason.
      twist: the parameters of a table that is the twist.
      twist_tokens: int `[]`, tokens that were sampled to learn it.
    """

    params: Params
    gold_weights: Array
    gold_table: Params
    centre: Array
    weights: Array
    learned_centre: Array
    twist: Params
    twist_tokens: Array


def counts(config: Settled, tokens: Array, mask: Array) -> Array:
    """Returns how often every token and every pair of tokens is said, `[N, V + V^2]`."""
    size = config.vocab_size
    said = jax.nn.one_hot(tokens, size) * mask[..., None]
    pairs = jnp.einsum("nta,ntb->nab", said[:, :-1], said[:, 1:])
    return jnp.concatenate([jnp.sum(said, axis=1), pairs.reshape(len(tokens), -1)], axis=1)


def least_squares(law: Array, features: Array, values: Array) -> Array:
    """Returns the weights of the linear function of features that explains most under a law."""
    root = jnp.sqrt(law)[:, None]
    centred = features - (law @ features)[None]
    return jnp.linalg.lstsq(root * centred, root[:, 0] * (values - law @ values))[0]


def gold_reward(
    config: Settled, world: World, problem: Problem, tokens: Array, mask: Array
) -> Array:
    """Returns the gold reward of documents, `[N]`."""
    linear = counts(config, tokens, mask) @ problem.gold_weights
    return linear + _along(world, problem.gold_table, tokens, mask) - problem.centre


def learned_reward(config: Settled, problem: Problem, tokens: Array, mask: Array) -> Array:
    """Returns the reward model's reward of documents, `[N]`."""
    return counts(config, tokens, mask) @ problem.weights - problem.learned_centre


def draw_problem(config: Settled, world: World, key: Key) -> Problem:
    """Draws a model and a gold reward, and learns the reward model and the twist."""
    model_key, weight_key, table_key, ask_key, answer_key, twist_key = jax.random.split(key, 6)
    params = world.table.init(model_key)
    law, (tokens, mask) = jnp.exp(world.log_probs(params)), world.space
    share = jnp.sqrt(jnp.array([1.0 - config.misfit, config.misfit]))
    num_features = config.vocab_size + config.vocab_size**2
    weights = jax.random.normal(weight_key, (num_features,))
    weights = weights / jnp.sqrt(_variance(law, counts(config, tokens, mask) @ weights))
    table = jax.random.normal(table_key, params.shape)
    rest, of_counts = _along(world, table, tokens, mask), counts(config, tokens, mask)
    explained = least_squares(law, of_counts, rest)
    scale = share[1] / jnp.sqrt(_variance(law, rest - of_counts @ explained))
    problem = Problem(
        params=params,
        gold_weights=share[0] * weights - scale * explained,
        gold_table=scale * table,
        centre=jnp.zeros(()),
        weights=jnp.zeros(num_features),
        learned_centre=jnp.zeros(()),
        twist=jnp.zeros(params.shape),
        twist_tokens=jnp.zeros((), int),
    )
    gold = gold_reward(config, world, problem, tokens, mask)
    problem = problem._replace(centre=law @ gold)
    problem = problem._replace(weights=_learn_reward(config, world, problem, ask_key, answer_key))
    learned = learned_reward(config, problem, tokens, mask)
    problem = problem._replace(learned_centre=law @ learned)
    if config.twist == "exact":
        return problem._replace(twist=_exact_twist(config, world, problem))
    twist, num_tokens = _learn_twist(config, world, problem, twist_key)
    return problem._replace(twist=twist, twist_tokens=num_tokens)


def _learn_reward(
    config: Settled, world: World, problem: Problem, ask_key: Key, answer_key: Key
) -> Array:
    """Returns the weights of a reward model, from choices by the gold reward between samples."""
    drawn = _sample(config, world, problem.params, ask_key, 2 * config.num_comparisons)
    gold = gold_reward(config, world, problem, *drawn).reshape(-1, 2)
    chosen = choice.luce_sample(answer_key, gold)
    features = counts(config, *drawn).reshape(*gold.shape, -1)
    return ensembles.fit_laplace(features, jax.nn.one_hot(chosen, 2), prior_scale=1.0).mean


def _learn_twist(config: Settled, world: World, problem: Problem, key: Key) -> tuple[Params, Array]:
    """Returns a twist for the learned reward, from samples of the model, and their tokens."""
    optimizer = optax.adam(config.twist_rate)

    def loss(table: Params, tokens: Array, mask: Array) -> Array:
        logits = world.table.apply(table, tokens[:, :-1])
        log_twists = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
        gains = learned_reward(config, problem, tokens, mask) / config.beta
        return losses.contrastive_twist_loss(log_twists, gains, mask[:, 1:])

    def step(carry: tuple[Params, Any], key: Key) -> tuple[tuple[Params, Any], Array]:
        table, state = carry
        tokens, mask = _sample(config, world, problem.params, key, config.batch_size)
        updates, state = optimizer.update(jax.grad(loss)(table, tokens, mask), state)
        return (optax.apply_updates(table, updates), state), jnp.sum(mask)

    start = jnp.zeros(problem.params.shape)
    learn_key, anchor_key = jax.random.split(key)
    keys = jax.random.split(learn_key, config.twist_steps)
    (table, _), num_tokens = jax.lax.scan(step, (start, optimizer.init(start)), keys)
    tokens, mask = _sample(config, world, problem.params, anchor_key, _ANCHORS)
    table = _anchored(config, world, problem, table, tokens, mask)
    return table, jnp.sum(num_tokens) + jnp.sum(mask)


def _anchored(
    config: Settled, world: World, problem: Problem, table: Params, tokens: Array, mask: Array
) -> Params:
    """Returns the twist with the factor at each length that makes its mean that of the potential.

    The mean is over samples of the model that have a token there.
    """
    logits = world.table.apply(table, tokens[:, :-1])
    log_twists = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    gains = learned_reward(config, problem, tokens, mask)[:, None] / config.beta
    total = lambda logs: jax.nn.logsumexp(jnp.where(mask[:, 1:], logs, -jnp.inf), axis=0)
    shifts = total(jnp.broadcast_to(gains, log_twists.shape)) - total(log_twists)
    sizes = [config.vocab_size**t for t in range(config.max_length)]
    factors = jnp.repeat(shifts, jnp.array(sizes), total_repeat_length=sum(sizes))
    return table + factors[None, :, None]


def _exact_twist(config: Settled, world: World, problem: Problem) -> Params:
    """Returns the twist by enumeration: the soft values of the learned reward in units of beta."""
    tokens, mask = world.space
    levels = documents.prefix_log_probs(
        world.table,
        problem.params,
        vocab_size=config.vocab_size,
        max_length=config.max_length,
    )
    rewards = learned_reward(config, problem, tokens, mask)
    values, policy = documents.posterior_policy(
        levels, rewards, tokens, mask, beta=config.beta, eos=EOS
    )
    twists = [
        pi - p0 + value[:, None] / config.beta
        for pi, p0, value in zip(policy, levels, values, strict=True)
    ]
    return jnp.concatenate(twists)[None]


def train_policy(config: Settled, world: World, problem: Problem, key: Key) -> tuple[Array, Array]:
    """Trains a policy by RLOO on the learned reward less the KL from the model.

    Returns:
      Its law over all documents after every step, `[1 + steps, D]`, nats, and the tokens that were
      sampled by then, `[1 + steps]`.
    """
    optimizer = optax.adam(config.policy_rate)

    def loss(table: Params, tokens: Array, mask: Array) -> Array:
        log_probs = documents.document_log_probs(world.table, table, tokens, mask)
        ref = documents.document_log_probs(world.table, problem.params, tokens, mask)
        gains = learned_reward(config, problem, tokens, mask) - config.beta * (log_probs - ref)
        return jnp.mean(losses.rloo_loss(log_probs, gains))

    def step(carry: tuple[Params, Any], key: Key) -> tuple[tuple[Params, Any], tuple]:
        table, state = carry
        tokens, mask = _sample(config, world, table, key, config.batch_size)
        updates, state = optimizer.update(jax.grad(loss)(table, tokens, mask), state)
        table = optax.apply_updates(table, updates)
        return (table, state), (world.log_probs(table), jnp.sum(mask))

    start = (problem.params, optimizer.init(problem.params))
    keys = jax.random.split(key, config.policy_steps)
    _, (laws, num_tokens) = jax.lax.scan(step, start, keys)
    laws = jnp.concatenate([world.log_probs(problem.params)[None], laws])
    return laws, jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(num_tokens)])


def _sample(
    config: Settled, world: World, params: Params, key: Key, number: int
) -> tuple[Array, Array]:
    drawn = documents.sample(
        world.table,
        params,
        key,
        PROMPT,
        num_samples=number,
        max_length=config.max_length,
        eos=EOS,
    )
    return drawn.tokens, drawn.mask


def _along(world: World, table: Params, tokens: Array, mask: Array) -> Array:
    """Returns the sum of a table's numbers along documents, `[N]`."""
    numbers = world.table.apply(table, tokens[:, :-1])
    numbers = jnp.take_along_axis(numbers, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(mask[:, 1:], numbers, 0.0), axis=1)


def _variance(law: Array, values: Array) -> Array:
    return law @ jnp.square(values - law @ values)
