"""The run of one seed of one algorithm."""

from experiments.common.chunks import Process
from experiments.pipeline.algorithms import ALGORITHMS
from experiments.pipeline.config import Setting
from experiments.pipeline.one_model import one_model_process
from experiments.pipeline.two_models import pipeline_process


def make_process(setting: Setting, name: str) -> Process:
    """Returns the run of one seed of one algorithm; its input is a key.

    Args:
      setting: config and kind of model.
      name: a name in `ALGORITHMS`.

    Returns:
      `start` and `rounds`. What a seed draws once depends on the key alone, so that all algorithms
      face the same problems.
    """
    algorithm = ALGORITHMS[name]
    make = pipeline_process if algorithm.kind == "pipeline" else one_model_process
    return make(setting, algorithm)
