"""SMC and weighted decoding against enumeration, with exact, wrong and forbidding twists."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from shatter import documents
from shatter.inference import (
    effective_sample_size,
    exact_twist,
    log_evidence,
    smc,
    weighted_decoding,
)
from shatter.models import tabular
from shatter.numerics import LOG_ZERO

V, L, BETA = 3, 3, 0.7
PROMPT = (2, 0)  # holds the EOS of the tests, which ends nothing there
P = len(PROMPT)
LM = tabular(vocab_size=V, max_length=P - 1 + L, num_prompts=V)
PARAMS = np.random.default_rng(4).standard_normal(jax.eval_shape(LM.init, jax.random.key(0)).shape)
PLACES = np.array([0.0, 0.0, 1.3, 2.9, 0.7])  # how much a token counts at each position
both_ends = pytest.mark.parametrize("eos", [None, 0])
one_end = pytest.mark.parametrize("eos", [pytest.param(None, marks=pytest.mark.slow), 0])


def reward(code):
    """Returns the reward of a document from its code."""
    return 1.5 * np.cos(2.1 * code)


def guess(code):
    """Returns log psi of an unfinished document, which has no relation to its rewards."""
    return 1.5 * np.sin(4.1 * code)


def wrong_twist(eos: int | None):
    """Returns a twist that is right only at the end of documents."""

    def of_one(tokens, length):
        places, actions = jnp.asarray(PLACES), jnp.arange(V)
        so_far = jnp.sum(jnp.where(jnp.arange(P + L) < length, (tokens + 1) * places, 0.0))
        code = so_far + (actions + 1) * places[length]
        ends = (length == P + L - 1) | (actions == (-1 if eos is None else eos))
        return jnp.where(ends, 1.5 * jnp.cos(2.1 * code) / BETA, 1.5 * jnp.sin(4.1 * code))

    return jax.vmap(of_one, in_axes=(0, None))


def forbidding_twist(tokens, length):
    """A twist that forbids token 2 at every step, so that a weight of zero must stay zero."""
    del length
    return jnp.tile(jnp.where(jnp.arange(V) == 2, -jnp.inf, 0.0), (tokens.shape[0], 1))


class Space(NamedTuple):
    """Every response and its log-probs, in plain NumPy."""

    rows: np.ndarray  # int [D, P + L]
    log_p0: np.ndarray
    log_z: float
    log_target: np.ndarray
    log_decoded: np.ndarray  # of decoding by the wrong twist


@functools.cache
def make_space(eos: int | None) -> Space:
    with jax.enable_x64(True):
        run = jax.jit(
            lambda params: documents.prefix_log_probs(
                LM, params, vocab_size=V, max_length=L, prompt=PROMPT
            )
        )
        levels = jax.tree.map(np.asarray, run(PARAMS))
        rows, _ = documents.enumerate_documents(vocab_size=V, max_length=L, prompt=PROMPT, eos=eos)
    code = lambda s: sum((token + 1) * PLACES[P + t] for t, token in enumerate(s))
    ended = lambda s: len(s) == L or s[-1] == eos
    log_psi = lambda s: reward(code(s)) / BETA if ended(s) else guess(code(s))
    log_p0, log_joint, log_decoded = [], [], []
    for response in np.asarray(rows)[:, P:].tolist():
        end = next(t for t in range(1, L + 1) if ended(response[:t]))
        collected = np.zeros(2)
        for t in range(end):
            row = sum(token * V**i for i, token in enumerate(reversed(response[:t])))
            scores = levels[t][row] + [log_psi([*response[:t], a]) for a in range(V)]
            local = scores - np.log(np.exp(scores).sum())
            collected += [levels[t][row, response[t]], local[response[t]]]
        log_p0.append(collected[0])
        log_joint.append(collected[0] + reward(code(response[:end])) / BETA)
        log_decoded.append(collected[1])
    log_z = np.log(np.exp(log_joint).sum())
    return Space(
        np.asarray(rows), np.array(log_p0), log_z, np.array(log_joint) - log_z,
        np.array(log_decoded),
    )  # fmt: skip


def solve(params, eos: int | None):
    """Returns log p0(a | s), V(s) and log pi*(a | s) from the library's soft values."""
    levels = documents.prefix_log_probs(LM, params, vocab_size=V, max_length=L, prompt=PROMPT)
    rewards = []
    for t, level in enumerate(levels):
        states = np.array(list(itertools.product(range(V), repeat=t)), float).reshape(V**t, t)
        code = (states + 1) @ PLACES[P : P + t]
        after = code[:, None] + (np.arange(V) + 1) * PLACES[P + t]
        ends = np.broadcast_to((np.arange(V) == eos) | (t == L - 1), after.shape)
        rewards.append(BETA * level + np.where(ends, reward(after), 0.0))
    values, policy = documents.soft_values(rewards, temperature=BETA, eos=eos)
    return levels, values, policy


def which(space: Space, tokens) -> np.ndarray:
    """Returns the index in the space of documents `[..., P + L]`; each must be there once."""
    same = (np.asarray(tokens)[..., None, :] == space.rows).all(-1)
    assert (same.sum(-1) == 1).all()
    return same.argmax(-1)


def assert_frequencies(counts: np.ndarray, law: np.ndarray) -> None:
    """Every document is within 4 standard errors of its law."""
    total = counts.sum()
    assert (np.abs(counts - total * law) <= 4 * np.sqrt(total * law * (1 - law))).all()


@pytest.mark.slow
@both_ends
def test_exact_twist(float64: None, eos: int | None):
    """All weights are Z for any draw, and decoding without weights has the law p*."""
    space = make_space(eos)

    @jax.jit
    def run(params, key):
        twist = exact_twist(*solve(params, eos), beta=BETA, prompt_length=P)
        smc_key, never_key, key = jax.random.split(key, 3)
        common = {"twist": twist, "max_length": L, "eos": eos}
        prompt = jnp.array(PROMPT)
        return (
            smc(LM, params, smc_key, prompt, num_particles=50, **common),
            smc(LM, params, never_key, prompt, num_particles=50, resample_below=0.0, **common),
            weighted_decoding(LM, params, key, prompt, num_samples=20_000, **common),
        )

    *clouds, samples = jax.tree.map(np.asarray, run(PARAMS, jax.random.key(0)))
    for particles in clouds:
        np.testing.assert_allclose(particles.log_weights, space.log_z, atol=1e-12)
        assert particles.log_evidence == pytest.approx(space.log_z, abs=1e-12)
        assert particles.effective_sample_size == pytest.approx(50.0, abs=1e-10)
        assert particles.num_resamplings == 0
    place = which(space, samples.tokens)
    np.testing.assert_allclose(samples.log_probs, space.log_target[place], atol=1e-12)
    np.testing.assert_allclose(samples.raw_log_probs, space.log_p0[place], atol=1e-12)
    assert_frequencies(np.bincount(place, minlength=len(space.rows)), np.exp(space.log_target))
    assert np.abs(np.exp(space.log_target) - np.exp(space.log_p0)).sum() > 0.2


NUM_RUNS, NUM_PARTICLES = 3_000, 6


@functools.cache
def many_runs(eos: int | None, twisted: bool):
    """Returns runs with the wrong twist, without resampling and with, `[2, NUM_RUNS, ...]`."""

    @jax.jit
    def run(params, keys, resample_below):
        one = lambda key, share: smc(
            LM,
            params,
            key,
            jnp.array(PROMPT),
            twist=wrong_twist(eos),
            num_particles=NUM_PARTICLES,
            max_length=L,
            eos=eos,
            twisted_proposal=twisted,
            resample_below=share,
        )
        lifted = jax.vmap(one, in_axes=(0, None))
        return jax.vmap(lifted, in_axes=(0, 0))(keys, resample_below)

    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(5), (2, NUM_RUNS))
        return jax.tree.map(np.asarray, run(PARAMS, keys, jnp.array([0.0, 0.9])))


both_proposals = pytest.mark.parametrize("twisted", [True, False])


@pytest.mark.slow
@both_ends
@both_proposals
def test_any_twist_leaves_the_evidence_unbiased(eos: int | None, twisted: bool):
    """The mean of Z_hat over 3,000 keys is within 4 standard errors of Z, resampled or not."""
    space, particles = make_space(eos), many_runs(eos, twisted)
    z_hat = np.exp(particles.log_evidence)
    error = z_hat.std(axis=1) / NUM_RUNS**0.5
    assert (np.abs(z_hat.mean(axis=1) - np.exp(space.log_z)) <= 4 * error).all()
    assert (error > 1e-3).all() and (error < 0.1 * np.exp(space.log_z)).all()
    assert (particles.num_resamplings[0] == 0).all()
    assert particles.num_resamplings[1].mean() > 0.5


@pytest.mark.slow
@both_ends
@both_proposals
def test_weighted_particles_have_the_law_of_the_target(eos: int | None, twisted: bool):
    """E mean_i w_i 1[x_i = x] = Z p*(x) for every document, within 4 standard errors; the particles
    without their weights have another law.
    """
    space, particles = make_space(eos), many_runs(eos, twisted)
    target = np.exp(space.log_target + space.log_z)
    is_document = which(space, particles.tokens)[..., None] == np.arange(len(space.rows))
    found = (np.exp(particles.log_weights)[..., None] * is_document).mean(axis=2)
    error = found.std(axis=1) / NUM_RUNS**0.5
    assert (np.abs(found.mean(axis=1) - target) <= 4 * error).all()
    unweighted = is_document.mean(axis=(1, 2))
    assert (np.abs(unweighted - np.exp(space.log_target)).sum(axis=1) > 0.1).all()


@pytest.mark.slow
@one_end
def test_what_particles_report(float64: None, eos: int | None):
    particles = many_runs(eos, True)
    evidence, size = jax.jit(lambda x: (log_evidence(x), effective_sample_size(x)))(
        particles.log_weights
    )
    np.testing.assert_allclose(particles.log_evidence, evidence, atol=1e-12)
    np.testing.assert_allclose(particles.effective_sample_size, size, rtol=1e-12)
    responses = particles.tokens[..., P:]
    np.testing.assert_array_equal(particles.tokens[..., :P] - np.array(PROMPT), 0)
    ends = responses == (-1 if eos is None else eos)
    length = np.where(ends.any(-1), ends.argmax(-1) + 1, L)
    np.testing.assert_array_equal(particles.mask[..., P:], np.arange(L) < length[..., None])
    assert not particles.mask[..., :P].any()
    assert set(np.unique(length)) == ({3} if eos is None else {1, 2, 3})


@one_end
def test_decoding_by_a_wrong_twist_has_the_law_of_its_tokens(float64: None, eos: int | None):
    """It is the product of the local laws by enumeration, which is not the posterior."""
    space = make_space(eos)

    @jax.jit
    def run(params, key):
        return weighted_decoding(
            LM,
            params,
            key,
            jnp.array(PROMPT),
            twist=wrong_twist(eos),
            num_samples=20_000,
            max_length=L,
            eos=eos,
        )

    samples = jax.tree.map(np.asarray, run(PARAMS, jax.random.key(2)))
    place = which(space, samples.tokens)
    np.testing.assert_allclose(samples.log_probs, space.log_decoded[place], atol=1e-12)
    np.testing.assert_allclose(samples.raw_log_probs, space.log_p0[place], atol=1e-12)
    law = np.exp(space.log_decoded)
    assert law.sum() == pytest.approx(1.0, abs=1e-12)
    assert_frequencies(np.bincount(place, minlength=len(law)), law)
    assert np.abs(law - np.exp(space.log_target)).sum() > 0.1
    scored = documents.response_mask(samples.tokens, prompt_length=P, eos=eos)
    np.testing.assert_array_equal(samples.mask, scored)


@jax.jit
def forbidden(params, key, extra):
    """Samples p0 given no token 2 with both proposals; `extra` is added to log psi."""
    twist = lambda tokens, length: forbidding_twist(tokens, length) + extra
    common = {"twist": twist, "max_length": L, "eos": 0}
    clouds = []
    for twisted in (True, False):
        one = lambda key, twisted=twisted: smc(
            LM,
            params,
            key,
            jnp.array(PROMPT),
            num_particles=5,
            twisted_proposal=twisted,
            **common,
        )
        clouds.append(jax.vmap(one)(jax.random.split(jax.random.fold_in(key, twisted), 2_000)))
    samples = weighted_decoding(
        LM, params, jax.random.fold_in(key, 2), jnp.array(PROMPT), num_samples=200, **common
    )
    return (*clouds, samples)


@pytest.mark.slow
def test_forbidden_documents_in_float32():
    """Z is p0's mass on the allowed documents; weights of zero stay zero, and nothing is NaN."""
    space = make_space(0)
    allowed = ~(space.rows[:, P:] == 2).any(axis=1)
    z = np.exp(space.log_p0[allowed]).sum()
    params = PARAMS.astype(np.float32)
    *clouds, samples = jax.tree.map(np.asarray, forbidden(params, jax.random.key(0), 0.0))
    for particles in clouds:
        z_hat = np.exp(particles.log_evidence)
        assert abs(z_hat.mean() - z) < 4 * z_hat.std() / 2_000**0.5
        assert 0.1 < z < 0.9
        broken = (particles.tokens[..., P:] == 2).any(axis=-1)
        np.testing.assert_array_equal(particles.log_weights == LOG_ZERO, broken)
        assert np.isfinite(particles.log_weights).all()
    twisted, plain = clouds
    assert not (twisted.tokens[..., P:] == 2).any()
    assert (plain.tokens[..., P:] == 2).any()
    assert not (samples.tokens[..., P:] == 2).any()
    assert np.isfinite(samples.log_probs).all() and np.isfinite(samples.raw_log_probs).all()


@pytest.mark.slow
def test_nothing_allowed():
    """All weights are zero, and everything is finite."""
    params = PARAMS.astype(np.float32)
    found = jax.tree.map(np.asarray, forbidden(params, jax.random.key(0), -np.inf))
    for particles in found[:2]:
        np.testing.assert_array_equal(particles.log_weights, np.float32(LOG_ZERO))
        np.testing.assert_array_equal(particles.log_evidence, np.float32(LOG_ZERO))
        np.testing.assert_array_equal(particles.effective_sample_size, 0.0)
    assert np.isfinite(found[2].log_probs).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "number", "message"),
    [
        (smc, "num_particles", "no sample has mass: all 4 weights are zero"),
        (weighted_decoding, "num_samples", "every next token of sample 0 after 0 tokens"),
    ],
)
def test_checkify_finds_what_cannot_be_drawn(function, number: str, message: str):
    @jax.jit
    @checkify.checkify
    def checked(params, extra):
        return function(
            LM,
            params,
            jax.random.key(0),
            jnp.array(PROMPT),
            twist=lambda tokens, length: forbidding_twist(tokens, length) + extra,
            max_length=L,
            **{number: 4},
        )

    params = PARAMS.astype(np.float32)
    checked(params, np.float32(0.0))[0].throw()
    with pytest.raises(checkify.JaxRuntimeError, match=message):
        checked(params, np.float32(-np.inf))[0].throw()
    for bad in (np.nan, np.inf):
        with pytest.raises(checkify.JaxRuntimeError, match=r"log twists hold a NaN or \+inf"):
            checked(params, np.float32(bad))[0].throw()


@pytest.mark.slow
def test_exact_twist_where_p0_is_zero(float64: None):
    """A token that p0 never draws leaves the weights at Z, and nothing is NaN."""

    @jax.jit
    def run(params, key):
        params = params.at[..., 1].set(-jnp.inf)
        levels, values, policy = solve(params, 0)
        levels = [level.at[:, 1].set(-jnp.inf) for level in levels]  # as a user may write it
        twist = exact_twist(levels, values, policy, beta=BETA, prompt_length=P)
        particles = smc(
            LM, params, key, jnp.array(PROMPT), twist=twist, num_particles=40, max_length=L, eos=0
        )
        return particles, values[0][0] / BETA

    particles, log_z = jax.tree.map(np.asarray, run(jnp.array(PARAMS), jax.random.key(1)))
    np.testing.assert_allclose(particles.log_weights, log_z, atol=1e-12)
    assert not (particles.tokens[:, P:] == 1).any()
    assert len(np.unique(particles.tokens, axis=0)) > 2


def call(function=smc, prompt=PROMPT, twist=forbidding_twist, number=4, length=L, eos=None):
    name = {smc: "num_particles", weighted_decoding: "num_samples"}[function]
    return jax.eval_shape(
        lambda params, key: function(
            LM,
            params,
            key,
            jnp.array(prompt),
            twist=twist,
            max_length=length,
            eos=eos,
            **{name: number},
        ),
        PARAMS,
        jax.random.key(0),
    )


@pytest.mark.parametrize("function", [smc, weighted_decoding])
def test_wrong_arguments_raise(function):
    assert call(function).tokens.shape == (4, P + L)
    for wrong in ({"number": 0}, {"length": 0}, {"prompt": np.zeros(0, int)}):
        with pytest.raises(ValueError, match="expected at least one document"):
            call(function, **wrong)
    for eos in (-1, V):
        with pytest.raises(ValueError, match=f"0 <= eos < {V}, found {eos}"):
            call(function, eos=eos)
    for prompt in ([PROMPT], (0.0, 1.0)):
        with pytest.raises(AssertionError):
            call(function, prompt=prompt)
    for wrong_shape in (lambda x, _: jnp.zeros(4), lambda x, _: jnp.zeros((4, V), int)):
        with pytest.raises(AssertionError):
            call(function, twist=wrong_shape)


def test_tables_of_an_exact_twist_must_fit():
    levels, values = [jnp.zeros((V**t, V)) for t in range(L)], [jnp.zeros(V**t) for t in range(L)]
    twist = exact_twist(levels, values, levels, prompt_length=P)
    assert jax.eval_shape(twist, jnp.zeros((4, P + L), int), jnp.array(P)).shape == (4, V)
    with pytest.raises(AssertionError):
        twist(jnp.zeros((4, P + L - 1), int), jnp.array(P))
    with pytest.raises(AssertionError):
        exact_twist(levels, values[::-1], levels, prompt_length=P)
    with pytest.raises(ValueError, match="shorter"):
        exact_twist(levels, values[:2], levels, prompt_length=P)


@pytest.mark.parametrize("function", [smc, weighted_decoding])
def test_a_response_of_l_tokens_after_p_needs_p_plus_l_minus_1_positions(function):
    """Nothing is predicted after the last token, so a model with that many positions suffices."""
    seen = []

    def apply(params, tokens, *, valid=None):
        seen.append(tokens.shape[1])
        return LM.apply(params, tokens)

    number = {"num_particles" if function is smc else "num_samples": 4}
    jax.eval_shape(
        functools.partial(
            function, LM._replace(apply=apply), twist=forbidding_twist, max_length=L, **number
        ),
        PARAMS,
        jax.random.key(0),
        jnp.array(PROMPT),
    )
    assert max(seen) == P + L - 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_a_model_of_another_type_than_the_default_float(float64, dtype):
    particles = jax.eval_shape(
        functools.partial(smc, LM, twist=forbidding_twist, num_particles=4, max_length=L),
        jnp.asarray(PARAMS, dtype),
        jax.random.key(0),
        jnp.array(PROMPT),
    )
    assert particles.log_weights.dtype == jnp.float64
