from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from shatter import models
from shatter.documents import log_prob
from shatter.ensembles import adapters, mean_adapters, prior_scale_for, whole_adapters
from shatter.evaluation import disagreement
from shatter.models import LoraConfig, TransformerConfig, merge_lora, split_layers, with_lora

CONFIG = TransformerConfig(
    vocab_size=6, max_length=5, width=8, num_layers=2, num_heads=2, norm="rms", gated=True
)
LM = models.transformer(CONFIG)
LORA = LoraConfig(rank=2, alpha=3.0, targets=("query", "value", "mlp_out"))
MEMBERS = 4
TOKENS = np.array([[[1, 2, 3, 4, 0], [1, 5, 5, 0, 0]], [[2, 2, 2, 0, 0], [2, 3, 1, 5, 4]]])
MASK = (np.arange(5) > 0) & (np.arange(5) < np.array([[5, 4], [4, 5]])[..., None])
apply = jax.jit(LM.apply)
merge = jax.jit(merge_lora, static_argnums=2)
member = lambda own, m: jax.tree.map(lambda leaf: leaf[m], own)


def make(params, prior_scale=0.7, num_members=MEMBERS):
    return adapters(LM, params, LORA, num_members=num_members, prior_scale=prior_scale)


@partial(jax.jit, static_argnums=1)
def build(prior_scale=0.7, num_members=MEMBERS):
    """The base and the members."""
    params = LM.init(jax.random.key(0))
    return make(params, prior_scale, num_members).init(jax.random.key(1))


@jax.jit
def logits(shared, own):
    return jax.vmap(make(shared).apply, in_axes=(None, 0, None))(shared, own, TOKENS)


def log_probs(shared, own):
    score = lambda logits: log_prob(logits, jnp.asarray(TOKENS), jnp.asarray(MASK))
    return jax.vmap(score)(logits(shared, own))


@pytest.mark.slow
def test_a_member_is_the_base_with_its_own_update(float64):
    shared, own = build()
    found = logits(shared, own)
    for m in range(MEMBERS):
        alone = apply(merge(shared, member(own, m), LORA), TOKENS)
        np.testing.assert_allclose(found[m], alone, atol=1e-10)


@pytest.mark.slow
def test_the_prior_is_as_documented(float64):
    _, own = build(0.3, 3000)
    pair = own["blocks"]["qkv"]["adapters"]["query"]
    assert pair["a"].shape == (3000, 2, 8, 2)
    draws = np.asarray(pair["b"]).ravel()
    standard_error = 1 / np.sqrt(2 * len(draws))
    np.testing.assert_allclose(draws.std() / (0.3 / np.sqrt(2)), 1, atol=4 * standard_error)
    np.testing.assert_allclose(draws.mean() / draws.std(), 0, atol=4 / np.sqrt(len(draws)))
    a = np.asarray(pair["a"]).ravel()
    assert np.abs(a).max() <= 8**-0.5
    np.testing.assert_allclose(a.var() * 3 * 8, 1, atol=6 / np.sqrt(len(a)))


@pytest.mark.slow
def test_the_penalty_is_the_documented_one(float64):
    shared, own = build()
    penalty = jax.jit(make(shared).penalty)
    first, second = member(own, 0), member(own, 1)
    expected = 0.0
    for name, part in first["blocks"].items():
        for target, pair in part["adapters"].items():
            other = second["blocks"][name]["adapters"][target]
            inputs = pair["a"].shape[1]
            expected += 1.5 * inputs * np.sum((np.asarray(pair["a"]) - other["a"]) ** 2)
            expected += 2 / (2 * 0.7**2) * np.sum((np.asarray(pair["b"]) - other["b"]) ** 2)
    np.testing.assert_allclose(penalty(first, second), expected, rtol=1e-12)
    assert penalty(first, first) == 0
    check_grads(lambda own: penalty(own, second), (first,), order=1)


@pytest.mark.slow
def test_members_disagree_before_data_as_much_as_asked(float64):
    def spread(prior_scale):
        return disagreement(log_probs(*build(prior_scale, 6)))

    find = jax.jit(lambda target: prior_scale_for(spread, target))
    for target in (0.2, 1.0):
        scale = find(target)
        np.testing.assert_allclose(spread(scale), target, rtol=1e-3)
    assert jax.jit(spread)(1e-9) < 1e-6  # without a prior all are the base


def test_prior_scale_for_ends_at_the_bounds_where_the_target_is_beyond():
    for target, bound in ((1e9, 2.0), (1e-9, 0.5)):
        found = prior_scale_for(lambda scale: scale, target, low=0.5, high=2.0)
        np.testing.assert_allclose(found, bound, rtol=1e-5)


@pytest.mark.parametrize(
    ("spread", "scale", "most"),
    [
        (lambda scale: 3 * scale, 0.7, 2),
        (lambda scale: 3 * scale / (1 + 2 * scale), 0.7, 7),
        (lambda scale: 3 * scale**4, 0.7, 7),
        (lambda scale: jnp.where(scale < 0.7, 0.0, 3 * scale), 0.8, 9),
    ],
    ids=["proportional", "flat above", "steep", "with a step"],
)
def test_prior_scale_for_computes_few_spreads(float64, spread, scale, most):
    computed = []

    def noted(prior_scale):
        jax.debug.callback(computed.append, prior_scale)
        return spread(prior_scale)

    found = prior_scale_for(noted, spread(scale))
    jax.effects_barrier()
    np.testing.assert_allclose(spread(found), spread(scale), rtol=6e-4)
    assert len(computed) <= most


@pytest.mark.slow
def test_the_mean_adapter_is_the_mean_of_the_updates(float64):
    shared, own = build()
    merged = [merge(shared, member(own, m), LORA) for m in range(MEMBERS)]
    expected = jax.tree.map(lambda *leaves: sum(leaves) / MEMBERS, *merged)
    for use_rslora in (False, True):
        lora = LoraConfig(2, 3.0 if not use_rslora else 3.0 / 2**0.5, LORA.targets, use_rslora)
        mean, wide = mean_adapters(own, lora)
        assert wide.rank == MEMBERS * 2
        found = merge(shared, mean, wide)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-12), found, expected)


@pytest.mark.slow
def test_on_upper_blocks_alone_it_is_the_whole_model_with_nothing_below(float64):
    parts = split_layers(CONFIG, 1)

    @jax.jit
    def upper_and_whole():
        params = LM.init(jax.random.key(0))
        above = parts.upper_params(params)
        ensemble = adapters(parts.upper, above, LORA, num_members=2, prior_scale=0.7)
        shared, own = ensemble.init(jax.random.key(1))
        hidden = parts.lower(params, TOKENS)
        found = jax.vmap(ensemble.apply, in_axes=(None, 0, None))(shared, own, hidden)
        whole = lambda own: LM.apply(with_lora(params, whole_adapters(own, 1), LORA), TOKENS)
        return found, jax.vmap(whole)(own)

    found, expected = upper_and_whole()
    np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.slow
def test_refuses_no_member_and_targets_that_do_not_fit():
    params = jax.eval_shape(LM.init, jax.random.key(0))
    with pytest.raises(ValueError, match="num_members >= 1"):
        adapters(LM, params, LORA, num_members=0, prior_scale=1.0)
    wrong = LoraConfig(targets=("querry",))
    with pytest.raises(ValueError, match="querry"):
        adapters(LM, params, wrong, num_members=2, prior_scale=1.0).init(jax.random.key(0))


@pytest.mark.slow
def test_data_bring_members_together_where_they_are(float64):
    shared, start = build(2.0)
    ensemble = make(shared, 2.0)

    def loss(own, anchor):
        tokens, mask = jnp.asarray(TOKENS[0]), jnp.asarray(MASK[0])
        found = log_prob(ensemble.apply(shared, own, tokens), tokens, mask)
        return 30 * jax.nn.softplus(found[1] - found[0]) + ensemble.penalty(own, anchor)

    optimizer = optax.adam(0.05)

    @jax.jit
    def fit(own):
        def step(carry, _):
            own, state = carry
            updates, state = optimizer.update(jax.vmap(jax.grad(loss))(own, start), state)
            return (optax.apply_updates(own, updates), state), None

        return jax.lax.scan(step, (own, optimizer.init(own)), length=60)[0][0]

    before, after = (log_probs(shared, own) for own in (start, fit(start)))
    chosen = lambda found: jax.nn.sigmoid(found[:, 0, 0] - found[:, 0, 1])
    assert np.all(chosen(after) > 0.8)
    assert np.std(chosen(after)) < 0.5 * np.std(chosen(before))
    assert disagreement(after[:, 1:]) > 0.3 * disagreement(before[:, 1:])


@pytest.mark.slow
def test_adapters_at_the_centre_are_the_base(float64):
    shared, anchors = build()
    centre = adapters(LM, shared, LORA, num_members=MEMBERS, prior_scale=0.7, start="centre")
    starts = jax.vmap(centre.start)(anchors)
    found = logits(shared, starts)
    np.testing.assert_allclose(found, np.stack([apply(shared, TOKENS)] * MEMBERS), rtol=1e-12)
    leaves = jax.tree.leaves_with_path(starts)
    for (path, leaf), drawn in zip(leaves, jax.tree.leaves(anchors), strict=True):
        np.testing.assert_array_equal(leaf, 0.0 * drawn if path[-1].key == "b" else drawn)
    jax.tree.map(np.testing.assert_array_equal, jax.vmap(make(shared).start)(anchors), anchors)
