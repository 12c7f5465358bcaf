"""The config of `experiments.benchmark.run`, and the sizes of the work that it times."""

import dataclasses
from typing import Literal

SECTIONS = ("rounds", "seeds", "layers", "imports", "finetune", "generation", "adapters")
WORKS = ("tabular", "transformer")
GPT2S = ("small", "wide", "gpt2")
TABULAR_ROUNDS = 10  # tabular rounds for one of the transformer's


@dataclasses.dataclass(frozen=True)
class Config:
    """What does each way of running the same work cost?

    Rounds of propose, rate, learn with an ensemble: one jitted scan, a Python loop of jitted
    steps, eager PyTorch; many seeds at once, in chunks, one by one. Layers looped and scanned; the
    import. Steps of fine-tuning beside TRL, and generation beside transformers, on one core. Every
    ratio is of times measured in turn (A B A B ...) in this run, after a warm-up.
    """

    sections: tuple[str, ...] = SECTIONS
    """What to time. Known: rounds (the ways to run one seed), seeds (the ways to run many), layers
    (looped or scanned), imports, finetune (DPO and ILHF beside TRL), generation (beside
    transformers), adapters (8 on one base, beside one, and beside 8 whole models)."""

    works: tuple[str, ...] = WORKS
    """Language models of the rounds and seeds sections, both of vocabulary 4 and length 4. Known:
    tabular, transformer (width 32, 2 layers)."""

    run_dir: str = "runs/benchmark"
    """Run folder; one that exists is measured anew, given the same flags."""

    seed: int = 0
    """Root of all random keys."""

    repeats: int = 5
    """Times that every way is measured; the ratios' medians and ranges are over them."""

    num_rounds: int = 2
    """Rounds a run of the transformer; a tabular run, of quicker rounds, has ten times as many."""

    num_members: int = 16
    """Members of the ensemble."""

    num_seeds: tuple[int, ...] = (8, 64)
    """Numbers of seeds of the seeds section."""

    seeds_per_call: tuple[int, ...] = (8,)
    """Chunk sizes of `jax.lax.map`; those not below the number of seeds are left out."""

    depths: tuple[int, ...] = (2, 12, 24)
    """Numbers of layers of the layers section."""

    gpt2s: tuple[str, ...] = ("small", "wide")
    """Models of the finetune, generation and adapters sections. Known: small (120,704 parameters:
    width 64, 2 layers; 16 pairs of 32 tokens), wide (width 128, 2 layers; 8 pairs of 64 tokens),
    gpt2 (GPT-2 small; 8 pairs of 512 tokens, in bfloat16, for a GPU; adapters: 4 pairs of 64, in
    float32)."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of one work, shared by its JAX and its PyTorch form."""

    kind: Literal["tabular", "transformer"]
    num_rounds: int
    num_members: int
    batch_size: int | None  # comparisons a step of the optimiser; None = all
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
    """The sizes of a work by its name.

    Args:
      config: the config.
      work: a name in `WORKS`.

    Returns:
      The sizes. A tabular step learns from 64 comparisons (128 documents, where
      `experiments.exploration` scores all 121 of its space), a transformer's from 8.
    """
    if work == "tabular":
        rounds = TABULAR_ROUNDS * config.num_rounds
        return Sizes("tabular", rounds, config.num_members, 64, 0.1, 1.0)
    return Sizes("transformer", config.num_rounds, config.num_members, 8, 1e-3, 0.1)


@dataclasses.dataclass(frozen=True)
class Gpt2:
    """A GPT-2, the batches that it is fine-tuned on, and what it writes."""

    width: int
    num_pairs: int  # of a step
    length: int  # tokens of a document of a pair, prompt and EOS included
    prompt_length: int
    num_layers: int = 2
    num_heads: int = 4
    vocab_size: int = 258
    max_length: int = 64
    num_samples: int = 16  # responses that are written at once, to as many prompts
    num_new_tokens: int = 128
    half: bool = False  # bfloat16


def gpt2(name: str) -> Gpt2:
    """A GPT-2 by its name in `GPT2S`."""
    if name == "gpt2":
        return Gpt2(768, 8, 512, 64, 12, 12, 50257, 1024, half=True)
    return Gpt2(64, 16, 32, 8) if name == "small" else Gpt2(128, 8, 64, 16)
