"""The language model as policy, reward and transition; soft values by enumeration."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter import documents, numerics
from shatter.evaluation import posterior_optimum
from shatter.models import LanguageModel, tabular
from shatter.types import Array

V, L = 3, 3
LM = tabular(vocab_size=V, max_length=L, init_scale=1.5)
both_ends = pytest.mark.parametrize("eos", [None, 1])
one_end = pytest.mark.parametrize("eos", [pytest.param(None, marks=pytest.mark.slow), 1])


class Space(NamedTuple):
    """Every response with its reward and its log-prob, in plain NumPy."""

    eos: int | None
    responses: list[tuple[int, ...]]
    rewards: np.ndarray
    log_p0: np.ndarray
    levels: list[np.ndarray]  # log p0(a | s), a row for every prefix of a length
    tokens: np.ndarray  # the responses after a prompt, as the library writes them
    mask: np.ndarray


def row(prefix: tuple[int, ...]) -> int:
    """Returns the index of a prefix among those of its length."""
    return int(sum(token * V**i for i, token in enumerate(reversed(prefix))))


def totals(levels: list, responses: list[tuple[int, ...]]):
    """Returns the sum of the entries along every response, `[D]`."""
    collected = []
    for t, level in enumerate(levels):
        rows = np.array([row(response[:t]) for response in responses])
        actions = np.array([response[t] if t < len(response) else -1 for response in responses])
        collected.append(np.where(actions < 0, 0.0, 1.0) * level[rows % len(level), actions])
    return sum(collected)


def responses_in(tokens: np.ndarray, mask: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(row[keep].tolist()) for row, keep in zip(tokens, mask, strict=True)]


def random_levels(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.log(rng.dirichlet(np.ones(V), size=V**t)) for t in range(L)]


def make_space(eos: int | None) -> Space:
    everything = itertools.product(range(V), repeat=L)
    cut = lambda r: r[: r.index(eos) + 1] if eos in r else r
    responses = sorted({cut(response) for response in everything})
    levels = random_levels(0)
    log_p0 = totals(levels, responses)
    rewards = 2 * np.random.default_rng(1).standard_normal(len(responses))
    enumerated = documents.enumerate_documents(vocab_size=V, max_length=L, eos=eos)
    tokens, mask = map(np.asarray, enumerated)
    assert responses_in(tokens, mask) == responses
    return Space(eos, responses, rewards, log_p0, levels, tokens, mask)


def solve(space: Space, rewards, beta):
    """Returns soft values and the posterior's next-token policy."""
    levels = [jnp.array(level) for level in space.levels]
    return documents.posterior_policy(
        levels, rewards, space.tokens, space.mask, beta=beta, eos=space.eos
    )


# One program a space: rewards and temperature are arguments.
@pytest.fixture(params=[None, 1], ids=["fixed length", "eos"])
def solved(request: pytest.FixtureRequest, float64: None):
    space = make_space(request.param)
    return space, jax.jit(lambda rewards, beta: solve(space, rewards, beta))


def posterior(space: Space, beta: float) -> tuple[np.ndarray, float]:
    """Returns log p* = log p0 + r / beta - log Z, and log Z."""
    log_joint = space.log_p0 + space.rewards / beta
    log_z = np.log(np.exp(log_joint).sum())
    return log_joint - log_z, log_z


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_soft_recursion_is_the_posterior(solved, beta: float):
    """V(root) = beta log Z, and V(s) and p*(a | s) are right at every prefix that is reached."""
    space, run = solved
    values, policy = jax.tree.map(np.asarray, run(space.rewards, beta))
    log_target, log_z = posterior(space, beta)
    assert values[0][0] == pytest.approx(beta * log_z, abs=1e-12)
    np.testing.assert_allclose(totals(policy, space.responses), log_target, atol=1e-12)

    ends = dict(zip(space.responses, space.rewards, strict=True))
    p0 = dict(zip(space.responses, np.exp(space.log_p0), strict=True))

    def value(state: tuple[int, ...]) -> float:
        """beta log E_p0[exp(r / beta) | state], over the documents that begin like it."""
        if state in ends:
            return ends[state]
        onward = [x for x in space.responses if x[: len(state)] == state]
        mean = sum(p0[x] * np.exp(ends[x] / beta) for x in onward) / sum(p0[x] for x in onward)
        return beta * np.log(mean)

    states = {x[:t] for x in space.responses for t in range(len(x))}
    assert len(states) == (13 if space.eos is None else 7)
    for state in states:
        t = len(state)
        assert values[t][row(state)] == pytest.approx(value(state), abs=1e-12)
        for action in range(V):
            expected = space.levels[t][row(state), action]
            expected += (value((*state, action)) - value(state)) / beta
            assert policy[t][row(state), action] == pytest.approx(expected, abs=1e-12)


def test_posterior_does_not_move_with_a_constant(solved):
    """The reward r + c leaves p* as it is and adds c to every value."""
    space, run = solved
    values, policy = jax.tree.map(np.asarray, run(space.rewards, 0.5))
    shifted_values, shifted_policy = jax.tree.map(np.asarray, run(space.rewards + 3.0, 0.5))
    for state in {x[:t] for x in space.responses for t in range(len(x))}:
        t, i = len(state), row(state)
        assert shifted_values[t][i] == pytest.approx(values[t][i] + 3.0, abs=1e-12)
        np.testing.assert_allclose(shifted_policy[t][i], policy[t][i], atol=1e-12)


@pytest.mark.slow
@both_ends
def test_posterior_policy_of_a_language_model_after_a_prompt(float64: None, eos: int | None):
    """As a law over documents it is `posterior_optimum`, for any length of the prompt."""
    params, prompt = LM.init(jax.random.key(1)), (0, 2)
    sizes = {"vocab_size": V, "max_length": L - 1, "prompt": prompt}
    tokens, mask = documents.enumerate_documents(**sizes, eos=eos)
    rewards = jnp.array(np.random.default_rng(6).normal(size=len(tokens)))

    @jax.jit
    def run(params):
        levels = documents.prefix_log_probs(LM, params, **sizes)
        log_p0 = documents.document_log_probs(LM, params, tokens, mask)
        return (
            documents.posterior_policy(levels, rewards, tokens, mask, beta=0.7, eos=eos),
            posterior_optimum(log_p0, rewards, beta=0.7),
        )

    (values, policy), (log_target, log_z) = run(params)
    responses = responses_in(*map(np.asarray, (tokens, mask)))
    np.testing.assert_allclose(totals(policy, responses), log_target, atol=1e-12)
    assert values[0][0] == pytest.approx(0.7 * float(log_z), abs=1e-12)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_regularised_return_of_any_policy(solved, beta: float):
    """J_KL(pi) = beta log Z - beta KL(pi || p*)."""
    space, run = solved
    values, policy = jax.tree.map(np.asarray, run(space.rewards, beta))
    log_target = totals(policy, space.responses)
    for seed in range(2, 5):
        log_pi = totals(random_levels(seed), space.responses)
        pi = np.exp(log_pi)
        assert pi.sum() == pytest.approx(1.0, abs=1e-12)
        regularised = pi @ space.rewards - beta * (pi @ (log_pi - space.log_p0))
        divergence = numerics.kl_divergence(jnp.array(log_pi), jnp.array(log_target))
        expected = beta * (values[0][0] / beta) - beta * float(divergence)
        assert regularised == pytest.approx(expected, abs=1e-12)
        assert divergence > 0.05


def test_derivatives_in_the_inverse_temperature(solved):
    """By eta = 1 / beta: d log Z = E r, d E r = Var r, d KL(p* || p0) = eta Var r."""
    space, _ = solved

    @jax.jit
    def run(eta):
        def quantities(eta):
            values, policy = solve(space, space.rewards, 1 / eta)
            log_target = totals(policy, space.responses)
            mean = numerics.expectation(log_target, jnp.array(space.rewards))
            kl = numerics.kl_divergence(log_target, jnp.array(space.log_p0))
            return jnp.array([eta * values[0][0], mean, kl])

        return jax.jvp(quantities, (eta,), (1.0,))

    for eta in (0.5, 1.7):
        (_, mean, kl), derivatives = run(eta)
        log_target, _ = posterior(space, 1 / eta)
        p = np.exp(log_target)
        by_hand = p @ space.rewards
        variance = p @ (space.rewards - by_hand) ** 2
        assert mean == pytest.approx(by_hand, abs=1e-12)
        assert kl == pytest.approx(p @ (log_target - space.log_p0), abs=1e-12)
        np.testing.assert_allclose(derivatives, [by_hand, variance, eta * variance], atol=1e-11)
        assert variance > 0.05


def test_kl_of_documents_is_the_sum_over_prefixes(solved):
    """KL(pi || p*) is the sum over prefixes of pi(prefix) times the KL of the next-token laws."""
    space, run = solved
    _, policy = jax.tree.map(np.asarray, run(space.rewards, 0.5))
    other = random_levels(7)
    log_pi = totals(other, space.responses)
    of_documents = np.exp(log_pi) @ (log_pi - posterior(space, 0.5)[0])
    by_prefix = 0.0
    for prefix in {x[:t] for x in space.responses for t in range(len(x))}:
        reach = np.exp(log_pi)[[x[: len(prefix)] == prefix for x in space.responses]].sum()
        log_p = other[len(prefix)][row(prefix)]
        by_prefix += reach * np.exp(log_p) @ (log_p - policy[len(prefix)][row(prefix)])
    assert by_prefix == pytest.approx(of_documents, abs=1e-12)
    assert of_documents > 0.05


def test_posterior_policy_avoids_what_the_reference_never_writes(float64: None):
    """A token of probability 0 keeps it, even if its documents have the best rewards; no NaN."""
    tokens, mask = documents.enumerate_documents(vocab_size=V, max_length=L)
    levels = [jnp.array(level) for level in random_levels(0)]
    levels[1] = jax.nn.log_softmax(levels[1].at[2, 0].set(-jnp.inf))
    rewards = jnp.where((tokens[:, 1] == 2) & (tokens[:, 2] == 0), 50.0, 0.0)
    run = jax.jit(
        lambda rewards: documents.posterior_policy(levels, rewards, tokens, mask, beta=0.5)
    )
    values, policy = jax.tree.map(np.asarray, run(rewards))
    assert values[0][0] == pytest.approx(0.0, abs=1e-12)
    for found, level in zip(policy[:2], levels[:2], strict=True):
        np.testing.assert_allclose(np.exp(found), np.exp(level), atol=1e-12)
    assert np.exp(policy[1][2, 0]) == 0.0
    assert all(np.isfinite(array).all() for array in (*values, *policy))


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan])
def test_a_beta_not_above_zero_is_named(bad: float):
    tokens, mask = documents.enumerate_documents(vocab_size=V, max_length=L)
    levels = [jnp.array(level) for level in random_levels(0)]
    with pytest.raises(ValueError, match=f"^beta must be above 0, found {bad}$"):
        documents.posterior_policy(levels, jnp.zeros(len(tokens)), tokens, mask, beta=bad)


def test_arguments_of_posterior_policy_that_do_not_fit_raise():
    tokens, mask = documents.enumerate_documents(vocab_size=V, max_length=L)
    levels = [jnp.array(level) for level in random_levels(0)]
    rewards = jnp.zeros(len(tokens))
    shorter, shorter_mask = documents.enumerate_documents(vocab_size=V, max_length=L - 1)
    for arguments in [
        (levels, rewards[:-1], tokens, mask),
        (levels, rewards, tokens, mask[:-1]),
        (levels, rewards, tokens, mask[:, 1:]),
        (levels[1:], rewards, tokens, mask),  # no level of the empty prefix
        ([levels[0], levels[1][:-1], levels[2]], rewards, tokens, mask),
        (levels, rewards[: len(shorter)], shorter, shorter_mask),  # no room for a prompt
        (levels[:2], rewards, tokens, mask),  # documents longer than the tree is deep
    ]:
        with pytest.raises(AssertionError):
            documents.posterior_policy(*arguments, beta=0.5)
    with pytest.raises(AssertionError):  # documents of another kind of end
        documents.posterior_policy(levels, rewards, tokens, mask, beta=0.5, eos=1)


@both_ends
def test_own_log_probs_as_rewards_leave_nothing_to_optimise(float64: None, eos: int | None):
    """At temperature 1 V = 0 everywhere and the soft-optimal policy is the model itself."""
    params = LM.init(jax.random.key(0))

    @jax.jit
    def run(params):
        levels = documents.prefix_log_probs(LM, params, vocab_size=V, max_length=L)
        return levels, documents.soft_values(levels, eos=eos)

    levels, (values, policy) = run(params)
    assert [len(value) for value in values] == [1, V, V**2]
    for level, value, optimal in zip(levels, values, policy, strict=True):
        np.testing.assert_allclose(value, 0.0, atol=1e-14)
        np.testing.assert_allclose(optimal, level, atol=1e-14)


@both_ends
def test_at_another_temperature_the_optimum_is_sequence_tempered(float64: None, eos: int | None):
    """It is pi(x)^(1 / tau) / Z with V(root) = tau log Z; tempering tokens gives another law."""
    space = make_space(eos)

    @jax.jit
    def run(temperature):
        levels = [jnp.array(level) for level in space.levels]
        return documents.soft_values(levels, temperature=temperature, eos=eos)

    for temperature in (0.4, 2.5):
        values, policy = run(temperature)
        found = np.asarray(totals(policy, space.responses))
        expected = documents.sequence_tempered(jnp.array(space.log_p0), temperature)
        np.testing.assert_allclose(found, expected, atol=1e-12)
        log_z = np.log(np.exp(space.log_p0 / temperature).sum())
        assert values[0][0] == pytest.approx(temperature * log_z, abs=1e-12)

        tempered = [np.exp(level / temperature) for level in space.levels]
        tempered = [np.log(level / level.sum(axis=1, keepdims=True)) for level in tempered]
        by_token = totals(tempered, space.responses)
        assert np.exp(by_token).sum() == pytest.approx(1.0, abs=1e-12)
        assert np.abs(np.exp(by_token) - np.exp(found)).sum() > 0.1


def test_forbidden_actions_and_dead_ends_are_avoided(float64: None):
    """After token 2 action 0 is forbidden, after token 1 all are; all values are finite."""
    levels = [jnp.array(level) for level in random_levels(0)]

    @jax.jit
    def run(bonus):
        def root(bonus):
            second = levels[1].at[2, 0].set(-jnp.inf).at[1].set(-jnp.inf)
            values, policy = documents.soft_values([levels[0] + bonus, second, levels[2]])
            return values[0][0], (values, policy)

        return jax.value_and_grad(root, has_aux=True)(bonus)

    (value, (values, policy)), gradient = jax.tree.map(np.asarray, run(0.0))
    p, after = np.exp(levels[0][0]), np.exp(levels[1][2])
    possible = np.array([p[0], 0.0, p[2] * (1 - after[0])])
    assert value == pytest.approx(np.log(possible.sum()), abs=1e-12)
    np.testing.assert_allclose(np.exp(policy[0][0]), possible / possible.sum(), atol=1e-12)
    assert values[1][2] == pytest.approx(np.log(1 - after[0]), abs=1e-12)
    kept = np.array([0.0, after[1], after[2]])
    np.testing.assert_allclose(np.exp(policy[1][2]), kept / kept.sum(), atol=1e-12)
    assert gradient == pytest.approx(1.0, abs=1e-12)
    assert all(np.all(np.isfinite(array)) for array in (*values, *policy))


@one_end
def test_rolling_documents_through_the_three_faces(float64: None, eos: int | None):
    """The rewards of the actions sum to log_prob, and the transitions rebuild the documents."""
    params = LM.init(jax.random.key(0))
    tokens, mask = documents.enumerate_documents(vocab_size=V, max_length=L, eos=eos)
    faces = documents.interface(LM)

    @jax.jit
    def run(params):
        state = jnp.pad(tokens[:, :1], ((0, 0), (0, L)), constant_values=V - 1)
        length, collected, laws = jnp.ones(len(tokens), int), [], []
        for t in range(1, 1 + L):
            laws.append(faces.policy(params, state, length))
            collected.append(faces.reward(params, state, length, tokens[:, t]))
            state, length = faces.transition(state, length, tokens[:, t])
        levels = documents.prefix_log_probs(LM, params, vocab_size=V, max_length=L)
        scored = documents.document_log_probs(LM, params, tokens, mask)
        return state, length, jnp.array(collected).T, laws, levels, scored

    state, length, collected, laws, levels, scored = run(params)
    np.testing.assert_array_equal(state, tokens)
    np.testing.assert_array_equal(length, 1 + L)
    np.testing.assert_allclose((collected * mask[:, 1:]).sum(axis=1), scored, atol=1e-12)
    for t, law in enumerate(laws):
        prefixes = [row(tuple(r)) for r in np.asarray(tokens)[:, 1 : 1 + t].tolist()]
        np.testing.assert_allclose(law, np.asarray(levels[t])[prefixes], atol=1e-14)


@pytest.mark.slow
def test_faces_take_any_leading_axes(float64: None):
    params = LM.init(jax.random.key(0))
    faces = documents.interface(LM)
    tokens, length = jnp.array([[0, 2, 1, 0], [0, 1, 1, 2]]), jnp.array([2, 4])
    law = faces.policy(params, tokens, length)
    assert faces.policy(params, tokens[1], length[1]).shape == (V,)
    np.testing.assert_allclose(faces.policy(params, tokens[1], length[1]), law[1], atol=1e-14)
    reward = faces.reward(params, tokens[0], length[0], jnp.array(2))
    assert reward == pytest.approx(float(law[0, 2]), abs=1e-14)
    state, longer = faces.transition(tokens[0], length[0], jnp.array(2))
    np.testing.assert_array_equal(state, [0, 2, 2, 0])
    assert longer == 3
    with pytest.raises(AssertionError):
        faces.policy(params, tokens, length[0])
    with pytest.raises(AssertionError):
        faces.transition(tokens, length, jnp.array(2))


@pytest.mark.slow
def test_half_precision_stops_at_the_logits():
    """The log-probs and soft values of a bfloat16 model are float32 and normalised as such."""

    def apply(params: Array, tokens: Array, *, valid: Array | None = None) -> Array:
        del valid
        return jnp.broadcast_to(params, (*tokens.shape, 8))

    lm = LanguageModel(init=lambda key: jax.random.normal(key, (8,), jnp.bfloat16), apply=apply)
    params = lm.init(jax.random.key(0)).at[3].set(-jnp.inf)
    tokens, length = jnp.zeros((2, 3), int), jnp.array([1, 2])
    law = documents.interface(lm).policy(params, tokens, length)
    levels = documents.prefix_log_probs(lm, params, vocab_size=8, max_length=2)
    for log_probs in (law, *levels):
        assert log_probs.dtype == jnp.float32
        assert np.all(np.isfinite(log_probs))
        np.testing.assert_allclose(np.exp(log_probs).sum(axis=-1), 1.0, atol=1e-6)
        np.testing.assert_array_equal(np.exp(log_probs)[:, 3], 0.0)
