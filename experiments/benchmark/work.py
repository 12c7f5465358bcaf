"""The work that is timed: rounds of propose, rate, learn, as a function of a key."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmark.config import Sizes
from shatter import choice, documents, ensembles, exploration, losses, models, training
from shatter.types import Array, Comparison, Key, Params, Query, Rater

EOS = 0


class Frozen(NamedTuple):
    """What no way of running changes: an argument, never closed over.

    Attributes:
      params: the pretrained model.
      likings: `[V]`, how much the raters like each token, nats.
    """

    params: Params
    likings: Array


def language_model(sizes: Sizes) -> models.LanguageModel:
    """The language model of a work; a document is token 0 and a response."""
    if sizes.kind == "tabular":
        return models.tabular(vocab_size=sizes.vocab_size, max_length=sizes.max_length)
    return models.transformer(
        models.TransformerConfig(
            vocab_size=sizes.vocab_size,
            max_length=1 + sizes.max_length,
            width=sizes.width,
            num_layers=sizes.num_layers,
            num_heads=sizes.num_heads,
        )
    )


def draw_frozen(sizes: Sizes, key: Key) -> Frozen:
    """A random pretrained model and random likings."""
    params_key, likings_key = jax.random.split(key)
    likings = jax.random.normal(likings_key, (sizes.vocab_size,))
    return Frozen(language_model(sizes).init(params_key), likings)


def make_interaction(sizes: Sizes, frozen: Frozen) -> training.Interaction:
    """Anchored members; candidates are the pretrained model's samples, the arm is infomax."""
    lm = language_model(sizes)
    ensemble = ensembles.anchored(
        lm, frozen.params, num_members=sizes.num_members, prior_scale=sizes.prior_scale
    )

    def candidates(key: Key, shared: Params, own: Params) -> Query:
        del shared, own
        samples = documents.sample(
            lm,
            frozen.params,
            key,
            jnp.zeros(1, int),
            num_samples=sizes.num_candidates,
            max_length=sizes.max_length,
            eos=EOS,
        )
        return exploration.sampled_candidates(samples.tokens, samples.mask)

    def score(shared: Params, own: Params, responses: Query) -> Array:
        logits = ensemble.apply(shared, own, responses.tokens)
        return documents.log_prob(logits, responses.tokens, responses.mask)

    return training.interaction(
        ensemble,
        propose=training.pair_proposer(
            candidates, score, exploration.infomax, num_queries=sizes.num_queries
        ),
        score=score,
        loss=losses.ilhf_ranking_loss,
        optimizer=optax.adam(sizes.learning_rate),
        capacity=sizes.num_queries * sizes.num_rounds,
        num_steps=sizes.num_steps,
        batch_size=sizes.batch_size,
    )


def rater(frozen: Frozen) -> Rater:
    """People who choose by Luce among the sums of their likings of the response's tokens."""

    def utility(query: Query) -> Array:
        return jnp.sum(jnp.where(query.mask, frozen.likings[query.tokens], 0.0), axis=-1)

    return choice.luce_rater(utility)


def run_seed(sizes: Sizes, frozen: Frozen, key: Key) -> Array:
    """All rounds of one seed in one scan: the loss after each, `[num_rounds]`."""
    process = make_interaction(sizes, frozen)
    init_key, run_key = jax.random.split(key)
    _, metrics = training.run_rounds(
        process,
        rater(frozen),
        lambda state: {},
        process.init(init_key),
        run_key,
        num_rounds=sizes.num_rounds,
    )
    return metrics["loss"]


# The same rounds in pieces, for a loop on the host, with the keys of `run_seed`.


def start(sizes: Sizes, frozen: Frozen, key: Key) -> tuple[training.InteractionState, Key]:
    """The state before the first round, and the key of the rounds."""
    init_key, run_key = jax.random.split(key)
    return make_interaction(sizes, frozen).init(init_key), run_key


def propose(
    sizes: Sizes, frozen: Frozen, state: training.InteractionState, key: Key, t: Array
) -> tuple[Query, Key]:
    """The queries of round t, and the key of those who answer."""
    propose_key, ask_key = jax.random.split(jax.random.fold_in(key, t))
    return make_interaction(sizes, frozen).propose(state, propose_key), ask_key


def rate(frozen: Frozen, key: Key, queries: Query) -> Comparison:
    """The answers."""
    return training.ask(rater(frozen), key, queries)


def learn(
    sizes: Sizes, frozen: Frozen, state: training.InteractionState, comparisons: Comparison
) -> tuple[training.InteractionState, Array]:
    """The state after learning from the answers, and the loss `[]`."""
    state, metrics = make_interaction(sizes, frozen).learn(state, comparisons)
    return state, metrics["loss"]


def named_arrays(params: Params) -> dict[str, np.ndarray]:
    """Params as arrays by dotted names, for the PyTorch form; a table's is "table"."""
    return {
        ".".join(entry.key for entry in path[1:]) or "table": np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(params)
    }
