"""The domains that are compared: all documents of a tiny vocabulary, or recorded people's options.

A domain has P prompts with D documents each (missing documents have probability 0). A seed draws a
problem from it once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.didactic import fit_law, make_world
from experiments.inclusive import populations, texts
from experiments.inclusive.config import Config as InclusiveConfig
from experiments.rlhf.config import Config
from shatter import documents, models
from shatter.cli.common.compiling import compiler_options
from shatter.numerics import LOG_ZERO, finite_logs
from shatter.types import Array, Key, Params


class Problem(NamedTuple):
    """The problem of one seed.

    Attributes:
      params: parameters of the pretrained model.
      log_p0: `[P, D]`, its log-probs, nats.
      log_q: `[P, D]`, log-probs of the population; of recorded people, the judges' shares.
      segments: log-probs `[P, D]` of each segment.
      prompts: int `[N]`, the prompt of each comparison.
      chosen: int `[N]`, the document that was chosen.
      rejected: int `[N]`, the other document.
    """

    params: Params
    log_p0: Array
    log_q: Array
    segments: tuple[Array, ...]
    prompts: Array
    chosen: Array
    rejected: Array


class Domain(NamedTuple):
    """What all seeds share.

    Attributes:
      log_probs: `(params) -> [P, D]`, normalised over the documents of a prompt, nats.
      draw: `(input) -> Problem`, of one seed.
      inputs: `[S]` on every leaf: keys, and for recorded people the arrays that differ between
        seeds.
      segments: names of the segments.
      note: a remark that a reader of the results must know; "" = none.
    """

    log_probs: Callable[[Params], Array]
    draw: Callable[[Any], Problem]
    inputs: Any
    segments: tuple[str, ...]
    note: str = ""


def make_domain(config: Config) -> Domain:
    """Returns the domain that the config names.

    Raises:
      UsageError: if data is missing or damaged.
    """
    return _didactic(config) if config.population == "didactic" else _recorded(config)


def _didactic(config: Config) -> Domain:
    """Returns the didactic domain of two segments.

    Every rater has the density of their mixture, so that Luce's rule holds.
    """
    world = make_world(config.model, vocab_size=config.vocab_size, max_length=config.max_length)
    table_law = partial(documents.document_log_probs, world.table)

    def log_probs(params: Params) -> Array:
        return documents.document_log_probs(world.lm, params, *world.space)[None]

    def draw(key: Key) -> Problem:
        table_key, segment_key, lm_key, pair_key = jax.random.split(key, 4)
        params = world.table.init(table_key)
        noise = config.spread * jax.random.normal(segment_key, (2, *params.shape))
        segments = jnp.stack([table_law(params + part, *world.space) for part in noise])
        weights = jnp.log(jnp.array([1.0 - config.minority, config.minority]))
        log_q = jax.nn.logsumexp(weights[:, None] + segments, axis=0)[None]
        if world.lm is not world.table:
            log_p0 = table_law(params, *world.space)
            params = fit_law(world, world.lm.init(lm_key), log_p0)
        valid = jnp.ones(log_q.shape, bool)
        odds = log_q[:, :, None] - log_q[:, None, :]
        comparisons = _compare(pair_key, jax.nn.log_sigmoid(odds), valid, config.num_comparisons)
        by_segment = tuple(segment[None] for segment in segments)
        return Problem(params, log_probs(params), log_q, by_segment, *comparisons)

    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    return Domain(log_probs, draw, keys, ("majority", "minority"))


def _recorded(config: Config) -> Domain:
    """Returns the domain of recorded people: one half answers and the other half judges.

    The people are divided as in `experiments.inclusive`.
    """
    settings = InclusiveConfig(
        dataset=config.population,  # type: ignore[arg-type]
        data_dir=config.data_dir,
        shares_file=config.shares_file,
        seed=config.seed,
        num_seeds=config.num_seeds,
    )
    population = populations.load(settings)
    pool, transformer = texts.make_pool(population.prompts, population.options, width=config.width)
    valid = pool.valid
    root = jax.random.key(config.seed)
    pretrained = texts.pretrain(transformer, root, pool, num_steps=config.pretraining_steps)

    def transformer_law(params: Params) -> Array:
        return _law(jnp.where(valid, texts.option_log_probs(transformer, params, pool), LOG_ZERO))

    log_probs: Callable[[Params], Array] = transformer_law
    params = pretrained
    if config.model == "tabular":
        log_probs = _table_law(valid)
        params = jax.jit(transformer_law, compiler_options=compiler_options())(pretrained)[:, None]
    segments, names = _segments(settings)

    def draw(inputs: tuple[Key, Array, Array, tuple[Array, ...]]) -> Problem:
        key, truth, wins, segments = inputs
        log_wins = jnp.log(jnp.maximum(wins, 1e-30)) - jnp.log(
            jnp.maximum(wins + wins.swapaxes(1, 2), 1e-30)
        )
        shown = wins + wins.swapaxes(1, 2) > 0
        comparisons = _compare(key, log_wins, valid, config.num_comparisons, shown)
        log_q, *log_segments = (finite_logs(jnp.log(shares)) for shares in (truth, *segments))
        return Problem(params, log_probs(params), log_q, tuple(log_segments), *comparisons)

    keys = jax.random.split(jax.random.fold_in(root, 1), config.num_seeds)
    arrays = jax.tree.map(jnp.asarray, (population.truth, population.own_wins, segments))
    return Domain(log_probs, draw, (keys, *arrays), names, population.note)


def _table_law(valid: Array) -> Callable[[Params], Array]:
    """Returns the law of a table of logits `[P, 1, K]` over the valid options `[P, K]`."""
    num_prompts, num_options = valid.shape
    table = models.tabular(vocab_size=num_options, max_length=1, num_prompts=num_prompts)
    tokens = jnp.stack([*jnp.indices(valid.shape)], axis=-1)
    mask = jnp.broadcast_to(jnp.array([False, True]), tokens.shape)

    def log_probs(params: Params) -> Array:
        own = documents.log_prob(table.apply(params, tokens), tokens, mask)
        return _law(jnp.where(valid, own, LOG_ZERO))

    return log_probs


def _segments(
    settings: InclusiveConfig,
) -> tuple[tuple[np.ndarray, ...], tuple[str, ...]]:
    """Returns the judges' shares by party, `[S, P, D]` each, and the parties' names.

    Only the non-voters have parties; both are empty for the other data.
    """
    if settings.dataset != "nonvoters":
        return (), ()
    by_party = populations.load(
        InclusiveConfig(
            dataset="parties",
            data_dir=settings.data_dir,
            seed=settings.seed,
            num_seeds=settings.num_seeds,
        )
    )
    names = tuple(dict.fromkeys(by_party.groups))
    rows = [[g == name for g in by_party.groups] for name in names]
    return tuple(by_party.truth[:, row] for row in rows), names


def _compare(
    key: Key, log_wins: Array, valid: Array, num_comparisons: int, shown: Array | None = None
) -> tuple[Array, Array, Array]:
    """Draws comparisons of a uniform pair of documents of a uniform prompt.

    Document i of prompt p is chosen beside j with probability `exp(log_wins[p, i, j])`. Pairs that
    are not shown are not drawn.

    Returns:
      prompts, chosen and rejected, int `[N]` each.
    """
    pair_key, answer_key = jax.random.split(key)
    differ = ~jnp.eye(valid.shape[1], dtype=bool)
    pairs = valid[:, :, None] & valid[:, None, :] & differ[None]
    pairs = pairs if shown is None else pairs & shown
    a_prompt = jnp.sum(pairs, axis=(1, 2), keepdims=True)
    chances = jnp.where(pairs, 1.0 / jnp.maximum(a_prompt, 1), 0.0).ravel()
    drawn = jax.random.choice(
        pair_key, chances.size, (num_comparisons,), p=chances / jnp.sum(chances)
    )
    prompts, first, other = jnp.unravel_index(drawn, pairs.shape)
    chance = jnp.exp(log_wins[prompts, first, other])
    wins = jax.random.bernoulli(answer_key, chance)
    return prompts, jnp.where(wins, first, other), jnp.where(wins, other, first)


def _law(log_probs: Array) -> Array:
    """Returns log-probs that are normalised over the last axis and finite."""
    return finite_logs(jax.nn.log_softmax(log_probs, axis=-1))
