"""Rollouts against replays, the law they claim, full passes, the other driver; what is trained."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.documents import sampling_logits, token_log_probs
from shatter.environments import (
    Tokens,
    as_tokens,
    host_rollout,
    host_scripted_rollout,
    on_host,
    rollout,
    scripted_rollout,
)
from shatter.losses import reinforce_loss, sft_loss
from shatter.numerics import masked_sum
from tests.environments.worlds import (
    ECHO,
    END,
    LIMITS,
    MODELS,
    V,
    actions,
    assert_equal_transcripts,
    check_transcript,
    jitted,
    make_params,
    reset,
    row,
    step,
    uncached,
)

pytestmark = pytest.mark.slow

every_model = pytest.mark.parametrize("kind", list(MODELS))
PARAMS = {kind: make_params(lm) for kind, lm in MODELS.items()}
KEYS = jax.random.split(jax.random.key(3), 64)


def drawn(kind="tabular", keys=KEYS, cached=True, environment=ECHO, limits=None, **filters):
    lm = MODELS[kind] if cached else uncached(MODELS[kind])

    @jax.jit
    def run(params, keys):
        draw = lambda key: rollout(lm, params, key, environment, **(limits or LIMITS), **filters)
        return jax.vmap(draw)(keys)

    return run(PARAMS[kind], keys)


some = functools.cache(drawn)
fast_step = jax.jit(step)


@pytest.mark.parametrize("kind", ["tabular", "transformer"])
def test_transcripts_are_what_the_environment_says_to_the_actions(kind: str):
    """A replay of the actions rebuilds every token, reward and flag."""
    transcripts = some(kind)
    ended = set()
    for i, key in enumerate(KEYS[:24]):
        transcript = row(transcripts, i)
        check_transcript(transcript, max_action_length=3, end_of_action=END)
        state, observation = reset(jax.random.split(key)[0])
        document, done = [], False
        for turn, action in enumerate(actions(transcript)):
            document += observation.tokens[: int(observation.length)].tolist() + action
            text = as_tokens(action, size=LIMITS["max_action_length"])
            state, observation, reward, done = fast_step(state, text)
            assert transcript.rewards[turn] == reward
            cut = action[-1] != END
            assert transcript.is_invalid[turn] == (cut or bool(state.is_invalid))
        assert document == transcript.tokens[: int(transcript.valid.sum())].tolist()
        assert bool(transcript.done) == bool(done)
        room = LIMITS["max_length"] - len(document)
        no_turn_fits = int(observation.length) + LIMITS["max_action_length"] > room
        over = int(transcript.num_turns) == LIMITS["max_turns"]
        assert done or over or no_turn_fits
        ended |= {"done" if done else "over" if over else "no room"}
    assert {"over", "no room"} <= ended


@pytest.mark.parametrize(
    ("kind", "filters"),
    [
        ("tabular", {}),
        ("transformer", {}),
        ("transformer", {"temperature": 0.6, "top_k": 3, "top_p": 0.8}),
    ],
    ids=str,
)
def test_one_full_pass_scores_actions_as_recorded(kind: str, filters: dict):
    transcripts = some(kind, **filters)
    logits = sampling_logits(MODELS[kind].apply(PARAMS[kind], transcripts.tokens), **filters)
    scores = token_log_probs(logits, transcripts.tokens)
    scores = jnp.where(transcripts.is_action, scores, 0.0)
    assert float(jnp.min(scores)) < -0.5
    np.testing.assert_allclose(transcripts.log_probs, scores, atol=2e-6)


@pytest.mark.parametrize("filters", [{}, {"top_k": 1}], ids=str)
def test_a_cache_changes_nothing(filters: dict):
    cached, full = (some("transformer", cached=cached, **filters) for cached in (True, False))
    assert_equal_transcripts(cached, full, tolerance=2e-6)
    assert bool(jnp.all(cached.log_probs == 0)) == ("top_k" in filters)


@pytest.mark.parametrize(
    ("kind", "cached", "filters"),
    [
        ("tabular", True, {}),
        ("transformer", True, {}),
        ("transformer", False, {}),
        ("transformer", True, {"top_k": 1}),
    ],
    ids=str,
)
def test_the_host_drives_to_the_same_transcript(kind: str, cached: bool, filters: dict):
    lm = jitted(MODELS[kind] if cached else uncached(MODELS[kind]))
    environment = on_host(ECHO._replace(step=fast_step), max_action_length=3)
    inside = some(kind, cached=cached, **filters)
    for i, key in enumerate(KEYS[:3]):
        driven = host_rollout(lm, PARAMS[kind], key, environment, **LIMITS, **filters)
        assert_equal_transcripts(driven, row(inside, i), tolerance=2e-6)


def test_the_host_drives_a_script_to_the_same_transcript():
    def expert(key, state):
        tokens = jax.random.randint(key, (2,), 0, 3, int)
        return Tokens(tokens, 1 + state.num_steps % 2)

    host_expert = lambda key, state: expert(key, state).tokens[: 1 + int(state.num_steps) % 2]
    environment = on_host(ECHO._replace(step=fast_step), max_action_length=3)
    run = jax.jit(lambda key: scripted_rollout(expert, key, ECHO, **LIMITS))
    for key in KEYS[:3]:
        inside = run(key)
        assert_equal_transcripts(
            host_scripted_rollout(host_expert, key, environment, **LIMITS), inside
        )
        assert [len(action) for action in actions(inside)][:2] == [2, 3]  # with the ends added


def test_vmap_is_a_loop():
    transcripts = some("transformer")
    lm, params = MODELS["transformer"], PARAMS["transformer"]
    one = jax.jit(lambda key: rollout(lm, params, key, ECHO, **LIMITS))
    for i in range(5):
        assert_equal_transcripts(one(KEYS[i]), row(transcripts, i), tolerance=2e-6)


def test_frequencies_are_those_of_the_recorded_log_probs():
    """Given the prompt, a transcript has the probability of its actions: exp of their sum."""
    num = 20_000
    limits = LIMITS | {"max_action_length": 2}
    transcripts = drawn(keys=jax.random.split(jax.random.key(8), num), limits=limits)
    tokens, totals = np.asarray(transcripts.tokens), np.asarray(transcripts.log_probs.sum(1))
    counts = collections.Counter(map(bytes, tokens))
    log_probs = dict(zip(map(bytes, tokens), totals, strict=True))
    expected = {name: num / 2 * np.exp(log_probs[name]) for name in counts}
    often = [name for name in counts if expected[name] >= 10]
    assert len(often) > 100
    chi2 = sum((counts[name] - expected[name]) ** 2 / expected[name] for name in often)
    assert abs(chi2 - len(often)) < 4 * np.sqrt(2 * len(often))
    assert sum(expected.values()) == pytest.approx(num, rel=0.02)


def test_actions_that_never_end_are_cut_and_counted():
    never = lambda key, state: Tokens(jnp.ones(9, int), jnp.asarray(9))
    limits = LIMITS | {"max_length": 20, "max_turns": 3}
    transcript = scripted_rollout(never, KEYS[0], ECHO, **limits)
    assert actions(transcript) == [[1, 1, 1]] * 3
    assert transcript.num_invalid == transcript.num_turns == 3
    assert not transcript.done
    assert transcript.tokens[1:13].tolist() == [1] * 12  # the answers to the first two are read
    assert transcript.is_action[1:16].tolist() == [True] * 3 + ([False] * 3 + [True] * 3) * 2


def test_an_episode_ends_where_no_further_turn_fits():
    says_one = lambda key, state: as_tokens([1, END])
    for max_length, num_turns in ((6, 1), (7, 2), (9, 2), (10, 3)):
        limits = LIMITS | {"max_length": max_length, "max_turns": 3}
        transcript = scripted_rollout(says_one, KEYS[0], ECHO, **limits)
        assert transcript.num_turns == num_turns
        assert not transcript.done


def test_an_observation_may_be_empty_or_longer_than_the_prompt():
    def quiet(state, action):
        state, _, reward, done = step(state, action)
        return state, Tokens(jnp.ones(5, int), 5 * (state.num_steps % 2)), reward, done

    says_one = lambda key, state: as_tokens([1, END])
    limits = LIMITS | {"max_length": 20, "max_turns": 4}
    transcript = scripted_rollout(says_one, KEYS[0], ECHO._replace(step=quiet), **limits)
    said = [1, END, 1, 1, 1, 1, 1, 1, END]
    assert transcript.tokens[1:19].tolist() == said + said
    assert transcript.turns[:19].tolist() == [0] * 3 + [1] * 7 + [2] * 2 + [3] * 7


def test_nothing_is_computed_once_all_lanes_have_ended():
    calls = []

    def expert(key, state):
        jax.debug.callback(lambda: calls.append(1))
        return as_tokens([END])

    run = lambda key: scripted_rollout(expert, key, ECHO, **LIMITS | {"max_length": 50})
    transcripts = jax.vmap(run)(KEYS[:4])
    jax.effects_barrier()
    assert transcripts.valid.sum(1).tolist() == [2] * 4
    assert len(calls) <= 2 * 4


@every_model
def test_types_hold_in_double_and_half_precision(kind: str, float64):
    lm = MODELS[kind]
    for dtype in (jnp.float64, jnp.bfloat16):
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), PARAMS[kind])  # noqa: B023
        run = lambda key: rollout(lm, params, key, ECHO, **LIMITS)  # noqa: B023
        shapes = jax.eval_shape(run, KEYS[0])
        assert shapes.tokens.dtype == jnp.int64
        assert shapes.log_probs.dtype == shapes.rewards.dtype == jnp.float64


def test_no_gradient_comes_from_what_the_environment_says():
    """Neither the loss nor its gradient sees the log-probs of tokens that were not written."""
    transcripts = some("tabular")
    rewards = transcripts.rewards.sum(1)
    observed = transcripts.valid & ~transcripts.is_action
    scores = token_log_probs(
        MODELS["tabular"].apply(PARAMS["tabular"], transcripts.tokens), transcripts.tokens
    )

    def loss(scores):
        score = masked_sum(scores, transcripts.is_action)
        return jnp.mean(reinforce_loss(score, rewards) + sft_loss(scores, transcripts.is_action))

    changed = jnp.where(observed, -7.0, scores)
    (value, gradient), (other_value, other) = (
        jax.value_and_grad(loss)(given) for given in (scores, changed)
    )
    assert value == other_value
    np.testing.assert_array_equal(gradient, other)
    assert not jnp.any(jnp.where(transcripts.is_action, 0.0, gradient))
    assert jnp.all(jnp.where(transcripts.is_action, gradient, 1.0) != 0)


def test_laws_of_tool_tokens_are_not_trained(float64):
    """In a table, every prefix has its own logits: those before a tool's token stay as they are."""
    lm, params = MODELS["tabular"], jnp.asarray(PARAMS["tabular"], float)
    transcripts = jax.tree.map(lambda leaf: leaf[:20], some("tabular"))
    tokens, written = transcripts.tokens, transcripts.is_action
    observed = transcripts.valid & ~written & (jnp.arange(tokens.shape[1]) > 0)[None]

    @jax.jit
    def gradient(params, mask):
        total = lambda params: jnp.sum(
            masked_sum(token_log_probs(lm.apply(params, tokens), tokens), mask)
        )
        return jax.grad(total)(params)

    before_tool = gradient(params, observed) != 0
    trained = gradient(params, written)
    assert before_tool.any()
    assert not jnp.any(jnp.where(before_tool, trained, 0.0))
    np.testing.assert_array_equal(gradient(params + before_tool, written), trained)
    other = params + jnp.where(trained != 0, jnp.arange(V)[None, None], 0)
    assert jnp.any(gradient(other, written) != trained)
