"""Features of frozen models: blocks, tokens, components."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from experiments.common import features
from shatter import models

MODEL = models.TransformerConfig(vocab_size=11, max_length=12, width=8, num_layers=3, num_heads=2)


def test_the_blocks_are_evenly_spaced_and_end_with_the_last():
    assert features.depths_of(30, 4) == (8, 15, 23, 30)
    assert features.depths_of(5, 4) == (2, 3, 4, 5)
    assert features.depths_of(3, 4) == (1, 2, 3)
    assert features.depths_of(12, 1) == (12,)


@pytest.mark.slow
def test_features_are_the_mean_and_the_last_token_after_each_block(float64):
    params = jax.jit(models.transformer(MODEL).init)(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (3, 9), 0, 11)
    lengths = np.array([3, 9, 5])
    valid = np.arange(9) < lengths[:, None]
    mask = valid & (np.arange(9) >= 2)
    rows = jax.jit(functools.partial(features.feature_rows, MODEL, (1, 3)))
    found = rows(params, tokens, mask, valid)
    assert found["features"].shape == (3, 2 * 2 * 8)
    for place, depth in enumerate((1, 3)):
        lm = models.transformer(dataclasses.replace(MODEL, num_layers=depth))
        blocks = jax.tree.map(lambda leaf, d=depth: leaf[:d], params["params"]["blocks"])
        of_depth = jax.jit(lm.features)({"params": {**params["params"], "blocks": blocks}}, tokens)
        for row, length in enumerate(lengths):
            # No mask is needed here, because later tokens do not change earlier features.
            text = np.asarray(of_depth[row, 2:length])
            expected = np.concatenate([text.mean(axis=0), text[-1]])
            part = found["features"][row, 16 * place : 16 * (place + 1)]
            np.testing.assert_allclose(part, expected, atol=1e-12)


def test_components_are_those_of_the_pools_texts():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 9)) + rng.normal(size=9)
    in_pool = np.arange(40) < 30
    found = features.components(table, in_pool, 4)
    scaled = (table - table[in_pool].mean(axis=0)) / table[in_pool].std(axis=0)
    directions = np.linalg.svd(scaled[in_pool])[2][:4]
    expected = scaled @ directions.T
    expected /= np.sqrt(np.mean(expected[in_pool] ** 2))
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-4)
    np.testing.assert_allclose(np.mean(found[in_pool] ** 2), 1, rtol=1e-5)
    changed = np.where(in_pool[:, None], table, 0.0)  # other texts have no say
    np.testing.assert_allclose(features.components(changed, in_pool, 4)[:30], found[:30], atol=1e-5)
    np.testing.assert_allclose(features.components(table, in_pool, 0), scaled, atol=1e-5)
