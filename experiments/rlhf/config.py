"""The config of `experiments.rlhf.run`."""

import dataclasses
from typing import Literal

from experiments.common.didactic import ModelKind

Population = Literal["didactic", "nonvoters", "starwars", "cuisines", "shares"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Inclusive learning (ILHF) compared with the pipeline that it replaces.

    Every objective has the same comparisons, pretrained model and number of gradient steps: ILHF; a
    reward model followed by PPO with a KL penalty or by the exact posterior; DPO, IPO and SLiC. A
    response is one action. Every measure is exact over all documents, or over the options of a
    question.
    """

    population: Population = "didactic"
    """didactic: two segments whose mixture every rater has, over all documents of a tiny
    vocabulary. nonvoters, starwars, cuisines, shares: recorded people, as in
    experiments.inclusive."""

    model: ModelKind = "tabular"
    """The model that is trained: a table of logits, or a transformer of width 16. For recorded
    people the table starts at the pretrained transformer's log-probs of the options."""

    objectives: tuple[str, ...] = ()
    """Objectives to train; none = all. Known: ilhf, rlhf, rlhf_adaptive, rm_posterior,
    rm_posterior_few (which has a sixteenth of the comparisons), dpo, ipo, slic."""

    run_dir: str = "runs/rlhf"
    """Run folder, with a subfolder for each population and model. A folder that exists is resumed,
    if the flags are the same."""

    data_dir: str = ""
    """Folder with the data of recorded people; none = $SHATTER_DATA_DIR, or if that is not set, a
    cache into which the data is downloaded."""

    shares_file: str = ""
    """--population=shares: JSON lines with the fields prompt, completions, shares, n, group."""

    seed: int = 0
    """Root of all random keys."""

    num_seeds: int = 10
    """Number of seeds, each with its own comparisons."""

    seeds_at_once: int | None = None
    """Number of runs that are vmapped together; none = one if a transformer learns on a CPU,
    otherwise all. Small models have a batch on each core, of at most four."""

    betas: tuple[float, ...] = (1.0, 0.5, 0.1)
    """KL coefficients of the pipelines, DPO and IPO; ILHF and SLiC have none."""

    num_comparisons: int = 4000
    """Number of comparisons of uniformly drawn pairs in the data set."""

    batch_size: int = 64
    """Comparisons, or samples of the policy, in a batch. PPO takes four gradient steps on each
    batch, the others one."""

    num_steps: int = 2000
    """Gradient steps of every objective. The first half of those of rlhf and rlhf_adaptive train
    the reward model."""

    record_every: int = 40
    """Gradient steps between two measurements, a multiple of 4."""

    learning_rate: float = 0.05
    """Adam's learning rate on logits, rewards and values, which falls to 0 by a cosine. A
    transformer takes a tenth of it."""

    ilhf_lambda: float = 10.0
    """Weight of ILHF's forward KL to the pretrained model for the whole data set."""

    slic_delta: float = 1.0
    """SLiC's margin, nats."""

    slic_regulariser: float = 0.1
    """Weight of SLiC's cross-entropy towards the pretrained model."""

    kl_target: float = 1.0
    """KL(policy || pretrained) to which rlhf_adaptive steers beta, nats."""

    spread: float = 2.0
    """didactic: standard deviation of each segment's logits around the pretrained model's."""

    minority: float = 0.3
    """didactic: weight of the second segment."""

    vocab_size: int = 4
    """didactic: number of tokens, EOS among them."""

    max_length: int = 4
    """didactic: largest number of tokens in a document."""

    width: int = 16
    """recorded people: width of the transformer, which has 2 layers and 2 heads."""

    pretraining_steps: int = 400
    """recorded people: Adam steps of pretraining on the texts."""
