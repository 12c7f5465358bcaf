"""The same steps and the same generation by TRL, transformers and eager PyTorch, all optional."""

import importlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmark.config import Gpt2
from experiments.benchmark.finetune import (
    BETA,
    EOS,
    LEARNING_RATE,
    Batch,
    Trainer,
    draw_pairs,
    transformer_config,
)
from experiments.benchmark.ways import Way
from shatter import models
from shatter.types import Params


def model(sizes: Gpt2, params: Params, folder: str | None = None) -> Any:
    """Loads our weights as a model of transformers, on the GPU if there is one.

    Args:
      sizes: the sizes.
      params: our weights.
      folder: the folder in which they are saved first; None = a temporary one.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as folder:
            return model(sizes, params, folder)
    import torch

    transformers = module("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if sizes.folder is None:
        models.save_pretrained(folder, transformer_config(sizes), params)
    source = folder if sizes.folder is None else sizes.folder
    loaded = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def torch_trainer(sizes: Gpt2, objective: str, params: Params, batch: Batch) -> Trainer:
    """Returns a plain PyTorch loop: transformers' model, our own loss, fused AdamW, no metrics."""
    import torch
    import torch.nn.functional as F

    net = model(sizes, params)
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=0.0, fused=True)
    tokens, mask, ref = (torch.tensor(np.asarray(array)).to(net.device) for array in batch)
    tokens = tokens.long()
    attention = torch.ones_like(tokens)
    beta, offset = _beta_and_reference(objective, ref)

    def step() -> Any:
        with torch.autocast(net.device.type, torch.bfloat16, enabled=sizes.half):
            logits = net(input_ids=tokens, attention_mask=attention, use_cache=False).logits
        logits = logits[:, :-1].float()
        each = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        chosen, rejected = ((each * mask[:, 1:]).sum(1) - offset).chunk(2)
        loss = -F.logsigmoid(beta * (chosen - rejected)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return Trainer("PyTorch", step, wait)


def trl_trainer(
    sizes: Gpt2,
    objective: str,
    params: Params,
    batch: Batch,
    seed: int,
    *,
    precompute: bool = True,
    learning_rate: float | None = None,
    peft_config: Any = None,
    prepare: Callable[[Any], None] = lambda net: None,
) -> Trainer:
    """Returns TRL's DPOTrainer: its `training_step`, then the step of its optimiser.

    ILHF without a regulariser is DPO with beta 1 and reference log-probs of 0. To give the same
    numbers as ours it runs in float32 without gradient checkpointing, clipping and dropout. The
    data loader, the schedule and the log of `DPOTrainer.train` are left out.

    Args:
      sizes: the sizes.
      objective: "dpo" or "ilhf".
      params: our weights.
      batch: our batch; TRL's own collator must produce the same tokens.
      seed: seed of the pairs.
      precompute: whether the reference's log-probs are computed once; by default TRL runs the
        reference in every step.
      learning_rate: of AdamW; None = `LEARNING_RATE`.
      peft_config: peft's configuration of adapters, which are then trained alone.
      prepare: called with the model before the first step.

    Raises:
      ValueError: if TRL's batch differs from ours.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import torch

    datasets, trl = module("datasets"), module("trl")
    datasets.disable_progress_bars()
    write = lambda tokens: "".join(f"<{token}>" for token in tokens)
    rows = [
        {"prompt": write(prompt), "chosen": write(chosen), "rejected": write(rejected)}
        for prompt, chosen, rejected in draw_pairs(sizes, seed)
    ]
    with tempfile.TemporaryDirectory() as folder:
        net = model(sizes, params, folder)  # TRL loads its reference from the same folder
        args = trl.DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=sizes.num_pairs,
            max_length=sizes.length,
            learning_rate=LEARNING_RATE if learning_rate is None else learning_rate,
            weight_decay=0.0,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            beta=BETA if objective == "dpo" else 1.0,
            precompute_ref_log_probs=precompute,
            bf16=sizes.half,
            gradient_checkpointing=False,
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        made = trl.DPOTrainer(
            model=net,
            args=args,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=_tokenizer(sizes),
            peft_config=peft_config,
        )
    prepare(made.model)
    made.create_optimizer()
    made.current_gradient_accumulation_steps = 1  # which `train` would set
    inputs = made.data_collator([made.train_dataset[row] for row in range(sizes.num_pairs)])
    same = np.array_equal(inputs["input_ids"].numpy(), np.asarray(batch.tokens))
    if not same or not np.array_equal(inputs["completion_mask"].numpy() > 0, batch.mask):
        raise ValueError(
            "expected TRL's batch to equal ours, found other tokens or another mask: its "
            "tokenisation or collator has changed; compare with the pinned version of trl"
        )
    if objective != "dpo":
        for side in ("ref_chosen_logps", "ref_rejected_logps"):
            inputs[side] = torch.zeros_like(inputs[side])
    made.model.train()

    def step() -> Any:
        loss = made.training_step(made.model, inputs, None)
        made.optimizer.step()
        made.optimizer.zero_grad()
        return loss

    return Trainer("TRL" if precompute else "TRL, reference every step", step, wait)


def scorer(
    sizes: Gpt2, params: Params, tokens: np.ndarray, texts_at_once: int
) -> Callable[[], np.ndarray]:
    """Returns the function that scores texts: the log-probs of all their tokens but the first.

    Args:
      sizes: the sizes.
      params: our weights.
      tokens: int `[N, T]`.
      texts_at_once: the size of a batch.
    """
    import torch

    net = model(sizes, params)
    batches = torch.tensor(tokens).to(net.device).split(texts_at_once)

    def score() -> np.ndarray:
        scores = []
        with torch.inference_mode():
            for batch in batches:
                logits = net(input_ids=batch, use_cache=False).logits[:, :-1].float()
                each = logits.log_softmax(-1).gather(-1, batch[:, 1:, None])[..., 0]
                scores.append(each.sum(1))
        return torch.cat(scores).cpu().numpy()

    return score


def generation_way(sizes: Gpt2, params: Params, prompts: np.ndarray) -> Way:
    """Returns the way of transformers' `generate`, which samples all tokens at temperature 1."""
    generate = _generate(sizes, model(sizes, params), prompts, do_sample=True, top_k=0)

    def run() -> None:
        generate()
        wait(None)

    return Way("transformers", run, sizes.num_samples * sizes.num_new_tokens)


def greedy(sizes: Gpt2, params: Params, prompts: np.ndarray) -> np.ndarray:
    """Returns the likeliest continuations, `[num_samples, P + num_new_tokens]`."""
    return _generate(sizes, model(sizes, params), prompts, do_sample=False)().cpu().numpy()


def _generate(sizes: Gpt2, net: Any, prompts: np.ndarray, **options: Any) -> Any:
    import torch

    tokens = torch.tensor(prompts).to(net.device)
    net.generation_config.eos_token_id = None  # so that no response ends early
    if sizes.half:
        net = net.to(torch.bfloat16)

    def generate() -> Any:
        return net.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=sizes.num_new_tokens,
            pad_token_id=EOS,
            **options,
        )

    return generate


def _beta_and_reference(objective: str, ref: Any) -> tuple[float, Any]:
    return (BETA, ref) if objective == "dpo" else (1.0, 0.0 * ref)


def _tokenizer(sizes: Gpt2) -> Any:
    """Returns a tokeniser with the word `<i>` for token i."""
    tokenizers = module("tokenizers")
    words = {f"<{token}>": token for token in range(sizes.vocab_size)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=f"<{EOS}>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"<\d+>"), "isolated")
    return module("transformers").PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=f"<{EOS}>", pad_token=f"<{EOS}>"
    )


def module(name: str) -> Any:
    """Imports an optional module, untyped, by its name."""
    return importlib.import_module(name)


def wait(loss: Any) -> None:
    """Waits until the GPU, if there is one, has computed all that was asked of it."""
    del loss
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def resident_peak() -> int:
    """Returns the peak resident bytes of this process.

    `getrusage` would include the memory of the parent at the fork.

    Raises:
      OSError: if the kernel does not report it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(
        "expected a line VmHWM in /proc/self/status, found none: this kernel does not report the "
        "peak memory of a process"
    )
