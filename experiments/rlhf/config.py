"""The config of `experiments.rlhf.run`."""

import dataclasses
from typing import Literal

from experiments.common.didactic import ModelKind

Population = Literal["didactic", "nonvoters", "starwars", "cuisines", "shares"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Inclusive learning beside the pipeline that it replaces.

    The same comparisons, pretrained model and gradient steps for every objective: ILHF; a reward
    model, then PPO with a KL penalty, or the exact posterior; DPO, IPO, SLiC. A response is one
    action. Every measure is exact over all documents, or over the options of a question.
    """

    population: Population = "didactic"
    """didactic: two segments whose mixture every rater has, over all documents of a tiny
    vocabulary. nonvoters, starwars, cuisines, shares: recorded people, as in
    experiments.inclusive."""

    model: ModelKind = "tabular"
    """What is trained: a table of logits, or a transformer of width 16. Of recorded people the
    table begins at what the pretrained transformer says of the options."""

    objectives: tuple[str, ...] = ()
    """Objectives; none = all. Known: ilhf, rlhf, rlhf_adaptive, rm_posterior,
    rm_posterior_few (of a sixteenth of the comparisons), dpo, ipo, slic."""

    run_dir: str = "runs/rlhf"
    """Run folder, with a subfolder a population and model; one that exists is resumed, given the
    same flags."""

    data_dir: str = ""
    """Folder of the data of recorded people; none = $SHATTER_DATA_DIR, else a cache that is filled
    by download."""

    shares_file: str = ""
    """For --population=shares: lines of prompt, completions, shares, n, group."""

    seed: int = 0
    """Root of all random keys."""

    num_seeds: int = 10
    """Seeds, with all betas in one vmapped call an objective; each draws its own comparisons."""

    seeds_at_once: int | None = None
    """Runs that are vmapped, batch after batch in one call; none = one where a transformer learns
    on a CPU, else all."""

    betas: tuple[float, ...] = (1.0, 0.5, 0.1)
    """KL coefficients of RLHF and of the direct methods; ILHF and SLiC have none."""

    num_comparisons: int = 4000
    """Comparisons of the data set, of pairs drawn uniformly."""

    batch_size: int = 64
    """Comparisons, or samples of the policy, a gradient step; PPO takes four steps a batch."""

    num_steps: int = 2000
    """Gradient steps of every objective; of a pipeline the first half trains the reward model."""

    record_every: int = 40
    """Gradient steps between two measurements; a multiple of 4."""

    learning_rate: float = 0.05
    """Adam's, on logits, rewards and values, falling to 0 by a cosine; a transformer's is a tenth
    of it."""

    ilhf_lambda: float = 10.0
    """Weight of ILHF's forward KL to the pretrained model for the whole data set."""

    slic_delta: float = 1.0
    """The margin that SLiC asks for, nats."""

    slic_regulariser: float = 0.1
    """Weight of SLiC's cross-entropy towards the pretrained model."""

    kl_target: float = 1.0
    """KL(policy || pretrained) that the adaptive coefficient of rlhf_adaptive steers to, nats."""

    spread: float = 2.0
    """didactic: standard deviation of each segment's logits around the pretrained model's."""

    minority: float = 0.3
    """didactic: weight of the second segment."""

    vocab_size: int = 4
    """didactic: tokens, EOS among them."""

    max_length: int = 4
    """didactic: largest number of tokens of a document."""

    width: int = 16
    """recorded people: width of the transformer, of 2 layers and 2 heads."""

    pretraining_steps: int = 400
    """recorded people: Adam steps on the texts."""
