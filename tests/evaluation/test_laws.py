import jax
import numpy as np

from shatter.evaluation import prediction_metrics, segment_kl, win_rate

compute_win_rate, compute_metrics = jax.jit(win_rate), jax.jit(prediction_metrics)
POLICY, REFERENCE, DENSITY = np.random.default_rng(0).dirichlet(np.ones(6), size=3)


def test_win_rate_is_how_often_the_policy_is_preferred(float64):
    expected = sum(
        POLICY[x] * REFERENCE[y] * DENSITY[x] / (DENSITY[x] + DENSITY[y])
        for x in range(6)
        for y in range(6)
    )
    # The density need not be normalised.
    actual = compute_win_rate(np.log(POLICY), np.log(REFERENCE), np.log(DENSITY) + 3.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-13)
    even = compute_win_rate(np.log(REFERENCE), np.log(REFERENCE), np.log(DENSITY))
    np.testing.assert_allclose(even, 0.5, rtol=1e-13)


def test_win_rate_is_linear_and_maximised_by_a_point_mass(float64):
    policies = np.concatenate(
        [np.random.default_rng(1).dirichlet(np.full(6, 0.5), size=200), np.eye(6)]
    )
    by_policy = jax.jit(jax.vmap(win_rate, in_axes=(0, None, None)))
    rates = np.asarray(
        by_policy(np.log(np.maximum(policies, 1e-300)), np.log(REFERENCE), np.log(DENSITY))
    )
    np.testing.assert_allclose(rates, policies @ rates[200:], rtol=1e-12)
    assert rates[200 + DENSITY.argmax()] == rates.max()
    assert rates[200 + DENSITY.argmax()] > rates[:200].max() + 1e-6


def test_the_log_score_is_maximised_by_the_density(float64):
    rng = np.random.default_rng(2)
    nearby = DENSITY * np.exp(rng.normal(scale=0.05, size=(200, 6)))
    others = np.concatenate([rng.dirichlet(np.ones(6), size=200), nearby, np.eye(6)])
    others /= others.sum(axis=1, keepdims=True)
    others = np.concatenate([DENSITY[None], others])
    by_policy = jax.jit(jax.vmap(prediction_metrics, in_axes=(0, None, None)))
    metrics = by_policy(np.log(np.maximum(others, 1e-300)), np.log(REFERENCE), np.log(DENSITY))
    scores = np.asarray(metrics["log_score"])
    np.testing.assert_allclose(scores[0], np.sum(DENSITY * np.log(DENSITY)), rtol=1e-13)
    assert np.all(scores[1:] < scores[0])


def test_the_metrics_of_a_prediction(float64):
    expected = {
        "kl": np.sum(DENSITY * np.log(DENSITY / POLICY)),
        "total_variation": np.maximum(DENSITY - POLICY, 0).sum(),
        "entropy": -np.sum(POLICY * np.log(POLICY)),
        "log_score": np.sum(DENSITY * np.log(POLICY)),
        "win_rate": np.sum(
            np.outer(POLICY, REFERENCE) * DENSITY[:, None] / (DENSITY[:, None] + DENSITY[None, :])
        ),
    }
    actual = compute_metrics(np.log(POLICY), np.log(REFERENCE), np.log(DENSITY))
    assert {*actual} == {*expected}
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-12, err_msg=name)


def log(law):
    """Returns log-probs, -inf where the probability is 0."""
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(law, np.float32))


def test_documents_that_nobody_writes_or_wants():
    policy, reference, density = [0.5, 0.5, 0.0, 0.0], [0.3, 0.3, 0.4, 0.0], [0.25, 0.75, 0.0, 0.0]
    logs = [log(law) for law in (policy, reference, density)]
    expected = {
        "kl": 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5),
        "total_variation": 0.25,
        "entropy": np.log(2),
        "log_score": np.log(0.5),
        "win_rate": 0.5 * (0.3 * (0.5 + 0.25) + 0.4) + 0.5 * (0.3 * (0.75 + 0.5) + 0.4),
    }
    actual = compute_metrics(*logs)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-6, err_msg=name)
    toss_up = compute_win_rate(log([0, 0, 1, 0]), log([0, 0, 0, 1]), logs[2])
    assert toss_up == 0.5  # between two of density 0


def test_a_prediction_without_a_wanted_document_is_infinitely_far():
    density = log([0.5, 0.0, 0.5, 0.0])
    metrics = compute_metrics(log([1, 0, 0, 0]), density, density)
    assert metrics["kl"] == np.inf
    assert metrics["log_score"] == -np.inf
    assert metrics["entropy"] == 0


def test_the_kl_of_each_segment(float64):
    segments = np.random.default_rng(3).dirichlet(np.ones(6), size=3)
    expected = np.sum(segments * np.log(segments / POLICY), axis=1)
    actual = jax.jit(segment_kl)(np.log(segments), np.log(POLICY))
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
