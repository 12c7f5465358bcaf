"""The config of `experiments.exploration.run`, and the settings that each figure compares."""

import dataclasses
from typing import Literal

from experiments.common.didactic import ModelKind
from experiments.exploration.arms import BASELINES, CLAIM, Source

Figure = Literal[
    "default",
    "arms",
    "temperature",
    "length",
    "prior_scale",
    "members",
    "steps",
    "segments",
    "transformer",
]


@dataclasses.dataclass(frozen=True)
class Config:
    """Does knowing what you do not know pay?

    A population with a hidden law q over documents answers which of two documents it prefers
    (Luce). Arms differ in how they choose what to ask; all learn inclusively (ILHF) from equally
    many answers, with the same learner: a point estimate and an ensemble. The measure is
    KL(q || prediction), exact over all documents. The process is a didactic one, of our own.
    """

    figure: Figure = "default"
    """default: the claim beside its baselines at length 4, and in two harder settings. arms: every
    arm. temperature: arms by the temperature of their candidates. length: 3 to 7 tokens.
    prior_scale: half, matched, double. members: 4 to 64. steps: of learning a round. segments: 1,
    2, 4. transformer: a transformer learner."""

    arms: tuple[str, ...] = ()
    """Arms to run; not given = the figure's own. Known: v_optimal, v_optimal_samples,
    v_optimal_all, v_optimal_pair, laplace, passive, uniform, greedy, boltzmann, boltzmann_point,
    thompson, double_thompson, infomax, variance, log_ratio_variance, mass_weighted_variance,
    law_infomax, information_directed, ucb, delta_ucb."""

    candidates: Source | None = None
    """Source of candidates of every arm but passive: mixture, point, pretrained, all; not given =
    the arm's own."""

    temperature: float | None = None
    """Temperature of the law that candidates are drawn from (boltzmann: pairs); not given = the
    arm's own, tuned on other seeds."""

    run_dir: str = "runs/exploration"
    """Run folder, with a subfolder a figure; one that exists is resumed, given the same flags."""

    seed: int = 0
    """Root of all random keys."""

    num_seeds: int = 100
    """Seeds, all in one vmapped call an arm."""

    num_members: int = 16
    """Members of the ensemble."""

    vocab_size: int = 4
    """Tokens, EOS among them."""

    max_length: int = 4
    """Largest number of tokens of a document."""

    spread: float = 2.5
    """Standard deviation of the target's logits around the pretrained model's."""

    prior_scale: float = 1.0
    """The learner's prior scale over `spread`; 1 is a matched prior, the easy case."""

    start: Literal["draw", "centre"] = "centre"
    """Where members start: at draws of their prior, or at the pretrained model. A transformer's
    members have prior functions and start at the pretrained model."""

    num_segments: int = 1
    """Segments of the population, with hidden laws of their own; every query goes to one of them.
    Above 1 no Luce model fits the answers."""

    num_rounds: int = 45
    """Rounds of asking and learning; figure length takes twice as many above length 4, transformer
    half."""

    queries_per_round: int = 8
    """Comparisons asked a round."""

    num_responses: int | None = None
    """Responses in a query, from 2 to 4; more than 2 are ranked. Not given = 2, a choice."""

    num_candidates: int = 8
    """Candidates drawn afresh for every query by the arms that draw candidates."""

    num_steps: int = 16
    """Adam steps a round."""

    learning_rate: float = 0.2
    """Adam's, on logits; a transformer's is a twentieth of it."""

    level: float = 0.3
    """Absolute KL level, nats, beside half and a quarter of the pretrained model's."""

    chunk_rounds: int = 45
    """Rounds between checkpoints; a quarter of it where a transformer learns."""

    mesh: str = ""
    """Devices that share seeds and members, for example seed=4,member=2; not given = one device."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One point of a figure: a label, a config and the arms to run."""

    name: str
    config: Config
    arms: tuple[str, ...]
    learner: ModelKind = "tabular"


def settings(config: Config, all_arms: tuple[str, ...]) -> list[Setting]:
    """Returns the settings that a figure compares.

    Args:
      config: the config.
      all_arms: the names of all arms.

    Returns:
      The settings in order.
    """
    few = config.arms or (CLAIM, *BASELINES)
    core = config.arms or (CLAIM, *BASELINES, "thompson")

    def vary(arms: tuple[str, ...], field: str, values: tuple) -> list[Setting]:
        configs = [dataclasses.replace(config, **{field: value}) for value in values]
        return [
            Setting(f"{field}={value}", _with_budget(c), arms)
            for value, c in zip(values, configs, strict=True)
        ]

    match config.figure:
        case "default":
            return [
                Setting("default", config, core),
                *vary(few, "prior_scale", (2.0,)),
                *vary(few, "num_segments", (2,)),
            ]
        case "arms":
            return [Setting("arms", config, config.arms or all_arms)]
        case "temperature":
            return vary(config.arms or _drawn(all_arms), "temperature", (1.0, 1.5, 2.0, 3.0))
        case "length":
            return vary(few, "max_length", (3, 4, 5, 6, 7))
        case "prior_scale":
            return vary(core, "prior_scale", (0.5, 1.0, 2.0))
        case "members":
            return vary(few, "num_members", (4, 8, 16, 64))
        case "steps":
            return vary(few, "num_steps", (4, 16, 64))
        case "segments":
            return vary(few, "num_segments", (1, 2, 4))
        case "transformer":
            config = dataclasses.replace(
                config,
                num_rounds=config.num_rounds // 2,
                chunk_rounds=max(config.chunk_rounds // 4, 1),
            )
            return [Setting("transformer", config, core, "transformer")]


def _with_budget(config: Config) -> Config:
    """Returns the config with twice the rounds at lengths above 4."""
    longer = config.max_length > 4
    return dataclasses.replace(config, num_rounds=config.num_rounds * (2 if longer else 1))


def _drawn(arms: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the arms that a temperature changes."""
    fixed = ("passive", "uniform", "greedy", "thompson")
    return tuple(arm for arm in arms if arm not in fixed)
