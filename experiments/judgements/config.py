"""The config of `experiments.judgements.run`, and the configs of the runs that it makes."""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.judgements.datasets import DATASETS
from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.finetune.checks import check as check_run
from shatter.cli.finetune.config import Config as RunConfig

METHODS: dict[str, dict[str, Any]] = {
    "ilhf_mean": {"objective": "ilhf", "utility": "mean", "learning_rate": 1e-3},
    "ilhf_sum": {"objective": "ilhf", "utility": "sum", "learning_rate": 1e-3},
    "ilhf_tilt": {"objective": "ilhf", "utility": "tilt", "learning_rate": 1e-5},
    "dpo": {"objective": "dpo", "learning_rate": 3e-4},
    "reward_model": {"objective": "reward_model", "learning_rate": 1e-3},
}
"""The flags of `shatter finetune` in which the methods differ. The learning rates were chosen
among 1e-3 and 3e-4, for each method on one division of ukp_humour (seed 1000); that of ilhf_tilt
among 1e-3, 1e-4, 3e-5 and 1e-5, on that of seed 0."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Can a small pretrained language model learn what people judge better?

    The experiment fine-tunes the model on one part of a data set of human judgements by several
    methods, with equal data and steps, and evaluates it on held-out comparisons: of items that were
    shown in training (known) and of items that were not (new). Bradley-Terry, an n-gram model and
    text length are scored beside it.
    """

    dataset_name: str = "ukp_humour"
    """Known: ukp_humour, newyorker_captions, ukp_convarg, pandalm, survey_opinions,
    polis."""

    methods: tuple[str, ...] = tuple(METHODS)
    """Known: ilhf_mean (utility: a scaled mean log-prob of a token), ilhf_sum (the literal log-prob
    of the text), ilhf_tilt (its log-prob less the pretrained model's), dpo, reward_model."""

    run_dir: str = "runs/finetune_compare"
    """Folder of the runs, which has a folder for each data set. The same command resumes them, and
    reads those that are complete."""

    model_name_or_path: str = "stories260k"
    """The pretrained model: a folder, a GGUF file or a name on the hub. "stories260k" is the folder
    of that name in the data folder; "smollm2-135m" is SmolLM2-135M-Instruct, fetched once."""

    data_dir: str | None = None
    """Folder with the human judgements and stories260k; SHATTER_DATA_DIR if not given."""

    num_seeds: int = 10
    """Number of seeds. Each has its own division of the items, order of the data and random keys.
    """

    first_seed: int = 0
    """The first seed; the others follow it."""

    num_train_epochs: float = 2.0
    """Passes over the data."""

    per_device_train_batch_size: int = 64
    """Comparisons per step."""

    max_length: int = 96
    """Largest number of tokens of a text; longer ones are cut."""

    weight_decay: float = 0.01
    """AdamW's weight decay."""

    beta: float = 0.1
    """dpo: the KL coefficient."""

    kl_weight: float = 0.0
    """ilhf: the weight of KL(reference || model) per comparison."""


def check(config: Config) -> None:
    """Raises an error if a flag has an impossible value.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("data set", (config.dataset_name,), DATASETS)
    binary.choose("method", config.methods, tuple(METHODS))
    if not config.methods:
        raise UsageError(f"--methods must name at least one of {', '.join(METHODS)}, found none")
    largest = binary.LARGEST_WHOLE - config.first_seed + 1
    ranges = {"first_seed": binary.whole(0), "num_seeds": binary.whole(1, largest)}
    binary.check_ranges(config, ranges)
    for method in config.methods:  # the other flags are those of a run, under the same names
        check_run(run_config(config, method, config.first_seed))


def run_config(config: Config, method: str, seed: int) -> RunConfig:
    """Returns the config of one fine-tuning run."""
    changes = dict(METHODS[method])
    if changes["objective"] == "ilhf":
        changes["kl_weight"] = config.kl_weight
    return RunConfig(
        model_name_or_path=config.model_name_or_path,
        dataset_name=config.dataset_name,
        output_dir=str(Path(config.run_dir) / config.dataset_name / method / f"seed{seed}"),
        seed=seed,
        num_train_epochs=config.num_train_epochs,
        warmup_ratio=0.1,
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=128,
        mesh="data=1",
        max_length=config.max_length,
        weight_decay=config.weight_decay,
        beta=config.beta,
        logging_steps=25,
        **changes,
    )
