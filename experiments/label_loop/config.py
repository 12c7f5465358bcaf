"""The flags of `python -m experiments.label_loop.run`."""

import dataclasses
from typing import Literal

from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.label.config import ProposeConfig
from shatter.cli.label.config import check as check_propose


@dataclasses.dataclass(frozen=True)
class Config(ProposeConfig):
    """Propose, answer and learn in turn, with recorded votes or a rater model instead of people."""

    rater: Literal["recorded", "model"] = "recorded"
    """Who answers. recorded: --pool is a file of preferences, only its comparisons are asked, and
    an answer is one of its recorded ones, drawn in proportion to their weights; model: choices by
    Luce's rule on the utilities of --rater_model."""

    rater_model: str = ""
    """With --rater=model: a model folder. A text's utility is --rater_scale times the mean log-prob
    of its tokens; if the folder has a reward_head.safetensors (of shatter finetune
    --objective=reward_model), times its reward. The names that --model_name_or_path knows are
    known here too."""

    rater_scale: float = 1.0
    """Nats of utility per nat of mean log-prob, or per unit of reward."""

    project: str = "runs/label_loop"
    """Folder of the project; with several seeds each has a folder below it."""

    model_name_or_path: str = "stories260k"
    """The frozen model: a folder, a GGUF file or a name on the hub. "stories260k" is the folder
    of that name in the data folder; "smollm2-135m" is SmolLM2-135M-Instruct, fetched once."""

    data_dir: str | None = None
    """Data folder, with stories260k; SHATTER_DATA_DIR if not given."""

    num_rounds: int = 10
    """Rounds of propose, answer and learn."""

    num_seeds: int = 1
    """Number of runs, one after the other, with the seeds from --seed on."""

    until: float | None = None
    """As in `shatter label learn`."""

    until_share_kl: float | None = None
    """As in `shatter label learn`."""

    coverage: bool = False
    """With --rater=recorded: after every round compare the forecast with all votes of the pool, and
    print how often its intervals hold."""


RANGES = {
    "rater_scale": binary.POSITIVE,
    "num_rounds": binary.whole(1, 2**20),
    "num_seeds": binary.whole(1, 2**16),
}
"""The values that each numeric flag may take, beside those of `shatter label propose`."""


def check(config: Config) -> None:
    """Raises an error if a flag has a value that cannot be used.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    check_propose(config)
    binary.check_ranges(config, RANGES)
    last = config.seed + config.num_seeds - 1
    if last > binary.LARGEST_WHOLE:
        raise UsageError(
            f"--seed={config.seed} and --num_seeds={config.num_seeds}: the last seed must be "
            f"at most {binary.LARGEST_WHOLE}, found {last}"
        )
    if config.coverage and (config.rater != "recorded" or not config.audit_share):
        raise UsageError(
            "--coverage: expected --rater=recorded, and --audit_share above 0, found "
            f"--rater={config.rater} and --audit_share={config.audit_share:g}"
        )
    if config.rater == "model" and not config.rater_model:
        raise UsageError("--rater=model: expected --rater_model, a model folder; found none")
