"""A learner from an objective and an optax optimiser."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.experimental import checkify

from shatter.types import Array, Key, Metrics, Params

Objective = Callable[[Params, Any, Key, Any], tuple[Array, Metrics]]
"""`(trainable, frozen, key, batch) -> (loss[], metrics)`."""


class TrainState(NamedTuple):
    """What a learner carries.

    Attributes:
      params: what is trained.
      opt_state: the optimiser's state.
      key: a typed key; step t uses `fold_in(key, t)`.
      step: int `[]`, number of steps taken.
    """

    params: Params
    opt_state: optax.OptState
    key: Key
    step: Array


class Learner(NamedTuple):
    """A learner: `init(params, key) -> state`, `step(state, frozen, batch) -> (state, metrics)`."""

    init: Callable[[Params, Key], TrainState]
    step: Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]


def learner(objective: Objective, optimizer: optax.GradientTransformation) -> Learner:
    """Binds an objective to an optimiser. Members and seeds are lifted by vmap, so stay apart.

    Args:
      objective: `(trainable, frozen, key, batch) -> (loss, metrics)`.
      optimizer: an optax optimiser.

    Returns:
      `init` and `step`; the metrics of a step are the objective's and "loss" and "grad_norm".
    """

    def init(params: Params, key: Key) -> TrainState:
        return TrainState(params, optimizer.init(params), key, jnp.zeros((), int))

    def step(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        gradient = jax.value_and_grad(objective, has_aux=True)
        (loss, metrics), grads = gradient(state.params, frozen, key, batch)
        grad_norm = optax.tree.norm(grads)
        checkify.debug_check(jnp.isfinite(loss), "the loss is {loss}", loss=loss)
        checkify.debug_check(
            jnp.isfinite(grad_norm), "the gradient's norm is {norm}", norm=grad_norm
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {**metrics, "loss": loss, "grad_norm": grad_norm}
        return TrainState(params, opt_state, state.key, state.step + 1), metrics

    return Learner(init, step)
