"""The enumeration of documents, and the laws over them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter import documents, numerics
from shatter.models import LanguageModel, TransformerConfig, tabular, transformer

V, L = 3, 3
PROMPTS = [(0,), (2, 1)]
ENDS = [None, 0, 2]


def model(kind: str, prompt: tuple[int, ...]) -> LanguageModel:
    length = len(prompt) + L
    if kind == "tabular":
        return tabular(vocab_size=V, max_length=length - 1, num_prompts=V, init_scale=2.0)
    config = TransformerConfig(V, max_length=length, width=8, num_layers=1, num_heads=2)
    return transformer(config)


def random_params(lm: LanguageModel, seed: int):
    shapes = jax.eval_shape(lm.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.array(rng.standard_normal(leaf.shape)), shapes)


def cut(response: tuple[int, ...], eos: int | None) -> tuple[int, ...]:
    """Returns a response up to its first EOS."""
    return response if eos not in response else response[: response.index(eos) + 1]


@pytest.mark.parametrize("eos", ENDS)
@pytest.mark.parametrize("prompt", PROMPTS, ids=str)
@pytest.mark.parametrize(("vocab_size", "length"), [(3, 3), (2, 4), (4, 1), (1, 2)])
def test_every_document_once(
    vocab_size: int, length: int, prompt: tuple[int, ...], eos: int | None
):
    tokens, mask = documents.enumerate_documents(
        vocab_size=vocab_size, max_length=length, prompt=prompt, eos=eos
    )
    everything = itertools.product(range(vocab_size), repeat=length)
    expected = sorted({cut(response, eos) for response in everything})
    assert tokens.shape == mask.shape == (len(expected), len(prompt) + length)
    found = [
        tuple(row[m].tolist()) for row, m in zip(np.array(tokens), np.array(mask), strict=True)
    ]
    assert found == expected
    np.testing.assert_array_equal(tokens[:, : len(prompt)], [prompt] * len(expected))
    assert not np.any(mask[:, : len(prompt)])
    np.testing.assert_array_equal(np.array(tokens)[:, len(prompt) :][~mask[:, len(prompt) :]], eos)


@pytest.mark.parametrize("prompt", PROMPTS, ids=str)
@pytest.mark.parametrize("kind", ["tabular", "transformer"])
def test_probabilities_sum_to_one(float64: None, kind: str, prompt: tuple[int, ...]):
    lm = model(kind, prompt)
    params = random_params(lm, 0)

    @jax.jit
    def score(params, tokens, mask):
        found = documents.document_log_probs(lm, params, tokens, mask)
        return found, jax.nn.softmax(lm.apply(params, tokens))

    everything, all_true = documents.enumerate_documents(vocab_size=V, max_length=L, prompt=prompt)
    laws = np.asarray(score(params, everything, all_true)[1])
    for eos in ENDS:
        tokens, mask = documents.enumerate_documents(
            vocab_size=V, max_length=L, prompt=prompt, eos=eos
        )
        # The same shape, thus the same program, whatever EOS is.
        missing = len(everything) - len(tokens)
        padded = [jnp.pad(array, ((0, missing), (0, 0)), mode="edge") for array in (tokens, mask)]
        found = np.asarray(score(params, *padded)[0])[: len(tokens)]
        assert np.exp(found).sum() == pytest.approx(1.0, abs=1e-13)
        by_hand = {}
        for row, law in zip(np.asarray(everything).tolist(), laws, strict=True):
            response = cut(tuple(row[len(prompt) :]), eos)
            start = len(prompt) - 1
            factors = [law[start + t, token] for t, token in enumerate(response)]
            by_hand[response] = np.log(factors).sum()
        np.testing.assert_allclose(found, [by_hand[r] for r in sorted(by_hand)], atol=1e-12)


@pytest.mark.parametrize("eos", [None, 1])
def test_kl_chain_rule_over_prefixes(float64: None, eos: int | None):
    """KL(p || q) = sum over prefixes s of p(s) KL(p(. | s) || q(. | s))."""
    lm = model("tabular", (0,))
    p, q = random_params(lm, 1), random_params(lm, 2)
    tokens, mask = documents.enumerate_documents(vocab_size=V, max_length=L, eos=eos)
    score = jax.jit(lambda params: documents.document_log_probs(lm, params, tokens, mask))
    whole = numerics.kl_divergence(score(p), score(q))

    @jax.jit
    def levels(params):
        return documents.prefix_log_probs(lm, params, vocab_size=V, max_length=L)

    reached, total = np.ones(1), 0.0
    for level_p, level_q in zip(
        map(np.asarray, levels(p)), map(np.asarray, levels(q)), strict=True
    ):
        total += (reached[:, None] * np.exp(level_p) * (level_p - level_q)).sum()
        onward = reached[:, None] * np.exp(level_p)
        if eos is not None:
            onward[:, eos] = 0.0
        reached = onward.ravel()
    assert whole == pytest.approx(total, rel=1e-12)
    assert whole > 0.1


def test_sequence_tempered(float64: None):
    rng = np.random.default_rng(0)
    law = np.log(rng.dirichlet(np.ones(6), size=2))
    for temperature in (0.25, 1.0, 3.0):
        powers = np.exp(law) ** (1 / temperature)
        expected = powers / powers.sum(axis=1, keepdims=True)
        found = documents.sequence_tempered(jnp.array(law), temperature)
        np.testing.assert_allclose(np.exp(found), expected, atol=1e-14)
        np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, atol=1e-14)


def test_impossible_sizes_are_refused():
    for sizes in [
        {"vocab_size": 0, "max_length": 2},
        {"vocab_size": 2, "max_length": 0},
        {"vocab_size": 2, "max_length": 2, "prompt": ()},
    ]:
        with pytest.raises(ValueError, match="expects vocab_size >= 1, max_length >= 1"):
            documents.enumerate_documents(**sizes)
    with pytest.raises(
        ValueError, match=r"at most 1000000 documents .* found .* = 10 \*\* 7: lower"
    ):
        documents.enumerate_documents(vocab_size=10, max_length=7)
