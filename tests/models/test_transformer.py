"""The transformer: compared with numpy, and with itself cached, padded, scanned and stacked."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from shatter.models import TransformerConfig, transformer, transformer_module
from shatter.models.rope import Rope, cos_sin
from shatter.models.transformer import forward
from shatter.models.transformer_block import Block
from tests.models.tiny import (
    CONFIG,
    CONFIGS,
    DOCUMENTS,
    GEMMA3,
    LLAMA,
    LM,
    LMS,
    apply,
    jitted,
    jitted_apply,
    pad,
    random_params,
    shapes_of,
)

every_config = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture
def params(float64: None):
    return random_params(CONFIG)


ACTIVATIONS = {
    "gelu": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu_exact": lambda x: x / 2 * (1 + np.vectorize(math.erf)(x / np.sqrt(2))),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def numpy_frequencies(rope: Rope, size: int) -> np.ndarray:
    """Computes frequencies one after the other, those of "llama3" from their wavelengths."""
    frequencies = []
    for i in range(size // 2):
        frequency = rope.theta ** (-2 * i / size)
        slow, length = frequency / rope.factor, rope.original_max_length
        wavelength = 2 * np.pi / frequency
        if rope.scaling == "linear":
            frequency = slow
        elif rope.scaling == "llama3" and wavelength > length / rope.low_frequency_factor:
            frequency = slow
        elif rope.scaling == "llama3" and wavelength > length / rope.high_frequency_factor:
            low, high = rope.low_frequency_factor, rope.high_frequency_factor
            share = (length / wavelength - low) / (high - low)
            frequency = share * frequency + (1 - share) * slow
        frequencies.append(frequency)
    return np.array(frequencies)


def numpy_logits(params, document: np.ndarray, config: TransformerConfig = CONFIG) -> np.ndarray:
    """Computes the logits of one document token by token, straight from the definition."""
    weights = jax.tree.map(np.asarray, params["params"])
    heads, kv_heads, size = config.num_heads, config.kv_heads, config.size_of_head

    def norm(x: np.ndarray, p: dict, kind: str = config.norm) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True) if kind == "layer" else x
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon)
        return x * (p["scale"] + config.norm_offset) + p.get("bias", 0.0)

    def out(x: np.ndarray, block: dict, name: str) -> np.ndarray:
        return norm(x, block[name]) if config.post_norms else x

    def linear(x: np.ndarray, p: dict, axes: int = 1) -> np.ndarray:
        return np.tensordot(x, p["kernel"], axes) + p.get("bias", 0.0)

    def turn(x: np.ndarray, t: int, rope: Rope | None) -> np.ndarray:
        """Rotates features i and i + size / 2 as one complex number."""
        if rope is None:
            return x
        angles = t * numpy_frequencies(rope, size)
        x = (x[:, : size // 2] + 1j * x[:, size // 2 :]) * np.exp(1j * angles)
        return np.concatenate([x.real, x.imag], axis=1)

    embedding = weights["token_embedding"]["embedding"]
    stream = [embedding[token] for token in document]
    if config.scaled_embedding:
        stream = [x * np.sqrt(config.width) for x in stream]
    if config.rope is None:
        place = weights["position_embedding"]["embedding"]
        stream = [x + place[t] for t, x in enumerate(stream)]
    for layer in range(config.num_layers):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], weights["blocks"])
        window, rope = config.window or len(document), config.rope
        if layer in config.full_layers:
            window = len(document)
        elif config.local_theta is not None:
            rope = Rope(config.local_theta)
        queries, keys, values = [], [], []
        for t, x in enumerate(stream):
            qkv = linear(norm(x, block["attention_norm"]), block["qkv"])
            query, key, value = np.split(qkv, [heads, heads + kv_heads])
            if config.qk_norm:
                query = norm(query, block["query_norm"], "rms")
                key = norm(key, block["key_norm"], "rms")
            queries.append(turn(query, t, rope))
            keys.append(turn(key, t, rope))
            values.append(value)
        for t in range(len(document)):
            mixed = np.zeros((heads, size))
            for head in range(heads):
                own = head * kv_heads // heads
                seen = range(max(t + 1 - window, 0), t + 1)
                scores = np.array([queries[t][head] @ keys[u][own] for u in seen])
                shares = np.exp(scores / np.sqrt(config.attention_size or size))
                shares /= shares.sum()
                mixed[head] = sum(
                    share * values[u][own] for share, u in zip(shares, seen, strict=True)
                )
            mixed = linear(mixed, block["attention_out"], 2)
            stream[t] = stream[t] + out(mixed, block, "attention_post_norm")
        for t, x in enumerate(stream):
            hidden = linear(norm(x, block["mlp_norm"]), block["mlp_in"])
            activation = ACTIVATIONS[config.activation]
            hidden = activation(hidden[0]) * hidden[1] if config.gated else activation(hidden)
            stream[t] = x + out(linear(hidden, block["mlp_out"]), block, "mlp_post_norm")
    features = np.array([norm(x, weights["final_norm"]) for x in stream])
    return features @ embedding.T if config.tied else linear(features, weights["head"])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("didactic", "qwen3")))
        for name in CONFIGS
    ],
)
def test_logits_are_those_of_the_definition(float64: None, name: str):
    params = random_params(CONFIGS[name])
    for document, logits in zip(DOCUMENTS, apply(params, DOCUMENTS, name), strict=True):
        expected = numpy_logits(params, document, CONFIGS[name])
        np.testing.assert_allclose(logits, expected, atol=1e-12)


@pytest.mark.slow
def test_slopes_are_those_of_the_definition(float64: None):
    """In a random direction, by differences of the definition."""
    params, direction = random_params(GEMMA3), random_params(GEMMA3, seed=1)
    forward = lambda params: LMS["gemma3"].apply(params, jnp.array(DOCUMENTS[0]))
    run = jax.jit(lambda params, change: jax.jvp(forward, (params,), (change,)))
    _, found = run(params, direction)
    step = 1e-5
    ends = [
        numpy_logits(
            jax.tree.map(lambda p, d, s=s: p + s * d, params, direction),
            DOCUMENTS[0],
            GEMMA3,
        )
        for s in (step, -step)
    ]
    np.testing.assert_allclose(found, (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_every_setting_of_positions_counts(float64: None, name: str):
    """The definition gives other logits without scaling, and without any rotation."""
    config, params = CONFIGS[name], random_params(CONFIGS[name])
    plain = Rope(theta=config.rope.theta)
    still = Rope(theta=1.0, scaling="linear", factor=1e9)
    scaled, unscaled, unmoved = (
        numpy_logits(params, DOCUMENTS[0], dataclasses.replace(config, rope=rope))
        for rope in (config.rope, plain, still)
    )
    assert np.abs(scaled - unscaled).max() > 1e-2
    assert np.abs(scaled - unmoved).max() > 1e-2


@pytest.mark.parametrize(
    "changes",
    [
        {"window": 3},
        {"full_layers": ()},
        {"local_theta": None},
        {"attention_size": None},
        {"scaled_embedding": False},
        {"norm_offset": False},
        {"post_norms": False},
    ],
    ids=str,
)
def test_every_setting_of_gemma_3_counts(float64: None, changes: dict):
    """The definition gives other logits without it."""
    params = random_params(GEMMA3)
    with_it, without = (
        numpy_logits(params, DOCUMENTS[0], config)
        for config in (GEMMA3, dataclasses.replace(GEMMA3, **changes))
    )
    assert np.abs(with_it - without).max() > 1e-2


def test_frequencies_of_llama_3():
    """With Llama 3.1's settings, high frequencies stay and low ones are divided by 8."""
    rope = Rope(500_000.0, "llama3", 8.0, 1.0, 4.0, 8192)
    cos, sin = cos_sin(rope, jnp.ones((1, 1), int), 128)
    plain = numpy_frequencies(Rope(500_000.0), 128)
    np.testing.assert_allclose(np.arctan2(sin, cos)[0, 0, 0], numpy_frequencies(rope, 128), 1e-5)
    ratios = plain / numpy_frequencies(rope, 128)
    np.testing.assert_array_equal(ratios[:29], 1.0)
    np.testing.assert_allclose(ratios[35:], 8.0)
    assert np.all(np.diff(ratios[28:36]) > 0)


def test_shared_keys_are_repeated_keys(float64: None):
    """Queries 0 and 1 share the first head of keys, queries 2 and 3 the second."""
    params = random_params(LLAMA)
    qkv = params["params"]["blocks"]["qkv"]["kernel"]
    query, key, value = jnp.split(qkv, [4, 6], axis=2)
    repeated = jnp.concatenate([query, key[:, :, [0, 0, 1, 1]], value[:, :, [0, 0, 1, 1]]], axis=2)
    blocks = params["params"]["blocks"] | {"qkv": {"kernel": repeated}}
    full = transformer(dataclasses.replace(LLAMA, num_kv_heads=None))
    found = jax.jit(full.apply)({"params": params["params"] | {"blocks": blocks}}, DOCUMENTS)
    np.testing.assert_allclose(found, apply(params, DOCUMENTS, "llama"), atol=1e-12)


def test_causality_by_gradient(params):
    """Logits at t do not depend on the embeddings of the tokens after t."""
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


@every_config
def test_causality_by_perturbation(float64: None, name: str):
    params = random_params(CONFIGS[name])
    before = apply(params, DOCUMENTS, name)
    for t in range(1, 6):
        changed = DOCUMENTS.copy()
        changed[:, t] = (changed[:, t] + 1) % CONFIG.vocab_size
        after = apply(params, changed, name)
        np.testing.assert_allclose(after[:, :t], before[:, :t], atol=1e-13)
        assert np.abs(after[:, t] - before[:, t]).max() > 1e-3


@pytest.mark.parametrize("columns", [[0, 1], [6, 7], [0, 7], [3, 4]], ids=str)
@every_config
def test_padding_moves_nothing(float64: None, name: str, columns: list[int]):
    """Positions follow from validity, and the ids of padding are never read."""
    params = random_params(CONFIGS[name])
    expected = apply(params, DOCUMENTS, name)
    for fill in (0, -100, 99):
        tokens, valid = pad(columns, fill)
        found = np.asarray(jitted[name](params, tokens, valid=valid))
        np.testing.assert_allclose(found[:, np.asarray(valid[0])], expected, atol=1e-12)
        # Padding after text repeats the law of the next token, so that the text after a prompt
        # padded on the right is scored correctly.
        for column in set(columns) - {0, 1}:
            np.testing.assert_allclose(found[:, column], found[:, column - 1], atol=1e-12)


@pytest.mark.slow
def test_layers_scanned_and_unrolled_agree(params):
    """They agree in logits and gradients; a row of padding makes neither infinite."""
    tokens, valid = pad([6, 7])
    valid = valid.at[2].set(False)

    def run(up_to: int):
        lm = transformer(dataclasses.replace(CONFIG, unrolled_layers=up_to))

        def loss(params):
            logits = lm.apply(params, tokens, valid=valid)
            return jnp.sum(jnp.sin(logits)), logits

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


@pytest.mark.slow
@pytest.mark.parametrize(("name", "remat"), [("llama", False), ("llama", True), ("gemma3", False)])
def test_programs_do_not_grow_with_depth(name: str, remat: bool):
    """So the time to compile them does not grow either; up to eight layers are unrolled."""

    def size(num_layers: int) -> int:
        config = dataclasses.replace(CONFIGS[name], num_layers=num_layers, remat=remat)
        lm = transformer(config)
        shapes = jax.eval_shape(lm.init, jax.random.key(0))
        loss = lambda params: jnp.sum(lm.apply(params, jnp.array(DOCUMENTS)))
        return len(jax.jit(jax.grad(loss)).lower(shapes).as_text())

    assert abs(size(24) / size(9) - 1) < 0.01
    assert size(4) > 1.1 * size(2)


@pytest.mark.slow
def test_remat_trades_memory_for_time(float64: None, monkeypatch: pytest.MonkeyPatch):
    """Loss and gradients are the same, with less memory; deep models keep their products only."""
    config = dataclasses.replace(LLAMA, num_layers=9, max_length=64)
    params = random_params(config)
    tokens = jnp.array(np.random.default_rng(0).integers(0, 5, (4, 64)))

    def run(remat: bool):
        apply = transformer(dataclasses.replace(config, remat=remat)).apply
        loss = lambda params, tokens: jnp.mean(jnp.sin(apply(params, tokens)))
        compiled = jax.jit(jax.value_and_grad(loss)).lower(params, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes, compiled(params, tokens)

    (some, products), (little, remade) = run(False), run(True)
    monkeypatch.setattr(transformer_module, "_block", lambda config: Block)
    much, kept = run(False)
    for one, *others in zip(*map(jax.tree.leaves, (kept, products, remade)), strict=True):
        for other in others:
            np.testing.assert_allclose(one, other, atol=1e-12)
    assert little < some < 0.7 * much and little < 0.5 * much


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_parameters_follow_the_default_float_type():
    """Not linen's default, which is always float32."""
    for double, dtype in [(True, "float64"), (False, "float32")]:
        with jax.enable_x64(double):
            shapes = jax.eval_shape(LM.init, jax.random.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(dtype)}


@pytest.mark.slow
def test_half_precision_parameters(params):
    """Logits are in half precision and close to the exact ones."""
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    tokens, valid = pad([6, 7])
    found = jitted_apply(half, tokens, valid=valid)
    assert found.dtype == jnp.bfloat16
    rounded = jax.tree.map(lambda leaf: leaf.astype(float), half)
    exact = np.array([numpy_logits(rounded, document) for document in DOCUMENTS])
    assert np.abs(exact).max() > 1.0
    np.testing.assert_allclose(found[:, :6].astype(float), exact, atol=0.1)


@pytest.mark.slow
def test_half_precision_computation(float64: None):
    """Parameters are floats, products in half precision, and logits in float32 and close."""
    config = dataclasses.replace(LLAMA, dtype="bfloat16")
    params, lm = random_params(LLAMA), transformer(config)
    found = jax.jit(lm.apply)(params, jnp.array(DOCUMENTS))
    exact = apply(params, DOCUMENTS, "llama")
    assert found.dtype == jnp.float32
    assert np.abs(exact).max() > 1.0
    np.testing.assert_allclose(found, exact, atol=0.1)
    assert np.abs(found - exact).max() > 1e-4
    assert np.any(found != found.astype(jnp.bfloat16))  # they were not rounded to half precision
    shapes = jax.eval_shape(lm.features, params, jnp.array(DOCUMENTS)), lm.init_cache(1, 2).keys
    assert [leaf.dtype for leaf in shapes] == [jnp.bfloat16, jnp.bfloat16]


@pytest.mark.slow
def test_the_factor_of_embeddings_is_rounded_to_their_type():
    """As in transformers: sqrt(72) is 8.4853, and 8.5 in bfloat16."""
    config = dataclasses.replace(GEMMA3, width=72, num_layers=1, full_layers=(), dtype="bfloat16")
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes_of(config))
    table = jnp.array(np.random.default_rng(0).standard_normal((5, 72)), jnp.bfloat16)
    params["params"]["token_embedding"]["embedding"] = table
    found = jax.jit(lambda params, x: forward(config, params, x, None).hidden)(params, DOCUMENTS)
    np.testing.assert_array_equal(found, table[DOCUMENTS] * jnp.bfloat16(8.5))


def test_parameters_are_those_of_the_config():
    """All leaves of the config with the most parts are listed by name."""
    shapes = jax.eval_shape(LMS["gemma3"].init, jax.random.key(0))["params"]
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    assert found == {
        "token_embedding/embedding": (5, 8),
        "blocks/attention_norm/scale": (2, 8),
        "blocks/qkv/kernel": (2, 8, 4 + 1 + 1, 6),
        "blocks/qkv/bias": (2, 4 + 1 + 1, 6),
        "blocks/query_norm/scale": (2, 6),
        "blocks/key_norm/scale": (2, 6),
        "blocks/attention_out/kernel": (2, 4, 6, 8),
        "blocks/attention_post_norm/scale": (2, 8),
        "blocks/mlp_norm/scale": (2, 8),
        "blocks/mlp_in/kernel": (2, 8, 2, 10),
        "blocks/mlp_out/kernel": (2, 10, 8),
        "blocks/mlp_post_norm/scale": (2, 8),
        "final_norm/scale": (8,),
    }
    assert "head" not in jax.eval_shape(LMS["gpt2"].init, jax.random.key(0))["params"]


def test_config_is_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.width = 16
    assert hash(CONFIG) == hash(dataclasses.replace(CONFIG))
    assert CONFIG != dataclasses.replace(CONFIG, num_layers=3)


SIZES = ["vocab_size", "max_length", "width", "num_layers", "num_heads"]


@pytest.mark.parametrize("name", [*SIZES, "num_kv_heads", "head_size", "mlp_width"])
def test_sizes_below_one_are_refused(name: str):
    with pytest.raises(
        ValueError, match=f"{name} must be an integer from 1 to 2147483647.*, found 0"
    ):
        dataclasses.replace(CONFIG, **{name: 0})


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="found width 8, heads 3"):
        dataclasses.replace(CONFIG, num_heads=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads must divide num_heads, found 3 and 4"),
        ({"num_kv_heads": 8}, "num_kv_heads must divide num_heads, found 8 and 4"),
        ({"head_size": 5}, "rotary positions need an even head size, found 5"),
        ({"norm_epsilon": 0.0}, "norm_epsilon must be a number from 1e-20 to 1, found 0.0"),
        ({"norm": "batch"}, "norm must be one of 'layer', 'rms', found 'batch'"),
        ({"activation": "swish"}, "activation must be one of 'gelu', .* found 'swish'"),
        ({"norm_offset": True, "norm": "layer"}, "norm_offset needs norm 'rms', found 'layer'"),
        ({"window": 0}, "window must be an integer from 1 to 2147483647 or null, found 0"),
        ({"window": 2, "full_layers": (2,)}, "full_layers must be below num_layers 2, found 2"),
        ({"window": 2, "full_layers": (1, 0)}, r"a tuple of increasing numbers, found \(1, 0\)"),
        ({"window": 2, "full_layers": [1]}, r"a tuple of increasing numbers, found \[1\]"),
        ({"window": 2, "full_layers": (0, 0)}, r"a tuple of increasing numbers, found \(0, 0\)"),
        ({"full_layers": (1,)}, "full_layers and local_theta need a window, found window None"),
        ({"local_theta": 10.0}, "full_layers and local_theta need a window, found window None"),
        ({"window": 2, "local_theta": 10.0, "rope": None}, "local_theta needs rotary positions"),
        ({"window": 2, "local_theta": 0.5}, r"local_theta must be a number from 1 to 1e\+15"),
        ({"attention_size": 0}, "attention_size must be an integer from 1 to"),
        ({"dtype": "float16"}, "dtype must be one of 'float32', 'bfloat16', None, found 'float16'"),
    ],
    ids=str,
)
def test_refused_configs(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LLAMA, **changes)


def test_refused_scaling():
    with pytest.raises(ValueError, match=r"scaling must be one of 'none', .* found 'yarn'"):
        Rope(scaling="yarn")


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


@pytest.mark.slow
def test_checkify_finds_bad_values(params):
    checked = jax.jit(checkify.checkify(LM.apply))

    def message(*tokens: int, valid: int = 7) -> str | None:
        real = jnp.arange(7) < valid
        return checked(params, jnp.array(tokens), valid=real)[0].get()

    assert message(0, 1, 2, 3, 4, 0, 99, valid=6) is None  # padding may hold any id
    assert "expected 0 <= token < 5, found between 0 and 9" in message(0, 9, 2, 3, 4, 0, 0, valid=6)
    assert "found between -1 and 4" in message(0, -1, 2, 3, 4, 0, 0, valid=6)
    assert "a document has 7 tokens, over max_length 6" in message(0, 1, 2, 3, 4, 0, 1)
