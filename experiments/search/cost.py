"""A rough cost of a run, before it starts."""

from experiments.search.config import LAWS_A_TOKEN, SEARCHES, Settled, budgets_of
from experiments.search.pretrained.arms import NUM_EVALUATED, ONCE
from experiments.search.pretrained.problem import ROWS_A_FEATURE
from experiments.search.summary import BASELINE


def minutes(config: Settled, parameters: int = 0, num_features: int = 0) -> float:
    """Returns a rough cost on one CPU core; a run may take half or twice as long.

    It is fitted to runs of README.md beside this file: the exact setting with its default flags,
    317 s, and with the exact twist, 249 s; the pretrained one with stories260k and its default
    flags, 664 s of processors, and with judges, 335 s. A model of SmolLM2's size was only timed
    for single passes, 50 GFLOP/s where it samples.

    Args:
      config: the config.
      parameters: of the pretrained model; the exact setting has none.
      num_features: of a document in the pretrained setting, what a head of it reads.

    Returns:
      Minutes.
    """
    names = tuple(dict.fromkeys((BASELINE, *config.arms)))
    searches = [arm for arm in names if arm in SEARCHES]
    num_trained = len(names) - len(searches)
    if config.setting == "exact":
        return _exact_seconds(config, searches, num_trained) / 60
    return _pretrained_seconds(config, searches, num_trained, parameters, num_features) / 60


def _exact_seconds(config: Settled, searches: list[str], num_trained: int) -> float:
    """Returns the cost of compilation, most of it, of the laws, and of exact training."""
    number, cost = config.num_seeds * config.num_draws, 10.0
    for arm in searches:
        compilation, a_law = (10.0, 4e-5) if arm in LAWS_A_TOKEN else (1.6, 2e-6)
        budgets = budgets_of(config, arm)
        cost += compilation * len(budgets) + a_law * number * sum(budgets)
    documents = (config.vocab_size - 1) ** config.max_length
    steps = config.num_seeds * config.policy_steps
    return cost + num_trained * (3.0 + 1.5e-6 * steps * documents)


def _pretrained_seconds(
    config: Settled, searches: list[str], num_trained: int, parameters: int, num_features: int
) -> float:
    """Returns the cost of compilation and of all tokens that the model reads, some of them again.

    A law is also read by the value and by the reward; a sample that something learns from is read
    again, with judges by both; a step of training is six passes.
    """
    programs, laws = 1 + num_trained, 0
    for arm in [*searches, *[BASELINE] * num_trained]:  # the samples of a policy are searched too
        budgets = budgets_of(config, arm)
        programs += len(budgets)
        laws += sum(budgets) * config.num_prompts * (1 if arm in ONCE else config.num_draws)
    samples = 2 * config.num_base_samples * config.num_prompts
    if config.reward_model:
        samples *= 2
    else:
        samples += 2 * config.num_comparisons + ROWS_A_FEATURE * num_features
    trained = config.policy_steps * config.batch_size + NUM_EVALUATED * config.num_prompts
    read = 3 * laws + config.max_length * (2 * samples + 6 * num_trained * trained)
    return 15.0 * programs + config.num_seeds * read * (2 * parameters / 50e9 + 2.4e-5)
