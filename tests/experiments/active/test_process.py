"""Runs of active learning on recorded votes: queries, answers and measures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_expit, logsumexp
from scipy.stats import binom

from experiments.active import splits
from experiments.active.arms import ARMS
from experiments.active.config import CHUNK_ROUNDS, Config, Setting
from experiments.active.measures import JOINT_DRAWS, measures
from experiments.active.process import Problem, make_process
from experiments.active.splits import Division, Votes
from experiments.common.chunks import run_seeds
from experiments.judgements import baselines
from experiments.judgements.datasets import Judgements
from shatter import choice, ensembles, training
from shatter.data import Row
from shatter.types import item_query

pytestmark = pytest.mark.slow  # whole runs of an experiment

NUM_TEXTS, NUM_PAIRS, WIDTH = 24, 40, 3
RANKS = ((1, 2), (2, 1), (1, 1))  # of the answers: first, second, neither
TINY = Setting(
    kind="heads",
    config=Config(num_outcomes=8),
    num_seeds=2,
    num_members=3,
    prior_scale=1.0,
    learning_rate=0.1,
    num_steps=2,
    batch_size=0,
    batches=(4,),
    until=(24,),
    num_candidates=12,
    num_design=12,
    held_out_pairs=0,
    seeds_at_once=2,
)


def votes_of(rng, num_texts, num_pairs):
    first, second = np.triu_indices(num_texts, 1)
    some = rng.permutation(len(first))[:num_pairs]
    items = np.stack([first[some], second[some]], axis=1).astype(np.int32)
    votes = rng.integers(0, 4, (num_pairs, 3)).astype(np.float32)
    votes[:, 0] += votes.sum(axis=1) == 0
    return Votes(items, votes)


def problems(seeds, num_empty=3):
    """Returns the inputs of seeds; the last pairs of the pool are padding without votes."""
    found = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        pool = votes_of(rng, NUM_TEXTS, NUM_PAIRS)
        pool.votes[NUM_PAIRS - num_empty :] = 0
        held = votes_of(rng, 8, 10)
        held.votes[:, 0] += 1
        judged = rng.permutation(NUM_TEXTS)[:8].astype(np.int32)
        texts = np.arange(NUM_TEXTS, dtype=np.int32)
        division = Division(texts, texts >= 0, pool, judged, held, held, held)
        features = rng.normal(size=(NUM_TEXTS, WIDTH)).astype(np.float32)
        log_prob = rng.normal(size=NUM_TEXTS).astype(np.float32)
        scale = np.float32(1.0)
        found.append(Problem((), {"features": features}, log_prob, division, (), scale))
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(np.array(seeds))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)._replace(key=keys)


def asked(state):
    """Returns which pairs of the pool were asked."""
    return training.asked(state.store, NUM_PAIRS)


LAPLACE = dataclasses.replace(TINY, kind="laplace", num_members=6, num_steps=8)


def whole(arm, setting=TINY):
    """Returns `(input) -> (first metrics, interaction, metrics)`, all rounds of one seed."""
    made = make_process(setting, arm)

    def run(problem):
        state, before = made.start(problem)
        state, metrics = made.rounds(state, 0, setting.plan()[0])
        return before, state.interaction, metrics

    return run


@pytest.fixture(scope="module")
def all_arms():
    """Runs every arm on two seeds, in one program."""
    inputs = problems((0, 1))

    def run(problem):
        state, before = make_process(TINY, "random").start(problem)  # all arms have this start
        rounds = {arm: make_process(TINY, arm).rounds for arm in ARMS}
        ends = {arm: rounds[arm](state, 0, TINY.plan()[0]) for arm in ARMS}
        return {arm: (before, end.interaction, metrics) for arm, (end, metrics) in ends.items()}

    return inputs, jax.device_get(jax.jit(jax.vmap(run))(inputs))


def test_every_query_is_of_the_pool_and_asked_once(all_arms):
    inputs, found = all_arms
    for arm, (_, state, _) in found.items():
        were_asked = np.asarray(jax.vmap(asked)(state))
        assert state.store.size.tolist() == [24, 24] == were_asked.sum(axis=1).tolist(), arm
        for seed in range(2):
            pool = jax.tree.map(lambda leaf, seed=seed: leaf[seed], inputs.division.pool)
            given = dict(zip(map(tuple, pool.items.tolist()), pool.votes, strict=True))
            shown = [tuple(pair) for pair in state.store.comparisons.query.item_ids[seed].tolist()]
            assert len(set(shown)) == 24, arm  # none twice
            assert set(shown) == set(map(tuple, pool.items[were_asked[seed]].tolist())), arm
            ranks = state.store.comparisons.ranks[seed].tolist()
            for pair, answer in zip(shown, ranks, strict=True):
                assert given[pair][RANKS.index(tuple(answer))] > 0  # somebody said so


def test_all_arms_start_alike_and_go_apart(all_arms):
    _, found = all_arms
    starts = {make_process(TINY, arm).start for arm in ARMS}
    assert len(starts) == 1  # one function, so that it is compiled once
    for before, _, metrics in found.values():
        assert np.all(before["decided"] == 0) and np.all(np.diff(metrics["decided"]) >= 0)
        assert metrics["new_log_loss"].shape == (2, 6)
    ends = {tuple(metrics["new_log_loss"][:, -1].tolist()) for *_, metrics in found.values()}
    assert len(ends) >= len(ARMS) - 1  # infomax and variance may ask the same


@pytest.mark.parametrize(("setting", "arm"), [(TINY, "joint_infomax"), (LAPLACE, "v_optimal")])
def test_seeds_at_once_are_seeds_alone(setting, arm):
    inputs = problems((0, 1))
    one = jax.tree.map(lambda leaf: leaf[1], inputs)
    _, state, metrics = jax.jit(whole(arm, setting))(one)
    _, both, both_metrics = jax.jit(jax.vmap(whole(arm, setting)))(inputs)
    np.testing.assert_array_equal(asked(state), jax.vmap(asked)(both)[1])
    for name, values in metrics.items():
        np.testing.assert_allclose(values, both_metrics[name][1], rtol=1e-4, atol=1e-4)


def test_a_pool_is_asked_to_its_end():
    """Fewer queries are left than candidates are drawn, and those without votes are not asked."""
    setting = dataclasses.replace(TINY, batches=(7,), until=(35,), num_candidates=1000)
    one = jax.tree.map(lambda leaf: leaf[0], problems((0, 1), num_empty=5))
    _, state, _ = jax.jit(whole("infomax", setting))(one)
    np.testing.assert_array_equal(asked(state), np.arange(NUM_PAIRS) < NUM_PAIRS - 5)


def test_answers_follow_the_votes():
    votes = np.array([[3, 1, 0], [1, 1, 2], [0, 0, 5]], np.float32)
    pool = Votes(jnp.arange(6).reshape(3, 2), jnp.asarray(votes))
    num = 4000
    keys = jax.random.split(jax.random.key(0), num)
    numbers = jnp.array([2, 0, 1])
    queries = item_query(pool.items[numbers], prompt_id=numbers)
    rater = choice.recorded_vote_rater(pool.votes)
    found = jax.jit(jax.vmap(lambda key: training.ask_together(rater, key, queries)))(keys)
    assert found.query.item_ids[0].tolist() == [[4, 5], [0, 1], [2, 3]]
    for place, pair in enumerate((2, 0, 1)):
        shares = votes[pair] / votes[pair].sum()
        for ranks, share in zip(RANKS, shares, strict=True):
            times = np.all(np.asarray(found.ranks[:, place]) == ranks, axis=-1).mean()
            assert abs(times - share) <= 4 * np.sqrt(share * (1 - share) / num)


def test_passive_asks_in_proportion_to_the_frozen_models_likings():
    setting = dataclasses.replace(TINY, batches=(1,), until=(1,), num_candidates=NUM_PAIRS)
    inputs = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), problems((0, 1)))
    num = 3000
    keys = jax.random.split(jax.random.key(3), num)
    run = whole("passive", setting)
    ask = jax.jit(jax.vmap(lambda key: asked(run(inputs._replace(key=key))[1])))
    times = np.asarray(ask(keys)).mean(axis=0)
    weights = np.exp(inputs.log_prob[inputs.division.pool.items].sum(axis=1))
    weights[-3:] = 0  # no votes
    law = weights / weights.sum()
    assert np.all(np.abs(times - law) <= 4.5 * np.sqrt(law * (1 - law) / num) + 1e-9)


def test_a_data_set_may_have_no_held_out_pairs_of_known_items(monkeypatch, tmp_path):
    judgements = lambda *_, **__: Judgements(rows_of("pool", 40), [], rows_of("new", 8), "")
    rows_of = lambda name, num: [Row(name, (f"a{n}", f"b{n}"), (1, 2)) for n in range(num)]
    monkeypatch.setattr(splits, "load_judgements", judgements)
    texts, division = splits.load_divisions("any", (0, 1), data_dir=None, held_out_pairs=0)
    assert division.known is None
    features = np.random.default_rng(0).normal(size=(2, len(texts), WIDTH)).astype(np.float32)
    inputs = problems((0, 1))._replace(
        table={"features": features}, log_prob=features[..., 0], division=division
    )
    metrics = run_seeds(
        make_process(TINY, "infomax"), inputs, tmp_path, TINY.plan(), seeds_at_once=1
    )
    assert np.all(metrics["new_log_loss"] > 0)
    assert not [name for name in metrics if name.startswith("known")]


@pytest.mark.parametrize(("learns", "arm"), [(TINY, "infomax"), (LAPLACE, "v_optimal")])
def test_a_killed_run_ends_in_the_same_numbers(learns, arm, tmp_path):
    setting = dataclasses.replace(learns, batches=(1,), until=(2 * CHUNK_ROUNDS,))
    inputs = problems((0, 1))

    def run(folder, **kwargs):
        made = make_process(setting, arm)
        return run_seeds(made, inputs, tmp_path / folder, setting.plan(), **kwargs)

    def kill(rounds):
        raise KeyboardInterrupt

    uncut = run("uncut")
    with pytest.raises(KeyboardInterrupt):
        run("killed", progress=kill)
    assert (tmp_path / "killed" / "checkpoints" / str(CHUNK_ROUNDS)).is_dir()
    resumed = run("killed")
    for name, values in uncut.items():
        np.testing.assert_array_equal(values, resumed[name], err_msg=name)
    assert np.ptp(uncut["new_log_loss"], axis=1).min() > 0  # something was learned


@jax.jit
def measures_of(key, utilities, known, new, joint):
    """Returns the measures of members with utilities `[M, E]`."""
    members = lambda pairs: utilities[:, pairs]
    choices = lambda pairs: ensembles.mixture_log_probs(choice.luce_log_probs(members(pairs)))
    return measures(key, choices, members, known, new, joint)


def test_measures_are_those_of_a_direct_computation(float64):
    rng = np.random.default_rng(0)
    utilities = rng.normal(size=(4, 8))
    known, new = votes_of(rng, 8, 12), votes_of(rng, 8, 15)
    joint = Votes(new.items[:3], np.maximum(new.votes[:3], 1))
    found = measures_of(jax.random.key(0), jnp.asarray(utilities), known, new, joint)
    for name, part in {"known": known, "new": new}.items():
        gaps = utilities[:, part.items[:, 0]] - utilities[:, part.items[:, 1]]
        p = expit(gaps).mean(axis=0)
        # `score` takes utilities; their difference here is the mixture's log-odds.
        rows = [
            Row("", (f"{a} ", f" {b}"), ranks, float(count))
            for (a, b), counts in zip(part.items, part.votes, strict=True)
            for ranks, count in zip(RANKS, counts, strict=True)
        ]
        odds = np.repeat(np.stack([np.log(p) - np.log1p(-p), 0 * p], axis=1), 3, axis=0)
        expected = baselines.score(rows, odds)
        for measure in ("log_loss", "accuracy", "calibration_error"):
            np.testing.assert_allclose(found[f"{name}_{measure}"], expected[measure], rtol=1e-9)
        first, second = part.votes[:, :2].T
        brier = (first @ (1 - p) ** 2 + second @ p**2) / (first + second).sum()
        np.testing.assert_allclose(found[f"{name}_brier"], brier, rtol=1e-9)
    decided = new.votes[:, :2].sum()
    np.testing.assert_allclose(found["new_count"].sum(), decided)
    np.testing.assert_allclose(found["new_observed"].sum(), new.votes[:, 0].sum())
    gaps = utilities[:, joint.items[:, 0]] - utilities[:, joint.items[:, 1]]
    np.testing.assert_allclose(found["disagreement"], np.sqrt(gaps.var(axis=0).mean()))
    assert "known_count" not in found


def test_the_joint_loss_is_an_average_over_dyadic_labels(float64):
    """With one pair it is the log-loss of ten tosses of one coin, summed over the outcomes."""
    rng = np.random.default_rng(1)
    utilities = np.stack([2 * rng.normal(size=3), np.zeros(3)], axis=1)
    pair = Votes(np.array([[0, 1]]), np.array([[3.0, 1.0, 2.0]]))
    keys = jax.random.split(jax.random.key(0), 40)
    utilities = jnp.asarray(utilities)
    loss = lambda key: measures_of(key, utilities, pair, pair, pair)["joint_log_loss"]
    draws = jax.jit(jax.vmap(loss))(keys)
    gaps = np.asarray(utilities[:, 0])
    expected = square = 0.0
    for first in range(11):
        weight = binom.pmf(first, 10, 0.75)
        members = first * log_expit(gaps) + (10 - first) * log_expit(-gaps)
        nats = np.log(3) - logsumexp(members)
        expected, square = expected + weight * nats, square + weight * nats**2
    error = np.sqrt((square - expected**2) / (40 * JOINT_DRAWS))
    assert abs(np.mean(draws) - expected) < 4 * error
