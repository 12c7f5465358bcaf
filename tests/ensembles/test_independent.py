from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from shatter.documents import document_log_probs, enumerate_documents, log_prob
from shatter.ensembles import anchored, mixture_log_probs, point_estimate, prior_functions
from shatter.models import tabular

LM = tabular(vocab_size=3, max_length=2)
SMALL_LM = tabular(vocab_size=3, max_length=2, init_scale=0.1)
TOKENS, MASK = enumerate_documents(vocab_size=3, max_length=2)
PRETRAINED = np.random.default_rng(0).normal(size=(1, 4, 3))

KINDS = {
    "anchored": partial(anchored, num_members=4, prior_scale=0.7),
    "prior_functions": partial(prior_functions, num_members=4, prior_scale=0.7),
    "other_prior_functions": partial(
        prior_functions, num_members=4, prior_scale=0.7, prior_lm=SMALL_LM
    ),
    "point_estimate": partial(point_estimate, prior_scale=0.7),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
lift = lambda ensemble: jax.jit(jax.vmap(ensemble.apply, in_axes=(None, 0, None)))


def build(kind):
    ensemble = KINDS[kind](LM, jnp.asarray(PRETRAINED))
    shared, own = jax.jit(ensemble.init)(jax.random.key(0))
    return ensemble, shared, own, 1 if kind == "point_estimate" else 4


@every_kind
def test_every_leaf_of_init_has_the_axis_of_members(kind, float64):
    _, _, own, num_members = build(kind)
    assert {leaf.shape for leaf in jax.tree.leaves(own)} == {(num_members, 1, 4, 3)}
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(own))


@every_kind
def test_members_by_vmap_are_members_one_by_one(kind, float64):
    ensemble, shared, own, num_members = build(kind)
    logits = lift(ensemble)(shared, own, TOKENS)
    assert logits.shape == (num_members, 9, 3, 3)
    apply = jax.jit(ensemble.apply)
    for m in range(num_members):
        member = jax.tree.map(lambda leaf, m=m: leaf[m], own)
        np.testing.assert_allclose(logits[m], apply(shared, member, TOKENS), rtol=1e-14)


@every_kind
def test_padding_reaches_the_model(kind, float64):
    ensemble, shared, own, _ = build(kind)
    member = jax.tree.map(lambda leaf: leaf[0], own)
    padded = jnp.array([[2, 0, 1]])  # left padding, the prompt, a token
    valid = jnp.array([[False, True, True]])
    apply = jax.jit(ensemble.apply)
    logits = apply(shared, member, padded, valid=valid)
    plain = apply(shared, member, padded[:, 1:])
    np.testing.assert_allclose(logits[:, 1:], plain, rtol=1e-14)


@every_kind
def test_the_penalty_is_of_the_prior(kind, float64):
    ensemble, _, own, num_members = build(kind)
    penalties = jax.vmap(ensemble.penalty)(own, own)
    np.testing.assert_array_equal(penalties, np.zeros(num_members))
    anchor = jax.tree.map(lambda leaf: leaf[0], own)
    moved = jax.tree.map(lambda leaf: leaf + 0.3, anchor)
    scale = 1.0 if "prior_functions" in kind else 0.7
    expected = 12 * 0.3**2 / (2 * scale**2)  # over the 12 trained logits
    np.testing.assert_allclose(ensemble.penalty(moved, anchor), expected, rtol=1e-12)
    check_grads(jax.jit(lambda params: ensemble.penalty(params, anchor)), (moved,), order=1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "point_estimate"])
def test_observation_weights_are_exponential(kind):
    ensemble = KINDS[kind](LM, jnp.asarray(PRETRAINED, jnp.float32))
    weights = np.asarray(ensemble.observation_weights(jax.random.key(1), (3000, 2)))
    assert weights.shape == (4, 3000, 2)
    count = weights.size
    np.testing.assert_allclose(weights.mean(), 1, atol=4.5 / np.sqrt(count))
    np.testing.assert_allclose(weights.var(), 1, atol=4.5 * np.sqrt(8 / count))
    distance = np.abs(np.sort(1 - np.exp(-weights.ravel())) - (np.arange(count) + 0.5) / count)
    assert distance.max() < 2.2 / np.sqrt(count)  # Kolmogorov-Smirnov at 1e-4
    correlation = np.corrcoef(weights.reshape(4, -1))  # each member has its own
    np.testing.assert_allclose(correlation, np.eye(4), atol=4.5 / np.sqrt(count / 4))


def test_the_point_estimate_starts_at_the_pretrained_model_and_weighs_all_alike(float64):
    ensemble, _, own, _ = build("point_estimate")
    np.testing.assert_array_equal(own[0], PRETRAINED)
    np.testing.assert_array_equal(
        ensemble.observation_weights(jax.random.key(0), (5, 2)), np.ones((1, 5, 2))
    )


def test_anchors_are_drawn_around_the_pretrained_model():
    ensemble = anchored(LM, jnp.asarray(PRETRAINED), num_members=2000, prior_scale=0.7)
    noise = (np.asarray(jax.jit(ensemble.init)(jax.random.key(3))[1]) - PRETRAINED) / 0.7
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=4.5 / np.sqrt(2000))
    np.testing.assert_allclose(noise.std(axis=0), 1, atol=4.5 / np.sqrt(4000))


@pytest.mark.slow
def test_members_start_at_their_draws_or_at_the_pretrained_model(float64):
    make = partial(anchored, LM, jnp.asarray(PRETRAINED), num_members=4, prior_scale=0.7)
    anchors = jax.jit(make().init)(jax.random.key(0))[1]
    np.testing.assert_array_equal(jax.vmap(make().start)(anchors), anchors)
    centre = make(start="centre")
    np.testing.assert_array_equal(jax.jit(centre.init)(jax.random.key(0))[1], anchors)
    starts = jax.jit(jax.vmap(centre.start))(anchors)
    np.testing.assert_array_equal(starts, np.stack([PRETRAINED] * 4))
    # Their mixture is the pretrained model, and their penalty that of the distance to the anchors.
    laws = jax.vmap(partial(document_log_probs, LM), (0, None, None))(starts, TOKENS, MASK)
    expected = document_log_probs(LM, jnp.asarray(PRETRAINED), TOKENS, MASK)
    np.testing.assert_allclose(mixture_log_probs(laws), expected, rtol=1e-13)
    distance = np.sum((np.asarray(anchors) - PRETRAINED) ** 2, axis=(1, 2, 3))
    found = jax.vmap(centre.penalty)(starts, anchors)
    np.testing.assert_allclose(found, distance / (2 * 0.7**2), rtol=1e-12)
    with pytest.raises(ValueError, match='start must be "draw" or "centre", found \'zero\''):
        make(start="zero")


@pytest.mark.parametrize("make", [anchored, prior_functions])
def test_an_ensemble_has_members(make):
    with pytest.raises(ValueError, match="num_members >= 1, found 0"):
        make(LM, jnp.asarray(PRETRAINED), num_members=0, prior_scale=1.0)


def test_weighted_likelihoods_of_a_categorical_are_its_dirichlet_posterior(float64):
    # Gamma(count) data weights and Gamma(alpha) prior weights, normalised, are Dirichlet.
    observed = np.array([0, 0, 0, 1, 1, 2])
    alpha, counts = np.array([0.7, 1.2, 0.5]), np.array([3, 2, 1])
    num_members = 40_000
    lm = tabular(vocab_size=3, max_length=1)
    ensemble = anchored(lm, jnp.zeros((1, 1, 3)), num_members=num_members, prior_scale=1.0)
    weights = np.asarray(ensemble.observation_weights(jax.random.key(0), (6,)))
    prior_weights = np.random.default_rng(1).gamma(alpha, size=(num_members, 3))
    totals = weights @ np.eye(3)[observed] + prior_weights
    laws = totals / totals.sum(axis=1, keepdims=True)

    tokens, mask = enumerate_documents(vocab_size=3, max_length=1)

    def objective(own, weights, prior_weights):
        log_probs = log_prob(ensemble.apply((), own, tokens), tokens, mask)
        return -(jnp.sum(weights * log_probs[observed]) + jnp.sum(prior_weights * log_probs))

    # Those laws are the members' minimisers ...
    minimisers = np.log(laws)[:, None, None, :]
    gradients = jax.jit(jax.vmap(jax.grad(objective)))(minimisers, weights, prior_weights)
    np.testing.assert_allclose(gradients, 0, atol=1e-12)
    # ... and samples of the posterior.
    posterior = alpha + counts
    mean = posterior / posterior.sum()
    covariance = (np.diag(mean) - np.outer(mean, mean)) / (posterior.sum() + 1)
    products = (laws - mean)[:, :, None] * (laws - mean)[:, None, :]
    error = 4.5 / np.sqrt(num_members)
    assert np.all(np.abs(laws.mean(axis=0) - mean) < error * laws.std(axis=0))
    assert np.all(np.abs(products.mean(axis=0) - covariance) < error * products.std(axis=0))


def test_logits_of_prior_functions_are_the_sum(float64):
    ensemble, _, own, _ = build("other_prior_functions")
    np.testing.assert_array_equal(own.params, np.stack([PRETRAINED] * 4))
    assert len(np.unique(own.prior)) == own.prior.size  # each member has a draw of its own
    np.testing.assert_allclose(np.std(own.prior), 0.1, rtol=0.4)
    logits = lift(ensemble)((), own, TOKENS)
    expected = jax.jit(jax.vmap(LM.apply, (0, None)))(own.params + 0.7 * own.prior, TOKENS)
    np.testing.assert_allclose(logits, expected, rtol=1e-12)


def test_prior_functions_of_unit_scale_on_a_table_are_anchors(float64):
    # theta + p_m with theta pulled to theta_0 is theta' pulled to theta_0 + p_m.
    frozen = prior_functions(LM, jnp.asarray(PRETRAINED), num_members=4, prior_scale=1.0)
    free = anchored(LM, jnp.asarray(PRETRAINED), num_members=4, prior_scale=1.0)
    anchors = jax.jit(frozen.init)(jax.random.key(0))[1]
    moved = anchors._replace(params=anchors.params + jnp.linspace(-1, 1, 48).reshape(4, 1, 4, 3))
    as_logits = lambda own: own.params + own.prior
    np.testing.assert_allclose(
        jax.vmap(frozen.penalty)(moved, anchors),
        jax.vmap(free.penalty)(as_logits(moved), as_logits(anchors)),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        lift(frozen)((), moved, TOKENS), lift(free)((), as_logits(moved), TOKENS), rtol=1e-12
    )


def member_loss(ensemble, own):
    """A loss about two documents, with the members' penalty left out."""
    log_probs = log_prob(ensemble.apply((), own, TOKENS), TOKENS, MASK)
    return jax.nn.softplus(log_probs[3] - log_probs[7])


def test_a_prior_function_has_no_gradient_and_never_changes(float64):
    ensemble, _, own, _ = build("prior_functions")
    optimizer = optax.adam(0.1)

    def step(carry, _):
        own, state = carry
        total = lambda own: jnp.sum(jax.vmap(partial(member_loss, ensemble))(own))
        grads = jax.grad(total)(own)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(own, updates), state), grads

    run = jax.jit(lambda own: jax.lax.scan(step, (own, optimizer.init(own)), length=3))
    (after, _), grads = run(own)
    np.testing.assert_array_equal(grads.prior, np.zeros((3, 4, 1, 4, 3)))
    np.testing.assert_array_equal(after.prior, own.prior)
    assert np.all(np.any(np.asarray(after.params != own.params), axis=(1, 2, 3)))


@pytest.mark.parametrize("kind", ["anchored", "prior_functions"])
def test_the_gradient_of_the_sum_of_losses_keeps_members_apart(kind, float64):
    ensemble, _, own, num_members = build(kind)
    losses = jax.vmap(partial(member_loss, ensemble))

    @jax.jit
    def gradients(own):
        alone = jax.vmap(jax.grad(partial(member_loss, ensemble)))(own)
        return jax.grad(lambda own: jnp.sum(losses(own)))(own), alone, jax.jacobian(losses)(own)

    together, alone, influence = gradients(own)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), together, alone)
    influence = np.asarray(jax.tree.leaves(influence)[0])  # [loss, member, ...]
    others = ~np.eye(num_members, dtype=bool)
    assert not np.any(influence[others])
    assert np.all(np.any(influence[~others], axis=(1, 2, 3)))


def test_a_member_of_an_anchored_ensemble_is_the_language_model(float64):
    ensemble, _, own, _ = build("anchored")
    expected = jax.jit(jax.vmap(partial(document_log_probs, LM), (0, None, None)))(
        own, TOKENS, MASK
    )
    logits = lift(ensemble)((), own, TOKENS)
    actual = jax.jit(jax.vmap(log_prob, (0, None, None)))(logits, TOKENS, MASK)
    np.testing.assert_allclose(actual, expected, rtol=1e-13)
