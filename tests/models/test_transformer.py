"""The transformer against numpy, against itself with a cache, with padding, scanned and stacked."""

import dataclasses
import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from shatter.models import TransformerConfig, transformer

# The package shows the function of this name; the module is behind it.
module = importlib.import_module("shatter.models.transformer")

CONFIG = TransformerConfig(
    vocab_size=5, max_length=6, width=8, num_layers=2, num_heads=2, mlp_width=24
)
LM = transformer(CONFIG)
DOCUMENTS = np.array([[0, 3, 1, 4, 2, 2], [4, 4, 0, 2, 1, 3], [2, 0, 1, 1, 3, 0]])
# Most of the time here is compilation: one program of three rows of eight columns serves most.
jitted_apply = jax.jit(LM.apply)
jitted_decode = jax.jit(
    lambda params, cache, tokens, valid: LM.decode(params, cache, tokens, valid=valid)
)


@pytest.fixture
def params(float64: None):
    """Biases and norms away from zeros and ones, so that they count."""
    shapes = jax.eval_shape(LM.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.array(0.5 * rng.standard_normal(leaf.shape)), shapes)


def pad(columns: list[int], fill: int = 0) -> tuple[jax.Array, jax.Array]:
    """DOCUMENTS in eight columns, the two given ones being padding."""
    valid = np.isin(np.arange(8), columns, invert=True)
    tokens = np.full((3, 8), fill)
    tokens[:, valid] = DOCUMENTS
    return jnp.array(tokens), jnp.broadcast_to(valid, tokens.shape)


def apply(params, documents: np.ndarray) -> np.ndarray:
    """Logits `[3, 6, V]` of three documents of six tokens."""
    tokens = jnp.pad(jnp.array(documents), ((0, 0), (0, 2)))
    valid = jnp.broadcast_to(jnp.arange(8) < 6, (3, 8))
    return np.asarray(jitted_apply(params, tokens, valid=valid))[:, :6]


def numpy_logits(params, document: np.ndarray) -> np.ndarray:
    """The forward pass of one document, a token at a time, straight from the definition."""
    weights = jax.tree.map(np.asarray, params["params"])

    def norm(x: np.ndarray, p: dict) -> np.ndarray:
        centred = x - x.mean()
        return centred / np.sqrt((centred**2).mean() + 1e-6) * p["scale"] + p["bias"]

    def gelu(x: np.ndarray) -> np.ndarray:
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    embedding = weights["token_embedding"]["embedding"]
    place = weights["position_embedding"]["embedding"]
    stream = [embedding[token] + place[t] for t, token in enumerate(document)]
    for layer in range(CONFIG.num_layers):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], weights["blocks"])
        qkv = [
            (
                np.einsum("d,dhs->hs", norm(x, block["attention_norm"]), block["qkv"]["kernel"])
                + block["qkv"]["bias"]
            ).reshape(3, CONFIG.num_heads, -1)
            for x in stream
        ]
        for t in range(len(document)):
            mixed = np.zeros_like(qkv[t][0])
            for head in range(CONFIG.num_heads):
                scores = [qkv[t][0, head] @ qkv[u][1, head] for u in range(t + 1)]
                shares = np.exp(np.array(scores) / np.sqrt(CONFIG.width / CONFIG.num_heads))
                shares /= shares.sum()
                mixed[head] = sum(shares[u] * qkv[u][2, head] for u in range(t + 1))
            out = block["attention_out"]
            stream[t] = stream[t] + np.einsum("hs,hsd->d", mixed, out["kernel"]) + out["bias"]
        for t, x in enumerate(stream):
            hidden = norm(x, block["mlp_norm"]) @ block["mlp_in"]["kernel"]
            hidden = gelu(hidden + block["mlp_in"]["bias"])
            stream[t] = x + hidden @ block["mlp_out"]["kernel"] + block["mlp_out"]["bias"]
    head = weights["head"]
    features = np.array([norm(x, weights["final_norm"]) for x in stream])
    return features @ head["kernel"] + head["bias"]


def test_logits_are_those_of_the_definition(params):
    for document, logits in zip(DOCUMENTS, apply(params, DOCUMENTS), strict=True):
        np.testing.assert_allclose(logits, numpy_logits(params, document), atol=1e-12)


def test_causality_by_gradient(params):
    """Identity 10: logits at t do not depend on the embeddings of the tokens after t."""
    document = jnp.array([3, 0, 4, 1, 2])  # all different, so a row of the table is a position

    @jax.jit
    def jacobian(table):
        def logits(table):
            inner = params["params"] | {"token_embedding": {"embedding": table}}
            return LM.apply({"params": inner}, document)

        return jax.jacrev(logits)(table)[:, :, document]  # [T, V, T, D]

    found = jacobian(params["params"]["token_embedding"]["embedding"])
    strength = np.abs(found).max(axis=(1, 3))
    np.testing.assert_array_equal(strength[np.triu_indices(5, k=1)], 0.0)
    assert np.all(strength[np.tril_indices(5)] > 1e-6)


def test_causality_by_perturbation(params):
    before = apply(params, DOCUMENTS)
    for t in range(1, 6):
        changed = DOCUMENTS.copy()
        changed[:, t] = (changed[:, t] + 1) % CONFIG.vocab_size
        after = apply(params, changed)
        np.testing.assert_allclose(after[:, :t], before[:, :t], atol=1e-13)
        assert np.abs(after[:, t] - before[:, t]).max() > 1e-3


@pytest.mark.parametrize(
    ("slots", "pieces"), [(8, [4, 4]), (8, [1] * 8), (8, [1, 1, 1, 1, 4]), (11, [8])], ids=str
)
def test_cached_decoding_is_the_full_forward_pass(params, slots: int, pieces: list[int]):
    """Identity 10, with padding on the left, on both sides and on the right of the rows."""
    tokens, valid = np.full((3, 8), 4), np.zeros((3, 8), bool)
    for row, start in enumerate([2, 1, 0]):
        tokens[row, start : start + 6] = DOCUMENTS[row]
        valid[row, start : start + 6] = True
    full = np.asarray(jitted_apply(params, jnp.array(tokens), valid=jnp.array(valid)))
    cache, found = LM.init_cache(3, slots), []
    for start, size in zip(itertools.accumulate(pieces, initial=0), pieces, strict=False):
        piece = (jnp.array(array[:, start : start + size]) for array in (tokens, valid))
        logits, cache = jitted_decode(params, cache, *piece)
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found, axis=1)[valid], full[valid], atol=1e-12)
    np.testing.assert_allclose(full[valid], apply(params, DOCUMENTS).reshape(18, 5), atol=1e-12)


@pytest.mark.parametrize("fill", [0, -100, 99])
@pytest.mark.parametrize("columns", [[0, 1], [6, 7], [0, 7], [3, 4]], ids=str)
def test_padding_moves_nothing(params, columns: list[int], fill: int):
    """Positions come from validity, ids of padding from nowhere."""
    tokens, valid = pad(columns, fill)
    found = np.asarray(jitted_apply(params, tokens, valid=valid))
    expected = apply(params, DOCUMENTS)
    np.testing.assert_allclose(found[:, np.asarray(valid[0])], expected, atol=1e-12)
    # After the text, padding repeats the law of what follows the text so far: what comes after a
    # prompt padded on the right is scored right.
    for column in set(columns) - {0, 1}:
        np.testing.assert_allclose(found[:, column], found[:, column - 1], atol=1e-12)


def test_layers_scanned_and_unrolled_agree(params, monkeypatch: pytest.MonkeyPatch):
    """In logits and gradients; a row of padding alone leaves both finite, and its neighbours be."""
    tokens, valid = pad([6, 7])
    valid = valid.at[2].set(False)

    def run(up_to: int):
        def loss(params):
            logits = LM.apply(params, tokens, valid=valid)
            return jnp.sum(jnp.sin(logits)), logits

        monkeypatch.setattr(module, "_UNROLL_UP_TO", up_to)
        lowered = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params)
        return "stablehlo.while" in lowered.as_text(), lowered.compile()(params)

    loops, unrolled = run(CONFIG.num_layers)
    assert not loops
    loops, scanned = run(CONFIG.num_layers - 1)
    assert loops
    for one, other in zip(jax.tree.leaves(unrolled), jax.tree.leaves(scanned), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)
        assert np.all(np.isfinite(one))
    logits = unrolled[0][1]
    np.testing.assert_allclose(logits[:2, :6], apply(params, DOCUMENTS)[:2], atol=1e-12)


def test_members_by_vmap_are_members_in_a_loop(params):
    tokens, valid = pad([6, 7])
    scales = jnp.array([0.7, 1.0, 1.3])
    members = jax.vmap(lambda scale: jax.tree.map(lambda leaf: leaf * scale, params))(scales)
    lifted = jax.vmap(lambda member: LM.apply(member, tokens, valid=valid))
    found = jax.jit(lifted)(members)
    for m in range(3):
        member = jax.tree.map(lambda leaf, m=m: leaf[m], members)
        np.testing.assert_allclose(found[m], jitted_apply(member, tokens, valid=valid), atol=1e-12)
    assert np.abs(found[0] - found[1]).max() > 0.1


def test_leading_axes_and_everything_valid_by_default(params):
    batched = jitted_apply(params, jnp.array(DOCUMENTS).reshape(1, 3, 1, 6))
    assert batched.shape == (1, 3, 1, 6, 5)
    np.testing.assert_allclose(batched.reshape(3, 6, 5), apply(params, DOCUMENTS), atol=1e-12)
    assert jax.eval_shape(LM.apply, params, jnp.array(DOCUMENTS[1])).shape == (6, 5)


def test_logits_are_the_head_of_the_features(params):
    tokens, valid = pad([6, 7])
    features = np.asarray(jax.jit(LM.features)(params, tokens, valid=valid))
    assert features.shape == (3, 8, CONFIG.width)
    head = jax.tree.map(np.asarray, params["params"]["head"])
    found = features @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(found[:, :6], apply(params, DOCUMENTS), atol=1e-12)


def test_number_of_parameters(params):
    d, v, f = CONFIG.width, CONFIG.vocab_size, 3
    norms = 2 * 2 * d
    attention = (d * 3 * d + 3 * d) + (d * d + d)
    mlp = (d * f * d + f * d) + (f * d * d + d)
    embeddings = v * d + CONFIG.max_length * d
    expected = embeddings + CONFIG.num_layers * (norms + attention + mlp) + 2 * d + (d * v + v)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


def test_initial_scale(float64: None):
    """Kernels have variance 1 / fan-in in every layer, layers differ, logits are of order 1."""
    init = jax.jit(LM.init)
    # Keys of this kind are quicker to compile for.
    draws = [init(jax.random.key(seed, impl="rbg")) for seed in range(32)]
    blocks = jax.tree.map(lambda *leaves: np.array(leaves), *draws)["params"]["blocks"]
    for name, fan_in in {"qkv": 8, "attention_out": 8, "mlp_in": 8, "mlp_out": 24}.items():
        kernel = blocks[name]["kernel"]  # [draws, layers, ...]
        spread = np.moveaxis(kernel, 1, 0).reshape(2, -1).std(axis=1)
        np.testing.assert_allclose(spread, fan_in**-0.5, rtol=0.05)
        assert not np.any(kernel[:, 0] == kernel[:, 1])
        assert not np.any(blocks[name]["bias"])
    assert 0.5 < np.std([numpy_logits(draw, DOCUMENTS[0]) for draw in draws[:8]]) < 2.0


def test_parameters_follow_the_default_float_type():
    """Linen's own default is float32 always."""
    for double, dtype in [(True, "float64"), (False, "float32")]:
        with jax.enable_x64(double):
            shapes = jax.eval_shape(LM.init, jax.random.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(dtype)}


def test_half_precision_parameters(params):
    """Logits come out in half precision and near the exact ones, whatever the cache is in."""
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    tokens, valid = pad([6, 7])
    found = jitted_apply(half, tokens, valid=valid)
    assert found.dtype == jnp.bfloat16
    rounded = jax.tree.map(lambda leaf: leaf.astype(float), half)
    exact = np.array([numpy_logits(rounded, document) for document in DOCUMENTS])
    assert np.abs(exact).max() > 1.0
    np.testing.assert_allclose(found[:, :6].astype(float), exact, atol=0.1)


def test_config_is_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.width = 16
    assert hash(CONFIG) == hash(dataclasses.replace(CONFIG))
    assert CONFIG != dataclasses.replace(CONFIG, num_layers=3)


SIZES = ["vocab_size", "max_length", "width", "num_layers", "num_heads"]


@pytest.mark.parametrize("name", [*SIZES, "num_kv_heads", "head_size", "mlp_width"])
def test_sizes_below_one_are_refused(name: str):
    with pytest.raises(ValueError, match=f"{name} must be >= 1, found 0"):
        dataclasses.replace(CONFIG, **{name: 0})


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="found width 8, heads 3"):
        dataclasses.replace(CONFIG, num_heads=3)


def test_wrong_shapes_and_types_are_refused(params):
    tokens = jnp.array(DOCUMENTS)
    with pytest.raises(AssertionError):
        LM.apply(params, tokens.astype(float))
    with pytest.raises(AssertionError):
        LM.apply(params, tokens, valid=jnp.ones(6, bool))
    with pytest.raises(AssertionError):
        LM.apply(params, tokens, valid=jnp.ones(tokens.shape))
    with pytest.raises(AssertionError):
        LM.decode(params, LM.init_cache(1, 6), tokens[0])
    with pytest.raises(ValueError, match="found 7 tokens, over max_length 6"):
        LM.apply(params, jnp.zeros((1, 7), int))


def test_checkify_finds_bad_values(params):
    checked = jax.jit(checkify.checkify(LM.apply))

    def message(*tokens: int, valid: int = 7) -> str | None:
        real = jnp.arange(7) < valid
        return checked(params, jnp.array(tokens), valid=real)[0].get()

    assert message(0, 1, 2, 3, 4, 0, 99, valid=6) is None  # padding may hold any id
    assert "expected 0 <= token < 5, found between 0 and 9" in message(0, 9, 2, 3, 4, 0, 0, valid=6)
    assert "found between -1 and 4" in message(0, -1, 2, 3, 4, 0, 0, valid=6)
    assert "a document has 7 tokens, over max_length 6" in message(0, 1, 2, 3, 4, 0, 1)


def test_checkify_finds_a_full_cache_and_a_document_too_long(params):
    checked = jax.jit(checkify.checkify(LM.decode))

    def decode(cache, *tokens: int):
        error, (_, cache) = checked(params, cache, jnp.array([tokens]))
        return error.get(), cache

    error, cache = decode(LM.init_cache(1, 8), 0, 1, 2, 3)
    assert error is None
    error, cache = decode(cache, 0, 1, 2, 3)
    assert "a document has 8 tokens, over max_length 6" in error
    error, cache = decode(cache, 0, 1, 2, 3)
    assert "the cache of 8 slots is full: found 8 in use and 4 more" in error
    error, _ = decode(LM.init_cache(1, 8), 0, 1, 5, 3)
    assert "expected 0 <= token < 5, found between 0 and 5" in error
