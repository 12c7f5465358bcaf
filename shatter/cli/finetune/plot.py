"""The figure of a run: its measures of training and evaluation by step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from shatter.cli.finetune.config import ONLINE, Config
from shatter.cli.finetune.history import Record, is_evaluation


def draw(config: Config, history: Sequence[Record], path: Path) -> None:
    """Draws the curves of a run.

    Args:
      config: the config.
      history: the rows of its metrics.
      path: the PNG file.
    """
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), constrained_layout=True)
    training = [row for row in history if not is_evaluation(row)]
    held_out = [row for row in history if is_evaluation(row)]
    panels = _rewards if config.objective in ONLINE else _comparisons
    panels(config, axes, training, held_out)
    for axis in axes.flat:
        axis.set_xlabel("step")
        if axis.has_data() and axis.get_legend_handles_labels()[0]:
            for text in axis.legend(fontsize=8).get_texts():
                text.set_parse_math(False)  # a file's name may contain $
    title = figure.suptitle(f"{config.objective} on {Path(config.dataset_name).name}")
    title.set_parse_math(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _comparisons(
    config: Config, axes: Any, training: Sequence[Record], held_out: Sequence[Record]
) -> None:
    """Draws loss, accuracies, log-probs and divergences of a run that learns from comparisons."""
    files = sorted({name.split("/")[0] for row in held_out for name in row if "/" in name})
    _curves(axes[0, 0], training, {"loss": "training"})
    for kind in ("", "ranking_"):
        losses = {f"{f}/{kind}log_loss": f"{f}: {kind or 'choice '}log-loss" for f in files}
        shares = {f"{f}/{kind}accuracy": f"{f} {kind.strip('_')}" for f in files}
        _curves(axes[0, 0], held_out, losses, "o--")
        _curves(axes[0, 1], held_out, shares, "o--")
    axes[0, 0].set_ylabel(f"nats a comparison ({config.objective})")
    _curves(axes[0, 1], training, {"rewards/accuracies": "training"})
    axes[0, 1].axhline(0.5, color="0.7", linewidth=0.8)
    axes[0, 1].set_ylabel("share ordered as people do")
    if config.objective == "reward_model":
        names = {"rewards/chosen": "chosen", "rewards/rejected": "rejected"}
        axes[1, 0].set_ylabel("reward")
    else:
        names = {"logps/chosen": "chosen", "logps/rejected": "rejected"}
        axes[1, 0].set_ylabel("log-prob of a completion, nats")
    _curves(axes[1, 0], training, names)
    if any("kl" in row for row in held_out):
        names = {"kl": "KL(model || reference)", "kl_forward": "KL(reference || model)"}
        _curves(axes[1, 1], held_out, names, "o--")
        axes[1, 1].set_ylabel("nats a document")
    else:
        _curves(axes[1, 1], training, {"grad_norm": "norm of the gradient"})


def _rewards(
    config: Config, axes: Any, training: Sequence[Record], held_out: Sequence[Record]
) -> None:
    """Draws reward, KL, length and entropy of a run that learns from a reward."""
    files = sorted({name.split("/")[0] for row in held_out for name in row if "/" in name})
    shown = {"reward": "reward", "kl": "KL(model || reference), nats a completion"}
    shown |= {"completions/mean_length": "tokens of a completion"}
    for axis, (measure, label) in zip(axes.flat, shown.items(), strict=False):
        _curves(axis, training, {measure: "training"})
        _curves(axis, held_out, {f"{file}/{measure}": file for file in files}, "o--")
        axis.set_ylabel(label)
    _curves(axes[1, 1], training, {"entropy": "entropy of a token, nats"})
    axes[1, 1].set_ylabel(f"nats a token ({config.objective})")


def _curves(axis: Any, rows: Sequence[Record], names: dict[str, str], style: str = "-") -> None:
    for name, label in names.items():
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            axis.plot(*zip(*points, strict=True), style, label=label, markersize=4)
