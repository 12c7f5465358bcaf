"""The flags of `experiments.people.adapters`."""

import dataclasses

from shatter import models
from shatter.cli.common import binary
from shatter.cli.common.utilities import Form

DATASETS = ("survey_opinions", "polis")
FORMS: tuple[Form, ...] = ("ratio", "mean", "tilt", "sum")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is a person's own adapter on one frozen model worth on new questions?

    The adapters of a population, of its groups and of single persons, on the last block's mlp_out,
    are learned jointly from answers to old questions: persons are pulled to their group, groups to
    the population, and the population to the frozen model. Beside them are heads on the frozen
    model's features, as in `experiments.people.run`, on the same divisions of the questions; they
    learn from the same answers and are judged by the same persons.
    """

    dataset: str = "survey_opinions"
    """Known: survey_opinions, polis, where many persons gave many answers and groups are known."""

    model_name_or_path: str = "stories260k"
    """The pretrained model: a folder, a GGUF file or a name on the hub. "stories260k" is the folder
    of that name in the data folder; "smollm2-135m" is SmolLM2-135M-Instruct, fetched once."""

    run_dir: str = "runs/people_adapters"
    """Folder of the runs, which has a folder for each data set. The same command resumes them."""

    data_dir: str | None = None
    """Folder with the published files; SHATTER_DATA_DIR if not given."""

    num_seeds: int = 5
    """Number of divisions into old and new questions, those of `experiments.people.run`."""

    seed: int = 0
    """The first division; it also draws the questions."""

    max_questions: int = 400
    """Largest number of questions, drawn at random."""

    max_length: int = 128
    """Largest number of tokens of a prompt and an option; longer prompts lose their beginning."""

    max_persons: int = 100
    """Largest number of persons to judge; half as many others choose how far a person may differ.
    Heads are judged and chosen by the same persons."""

    numbers_of_answers: tuple[int, ...] = (0, 1, 4, 16)
    """After how many of a person's answers the next ones are predicted."""

    utility: Form = "ratio"
    """The utility of an option, as in `shatter finetune`: mean, ratio, tilt or sum."""

    utility_scale: float = 10.0
    """mean and ratio: nats of utility for a nat of log-prob a token."""

    lora_r: int = 4
    """Rank of the adapters."""

    population_scales: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01, 0.03)
    """Deviations of the population's adapter from the frozen model, to choose among."""

    group_ratios: tuple[float, ...] = (0.3, 1.0, 3.0)
    """Deviations of groups from the population, over the population's, to choose among."""

    person_scales: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    """Deviations of persons from their group, to choose among for each number of answers."""

    answers_per_question: float = 1000.0
    """As how many all answers to a question count of people who have no adapter of their own; a
    person's answers count as they are."""

    num_steps: int = 30
    """Steps of L-BFGS for the population and its groups."""

    person_steps: int = 8
    """The same with persons, from where those steps end."""

    save: bool = False
    """Also write the first division's adapters, of the population, the groups and the persons, as
    PEFT folders below the run's."""

    @property
    def lora(self) -> models.LoraConfig:
        """The adapters' config."""
        return models.LoraConfig(self.lora_r, float(self.lora_r), ("mlp_out",))


def check(config: Config) -> None:
    """Raises an error if a flag has an impossible value.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.choose("data set", (config.dataset,), DATASETS)
    binary.choose("utility", (config.utility,), FORMS)
    binary.at_least(config, num_seeds=2, seed=0, max_questions=5, max_length=8, max_persons=1)
    binary.at_least(config, lora_r=1, num_steps=1, person_steps=1)
    binary.positive(config, "utility_scale", "answers_per_question")
    binary.positive(config, "population_scales", "group_ratios", "person_scales")
    numbers = config.numbers_of_answers
    if not numbers or min(numbers) < 0 or max(numbers) == 0:
        raise binary.UsageError(
            f"--numbers_of_answers must be numbers >= 0, the largest above 0, found {list(numbers)}"
        )
