"""Interactions on documents of two tokens of three; whole runs in double precision."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

from shatter.choice import choice_ranks, luce_rater, table_utility
from shatter.documents import document_log_probs, enumerate_documents, log_prob
from shatter.ensembles import (
    Ensemble,
    anchored,
    mixture_log_probs,
    point_estimate,
    prior_functions,
)
from shatter.exploration import drawn_candidates, infomax, pool_candidates, uniform
from shatter.losses import ilhf_loss, ilhf_ranking_loss
from shatter.models import tabular
from shatter.numerics import kl_divergence
from shatter.training import ask, ask_together, interaction, pair_proposer, run_rounds
from shatter.types import Comparison, Query, item_query

LM = tabular(vocab_size=3, max_length=2)
TOKENS, MASK = enumerate_documents(vocab_size=3, max_length=2)
PRETRAINED = np.random.default_rng(0).normal(size=(1, 4, 3))
DENSITY = np.random.default_rng(3).dirichlet(np.full(9, 1.0))

SEEDS, ROUNDS, QUERIES, MEMBERS, CAPACITY = 4, 6, 4, 3, 16  # the store is full after 4 rounds
LEARNING_RATE, STEPS, PRIOR_SCALE = 0.1, 4, 0.8


def table_log_probs(params):
    """Log-probs of the nine documents, from the table by hand."""
    levels = jax.nn.log_softmax(params[0])
    return (levels[0][:, None] + levels[1:]).reshape(9)


def some_candidates(key, shared, own):
    """The first two documents and a random part of the others."""
    del shared, own
    valid = (jax.random.uniform(key, (9,)) < 0.6) | (jnp.arange(9) < 2)
    return pool_candidates(TOKENS, MASK, valid=valid)


def table_score(shared, own, responses):
    del shared
    return table_log_probs(own)[responses.item_ids]


def widest(key, log_probs, *, valid, num_responses):
    """Chooses where the members' log-probs are spread most; an arm that compiles fast."""
    del key
    spread = jnp.where(valid, jnp.std(log_probs, axis=0), -1.0)
    return jnp.argsort(spread, descending=True)[:num_responses]


def assemble(ensemble, **changes):
    """An interaction of parts that are quick to compile, but for `changes`."""
    settings = {
        "candidates": some_candidates,
        "score": table_score,
        "explore": widest,
        "loss": ilhf_ranking_loss,
        "optimizer": optax.adam(LEARNING_RATE),
        "num_queries": QUERIES,
        "capacity": CAPACITY,
        "num_steps": STEPS,
    } | changes
    candidates, explore = settings.pop("candidates"), settings.pop("explore")
    num_queries = settings.pop("num_queries")
    propose = pair_proposer(candidates, settings["score"], explore, num_queries=num_queries)
    return interaction(ensemble, propose=propose, **settings)


def library_parts(ensemble):
    """The parts that a user would take from the library."""

    def score(shared, own, responses):
        logits = ensemble.apply(shared, own, responses.tokens)
        return log_prob(logits, responses.tokens, responses.mask)

    def candidates(key, shared, own):
        del shared, own
        proposal = document_log_probs(LM, jnp.asarray(PRETRAINED), TOKENS, MASK)
        return drawn_candidates(key, proposal, TOKENS, MASK, num_candidates=6)

    return {"score": score, "candidates": candidates, "explore": infomax}


def default_process():
    return assemble(
        anchored(LM, jnp.asarray(PRETRAINED), num_members=MEMBERS, prior_scale=PRIOR_SCALE)
    )


def rater(key, query):
    """Chooses by Luce's rule from one uniform number, so that a host can do the same."""
    shown = jnp.log(jnp.asarray(DENSITY))[query.item_ids]
    second = jax.random.uniform(key) > jax.nn.sigmoid(shown[0] - shown[1])
    return choice_ranks(second.astype(int), query.valid)


def evaluate(state):
    prediction = mixture_log_probs(jax.vmap(table_log_probs)(state.members.params))
    return {"kl": kl_divergence(jnp.log(jnp.asarray(DENSITY)), prediction)}


def seed_keys():
    """Keys of the seeds: where a run begins, and what it draws from."""
    keys = jax.random.split(jax.random.key(7), (SEEDS, 2))
    return keys[:, 0], keys[:, 1]


@cache
def halves():
    """`init`, `propose` and `learn` of one seed, each compiled by itself."""
    return [jax.jit(half) for half in default_process()]


@cache
def begin():
    return jax.jit(jax.vmap(default_process().init))


@cache
def advance(num_rounds):
    rounds = partial(run_rounds, default_process(), rater, evaluate, num_rounds=num_rounds)
    return jax.jit(
        jax.vmap(lambda state, key, first: rounds(state, key, first_round=first), (0, 0, None))
    )


@cache
def uncut():
    init_keys, run_keys = seed_keys()
    return advance(ROUNDS)(begin()(init_keys), run_keys, 0)


def plain(tree):
    """Leaves as numpy arrays, keys by their data."""

    def leaf(array):
        is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(array) if is_key else array)

    return jax.tree.map(leaf, tree)


def assert_same(actual, expected):
    """Whether integers are equal and numbers as good as equal."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
        plain(actual),
        plain(expected),
    )


@pytest.mark.slow
def test_a_run_cut_into_chunks_is_the_uncut_run_to_the_bit(float64):
    state, metrics = uncut()
    assert metrics["kl"].shape == metrics["loss"].shape == (SEEDS, ROUNDS)
    init_keys, run_keys = seed_keys()
    first, first_metrics = advance(3)(begin()(init_keys), run_keys, 0)
    last, last_metrics = advance(3)(first, run_keys, 3)
    jax.tree.map(np.testing.assert_array_equal, plain(last), plain(state))
    for name, values in metrics.items():
        joined = np.concatenate([first_metrics[name], last_metrics[name]], axis=1)
        np.testing.assert_array_equal(joined, values)
    assert len(np.unique(metrics["kl"])) == SEEDS * ROUNDS  # neither seeds nor chunks repeat


@pytest.mark.slow
def test_halves_driven_by_a_host_seed_by_seed_are_the_vmapped_scan(float64):
    init, propose, learn = halves()
    draw = jax.jit(jax.vmap(jax.random.uniform))
    kl = jax.jit(lambda state: evaluate(state)["kl"])

    def host_rater(key, queries):
        """People in numpy: they see the documents, not the program."""
        responses = np.asarray(queries.tokens)[:, :, 1:]
        density = DENSITY[responses @ [3, 1]]
        uniforms = np.asarray(draw(jax.random.split(key, QUERIES)))
        second = uniforms > density[:, 0] / density.sum(axis=1)
        return np.where(second[:, None], [2, 1], [1, 2])

    expected_state, expected_metrics = uncut()
    init_keys, run_keys = seed_keys()
    for seed in [0, 3]:
        run_key = run_keys[seed]
        state, curve = init(init_keys[seed]), []
        for t in range(ROUNDS):
            propose_key, ask_key = jax.random.split(jax.random.fold_in(run_key, t))
            queries = propose(state, propose_key)
            ranks = jnp.asarray(host_rater(ask_key, queries))
            state, _ = learn(state, Comparison(queries, ranks, jnp.ones(QUERIES)))
            curve.append(kl(state))
        assert_same(curve, list(expected_metrics["kl"][seed]))
        assert_same(state, jax.tree.map(lambda leaf, seed=seed: leaf[seed], expected_state))


@pytest.mark.slow
def test_an_ensemble_needs_init_and_apply_only(float64):
    """Then the prior is flat and every observation counts 1."""
    anchor_less = point_estimate(LM, jnp.asarray(PRETRAINED), prior_scale=1e9)
    bare = Ensemble(anchor_less.init, anchor_less.apply)
    comparisons, _ = some_comparisons(4)

    @partial(jax.jit, static_argnums=0)
    def learned(ensemble):
        process = assemble(ensemble)
        return process.learn(process.init(jax.random.key(0)), comparisons)[0].members.params

    np.testing.assert_allclose(learned(bare), learned(anchor_less), rtol=1e-12)


@pytest.mark.slow
def test_seeds_sharded_over_devices_are_the_seeds_of_one_device(float64):
    if len(jax.devices()) < SEEDS:
        pytest.skip(f"needs {SEEDS} devices, found {len(jax.devices())}")
    mesh = jax.make_mesh((SEEDS,), ("seed",), axis_types=(jax.sharding.AxisType.Auto,))
    by_seed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("seed"))
    init_keys, run_keys = jax.device_put(seed_keys(), by_seed)
    start = begin()(init_keys)
    arguments = (start, run_keys, jnp.zeros((), int))
    program = advance(ROUNDS).lower(*arguments).compile()
    state, metrics = program(*arguments)
    assert_same((state, metrics), uncut())
    for leaf in [metrics["kl"], state.members.params, state.store.comparisons.ranks]:
        assert leaf.sharding.is_equivalent_to(by_seed, leaf.ndim)
    collectives = ["all-reduce", "all-gather", "all-to-all", "collective-permute"]
    assert not [name for name in collectives if name in program.as_text()]


def some_comparisons(count, seed=0):
    """Comparisons of two different documents each, with survey weights."""
    rng = np.random.default_rng(seed)
    items = np.stack([rng.permutation(9)[:2] for _ in range(count)])
    ranks = np.where(rng.random((count, 1)) < 0.4, [1, 2], [2, 1])
    pool = pool_candidates(TOKENS, MASK)
    query = jax.vmap(lambda items: query_of(pool, items))(jnp.asarray(items))
    weights = rng.uniform(0.2, 3.0, size=count)
    return Comparison(query, jnp.asarray(ranks), jnp.asarray(weights)), items


def query_of(pool, items):
    return Query(pool.prompt_id, pool.tokens[items], pool.mask[items], items, pool.valid[items])


def test_a_call_of_learn_is_its_documented_objective(float64):
    init, _, learn = halves()
    batches = [some_comparisons(QUERIES, seed) for seed in (1, 2)]
    start = init(jax.random.key(0))
    first, _ = learn(start, batches[0][0])
    second, metrics = learn(first, batches[1][0])

    # Each member has its own weight on every comparison, which does not change later.
    observed = slice(0, 2 * QUERIES)
    own_weights = np.asarray(second.store.member_weights)
    assert len(np.unique(own_weights[:, observed])) == 2 * QUERIES * MEMBERS
    assert np.all(own_weights[:, observed] > 0)
    np.testing.assert_array_equal(own_weights[:, 2 * QUERIES :], 0)
    np.testing.assert_array_equal(own_weights[:, :QUERIES], first.store.member_weights[:, :QUERIES])

    items = np.concatenate([items for _, items in batches])
    ranks = np.concatenate([comparisons.ranks for comparisons, _ in batches])
    survey = np.concatenate([comparisons.weight for comparisons, _ in batches])
    won = np.take_along_axis(items, ranks.argmin(axis=1)[:, None], axis=1)[:, 0]
    lost = items.sum(axis=1) - won

    @jax.vmap
    def by_hand(params, opt_state, anchor, weights):
        def objective(params):
            margin = table_log_probs(params)[won] - table_log_probs(params)[lost]
            misfit = jnp.sum(weights * survey * jnp.log1p(jnp.exp(-margin)))
            prior = jnp.sum((params - anchor) ** 2) / (2 * PRIOR_SCALE**2)
            return (misfit + prior) / (2 * QUERIES)

        optimizer = optax.adam(LEARNING_RATE)
        for _ in range(STEPS):
            loss, gradient = jax.value_and_grad(objective)(params)
            updates, opt_state = optimizer.update(gradient, opt_state)
            params = optax.apply_updates(params, updates)
        return params, loss

    before = first.members
    expected, losses = jax.jit(by_hand)(
        before.params, before.opt_state, start.members.params, own_weights[:, observed]
    )
    np.testing.assert_allclose(second.members.params, expected, rtol=1e-10)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-10)
    np.testing.assert_array_equal(second.anchors, start.members.params)
    np.testing.assert_array_equal(second.members.step, [2 * STEPS] * MEMBERS)


def gradient_of_learn(**changes):
    """`(own, key) -> gradient` on ten comparisons, by one plain step of a point estimate."""
    process = assemble(
        point_estimate(LM, jnp.asarray(PRETRAINED), prior_scale=PRIOR_SCALE),
        optimizer=optax.sgd(1.0),
        num_steps=1,
        **changes,
    )
    comparisons, _ = some_comparisons(10)

    def gradient(own, key):
        state = process.init(key)
        moved = state._replace(members=state.members._replace(params=own[None]))
        after, _ = process.learn(moved, comparisons)
        return own - after.members.params[0]

    return gradient


def moved_params():
    """Away from the anchor, so that the prior pulls too."""
    return jnp.asarray(PRETRAINED + 0.5 * np.sign(PRETRAINED))


@pytest.mark.slow
def test_a_minibatch_has_the_gradient_of_all_comparisons_on_average(float64):
    num_keys = 3_000
    keys = jax.random.split(jax.random.key(1), num_keys)
    part = jax.jit(jax.vmap(gradient_of_learn(batch_size=3), (None, 0)))
    full = jax.jit(gradient_of_learn())
    gradients = np.asarray(part(moved_params(), keys))
    error = gradients.mean(axis=0) - full(moved_params(), jax.random.key(0))
    spread = gradients.std(axis=0)
    assert np.all(spread > 1e-3)
    assert np.all(np.abs(error) < 4.5 * spread / np.sqrt(num_keys))


@pytest.mark.slow
def test_the_regulariser_is_added_for_the_data_set(float64):
    reference = table_log_probs(jnp.asarray(PRETRAINED))

    def divergence(own):
        return 25.0 * kl_divergence(reference, table_log_probs(own))

    def regulariser(shared, own, key):
        assert shared == ()
        return divergence(own) + jnp.sum(jax.random.normal(key, own.shape) * own)

    @jax.jit
    def differences(own, key):
        without = gradient_of_learn()(own, jax.random.clone(key))
        added = gradient_of_learn(regulariser=regulariser)(own, key) - without
        return 10 * added - jax.grad(divergence)(own)  # ten comparisons

    noise = np.asarray(
        jax.jit(jax.vmap(differences, (None, 0)))(
            moved_params(), jax.random.split(jax.random.key(0), 400)
        )
    )
    # What is left is the noise from the regulariser's key: a fresh one every time.
    assert np.all(np.abs(noise.mean(axis=0)) < 4.5 / np.sqrt(len(noise)))
    assert abs(noise.std() - 1) < 4.5 / np.sqrt(2 * noise.size)
    assert len(np.unique(noise)) == noise.size


@pytest.mark.slow
def test_checks_on_demand_and_a_query_with_an_empty_slot():
    @jax.jit
    @checkify.checkify
    def one_round(pretrained, valid):
        ensemble = anchored(LM, pretrained, num_members=MEMBERS, prior_scale=PRIOR_SCALE)
        process = assemble(
            ensemble,
            **library_parts(ensemble)
            | {
                "candidates": lambda key, shared, own: pool_candidates(TOKENS, MASK, valid=valid),
                "explore": uniform,
                "optimizer": optax.sgd(1.0),
                "num_steps": 1,
            },
        )
        start = process.init(jax.random.key(0))
        queries = process.propose(start, jax.random.key(1))
        first_wins = lambda key, query: choice_ranks(jnp.zeros((), int), query.valid)
        comparisons = ask(first_wins, jax.random.key(2), queries)
        return start, process.learn(start, comparisons)[0]

    pretrained = jnp.asarray(PRETRAINED, jnp.float32)
    error, (start, after) = one_round(pretrained, jnp.ones(9, bool))
    assert error.get() is None  # the empty rows of the store fail no check
    assert np.all(np.any(np.asarray(start.members.params != after.members.params), axis=(1, 2, 3)))
    # One response alone teaches nothing: members stay at their anchors, where the prior is flat.
    error, (start, after) = one_round(pretrained, jnp.arange(9) == 5)
    assert "found 1 valid candidates" in error.get()
    shown = after.store.comparisons.query.valid[:QUERIES]
    np.testing.assert_array_equal(shown, [[True, False]] * QUERIES)
    ranks = after.store.comparisons.ranks[:QUERIES]
    np.testing.assert_array_equal(ranks, [[1, -1]] * QUERIES)
    np.testing.assert_allclose(start.members.params, after.members.params, atol=1e-6)
    error, _ = one_round(pretrained * jnp.nan, jnp.ones(9, bool))
    assert "NaN" in error.get()


@pytest.mark.slow
def test_the_point_estimate_finds_the_density(float64):
    density = jnp.log(jnp.asarray(DENSITY))
    process = assemble(
        point_estimate(LM, jnp.asarray(PRETRAINED), prior_scale=100.0),
        candidates=lambda key, shared, own: pool_candidates(TOKENS, MASK),
        explore=uniform,
        optimizer=optax.adam(0.05),
        num_queries=256,
        capacity=24 * 256,
        num_steps=8,
    )

    @jax.jit
    def run(key):
        init_key, run_key = jax.random.split(key)
        state = process.init(init_key)
        people = luce_rater(table_utility(density[None]))
        return evaluate(state), run_rounds(
            process, people, evaluate, state, run_key, num_rounds=24
        )[1]

    before, after = run(jax.random.key(0))
    assert before["kl"] > 0.3
    assert after["kl"][-1] < 0.01


class Bigram(nn.Module):
    """Logits from the position and the last token: a foreign model that can fit any density."""

    @nn.compact
    def __call__(self, tokens):
        return nn.Embed(9, 3)(tokens + 3 * jnp.arange(3)[None, :])


@pytest.mark.slow
def test_the_losses_work_in_a_loop_of_the_users_own(float64):
    # Infinite data: every pair of different documents with the exact chances of its answers.
    module = Bigram()
    first, second = np.triu_indices(9, k=1)
    pairs = np.stack([first, second], axis=1)
    chances = DENSITY[pairs] / DENSITY[pairs].sum(axis=1, keepdims=True)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 600))

    def log_probs_of(variables):
        return log_prob(module.apply(variables, TOKENS), TOKENS, MASK)

    def loss(variables):
        shown = log_probs_of(variables)[pairs]
        answers = [ilhf_loss(shown, jnp.full(len(pairs), choice)) for choice in (0, 1)]
        return jnp.mean(jnp.sum(chances * jnp.stack(answers, axis=1), axis=1))

    def step(carry, _):
        variables, state = carry
        updates, state = optimizer.update(jax.grad(loss)(variables), state)
        return (optax.apply_updates(variables, updates), state), None

    @jax.jit
    def fit(variables):
        start = (variables, optimizer.init(variables))
        return log_probs_of(jax.lax.scan(step, start, length=600)[0][0])

    variables = module.init(jax.random.key(0), TOKENS)
    variables = jax.tree.map(lambda leaf: leaf.astype(float), variables)
    np.testing.assert_allclose(np.exp(fit(variables)), DENSITY, atol=1e-5)


@pytest.mark.slow
def test_no_key_is_used_twice(float64):
    ensemble = prior_functions(LM, jnp.asarray(PRETRAINED), num_members=3, prior_scale=1.0)
    process = assemble(ensemble, **library_parts(ensemble), batch_size=3)

    def run(key):
        init_key, run_key = jax.random.split(key)
        nothing = lambda state: {}
        return run_rounds(process, rater, nothing, process.init(init_key), run_key, num_rounds=2)

    with jax.debug_key_reuse(True):
        jax.make_jaxpr(jax.vmap(run))(jax.random.split(jax.random.key(0), SEEDS))


@pytest.mark.slow
def test_a_rater_may_answer_all_queries_of_a_round():
    rater = luce_rater(table_utility(jnp.log(jnp.asarray(DENSITY, jnp.float32))[None]))
    queries = item_query(jnp.arange(8).reshape(4, 2))
    together = lambda key, queries: jax.vmap(rater)(jax.random.split(key, 4), queries)
    one_by_one = ask(rater, jax.random.key(5), queries)
    at_once = ask_together(together, jax.random.key(5), queries)
    jax.tree.map(np.testing.assert_array_equal, one_by_one, at_once)
