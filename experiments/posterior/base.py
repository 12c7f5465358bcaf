"""The parts that every objective consists of, and the log-probs and samples of a policy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.common.didactic import World
from experiments.posterior.problem import Problem
from shatter import documents
from shatter.types import Array, Key, Params


class Setup(NamedTuple):
    """What all seeds and objectives share.

    Attributes:
      world: the model and all documents.
      batch_size: B, samples or comparisons in a batch.
    """

    world: World
    batch_size: int


class Trainable(NamedTuple):
    """The parameters that are trained where an objective has a policy and no value function."""

    policy: Params


def start_at_pretrained(problem: Problem) -> tuple[Trainable, tuple[()]]:
    """Returns the pretrained policy and an empty memory."""
    return Trainable(problem.params), ()


def keep_memory(setup: Setup, problem: Problem, trainable: Any, memory: Any, batch: Any) -> Any:
    """Returns the memory as it was."""
    del setup, problem, trainable, batch
    return memory


class Method(NamedTuple):
    """One objective: the functions and facts in which objectives differ.

    Attributes:
      draw: `(setup, problem, trainable, memory, key) -> batch`.
      loss: `(setup, problem, trainable, batch) -> []`.
      start: `(problem) -> (trainable, memory)`; the trainable has the field `policy`.
      remember: `(setup, problem, trainable, memory, batch) -> memory`, called before the gradient
        steps on the batch.
      epochs: gradient steps on each batch.
      knows_beta: whether the trained law depends on beta.
      by_target: whether the objective reads the target's log-probs instead of rewards and beta.
    """

    draw: Callable[[Setup, Problem, Any, Any, Key], Any]
    loss: Callable[[Setup, Problem, Any, Any], Array]
    start: Callable[[Problem], tuple[Any, Any]] = start_at_pretrained
    remember: Callable[[Setup, Problem, Any, Any, Any], Any] = keep_memory
    epochs: int = 1
    knows_beta: bool = True
    by_target: bool = False


def policy_tokens(world: World, params: Params) -> Array:
    """Returns the log-probs of the tokens of all documents, `[D, T]`, 0 outside the responses."""
    tokens, mask = world.space
    return jnp.where(mask, documents.token_log_probs(world.lm.apply(params, tokens), tokens), 0.0)


def policy(world: World, params: Params) -> Array:
    """Returns the log-probs of all documents, `[D]`."""
    return jnp.sum(policy_tokens(world, params), axis=-1)


def draw_documents(key: Key, log_probs: Array, batch_size: int) -> Array:
    """Draws documents from an exact law `[D]`; returns their indices `[B]`."""
    return jax.random.categorical(key, log_probs, shape=(batch_size,))


def draw_from_policy(
    setup: Setup, problem: Problem, trainable: Any, memory: Any, key: Key
) -> Array:
    """Draws a batch of documents from the policy; returns their indices `[B]`."""
    del problem, memory
    return draw_documents(key, policy(setup.world, trainable.policy), setup.batch_size)
