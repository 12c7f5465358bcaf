"""The twist: a value of unfinished texts, linear in what the model has read, with a cache.

`V(s.a) = sum_i h_i . u / T + [1, z(s)]' W [1, y(a)]`: the sum is over the response's tokens so far,
h are the model's features, centred and scaled, z(s) are principal components of those after s, and
y(a) of the embedding of a. For a reward that is linear in the mean of the features the sum is the
reward so far, and the rest is what is to come.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from experiments.search.pretrained.rewards import Rewards, standard
from experiments.search.pretrained.world import World, with_embeddings
from shatter.models import LanguageModel
from shatter.models.transformer import forward
from shatter.models.transformer_module import Transformer
from shatter.types import Array

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Penalties, per row of the regression, of which the best on other documents is taken."""


class Value(NamedTuple):
    """The parameters of a value, beside those of the model.

    Attributes:
      centre: `[F]`, what is taken from the model's features.
      width: `[F]`, what they are divided by.
      along: `[F]`, u, what the sum of the features so far is worth.
      projection: `[F, C]`, `z = h projection`.
      table: `[1 + C, V]`, `W [1, y(a)]`.
    """

    centre: Array
    width: Array
    along: Array
    projection: Array
    table: Array


class ValueCache(NamedTuple):
    """The model's cache, and the sum of h over the response so far, `[N, F]`."""

    model: Any
    total: Array


def value_model(world: World) -> LanguageModel:
    """Returns a model whose logits are the values of every next token.

    Its parameters are `(params of the pretrained model, Value)`. Documents are those of the world,
    whose responses begin after `prompt_length` columns.
    """
    base, config = world.lm, world.sizes

    def values(value: Value, scaled: Array, total: Array) -> Array:
        so_far = total / world.config.max_length @ value.along
        seen = jnp.concatenate(
            [jnp.ones((*scaled.shape[:-1], 1)), scaled @ value.projection], axis=-1
        )
        return so_far[..., None] + seen @ value.table

    def read(params: Any, found: Array, tokens: Array, first: Array) -> tuple[Array, Array]:
        """Returns h of tokens, the first of them in column `first`, and its sums up to each."""
        model, value = params
        scaled = standard(with_embeddings(model, found, tokens), value.centre, value.width)
        is_said = first + jnp.arange(tokens.shape[-1]) >= world.prompt_length
        return scaled, jnp.cumsum(jnp.where(is_said[None, :, None], scaled, 0.0), axis=-2)

    def apply(params: Any, tokens: Array, *, valid: Array | None = None) -> Array:
        found = forward(config, params[0], tokens, valid).features
        return values(params[1], *read(params, found, tokens, jnp.zeros((), int)))

    def init_cache(batch: int, length: int) -> ValueCache:
        assert base.init_cache is not None
        return ValueCache(base.init_cache(batch, length), jnp.zeros((batch, 2 * config.width)))

    def decode(
        params: Any, cache: ValueCache, tokens: Array, *, valid: Array | None = None
    ) -> tuple[Array, ValueCache]:
        valid = jnp.ones(tokens.shape, bool) if valid is None else valid
        outputs: Any = Transformer(config).apply(params[0], tokens, valid, cache.model)
        _, found, _, after = outputs
        scaled, total = read(params, found, tokens, cache.model.length)
        total = cache.total[:, None] + total
        return values(params[1], scaled, total), ValueCache(after, total[:, -1])

    def take_cache(cache: ValueCache, rows: Array) -> ValueCache:
        assert base.take_cache is not None
        return ValueCache(base.take_cache(cache.model, rows), cache.total[rows])

    return LanguageModel(
        init=base.init,
        apply=apply,
        init_cache=init_cache,
        decode=decode,
        take_cache=take_cache,
    )


class States(NamedTuple):
    """Documents as a value is learned from them.

    Attributes:
      before: `[N, T, F]`, h after what stands before every response token.
      sums: `[N, T, F]`, the sum of h over the response tokens before.
      tokens: int `[N, T]`, the response tokens.
      mask: bool `[N, T]`, true on those that were said.
    """

    before: Array
    sums: Array
    tokens: Array
    mask: Array


def states(world: World, rewards: Rewards, found: Array, tokens: Array, mask: Array) -> States:
    """Returns the states of documents.

    Args:
      world: the world.
      rewards: for the centre and the width of the features.
      found: `[N, T, F]`, the model's features.
      tokens: int `[N, T]`.
      mask: bool `[N, T]`, true on the response's tokens.
    """
    first = world.prompt_length
    scaled = standard(found, rewards.feature_centre, rewards.feature_width)
    sums = jnp.cumsum(scaled[:, first:], axis=1)
    sums = jnp.pad(sums[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return States(scaled[:, first - 1 : -1], sums, tokens[:, first:], mask[:, first:])


def fit_value(
    world: World, embedding: Array, of_documents: States, rewards: Rewards, targets: Array
) -> tuple[Value, Array]:
    """Fits a value by ridge regression of rewards on states, so that it is E[r | s.a].

    Args:
      world: the world.
      embedding: `[V, D]`, of tokens.
      of_documents: the states of N documents in an arbitrary order. A tenth of them, at least two,
        chooses the ridge, another is scored, and the rest are fitted.
      rewards: for the centre and the width of the features.
      targets: `[N]`, the rewards of the documents.

    Returns:
      The value, and the share of the variance of the rewards that it explains in the scored
      documents at all lengths together, `[]`.
    """
    number, length, width = of_documents.before.shape
    flat = jax.tree.map(lambda leaf: leaf.reshape(number * length, *leaf.shape[2:]), of_documents)
    said = flat.mask.astype(float)
    size = min(world.config.num_components, width)
    projection = _components(flat.before, said, size)
    middle = said @ embedding[flat.tokens] / jnp.sum(said)
    centred = embedding - middle[None]
    of_tokens = _components(centred[flat.tokens], said, size)
    acts = jnp.pad(centred @ of_tokens, ((0, 0), (1, 0)), constant_values=1.0)
    so_far = _components(flat.sums / length, said, size)

    seen = jnp.pad(flat.before @ projection, ((0, 0), (1, 0)), constant_values=1.0)
    both = seen[:, :, None] * acts[flat.tokens][:, None, :]
    design = jnp.concatenate([flat.sums / length @ so_far, both.reshape(len(both), -1)], axis=1)
    targets = jnp.repeat(targets, length)
    few, place = max(2, number // 10), jnp.repeat(jnp.arange(number), length)
    fitted = said * (place < number - 2 * few)
    scored = said * (place >= number - few)
    choosing = said - fitted - scored

    def errors(weights: Array, fits: Array) -> Array:
        return weights @ jnp.square(targets[:, None] - design @ fits.T)

    weighted = design * fitted[:, None]
    gram, slope = weighted.T @ design, weighted.T @ targets
    fits = jnp.stack([ridge(gram, slope, penalty * jnp.sum(fitted)) for penalty in RIDGES])
    best = fits[jnp.argmin(errors(choosing, fits))]
    spread = scored @ jnp.square(targets - scored @ targets / jnp.sum(scored))
    table = best[size:].reshape(1 + size, 1 + size) @ acts.T
    value = Value(
        rewards.feature_centre, rewards.feature_width, so_far @ best[:size], projection, table
    )
    return value, 1.0 - errors(scored, best[None])[0] / spread


def ridge(gram: Array, slope: Array, penalty: Array | float) -> Array:
    """Returns the weights of ridge regression from second moments `[P, P]` and `[P]`."""
    return cho_solve(cho_factor(gram + penalty * jnp.eye(len(gram))), slope)


def _components(rows: Array, weights: Array, size: int) -> Array:
    """Returns principal directions `[F, C]`, so scaled that components have mean square 1."""
    covariance = (rows * weights[:, None]).T @ rows / jnp.sum(weights)
    variances, directions = jnp.linalg.eigh(covariance)
    floor = 1e-6 * variances[-1]
    return directions[:, -size:] / jnp.sqrt(jnp.maximum(variances[-size:], floor))[None]
