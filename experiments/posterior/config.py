"""The config of `experiments.posterior.run`, and what each figure runs."""

import dataclasses
from typing import Literal

from experiments.common.didactic import ModelKind

Figure = Literal["collapse", "frontier", "constraints", "interface"]


@dataclasses.dataclass(frozen=True)
class Config:
    """KL-regularised RL as the approximation of a posterior, measured exactly over all documents.

    Each seed draws a pretrained model p0 over all documents of a tiny vocabulary and a reward of
    every document (didactic, ours). Objectives train the model on samples; every measure is exact.
    """

    figure: Figure = "collapse"
    """collapse: entropy and KL(p* || pi) over training, without and with a KL penalty. frontier:
    where each objective lands beside the exact reward-KL frontier. constraints: share of samples
    that meet a constraint against KL from p0 and diversity. interface: the model as its own policy,
    reward and transition, and which law is optimal for that reward at a temperature; nothing is
    trained."""

    model: ModelKind = "tabular"
    """The model that is trained: a table of logits, or a transformer of width 16 that is fitted to
    the same p0 first."""

    objectives: tuple[str, ...] = ()
    """Objectives to train; none = those of the figure. Known: reward, reward_exact, kl_control,
    kl_control_exact, kl_control_token, rloo, kl_penalty_k2, kl_penalty_k3, ppo, fdpg_forward_kl,
    fdpg_reverse_kl, fdpg_jensen_shannon, fdpg_total_variation, fdpg_forward_chi2,
    fdpg_reverse_chi2, gdc, rejection_sft, dpo, xpo, selm, ilhf."""

    run_dir: str = "runs/posterior"
    """Run folder, with a subfolder for each figure and model. A folder that exists is resumed, if
    the flags are the same."""

    seed: int = 0
    """Root of all random keys."""

    num_seeds: int = 10
    """Number of seeds. All seeds and betas of an objective run in one vmapped call."""

    betas: tuple[float, ...] = (1.0, 0.5, 0.25)
    """KL coefficients. An objective without a beta runs once and is measured against the target of
    the second one."""

    vocab_size: int = 4
    """Number of tokens, EOS among them."""

    max_length: int = 4
    """Largest number of tokens in a document."""

    batch_size: int = 64
    """Samples, or comparisons, in a batch. PPO takes four gradient steps on each batch, the others
    one."""

    num_steps: int = 1000
    """Gradient steps of every objective."""

    record_every: int = 20
    """Gradient steps between two measurements, a multiple of 4."""

    learning_rate: float = 0.05
    """Adam's learning rate on logits, which falls to 0 by a cosine. A transformer takes a tenth of
    it."""

    chunk_records: int = 50
    """Number of measurements between two checkpoints."""

    moment: float = 0.8
    """constraints: the wanted share of documents with token 2."""

    smc_runs: int = 256
    """frontier, constraints: number of runs of 64 samples over which a sampler's law is averaged.
    With fewer samples in a run there are as many more runs."""

    twist_noise: float = 0.5
    """frontier: standard deviation, in nats, of the error of the twist before a document's end."""


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
    "interface": (),
}
"""The objectives that each figure trains."""
