"""The config of `experiments.scaling.run`."""

import dataclasses
from typing import Literal, NamedTuple

GoldName = Literal["kindness", "humour"]

UNTRAINED = ("base", "prompting")
OFFLINE = ("sft", "dpo", "ilhf", "ilhf_sum")
NEED_REWARD = ("rl", "sft_rl", "best_of_n")
ARMS = (*UNTRAINED, *OFFLINE, *NEED_REWARD)
REWARD_MODEL = "reward_model"


class Size(NamedTuple):
    """The shape of a model of the family."""

    width: int
    num_layers: int
    num_heads: int


SIZES = {
    "8k": Size(16, 2, 2),
    "16k": Size(24, 2, 2),
    "42k": Size(40, 2, 4),
    "120k": Size(56, 3, 4),
    "240k": Size(80, 3, 4),
    "600k": Size(112, 4, 4),
    "1M": Size(128, 5, 4),
    "3M": Size(192, 7, 6),
}
"""The family, by the rounded number of parameters."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Is RL's scaling curve above that of supervised fine-tuning, and that of prompting?

    A family of character-level transformers, pretrained here on Shakespeare, completes lines. A
    scripted gold reward, or one fitted to people's votes, judges the completions. Every seed has
    demonstrations and comparisons, which are the same for all models and all ways to use them.
    """

    sizes: tuple[str, ...] = ("8k", "16k", "42k", "120k")
    """Members of the family: 8k, 16k, 42k, 120k, 240k, 600k, 1M, 3M. A run folder may get more."""

    models: tuple[str, ...] = ()
    """Pretrained models beside the family: folders, GGUF files, names on the hub, "stories260k" or
    "smollm2-135m". A run folder may get more."""

    arms: tuple[str, ...] = tuple(arm for arm in ARMS if arm != "ilhf_sum")
    """base: a sample. prompting: after demonstrations. sft: on demonstrations. dpo, ilhf (by the
    tilt), ilhf_sum (the literal form): on comparisons. rl: RLOO with a reward model of the same
    size. sft_rl: SFT for half of the updates, then RL. best_of_n: the reward model chooses."""

    gold: GoldName = "kindness"
    """kindness: kind words less unkind ones less what is no word. humour: a linear function of
    n-grams that is fitted to the votes of ukp_humour."""

    taste: float = 2.0
    """Standard deviation of the gold reward of the reference's responses to a prompt, nats: by how
    much people who choose by Luce's rule care."""

    run_dir: str = "runs/scaling"
    """Run folder, with a folder for each gold reward; one that exists is resumed, given the same
    flags, and may get more sizes, models and arms."""

    family_dir: str = ""
    """Folder of the pretrained family, which other runs can share; not given = RUN_DIR/family."""

    data_dir: str = ""
    """Folder with tinyshakespeare, ukp_humour and stories260k; not given = $SHATTER_DATA_DIR."""

    seed: int = 0
    """Root of all random keys."""

    num_seeds: int = 10
    """Seeds, each with its own prompts, demonstrations, comparisons and draws. They share the
    pretrained models."""

    context: int = 160
    """Characters that a model of the family sees; a window of pretraining."""

    pretraining_tokens: int = 800_000
    """Characters that each size of the family is pretrained on."""

    pretraining_batch: int = 8
    """Windows a step of pretraining."""

    pretraining_rate: float = 4e-3
    """Adam's largest rate in pretraining; it falls to a tenth along a cosine."""

    reference: str = "42k"
    """The size of the family whose responses are demonstrations, are compared, and are what all
    models are judged against."""

    prompt_length: int = 10
    """Characters that a prompt has at least; it ends with a whole word of a line."""

    response_length: int = 24
    """Characters that are read of a response, which ends with its line."""

    num_prompts: int = 512
    """Prompts of a seed to learn from: as many demonstrations, and as many comparisons."""

    num_drawn: int = 8
    """Responses of the reference to a prompt: the first two are compared, and the best of all by
    the gold reward is the demonstration."""

    num_evaluated: int = 96
    """Prompts of a seed, of lines that no model was pretrained on, at every measurement."""

    max_shots: int = 8
    """Demonstrations before a prompt; fewer where the context holds fewer."""

    num_updates: int = 64
    """Adam steps of every arm that trains, and of the reward model."""

    num_rounds: int = 4
    """Measurements, at equal distances in the updates; an even number that divides them, because
    RL after SFT begins in the middle."""

    batch_size: int = 32
    """Documents an update: demonstrations, two a comparison, or samples."""

    num_samples: int = 4
    """RL: samples of a prompt, whose others are the baseline."""

    best_of: int = 8
    """Samples of the base among which the reward model chooses in best_of_n."""

    beta: float = 0.1
    """RL: KL coefficient."""

    dpo_beta: float = 0.1
    """DPO's beta."""

    sft_rate: float = 1e-3
    """Adam's rate of supervised fine-tuning."""

    dpo_rate: float = 3e-4
    """Adam's rate of DPO."""

    ilhf_rate: float = 1e-3
    """Adam's rate of ILHF."""

    reward_rate: float = 1e-3
    """Adam's rate of the reward model."""

    rl_rate: float = 1e-3
    """Adam's rate of RL."""

    sft_rl_rate: float = 3e-4
    """Adam's rate of RL after SFT."""
