"""Samples against the exact law, with and without a cache, padding and temperature."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from shatter import documents
from shatter.documents import Samples, log_prob, pad_prompts, sample, sampling_logits
from shatter.models import TransformerConfig, transformer
from tests.documents.samplers import EOS, MODELS, PROMPT, L, V, every_model, make_params, small

every_law = pytest.mark.parametrize(
    ("kind", "temperature"), [("tabular", 1.0), ("tabular", 0.7), ("transformer", 0.7)]
)


score = jax.jit(log_prob)


Filters = tuple[tuple[str, float], ...]
every_filter = pytest.mark.parametrize(
    "filters",
    [
        (("top_k", 2),),
        (("top_p", 0.75),),
        (("min_p", 0.3),),
        (("top_k", 2), ("top_p", 0.9), ("min_p", 0.1)),
    ],
    ids=str,
)


@functools.cache
def drawn(
    kind: str, temperature: float, cached: bool = True, filters: Filters = ()
) -> tuple[Samples, np.ndarray]:
    """Returns 20,000 samples in float64, and the logits of their documents."""
    lm = MODELS[kind] if cached else MODELS[kind]._replace(init_cache=None, decode=None)

    @jax.jit
    def run(params, key):
        samples = sample(
            lm,
            params,
            key,
            jnp.array(PROMPT),
            num_samples=20_000,
            max_length=L,
            temperature=temperature,
            eos=EOS,
            **dict(filters),
        )
        return samples, lm.apply(params, samples.tokens)

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, run(make_params(lm), jax.random.key(7)))


@functools.cache
def space() -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens and the mask of all documents."""
    tokens, mask = documents.enumerate_documents(vocab_size=V, max_length=L, prompt=PROMPT, eos=EOS)
    return np.asarray(tokens), np.asarray(mask)


@functools.cache
def compiled_law(kind: str, filters: Filters):
    """Returns `(params, temperature) -> log-probs` of all documents, compiled once."""
    tokens, mask = space()

    @jax.jit
    def run(params, temperature):
        logits = MODELS[kind].apply(params, tokens)
        law = sampling_logits(logits, temperature=temperature, **dict(filters))
        return log_prob(law, tokens, mask)

    return run


def exact_law(kind: str, temperature: float, filters: Filters = ()) -> dict[tuple[int, ...], float]:
    """Returns every document's probability if each token's logits are tempered and filtered."""
    with jax.enable_x64(True):
        probs = np.exp(compiled_law(kind, filters)(make_params(MODELS[kind]), temperature))
    return dict(zip(map(tuple, space()[0].tolist()), probs.tolist(), strict=True))


@pytest.mark.slow
@every_law
def test_frequencies_are_those_of_the_law(kind: str, temperature: float):
    """Chi-square over all 15 documents, 20,000 samples of one seed, bounded by 36.1: its quantile
    0.999 at 14 degrees of freedom. The law at the other temperature would be refused by far.
    """
    samples, _ = drawn(kind, temperature)
    assert len(exact_law(kind, temperature)) == 15
    assert chi_square(samples, exact_law(kind, temperature)) < 36.1
    assert chi_square(samples, exact_law(kind, 1.7 - temperature)) > 150.0


def chi_square(samples: Samples, law: dict[tuple[int, ...], float]) -> float:
    """Returns the statistic of drawn documents, all of which must be possible."""
    rows, counts = np.unique(samples.tokens, axis=0, return_counts=True)
    observed = dict(zip(map(tuple, rows.tolist()), counts.tolist(), strict=True))
    possible = {document: p for document, p in law.items() if p > 0}
    assert set(observed) <= set(possible)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    return sum(
        (observed.get(document, 0) - 20_000 * p) ** 2 / (20_000 * p)
        for document, p in possible.items()
    )


@pytest.mark.slow
@every_filter
def test_filters(filters: Filters):
    """At temperature 0.7, frequencies and log-probs are those of the filtered law."""
    samples, logits = drawn("tabular", 0.7, filters=filters)
    law = exact_law("tabular", 0.7, filters)
    assert 3 <= sum(p > 0 for p in law.values()) < 15
    assert chi_square(samples, law) < 36.1
    assert chi_square(samples, exact_law("tabular", 0.7)) > 150.0
    with jax.enable_x64(True):
        filtered = sampling_logits(jnp.array(logits), temperature=0.7, **dict(filters))
        exact = score(filtered, samples.tokens, samples.mask)
        raw = score(jnp.array(logits), samples.tokens, samples.mask)
    np.testing.assert_allclose(samples.log_probs, exact, atol=1e-12)
    np.testing.assert_allclose(samples.raw_log_probs, raw, atol=1e-12)
    assert np.all(np.abs(samples.log_probs - samples.raw_log_probs) > 1e-6)


@every_law
def test_log_probs_are_those_of_scoring(kind: str, temperature: float):
    """Under the law that tokens were drawn from, and under the model itself."""
    samples, logits = drawn(kind, temperature)
    with jax.enable_x64(True):
        tempered = score(jnp.array(logits / temperature), samples.tokens, samples.mask)
        raw = score(jnp.array(logits), samples.tokens, samples.mask)
    np.testing.assert_allclose(samples.log_probs, tempered, atol=1e-12)
    np.testing.assert_allclose(samples.raw_log_probs, raw, atol=1e-12)
    if temperature == 1.0:
        np.testing.assert_array_equal(samples.log_probs, samples.raw_log_probs)
    else:
        assert np.abs(samples.log_probs - samples.raw_log_probs).max() > 0.1


@every_model
def test_one_eos_and_nothing_after_it(kind: str):
    samples, _ = drawn(kind, 0.7)
    np.testing.assert_array_equal(samples.tokens[:, :2], np.tile(PROMPT, (20_000, 1)))
    assert not np.any(samples.mask[:, :2])
    responses, mask = samples.tokens[:, 2:], samples.mask[:, 2:]
    ends = responses == EOS
    length = np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, L)
    np.testing.assert_array_equal(mask, np.arange(L) < length[:, None])
    np.testing.assert_array_equal((ends & mask).sum(axis=1), ends.any(axis=1))
    np.testing.assert_array_equal(responses[~mask], EOS)
    assert set(length) == {1, 2, 3}
    assert 0.05 < np.mean(~ends.any(axis=1)) < 0.95


@pytest.mark.slow
def test_cache_and_full_forward_pass_draw_the_same():
    """The same key gives the same tokens with the cache and without."""
    with_cache, _ = drawn("transformer", 0.7)
    without, _ = drawn("transformer", 0.7, cached=False)
    np.testing.assert_array_equal(with_cache.tokens, without.tokens)
    np.testing.assert_allclose(with_cache.log_probs, without.log_probs, atol=1e-12)
    np.testing.assert_allclose(with_cache.raw_log_probs, without.raw_log_probs, atol=1e-12)


PROMPTS = [(2, 0, 1), (0,), (1, 2)]


@pytest.mark.slow
@every_model
def test_padded_prompts(float64: None, kind: str):
    """With padding on the left or right, of any id: tokens and log-probs as without padding."""
    lm = MODELS[kind]
    params = make_params(lm)

    @jax.jit
    def run(prompts, valid):
        samples = sample(
            lm,
            params,
            jax.random.key(3),
            prompts,
            num_samples=50,
            max_length=2,
            temperature=0.7,
            valid=valid,
        )
        valid = jnp.concatenate([valid, jnp.ones((3, 2), bool)], axis=1)
        valid = jnp.repeat(valid[:, None], 50, axis=1)
        logits = lm.apply(params, samples.tokens, valid=valid)
        scored = [log_prob(x, samples.tokens, samples.mask) for x in (logits / 0.7, logits)]
        return samples, scored

    score_model = jax.jit(lambda tokens, mask: log_prob(lm.apply(params, tokens), tokens, mask))
    found = {}
    for side, fill in [("left", 0), ("right", -100)]:
        prompts, valid = np.full((3, 3), fill), np.zeros((3, 3), bool)
        for i, prompt in enumerate(PROMPTS):
            columns = slice(3 - len(prompt), 3) if side == "left" else slice(len(prompt))
            prompts[i, columns], valid[i, columns] = prompt, True
        found[side], scored = run(jnp.array(prompts), jnp.array(valid))
        np.testing.assert_array_equal(
            found[side].tokens[:, :, :3], np.repeat(prompts[:, None], 50, axis=1)
        )
        # Scored again with the padding in place.
        np.testing.assert_allclose(found[side].log_probs, scored[0], atol=1e-12)
        np.testing.assert_allclose(found[side].raw_log_probs, scored[1], atol=1e-12)
    np.testing.assert_array_equal(found["left"].tokens[..., 3:], found["right"].tokens[..., 3:])
    np.testing.assert_allclose(found["left"].log_probs, found["right"].log_probs, atol=1e-12)
    # Scored again without padding of the prompt; what comes after the response does not matter.
    for i, prompt in enumerate(PROMPTS):
        responses = np.asarray(found["left"].tokens)[i, :, 3:]
        start, rest = len(prompt), 3 - len(prompt)
        tokens = np.hstack([np.tile(prompt, (50, 1)), responses, np.zeros((50, rest), int)])
        mask = np.broadcast_to((np.arange(5) >= start) & (np.arange(5) < start + 2), tokens.shape)
        exact = score_model(jnp.array(tokens), jnp.array(mask))
        np.testing.assert_allclose(found["left"].raw_log_probs[i], exact, atol=1e-12)
        assert len(np.unique(responses, axis=0)) > 2


CASES = [
    {"temperature": 0.7, "top_k": 2, "top_p": 0.9, "min_p": 0.01},
    {"num_samples": 1, "valid": False, "eos": (1, 2)},
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_shared_prefill_and_full_forward_pass(float64: None, case: dict):
    """Prompts of different lengths are read once for all responses, or at every token."""
    prompts, valid = pad_prompts(PROMPTS)
    given = {"prompt": prompts, "num_samples": 5, "max_length": 3, "valid": jnp.array(valid)} | case
    given["valid"] = None if given["valid"] is False else given["valid"]
    lm = MODELS["transformer"]
    models = [lm, lm._replace(init_cache=None, decode=None)]
    shared, uncached = (jax.jit(lambda lm=m: small(lm=lm, **given))() for m in models)
    np.testing.assert_array_equal(shared.tokens, uncached.tokens)
    np.testing.assert_allclose(shared.log_probs, uncached.log_probs, atol=1e-12)
    np.testing.assert_allclose(shared.raw_log_probs, uncached.raw_log_probs, atol=1e-12)
    assert len(np.unique(np.asarray(shared.tokens)[..., 3:].reshape(-1, given["max_length"]))) > 1


@pytest.mark.slow
def test_the_plain_loop():
    """Token t of all rows is drawn by `jax.random.categorical` with the key folded with t."""
    lm, key, prompts = MODELS["transformer"], jax.random.key(11), jnp.array([[2, 0], [1, 1]])
    params = make_params(lm)
    found = jax.jit(lambda p: small(key, prompts, lm, p, max_length=4))(params)
    tokens = jnp.pad(jnp.repeat(prompts, 4, axis=0), ((0, 0), (0, 4)))
    apply = jax.jit(lm.apply)
    for t in range(4):
        logits = apply(params, tokens)[:, 1 + t]
        tokens = tokens.at[:, 2 + t].set(jax.random.categorical(jax.random.fold_in(key, t), logits))
    np.testing.assert_array_equal(found.tokens.reshape(8, 6), tokens)


@pytest.mark.slow
def test_greedy_is_the_argmax():
    lm = MODELS["transformer"]
    params = make_params(lm)
    run = jax.jit(lambda key, t: small(key, [[2, 0], [1, 1]], lm, params, top_k=1, max_length=4,
                                       temperature=t))  # fmt: skip
    found, other = run(jax.random.key(0), 1.0), run(jax.random.key(1), 3.0)
    np.testing.assert_array_equal(found.tokens, other.tokens)
    logits = jax.jit(lm.apply)(params, found.tokens)
    np.testing.assert_array_equal(found.tokens[..., 2:], jnp.argmax(logits, -1)[..., 1:-1])
    np.testing.assert_array_equal(found.log_probs, 0.0)
    np.testing.assert_allclose(
        found.raw_log_probs, log_prob(logits, found.tokens, found.mask), rtol=1e-5
    )


def test_several_tokens_may_end_a_response():
    """The draws are those with one EOS until the other one ends a response; the first id fills."""
    run = jax.jit(small, static_argnames=("lm", "eos", "num_samples", "max_length"))
    one, two = (run(num_samples=200, max_length=3, eos=eos) for eos in (1, (1, 2)))
    responses, mask = np.asarray(two.tokens)[:, 1:], np.asarray(two.mask)[:, 1:]
    ends = (responses == 1) | (responses == 2)
    length = np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, 3)
    np.testing.assert_array_equal(mask, np.arange(3) < length[:, None])
    np.testing.assert_array_equal(responses[~mask], 1)
    np.testing.assert_array_equal(responses[mask], np.asarray(one.tokens)[:, 1:][mask])
    assert {1, 2} <= set(responses[np.arange(200), length - 1].tolist())
    none = jax.eval_shape(lambda: small(eos=()))
    assert none.tokens.shape == (4, 3)


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False])
def test_the_model_is_not_called_when_all_have_ended(cached: bool):
    """It is called as often as the longest response, under vmap of all lanes, has tokens."""
    calls = []

    def counted(function):
        def call(*arguments, **named):
            jax.debug.callback(lambda: calls.append(1))
            return function(*arguments, **named)

        return call

    lm = transformer(TransformerConfig(vocab_size=V, max_length=64, width=8, num_layers=1))
    lm = (
        lm._replace(decode=counted(lm.decode))
        if cached
        else lm._replace(apply=counted(lm.apply), init_cache=None, decode=None)
    )
    params = make_params(lm)
    run = lambda key: small(key, (2,), lm, params, max_length=60, eos=1)
    keys = jax.random.split(jax.random.key(4), 3)
    alone, looped = [], jax.jit(run)
    for key in keys:
        calls.clear()
        alone.append(jax.block_until_ready(looped(key)))
        jax.effects_barrier()
        assert len(calls) == np.asarray(alone[-1].mask).sum(axis=1).max() < 60
    calls.clear()
    lifted = jax.block_until_ready(jax.jit(jax.vmap(run))(keys))
    jax.effects_barrier()
    assert len(calls) == np.asarray(lifted.mask).sum(axis=-1).max()
    np.testing.assert_array_equal(lifted.tokens, np.stack([one.tokens for one in alone]))
    np.testing.assert_allclose(lifted.log_probs, np.stack([o.log_probs for o in alone]), rtol=1e-5)
    lengths = [np.asarray(one.mask).sum(axis=1).max() for one in alone]
    assert len(set(lengths)) > 1


@pytest.mark.slow
@every_model
def test_members_and_keys_are_lifted_under_checkify(kind: str):
    """vmap gives the results of a loop, and checkify finds bad members, in either order."""
    lm = MODELS[kind]
    one = make_params(lm)
    members = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf, -leaf]), one)
    keys = jax.random.split(jax.random.key(2), 3)
    run = lambda params, key: small(key, (1, 0), lm, params, eos=1, max_length=4)
    alone = jax.jit(run)
    expected = [alone(jax.tree.map(lambda x, i=i: x[i], members), keys[i]) for i in range(3)]
    orders = [checkify.checkify(jax.vmap(run)), jax.vmap(checkify.checkify(run))]
    for lifted in orders if kind == "tabular" else orders[:1]:
        checked = jax.jit(lifted)
        error, found = checked(members, keys)
        assert error.get() is None
        np.testing.assert_array_equal(found.tokens, np.stack([one.tokens for one in expected]))
        spoilt = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), members)
        assert "logits hold a NaN" in checked(spoilt, keys)[0].get()


@pytest.mark.slow
def test_one_program_for_all_keys_and_prompts():
    """The same key gives the same draws, vmap those of a loop, and it compiles once."""
    traces = []
    lm = MODELS["tabular"]

    @jax.jit
    def run(params, key, prompt):
        traces.append(prompt.shape)
        return sample(lm, params, key, prompt, num_samples=32, max_length=2)

    params = make_params(lm)
    keys, prompts = jax.random.split(jax.random.key(1), 3), jnp.array([[0, 1], [0, 1], [1, 0]])
    looped = [run(params, key, prompt) for key, prompt in zip(keys, prompts, strict=True)]
    again = run(params, keys[0], prompts[0])
    assert traces == [(2,)]
    np.testing.assert_array_equal(looped[0].tokens, again.tokens)
    assert np.any(looped[0].tokens != looped[1].tokens)
    lifted = jax.vmap(run, in_axes=(None, 0, 0))(params, keys, prompts)
    for i, alone in enumerate(looped):
        np.testing.assert_array_equal(lifted.tokens[i], alone.tokens)
        np.testing.assert_allclose(lifted.log_probs[i], alone.log_probs, rtol=1e-5)


def test_forbidden_tokens_are_never_drawn():
    """With logits of -inf, even for all tokens but one, log-probs stay finite."""
    lm = MODELS["tabular"]
    params = make_params(lm).at[..., 2].set(-jnp.inf).at[1, ..., 0].set(-jnp.inf)
    run = jax.jit(lambda prompt: sample(
        lm, params, jax.random.key(0), prompt, num_samples=500, max_length=3, temperature=0.5
    ))  # fmt: skip
    samples = run(jnp.array([[0], [1]]))
    responses = np.asarray(samples.tokens)[:, :, 1:]
    assert set(responses[0].ravel().tolist()) == {0, 1}
    assert set(responses[1].ravel().tolist()) == {1}
    assert np.all(np.isfinite(samples.log_probs)) and np.all(np.isfinite(samples.raw_log_probs))
    np.testing.assert_allclose(samples.log_probs[1], 0.0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_logits_are_drawn_and_scored_in_float32(dtype):
    """The log-probs are those of scoring the same logits; a sum in float16 is off by 1e-3."""
    lm, prompt = MODELS["tabular"], jnp.array(PROMPT)

    @jax.jit
    def run(params):
        drawn = sample(
            lm, params, jax.random.key(1), prompt, num_samples=50, max_length=L, temperature=0.7
        )
        logits = lm.apply(params, drawn.tokens)
        tempered = sampling_logits(logits, temperature=0.7)
        scores = [log_prob(x, drawn.tokens, drawn.mask) for x in (tempered, logits)]
        return drawn, scores

    drawn, scores = run(make_params(lm).astype(dtype))
    exact, _ = run(make_params(lm).astype(dtype).astype(jnp.float32))
    assert drawn.log_probs.dtype == drawn.raw_log_probs.dtype == jnp.float32
    np.testing.assert_allclose([drawn.log_probs, drawn.raw_log_probs], scores, rtol=2e-6)
    np.testing.assert_array_equal(drawn.tokens, exact.tokens)


@pytest.mark.slow
def test_the_logits_of_prompts_are_not_computed():
    """The cache is all that is needed of a prompt, so a program has no product for its logits."""
    lm = transformer(
        TransformerConfig(vocab_size=499, max_length=40, width=8, num_layers=1, num_heads=2)
    )
    arguments = (
        jax.eval_shape(lm.init, jax.random.key(0)),
        jax.random.key(0),
        jax.ShapeDtypeStruct((3, 32), int),
        jax.ShapeDtypeStruct((3, 32), bool),
    )
    draw = lambda params, key, prompts, valid: sample(
        lm, params, key, prompts, num_samples=1, max_length=2, valid=valid
    )
    program = jax.jit(draw).lower(*arguments).compile().as_text()
    shapes = {tuple(map(int, text.split(","))) for text in re.findall(r"\[([\d,]+)\]", program)}
    assert max(math.prod(shape) for shape in shapes if 499 in shape) < 3 * 31 * 499
