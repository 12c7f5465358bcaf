"""Ensembles and a member's utility of a text, from rows of a table of texts."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from experiments.active.config import Setting
from experiments.active.tables import mean_log_prob
from shatter import ensembles, evaluation, losses, models, training
from shatter.ensembles.epinet import epinet
from shatter.ensembles.heads import heads
from shatter.types import Array, Key, Params, Query

LORA_TARGETS = ("query", "value", "mlp_out")
AT_ONCE = 64  # texts that go through the last block of a member together
SCALE_PAIRS = 64  # of the pool, by which the prior scale of adapters is set
Table = Any
"""What is known of N texts: arrays `[N, ...]` by name."""


class Learner(NamedTuple):
    """How the members of a kind learn and judge.

    Attributes:
      ensemble: the ensemble.
      members: the learner of its members; `shared` is `(the ensemble's shared, table)`.
      utilities: `((shared, table), own[M], items[...]) -> [M, ...]`, nats.
    """

    ensemble: ensembles.Ensemble
    members: training.MembersLearner
    utilities: Callable[[Any, Params, Array], Array]


def make_learner(
    setting: Setting,
    transformer: models.TransformerConfig | None,
    base: Params,
    num_features: int,
    prior_scale: float | Array,
) -> Learner:
    """Puts an ensemble, its utility and an optimiser together.

    Args:
      setting: the kind of ensemble and how it learns.
      transformer: of the frozen model; only adapters need it.
      base: its parameters, likewise.
      num_features: width of the features; only heads and epinets need it.
      prior_scale: as in the ensemble's own function.

    Returns:
      The learner.
    """
    num_members = setting.num_members
    utility: Callable[[Any, Params, Table], Array]
    if setting.kind == "adapters":
        assert transformer is not None
        layers = models.split_layers(transformer, transformer.num_layers - 1)
        lora = models.LoraConfig(setting.config.lora_r, float(setting.config.lora_r), LORA_TARGETS)
        ensemble = ensembles.adapters(
            layers.upper, base, lora, num_members=num_members, prior_scale=prior_scale
        )
        utility = functools.partial(adapter_utility, ensemble, setting.config.utility_scale)
    else:
        make = {"heads": heads, "epinet": epinet}[setting.kind]
        ensemble = make(num_features, num_members=num_members, prior_scale=prior_scale)
        utility = lambda shared, own, rows: ensemble.apply(shared, own, rows["features"])

    def score(shared: Any, own: Params, query: Query) -> Array:
        return utility(shared[0], own, _rows(shared[1], query.item_ids))

    def utilities(shared: Any, own: Params, items: Array) -> Array:
        if setting.kind != "adapters":
            one = jax.vmap(utility, in_axes=(None, 0, None))
            return one(shared[0], own, _rows(shared[1], items))

        def of_member(own: Params) -> Array:
            of_text = lambda item: utility(shared[0], own, _rows(shared[1], item))
            return jax.lax.map(of_text, items.ravel(), batch_size=AT_ONCE)

        return jax.lax.map(of_member, own).reshape(num_members, *items.shape)

    members = training.members_learner(
        ensemble,
        score=score,
        loss=losses.ilhf_ranking_loss,
        optimizer=optax.adam(setting.learning_rate),
        num_steps=setting.num_steps,
        batch_size=setting.batch_size or None,
        # One after the other: on a CPU a third of the time of all at once, and an eighth of the
        # memory (experiments.benchmark, section adapters).
        members_at_once=1 if setting.kind == "adapters" else None,
    )
    return Learner(ensemble, members, utilities)


def adapter_utility(
    ensemble: ensembles.Ensemble, scale: float, shared: Params, own: Params, rows: Table
) -> Array:
    """Adapters: `scale (mean log-prob a token under the member - under the base)`, 0 for the base.

    So the frozen model's own taste is not taken for people's.

    Args:
      ensemble: adapters on the last block.
      scale: nats of utility for a nat a token.
      shared: the base.
      own: of one member.
      rows: of `hidden_table`.

    Returns:
      `[...]`, nats.
    """
    logits = ensemble.apply(shared, own, rows["hidden"], valid=rows["valid"])
    return scale * (mean_log_prob(logits, rows["tokens"], rows["mask"]) - rows["log_prob"])


def adapter_prior_scale(
    key: Key,
    setting: Setting,
    transformer: models.TransformerConfig,
    base: Params,
    table: Table,
    pairs: Array,
) -> Array:
    """The scale of the adapters' prior at which members spread as `setting.prior_scale` says.

    Their log-odds of pairs of the pool then have the standard deviation root 2 times it, that of
    heads on features of unit variance.

    Args:
      key: a typed key; draws the members.
      setting: of adapters.
      transformer: of the frozen model.
      base: its parameters above the table's hidden states.
      table: of texts.
      pairs: int `[P, 2]`, pairs of texts.

    Returns:
      `[]`, the scale.
    """

    def spread(prior_scale: Array) -> Array:
        learner = make_learner(setting, transformer, base, 0, prior_scale)
        shared, own = learner.ensemble.init(key)
        return evaluation.disagreement(learner.utilities((shared, table), own, pairs))

    return ensembles.prior_scale_for(
        spread, 2**0.5 * setting.prior_scale, low=1e-3, high=1e2, num_steps=14
    )


def _rows(table: Table, items: Array) -> Table:
    return {name: values[items] for name, values in table.items()}
