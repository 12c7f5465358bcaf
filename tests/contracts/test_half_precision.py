"""One contract for every public function of log-probs, logits, utilities or rewards.

float16 and bfloat16 are raised to float32 at the door: what comes out is float32, has no NaN, and
is what float32 of the same rounded numbers gives; gradients are finite, in the argument's type.
The functions run in float16; their programs show that bfloat16 is treated in the same way.
A public function is in the table below, or among those that compute nothing in its inputs' type.
"""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter import (
    choice,
    documents,
    ensembles,
    evaluation,
    exploration,
    inference,
    losses,
    numerics,
)
from shatter.models import tabular
from shatter.types import Query

PACKAGES = {
    package.__name__.split(".")[-1]: package
    for package in (
        choice,
        documents,
        ensembles,
        evaluation,
        exploration,
        inference,
        losses,
        numerics,
    )
}
INF = np.inf
KEY = jax.random.key(0)
LM = tabular(vocab_size=3, max_length=2)
PARAMS = np.linspace(-1.5, 2.0, 12).reshape(1, 4, 3)
PROMPT = jnp.zeros(1, int)
TOKENS, SPACE = documents.enumerate_documents(vocab_size=3, max_length=2)
QUERY = Query(jnp.zeros((), int), jnp.zeros((3, 2), int), jnp.ones((3, 2), bool), jnp.arange(3),
              jnp.array([True, True, True]))  # fmt: skip
PAIR = Query(QUERY.prompt_id, *(leaf[:2] for leaf in QUERY[1:]))

# Numbers that round in both half types; a vector of log-probs may hold -inf.
A = np.array([-1.1, -2.3, -0.7, -4.9])
B = np.array([-1.9, -2.2, -3.3, -0.3])
C = np.array([-0.9, -1.2, -2.8, -3.7])
R = np.array([0.3, -1.7, 2.1, 0.9])
LAW = np.log([0.1, 0.3, 0.6, 1.0]) + np.array([0.0, 0.0, 0.0, -INF])
OTHER = np.log([0.35, 0.25, 0.2, 0.2])
WITH_EMPTY = np.array([1.3, -INF, 0.4, -2.7])
MEMBERS = np.array([[-1.1, -2.3, -0.7, -4.9], [-INF, -0.6, -1.7, -INF], [-3.1, -INF, -0.2, -2.2]])
QUERIES = np.stack([MEMBERS, MEMBERS[:, ::-1], MEMBERS - 1.3, MEMBERS[::-1]], axis=1)[..., :3]
TWO_TOKENS = np.stack([A, B])
MASK = jnp.array([[False, True, True, True], [False, True, True, False]])
LOGITS = np.linspace(-2.7, 3.3, 24).reshape(2, 4, 3)
IDS = jnp.array([[0, 1, 2, 1], [0, 2, 0, 0]])
BANNED = np.where(np.arange(24).reshape(2, 4, 3) % 7 == 6, -INF, LOGITS)
RANKS = jnp.array([1, 2, 2, 3])
SHARES = np.array([0.15, 0.0, 0.65, 0.2])
LEVELS = [np.log([[0.2, 0.5, 0.3]]), np.log(np.full((3, 3), [0.1, 0.6, 0.3]))]


def twisted(tokens, length):
    return jnp.tile(jnp.array([0.5, -0.7, 0.1], jnp.bfloat16), (tokens.shape[0], 1))


def smc_log_weights(params):
    return inference.smc(LM, params, KEY, PROMPT, twist=twisted, num_particles=3, max_length=2)[2:]


def two_levels(function):
    """A function of lists of levels as one of their arrays."""
    return lambda *levels: function(*(list(levels[i : i + 2]) for i in range(0, len(levels), 2)))


def rater(make, query=QUERY):
    return lambda *arrays: make(*arrays)(KEY, query)


def arm(name, **arguments):
    return lambda log_probs: getattr(exploration, name)(KEY, log_probs, **arguments)


ARMS = ["boltzmann", "delta_ucb", "double_thompson", "double_thompson_sampled", "greedy"]
ARMS += ["infomax", "information_directed", "law_infomax", "log_ratio_variance"]
ARMS += ["mass_weighted_variance", "thompson", "ucb", "uniform", "v_optimal", "variance"]
QUERY_ARMS = ["boltzmann", "delta_ucb", "double_thompson", "infomax", "information_directed"]
QUERY_ARMS += ["joint_infomax", "thompson", "uniform", "v_optimal", "variance"]
QUERY_ARMS = [*(f"{name}_queries" for name in QUERY_ARMS), "v_optimal_choices"]
SLOPES = ["forward_chi_squared", "forward_kl", "jensen_shannon", "reverse_chi_squared"]
SLOPES = [f"{name}_slope" for name in [*SLOPES, "reverse_kl", "total_variation"]]

# Name -> (function of arrays in the type under test, the arrays).
CASES = {
    "choice": {
        "davidson_log_probs": (choice.davidson_log_probs, [B[:2], np.array(-INF)]),
        "dichotomy_rater": (
            rater(lambda share: choice.dichotomy_rater(lambda _: jnp.array([1, 2, 2]), share)),
            [np.array(0.3)],
        ),
        "luce_log_prob": (lambda u: choice.luce_log_prob(u, jnp.array(2)), [WITH_EMPTY]),
        "luce_log_probs": (choice.luce_log_probs, [WITH_EMPTY]),
        "luce_rater": (
            rater(lambda u: choice.luce_rater(lambda _: u)),
            [np.array([1.3, -INF, 0.4])],
        ),
        "luce_sample": (lambda u: choice.luce_sample(KEY, u), [np.stack([WITH_EMPTY, R])]),
        "mixture_rater": (
            rater(lambda u, w: choice.mixture_rater(lambda _: u, w)),
            [MEMBERS[:2, :3], A[:2]],
        ),
        "plackett_luce_log_prob": (
            lambda u: choice.plackett_luce_log_prob(u, jnp.array([2, 0, -1, -1])),
            [WITH_EMPTY],
        ),
        "plackett_luce_rater": (
            rater(lambda u: choice.plackett_luce_rater(lambda _: u)),
            [R[:3]],
        ),
        "plackett_luce_sample": (
            lambda u: choice.plackett_luce_sample(KEY, u),
            [np.stack([WITH_EMPTY, R])],
        ),
        "ranks_log_prob": (
            lambda u: choice.ranks_log_prob(u, jnp.array([1, 2, 1, 2])),
            [WITH_EMPTY],
        ),
        "recorded_choice_rater": (  # 3000 people: half precision counts to 2048
            rater(
                lambda w: choice.recorded_choice_rater(jnp.arange(3000)[None] % 3, w, num_items=3)
            ),
            [np.ones(3000)],
        ),
        "recorded_ranking_rater": (
            rater(lambda w: choice.recorded_ranking_rater(jnp.arange(6).reshape(1, 2, 3), w)),
            [np.array([0.7, 1.9])],
        ),
        "recorded_vote_rater": (
            rater(choice.recorded_vote_rater, PAIR),
            [np.array([[3.1, 700.0, 1.3]])],
        ),
        "segment_rater": (
            rater(lambda u, w: choice.segment_rater(lambda _: u, w)),
            [MEMBERS[:2, :3], A[:2]],
        ),
        "table_utility": (
            rater(lambda table: choice.luce_rater(choice.table_utility(table))),
            [R[None, :3]],
        ),
    },
    "documents": {
        "document_log_probs": (
            lambda p: documents.document_log_probs(LM, p, TOKENS, SPACE),
            [PARAMS],
        ),
        "interface": (
            lambda p: documents.interface(LM).policy(p, TOKENS, jnp.full(len(TOKENS), 2)),
            [PARAMS],
        ),
        "log_prob": (lambda x: documents.log_prob(x, IDS, MASK), [BANNED]),
        "posterior_policy": (
            lambda first, second, r: documents.posterior_policy(
                [first, second], r, TOKENS, SPACE, beta=0.7
            ),
            [*LEVELS, np.linspace(-2.1, 1.3, 9)],
        ),
        "prefix_log_probs": (
            lambda p: documents.prefix_log_probs(LM, p, vocab_size=3, max_length=2),
            [PARAMS],
        ),
        "sample": (
            lambda p: documents.sample(LM, p, KEY, PROMPT, num_samples=4, max_length=2, eos=1),
            [np.where(PARAMS < -1.3, -INF, PARAMS)],
        ),
        "sampling_logits": (
            lambda x: documents.sampling_logits(x, temperature=0.7, top_k=2, top_p=0.9, min_p=0.1),
            [BANNED],
        ),
        "sequence_tempered": (lambda x: documents.sequence_tempered(x, 0.3), [OTHER]),
        "soft_values": (
            two_levels(lambda levels: documents.soft_values(levels, temperature=0.7, eos=0)),
            [LEVELS[0], np.where(np.eye(3) > 0, -INF, LEVELS[1])],
        ),
        "token_log_probs": (lambda x: documents.token_log_probs(x, IDS), [BANNED]),
    },
    "ensembles": {
        "anchor_penalty": (
            lambda a, b: ensembles.anchor_penalty({"a": a}, {"a": b}, 0.3),
            [np.linspace(0.0, 1.0, 999), np.linspace(1.0, 3.0, 999)],
        ),
        "draw_members": (
            lambda mean, covariance: ensembles.draw_members(KEY, mean, covariance, 3),
            [A[:2], np.diag(np.exp(A[:2]))],
        ),
        "hierarchy_penalty": (
            lambda a, b, c: ensembles.hierarchy_penalty(
                a, b, c, person_scale=0.3, population_scale=0.7
            ),
            [
                np.linspace(0.0, 1.0, 999).reshape(3, 333),
                *np.linspace(1.0, 3.0, 666).reshape(2, 333),
            ],
        ),
        "fit_laplace": (
            lambda x, shares: ensembles.fit_laplace(x, shares, prior_scale=1.3),
            [np.stack([TWO_TOKENS, TWO_TOKENS[::-1]])[..., :3], np.array([[1.0, 0.0], [0.5, 0.5]])],
        ),
        "laplace_covariance": (
            lambda x, u: ensembles.laplace_covariance(x, u, prior_scale=1.3),
            [np.stack([TWO_TOKENS, TWO_TOKENS[::-1]])[..., :3], MEMBERS[[0, 0], :2]],
        ),
        "mixture_log_probs": (ensembles.mixture_log_probs, [MEMBERS[:, :3]]),
    },
    "evaluation": {
        "best_of_n_log_probs": (
            lambda law, r: evaluation.best_of_n_log_probs(law, r, num_samples=3),
            [LAW, R],
        ),
        "choice_errors": (lambda x: evaluation.choice_errors(x, jnp.array([3, 1])), [TWO_TOKENS]),
        "disagreement": (evaluation.disagreement, [np.where(QUERIES > -INF, QUERIES, -5.3)]),
        "dpo_optimum": (lambda p, q: evaluation.dpo_optimum(p, q, beta=0.3), [OTHER, LAW]),
        "dyadic_joint_log_loss": (
            lambda x, y: evaluation.dyadic_joint_log_loss(KEY, x, y),
            [np.where(QUERIES > -INF, QUERIES, -5.3), QUERIES[0]],
        ),
        "ipo_optimum": (lambda p, q: evaluation.ipo_optimum(p, q, beta=0.3), [LAW, OTHER]),
        "joint_log_loss": (evaluation.joint_log_loss, [np.tile(A, (2, 500))]),
        "manhattan_distance": (evaluation.manhattan_distance, [LAW, SHARES]),
        "marginal_log_loss": (evaluation.marginal_log_loss, [MEMBERS[:, :3]]),
        "person_error_rates": (
            lambda x: evaluation.person_error_rates(x, RANKS[:2], jnp.arange(2), num_persons=2),
            [TWO_TOKENS],
        ),
        "person_means": (
            lambda x: evaluation.person_means(x, jnp.array([1, 0, 1, 1]), num_persons=2),
            [A],
        ),
        "posterior_optimum": (lambda p, r: evaluation.posterior_optimum(p, r, beta=0.3), [LAW, R]),
        "prediction_metrics": (evaluation.prediction_metrics, [OTHER, OTHER[::-1], LAW]),
        "reward_kl_frontier": (
            evaluation.reward_kl_frontier,
            [OTHER, R, np.array([0.1, 0.3, 2.7])],
        ),
        "reward_optimum": (evaluation.reward_optimum, [LAW, R[[0, 2, 2, 2]]]),
        "soft_cross_entropy": (evaluation.soft_cross_entropy, [OTHER, SHARES]),
        "soft_kl": (evaluation.soft_kl, [OTHER, np.exp(OTHER[::-1])]),
        "segment_kl": (evaluation.segment_kl, [np.stack([LAW, OTHER]), OTHER[::-1]]),
        "win_rate": (evaluation.win_rate, [LAW, OTHER, LAW[::-1]]),
    },
    "exploration": {
        **{name: (arm(name, num_responses=3), [MEMBERS]) for name in ARMS},
        **{name: (arm(name, num_queries=3), [QUERIES]) for name in QUERY_ARMS},
        "conditional_information_gain": (
            exploration.conditional_information_gain,
            [QUERIES, np.array([[0.3, 0.3, 0.4], [0.8, 0.1, 0.1]])],
        ),
        "drawn_candidates": (
            lambda law: exploration.drawn_candidates(KEY, law, TOKENS, SPACE, num_candidates=5),
            [np.append(np.linspace(-3.3, -1.1, 8), -INF)],
        ),
        "information_gain": (exploration.information_gain, [MEMBERS]),
        "joint_information_gain": (exploration.joint_information_gain, [QUERIES]),
        "law_information_gain": (exploration.law_information_gain, [MEMBERS, MEMBERS[:, ::-1]]),
        "linear_belief": (
            exploration.linear_belief,
            [A[:2], np.stack([B, C])[:, :3], np.diag(np.exp(A[:3]))],
        ),
        "members_belief": (exploration.members_belief, [MEMBERS]),
        "query_information_gain": (exploration.query_information_gain, [QUERIES]),
        "query_variance": (exploration.query_variance, [QUERIES]),
        "v_optimal_batch": (
            lambda x: exploration.v_optimal_batch(
                KEY, x, jnp.array([[0, 1, 2, 3]]), num_responses=3
            )[0],
            [MEMBERS],
        ),
    },
    "inference": {
        "effective_sample_size": (inference.effective_sample_size, [WITH_EMPTY]),
        "exact_twist": (
            lambda *levels: inference.exact_twist(
                list(levels[:2]), list(levels[2:4]), list(levels[4:]), beta=0.7, prompt_length=1
            )(TOKENS, jnp.array(2)),
            [*LEVELS, np.array([0.3]), np.array([0.2, -0.7, 1.1]), *LEVELS],
        ),
        "importance_kl": (inference.importance_kl, [LAW, A, OTHER]),
        "log_evidence": (inference.log_evidence, [WITH_EMPTY]),
        "moment_target": (inference.moment_target, [LAW, np.stack([A, R], axis=1), R[:2]]),
        "pointwise_target": (lambda p: inference.pointwise_target(p, jnp.array(A > -2)), [OTHER]),
        "rejection_sample": (
            lambda weights: inference.rejection_sample(
                KEY,
                lambda key: jax.random.randint(key, (), 0, 4),
                lambda x: weights[x],
                log_bound=1.3,
                max_tries=50,
            ),
            [WITH_EMPTY],
        ),
        "resample": (lambda w: inference.resample(KEY, w, num_samples=64), [WITH_EMPTY]),
        "smc": (smc_log_weights, [PARAMS]),
        "snis_expectation": (inference.snis_expectation, [WITH_EMPTY, R]),
        "weighted_decoding": (
            lambda p: inference.weighted_decoding(
                LM, p, KEY, PROMPT, twist=twisted, num_samples=3, max_length=2
            ),
            [PARAMS],
        ),
    },
    "losses": {
        **{name: (getattr(losses, name), [np.append(R, [2.9, -2.7])]) for name in SLOPES},
        "adapt_beta": (
            lambda beta, kl: losses.adapt_beta(beta, kl, target=6.0, num_samples=3, horizon=7.0),
            [np.array(0.3), np.array(5.7)],
        ),
        "contrastive_twist_loss": (
            lambda twists, potentials: losses.contrastive_twist_loss(
                twists, potentials, jnp.array([[True, False], [True, True], [True, True]])
            ),
            [np.stack([A[:3], B[:3]], axis=1), np.append(R[:2], -INF)],
        ),
        "dpo_loss": (
            lambda *x: losses.dpo_loss(*x, beta=0.3, label_smoothing=0.1),
            [np.append(A[:3], -INF), B, C, R - 3.0],
        ),
        "elbo": (lambda *x: losses.elbo(*x, beta=0.3), [A, B, R]),
        "exact_posterior_loss": (
            lambda *x: losses.exact_posterior_loss(*x, beta=0.3),
            [LAW, OTHER, R],
        ),
        "fdpg_loss": (
            lambda x, p, q: losses.fdpg_loss(
                x, p, slope=losses.forward_kl_slope, log_z=0.3, proposal_log_probs=q
            ),
            [OTHER, LAW, OTHER[::-1]],
        ),
        "forward_kl_loss": (
            lambda ref, x: losses.forward_kl_loss(ref, x, MASK),
            [BANNED, LOGITS[::-1]],
        ),
        "gdc_loss": (lambda *x: losses.gdc_loss(*x, log_z=0.3), [OTHER, LAW, OTHER[::-1]]),
        "generalised_advantages": (
            lambda r, v: losses.generalised_advantages(r, v, MASK, discount=0.9),
            [TWO_TOKENS, TWO_TOKENS[::-1]],
        ),
        "grpo_advantages": (losses.grpo_advantages, [R]),
        "grpo_loss": (
            lambda *x: losses.grpo_loss(*x, MASK, beta=0.3),
            [np.where(MASK, TWO_TOKENS, -INF), TWO_TOKENS[::-1], TWO_TOKENS - 0.2, R[:2]],
        ),
        "ilhf_loss": (lambda u: losses.ilhf_loss(u, jnp.array(0)), [WITH_EMPTY]),
        "ilhf_ranking_loss": (lambda u: losses.ilhf_ranking_loss(u, RANKS), [A]),
        "ipo_loss": (lambda *x: losses.ipo_loss(*x, beta=0.3), [A, B, C, R - 3.0]),
        "kl_k1": (losses.kl_k1, [A, B]),
        "kl_k2": (losses.kl_k2, [A, B]),
        "kl_k3": (losses.kl_k3, [A, B]),
        "kl_penalised_rewards": (
            lambda x, ref, scores: losses.kl_penalised_rewards(x, ref, scores, MASK, beta=0.3),
            [np.where(MASK, TWO_TOKENS, -INF), TWO_TOKENS[::-1], R[:2]],
        ),
        "nudged_reinforce_loss": (
            lambda x, p, kl: losses.nudged_reinforce_loss(x, p, kl, beta=0.3, nudge=0.1),
            [A, SHARES, np.abs(R)],
        ),
        "posterior_loss": (lambda *x: losses.posterior_loss(*x, beta=0.3), [A, B, R]),
        "ppo_loss": (
            lambda *x: losses.ppo_loss(*x, MASK),
            [np.where(MASK, TWO_TOKENS, -INF), TWO_TOKENS[::-1], np.stack([R, A])],
        ),
        "reinforce_loss": (losses.reinforce_loss, [A, R, C]),
        "reward_model_loss": (lambda r: losses.reward_model_loss(r, jnp.array(0)), [WITH_EMPTY]),
        "reward_model_ranking_loss": (lambda r: losses.reward_model_ranking_loss(r, RANKS), [R]),
        "rloo_loss": (losses.rloo_loss, [A, R * 1e4]),  # the sum of the rewards is no float16
        "selm_loss": (
            lambda *x: losses.selm_loss(*x, beta=0.3, alpha=0.1),
            [A, B, C, R - 3.0, B, C],
        ),
        "sft_loss": (
            lambda x: losses.sft_loss(x, MASK),
            [np.where(MASK, TWO_TOKENS, -INF)],
        ),
        "slic_loss": (lambda *x: losses.slic_loss(*x, delta=1.0), [A, B]),
        "tilted_utilities": (
            lambda *x: losses.tilted_utilities(*x, base_share=0.25),
            [np.where(WITH_EMPTY == -INF, -INF, A), B],
        ),
        "token_posterior_loss": (
            lambda x, ref, r: losses.token_posterior_loss(x, ref, r, MASK, beta=0.3),
            [np.where(MASK, TWO_TOKENS, -INF), TWO_TOKENS[::-1], R[:2]],
        ),
        "value_loss": (
            lambda x, y: losses.value_loss(x, y, MASK),
            [300.0 * TWO_TOKENS, TWO_TOKENS],
        ),
        "whiten": (lambda x: losses.whiten(x, MASK), [1e-3 * TWO_TOKENS]),
        "xpo_loss": (lambda *x: losses.xpo_loss(*x, beta=0.3, alpha=0.1), [A, B, C, R - 3.0, B]),
    },
    "numerics": {
        "at_least_float32": (numerics.at_least_float32, [WITH_EMPTY]),
        "entropy": (numerics.entropy, [LAW]),
        "expectation": (numerics.expectation, [LAW, R]),
        "finite_logs": (numerics.finite_logs, [WITH_EMPTY[[0, 2]]]),
        "kl_divergence": (numerics.kl_divergence, [LAW, OTHER]),
        "log_mean_exp": (numerics.log_mean_exp, [WITH_EMPTY]),
        "masked_mean": (lambda x: numerics.masked_mean(x, jnp.ones(999, bool)), [np.ones(999)]),
        "masked_sum": (lambda x: numerics.masked_sum(x, jnp.ones(999, bool)), [np.ones(999)]),
        "total_variation": (numerics.total_variation, [LAW, OTHER]),
    },
}
# These see no log-probs, or keep the type of parameters, or compute in float64 on the host.
OTHERS = {
    "choice": {"choice_ranks"},
    "documents": {"enumerate_documents", "pad_prompts", "response_mask"},
    "ensembles": {"adapters", "anchored", "epinet", "gaussian_draws", "heads", "mean_adapters",
                  "point_estimate", "prior_functions", "prior_heads", "prior_scale_for",
                  "whole_adapters"},
    "evaluation": {"bootstrap_interval", "claims", "dyadic_inputs", "labels_to", "learning_curves",
                   "loss_after", "queries_to_level", "real_share"},
    "exploration": {"distinct", "pool_candidates", "sampled_candidates", "shrinkage"},
    "inference": {"check_weights", "fit_moments"},
    "losses": {"adapt_proposal"},
    "numerics": {"assert_positive"},
}  # fmt: skip


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_function_has_its_case(package):
    module = PACKAGES[package]
    public = {name for name in module.__all__ if inspect.isfunction(getattr(module, name))}
    if package != "numerics":
        public -= set(numerics.__all__)
    assert public == set(CASES[package]) | OTHERS[package]
    assert not set(CASES[package]) & OTHERS[package]


WITHOUT_GRADIENT = {*ARMS, *QUERY_ARMS, "v_optimal_batch"}
WITHOUT_GRADIENT |= {"rejection_sample", "sample", "smc", "weighted_decoding"}


def is_float(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def outcome(function, arrays):
    """What a function returns, and the gradient of a weighed sum of its floats."""

    def weighed(arrays):
        out = function(*arrays)
        floats = [leaf for leaf in jax.tree.leaves(out) if is_float(leaf)]
        weights = [jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape) for leaf in floats]
        finite = [jnp.where(jnp.isfinite(leaf), leaf, 0.0) for leaf in floats]
        terms = [jnp.sum(leaf * weight) for leaf, weight in zip(finite, weights, strict=True)]
        return sum(terms, jnp.zeros(())), out

    if not any(is_float(leaf) for leaf in jax.tree.leaves(jax.eval_shape(function, *arrays))):
        return function(*arrays), []
    gradient, out = jax.grad(weighed, has_aux=True)(arrays)
    return out, gradient


every_case = pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package in CASES for name in CASES[package]]
)


@pytest.mark.slow
@every_case
def test_half_precision_is_raised_to_float32(package, name):
    function, arrays = CASES[package][name]
    if name in WITHOUT_GRADIENT:
        run = jax.jit(lambda *inputs: [(function(*arrays), []) for arrays in inputs])
    else:
        run = jax.jit(lambda *inputs: [outcome(function, arrays) for arrays in inputs])
    half = [jnp.asarray(array, jnp.float16) for array in arrays]
    (out, gradients), (expected, slopes) = run(half, [array.astype(jnp.float32) for array in half])
    for leaf, right in zip(jax.tree.leaves(out), jax.tree.leaves(expected), strict=True):
        if is_float(leaf):
            assert leaf.dtype == jnp.float32
            assert not np.isnan(leaf).any()
        np.testing.assert_allclose(leaf, right, rtol=1e-6, atol=1e-6)
    for gradient, slope in zip(gradients, slopes, strict=True):
        assert gradient.dtype == jnp.float16
        assert np.isfinite(slope).all()
        np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=1e-3)
    if name in {*ARMS, *QUERY_ARMS, "v_optimal_batch"}:
        assert len(set(np.asarray(out).tolist())) == 3


@pytest.mark.slow
@every_case
def test_bfloat16_is_the_same_program_but_for_the_type_of_its_arguments(package, name):
    function, arrays = CASES[package][name]
    float16, bfloat16 = (
        str(jax.make_jaxpr(function)(*(jnp.asarray(array, dtype) for array in arrays)))
        for dtype in (jnp.float16, jnp.bfloat16)
    )
    # A program holds addresses of functions, and a running number for each of its checks.
    varying = re.compile(r" at 0x[0-9a-f]+|(?<=False:bool\[\] )[0-9]+(?=:i32\[\] -1:i32)")
    program = lambda text: varying.sub(
        "", text.replace("bf16", "f16").replace("bfloat16", "float16")
    )
    assert program(float16) == program(bfloat16)


def test_what_is_no_float_is_refused_as_a_log_prob_and_a_float_as_a_reward():
    whole = jnp.array([1, 2])
    with pytest.raises(AssertionError):
        losses.kl_k1(whole, whole)
    with pytest.raises(AssertionError):
        exploration.infomax(KEY, whole[None])
    loss = losses.reinforce_loss(jnp.array([-1.0, -2.0]), whole)
    np.testing.assert_array_equal(loss, [-1.0, -2.0])
    assert numerics.at_least_float32(whole).dtype == jnp.float32
    assert numerics.at_least_float32(jnp.ones(2, jnp.bfloat16)).dtype == jnp.float32


def test_double_precision_stays_double(float64):
    assert numerics.at_least_float32(jnp.ones(2)).dtype == jnp.float64
    assert losses.kl_k3(jnp.asarray(A), jnp.asarray(B)).dtype == jnp.float64
