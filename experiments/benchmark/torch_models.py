"""The language models of the timed work in eager PyTorch, with the members on the first axis."""

import abc

import numpy as np
import torch
import torch.nn.functional as F

from experiments.benchmark.config import Sizes

EOS = 0
Tensors = dict[str, torch.Tensor]
Cache = list[tuple[torch.Tensor, torch.Tensor]]


def device() -> torch.device:
    """Returns the GPU if PyTorch sees one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Model(abc.ABC):
    """A language model with stacked members: its parameters have the leading axis M."""

    @abc.abstractmethod
    def logits(self, params: Tensors, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the logits, tokens[B, T] -> logits[M, B, T, V]."""

    @abc.abstractmethod
    def sample(self, params: Tensors, count: int) -> torch.Tensor:
        """Draws documents from the first member: tokens[count, 1 + max_length]."""


class Table(Model):
    """A table with a vector of logits for every prefix."""

    def __init__(self, sizes: Sizes) -> None:
        self.max_length = sizes.max_length
        places = torch.arange(sizes.max_length, device=device())
        level_sizes = sizes.vocab_size**places
        self.starts = torch.cumsum(level_sizes, 0) - level_sizes
        # Column t holds the powers of V that turn tokens 1..t into the number of their prefix.
        powers = sizes.vocab_size ** (places[None, :] - places[:, None]).clamp(min=0)
        self.powers = torch.where(places[:, None] <= places[None, :], powers, 0)
        self.powers[0] = 0  # token 0 is the prompt

    def logits(self, params: Tensors, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the logits, tokens[B, T] -> logits[M, B, T, V]."""
        length = tokens.shape[-1]
        powers = self.powers[:length, :length]
        prefix = self.starts[:length] + (tokens[:, :, None] * powers).sum(1)
        return params["table"][:, 0, prefix]

    def sample(self, params: Tensors, count: int) -> torch.Tensor:
        """Draws documents from the first member: tokens[count, 1 + max_length]."""
        tokens = torch.zeros(count, 1, dtype=torch.long, device=device())
        for _ in range(self.max_length):
            tokens = append_token(tokens, self.logits(params, tokens)[0, :, -1])
        return tokens


class Transformer(Model):
    """A transformer with pre-norm blocks, learned positions, GELU and an untied head."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    def logits(self, params: Tensors, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the logits, tokens[B, T] -> logits[M, B, T, V]."""
        return self._forward(params, tokens, [])[0]

    def sample(self, params: Tensors, count: int) -> torch.Tensor:
        """Draws documents from the first member: tokens[count, 1 + max_length]."""
        tokens = torch.zeros(count, 1, dtype=torch.long, device=device())
        cache: Cache = []
        for _ in range(self.sizes.max_length):
            logits, cache = self._forward(params, tokens[:, -1:], cache)
            tokens = append_token(tokens, logits[0, :, -1])
        return tokens

    def _forward(
        self, params: Tensors, tokens: torch.Tensor, cache: Cache
    ) -> tuple[torch.Tensor, Cache]:
        start = cache[0][0].shape[-2] if cache else 0
        batch, length = tokens.shape
        x = params["token_embedding.embedding"][:, tokens]
        x = x + params["position_embedding.embedding"][:, None, start : start + length]
        members, width = x.shape[0], x.shape[-1]
        x = x.reshape(members, batch * length, width)
        heads = (members, batch, length, 3, self.sizes.num_heads, width // self.sizes.num_heads)
        grown: Cache = []
        for layer in range(self.sizes.num_layers):
            name = f"blocks.{layer}."
            y = dense(params, name + "qkv", norm(params, name + "attention_norm", x))
            query, key, value = y.view(heads).permute(3, 0, 1, 4, 2, 5)
            if cache:
                key = torch.cat([cache[layer][0], key], dim=-2)
                value = torch.cat([cache[layer][1], value], dim=-2)
            grown.append((key, value))
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=not cache)
            mixed = mixed.transpose(2, 3).reshape(members, batch * length, width)
            x = x + dense(params, name + "attention_out", mixed)
            y = dense(params, name + "mlp_in", norm(params, name + "mlp_norm", x))
            x = x + dense(params, name + "mlp_out", F.gelu(y, approximate="tanh"))
        logits = dense(params, "head", norm(params, "final_norm", x))
        return logits.view(members, batch, length, -1), grown


def dense(params: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    """Applies a linear layer, x[M, N, D] -> [M, N, E]."""
    return torch.baddbmm(params[name + ".bias"], x, params[name + ".kernel"])


def norm(params: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    """Applies layer normalisation to x[M, N, D]."""
    normed = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return torch.addcmul(params[name + ".bias"], normed, params[name + ".scale"])


def append_token(tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Appends a drawn token to documents, or EOS after an EOS."""
    drawn = torch.multinomial(torch.softmax(logits, dim=-1), 1)
    if tokens.shape[1] > 1:
        drawn = torch.where((tokens[:, 1:] == EOS).any(1, keepdim=True), EOS, drawn)
    return torch.cat([tokens, drawn], dim=1)


def response_mask(tokens: torch.Tensor) -> torch.Tensor:
    """Returns the mask of the response's tokens[N, T], EOS included."""
    ends = tokens == EOS
    ends[:, 0] = False
    mask = ends.cumsum(1) - ends.long() == 0
    mask[:, 0] = False
    return mask


def score(model: Model, params: Tensors, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the log-prob of documents tokens[N, T] under each member, `[M, N]`, nats."""
    log_probs = torch.log_softmax(model.logits(params, tokens[:, :-1]), dim=-1)
    targets = tokens[None, :, 1:, None].expand(log_probs.shape[0], -1, -1, 1)
    return (log_probs.gather(-1, targets)[..., 0] * mask[:, 1:]).sum(-1)


def make_model(sizes: Sizes) -> Model:
    """Returns the language model of a work."""
    return Table(sizes) if sizes.kind == "tabular" else Transformer(sizes)


def stack_params(sizes: Sizes, arrays: dict[str, np.ndarray]) -> Tensors:
    """Returns a model's arrays as tensors by name, with a leading axis of members, for `dense`.

    Args:
      sizes: the sizes.
      arrays: from `experiments.benchmark.work.named_arrays`, with or without a leading axis M.

    Returns:
      Tensors `[M, ...]`, with M = 1 if the arrays have no axis of members. The stacked layers
      become a tensor for each layer.
    """
    if "table" in arrays:
        table = torch.tensor(arrays["table"], device=device())
        return {"table": table if table.ndim == 4 else table[None]}
    has_members = arrays["head.bias"].ndim == 2
    tensors = {}
    for name, array in arrays.items():
        tensor = torch.tensor(array if has_members else array[None], device=device())
        if name.startswith("blocks."):
            for layer in range(sizes.num_layers):
                tensors[name.replace("blocks.", f"blocks.{layer}.")] = tensor[:, layer]
        else:
            tensors[name] = tensor
    return {name: _as_matrix(name, tensor, sizes) for name, tensor in tensors.items()}


def _as_matrix(name: str, tensor: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    """Returns a kernel as [M, in, out], a bias or scale as [M, 1, out]."""
    members = tensor.shape[0]
    if name.endswith(("bias", "scale")):
        return tensor.reshape(members, 1, -1).clone()
    if name.endswith("attention_out.kernel"):
        return tensor.reshape(members, sizes.width, -1).clone()
    if name.endswith("kernel"):
        return tensor.reshape(members, tensor.shape[1], -1).clone()
    return tensor.clone()
