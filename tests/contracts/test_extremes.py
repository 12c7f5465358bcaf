"""Every loss of a log-ratio at 0 to 1e5 nats either way: the limits, in value and gradient.

Expected values are closed forms in Python floats. Where the true value is no float32, a ratio is
held at e^80, which the docstrings say.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter import choice, documents, evaluation, exploration, inference, losses, numerics

RATIOS = [0.0, 0.3, 1.0, 5.0, 79.0, 89.0, 100.0, 1000.0, 1e5]
RATIOS = np.array([*RATIOS, *(-ratio for ratio in RATIOS[1:])])
HELD = 80.0
BETA = 0.25
FAR = -3.0
SLOPE_BOUND = 40.0


def exp(x, most=HELD):
    return math.exp(min(x, most)) if x > -700.0 else 0.0


def sigmoid(x):
    return 1.0 / (1.0 + exp(-x, 700.0))


def softplus(x):
    return max(x, 0.0) + math.log1p(exp(-abs(x)))


def entropy_of(x):
    """Binary entropy of sigmoid(x), and its slope."""
    return sigmoid(x) * softplus(-x) + sigmoid(-x) * softplus(x), -x * sigmoid(x) * sigmoid(-x)


def pair(x, y):
    return jnp.stack([x, jnp.full_like(x, y)], axis=-1)


def clipped(advantage):
    """PPO's objective of one token, and its gradient by the log-ratio."""

    def right(r):
        ratio, bound = exp(r), min(max(exp(r), 0.8), 1.2)
        free = ratio * advantage < bound * advantage or ratio == bound
        return -min(ratio * advantage, bound * advantage), -ratio * advantage * free

    return right


def off_policy(slope):
    """f-DPG from a proposal at a distance of r on one side, the target on the other."""
    return lambda x: losses.fdpg_loss(
        x, jnp.full_like(x, FAR), slope=slope, proposal_log_probs=jnp.full_like(x, FAR)
    )


def weighed(slope):
    """`(pi / q) (f'(t) - f'(1))` at log t = r and pi / q = e^r; the gradient is the same."""

    def right(r):
        gain = slope(r) - slope(0.0)
        value = math.copysign(math.exp(min(math.log(abs(gain)) + r, 700.0)), gain) if gain else 0.0
        held = min(max(value, -exp(HELD)), exp(HELD))
        return held, held

    return right


bound = lambda r: min(max(r, -SLOPE_BOUND), SLOPE_BOUND)
plain = lambda x: jnp.full_like(x, FAR)
full = lambda x: jnp.ones((*x.shape, 1), bool)
# Name -> (function of x [R] -> [R], expected (value, slope) of r = x - FAR).
CASES = {
    "kl_k1": (lambda x: losses.kl_k1(x, plain(x)), lambda r: (r, 1.0)),
    "kl_k2": (lambda x: losses.kl_k2(x, plain(x)), lambda r: (r * r / 2, r)),
    "kl_k3": (
        lambda x: losses.kl_k3(x, plain(x)),
        lambda r: (exp(-r) - 1.0 + r if abs(r) > 1e-9 else 0.0, 1.0 - exp(-r)),
    ),
    "ilhf_loss": (
        lambda x: losses.ilhf_loss(pair(x, FAR), jnp.zeros(x.shape, int)),
        lambda r: (softplus(-r), -sigmoid(-r)),
    ),
    "ilhf_ranking_loss": (
        lambda x: losses.ilhf_ranking_loss(pair(x, FAR), jnp.tile(jnp.array([2, 1]), (len(x), 1))),
        lambda r: (softplus(r), sigmoid(r)),
    ),
    "ilhf_loss_of_a_tilt": (
        lambda x: losses.ilhf_loss(
            losses.tilted_utilities(pair(x, FAR), jnp.full((*x.shape, 2), FAR)),
            jnp.zeros(x.shape, int),
        ),
        lambda r: (softplus(-r), -sigmoid(-r)),
    ),
    "ranks_of_two_tied_above_a_third": (  # P = s / (s + 1) + 1 / 2 - s / (s + 2), s = e^r, u = 0
        lambda x: -choice.ranks_log_prob(
            jnp.stack([plain(x), plain(x), x], axis=-1), jnp.tile(jnp.array([1, 1, 2]), (len(x), 1))
        ),
        lambda r: (
            softplus(r) + softplus(r - math.log(2.0)),
            sigmoid(r) + sigmoid(r - math.log(2.0)),
        ),
    ),
    "dpo_loss": (
        lambda x: losses.dpo_loss(x, plain(x), plain(x), plain(x), beta=BETA),
        lambda r: (softplus(-BETA * r), -BETA * sigmoid(-BETA * r)),
    ),
    "ipo_loss": (
        lambda x: losses.ipo_loss(x, plain(x), plain(x), plain(x), beta=BETA),
        lambda r: ((r - 2.0) ** 2, 2 * (r - 2.0)),
    ),
    "slic_loss": (
        lambda x: losses.slic_loss(x, plain(x), delta=0.5),
        lambda r: (max(0.5 - r, 0.0), -1.0 * (r < 0.5)),
    ),
    "elbo": (
        lambda x: losses.elbo(x, plain(x), jnp.ones_like(x), beta=BETA),
        lambda r: (4.0 - r, -1.0),
    ),
    "posterior_loss": (
        lambda x: losses.posterior_loss(x, plain(x), jnp.ones_like(x), beta=BETA),
        lambda r: (BETA * r - 1.0, BETA * r - 1.0),
    ),
    "gdc_loss_of_a_far_proposal": (  # the weight is e^-r
        lambda x: losses.gdc_loss(x - jax.lax.stop_gradient(x) - 1.0, plain(x), x),
        lambda r: (exp(-r), -exp(-r)),
    ),
    "gdc_loss_of_rare_samples": (  # the weight is 1
        lambda x: losses.gdc_loss(x, plain(x), plain(x)),
        lambda r: (-(r + FAR), -1.0),
    ),
    **{
        f"ppo_loss_{advantage:+}": (
            lambda x, advantage=advantage: losses.ppo_loss(
                x[:, None], plain(x)[:, None], jnp.full_like(x, advantage)[:, None], full(x)
            ),
            clipped(advantage),
        )
        for advantage in (2.0, -2.0, 0.0)
    },
    "fdpg_forward_kl": (
        off_policy(losses.forward_kl_slope),
        weighed(lambda r: -math.exp(-bound(r))),
    ),
    "fdpg_reverse_kl": (off_policy(losses.reverse_kl_slope), weighed(lambda r: r + 1.0)),
    "fdpg_jensen_shannon": (
        off_policy(losses.jensen_shannon_slope),
        weighed(lambda r: math.log(2.0) - softplus(-r)),
    ),
    "fdpg_total_variation": (
        off_policy(losses.total_variation_slope),
        weighed(lambda r: 0.5 * float(np.sign(r))),
    ),
    "fdpg_forward_chi_squared": (
        off_policy(losses.forward_chi_squared_slope),
        weighed(lambda r: -math.expm1(-2.0 * bound(r))),
    ),
    "fdpg_reverse_chi_squared": (
        off_policy(losses.reverse_chi_squared_slope),
        weighed(lambda r: 2.0 * math.expm1(bound(r))),
    ),
    "luce_entropy": (  # of the law of a pair, by values and log-probs that underflow
        lambda x: numerics.entropy(choice.luce_log_probs(pair(x, FAR))),
        entropy_of,
    ),
    "davidson_log_probs": (
        lambda x: choice.davidson_log_probs(pair(x, FAR), 0.0)[..., 2],
        lambda r: (
            -(abs(r) / 2 + math.log1p(exp(-abs(r) / 2) + exp(-abs(r)))),
            (exp(-max(r, 0.0)) - exp(min(r, 0.0)))
            / (2 * (1 + exp(-abs(r) / 2) + exp(-abs(r)))),
        ),
    ),
    "log_evidence": (
        lambda x: inference.log_evidence(pair(x, FAR)) - FAR,
        lambda r: (softplus(r) - math.log(2.0), sigmoid(r)),
    ),
    "effective_sample_size": (
        lambda x: inference.effective_sample_size(pair(x, FAR)),
        lambda r: (
            1.0 / (sigmoid(r) ** 2 + sigmoid(-r) ** 2),
            2 * sigmoid(r) * sigmoid(-r) * (sigmoid(-r) - sigmoid(r))
            / (sigmoid(r) ** 2 + sigmoid(-r) ** 2) ** 2,
        ),
    ),
    "snis_expectation": (
        lambda x: inference.snis_expectation(pair(x, FAR), pair(jnp.ones_like(x), 0.0)),
        lambda r: (sigmoid(r), sigmoid(r) * sigmoid(-r)),
    ),
    "importance_kl": (  # KL(p || pi) of samples of p0 = pi, P / p0 = e^x and e^FAR
        lambda x: inference.importance_kl(
            pair(x, FAR) - 1.0, pair(plain(x), FAR), pair(plain(x), FAR)
        ),
        lambda r: (
            math.log(2.0) + sigmoid(r) * -softplus(-r) + sigmoid(-r) * -softplus(r),
            -entropy_of(r)[1],
        ),
    ),
    "information_gain": (  # two members of opposite mind
        lambda x: jax.vmap(
            lambda y: exploration.information_gain(
                jnp.stack([jnp.stack([y, 0.0 * y]), jnp.stack([-y, 0.0 * y])])
            )[0, 1]
        )(x - FAR),
        lambda r: (math.log(2.0) - entropy_of(r)[0], -entropy_of(r)[1]),
    ),
    "law_information_gain": (  # the document gives the member away
        lambda x: jax.vmap(
            lambda y: exploration.law_information_gain(
                jnp.stack([jnp.stack([y, 0.0 * y]), jnp.stack([-y, 0.0 * y])]),
                jnp.array([[0.0, -jnp.inf, -1e30], [-1e5, 0.0, 0.0]]),
            )[0, 1]
        )(x - FAR),
        lambda r: (math.log(2.0) - entropy_of(r)[0], -entropy_of(r)[1]),
    ),
    "query_information_gain": (
        lambda x: exploration.query_information_gain(
            jnp.stack([pair(x - FAR, 0.0), pair(FAR - x, 0.0)])
        ),
        lambda r: (math.log(2.0) - entropy_of(r)[0], -entropy_of(r)[1]),
    ),
    "posterior_optimum": (  # log Z and log p* of rewards r and 0
        lambda x: sum(
            evaluation.posterior_optimum(
                jnp.full((len(x), 2), -math.log(2.0)), pair(x - FAR, 0.0), beta=BETA
            )[0].T
        ),
        lambda r: (
            -softplus(r / BETA) - softplus(-r / BETA),
            (sigmoid(-r / BETA) - sigmoid(r / BETA)) / BETA,
        ),
    ),
    "soft_values": (
        lambda x: jax.vmap(
            lambda y: documents.soft_values([jnp.stack([y, 0.0 * y])[None]], temperature=BETA)[0][
                0
            ][0]
        )(x - FAR),
        lambda r: (BETA * softplus(r / BETA), sigmoid(r / BETA)),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_at_extreme_log_ratios(name):
    function, right = CASES[name]

    @jax.jit
    def run(x):
        return function(x), jax.grad(lambda x: jnp.sum(function(x)))(x)

    x = np.asarray(RATIOS + FAR, np.float32)
    values, slopes = run(x)
    ratios = (x - np.float32(FAR)).astype(float)
    expected, expected_slopes = np.transpose([right(r) for r in ratios])
    assert values.dtype == jnp.float32
    # The rounding of an exponent is a relative error of the exponential; the importance-weighted KL
    # is a difference of numbers as large as the ratio.
    atol = 2e-6 + (2e-7 * np.abs(ratios) if name == "importance_kl" else 0.0)
    assert np.all(np.abs(values - expected) <= 2e-5 * np.abs(expected) + atol), values
    np.testing.assert_allclose(slopes, expected_slopes, rtol=2e-5, atol=2e-6)


def test_a_product_that_is_a_float_though_its_weight_is_not():
    log_probs = jnp.array([-1e-30, -0.0, -1e-10])
    far = partial(jnp.full_like, log_probs)
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(losses.gdc_loss)))(
        log_probs, far(-100.0), far(-200.0)
    )  # the weight is e^100
    np.testing.assert_allclose(
        values, [math.exp(100) * 1e-30, 0.0, math.exp(100) * 1e-10], rtol=1e-5
    )
    np.testing.assert_allclose(slopes, -math.exp(HELD), rtol=1e-5)


@pytest.mark.slow
def test_a_policy_at_the_target_stays_however_rare_its_samples_were():
    """`0 e^1000` is 0: nothing to do where pi = p."""
    x = jnp.array([-1.0, -3.0])

    def loss(x, name):
        target, proposal = jax.lax.stop_gradient(x), jnp.full(2, -1000.0)
        slope = getattr(losses, name)
        return jnp.sum(losses.fdpg_loss(x, target, slope=slope, proposal_log_probs=proposal))

    for name in losses.__all__:
        if name.endswith("_slope"):
            np.testing.assert_array_equal(jax.grad(loss)(x, name), 0.0)


def test_float64_is_exact_beyond_the_bound_of_float32(float64):
    loss = lambda x: losses.kl_k3(x, jnp.zeros(()))
    value, slope = jax.value_and_grad(loss)(jnp.asarray(-300.0))
    np.testing.assert_allclose([value, -slope], math.exp(300.0), rtol=1e-13)
    value, slope = jax.value_and_grad(loss)(jnp.asarray(-1e5))
    np.testing.assert_allclose([value, -slope], math.exp(701.0), rtol=1e-13)


@pytest.mark.parametrize("x", [-np.inf, -1e30, -1e5, -3.0, 0.0, 79.0, 80.5, 1e5, 1e30, np.inf])
def test_bounded_exp(x):
    value, slope = jax.value_and_grad(numerics.bounded_exp)(jnp.float32(x))
    assert value == slope
    assert value == pytest.approx(exp(x), rel=1e-5)


def test_a_rare_point_that_the_other_law_excludes_is_infinitely_far():
    """e^-1000 is 0 in any float, and 0 times infinity is NaN."""
    p = jnp.array([0.0, -1000.0])
    other = jnp.array([0.0, -jnp.inf])
    assert numerics.kl_divergence(p, other) == np.inf
    assert numerics.expectation(p, other) == -np.inf
    assert numerics.kl_divergence(other, p) == 0.0
    np.testing.assert_array_equal(jax.grad(numerics.kl_divergence)(other, p), [1.0, 0.0])


@pytest.mark.parametrize("name", ["kl_k3", "gdc_loss", "posterior_optimum", "reward_optimum"])
def test_what_is_not_known_is_seen(name):
    """No comparison takes a NaN for a document without mass, or for the worst."""
    some, nan = jnp.array([-1.0, -2.0]), jnp.array([jnp.nan, -1.0])
    found = {
        "kl_k3": lambda: losses.kl_k3(some, nan),
        "gdc_loss": lambda: losses.gdc_loss(some, nan, some),
        "posterior_optimum": lambda: evaluation.posterior_optimum(some, nan, beta=1.0)[0],
        "reward_optimum": lambda: evaluation.reward_optimum(some, nan),
    }[name]()
    assert np.isnan(found[0])
