"""The config of `experiments.active.run`, and what each kind of ensemble runs with."""

import dataclasses
from typing import Any

from experiments.common.chunks import Chunk
from shatter.cli.common import binary, learners
from shatter.cli.common.binary import UsageError


@dataclasses.dataclass(frozen=True)
class Config:
    """Does choosing what to label pay?

    Pairs of texts that people have compared are a pool of queries. An arm chooses which to ask, one
    vote of those recorded is the answer, an ensemble learns from all answers so far, and is judged
    by pairs of texts that it has not seen. All arms have the same learner and the same budget.
    """

    dataset: str = "ukp_humour"
    """Known: ukp_humour, newyorker_captions, ukp_convarg."""

    ensembles: tuple[learners.Kind, ...] = ("heads", "epinet")
    """What learns. heads: linear heads on frozen features; epinet: an epinet on the same; adapters:
    low-rank adapters on the last block."""

    arms: tuple[str, ...] = ()
    """Arms to run; none = all, and random always. Known: random, passive, boltzmann, thompson,
    double_thompson, infomax, variance, joint_infomax."""

    run_dir: str = "runs/active"
    """Run folder, with a subfolder a data set; one that exists is resumed, given the same flags.
    Arms and ensembles may be added to it."""

    data_dir: str | None = None
    """Folder with the human judgements and stories260k; SHATTER_DATA_DIR if not given."""

    model_name_or_path: str = "stories260k"
    """The frozen model: a folder of the Hugging Face layout; "stories260k" is the folder of that
    name in the data folder."""

    seed: int = 0
    """The first seed: of a division of the data into pool and held-out pairs, and of all keys."""

    num_seeds: int | None = None
    """Seeds, each with its own division; not given = 16, adapters 8."""

    num_members: int | None = None
    """Members of the ensemble; not given = 16, adapters 8."""

    prior_scale: float | None = None
    """Standard deviation of a member's utility of a text before there is data, nats (adapters: of
    their log-odds of a pair, over the root of 2); not given = what was tuned for the kind."""

    learning_rate: float | None = None
    """Adam's; not given = what was tuned for the kind."""

    num_steps: int | None = None
    """Adam steps a round; not given = what was tuned for the kind."""

    batch_size: int | None = None
    """Comparisons a step; 0 = all; not given = the kind's own."""

    batches: tuple[int, ...] = ()
    """Queries a round, stage by stage; none = the kind's own, 10 25 50 (adapters: 40)."""

    until: tuple[int, ...] = ()
    """Queries in all at the end of each stage; none = the kind's own, 100 400 1600 (adapters:
    400)."""

    num_candidates: int | None = None
    """Queries of the pool, not yet asked, drawn at random every round, among which the arm chooses;
    not given = 2000, adapters 200."""

    held_out_pairs: int | None = None
    """Most held-out pairs of new items to judge by, and of known ones a quarter as many; 0 = all;
    not given = all, adapters 250."""

    boltzmann_temperature: float = 2.0
    """Temperature of the boltzmann arm."""

    num_outcomes: int = 256
    """Sampled answers by which joint_infomax estimates what a query adds to a batch."""

    max_length: int = 256
    """Tokens of prompt and text that the features see, at most."""

    utility_scale: float = 10.0
    """adapters: nats of utility for a nat of mean log-prob a token."""

    lora_r: int = 4
    """adapters: rank."""

    adapter_length: int = 48
    """adapters: tokens of prompt and text, at most."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a kind of ensemble runs with: the config's values, or the kind's own."""

    kind: learners.Kind
    config: Config
    num_seeds: int
    num_members: int
    prior_scale: float
    learning_rate: float
    num_steps: int
    batch_size: int
    batches: tuple[int, ...]
    until: tuple[int, ...]
    num_candidates: int
    held_out_pairs: int
    seeds_at_once: int

    @property
    def learner(self) -> learners.Setting:
        """How its members learn."""
        return learners.Setting(
            kind=self.kind,
            num_members=self.num_members,
            prior_scale=self.prior_scale,
            learning_rate=self.learning_rate,
            num_steps=self.num_steps,
            batch_size=self.batch_size or None,
            utility_scale=self.config.utility_scale,
            lora_r=self.config.lora_r,
        )

    @property
    def budget(self) -> int:
        """Queries in all."""
        return self.until[-1]

    def plan(self) -> list[Chunk]:
        """The stages, in chunks of at most `CHUNK_ROUNDS` rounds."""
        chunks, first = [], 0
        for size, last in zip(self.batches, self.until, strict=True):
            rounds = (last - first) // size
            full, rest = divmod(rounds, CHUNK_ROUNDS)
            chunks += [Chunk(CHUNK_ROUNDS, size)] * full + [Chunk(rest, size)] * (rest > 0)
            first = last
        return chunks

    def queries(self) -> list[int]:
        """Queries asked before the first round and after each."""
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
    "held_out_pairs": 0,
}
KINDS: dict[str, dict[str, Any]] = {
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
        "held_out_pairs": 250,
        "prior_scale": 0.2,
        "learning_rate": 0.003,
        "num_steps": 10,
        "batch_size": 32,
        "seeds_at_once": 1,
    },
}


def settings(config: Config) -> list[Setting]:
    """What each kind of ensemble runs with.

    Raises:
      UsageError: if a kind is unknown or the stages are none.
    """
    binary.choose("ensemble", config.ensembles, tuple(KINDS))
    found = []
    for kind in config.ensembles:
        given = {name: getattr(config, name, None) for name in KINDS[kind]}
        given = {name: value for name, value in given.items() if value not in (None, ())}
        setting = Setting(kind=kind, config=config, **{**KINDS[kind], **given})
        _check_stages(setting)
        found.append(setting)
    return found


def _check_stages(setting: Setting) -> None:
    sizes, ends = setting.batches, setting.until
    firsts = (0, *ends[:-1])
    if len(sizes) != len(ends) or any(
        size < 1 or end <= first or (end - first) % size
        for size, first, end in zip(sizes, firsts, ends, strict=False)
    ):
        raise UsageError(
            "--batches and --until must be as many, and each stage a whole number of its batches, "
            f"found {sizes} and {ends}"
        )
