"""The run of one seed of one arm: demonstrations, updates, measurements."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.agency.agents import Agent
from experiments.agency.config import Config
from experiments.agency.measures import (
    draw_questions,
    episodes,
    log_probs,
    measure,
    returns,
    values,
)
from experiments.agency.worlds import page_rows
from experiments.common.chunks import Chunk, Process
from shatter import losses
from shatter.cli.common.compiling import compiler_options
from shatter.environments import Transcript
from shatter.numerics import masked_sum
from shatter.types import Array, Key, Metrics, Params


class Setting(NamedTuple):
    """What is fixed in the run of an arm.

    Attributes:
      config: the config.
      agent: the model in its world.
      arm: one of `ARMS`.
    """

    config: Config
    agent: Agent
    arm: str


class Input(NamedTuple):
    """What differs between seeds.

    Attributes:
      key: a typed key.
      params: the first parameters.
    """

    key: Key
    params: Params


class Shared(NamedTuple):
    """Arrays that all seeds share.

    Attributes:
      pool: the expert's episodes, `[N]` on every leaf.
    """

    pool: Transcript


class State(NamedTuple):
    """What a seed carries from round to round.

    Attributes:
      params: the model's, or in the second half of imitation_search those of the learned value.
      opt_state: Adam's, of the phase that the arm is in.
      reference: the parameters at the start of the second phase, or the first ones before it.
      rows: int `[D]`, the seed's demonstrations in the pool.
      key: the source of all draws, by the number of the round.
    """

    params: Params
    opt_state: Any
    reference: Params
    rows: Array
    key: Key


_ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())


def first_inputs(config: Config, agent: Agent, start: str) -> Input:
    """Returns the inputs of all seeds, `[S]` on every leaf.

    The keys are those of the seeds from any start, so that arms are compared by pairs.

    Args:
      config: the config.
      agent: the model in its world.
      start: the weights at first, one of `STARTS`.

    Returns:
      The inputs; a transformer of our own has read pages if it is to be pretrained.
    """
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    if start == "pretrained" and agent.params is not None:
        repeat = lambda leaf: jnp.repeat(leaf.astype(float)[None], config.num_seeds, axis=0)
        return Input(keys, jax.tree.map(repeat, agent.params))
    first = partial(_first_params, config, agent)
    pages = None
    if start == "pretrained":
        pages = page_rows(agent.world, agent.context, np.random.default_rng(config.seed))
    every = lambda keys, pages: jax.lax.map(lambda key: first(key, pages), keys)
    return Input(keys, jax.jit(every, compiler_options=compiler_options())(keys, pages))


def _first_params(config: Config, agent: Agent, key: Key, pages: Array | None) -> Params:
    init_key, page_key = jax.random.split(jax.random.fold_in(key, 1))
    params = agent.lm.init(init_key)
    return params if pages is None else _read_pages(config, agent, params, pages, page_key)


def make_start(config: Config, agent: Agent, *, num_shown: int = 0) -> Callable[..., Any]:
    """Returns the start of a run, which arms share, so that it is compiled once.

    Args:
      config: the config.
      agent: the model in its world.
      num_shown: episodes of the expert in the context, for prompting.

    Returns:
      `(Input, Shared) -> (State, metrics)` of one seed.
    """
    return partial(_start, config, agent, num_shown)


def agency_process(setting: Setting, start: Callable[..., Any]) -> Process:
    """Returns the run of one seed.

    Args:
      setting: what is fixed.
      start: from `make_start`.

    Returns:
      The run, whose input is an `Input`, and which shares `Shared`.
    """
    return Process(start, partial(_rounds, setting))


def _is_second(setting: Setting, number: Array) -> Array:
    """Returns whether a round learns from the model's own episodes."""
    config = setting.config
    first = {"imitation": config.num_rounds, "rl": 0}
    return number >= first.get(setting.arm, config.imitation_rounds)


def _start(
    config: Config, agent: Agent, num_shown: int, given: Input, shared: Shared
) -> tuple[State, Metrics]:
    show_key, run_key, measure_key = jax.random.split(given.key, 3)
    number = shared.pool.tokens.shape[0]
    rows = jax.random.choice(show_key, number, (config.num_demonstrations,), replace=False)
    state = State(given.params, _ADAM.init(given.params), given.params, rows, run_key)
    metrics = measure(config, agent, given.params, given.params, measure_key, num_shown=num_shown)
    return state, metrics | {"trained_tokens": jnp.zeros(())}


def _rounds(
    setting: Setting, state: State, first_round: Array, chunk: Chunk, shared: Shared
) -> tuple[State, Metrics]:
    numbers = first_round + jnp.arange(chunk.num_rounds)
    return jax.lax.scan(partial(_one_round, setting, shared), state, numbers)


def _one_round(
    setting: Setting, shared: Shared, state: State, number: Array
) -> tuple[State, Metrics]:
    """Takes the updates of a round and measures."""
    config, arm = setting.config, setting.arm
    update_key, measure_key = jax.random.split(jax.random.fold_in(state.key, number))
    is_second = _is_second(setting, number)
    begins = is_second & ~_is_second(setting, number - 1)
    opt_state, reference = jax.tree.map(
        partial(jnp.where, begins),
        (_ADAM.init(state.params), state.params),
        (state.opt_state, state.reference),
    )
    later = config.rl_rate if arm == "imitation_rl" else config.learning_rate
    rate = jnp.where(is_second, later, config.learning_rate)
    shown = jax.tree.map(lambda leaf: leaf[state.rows], shared.pool)
    imitate = partial(_imitate, setting, shown)
    learn = partial(_judge if arm == "imitation_search" else _reinforce, setting, reference)

    def update(carry: tuple[Params, Any], key: Key) -> tuple[tuple[Params, Any], Array]:
        params, opt_state = carry
        # The round is one of all seeds, so that one branch is taken under vmap too.
        slope, num_tokens = jax.lax.cond(is_second, learn, imitate, params, key)
        return _adam_step(params, opt_state, slope, rate), num_tokens

    keys = jax.random.split(update_key, config.updates_per_round)
    carry, num_tokens = jax.lax.scan(update, (state.params, opt_state), keys)
    state = state._replace(params=carry[0], opt_state=carry[1], reference=reference)
    metrics = _measure(setting, state, is_second, measure_key)
    return state, metrics | {"trained_tokens": jnp.sum(num_tokens).astype(float)}


def _adam_step(
    params: Params, opt_state: Any, slope: Params, rate: Array | float
) -> tuple[Params, Any]:
    updates, opt_state = _ADAM.update(slope, opt_state)
    return jax.tree.map(lambda p, u: p - rate * u, params, updates), opt_state


def _read_pages(config: Config, agent: Agent, params: Params, pages: Array, key: Key) -> Params:
    """Returns parameters after next-token updates on plain text."""
    most = config.batch_size * agent.world.limits["max_length"]
    num_rows = max(1, most // pages.shape[1])

    def update(carry: tuple[Params, Any], key: Key) -> tuple[tuple[Params, Any], None]:
        rows = pages[jax.random.randint(key, (num_rows,), 0, pages.shape[0])]
        later = jnp.broadcast_to(jnp.arange(rows.shape[1]) > 0, rows.shape)
        loss = lambda params: jnp.mean(losses.sft_loss(log_probs(agent, params, rows), later))
        return _adam_step(*carry, jax.grad(loss)(carry[0]), config.learning_rate), None

    keys = jax.random.split(key, config.pretraining_updates)
    return jax.lax.scan(update, (params, _ADAM.init(params)), keys)[0][0]


def _imitate(setting: Setting, shown: Transcript, params: Params, key: Key) -> tuple[Params, Array]:
    """Returns the gradient of the next-token loss on the expert's actions, and the tokens read."""
    rows = jax.random.randint(key, (setting.config.batch_size,), 0, shown.tokens.shape[0])
    seen = jax.tree.map(lambda leaf: leaf[rows], shown)

    def loss(params: Params) -> Array:
        scores = log_probs(setting.agent, params, seen.tokens)
        return jnp.mean(losses.sft_loss(scores, seen.is_action))

    return jax.grad(loss)(params), jnp.sum(seen.valid)


def _own_episodes(setting: Setting, params: Params, key: Key) -> Transcript:
    config, agent = setting.config, setting.agent
    question_key, draw_key = jax.random.split(key)
    number = config.batch_size // config.num_samples
    questions = draw_questions(agent.world.train, question_key, number)
    return episodes(agent, params, draw_key, questions, config.num_samples)


def _reinforce(
    setting: Setting, reference: Params, params: Params, key: Key
) -> tuple[Params, Array]:
    """Returns the gradient of RLOO on the model's own episodes, less the KL from the reference."""
    seen = _own_episodes(setting, params, key)
    score = lambda params: masked_sum(log_probs(setting.agent, params, seen.tokens), seen.is_action)
    gains = returns(setting.config, seen)
    if setting.arm == "imitation_rl":
        drawn = masked_sum(seen.log_probs, seen.is_action)  # those of the parameters
        gains = gains - setting.config.beta * (drawn - score(reference))
    loss = lambda params: jnp.mean(losses.rloo_loss(score(params), gains))
    return jax.grad(loss)(params), jnp.sum(seen.valid)


def _judge(setting: Setting, policy: Params, params: Params, key: Key) -> tuple[Params, Array]:
    """Returns the gradient of the cross-entropy of the policy's returns, as `values` predicts them.

    Source: Cobbe et al., Training Verifiers to Solve Math Word Problems,
    https://arxiv.org/abs/2110.14168, whose verifier too begins as the model that acts; the return
    in the place of a label, and its value after the last token alone, are ours.
    """
    seen = _own_episodes(setting, policy, key)
    target = jnp.clip(returns(setting.config, seen), 0.0, 1.0)

    def loss(params: Params) -> Array:
        value = values(setting.agent, params, seen)
        return jnp.mean(optax.sigmoid_binary_cross_entropy(value, target))

    return jax.grad(loss)(params), jnp.sum(seen.valid)


def _measure(setting: Setting, state: State, is_second: Array, key: Key) -> Metrics:
    params, judge = state.params, None
    if setting.arm == "imitation_search":
        params = jax.tree.map(partial(jnp.where, is_second), state.reference, params)
        judge = (state.params, is_second)
    return measure(setting.config, setting.agent, params, state.reference, key, judge=judge)
