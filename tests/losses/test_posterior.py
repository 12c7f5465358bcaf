import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from shatter import documents
from shatter.losses import (
    elbo,
    exact_posterior_loss,
    kl_k1,
    kl_k2,
    kl_k3,
    posterior_loss,
    token_posterior_loss,
)
from shatter.models import tabular

pytestmark = pytest.mark.usefixtures("float64")

REWARDS = np.array([1.0, 0.0, -0.5, 2.0])
P0 = np.array([0.1, 0.2, 0.3, 0.4])
BETA = 0.5
LOGITS = np.random.default_rng(0).normal(0.0, 1.0, 4)
PI = np.exp(LOGITS) / np.exp(LOGITS).sum()

STRENGTHS = P0 * np.exp(REWARDS / BETA)
POSTERIOR = STRENGTHS / STRENGTHS.sum()
BETA_LOG_Z = BETA * np.log(STRENGTHS.sum())


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum())


def slope_of_mean(policy: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns E[(f - E f) grad log pi]: the gradient of E_pi f with f held fixed, for a softmax."""
    return policy * (values - (policy * values).sum())


@jax.jit
def sampled(logits):
    """Returns expected values and gradients of the sampled losses, by enumeration of samples.

    The samples' law is held fixed, as it is when a batch has been drawn.
    """
    law = jax.lax.stop_gradient(jax.nn.softmax(logits))
    reference, rewards = jnp.log(jnp.asarray(P0)), jnp.asarray(REWARDS)
    losses = {
        "posterior": lambda x: posterior_loss(x, reference, rewards, beta=BETA),
        "k1": lambda x: kl_k1(x, reference),
        "k2": lambda x: kl_k2(x, reference),
        "k3": lambda x: kl_k3(x, reference),
    }
    return {
        name: jax.value_and_grad(lambda z, loss=loss: jnp.sum(law * loss(jax.nn.log_softmax(z))))(
            logits
        )
        for name, loss in losses.items()
    }


@jax.jit
def exact(logits):
    def loss(logits):
        return exact_posterior_loss(
            jax.nn.log_softmax(logits), jnp.log(jnp.asarray(P0)), jnp.asarray(REWARDS), beta=BETA
        )

    return jax.value_and_grad(loss)(logits)


def test_posterior_in_numbers():
    np.testing.assert_allclose(POSTERIOR, [0.0322828, 0.0087380, 0.0048218, 0.9541574], atol=5e-8)
    assert BETA_LOG_Z == pytest.approx(1.5653179, abs=5e-8)
    value, slope = exact(np.log(POSTERIOR))
    assert -value == pytest.approx(BETA_LOG_Z, rel=1e-14)
    np.testing.assert_allclose(slope, 0.0, atol=1e-14)


def test_exact_loss_is_the_distance_to_the_posterior():
    """For every pi, -J_KL = beta KL(pi || p*) - beta log Z in value and gradient."""
    for policy in (PI, P0, np.array([0.97, 0.01, 0.01, 0.01])):
        value, slope = exact(np.log(policy))
        objective = (policy * REWARDS).sum() - BETA * kl(policy, P0)
        assert -value == pytest.approx(objective, rel=1e-13)
        assert value == pytest.approx(BETA * kl(policy, POSTERIOR) - BETA_LOG_Z, rel=1e-13)
        expected = BETA * slope_of_mean(policy, np.log(policy / POSTERIOR))
        np.testing.assert_allclose(slope, expected, atol=1e-14)


def test_expected_score_function_loss_is_exact():
    value, slope = sampled(LOGITS)["posterior"]
    exact_value, exact_slope = exact(LOGITS)
    assert value == pytest.approx(float(exact_value), rel=1e-13)
    np.testing.assert_allclose(slope, exact_slope, atol=1e-14)
    gain = REWARDS - BETA * np.log(PI / P0)
    np.testing.assert_allclose(slope, -slope_of_mean(PI, gain), atol=1e-14)


def test_score_function_loss_per_sample():
    """A loss is minus the gain, and so is its only gradient, the one in log pi."""
    log_probs, reference = np.log(PI), np.log(P0)
    gain = REWARDS - BETA * (log_probs - reference)

    def total(*arrays):
        losses = posterior_loss(*arrays, beta=BETA)
        return jnp.sum(losses), losses

    slopes, losses = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(
        log_probs, reference, REWARDS
    )
    np.testing.assert_allclose(losses, -gain, rtol=1e-14)
    np.testing.assert_allclose(slopes[0], -gain, rtol=1e-14)
    np.testing.assert_array_equal(slopes[1:], 0.0)


# --- token by token -------------------------------------------------------------------------------

LM = tabular(vocab_size=3, max_length=3)
DOCUMENTS, MASK = (
    np.asarray(x) for x in documents.enumerate_documents(vocab_size=3, max_length=3, eos=1)
)
TABLE, REF_TABLE = np.random.default_rng(1).normal(0.0, 1.0, (2, 1, 13, 3))
DOCUMENT_REWARDS = np.random.default_rng(2).normal(0.0, 1.0, len(DOCUMENTS))


@jax.jit
def token_forms(table):
    """Returns the law of documents, and losses with their Jacobians in the logits by both forms."""
    ref_tokens = documents.token_log_probs(LM.apply(jnp.asarray(REF_TABLE), DOCUMENTS), DOCUMENTS)
    ref_log_probs = documents.document_log_probs(LM, jnp.asarray(REF_TABLE), DOCUMENTS, MASK)
    rewards, mask = jnp.asarray(DOCUMENT_REWARDS), jnp.asarray(MASK)

    def by_token(table):
        tokens = documents.token_log_probs(LM.apply(table, DOCUMENTS), DOCUMENTS)
        return token_posterior_loss(tokens, ref_tokens, rewards, mask, beta=BETA)

    def by_document(table):
        log_probs = documents.document_log_probs(LM, table, DOCUMENTS, MASK)
        return posterior_loss(log_probs, ref_log_probs, rewards, beta=BETA)

    def exact(table):
        log_probs = documents.document_log_probs(LM, table, DOCUMENTS, MASK)
        return exact_posterior_loss(log_probs, ref_log_probs, rewards, beta=BETA)

    law = jnp.exp(documents.document_log_probs(LM, table, DOCUMENTS, MASK))
    forms = [(form(table), jax.jacrev(form)(table)) for form in (by_token, by_document)]
    return law, *forms, jax.value_and_grad(exact)(table)


def test_expected_token_loss_is_exact():
    """Over the 15 documents of up to three tokens, in value and in the gradient of all logits."""
    law, (losses, slopes), _, (value, slope) = jax.tree.map(np.asarray, token_forms(TABLE))
    assert len(law) == 15 and law.sum() == pytest.approx(1.0, rel=1e-13)
    assert law @ losses == pytest.approx(float(value), rel=1e-13)
    np.testing.assert_allclose(np.tensordot(law, slopes, 1), slope, atol=1e-14)
    assert np.abs(slope).max() > 1e-2


def test_token_loss_has_the_value_of_the_document_loss_and_less_variance():
    law, (losses, slopes), (whole, whole_slopes), _ = jax.tree.map(np.asarray, token_forms(TABLE))
    np.testing.assert_allclose(losses, whole, rtol=1e-13)
    by_token, by_document = (
        law @ ((x - np.tensordot(law, x, 1)) ** 2).sum((1, 2, 3)) for x in (slopes, whole_slopes)
    )
    assert by_token < by_document - 0.01


def test_a_token_counts_what_comes_from_it_on():
    """The gradient of every token is minus its reward-to-go; no other gradient passes."""
    tokens, reference = np.random.default_rng(3).normal(-1.0, 1.0, (2, 3, 5))
    rewards, betas = np.array([2.0, -1.0, 3.0]), np.array([0.5, 1.0, 2.0])
    mask = np.array(
        [[False, True, True, True, False], [False, False, True, True, True], [False] * 5]
    )
    gains = np.zeros((3, 5))
    for row, t in np.argwhere(mask):
        ratio = sum(tokens[row, u] - reference[row, u] for u in range(t, 5) if mask[row, u])
        gains[row, t] = rewards[row] - betas[row] * ratio
    first = [gains[0, 1], gains[1, 2], rewards[2]]

    @jax.jit
    def run(*arrays):
        def total(*arrays):
            losses = token_posterior_loss(*arrays, jnp.asarray(mask), beta=jnp.asarray(betas))
            return jnp.sum(losses), losses

        return jax.grad(total, argnums=(0, 1, 2), has_aux=True)(*arrays)

    for garbage in (0.0, np.nan, -np.inf):
        slopes, losses = run(*(np.where(mask, x, garbage) for x in (tokens, reference)), rewards)
        np.testing.assert_allclose(losses, np.negative(first), rtol=1e-13)
        np.testing.assert_allclose(slopes[0], -gains, rtol=1e-13)
        np.testing.assert_array_equal(slopes[1], 0.0)
        np.testing.assert_array_equal(slopes[2], 0.0)


# --- the lower bound ------------------------------------------------------------------------------


def test_the_mean_bound_is_the_evidence_less_the_distance_to_the_posterior():
    """It is log Z - KL(pi || p*) = J_KL / beta; at the posterior each sample has log Z."""
    log_z = BETA_LOG_Z / BETA

    @jax.jit
    def run(logits):
        def mean(logits):
            law = jax.lax.stop_gradient(jax.nn.softmax(logits))
            bounds = elbo(
                jax.nn.log_softmax(logits),
                jnp.log(jnp.asarray(P0)),
                jnp.asarray(REWARDS),
                beta=BETA,
            )
            return jnp.sum(law * bounds), bounds

        return jax.value_and_grad(mean, has_aux=True)(logits)

    for policy in (PI, P0, np.array([0.97, 0.01, 0.01, 0.01])):
        (mean, _), slope = run(np.log(policy))
        assert mean == pytest.approx(log_z - kl(policy, POSTERIOR), rel=1e-13)
        objective = (policy * REWARDS).sum() - BETA * kl(policy, P0)
        assert mean == pytest.approx(objective / BETA, rel=1e-13)
        assert mean < log_z - 1e-2
        np.testing.assert_allclose(slope, 0.0, atol=1e-15)  # of the samples as they were drawn
    (_, bounds), _ = run(np.log(POSTERIOR))
    np.testing.assert_allclose(bounds, log_z, rtol=1e-13)


# --- the estimators of the KL ---------------------------------------------------------------------


def test_expected_values_of_the_kl_estimators():
    found = sampled(LOGITS)
    assert found["k1"][0] == pytest.approx(kl(PI, P0), rel=1e-13)
    assert found["k3"][0] == pytest.approx(kl(PI, P0), rel=1e-13)
    # k2 is biased in value.
    assert found["k2"][0] == pytest.approx((PI * np.log(PI / P0) ** 2).sum() / 2, rel=1e-13)
    assert abs(found["k2"][0] - kl(PI, P0)) > 5e-3


def test_expected_gradients_of_the_kl_estimators():
    found = sampled(LOGITS)
    reverse = slope_of_mean(PI, np.log(PI / P0))  # of KL(pi || p0)
    forward = PI - P0  # of KL(p0 || pi)
    np.testing.assert_allclose(found["k1"][1], 0.0, atol=1e-15)
    np.testing.assert_allclose(found["k2"][1], reverse, atol=1e-14)
    np.testing.assert_allclose(found["k3"][1], forward, atol=1e-14)
    assert np.abs(reverse - forward).max() > 1e-2


def test_kl_estimators_per_sample():
    ratios = np.array([-30.0, -1.0, -1e-9, 0.0, 1e-9, 1.0, 30.0])  # log pi - log p0
    k1, k2, k3 = jax.jit(lambda *x: [kl_k1(*x), kl_k2(*x), kl_k3(*x)])(ratios, np.zeros(7))
    np.testing.assert_array_equal(k1, ratios)
    np.testing.assert_allclose(k2, ratios**2 / 2, rtol=1e-14)
    # exp(-x) - 1 + x, by its series where it cancels
    series = np.where(np.abs(ratios) < 1e-6, ratios**2 / 2, np.exp(-ratios) - 1.0 + ratios)
    np.testing.assert_allclose(k3, series, rtol=1e-12, atol=1e-24)
    assert (np.asarray(k3) >= 0.0).all()


def test_gradients():
    log_probs, reference = jnp.asarray(np.log(PI)), jnp.asarray(np.log(P0))

    @jax.jit
    def estimates(log_probs, reference):
        return [estimator(log_probs, reference) for estimator in (kl_k1, kl_k2, kl_k3)]

    check_grads(estimates, (log_probs, reference), order=1)

    @jax.jit
    def loss(logits, reference, rewards):
        return exact_posterior_loss(jax.nn.log_softmax(logits), reference, rewards, beta=BETA)

    check_grads(loss, (jnp.asarray(LOGITS), reference, jnp.asarray(REWARDS)), order=1)


def test_leading_axes_and_a_beta_of_each():
    arrays = [np.tile(x, (2, 3, 1)) for x in (np.log(PI), np.log(P0), REWARDS)]
    betas = np.array([[0.5, 1.0, 2.0], [3.0, 4.0, 5.0]])
    values = jax.jit(exact_posterior_loss)(*arrays, beta=betas)
    np.testing.assert_allclose(values, betas * kl(PI, P0) - (PI * REWARDS).sum(), rtol=1e-13)
    assert jax.eval_shape(posterior_loss, *arrays, beta=1.0).shape == (2, 3, 4)


FLOATS = jax.ShapeDtypeStruct((4,), float)


@pytest.mark.parametrize(
    "wrong", [jax.ShapeDtypeStruct((3,), float), jax.ShapeDtypeStruct((4,), int)]
)
@pytest.mark.parametrize("place", [0, 1])
def test_wrong_shapes_and_types_raise_while_tracing(wrong, place):
    log_probs = [FLOATS, FLOATS]
    log_probs[place] = wrong
    for estimator in (kl_k1, kl_k2, kl_k3):
        with pytest.raises(AssertionError):
            jax.eval_shape(estimator, *log_probs)
    for loss in (posterior_loss, exact_posterior_loss, elbo):
        with pytest.raises(AssertionError):
            jax.eval_shape(lambda *x, loss=loss: loss(*x, beta=BETA), *log_probs, FLOATS)
        with pytest.raises(AssertionError):
            jax.eval_shape(
                lambda *x, loss=loss: loss(*x, beta=BETA),
                FLOATS,
                FLOATS,
                jax.ShapeDtypeStruct((), float),
            )


@pytest.mark.parametrize("place", range(4))
def test_wrong_shapes_and_types_of_tokens_raise_while_tracing(place):
    tokens, mask = jax.ShapeDtypeStruct((4, 3), float), jax.ShapeDtypeStruct((4, 3), bool)
    right, loss = [tokens, tokens, FLOATS, mask], functools.partial(token_posterior_loss, beta=BETA)
    assert jax.eval_shape(loss, *right).shape == (4,)
    dtype = right[place].dtype
    wrong = [jax.ShapeDtypeStruct(shape, dtype) for shape in [(4, 2), (3,), (4, 3, 1), (4, 1)]]
    if place != 2:
        wrong.append(jax.ShapeDtypeStruct((4, 3), int))
    for bad in wrong:
        with pytest.raises(AssertionError):
            jax.eval_shape(loss, *right[:place], bad, *right[place + 1 :])


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan])
def test_a_beta_not_above_zero_is_named(bad):
    arrays = [np.log(PI), np.log(P0), REWARDS]
    tokens = [np.log(PI)[:, None], np.log(P0)[:, None], REWARDS, np.ones((4, 1), bool)]
    for loss in (posterior_loss, exact_posterior_loss, elbo, token_posterior_loss):
        with pytest.raises(ValueError, match=f"^beta must be above 0, found {bad}$"):
            loss(*(tokens if loss is token_posterior_loss else arrays), beta=bad)
