"""The arguments of sampling: padded prompts, shapes, bounds, and what checkify finds."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from shatter.documents import pad_prompts, sample
from shatter.models import tabular
from tests.documents.samplers import MODELS, V, every_model, make_params, small


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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_axes():
    one = jax.eval_shape(small)
    assert one.tokens.shape == one.mask.shape == (4, 3)
    assert one.log_probs.shape == one.raw_log_probs.shape == (4,)
    batch = jax.eval_shape(lambda: small(prompt=[[0, 1], [2, 2], [1, 0]]))
    assert batch.tokens.shape == batch.mask.shape == (3, 4, 4)
    assert batch.log_probs.shape == batch.raw_log_probs.shape == (3, 4)
