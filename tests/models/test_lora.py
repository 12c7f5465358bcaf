"""Low-rank adapters: beside the base, merged into it, their gradients, and their files."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.documents import log_prob, sample
from shatter.models import TransformerConfig, transformer
from shatter.models.lora import LoraConfig, init_lora, merge_lora, with_lora
from shatter.models.lora_files import load_lora, save_lora
from tests.models.tiny import llama

GPT2 = TransformerConfig(vocab_size=5, max_length=8, width=8, num_heads=2, mlp_width=12, tied=True)
LLAMA = llama(
    vocab_size=5,
    max_length=8,
    width=8,
    num_heads=4,
    num_kv_heads=2,
    head_size=6,
    mlp_width=10,
)
DEEP = dataclasses.replace(LLAMA, num_layers=9)  # scanned
CONFIGS = {"gpt2": GPT2, "llama": LLAMA, "deep": DEEP}
SPLIT = ("query", "key", "value", "gate", "up")
TARGETS = {
    name: ("qkv", "query", "key", "value", "attention_out", "mlp_in", "mlp_out")
    + (("gate", "up") if config.gated else ())
    for name, config in CONFIGS.items()
}
TOKENS = np.array([[0, 3, 1, 4, 2, 2], [4, 4, 0, 2, 1, 3]])
applies = {name: jax.jit(transformer(config).apply) for name, config in CONFIGS.items()}
# Compiled, because operation by operation they take ten times as long.
init, beside, within = (
    jax.jit(function, static_argnames="lora") for function in (init_lora, with_lora, merge_lora)
)


def random_like(tree, seed: int, scale: float = 0.4):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.array(scale * rng.standard_normal(leaf.shape)), tree)


@functools.cache
def shapes_of(config: TransformerConfig):
    return jax.eval_shape(transformer(config).init, jax.random.key(0))


def base_and_adapters(name: str, lora: LoraConfig):
    """Returns parameters without zeros, so that every one of them matters."""
    shapes = shapes_of(CONFIGS[name])
    own = jax.eval_shape(lambda key: init_lora(key, shapes, lora), jax.random.key(0))
    return random_like(shapes, 0), random_like(own, 1)


def pair(adapters, target: str):
    """Returns `a` and `b` of a target."""
    for projection in adapters["blocks"].values():
        if target in projection["adapters"]:
            return projection["adapters"][target]
    raise KeyError(target)


def alone(adapters, target: str):
    """Returns the adapters with `b` zero for all targets but one."""

    def keep(path, leaf):
        return leaf if path[-2].key == target or path[-1].key == "a" else np.zeros_like(leaf)

    return jax.tree_util.tree_map_with_path(keep, adapters)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_model_begins_as_the_base(float64: None, name: str):
    lora = LoraConfig(rank=3, alpha=5.0, targets=TARGETS[name])
    params, _ = base_and_adapters(name, lora)
    # A key of this kind is quicker to compile for.
    adapters = init(jax.random.key(0, impl="rbg"), params, lora=lora)
    expected = applies[name](params, TOKENS)
    unmerged = applies[name](beside(params, adapters, lora=lora), TOKENS)
    np.testing.assert_array_equal(unmerged, expected)
    for one, other in zip(
        *map(jax.tree.leaves, (within(params, adapters, lora=lora), params)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "deep"))],
)
def test_beside_the_base_is_within_the_base(float64: None, name: str):
    """With adapters on every target by itself, and on all targets together."""
    lora = LoraConfig(rank=3, alpha=5.0, targets=TARGETS[name])
    params, adapters = base_and_adapters(name, lora)
    before = np.asarray(applies[name](params, TOKENS))
    found = []
    for own in [*(alone(adapters, target) for target in lora.targets), adapters]:
        unmerged = np.asarray(applies[name](beside(params, own, lora=lora), TOKENS))
        merged = applies[name](within(params, own, lora=lora), TOKENS)
        np.testing.assert_allclose(unmerged, merged, atol=1e-12)
        assert np.abs(unmerged - before).max() > 1e-3
        found.append(unmerged)
    assert len(np.unique(np.round(found, 8), axis=0)) == len(found)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_part_of_a_projection_is_a_block_of_its_kernel(float64: None, name: str):
    """The merged kernel is written out: its heads are query, key and value in this order."""
    lora = LoraConfig(rank=3, alpha=5.0, targets=("value", "key"))
    params, adapters = base_and_adapters(name, lora)
    config, kernel = CONFIGS[name], params["params"]["blocks"]["qkv"]["kernel"]
    heads, kv_heads, size = config.num_heads, config.kv_heads, config.size_of_head
    expected = np.array(kernel)
    for layer in range(config.num_layers):
        for target, start in [("key", heads), ("value", heads + kv_heads)]:
            a, b = (np.asarray(pair(adapters, target)[side][layer]) for side in ("a", "b"))
            product = (a @ b).reshape(config.width, kv_heads, size)
            expected[layer, :, start : start + kv_heads] += 5 / 3 * product
    merged = within(params, adapters, lora=lora)["params"]["blocks"]
    np.testing.assert_allclose(merged["qkv"]["kernel"], expected, atol=1e-14)
    np.testing.assert_array_equal(
        merged["mlp_in"]["kernel"], params["params"]["blocks"]["mlp_in"]["kernel"]
    )
    unmerged = applies[name](beside(params, adapters, lora=lora), TOKENS)  # mlp_in without adapters
    expected = applies[name](within(params, adapters, lora=lora), TOKENS)
    np.testing.assert_allclose(unmerged, expected, atol=1e-12)


@pytest.mark.slow
def test_decoding_and_sampling_with_adapters(float64: None):
    lm, lora = transformer(LLAMA), LoraConfig(rank=3, alpha=5.0, targets=TARGETS["llama"])
    params, adapters = base_and_adapters("llama", lora)
    unmerged, merged = beside(params, adapters, lora=lora), within(params, adapters, lora=lora)
    decode, cache = jax.jit(lm.decode), lm.init_cache(2, 6)
    expected = np.asarray(applies["llama"](merged, TOKENS))
    for start in (0, 2, 4):
        logits, cache = decode(unmerged, cache, TOKENS[:, start : start + 2])
        full = expected[:, start : start + 2]
        np.testing.assert_allclose(logits, full, atol=1e-12)

    @jax.jit
    def draw(params):
        return sample(lm, params, jax.random.key(1), TOKENS[:, :2], num_samples=1, max_length=4)

    drawn = draw(unmerged)
    tokens, mask = np.asarray(drawn.tokens[:, 0]), drawn.mask[:, 0]
    score = jax.jit(log_prob)
    expected = score(applies["llama"](merged, tokens), tokens, mask)
    np.testing.assert_allclose(drawn.raw_log_probs[:, 0], expected, atol=1e-12)
    other = np.asarray(score(applies["llama"](params, tokens), tokens, mask))
    assert np.abs(other - expected).min() > 1e-2


@pytest.mark.slow
def test_gradients_by_the_chain_rule(float64: None):
    """With W = W_0 + s a b: dL/da = s dL/dW b^T and dL/db = s a^T dL/dW."""
    lora = LoraConfig(rank=3, alpha=5.0, targets=SPLIT)
    params, adapters = base_and_adapters("llama", lora)
    apply = transformer(LLAMA).apply

    def loss(params):
        return jnp.sum(jnp.sin(apply(params, TOKENS)))

    found = jax.jit(jax.grad(lambda own: loss(with_lora(params, own, lora))))(adapters)
    merged = within(params, adapters, lora=lora)
    blocks = jax.jit(jax.grad(loss))(merged)["params"]["blocks"]
    qkv, gate_up = (np.asarray(blocks[name]["kernel"]) for name in ("qkv", "mlp_in"))
    pieces = {
        "query": qkv[:, :, :4],
        "key": qkv[:, :, 4:6],
        "value": qkv[:, :, 6:],
        "gate": gate_up[:, :, :1],
        "up": gate_up[:, :, 1:],
    }
    for target, piece in pieces.items():
        piece = piece.reshape(2, LLAMA.width, -1)
        a, b = (np.asarray(pair(adapters, target)[side]) for side in ("a", "b"))
        for side, expected in {
            "a": np.einsum("lio,lro->lir", piece, b),
            "b": np.einsum("lir,lio->lro", a, piece),
        }.items():
            np.testing.assert_allclose(pair(found, target)[side], 5 / 3 * expected, atol=1e-11)
            assert np.abs(expected).max() > 1e-3


def test_members_by_vmap_are_members_in_a_loop(float64: None):
    lora = LoraConfig(rank=2)
    params, _ = base_and_adapters("llama", lora)
    keys = jax.random.split(jax.random.key(0), 3)
    draw = jax.vmap(lambda key: init_lora(key, params, lora))
    members = random_like(jax.eval_shape(draw, keys), 2)

    def apply(params, own):
        return transformer(LLAMA).apply(with_lora(params, own, lora), TOKENS)

    found = np.asarray(jax.jit(jax.vmap(apply, in_axes=(None, 0)))(params, members))
    merged = jax.jit(jax.vmap(lambda own: merge_lora(params, own, lora)))(members)
    for m in range(3):
        own = jax.tree.map(lambda leaf, m=m: np.asarray(leaf)[m], merged)
        np.testing.assert_allclose(found[m], applies["llama"](own, TOKENS), atol=1e-12)
    assert np.abs(found[0] - found[1]).max() > 1e-2


def test_initial_law():
    """It is that of PEFT: kaiming_uniform_(a=sqrt(5)), uniform within 1 / sqrt(inputs); b zero."""
    config = dataclasses.replace(LLAMA, num_layers=200)
    shapes = jax.eval_shape(transformer(config).init, jax.random.key(0))
    lora = LoraConfig(rank=16, targets=TARGETS["llama"])
    adapters = jax.jit(lambda key: init_lora(key, shapes, lora))(jax.random.key(0))
    inputs = dict.fromkeys(TARGETS["llama"], 8) | {"attention_out": 24, "mlp_out": 10}
    outputs = {"qkv": 48, "query": 24, "key": 12, "value": 12, "mlp_in": 20, "gate": 10, "up": 10}
    draws = []
    for target in lora.targets:
        a, b = pair(adapters, target)["a"], pair(adapters, target)["b"]
        assert a.shape == (200, inputs[target], 16)
        assert b.shape == (200, 16, outputs.get(target, 8))
        assert not np.any(b)
        scaled = np.asarray(a) * inputs[target] ** 0.5
        assert -1 <= scaled.min() < -0.999 and 0.999 < scaled.max() <= 1
        np.testing.assert_allclose(scaled.std(), 3**-0.5, rtol=0.02)
        draws.append(scaled[0, 0, 0])
    assert len(set(draws)) == len(draws)


def test_float_types(float64: None):
    """Adapters have the default float type; a merged kernel keeps its own."""
    lora = LoraConfig(rank=2)
    params, _ = base_and_adapters("llama", lora)
    half = jax.tree.map(lambda leaf: jnp.array(np.asarray(leaf, jnp.bfloat16)), params)
    adapters = jax.eval_shape(lambda half: init_lora(jax.random.key(0), half, lora), half)
    assert {leaf.dtype for leaf in jax.tree.leaves(adapters)} == {np.dtype("float64")}
    adapters = random_like(adapters, 1)
    merged = within(half, adapters, lora=lora)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {np.dtype(jnp.bfloat16)}
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf, float), half)
    exact = within(rounded, adapters, lora=lora)
    for one, other in zip(*map(jax.tree.leaves, (merged, exact)), strict=True):
        np.testing.assert_array_equal(one, np.asarray(other, jnp.bfloat16))  # rounded once
    found = applies["llama"](beside(half, adapters, lora=lora), TOKENS)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(float), applies["llama"](exact, TOKENS), atol=0.1)


def test_scale():
    assert LoraConfig(rank=4, alpha=8.0).scale == 2.0
    assert LoraConfig(rank=4, alpha=8.0, use_rslora=True).scale == 4.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank must be an integer from 1 to 2147483647, found 0"),
        ({"alpha": 0.0}, r"alpha must be a number from 1e-06 to 1000000000, found 0.0"),
        ({"targets": ()}, "must be a tuple of names"),
        ({"targets": "query"}, "must be a tuple of names .* found 'query'"),
        ({"targets": ("up", "up")}, "must be distinct"),
    ],
)
def test_refused_configs(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**changes)


def test_refused_targets_and_adapters():
    shapes = jax.eval_shape(transformer(GPT2).init, jax.random.key(0))
    known = "'gate' is unknown; known are qkv, attention_out, mlp_in, mlp_out, query, key, value"
    with pytest.raises(ValueError, match=known):
        init_lora(jax.random.key(0), shapes, LoraConfig(targets=("query", "gate")))
    with pytest.raises(ValueError, match=r"parameters of shatter.models.transformer.*'blocks'"):
        init_lora(jax.random.key(0), {"params": {}}, LoraConfig())
    lora = LoraConfig(rank=2)
    params, adapters = base_and_adapters("gpt2", lora)
    for function in (with_lora, merge_lora):
        message = r"qkv/adapters/query/a has shape \(2, 8, 2\), expected \(2, 8, 3\)"
        with pytest.raises(ValueError, match=message):
            function(params, adapters, LoraConfig(rank=3))
        with pytest.raises(ValueError, match=r"key/a has shape None, expected \(2, 8, 2\)"):
            function(params, adapters, LoraConfig(rank=2, targets=("key",)))
        with pytest.raises(ValueError, match=r"have adapters .* already"):
            function(with_lora(params, adapters, lora), adapters, lora)


@pytest.fixture
def saved(tmp_path):
    """A folder with adapters, the adapters, their config, and a function that changes the file."""
    numpy = pytest.importorskip("safetensors.numpy")
    lora = LoraConfig(rank=3, alpha=2.5, targets=("query", "mlp_out", "gate"), use_rslora=True)
    _, adapters = base_and_adapters("llama", lora)
    save_lora(tmp_path / "new", LLAMA, adapters, lora, base="org/name")
    file = tmp_path / "new" / "adapter_model.safetensors"

    def change(**tensors: np.ndarray | None) -> None:
        changed = {**numpy.load_file(file), **tensors}
        numpy.save_file({k: v for k, v in changed.items() if v is not None}, file)

    return file.parent, adapters, lora, change


def test_saved_is_loaded(saved):
    folder, adapters, lora, _ = saved
    assert sorted(file.name for file in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    found, settings = load_lora(folder, LLAMA)
    assert set(settings.targets) == set(lora.targets)
    assert dataclasses.replace(settings, targets=lora.targets) == lora
    assert jax.tree.structure(found) == jax.tree.structure(adapters)
    for one, other in zip(*map(jax.tree.leaves, (found, adapters)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_half_precision_is_saved(tmp_path):
    lora = LoraConfig(rank=2, targets=("qkv",))
    _, adapters = base_and_adapters("gpt2", lora)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), adapters)
    save_lora(tmp_path, GPT2, half, lora)
    found, settings = load_lora(tmp_path, GPT2)
    assert settings == lora
    for one, other in zip(*map(jax.tree.leaves, (found, half)), strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_array_equal(one, other)


Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
Q1 = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
NORM = "base_model.model.model.layers.0.input_layernorm.weight"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({Q1: None}, rf"safetensors: {Q1} is missing, expected with shape \(3, 8\)"),
        (
            {Q0: np.zeros((3, 9), "f4")},
            rf"safetensors: {Q0} has shape \(3, 9\), expected \(3, 8\)",
        ),
        ({NORM: np.zeros(8, "f4")}, rf"safetensors: {NORM} with shape \(8,\) is unexpected"),
    ],
    ids=["missing", "misshapen", "unexpected"],
)
def test_refused_tensors(saved, tensors: dict, message: str):
    folder, _, _, change = saved
    change(**tensors)
    with pytest.raises(ValueError, match=message):
        load_lora(folder, LLAMA)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type must be 'LORA', found 'IA3'"),
        ({"use_dora": True}, "use_dora is True, which is not supported"),
        ({"bias": "all"}, "bias must be 'none' or None, found 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights must be .* or 'eva', found 'pissa'"),
        ({"r": None}, "r must be an integer from 1 to 2147483647, found None"),
        ({"r": 4}, r"has shape \(3, 8\), expected \(4, 8\)"),
    ],
    ids=str,
)
def test_refused_settings(saved, changes: dict, message: str):
    folder, *_ = saved
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        load_lora(folder, LLAMA)


def test_refused_files(saved, tmp_path):
    folder, *_ = saved
    with pytest.raises(ValueError, match=r"has no adapter of this model.*q_proj.*'org/name'"):
        load_lora(folder, GPT2)
    (folder / "adapter_model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        load_lora(folder, LLAMA)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model.safetensors is missing"):
        load_lora(folder, LLAMA)


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("gpt2", "query", "of gpt2 has no module for the target 'query'.*one: 'qkv'"),
        ("llama", "qkv", "of llama has no module for the target 'qkv'; it has query, key, value"),
    ],
)
def test_targets_that_the_layout_cannot_hold(tmp_path, name: str, target: str, message: str):
    pytest.importorskip("safetensors")
    lora = LoraConfig(targets=(target,))
    _, adapters = base_and_adapters(name, lora)
    with pytest.raises(ValueError, match=message):
        save_lora(tmp_path, CONFIGS[name], adapters, lora)
    assert not list(tmp_path.iterdir())
