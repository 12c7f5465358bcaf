"""Words as tokens: a response mentions one where its tokens follow each other in it."""

import jax.numpy as jnp

from experiments.common.words import mentions


def test_mentions_wants_all_tokens_of_a_word_in_order_and_within_the_mask():
    words = ((5, 6), (7,))
    tokens = jnp.array([[5, 6, 1, 1], [6, 5, 1, 1], [1, 5, 1, 6], [1, 1, 7, 1], [1, 1, 1, 7]])
    mask = jnp.ones(tokens.shape, bool).at[:, -1].set(False)
    assert mentions(tokens, mask, words).tolist() == [True, False, False, True, False]
    assert mentions(tokens, mask.at[:, 0].set(False), words).tolist()[0] is False
