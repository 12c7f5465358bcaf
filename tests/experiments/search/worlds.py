"""A tiny model as the pretrained one, and judges beside it."""

from experiments.search.config import Config, settled
from experiments.search.pretrained.world import load_world

LETTERS = ["play", "mom", "big", "."]
TINY = {
    "setting": "pretrained",
    "prompts": ("mom", "big mom .", "play"),
    "num_prompts": 2,
    "num_seeds": 2,
    "num_draws": 2,
    "max_length": 3,
    "budgets": (3, 12),
    "num_comparisons": 6,
    "policy_steps": 2,
    "batch_size": 4,
    "num_base_samples": 16,
    "num_components": 3,
    "num_actions": 3,
    "rank": 2,
}


def tiny(folder, tmp_path, **changes):
    values = {"model_name_or_path": str(folder), "run_dir": str(tmp_path / "run"), **TINY}
    if changes.get("reward_model"):
        values["num_comparisons"] = None  # of the scripted reward
    return Config(**{**values, **changes})


def load(folder, tmp_path, **changes):
    """Returns the world and its arrays."""
    return load_world(settled(tiny(folder, tmp_path, **changes)))
