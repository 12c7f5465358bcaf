"""Cached decoding: compared with the full forward pass, and what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from tests.models.tiny import (
    CONFIG,
    CONFIGS,
    DOCUMENTS,
    LLAMA,
    LM,
    LMS,
    apply,
    jitted,
    pad,
    random_params,
)

jitted_decode = {
    name: jax.jit(lambda params, cache, x, valid, lm=lm: lm.decode(params, cache, x, valid=valid))
    for name, lm in LMS.items()
}


@pytest.mark.parametrize(
    ("name", "slots", "pieces"),
    [
        ("didactic", 8, [4, 4]),
        pytest.param("didactic", 8, [1] * 8, marks=pytest.mark.slow),
        pytest.param("didactic", 8, [1, 1, 1, 1, 4], marks=pytest.mark.slow),
        ("didactic", 11, [8]),
        pytest.param("gpt2", 8, [4, 4], marks=pytest.mark.slow),
        ("llama", 8, [4, 4]),
        pytest.param("llama", 8, [1] * 8, marks=pytest.mark.slow),
        pytest.param("qwen3", 8, [4, 4], marks=pytest.mark.slow),
        ("gemma3", 8, [4, 4]),
        pytest.param("gemma3", 11, [3, 1, 1, 1, 1, 1], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_cached_decoding_is_the_full_forward_pass(
    float64: None, name: str, slots: int, pieces: list[int]
):
    """With padding on the left of a row, on both sides, and on the right."""
    params = random_params(CONFIGS[name])
    tokens, valid = np.full((3, 8), 4), np.zeros((3, 8), bool)
    for row, start in enumerate([2, 1, 0]):
        tokens[row, start : start + 6] = DOCUMENTS[row]
        valid[row, start : start + 6] = True
    full = np.asarray(jitted[name](params, jnp.array(tokens), valid=jnp.array(valid)))
    cache, found = LMS[name].init_cache(3, slots), []
    for start, size in zip(itertools.accumulate(pieces, initial=0), pieces, strict=False):
        piece = (jnp.array(array[:, start : start + size]) for array in (tokens, valid))
        logits, cache = jitted_decode[name](params, cache, *piece)
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found, axis=1)[valid], full[valid], atol=1e-12)
    expected = apply(params, DOCUMENTS, name).reshape(18, 5)
    np.testing.assert_allclose(full[valid], expected, atol=1e-12)


def test_taken_rows_of_a_cache_are_those_of_the_rows(float64: None):
    """In any order, and several times."""
    params, (tokens, valid) = random_params(LLAMA), pad([0, 7])
    prefill = jitted_decode["llama"]
    lm = LMS["llama"]
    _, cache = prefill(params, lm.init_cache(3, 8), tokens[:, :4], valid[:, :4])
    rows = jnp.array([2, 0, 1, 1, 0, 2])
    _, expected = prefill(params, lm.init_cache(6, 8), tokens[rows, :4], valid[rows, :4])
    found = lm.take_cache(cache, rows)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, atol=1e-13)
    assert not np.array_equal(found.keys[:, 0], found.keys[:, 2])


@pytest.mark.slow
def test_checkify_finds_a_full_cache_and_a_document_too_long(float64: None):
    params = random_params(CONFIG)
    checked = jax.jit(checkify.checkify(LM.decode))

    def decode(cache, *tokens: int):
        error, (_, cache) = checked(params, cache, jnp.array([tokens]))
        return error.get(), cache

    error, cache = decode(LM.init_cache(1, 8), 0, 1, 2, 3)
    assert error is None
    error, cache = decode(cache, 0, 1, 2, 3)
    assert "a document has 8 tokens, over max_length 6" in error
    error, cache = decode(cache, 0, 1, 2, 3)
    assert "the cache of 8 slots is full: found 8 in use and 4 more" in error
    error, _ = decode(LM.init_cache(1, 8), 0, 1, 5, 3)
    assert "expected 0 <= token < 5, found between 0 and 5" in error
