"""Prints how much memory a device needs for a step of DPO at SmolLM2's shape, as compiled.

    python docs/measure_memory.py data=1 data=8 fsdp=8

It needs no GPU: the meshes are made of 8 devices that share the CPU, and nothing is run. The
weights are shapes only, so no model is read either.
"""

import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp

from shatter import models, training
from shatter.cli.finetune import learning, places, updates
from shatter.cli.finetune.batches import StepBatch
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.learning import Frozen
from shatter.cli.finetune.pretrained import Pretrained

SMOLLM2 = models.TransformerConfig(
    vocab_size=49152,
    max_length=8192,
    width=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    mlp_width=1536,
    norm="rms",
    activation="silu",
    gated=True,
    rope=models.Rope(theta=1e5),
    qkv_bias=False,
    attention_out_bias=False,
    mlp_bias=False,
    tied=True,
    head_bias=False,
    remat=True,
)
COMPARISONS, TOKENS = 8, 256  # of the whole batch; of a document


def main() -> None:
    """Prints a row of a table for every mesh and kind of training."""
    print("| mesh | trains | state, frozen model and batch, MB | temporaries of a step, MB |")
    print("|---|---|---:|---:|")
    for text in sys.argv[1:]:
        for lora in (None, models.LoraConfig(8, 16.0, ("qkv", "attention_out"))):
            own, temporary = measure(text, lora)
            what = "all" if lora is None else "adapters"
            print(f"| {text} | {what} | {own / 1e6:,.0f} | {temporary / 1e6:,.0f} |", flush=True)


def measure(text: str, lora: models.LoraConfig | None) -> tuple[int, int]:
    """Compiles a step.

    Args:
      text: the mesh.
      lora: the adapters; None = all parameters are trained.

    Returns:
      Bytes a device: those of the state, the frozen model and the batch; those of temporaries.
    """
    config = Config(objective="dpo", mesh=text, per_device_train_batch_size=1)
    mesh, lm = places.mesh_of(config), models.transformer(SMOLLM2)
    shapes = jax.eval_shape(lm.init, jax.random.key(0))
    model = Pretrained(SMOLLM2, None, None, lm, lora)  # type: ignore[arg-type]
    start = lambda params, key: learning.start(config, model._replace(params=params), key)
    trained = jax.eval_shape(start, shapes, jax.random.key(0))
    learner = updates.compile_learner(config, model, 100, mesh)
    state = jax.eval_shape(learner.init, trained, jax.random.key(0))
    frozen = Frozen(None if lora is None else shapes, None)
    documents, answers = (COMPARISONS, 2, TOKENS), (COMPARISONS, 1, 2)
    batch = StepBatch(
        *(jax.ShapeDtypeStruct(documents, dtype) for dtype in (jnp.int32, bool, bool)),
        jax.ShapeDtypeStruct(answers, jnp.int32),
        *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (answers[:2], (COMPARISONS, 2))),
        jax.ShapeDtypeStruct((COMPARISONS,), jnp.int32),
    )
    on_mesh = lambda tree, shardings: jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )
    lies = lambda tree: on_mesh(tree, training.shardings_of(mesh, tree, models.partition))
    rows = jax.tree.map(lambda leaf: training.place(mesh, ("data", "fsdp")), batch)
    with jax.set_mesh(mesh):
        arguments = (lies(state), lies(frozen), on_mesh(batch, rows))
        memory = learner.step.lower(*arguments).compile().memory_analysis()
    return memory.argument_size_in_bytes, memory.temp_size_in_bytes


if __name__ == "__main__":
    main()
