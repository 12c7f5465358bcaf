"""The same rounds in eager PyTorch, written for speed without a compiler.

Members are stacked on the first axis, so that a step is one call for all of them (`baddbmm`). A
Python loop over members and `torch.func.vmap` would both dispatch more operations. The gradients
are those of the members' summed losses, the optimiser is `torch.optim.Adam(fused=True)`, and
sampling has a key-value cache. This module does not import jax:
`python -m experiments.benchmark.torch_loop FILE` prints the peak memory of a run in a process of
its own.
"""

import dataclasses
import json
import resource
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from experiments.benchmark.config import Sizes
from experiments.benchmark.torch_models import (
    Model,
    Tensors,
    device,
    make_model,
    response_mask,
    score,
    stack_params,
)


class Answers(NamedTuple):
    """The raters' answers about pairs.

    Attributes:
      tokens: `[B, 2, T]`.
      mask: bool `[B, 2, T]`.
      chosen: `[B]`, 0 or 1.
      weights: `[M, B]`, each member's own weight of every answer.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    chosen: torch.Tensor
    weights: torch.Tensor


class Learner:
    """Anchored members and their optimiser."""

    def __init__(self, sizes: Sizes, members: Tensors) -> None:
        self.sizes, self.model = sizes, make_model(sizes)
        self.anchors = {name: value.clone() for name, value in members.items()}
        self.params = {name: value.requires_grad_() for name, value in members.items()}
        self.optimizer = torch.optim.Adam(self.params.values(), lr=sizes.learning_rate, fused=True)

    def learn(self, answers: Answers) -> torch.Tensor:
        """Takes steps on all answers so far, or on batches of them; returns the last mean loss."""
        observed = answers.chosen.shape[0]
        loss = torch.zeros(())
        for _ in range(self.sizes.num_steps):
            batch, fraction = answers, 1.0
            if self.sizes.batch_size is not None:
                rows = torch.randint(observed, (self.sizes.batch_size,), device=device())
                batch = Answers(
                    answers.tokens[rows],
                    answers.mask[rows],
                    answers.chosen[rows],
                    answers.weights[:, rows],
                )
                fraction = self.sizes.batch_size / observed
            losses = (batch.weights * self._choice_loss(batch)).sum(1) / fraction + self._penalty()
            self.optimizer.zero_grad(set_to_none=True)
            (losses.sum() / observed).backward()
            self.optimizer.step()
            loss = losses.detach().mean() / observed
        return loss

    def _choice_loss(self, batch: Answers) -> torch.Tensor:
        tokens, mask = batch.tokens.flatten(0, 1), batch.mask.flatten(0, 1)
        log_probs = score(self.model, self.params, tokens, mask).unflatten(1, (-1, 2))
        margin = log_probs[..., 0] - log_probs[..., 1]
        return -F.logsigmoid(torch.where(batch.chosen == 0, margin, -margin))

    def _penalty(self) -> torch.Tensor:
        squares = [
            (value - self.anchors[name]).square().flatten(1).sum(1)
            for name, value in self.params.items()
        ]
        return torch.stack(squares).sum(0) / (2.0 * self.sizes.prior_scale**2)


def run(sizes: Sizes, arrays: dict[str, np.ndarray], likings: np.ndarray, seed: int) -> np.ndarray:
    """Runs all rounds of one seed.

    Args:
      sizes: the sizes.
      arrays: the pretrained model's parameters by name.
      likings: `[V]`, the raters' utility of each token, nats.
      seed: seeds PyTorch's generator.

    Returns:
      The loss after each round, `[num_rounds]`.
    """
    torch.manual_seed(seed)
    pretrained = stack_params(sizes, arrays)
    likes = torch.tensor(likings, device=device())
    members = {
        name: value
        + sizes.prior_scale * torch.randn_like(value.expand(sizes.num_members, *value.shape[1:]))
        for name, value in pretrained.items()
    }
    learner, model = Learner(sizes, members), make_model(sizes)
    answers: Answers | None = None
    losses = []
    for _ in range(sizes.num_rounds):
        with torch.no_grad():
            new = _ask(sizes, model, pretrained, learner.params, likes)
        answers = new if answers is None else _join(answers, new)
        losses.append(learner.learn(answers))
    return torch.stack(losses).cpu().numpy()


def _join(old: Answers, new: Answers) -> Answers:
    return Answers(
        torch.cat([old.tokens, new.tokens]),
        torch.cat([old.mask, new.mask]),
        torch.cat([old.chosen, new.chosen]),
        torch.cat([old.weights, new.weights], dim=1),
    )


def _ask(
    sizes: Sizes, model: Model, pretrained: Tensors, members: Tensors, likings: torch.Tensor
) -> Answers:
    """Draws candidates, chooses pairs among them, and draws the answers and their weights."""
    queries, count = sizes.num_queries, sizes.num_candidates
    tokens = model.sample(pretrained, queries * count)
    mask = response_mask(tokens)
    log_probs = score(model, members, tokens, mask).unflatten(1, (queries, count))
    tokens, mask = tokens.unflatten(0, (queries, count)), mask.unflatten(0, (queries, count))
    pairs = infomax(log_probs, first_appearances(tokens))
    index = pairs[:, :, None].expand(-1, -1, tokens.shape[-1])
    tokens, mask = tokens.gather(1, index), mask.gather(1, index)
    utilities = (likings[tokens] * mask).sum(-1)
    second = torch.sigmoid(utilities[:, 1] - utilities[:, 0])
    chosen = torch.bernoulli(second).long()
    weights = torch.empty(sizes.num_members, queries, device=device()).exponential_()
    return Answers(tokens, mask, chosen, weights)


def infomax(log_probs: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Returns the pair with the largest information gain, `[Q, 2]`.

    Args:
      log_probs: `[M, Q, N]`, each member's log-probs of the candidates, nats.
      valid: bool `[Q, N]`, false on candidates that may not be chosen.
    """
    log_odds = log_probs[..., :, None] - log_probs[..., None, :]
    log_p, log_not_p = F.logsigmoid(log_odds), F.logsigmoid(-log_odds)
    log_members = float(np.log(len(log_probs)))
    surprise = log_p.exp() * (log_p - (log_p.logsumexp(0) - log_members))
    surprise = surprise + log_not_p.exp() * (log_not_p - (log_not_p.logsumexp(0) - log_members))
    count = valid.shape[1]
    allowed = valid[:, :, None] & valid[:, None, :]
    allowed = allowed & ~torch.eye(count, dtype=torch.bool, device=valid.device)
    gain = surprise.mean(0).masked_fill(~allowed, -torch.inf)
    best = gain.flatten(1).argmax(1)
    return torch.stack([best // count, best % count], dim=1)


def first_appearances(tokens: torch.Tensor) -> torch.Tensor:
    """Returns which of tokens[Q, N, T] do not repeat an earlier document, bool[Q, N]."""
    same = (tokens[:, :, None] == tokens[:, None, :]).all(-1)
    return ~same.tril(-1).any(-1)


def save_inputs(
    file: Path, sizes: Sizes, arrays: dict[str, np.ndarray], likings: np.ndarray
) -> None:
    """Writes the file that `peak_bytes` reads."""
    with file.open("wb") as opened:
        spec = np.asarray(json.dumps(dataclasses.asdict(sizes)))
        np.savez(opened, sizes=spec, likings=likings, **arrays)  # type: ignore[arg-type]


def peak_bytes(file: Path) -> int:
    """Returns the peak memory of one run: on the GPU, or the growth of resident memory.

    Args:
      file: a file that `save_inputs` wrote.
    """
    with np.load(file) as inputs:
        arrays = {name: inputs[name] for name in inputs.files}
    likings, spec = arrays.pop("likings"), json.loads(str(arrays.pop("sizes")))
    before = _resident_peak()
    run(Sizes(**spec), arrays, likings, 0)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _resident_peak() - before


def _resident_peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    print(peak_bytes(Path(sys.argv[1])))
