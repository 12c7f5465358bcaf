"""The config of `experiments.benchmark.run`, and the sizes of the timed work."""

import dataclasses
from typing import Literal

SECTIONS = ("rounds", "seeds", "layers", "imports", "finetune", "generation", "adapters")
CHECKPOINT, ONLINE = "checkpoint", "online"
ON_DEMAND = ("vocabulary", CHECKPOINT, ONLINE, "accelerator")
"""Sections that are not among the default ones."""
WORKS = ("tabular", "transformer")
GPT2S = ("small", "wide", "gpt2")
TABULAR_ROUNDS = 10  # rounds of a table for every round of a transformer


@dataclasses.dataclass(frozen=True)
class Config:
    """The times of different ways to run the same work.

    Rounds of propose, rate and learn with an ensemble: one jitted scan, a Python loop of jitted
    steps, eager PyTorch; many seeds at once, in chunks, or one by one. Layers looped and scanned.
    The import. Steps of fine-tuning compared with TRL, and generation compared with transformers,
    on one core. Every ratio is of times that were measured in turn (A B A B ...) after a warm-up.
    """

    sections: tuple[str, ...] = SECTIONS
    """The parts to time. Known: rounds (the ways to run one seed), seeds (the ways to run many),
    layers (looped or scanned), imports, finetune (DPO and ILHF, and TRL), generation (and
    transformers), adapters (8 on one base, a single one, and 8 whole models). Not among the
    defaults: vocabulary (memory of a DPO step with 262,144 tokens, for which it needs 12 GB),
    checkpoint (scoring, training, sampling and loading the model of `--checkpoint`, and imports,
    beside transformers, TRL and peft, on one core and on two), online (a step of GRPO of the model
    of `--checkpoint` by `shatter finetune`, beside TRL's GRPOTrainer), accelerator (for a GPU:
    training steps as a share of the matrix products' ceiling, generation, 1,000 seeds, and
    adapters)."""

    works: tuple[str, ...] = WORKS
    """Language models of the rounds and seeds sections, both of vocabulary 4 and length 4. Known:
    tabular, transformer (width 32, 2 layers)."""

    run_dir: str = "runs/benchmark"
    """Run folder. In a folder that exists everything is measured again, if the flags are the
    same."""

    seed: int = 0
    """Root of all random keys."""

    checkpoint: str | None = None
    """The model of the sections checkpoint and online: a Hugging Face folder, such as that of
    SmolLM2-135M-Instruct."""

    repeats: int = 5
    """Number of times that every way is measured; medians and ranges of ratios are over them."""

    num_rounds: int = 2
    """Rounds of a run of the transformer. A table's rounds are faster, and its run has ten times as
    many."""

    num_members: int = 16
    """Number of members of the ensemble."""

    num_seeds: tuple[int, ...] = (8, 64)
    """Numbers of seeds of the seeds section."""

    seeds_per_call: tuple[int, ...] = (8,)
    """Chunk sizes of `jax.lax.map`; sizes that are not below the number of seeds are left out."""

    depths: tuple[int, ...] = (2, 12, 24)
    """Numbers of layers of the layers section."""

    gpt2s: tuple[str, ...] = ("small", "wide")
    """Models of the finetune, generation and adapters sections. Known: small (120,704 parameters:
    width 64, 2 layers; 16 pairs of 32 tokens), wide (width 128, 2 layers; 8 pairs of 64 tokens),
    gpt2 (GPT-2 small; 8 pairs of 512 tokens, in bfloat16, for a GPU; adapters: 4 pairs of 64, in
    float32)."""

    accelerator_size: Literal["full", "tiny"] = "full"
    """The sizes of the accelerator section. full: the shapes of GPT-2 small and of SmolLM2-135M in
    bfloat16, which take about 60 GB of a GPU's memory; tiny: to try the section on a CPU."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of one work, for JAX and PyTorch alike."""

    kind: Literal["tabular", "transformer"]
    num_rounds: int
    num_members: int
    batch_size: int | None  # comparisons in a step of the optimiser; None = all
    learning_rate: float
    prior_scale: float
    vocab_size: int = 4
    max_length: int = 4
    num_queries: int = 8
    num_candidates: int = 8
    num_steps: int = 4
    width: int = 32
    num_layers: int = 2
    num_heads: int = 4


def sizes(config: Config, work: str) -> Sizes:
    """Returns the sizes of a work by its name.

    A step of a table learns from 64 comparisons, that is 128 documents, because
    `experiments.exploration` scores all 121 documents of its space. A step of a transformer learns
    from 8 comparisons.

    Args:
      config: the config.
      work: a name in `WORKS`.
    """
    if work == "tabular":
        rounds = TABULAR_ROUNDS * config.num_rounds
        return Sizes("tabular", rounds, config.num_members, 64, 0.1, 1.0)
    return Sizes("transformer", config.num_rounds, config.num_members, 8, 1e-3, 0.1)


@dataclasses.dataclass(frozen=True)
class Gpt2:
    """The sizes of a model, of the batches that it is fine-tuned on, and of its generation.

    It is a GPT-2, or a llama where `num_kv_heads` is given.
    """

    width: int
    num_pairs: int  # in a step
    length: int  # tokens of each document of a pair, prompt and EOS included
    prompt_length: int
    num_layers: int = 2
    num_heads: int = 4
    vocab_size: int = 258
    max_length: int = 64
    num_samples: int = 16  # responses that are generated at once, one for each prompt
    num_new_tokens: int = 128
    half: bool = False  # bfloat16
    unrolled: bool = False  # whether all blocks are unrolled
    fused: bool = True  # whether attention in bfloat16 is fused on a GPU
    num_kv_heads: int | None = None  # of a llama
    mlp_width: int | None = None  # 4 times the width if None
    steps: int = 3  # in a call of a way; also the number of losses that are compared
    folder: str | None = None  # of a pretrained model in place of random weights


def gpt2(name: str) -> Gpt2:
    """Returns the sizes of a GPT-2 by its name in `GPT2S`, or "vocabulary": Gemma's 262,144."""
    if name == "vocabulary":
        return Gpt2(640, 8, 64, 16, vocab_size=262_144, steps=1)
    if name == "gpt2":
        return Gpt2(768, 8, 512, 64, 12, 12, 50257, 1024, half=True)
    return Gpt2(64, 16, 32, 8) if name == "small" else Gpt2(128, 8, 64, 16)
