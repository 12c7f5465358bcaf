import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.test_util import check_grads

from shatter.choice import (
    plackett_luce_log_prob,
    plackett_luce_sample,
    ranks_log_prob,
)

pytestmark = pytest.mark.usefixtures("float64")

UTILITIES = np.random.default_rng(0).normal(0.0, 1.5, (3, 4))
ORDERS = np.array(list(itertools.permutations(range(4))))

ranking_log_prob = jax.jit(plackett_luce_log_prob)
compiled_law = jax.jit(ranks_log_prob)
compiled_gradient = jax.jit(jax.vmap(jax.value_and_grad(ranks_log_prob)))


def pad(utilities: np.ndarray, ranks: np.ndarray, shape: tuple[int, int]) -> list[np.ndarray]:
    """Adds items that are not shown, and empty queries: one shape, one compilation."""
    padding = [(0, size - found) for size, found in zip(shape, utilities.shape, strict=True)]
    return [np.pad(utilities, padding), np.pad(ranks, padding, constant_values=-1)]


def ranks_law(utilities: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    return np.asarray(compiled_law(*pad(utilities, ranks, (640, 6))))[: len(ranks)]


def value_and_grad(utilities: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, gradients = map(np.asarray, compiled_gradient(*pad(utilities, ranks, (64, 4))))
    np.testing.assert_array_equal(gradients[:, ranks.shape[1] :], 0.0)
    return values[: len(ranks)], gradients[: len(ranks), : ranks.shape[1]]


def order_log_prob(utilities: np.ndarray, order: tuple[int, ...]) -> float:
    """Plackett-Luce of an order of some items, by the definition."""
    strengths = np.exp(utilities)[list(order)]
    remaining = np.cumsum(strengths[::-1])[::-1]
    return float(np.log(strengths / remaining).sum())


def sum_over_orders(utilities: np.ndarray, ranks: tuple[int, ...]) -> float:
    """Log of the sum of Plackett-Luce over the strict orders that agree with the ranks."""
    shown = [i for i, rank in enumerate(ranks) if rank >= 0]
    agreeing = (
        order
        for order in itertools.permutations(shown)
        if all(ranks[i] <= ranks[j] for i, j in itertools.pairwise(order))
    )
    return math.log(sum(math.exp(order_log_prob(utilities, order)) for order in agreeing))


def inclusion_exclusion(utilities: np.ndarray, ranks: tuple[int, ...]) -> float:
    """prod over blocks A of sum_{S in A} (-1)^|S| s_B / (s_B + s_S), B what is worse than A."""
    log_prob = 0.0
    for rank in sorted({rank for rank in ranks if rank >= 0}):
        block = [math.exp(u) for u, r in zip(utilities, ranks, strict=True) if r == rank]
        rest = sum(math.exp(u) for u, r in zip(utilities, ranks, strict=True) if r > rank)
        if rest:
            log_prob += math.log(
                math.fsum(
                    (-1) ** size * rest / (rest + sum(subset))
                    for size in range(len(block) + 1)
                    for subset in itertools.combinations(block, size)
                )
            )
    return log_prob


def every_order() -> np.ndarray:
    """`[3, 24]`: our log-prob of each order of four items, for three utilities."""
    orders = np.broadcast_to(ORDERS, (3, 24, 4))
    return np.asarray(ranking_log_prob(np.repeat(UTILITIES[:, None], 24, 1), orders))


# --- rankings -------------------------------------------------------------------------------------


def test_orders_against_the_definition_and_their_sum():
    law = every_order()
    expected = [[order_log_prob(u, order) for order in ORDERS] for u in UTILITIES]
    np.testing.assert_allclose(law, expected, rtol=1e-13)
    np.testing.assert_allclose(np.exp(law).sum(-1), 1.0, rtol=1e-14)


def test_first_place_and_pairs_are_luce():
    law, strengths = np.exp(every_order()), np.exp(UTILITIES)
    first = np.stack([law[:, ORDERS[:, 0] == i].sum(-1) for i in range(4)], -1)
    np.testing.assert_allclose(first, strengths / strengths.sum(-1, keepdims=True), rtol=1e-13)
    place = np.argsort(ORDERS, -1)
    for i, j in itertools.permutations(range(4), 2):
        before = law[:, place[:, i] < place[:, j]].sum(-1)
        luce = strengths[:, i] / (strengths[:, i] + strengths[:, j])
        np.testing.assert_allclose(before, luce, rtol=1e-13)


def test_partial_ranking_is_the_sum_over_its_completions():
    starts = [start for n in range(4) for start in itertools.permutations(range(4), n)]
    padded = np.array([(*start, *[-1] * (4 - len(start))) for start in starts])
    completes = ((ORDERS[None] == padded[:, None]) | (padded[:, None] < 0)).all(-1)
    partial = ranking_log_prob(
        np.repeat(UTILITIES[:, None], len(starts), 1), np.broadcast_to(padded, (3, *padded.shape))
    )
    expected = np.log(np.exp(every_order()) @ completes.T)
    np.testing.assert_allclose(partial, expected, rtol=1e-12, atol=1e-15)


def test_absent_items_of_a_ranking_and_items_named_twice():
    utilities = UTILITIES[0].copy()
    utilities[1] = -np.inf
    rankings = np.array([[3, 0, 2, -1], [2, -1, -1, -1], [3, 1, 0, 2], [2, 3, 0, 1], [2, 2, 0, 3]])
    law, gradient = jax.jit(
        jax.vmap(jax.value_and_grad(plackett_luce_log_prob), in_axes=(None, 0))
    )(utilities, rankings)
    whole = order_log_prob(UTILITIES[0], (3, 0, 2))
    first = utilities[2] - np.log(np.exp(utilities).sum())
    np.testing.assert_allclose(law[:2], [whole, first], rtol=1e-13)
    np.testing.assert_array_equal(law[2:], -np.inf)  # names the absent item, or one item twice
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(np.asarray(gradient)[:2, 1], 0.0)


def test_samples_follow_the_law_of_every_order():
    num_draws = 20_000
    utilities = np.array([1.0, -np.inf, 0.0, -0.7])
    draws = np.asarray(
        jax.jit(plackett_luce_sample)(jax.random.key(2), np.tile(utilities, (num_draws, 1)))
    )
    np.testing.assert_array_equal(draws[:, 3], -1)  # of four, one is absent
    orders = list(itertools.permutations([0, 2, 3]))
    counts = np.array([(draws[:, :3] == order).all(-1).sum() for order in orders])
    assert counts.sum() == num_draws
    expected = num_draws * np.exp([order_log_prob(utilities, order) for order in orders])
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 25.7  # the 0.9999 quantile at 5 degrees of freedom


# --- ranks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_items", [2, 3, 4, 5, 6])
def test_ranks_sum_over_the_orders_that_agree(num_items):
    """Every weak order of every subset of up to four items; some of five and six."""
    rng = np.random.default_rng(num_items)
    if num_items <= 4:
        ranks = np.array(list(itertools.product(range(-1, num_items), repeat=num_items)))
    else:
        ranks = rng.integers(-1, 4, (24, num_items))
    utilities = rng.normal(0.0, 1.5, ranks.shape)
    expected = [sum_over_orders(u, tuple(r)) for u, r in zip(utilities, ranks, strict=True)]
    np.testing.assert_allclose(ranks_law(utilities, ranks), expected, rtol=1e-12, atol=1e-14)


def test_ranks_by_inclusion_and_exclusion():
    rng = np.random.default_rng(1)
    ranks = np.concatenate(
        [
            rng.permuted(np.tile(row, (20, 1)), axis=1)
            for row in ([1, 1, 1, 1, 7, 7], [0, 3, 3, 3, 4, -1])
        ]
    )
    utilities = rng.normal(0.0, 1.0, ranks.shape)
    expected = [inclusion_exclusion(u, tuple(r)) for u, r in zip(utilities, ranks, strict=True)]
    np.testing.assert_allclose(ranks_law(utilities, ranks), expected, rtol=1e-10)


def test_strict_ranks_are_a_ranking_and_a_choice_is_luce():
    places = np.tile(np.argsort(ORDERS, -1), (3, 1))
    strict = ranks_law(np.repeat(UTILITIES, 24, 0), places)
    np.testing.assert_allclose(strict, every_order().reshape(-1), rtol=1e-13)
    chosen = np.tile(np.where(np.eye(4, dtype=bool), 1, 2), (3, 1))
    choices = ranks_law(np.repeat(UTILITIES, 4, 0), chosen).reshape(3, 4)
    strengths = np.exp(UTILITIES)
    expected = np.log(strengths / strengths.sum(-1, keepdims=True))
    np.testing.assert_allclose(choices, expected, rtol=1e-13)


def test_only_the_order_of_the_ranks_counts():
    ranks = np.array([[1, 1, 2, 2], [0, 0, 1, 1], [3, 3, 90, 90], [5, 5, 5, 5], [-1, 7, -1, -1]])
    values, gradients = value_and_grad(np.tile([1.0, 0.0, -0.5, 2.0], (5, 1)), ranks)
    np.testing.assert_array_equal(values[1:3], values[0])
    # 3.0479 is -log(1 - s_B/(s_B + s_1) - s_B/(s_B + s_2) + s_B/(s_B + s_1 + s_2)).
    assert -values[0] == pytest.approx(3.0479, abs=5e-5)
    assert -values[0] == pytest.approx(-inclusion_exclusion([1, 0, -0.5, 2], [1, 1, 2, 2]))
    # Items that are all tied, or one alone, have probability 1.
    np.testing.assert_array_equal(values[3:], 0.0)
    np.testing.assert_array_equal(gradients[3:], 0.0)


def test_pairs_agree_with_the_general_case():
    """With items that are not shown they take the general path."""
    pairs = np.array([[1.0, 0.3], [0.3, 1.0], [-2.0, 5.0], [40.0, 0.0], [-np.inf, 0.0]])
    pairs = np.concatenate([pairs, pairs[:, ::-1], [[-np.inf, -np.inf]]])
    ranks = np.array([[1, 2], [2, 1], [1, 1], [-1, 2], [1, -1]])
    pairs, ranks = np.repeat(pairs, len(ranks), 0), np.tile(ranks, (len(pairs), 1))
    special, special_gradient = compiled_gradient(pairs, ranks)
    general, general_gradient = value_and_grad(pairs, ranks)
    np.testing.assert_allclose(special, general, rtol=1e-14)
    assert not np.isnan(special).any()
    np.testing.assert_allclose(special_gradient, general_gradient, rtol=1e-12, atol=1e-16)


def many_ties(num_items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns blocks of equal strength e^u before a rest of strength 1, and the exact log-prob.

    The block's clocks ring in turn: P = prod_i i s / (i s + m), m items in the rest.
    """
    rows = []
    for size in (2, num_items - 1):
        for utility in (-50.0, -5.0, 0.0, 3.0, 20.0):
            in_block = np.arange(num_items) < size
            step = np.arange(1, size + 1) * math.exp(utility)
            exact = -np.log1p((num_items - size) / step).sum()
            rows.append((np.where(in_block, utility, 0.0), np.where(in_block, 1, 2), exact))
    return tuple(map(np.stack, zip(*rows, strict=True)))


@pytest.mark.slow
def test_blocks_in_closed_form():
    utilities, ranks, exact = many_ties(64)
    np.testing.assert_allclose(compiled_law(utilities, ranks), exact, rtol=1e-13, atol=1e-14)
    for num_items in (3, 6):
        utilities, ranks, exact = many_ties(num_items)
        np.testing.assert_allclose(ranks_law(utilities, ranks), exact, rtol=1e-13, atol=1e-14)


@pytest.mark.slow
def test_float32_is_accurate_to_float32():
    utilities, ranks, exact = many_ties(32)
    wide = compiled_law(utilities.astype(np.float32), ranks)
    assert wide.dtype == jnp.float32
    np.testing.assert_allclose(wide, exact, rtol=1e-6, atol=1e-6)
    utilities, ranks, exact = many_ties(4)
    narrow, _ = value_and_grad(utilities.astype(np.float32), ranks)
    np.testing.assert_allclose(narrow, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("spread", [50.0, 100.0, 1000.0, 1e5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_apart_utilities(dtype, spread):
    """As far apart as the log-probs of texts: the value in closed form, the gradient finite."""
    utilities = np.array([spread, 0.0, 0.5, -spread], dtype)
    ranks = np.array([[1, 1, 2, 2], [1, 2, 1, 2], [1, 2, 2, 2], [2, 2, 1, 1], [2, 1, 1, 2]])
    against = 1.0 / (1.0 + math.exp(-0.5))  # exp(.5) before 1
    values, gradients = value_and_grad(np.tile(utilities, (5, 1)), ranks)
    expected = [
        math.log1p(-against),
        math.log(against),
        0.0,
        math.log(2.0) + 0.5 - 3.0 * spread,  # weak a, b before B: 2 s_a s_b / s_B^2
        math.log(2.0) + 0.5 - 2.0 * spread,
    ]
    tolerance = 40 * np.finfo(dtype).eps
    np.testing.assert_allclose(values, expected, rtol=tolerance, atol=tolerance)
    expected = [
        [0.0, against, -against, 0.0],
        [0.0, against - 1.0, 1.0 - against, 0.0],
        [0.0, 0.0, 0.0, 0.0],
        [-2.0, 0.0, 1.0, 1.0],
        [-2.0, 1.0, 1.0, 0.0],
    ]
    np.testing.assert_allclose(gradients, expected, atol=20 * tolerance)


def test_float32_ranks_do_not_see_the_size_of_the_utilities():
    # Eighths below 2^17 are exact in float32, and so are their differences.
    utilities = (np.round(np.repeat(UTILITIES, 4, 0) * 8) / 8).astype(np.float32)
    ranks = np.tile([[1, 1, 2, 2], [1, 1, 1, 2], [2, 1, 1, 1], [2, 1, 3, 1]], (3, 1))
    shifted, _ = value_and_grad(utilities - np.float32(2**17), ranks)
    exact, _ = value_and_grad(utilities.astype(np.float64), ranks)
    np.testing.assert_allclose(shifted, exact, rtol=2e-6)


@pytest.mark.slow
def test_half_precision_is_computed_in_float32():
    half = (UTILITIES * 100.0).astype(np.float16)
    ranks = np.array([[1, 1, 2, 2], [1, 2, 1, -1], [2, 1, 1, 1]])
    values = compiled_law(half, ranks)
    assert values.dtype == jnp.float32
    exact = ranks_law(half.astype(np.float64), ranks)
    np.testing.assert_allclose(values, exact, rtol=1e-5, atol=1e-6)


def test_absent_items_of_ranks():
    """Absent below others: counts for nothing. Absent above one that is present: impossible."""
    utilities = np.array([-np.inf, 1.0, 0.0, 0.5])
    ranks = np.array([[2, 1, 1, 2], [2, 1, 1, 1], [3, 1, 2, 2], [1, 1, 2, 2], [1, 2, 2, 2]])
    values, gradients = value_and_grad(np.tile(utilities, (5, 1)), ranks)
    without, gradients_without = value_and_grad(utilities[None, 1:], ranks[:1, 1:])
    np.testing.assert_allclose(values[0], without[0], rtol=1e-13)
    np.testing.assert_allclose(gradients[0], [0.0, *gradients_without[0]], rtol=1e-12)
    assert values[1] == 0.0
    assert values[2] == pytest.approx(1.0 - np.log(np.exp(utilities[1:]).sum()), rel=1e-13)
    np.testing.assert_array_equal(values[3:], -np.inf)
    assert np.all(np.isfinite(gradients))
    nothing, gradient = value_and_grad(np.full((2, 4), -np.inf), np.array([[1, 2, 2, 2], [1] * 4]))
    np.testing.assert_array_equal(nothing, 0.0)
    np.testing.assert_array_equal(gradient, 0.0)


def test_gradients_of_rankings():
    ranking = np.array([[3, 1, 0, 2], [2, 0, -1, -1], [1, 2, 3, -1]])
    law = lambda utilities: ranking_log_prob(utilities, ranking)
    check_grads(law, (jnp.asarray(UTILITIES),), order=1, modes=["rev"])


def test_gradients_of_ranks():
    """Against central differences in every direction; `ilhf_ranking_loss` has check_grads."""
    ranks = np.array([[1, 1, 2, 2], [2, 1, 1, 1], [3, 1, 2, -1]])
    _, gradients = value_and_grad(UTILITIES, ranks)
    steps = 1e-5 * np.eye(4)
    up, down = (
        value_and_grad((UTILITIES[:, None] + step).reshape(12, 4), np.repeat(ranks, 4, 0))[0]
        for step in (steps, -steps)
    )
    np.testing.assert_allclose(gradients, ((up - down) / 2e-5).reshape(3, 4), atol=1e-9)


@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
@pytest.mark.parametrize("num_items", [1, 2, 3])
def test_leading_axes(leading, num_items):
    utilities = jax.ShapeDtypeStruct((*leading, num_items), float)
    integers = jax.ShapeDtypeStruct((*leading, num_items), int)
    for function in (ranks_log_prob, plackett_luce_log_prob):
        assert jax.eval_shape(function, utilities, integers).shape == leading


FLOATS = jax.ShapeDtypeStruct((4, 3), float)
INTEGERS = jax.ShapeDtypeStruct((4, 3), int)


@pytest.mark.parametrize("function", [plackett_luce_log_prob, ranks_log_prob])
@pytest.mark.parametrize(
    "arguments",
    [
        (FLOATS, jax.ShapeDtypeStruct((4, 2), int)),
        (FLOATS, jax.ShapeDtypeStruct((3,), int)),
        (FLOATS, FLOATS),
        (INTEGERS, INTEGERS),
        (jax.ShapeDtypeStruct((), float), jax.ShapeDtypeStruct((), int)),
    ],
)
def test_wrong_shapes_and_types_raise_while_tracing(function, arguments):
    with pytest.raises(AssertionError):
        jax.eval_shape(jax.jit(function), *arguments)


@pytest.mark.slow
def test_wrong_values_raise_under_checkify_only():
    utilities, with_nan = UTILITIES[0], np.where(np.arange(4) == 1, np.nan, UTILITIES[0])
    checked = jax.jit(checkify.checkify(plackett_luce_log_prob))
    checked(utilities, np.array([3, 1, 0, -1]))[0].throw()
    for item in (4, -2):
        ranking = np.array([3, 1, item, -1])
        with pytest.raises(checkify.JaxRuntimeError, match=rf"outside its query.*K = 4.*{item}"):
            checked(utilities, ranking)[0].throw()
        ranking_log_prob(utilities, ranking)
    with pytest.raises(checkify.JaxRuntimeError, match="NaN"):
        checked(with_nan, np.array([3, 1, 0, -1]))[0].throw()

    checked = jax.jit(checkify.checkify(ranks_log_prob))
    ranks = np.array([1, 2, 2, 3])
    checked(utilities, ranks)[0].throw()
    checked(with_nan, np.array([1, -1, 2, 3]))[0].throw()  # not shown
    with pytest.raises(checkify.JaxRuntimeError, match="NaN"):
        checked(with_nan, ranks)[0].throw()
    assert np.isnan(ranks_law(with_nan[None], ranks[None])[0])
