"""`python -m experiments.judgements.writing`: what fine-tuned models still know of writing.

Folders of runs of `shatter finetune` or of `experiments.judgements.run` are read: their held-out
log-loss and divergences from summary.json, and their models, by which the texts of a file and
samples of the pretrained model are scored.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from experiments.common.sources import model_folder
from shatter import data, documents, models
from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.common.compiling import compiler_options
from shatter.cli.common.frozen import Frozen, load_frozen
from shatter.cli.common.merged import load_merged
from shatter.cli.common.progress import open_console
from shatter.cli.finetune.results import read_summary
from shatter.types import Array, Params

_AT_ONCE = 32  # texts


@dataclasses.dataclass(frozen=True)
class Config:
    """Can models that were fine-tuned on judgements still write?

    A table with a row for each run: how well it predicts held-out comparisons, how far it is from
    the pretrained model, and the perplexity of texts of a file and of the pretrained model's own.
    """

    runs: tuple[str, ...] = ()
    """Required. Run folders that are complete."""

    text: str = ""
    """Required. A file of texts, separated by blank lines."""

    model_name_or_path: str = "stories260k"
    """The pretrained model of the runs: a folder, a GGUF file or a name on the hub. "stories260k"
    is the folder of that name in the data folder; "smollm2-135m" is SmolLM2-135M-Instruct."""

    data_dir: str = ""
    """Folder with stories260k; SHATTER_DATA_DIR if not given."""

    num_texts: int = 256
    """Texts of the file, at equal distances in it, and samples of the pretrained model."""

    max_length: int = 64
    """Largest number of tokens of a text; longer ones are cut, and samples end there."""

    seed: int = 0
    """Seed of the samples."""


def experiment(config: Config) -> None:
    """Scores the texts by the pretrained model and by every run's model; prints the table."""
    binary.require(config, ("runs", "text"), "--runs RUN_FOLDER ... --text=FILE")
    binary.at_least(config, num_texts=1, max_length=3, seed=0)
    base = load_frozen(model_folder(config.model_name_or_path, config.data_dir))
    if config.max_length > base.config.max_length:
        raise UsageError(
            f"--max_length must be at most {base.config.max_length}, the model's positions, found "
            f"{config.max_length}"
        )
    program = jax.jit(
        partial(documents.document_log_probs, models.transformer(base.config)),
        compiler_options=compiler_options(),
    )
    file = _encoded(config, base, _pieces(config))
    own = _own_texts(config, base)
    table = Table(title=f"perplexity of a token of {len(file[0])} texts of {config.text}, and own")
    for title in ("run", "known", "new", "KL(pi || p0)", "KL(p0 || pi)", "file", "own"):
        table.add_column(title, justify="left" if title == "run" else "right")
    score = partial(_perplexity, program)
    table.add_row("pretrained", "", "", "", "", *(score(base.params, t) for t in (file, own)))
    for run in config.runs:
        after = read_summary(Path(run) / "summary.json")["after"]
        params = load_merged(f"{run}/model", dtype="float32").params
        names = ("eval_known/log_loss", "eval_new/log_loss", "kl", "kl_forward")
        measures = [f"{after[name]:.4g}" if name in after else "" for name in names]
        table.add_row(run, *measures, *(score(params, texts) for texts in (file, own)))
    open_console().print(table)


def _pieces(config: Config) -> list[str]:
    """Returns texts of the file, at equal distances."""
    try:
        parts = Path(config.text).read_text(encoding="utf-8").split("\n\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--text={config.text} cannot be read: {error}") from error
    texts = [text for part in parts if (text := part.strip())]
    if not texts:
        raise UsageError(f"--text={config.text}: expected texts, found none")
    places = np.linspace(0, len(texts) - 1, min(config.num_texts, len(texts))).astype(int)
    return [texts[place] for place in places]


def _encoded(config: Config, base: Frozen, texts: Sequence[str]) -> tuple[Any, Any, Any]:
    """Returns texts as tokens, masks and valid tokens, each `[N, T]`."""
    rows = [data.Row("", (text,), (0,)) for text in texts]
    encoded, _ = data.encode_rows(rows, base.tokenizer, max_length=config.max_length)
    batch = data.collate(encoded, list(range(len(rows))), length=config.max_length, num_slots=1)
    return batch.tokens[:, 0], batch.mask[:, 0], batch.valid[:, 0]


def _own_texts(config: Config, base: Frozen) -> tuple[Array, Array, Array]:
    """Returns samples of the pretrained model, from its BOS on."""
    first = base.tokenizer.eos if base.tokenizer.bos is None else base.tokenizer.bos
    sample = partial(
        documents.sample,
        models.transformer(base.config),
        num_samples=config.num_texts,
        max_length=config.max_length - 1,
        eos=models.end_tokens(base.config, base.tokenizer),
    )
    drawn = jax.jit(sample, compiler_options=compiler_options())(
        base.params, jax.random.key(config.seed), jnp.asarray([first])
    )
    return drawn.tokens, drawn.mask, drawn.mask.at[:, 0].set(True)


def _perplexity(program: Callable[..., Array], params: Params, texts: tuple[Any, Any, Any]) -> str:
    """Returns the perplexity of a token of the texts."""
    total = 0.0
    for first in range(0, len(texts[0]), _AT_ONCE):
        tokens, mask, valid = (part[first : first + _AT_ONCE] for part in texts)
        total += float(jnp.sum(program(params, tokens, mask, valid=valid)))
    return f"{np.exp(-total / np.sum(texts[1])):.4g}"


if __name__ == "__main__":
    binary.main(Config, experiment)
