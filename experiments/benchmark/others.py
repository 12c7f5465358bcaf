"""The ways that are not rounds in JAX: eager PyTorch, layers looped or scanned, and imports."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import work
from experiments.benchmark.config import Sizes
from experiments.benchmark.ways import Way, call_way, compile_program
from experiments.benchmark.work import Frozen
from shatter import documents, models
from shatter.types import Array, Params

DOCUMENTS = 16  # in a step of the layers section: the pairs of 8 comparisons
ROOT = Path(__file__).resolve().parents[2]


def has_torch() -> bool:
    """Returns whether PyTorch, which is optional, is installed."""
    return importlib.util.find_spec("torch") is not None


def torch_eager(sizes: Sizes, frozen: Frozen, seed: int) -> Way:
    """Returns one seed in eager PyTorch, with one thread or PyTorch's default if that is faster."""
    import torch

    from experiments.benchmark import torch_loop

    arrays, likings = work.named_arrays(frozen.params), np.asarray(frozen.likings)
    run = partial(torch_loop.run, sizes, arrays, likings, seed)

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        run()
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    threads = min({1, torch.get_num_threads()}, key=seconds)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inputs.npz"
        torch_loop.save_inputs(file, sizes, arrays, likings)
        peak = int(_python("-m", "experiments.benchmark.torch_loop", str(file)))
    return Way(f"PyTorch eager, threads: {threads}", run, sizes.num_rounds, peak_bytes=peak)


def layers(sizes: Sizes, depth: int) -> list[Way]:
    """Returns the gradient of all members' log-probs of documents, with layers looped and scanned.

    Args:
      sizes: sizes of the transformer.
      depth: number of layers.

    Returns:
      The looped way and the scanned way.
    """
    config = models.TransformerConfig(
        vocab_size=sizes.vocab_size,
        max_length=1 + sizes.max_length,
        width=sizes.width,
        num_layers=depth,
        num_heads=sizes.num_heads,
    )
    init = models.transformer(config).init
    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(
            0.1 * generator.standard_normal((sizes.num_members, *leaf.shape)), leaf.dtype
        ),
        jax.eval_shape(init, jax.random.key(0)),
    )
    shape = (DOCUMENTS, 1 + sizes.max_length)
    tokens = jnp.asarray(generator.integers(sizes.vocab_size, size=shape))
    mask = documents.response_mask(tokens, prompt_length=1, eos=work.EOS)

    def step(
        lm: models.LanguageModel, params: Params, tokens: Array, mask: Array
    ) -> tuple[Array, Params]:
        def loss(params: Params) -> Array:
            return -jnp.sum(documents.document_log_probs(lm, params, tokens, mask))

        return jax.vmap(jax.value_and_grad(loss))(params)

    ways = []
    for name, unrolled in (("looped", depth), ("scanned", 0)):
        lm = models.transformer(dataclasses.replace(config, unrolled_layers=unrolled))
        program = compile_program(partial(step, lm), params, tokens, mask)
        ways.append(call_way(name, program, (params, tokens, mask), 1))
    return ways


def imports(statements: Sequence[str] = ("import jax", "import shatter")) -> list[Way]:
    """Returns the ways that start an interpreter and run an import statement.

    Args:
      statements: the statements.
    """
    return [Way(statement, partial(_python, "-c", statement), 1) for statement in statements]


def show_help() -> Way:
    """Returns the way that starts an interpreter and runs `shatter --help`."""
    return Way("shatter --help", partial(_python, "-m", "shatter.cli", "--help"), 1)


def imports_tensorflow_probability() -> bool:
    """Returns whether importing shatter imports tensorflow_probability, which is slow."""
    statement = "import sys, shatter; print('tensorflow_probability' in sys.modules)"
    return _python("-c", statement) == "True"


def _python(*args: str) -> str:
    """Runs a fresh interpreter; returns what it prints."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    answer = subprocess.run(
        [sys.executable, *args],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return answer.stdout.strip()
