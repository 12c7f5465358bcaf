"""The run of one seed of one objective."""

from experiments.common.chunks import Process
from experiments.rlhf.config import Config
from experiments.rlhf.direct import direct_process
from experiments.rlhf.domains import Domain
from experiments.rlhf.objectives import Direct, Objective
from experiments.rlhf.pipeline import pipeline_process


def make_process(config: Config, domain: Domain, objective: Objective) -> Process:
    """Returns the run of one seed; its input is `(the domain's input, a key, beta)`.

    Args:
      config: the config.
      domain: what is compared.
      objective: the objective.

    Returns:
      `start` and `rounds`; a round is `config.record_every` gradient steps and a measurement.
    """
    if isinstance(objective.training, Direct):
        return direct_process(config, domain, objective, objective.training)
    return pipeline_process(config, domain, objective, objective.training)
