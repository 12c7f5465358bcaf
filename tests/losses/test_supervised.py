import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from shatter.losses import ilhf_loss, reward_model_loss, reward_model_ranking_loss, sft_loss

pytestmark = pytest.mark.usefixtures("float64")

REWARDS = np.random.default_rng(0).normal(0.0, 3.0, (5, 4))
CHOICES = np.array([0, 3, 1, 1, 2])
Q = np.array([0.4, 0.3, 0.2, 0.1])

choice_loss = jax.jit(reward_model_loss)
ranking_loss = jax.jit(reward_model_ranking_loss)


def softmax(logits: np.ndarray) -> np.ndarray:
    strengths = np.exp(logits - logits.max(-1, keepdims=True))
    return strengths / strengths.sum(-1, keepdims=True)


# --- supervised fine-tuning -----------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [0.0, np.nan, -np.inf])
def test_sft_loss_sees_only_the_mask(garbage):
    """In value and gradient; the loss of a row without a response is 0."""
    log_probs = np.array([[garbage, -1.0, -0.5], [garbage, -2.0, garbage], [garbage] * 3])
    mask = np.array([[False, True, True], [False, True, False], [False] * 3])

    @jax.jit
    def run(log_probs):
        losses = lambda log_probs: sft_loss(log_probs, jnp.asarray(mask))
        return losses(log_probs), jax.grad(lambda x: jnp.sum(losses(x)))(log_probs)

    losses, gradient = run(log_probs)
    np.testing.assert_array_equal(losses, [1.5, 2.0, 0.0])
    np.testing.assert_array_equal(gradient, -mask.astype(float))


def test_sft_is_over_when_the_policy_is_the_population():
    """The documents are 0, 10 and 11, where 0 is EOS; the mean loss is the cross-entropy of q."""
    mask = np.array([[False, True, False], [False, True, True], [False, True, True]])

    def token_log_probs(tables):
        first, second = jax.nn.log_softmax(tables)  # after the prompt, after 1
        unseen = jnp.asarray(-jnp.inf)
        return jnp.array(
            [
                [unseen, first[0], unseen],
                [unseen, first[1], second[0]],
                [unseen, first[1], second[1]],
            ]
        )

    def law(tables):
        (a, b), (c, d) = softmax(tables)
        return np.array([a, b * c, b * d])

    @jax.jit
    @jax.value_and_grad
    def mean_loss(tables, density):
        return jnp.sum(density * sft_loss(token_log_probs(tables), jnp.asarray(mask)))

    policy, population = np.random.default_rng(1).normal(0.0, 1.0, (2, 2, 2))
    density = law(population)
    value, slope = mean_loss(policy, density)
    assert value == pytest.approx(-(density * np.log(law(policy))).sum(), rel=1e-13)
    assert np.abs(slope).max() > 1e-2
    value, slope = mean_loss(population, density)
    assert value == pytest.approx(-(density * np.log(density)).sum(), rel=1e-13)
    np.testing.assert_allclose(slope, 0.0, atol=1e-15)


# --- reward models --------------------------------------------------------------------------------


def test_reward_model_loss_and_its_gradient():
    law = softmax(REWARDS)
    losses = choice_loss(REWARDS, CHOICES)
    np.testing.assert_allclose(losses, -np.log(law[np.arange(5), CHOICES]), rtol=1e-13)
    gradient = jax.jit(jax.grad(lambda r: jnp.sum(reward_model_loss(r, jnp.asarray(CHOICES)))))
    np.testing.assert_allclose(gradient(REWARDS), law - np.eye(4)[CHOICES], atol=1e-14)


def test_reward_model_loss_of_pairs_is_bradley_terry():
    chosen, rejected = REWARDS[:, 0], REWARDS[:, 1]
    losses = choice_loss(REWARDS[:, :2], np.zeros(5, int))
    np.testing.assert_allclose(losses, np.log1p(np.exp(rejected - chosen)), rtol=1e-13)
    with_empty = np.insert(REWARDS[:, :2], 1, -np.inf, axis=-1)
    np.testing.assert_allclose(choice_loss(with_empty, np.zeros(5, int)), losses, rtol=1e-13)


def test_reward_model_ranking_loss_special_cases():
    rewards = np.array([1.0, 0.0, -0.5, 2.0])
    cases = {
        (2, 1, 2, 2): np.log(np.exp(rewards - rewards[1]).sum()),  # a choice
        (-1, 1, 2, -1): np.log1p(np.exp(rewards[2] - rewards[1])),  # a pair
        (3, 3, 3, 3): 0.0,  # all tied
        (1, 2, 3, 4): sum(np.log(np.exp(rewards[k:] - rewards[k]).sum()) for k in range(4)),
        (1, 1, 2, 2): 3.05,  # of theory, to its two digits
    }
    losses = np.asarray(ranking_loss(np.tile(rewards, (5, 1)), np.array(list(cases))))
    np.testing.assert_allclose(losses[:4], list(cases.values())[:4], rtol=1e-13)
    assert losses[4] == pytest.approx(3.05, abs=5e-3)


@pytest.mark.slow
def test_gradients():
    rev = {"order": 1, "modes": ["rev"]}
    rewards = jnp.asarray(REWARDS[:4])
    ranks = np.array([[1, 2, 3, 4], [1, 1, 2, -1], [2, 1, 1, 1], [1, 2, 2, 2]])
    check_grads(lambda r: choice_loss(r, CHOICES[:4]), (rewards,), **rev)
    check_grads(lambda r: ranking_loss(r, ranks), (rewards,), **rev)


@pytest.mark.slow
def test_the_reward_learned_is_the_log_density_plus_a_constant():
    """From choices among 2, 3 and 4 responses and full rankings, by a population of density q."""
    orders = np.array(list(itertools.permutations(range(4))))
    placed = Q[orders]  # best first
    chance = (placed / np.cumsum(placed[:, ::-1], 1)[:, ::-1]).prod(1)
    assert chance.sum() == pytest.approx(1.0)
    ranks = np.argsort(orders, 1) + 1
    queries = [list(ids) for k in (2, 3, 4) for ids in itertools.combinations(range(4), k)]

    @jax.jit
    def slopes(rewards):
        def of_choices(rewards):
            total = 0.0
            for ids in queries:
                k = len(ids)
                losses = reward_model_loss(jnp.tile(rewards[jnp.array(ids)], (k, 1)), jnp.arange(k))
                total += jnp.sum(Q[ids] / Q[ids].sum() * losses)
            return total

        def of_rankings(rewards):
            losses = reward_model_ranking_loss(jnp.tile(rewards, (24, 1)), jnp.asarray(ranks))
            return jnp.sum(chance * losses)

        return jnp.stack([jax.grad(of_choices)(rewards), jax.grad(of_rankings)(rewards)])

    for constant in (0.0, -7.0):
        np.testing.assert_allclose(slopes(np.log(Q) + constant), 0.0, atol=1e-14)
    assert np.abs(slopes(1.1 * np.log(Q))).max(1).min() > 1e-3


# --- what Luce's rule makes of near-duplicates ----------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("size", "gap"), [(2, -0.405), (3, 0.288), (4, 0.693), (8, 1.540)])
@pytest.mark.parametrize("loss", [ilhf_loss, reward_model_loss])
def test_the_minority_wins_by_duplicates_of_the_other_side(loss, size, gap):
    """Of `dichotomy_rater`, .4 want type 1, which has one message beside K - 1 of type 2.

    They choose among the messages of their type evenly, so the fitted gap is log(m p / (1 - p)),
    m = K - 1: above 0 as soon as m > (1 - p) / p = 1.5.
    """
    p, m = 0.4, size - 1
    chosen = np.array([p, *[(1 - p) / m] * m])
    one_of_type_1 = np.eye(size)[0]

    @jax.jit
    def fit():
        def mean_loss(utilities):
            return jnp.sum(chosen * loss(jnp.tile(utilities, (size, 1)), jnp.arange(size)))

        def newton(gap, _):
            slope = jax.grad(lambda gap: mean_loss(gap * one_of_type_1))
            return gap - slope(gap) / jax.grad(slope)(gap), None

        gap = jax.lax.scan(newton, jnp.zeros(()), length=20)[0]
        return gap, jax.grad(mean_loss)(gap * one_of_type_1)

    found, slope = fit()
    assert found == pytest.approx(np.log(m * p / (1 - p)), abs=1e-13)
    assert found == pytest.approx(gap, abs=5e-4)
    np.testing.assert_allclose(slope, 0.0, atol=1e-14)  # nor would a type's messages drift apart


# --- bad input ------------------------------------------------------------------------------------


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, float)


def integers(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, int)


@pytest.mark.parametrize(
    ("loss", "arguments"),
    [
        (sft_loss, [floats(4, 3), jax.ShapeDtypeStruct((4, 2), bool)]),
        (sft_loss, [floats(4, 3), integers(4, 3)]),
        (sft_loss, [integers(4, 3), jax.ShapeDtypeStruct((4, 3), bool)]),
        (reward_model_loss, [floats(4, 3), integers(3)]),
        (reward_model_loss, [floats(4, 3), floats(4)]),
        (reward_model_loss, [integers(4, 3), integers(4)]),
        (reward_model_loss, [floats(), integers()]),
        (reward_model_ranking_loss, [floats(4, 3), integers(4)]),
        (reward_model_ranking_loss, [floats(4, 3), floats(4, 3)]),
        (reward_model_ranking_loss, [integers(4, 3), integers(4, 3)]),
    ],
)
def test_wrong_shapes_and_types_raise_while_tracing(loss, arguments):
    with pytest.raises(AssertionError):
        jax.eval_shape(loss, *arguments)


def test_a_query_of_one_response_is_named():
    for loss, answers in [(reward_model_loss, (4,)), (reward_model_ranking_loss, (4, 1))]:
        with pytest.raises(AssertionError, match=r"at least two responses.*found shape \(4, 1\)"):
            jax.eval_shape(loss, floats(4, 1), integers(*answers))
