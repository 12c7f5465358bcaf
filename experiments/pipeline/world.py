"""What all algorithms share: the documents, the hidden law, the rater, the candidates."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.didactic import World, fit_law, make_world, open_logits
from experiments.pipeline.algorithms import Algorithm
from experiments.pipeline.config import Config, Setting
from shatter import choice, exploration, losses, numerics
from shatter.cli.common.binary import UsageError
from shatter.types import Array, Key, Params, Query, Rater

TABLE_RATE = {"tabular": 1.0, "transformer": 0.05}
"""The learning rate of the model's parameters over that of a table's logits."""


DESIGN_TEMPERATURE = 2.0
"""The temperature at which candidates of "v_optimal" are drawn, so that there are rare ones."""


class Problem(NamedTuple):
    """The random arrays of a seed, the same for all algorithms and rounds."""

    params: Params  # the pretrained model
    log_p0: Array  # [D]
    log_q: Array  # [D], the law that the rater's choices imply


def world_of(setting: Setting) -> World:
    """Returns the documents and the models of a setting."""
    config = setting.config
    return make_world(setting.learner, vocab_size=config.vocab_size, max_length=config.max_length)


def draw_problem(key: Key, setting: Setting, world: World) -> Problem:
    """Draws the pretrained model, Gaussian logits for every prefix, and the law around it."""
    config = setting.config
    of_table = make_world(
        "tabular", vocab_size=config.vocab_size, max_length=config.max_length
    ).log_probs
    table_key, target_key, lm_key = jax.random.split(key, 3)
    params = world.table.init(table_key)
    target = params + config.spread * jax.random.normal(target_key, params.shape)
    log_p0, log_q = of_table(params), of_table(target)
    if setting.learner == "transformer":
        params = fit_law(world, world.lm.init(lm_key), log_p0)
        log_p0 = world.log_probs(params)
    return Problem(params, log_p0, jax.nn.log_softmax(config.reward_scale * log_q))


def rater_of(problem: Problem) -> Rater:
    """Returns people who choose by Luce's rule with the reward log q."""
    return choice.luce_rater(choice.table_utility(problem.log_q[None]))


def check_rater(log_q: np.ndarray) -> None:
    """Raises an error if the rater's reward of a document is no number.

    Args:
      log_q: `[S, D]`.

    Raises:
      UsageError: naming the first seed and document.
    """
    bad = np.argwhere(~np.isfinite(log_q))
    if bad.size:
        seed, document = bad[0]
        raise UsageError(
            f"the rater's reward of document {document} at seed {seed} must be finite, found "
            f"{log_q[seed, document]}: its answers would mean nothing; try a lower --reward_scale "
            "or --spread"
        )


def document_features(world: World, vocab_size: int, max_length: int) -> np.ndarray:
    """Returns which tokens follow which prefixes in every document, for a reward model.

    A linear head on them is a table of rewards of a token after a prefix, summed over the document:
    what the log-prob of a table is but for its normalisation. They are scaled so that a linear head
    of unit prior has that prior on every such reward.

    Args:
      world: the world.
      vocab_size: V; token 0 ends a document.
      max_length: the largest number of tokens of a document.

    Returns:
      `[D, F]`, F the logits of prefixes that have not ended.
    """
    tokens, mask = map(np.asarray, world.space)
    used = open_logits(vocab_size, max_length)
    features = np.zeros((len(tokens), max(used) + 1), np.float32)
    rows = np.arange(len(tokens))
    prefix, start = np.zeros(len(tokens), int), 0
    for t in range(max_length):
        token = tokens[:, 1 + t]
        places = (start + prefix) * vocab_size + token
        shown = mask[:, 1 + t]
        features[rows[shown], places[shown]] = 1.0
        prefix, start = prefix * vocab_size + token, start + vocab_size**t
    return features[:, used] * np.float32(np.sqrt(len(used)))


def anchor_kls(world: World, setting: Setting, anchor: Params, params: Params) -> Array:
    """Returns KL(anchor || policy) of next-token laws, summed along every document, `[D]`."""
    tokens, mask = world.space
    if setting.learner == "transformer":
        logits = world.lm.apply(jax.lax.stop_gradient(anchor), tokens)
        return losses.forward_kl_loss(logits, world.lm.apply(params, tokens), mask)
    config = setting.config
    size = config.vocab_size
    laws = [jax.nn.log_softmax(table[0]) for table in (jax.lax.stop_gradient(anchor), params)]
    kls = numerics.kl_divergence(*laws)
    rows = open_logits(size, config.max_length)[::size] // size  # prefixes that have not ended
    features = document_features(world, size, config.max_length)
    visits = np.any(features.reshape(len(tokens), len(rows), size) > 0, axis=-1)
    return jnp.asarray(visits, kls.dtype) @ kls[rows]


def greedy_document(log_probs: Array, space: tuple[Array, Array], vocab_size: int) -> Array:
    """Returns the document that greedy decoding of a law writes, token by token.

    Args:
      log_probs: `[D]`, the law of all documents.
      space: tokens and mask of all documents.
      vocab_size: V.

    Returns:
      int `[]`, the document's number.
    """
    tokens = space[0][:, 1:]
    left, masses = jnp.ones(len(tokens), bool), jnp.exp(log_probs)
    for t in range(tokens.shape[1]):
        is_token = tokens[:, t, None] == jnp.arange(vocab_size)[None]
        mass = jnp.sum(jnp.where(left[:, None] & is_token, masses[:, None], 0.0), axis=0)
        # A continuation that is left may have no mass in float32; one that is not left has less.
        possible = jnp.any(left[:, None] & is_token, axis=0)
        left &= tokens[:, t] == jnp.argmax(jnp.where(possible, mass, -1.0))
    return jnp.argmax(left)


def draw_candidates(
    key: Key, config: Config, algorithm: Algorithm, law: Array, space: tuple[Array, Array]
) -> Query:
    """Draws the candidates of every query of a round: samples, of which the first two differ.

    So a policy that has nearly collapsed still asks about two documents.

    Args:
      key: a typed key.
      config: numbers of queries and candidates.
      algorithm: the algorithm; one that is passive draws two.
      law: `[D]`, log-probs of who writes the responses.
      space: tokens and mask of all documents.

    Returns:
      queries with leaves `[B, N, ...]`; repetitions are not valid.
    """
    num_more = 0 if algorithm.arm == "passive" else config.num_candidates - 2
    tempered = law / (DESIGN_TEMPERATURE if algorithm.arm == "v_optimal" else 1.0)

    def one(key: Key) -> Query:
        pair_key, more_key = jax.random.split(key)
        pair = exploration.drawn_candidates(
            pair_key, tempered, *space, num_candidates=2, distinct=True
        )
        more = jax.random.categorical(more_key, tempered, shape=(num_more,))
        items = jnp.concatenate([pair.item_ids, more])
        first = jnp.argmax(items[:, None] == items[None, :], axis=1) == jnp.arange(len(items))
        return Query(pair.prompt_id, space[0][items], space[1][items], items, first)

    return jax.vmap(one)(jax.random.split(key, config.queries_per_round))


def values_of(responses: Query, values: Array) -> Array:
    """Returns what responses `[..., K]` have of values `[D]` of all documents, `[..., K]`."""
    items = responses.item_ids
    # One look-up a response: the gradient of a look-up of pairs takes three times as long.
    return jnp.stack([values[items[..., k]] for k in range(items.shape[-1])], axis=-1)


def choose_pairs(key: Key, arm: str, pools: Query, scores: Array, law: Array | None) -> Array:
    """Returns the pair that is asked in every query of a round.

    Args:
      key: a typed key.
      arm: "passive" or "random", "infomax", "variance" or "v_optimal".
      pools: the candidates, leaves `[B, N, ...]`.
      scores: `[M, D]`, what each member thinks of every document, nats.
      law: `[D]`, the weight of a candidate among the targets of "v_optimal", a log-prob; None = the
        candidates, samples of a policy, weigh alike.

    Returns:
      int `[B, 2]`, positions among the candidates.
    """
    items = pools.item_ids
    if arm == "v_optimal":
        texts = items.reshape(-1)
        return exploration.v_optimal_batch(
            key,
            scores[:, texts],
            jnp.arange(len(texts)).reshape(items.shape),
            valid=pools.valid,
            law=jnp.zeros(len(texts)) if law is None else law[texts],
            same=texts[:, None] == texts[None, :],
        )
    explore = {
        "passive": exploration.uniform,
        "random": exploration.uniform,
        "infomax": exploration.infomax,
        "variance": exploration.variance,
    }[arm]
    one = lambda key, pool: explore(key, scores[:, pool.item_ids], valid=pool.valid)
    return jax.vmap(one)(jax.random.split(key, len(items)), pools)
