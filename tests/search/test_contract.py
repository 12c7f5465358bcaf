"""What every search promises, whatever it looks for."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from shatter import documents, inference, models, search

V, L, EOS = 5, 3, 4
PROMPT = jnp.array([1, 3])
CONFIG = models.TransformerConfig(
    vocab_size=V, max_length=8, num_layers=1, num_heads=1, width=4, mlp_width=4
)
LM = models.transformer(CONFIG)
PLACES = np.array([0.3, 1.3, 2.9, 0.7, 1.9])


def reward(tokens, mask):
    """Any function of the document; what follows its end does not count."""
    code = jnp.sum(jnp.where(mask, (tokens + 1) * PLACES[None, : tokens.shape[1]], 0.0), axis=1)
    return 1.5 * jnp.cos(2.1 * code)


def make_params(seed: int):
    params = jax.jit(LM.init)(jax.random.key(seed))
    return jax.tree.map(lambda leaf: 2.0 * leaf, params)


def twist(params):
    return inference.TwistModel(LM, params, 0.7)


SEARCHES = {
    "best_of_n": lambda params: functools.partial(search.best_of_n, budget=14),
    "value_guided": lambda params: functools.partial(
        search.value_guided, twist=twist(params), budget=14
    ),
    "sequential_monte_carlo": lambda params: functools.partial(
        search.sequential_monte_carlo, twist=twist(params), beta=0.5, budget=14, resample_below=0.95
    ),
    "beam_search": lambda params: functools.partial(
        search.beam_search, twist=twist(params), top_k=4, budget=14
    ),
    "tree_search": lambda params: functools.partial(
        search.tree_search, twist=twist(params), beta=0.5, top_k=4, budget=22
    ),
    "tree_search_muzero": lambda params: functools.partial(
        search.tree_search, twist=twist(params), beta=0.5, policy=search.muzero(), budget=22
    ),
}
every_search = pytest.mark.parametrize("name", SEARCHES)


def run(name: str, lm=LM, **given):
    """Returns `(params, twist_params, key, prompt, valid) -> Found`."""
    given = {"reward": reward, "max_length": L, "eos": EOS} | given

    def call(params, twist_params, key, prompt, valid=None):
        made = SEARCHES[name](twist_params)
        if lm is not LM and "twist" in made.keywords:
            made.keywords["twist"] = made.keywords["twist"]._replace(lm=lm)
        return made(lm, params, key, prompt, valid=valid, **given)

    return call


def test_every_search_is_here():
    public = {name for name in search.__all__ if inspect.isfunction(getattr(search, name))}
    assert public - {"gumbel_muzero", "muzero"} == {n.removesuffix("_muzero") for n in SEARCHES}


@pytest.mark.slow
@every_search
def test_the_cache_gives_what_full_passes_give_and_lanes_what_loops_give(float64, name: str):
    """For prompts with padding on the left, too; and what is reported is what was found."""
    params, twist_params = make_params(0), make_params(1)
    uncached = LM._replace(init_cache=None, decode=None, take_cache=None)
    prompts = jnp.array([[1, 3], [0, 2], [2, 2]])
    valid = jnp.array([[True, True], [False, True], [True, True]])
    keys = jax.random.split(jax.random.key(3), 3)
    in_axes = (None, None, 0, 0, 0)
    found = jax.jit(jax.vmap(run(name), in_axes))(params, twist_params, keys, prompts, valid)
    others = jax.jit(jax.vmap(run(name, uncached), in_axes))(
        params, twist_params, keys, prompts, valid
    )
    one = jax.jit(run(name))
    looped = [one(params, twist_params, *given) for given in zip(keys, prompts, valid, strict=True)]
    looped = jax.tree.map(lambda *leaves: jnp.stack(leaves), *looped)
    for other in (others, looped):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), found, other)
    for row, (prompt, is_valid) in enumerate(zip(prompts, valid, strict=True)):
        of_row = jax.tree.map(lambda leaf, row=row: np.asarray(leaf[row]), found)
        mask = documents.response_mask(of_row.tokens, prompt_length=2, eos=EOS)
        np.testing.assert_array_equal(of_row.mask, mask)
        np.testing.assert_array_equal(of_row.tokens[:, :2], np.tile(prompt, (len(mask), 1)))
        whole = jnp.concatenate([is_valid, jnp.ones(L, bool)])
        logits = LM.apply(params, of_row.tokens, valid=jnp.tile(whole, (len(mask), 1)))
        scored = documents.log_prob(logits, of_row.tokens, mask)
        np.testing.assert_allclose(of_row.log_probs, scored, atol=1e-9)
        np.testing.assert_allclose(of_row.rewards, reward(of_row.tokens, mask), atol=1e-12)
        assert of_row.best == of_row.rewards.argmax()
        assert 0 < of_row.num_tokens <= (22 if "tree" in name else 14)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["best_of_n", "value_guided", "sequential_monte_carlo"])
def test_tokens_spent_are_the_rows_that_the_model_reads(float64, name: str):
    """Where no response ends early, every row of every step; counted in the model."""
    read = []

    def decode(params, cache, tokens, *, valid=None):
        jax.debug.callback(lambda shape: read.append(shape), jnp.array(tokens.shape))
        return LM.decode(params, cache, tokens, valid=valid)

    counting = LM._replace(decode=decode)
    made = SEARCHES[name](make_params(1))
    call = lambda params, key: made(
        counting, params, key, PROMPT[:1], reward=reward, max_length=L, eos=None
    )
    found = jax.jit(call)(make_params(0), jax.random.key(0))
    jax.effects_barrier()
    assert found.num_tokens == 12 == sum(int(rows) * int(new) for rows, new in read)


@pytest.mark.slow
def test_tokens_of_a_tree_are_its_open_nodes(float64):
    """Those that the model reads, by its calls: a root and the simulations that open a document."""
    read = []

    def decode(params, cache, tokens, *, valid=None):
        jax.debug.callback(lambda: read.append(1))
        return LM.decode(params, cache, tokens, valid=valid)

    counting = LM._replace(decode=decode)
    call = lambda params, key: search.tree_search(
        counting, params, key, PROMPT[:1], reward=reward, beta=0.5, budget=18, max_length=L, eos=EOS
    )
    found = jax.jit(call)(make_params(0), jax.random.key(0))
    jax.effects_barrier()
    # The child that is chosen is read again as the next root, where it is counted.
    assert found.num_tokens == len(read) <= 18


@pytest.mark.slow
def test_tokens_of_a_beam(float64):
    """One row at first, then as many open documents as were kept."""
    call = lambda params: search.beam_search(
        LM, params, jax.random.key(0), PROMPT, reward=reward, budget=4 * L, max_length=L
    )
    assert jax.jit(call)(make_params(0)).num_tokens == 1 + 4 + 4


@every_search
def test_a_budget_below_one_response(name: str):
    made = SEARCHES[name](None)
    least = 2 * L if "tree" in name else L
    with pytest.raises(ValueError, match=f"a budget of {least - 1} tokens is below one response"):
        made(LM, None, None, PROMPT, reward=reward, max_length=L, **{"budget": least - 1})
    with pytest.raises(ValueError, match="max_length must be at least 1, found 0"):
        made(LM, None, None, PROMPT, reward=reward, max_length=0)


@pytest.mark.parametrize(
    "name",
    [
        name if name == "best_of_n" else pytest.param(name, marks=pytest.mark.slow)
        for name in SEARCHES
    ],
)
def test_a_reward_of_the_wrong_length(name: str):
    call = run(name, reward=lambda tokens, mask: jnp.zeros(tokens.shape[0] + 1))
    with pytest.raises(AssertionError, match="one number for every document"):
        jax.eval_shape(call, make_params(0), make_params(1), jax.random.key(0), PROMPT)


@pytest.mark.slow
@every_search
def test_an_eos_outside_of_the_vocabulary(name: str):
    call = run(name, eos=V)
    with pytest.raises(ValueError, match=f"eos must be a token, 0 <= eos < {V}, found {V}"):
        jax.eval_shape(call, make_params(0), make_params(1), jax.random.key(0), PROMPT)


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
@every_search
def test_a_prompt_without_room_for_a_response(name: str, cached: bool):
    """Of a model that reads 8 tokens: 7 and a response of 3, whose last token is never read."""
    lm = LM if cached else LM._replace(init_cache=None, decode=None, take_cache=None)
    shapes = jax.eval_shape(LM.init, jax.random.key(0))
    call = run(name, lm, reward=lambda tokens, mask: jnp.sum(mask, axis=1, dtype=float))
    search_after = functools.partial(jax.eval_shape, call, shapes, shapes)
    with pytest.raises(ValueError, match="found 9 tokens, over max_length 8"):
        search_after(jax.random.key(0), jnp.ones(7, int))
    assert search_after(jax.random.key(0), jnp.ones(6, int)).tokens.shape[1] == 9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["best_of_n", "sequential_monte_carlo", "beam_search"])
def test_checkify_finds_a_reward_of_nan(name: str):
    call = run(name, reward=lambda tokens, mask: jnp.where(tokens[:, 2] < 9, jnp.nan, 0.0))
    checked = jax.jit(checkify.checkify(call))
    error, _ = checked(make_params(0), make_params(1), jax.random.key(0), PROMPT)
    with pytest.raises(checkify.JaxRuntimeError, match="the reward of response 0 is NaN"):
        error.throw()


@pytest.mark.parametrize("given", [{"beta": 0.0}, {"beta": -1.0}])
def test_beta_is_positive(given: dict):
    for function, budget in ((search.sequential_monte_carlo, 9), (search.tree_search, 9)):
        with pytest.raises(ValueError, match="beta"):
            function(LM, None, None, PROMPT, reward=reward, budget=budget, max_length=L, **given)


@pytest.mark.slow
@pytest.mark.parametrize("function", [search.beam_search, search.tree_search])
def test_top_k_is_positive(function):
    given = {"beta": 1.0} if function is search.tree_search else {}
    call = lambda params: function(
        LM,
        params,
        jax.random.key(0),
        PROMPT,
        reward=reward,
        budget=9,
        max_length=L,
        top_k=0,
        **given,
    )
    with pytest.raises(ValueError, match="top_k must be at least 1, found 0"):
        jax.eval_shape(call, make_params(0))
