"""The flags of `experiments.people.run`."""

import dataclasses

from experiments.people.polls import POLLS
from shatter.cli.common import binary


@dataclasses.dataclass(frozen=True)
class Config:
    """Can a pretrained model say what people, groups and single persons answer to new questions?

    Heads on a frozen model's features learn from the questions of a poll and are judged on new
    ones: by the KL from people's shares, overall and by group, by the calibration of shares, and
    by the log-loss of a person's next answer after a few of their answers. Beside them are the
    model by prompting, learning the majority, DPO, n-grams, and the floor that sampling leaves.
    """

    dataset: str = "survey_opinions"
    """Known: survey_opinions, polis, ukp_convarg, pandalm."""

    model_name_or_path: str = "stories260k"
    """The pretrained model: a folder, a GGUF file or a name on the hub. "stories260k" is the folder
    of that name in the data folder; "smollm2-135m" is SmolLM2-135M-Instruct, fetched once."""

    run_dir: str = "runs/people"
    """Folder of the runs, which has a folder for each data set. The same command resumes them."""

    data_dir: str | None = None
    """Folder with the published files; SHATTER_DATA_DIR if not given."""

    num_seeds: int = 5
    """Number of divisions into old and new questions."""

    seed: int = 0
    """The first seed; it also draws the questions."""

    max_questions: int = 400
    """Largest number of questions, drawn at random."""

    num_components: int = 64
    """Principal components of the features, found on the old questions' texts; 0 = all features."""

    num_gram_components: int = 300
    """Principal components of the n-grams."""

    num_depths: int = 4
    """Blocks of the model whose output is read."""

    max_length: int = 128
    """Largest number of tokens of a prompt and an option; longer prompts lose their beginning."""

    max_persons: int = 200
    """Largest number of persons to judge single answers by, of those with enough answers; as many
    others choose how far a person may differ."""

    numbers_of_answers: tuple[int, ...] = (0, 1, 4, 16)
    """After how many of a person's answers the next ones are predicted."""

    beta: float = 0.1
    """The KL coefficient of DPO."""


def check(config: Config) -> None:
    """Raises an error if a flag has an impossible value.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("data set", (config.dataset,), POLLS)
    binary.at_least(
        config, num_seeds=2, seed=0, max_questions=5, num_components=0, num_depths=1, max_length=8
    )
    binary.at_least(config, max_persons=1, num_gram_components=1)
    binary.positive(config, "beta")
    if not config.numbers_of_answers or min(config.numbers_of_answers) < 0:
        raise binary.UsageError(
            "--numbers_of_answers must be at least one number >= 0, found "
            f"{list(config.numbers_of_answers)}"
        )
