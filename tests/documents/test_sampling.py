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
from shatter.models import LanguageModel, TransformerConfig, tabular, transformer

V, L, EOS = 3, 3, 1
PROMPT = (2, 0)
MODELS = {
    "tabular": tabular(vocab_size=V, max_length=1 + L, num_prompts=V),
    "transformer": transformer(
        TransformerConfig(vocab_size=V, max_length=8, width=8, num_layers=1, num_heads=2)
    ),
}
every_model = pytest.mark.parametrize("kind", list(MODELS))
every_law = pytest.mark.parametrize(
    ("kind", "temperature"), [("tabular", 1.0), ("tabular", 0.7), ("transformer", 0.7)]
)


score = jax.jit(log_prob)


def make_params(lm: LanguageModel):
    """Draws parameters far from uniform, with NumPy because compiling an init takes longer."""
    rng = np.random.default_rng(5)
    shapes = jax.eval_shape(lm.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.array(rng.standard_normal(leaf.shape)), shapes)


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


def test_cache_and_full_forward_pass_draw_the_same():
    """The same key gives the same tokens with the cache and without."""
    with_cache, _ = drawn("transformer", 0.7)
    without, _ = drawn("transformer", 0.7, cached=False)
    np.testing.assert_array_equal(with_cache.tokens, without.tokens)
    np.testing.assert_allclose(with_cache.log_probs, without.log_probs, atol=1e-12)
    np.testing.assert_allclose(with_cache.raw_log_probs, without.raw_log_probs, atol=1e-12)


PROMPTS = [(2, 0, 1), (0,), (1, 2)]


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


def small(key=None, prompt=(0,), lm=MODELS["tabular"], params=None, **changes) -> Samples:
    arguments = {"num_samples": 4, "max_length": 2} | changes
    params = make_params(lm) if params is None else params
    key = jax.random.key(0) if key is None else key
    return sample(lm, params, key, jnp.array(prompt), **arguments)


CASES = [
    {"temperature": 0.7, "top_k": 2, "top_p": 0.9, "min_p": 0.01},
    {"num_samples": 1, "valid": False, "eos": (1, 2)},
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_shared_prefill_and_full_forward_pass(float64: None, case: dict):
    """Prompts of different lengths are read once, or for each response, or at every token."""
    prompts, valid = pad_prompts(PROMPTS)
    given = {"prompt": prompts, "num_samples": 5, "max_length": 3, "valid": jnp.array(valid)} | case
    given["valid"] = None if given["valid"] is False else given["valid"]
    lm = MODELS["transformer"]
    models = [lm, lm._replace(repeat_cache=None), lm._replace(init_cache=None, decode=None)]
    shared, repeated, uncached = (jax.jit(lambda lm=m: small(lm=lm, **given))() for m in models)
    for other in (repeated, uncached):
        np.testing.assert_array_equal(shared.tokens, other.tokens)
        np.testing.assert_allclose(shared.log_probs, other.log_probs, atol=1e-12)
        np.testing.assert_allclose(shared.raw_log_probs, other.raw_log_probs, atol=1e-12)
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


def test_prefill_computes_no_logits():
    """The compiled program has no array with logits for every token of the prompts."""
    lm = transformer(TransformerConfig(vocab_size=37, max_length=32, width=8, num_layers=1))
    compiled = jax.jit(lambda p: small(prompt=np.zeros((2, 19), int), lm=lm, params=p)).lower(
        make_params(lm)
    )
    text = compiled.compile().as_text()
    assert "[8,37]" in text  # of a step
    assert "18,37]" not in text and "[36,37]" not in text


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


@pytest.mark.parametrize(
    ("lengths", "bucket"),
    [([1], 1), ([2], 2), ([3, 1], 3), ([4], 4), ([5], 6), ([6], 6), ([7, 2, 8], 8), ([9], 12),
     ([13], 16), ([17], 24), ([25], 32), ([97], 128), ([65], 96)],
)  # fmt: skip
def test_pad_prompts(lengths: list[int], bucket: int):
    prompts = [list(range(5, 5 + n)) for n in lengths]
    tokens, valid = pad_prompts(prompts, fill=-7)
    assert tokens.shape == valid.shape == (len(lengths), bucket)
    for row, is_text, prompt in zip(tokens, valid, prompts, strict=True):
        assert row[is_text].tolist() == prompt
        assert is_text[-len(prompt) :].all()
        assert set(row[~is_text].tolist()) <= {-7}


def test_buckets_may_be_chosen():
    assert pad_prompts([[1, 2, 3]], buckets=(16, 5, 2))[0].shape == (1, 5)
    with pytest.raises(ValueError, match=r"buckets \(4, 5\), found 6 tokens in prompt 1: shorten"):
        pad_prompts([[1], [2] * 6], buckets=(4, 5))


@pytest.mark.parametrize(("prompts", "which"), [([[1], []], "prompt 1"), ([], "no prompts")])
def test_prompts_without_a_token_are_refused(prompts: list, which: str):
    with pytest.raises(ValueError, match=f"one prompt, each with a token .* found {which}"):
        pad_prompts(prompts)


@pytest.mark.slow
def test_few_programs_for_prompts_of_many_lengths():
    """One trace for each bucket: 3 for 8 lengths."""
    traces = []

    @jax.jit
    def run(prompt, valid):
        traces.append(prompt.shape)
        return sample(lm, params, jax.random.key(0), prompt, num_samples=2, max_length=2,
                      valid=valid)  # fmt: skip

    lm = tabular(vocab_size=V, max_length=2, num_prompts=V)
    params = make_params(lm)
    for length in range(5, 13):
        run(*pad_prompts([[1] * length]))
        run(*pad_prompts([[2] * length]))
    assert traces == [(1, 6), (1, 8), (1, 12)]


def test_axes():
    one = jax.eval_shape(small)
    assert one.tokens.shape == one.mask.shape == (4, 3)
    assert one.log_probs.shape == one.raw_log_probs.shape == (4,)
    batch = jax.eval_shape(lambda: small(prompt=[[0, 1], [2, 2], [1, 0]]))
    assert batch.tokens.shape == batch.mask.shape == (3, 4, 4)
    assert batch.log_probs.shape == batch.raw_log_probs.shape == (3, 4)


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


@pytest.mark.parametrize(
    "changes",
    [
        {"num_samples": 0},
        {"max_length": 0},
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"prompt": np.zeros((2, 0), int)},
    ],
    ids=str,
)
def test_impossible_arguments_are_refused(changes: dict):
    with pytest.raises(ValueError, match="sample expects num_samples >= 1, max_length >= 1"):
        small(**changes)


@pytest.mark.parametrize("eos", [-1, 3, (1, 3)])
def test_an_eos_outside_the_vocabulary_is_refused(eos: int | tuple[int, ...]):
    with pytest.raises(ValueError, match=rf"0 <= eos < 3, found {re.escape(str(eos))}"):
        small(eos=eos)


def test_a_prompt_that_is_all_padding_is_found():
    valid = jnp.array([[True, False], [False, False]])
    run = checkify.checkify(lambda valid: small(prompt=[[1, 0], [1, 0]], valid=valid))
    error, _ = jax.jit(run)(valid)
    assert "prompt 1 is all padding" in error.get()


@pytest.mark.parametrize("bad", [{"top_k": 0}, {"top_p": 0.0}, {"min_p": 2.0}], ids=str)
def test_impossible_filters_are_refused(bad: dict):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
        small(**bad)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": [0.0]},
        {"prompt": 0},
        {"prompt": [[[0]]]},
        {"valid": jnp.ones(2, bool)},
        {"valid": jnp.ones(1)},
    ],
    ids=str,
)
def test_wrong_shapes_and_types_are_refused(changes: dict):
    with pytest.raises(AssertionError):
        small(**changes)


@pytest.mark.parametrize("cached", [True, False])
def test_a_document_longer_than_the_model_is_refused(cached: bool):
    lm = MODELS["transformer"]
    lm = lm if cached else lm._replace(init_cache=None, decode=None)
    jax.eval_shape(lambda: small(lm=lm, max_length=8))  # its last token is not read
    with pytest.raises(ValueError, match="found 9 tokens, over max_length 8"):
        jax.eval_shape(lambda: small(lm=lm, max_length=9))


def test_a_document_longer_than_the_model_is_refused_behind_padding():
    """Known padding needs no positions; where it is traced, only one prompt token is certain."""
    prompt, valid = jnp.array([[0, 1, 2]]), np.array([[False, True, True]])
    lm = MODELS["transformer"]
    draw = lambda valid, length: small(lm=lm, prompt=prompt, valid=valid, max_length=length)
    jax.eval_shape(lambda: draw(valid, 7))
    with pytest.raises(ValueError, match="found 9 tokens, over max_length 8"):
        jax.eval_shape(lambda: draw(valid, 8))
    jax.eval_shape(lambda valid: draw(valid, 8), valid)
    with pytest.raises(ValueError, match="found 9 tokens, over max_length 8"):
        jax.eval_shape(lambda valid: draw(valid, 9), valid)


def test_temperature_may_be_traced():
    checked = jax.jit(checkify.checkify(lambda t: small(temperature=t)))
    error, cold = checked(1e-3)
    assert error.get() is None
    np.testing.assert_allclose(cold.log_probs, 0.0, atol=1e-6)
    assert "temperature must be above 0, found 0.0" in checked(0.0)[0].get()


@every_model
def test_checkify_finds_bad_values(kind: str):
    lm = MODELS[kind]
    params = make_params(lm)
    checked = jax.jit(
        checkify.checkify(lambda params, prompt: small(lm=lm, params=params, prompt=prompt))
    )
    assert checked(params, jnp.array([1]))[0].get() is None
    assert "is out of range" in checked(params, jnp.array([V]))[0].get()
    spoilt = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params)
    assert "logits hold a NaN" in checked(spoilt, jnp.array([1]))[0].get()


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
