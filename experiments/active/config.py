"""The config of `experiments.active.run`, and the settings of each kind of ensemble."""

import dataclasses
from typing import Any, Literal

from experiments.common.chunks import Chunk
from shatter.cli.common import binary, learners
from shatter.cli.common.binary import UsageError

Kind = learners.Kind | Literal["laplace"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Does choosing what to label pay?

    The queries are pairs of texts that people have compared. An arm chooses which to ask, one of
    the recorded votes is the answer, and an ensemble learns from all answers so far. It is judged
    by pairs of texts that it has not seen. All arms have the same learner and the same budget.
    """

    dataset: str = "ukp_humour"
    """Known: ukp_humour, newyorker_captions, ukp_convarg, pandalm, survey_opinions, polis."""

    ensembles: tuple[Kind, ...] = ("laplace",)
    """What learns. laplace: a linear utility of frozen features by Laplace's approximation, its
    curvature exact; heads: an ensemble of linear heads on the same; epinet: an epinet on the same;
    adapters: low-rank adapters on the last block."""

    arms: tuple[str, ...] = ()
    """Arms to run; if not given, all. The arm random always runs. Known: random, passive,
    boltzmann, thompson, double_thompson, quality_gap, information_directed, entropy, infomax,
    variance, joint_infomax, v_optimal."""

    run_dir: str = "runs/active"
    """Run folder, with a subfolder a data set. A run that exists is resumed if the flags are the
    same; arms and ensembles may be added to it."""

    data_dir: str | None = None
    """Folder with the human judgements and stories260k; SHATTER_DATA_DIR if not given."""

    model_name_or_path: str = "smollm2-135m"
    """The frozen model: a folder, a GGUF file or a name on the hub. "smollm2-135m" is
    SmolLM2-135M-Instruct, fetched once; "stories260k" is the folder of that name in the data
    folder."""

    num_depths: int = 4
    """Of how many of the frozen model's blocks, evenly spaced, the features are made."""

    num_components: int = 100
    """Principal components of the features, found on the pool's texts; 0 = all features."""

    seed: int = 0
    """The first seed. A seed divides the data into pool and held-out pairs, and gives all keys."""

    num_seeds: int | None = None
    """Number of seeds, each with its own division; if not given, 16, for adapters 8."""

    num_members: int | None = None
    """Members of the ensemble, or drawn from the posterior; if not given, each kind has its own."""

    prior_scale: float | None = None
    """Standard deviation of a member's utility of a text before there is data, nats (for adapters
    that of their log-odds of a pair, over the root of 2); if not given, tuned for each kind."""

    learning_rate: float | None = None
    """Adam's learning rate; if not given, tuned for each kind."""

    num_steps: int | None = None
    """Adam steps a round, of laplace Newton's; if not given, each kind has its own."""

    batch_size: int | None = None
    """Comparisons a step; 0 = all; if not given, each kind has its own."""

    batches: tuple[int, ...] = ()
    """Queries a round, stage by stage; if not given, 10 25 50, for adapters 40."""

    until: tuple[int, ...] = ()
    """Queries in all at the end of each stage; if not given, 100 400 1600, for adapters 400."""

    num_candidates: int | None = None
    """Queries among which the arm chooses: every round so many are drawn at random from those of
    the pool that were not asked yet; if not given, 2000, for adapters 200."""

    num_design: int | None = None
    """The same for the arm v_optimal with members, whose time and memory go by its square; if not
    given, 400, for adapters 100. With laplace it has --num_candidates as the others."""

    held_out_pairs: int | None = None
    """The largest number of held-out pairs of new items to judge by, and of known items a quarter
    as many; 0 = all; if not given, all, for adapters 250."""

    boltzmann_temperature: float = 2.0
    """Temperature of the boltzmann arm."""

    num_outcomes: int = 256
    """Number of sampled answers by which joint_infomax estimates what a query adds to a batch."""

    max_length: int = 256
    """The largest number of tokens of prompt and text that the features see."""

    utility: learners.Utility = "ratio"
    """adapters: the utility of a text. sum: its log-prob (ILHF as it is written). tilt: that less
    the base's. ratio: the tilt a token, scaled (DPO's implicit reward)."""

    utility_scale: float = 10.0
    """ratio: nats of utility for a nat of mean log-prob a token."""

    lora_r: int = 4
    """adapters: rank."""

    adapter_length: int = 48
    """adapters: the largest number of tokens of prompt and text."""

    mesh: str = ""
    """Devices that share seeds and members, for example seed=4,member=2; not given = one device."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """The settings of one kind of ensemble: the config's values, or else the kind's own."""

    kind: Kind
    config: Config
    num_seeds: int
    num_members: int
    prior_scale: float
    num_steps: int
    batches: tuple[int, ...]
    until: tuple[int, ...]
    num_candidates: int
    num_design: int
    held_out_pairs: int
    seeds_at_once: int
    learning_rate: float = 0.0  # laplace has none
    batch_size: int = 0

    @property
    def learner(self) -> learners.Setting:
        """The settings by which the members of an ensemble learn."""
        assert self.kind != "laplace"
        return learners.Setting(
            kind=self.kind,
            num_members=self.num_members,
            prior_scale=self.prior_scale,
            learning_rate=self.learning_rate,
            num_steps=self.num_steps,
            batch_size=self.batch_size or None,
            utility=self.config.utility,
            utility_scale=self.config.utility_scale,
            lora_r=self.config.lora_r,
        )

    @property
    def budget(self) -> int:
        """Queries in all."""
        return self.until[-1]

    def plan(self) -> list[Chunk]:
        """Returns the stages, cut into chunks of at most `CHUNK_ROUNDS` rounds."""
        chunks, first = [], 0
        for size, last in zip(self.batches, self.until, strict=True):
            rounds = (last - first) // size
            full, rest = divmod(rounds, CHUNK_ROUNDS)
            chunks += [Chunk(CHUNK_ROUNDS, size)] * full + [Chunk(rest, size)] * (rest > 0)
            first = last
        return chunks

    def queries(self) -> list[int]:
        """Returns the numbers of queries asked before the first round and after each round."""
        asked = [0]
        for chunk in self.plan():
            asked += [asked[-1] + chunk.num_queries * (n + 1) for n in range(chunk.num_rounds)]
        return asked


CHUNK_ROUNDS = 12
_ON_FEATURES: dict[str, Any] = {
    "num_seeds": 16,
    "num_members": 16,
    "batches": (10, 25, 50),
    "until": (100, 400, 1600),
    "num_candidates": 2000,
    "num_design": 400,
    "held_out_pairs": 0,
}
KINDS: dict[str, dict[str, Any]] = {
    "laplace": {
        **_ON_FEATURES,
        "num_members": 64,
        "prior_scale": 0.5,
        "num_steps": 5,
        "seeds_at_once": 16,
    },
    "heads": {
        **_ON_FEATURES,
        "prior_scale": 0.5,
        "learning_rate": 0.03,
        "num_steps": 10,
        "batch_size": 0,
        "seeds_at_once": 4,
    },
    "epinet": {
        **_ON_FEATURES,
        "prior_scale": 0.3,
        "learning_rate": 0.01,
        "num_steps": 20,
        "batch_size": 128,
        "seeds_at_once": 2,
    },
    "adapters": {
        "num_seeds": 8,
        "num_members": 8,
        "batches": (40,),
        "until": (400,),
        "num_candidates": 200,
        "num_design": 100,
        "held_out_pairs": 250,
        "prior_scale": 0.2,
        "learning_rate": 0.003,
        "num_steps": 10,
        "batch_size": 32,
        "seeds_at_once": 1,
    },
}


def settings(config: Config) -> list[Setting]:
    """Returns the settings of each of the config's ensembles.

    Raises:
      UsageError: if an ensemble is unknown, or the stages do not fit together.
    """
    binary.choose("ensemble", config.ensembles, tuple(KINDS))
    result = []
    for kind in config.ensembles:
        flags = {name: getattr(config, name, None) for name in KINDS[kind]}
        flags = {name: value for name, value in flags.items() if value not in (None, ())}
        setting = Setting(kind=kind, config=config, **{**KINDS[kind], **flags})
        _check_stages(setting)
        result.append(setting)
    return result


def _check_stages(setting: Setting) -> None:
    sizes, ends = setting.batches, setting.until
    firsts = (0, *ends[:-1])
    if len(sizes) != len(ends) or any(
        size < 1 or end <= first or (end - first) % size
        for size, first, end in zip(sizes, firsts, ends, strict=False)
    ):
        raise UsageError(
            "--batches and --until must have the same number of values, and each stage must be a "
            f"whole number of its batches, found {sizes} and {ends}"
        )
