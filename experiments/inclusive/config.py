"""The config of `experiments.inclusive.run`."""

import dataclasses
from typing import Literal

Dataset = Literal["nonvoters", "parties", "starwars", "cuisines", "shares"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Inclusive learning from recorded choices of real people.

    A tiny transformer is pretrained on the texts of the questions and options. An arm picks a
    question and two of its options; a respondent whose recorded answer is one of the two is drawn
    by weight; the model learns from the choice (ILHF), with the pretrained model's own choices as a
    prior. Half of the people, drawn anew for every seed, answer; the other half judges.
    """

    dataset: Dataset = "nonvoters"
    """nonvoters: 40 questions of a 2020 survey. parties: the same by party, with the party as a tag
    in the prompt. starwars: 6 films, rankings. cuisines: 40 cuisines, ratings. shares: a JSON-lines
    file of population shares, see --shares_file."""

    arms: tuple[str, ...] = ("random_map",)
    """Arms to run, or all. Known: random_map, greedy, boltzmann, random, thompson, double_thompson,
    double_thompson_sampled, infomax, variance, log_ratio_variance, ucb."""

    run_dir: str = "runs/inclusive"
    """Run folder, with a subfolder a data set; one that exists is resumed, given the same flags."""

    data_dir: str = ""
    """Folder of the data; if not given, $SHATTER_DATA_DIR, else a cache filled by download."""

    shares_file: str = ""
    """For --dataset=shares: a JSON-lines file with prompt, completions, shares, n and group."""

    seed: int = 0
    """Root of all random keys; division s of the people is drawn from seed + s."""

    num_seeds: int = 10
    """Seeds, each with its own division of the people."""

    seeds_at_once: int | None = None
    """Seeds that are vmapped together; if not given, one on a CPU, because its caches are small,
    and all elsewhere. Small models have a batch on each core, of at most four."""

    num_members: int = 5
    """Members of the ensemble."""

    answers_small: int = 10
    """Answers asked for in each of the first rounds, a question, the mean over questions. Once
    these are more than the people of a half who answered, people are drawn again."""

    rounds_small: int = 10
    """Number of these first rounds."""

    answers_large: int = 100
    """Answers asked for in each of the later rounds, a question."""

    rounds_large: int = 9
    """Number of these later rounds."""

    num_steps: int = 8
    """Adam steps a round."""

    learning_rate: float = 2e-3
    """Adam's, the same for every arm; it warms up over the small rounds."""

    prior_scale: float = 0.3
    """Standard deviation of the prior on every parameter, around the pretrained value, or around
    the value at which a member begins."""

    member_scale: float = 0.01
    """Standard deviation of the parameters at which members begin, around the pretrained ones;
    small, because parameters far from those make no language model."""

    prior_answers: float = 12.0
    """The answers a question that the pretrained model's own choices count as, beside the prior on
    parameters; 0 = none."""

    width: int = 16
    """Width of the transformer, of 2 layers and 2 heads."""

    pretraining_steps: int = 400
    """Adam steps on the texts."""

    prompts_compared: int = 4
    """Random questions among which the infomax and variance arms ask the most informative."""
