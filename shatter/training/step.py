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
    """The state of a learner.

    Attributes:
      params: the parameters that are trained.
      opt_state: the optimiser's state; an `Accumulated` where an update has several batches.
      key: a typed key; update t uses `fold_in(key, t)`.
      step: int `[]`, number of updates made.
    """

    params: Params
    opt_state: optax.OptState
    key: Key
    step: Array


class Accumulated(NamedTuple):
    """The optimiser's state between the batches of an update.

    Attributes:
      opt_state: the optimiser's own state.
      gradient: the sum of the gradients of this update's batches so far.
      num_batches: int `[]`, how many batches those are.
    """

    opt_state: optax.OptState
    gradient: Params
    num_batches: Array


class Learner(NamedTuple):
    """A learner: `init(params, key) -> state`, `step(state, frozen, batch) -> (state, metrics)`."""

    init: Callable[[Params, Key], TrainState]
    step: Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]


def learner(
    objective: Objective, optimizer: optax.GradientTransformation, *, num_batches: int = 1
) -> Learner:
    """Returns a learner of one objective by one optimiser.

    Members and seeds are lifted by vmap, so that they do not affect each other.

    An update is made of `num_batches` steps, one for each batch. Its gradient is the sum of the
    batches' gradients and its loss the sum of their losses. So an objective divides by the size of
    the whole update, which is then the same however it is cut into batches. All batches of an
    update get the same key.

    Args:
      objective: `(trainable, frozen, key, batch) -> (loss, metrics)`.
      optimizer: an optax optimiser.
      num_batches: how many batches make an update, at least 1.

    Returns:
      `init` and `step`; the metrics of a step are the objective's, "loss", and "grad_norm", the
      norm of the update's gradient over the batches so far.

    Raises:
      ValueError: if `num_batches` is below 1.
    """
    if num_batches < 1:
        raise ValueError(f"a learner needs num_batches >= 1, found {num_batches}")

    def init(params: Params, key: Key) -> TrainState:
        opt_state = optimizer.init(params)
        if num_batches > 1:
            nothing = optax.tree.zeros_like(params)
            opt_state = Accumulated(opt_state, nothing, jnp.zeros((), int))
        return TrainState(params, opt_state, key, jnp.zeros((), int))

    def update(gradient: Params, opt_state: Any, params: Params) -> tuple[Params, Any]:
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def step(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        value_and_gradient = jax.value_and_grad(objective, has_aux=True)
        (loss, metrics), gradient = value_and_gradient(state.params, frozen, key, batch)
        held, num_updates = state.opt_state, 1
        if num_batches > 1:
            gradient = optax.tree.add(held.gradient, gradient)
        grad_norm = optax.tree.norm(gradient)
        checkify.debug_check(jnp.isfinite(loss), "the loss is {loss}", loss=loss)
        checkify.debug_check(
            jnp.isfinite(grad_norm), "the gradient's norm is {norm}", norm=grad_norm
        )
        if num_batches > 1:
            is_whole = held.num_batches + 1 == num_batches
            stay = lambda gradient, opt_state, params: (params, opt_state)
            params, opt_state = jax.lax.cond(
                is_whole, update, stay, gradient, held.opt_state, state.params
            )
            gradient = jax.tree.map(lambda leaf: jnp.where(is_whole, 0, leaf), gradient)
            num_in = (held.num_batches + 1) % num_batches
            opt_state, num_updates = Accumulated(opt_state, gradient, num_in), is_whole
        else:
            params, opt_state = update(gradient, held, state.params)
        metrics = {**metrics, "loss": loss, "grad_norm": grad_norm}
        return TrainState(params, opt_state, state.key, state.step + num_updates), metrics

    return Learner(init, step)
