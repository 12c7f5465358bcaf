"""The layout of fused kernels is the same by the config and by the shapes of the kernels."""

import jax
import jax.numpy as jnp
import pytest

from shatter.models import TransformerConfig, transformer
from shatter.models.fused import (
    fused_kernels,
    fused_kernels_of_shapes,
    places_of_parts,
    split_parts,
)

CONFIG = TransformerConfig(vocab_size=5, max_length=6, width=8, num_heads=4, num_kv_heads=2)
GATED = TransformerConfig(vocab_size=5, max_length=6, width=8, num_heads=4, gated=True)


def test_parts_follow_each_other():
    places = places_of_parts(fused_kernels(GATED))
    assert {name: (part.kernel, part.entries) for name, part in places.items()} == {
        "query": ("qkv", slice(0, 4)),
        "key": ("qkv", slice(4, 8)),
        "value": ("qkv", slice(8, 12)),
        "gate": ("mlp_in", slice(0, 1)),
        "up": ("mlp_in", slice(1, 2)),
    }


@pytest.mark.parametrize("config", [CONFIG, GATED], ids=["shared keys", "gated"])
def test_config_and_shapes_give_the_same_parts(config: TransformerConfig):
    params = jax.eval_shape(transformer(config).init, jax.random.key(0))
    blocks = params["params"]["blocks"]
    shapes = {name: blocks[name]["kernel"].shape for name in ("qkv", "attention_out", "mlp_in")}
    assert fused_kernels_of_shapes(shapes) == fused_kernels(config)
    for name, part in places_of_parts(fused_kernels(config)).items():
        assert 0 < part.entries.stop <= shapes[part.kernel][-2], name


def test_outputs_are_split_where_the_parts_lie():
    kernels = fused_kernels(CONFIG)
    outputs = jnp.broadcast_to(jnp.arange(8)[None, :, None], (3, 8, 2))
    places = places_of_parts(kernels)
    parts = dict(zip(kernels["qkv"], split_parts(outputs, kernels["qkv"]), strict=True))
    assert list(parts) == ["query", "key", "value"]
    for name, part in parts.items():
        assert jnp.array_equal(part, outputs[..., places[name].entries, :])
