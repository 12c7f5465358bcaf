"""`shatter generate`: samples responses to the prompts of a file."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from shatter import data, documents, models
from shatter.cli.common import binary, run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import weights_hash, with_chat_template
from shatter.cli.common.merged import Merged, load_merged
from shatter.cli.common.progress import open_console, progress_bar
from shatter.cli.common.sampling import Sampling, make_sampler, response_text
from shatter.data.atomic import write_atomically
from shatter.data.files import json_line, records
from shatter.data.layouts import Text, answers_of, parsed
from shatter.data.report import BadRow, Problem, raw_text

EXAMPLE = (
    "shatter generate --model_name_or_path=runs/finetune/model --prompts=prompts.jsonl "
    "--output_dir=runs/generate"
)
RESPONSES = "generations.jsonl"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sample responses to the prompts of a file from a model folder.

    Writes generations.jsonl, a line for every prompt: the prompt, its completions, the log-prob of
    each. Such a file is a pool of candidates for `shatter label`. The same command resumes a run
    that was killed.
    """

    model_name_or_path: str = ""
    """Required. Folder of a model or of adapters, a GGUF file, or a name on the Hugging Face
    hub."""

    prompts: str = ""
    """Required. File of prompts (.jsonl, .jsonl.gz, .parquet): {"prompt": text or conversation}.
    Other fields are ignored."""

    output_dir: str = "runs/generate"
    """Run folder: config.json and generations.jsonl."""

    model_revision: str | None = None
    """Branch, tag or commit of a model on the hub."""

    base_model: str = ""
    """Base of a folder of adapters, where its adapter_config.json names none."""

    chat_template: str | None = None
    """File with a jinja chat template, where prompts are conversations and the tokenizer has
    none."""

    num_generations: int = 1
    """Responses to every prompt."""

    max_completion_length: int = 128
    """Largest number of tokens of a response."""

    temperature: float = 1.0
    """Divides the logits of every token."""

    top_k: int | None = None
    """Draw among the k likeliest tokens; 1 = greedy decoding. All if not given."""

    top_p: float | None = None
    """Draw among the smallest set of tokens with this mass. All if not given."""

    min_p: float | None = None
    """Draw among the tokens of at least this share of the largest probability. All if not given."""

    batch_size: int = 8
    """Prompts that are sampled at once. It changes the speed only: every prompt has its own key."""

    bf16: bool = False
    """Compute in bfloat16."""

    seed: int = 0
    """Root of all random keys."""


FLAGS = Config

RANGES = {
    "num_generations": binary.whole(1, 2**10),
    "max_completion_length": binary.whole(1, 2**20),
    "temperature": binary.POSITIVE,
    "top_k": binary.whole(1, other=(None,)),
    "top_p": binary.Range(0, 1, above=True, other=(None,)),
    "min_p": binary.Range(0, 1, other=(None,)),
    "batch_size": binary.whole(1, 2**16),
    "seed": binary.whole(0),
}
"""The values that each numeric flag may take."""

NOT_THE_RUN = ("output_dir", "model_name_or_path", "prompts", "base_model", "batch_size")
"""Flags that may differ when a run is resumed; the weights and prompts are compared by hashes."""


class Prompt(NamedTuple):
    """A prompt as it was read and as tokens."""

    text: Text
    tokens: list[int]


def check(config: Config) -> None:
    """Raises an error for a value that cannot be used.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.check_texts(config)
    binary.require(config, ("model_name_or_path", "prompts"), EXAMPLE)
    binary.check_ranges(config, RANGES)


def experiment(config: Config) -> None:
    """Samples responses to all prompts and says where they are."""
    check(config)
    console = open_console()
    model, tokenizer = _open_model(config)
    prompts = read_prompts(config, model, tokenizer)
    facts = {"weights": weights_hash(model.params), "prompts_sha256": _hash(prompts)}
    with run_folder.open_run_folder(
        config.output_dir, config, free=NOT_THE_RUN, flag="--output_dir", **facts
    ) as folder:
        file = folder / RESPONSES
        done = _finished(file, prompts)
        with progress_bar(console, len(prompts)) as advance, file.open("ab") as output:
            advance("sampling", done)
            for record in generate(config, model, tokenizer, prompts, first=done):
                output.write(json_line(record))
                output.flush()
                advance("sampling", 1)
    console.print(
        f"{len(prompts)} prompts, {config.num_generations} responses to each. Results in {file}"
    )


def _open_model(config: Config) -> tuple[Merged, models.Tokenizer]:
    model = load_merged(
        config.model_name_or_path,
        revision=config.model_revision,
        base=config.base_model,
        dtype="bfloat16" if config.bf16 else "float32",
    )
    if (tokenizer := model.tokenizer) is None:
        raise UsageError(
            f"{config.model_name_or_path} has no tokenizer.json: put that of the model beside its "
            "config.json"
        )
    if config.chat_template is not None:
        tokenizer = with_chat_template(tokenizer, config.chat_template)
    most = model.config.max_length - 1  # a prompt has at least one token
    if config.max_completion_length > most:
        raise UsageError(
            f"--max_completion_length must be at most {most}, because {config.model_name_or_path} "
            f"has {most + 1} positions, found {config.max_completion_length}"
        )
    if config.bf16:
        settings = dataclasses.replace(model.config, dtype="bfloat16")
        model = model._replace(config=settings)
    return model, tokenizer


def read_prompts(config: Config, model: Merged, tokenizer: models.Tokenizer) -> list[Prompt]:
    """Reads and encodes the prompts of a file; long ones lose their beginning.

    Raises:
      UsageError: naming the file, the line and what is wrong with it.
    """
    file, blank = config.prompts, {"role": "assistant", "content": "."}
    if not Path(file).is_file():
        raise UsageError(f"--prompts: no file {file}. Pass a file of prompts, JSON lines")
    positions = model.config.max_length
    longest, bos = positions - config.max_completion_length, tokenizer.bos
    prompts = []
    try:
        for number, raw in records(file):
            source = f"{file}:{number}"
            try:
                record = parsed(raw)
                if "prompt" not in record:
                    raise BadRow("prompt", "a text or a conversation", "no such field")
                completion = "." if isinstance(record["prompt"], str) else [blank]
                row = answers_of({"prompt": record["prompt"], "completion": completion})
            except BadRow as error:
                raise UsageError(str(Problem(source, raw_text(raw), *error.args))) from error
            whole = data.Row(row.prompt, row.completions, (0,), source=source)
            encoded = data.encode_rows([whole], tokenizer, max_length=positions)[0][0]
            ids = data.truncate_prompt(
                encoded.prompt, longest, bos=tokenizer.eos if bos is None else bos
            )
            prompts.append(Prompt(row.prompt, [int(token) for token in ids]))
    except (UsageError, OSError, ValueError, ImportError, RecursionError) as error:
        raise UsageError(f"--prompts: {error}") from error
    if not prompts:
        raise UsageError(f"--prompts: {file}: expected prompts, found no line")
    return prompts


def generate(
    config: Config,
    model: Merged,
    tokenizer: models.Tokenizer,
    prompts: Sequence[Prompt],
    *,
    first: int = 0,
) -> Iterator[dict[str, Any]]:
    """Samples responses batch by batch.

    Args:
      config: the config.
      model: the model.
      tokenizer: its tokenizer.
      prompts: all prompts.
      first: the number of the first prompt to sample for.

    Yields:
      A record for every prompt. log_probs: under the model itself; drawn_log_probs: under the law
      that was drawn from (temperature and filters); both summed over the response's tokens, nats.
      num_tokens: with the token that ends a response; finished: whether it has one.
    """
    ends = models.end_tokens(model.config, tokenizer)
    sampling = Sampling(
        config.num_generations,
        config.max_completion_length,
        ends,
        config.temperature,
        config.top_k,
        config.top_p,
        config.min_p,
    )
    sampler, root = make_sampler(model.config, sampling), jax.random.key(config.seed)
    for start in range(first, len(prompts), config.batch_size):
        numbers = range(start, start + config.batch_size)  # past the end the last prompt repeats
        batch = [prompts[min(n, len(prompts) - 1)] for n in numbers]
        tokens, valid = documents.pad_prompts([prompt.tokens for prompt in batch])
        keys = jax.vmap(lambda n: jax.random.fold_in(root, n))(jnp.asarray(numbers))
        samples = sampler(model.params, keys, jnp.asarray(tokens), jnp.asarray(valid))
        samples = jax.device_get(samples)
        for n, prompt in enumerate(batch[: len(prompts) - start]):
            yield _record(tokenizer, prompt, jax.tree.map(lambda leaf, n=n: leaf[n], samples), ends)


def _record(
    tokenizer: models.Tokenizer, prompt: Prompt, samples: documents.Samples, ends: tuple[int, ...]
) -> dict[str, Any]:
    responses = [t[m].tolist() for t, m in zip(samples.tokens, samples.mask, strict=True)]
    finished = [response[-1] in ends for response in responses]
    texts = [
        response_text(tokenizer.decode, prompt.tokens, response[:-1] if ended else response)
        for response, ended in zip(responses, finished, strict=True)
    ]
    is_text = isinstance(prompt.text, str)
    return {
        "prompt": prompt.text,
        "completions": [t if is_text else [{"role": "assistant", "content": t}] for t in texts],
        "log_probs": [float(value) for value in samples.raw_log_probs],
        "drawn_log_probs": [float(value) for value in samples.log_probs],
        "num_tokens": [len(response) for response in responses],
        "finished": finished,
    }


def _finished(file: Path, prompts: Sequence[Prompt]) -> int:
    """Returns how many prompts an earlier run has answered; cuts off a line that is not whole."""
    if not file.exists():
        return 0
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.splitlines()
    for number, (line, prompt) in enumerate(zip(lines, prompts, strict=False), start=1):
        try:
            is_same = json.loads(line)["prompt"] == json.loads(json.dumps(prompt.text))
        except (ValueError, KeyError, TypeError):
            is_same = False
        if not is_same:
            raise UsageError(
                f"{file}:{number} is damaged, it is no response to prompt {number}: delete the "
                "file, and the run makes it anew"
            )
    if len(lines) > len(prompts):
        raise UsageError(
            f"{file} has {len(lines)} lines for {len(prompts)} prompts: delete it, and the run "
            "makes it anew"
        )
    if whole != content:
        write_atomically(file, whole)
    return len(lines)


def _hash(prompts: Sequence[Prompt]) -> str:
    return hashlib.sha256(json.dumps([prompt.tokens for prompt in prompts]).encode()).hexdigest()
