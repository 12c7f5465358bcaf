"""The config of `experiments.agency.run`."""

import dataclasses
from typing import Literal

ARMS = ("prompting", "imitation", "rl", "imitation_rl", "imitation_search")
STARTS = ("scratch", "pretrained")
OWN_MODEL = "none"
"""The value of `--model_name_or_path` for the experiment's own small transformer."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Does imitation inject agency, and does RL improve on imitation or on RL alone?

    A language model answers questions with the help of tools: a calculator, or a library that it
    searches. A scripted expert of limited quality has given demonstrations. Arms take equally many
    updates of equally many episodes, from random weights or from those of a model that has read.
    """

    environment: Literal["arithmetic", "library"] = "arithmetic"
    """arithmetic: questions such as `( 3 + 4 ) * 5 =`, with a calculator. library: questions about
    a made-up library whose pages are searched, opened and quoted."""

    arms: tuple[str, ...] = ARMS
    """Arms to run. prompting: demonstrations in the context, no update. imitation: the
    demonstrations all the way. rl: RLOO on the model's own episodes all the way. imitation_rl:
    imitation first, then RLOO with a KL penalty towards it. imitation_search: imitation first, then
    a value of its finished episodes is learned, by which one of --num_tries is chosen."""

    starts: tuple[str, ...] = ("scratch",)
    """Weights that every arm starts from. scratch: random. pretrained: those of
    --model_name_or_path; of the own transformer, those after --pretraining_updates on the library's
    pages as plain text."""

    model_name_or_path: str = OWN_MODEL
    """The model: none, a small transformer of our own with a token for every word; stories260k,
    smollm2-135m, a folder, a GGUF file or a name on the hub."""

    data_dir: str | None = None
    """Folder with stories260k; SHATTER_DATA_DIR if not given."""

    run_dir: str = "runs/agency"
    """Run folder; one that exists is resumed, given the same flags, and may get more arms and
    starts."""

    seed: int = 0
    """Root of all random keys."""

    num_seeds: int = 10
    """Seeds, each with its own demonstrations and its own start."""

    seeds_at_once: int = 1
    """Seeds that are vmapped together; one is the fastest on a CPU, each core of which, at most
    four, has a batch of a small model."""

    num_operations: int = 2
    """Operations in a question of arithmetic, each a call of the calculator."""

    max_operand: int = 9
    """Operands of arithmetic are drawn from 1 to this number."""

    num_companies: int = 30
    """Companies of the library, 3 to 30; there are as many people and towns."""

    price: float = 0.05
    """What every action costs, below .5; the right answer earns 1."""

    num_demonstrations: int = 512
    """Episodes of the expert that a seed has, about questions of the training part; each draws them
    from twice as many."""

    quality: float = 0.8
    """Probability that an action of the expert is no mistake."""

    num_shown: int = 3
    """Demonstrations in the context of prompting."""

    width: int = 32
    """Of the own transformer."""

    num_layers: int = 2
    """Of the own transformer."""

    num_heads: int = 4
    """Of the own transformer; twice this number divides --width."""

    pretraining_updates: int = 200
    """Updates of the own transformer on pages as plain text, before all others; each reads as many
    tokens as --batch_size episodes have at most."""

    num_rounds: int = 12
    """Rounds of updates and a measurement."""

    imitation_rounds: int = 8
    """Rounds of imitation in imitation_rl and imitation_search."""

    updates_per_round: int = 25
    """Adam steps a round."""

    batch_size: int = 64
    """Episodes an update: demonstrations, or questions times samples."""

    num_samples: int = 8
    """Episodes of every question in an update of RL, whose others are the baseline."""

    learning_rate: float = 3e-3
    """Adam's, of pretraining, of imitation, of RL without imitation, and of the learned value."""

    rl_rate: float = 5e-4
    """Adam's, of RL after imitation."""

    beta: float = 0.02
    """KL coefficient of RL after imitation."""

    num_evaluated: int = 32
    """Held-out questions of each kind at every measurement, of every seed; each is tried
    --num_tries times."""

    num_tries: int = 4
    """Episodes of a question at a measurement, among which imitation_search chooses."""

    chunk_rounds: int = 4
    """Rounds between checkpoints."""
