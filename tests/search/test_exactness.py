"""Searches of models that can be enumerated: the exact optimum, law, evidence and twist."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from shatter import documents, inference, losses, search
from shatter.models import tabular

V, L, BETA = 3, 3, 0.6
PROMPT = jnp.array([0])
LM = tabular(vocab_size=V, max_length=L)
PARAMS = np.random.default_rng(3).standard_normal(jax.eval_shape(LM.init, jax.random.key(0)).shape)
both_ends = pytest.mark.parametrize("eos", [None, 0])
one_end = pytest.mark.parametrize("eos", [pytest.param(None, marks=pytest.mark.slow), 0])
REWARDS = np.random.default_rng(8).standard_normal(V**L)


def reward(tokens, mask):
    """A number of its own for every document, by its tokens up to the end."""
    response = jnp.where(mask[:, 1:], tokens[:, 1:], 0)
    return jnp.asarray(REWARDS)[response @ V ** jnp.arange(L - 1, -1, -1)]


def enumerate_all(eos: int | None):
    """Returns documents, log p0, rewards, log Z and the posterior, in NumPy."""
    tokens, mask = documents.enumerate_documents(vocab_size=V, max_length=L, eos=eos)
    log_p0 = documents.document_log_probs(LM, PARAMS, tokens, mask)
    rewards = reward(tokens, mask)
    log_joint = np.asarray(log_p0 + rewards / BETA)
    log_z = np.log(np.exp(log_joint).sum())
    return (*map(np.asarray, (tokens, mask, log_p0, rewards)), log_z, np.exp(log_joint - log_z))


def exact_twist(eos: int | None, scale: float = 1.0):
    """Returns the exact values as a table: a model whose logits are V(s.a) in units of beta."""
    levels = documents.prefix_log_probs(LM, jnp.asarray(PARAMS), vocab_size=V, max_length=L)
    tokens, mask, _, rewards, *_ = enumerate_all(eos)
    values, policy = documents.posterior_policy(
        levels, jnp.asarray(rewards), jnp.asarray(tokens), jnp.asarray(mask), beta=BETA, eos=eos
    )
    table = [pi - p0 + v[:, None] / BETA for pi, p0, v in zip(policy, levels, values, strict=True)]
    return inference.TwistModel(LM, jnp.concatenate(table)[None] / scale, scale)


def place_of(rows, tokens):
    same = (np.asarray(tokens)[..., None, :] == rows).all(-1)
    assert (same.sum(-1) == 1).all()
    return same.argmax(-1)


@pytest.mark.slow
@one_end
def test_a_beam_that_covers_the_space_finds_the_optima(float64, eos):
    """Of the model, of the posterior with the reward at the end, and of the reward alone."""
    tokens, _, log_p0, rewards, _, posterior = enumerate_all(eos)
    assert len(np.unique(rewards)) == len(rewards)  # what the other tests need too
    at_ends = lambda rows, length: jnp.stack(
        [
            reward(filled, documents.response_mask(filled, prompt_length=1, eos=eos)) / BETA
            for a in range(V)
            for filled in [ended(rows, length, a, eos)]
        ],
        axis=1,
    )

    def run(**given):
        call = lambda params: search.beam_search(
            LM,
            params,
            jax.random.key(0),
            PROMPT,
            reward=reward,
            budget=40 * L,
            max_length=L,
            eos=eos,
            **given,
        )
        return jax.tree.map(np.asarray, jax.jit(call)(jnp.asarray(PARAMS)))

    found = run()
    exists = np.isfinite(found.rewards)
    assert exists.sum() == len(tokens) < 40  # every document once; the other rows say so
    place = place_of(tokens, found.tokens[exists])
    assert sorted(place) == list(range(len(tokens)))
    np.testing.assert_array_equal(place, np.argsort(-log_p0))
    np.testing.assert_allclose(found.log_probs[exists], log_p0[place], atol=1e-12)
    assert place[found.best] == rewards.argmax()
    for weight, best in ((1.0, posterior.argmax()), (0.0, rewards.argmax())):
        found = run(twist=at_ends, prior_weight=weight)
        assert place_of(tokens, found.tokens[0]) == best
    assert log_p0.argmax() != rewards.argmax()


def ended(rows, length, action: int, eos: int | None):
    """Returns the documents with one more token and the filler after it."""
    columns = jnp.arange(rows.shape[1])
    filler = 0 if eos is None else eos
    return jnp.where(columns < length, rows, jnp.where(columns == length, action, filler))


def test_a_narrow_beam_is_greedy_decoding(float64):
    call = lambda params: search.beam_search(
        LM, params, jax.random.key(0), PROMPT, reward=reward, budget=L, max_length=L
    )
    greedy = documents.sample(
        LM, jnp.asarray(PARAMS), jax.random.key(0), PROMPT, num_samples=1, max_length=L, top_k=1
    )
    np.testing.assert_array_equal(jax.jit(call)(jnp.asarray(PARAMS)).tokens, greedy.tokens)


@one_end
def test_the_law_of_the_best_of_n(float64, eos):
    """F^n - F_-^n over documents sorted by reward, within 4 standard errors of 4,000 keys."""
    tokens, _, log_p0, rewards, *_ = enumerate_all(eos)
    n, num_keys = 4, 4_000
    order = np.argsort(rewards)
    above = np.cumsum(np.exp(log_p0[order])) ** n
    law = np.zeros(len(tokens))
    law[order] = np.diff(above, prepend=0.0)

    @jax.jit
    def run(params, keys):
        call = lambda key: search.best_of_n(
            LM, params, key, PROMPT, reward=reward, budget=n * L + 2, max_length=L, eos=eos
        )
        found = jax.vmap(call)(keys)
        return jnp.take_along_axis(found.tokens, found.best[:, None, None], axis=1)[:, 0]

    best = run(jnp.asarray(PARAMS), jax.random.split(jax.random.key(1), num_keys))
    counts = np.bincount(place_of(tokens, best), minlength=len(tokens))
    error = np.sqrt(num_keys * law * (1 - law))
    assert (np.abs(counts - num_keys * law) <= 4 * error + 1e-9).all()
    assert np.abs(law - np.exp(log_p0)).sum() > 0.5
    assert (law * (np.log(law) - log_p0)).sum() <= np.log(n) - (n - 1) / n


@pytest.mark.slow
@both_ends
@pytest.mark.parametrize("kind", ["none", "wrong", "exact"])
def test_the_evidence_is_unbiased(float64, eos, kind: str):
    """With a twist that is wrong at the end too, because the reward has the last word."""
    *_, log_z, _ = enumerate_all(eos)
    wrong = inference.TwistModel(LM, jnp.asarray(PARAMS[:, ::-1]), 0.8)
    twist = {"none": None, "wrong": wrong, "exact": exact_twist(eos, 2.0)}[kind]

    @jax.jit
    def run(params, keys):
        call = lambda key: search.sequential_monte_carlo(
            LM,
            params,
            key,
            PROMPT,
            reward=reward,
            beta=BETA,
            twist=twist,
            budget=6 * L,
            max_length=L,
            eos=eos,
            resample_below=0.9,
        )
        found = jax.vmap(call)(keys)
        return jnp.exp(inference.log_evidence(found.log_weights)), found.log_weights

    z_hat, log_weights = run(jnp.asarray(PARAMS), jax.random.split(jax.random.key(2), 3_000))
    if kind == "exact":
        np.testing.assert_allclose(log_weights, log_z, atol=1e-10)
        return
    error = np.std(z_hat) / 3_000**0.5
    assert abs(np.mean(z_hat) - np.exp(log_z)) < 4 * error
    assert 1e-3 * np.exp(log_z) < error < 0.1 * np.exp(log_z)


@pytest.mark.slow
@both_ends
def test_guided_by_the_exact_value_responses_are_samples_of_the_posterior(float64, eos):
    tokens, *_, posterior = enumerate_all(eos)
    twist = exact_twist(eos)
    call = lambda params, key: search.value_guided(
        LM,
        params,
        key,
        PROMPT,
        reward=reward,
        twist=twist,
        budget=20_000 * L,
        max_length=L,
        eos=eos,
    )
    found = jax.jit(call)(jnp.asarray(PARAMS), jax.random.key(5))
    counts = np.bincount(place_of(tokens, found.tokens), minlength=len(tokens))
    error = np.sqrt(20_000 * posterior * (1 - posterior))
    assert (np.abs(counts - 20_000 * posterior) <= 4 * error).all()


@pytest.mark.slow
@one_end
@pytest.mark.parametrize("name", ["gumbel", pytest.param("muzero", marks=pytest.mark.slow)])
def test_a_tree_with_the_exact_value(float64, eos, name: str):
    """At a small beta the exact value is that of the best document, and the tree finds it."""
    tokens, mask, log_p0, rewards, *_ = enumerate_all(eos)
    beta = 0.01
    levels = documents.prefix_log_probs(LM, jnp.asarray(PARAMS), vocab_size=V, max_length=L)
    values, policy = documents.posterior_policy(
        levels, jnp.asarray(rewards), jnp.asarray(tokens), jnp.asarray(mask), beta=beta, eos=eos
    )
    table = [pi - p0 + v[:, None] / beta for pi, p0, v in zip(policy, levels, values, strict=True)]
    twist = inference.TwistModel(LM, jnp.concatenate(table)[None])
    tree = {
        "gumbel": search.gumbel_muzero(gumbel_scale=0.0),
        "muzero": search.muzero(pb_c_init=0.05),
    }[name]
    call = lambda params: search.tree_search(
        LM,
        params,
        jax.random.key(0),
        PROMPT,
        reward=reward,
        beta=beta,
        twist=twist,
        policy=tree,
        budget=24 * L,
        max_length=L,
        eos=eos,
    )
    found = jax.jit(call)(jnp.asarray(PARAMS))
    place = place_of(tokens, found.tokens[0])
    assert place == rewards.argmax() != log_p0.argmax()
    assert found.rewards[0] == rewards.max()


@pytest.mark.slow
def test_gumbel_muzero_samples_the_posterior_where_all_tokens_are_tried(float64):
    """One token, every one of them simulated: g + log p0 + r / beta is largest with the law p*."""
    lm = tabular(vocab_size=4, max_length=1)
    params = jnp.asarray(np.random.default_rng(0).standard_normal((1, 1, 4)))
    gains = jnp.array([0.3, -0.5, 0.9, 0.1])
    call = lambda key: search.tree_search(
        lm,
        params,
        key,
        PROMPT,
        reward=lambda tokens, mask: gains[tokens[:, 1]],
        beta=BETA,
        budget=33,
        max_length=1,
    )
    found = jax.jit(jax.vmap(call))(jax.random.split(jax.random.key(0), 4_000))
    law = np.asarray(jax.nn.softmax(jax.nn.log_softmax(params[0, 0]) + gains / BETA))
    counts = np.bincount(np.asarray(found.tokens)[:, 0, 1], minlength=4)
    assert (np.abs(counts - 4_000 * law) <= 4 * np.sqrt(4_000 * law * (1 - law))).all()
    assert (found.num_tokens == 1).all()  # every document ends with its token


@pytest.mark.slow
@pytest.mark.parametrize("forbids", [None, 2])
def test_muzero_without_a_twist_and_with_one_that_forbids(float64, forbids):
    """One token: the best document is visited most; a forbidden one is not taken for a scale."""
    lm = tabular(vocab_size=4, max_length=1)
    params = jnp.asarray(np.random.default_rng(0).standard_normal((1, 1, 4)))
    gains = jnp.array([-1.3, -0.5, -0.1, -0.9])
    twist = None
    if forbids is not None:
        twist = inference.TwistModel(lm, (gains / BETA).at[forbids].set(-jnp.inf)[None, None])
    call = lambda params: search.tree_search(
        lm,
        params,
        jax.random.key(0),
        PROMPT,
        reward=lambda tokens, mask: gains[tokens[:, 1]],
        beta=BETA,
        twist=twist,
        policy=search.muzero(pb_c_init=0.1),
        budget=33,
        max_length=1,
    )
    found = jax.jit(call)(params)
    assert found.tokens[0, 1] == (2 if forbids is None else 1)


def prefix_twists(table, tokens):
    """Returns log psi after every token of responses, `[K, L]`, from a table `[1, prefixes, V]`."""
    logits = LM.apply(table, tokens[:, :-1])
    return jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]


@pytest.mark.slow
def test_the_contrastive_loss_is_least_with_the_exact_twist(float64):
    """Every document once is a uniform proposal without noise, so the gradient is exact."""
    tokens, mask, _, rewards, *_ = map(jnp.asarray, enumerate_all(None))
    ratios = documents.token_log_probs(LM.apply(jnp.asarray(PARAMS), tokens), tokens)[:, 1:]
    ratios = ratios + jnp.log(float(V))
    loss = lambda table: losses.contrastive_twist_loss(
        prefix_twists(table, tokens), rewards / BETA, mask[:, 1:], ratios
    )
    exact = exact_twist(None).params
    least, slope = jax.jit(jax.value_and_grad(loss))(exact)
    np.testing.assert_allclose(slope, 0.0, atol=1e-12)
    value, slope = jax.jit(jax.value_and_grad(loss))(exact + 0.3 * PARAMS)
    assert value > least + 1e-3
    # The contrastive form of the gradient, by hand: E_pi grad log psi - E_sigma grad log psi.
    table = exact + 0.3 * PARAMS
    weights = np.cumsum(np.asarray(ratios), axis=1)
    wanted = np.exp(np.asarray(rewards / BETA) + weights[:, -1])[:, None]
    found = np.exp(np.asarray(prefix_twists(table, tokens)) + weights)
    difference = found / found.sum(0) - wanted / wanted.sum(0)
    _, pull = jax.vjp(lambda table: prefix_twists(table, tokens), table)
    np.testing.assert_allclose(slope, pull(jnp.asarray(difference))[0], atol=1e-12)


@pytest.mark.slow
def test_an_ended_document_has_its_potential_in_the_place_of_its_twist(float64):
    """Its twists after the end are not read, and a common factor does not matter."""
    rng = np.random.default_rng(1)
    twists, potentials = jnp.asarray(rng.normal(size=(4, 3))), jnp.asarray(rng.normal(size=4))
    mask = jnp.asarray(np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]], bool))
    loss = losses.contrastive_twist_loss
    expected = 0.0
    for t in range(3):
        psi = np.where(mask[:, t], twists[:, t], potentials)
        p, q = (np.exp(x) / np.exp(x).sum() for x in (np.asarray(potentials), psi))
        expected += (p * np.log(p / q)).sum()
    assert loss(twists, potentials, mask) == pytest.approx(expected, abs=1e-12)
    shifted = jnp.where(mask, twists, jnp.nan)
    assert loss(shifted, potentials, mask) == pytest.approx(expected, abs=1e-12)
    slope = jax.grad(lambda x: loss(x, potentials, mask))(shifted)
    np.testing.assert_array_equal(np.asarray(slope)[~np.asarray(mask)], 0.0)
    moved = loss(twists + 0.7, potentials + 0.7, mask)
    assert moved == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("eos", [0])
def test_a_learned_twist_approaches_the_exact_one(float64, eos):
    """Learned from samples of p0, it makes the weights of SMC vary less, and Z_hat stays right."""
    *_, log_z, _ = enumerate_all(eos)

    @jax.jit
    def learn(params, key):
        optimizer = optax.adam(0.05)

        def step(carry, key):
            table, state = carry
            drawn = documents.sample(
                LM, params, key, PROMPT, num_samples=256, max_length=L, eos=eos
            )
            gains = reward(drawn.tokens, drawn.mask) / BETA
            loss = lambda table: losses.contrastive_twist_loss(
                prefix_twists(table, drawn.tokens), gains, drawn.mask[:, 1:]
            )
            updates, state = optimizer.update(jax.grad(loss)(table), state)
            return (optax.apply_updates(table, updates), state), None

        start = jnp.zeros(params.shape)
        (table, _), _ = jax.lax.scan(
            step, (start, optimizer.init(start)), jax.random.split(key, 300)
        )
        return table

    @jax.jit
    def spread(params, table, key):
        found = search.sequential_monte_carlo(
            LM,
            params,
            key,
            PROMPT,
            reward=reward,
            beta=BETA,
            twist=inference.TwistModel(LM, table),
            budget=2_000 * L,
            max_length=L,
            eos=eos,
            resample_below=0.0,
        )
        size = inference.effective_sample_size(found.log_weights) / 2_000
        return size, inference.log_evidence(found.log_weights)

    params = jnp.asarray(PARAMS)
    table = learn(params, jax.random.key(0))
    before, _ = spread(params, jnp.zeros(params.shape), jax.random.key(1))
    after, evidence = spread(params, table, jax.random.key(1))
    assert before < 0.2 and after > 0.8
    assert evidence == pytest.approx(log_z, abs=0.05)
