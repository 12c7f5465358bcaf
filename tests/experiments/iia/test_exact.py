"""Exact ends against formulas, against every message's own gradient, against simulated raters."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logit

from experiments.iia import exact, summary
from experiments.iia.config import Config
from experiments.iia.objectives import make_objectives
from shatter import choice

pytestmark = pytest.mark.slow  # whole runs of an experiment

pytestmark = pytest.mark.usefixtures("float64")

P, BETA, DELTA = 0.4, 0.5, 1.0
CONFIG = Config(share=P, beta=BETA, delta=DELTA, sizes=(2, 3, 4))
OBJECTIVES = make_objectives(CONFIG)
every_objective = pytest.mark.parametrize("name", OBJECTIVES)


@every_objective
@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0])
def test_fits_of_choices_are_the_formulas(name, correlation):
    for size in (2, 3, 5):
        case = summary.Case("choice", size, correlation, P)
        share = exact.wanted_share(P, size - 1, correlation)
        fitted = exact.fit_gap(OBJECTIVES[name], "choice", size, 5, share)
        # Of McFadden's e^v1 / (e^v1 + m^lambda e^v2), times m for the m that share the rest.
        log_odds = logit(P) + (1 - np.sqrt(1 - correlation)) * np.log(size - 1)
        expected = {"ipo": expit(log_odds) - 0.5, "slic": DELTA * np.sign(log_odds)}
        assert fitted == pytest.approx(expected.get(name, log_odds), abs=1e-9)
        assert summary.closed_form(case, name, CONFIG) == pytest.approx(fitted, abs=1e-9)


def test_the_gaps_of_the_issue():
    ilhf = OBJECTIVES["ilhf"]
    gaps = [exact.fit_gap(ilhf, "choice", size, 8, P) for size in (2, 3, 4, 8)]
    np.testing.assert_allclose(gaps, [-0.405, 0.288, 0.693, 1.540], atol=5e-4)


def every_answer(answer: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of everything that raters may say of a query, and the chance of each."""
    if answer == "choice":
        ranks = 2 - np.eye(size, dtype=int)
        return ranks, np.array([P, *[(1 - P) / (size - 1)] * (size - 1)])
    if answer == "ties":
        return np.array([[1, *[2] * (size - 1)], [2, *[1] * (size - 1)]]), np.array([P, 1 - P])
    orders = np.array(list(itertools.permutations(range(1, size))))
    first = np.concatenate([np.ones((len(orders), 1), int), orders + 1], axis=1)
    last = np.concatenate([np.full((len(orders), 1), size), orders], axis=1)
    return np.concatenate([first, last]), np.repeat([P, 1 - P], len(orders)) / len(orders)


@pytest.mark.slow
@pytest.mark.parametrize("name", summary.RANKED[:3])
@pytest.mark.parametrize("answer", exact.ANSWERS)
def test_no_message_would_leave_its_type(name, answer):
    """The gradient in every message's own score is 0 over all answers: one parameter suffices."""
    objective, size = OBJECTIVES[name], 4
    gap = exact.fit_gap(objective, answer, size, size, P)
    ranks, chances = every_answer(answer, size)

    @jax.jit
    @jax.grad
    def slope(scores):
        loss = lambda ranks: objective.ranks_loss(scores, jnp.zeros(size), ranks)
        return jnp.sum(chances * jax.vmap(loss)(ranks))

    scores = jnp.zeros(size).at[0].set(gap / (objective.scale or 1.0))
    np.testing.assert_allclose(slope(scores), 0.0, atol=1e-10)
    assert np.abs(slope(scores.at[1].add(0.3))).max() > 1e-3


@every_objective
def test_a_choice_costs_what_its_ranks_cost(name):
    scores, ref = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5)))
    valid = jnp.arange(5) < 4

    @jax.jit
    @jax.vmap
    def both(slot):
        ranks = choice.choice_ranks(slot, valid)
        objective = OBJECTIVES[name]
        return objective.choice_loss(scores, ref, slot, valid), objective.ranks_loss(
            scores, ref, ranks
        )

    of_choice, of_ranks = both(jnp.arange(4))
    np.testing.assert_allclose(of_choice, of_ranks, rtol=1e-12)
    assert len(set(np.asarray(of_choice).tolist())) == 4


@pytest.mark.slow
def test_ties_and_rankings():
    """In the listwise fit s = e^gap solves p m / (s + m) = (1 - p) s sum_k 1 / (k + s), k = 1..m.

    Ties and rankings say the same of the types. Their pairs do not depend on m.
    """
    for share, size in itertools.product((P, 1 - P), (2, 4, 5)):
        fit = lambda name, answer, size=size, share=share: exact.fit_gap(
            OBJECTIVES[name], answer, size, 5, share
        )
        gap, m = fit("ilhf", "ties"), size - 1
        assert fit("ilhf", "ranking") == pytest.approx(gap, abs=1e-9)
        s = np.exp(gap)
        expected = (1 - share) * s * np.sum(1 / (np.arange(1, m + 1) + s))
        assert share * m / (s + m) == pytest.approx(expected, rel=1e-9)
        harmonic = np.sum(1 / np.arange(1, m + 2))
        assert (gap > 0) == ((harmonic - 1) * (m + 1) / m < share / (1 - share))
        assert (gap > 0) == (share > P and m < 4)  # duplicates help, even a minority
        for answer in ("ties", "ranking"):
            assert fit("dpo", answer) == pytest.approx(logit(share), abs=1e-9)
            assert fit("ipo", answer) == pytest.approx(share - 0.5, abs=1e-9)
            assert fit("slic", answer) == pytest.approx(DELTA * np.sign(share - 0.5), abs=1e-9)


def test_davidson_matches_its_sufficient_statistics():
    """Expected wins and half ties of type 1, and expected ties, are those of the answers."""
    for size in (3, 6):
        gap, mixed = exact.fit_davidson(size, P), 2 / size
        # sqrt(s) (1 - p) - p / sqrt(s) = nu (p - 1/2) where wins and half ties match
        nu = (np.exp(gap / 2) * (1 - P) - P * np.exp(-gap / 2)) / (P - 0.5)
        tie_of_two = nu / (nu + 2 * np.cosh(gap / 2))
        assert mixed * tie_of_two + (1 - mixed) * nu / (2 + nu) == pytest.approx(1 - mixed)
    assert exact.fit_davidson(2, P) == pytest.approx(logit(P), abs=1e-9)


def test_policies():
    """RLHF and DPO at beta 1 have the law of the choices on a query's messages; so has ILHF."""
    gap = np.log(7 * P / (1 - P))
    assert exact.type_share(gap, 7, None) == pytest.approx(P)
    assert exact.type_share(gap, 7, 1.0) == pytest.approx(P)
    assert exact.type_share(gap, 1, None) == pytest.approx(7 * P / (7 * P + 1 - P))
    powers = np.array([P, (1 - P) / 7]) ** 2
    assert exact.type_share(gap, 7, 0.5) == pytest.approx(powers[0] / (powers @ [1, 7]))


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_raters_with_correlated_utilities_are_the_nested_logit(correlation):
    """Utilities drawn for every rater: v + a shared part + lambda times an own Gumbel draw.

    The shared part is lambda log S, S positive stable of index lambda (Kanter's form): it makes
    each sum a standard Gumbel draw, two of which correlate by 1 - lambda^2.
    """
    rng, num_raters, num_clones = np.random.default_rng(1), 200_000, 4
    lam = np.sqrt(1 - correlation)
    angle, waiting = np.pi * rng.uniform(size=num_raters), rng.exponential(size=num_raters)
    log_stable = np.log(np.sin(lam * angle)) - np.log(np.sin(angle)) / lam
    log_stable += (1 - lam) / lam * (np.log(np.sin((1 - lam) * angle) + 1e-300) - np.log(waiting))
    shared = lam * log_stable if correlation else np.zeros(num_raters)
    others = shared[:, None] + lam * rng.gumbel(size=(num_raters, num_clones))
    first = logit(P) + rng.gumbel(size=num_raters)
    assert np.corrcoef(others[:, 0], others[:, 1])[0, 1] == pytest.approx(correlation, abs=0.01)
    assert others.std() == pytest.approx(np.pi / 6**0.5, abs=0.01)
    expected = exact.wanted_share(P, num_clones, correlation)
    assert np.mean(first > others.max(axis=1)) == pytest.approx(expected, abs=0.005)
