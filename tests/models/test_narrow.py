"""Narrow weights are near the wide ones, and adapters learn on them as on a base like them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter import documents, models
from shatter.factored import as_array
from shatter.models import LoraConfig, TransformerConfig, init_lora, narrow, with_lora

LLAMA = TransformerConfig(
    vocab_size=31,
    max_length=8,
    width=16,
    num_layers=2,
    num_heads=4,
    tied=True,
    norm="rms",
    gated=True,
    activation="silu",
    rope=models.Rope(),
)
GPT2 = TransformerConfig(vocab_size=31, max_length=8, width=16, num_layers=2, num_heads=2)
LORA = LoraConfig(2, 4.0, ("query", "mlp_out"))
TOKENS = jnp.array([[1, 7, 30, 2, 5, 11], [3, 4, 9, 9, 0, 1]])
VALID = jnp.array([[True] * 6, [True] * 4 + [False] * 2])
MASK = VALID & (jnp.arange(6) > 1)[None]

both_configs = pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["tied", "biases"])


@pytest.fixture(scope="module", autouse=True)
def float32():
    with jax.enable_x64(False):
        yield


def draw(config: TransformerConfig):
    rng = np.random.default_rng(0)  # NumPy, because jax compiles a program for every shape
    shapes = jax.eval_shape(models.transformer(config).init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32), shapes
    )


def widened(params):
    """Returns the float32 parameters that int8 or bfloat16 parameters stand for."""

    def of_layer(name, layer):
        made = {}
        for key, leaf in layer.items():
            if key.endswith("_scale"):
                continue
            scale = layer.get("kernel_scale", layer.get("embedding_scale"))
            leaf = leaf.astype(jnp.float32)
            if scale is not None and key == "kernel":
                first = 0 if name == "head" else 1
                gaps = range(first, first + leaf.ndim - scale.ndim)
                scale = jnp.expand_dims(scale, tuple(gaps))
            elif scale is not None and key == "embedding":
                scale = scale[:, None]
            made[key] = leaf if scale is None else leaf * scale
        return made

    weights = dict(params["params"])
    weights["blocks"] = {name: of_layer(name, layer) for name, layer in weights["blocks"].items()}
    for name in ("token_embedding", "head"):
        if name in weights:
            weights[name] = of_layer(name, weights[name])
    return {**params, "params": weights}


@pytest.mark.slow
@both_configs
@pytest.mark.parametrize(("dtype", "bound"), [("int8", 1 / 254), ("bfloat16", 2**-8)])
def test_every_matrix_is_within_its_bound(config, dtype, bound):
    params = draw(config)
    _, held = narrow(config, params, dtype)
    close = widened(held)
    for (path, leaf), other in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(close), strict=True
    ):
        name = jax.tree_util.keystr(path)
        is_matrix = "kernel" in name or "token_embedding" in name
        largest = float(jnp.max(jnp.abs(leaf)))
        atol = 1.001 * bound * largest if is_matrix else 1e-6
        np.testing.assert_allclose(other, leaf, atol=atol, err_msg=name)
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    assert size(held) < {"int8": 0.5, "bfloat16": 0.65}[dtype] * size(params)


@pytest.mark.slow
@both_configs
@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_logits_are_those_of_the_weights_that_it_stands_for(config, dtype):
    params = draw(config)
    narrow_config, held = narrow(config, params, dtype)
    lm, wide_lm = models.transformer(narrow_config), models.transformer(config)
    close = widened(held)

    @jax.jit
    def logits(held, close):
        cache = lm.init_cache(2, 6)
        decoded, _ = lm.decode(held, cache, TOKENS, valid=VALID)
        own = lm.apply(held, TOKENS, valid=VALID)
        lazy = as_array(lm.factored(held, TOKENS, valid=VALID))
        return (own, decoded, lazy), wide_lm.apply(close, TOKENS, valid=VALID)

    found, expected = logits(held, close)
    for each in found:
        assert each.dtype == jnp.float32
        np.testing.assert_allclose(each, expected, atol=2e-4)
    wide = jax.jit(partial(wide_lm.apply, valid=VALID))(params, TOKENS)
    assert 0 < float(jnp.max(jnp.abs(wide - expected))) < 0.5 * float(jnp.std(wide))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
@pytest.mark.parametrize("is_lazy", [False, True])
def test_adapters_have_the_gradient_of_the_base_that_it_stands_for(monkeypatch, dtype, is_lazy):
    if is_lazy:
        monkeypatch.setattr("shatter.factored.sizes.MULTIPLIED_OUT_UP_TO", 0)
        monkeypatch.setattr("shatter.factored.sizes.SLICE_SIZE", 100)
    params = draw(GPT2)
    narrow_config, held = narrow(GPT2, params, dtype)
    adapters = init_lora(jax.random.key(0), params, LORA)
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, adapters)

    def loss(config, adapters, base):
        lm = models.transformer(config)
        whole = with_lora(base, adapters, LORA)
        return jnp.sum(documents.document_log_probs(lm, whole, TOKENS, MASK, valid=VALID))

    found = jax.jit(jax.grad(partial(loss, narrow_config)))(adapters, held)
    expected = jax.jit(jax.grad(partial(loss, GPT2)))(adapters, widened(held))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == jnp.float32 and bool(jnp.all(jnp.isfinite(one)))
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_what_cannot_be_narrowed_is_refused():
    params = draw(LLAMA)
    with pytest.raises(ValueError, match="bfloat16 or int8 of narrow weights, found 'int4'"):
        narrow(LLAMA, params, "int4")
    _, held = narrow(LLAMA, params, "int8")
    with pytest.raises(ValueError, match="expected parameters in float32 without adapters"):
        narrow(LLAMA, held, "int8")
    adapters = init_lora(jax.random.key(0), params, LORA)
    with pytest.raises(ValueError, match="cannot be merged into a kernel of int8"):
        models.merge_lora(held, adapters, LORA)
