"""The config of `experiments.online.run`, and the words and rates of its two settings."""

import dataclasses
from typing import Literal

SettingName = Literal["closed", "open"]
People = Literal["mixture", "segments"]
Utility = Literal["sum", "tilt"]
ChooseBy = Literal["density", "taste"]

LIKES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "closed": (("happy", "very"), ("friend", "mom")),
    "open": (("big", "shiny", "red"), ("little", "small", "pretty")),
}
"""The words that the two segments like to read, by setting."""

TASTES = {"closed": 5.0, "open": 4.0}
"""How much they like them, nats: more in the closed setting, where the words are rarer."""

LEARNING_RATES = {"closed": 1e-2, "open": 4e-3}


@dataclasses.dataclass(frozen=True)
class Config:
    """Does choosing what to ask pay online, about the model's own responses?

    There are prompts only. The members of an ensemble, low-rank adapters on one frozen pretrained
    model, sample responses; queries are chosen among them, a scripted population answers, and the
    members learn inclusively (ILHF). Arms differ in who samples and how a pair is chosen; all have
    the same learner and equally many answers.
    """

    setting: SettingName = "closed"
    """closed: responses of one token, every measure exact over the vocabulary. open: the rest of a
    sentence, measures by samples."""

    arms: tuple[str, ...] = ("passive", "double_thompson", "infomax")
    """Arms to run; passive is always among them. Known: passive, pool_infomax, sampled, thompson,
    double_thompson, infomax, v_optimal."""

    model_name_or_path: str = "stories260k"
    """A pretrained model: a folder, a GGUF file or a name on the hub. "stories260k" is the folder
    of that name in the data folder; "smollm2-135m" is SmolLM2-135M-Instruct, fetched once."""

    data_dir: str = ""
    """Folder with stories260k; not given = $SHATTER_DATA_DIR."""

    run_dir: str = "runs/online"
    """Run folder, with a subfolder a setting; one that exists is resumed, fixed the same flags, and
    may get more arms."""

    seed: int = 0
    """Root of all random keys."""

    num_seeds: int = 10
    """Seeds, one after another in one call an arm."""

    prompts: tuple[str, ...] = ("They saw a", "Lily found a", "Tom had a", "There was a")
    """What responses continue; every query is about a random one."""

    taste: float | None = None
    """Nats that a response gains by a word that a segment likes, and loses by one that the other
    likes; not given = 5 in the closed setting, where such words are rarer, 4 in the open."""

    minority: float = 0.3
    """Weight of the second segment."""

    people: People | None = None
    """mixture: every person chooses by the population's law. segments: every query goes to a person
    of one segment, who chooses by its law; no single law explains such choices. Not given =
    mixture."""

    utility: Utility = "sum"
    """What members learn by. sum: a response's log-prob, summed over its tokens. tilt: that less
    the base's."""

    choose_by: ChooseBy | None = None
    """What people choose by. density: log q, so that they prefer what is likely. taste: log q / p0,
    so that how likely the base says a response is no part of it. Not given = density with the sum
    and taste with the tilt; learning from infinitely many answers then ends in q."""

    max_length: int = 12
    """open: largest number of tokens of a response, which ends with its sentence."""

    num_members: int = 8
    """Members of the ensemble."""

    rank: int = 4
    """Of the adapters, on the query, value and mlp_out projections."""

    adapted_blocks: int = 1
    """Upper blocks that have adapters; the blocks below are computed once for all members."""

    prior_spread: float = 1.0
    """Standard deviation of members' log-odds of two samples of the base before there is data,
    nats; sets the prior scale of the adapters."""

    num_rounds: int = 10
    """Rounds of asking and learning."""

    queries_per_round: int = 24
    """Comparisons asked a round."""

    num_candidates: int = 8
    """Responses drawn afresh for every query, by the base, or equally many by every member."""

    num_steps: int = 12
    """Adam steps a round."""

    batch_size: int = 16
    """open: comparisons a step, drawn from all so far. In the closed setting a step takes all."""

    learning_rate: float | None = None
    """Adam's; not given = 0.01 in the closed setting, 0.004 in the open."""

    pool_size: int = 48
    """open: held-out samples of the base for every prompt."""

    num_samples: int = 16
    """open: samples of the mixture for every prompt, at every measurement."""

    chunk_rounds: int = 5
    """Rounds between checkpoints."""

    mesh: str = ""
    """Devices that share seeds and members, for example seed=4,member=2; not given = one device."""


def chosen_by(config: Config) -> ChooseBy:
    """Returns what people choose by."""
    if config.choose_by is not None:
        return config.choose_by
    return "taste" if config.utility == "tilt" else "density"
