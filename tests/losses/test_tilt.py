"""The utility as a tilt: values, gradients, and where each form ends, by enumeration.

The documents have one to three tokens, 0 (the end), 1 and 2, and the longer ones are rarer in p0.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.evaluation import dpo_optimum, posterior_optimum
from shatter.losses import dpo_loss, ilhf_loss, tilted_utilities
from shatter.numerics import kl_divergence

pytestmark = pytest.mark.usefixtures("float64")

RESPONSES = [(0,), *((a, 0) for a in (1, 2)), *itertools.product((1, 2), (1, 2), (0, 1, 2))]
LENGTHS = np.array([len(response) for response in RESPONSES])
RNG = np.random.default_rng(0)
P0 = np.array([np.prod(RNG.dirichlet(np.ones(3), length)[:, 0]) for length in LENGTHS])
P0 /= P0.sum()
TASTE = RNG.normal(size=len(P0))
PAIRS = np.array(list(itertools.combinations(range(len(P0)), 2)))
CHANCE = 1.0 / (1.0 + np.exp(TASTE[PAIRS[:, 1]] - TASTE[PAIRS[:, 0]]))  # of the first
INDIFFERENT = np.full(len(PAIRS), 0.5)
SHARES = (0.0, 0.3, 1.0)


def normalised(log_weights: np.ndarray) -> np.ndarray:
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def expected_loss(utilities, chance, compared=PAIRS):
    """Returns the mean of `ilhf_loss` over pairs, all by default, and the choices of people."""
    pairs = jnp.stack([utilities[compared]] * 2)
    choices = jnp.asarray(np.repeat([[0], [1]], len(compared), 1))
    first, second = ilhf_loss(pairs, choices)
    return jnp.mean(chance * first + (1.0 - chance) * second)


def objective(logits, base_share, chance, kl_weight=0.0):
    """Returns the loss of infinitely many answers, with `kl_weight` times KL(p0 || pi)."""
    log_probs, log_p0 = jax.nn.log_softmax(logits), jnp.log(jnp.asarray(P0))
    utilities = tilted_utilities(log_probs, log_p0, base_share=base_share)
    return expected_loss(utilities, chance) + kl_weight * kl_divergence(log_p0, log_probs)


value_and_slope = jax.jit(jax.value_and_grad(objective))


@functools.partial(jax.jit, static_argnames="function")
def minimum(function, *args):
    """Returns the minimiser by damped Newton steps from p0, and the largest slope there."""

    def newton(logits, _):
        slope = jax.grad(function)(logits, *args)
        # A shift of the logits changes nothing: give that direction a slope of its own.
        step = jnp.linalg.solve(jax.hessian(function)(logits, *args) + 1.0, slope)
        return logits - step / jnp.maximum(1.0, jnp.linalg.norm(step)), jnp.max(jnp.abs(slope))

    logits, slopes = jax.lax.scan(newton, jnp.log(jnp.asarray(P0)), length=60)
    return jax.nn.softmax(logits), slopes[-1]


# --- values ---------------------------------------------------------------------------------------


def test_values_gradients_and_empty_slots():
    own, ref = RNG.normal(-20.0, 3.0, (2, 4, 5))
    own[1, 3] = -np.inf
    empty = np.isneginf(own)
    for share in SHARES:
        of = jax.jit(functools.partial(tilted_utilities, base_share=share))
        for garbage in (0.0, np.nan, -np.inf):
            found, vjp = jax.vjp(of, own, np.where(empty, garbage, ref))
            expected = np.where(empty, -np.inf, own - (1 - share) * ref)
            np.testing.assert_allclose(found, expected, rtol=1e-14)
            by_own, by_ref = vjp(jnp.ones_like(found))
            np.testing.assert_array_equal(by_own, 1.0)
            np.testing.assert_allclose(by_ref, np.where(empty, 0.0, share - 1.0))
    np.testing.assert_array_equal(tilted_utilities(own[0], ref[0], base_share=1.0), own[0])


def test_the_pure_tilt_of_pairs_is_dpo_at_beta_one():
    """In value and in gradient."""
    own, ref = jnp.asarray(RNG.normal(-20.0, 3.0, (2, 6, 2)))

    def ilhf(own):
        return jnp.sum(losses_of(own)), losses_of(own)

    losses_of = lambda own: ilhf_loss(tilted_utilities(own, ref), jnp.zeros(6, int))
    dpo = lambda own: dpo_loss(own[:, 0], own[:, 1], ref[:, 0], ref[:, 1], beta=1.0)
    slope, found = jax.jit(jax.grad(ilhf, has_aux=True))(own)
    np.testing.assert_allclose(found, dpo(own), rtol=1e-13)
    np.testing.assert_allclose(slope, jax.grad(lambda x: jnp.sum(dpo(x)))(own), rtol=1e-12)


# --- where infinitely many answers end ------------------------------------------------------------


@pytest.mark.parametrize("share", SHARES)
def test_the_optimum_in_closed_form(share):
    """It is `p0^(1 - s) exp(u) / Z`, and no other law explains the choices as well."""
    expected = normalised((1 - share) * np.log(P0) + TASTE)
    ref = (1 - share) * np.log(P0)
    np.testing.assert_allclose(np.exp(posterior_optimum(ref, TASTE, beta=1.0)[0]), expected)
    found, slope = minimum(objective, share, CHANCE)
    assert slope < 1e-13
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    if share == 0.0:
        np.testing.assert_allclose(np.exp(dpo_optimum(np.log(P0), TASTE, beta=1.0)), expected)


def test_choices_cannot_tell_the_share_of_the_base():
    """At every optimum the loss is the entropy of the answers."""
    entropy = -(CHANCE * np.log(CHANCE) + (1 - CHANCE) * np.log1p(-CHANCE)).mean()
    for share in SHARES:
        value, slope = value_and_slope((1 - share) * np.log(P0) + TASTE, share, CHANCE)
        assert value == pytest.approx(entropy, rel=1e-13)
        np.testing.assert_allclose(slope, 0.0, atol=1e-15)


def test_which_law_each_form_learns_of_which_people():
    """People with the density q = p0 exp(r) / Z choose by it, or by the taste r alone.

    A form that is right about them ends in q. The literal form ends in exp(r) / Z where they choose
    by taste, and the tilt in p0^2 exp(r) / Z where they choose by density.
    """
    log_q = np.log(normalised(np.log(P0) + TASTE))
    by_density = 1.0 / (1.0 + np.exp(log_q[PAIRS[:, 1]] - log_q[PAIRS[:, 0]]))
    ends = {
        (1.0, "density"): log_q,
        (0.0, "taste"): log_q,
        (1.0, "taste"): TASTE,
        (0.0, "density"): 2 * np.log(P0) + TASTE,
    }
    for (share, people), log_end in ends.items():
        chance = {"density": by_density, "taste": CHANCE}[people]
        _, slope = value_and_slope(log_end, share, chance)
        np.testing.assert_allclose(slope, 0.0, atol=1e-15)


def test_indifferent_people_leave_p0_or_undo_it():
    """By the tilt p0 stays, with any regulariser; the literal form ends in the uniform law."""
    for kl_weight in (0.0, 0.5):
        _, slope = value_and_slope(np.log(P0), 0.0, INDIFFERENT, kl_weight)
        np.testing.assert_allclose(slope, 0.0, atol=1e-16)
    for share in (0.3, 1.0):
        found, _ = minimum(objective, share, INDIFFERENT)
        np.testing.assert_allclose(found, normalised((1 - share) * np.log(P0)), rtol=1e-9)
    assert np.abs(value_and_slope(np.log(P0), 1.0, INDIFFERENT, 0.5)[1]).max() > 1e-3


@pytest.mark.slow
def test_a_tilt_stays_near_p0():
    """KL(p0 exp(u) / Z || p0) is at most r^2 / 8 for utilities within r nats."""
    for reach in (0.5, 2.0, 6.0):
        for p0 in (P0, np.array([0.5, 0.5]), RNG.dirichlet(np.full(30, 0.3))):
            utilities = RNG.choice([-reach / 2, reach / 2], (50, len(p0)))
            log_pi = posterior_optimum(np.tile(np.log(p0), (50, 1)), utilities, beta=1.0)[0]
            kl = kl_divergence(log_pi, jnp.log(p0))
            assert (kl <= reach**2 / 8 + 1e-12).all()
    literal = normalised(np.linspace(-1.0, 1.0, len(P0)))  # of the same people, without p0
    assert (literal * np.log(literal / P0)).sum() > 2.0**2 / 8


@pytest.mark.parametrize("share", SHARES)
def test_stationarity_with_the_regulariser(share):
    """lambda (pi - p0) is what people pull at every document, by the utilities of the form."""
    weight = 0.2
    policy, slope = map(np.asarray, minimum(objective, share, CHANCE, weight))
    assert slope < 1e-13
    utilities = np.log(policy) - (1 - share) * np.log(P0)
    first, second = PAIRS.T
    gap = CHANCE - 1.0 / (1.0 + np.exp(utilities[second] - utilities[first]))
    pull = np.zeros(len(P0))
    np.add.at(pull, first, gap / len(PAIRS))
    np.add.at(pull, second, -gap / len(PAIRS))
    np.testing.assert_allclose(weight * (policy - P0), pull, atol=1e-13)


@pytest.mark.parametrize("is_tilt", [True, False])
def test_means_over_tokens_move_long_texts_by_their_length(is_tilt):
    """`c (log pi - log p0) / n = u + constant` gives `pi = p0 exp(n (u - k) / c)`.

    k is the one constant by which pi sums to 1. Without p0 it is the same with 1 in its place.
    """
    scale = 1.5
    log_base = np.log(P0) if is_tilt else np.zeros(len(P0))
    log_law = lambda constant: log_base + LENGTHS * (TASTE - constant) / scale
    low, high = -20.0, 20.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if np.exp(log_law(middle)).sum() < 1 else (middle, high)
    expected = np.exp(log_law(low))

    def of_means(logits):
        log_ratio = jax.nn.log_softmax(logits) - log_base
        return expected_loss(scale * log_ratio / LENGTHS, CHANCE)

    np.testing.assert_allclose(jax.jit(jax.grad(of_means))(np.log(expected)), 0.0, atol=1e-15)
    found, slope = minimum(of_means)
    assert slope < 1e-13
    np.testing.assert_allclose(found, expected, rtol=1e-8)


# --- comparisons of equally long texts ------------------------------------------------------------


def matched_objective(logits, share, kl_weight, is_forward):
    """Returns `objective` of comparisons within a length alone, with KL in one direction."""
    log_probs, log_p0 = jax.nn.log_softmax(logits), jnp.log(jnp.asarray(P0))
    utilities = tilted_utilities(log_probs, log_p0, base_share=share)
    same = np.equal(*LENGTHS[PAIRS.T])
    forward, reverse = kl_divergence(log_p0, log_probs), kl_divergence(log_probs, log_p0)
    kl = jnp.where(is_forward, forward, reverse)
    return expected_loss(utilities, CHANCE[same], PAIRS[same]) + kl_weight * kl


def by_length(values):
    """Returns the sums of values of each length, in the shape of the values."""
    return np.array([values[LENGTHS == length].sum() for length in LENGTHS])


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.0, 0.0])
def test_comparisons_within_a_length_leave_what_a_length_weighs(share):
    """The answers say nothing of it, so the regulariser decides alone.

    KL(p0 || pi) is that of the lengths' masses plus sum_n p0(n) KL(p0(. | n) || pi(. | n)), and the
    loss depends on the laws within lengths alone. So at every weight the masses are those of p0,
    and with the weight towards 0 the law within a length n goes to exp(u) / Z_n (by the tilt
    p0 exp(u) / Z_n). It is KL in this direction that does so: KL(pi || p0) moves mass away from
    lengths within which people have changed the law.
    """
    within = P0 ** (1 - share) * np.exp(TASTE)
    within /= by_length(within)
    errors = []
    for weight in (1.0, 1e-2, 1e-3, 1e-4):
        policy, slope = map(np.asarray, minimum(matched_objective, share, weight, True))
        assert slope < 1e-13
        np.testing.assert_allclose(by_length(policy), by_length(P0), rtol=1e-9)
        errors.append(np.abs(policy / by_length(P0) - within).max())
    assert errors[0] > 0.01  # at a weight of 1 the law is still on its way
    assert errors[3] < 3e-3 and errors[2] / errors[3] == pytest.approx(10.0, rel=0.2)
    policy, slope = map(np.asarray, minimum(matched_objective, share, 1e-1, False))
    assert slope < 1e-13
    of_length = policy / by_length(policy)
    kl = by_length(of_length * np.log(of_length / (P0 / by_length(P0))))
    masses = by_length(P0) * np.exp(-kl)
    expected = masses / (masses / by_length(np.ones(len(P0)))).sum()
    np.testing.assert_allclose(by_length(policy), expected, rtol=1e-8)
    assert np.abs(by_length(policy) / by_length(P0) - 1).max() > 1e-2


# --- bad input ------------------------------------------------------------------------------------


def test_wrong_shapes_types_and_shares():
    floats = jax.ShapeDtypeStruct((4, 2), float)
    for other in (jax.ShapeDtypeStruct((4,), float), jax.ShapeDtypeStruct((4, 2), int)):
        for arguments in ((floats, other), (other, floats)):
            with pytest.raises(AssertionError):
                jax.eval_shape(tilted_utilities, *arguments)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"base_share must be in \[0, 1\], found {share}"):
            tilted_utilities(np.zeros(2), np.zeros(2), base_share=share)
