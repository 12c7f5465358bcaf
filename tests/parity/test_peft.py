"""Adapters compared with peft: logits, gradients, and files in both directions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.models import TransformerConfig, transformer
from shatter.models.lora import LoraConfig, init_lora, with_lora
from shatter.models.lora_files import load_lora, save_lora
from shatter.models.pretrained import save_pretrained
from tests.models.tiny import llama

torch = pytest.importorskip("torch", reason="parity with peft needs torch")
transformers = pytest.importorskip("transformers", reason="parity with peft needs transformers")
peft = pytest.importorskip("peft", reason="parity with peft needs peft")
# peft uses a name that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

GPT2 = TransformerConfig(
    vocab_size=17, max_length=16, width=8, num_heads=2, norm_epsilon=1e-5, tied=True
)
LLAMA = llama(
    vocab_size=17,
    max_length=16,
    width=8,
    num_heads=4,
    num_kv_heads=2,
    head_size=6,
    mlp_width=12,
)
GEMMA3 = dataclasses.replace(
    LLAMA,
    norm_epsilon=1e-2,  # so that norms of small random outputs do not magnify rounding errors
    activation="gelu",
    qk_norm=True,
    post_norms=True,
    norm_offset=True,
    scaled_embedding=True,
    attention_size=5,
    window=3,
    full_layers=(1,),
    local_theta=100.0,
    tied=True,
)
ALL = ("query", "key", "value", "attention_out", "gate", "up", "mlp_out")
CASES = {
    "gpt2": (GPT2, LoraConfig(rank=2, alpha=5.0, targets=("qkv",)), ["c_attn"]),
    "gpt2-all": (
        GPT2,
        LoraConfig(rank=2, alpha=5.0, targets=("qkv", "attention_out", "mlp_in", "mlp_out")),
        "all-linear",
    ),
    "llama": (LLAMA, LoraConfig(rank=2, alpha=5.0), ["q_proj", "v_proj"]),
    "gemma3-all": (GEMMA3, LoraConfig(rank=2, targets=ALL), "all-linear"),
    "llama-all": (LLAMA, LoraConfig(rank=2, targets=ALL, use_rslora=True), "all-linear"),
}
TOKENS = np.random.default_rng(0).integers(0, 17, (2, 9))


def random_like(tree, seed: int, scale: float = 0.3):
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.array(scale * rng.standard_normal(leaf.shape), jnp.float32)
    return jax.tree.map(draw, tree)


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path):
    """The config, the adapters' config, their targets, and the base in both libraries."""
    config, lora, targets = CASES[request.param]
    params = random_like(jax.eval_shape(transformer(config).init, jax.random.key(0)), 0)
    save_pretrained(tmp_path / "base", config, params)
    load = transformers.AutoModelForCausalLM.from_pretrained
    return config, lora, targets, params, load(tmp_path / "base").eval()


every_case = pytest.mark.parametrize("case", CASES, indirect=True)


def of_peft(model) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


@every_case
def test_ours_in_peft(case, tmp_path):
    """Logits are the same, and so are the gradients of a training step."""
    config, lora, _, params, base = case
    key = jax.random.key(0)
    adapters = random_like(jax.eval_shape(lambda params: init_lora(key, params, lora), params), 1)
    save_lora(tmp_path / "own", config, adapters, lora, base=str(tmp_path / "base"))
    model = peft.PeftModel.from_pretrained(base, tmp_path / "own", is_trainable=True).eval()

    def loss(own):
        logits = transformer(config).apply(with_lora(params, own, lora), jnp.array(TOKENS))
        return jnp.mean(jnp.sin(logits)), logits

    (_, found), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(adapters)
    logits = model(torch.tensor(TOKENS)).logits
    np.testing.assert_allclose(found, logits.detach().numpy(), atol=1e-4)
    with model.disable_adapter():
        assert np.abs(found - of_peft(model)).max() > 0.1
    torch.sin(logits).mean().backward()
    theirs = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    save_lora(tmp_path / "slopes", config, slopes, lora)
    ours = peft.utils.load_peft_weights(tmp_path / "slopes", device="cpu")
    assert len(ours) == len(theirs) == 2 * len(lora.targets) * config.num_layers
    for name, slope in theirs.items():
        np.testing.assert_allclose(slope, ours[name.replace(".default", "")], atol=1e-5)


@every_case
def test_theirs_in_ours(case, tmp_path):
    config, lora, targets, params, base = case
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.use_rslora,
        target_modules=targets,
        task_type="CAUSAL_LM",
        fan_in_fan_out=config is GPT2,
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(base, settings).eval()
    bounds = {}
    for name, p in model.named_parameters():
        if "lora_A" in name:
            bounds[name] = float(p.detach().abs().max()) * p.shape[1] ** 0.5
        if "lora_B" in name:
            assert not p.any()
            torch.nn.init.normal_(p, std=0.3)
    assert 0.8 < min(bounds.values()) and max(bounds.values()) <= 1  # as `init_lora` draws
    model.save_pretrained(tmp_path / "theirs")
    adapters, found = load_lora(tmp_path / "theirs", config)
    assert set(found.targets) == set(lora.targets)
    assert dataclasses.replace(found, targets=lora.targets) == lora
    apply = jax.jit(transformer(config).apply)
    logits = apply(with_lora(params, adapters, found), jnp.array(TOKENS))
    np.testing.assert_allclose(logits, of_peft(model), atol=1e-4)
