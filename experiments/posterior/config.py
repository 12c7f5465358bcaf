"""The config of `experiments.posterior.run`, and what each figure runs."""

import dataclasses
from typing import Literal

from experiments.common.didactic import ModelKind

Figure = Literal["collapse", "frontier", "constraints"]


@dataclasses.dataclass(frozen=True)
class Config:
    """KL-regularised RL as approximating a posterior, exact over every document.

    A pretrained model p0 over all documents of a tiny vocabulary and a reward of every document,
    drawn anew for each seed (didactic, ours). Objectives train the model by samples; every measure
    is exact.
    """

    figure: Figure = "collapse"
    """collapse: entropy and KL(p* || pi) over training, without and with a KL penalty. frontier:
    where each objective lands beside the exact reward-KL frontier. constraints: share of samples
    that meet a constraint against KL from p0 and diversity."""

    model: ModelKind = "tabular"
    """What is trained: a table of logits, or a transformer of width 16 fitted to the same p0."""

    objectives: tuple[str, ...] = ()
    """Objectives to train; none = the figure's own. Known: reward, reward_exact, kl_control,
    kl_control_exact, kl_control_token, rloo, ppo, fdpg_forward_kl, fdpg_reverse_kl,
    fdpg_jensen_shannon, fdpg_total_variation, fdpg_forward_chi2, fdpg_reverse_chi2, gdc, dpo,
    ilhf."""

    run_dir: str = "runs/posterior"
    """Run folder, with a subfolder a figure and model; one that exists is resumed, given the same
    flags."""

    seed: int = 0
    """Root of all random keys."""

    num_seeds: int = 10
    """Seeds, with all betas in one vmapped call an objective."""

    betas: tuple[float, ...] = (1.0, 0.5, 0.25)
    """KL coefficients; an objective that knows no beta runs once, measured at the second one."""

    vocab_size: int = 4
    """Tokens, EOS among them."""

    max_length: int = 4
    """Largest number of tokens of a document."""

    batch_size: int = 64
    """Samples, or comparisons, a gradient step; PPO takes four steps a batch."""

    num_steps: int = 1000
    """Gradient steps, the same for every objective."""

    record_every: int = 20
    """Gradient steps between two measurements; a multiple of 4."""

    learning_rate: float = 0.05
    """Adam's, on logits, falling to 0 by a cosine; a transformer's is a tenth of it."""

    chunk_records: int = 50
    """Measurements between checkpoints."""

    moment: float = 0.8
    """constraints: the share of documents that shall hold token 2."""

    smc_runs: int = 256
    """frontier, constraints: runs of 64 samples that a sampler's law is averaged over; of fewer
    samples so many more runs."""

    twist_noise: float = 0.5
    """frontier: standard deviation of the twist's error, nats, before a document's end."""


OBJECTIVES: dict[Figure, tuple[str, ...]] = {
    "collapse": ("reward", "reward_exact", "rloo"),
    "frontier": (
        "reward",
        "kl_control",
        "kl_control_token",
        "rloo",
        "ppo",
        "fdpg_forward_kl",
        "fdpg_reverse_kl",
        "fdpg_jensen_shannon",
        "fdpg_total_variation",
        "fdpg_forward_chi2",
        "fdpg_reverse_chi2",
        "gdc",
        "dpo",
        "ilhf",
    ),
    "constraints": (
        "reward",
        "rloo",
        "fdpg_forward_kl",
        "fdpg_jensen_shannon",
        "fdpg_total_variation",
        "gdc",
    ),
}
