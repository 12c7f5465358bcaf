"""The compiled functions of an ensemble, shared by all projects of the same settings."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from shatter import models, training
from shatter.cli.common.compiling import compiler_options
from shatter.cli.common.frozen import Table
from shatter.cli.common.learners import Learner, Setting, make_learner
from shatter.types import Array, Key, Params


class Programs(NamedTuple):
    """Compiled functions of an ensemble.

    Attributes:
      init: `(base, num_features, prior_scale, key) -> members` without a table.
      learn: `(prior_scale, (shared, table), anchors[M], states[M], store, key) -> states`.
      utilities: `(prior_scale, shared, own, items[...]) -> [M, ...]`.
    """

    init: Callable[..., training.Members]
    learn: Callable[..., training.TrainState]
    utilities: Callable[..., Array]


@functools.cache
def programs(setting: Setting, transformer: models.TransformerConfig) -> Programs:
    """Returns the compiled functions of a kind of ensemble on a model."""

    def learner(prior_scale: Array, base: Params, num_features: int) -> Learner:
        return make_learner(
            setting, transformer, base, num_features=num_features, prior_scale=prior_scale
        )

    def init(base: Params, num_features: int, prior_scale: Array, key: Key) -> training.Members:
        made = learner(prior_scale, base, num_features)
        ensemble_key, member_key = jax.random.split(key)
        shared, own = made.ensemble.init(ensemble_key)
        return made.members.init((shared, {}), own, member_key)

    def learn(
        prior_scale: Array, shared: Any, anchors: Params, states: Any, store: Any, key: Key
    ) -> training.TrainState:
        base, table = shared
        members = training.Members(shared, anchors, states)
        made = learner(prior_scale, base, width(table))
        return made.members.learn(members, store, key)[0].states

    def utilities(prior_scale: Array, shared: Any, own: Params, items: Array) -> Array:
        base, table = shared
        return learner(prior_scale, base, width(table)).utilities(shared, own, items)

    options = compiler_options()
    return Programs(
        jax.jit(init, static_argnums=1, compiler_options=options),
        jax.jit(learn, compiler_options=options),
        jax.jit(utilities, compiler_options=options),
    )


def width(table: Table) -> int:
    """Returns the number of features of a text; 0 if the table has none."""
    return table["features"].shape[-1] if "features" in table else 0
