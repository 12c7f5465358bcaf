"""Log-probs under masks: small cases by hand, half precision and extreme values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.test_util import check_grads

from shatter.documents import log_prob, response_mask, token_log_probs

# Jitted: eager operations would each be compiled alone, which takes longer.
jitted_tokens = jax.jit(token_log_probs)
jitted_score = jax.jit(log_prob)
jitted_slope = jax.jit(jax.value_and_grad(log_prob))


def numpy_token_log_probs(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Returns the log-probs of the tokens of one document in float64."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    law = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return np.array([0.0, *(law[t - 1, tokens[t]] for t in range(1, len(tokens)))])


def test_tokens_by_hand(float64: None):
    logits = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1]])) + 7.0
    found = jitted_tokens(logits, jnp.array([2, 0, 1]))
    np.testing.assert_allclose(found, [0.0, np.log(0.2), np.log(0.8)], atol=1e-14)


def test_leading_axes(float64: None):
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(size=(2, 3, 5, 4)), rng.integers(4, size=(2, 3, 5))
    mask = rng.random((2, 3, 5)) < 0.6
    by_token = jitted_tokens(jnp.array(logits), jnp.array(tokens))
    by_document = jitted_score(jnp.array(logits), jnp.array(tokens), jnp.array(mask))
    for index in np.ndindex(2, 3):
        expected = numpy_token_log_probs(logits[index], tokens[index])
        np.testing.assert_allclose(by_token[index], expected, atol=1e-13)
        np.testing.assert_allclose(by_document[index], expected[mask[index]].sum(), atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_long_documents_accumulate_in_float32(dtype):
    """At 4096 tokens float32 is within 4e-3 of float64; sums in bfloat16 are off by over 100."""
    rng = np.random.default_rng(0)
    logits = jnp.array(2 * rng.normal(size=(4096, 32)), dtype)
    tokens = jnp.array(rng.integers(32, size=4096))
    mask = jnp.arange(4096) >= 10
    found = jitted_score(logits, tokens, mask)
    assert found.dtype == jnp.float32
    exact = numpy_token_log_probs(logits.astype(jnp.float32), tokens)[10:].sum()
    assert exact < -1e4
    assert abs(float(found) - exact) < 4e-3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_impossible_documents_are_finite(dtype):
    """Documents with forbidden tokens have probability 0 and a finite gradient."""
    logits = jnp.zeros((6, 3), dtype).at[:, 1].set(-jnp.inf)
    mask = jnp.arange(6) > 0
    impossible, possible = jnp.array([0, 1, 1, 2, 1, 0]), jnp.array([1, 0, 2, 2, 0, 0])
    for tokens, expected in [(impossible, 0.0), (possible, 2.0**-5)]:
        value, gradient = jitted_slope(logits, tokens, mask)
        assert np.isfinite(value)
        assert np.exp(value) == pytest.approx(expected, rel=1e-6)
        assert np.all(np.isfinite(gradient))
    by_token = jitted_tokens(logits, impossible)
    np.testing.assert_allclose(np.exp(by_token), [1.0, 0.0, 0.0, 0.5, 0.0, 0.5], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_outside_the_mask_do_no_harm(float64: None, bad: float):
    """Token ids outside the mask do not matter either. Logits at t count if token t + 1 does."""
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(size=(7, 4)), rng.integers(4, size=7)
    mask = np.array([False, False, True, True, False, True, False])
    counts = np.array([False, True, True, False, True, False, False])
    clean = jitted_slope(jnp.array(logits), jnp.array(tokens), jnp.array(mask))
    logits[~counts] = bad
    tokens[~mask] = [-100, 99, 4, -1]
    spoilt = jitted_slope(jnp.array(logits), jnp.array(tokens), jnp.array(mask))
    assert spoilt[0] == clean[0]
    np.testing.assert_array_equal(spoilt[1], clean[1])
    np.testing.assert_array_equal(spoilt[1][~counts], 0.0)
    assert np.all(np.any(np.asarray(spoilt[1])[counts] != 0.0, axis=1))


def test_an_empty_mask_gives_zero():
    logits, tokens = jnp.full((2, 3, 4), jnp.nan), jnp.zeros((2, 3), int)
    mask = jnp.zeros((2, 3), bool)
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(log_prob)))(logits, tokens, mask)
    np.testing.assert_array_equal(value, 0.0)
    np.testing.assert_array_equal(gradient, 0.0)


def test_bos_may_equal_eos(float64: None):
    """In document 0 2 0 with BOS = EOS = 0 the first 0 is the prompt and the last is scored."""
    tokens = jnp.array([0, 2, 0, 0])
    mask = response_mask(tokens, prompt_length=1, eos=0)
    np.testing.assert_array_equal(mask, [False, True, True, False])
    logits = jnp.log(
        jnp.array([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
    )
    assert jitted_score(logits, tokens, mask) == pytest.approx(np.log(0.5 * 0.1), rel=1e-12)


@pytest.mark.parametrize(
    ("tokens", "prompt_length", "eos", "expected"),
    [
        ([0, 1, 2, 3], 1, None, "0111"),
        ([0, 1, 2, 3], 3, None, "0001"),
        ([0, 1, 2, 3], 1, 3, "0111"),
        ([0, 1, 3, 3], 1, 3, "0110"),
        ([0, 3, 1, 2], 1, 3, "0100"),  # what follows EOS does not count, whatever it is
        ([0, 3, 1, 3], 1, 3, "0100"),
        ([3, 3, 1, 3], 2, 3, "0011"),  # EOS in the prompt ends nothing
        ([3, 1, 2, 0], 1, 3, "0111"),  # no EOS: it ends at the last token
        ([0, 1, 2, 3], 4, 3, "0000"),
        ([0, 1, 2, 3], 1, (3,), "0111"),
        ([0, 1, 2, 3], 1, (3, 2), "0110"),  # whichever comes first
        ([2, 3, 2, 1], 1, (2, 3), "0100"),
        ([0, 1, 2, 3], 1, (), "0111"),
    ],
)
def test_response_mask(
    tokens: list[int], prompt_length: int, eos: int | tuple[int, ...] | None, expected: str
):
    row = np.array(list(expected)) == "1"
    found = response_mask(jnp.array(tokens), prompt_length=prompt_length, eos=eos)
    np.testing.assert_array_equal(found, row)
    batch = response_mask(jnp.array([[tokens] * 2]), prompt_length=prompt_length, eos=eos)
    np.testing.assert_array_equal(batch, [[row] * 2])


def test_gradient(float64: None):
    rng = np.random.default_rng(0)
    logits, tokens = jnp.array(rng.normal(size=(2, 4, 3))), jnp.array(rng.integers(3, size=(2, 4)))
    mask = jnp.array([[False, True, True, True], [False, False, True, False]])
    score = jax.jit(lambda x: log_prob(x, tokens, mask))
    check_grads(score, (logits,), order=1, atol=1e-7, rtol=1e-7)


def test_wrong_shapes_and_types_are_refused():
    logits, tokens, mask = jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), int), jnp.ones((2, 3), bool)
    for bad in [
        (logits[:, :2], tokens, mask),
        (logits, tokens[:1], mask),
        (logits, tokens, mask[:1]),
        (logits.astype(int), tokens, mask),
        (logits, tokens.astype(float), mask),
        (logits, tokens, mask.astype(int)),
    ]:
        with pytest.raises(AssertionError):
            log_prob(*bad)
    with pytest.raises(AssertionError):
        token_log_probs(logits, tokens[0])
    with pytest.raises(AssertionError):
        token_log_probs(logits, tokens.astype(float))


def test_checkify_finds_bad_values():
    checked = jax.jit(checkify.checkify(log_prob))
    logits, tokens = jnp.zeros((2, 4, 3)), jnp.ones((2, 4), int)
    mask = jnp.array([[False, True, True, False], [False, True, True, True]])

    def message(logits=logits, tokens=tokens, mask=mask) -> str | None:
        return checked(logits, tokens, mask)[0].get()

    assert message() is None
    assert message(logits=logits.at[0, 2:].set(jnp.nan), tokens=tokens.at[0, 3].set(9)) is None
    assert "logits hold a NaN" in message(logits=logits.at[0, 1, 2].set(jnp.nan))
    empty = "the response of document 1 is empty: its mask is false on all 4 tokens"
    assert empty in message(mask=mask.at[1].set(False))
    assert (
        "token of document 1 is out of range: expected 0 <= token < 3, found between 0 and 3"
        in message(tokens=tokens.at[1, 2].set(3))
    )
    assert "0 <= token < 3, found between -1 and 1" in message(tokens=tokens.at[1, 2].set(-1))
