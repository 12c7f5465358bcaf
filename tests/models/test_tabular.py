"""The table of logits by prefix is compared with a dictionary of prefixes."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from shatter.models import LanguageModel, tabular

V, L, PROMPTS = 3, 3, 2
LM = tabular(vocab_size=V, max_length=L, num_prompts=PROMPTS)


class Case(NamedTuple):
    """Every document of full length for every prompt, and the logits of every prefix."""

    params: jax.Array
    tokens: np.ndarray
    expected: np.ndarray


@pytest.fixture(scope="module")
def case() -> Case:
    params = LM.init(jax.random.key(0))
    table = {}
    for prompt in range(PROMPTS):
        prefixes = (p for t in range(L) for p in itertools.product(range(V), repeat=t))
        for row, prefix in enumerate(prefixes):
            table[(prompt, *prefix)] = np.asarray(params[prompt, row])
    assert len(table) == params.shape[0] * params.shape[1]
    responses = itertools.product(range(V), repeat=L)
    tokens = [(p, *r) for p, r in itertools.product(range(PROMPTS), responses)]
    expected = [[*(table[row[: t + 1]] for t in range(L)), np.zeros(V)] for row in tokens]
    return Case(params, np.array(tokens), np.array(expected, np.float32))


def padded(tokens: np.ndarray, columns: list[int], fill: int) -> tuple[jax.Array, jax.Array]:
    """Returns the documents with padding inserted at these columns."""
    length = tokens.shape[1] + len(columns)
    valid = np.isin(np.arange(length), columns, invert=True)
    out = np.full((len(tokens), length), fill)
    out[:, valid] = tokens
    return jnp.array(out), jnp.broadcast_to(valid, out.shape)


def test_logits_are_those_of_the_prefix(case: Case):
    found = jax.jit(LM.apply)(case.params, jnp.array(case.tokens))
    np.testing.assert_array_equal(found, case.expected)


@pytest.mark.parametrize("fill", [0, -100, 99])
@pytest.mark.parametrize("columns", [[0, 1], [4, 5], [0, 3], [2, 5]], ids=str)
def test_padding_moves_nothing(case: Case, columns: list[int], fill: int):
    """Padding is on the left, on the right and in between, with any id."""
    tokens, valid = padded(case.tokens, columns, fill)
    found = jax.jit(LM.apply)(case.params, tokens, valid=valid)
    np.testing.assert_array_equal(found[:, valid[0]], case.expected)
    for column in columns:
        if column > 0:
            np.testing.assert_array_equal(found[:, column], found[:, column - 1])


def test_logits_after_the_last_response_token_are_zero(case: Case):
    longer = jnp.pad(jnp.array(case.tokens), ((0, 0), (0, 2)), constant_values=V - 1)
    found = jax.jit(LM.apply)(case.params, longer)
    np.testing.assert_array_equal(found[:, : L + 1], case.expected)
    np.testing.assert_array_equal(found[:, L:], np.zeros((len(case.tokens), 3, V)))


def test_leading_axes(case: Case):
    batched = case.tokens.reshape(PROMPTS, -1, 1, L + 1)
    found = jax.jit(LM.apply)(case.params, jnp.array(batched))
    np.testing.assert_array_equal(found, case.expected.reshape(*batched.shape, V))
    np.testing.assert_array_equal(
        LM.apply(case.params, jnp.array(case.tokens[7])), case.expected[7]
    )


def test_members_by_vmap(case: Case):
    members = jax.vmap(LM.init)(jax.random.split(jax.random.key(1), 3))
    tokens = jnp.array(case.tokens)
    found = jax.jit(jax.vmap(LM.apply, in_axes=(0, None)))(members, tokens)
    for member, logits in zip(members, found, strict=True):
        np.testing.assert_array_equal(logits, jax.jit(LM.apply)(member, tokens))


def test_gradient_reaches_the_visited_prefixes_alone(case: Case):
    """Document (1, 2, 0, 1): prefixes (), (2), (2, 0) of prompt 1 are rows 0, 1 + 2, 4 + 6."""
    tokens = jnp.array([1, 2, 0, 1])
    gradient = jax.grad(lambda p: jnp.sum(LM.apply(p, tokens)))(case.params)
    expected = np.zeros(case.params.shape)
    expected[1, [0, 3, 10]] = 1.0
    np.testing.assert_array_equal(gradient, expected)


def test_initial_logits_are_gaussian_of_the_given_scale():
    params = tabular(vocab_size=4, max_length=5, init_scale=2.5).init(jax.random.key(0))
    assert params.shape == (1, 1 + 4 + 16 + 64 + 256, 4)
    # 1,364 draws: the standard error of the deviation is 2% of it, of the mean 0.07.
    assert np.std(params) == pytest.approx(2.5, rel=0.08)
    assert np.mean(params) == pytest.approx(0.0, abs=0.3)


@pytest.mark.parametrize(
    "sizes",
    [
        {"vocab_size": 1, "max_length": 3},
        {"vocab_size": 3, "max_length": 0},
        {"vocab_size": 3, "max_length": 3, "num_prompts": 0},
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, int]):
    with pytest.raises(ValueError, match="tabular expects vocab_size >= 2"):
        tabular(**sizes)


def test_a_table_too_large_is_refused_before_it_is_made():
    """It would have (10^8 - 1) / 9 prefixes."""
    with pytest.raises(ValueError, match="2 prompts x 11111111 prefixes is over the limit"):
        tabular(vocab_size=10, max_length=8, num_prompts=2)


def test_wrong_shapes_and_types_are_refused(case: Case):
    other: LanguageModel = tabular(vocab_size=V, max_length=L, num_prompts=PROMPTS + 1)
    tokens = jnp.array(case.tokens)
    with pytest.raises(AssertionError):
        other.apply(case.params, tokens)
    with pytest.raises(AssertionError):
        LM.apply(case.params, tokens.astype(float))
    with pytest.raises(AssertionError):
        LM.apply(case.params, tokens, valid=jnp.ones(L + 1, bool))


@pytest.mark.slow
def test_checkify_finds_tokens_out_of_range(case: Case):
    checked = jax.jit(checkify.checkify(LM.apply))
    valid = jnp.array([[True, True, True, False]])

    def message(*tokens: int) -> str | None:
        return checked(case.params, jnp.array([tokens]), valid=valid)[0].get()

    assert message(1, 2, 0, 99) is None  # padding may hold any id
    assert "a prompt id is out of range: expected 0 <= prompt id < 2" in message(2, 2, 0, 0)
    assert "found between 0 and 7" in message(1, 0, 7, 0)
    assert "a token is out of range: expected 0 <= token < 3" in message(1, -4, 0, 0)
