"""What was learned, for other tools: answers as preferences, a member or the mean as a model."""

from pathlib import Path

import jax

from experiments.common.binary import UsageError
from experiments.label.config import Export, setting_of
from experiments.label.learn import standing_answers
from experiments.label.project import Bench
from shatter import data, ensembles, models


def export(bench: Bench, config: Export) -> list[str]:
    """Writes what is asked for; existing files and folders are refused.

    Args:
      bench: the project.
      config: the flags.

    Returns:
      What was written, a line each.

    Raises:
      UsageError: if nothing is asked for, it exists already, or there is no such model.
    """
    if not config.answers and not config.model:
        raise UsageError("expected --answers=FILE.jsonl or --model=FOLDER, found neither")
    said = []
    for path in (config.answers, config.model):
        if path and Path(path).exists():
            raise UsageError(f"{path} exists: choose another name")
    if config.answers:
        rows = answer_rows(bench.folder)
        try:
            data.write_rows(config.answers, rows)
        except ValueError as error:
            raise UsageError(f"--answers: {error}") from error
        said.append(f"{config.answers}: {len(rows):,} answers")
    if config.model:
        said.append(_export_model(bench, config))
    return said


def answer_rows(folder: Path) -> list[data.Row]:
    """The answers that stand, as rows of preferences, each with its annotator."""
    queries, answers = standing_answers(folder)
    return [
        data.Row(
            queries[answer.query_id].prompt,
            queries[answer.query_id].completions,
            answer.ranks,
            answer.weight,
            answer.annotator,
            source=answer.source,
        )
        for answer in answers
    ]


def _export_model(bench: Bench, config: Export) -> str:
    setting, num = setting_of(bench.config), bench.config.num_members
    if setting.kind != "adapters":
        raise UsageError(
            f"--model: members of {setting.kind} are scores on a frozen model, no language models: "
            "use --ensemble=adapters, or --answers and experiments.finetune"
        )
    if not -1 <= config.member < num:
        raise UsageError(f"--member must be in [-1, {num}), found {config.member}")
    own, lora = bench.ensemble.members.states.params, setting.lora
    if config.member < 0:
        adapters, lora = ensembles.mean_adapters(own, lora)
    else:
        adapters = jax.tree.map(lambda leaf: leaf[config.member], own)
    transformer = bench.inputs.model.config
    layer = transformer.num_layers - max(setting.adapted_layers, 1)
    whole = ensembles.whole_adapters(adapters, layer)
    params = models.merge_lora(bench.inputs.model.params, whole, lora)
    models.save_pretrained(config.model, transformer, params, bench.inputs.model.tokenizer)
    name = "the mean of all members" if config.member < 0 else f"member {config.member}"
    num_answers = bench.ensemble.history[-1]["answers"] if bench.ensemble.history else 0
    return f"{config.model}: {name}, after {num_answers} answers"
