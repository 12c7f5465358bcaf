"""The parts of the pipeline experiment against independent computations."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.curves import Curve, fit_curve, labels_at, win_rate_at
from experiments.common.didactic import make_world, open_logits
from experiments.pipeline import run, world
from experiments.pipeline.algorithms import ALGORITHMS
from experiments.pipeline.config import VALUES, Config, Setting, settings
from experiments.pipeline.measures import measure
from experiments.pipeline.summary import algorithm_cost
from shatter import documents, losses
from shatter.cli.common.binary import UsageError

pytestmark = pytest.mark.slow

VOCAB, LENGTH = 3, 3
CONFIG = Config(vocab_size=VOCAB, max_length=LENGTH)
SETTING = Setting("x", CONFIG, ())
WORLD = make_world("tabular", vocab_size=VOCAB, max_length=LENGTH)
KEY = jax.random.key(0)
GREEDY = lambda law: world.greedy_document(law, WORLD.space, VOCAB)


def tables(num):
    rows = sum(VOCAB**t for t in range(LENGTH))
    return np.random.default_rng(0).normal(size=(num, 1, rows, VOCAB)).astype(np.float32)


def test_a_linear_reward_of_log_probs_is_the_log_prob_of_the_table():
    (table,) = tables(1)
    logs = np.asarray(jax.nn.log_softmax(table)).ravel()[open_logits(VOCAB, LENGTH)]
    features = world.document_features(WORLD, VOCAB, LENGTH)
    assert features.shape == (len(WORLD.space[0]), len(logs))
    sums = features @ logs / np.sqrt(len(logs))  # as `apply_mlp` scales a linear head
    np.testing.assert_allclose(sums, WORLD.log_probs(jnp.asarray(table)), rtol=1e-5)


def test_the_kl_from_the_anchor_is_the_librarys():
    anchor, table = map(jnp.asarray, tables(2))
    tokens, mask = WORLD.space
    logits = [WORLD.lm.apply(params, tokens) for params in (anchor, table)]
    expected = jax.jit(losses.forward_kl_loss)(*logits, mask)
    total = lambda *params: (jnp.sum(kls := world.anchor_kls(WORLD, SETTING, *params)), kls)
    (by_anchor, by_table), actual = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(
        anchor, table
    )
    np.testing.assert_allclose(actual, expected, rtol=2e-5)
    assert not np.any(by_anchor)
    assert np.any(by_table)


def test_greedy_decoding_takes_the_likeliest_token_each_time():
    def decode(table):
        sample = documents.sample(
            WORLD.lm, table, KEY, jnp.array([0]), num_samples=1, max_length=LENGTH, top_k=1, eos=0
        )
        return sample.tokens[0], GREEDY(WORLD.log_probs(table))

    tokens, found = jax.jit(jax.vmap(decode))(jnp.asarray(tables(5)))
    np.testing.assert_array_equal(WORLD.space[0][found], tokens)


def test_a_law_of_one_document_decodes_to_it():
    laws = jnp.where(jnp.eye(len(WORLD.space[0]), dtype=bool), 0.0, -1e30)
    found = jax.jit(jax.vmap(GREEDY))(laws)
    np.testing.assert_array_equal(found, np.arange(len(laws)))


@pytest.mark.parametrize("name", ["online", "information_directed", "ilhf_v_optimal"])
def test_candidates_of_a_collapsed_policy_still_differ(name):
    law = jnp.full(len(WORLD.space[0]), -200.0).at[4].set(0.0)
    config = dataclasses.replace(CONFIG, queries_per_round=5, num_candidates=6)
    pools = world.draw_candidates(KEY, config, ALGORITHMS[name], law, WORLD.space)
    items, valid = np.asarray(pools.item_ids), np.asarray(pools.valid)
    assert items.shape == (5, 2 if name == "online" else 6)
    assert np.all(items[:, 0] != items[:, 1])
    for row, free in zip(items, valid, strict=True):
        assert len(set(row[free])) == len(row[free]) == len(set(row))
    np.testing.assert_array_equal(pools.tokens, np.asarray(WORLD.space[0])[items])


@pytest.mark.parametrize("arm", ["passive", "infomax", "variance", "v_optimal"])
def test_a_pair_is_of_two_valid_candidates(arm):
    law = WORLD.log_probs(jnp.asarray(tables(1)[0]))
    scores = jnp.asarray(np.random.default_rng(1).normal(size=(4, len(law))), jnp.float32)
    config = dataclasses.replace(CONFIG, queries_per_round=3, num_candidates=6)

    @jax.jit
    def ask(law, scores):
        keys = jax.random.split(KEY)
        pools = world.draw_candidates(keys[0], config, ALGORITHMS["ilhf_infomax"], law, WORLD.space)
        return pools, world.choose_pairs(keys[1], arm, pools, scores, law)

    pools, pairs = ask(law, scores)
    pairs = np.asarray(pairs)
    items = np.take_along_axis(np.asarray(pools.item_ids), pairs, axis=1)
    assert np.all(items[:, 0] != items[:, 1])
    if arm == "variance":  # Var_k sig(r_k - r'_k)
        for row, chosen in zip(np.asarray(pools.item_ids), items, strict=True):
            spread = lambda pair: np.var(1 / (1 + np.exp(scores[:, pair[1]] - scores[:, pair[0]])))
            best = max(spread((i, j)) for i in row for j in row)
            np.testing.assert_allclose(spread(chosen), best, rtol=1e-4)


def test_the_read_out_of_the_true_reward_is_the_limit_and_not_the_population():
    log_p0, log_q = (WORLD.log_probs(jnp.asarray(table)) for table in tables(2))
    problem = world.Problem((), log_p0, log_q)
    beta = 0.5
    run_measure = partial(measure, vocab_size=VOCAB, beta=beta)
    found = jax.jit(run_measure)(problem, WORLD.space, log_q, log_q + 3.0)
    assert abs(found["kl"]) < 1e-6
    assert abs(found["limit_kl"]) < 1e-5
    p0, q = np.exp(log_p0), np.exp(log_q)
    limit = p0 * q ** (1 / beta) / np.sum(p0 * q ** (1 / beta))
    gap = np.sum(q * np.log(q / limit))
    np.testing.assert_allclose(found["population_to_limit"], gap, rtol=1e-4)
    np.testing.assert_allclose(found["readout_kl"], gap, rtol=1e-4)
    wins = q[:, None] / (q[:, None] + q[None])
    np.testing.assert_allclose(found["readout_win_rate"], limit @ wins @ p0, rtol=1e-5)
    best = q[np.argmax(q)] / (
        q[np.argmax(q)] + q[world.greedy_document(log_p0, WORLD.space, VOCAB)]
    )
    np.testing.assert_allclose(found["win_best"], best, rtol=1e-5)


def test_the_curve_is_fitted_and_read():
    curve, labels = Curve(0.7 * np.log(5.0), 0.7), np.arange(1, 20) * 8.0
    assert curve.a == pytest.approx(5.0)
    wins = 1 - 0.5 * (labels / 5.0) ** -0.7
    np.testing.assert_allclose(win_rate_at(curve, labels), wins, rtol=1e-12)
    np.testing.assert_allclose(fit_curve(labels, wins), curve, rtol=1e-9)
    np.testing.assert_allclose(labels_at(curve, wins[7]), labels[7], rtol=1e-9)
    assert labels_at(Curve(1.0, -0.1), 0.8) == np.inf
    assert fit_curve(labels, np.full(19, 0.8)).b == pytest.approx(0.0, abs=1e-12)
    coin = fit_curve(labels, np.full(19, 0.5))
    assert coin.b == 0
    assert np.isnan(coin.a)
    np.testing.assert_array_equal(win_rate_at(coin, labels), 0.5)


def test_what_an_algorithm_costs():
    config = Config(
        num_rounds=4, period=2, queries_per_round=3, num_candidates=5, num_steps=2, policy_steps=6,
        policy_batch=7, num_particles=9, num_members=8,
    )  # fmt: skip
    setting = Setting("x", config, ())
    names = ("models", "heads", "answer_steps", "policy_steps", "samples")
    values = lambda name: tuple(algorithm_cost(setting, name)[n] for n in names)
    assert values("online") == (3, 1, 8, 24, 4 * 3 * 2 + 24 * 14)
    assert values("periodic") == (3, 1, 8, 48, 4 * 3 * 2 + 48 * 14)
    assert values("offline") == values("online")
    assert values("information_directed") == (3, 10, 80, 24, 4 * 3 * 5 + 24 * 14)
    assert values("ilhf_infomax") == (9, 0, 64, 0, 4 * 3 * 5)
    assert values("dpo_online") == (2, 0, 8, 0, 4 * 3 * 2)


def test_a_figure_varies_one_flag():
    for figure in VALUES:
        found = settings(Config(figure=figure), tuple(ALGORITHMS))
        assert [getattr(s.config, figure) for s in found] == list(VALUES[figure])
        assert len({s.algorithms for s in found}) == 1
    (default,) = settings(Config(), tuple(ALGORITHMS))
    assert default.algorithms == tuple(ALGORITHMS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"algorithms": ("rlhf",)}, "unknown algorithm 'rlhf'; the known ones are: offline, "),
        (
            {"period": 4},
            "two periods or more, and whole ones.*found --num_rounds=45 and --period=4",
        ),
        ({"period": 45}, "two periods or more"),
        ({"num_particles": 1}, "--num_particles must be at least 2, found 1"),
        ({"nudge": -0.1}, "--nudge must be at least 0, found -0.1"),
        ({"nudge": float("nan")}, "--nudge must be at least 0"),
        ({"anchor_decay": 1.5}, "--anchor_decay must be in"),
        ({"beta": 0.0}, "--beta must be positive, found 0.0"),
        ({"hidden": (8, 0)}, "--hidden must be at least 1"),
        ({"max_length": 9}, "--vocab_size"),
    ],
)
def test_flags_are_checked(flags, message):
    with pytest.raises(UsageError, match=message):
        run.check(dataclasses.replace(Config(), **flags))


def test_a_rater_that_answers_nan_is_refused():
    laws = np.zeros((2, 5))
    world.check_rater(laws)
    laws[1, 3] = np.nan
    with pytest.raises(UsageError, match="document 3 at seed 1 must be finite, found nan"):
        world.check_rater(laws)
