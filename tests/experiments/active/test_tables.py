"""Tables of texts: numbers computed once and kept are those of the whole model on the tokens."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from experiments.active import splits
from experiments.active.config import Config, settings
from shatter import ensembles, evaluation, models
from shatter.cli.common import frozen, learners
from shatter.cli.common.prior_scale import adapter_prior_scale
from shatter.data import Row

pytestmark = pytest.mark.slow  # whole runs of an experiment

MODEL = models.TransformerConfig(vocab_size=11, max_length=12, width=8, num_layers=3, num_heads=2)


@pytest.fixture
def texts(float64):
    """Returns parameters, and five texts of 3 to 9 tokens that begin with a prompt of two."""
    params = jax.jit(models.transformer(MODEL).init)(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (5, 9), 0, 11)
    columns, lengths = np.arange(9), np.array([3, 9, 5, 7, 4])
    valid = columns < lengths[:, None]
    return params, tokens, valid & (columns >= 2), valid


@pytest.mark.slow
def test_features_are_means_over_a_texts_tokens_after_each_block(texts):
    params, tokens, mask, valid = texts
    features = jax.jit(functools.partial(frozen.layer_features, MODEL))
    found = features(params, tokens, mask, valid)
    assert found.shape == (5, 3 * 8)
    for depth in (1, 2, 3):
        lm = models.transformer(dataclasses.replace(MODEL, num_layers=depth))
        blocks = jax.tree.map(lambda leaf, d=depth: leaf[:d], params["params"]["blocks"])
        part = {"params": {**params["params"], "blocks": blocks}}
        features_of = jax.jit(lm.features)
        for row in range(5):
            # No mask is needed here, because later tokens do not change earlier features.
            alone = features_of(part, tokens)[row, : valid[row].sum()]
            mean = np.asarray(alone)[2:].mean(axis=0)
            np.testing.assert_allclose(found[row, 8 * (depth - 1) : 8 * depth], mean, atol=1e-12)


def adapters(texts, **changes):
    params, tokens, mask, valid = texts
    (setting,) = settings(Config(ensembles=("adapters",), num_members=4))
    setting = dataclasses.replace(setting.learner, **changes)
    layer = setting.cut(MODEL.num_layers)
    rows = jax.jit(frozen.hidden_rows, static_argnums=(0, 1))
    table = rows(MODEL, layer, params, tokens, mask, valid)
    return setting, models.split_layers(MODEL, layer).upper_params(params), table


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"adapted_layers": "last_mlp_out", "lora_target_modules": ("mlp_out",)}]
)
def test_the_utility_of_a_row_is_that_of_the_tokens_by_the_whole_model(texts, changes):
    params, tokens, _, valid = texts
    setting, base, table = adapters(texts, **changes)
    learner = learners.make_learner(setting, MODEL, base, num_features=0, prior_scale=0.7)
    shared, own = jax.jit(learner.ensemble.init)(jax.random.key(2))
    items = jnp.array([[3, 1], [0, 4]])
    found = jax.jit(learner.utilities)((shared, table), own, items)
    assert found.shape == (4, 2, 2)
    lora = setting.lora
    logits = jax.jit(models.transformer(MODEL).apply)
    for number in range(4):
        one = jax.tree.map(lambda leaf, n=number: leaf[n], own)
        merged = models.merge_lora(params, ensembles.whole_adapters(one, 2), lora)
        laws = [np.asarray(log_softmax(logits(some, tokens), axis=-1)) for some in (merged, params)]
        for place, item in np.ndenumerate(items):
            steps = range(2, valid[item].sum())
            means = [np.mean([law[item, t - 1, tokens[item, t]] for t in steps]) for law in laws]
            expected = setting.utility_scale * (means[0] - means[1])
            np.testing.assert_allclose(found[number][place], expected, atol=1e-10)


def test_the_prior_of_adapters_spreads_as_said(texts):
    setting, base, table = adapters(texts)
    pairs = jnp.array([[0, 1], [2, 3], [3, 4]])
    key = jax.random.key(4)

    scale = adapter_prior_scale(key, setting, MODEL, base, table, np.asarray(pairs))

    @jax.jit
    def spread_of(base, table):
        learner = learners.make_learner(setting, MODEL, base, num_features=0, prior_scale=scale)
        shared, own = learner.ensemble.init(key)
        return evaluation.disagreement(learner.utilities((shared, table), own, pairs))

    assert 1e-3 < scale < 1e2
    np.testing.assert_allclose(spread_of(base, table), 2**0.5 * setting.prior_scale, rtol=1e-2)


def rows_of(pairs):
    return [
        Row("p", (a, b), ranks, float(count))
        for a, b, counts in pairs
        for ranks, count in zip(((1, 2), (2, 1), (1, 1)), counts, strict=True)
        if count
    ]


def test_a_division_keeps_pairs_and_votes():
    train = rows_of([("a", "b", (3, 1, 0)), ("b", "c", (0, 2, 1))])
    known, new = rows_of([("a", "c", (1, 1, 0))]), rows_of([("x", "y", (0, 4, 0))])
    items = {("p", "y"): 0}
    found = splits.divide(train, known, new, items, np.random.default_rng(0), 0)
    names = [text for _, text in items]
    own = [names[number] for number in found.texts]
    named = lambda pairs: [[own[item] for item in pair] for pair in pairs.items]
    judged = lambda pairs: [[own[found.judged[item]] for item in pair] for pair in pairs.items]
    assert named(found.pool) == [["a", "b"], ["b", "c"]]
    assert found.pool.votes.tolist() == [[3, 1, 0], [0, 2, 1]]
    assert judged(found.known) == [["a", "c"]] and judged(found.new) == [["x", "y"]]
    assert {tuple(pair) for pair in judged(found.joint)} == {("x", "y")}
    assert found.joint.votes.shape == (splits.JOINT_PAIRS, 3)
    assert [own[n] for n in np.flatnonzero(found.in_pool)] == ["a", "b", "c"]
