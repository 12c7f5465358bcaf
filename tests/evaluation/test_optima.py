import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.evaluation import (
    best_of_n_log_probs,
    dpo_optimum,
    ipo_optimum,
    posterior_optimum,
    reward_kl_frontier,
    reward_optimum,
)
from shatter.numerics import LOG_ZERO, expectation, kl_divergence

pytestmark = pytest.mark.usefixtures("float64")

REWARDS = np.array([1.0, 0.0, -0.5, 2.0])
P0 = np.array([0.1, 0.2, 0.3, 0.4])
Q = np.array([0.4, 0.3, 0.2, 0.1])

posterior = jax.jit(posterior_optimum)
best_of = jax.jit(best_of_n_log_probs, static_argnames="num_samples")
frontier = jax.jit(reward_kl_frontier)


def logs(law: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(law)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    ratio = np.where(p > 0, p, 1.0) / np.where(p > 0, q, 1.0)
    return (p * np.log(ratio)).sum(-1)


# --- the posterior and its limit ------------------------------------------------------------------


def test_posterior_in_numbers():
    log_target, log_z = posterior(np.log(P0), REWARDS, beta=0.5)
    expected = [0.0322828, 0.0087380, 0.0048218, 0.9541574]
    np.testing.assert_allclose(np.exp(log_target), expected, atol=5e-8)
    assert 0.5 * log_z == pytest.approx(1.5653179, abs=5e-8)


def test_posterior_does_not_move_with_a_constant():
    log_target, log_z = posterior(np.log(P0), REWARDS, beta=0.5)
    shifted, shifted_log_z = posterior(np.log(P0), REWARDS - 7.0, beta=0.5)
    np.testing.assert_allclose(shifted, log_target, atol=1e-13)
    assert shifted_log_z == pytest.approx(float(log_z) - 14.0, abs=1e-13)


def test_posterior_of_any_leading_axes_and_a_beta_of_each():
    rng = np.random.default_rng(0)
    p0, rewards = rng.dirichlet(np.ones(5), (2, 3)), rng.normal(size=(2, 3, 5))
    p0[0, 1] = [0.5, 0.0, 0.2, 0.0, 0.3]
    for beta in (0.7, rng.uniform(0.3, 2.0, (2, 3))):
        strengths = p0 * np.exp(rewards / np.broadcast_to(beta, (2, 3))[..., None])
        total = strengths.sum(-1, keepdims=True)
        log_target, log_z = posterior(logs(p0), rewards, beta=beta)
        np.testing.assert_allclose(np.exp(log_target), strengths / total, atol=1e-14)
        np.testing.assert_allclose(log_z, np.log(total[..., 0]), atol=1e-13)
        assert np.isfinite(log_target).all()


def test_derivatives_in_the_inverse_temperature():
    """By eta = 1 / beta: d log Z = E r, d E r = Var r, d KL(p* || p0) = eta Var r."""

    @jax.jit
    def run(eta):
        def quantities(eta):
            reference, rewards = jnp.log(jnp.asarray(P0)), jnp.asarray(REWARDS)
            log_target, log_z = posterior_optimum(reference, rewards, beta=1.0 / eta)
            mean, divergence = (
                expectation(log_target, rewards),
                kl_divergence(log_target, reference),
            )
            return jnp.stack([log_z, mean, divergence])

        return jax.jvp(quantities, (eta,), (jnp.ones_like(eta),))[1]

    for eta in (0.1, 0.5, 2.0):
        law = P0 * np.exp(eta * REWARDS)
        law /= law.sum()
        mean = law @ REWARDS
        variance = law @ (REWARDS - mean) ** 2
        np.testing.assert_allclose(run(eta), [mean, variance, eta * variance], rtol=1e-12)


def test_reward_optimum_is_the_limit_of_no_kl():
    """p0 decides among ties; a document without mass has none, even with the highest reward."""
    rewards = np.array([[0.0, 3.0, 1.0, 3.0], [5.0, 1.0, 2.0, 2.0]])
    p0 = np.array([[0.4, 0.1, 0.2, 0.3], [0.0, 0.2, 0.5, 0.3]])
    expected = np.array([[0.0, 0.25, 0.0, 0.75], [0.0, 0.0, 0.625, 0.375]])
    found = np.asarray(jax.jit(reward_optimum)(logs(p0), rewards))
    np.testing.assert_allclose(np.exp(found), expected, atol=1e-15)
    assert found[expected == 0] == pytest.approx(LOG_ZERO)
    limit, _ = posterior(logs(p0), rewards, beta=0.01)
    np.testing.assert_allclose(np.exp(limit), expected, atol=1e-15)


# --- the direct methods ---------------------------------------------------------------------------


def test_dpo_optimum():
    end = np.exp(dpo_optimum(np.log(P0), np.log(Q), beta=0.5))
    np.testing.assert_allclose(end, [0.32, 0.36, 0.24, 0.08], atol=1e-14)
    # The same with a density that is not normalised; nobody's document gets nothing.
    end = np.exp(dpo_optimum(np.log(P0), logs(np.array([8.0, 0.0, 4.0, 2.0])), beta=2.0))
    expected = P0 * np.sqrt([4.0, 0.0, 2.0, 1.0])
    np.testing.assert_allclose(end, expected / expected.sum(), atol=1e-14)
    # It is the population itself where p0 is q^(1 - 1 / beta), and p0 where beta is large.
    np.testing.assert_allclose(np.exp(dpo_optimum(np.log(P0), np.log(Q), beta=1e9)), P0, rtol=1e-8)
    reference = np.sqrt(Q) / np.sqrt(Q).sum()
    np.testing.assert_allclose(np.exp(dpo_optimum(np.log(reference), np.log(Q), beta=2.0)), Q)


def test_ipo_compares_what_the_reference_can_say():
    """A document without mass does not change the others."""
    smaller = jax.jit(ipo_optimum)(np.log(P0), np.log(Q), beta=0.5)
    ref, density = np.append(np.log(P0), -1e30), np.append(np.log(Q), np.log(0.7))
    larger = jax.jit(ipo_optimum)(ref, density, beta=0.5)
    np.testing.assert_allclose(larger[:-1], smaller, rtol=1e-12)
    assert np.exp(larger[-1]) == 0.0


@pytest.mark.parametrize("beta", [0.5, 3.0])
def test_ipo_optimum_is_the_least_squares_fit_of_the_margins(beta):
    pairs = np.array(list(itertools.combinations(range(4), 2)))
    design = np.eye(4)[pairs[:, 0]] - np.eye(4)[pairs[:, 1]]
    margins = (Q[pairs[:, 0]] / Q[pairs].sum(1) - 0.5) / beta
    log_ratios = np.linalg.lstsq(design, margins, rcond=None)[0]
    expected = P0 * np.exp(log_ratios)
    end = np.exp(jax.jit(ipo_optimum)(np.log(P0), np.log(Q), beta=beta))
    np.testing.assert_allclose(end, expected / expected.sum(), rtol=1e-12)


# --- best of n ------------------------------------------------------------------------------------

# Ties among the best, in the middle, and all equal; documents without mass, also as the worst and
# the best.
SPACES = {
    "distinct": (P0, REWARDS),
    "ties": (np.array([0.2, 0.1, 0.3, 0.15, 0.25]), np.array([1.0, 0.0, 1.0, 0.0, -2.0])),
    "all equal": (P0, np.zeros(4)),
    "no mass": (np.array([0.3, 0.0, 0.7, 0.0]), np.array([1.0, -1.0, 0.0, 2.0])),
    "no mass, ties": (np.array([0.0, 0.5, 0.0, 0.5]), np.array([1.0, 1.0, 1.0, 0.0])),
}


@pytest.mark.parametrize("name", SPACES)
def test_best_of_n_is_the_law_of_the_best_of_all_tuples(name):
    """Among equal rewards the document that comes last in the space wins."""
    p0, rewards = SPACES[name]
    for n in (1, 2, 3):
        expected = np.zeros(len(p0))
        for batch in itertools.product(range(len(p0)), repeat=n):
            expected[max(batch, key=lambda x: (rewards[x], x))] += p0[list(batch)].prod()
        found = np.asarray(best_of(logs(p0), rewards, num_samples=n))
        np.testing.assert_allclose(np.exp(found), expected, atol=1e-14)
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(np.exp(found[p0 == 0]), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 8, 100])
def test_best_of_n_stays_within_its_kl(n):
    """The bound is log n - (n - 1) / n; many documents of little mass come close to it."""
    bound = np.log(n) - (n - 1) / n
    rng = np.random.default_rng(1)
    fine = np.full(5000, 1 / 5000)
    for p0, rewards in [
        (P0, REWARDS),
        (rng.dirichlet(np.full(6, 0.3)), rng.normal(size=6)),
        (fine, rng.normal(size=5000)),
    ]:
        law = np.exp(best_of(np.log(p0), rewards, num_samples=n))
        assert law.sum() == pytest.approx(1.0, abs=1e-12)
        assert kl(law, p0) <= bound + 1e-12
    assert kl(law, p0) == pytest.approx(bound, abs=n / 5000)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-11), (np.float32, 2e-3)])
def test_best_of_many(dtype, tolerance):
    """Of 10,000 samples; the rarest document, of probability 1e-9, has the highest reward."""
    p0 = np.array([0.6, 0.3, 0.0999, 1e-4 - 1e-9, 1e-9])
    above = np.array([0.4, 0.1, 1e-4, 1e-9, 0.0])
    expected = np.exp(1e4 * np.log1p(-above))
    expected[1:] -= expected[:-1]
    found = np.exp(
        best_of(np.log(p0).astype(dtype), np.arange(5.0, dtype=dtype), num_samples=10_000)
    )
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=1e-30)


# --- the frontier ---------------------------------------------------------------------------------

BETAS = np.geomspace(0.05, 50.0, 60)


def test_the_frontier_is_where_the_posteriors_are():
    strengths = P0 * np.exp(REWARDS / BETAS[:, None])
    laws = strengths / strengths.sum(1, keepdims=True)
    divergence, reward = frontier(np.log(P0), REWARDS, BETAS)
    np.testing.assert_allclose(divergence, kl(laws, P0), atol=1e-13)
    np.testing.assert_allclose(reward, laws @ REWARDS, rtol=1e-13)
    assert (np.diff(divergence) < 0).all() and (np.diff(reward) < 0).all()
    # From p0 without any KL to the best document alone.
    assert divergence[-1] < 1e-3 and reward[-1] == pytest.approx(P0 @ REWARDS, abs=0.03)
    assert divergence[0] == pytest.approx(-np.log(0.4), abs=1e-6)
    assert reward[0] == pytest.approx(2.0, abs=1e-6)


def test_no_law_exceeds_the_frontier():
    """E r - beta KL(pi || p0) of any pi is at most that of the frontier at beta, for every beta.

    Among the laws are the best of n, which come close, and laws beside the optimum itself.
    """
    rng = np.random.default_rng(4)
    strengths = P0 * np.exp(REWARDS / 0.5 + rng.normal(0.0, 1e-3, (20, 4)))
    best = [np.exp(best_of(np.log(P0), REWARDS, num_samples=n)) for n in (1, 2, 3, 4, 16, 64)]
    laws = np.concatenate(
        [rng.dirichlet(np.full(4, 0.5), 300), strengths / strengths.sum(1, keepdims=True), best]
    )
    divergence, reward = (np.asarray(x) for x in frontier(np.log(P0), REWARDS, BETAS))
    attained = laws @ REWARDS - BETAS[:, None] * kl(laws, P0)
    limit = reward - BETAS * divergence
    assert (attained <= limit[:, None] + 1e-12).all()
    np.testing.assert_allclose(
        limit, BETAS * np.log((P0 * np.exp(REWARDS / BETAS[:, None])).sum(1))
    )
    # As reward at the same KL: the lower envelope of the lines is the frontier.
    gaps = (limit[:, None] + BETAS[:, None] * kl(laws, P0)).min(0) - laws @ REWARDS
    assert gaps.min() > -1e-12
    assert gaps[-4:].max() < 0.05  # best of n is nearly optimal
    assert gaps[:300].max() > 0.5


def test_the_slope_of_the_frontier_is_beta():
    @jax.jit
    def slopes(betas):
        by_beta = lambda betas: reward_kl_frontier(
            jnp.log(jnp.asarray(P0)), jnp.asarray(REWARDS), betas
        )
        return jax.jvp(by_beta, (betas,), (jnp.ones_like(betas),))[1]

    betas = np.geomspace(0.3, 50.0, 20)
    by_kl, by_reward = map(np.asarray, slopes(betas))
    np.testing.assert_allclose(by_reward / by_kl, betas, rtol=1e-10)


# --- bad input ------------------------------------------------------------------------------------

FLOATS = jax.ShapeDtypeStruct((4,), float)
OPTIMA = {
    "posterior": functools.partial(posterior_optimum, beta=1.0),
    "reward": reward_optimum,
    "dpo": functools.partial(dpo_optimum, beta=1.0),
    "ipo": functools.partial(ipo_optimum, beta=1.0),
    "best of n": functools.partial(best_of_n_log_probs, num_samples=2),
    "frontier": lambda p0, r: reward_kl_frontier(p0, r, jnp.ones(3)),
}


@pytest.mark.parametrize("name", OPTIMA)
def test_wrong_shapes_raise_while_tracing(name):
    jax.eval_shape(OPTIMA[name], FLOATS, FLOATS)
    for shape in [(3,), (), (1, 4)]:
        other = jax.ShapeDtypeStruct(shape, float)
        for arguments in [(FLOATS, other), (other, FLOATS)]:
            with pytest.raises(AssertionError):
                jax.eval_shape(OPTIMA[name], *arguments)
    if name in ("ipo", "best of n"):
        rows = jax.ShapeDtypeStruct((2, 4), float)
        with pytest.raises(AssertionError):
            jax.eval_shape(OPTIMA[name], rows, rows)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan])
def test_a_beta_not_above_zero_is_named(bad):
    for optimum in (posterior_optimum, dpo_optimum, ipo_optimum):
        with pytest.raises(ValueError, match=f"^beta must be above 0, found {bad}$"):
            optimum(np.log(P0), np.log(Q), beta=bad)
    with pytest.raises(ValueError, match=r"^betas must be above 0, found "):
        reward_kl_frontier(np.log(P0), REWARDS, np.array([1.0, bad]))


def test_a_number_of_samples_out_of_range_is_told():
    with pytest.raises(ValueError, match="num_samples >= 1, found 0"):
        best_of_n_log_probs(np.log(P0), REWARDS, num_samples=0)


def test_the_reference_rules_out_what_the_population_wants():
    """A document without mass under p0 gets none; a rare document keeps its mass in float32."""
    log_p0, log_q = np.array([0.0, -1e30, -1e30]), np.log([0.1, 0.9, 1e-300])
    for beta in (1.0, 0.1):
        law = np.exp(jax.jit(dpo_optimum)(log_p0, log_q, beta=beta))
        np.testing.assert_array_equal(law, [1.0, 0.0, 0.0])
    rare = jnp.array([0.0, -120.0], jnp.float32)
    best = best_of_n_log_probs(rare, jnp.array([0.0, 1.0], jnp.float32), num_samples=4)
    np.testing.assert_allclose(best[1], np.log(4) - 120.0, rtol=1e-6)
