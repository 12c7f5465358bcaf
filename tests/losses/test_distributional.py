import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.test_util import check_grads

from shatter import losses
from shatter.losses import adapt_proposal, fdpg_loss, forward_kl_slope, gdc_loss
from shatter.numerics import LOG_ZERO

pytestmark = pytest.mark.usefixtures("float64")

P = np.array([0.15, 0.05, 0.3, 0.1, 0.4])  # the target
LOGITS, PROPOSAL_LOGITS = np.random.default_rng(0).normal(0.0, 1.0, (2, 5))
PI, PROPOSAL = (np.exp(x) / np.exp(x).sum() for x in (LOGITS, PROPOSAL_LOGITS))
LOG_Z = 2.7  # the target is given as P = p Z


def kl(p, q):
    """Returns the divergence of arrays without zeros in p."""
    return jnp.sum(p * (jnp.log(p) - jnp.log(q)))


# slope: D_f(pi || p) by its textbook definition
DIVERGENCES = {
    "forward_kl_slope": lambda pi, p: kl(p, pi),
    "reverse_kl_slope": lambda pi, p: kl(pi, p),
    "jensen_shannon_slope": lambda pi, p: kl(pi, (pi + p) / 2) + kl(p, (pi + p) / 2),  # 2 JS
    "total_variation_slope": lambda pi, p: jnp.sum(jnp.abs(pi - p)) / 2,
    "forward_chi_squared_slope": lambda pi, p: jnp.sum((p - pi) ** 2 / pi),
    "reverse_chi_squared_slope": lambda pi, p: jnp.sum((pi - p) ** 2 / p),
}
UNBOUNDED = ["reverse_kl_slope", "reverse_chi_squared_slope"]  # where the target has no mass
BOUNDED = [name for name in DIVERGENCES if name not in UNBOUNDED]
every_slope = pytest.mark.parametrize("name", DIVERGENCES)


@functools.partial(jax.jit, static_argnames="name")
def expected_slopes(logits, target_log_probs, log_z, baseline, *, name):
    """Returns mean gradients of `fdpg_loss` by enumeration: on-policy, off-policy, by baseline."""
    slope, law = getattr(losses, name), jax.lax.stop_gradient(jax.nn.softmax(logits))
    proposal = jnp.asarray(PROPOSAL)

    def on_policy(logits, baseline):
        loss = fdpg_loss(
            jax.nn.log_softmax(logits),
            target_log_probs,
            slope=slope,
            log_z=log_z,
            baseline=baseline,
        )
        return jnp.sum(law * loss)

    def off_policy(logits, baseline):
        loss = fdpg_loss(
            jax.nn.log_softmax(logits),
            target_log_probs,
            slope=slope,
            log_z=log_z,
            proposal_log_probs=jnp.log(proposal),
            baseline=baseline,
        )
        return jnp.sum(proposal * loss)

    return [
        jax.grad(objective)(logits, b)
        for objective in (on_policy, off_policy)
        for b in (baseline, None, 0.0)
    ]


@functools.partial(jax.jit, static_argnames="name")
def exact_slope(logits, p, *, name):
    return jax.grad(lambda logits: DIVERGENCES[name](jax.nn.softmax(logits), p))(logits)


def score(policy: np.ndarray) -> np.ndarray:
    """Returns d log pi(x) / d logits of a softmax policy, a row for every x."""
    return np.eye(len(policy)) - policy


# --- f-DPG ----------------------------------------------------------------------------------------


@every_slope
def test_expected_gradient_is_that_of_the_divergence(name):
    """On-policy and off-policy, for an unnormalised target and any constant baseline."""
    expected = exact_slope(LOGITS, P, name=name)
    assert np.abs(expected).max() > 1e-2
    for found in expected_slopes(LOGITS, np.log(P) + LOG_Z, LOG_Z, -4.0, name=name):
        np.testing.assert_allclose(found, expected, atol=1e-13)


@every_slope
def test_at_the_target_every_term_is_zero(name):
    log_p = np.log(P)
    run = functools.partial(fdpg_loss, slope=getattr(losses, name))
    for proposal in (None, np.log(PROPOSAL)):
        terms = jax.jit(run)(log_p, log_p, proposal_log_probs=proposal)
        np.testing.assert_allclose(terms, 0.0, atol=1e-15)


def test_losses_per_sample():
    """A loss is the weighted slope less that at t = 1, and so is its only gradient, in log pi."""
    arrays = [np.log(PI), np.log(P) + LOG_Z, np.log(PROPOSAL), np.full(5, LOG_Z)]

    @jax.jit
    def run(*arrays):
        def total(log_probs, target, proposal, log_z):
            terms = fdpg_loss(
                log_probs,
                target,
                slope=forward_kl_slope,
                log_z=log_z,
                proposal_log_probs=proposal,
            )
            return jnp.sum(terms), terms

        return jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True)(*arrays)

    slopes, terms = run(*arrays)
    dpg = P / PROPOSAL - PI / PROPOSAL  # the gain of DPG and its baseline, over Z
    np.testing.assert_allclose(terms, -dpg, rtol=1e-12)
    np.testing.assert_allclose(slopes[0], -dpg, rtol=1e-12)
    np.testing.assert_array_equal(slopes[1:], 0.0)


@pytest.mark.parametrize("distance", [0.0, 0.1, 0.5])
def test_the_baseline_lowers_the_variance_near_the_target(distance):
    """For the gradient of KL(p || pi), on-policy and off-policy."""
    policy = P * np.exp(distance * LOGITS)
    policy /= policy.sum()

    @jax.jit
    def gains():
        log_probs, target = jnp.log(jnp.asarray(policy)), jnp.log(jnp.asarray(P))
        proposal = jnp.log(jnp.asarray(PROPOSAL))
        loss = functools.partial(fdpg_loss, log_probs, target, slope=forward_kl_slope)
        return [
            [loss(baseline=b, proposal_log_probs=q) for b in (None, 0.0)] for q in (None, proposal)
        ]

    for law, (default, none) in zip((policy, PROPOSAL), gains(), strict=True):
        spread = []
        for gain in (default, none):
            terms = np.asarray(gain)[:, None] * score(policy)
            spread.append(law @ ((terms - law @ terms) ** 2).sum(1))
        assert spread[0] < 0.5 * spread[1]
        if distance == 0.0:
            assert spread[0] < 1e-28


def test_slopes_are_the_derivatives_of_their_generators():
    """The generators are the f of D_f = E_p f(t)."""
    generators = {
        "forward_kl_slope": lambda t: -jnp.log(t),
        "reverse_kl_slope": lambda t: t * jnp.log(t),
        "jensen_shannon_slope": lambda t: t * jnp.log(t) - (1 + t) * jnp.log((1 + t) / 2),
        "total_variation_slope": lambda t: jnp.abs(1 - t) / 2,
        "forward_chi_squared_slope": lambda t: (1 - t) ** 2 / t,
        "reverse_chi_squared_slope": lambda t: (t - 1) ** 2,
    }
    ratios = np.array([1e-3, 0.3, 0.999, 1.001, 2.0, 50.0])

    @jax.jit
    def run(ratios):
        return {
            name: (jax.vmap(jax.grad(f))(ratios), getattr(losses, name)(jnp.log(ratios)))
            for name, f in generators.items()
        }

    for name, (expected, found) in run(ratios).items():
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12, err_msg=name)


# --- targets without mass -------------------------------------------------------------------------

HOLES = np.array([0.2, 0.0, 0.5, 0.0, 0.3])


@pytest.mark.parametrize("zero", [-np.inf, LOG_ZERO])
@pytest.mark.parametrize("name", BOUNDED)
def test_a_target_without_mass_somewhere(name, zero):
    """A document without mass under the target has the slope f'(inf), which is finite."""
    target = np.where(HOLES > 0, np.log(np.where(HOLES > 0, HOLES, 1.0)), zero)
    found = expected_slopes(LOGITS, target, 0.0, 1.0, name=name)
    inside = HOLES > 0
    pi, p = PI[inside], HOLES[inside]

    at_holes = {
        "forward_kl_slope": 0.0,
        "jensen_shannon_slope": np.log(2.0),
        "total_variation_slope": 0.5,
        "forward_chi_squared_slope": 1.0,
    }[name]
    by_pi = np.full(5, at_holes)
    by_pi[inside] = jax.grad(DIVERGENCES[name])(pi, p)
    for slope in found:
        np.testing.assert_allclose(slope, (PI * by_pi) @ score(PI), atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [-np.inf, LOG_ZERO])
@every_slope
def test_no_mass_is_told_under_checkify_where_it_is_infinitely_far(name, zero):
    target = np.array([np.log(0.5), zero, np.log(0.5), zero, -1.0])

    def run(target):
        return fdpg_loss(jnp.log(jnp.asarray(PI)), target, slope=getattr(losses, name))

    error, terms = jax.jit(checkify.checkify(run))(target)
    assert np.isfinite(terms).all()
    if name in UNBOUNDED:
        with pytest.raises(checkify.JaxRuntimeError, match="no mass at 2 of the samples"):
            error.throw()
        jax.jit(checkify.checkify(run))(np.log(P))[0].throw()
    else:
        error.throw()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_slope
def test_documents_far_from_the_target_stay_finite(name, dtype):
    log_probs = np.array([-900.0, -50.0, -1.0], dtype)
    target = np.array([-1.0, -49.0, -1200.0], dtype)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(log_probs):
        terms = fdpg_loss(log_probs, jnp.asarray(target), slope=getattr(losses, name))
        return jnp.sum(terms), terms

    slope, terms = run(log_probs)
    assert terms.dtype == dtype
    assert np.isfinite(terms).all() and np.isfinite(slope).all()


# --- GDC ------------------------------------------------------------------------------------------


def test_expected_gdc_loss_is_the_cross_entropy_of_the_target():
    """Its value is KL(p || pi) + H(p) = -E_p log pi, and its gradient that of f-DPG."""

    @jax.jit
    def run(logits):
        target, proposal = jnp.log(jnp.asarray(P)) + LOG_Z, jnp.asarray(PROPOSAL)

        def by_gdc(logits):
            log_probs = jax.nn.log_softmax(logits)
            return jnp.sum(proposal * gdc_loss(log_probs, target, jnp.log(proposal), log_z=LOG_Z))

        def by_fdpg(logits):
            loss = fdpg_loss(
                jax.nn.log_softmax(logits),
                target,
                slope=forward_kl_slope,
                log_z=LOG_Z,
                proposal_log_probs=jnp.log(proposal),
                baseline=0.0,
            )
            return jnp.sum(proposal * loss)

        return jax.value_and_grad(by_gdc)(logits), jax.grad(by_fdpg)(logits)

    (value, slope), by_fdpg = run(LOGITS)
    divergence, entropy = (P * np.log(P / PI)).sum(), -(P * np.log(P)).sum()
    assert value == pytest.approx(divergence + entropy, rel=1e-13)
    np.testing.assert_allclose(slope, PI - P, atol=1e-14)
    np.testing.assert_allclose(by_fdpg, slope, atol=1e-14)


@pytest.mark.parametrize("zero", [-np.inf, LOG_ZERO])
def test_gdc_losses_per_sample(zero):
    """They are exactly 0 where the target has no mass, even if the policy has none either."""
    target = np.where(HOLES > 0, np.log(np.where(HOLES > 0, HOLES, 1.0)) + LOG_Z, zero)
    log_probs = np.log(PI)
    log_probs[1] = -np.inf

    @jax.jit
    def run(*arrays):
        total = lambda *x: (jnp.sum(gdc_loss(*x, log_z=LOG_Z)), gdc_loss(*x, log_z=LOG_Z))
        return jax.grad(total, argnums=(0, 1, 2), has_aux=True)(*arrays)

    slopes, terms = run(log_probs, target, np.log(PROPOSAL))
    weights = HOLES / PROPOSAL
    np.testing.assert_allclose(terms, -weights * np.where(HOLES > 0, log_probs, 0.0), rtol=1e-12)
    np.testing.assert_array_equal(np.asarray(terms)[HOLES == 0], 0.0)
    np.testing.assert_allclose(slopes[0], -weights, rtol=1e-12)
    np.testing.assert_array_equal(slopes[1:], 0.0)


def test_the_proposal_follows_a_policy_that_is_closer():
    proposal = {"head": jnp.zeros(3), "body": [jnp.zeros((2, 2)), jnp.zeros((), int)]}
    policy = jax.tree.map(lambda x: x + 1, proposal)
    run = jax.jit(adapt_proposal)
    cases = [(2.0, 1.0, 1), (1.0, 2.0, 0), (1.0, 1.0, 0), (np.nan, 1.0, 0), (1.0, np.nan, 0)]
    for proposal_kl, policy_kl, moved in [*cases, (np.inf, 1.0, 1)]:
        found = run(proposal, policy, proposal_kl=proposal_kl, policy_kl=policy_kl)
        assert jax.tree.structure(found) == jax.tree.structure(proposal)
        for leaf, like in zip(jax.tree.leaves(found), jax.tree.leaves(proposal), strict=True):
            assert leaf.dtype == like.dtype
            np.testing.assert_array_equal(leaf, np.full(like.shape, moved))


# --- all ------------------------------------------------------------------------------------------


def test_gradients():
    """The gradients of GDC, and of every slope as a function of log t."""
    target, proposal = jnp.log(jnp.asarray(P)), jnp.log(jnp.asarray(PROPOSAL))
    check_grads(lambda x: gdc_loss(x, target, proposal), (jnp.log(jnp.asarray(PI)),), order=1)
    log_t = jnp.array([-2.0, -0.3, 0.4, 3.0])
    slopes = jax.jit(lambda log_t: [getattr(losses, name)(log_t) for name in DIVERGENCES])
    check_grads(slopes, (log_t,), order=1)


def test_leading_axes_and_a_constant_of_each():
    rows = [np.tile(x, (2, 3, 1)) for x in (np.log(PI), np.log(P), np.log(PROPOSAL))]
    log_z = np.arange(6.0).reshape(2, 3, 1)
    run = functools.partial(fdpg_loss, slope=forward_kl_slope, baseline=0.0)
    found = jax.jit(run)(rows[0], rows[1] + log_z, log_z=log_z, proposal_log_probs=rows[2])
    np.testing.assert_allclose(found, np.tile(-P / PROPOSAL, (2, 3, 1)), rtol=1e-12)
    found = jax.jit(gdc_loss)(rows[0], rows[1] + log_z, rows[2], log_z=log_z)
    np.testing.assert_allclose(found, np.tile(-P / PROPOSAL * np.log(PI), (2, 3, 1)), rtol=1e-12)


def by_fdpg(log_probs, target, proposal):
    return fdpg_loss(log_probs, target, slope=forward_kl_slope, proposal_log_probs=proposal)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("loss", [by_fdpg, gdc_loss])
def test_wrong_shapes_and_types_raise_while_tracing(loss, place):
    right = [jax.ShapeDtypeStruct((4,), float)] * 3
    assert jax.eval_shape(loss, *right).shape == (4,)
    for wrong in [
        jax.ShapeDtypeStruct((3,), float),
        jax.ShapeDtypeStruct((4, 1), float),
        jax.ShapeDtypeStruct((), float),
        jax.ShapeDtypeStruct((4,), int),
    ]:
        with pytest.raises(AssertionError):
            jax.eval_shape(loss, *right[:place], wrong, *right[place + 1 :])


@pytest.mark.parametrize("shape", [(4, 1), (3,)])
@pytest.mark.parametrize("name", ["baseline", "log_z"])
def test_a_baseline_or_constant_of_another_shape_is_refused(name, shape):
    samples, other = jax.ShapeDtypeStruct((4,), float), jax.ShapeDtypeStruct(shape, float)
    with pytest.raises(AssertionError):
        jax.eval_shape(
            lambda x, y: fdpg_loss(x, x, slope=forward_kl_slope, **{name: y}), samples, other
        )
    if name == "log_z":
        with pytest.raises(AssertionError):
            jax.eval_shape(lambda x, y: gdc_loss(x, x, x, log_z=y), samples, other)


@pytest.mark.slow
def test_no_sample_with_mass_and_no_estimate_of_z():
    """If log Z is as low as log P, no sample has mass, instead of all of them."""
    log_probs = jnp.log(jnp.array([0.3, 0.7]))
    nowhere = jnp.full(2, -jnp.inf)
    loss = jax.jit(
        lambda x: fdpg_loss(x, nowhere, slope=forward_kl_slope, log_z=jnp.asarray(-1e30))
    )
    np.testing.assert_allclose(loss(log_probs), 1.0, rtol=1e-12)  # -1 / t = 0, less the baseline
