"""The config of `experiments.online.run`, and what its settings differ in."""

import dataclasses
from typing import Any, Literal

from shatter.cli.common.learners import LAST_MLP_OUT, AdaptedLayers

SettingName = Literal["closed", "open", "chat"]
People = Literal["mixture", "segments"]
Utility = Literal["sum", "tilt"]
ChooseBy = Literal["density", "taste"]

LIKES: dict[SettingName, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "closed": (("happy", "very"), ("friend", "mom")),
    "open": (("big", "shiny", "red"), ("little", "small", "pretty")),
    "chat": (("I",), ("you",)),
}
"""The words that the two segments like to read, by setting."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Who learns a population online from answers about what a model says itself, and how fast?

    There are prompts only. A learner samples responses, queries are chosen among them, a scripted
    population answers. Inclusive learners (ILHF) are ensembles whose members, low-rank adapters on
    one frozen pretrained model, are the policy and the reward model in one. Beside them stand a
    pipeline of a reward model and a policy, and DPO. Arms differ in who learns, who samples and
    how a pair is chosen; all get equally many answers.
    """

    setting: SettingName = "closed"
    """closed: responses of one token, every measure exact over the vocabulary. open: the rest of a
    sentence, measures by samples. chat: answers of SmolLM2 to chat prompts, measures by samples."""

    arms: tuple[str, ...] = ("passive", "double_thompson", "infomax")
    """Arms to run; passive is always among them. ILHF: passive, pool_infomax, sampled, thompson,
    double_thompson, infomax, v_optimal. A reward model and a policy: offline, periodic, online,
    information_directed. DPO: dpo_offline, dpo_online."""

    model_name_or_path: str | None = None
    """A pretrained model: a folder, a GGUF file or a name on the hub. "stories260k" is the folder
    of that name in the data folder; "smollm2-135m" is SmolLM2-135M-Instruct, fetched once. Not
    given = stories260k, in the setting chat smollm2-135m."""

    data_dir: str = ""
    """Folder with stories260k; not given = $SHATTER_DATA_DIR."""

    run_dir: str = "runs/online"
    """Run folder, with a subfolder a setting; one that exists is resumed, given the same flags, and
    may get more arms."""

    seed: int = 0
    """Root of all random keys."""

    num_seeds: int | None = None
    """Seeds, one after another in one call an arm; not given = 10, chat 3."""

    prompts: tuple[str, ...] = ()
    """What responses continue, or answer; every query is about a random one. Not given = four of
    the setting's own."""

    taste: float | None = None
    """Nats that a response gains by a word that a segment likes, and loses by one that the other
    likes; not given = 5 in the closed setting, where such words are rarer, else 4."""

    minority: float = 0.3
    """Weight of the second segment."""

    people: People | None = None
    """mixture: every person chooses by the population's law. segments: every query goes to a person
    of one segment, who chooses by its law; no single law explains such choices. Not given =
    mixture."""

    utility: Utility | None = None
    """What ILHF's members learn by. sum: a response's log-prob, summed over its tokens. tilt: that
    less the base's. Not given = sum, chat tilt."""

    choose_by: ChooseBy | None = None
    """What people choose by. density: log q, so that they prefer what is likely. taste: log q / p0,
    so that how likely the base says a response is no part of it. Not given = density with the sum
    and taste with the tilt; learning from infinitely many answers then ends in q."""

    max_length: int | None = None
    """open and chat: largest number of tokens of a response, which ends with its sentence, or in
    chat where the model ends it; not given = 12, chat 48."""

    num_members: int | None = None
    """Members of ILHF's ensemble; not given = 8, chat 4."""

    rank: int = 4
    """Of the adapters."""

    adapted_layers: AdaptedLayers | None = None
    """Upper blocks that have adapters, on the query, value and mlp_out projections; the blocks
    below are computed once for all members. last_mlp_out: only the mlp_out of the last block has,
    so that members share the product with the vocabulary. Not given = 1, chat last_mlp_out."""

    prior_spread: float = 1.0
    """Standard deviation of members' log-odds of two samples of the base before there is data,
    nats; sets the prior scale of the adapters."""

    num_rounds: int | None = None
    """Rounds of asking and learning; not given = 10, chat 4."""

    queries_per_round: int | None = None
    """Comparisons asked a round; not given = 24, chat 64."""

    num_candidates: int | None = None
    """Responses drawn afresh for every query, in chat for every prompt a round, by the base or the
    policy, or equally many by every member; not given = 8, chat 16."""

    candidate_top_k: int | None = None
    """Candidates are drawn from the k likeliest tokens alone, of the base, the policy or the member
    that says them; not given = from all. It changes what is asked about and nothing else: the
    log-probs by which members learn, arms choose and people answer are those of whole laws, and so
    are the samples by which a policy learns, and those that are measured."""

    match_lengths: bool = False
    """open, ILHF by passive, sampled, pool_infomax and infomax: the two responses of a query have
    equally many tokens, where two candidates have. So log p0 differs less between them; what a
    length weighs is then left to the members' prior."""

    num_steps: int | None = None
    """Adam steps a round on the answers so far; not given = 12, chat 16."""

    batch_size: int = 16
    """open and chat: comparisons a step, drawn from all so far. In the closed setting, and of the
    reward model, a step takes all."""

    learning_rate: float | None = None
    """Adam's, of ILHF's and DPO's adapters; not given = 0.01 in the closed setting, 0.004 in the
    open, 0.003 in chat."""

    dpo_beta: float = 0.1
    """DPO's beta."""

    hidden: tuple[int, ...] = ()
    """Widths of the hidden layers of the reward model, heads on the frozen base's features; none =
    linear."""

    num_particles: int = 16
    """Randomised-prior particles around the reward model's point head, for the arm
    information_directed."""

    reward_scale: float = 2.0
    """Standard deviation of a reward of the reward model before there is data, nats."""

    reward_rate: float = 0.05
    """Adam's, of the reward model."""

    policy_rate: float | None = None
    """Adam's, of the pipeline's policy; not given = 0.01 in the closed setting, 0.004 in the open,
    0.003 in chat."""

    policy_steps: int | None = None
    """Adam steps of the policy a round; a retraining takes as many as all rounds so far together.
    Not given = 8."""

    policy_batch: int | None = None
    """Pairs of fresh samples of the policy for every prompt, a step; not given = 8 in the closed
    setting, 4 in the open, 2 in chat."""

    nudge: float = 0.1
    """The affirmative nudge."""

    anchor_decay: float = 0.99
    """Decay of the moving average of the policy's parameters, the anchor, a step; 1 = the
    pretrained model for ever."""

    beta: float = 0.1
    """Weight of the KL from the anchor in the policy's loss."""

    period: int | None = None
    """Rounds between the retrainings of offline and periodic; not given = 5, chat 4."""

    readout_beta: float = 0.3
    """closed: temperature of the read-out of every learned reward, p0 exp(r / beta) / Z."""

    num_base_samples: int | None = None
    """Samples of the base for every prompt that estimate the normalisers of the population's law,
    but in the closed setting; a quarter of as many, 64 at most, set the prior scale. Not given =
    2048, chat 128."""

    pool_size: int | None = None
    """Samples of the base for every prompt: held-out ones, but in the closed setting, and as many
    by which features are scaled; not given = 48, chat 24."""

    num_samples: int | None = None
    """open and chat: samples of who speaks for every prompt, at every measurement; not given = 16,
    chat 8."""

    chunk_rounds: int | None = None
    """Rounds between checkpoints; not given = 5, chat 1."""

    mesh: str = ""
    """Devices that share seeds and members, for example seed=4,member=2; not given = one device."""


@dataclasses.dataclass(frozen=True)
class Settled(Config):
    """A config in which every flag has a value, its own or the setting's."""

    model_name_or_path: str = "stories260k"
    num_seeds: int = 10
    prompts: tuple[str, ...] = ("They saw a", "Lily found a", "Tom had a", "There was a")
    taste: float = 4.0
    people: People = "mixture"
    utility: Utility = "sum"
    choose_by: ChooseBy = "density"
    max_length: int = 12
    num_members: int = 8
    adapted_layers: AdaptedLayers = 1
    num_rounds: int = 10
    queries_per_round: int = 24
    num_candidates: int = 8
    num_steps: int = 12
    learning_rate: float = 4e-3
    policy_rate: float = 4e-3
    policy_steps: int = 8
    policy_batch: int = 4
    period: int = 5
    num_base_samples: int = 2048
    pool_size: int = 48
    num_samples: int = 16
    chunk_rounds: int = 5


_CHANGES: dict[SettingName, dict[str, Any]] = {
    "closed": {
        "taste": 5.0,
        "max_length": 1,
        "learning_rate": 1e-2,
        "policy_rate": 1e-2,
        "policy_batch": 8,
    },
    "open": {},
    "chat": {
        "model_name_or_path": "smollm2-135m",
        "num_seeds": 3,
        "prompts": (
            "Tell me something nice about the sea.",
            "What should I cook tonight?",
            "I have a day off tomorrow. What could I do?",
            "Say hello to a new neighbour.",
        ),
        "taste": 4.0,
        "utility": "tilt",
        "max_length": 48,
        "num_members": 4,
        "adapted_layers": LAST_MLP_OUT,
        "num_rounds": 4,
        "queries_per_round": 64,
        "num_candidates": 16,
        "num_steps": 16,
        "learning_rate": 3e-3,
        "policy_rate": 3e-3,
        "policy_batch": 2,
        "period": 4,
        "num_base_samples": 128,
        "pool_size": 24,
        "num_samples": 8,
        "chunk_rounds": 1,
    },
}
"""In what a setting differs from the values of `Settled`."""


def settled(config: Config) -> Settled:
    """Returns a config in which every flag has a value, its own or the setting's."""
    given = {name: value for name, value in vars(config).items() if value not in (None, ())}
    values = {**_CHANGES[config.setting], **given}
    by_tilt = values.get("utility") == "tilt"
    values.setdefault("choose_by", "taste" if by_tilt else "density")
    if config.setting == "closed":
        values["max_length"] = 1
    return Settled(**values)
