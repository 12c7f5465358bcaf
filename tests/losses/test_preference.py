import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from shatter.evaluation import dpo_optimum, ipo_optimum
from shatter.losses import dpo_loss, ipo_loss, selm_loss, slic_loss, xpo_loss

pytestmark = pytest.mark.usefixtures("float64")

BETA, DELTA, ALPHA, EPS = 0.3, 1.0, 0.7, 0.1
# log pi and log p0 of the chosen, the rejected and a sampled response of five comparisons
POLICY, REFERENCE = np.random.default_rng(0).normal(-20.0, 3.0, (2, 3, 5))
CHOSEN, REJECTED, SAMPLED = POLICY
REF_CHOSEN, REF_REJECTED, REF_SAMPLED = REFERENCE
PAIR = (CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED)
MARGIN = (CHOSEN - REF_CHOSEN) - (REJECTED - REF_REJECTED)

# name: the loss with its hyper-parameters, its arguments, the numbers that it should give
LOSSES = {
    "dpo": (
        functools.partial(dpo_loss, beta=BETA),
        PAIR,
        np.log1p(np.exp(-BETA * MARGIN)),
    ),
    "smoothed dpo": (
        functools.partial(dpo_loss, beta=BETA, label_smoothing=EPS),
        PAIR,
        (1 - EPS) * np.log1p(np.exp(-BETA * MARGIN)) + EPS * np.log1p(np.exp(BETA * MARGIN)),
    ),
    "ipo": (functools.partial(ipo_loss, beta=BETA), PAIR, (MARGIN - 1 / (2 * BETA)) ** 2),
    "slic": (
        functools.partial(slic_loss, delta=DELTA),
        PAIR[:2],
        np.maximum(0.0, DELTA - (CHOSEN - REJECTED)),
    ),
    "xpo": (
        functools.partial(xpo_loss, beta=BETA, alpha=ALPHA),
        (*PAIR, SAMPLED),
        np.log1p(np.exp(-BETA * MARGIN)) + ALPHA * SAMPLED,
    ),
    "selm": (
        functools.partial(selm_loss, beta=BETA, alpha=ALPHA),
        (*PAIR, SAMPLED, REF_SAMPLED),
        np.log1p(np.exp(-BETA * MARGIN)) + ALPHA * BETA * (SAMPLED - REF_SAMPLED),
    ),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


# --- formulas -------------------------------------------------------------------------------------


@every_loss
def test_formulas_and_gradients(name):
    loss, arguments, expected = LOSSES[name]
    compiled = jax.jit(loss)
    np.testing.assert_allclose(compiled(*arguments), expected, rtol=1e-13)
    check_grads(compiled, tuple(map(jnp.asarray, arguments)), order=1, modes=["rev"])


def test_the_hinge_is_met_on_both_sides():
    """The numbers above include comparisons within the margin of SLiC and beyond it."""
    losses = LOSSES["slic"][2]
    assert (losses > 0).any() and (losses == 0).any()


def test_optimism_pulls_the_sampled_response_down():
    """The slopes in the sampled log-prob are alpha and alpha beta for every comparison."""
    for name, slope in [("xpo", ALPHA), ("selm", ALPHA * BETA)]:
        loss, arguments, _ = LOSSES[name]
        gradient = jax.jit(jax.grad(lambda *x, loss=loss: jnp.sum(loss(*x)), argnums=(0, 4)))
        by_chosen, by_sampled = gradient(*arguments)
        np.testing.assert_allclose(by_sampled, slope, rtol=1e-14)
        np.testing.assert_allclose(by_chosen, -BETA * sigmoid(-BETA * MARGIN), rtol=1e-13)


def test_at_the_reference_the_loss_is_log_2():
    for smoothing in (0.0, EPS):
        losses = dpo_loss(CHOSEN, REJECTED, CHOSEN, REJECTED, beta=BETA, label_smoothing=smoothing)
        np.testing.assert_allclose(losses, np.log(2.0), rtol=1e-15)


def test_large_margins_stay_finite():
    """The loss of a pair with a large negative margin is the margin, as log sigmoid has it."""
    margins, zero = np.array([1e5, -1e5, 0.0]), np.zeros(3)
    for dtype in (np.float64, np.float32):
        for eps in (0.0, EPS):
            value, slope = jax.jit(
                jax.vmap(
                    jax.value_and_grad(
                        functools.partial(dpo_loss, beta=0.5, label_smoothing=eps), argnums=0
                    )
                )
            )(*(x.astype(dtype) for x in (margins, zero, zero, zero)))
            expected = [eps * 5e4, (1 - eps) * 5e4, np.log(2.0)]
            np.testing.assert_allclose(value, expected, rtol=1e-6)
            expected = [0.5 * eps, -0.5 * (1 - eps), 0.5 * (eps - 0.5)]
            np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_leading_axes_and_a_beta_of_each():
    betas = np.random.default_rng(1).uniform(0.1, 1.0, 5)
    np.testing.assert_allclose(
        jax.jit(dpo_loss)(*PAIR, beta=betas), np.log1p(np.exp(-betas * MARGIN)), rtol=1e-13
    )
    tiled = [np.tile(x, (2, 3, 1)) for x in PAIR]
    losses = jax.jit(functools.partial(ipo_loss, beta=BETA))(*tiled)
    np.testing.assert_allclose(losses, np.tile(LOSSES["ipo"][2], (2, 3, 1)), rtol=1e-13)


# --- label noise ----------------------------------------------------------------------------------


def test_label_smoothing_is_the_mean_loss_over_labels_flipped_at_that_rate():
    """Smoothing at probability P is plain DPO at probability P (1 - eps) + (1 - P) eps.

    So a comparison that always goes one way has its optimum at beta D = log((1 - eps) / eps).
    """

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0, None))
    @functools.partial(jax.value_and_grad, argnums=1)
    def mean_loss(chance, margin, smoothing):
        zero = jnp.zeros(())
        loss = functools.partial(dpo_loss, beta=BETA, label_smoothing=smoothing)
        return chance * loss(margin, zero, zero, zero) + (1 - chance) * loss(
            zero, margin, zero, zero
        )

    chance, margin = np.array([1.0, 0.9, 0.5, 0.2]), np.array([3.0, -1.0, 0.5, 8.0])
    flipped = chance * (1 - EPS) + (1 - chance) * EPS
    smoothed, plain = mean_loss(chance, margin, EPS), mean_loss(flipped, margin, 0.0)
    np.testing.assert_allclose(smoothed, plain, rtol=1e-13)
    optimum = np.log(flipped / (1 - flipped)) / BETA
    np.testing.assert_allclose(mean_loss(chance, optimum, EPS)[1], 0.0, atol=1e-16)
    assert np.abs(mean_loss(chance, optimum, 0.0)[1]).max() > 1e-2


# --- infinite data: where each method ends --------------------------------------------------------

Q = np.array([0.4, 0.3, 0.2, 0.1])
P0 = np.array([0.1, 0.2, 0.3, 0.4])
ORDERED = np.array(list(itertools.permutations(range(4), 2)))  # chosen, rejected
CHANCE = Q[ORDERED[:, 0]] / Q[ORDERED].sum(1) / 6  # uniform distinct pairs, Luce's choices


@functools.partial(jax.jit, static_argnames="loss")
def slope_of_mean(logits, beta, *, loss):
    """Returns the gradient in the logits of the mean loss over all ordered pairs."""

    def mean_loss(logits):
        policy = jax.nn.log_softmax(logits)[ORDERED].T
        reference = jnp.log(jnp.asarray(P0))[ORDERED].T
        return jnp.sum(CHANCE * loss(*policy, *reference, beta=beta))

    return jax.grad(mean_loss)(logits)


@pytest.mark.parametrize(
    ("loss", "optimum"), [(dpo_loss, dpo_optimum), (ipo_loss, ipo_optimum)], ids=["dpo", "ipo"]
)
@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_expected_gradient_is_zero_at_the_optimum(loss, optimum, beta):
    """Both losses are convex in the margins, all of which the gradient depends on."""
    end = optimum(jnp.log(P0), jnp.log(Q), beta=beta)
    assert np.exp(end).sum() == pytest.approx(1.0)
    np.testing.assert_allclose(slope_of_mean(end, beta, loss=loss), 0.0, atol=1e-14)
    for elsewhere in (Q, P0):
        assert np.abs(slope_of_mean(np.log(elsewhere), beta, loss=loss)).max() > 1e-3


def test_direct_preference_optimisation_ends_in_numbers():
    end = np.log([0.32, 0.36, 0.24, 0.08])
    np.testing.assert_allclose(slope_of_mean(end, 0.5, loss=dpo_loss), 0.0, atol=1e-16)


def test_slic_follows_the_majority_of_a_pair_by_delta():
    """For any majority, so the loss does not learn shares."""
    log_ratios = np.linspace(-2.0, 2.0, 401)

    @jax.jit
    def mean_loss(chance):
        first, second = jnp.asarray(log_ratios), jnp.zeros(401)
        for_first = slic_loss(first, second, delta=DELTA)
        for_second = slic_loss(second, first, delta=DELTA)
        return chance * for_first + (1 - chance) * for_second

    for chance, best in [(0.51, DELTA), (0.9, DELTA), (0.49, -DELTA), (0.2, -DELTA)]:
        losses = np.asarray(mean_loss(chance))
        assert log_ratios[losses.argmin()] == pytest.approx(best)
        assert losses.min() == pytest.approx(2 * DELTA * min(chance, 1 - chance))
        assert np.sort(losses)[1] > losses.min()


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan])
@every_loss
def test_hyper_parameters_not_above_zero_are_named(name, bad):
    loss, arguments, _ = LOSSES[name]
    parameter = "delta" if name == "slic" else "beta"
    loss = functools.partial(loss, **{parameter: bad})
    with pytest.raises(ValueError, match=f"^{parameter} must be above 0, found {bad}$"):
        loss(*arguments)


@every_loss
def test_wrong_shapes_and_types_raise_while_tracing(name):
    loss, arguments, _ = LOSSES[name]
    right = [jax.ShapeDtypeStruct((4,), float)] * len(arguments)
    assert jax.eval_shape(loss, *right).shape == (4,)
    for place in range(len(arguments)):
        for wrong in (
            jax.ShapeDtypeStruct((3,), float),
            jax.ShapeDtypeStruct((4, 1), float),
            jax.ShapeDtypeStruct((), float),
            jax.ShapeDtypeStruct((4,), int),
        ):
            with pytest.raises(AssertionError):
                jax.eval_shape(loss, *right[:place], wrong, *right[place + 1 :])


def test_responses_that_cannot_be():
    """Log-probs of -inf give no NaN in value or gradient."""
    chosen, rejected = jnp.array([-1.0, -jnp.inf]), jnp.array([-jnp.inf, -1.0])
    ref = jnp.array([-2.0, -jnp.inf])
    total = lambda *x: jnp.sum(dpo_loss(*x, beta=0.5))
    value, slopes = jax.value_and_grad(total, argnums=(0, 1))(chosen, rejected, ref, ref)
    assert not np.isnan(value)
    assert np.isfinite(np.asarray(slopes)).all()
    first = jax.jit(lambda *x: dpo_loss(*x, beta=0.5))(chosen[0], rejected[0], ref[0], ref[0])
    assert first == 0.0


@pytest.mark.parametrize("eps", [-0.1, 0.5, 1.7])
def test_label_smoothing_out_of_range_is_named(eps):
    ones = jnp.ones(2)
    with pytest.raises(ValueError, match=rf"label_smoothing must be in \[0, 1/2\), found {eps}"):
        dpo_loss(ones, ones, ones, ones, beta=1.0, label_smoothing=eps)
