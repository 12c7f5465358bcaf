"""The config of `experiments.pipeline.run`, and the settings that each figure compares."""

import dataclasses
from typing import Any, Literal

from experiments.common.didactic import ModelKind

Figure = Literal[
    "default", "nudge", "anchor_decay", "num_particles", "selection", "beta", "transformer"
]
Selection = Literal["variance", "random", "v_optimal"]

VALUES: dict[str, tuple[Any, ...]] = {
    "nudge": (0.0, 0.1, 0.4),
    "anchor_decay": (0.0, 0.9, 0.99, 1.0),
    "num_particles": (4, 16, 100),
    "selection": ("variance", "random", "v_optimal"),
    "beta": (0.03, 0.1, 0.3, 1.0),
}
"""What the figure of that name compares; every other field stays as it is."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Does learning reward and policy in one step reach what a pipeline of two models reaches?

    A population with a hidden law answers which of two documents it prefers. A pipeline learns a
    reward model from the answers, and a policy from the reward model by sampled policy gradients
    with an affirmative nudge and a moving anchor (after "Efficient Exploration at Scale", as other
    texts report it). Beside it, inclusive learning (ILHF) and DPO learn from equally many answers.
    Everything is exact over all documents; the process is a didactic one, of our own.
    """

    figure: Figure = "default"
    """default: every algorithm. nudge, anchor_decay, num_particles, selection, beta: the pipeline
    with other values of that flag. transformer: a transformer as the policy."""

    algorithms: tuple[str, ...] = ()
    """Algorithms to run; not given = the figure's own. Known: offline, periodic, online,
    information_directed, ilhf_offline, ilhf_passive, ilhf_infomax, ilhf_v_optimal, dpo_offline,
    dpo_online."""

    run_dir: str = "runs/pipeline"
    """Run folder, with a subfolder a figure; one that exists is resumed, given the same flags."""

    seed: int = 0
    """Root of all random keys."""

    num_seeds: int = 30
    """Seeds, all in one vmapped call an algorithm."""

    vocab_size: int = 4
    """Tokens, EOS among them."""

    max_length: int = 4
    """Largest number of tokens of a document."""

    spread: float = 2.5
    """Standard deviation of the population's logits around the pretrained model's."""

    reward_scale: float = 1.0
    """The rater's reward is this times log q, so that the law that Luce's rule implies is
    q^reward_scale / Z, which is then what the measures compare with."""

    num_rounds: int = 45
    """Rounds of asking and learning."""

    queries_per_round: int = 8
    """Comparisons asked a round."""

    period: int = 3
    """Rounds between the retrainings of offline and periodic; --num_rounds is two periods or more.
    Algorithms are compared with each other at the ends of periods alone."""

    num_candidates: int = 16
    """Candidates a query of the algorithms that choose a pair, where others draw two."""

    selection: Selection = "variance"
    """Pair of information_directed: the largest variance of the choice over particles, two of the
    candidates at random, or V-optimal."""

    num_particles: int = 16
    """Particles around the point head of information_directed."""

    num_members: int = 16
    """Members of ILHF's ensemble."""

    prior_scale: float = 1.0
    """Scale of every learner's prior over `spread`; 1 is a matched prior."""

    hidden: tuple[int, ...] = ()
    """Widths of the reward model's hidden layers; none = linear in the prefixes of a document."""

    reward_rate: float = 0.2
    """Adam's learning rate, of the reward model."""

    learning_rate: float = 0.05
    """Adam's, of ILHF's and DPO's logits; a transformer's is a twentieth of it."""

    num_steps: int = 16
    """Their Adam steps a round, on all answers so far."""

    policy_rate: float = 0.2
    """Adam's, of the policy's logits; a transformer's is a twentieth of it."""

    policy_steps: int = 8
    """Adam steps of the policy a round; a retraining takes as many as all rounds together."""

    policy_batch: int = 32
    """Pairs of fresh samples of the policy a step."""

    nudge: float = 0.1
    """The affirmative nudge."""

    anchor_decay: float = 0.99
    """Decay of the moving average of the policy's parameters, the anchor, a step; 1 = the
    pretrained model for ever."""

    beta: float = 0.1
    """Weight of the KL from the anchor in the policy's loss."""

    readout_beta: float = 0.3
    """Temperature of the read-out of every learned reward, p0 exp(r / beta) / Z."""

    dpo_beta: float = 0.1
    """DPO's beta."""

    chunk_rounds: int = 15
    """Rounds between checkpoints."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One point of a figure: a label, a config and the algorithms to run."""

    name: str
    config: Config
    algorithms: tuple[str, ...]
    learner: ModelKind = "tabular"


def settings(config: Config, known: tuple[str, ...]) -> list[Setting]:
    """Returns the settings that a figure compares.

    Args:
      config: the config.
      known: the names of all algorithms.

    Returns:
      The settings in order.
    """
    if config.figure == "default":
        return [Setting("default", config, config.algorithms or known)]
    if config.figure == "transformer":
        chosen = config.algorithms or ("offline", "online", "information_directed")
        return [Setting("transformer", config, chosen, "transformer")]
    is_asking = config.figure in ("num_particles", "selection")
    default = ("information_directed",) if is_asking else ("online",)
    return [
        Setting(
            f"{config.figure}={value}",
            dataclasses.replace(config, **{config.figure: value}),
            config.algorithms or default,
        )
        for value in VALUES[config.figure]
    ]
