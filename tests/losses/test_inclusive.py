import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.test_util import check_grads

from shatter.losses import forward_kl_loss, ilhf_loss, ilhf_ranking_loss
from shatter.numerics import kl_divergence

pytestmark = pytest.mark.usefixtures("float64")

LOG_PROBS = np.random.default_rng(0).normal(-20.0, 3.0, (5, 4))
CHOICES = np.array([0, 3, 1, 1, 2])

choice_loss = jax.jit(ilhf_loss)
ranking_loss = jax.jit(ilhf_ranking_loss)
kl_loss = jax.jit(forward_kl_loss)


def softmax(logits: np.ndarray) -> np.ndarray:
    strengths = np.exp(logits - logits.max(-1, keepdims=True))
    return strengths / strengths.sum(-1, keepdims=True)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


# --- the losses of a comparison -------------------------------------------------------------------


def test_choice_loss_and_its_gradient():
    law = softmax(LOG_PROBS)
    losses = choice_loss(LOG_PROBS, CHOICES)
    np.testing.assert_allclose(losses, -np.log(law[np.arange(5), CHOICES]), rtol=1e-13)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(ilhf_loss(x, jnp.asarray(CHOICES)))))(LOG_PROBS)
    np.testing.assert_allclose(gradient, law - np.eye(4)[CHOICES], atol=1e-14)


def test_choice_loss_of_pairs():
    chosen, rejected = LOG_PROBS[:, 0], LOG_PROBS[:, 1]
    losses = choice_loss(LOG_PROBS[:, :2], np.zeros(5, int))
    np.testing.assert_allclose(losses, np.log1p(np.exp(rejected - chosen)), rtol=1e-13)


def test_empty_slots_are_left_out():
    with_empty = np.insert(LOG_PROBS, 1, -np.inf, axis=-1)
    moved = CHOICES + (CHOICES >= 1)
    expected = -np.log(softmax(LOG_PROBS)[np.arange(5), CHOICES])
    np.testing.assert_allclose(choice_loss(with_empty, moved), expected, rtol=1e-13)


def test_ranking_loss_special_cases():
    cases = {
        (2, 1, 2, 2): np.log(np.exp(LOG_PROBS[0] - LOG_PROBS[0, 1]).sum()),  # a choice
        (-1, 1, 2, -1): np.log1p(np.exp(LOG_PROBS[0, 2] - LOG_PROBS[0, 1])),  # a pair
        (3, 3, 3, 3): 0.0,  # all tied
        (1, 2, 3, 4): sum(  # a ranking
            np.log(np.exp(LOG_PROBS[0, k:] - LOG_PROBS[0, k]).sum()) for k in range(4)
        ),
    }
    losses = ranking_loss(np.tile(LOG_PROBS[0], (4, 1)), np.array(list(cases)))
    np.testing.assert_allclose(losses, list(cases.values()), rtol=1e-13)


def test_ranking_loss_of_two_tied_blocks():
    """It is -log of the sum of the four orders in which the first two come before the others."""
    strengths = np.exp([1.0, 0.0, -0.5, 2.0])
    total = strengths.sum()
    first_two = strengths[0] / total * strengths[1] / (total - strengths[0])
    first_two += strengths[1] / total * strengths[0] / (total - strengths[1])
    utilities, ranks = np.array([[1.0, 0.0, -0.5, 2.0]] * 4), np.array([[1, 1, 2, 2]] * 4)
    loss = np.asarray(ranking_loss(utilities, ranks))[0]
    assert loss == pytest.approx(-np.log(first_two), rel=1e-13)
    assert loss == pytest.approx(3.05, abs=5e-3)


def test_gradients_of_the_losses_of_a_comparison():
    rev = {"order": 1, "modes": ["rev"]}
    log_probs = jnp.asarray(LOG_PROBS[:4])
    ranks = np.array([[1, 2, 3, 4], [1, 1, 2, -1], [2, 1, 1, 1], [1, 2, 2, 2]])
    check_grads(lambda x: choice_loss(x, CHOICES[:4]), (log_probs,), **rev)
    check_grads(lambda x: ranking_loss(x, ranks), (log_probs,), **rev)


# --- forward KL over documents of a small language model ------------------------------------------

VOCAB, LENGTH, EOS = 3, 3, 0
RESPONSES = [
    response
    for size in range(1, LENGTH + 1)
    for response in itertools.product(range(VOCAB), repeat=size)
    if EOS not in response[:-1] and (size == LENGTH or response[-1] == EOS)
]
PREFIXES = sorted({response[:t] for response in RESPONSES for t in range(len(response))})
OUTSIDE = len(PREFIXES)  # a row for positions outside the mask


def documents() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the tokens, mask and prefix at each position of every response."""
    shape = (len(RESPONSES), 1 + LENGTH)
    tokens, mask, prefix = np.zeros(shape, int), np.zeros(shape, bool), np.full(shape, OUTSIDE)
    for d, response in enumerate(RESPONSES):
        tokens[d, 1 : 1 + len(response)] = response
        mask[d, 1 : 1 + len(response)] = True
        for t in range(len(response)):
            prefix[d, t] = PREFIXES.index(response[:t])  # entry t is the law of token t + 1
    return tokens, mask, prefix


def law_of_documents(table: np.ndarray) -> np.ndarray:
    """Returns the product of the tokens' probabilities for each document."""
    law = softmax(table)
    rows = {prefix: row for row, prefix in enumerate(PREFIXES)}
    return np.array([np.prod([law[rows[x[:t]], x[t]] for t in range(len(x))]) for x in RESPONSES])


TABLES = np.random.default_rng(1).normal(0.0, 1.0, (2, OUTSIDE + 1, VOCAB))  # p0, pi


def test_mean_forward_kl_loss_is_the_kl_of_the_documents():
    _, mask, prefix = documents()
    reference, policy = map(law_of_documents, TABLES)
    assert reference.sum() == pytest.approx(1.0) and policy.sum() == pytest.approx(1.0)
    starts_with = np.array([[x[: len(y)] == y for x in RESPONSES] for y in PREFIXES])
    reach = starts_with @ reference  # how often a document of p0 meets each prefix

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def mean_loss(table):
        losses = forward_kl_loss(jnp.asarray(TABLES[0])[prefix], table[prefix], jnp.asarray(mask))
        return jnp.sum(reference * losses), losses

    (value, losses), gradient = jax.tree.map(np.asarray, mean_loss(TABLES[1]))
    assert value == pytest.approx((reference * np.log(reference / policy)).sum(), rel=1e-13)
    expected = reach[:, None] * (softmax(TABLES[1]) - softmax(TABLES[0]))[:OUTSIDE]
    np.testing.assert_allclose(gradient[:OUTSIDE], expected, atol=1e-14)
    np.testing.assert_array_equal(gradient[OUTSIDE], 0.0)
    # Less variance than the log-ratio, which has the same mean.
    spread = [(reference * (x - value) ** 2).sum() for x in (losses, np.log(reference / policy))]
    assert spread[0] < 0.5 * spread[1]


def test_forward_kl_loss_sees_only_the_mask():
    reference, policy = TABLES[:, :4], TABLES[:, 4:]
    mask = np.array([[False, True, True, False], [False] * 4])
    law, other = softmax(reference), softmax(policy)
    expected = [(law * np.log(law / other)).sum(-1)[0, :2].sum(), 0.0]

    @jax.jit
    def total(policy, reference):
        losses = forward_kl_loss(reference, policy, jnp.asarray(mask))
        return jnp.sum(losses), losses

    gradient = jax.jit(jax.grad(total, has_aux=True))
    outside = ~np.roll(mask, -1, -1)[..., None]
    for garbage in (0.0, np.nan, -np.inf):
        slope, losses = gradient(*(np.where(outside, garbage, x) for x in (policy, reference)))
        np.testing.assert_allclose(losses, expected, rtol=1e-13)
        np.testing.assert_allclose(slope, np.where(outside, 0.0, other - law), atol=1e-15)


def test_forward_kl_loss_of_tokens_that_cannot_be():
    """Tokens impossible under both models give no NaN; under the policy alone, infinity."""
    reference = np.array([[0.0, 1.0, -np.inf], [0.0] * 3])
    policy = np.array([[1.0, 0.0, -np.inf], [0.0] * 3])
    mask = np.array([False, True])
    value, gradient = jax.jit(jax.value_and_grad(forward_kl_loss, argnums=1))(
        reference, policy, mask
    )
    law, other = softmax(reference)[0], softmax(policy)[0]
    assert value == pytest.approx((law[:2] * np.log(law[:2] / other[:2])).sum(), rel=1e-13)
    np.testing.assert_allclose(np.asarray(gradient)[0], other - law, atol=1e-15)
    assert kl_loss(np.zeros((2, 3)), policy, mask) == np.inf


def test_forward_kl_loss_of_half_precision_is_in_float32():
    logits = TABLES[:, :2].astype(jnp.bfloat16)
    loss = kl_loss(*logits, np.array([False, True]))
    assert loss.dtype == jnp.float32
    law, other = softmax(logits[:, 0].astype(np.float64))
    assert loss == pytest.approx((law * np.log(law / other)).sum(), rel=1e-5)


def test_gradients_of_forward_kl_loss():
    mask = np.array([False, True, True, False])
    loss = lambda *logits: kl_loss(*logits, mask)
    check_grads(loss, tuple(map(jnp.asarray, TABLES[:, :4])), order=1)


# --- infinite data: the population objective over four documents ----------------------------------

Q = np.array([0.4, 0.3, 0.2, 0.1])
P0 = np.array([0.1, 0.2, 0.3, 0.4])
PAIRS = np.array(list(itertools.combinations(range(4), 2)))
UNIFORM = np.full(6, 1 / 6)
CHAIN = np.array([0.5, 0.0, 0.0, 0.3, 0.0, 0.2])  # 0-1, 1-2, 2-3
INSIDE = np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0])  # only 0-1
UNEVEN = np.array([0.3, 0.1, 0.05, 0.25, 0.1, 0.2])

# name: (law of the unordered pairs, lambda_bar forward, lambda_bar reverse)
PROBLEMS = {
    "forward": (UNIFORM, 0.1, 0.0),
    "reverse": (UNIFORM, 0.0, 0.1),
    "forward, half": (UNIFORM, 0.05, 0.0),
    "free": (UNIFORM, 0.0, 0.0),
    "free, chain": (CHAIN, 0.0, 0.0),
    "forward, inside": (INSIDE, 0.1, 0.0),
    "reverse, inside": (INSIDE, 0.0, 0.1),
    "forward, uneven": (UNEVEN, 0.3, 0.0),
    "reverse, uneven": (UNEVEN, 0.0, 0.3),
}


def population_objective(logits, pair_law, forward, reverse):
    """Returns the mean of `ilhf_loss` over pairs and choices, plus lambda_bar D."""
    log_probs, reference = jax.nn.log_softmax(logits), jnp.log(jnp.asarray(P0))
    chosen = jnp.asarray((Q[PAIRS] / Q[PAIRS].sum(1, keepdims=True)).T)  # [choice, pair]
    choices = jnp.asarray(np.repeat([[0], [1]], 6, 1))
    losses = ilhf_loss(jnp.stack([log_probs[PAIRS]] * 2), choices)
    expected = jnp.sum(pair_law * jnp.sum(chosen * losses, axis=0))
    return (
        expected
        + forward * kl_divergence(reference, log_probs)
        + reverse * kl_divergence(log_probs, reference)
    )


@functools.cache
def solutions() -> dict[str, np.ndarray]:
    """Returns minimisers by Newton's method on the logits, starting from P0."""

    @jax.jit
    @jax.vmap
    def minimise(*problem):
        def newton(logits, _):
            slope = jax.grad(population_objective)(logits, *problem)
            # A shift of the logits changes nothing: give that direction a slope of its own.
            curvature = jax.hessian(population_objective)(logits, *problem) + 0.25
            step = jnp.linalg.solve(curvature, slope)
            step /= jnp.maximum(1.0, jnp.linalg.norm(step))
            return logits - step, (jnp.max(jnp.abs(slope)), jnp.linalg.eigvalsh(curvature)[0])

        return jax.lax.scan(newton, jnp.log(jnp.asarray(P0)), length=40)

    problems = [np.stack(column) for column in zip(*PROBLEMS.values(), strict=True)]
    logits, (slopes, curvatures) = jax.tree.map(np.asarray, minimise(*problems))
    assert np.max(slopes[:, -1]) < 1e-13
    assert np.min(curvatures[:, -1]) > 1e-3  # minima, not saddles
    laws = softmax(logits)
    return dict(zip(PROBLEMS, laws, strict=True))


def test_infinite_data_in_numbers():
    found = solutions()
    np.testing.assert_allclose(
        found["forward"], [0.352098, 0.295506, 0.222206, 0.130191], atol=6e-7
    )
    np.testing.assert_allclose(
        found["reverse"], [0.340368, 0.307522, 0.229938, 0.122172], atol=6e-7
    )


def test_without_regulariser_the_population_is_learned():
    """For any pairs that are asked, as long as they connect all documents."""
    np.testing.assert_allclose(solutions()["free"], Q, rtol=1e-12)
    np.testing.assert_allclose(solutions()["free, chain"], Q, rtol=1e-12)


@pytest.mark.parametrize("name", [name for name in PROBLEMS if not name.startswith("free")])
def test_stationarity(name):
    """At the minimum the gradients of choices and regulariser cancel at every document."""
    pair_law, forward, reverse = PROBLEMS[name]
    policy = solutions()[name]
    pull_of_people = np.zeros(4)
    for (x, y), weight in zip(PAIRS, pair_law, strict=True):
        gap = Q[x] / (Q[x] + Q[y]) - policy[x] / (policy[x] + policy[y])
        pull_of_people += weight * gap * (np.eye(4)[x] - np.eye(4)[y])
    log_ratio = np.log(policy / P0)
    pull_back = forward * (policy - P0)
    pull_back += reverse * policy * (log_ratio - (policy * log_ratio).sum())
    np.testing.assert_allclose(pull_back, pull_of_people, atol=1e-13)


def test_comparisons_only_inside_a_set():
    inside = np.array([True, True, False, False])
    for name in ("forward, inside", "reverse, inside"):
        policy = solutions()[name]
        np.testing.assert_allclose(
            policy[~inside] / policy[~inside].sum(), P0[~inside] / P0[~inside].sum(), rtol=1e-12
        )
    forward, reverse = solutions()["forward, inside"], solutions()["reverse, inside"]
    assert forward[inside].sum() == pytest.approx(P0[inside].sum(), rel=1e-12)
    assert forward[0] > 1.5 * P0[0]  # the people were heard
    law, reference = (p[inside] / p[inside].sum() for p in (reverse, P0))
    odds = P0[inside].sum() / P0[~inside].sum() * np.exp(-(law * np.log(law / reference)).sum())
    assert reverse[inside].sum() / reverse[~inside].sum() == pytest.approx(odds, rel=1e-12)


def test_lambda_is_for_the_whole_data_set():
    """lambda = 252 is lambda_bar = .1 for 2,520 answers, and .05 for twice as many."""
    answers = []  # every pair 420 times, in the shares of q
    for i, j in PAIRS:
        for_first = round(420 * Q[i] / (Q[i] + Q[j]))
        answers += [(i, j)] * for_first + [(j, i)] * (420 - for_first)
    answers, lam = np.array(answers), 252.0  # chosen, rejected

    @jax.jit
    def slopes(logits):
        def per_comparison(logits):
            return ilhf_loss(jax.nn.log_softmax(logits)[answers], jnp.zeros(len(answers), int))

        def divergence(logits):
            return kl_divergence(jnp.log(jnp.asarray(P0)), jax.nn.log_softmax(logits))

        return (
            jax.grad(lambda logits: jnp.mean(per_comparison(logits)))(logits),
            jax.grad(lambda logits: jnp.sum(per_comparison(logits)))(logits),
            jax.grad(divergence)(logits),
        )

    n = len(answers)
    assert n == 2520
    of_mean, of_sum, of_divergence = map(np.asarray, slopes(np.log(solutions()["forward"])))
    np.testing.assert_allclose(of_mean + lam / n * of_divergence, 0.0, atol=1e-13)
    np.testing.assert_allclose(of_sum + lam * of_divergence, 0.0, atol=1e-10)
    # Every answer twice, the same lambda: the people weigh twice as much.
    assert np.abs(2 * of_sum + lam * of_divergence).max() > 1.0
    _, of_sum, of_divergence = map(np.asarray, slopes(np.log(solutions()["forward, half"])))
    np.testing.assert_allclose(2 * of_sum + lam * of_divergence, 0.0, atol=1e-10)


# --- bad input ------------------------------------------------------------------------------------


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, float)


def integers(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, int)


@pytest.mark.parametrize(
    ("loss", "arguments"),
    [
        (ilhf_loss, [floats(4, 1), integers(4)]),
        (ilhf_loss, [floats(), integers()]),
        (ilhf_loss, [floats(4, 3), integers(3)]),
        (ilhf_loss, [floats(4, 3), integers(4, 3)]),
        (ilhf_loss, [floats(4, 3), floats(4)]),
        (ilhf_loss, [integers(4, 3), integers(4)]),
        (ilhf_ranking_loss, [floats(4, 1), integers(4, 1)]),
        (ilhf_ranking_loss, [floats(), integers()]),
        (ilhf_ranking_loss, [floats(4, 3), integers(4)]),
        (ilhf_ranking_loss, [floats(4, 3), floats(4, 3)]),
        (ilhf_ranking_loss, [integers(4, 3), integers(4, 3)]),
        (forward_kl_loss, [floats(4, 3), floats(4, 2), jax.ShapeDtypeStruct((4,), bool)]),
        (forward_kl_loss, [floats(4, 3), floats(4, 3), jax.ShapeDtypeStruct((3,), bool)]),
    ],
)
def test_wrong_shapes_and_types_raise_while_tracing(loss, arguments):
    with pytest.raises(AssertionError):
        jax.eval_shape(jax.jit(loss), *arguments)


def test_a_query_of_one_response_is_named():
    with pytest.raises(AssertionError, match=r"at least two responses.*found shape \(4, 1\)"):
        jax.eval_shape(ilhf_loss, floats(4, 1), integers(4))


def test_wrong_values_raise_under_checkify_only():
    checked = jax.jit(checkify.checkify(ilhf_loss))
    with_nan = np.where(np.arange(4) == 2, np.nan, LOG_PROBS)
    checked(LOG_PROBS, CHOICES)[0].throw()
    with pytest.raises(checkify.JaxRuntimeError, match="a choice lies outside its query"):
        checked(LOG_PROBS, CHOICES + 1)[0].throw()
    with pytest.raises(checkify.JaxRuntimeError, match="NaN"):
        checked(with_nan, CHOICES)[0].throw()
    choice_loss(LOG_PROBS, CHOICES + 1)
    assert np.isnan(choice_loss(with_nan, CHOICES)).all()
