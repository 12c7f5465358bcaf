"""Log-probs and divergences from slices of the vocabulary equal those of whole logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from shatter import documents, losses, models
from shatter.factored import Columns, FactoredLogits, Rows, as_array

BATCH, LENGTH, WIDTH, VOCAB, RANK = 2, 5, 4, 23, 2
KINDS = ("embedding", "kernel", "members")
MASK = jnp.array([[False, True, True, True, False], [False, False, True, True, True]])


@pytest.fixture(params=[8, pytest.param(23, marks=pytest.mark.slow)])
def slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of 8 columns, of which the last two overlap, or all columns in one."""
    monkeypatch.setattr("shatter.factored.sizes.SLICE_SIZE", request.param * BATCH * (LENGTH - 1))


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shatter.factored.sizes.SLICE_SIZE", 8 * BATCH * (LENGTH - 1))


def make(kind: str, seed: int = 0, dtype: str = "float64") -> FactoredLogits:
    generator = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(generator.normal(size=shape), dtype)
    rows = Rows(draw(BATCH, LENGTH, WIDTH))
    if kind == "embedding":
        return FactoredLogits(rows, Columns(embedding=draw(VOCAB, WIDTH)))
    if kind == "kernel":
        return FactoredLogits(rows, Columns(kernel=draw(WIDTH, VOCAB), bias=draw(VOCAB)))
    scale = jnp.exp(draw(BATCH, LENGTH, 1))
    rows = rows._replace(low=draw(BATCH, LENGTH, RANK), scale=scale)
    columns = Columns(kernel=draw(WIDTH, VOCAB), high=draw(RANK, VOCAB), bias=draw(VOCAB))
    return FactoredLogits(rows, columns)


def draw_tokens(high: int = VOCAB) -> jax.Array:
    return jnp.asarray(np.random.default_rng(9).integers(0, high, size=(BATCH, LENGTH)))


def assert_close(found, expected, rtol: float = 1e-12, atol: float = 1e-13) -> None:
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol, atol)


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_and_gradients_equal_those_of_whole_logits(float64: None, kind: str):
    tokens, weights = draw_tokens(), jnp.array([1.0, -2.5])

    def total(logits):
        return jnp.sum(weights * documents.log_prob(logits, tokens, MASK))

    logits = make(kind)
    found = jax.jit(jax.value_and_grad(total))(logits)
    expected = jax.jit(jax.value_and_grad(lambda x: total(as_array(x))))(logits)
    assert_close(found, expected)
    each = documents.token_log_probs(logits, tokens)
    assert_close(each, documents.token_log_probs(as_array(logits), tokens))


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("kind", KINDS)
def test_forward_kl_and_both_gradients_equal_those_of_whole_logits(float64: None, kind: str):
    weights = jnp.array([1.0, -2.5])

    def total(ref, logits):
        return jnp.sum(weights * losses.forward_kl_loss(ref, logits, MASK))

    both = make("embedding", 1), make(kind)
    found = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(*both)
    plain = lambda ref, logits: total(as_array(ref), as_array(logits))
    assert_close(found, jax.jit(jax.value_and_grad(plain, argnums=(0, 1)))(*both))
    # Where one is an array, both are multiplied out.
    assert_close(total(both[0], as_array(both[1])), found[0])


@pytest.mark.slow
@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_masked_does_no_harm(float64: None, kind: str):
    logits, tokens = make(kind), draw_tokens()
    read = jnp.roll(MASK, -1, axis=1)[..., None]  # the logits of a token are one to its left
    poison = lambda leaf: jnp.where(read, leaf, jnp.nan)

    def both(logits):
        kl = losses.forward_kl_loss(make("kernel", 1), logits, MASK)
        return jnp.sum(documents.log_prob(logits, tokens, MASK)), jnp.sum(kl)

    for number in range(2):
        one = jax.jit(jax.value_and_grad(lambda x, n=number: both(x)[n]))
        value, gradient = one(logits.map_rows(poison))
        expected_value, expected = one(logits)
        assert_close((value, gradient.columns), (expected_value, expected.columns))
        clean = lambda leaf: jnp.where(read, leaf, 0.0)
        assert_close(gradient.map_rows(clean).rows, expected.map_rows(clean).rows)
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))


@pytest.mark.usefixtures("small_slices")
def test_padding_may_hold_any_token(float64: None):
    logits, tokens = make("kernel"), draw_tokens()
    odd = jnp.where(MASK, tokens, jnp.array([[-7], [10_000]]))
    found = documents.log_prob(logits, odd, MASK)
    assert_close(found, documents.log_prob(logits, tokens, MASK))
    assert_close(
        documents.token_log_probs(logits, odd), documents.token_log_probs(as_array(logits), odd)
    )


@pytest.mark.usefixtures("small_slices")
def test_an_impossible_token_stays_finite(float64: None):
    logits, tokens = make("kernel"), draw_tokens()
    banned = logits.columns.bias.at[tokens[0, 1]].set(-jnp.inf)
    logits = logits._replace(columns=logits.columns._replace(bias=banned))
    total = lambda x: jnp.sum(documents.log_prob(x, tokens, MASK))
    value, gradient = jax.value_and_grad(total)(logits)
    assert_close(value, total(as_array(logits)))
    assert value < -1e29
    assert bool(jnp.all(jnp.isfinite(gradient.rows.features)))


@pytest.mark.usefixtures("small_slices")
def test_members_share_the_vocabulary(float64: None):
    """Each member has factors of its own; the gradient for the shared ones is summed."""
    logits, tokens = make("members"), draw_tokens()
    lows = jnp.stack([logits.rows.low, 2.0 * logits.rows.low])

    def total(form, kernel, lows):
        def one(low):
            rows = logits.rows._replace(low=low)
            member = FactoredLogits(rows, logits.columns._replace(kernel=kernel))
            return documents.log_prob(form(member), tokens, MASK)

        return jnp.sum(jnp.cos(jax.vmap(one)(lows)))

    gradients = [
        jax.jit(jax.value_and_grad(lambda *args, form=form: total(form, *args), argnums=(0, 1)))(
            logits.columns.kernel, lows
        )
        for form in (lambda x: x, as_array)
    ]
    assert_close(*gradients)


@pytest.mark.slow
@pytest.mark.usefixtures("small_slices")
def test_half_precision_is_as_exact_as_whole_logits():
    logits, tokens = make("kernel", dtype="bfloat16"), draw_tokens()
    total = lambda x: jnp.sum(documents.log_prob(x, tokens, MASK))
    found = jax.jit(jax.value_and_grad(total))(logits)
    expected = jax.jit(jax.value_and_grad(lambda x: total(as_array(x))))(logits)
    assert found[0].dtype == jnp.float32
    assert_close(found[0], expected[0], rtol=1e-5)
    assert_close(found[1], expected[1], rtol=2e-2, atol=2e-2)


@pytest.mark.usefixtures("small_slices")
def test_a_small_divergence_is_not_lost_to_rounding():
    """KL of two nearly equal laws, whose logits are far from 0, in float32."""
    ref = make("kernel", dtype="float32")
    ref = ref._replace(columns=ref.columns._replace(bias=ref.columns.bias + 300.0))
    own = ref._replace(columns=ref.columns._replace(bias=ref.columns.bias * (1 + 1e-5)))
    found = losses.forward_kl_loss(ref, own, MASK)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(as_array(x)), float) for x in (ref, own)]
        expected = losses.forward_kl_loss(*wide, MASK)
        assert float(jnp.max(expected)) < 1e-4
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("small_slices")
def test_debug_checks_see_through_factors():
    logits, tokens = make("kernel", dtype="float32"), draw_tokens()
    checked = checkify.checkify(documents.log_prob, errors=checkify.user_checks)
    with jax.enable_checks(True):
        for bad_logits, bad_tokens, message in (
            (logits.map_rows(lambda leaf: leaf * jnp.nan), tokens, "logits hold a NaN"),
            (logits, jnp.where(MASK, VOCAB, tokens), f"expected 0 <= token < {VOCAB}"),
        ):
            error, _ = checked(bad_logits, bad_tokens, MASK)
            assert message in (error.get() or "")
    with pytest.raises(AssertionError):
        documents.log_prob(logits, tokens[:, 1:], MASK[:, 1:])


@pytest.mark.parametrize("trained", [False, True])
def test_nothing_as_large_as_the_logits_is_held(monkeypatch: pytest.MonkeyPatch, trained: bool):
    """The compiler plans a few slices, and the gradient for the vocabulary only if it is asked."""
    monkeypatch.setattr("shatter.factored.sizes.SLICE_SIZE", 2**12)
    rows, width, vocab = 64, 16, 8192
    logits = FactoredLogits(
        Rows(jnp.zeros((rows, width))), Columns(embedding=jnp.zeros((vocab, width)))
    )
    tokens, mask = jnp.zeros(rows, int), jnp.ones(rows, bool)

    def loss(features, embedding):
        own = FactoredLogits(Rows(features), Columns(embedding=embedding))
        kl = losses.forward_kl_loss(jax.lax.stop_gradient(logits), own, mask)
        return documents.log_prob(own, tokens, mask) + kl

    program = jax.jit(jax.grad(loss, argnums=(0, 1) if trained else 0))
    plan = program.lower(logits.rows.features, logits.columns.embedding).compile()
    memory = plan.memory_analysis()
    slice_bytes, table_bytes = 4 * 2**12, 4 * vocab * width
    allowed = 16 * slice_bytes + (3 * table_bytes if trained else 0)
    assert memory.temp_size_in_bytes < allowed
    assert allowed < 4 * rows * vocab or trained


@pytest.mark.slow
def test_logits_are_lazy_only_where_they_are_many(monkeypatch: pytest.MonkeyPatch):
    lm = models.transformer(
        models.TransformerConfig(vocab_size=11, max_length=4, width=4, num_layers=1, num_heads=1)
    )
    params, tokens = jax.jit(lm.init)(jax.random.key(0)), jnp.zeros((2, 3), int)
    monkeypatch.setattr("shatter.factored.sizes.MULTIPLIED_OUT_UP_TO", 66)
    form = lambda tokens, **how: jax.eval_shape(
        lambda params: models.lazy_logits(lm, params, tokens, **how), params
    )
    assert not isinstance(form(tokens), FactoredLogits)
    assert isinstance(form(tokens, copies=2), FactoredLogits)
    assert isinstance(form(jnp.zeros((2, 4), int)), FactoredLogits)
    table = models.tabular(vocab_size=11, max_length=3)
    params = jnp.zeros((1, 1 + 11 + 121, 11))
    logits = models.lazy_logits(table, params, tokens[:, :2], copies=99)
    assert isinstance(logits, jax.Array)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"head_bias": True}, {"tied": True}, {"head_bias": True, "dtype": "bfloat16"}],
    ids=["bias", "tied", "half"],
)
def test_a_transformer_and_its_upper_parts_have_the_same_logits(settings: dict):
    settings = {"tied": False, "head_bias": False} | settings
    config = models.TransformerConfig(
        vocab_size=11, max_length=4, width=8, num_layers=2, num_heads=2, **settings
    )
    tokens = jnp.array([[1, 2, 3], [4, 5, 10]])

    @jax.jit
    def pairs(key):
        lm = models.transformer(config)
        params = jax.tree.map(
            lambda leaf: leaf + 0.1 * jax.random.normal(key, leaf.shape), lm.init(key)
        )
        made = [(as_array(lm.factored(params, tokens)), lm.apply(params, tokens))]
        for layer in (1,):
            parts = models.split_layers(config, layer)
            hidden, above = parts.lower(params, tokens), parts.upper_params(params)
            lazy = as_array(parts.upper.factored(above, hidden))
            made.append((lazy, parts.upper.apply(above, hidden)))
        return made

    for found, expected in pairs(jax.random.key(0)):
        assert_close(found, expected, rtol=1e-6)
