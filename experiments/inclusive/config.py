"""The config of `experiments.inclusive.run`."""

import dataclasses
from typing import Literal

Dataset = Literal["nonvoters", "parties", "starwars", "cuisines", "shares"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Inclusive learning from recorded choices of real people.

    A tiny transformer is pretrained on the questions' and options' texts. An arm picks a question
    and two of its options; a respondent whose recorded answer is one of the two is drawn by weight;
    the model learns from the choice (ILHF), beside a prior of choices by the pretrained model. Half
    of the people, drawn anew for every seed, answer; the other half judges.
    """

    dataset: Dataset = "nonvoters"
    """nonvoters: 40 questions of a 2020 survey. parties: the same by party, the party a tag in the
    prompt. starwars: 6 films, rankings. cuisines: 40 cuisines, ratings. shares: a JSON-lines file
    of population shares, see --shares_file."""

    arms: tuple[str, ...] = ("random_map",)
    """Arms to run, or all. Known: random_map, greedy, boltzmann, random, thompson, double_thompson,
    double_thompson_sampled, infomax, variance, log_ratio_variance, ucb."""

    run_dir: str = "runs/inclusive"
    """Run folder, with a subfolder a data set; one that exists is resumed, given the same flags."""

    data_dir: str = ""
    """Folder of the data; none = $SHATTER_DATA_DIR, else a cache that is filled by download."""

    shares_file: str = ""
    """For --dataset=shares: lines of prompt, completions, shares, n, group."""

    seed: int = 0
    """Root of all random keys; division s of the people is drawn from seed + s."""

    num_seeds: int = 10
    """Seeds, all in one jitted call an arm; each with its own division of the people."""

    seeds_at_once: int | None = None
    """Seeds that are vmapped, batch after batch in one call; none = one on a CPU, where the caches
    are small, all elsewhere."""

    num_members: int = 5
    """Members of the ensemble."""

    answers_small: int = 10
    """Answers a question asked in each of the first rounds, the mean over questions. Above the
    number of people in a half who answered, people are asked again (resampled)."""

    rounds_small: int = 10
    """How many of these rounds."""

    answers_large: int = 100
    """Answers a question asked in each of the later rounds."""

    rounds_large: int = 9
    """How many of these rounds."""

    num_steps: int = 8
    """Adam steps a round."""

    learning_rate: float = 2e-3
    """Adam's, the same for every arm; it warms up over the small rounds."""

    prior_scale: float = 0.3
    """Standard deviation of the prior on every parameter, around the pretrained one or around the
    one a member begins at."""

    member_scale: float = 0.01
    """Standard deviation of the members' beginnings around the pretrained parameters: small, for
    far from them is no language model."""

    prior_answers: float = 12.0
    """How many answers a question the pretrained model's own choices count for, beside the prior
    on parameters; 0 = none."""

    width: int = 16
    """Width of the transformer, of 2 layers and 2 heads."""

    pretraining_steps: int = 400
    """Adam steps on the texts."""

    prompts_compared: int = 4
    """Random questions among which the infomax and variance arms take the best."""
