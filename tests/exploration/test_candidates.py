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


SPACE = enumerate_documents(vocab_size=3, max_length=2, eos=EOS)  # 7 documents


@pytest.fixture(scope="module")
def draw_three():
    """`(keys, log_probs, temperature, distinct) -> (items[S, 3], valid[S, 3])`, compiled once."""

    def one(key, log_probs, temperature, distinct):
        drawn = drawn_candidates(
            key, log_probs, *SPACE, num_candidates=3, temperature=temperature, distinct=distinct
        )
        return drawn.item_ids, drawn.valid

    return jax.jit(jax.vmap(one, in_axes=(0, None, None, None)), static_argnums=3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, np.inf])
def test_tempered_and_distinct_candidates_have_their_enumerated_law(draw_three, temperature):
    law = np.array([0.3, 0.0, 0.25, 0.2, 0.14, 0.1, 0.01])
    tempered = np.where(law > 0, law ** (1 / temperature), 0)
    tempered /= tempered.sum()
    with np.errstate(divide="ignore"):
        log_probs = np.log(law).astype(np.float32) - 7
    keys = jax.random.split(jax.random.key(0), 8_000)

    def close(found, p):  # 4.5 standard deviations; what is rarer than 1 in 8,000 may come thrice
        spread = 4.5 * np.sqrt(p * (1 - p) / 8_000) + 3 / 8_000 * (p > 0)
        return np.all(np.abs(found - p) <= spread + 1e-12)

    # Independent draws.
    items, valid = map(np.asarray, draw_three(keys, log_probs, np.float32(temperature), False))
    table = np.zeros((7, 7))
    np.add.at(table, (items[:, 0], items[:, 2]), 1 / 8_000)
    assert close(table, np.outer(tempered, tempered))
    repeats = (items[:, 1] == items[:, 0]) | (items[:, 1] == items[:, 2])
    np.testing.assert_array_equal(valid[:, 0], True)
    np.testing.assert_array_equal(valid[:, 1], items[:, 1] != items[:, 0])
    assert repeats.any()
    # Draws in turn among what is left: the law of every ordered triple.
    items, valid = map(
        np.asarray, draw_three(jax.random.clone(keys), log_probs, np.float32(temperature), True)
    )
    assert valid.all()
    table, expected = np.zeros((7, 7, 7)), np.zeros((7, 7, 7))
    np.add.at(table, tuple(items.T), 1 / 8_000)
    for a, b, c in np.ndindex(expected.shape):
        if len({a, b, c}) == 3 and min(law[[a, b, c]]) > 0:
            rest = 1 - tempered[a]
            expected[a, b, c] = tempered[a] * tempered[b] / rest * tempered[c]
            expected[a, b, c] /= rest - tempered[b]
    np.testing.assert_allclose(expected.sum(), 1)
    assert close(table, expected)


def test_distinct_candidates_are_fewer_where_the_law_has_fewer_documents(draw_three):
    keys = jax.random.split(jax.random.key(0), 200)
    two = np.where(np.isin(np.arange(7), [2, 5]), 0.0, -np.inf).astype(np.float32)
    two[0] = np.nan  # counts as impossible
    items, valid = map(np.asarray, draw_three(keys, two, np.float32(1), True))
    np.testing.assert_array_equal(valid, np.tile([True, True, False], (200, 1)))
    np.testing.assert_array_equal(np.sort(items[:, :2]), np.tile([2, 5], (200, 1)))
    np.testing.assert_array_equal(items[:, 2], items[:, 0])  # an empty slot holds the first
    nothing = np.full(7, -np.inf, np.float32)
    for distinct_only in (False, True):
        _, valid = draw_three(jax.random.clone(keys), nothing, np.float32(1), distinct_only)
        assert not valid.any()
    # More slots than documents.
    many = drawn_candidates(
        jax.random.key(1), jnp.zeros(7), *SPACE, num_candidates=9, distinct=True
    )
    np.testing.assert_array_equal(np.sort(many.item_ids[:7]), np.arange(7))
    np.testing.assert_array_equal(many.valid, np.arange(9) < 7)
    np.testing.assert_array_equal(many.tokens, np.asarray(SPACE[0])[many.item_ids])


def test_a_temperature_is_above_zero():
    with pytest.raises(ValueError, match="temperature must be above 0"):
        drawn_candidates(jax.random.key(0), jnp.zeros(7), *SPACE, num_candidates=2, temperature=0.0)


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
