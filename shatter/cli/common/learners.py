"""Ensembles on a frozen model, whose members judge texts by the rows of a table."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from shatter import data, documents, ensembles, losses, models, training
from shatter.cli.common.frozen import Table
from shatter.cli.common.utilities import Form, response_utility
from shatter.factored import FactoredLogits, target_log_probs
from shatter.types import Array, Comparison, Key, Params, Query, item_query

Kind = Literal["heads", "epinet", "adapters"]
Utility = Literal["ratio", "tilt", "sum"]
LAST_MLP_OUT: Final = "last_mlp_out"
AdaptedLayers = int | Literal["last_mlp_out"]
TEXTS_AT_ONCE = 64  # texts that pass through the upper blocks of a member together


@dataclasses.dataclass(frozen=True)
class Setting:
    """The ensemble and its optimiser settings.

    Attributes:
      kind: heads: linear heads on features of the frozen model; epinet: an epinet on the same;
        adapters: low-rank adapters on its last blocks.
      num_members: M.
      prior_scale: standard deviation of a member's utility of a text before there is data, nats.
      learning_rate: Adam's.
      num_steps: Adam's steps each time the members learn.
      batch_size: comparisons a step; None = all.
      utility: adapters: see `adapter_utility`.
      utility_scale: adapters: nats of utility for a nat of mean log-prob a token.
      lora_r: adapters: rank.
      lora_target_modules: adapters: projections that have them.
      adapted_layers: adapters: on how many of the last blocks; "last_mlp_out" = on the last one's
        mlp_out alone, so that members share the product with the vocabulary while they learn.
    """

    kind: Kind
    num_members: int
    prior_scale: float
    learning_rate: float
    num_steps: int
    batch_size: int | None = None
    utility: Utility = "ratio"
    utility_scale: float = 10.0
    lora_r: int = 4
    lora_target_modules: tuple[str, ...] = ("query", "value", "mlp_out")
    adapted_layers: AdaptedLayers = 1

    @property
    def lora(self) -> models.LoraConfig:
        """The adapters' config."""
        return models.LoraConfig(self.lora_r, float(self.lora_r), self.lora_target_modules)

    def cut(self, num_layers: int) -> int:
        """Returns the layer for `models.split_layers`, below all adapters of a model."""
        return num_layers - (0 if self.adapted_layers == LAST_MLP_OUT else self.adapted_layers)


class Learner(NamedTuple):
    """How the members of an ensemble learn and judge texts of a table.

    In all but the first, `shared` is `(the ensemble's shared, table)`.

    Attributes:
      ensemble: the ensemble.
      members: the learner of its members.
      utilities: `(shared, own[M], items[...]) -> [M, ...]`, nats.
      interaction: `(table, propose, *, query, capacity, observation_weights=None) -> interaction`,
        as `shatter.training.interaction`; by default the ensemble's own observation weights.
    """

    ensemble: ensembles.Ensemble
    members: training.MembersLearner
    utilities: Callable[[Any, Params, Array], Array]
    interaction: Callable[..., training.Interaction]


def make_learner(
    setting: Setting,
    transformer: models.TransformerConfig | None,
    base: Params,
    *,
    num_features: int,
    prior_scale: float | Array,
) -> Learner:
    """Returns an ensemble with its utility and its optimiser.

    Args:
      setting: the kind of ensemble and its optimiser settings.
      transformer: adapters: the config of the frozen model.
      base: adapters: the parameters of its last blocks, `upper_params` of `layers_of`.
      num_features: heads and epinets: width of the features.
      prior_scale: as in `shatter.ensembles.adapters`, `heads` or `epinet`.

    Returns:
      The learner.
    """
    num_members = setting.num_members
    is_cut_last = setting.adapted_layers == LAST_MLP_OUT
    utility: Callable[[Any, Params, Table], Array]
    if setting.kind == "adapters":
        assert transformer is not None
        upper = layers_of(setting, transformer).upper
        ensemble = ensembles.adapters(
            upper, base, setting.lora, num_members=num_members, prior_scale=prior_scale
        )
        utility = partial(adapter_utility, upper, setting)
    else:
        kinds: dict[str, Callable[..., ensembles.Ensemble]]
        kinds = {"heads": ensembles.heads, "epinet": ensembles.epinet}
        make = kinds[setting.kind]
        ensemble = make(num_features, num_members=num_members, prior_scale=prior_scale)
        utility = lambda shared, own, rows: ensemble.apply(shared, own, rows["features"])

    def score(shared: Any, own: Params, query: Query) -> Array:
        items, table = query.item_ids, shared[1]
        if "places" in table:  # each text once, however often it is drawn
            return utility(shared[0], own, table)[items]
        return utility(shared[0], own, _rows(table, items))

    def utilities(shared: Any, own: Params, items: Array) -> Array:
        if setting.kind != "adapters":
            one = jax.vmap(utility, in_axes=(None, 0, None))
            return one(shared[0], own, _rows(shared[1], items))

        at_once = max(1, min(items.size, TEXTS_AT_ONCE))
        batches = jnp.pad(items.ravel(), (0, -items.size % at_once)).reshape(-1, at_once)
        of_one = lambda own, items: utility(shared[0], own, _rows(shared[1], items))
        if is_cut_last:  # members that are vmapped share the product with the vocabulary
            of_all = lambda items: jax.vmap(of_one, in_axes=(0, None))(own, items)
            values = jnp.swapaxes(jax.lax.map(of_all, batches), 0, 1)
        else:
            of_member = lambda own: jax.lax.map(partial(of_one, own), batches)
            values = jax.lax.map(of_member, own)
        return values.reshape(num_members, -1)[:, : items.size].reshape(-1, *items.shape)

    is_cpu = jax.default_backend() == "cpu"
    in_turn = setting.kind == "adapters" and is_cpu and not is_cut_last
    how: dict[str, Any] = {
        "score": score,
        "loss": losses.ilhf_ranking_loss,
        "optimizer": optax.adam(setting.learning_rate),
        "num_steps": setting.num_steps,
        "batch_size": setting.batch_size,
        "members_at_once": 1 if in_turn else None,
    }

    def interaction(
        table: Table,
        propose: training.Propose,
        *,
        query: Query,
        capacity: int,
        observation_weights: Callable[[Key, tuple[int, ...]], Array] | None = None,
    ) -> training.Interaction:
        def init(key: Key) -> tuple[Params, Params]:
            shared, own = ensemble.init(key)
            return (shared, table), own

        tabled = ensemble._replace(
            init=init, observation_weights=observation_weights or ensemble.observation_weights
        )
        return training.interaction(tabled, propose=propose, query=query, capacity=capacity, **how)

    return Learner(ensemble, training.members_learner(ensemble, **how), utilities, interaction)


def layers_of(setting: Setting, transformer: models.TransformerConfig) -> models.Layers:
    """Returns the frozen model, cut below all adapters: below blocks, or the last mlp_out."""
    return models.split_layers(transformer, setting.cut(transformer.num_layers))


def adapter_utility(
    upper: models.LanguageModel, setting: Setting, shared: Params, own: Params, rows: Table
) -> Array:
    """Returns the utility of texts under one member of an ensemble of adapters.

    "sum" is the log-prob of the text, `log pi_m(x)`. "tilt" is `log pi_m(x) - log p0(x)`, and
    "ratio" is `scale` times that a token (ours): both are 0 for the base, so that the frozen
    model's own taste is not taken for people's.

    Args:
      upper: the model above the cut, from `layers_of`.
      setting: has the utility and its scale.
      shared: the base.
      own: the adapters of one member.
      rows: rows of `hidden_table`, or all of a table with the `places` of `response_places`: only
        the logits there are then multiplied out.

    Returns:
      `[...]`, nats.
    """
    member = models.with_lora(shared, own, setting.lora)
    # Above the last mlp_out as factors at every size, so that members share slices of the
    # vocabulary while they are vmapped.
    make: Callable[..., Any] = partial(models.lazy_logits, upper)
    if (setting.adapted_layers == LAST_MLP_OUT or "places" in rows) and upper.factored is not None:
        make = upper.factored
    logits = make(member, rows["hidden"], valid=rows["valid"])
    return text_utility(setting.utility, logits, rows, scale=setting.utility_scale)


def text_utility(form: Form, logits: Any, rows: Table, *, scale: float) -> Array:
    """Returns the utility of texts from the logits of the model that judges them.

    Args:
      form: its name, see `shatter.cli.common.utilities`.
      logits: `[..., T, V]`, or their factors, which `places` need.
      rows: as in `adapter_utility`; their hidden states are not read.
      scale: mean and ratio: nats of utility for a nat of mean log-prob a token.

    Returns:
      `[...]`, nats.
    """
    if "places" in rows:
        log_prob = _log_prob_of_places(logits, rows["tokens"], rows["places"])
    else:
        log_prob = documents.log_prob(logits, rows["tokens"], rows["mask"])
    lengths = jnp.sum(rows["mask"], axis=-1)
    return response_utility(form, log_prob, lengths * rows["log_prob"], lengths, scale=scale)


def _log_prob_of_places(logits: FactoredLogits, tokens: Array, places: Array) -> Array:
    """Returns the log-probs of texts `[N]` from the logits before their responses' tokens alone."""
    flat = lambda leaf: leaf.reshape(-1, leaf.shape[-1])
    before = logits.map_rows(lambda leaf: jnp.take(flat(leaf), places - 1, axis=0, mode="clip"))
    values = target_log_probs(before, jnp.take(tokens.ravel(), places, mode="clip"))
    sums = jnp.zeros(len(tokens), values.dtype)
    return sums.at[places // tokens.shape[1]].add(values, mode="drop")


def response_places(mask: np.ndarray) -> np.ndarray:
    """Returns where the tokens of responses are among all tokens of a table.

    Args:
      mask: bool `[N, T]`, true on them.

    Returns:
      int `[P]`, the places in the flat mask, filled with N T to one of few sizes.
    """
    places = np.flatnonzero(mask)
    size = min(bucket for bucket in data.length_buckets(mask.size) if bucket >= places.size)
    return np.pad(places, (0, size - places.size), constant_values=mask.size)


def table_comparisons(items: Array, ranks: Array, weight: Array) -> Comparison:
    """Returns comparisons of texts that are known by their numbers in a table.

    Args:
      items: int `[B, K]`; below 0 = an empty slot.
      ranks: int `[B, K]`.
      weight: `[B]`.

    Returns:
      The comparisons, without documents.
    """
    return Comparison(item_query(items), ranks, weight)


def _rows(table: Table, items: Array) -> Table:
    return {name: values[items] for name, values in table.items()}
