import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.test_util import check_grads

from shatter.choice import davidson_log_probs, luce_log_prob, luce_log_probs, luce_sample

pytestmark = pytest.mark.usefixtures("float64")

UTILITIES = np.random.default_rng(0).normal(0.0, 2.0, (5, 6))
log_probs = jax.jit(luce_log_probs)
log_prob = jax.jit(luce_log_prob)
jacobian = jax.jit(jax.jacrev(luce_log_probs))
davidson = jax.jit(davidson_log_probs)


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    """Returns log sigmoid in float64, accurate at both ends."""
    return -np.logaddexp(0.0, -np.asarray(x, np.float64))


def test_law_is_the_share_of_strength():
    law = np.exp(log_probs(UTILITIES))
    strengths = np.exp(UTILITIES)
    np.testing.assert_allclose(law, strengths / strengths.sum(-1, keepdims=True), rtol=1e-14)
    np.testing.assert_allclose(law.sum(-1), 1.0, rtol=1e-14)


def test_log_prob_is_the_entry_of_the_choice():
    choices = np.array([0, 5, 2, 2, 1])
    np.testing.assert_array_equal(
        log_prob(UTILITIES, choices),
        np.asarray(log_probs(UTILITIES))[np.arange(5), choices],
    )


def test_a_shift_changes_nothing():
    # Eighths below 2^17 are exact in float32, and so are their differences: equal to the bit.
    eighths = (np.round(UTILITIES * 8) / 8).astype(np.float32)
    for shift in (2.0**17, -(2.0**17)):
        np.testing.assert_array_equal(
            log_probs(eighths + np.float32(shift)), log_probs(eighths), strict=True
        )


@pytest.mark.parametrize("size", [0.0, 1e5, -1e5])
def test_pairs_are_log_sigmoid_in_float32(size):
    """To full relative accuracy, also of log-probs near 0."""
    first = (size + np.linspace(-90.0, 90.0, 181)).astype(np.float32)
    second = np.full_like(first, size)
    difference = first.astype(np.float64) - second
    pairs = log_probs(np.stack([first, second], -1))
    assert pairs.dtype == jnp.float32
    expected = np.stack([log_sigmoid(difference), log_sigmoid(-difference)], -1)
    # float32 has no smaller normal number than 1.2e-38
    np.testing.assert_allclose(pairs, expected, rtol=4e-7, atol=1.2e-38)


def test_a_sure_choice_keeps_its_small_loss():
    utilities = np.array([0.0, -40.0, -41.0], np.float32)
    expected = -np.log1p(np.exp(-40.0) + np.exp(-41.0))
    np.testing.assert_allclose(np.asarray(log_probs(utilities))[0], expected, rtol=4e-7)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    half = UTILITIES.astype(dtype)
    law = log_probs(half)
    assert law.dtype == jnp.float32
    np.testing.assert_allclose(law, log_probs(np.asarray(half, np.float64)), rtol=1e-5)


def test_absent_items():
    present = np.array([True, False, True, True, False, False])
    utilities = np.where(present, UTILITIES, -np.inf)
    law = np.asarray(log_probs(utilities))
    np.testing.assert_array_equal(law[:, ~present], -np.inf)
    np.testing.assert_allclose(law[:, present], log_probs(UTILITIES[:, present]), rtol=1e-14)

    strengths = np.exp(utilities[0])
    expected = np.eye(6) - strengths / strengths.sum()
    np.testing.assert_allclose(jacobian(utilities[0])[present], expected[present], atol=1e-14)


def test_nobody_present():
    nobody = np.full((2, 3), -np.inf)
    np.testing.assert_array_equal(log_probs(nobody), nobody)
    assert np.all(np.isfinite(jacobian(nobody[0])))


def test_gradients():
    check_grads(log_probs, (jnp.asarray(UTILITIES[0]),), order=1)
    check_grads(davidson, (jnp.asarray(UTILITIES[:, :2]), jnp.asarray(UTILITIES[:, 2])), order=1)


def test_samples_follow_luce_and_so_does_the_gumbel_argmax():
    utilities = np.array([1.0, 0.0, -np.inf, -0.5, 2.0])
    num_draws = 20_000
    copies = np.tile(utilities, (num_draws, 1))

    @jax.jit
    def draw(key, copies):
        sample_key, gumbel_key = jax.random.split(key)
        noise = jax.random.gumbel(gumbel_key, copies.shape)
        return luce_sample(sample_key, copies), jnp.argmax(copies + noise, axis=-1)

    expected = num_draws * np.exp(utilities) / np.exp(utilities).sum()
    present = expected > 0
    for sample in draw(jax.random.key(1), copies):
        counts = np.bincount(sample, minlength=5)
        assert counts[2] == 0
        chi_square = ((counts - expected)[present] ** 2 / expected[present]).sum()
        assert chi_square < 21.1  # the 0.9999 quantile at 3 degrees of freedom


def test_davidson():
    pair, log_tie = UTILITIES[:, :2], UTILITIES[:, 2]
    first, second, tie = np.exp(davidson(pair, log_tie)).T
    strength, nu = np.exp(pair), np.exp(log_tie)
    total = strength.sum(-1) + nu * np.sqrt(strength.prod(-1))
    np.testing.assert_allclose(first, strength[:, 0] / total, rtol=1e-13)
    np.testing.assert_allclose(second, strength[:, 1] / total, rtol=1e-13)
    np.testing.assert_allclose(tie, nu * np.sqrt(strength.prod(-1)) / total, rtol=1e-13)
    np.testing.assert_allclose(first + second + tie, 1.0, rtol=1e-14)
    swapped = np.exp(davidson(pair[:, ::-1], log_tie)).T
    np.testing.assert_allclose(swapped, [second, first, tie], rtol=1e-13)


def test_davidson_without_ties_is_luce():
    pair = UTILITIES[:, :2]
    law = np.asarray(jax.jit(lambda pair: davidson_log_probs(pair, -np.inf))(pair))
    np.testing.assert_array_equal(law[:, 2], -np.inf)
    np.testing.assert_allclose(law[:, :2], log_probs(pair), rtol=1e-14)
    rare = np.asarray(davidson(pair, np.full(5, -30.0)))
    np.testing.assert_allclose(rare[:, :2], log_probs(pair), atol=1e-12)


FLOATS = jax.ShapeDtypeStruct((4, 3), float)
CHOICES = jax.ShapeDtypeStruct((4,), int)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (luce_log_probs, [jax.ShapeDtypeStruct((), float)]),
        (luce_log_probs, [jax.ShapeDtypeStruct((4, 3), int)]),
        (luce_log_prob, [jax.ShapeDtypeStruct((), float), jax.ShapeDtypeStruct((), int)]),
        (luce_log_prob, [FLOATS, jax.ShapeDtypeStruct((3,), int)]),
        (luce_log_prob, [FLOATS, jax.ShapeDtypeStruct((4, 1), int)]),
        (luce_log_prob, [FLOATS, jax.ShapeDtypeStruct((4,), float)]),
        (luce_log_prob, [FLOATS, jax.ShapeDtypeStruct((4,), bool)]),
        (davidson_log_probs, [FLOATS, jax.ShapeDtypeStruct((4,), float)]),
    ],
)
def test_wrong_shapes_and_types_raise_while_tracing(function, arguments):
    with pytest.raises(AssertionError):
        jax.eval_shape(jax.jit(function), *arguments)


def test_wrong_values_raise_under_checkify_only():
    utilities, with_nan = np.zeros((2, 3)), np.array([[0.0, 0.0, 0.0], [0.0, np.nan, 0.0]])
    checked = jax.jit(checkify.checkify(luce_log_prob))
    checked(utilities, np.array([0, 2]))[0].throw()
    for choices, found in ([0, 3], "between 0 and 3"), ([-1, 2], "between -1 and 2"):
        with pytest.raises(checkify.JaxRuntimeError, match=f"outside its query.*K = 3.*{found}"):
            checked(utilities, np.array(choices))[0].throw()
        log_prob(utilities, np.array(choices))
    with pytest.raises(checkify.JaxRuntimeError, match="NaN"):
        checked(with_nan, np.array([0, 2]))[0].throw()
    np.testing.assert_array_equal(np.isnan(log_prob(with_nan, np.array([0, 2]))), [False, True])
