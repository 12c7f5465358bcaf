"""The config of `experiments.exploration.run`, and the settings that each figure compares."""

import dataclasses
from typing import Literal

from experiments.common.didactic import ModelKind

Figure = Literal["default", "difficulty", "ensemble_size", "prior_scale", "transformer"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Does knowing what you do not know pay?

    A population with a hidden law q over documents answers which of two documents it prefers
    (Luce). Arms differ in how they choose what to ask; all learn inclusively (ILHF) from equally
    many answers. The measure is KL(q || prediction), exact over all documents. The process is a
    didactic one, of our own.
    """

    figure: Figure = "default"
    """default: all arms, tabular, length 4. difficulty: lengths 3 to 6. ensemble_size: 2 to 32
    members. prior_scale: half, matched, double. transformer: a transformer learner."""

    arms: tuple[str, ...] = ()
    """Arms to run; not given = the figure's own. Known: uniform, passive, passive_map, greedy,
    boltzmann, thompson, double_thompson, double_thompson_sampled, infomax, variance,
    log_ratio_variance, ucb."""

    run_dir: str = "runs/exploration"
    """Run folder, with a subfolder a figure; one that exists is resumed, given the same flags."""

    seed: int = 0
    """Root of all random keys."""

    num_seeds: int = 30
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

    num_rounds: int = 45
    """Rounds of asking and learning; difficulty takes twice as many, transformer half."""

    queries_per_round: int = 8
    """Comparisons asked a round."""

    num_responses: int | None = None
    """Responses in a query, from 2 to 4; more than 2 are ranked. Not given = 2, a choice."""

    num_candidates: int = 8
    """Candidates drawn afresh for every query by the arms that draw candidates."""

    num_segments: int = 1
    """Segments of the population, with hidden laws of their own; every query goes to one of them.
    Above 1 no Luce model fits the answers."""

    num_steps: int = 16
    """Adam steps a round."""

    learning_rate: float = 0.2
    """Adam's, on logits; a transformer's is a twentieth of it."""

    boltzmann_temperature: float = 2.0
    """Sequence temperature of the boltzmann arm."""

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
    core = config.arms or ("passive", "passive_map", "greedy", "thompson", "infomax")
    ensemble = config.arms or ("passive", "thompson", "infomax")

    def vary(arms: tuple[str, ...], field: str, values: tuple) -> list[Setting]:
        return [
            Setting(f"{field}={value}", dataclasses.replace(config, **{field: value}), arms)
            for value in values
        ]

    match config.figure:
        case "default":
            return [Setting("default", config, config.arms or all_arms)]
        case "difficulty":
            config = dataclasses.replace(config, num_rounds=2 * config.num_rounds)
            return vary(core, "max_length", (3, 4, 5, 6))
        case "ensemble_size":
            return vary(ensemble, "num_members", (2, 4, 8, 16, 32))
        case "prior_scale":
            return vary(core, "prior_scale", (0.5, 1.0, 2.0))
        case "transformer":
            config = dataclasses.replace(
                config,
                num_rounds=config.num_rounds // 2,
                chunk_rounds=max(config.chunk_rounds // 4, 1),
            )
            return [Setting("transformer", config, core, "transformer")]
