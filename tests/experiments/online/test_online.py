"""Online: the population's law, the members' samples, exact and sampled measures, the binary."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.words import mentions
from experiments.online import measures, population
from experiments.online.arms import ARMS, Speaker, chooser
from experiments.online.config import settled
from experiments.online.members import (
    make_candidates,
    make_one,
    member_log_probs,
    member_params,
    member_samples,
    next_token_laws,
    propose,
)
from experiments.online.one_model import response_utility
from experiments.online.texts import text_measures
from experiments.online.world import (
    Responses,
    all_responses,
    base_samples,
    load_world,
    read,
)
from shatter import documents, exploration, losses
from tests.experiments.online.worlds import (
    TINY,
    WORDS,
    draw_members,
    load,
    next_laws,
    one_of,
    read_everything,
    shown,
    tiny,
)

pytestmark = pytest.mark.slow  # whole runs of an experiment


def test_the_population_is_as_documented(folder, tmp_path, float64):
    world, fixed = load(folder, tmp_path, "closed")

    @jax.jit
    def compute(fixed):
        everything = read(world, fixed, all_responses(world, fixed.params))
        log_q = everything.log_p0 + population.log_tilt(world, fixed, everything)
        return everything, log_q, next_laws(world, fixed.params)

    everything, log_q, base = compute(fixed)
    for p0, found in zip(np.exp(base), np.asarray(log_q), strict=True):
        text = [world.tokenizer.decode([token]) for token in range(len(p0))]
        likes = [(t in ("happy", "very")) * 1.0 - (t in ("friend", "mom")) for t in text]
        assert set(likes) == {-1, 0, 1}
        first, second = p0 * np.exp(5 * np.array(likes)), p0 * np.exp(-5 * np.array(likes))
        expected = 0.7 * first / first.sum() + 0.3 * second / second.sum()
        np.testing.assert_allclose(np.exp(found), expected, rtol=1e-10)
    pair = jnp.argsort(log_q[1])[-3:-1]
    query = shown(everything, 1, pair)
    ranks = jax.jit(
        lambda keys: jax.vmap(population.make_rater(world, fixed), in_axes=(0, None))(keys, query)
    )(jax.random.split(jax.random.key(0), 4000))
    chance = jax.nn.sigmoid(log_q[1, pair[0]] - log_q[1, pair[1]])
    assert 0.05 < chance < 0.95
    np.testing.assert_allclose(np.mean(ranks[:, 0] == 1), chance, atol=4 * 0.5 / 4000**0.5)


def test_people_of_one_segment_choose_by_its_law(folder, tmp_path, float64):
    world, fixed = load(folder, tmp_path, "closed", people="segments")
    everything = read_everything(world, fixed)
    log_p0 = jax.jit(partial(next_laws, world))(fixed.params)[1]
    liked = [[word[0] for word in words] for words in world.likes]
    pairs = jnp.array(list(itertools.product(*liked)))  # a word that each segment likes
    pair = pairs[jnp.argmin(jnp.abs(log_p0[pairs[:, 0]] - log_p0[pairs[:, 1]]))]
    query = shown(everything, 1, pair)

    @jax.jit
    def compute(keys):
        rater = population.make_rater(world, fixed)
        log_q = query.log_p0[:, None] + population.log_tilts(world, fixed, query)
        return jax.vmap(rater, in_axes=(0, None))(keys, query), log_q

    ranks, log_q = compute(jax.random.split(jax.random.key(0), 4000))
    by_segment = 1 / (1 + np.exp(log_q[1] - log_q[0]))
    assert by_segment[0] > 0.7 and by_segment[1] < 0.3  # the segments are of opposite opinions
    chance = 0.7 * by_segment[0] + 0.3 * by_segment[1]
    np.testing.assert_allclose(np.mean(ranks[:, 0] == 1), chance, atol=4 * 0.5 / 4000**0.5)
    law = np.exp(log_q) @ np.array([0.7, 0.3])
    assert abs(law[0] / law.sum() - chance) > 0.05  # people of the mixture choose otherwise


@pytest.mark.parametrize("utility", ["sum", "tilt"])
def test_inclusive_learning_from_infinitely_many_answers_ends_in_q(
    folder, tmp_path, float64, utility
):
    """By either utility, of people who choose as it takes them to."""
    world, fixed = load(folder, tmp_path, "closed", utility=utility)
    everything = all_responses(world, fixed.params)
    log_p0 = jax.jit(partial(next_laws, world))(fixed.params)[0]
    tilt = jax.jit(partial(population.log_tilt, world, fixed))(everything)[0]
    log_q = log_p0 + tilt
    pairs = jnp.stack(jnp.triu_indices(len(log_q), k=1), axis=-1)
    values = population.valued(world, log_p0, tilt)
    np.testing.assert_array_equal(values, tilt if utility == "tilt" else log_q)
    chances = jax.nn.softmax(values[pairs])

    def expected_loss(logits):
        utilities = jax.nn.log_softmax(logits)
        if utility == "tilt":
            utilities = utilities - log_p0
        ranks = jnp.array([[1, 2], [2, 1]])
        of_answer = lambda ranks: losses.ilhf_ranking_loss(
            utilities[pairs], jnp.broadcast_to(ranks, pairs.shape)
        )
        return jnp.mean(jnp.sum(chances * jax.vmap(of_answer)(ranks).T, axis=-1))

    of = jax.jit(jax.value_and_grad(expected_loss))
    (at_q, gradient), (at_p0, away) = of(log_q), of(log_p0)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12)
    assert jnp.abs(away).max() > 1e-3 and at_q < at_p0


@pytest.mark.parametrize("layers", [1, "last_mlp_out"])
def test_members_score_as_whole_models(folder, tmp_path, float64, layers):
    world, fixed = load(folder, tmp_path, "open", adapted_layers=layers)
    own = draw_members(world, fixed)

    @jax.jit
    def both(own, fixed):
        drawn = member_samples(world, fixed.params, own, jax.random.key(1), 6)
        known = read(world, fixed, drawn)
        found = jax.vmap(lambda own: member_log_probs(world, fixed.params, own, known))(own)
        tilted = world._replace(config=dataclasses.replace(world.config, utility="tilt"))
        utilities = [
            jax.vmap(lambda own: response_utility(w, fixed.params, kind, own, known))(own)  # noqa: B023
            for w, kind in ((world, "ilhf"), (tilted, "ilhf"), (world, "dpo"))
        ]
        expected, base = [], []
        for m in range(2):
            whole = member_params(world, fixed.params, one_of(own, m))
            for p in range(2):  # without padding, and without split layers
                start = (2, 0)[p]  # "saw a" is shorter than "a dog found a" by two
                tokens, mask = drawn.tokens[p, :, start:], drawn.mask[p, :, start:]
                of = lambda params: documents.log_prob(world.lm.apply(params, tokens), tokens, mask)  # noqa: B023
                expected.append(of(whole))
                base.append(of(fixed.params))
        return known, found, jnp.stack(expected), jnp.stack(base[:2]), utilities

    known, found, expected, base, (summed, tilts, dpo) = both(own, fixed)
    np.testing.assert_allclose(found, expected.reshape(found.shape), atol=1e-10)
    np.testing.assert_allclose(known.log_p0, base, atol=1e-10)
    np.testing.assert_allclose(summed, found, atol=1e-12)
    np.testing.assert_allclose(tilts, np.subtract(found, base), atol=1e-10)
    np.testing.assert_allclose(dpo, 0.1 * np.subtract(found, base), atol=1e-10)
    assert np.abs(tilts).max() > 1e-3  # the members are not the base
    ended = np.isin(known.tokens, world.ends) & known.mask
    assert not (ended[..., :-1] & known.mask[..., 1:]).any()  # a response ends with its sentence


@pytest.mark.parametrize("layers", [1, "last_mlp_out"])
def test_features_are_those_of_the_response(folder, tmp_path, float64, layers):
    world, fixed = load(folder, tmp_path, "open", adapted_layers=layers)

    @jax.jit
    def both(fixed):
        known = read(world, fixed, base_samples(world, fixed.params, jax.random.key(1), 3))
        start = 2  # the padding of the first prompt
        return known, world.lm.features(fixed.params, known.tokens[0, :, start:])

    known, features = both(fixed)
    mask = np.asarray(known.mask[0, :, 2:])
    for found, states, said in zip(known.features[0], features, mask, strict=True):
        expected = np.concatenate([states[said].mean(axis=0), states[said][-1]])
        np.testing.assert_allclose(found, expected, atol=1e-9)
    assert len({int(said.sum()) for said in mask}) > 1  # responses of several lengths


def test_exact_measures_against_a_direct_computation(folder, tmp_path, float64):
    world, fixed = load(folder, tmp_path, "closed")
    own = draw_members(world, fixed)

    @jax.jit
    def compute(own, fixed):
        params = fixed.params
        everything = read(world, fixed, all_responses(world, params))
        log_q = everything.log_p0 + population.log_tilt(world, fixed, everything)
        laws = [next_laws(world, member_params(world, params, one_of(own, m))) for m in range(2)]
        scores = [  # looked up in the laws, and as of any response
            member_log_probs(w, params, one_of(own, 1), everything)
            for w in (world, world._replace(is_closed=False))
        ]
        of = jax.vmap(partial(member_log_probs, world, params), in_axes=(0, None))
        measure = lambda own: measures.closed(world, fixed, Speaker(own, partial(of, own), None))
        of_p0 = measure(jax.tree.map(jnp.zeros_like, own))
        return measure(own), of_p0, log_q, jnp.stack(laws), scores

    found, of_p0, log_q, laws, scores = compute(own, fixed)
    mixture, q = np.exp(laws).mean(axis=0), np.exp(log_q)
    next_p0 = jax.jit(partial(next_laws, world))(fixed.params)
    np.testing.assert_allclose(found["kl"], np.mean(np.sum(q * (log_q - np.log(mixture)), 1)))
    np.testing.assert_allclose(found["total_variation"], np.abs(q - mixture).sum(1).mean() / 2)
    best = [log_q[p, [law[p].argmax() for law in (mixture, np.exp(next_p0))]] for p in range(2)]
    wins = [1 / (1 + np.exp(base - own)) for own, base in best]
    np.testing.assert_allclose(found["win_greedy"], np.mean(wins))
    np.testing.assert_allclose(found["entropy"], -np.mean(np.sum(mixture * np.log(mixture), 1)))
    read_out = np.exp(next_p0) * mixture ** (1 / 0.3)
    read_out /= read_out.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        found["readout_kl"], np.mean(np.sum(q * (log_q - np.log(read_out)), 1))
    )
    np.testing.assert_allclose(of_p0["kl"], of_p0["base_kl"], rtol=1e-9)
    np.testing.assert_allclose(of_p0["kl_to_base"], 0.0, atol=1e-12)
    for score in scores:
        np.testing.assert_allclose(score, laws[1], atol=1e-10)


def test_sampled_measures_estimate_the_exact_ones(folder, tmp_path):
    """On responses of one token, where both are known."""
    world, fixed = load(folder, tmp_path, "closed", taste=3.0)
    own = draw_members(world, fixed, prior_scale=6.0)

    @jax.jit
    def both(own, fixed, key):
        pool = read(world, fixed, base_samples(world, fixed.params, key, 4000))
        tilt = population.log_tilt(world, fixed, pool)
        tilts = population.log_tilts(world, fixed, pool)
        none = jnp.zeros((2, 1, 2), int)
        held_out = measures.HeldOut(pool, tilts, none, none[..., 0], none, none[..., 0])
        score = jax.vmap(lambda own: member_log_probs(world, fixed.params, own, pool))(own)
        found = measures._from_pool(world, held_out, score, score)
        at_q = measures._of_law(world, held_out, pool.log_p0 + tilt)
        of = lambda known: jax.vmap(lambda own: member_log_probs(world, fixed.params, own, known))(
            own
        )
        return found, at_q, measures.closed(world, fixed, Speaker(own, of, None))

    found, at_q, exact = both(own, fixed, jax.random.key(5))
    for name in ("kl", "kl_majority", "kl_minority"):
        np.testing.assert_allclose(found[name], exact[name], atol=0.06)
    assert abs(at_q["kl"]) < 0.03 and exact["kl"] > 0.2


def test_greedy_decoding_is_the_likeliest_token_after_token(folder, tmp_path):
    """And of several members that of the one which the mixture finds likeliest."""
    world, fixed = load(folder, tmp_path, "open", utility="tilt")
    own = draw_members(world, fixed, prior_scale=30.0)

    @jax.jit
    def greedy(own, fixed):
        score = jax.vmap(
            lambda own, known: member_log_probs(world, fixed.params, own, known), in_axes=(0, None)
        )
        return measures._greedy_wins(world, fixed, own, jax.random.key(0), score)

    found = greedy(own, fixed)
    apply = jax.jit(world.lm.apply)

    def decoded(params, prompt):
        tokens = [1, *world.tokenizer.encode(prompt)]
        begin = len(tokens)
        while len(tokens) < begin + world.config.max_length:
            tokens.append(int(jnp.argmax(apply(params, jnp.array([tokens]))[0, -1])))
            if tokens[-1] in world.ends:
                break
        return tokens, begin

    def log_prob(params, tokens, begin):
        laws = jax.nn.log_softmax(apply(params, jnp.array([tokens]))[0])
        return sum(float(laws[t - 1, tokens[t]]) for t in range(begin, len(tokens)))

    for p, prompt in enumerate(TINY["prompts"]):
        members = [member_params(world, fixed.params, one_of(own, m)) for m in range(2)]
        texts = [decoded(params, prompt) for params in members]
        mixture = [np.logaddexp(*(log_prob(params, *text) for params in members)) for text in texts]
        both = [texts[int(np.argmax(mixture))], decoded(fixed.params, prompt)]
        liked = []
        for tokens, begin in both:
            words = set(tokens[begin:])
            first, second = (any(w[0] in words for w in likes) for likes in world.likes)
            tilt = 4.0 * (float(first) - float(second)) * np.array([1.0, -1.0])
            tilt = tilt - np.asarray(fixed.log_z[p])
            liked.append(np.log(np.exp(tilt) @ np.array([0.7, 0.3])))
        np.testing.assert_allclose(found[p], 1 / (1 + np.exp(liked[1] - liked[0])), rtol=1e-4)


@pytest.mark.parametrize("setting", ["open", "chat"])
def test_queries_are_taken_from_candidates_to_their_prompts(folder, tmp_path, setting):
    """Of which every query has its own, and in the setting chat every prompt."""
    world, fixed = load(folder, tmp_path, "open")
    world = world._replace(
        config=dataclasses.replace(world.config, setting=setting, queries_per_round=40)
    )
    source = make_candidates(world, fixed.params, "base")
    candidates = lambda key, prompt_id: source(key, None, prompt_id)
    values = lambda known: jnp.stack([known.log_p0, -known.log_p0])

    @jax.jit
    def ask(fixed):
        return propose(
            world,
            fixed,
            candidates,
            values,
            chooser(ARMS["passive"], is_tilt=False),
            jax.random.key(0),
        )

    asked = ask(fixed)
    read_again = jax.jit(lambda fixed: read(world, fixed, asked, valid=asked.valid))(fixed)
    for found, again in zip(asked, read_again, strict=True):  # each belongs to its document
        np.testing.assert_allclose(found, again, rtol=1e-4, atol=1e-5)
    begins = [[1, *world.tokenizer.encode(prompt)] for prompt in TINY["prompts"]]
    for prompt, rows in zip(asked.prompt_id, asked.tokens[:, :, :5], strict=True):
        begin = begins[int(prompt)]
        assert all(row[-len(begin) :].tolist() == begin for row in rows)
    texts = {tuple(row) for row in asked.tokens.reshape(80, -1).tolist()}
    assert (len(texts) <= 8) == (setting == "chat")  # two prompts of four candidates each


def test_queries_of_a_prompt_differ_where_they_share_candidates(folder, tmp_path):
    """Though the arm is not random: each may choose from a half of the pool."""
    world, fixed = load(folder, tmp_path, "open", num_candidates=8, num_members=2, max_length=6)
    config = dataclasses.replace(world.config, setting="chat", queries_per_round=24)
    world = world._replace(config=config)
    source = make_candidates(world, fixed.params, "base")
    candidates = lambda key, prompt_id: source(key, None, prompt_id)
    values = lambda known: jnp.stack([known.log_p0, -known.log_p0])
    ask = lambda fixed: propose(
        world, fixed, candidates, values, chooser(ARMS["infomax"], is_tilt=False), jax.random.key(0)
    )
    asked = jax.jit(ask)(fixed)
    assert bool(jnp.all(asked.valid))
    pairs = {tuple(sorted(map(tuple, pair))) for pair in asked.tokens.tolist()}
    assert len(pairs) >= 8  # one a prompt would be 2


def test_one_model_without_members_is_the_base_and_is_pulled_to_it(folder, tmp_path, float64):
    world, fixed = load(folder, tmp_path, "closed")
    one = make_one(world, fixed.params, jnp.asarray(3.0))

    @jax.jit
    def compute(fixed):
        own = jax.tree.map(lambda leaf: leaf[0], one.init(jax.random.key(1))[1])
        law = next_token_laws(world, fixed.params, own)
        moved = jax.tree.map(lambda leaf: leaf + 0.1, own)
        return law, one.penalty(own, own), one.penalty(moved, own), one.start(own)

    law, at_start, away, _ = compute(fixed)
    np.testing.assert_allclose(law, next_laws(world, fixed.params), atol=1e-10)
    assert at_start == 0 < away
    np.testing.assert_array_equal(one.observation_weights(jax.random.key(0), (3,)), [[1, 1, 1]])


def test_v_optimal_weighs_candidates_by_their_law_though_values_are_tilts(float64):
    keys = jax.random.split(jax.random.key(0), 3)
    values, log_p0 = jax.random.normal(keys[0], (20, 5, 6)), jax.random.normal(keys[1], (20, 6))
    valid, choose = jnp.ones(6, bool), chooser(ARMS["v_optimal"], is_tilt=True)

    @jax.jit
    def pairs(values, log_p0):
        of_law = jax.nn.logsumexp(values + 3.0 * log_p0[None], axis=0)
        found = choose(keys[2], values, 3.0 * log_p0, valid, jnp.ones(6, int))
        return jnp.sort(
            jnp.stack(
                [
                    found,
                    exploration.v_optimal(keys[2], values, valid=valid, law=of_law),
                    exploration.v_optimal(keys[2], values, valid=valid),
                ]
            )
        )

    rows = jax.lax.map(lambda row: pairs(*row), (values, log_p0))
    found, expected, of_tilts = jnp.moveaxis(rows, 1, 0)
    np.testing.assert_array_equal(found, expected)
    assert jnp.any(of_tilts != expected)  # the law of the tilts is another one


def test_texts_are_counted(folder, tmp_path):
    world, _ = load_world(settled(tiny(folder, tmp_path, setting="open")))
    index = {word: 3 + n for n, word in enumerate(WORDS)}
    sentences = ["big big .", "big big .", "little red saw", "small ."]
    rows = [[index[word] for word in text.split()] for text in sentences]
    tokens = jnp.array([[11, 11, *row, *[2] * (3 - len(row))] for row in rows])
    mask = jnp.array(
        [[False, False, *[True] * len(row), *[False] * (3 - len(row))] for row in rows]
    )
    found = text_measures(world, Responses(jnp.array([0]), tokens[None], mask[None]))
    np.testing.assert_allclose(found["likes_majority"], 3 / 4)
    np.testing.assert_allclose(found["likes_minority"], 2 / 4)
    np.testing.assert_allclose(found["distinct"], 5 / 7)
    sets = [set(text.split()) for text in sentences]
    distance = [1 - len(a & b) / len(a | b) for i, a in enumerate(sets) for b in sets[:i]]
    np.testing.assert_allclose(found["pairwise"], np.mean(distance), rtol=1e-6)
    np.testing.assert_allclose(found["length"], 11 / 4)
    both = mentions(tokens, mask, ((index["red"], index["saw"]), (index["small"],)))
    assert both.tolist() == [False, False, True, True]


@pytest.mark.parametrize("source", ["base", "learner"])
def test_candidates_come_from_where_they_should(folder, tmp_path, source):
    world, fixed = load(folder, tmp_path, "closed")
    own = draw_members(world, fixed, prior_scale=6.0)

    @jax.jit
    def draw(keys, params, own):
        candidates = make_candidates(world, params, source)
        prompts = jnp.arange(len(keys)) % 2
        drawn = jax.vmap(candidates, in_axes=(0, None, 0))(keys, own, prompts)
        laws = jax.vmap(lambda own: next_token_laws(world, params, own))(own)
        return drawn, jnp.exp(laws), jnp.exp(next_laws(world, params))

    keys = jax.random.split(jax.random.key(2), 3000)
    drawn, laws, base = draw(keys, fixed.params, own)
    assert jnp.abs(laws - base[None]).sum(-1).min() > 0.2  # the members are not the base
    expected = {"base": jnp.stack([base, base]), "learner": laws}[source]
    for p in range(2):
        said = np.asarray(drawn.tokens[drawn.prompt_id == p, :, -1])
        for m, part in enumerate((said[:, :2], said[:, 2:])):  # a member's share
            found = np.bincount(part.ravel(), minlength=base.shape[1]) / part.size
            np.testing.assert_allclose(found, expected[m, p], atol=4 * 0.5 / part.size**0.5)
