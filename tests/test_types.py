import jax
import jax.numpy as jnp
import numpy as np

from shatter.types import item_query


def test_queries_about_items_have_no_documents_and_keep_their_leading_axes():
    items = np.array([[[4, 2, -1], [0, -1, -1]]])
    query = jax.jit(item_query)(items)
    np.testing.assert_array_equal(query.item_ids, [[[4, 2, 0], [0, 0, 0]]])
    np.testing.assert_array_equal(query.valid, items >= 0)
    np.testing.assert_array_equal(query.prompt_id, [[0, 0]])
    assert query.tokens.shape == query.mask.shape == (1, 2, 3, 1)
    assert query.tokens.dtype == jnp.zeros(0, int).dtype and not query.mask.any()


def test_prompts_and_empty_slots_of_items_may_be_given():
    items = jnp.array([[4, 2], [0, 1]])
    valid = jnp.array([[True, False], [True, True]])
    query = item_query(items, prompt_id=jnp.array([7, 8]), valid=valid)
    np.testing.assert_array_equal(query.prompt_id, [7, 8])
    np.testing.assert_array_equal(query.valid, valid)
    np.testing.assert_array_equal(item_query(items[0], prompt_id=3).prompt_id, 3)
