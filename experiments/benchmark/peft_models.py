"""The same adapters by peft, on the model of transformers; both are optional."""

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmark import finetune, peers
from experiments.benchmark.config import Gpt2
from experiments.benchmark.finetune import Batch, Trainer
from experiments.benchmark.lora import LEARNING_RATE, Adapted, MembersTrainer, readout
from shatter import ensembles, models
from shatter.types import Params


def trl_trainer(sizes: Gpt2, params: Params, batch: Batch, adapted: Adapted, seed: int) -> Trainer:
    """Returns TRL's DPOTrainer of peft's adapters, with reference log-probs computed once."""
    made = peers.trl_trainer(
        sizes,
        "dpo",
        params,
        batch,
        seed,
        learning_rate=LEARNING_RATE,
        peft_config=adapter_config(sizes, adapted),
        prepare=lambda net: set_adapters(net, sizes, adapted, adapted.adapters, "default"),
    )
    return made._replace(name="TRL + peft")


def members_trainer(
    sizes: Gpt2, params: Params, batch: Batch, adapted: Adapted, name: str
) -> MembersTrainer:
    """Returns a loop over the members, each an adapter that is made the active one in turn.

    That is how rewarduq trains an ensemble of adapters. The optimiser is the fused AdamW.
    """
    import torch
    import torch.nn.functional as F

    net = peers.model(sizes, params)
    num_members = len(jax.tree.leaves(adapted.adapters)[0])
    names = [f"member{i}" for i in range(num_members)]
    adapted_net = peers.module("peft").get_peft_model(net, adapter_config(sizes, adapted), names[0])
    for i, member in enumerate(names):
        if i > 0:
            adapted_net.add_adapter(member, adapter_config(sizes, adapted))
        own = jax.tree.map(lambda leaf, i=i: leaf[i], adapted.adapters)
        set_adapters(adapted_net, sizes, adapted, own, member)
    own = [p for path, p in adapted_net.named_parameters() if "lora_" in path]
    optimizer = torch.optim.AdamW(own, LEARNING_RATE, weight_decay=0.0, fused=True)
    tokens = torch.tensor(np.asarray(batch.tokens)).long()
    attention, weights = torch.ones_like(tokens), torch.tensor(readout(sizes.width))
    backbone = net.base_model

    def step() -> np.ndarray:
        values = []
        for member in names:
            adapted_net.set_adapter(member)
            hidden = backbone(input_ids=tokens, attention_mask=attention, use_cache=False)
            chosen, rejected = (hidden.last_hidden_state[:, -1] @ weights).chunk(2)
            loss = -F.logsigmoid(chosen - rejected).mean()
            loss.backward()
            values.append(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
        return torch.stack(values).numpy()

    return MembersTrainer(name, step)


def adapter_config(sizes: Gpt2, adapted: Adapted) -> Any:
    """Returns peft's configuration of the adapters."""
    transformer = finetune.transformer_config(sizes)
    with tempfile.TemporaryDirectory() as folder:
        models.save_lora(folder, transformer, _drawn(sizes, adapted), adapted.lora)
        config = peers.module("peft").LoraConfig.from_pretrained(folder)
    config.layers_to_transform = list(range(adapted.layer, sizes.num_layers))
    config.inference_mode = False
    return config


def set_adapters(net: Any, sizes: Gpt2, adapted: Adapted, adapters: Params, name: str) -> None:
    """Gives an adapter of a model of peft our values."""
    peft = peers.module("peft")
    with tempfile.TemporaryDirectory() as folder:
        whole = ensembles.whole_adapters(adapters, adapted.layer)
        models.save_lora(folder, finetune.transformer_config(sizes), whole, adapted.lora)
        tensors = peers.module("safetensors.torch").load_file(
            Path(folder) / "adapter_model.safetensors"
        )
    blocks = {str(layer) for layer in range(adapted.layer, sizes.num_layers)}
    own = {key: value for key, value in tensors.items() if blocks & set(key.split("."))}
    found = peft.set_peft_model_state_dict(net, own, adapter_name=name)
    missing = [key for key in found.missing_keys if f".{name}." in key]
    if missing or found.unexpected_keys:
        raise ValueError(
            f"expected peft to have the adapters of ours, found {missing} missing and "
            f"{found.unexpected_keys} unexpected"
        )


def _drawn(sizes: Gpt2, adapted: Adapted) -> Params:
    """Returns any adapters of all blocks."""
    lm = models.transformer(finetune.transformer_config(sizes))
    shapes = jax.eval_shape(lm.init, jax.random.key(0))
    return models.init_lora(jax.random.key(0), shapes, adapted.lora)
