"""The config of `experiments.search.run`, and what its settings differ in."""

import dataclasses
from typing import Any, Literal

SettingName = Literal["exact", "pretrained"]

SEARCHES = (
    "best_of_n",
    "beam",
    "beam_by_value",
    "guided",
    "smc",
    "smc_without_twist",
    "tree_gumbel",
    "tree_muzero",
)
TRAINED = "rloo"
BY_PPO = "ppo"
"""The same policy trained by PPO; in the exact setting only."""

LAWS_A_TOKEN = {"tree_gumbel": 2, "tree_muzero": 2}
"""The fewest laws that a token needs, where they are more than one."""

BEST_OF = {TRAINED: "rloo_best_of_n", BY_PPO: "ppo_best_of_n"}
"""What comes with a trained policy: the best of n of its samples."""

OF_SETTING: dict[SettingName, tuple[str, ...]] = {
    "exact": ("vocab_size", "twist_steps", "twist_rate"),
    "pretrained": (
        *("model_name_or_path", "data_dir", "reward_model", "held_out_reward_model", "prompts"),
        *("num_prompts", "num_base_samples", "num_components", "num_actions", "rank"),
    ),
}
"""The flags that only one setting reads."""

OF_SCRIPTED = ("num_comparisons", "misfit")
"""The flags that are about the scripted gold reward, which judges of votes replace."""

STORIES = (
    "Once upon a time, there was a",
    "One day, Lily",
    "Tom and his dog",
    "The little bird",
    "Ben saw a big",
    "A girl named Mia",
    "There was a cat who",
    "In the park, Sam",
    "Max had a new",
    "The old tree",
    "Anna and her mom",
    "Every night, the",
)
JOKES = (
    "I told my wife",
    "My dog",
    "A man walks into a",
    "The old teacher",
    "I used to be",
    "My doctor said",
    "Old men never",
    "Time flies like",
    "I bought a",
    "She said that the",
    "A bad cook",
    "The best thing about",
)
WORDS = (
    *("play", "friend", "happy", "mom", "big", "little", "very", "saw"),
    *("park", "sad", "girl", "cat", "dog", "toy", "red", "fun"),
)
"""The words that the scripted gold reward of a text is about."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What does a search with a learned reward give for its tokens, beside training with it?

    Every search looks for documents that a learned reward likes, at budgets of tokens; a policy
    that is trained with it says one document. What counts is the gold reward. In the exact setting
    the model is so small that every document can be enumerated. In the pretrained setting it is a
    real one: its reward model has learned from choices by a scripted gold reward, or from people's
    votes, where a judge that has learned from other votes stands in the place of the gold reward.
    """

    setting: SettingName = "exact"
    """exact: tables whose documents can be enumerated. pretrained: texts of a pretrained model."""

    arms: tuple[str, ...] = ()
    """Arms to run: best_of_n, beam, beam_by_value, guided, smc, smc_without_twist, tree_gumbel,
    tree_muzero, rloo, and in the exact setting ppo. best_of_n is always among them. Not given = in
    the exact setting all, in the pretrained best_of_n, beam, beam_by_value, guided, smc,
    tree_gumbel and rloo."""

    run_dir: str = "runs/search"
    """Run folder; one that exists is resumed, given the same flags, and may get more arms."""

    seed: int = 0
    """Root of all random keys."""

    num_seeds: int = 10
    """Seeds, each with its own reward and choices, in the exact setting its own model, in the
    pretrained its own prompts; all run in one call an arm and budget."""

    num_draws: int | None = None
    """Searches of every seed at every budget, in the pretrained setting for every prompt, with keys
    of their own, where a tree or a beam searches once; not given = 64, pretrained 8."""

    max_length: int | None = None
    """The largest number of tokens of a response; not given = 5, pretrained 32."""

    budgets: tuple[int, ...] = ()
    """Budgets of a search: laws of a next token. Trees need two a token, so they begin there. Not
    given = one response, and 2, 4, ... 128 times as much, pretrained 4 and 16 times."""

    num_comparisons: int | None = None
    """Choices between two samples of the model that the reward model learns from; not given = 100,
    pretrained 400. --reward_model has learned already."""

    misfit: float | None = None
    """Share of the gold reward's variance, about, that the reward model cannot learn. exact: a part
    that is not linear in the counts of tokens and of pairs of tokens. pretrained: a dislike of
    repeated pairs of tokens; of it the reward model can learn a little, and of the rest it cannot
    learn all. Not given = 0.5, pretrained 0.3."""

    beta: float = 0.3
    """KL coefficient: of the twists, of the trees and of the trained policy. Rewards have a
    standard deviation of about 1 under the model."""

    twist: str = "learned"
    """learned: in the exact setting by `losses.contrastive_twist_loss` from samples of the model,
    in the pretrained by regression of the learned reward on what the model has read. exact: by
    enumeration, as a control, in the exact setting only."""

    policy_steps: int | None = None
    """Adam steps of the policy, trained by RLOO (or PPO) with the KL from the model; not given =
    400, pretrained 40."""

    policy_rate: float | None = None
    """Adam's, of the policy; not given = 0.05, pretrained 0.004."""

    batch_size: int = 32
    """Samples a step, of the policy and, in the exact setting, of the twist."""

    vocab_size: int = 5
    """exact: tokens; token 0 ends a document."""

    twist_steps: int = 200
    """exact: Adam steps of the learned twist."""

    twist_rate: float = 0.1
    """exact: Adam's, of the learned twist."""

    model_name_or_path: str = "stories260k"
    """pretrained: a folder, a GGUF file or a name on the hub. "stories260k" is the folder of that
    name in the data folder; "smollm2-135m" is SmolLM2-135M-Instruct, fetched once."""

    data_dir: str = ""
    """pretrained: folder with stories260k; not given = $SHATTER_DATA_DIR."""

    reward_model: str = ""
    """pretrained: the folder model/ of a run of shatter finetune --objective=reward_model on the
    same model, whose score is the learned reward. Not given = a linear head on the model's features
    that learns from choices by a scripted gold reward."""

    held_out_reward_model: str = ""
    """pretrained: such a folder that has learned from other votes, in the place of the gold reward;
    required with --reward_model."""

    prompts: tuple[str, ...] = ()
    """pretrained: the beginnings of texts; not given = twelve of stories, with --reward_model of
    jokes."""

    num_prompts: int = 4
    """pretrained: prompts of every seed, drawn from --prompts."""

    num_base_samples: int = 128
    """pretrained: samples of the model for every prompt that the twist learns from, and as many by
    which rewards are centred and scaled."""

    num_components: int = 16
    """pretrained: principal components of features and of tokens that the twist reads."""

    num_actions: int = 16
    """pretrained: the likeliest next tokens that a tree or a beam goes on with."""

    rank: int = 8
    """pretrained: of the policy's adapters."""


@dataclasses.dataclass(frozen=True)
class Settled(Config):
    """A config in which every flag has a value, its own or the setting's."""

    arms: tuple[str, ...] = (*SEARCHES, TRAINED, BY_PPO)
    num_draws: int = 64
    max_length: int = 5
    num_comparisons: int = 100
    misfit: float = 0.5
    policy_steps: int = 400
    policy_rate: float = 0.05


_PRETRAINED: dict[str, Any] = {
    "arms": ("best_of_n", "beam", "beam_by_value", "guided", "smc", "tree_gumbel", TRAINED),
    "num_draws": 8,
    "max_length": 32,
    "num_comparisons": 400,
    "misfit": 0.3,
    "policy_steps": 40,
    "policy_rate": 4e-3,
}
"""In what the pretrained setting differs from the values of `Settled`."""

_RESPONSES = {"exact": tuple(2**number for number in range(8)), "pretrained": (1, 4, 16)}
"""The responses that the budgets pay for."""


def settled(config: Config) -> Settled:
    """Returns a config in which every flag has a value, its own or the setting's."""
    given = {name: value for name, value in vars(config).items() if value not in (None, ())}
    values = {**(_PRETRAINED if config.setting == "pretrained" else {}), **given}
    length = values.get("max_length", Settled.max_length)
    values.setdefault("budgets", tuple(length * n for n in _RESPONSES[config.setting]))
    values.setdefault("prompts", JOKES if config.reward_model else STORIES)
    return Settled(**values)


def budgets_of(config: Settled, arm: str) -> list[int]:
    """Returns the budgets that an arm can spend."""
    least = LAWS_A_TOKEN.get(arm, 1) * config.max_length
    return [budget for budget in config.budgets if budget >= least]
