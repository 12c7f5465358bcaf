"""The work of an accelerator: training steps, generation, many seeds, adapters; in bfloat16."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import finetune, members, others, pinned, ways, work
from experiments.benchmark.config import Gpt2, Sizes
from experiments.benchmark.ways import Way, compile_program
from shatter.types import Array, Params

UTILITY = "log-probs, mlp_out alone"
NUM_ADAPTERS = (8, 64)
PRODUCTS = 8  # matrix products in a call of the ceiling
CPU_SEEDS = 8  # seeds of the run on a CPU, which is slower; a seed's time is what counts


class Plan(NamedTuple):
    """The sizes of the section.

    Attributes:
      product: n of the matrix products `[n, n] x [n, n]`.
      models: the sizes of each model by its name.
      adapters: the sizes of the base of the adapters.
      num_seeds: number of seeds in one call.
    """

    product: int
    models: dict[str, Gpt2]
    adapters: Gpt2
    num_seeds: int


GPT2 = Gpt2(768, 16, 512, 64, 12, 12, 50257, 1024, 64, 128, half=True)
SMOLLM2 = dataclasses.replace(
    GPT2, width=576, num_layers=30, num_heads=9, vocab_size=49152, num_kv_heads=3, mlp_width=1536
)
TINY = Gpt2(32, 2, 8, 2, 2, 4, 17, 32, 2, 4, half=True)
PLANS = {
    "full": Plan(
        8192,
        {"GPT-2 small": GPT2, "SmolLM2-135M": SMOLLM2},
        dataclasses.replace(GPT2, num_pairs=4, length=64, prompt_length=16),
        1000,
    ),
    "tiny": Plan(32, {"tiny llama": dataclasses.replace(TINY, num_kv_heads=2)}, TINY, 3),
}


def ceiling(plan: Plan) -> list[Way]:
    """Returns products of square matrices in bfloat16, by jax and by PyTorch if it is installed.

    Each product has the one before as a factor, so that none can be left out.
    """
    size = (plan.product, plan.product)
    left, right = np.random.default_rng(0).standard_normal((2, *size)) / plan.product**0.5
    units = 2 * PRODUCTS * plan.product**3

    def products(left: Array, right: Array) -> Array:
        return jax.lax.fori_loop(0, PRODUCTS, lambda _, x: x @ right, left)

    a, b = jnp.asarray(left, jnp.bfloat16), jnp.asarray(right, jnp.bfloat16)
    made = [ways.call_way("jax", compile_program(products, a, b), (a, b), units)]
    if others.has_torch():
        import torch

        from experiments.benchmark import peers, torch_models

        c, d = (
            torch.tensor(x, dtype=torch.bfloat16, device=torch_models.device())
            for x in (left, right)
        )

        def run() -> None:
            x = c
            for _ in range(PRODUCTS):
                x = x @ d
            peers.wait(x)

        made.append(Way("PyTorch", run, units))
    return made


def model_flops(sizes: Gpt2, params: Params) -> int:
    """Returns the operations of a training step: 6 a weight and a token, and those of attention.

    Attention takes `12 T D'` a token and layer, with D' the heads' features, and is counted as if
    every token attended to all T. What a backward pass computes again is not counted. The token
    embedding counts once, as the head; learned positions do not count.

    Source: Chowdhery et al., PaLM, appendix B, https://arxiv.org/abs/2204.02311.
    """
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    if sizes.num_kv_heads is None:
        weights -= sizes.max_length * sizes.width
    attention = 12 * sizes.num_layers * sizes.length * sizes.width
    return 2 * sizes.num_pairs * sizes.length * (6 * weights + attention)


def training_step(sizes: Gpt2, seed: int) -> list[Way]:
    """Returns the DPO step with given reference log-probs, and that of a plain PyTorch loop.

    Ours is that of `shatter finetune --bf16 --fused_attention` with all blocks unrolled. PyTorch
    runs transformers' model under autocast with its own attention kernel and the fused AdamW.

    Returns:
      The ways, in units of floating-point operations of the model.

    Raises:
      ValueError: if the losses of the first steps differ.
    """
    params = finetune.init(sizes, seed)
    batch = finetune.make_batch(sizes, params, seed)
    made = [finetune.trainer(dataclasses.replace(sizes, unrolled=True), "dpo", params, batch)]
    if not pinned.missing("generation"):
        from experiments.benchmark import peers

        made.append(peers.torch_trainer(sizes, "dpo", params, batch))
    losses = [finetune.first_losses(trainer) for trainer in made]
    for trainer, found in zip(made, losses, strict=True):
        if not np.max(np.abs(found - losses[0])) <= pinned.HALF_TOLERANCE:
            raise ValueError(
                f"expected the losses of shatter, {losses[0]}, within {pinned.HALF_TOLERANCE}, "
                f"found {found} from {trainer.name}: the ways do not do the same work"
            )
    return [finetune.way(trainer, model_flops(sizes, params)) for trainer in made]


def step_variants(sizes: Gpt2, seed: int) -> list[Way]:
    """Returns our DPO step, and that with one after the other of its accelerations left out."""
    params = finetune.init(sizes, seed)
    batch = finetune.make_batch(sizes, params, seed)
    flops = model_flops(sizes, params)
    unrolled = dataclasses.replace(sizes, unrolled=True)
    variants = {
        "shatter": (unrolled, False),
        "logits held whole": (unrolled, True),
        "and blocks scanned": (sizes, True),
        "and plain attention": (dataclasses.replace(sizes, fused=False), True),
    }

    def make(name: str) -> Way:
        changed, whole = variants[name]
        trainer = finetune.trainer(changed, "dpo", params, batch, whole_logits=whole)
        return finetune.way(trainer._replace(name=name), flops)

    with ThreadPoolExecutor() as pool:  # because each takes long to compile
        return list(pool.map(make, variants))


def generation(sizes: Gpt2, seed: int) -> list[Way]:
    """Returns sampling with a cache, and that of transformers if it is installed."""
    params = finetune.init(sizes, seed)
    prompts = finetune.draw_prompts(sizes, seed)
    # The cached weights are those that the computation uses, as in a process that only samples.
    held = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    made = [finetune.generation_way(sizes, held, prompts)]
    if not pinned.missing("generation"):
        from experiments.benchmark import peers

        made.append(peers.generation_way(sizes, params, prompts))
    return made


def seeds(sizes: Sizes, num_seeds: int, seed: int) -> list[Way]:
    """Returns all seeds of exploration in one call, one by one, on a CPU, and in eager PyTorch."""
    frozen_key, run_key = jax.random.split(jax.random.key(seed))
    frozen = jax.jit(partial(work.draw_frozen, sizes))(frozen_key)
    keys = jax.random.split(run_key, num_seeds)
    program = ways.compile_seed(sizes, frozen, run_key)
    made = [
        ways.all_at_once(sizes, frozen, keys)._replace(name=f"{num_seeds} seeds in one call"),
        ways.one_by_one(sizes, frozen, keys, program),
        _on_a_cpu(sizes, frozen, keys[:CPU_SEEDS]),
    ]
    if others.has_torch():
        made.append(others.torch_eager(sizes, frozen, seed))
    return made


def _on_a_cpu(sizes: Sizes, frozen: work.Frozen, keys: Array) -> Way:
    """Returns seeds in one call on the CPU of the same machine."""
    cpu = jax.devices("cpu")[0]
    frozen, keys = jax.device_put((frozen, keys), cpu)
    way = ways.all_at_once(sizes, frozen, keys)
    return way._replace(name=f"{len(keys)} seeds in one call on a CPU")


def adapters(sizes: Gpt2, seed: int) -> list[Way]:
    """Returns the step of one adapter, and those of 8 and of 64 on the same base, all vmapped."""
    base = members.make_base(sizes, seed)
    make = lambda num: members.shared_way(sizes, UTILITY, base, f"adapters: {num}", num, num)
    with ThreadPoolExecutor() as pool:  # because each takes long to compile
        return list(pool.map(make, (1, *NUM_ADAPTERS)))


def parts(
    plan: Plan, tabular: Sizes, seed: int
) -> list[tuple[str, str, Callable[[], list[Way]], int, float]]:
    """Returns the groups of the section.

    Args:
      plan: the sizes.
      tabular: the sizes of the rounds of exploration.
      seed: seed of weights, pairs and prompts.

    Returns:
      The name, the unit, what compiles the ways, their number, and a rough cost in seconds of each.
    """
    has_peer = not pinned.missing("generation")
    groups: list[tuple[str, str, Callable[[], list[Way]], int, float]] = [
        ("matrix products", "operation", partial(ceiling, plan), 1 + others.has_torch(), 5.0)
    ]
    for name, sizes in plan.models.items():
        step, sample = partial(training_step, sizes, seed), partial(generation, sizes, seed)
        groups.append((f"DPO step, {name}", "operation", step, 1 + has_peer, 60.0))
        variants = partial(step_variants, sizes, seed)
        groups.append((f"DPO step in other ways, {name}", "operation", variants, 4, 60.0))
        groups.append((f"generation, {name}", "token", sample, 1 + has_peer, 60.0))
    run = partial(seeds, tabular, plan.num_seeds, seed)
    groups.append(("exploration, tabular", "seed-round", run, 3 + others.has_torch(), 60.0))
    step = partial(adapters, plan.adapters, seed)
    groups.append((f"adapters, {UTILITY}", "step", step, 1 + len(NUM_ADAPTERS), 60.0))
    return groups
