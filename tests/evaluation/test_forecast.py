"""The forecast: what members claim, the share of it that is real, and where the curve leads."""

import itertools

import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax, softmax

from shatter import evaluation
from shatter.evaluation import Claims, Curves, Share
from shatter.evaluation.forecast import CHANCE, SHARE_PRIOR


def pair_claims(odds):
    """Returns the claims of one member with log-odds of pairs, and its log-probs `[Q, 2]`."""
    log_probs = log_softmax(np.stack([odds, np.zeros_like(odds)], axis=-1), axis=-1)
    return evaluation.claims(log_probs[None]), log_probs


def test_claims_are_their_definitions():
    rng = np.random.default_rng(0)
    log_probs = log_softmax(rng.normal(size=(5, 7, 3)), axis=-1)
    found = evaluation.claims(log_probs)
    for q in range(7):
        members = np.exp(log_probs[:, q])
        law = members.mean(axis=0)
        np.testing.assert_allclose(found.coin[q], -np.log(law).mean())
        np.testing.assert_allclose(found.expected[q], stats.entropy(law))
        kls = [stats.entropy(member, law) for member in members]
        np.testing.assert_allclose(found.regret[q], np.mean(kls))
        losses = -np.log(law)
        variance = law @ np.square(losses - law @ losses)
        np.testing.assert_allclose(found.variance[q], variance)


def test_claims_of_the_impossible_are_finite():
    log_probs = np.array([[[0.0, -np.inf]], [[0.0, -np.inf]]])
    found = evaluation.claims(log_probs)
    assert all(np.isfinite(part).all() for part in found)


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("num", [2, 4])
def test_the_loss_is_linear_in_the_real_share(share, num):
    """If people choose by a mixture of a coin and the members' law, the formula is exact."""
    law = softmax(np.random.default_rng(1).normal(size=(9, num)), axis=-1)
    found = evaluation.claims(np.log(law)[None])
    people = (1 - share) / num + share * law
    loss = -(people * np.log(law)).sum(axis=-1)
    np.testing.assert_allclose(found.coin - share * (found.coin - found.expected), loss)


def test_many_audits_find_the_real_share():
    rng = np.random.default_rng(2)
    found, log_probs = pair_claims(rng.normal(size=40_000))
    people = 0.5 * 0.4 + 0.6 * np.exp(log_probs[:, 0])
    answers = (rng.random(len(people)) > people).astype(int)
    losses = -log_probs[np.arange(len(people)), answers]
    share = evaluation.real_share(losses, found)
    assert share.mean == pytest.approx(0.6, abs=4 * share.scale)
    # The scale is the deviation of sum y / sum x.
    claimed = found.coin - found.expected
    variance = people * (1 - people) * np.square(log_probs[:, 0] - log_probs[:, 1])
    assert share.scale == pytest.approx(np.sqrt(variance.sum()) / claimed.sum(), rel=0.05)


def test_the_share_is_the_posterior_of_a_normal_prior():
    """With phi at 1 it is the conjugate formula."""
    found, _ = pair_claims(np.linspace(0.5, 1.5, 40))
    claimed = found.coin - found.expected
    signs = np.where(np.arange(40) % 2 == 0, 1.0, -1.0)
    losses = found.coin - claimed - signs * np.sqrt(found.variance)
    share = evaluation.real_share(losses, found)
    precision = claimed.sum() ** 2 / found.variance.sum()
    prior = 1 / (SHARE_PRIOR[1] ** 2 + CHANCE / claimed.mean())
    mean = (precision * ((found.coin - losses).sum() / claimed.sum()) + prior * SHARE_PRIOR[0]) / (
        precision + prior
    )
    assert share.mean == pytest.approx(mean, rel=0.02)
    assert share.scale == pytest.approx((precision + prior) ** -0.5, rel=0.02)


def test_too_few_audits_say_how_many_are_needed():
    found, _ = pair_claims(np.ones(4))
    with pytest.raises(ValueError, match="expected 10 answered audits or more, found 4"):
        evaluation.real_share(np.ones(4), found)


def simulated(rng, num_audits, deviation=0.3):
    """Returns the real share in a world of the prior, and its posterior after some audits."""
    pool, log_probs = pair_claims(deviation * rng.normal(size=4000))
    claimed = pool.coin - pool.expected
    share = rng.normal(SHARE_PRIOR[0], np.sqrt(SHARE_PRIOR[1] ** 2 + CHANCE / claimed.mean()))
    people = np.clip(0.5 * (1 - share) + share * np.exp(log_probs[:, 0]), 0, 1)
    loss = -(people * log_probs[:, 0] + (1 - people) * log_probs[:, 1])
    audits = rng.choice(4000, num_audits, replace=False)
    answers = (rng.random(num_audits) > people[audits]).astype(int)
    found = Claims(*(part[audits] for part in pool))
    real = (pool.coin - loss).sum() / claimed.sum()  # the share itself, but for what was clipped
    return real, evaluation.real_share(-log_probs[audits, answers], found)


@pytest.mark.parametrize("num_audits", [10, 80])
def test_intervals_of_simulated_streams_hold_as_often_as_they_say(num_audits):
    rng = np.random.default_rng(3)
    runs = [simulated(rng, num_audits) for _ in range(600)]
    for coverage in (0.8, 0.95):
        held = np.mean(
            [
                abs(true - found.mean)
                < found.scale * stats.t.ppf(0.5 + coverage / 2, found.freedom)
                for true, found in runs
            ]
        )
        assert held == pytest.approx(coverage, abs=4 * np.sqrt(coverage * (1 - coverage) / 600))


SURE = Share(1.0, 1e-9, 1e9)
LABELS = np.arange(0, 1001, 50)


def curves_of(loss_at, regret, *, labels=LABELS, share=SURE, num_draws=500):
    expectations = loss_at(labels)
    coins = np.full(len(labels), expectations[0])
    rng = np.random.default_rng(4)
    return evaluation.learning_curves(
        labels, coins, expectations, regret, share, rng=rng, num_draws=num_draws
    )


def true_loss(n, left=0.2, offset=100.0, power=0.5):
    return 0.6 + left * (1.0 + n / offset) ** -power


def test_a_curve_of_known_parameters_is_recovered():
    regret = (true_loss(1000) - 0.6) / 3.0
    found = curves_of(true_loss, regret)
    np.testing.assert_allclose(found.loss, true_loss(1000))
    assert np.median(found.left) == pytest.approx(true_loss(1000) - 0.6, rel=0.15)
    for more in (50, 500, 2000):
        drop = true_loss(1000) - true_loss(1000 + more)
        gain = found.loss - evaluation.loss_after(found, more)
        assert np.median(gain) == pytest.approx(drop, rel=0.1)
    needed = evaluation.labels_to(found, true_loss(2000))
    assert np.median(needed) == pytest.approx(1000, rel=0.15)


def test_the_loss_falls_with_labels_and_labels_rise_with_the_aim():
    found = curves_of(true_loss, 0.02, share=Share(1.0, 0.3, 30.0))
    losses = [evaluation.loss_after(found, more) for more in (0, 1, 10, 100, 1e4, 1e9)]
    np.testing.assert_array_equal(losses[0], found.loss)
    assert (np.diff(losses, axis=0) <= 0).all()
    needed = [evaluation.labels_to(found, level) for level in (0.9, 0.7, 0.66, 0.64, 0.5)]
    assert all((later >= sooner).all() for sooner, later in itertools.pairwise(needed))


def test_labels_to_a_level_lead_to_it_or_are_infinite():
    found = curves_of(true_loss, 0.02, share=Share(1.0, 0.3, 30.0))
    level = found.loss - 0.5 * found.left
    for n in range(0, 500, 50):
        one = Curves(found.labels, *(part[n : n + 1] for part in found[1:]))
        needed = evaluation.labels_to(one, level[n : n + 1])
        np.testing.assert_allclose(evaluation.loss_after(one, float(needed[0])), level[n])
    assert np.isinf(evaluation.labels_to(found, found.loss - 1.01 * found.left)).all()
    assert (evaluation.labels_to(found, found.loss + 0.01) == 0).all()


def test_members_that_agree_expect_to_learn_nothing():
    found = curves_of(true_loss, 0.0)
    np.testing.assert_array_equal(evaluation.loss_after(found, 1e6), found.loss)
    assert np.isinf(evaluation.labels_to(found, 0.1)).all()
    assert (evaluation.labels_to(found, 0.9) == 0).all()


def test_claims_of_nothing_say_nothing():
    claims = Claims(*(np.full(12, np.log(2)),) * 2, np.zeros(12), np.zeros(12))
    share = evaluation.real_share(np.full(12, np.log(2)), claims)
    assert np.isfinite(share).all()


@pytest.mark.parametrize("labels", [[0], [10, 20], [0, 20, 20]])
def test_labels_must_rise_from_0(labels):
    with pytest.raises(ValueError, match="labels that rise from 0"):
        curves_of(true_loss, 0.1, labels=np.array(labels))


def test_shapes_that_differ():
    with pytest.raises(ValueError, match=r"of one length, found \(2,\), \(3,\) and \(2,\)"):
        evaluation.learning_curves(
            [0, 1], [1, 1, 1], [1, 1], 0.1, SURE, rng=np.random.default_rng(0)
        )
