"Our weights as `transformers`' NanoChatForCausalLM: the oracle of tests and the peer of benchmarks."
import torch
from transformers import NanoChatConfig, NanoChatForCausalLM

from nanochat.attention import EPS
from nanochat.gpt import GPT, GPTConfig
from nanochat.workshop import UserError

PARTS = (("attn.c_q", "self_attn.q_proj"), ("attn.c_k", "self_attn.k_proj"), ("attn.c_v", "self_attn.v_proj"),
         ("attn.c_proj", "self_attn.o_proj"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"))


def their_names(n_layer: int) -> dict[str, str]:
    "Our name of each weight -> theirs. No transpose: both store (outputs, inputs) and cut heads in halves."
    names = {"wte.weight": "model.embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
    for i in range(n_layer):
        names |= {f"blocks.{i}.{ours}.weight": f"model.layers.{i}.{theirs}.weight" for ours, theirs in PARTS}
    return names


def their_config(config: GPTConfig, **more) -> NanoChatConfig:
    """Our sizes in their words; `more` is passed on. `UserError` where their class cannot say it.

    Their defaults are another model's: MLP 8192 wide, epsilon 1e-6, and a padding token whose embedding never learns."""
    if any(w is not None for w in config.windows()):
        raise UserError(f"windows {config.window} have no place in transformers' NanoChat; export a model without")
    return NanoChatConfig(**dict(
        vocab_size=config.vocab_size, hidden_size=config.n_embd, intermediate_size=4 * config.n_embd,
        num_hidden_layers=config.n_layer, num_attention_heads=config.n_head, num_key_value_heads=config.n_kv_head,
        max_position_embeddings=config.max_len, rms_norm_eps=EPS, hidden_act="relu2", final_logit_softcapping=15.0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, attention_bias=False, attention_dropout=0.0,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, pad_token_id=None, use_cache=False) | more)


def to_transformers(
    model: GPT,  # without windows
    **more,      # for their config, for example attn_implementation="eager"
) -> NanoChatForCausalLM:  # fp32, on the same device, with weights of its own
    "The same function in `transformers`: equal logits for equal tokens."
    theirs = NanoChatForCausalLM(their_config(model.config, **more))
    names, ours = their_names(model.config.n_layer), model.state_dict()
    if names.keys() != ours.keys(): raise KeyError(f"weights without a place: {names.keys() ^ ours.keys()}")
    theirs.load_state_dict({names[name]: w.detach().clone() for name, w in ours.items()}, strict=True)
    return theirs.to(model.device).train(model.training)
