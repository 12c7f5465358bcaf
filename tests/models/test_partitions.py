"""Every matrix is cut, and a model in parts computes what the whole one does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter import documents, models, training
from shatter.models.families import FAMILIES

SMALL = {"vocab_size": 16, "max_length": 8, "width": 8, "num_layers": 2, "num_heads": 4}
LLAMA = {
    "num_kv_heads": 2,
    "mlp_width": 12,
    "norm": "rms",
    "activation": "silu",
    "gated": True,
    "rope": models.Rope(),
    "qkv_bias": False,
    "attention_out_bias": False,
    "mlp_bias": False,
}


@pytest.mark.slow
def test_every_matrix_of_every_family_is_cut_and_nothing_else():
    """Both axes occur in every one of them."""
    for name, family in FAMILIES.items():
        shared = LLAMA if name != "gpt2" else {}
        for tied in (True, False):
            config = models.TransformerConfig(**SMALL, **shared, tied=tied)
            shapes = jax.eval_shape(models.transformer(config).init, jax.random.key(0))
            for path, leaf in jax.tree.leaves_with_path(shapes["params"]):
                keys = jax.tree_util.keystr(path, simple=True, separator="/")
                axes = models.partition(f"opt_state/0/mu/params/{keys}", leaf.shape)
                assert len(axes) == leaf.ndim
                each = [(entry,) if isinstance(entry, str) else entry or () for entry in axes]
                used = {axis for entry in each for axis in entry}
                is_matrix = keys.endswith(("kernel", "embedding"))
                if keys.startswith("position"):
                    assert used == {"fsdp"}
                else:
                    assert used == ({"fsdp", "tensor"} if is_matrix else set()), (family, keys)


@pytest.mark.slow
def test_a_model_in_parts_is_the_whole_model(float64):
    """Loss and gradient agree on data=2, fsdp=2, tensor=2; and no device holds a matrix whole."""
    config = models.TransformerConfig(**SMALL, **LLAMA, tied=True)
    lm = models.transformer(config)
    params = jax.jit(lm.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    tokens, mask = rng.integers(0, 16, (4, 8)), rng.random((4, 8)) < 0.7

    def loss(params, tokens, mask):
        return -jnp.mean(documents.log_prob(lm.apply(params, tokens), tokens, mask))

    value_and_gradient = jax.jit(jax.value_and_grad(loss))
    expected = value_and_gradient(params, tokens, mask)
    mesh = training.make_mesh(training.mesh_sizes("data=2,fsdp=2,tensor=2"))
    places = training.shardings_of(mesh, params, models.partition)
    held = training.put(params, places)
    for leaf in jax.tree.leaves(held["params"]["blocks"]):
        if leaf.ndim > 2:
            assert leaf.addressable_shards[0].data.size == leaf.size // 4
    with jax.set_mesh(mesh):
        found = value_and_gradient(held, *training.put_rows(mesh, (tokens, mask), 4))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-12)


@pytest.mark.slow
def test_activations_are_cut_by_rows_and_no_device_holds_all_logits():
    """The compiler gathers parameters, never a batch's logits."""
    config = models.TransformerConfig(**{**SMALL, "vocab_size": 4096}, **LLAMA, tied=True)
    lm = models.transformer(config)
    mesh = training.make_mesh(training.mesh_sizes("fsdp=8"))
    shapes = jax.eval_shape(lm.init, jax.random.key(0))
    places = training.shardings_of(mesh, shapes, models.partition)
    rows = training.place(mesh, ("data", "fsdp"))

    def loss(params, tokens):
        return jnp.mean(documents.log_prob(lm.apply(params, tokens), tokens, tokens >= 0))

    step = jax.jit(jax.grad(loss), in_shardings=(places, rows), out_shardings=places)
    with jax.set_mesh(mesh):
        program = step.lower(shapes, jax.ShapeDtypeStruct((8, 8), jnp.int32)).compile()
    logits = 4 * 8 * 8 * 4096
    assert program.memory_analysis().temp_size_in_bytes < 0.7 * logits
