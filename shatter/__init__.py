"""shatter: fine-tuning language models from human feedback, inclusively, as pure functions."""

from shatter import (
    choice,
    data,
    documents,
    ensembles,
    evaluation,
    exploration,
    inference,
    losses,
    models,
    numerics,
    training,
    types,
)

__all__ = [
    "choice",
    "data",
    "documents",
    "ensembles",
    "evaluation",
    "exploration",
    "inference",
    "losses",
    "models",
    "numerics",
    "training",
    "types",
]
__version__ = "0.1.0"
