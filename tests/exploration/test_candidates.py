from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.documents import enumerate_documents, sample
from shatter.exploration import (
    distinct,
    drawn_candidates,
    pool_candidates,
    sampled_candidates,
)
from shatter.models import tabular

EOS = 1


def test_the_first_appearance_of_each_document_counts():
    # The prompt is BOS = EOS = 1. Tokens outside the mask are garbage.
    tokens = np.array(
        [
            [1, 0, 1, 7, 9],
            [1, 0, 1, 1, 1],  # the first again, with other padding
            [1, 0, 1, 1, 1],  # longer by an EOS that counts
            [1, 1, 0, 0, 0],  # EOS at once
            [1, 1, 5, 5, 5],  # the same again
            [1, 0, 0, 0, 0],
            [2, 0, 1, 0, 0],  # the first except for its prompt, which does not count
            [1, 0, 0, 0, 1],
        ]
    )
    lengths = np.array([2, 2, 3, 1, 1, 4, 2, 4])
    positions = np.arange(5)
    mask = (positions >= 1) & (positions < 1 + lengths[:, None])
    expected = [True, False, True, True, False, True, False, True]
    np.testing.assert_array_equal(distinct(jnp.asarray(tokens), jnp.asarray(mask)), expected)
    garbage = np.where(mask, tokens, np.random.default_rng(0).integers(-3, 9, tokens.shape))
    np.testing.assert_array_equal(distinct(jnp.asarray(garbage), jnp.asarray(mask)), expected)


def test_distinct_is_like_a_set_of_documents():
    rng = np.random.default_rng(1)
    tokens, mask = rng.integers(0, 2, (60, 4)), rng.random((60, 4)) < 0.7
    seen, expected = set(), []
    for row, shown in zip(tokens, mask, strict=True):
        document = tuple(np.where(shown, row, -1))
        expected.append(document not in seen)
        seen.add(document)
    np.testing.assert_array_equal(distinct(jnp.asarray(tokens), jnp.asarray(mask)), expected)
    assert 0 < np.sum(expected) < 60


def test_distinct_wants_documents_and_their_masks():
    with pytest.raises(AssertionError):
        distinct(jnp.zeros((2, 3), int), jnp.ones((2, 2), bool))
    with pytest.raises(AssertionError):
        distinct(jnp.zeros(3, int), jnp.ones(3, bool))


def test_drawn_candidates_follow_the_proposal():
    tokens, mask = enumerate_documents(vocab_size=3, max_length=2, eos=EOS)
    law = np.random.default_rng(0).dirichlet(np.ones(len(tokens)))
    num_keys, num_candidates = 5_000, 4
    draw = jax.jit(
        jax.vmap(
            lambda key, log_probs: drawn_candidates(
                key, log_probs, tokens, mask, num_candidates=num_candidates
            ),
            in_axes=(0, None),
        )
    )
    keys = jax.random.split(jax.random.key(0), num_keys)
    drawn = draw(keys, jnp.log(jnp.asarray(law)) + 5.0)  # a shift changes nothing
    items, valid = np.asarray(drawn.item_ids), np.asarray(drawn.valid)
    counts = np.stack([np.bincount(column, minlength=len(law)) for column in items.T])
    spread = np.sqrt(law * (1 - law) / num_keys)
    assert np.all(np.abs(counts / num_keys - law) < 4.5 * spread)  # of each slot
    together = np.bincount(items[:, 0] * len(law) + items[:, 1], minlength=len(law) ** 2)
    pairs = np.outer(law, law).ravel()  # slots are independent
    assert np.all(np.abs(together / num_keys - pairs) < 5 * np.sqrt(pairs / num_keys))
    # The documents are those of the items; the first of each is valid.
    np.testing.assert_array_equal(drawn.tokens, np.asarray(tokens)[items])
    np.testing.assert_array_equal(drawn.mask, np.asarray(mask)[items])
    first = [[item not in row[:i] for i, item in enumerate(row)] for row in items.tolist()]
    np.testing.assert_array_equal(valid, first)
    same = jax.jit(jax.vmap(distinct))(drawn.tokens, drawn.mask)
    np.testing.assert_array_equal(valid, same)


def test_a_pool_is_its_rows():
    tokens, mask = enumerate_documents(vocab_size=3, max_length=2)
    pool = pool_candidates(tokens, mask, prompt_id=5)
    assert pool.prompt_id == 5
    np.testing.assert_array_equal(pool.item_ids, np.arange(9))
    np.testing.assert_array_equal(pool.tokens, tokens)
    np.testing.assert_array_equal(pool.mask, mask)
    assert pool.valid.all()
    some = jnp.arange(9) < 4
    np.testing.assert_array_equal(pool_candidates(tokens, mask, valid=some).valid, some)


def test_sampled_candidates_are_the_different_samples():
    lm = tabular(vocab_size=3, max_length=2)
    params = lm.init(jax.random.key(0))
    draw = partial(sample, lm, num_samples=20, max_length=2, eos=EOS)
    samples = jax.jit(draw)(params, jax.random.key(1), jnp.array([0]))
    candidates = sampled_candidates(samples.tokens, samples.mask, prompt_id=3)
    assert candidates.prompt_id == 3
    np.testing.assert_array_equal(candidates.item_ids, np.full(20, -1))
    documents = np.where(samples.mask, samples.tokens, -1)
    _, first = np.unique(documents, axis=0, return_index=True)
    assert 1 < len(first) <= 7  # 7 documents exist
    np.testing.assert_array_equal(np.flatnonzero(candidates.valid), np.sort(first))
