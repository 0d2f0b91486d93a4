# %% [markdown]
# # 02a. The transformer
#
# You stack attention into a complete GPT, and learn to say what a model of any depth weighs and costs before you build it.
#
# After this lesson you can
#
# * say what the residual stream is, and why every layer only adds to it;
# * build the model from one number, its depth;
# * check that an untrained model is exactly as ignorant as it should be;
# * count parameters and floating-point operations to the last digit.
#
# You need `02_attention`. Reading: 25 minutes. Doing: 30 minutes. Computing: seconds.

# %%
#| default_exp gpt

# %%
#| export
from dataclasses import asdict, dataclass, fields

import torch
import torch.nn as nn
import torch.nn.functional as F
from fastcore.basics import patch
from torch import Tensor

from nanochat.attention import Attention, Linear, rms_norm, rotary_tables, window_mask
from nanochat.workshop import UserError

# %% [markdown]
# ## Deep is not the same as many layers
#
# Take a random layer (widen, drop the negatives, come back) and stack it thirty times. Two unrelated inputs go in at the bottom. Can
# you still tell them apart at the top? Run the cell with plain layers, then with layers that only **add** to what they got.

# %%
torch.manual_seed(0)
a, b = torch.randn(2, 256)
print("cosine of two unrelated inputs: %.2f" % F.cosine_similarity(a, b, dim=0))
for name, adds in (("plain", False), ("adding", True)):
    u, v = a, b
    for _ in range(30):
        W1, W2 = torch.randn(2, 256, 256) / 256**0.5
        f = lambda z: W2 @ F.relu(W1 @ F.rms_norm(z, (256,)))
        u, v = (u + f(u), v + f(v)) if adds else (f(u), f(v))
    print(f"after 30 {name:6s} layers: {F.cosine_similarity(u, v, dim=0):.2f}")


# %% [markdown]
# Plain layers make everything look alike: the inputs were unrelated, and the outputs point almost the same way. When each layer only
# adds, the outputs stay far apart, and the gradient has a straight way back to the first layer. That running sum is the **residual stream** (He et al. 2015). In a transformer it is one vector of C numbers for each token. Attention reads it, looks back and adds; an MLP reads it, thinks and
# adds. Each reads a normalised copy, so that no layer depends on how large the sum has become.
#
# The whole model, in eight lines of plain words:
#
# ```
# x = norm(embedding of each token)
# for each layer:
#     x = x + attention(norm(x))        # tokens talk to earlier tokens
#     x = x + mlp(norm(x))              # each token thinks for itself
# logits = softcap(head(norm(x)))       # one score for each token of the vocabulary
# ```
#
# ## Sizes
#
# Everything about the shape of a model is in six numbers, kept in one record that a checkpoint stores as JSON. It refuses sizes that make no model, at once and in one line; later there would be an error about the
# shape of some matrix.

# %%
#| export
@dataclass
class GPTConfig:
    "The sizes of a model: everything needed to build it again."
    vocab_size: int             # V, tokens
    seq_len: int                # T, tokens the model is trained on at once
    n_layer: int                # L, blocks
    n_head: int                 # H, query heads
    n_kv_head: int              # G, key and value heads; divides H
    n_embd: int                 # C, width
    window: tuple | None = None # earlier tokens each layer sees (None: all), one entry a layer

    def __post_init__(self):
        for name in ("vocab_size", "seq_len", "n_layer", "n_head", "n_kv_head", "n_embd"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name} = {value!r}; it must be a whole number of at least 1")
        if self.n_embd % self.n_head or self.n_embd // self.n_head % 2:
            raise UserError(f"{self.n_head} heads do not fit width {self.n_embd}: "
                            "the head size must be whole and even")
        if self.n_head % self.n_kv_head:
            raise UserError(f"{self.n_kv_head} key/value heads do not divide {self.n_head} heads")
        self._check_window()

    def _check_window(self):
        if self.window is None: return
        self.window = tuple(self.window)       # a list when it comes from JSON
        if len(self.window) != self.n_layer or any(w is not None and w < 1 for w in self.window):
            raise UserError(f"window {self.window} must hold {self.n_layer} entries, "
                            "each None or at least 1")

    @property
    def head_dim(self) -> int:
        "D, the size of one head."
        return self.n_embd // self.n_head

    @property
    def max_len(self) -> int:
        "Rows of the rotary tables: the longest sequence the model can read at all."
        return 10 * self.seq_len

    def windows(self) -> tuple:
        "The window of every layer; None where a layer sees everything."
        return self.window or (None,) * self.n_layer

    def to_dict(self) -> dict:
        "Plain values for a JSON file."
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "GPTConfig":
        "What `to_dict` wrote; raises `UserError` when keys are missing or unknown."
        names, needed = {f.name for f in fields(cls)}, {f.name for f in fields(cls)} - {"window"}
        if not needed <= values.keys() <= names:
            raise UserError(f"model sizes must be {sorted(needed)}, found {sorted(values)}")
        return cls(**values)


# %%
config = GPTConfig(vocab_size=1000, seq_len=64, n_layer=3, n_head=4, n_kv_head=2, n_embd=32, window=(16, 16, None))
print(config.to_dict())
assert GPTConfig.from_dict(config.to_dict()) == config
try: GPTConfig(vocab_size=1000, seq_len=64, n_layer=3, n_head=5, n_kv_head=5, n_embd=32)
except UserError as e: print(e)


# %% [markdown]
# You will rarely write these numbers. The course has **one dial**, depth: the width is 64 times the depth, rounded up to whole heads. Published nanochat's first version did not round, and for
# most odd depths it failed at construction.

# %%
#| export
def config_for(
    depth: int,                   # layers: the one dial
    vocab_size: int,              # tokens
    seq_len: int,                 # tokens
    head_dim: int | None = None,  # 128 unless given
    kv_heads: int | None = None,  # as many as query heads unless given
    window: tuple | None = None,  # windows, repeated over the layers; the last layer sees all
) -> GPTConfig:
    """Sizes by depth: width 64 x depth rounded up to whole heads (nanochat's rule).

    Raises `UserError` for values that make no model."""
    head_dim = 128 if head_dim is None else head_dim
    if depth < 1 or head_dim < 1:
        raise UserError(f"depth {depth} and head size {head_dim} must be at least 1")
    n_head = -(-64 * depth // head_dim)      # rounded up
    if window is not None:
        window = tuple(window[i % len(window)] for i in range(depth - 1)) + (None,)
    return GPTConfig(vocab_size=vocab_size, seq_len=seq_len, n_layer=depth, n_head=n_head,
                     n_kv_head=n_head if kv_heads is None else kv_heads,
                     n_embd=n_head * head_dim, window=window)


# %%
for depth in (4, 5, 20): print(depth, config_for(depth, vocab_size=65536, seq_len=2048))
assert [config_for(d, 512, 64).n_embd for d in (1, 2, 3, 20, 32)] == [128, 128, 256, 1280, 2048]


# %% [markdown]
# ## The MLP
#
# Attention moves information between tokens but computes little. The MLP widens each token's vector four times, drops the negatives, squares the rest and comes back. Squaring makes strong features
# stronger; So et al. (2021) found this form by search, and it costs less than the smoother ones.

# %%
#| export
class MLP(nn.Module):
    "Two linear maps with a squared ReLU between them (So et al. 2021); the hidden width is 4C."
    def __init__(self,
        n_embd: int,  # width C
    ):
        super().__init__()
        self.c_fc, self.c_proj = Linear(n_embd, 4 * n_embd), Linear(4 * n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        "(B, T, C) -> (B, T, C), each position by itself."
        return self.c_proj(F.relu(self.c_fc(x)).square())


# %%
mlp, x = MLP(8), torch.randn(2, 5, 8)
by_hand = torch.relu(x @ mlp.c_fc.weight.T) ** 2 @ mlp.c_proj.weight.T
torch.testing.assert_close(mlp(x), by_hand)
torch.testing.assert_close(mlp(x)[:, 3], mlp(x[:, 3]))       # position 3 needs nobody else
print(sum(p.numel() for p in mlp.parameters()), "weights = 8 C^2")


# %%
#| export
class Block(nn.Module):
    "One layer: attention, then MLP; each reads a normalised copy and adds to the stream."
    def __init__(self,
        config: GPTConfig,
        layer: int,         # index of this layer
    ):
        super().__init__()
        self.attn = Attention(config.n_embd, config.n_head, config.n_kv_head, layer)
        self.mlp = MLP(config.n_embd)

    def forward(self, x: Tensor, cos_sin: tuple, mask: Tensor | None = None, cache=None) -> Tensor:
        "(B, T, C) -> (B, T, C)."
        x = x + self.attn(rms_norm(x), cos_sin, mask, cache)
        return x + self.mlp(rms_norm(x))


# %%
block = Block(config, layer=0)
place = rotary_tables(T=5, D=8)
x = torch.randn(2, 5, 32)
print(block(x, place).shape)
for p in (block.attn.c_proj.weight, block.mlp.c_proj.weight): torch.nn.init.zeros_(p)
assert torch.equal(block(x, place), x)        # a block whose outputs are zero adds nothing


# %% [markdown]
# That last line is how our models begin: the two matrices of a block that write to the stream start at zero, so at the first step the model is just embedding and head, and each block earns its
# influence.
#
# ## Logits that stay small
#
# The head gives a score for each token. Nothing bounds it, and one huge score can spoil a step. **Softcap** squashes scores smoothly between -15 and 15. It must be computed in fp32: in bf16, tanh near 1 has so few
# digits that different logits become equal, a bug that published nanochat had for two months.

# %%
#| export
def softcap(
    z: Tensor,          # any shape
    cap: float = 15.0,  # bound of the result
) -> Tensor:            # fp32, between -cap and cap
    "Squash logits smoothly, in fp32 whatever comes in (Gemma 2, 2024)."
    return cap * torch.tanh(z.float() / cap)


# %%
z = torch.tensor([-100.0, -1.0, 0.0, 1.0, 30.0, 31.0])
print(softcap(z))
assert softcap(z).abs().max() <= 15 and softcap(z)[4] < softcap(z)[5]
low = 15 * torch.tanh(z.bfloat16() / 15)
print("in bf16, 30 and 31 give", low[4:].tolist())
assert low[4] == low[5] and softcap(z.bfloat16()).dtype == torch.float32


# %% [markdown]
# ## The loss
#
# Cross entropy is the surprise, in nats, at the token that really came. `-1` marks targets that do not count: padding, or a user's words when only the answer is to be learnt. The mean is over counted targets; a batch
# without any gives 0, not the 0/0 that turned runs of real projects into NaN.

# %%
#| export
def next_token_loss(
    logits: Tensor,           # (B, T, V) fp32
    targets: Tensor,          # (B, T), -1: not counted
    reduction: str = "mean",  # or "none"
) -> Tensor:                  # a number, or (B, T) with 0 where not counted
    "Cross entropy in nats. The mean is over counted targets, and 0 where there are none."
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1,
                             reduction="none")
    if reduction == "none": return losses.view_as(targets)      # (B, T)
    return losses.sum() / (targets != -1).sum().clamp(min=1)


# %%
logits, targets = torch.zeros(1, 3, 10), torch.tensor([[4, -1, 7]])
print(next_token_loss(logits, targets, "none"), "ln 10 =", torch.tensor(10.0).log().item())
torch.testing.assert_close(next_token_loss(logits, targets), F.cross_entropy(logits[0, [0, 2]], targets[0, [0, 2]]))
assert next_token_loss(logits, torch.full((1, 3), -1)) == 0


# %% [markdown]
# ## The model
#
# The class is short because the parts are done. Three things to notice. The embedding is looked up in fp32 and cast to `compute_dtype`; from there everything flows in that dtype until the logits. Features and logits are separate
# methods, because a model that writes needs the logits of one position only, and at a vocabulary of 65,536 the others would fill the memory. The rotary tables are buffers that are not saved: they follow from the sizes.

# %%
#| export
class GPT(nn.Module):
    """The language model: embedding, blocks, head (nanochat's first architecture).

    Weights are fp32; activations have `compute_dtype`; logits and loss are fp32."""
    def __init__(self,
        config: GPTConfig,
        seed: int = 0,      # of the initial weights
    ):
        super().__init__()
        self.config, self.compute_dtype = config, torch.float32
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.lm_head = Linear(config.n_embd, config.vocab_size)
        for name in ("cos", "sin"): self.register_buffer(name, None, persistent=False)
        self.init_weights(seed)

    def forward(self,
        idx: Tensor,                    # (B, T) tokens
        targets: Tensor | None = None,  # (B, T) next tokens; -1: not counted
        reduction: str = "mean",        # of the loss, or "none" for (B, T) losses
        cache=None,                     # keys and values of earlier tokens, as in lesson 08
    ) -> Tensor:                        # (B, T, V) fp32 logits; with targets the loss in nats
        "Logits of the next tokens, or the loss. Raises `UserError` beyond the rotary tables."
        logits = self.logits(self.features(idx, cache))
        return logits if targets is None else next_token_loss(logits, targets, reduction)

    def features(self, idx: Tensor, cache=None) -> Tensor:
        "(B, T) tokens -> (B, T, C), what the head reads."
        cos_sin, masks = self.places(idx, cache)
        x = rms_norm(self.wte(idx).to(self.compute_dtype))
        for block, mask in zip(self.blocks, masks): x = block(x, cos_sin, mask, cache)
        if cache is not None: cache.advance(idx.shape[1])
        return rms_norm(x)

    def logits(self, x: Tensor) -> Tensor:
        "(..., C) features -> (..., V) fp32 logits between -15 and 15."
        return softcap(self.lm_head(x))


# %% [markdown]
# The class calls two methods that you have not seen. The first decides where tokens stand: their angles, and who sees whom. Layers that share a window share the mask.

# %%
#| export
@patch
def places(self: GPT,
    idx: Tensor,     # (B, T) tokens
    cache=None,      # knows the position at which each row goes on
) -> tuple:          # (cos, sin) and one mask (or None: causal) for each layer
    "Where the tokens stand: rotary angles and who sees whom. Raises `UserError` beyond the tables."
    T, windows = idx.shape[1], self.config.windows()
    if (T if cache is None else cache.reach(T)) > self.config.max_len:
        raise UserError(f"the text is longer than {self.config.max_len} tokens, all that this "
                        f"model can read (trained on {self.config.seq_len}); give it less")
    if cache is None:
        masks = {w: None if w is None else window_mask(T, w, idx.device) for w in set(windows)}
        return (self.cos[:T], self.sin[:T]), [masks[w] for w in windows]
    positions = cache.positions(T)                                       # (B, T)
    masks = {w: cache.mask(positions, w) for w in set(windows)}
    cos_sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)    # (B, 1, T, D/2)
    return cos_sin, [masks[w] for w in windows]


# %% [markdown]
# The second gives weights their first values. A matrix gets a spread of one over the root of its fan-in, so that a sum of fan-in products has unit variance. The matrices that write to the stream and the head get zeros.

# %%
#| export
@patch
def init_weights(self: GPT,
    seed: int = 0,  # same seed, same weights (on the same kind of device)
) -> None:
    """Give every weight its first value: scaled normal; zero for what writes to the stream.

    Does nothing on the meta device. Rotary tables are (re)built here too, because a model that was
    constructed on meta has none."""
    device = self.device
    self.cos, self.sin = rotary_tables(self.config.max_len, self.config.head_dim, device=device)
    if device.type == "meta": return
    generator = torch.Generator(device).manual_seed(seed)
    nn.init.normal_(self.wte.weight, generator=generator)
    for name, p in self.named_parameters():
        if name == "wte.weight": continue
        fan_out, fan_in = p.shape
        std = 0.0 if name.endswith("c_proj.weight") or name == "lm_head.weight" \
            else fan_in**-0.5 * min(1.0, (fan_out / fan_in) ** 0.5)
        nn.init.normal_(p, std=std, generator=generator) if std else nn.init.zeros_(p)

@patch(as_prop=True)
def device(self: GPT) -> torch.device:
    "Where the weights are."
    return self.wte.weight.device


# %%
model = GPT(config_for(2, vocab_size=512, seq_len=64, head_dim=64))
idx = torch.randint(0, 512, (4, 64), generator=torch.Generator().manual_seed(1))
logits = model(idx)
print(logits.shape, "all zero:", bool((logits == 0).all()))
assert logits.shape == (4, 64, 512) and not logits.any()

# %% [markdown]
# **An untrained model must be exactly as ignorant as chance.** All logits are zero, so each of V tokens has probability 1/V and the loss is ln V. If your first loss is larger, the model starts by being confidently
# wrong; if it is smaller, something leaks. It is the cheapest test in this course.

# %%
import math

loss = model(idx[:, :-1], idx[:, 1:])
print(f"first loss {loss:.4f}   ln 512 = {math.log(512):.4f}")
assert abs(loss.item() - math.log(512)) < 1e-5
for dtype in (torch.float32, torch.bfloat16):
    model.compute_dtype = dtype
    print(dtype, "features", model.features(idx).dtype, "logits", model(idx).dtype, "weights", model.wte.weight.dtype)

# %% [markdown]
# ## Does it learn at all?
#
# The second cheapest test: one small batch, again and again. A healthy model learns it by heart. Because the head starts at zero, the first gradient reaches only the head; one step later it reaches everything. **Predict** where the curve starts
# and where it ends, then run.

# %%
import matplotlib.pyplot as plt
from nanochat.workshop import figure, seed_all

seed_all(0)
model = GPT(config_for(2, vocab_size=64, seq_len=32, head_dim=64))
batch = torch.randint(0, 64, (4, 33))
optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0), []
for _ in range(60):
    loss = model(batch[:, :-1], batch[:, 1:])
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    losses.append(loss.item())
fig, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
ax.plot(losses)
ax.axhline(math.log(64), ls=":", c="grey")
ax.set(xlabel="step", ylabel="loss (nats)", ylim=(0, None))
figure(fig, caption="One batch of random tokens, learnt by heart. The dotted line is ln 64.",
       alt="Loss against step: it starts at the dotted line at 4.16 nats and falls to nearly zero within 60 steps.")
print(f"first {losses[0]:.3f}, last {losses[-1]:.4f}")
assert abs(losses[0] - math.log(64)) < 1e-4 and losses[-1] < 0.1


# %% [markdown]
# ## What does a model weigh, and what does it cost?
#
# Each layer has $4C^2$ weights in attention and $8C^2$ in the MLP. Embedding and head have $VC$ each. So
#
# $$N = 2VC + 12LC^2.$$

# %%
#| export
@patch
def parts(self: GPT) -> dict[str, list[nn.Parameter]]:
    "The parameters by what they are: embedding, matrices (in the blocks), head."
    return {"embedding": [self.wte.weight], "matrices": list(self.blocks.parameters()),
            "head": [self.lm_head.weight]}

@patch
def num_params(self: GPT) -> dict[str, int]:
    "How many numbers each part holds, and the total."
    counts = {name: sum(p.numel() for p in ps) for name, ps in self.parts().items()}
    return counts | {"total": sum(counts.values())}


# %%
V, L, C = 512, 2, 128
counts = GPT(config_for(L, vocab_size=V, seq_len=64, head_dim=64)).num_params()
print(counts)
assert counts["total"] == 2 * V * C + 12 * L * C**2 and counts["head"] == V * C


# %% [markdown]
# A multiplication and an addition for each weight make 2 operations a token; the backward pass computes two products of that size, so 6 in all. The embedding multiplies nothing: it is a look-up. Attention scores and sums cost $4CT$ forward, so $12CT$
# with backward, in each layer.

# %%
#| export
@patch
def flops_per_token(self: GPT) -> int:
    """Floating-point operations of forward and backward for one training token.

    6 for each weight that multiplies (not the embedding, which is a look-up) and 12 C for each
    key a layer can see (PaLM, Chowdhery et al. 2022, appendix B)."""
    count, T = self.num_params(), self.config.seq_len
    keys = sum(T if w is None else min(w, T) for w in self.config.windows())
    return 6 * (count["total"] - count["embedding"]) + 12 * self.config.n_embd * keys


# %%
def on_paper(depth: int) -> GPT:
    "A model without memory: the meta device knows shapes only."
    with torch.device("meta"): return GPT(config_for(depth, vocab_size=65536, seq_len=2048))

for depth, published in ((20, 560_988_160), (32, 1_879_048_192)):
    big = on_paper(depth)
    print(f"d{depth}: {big.num_params()['total']:,} parameters, {big.flops_per_token():.6e} FLOPs a token")
    assert big.num_params()["total"] == published
assert on_paper(20).flops_per_token() == 3_491_758_080 and on_paper(32).flops_per_token() == 12_079_595_520

# %% [markdown]
# Both totals are those that published nanochat printed for its $100 and $800 models, to the last digit. Your counting is right, and so are your shapes.
#
# **At scale.** Depth 20 on 20 tokens a parameter reads 11.2 billion tokens: 3.9e19 operations. Eight H100 deliver 7.9e15 a second at their bf16 peak; at the 47 percent that nanochat reported, the run takes 2.9 hours.

# %%
big = on_paper(20)
total = big.flops_per_token() * 20 * big.num_params()["total"]
hours = total / (8 * 989e12 * 0.47) / 3600
print(f"{total:.2e} operations, {hours:.1f} hours, ${hours * 24:.0f} at $24 an hour")
assert 2.5 < hours < 3.5

# %% [markdown]
# ## Trap: built on meta, and never filled
#
# Large models are built on the meta device and filled later. Whatever the constructor *computed*, such as the rotary tables, was computed on nothing. `to_empty` gives memory with whatever was in it. Published
# nanochat once left new parameters in that state. The cure is that `init_weights` makes everything, tables included.

# %%
with torch.device("meta"): late = GPT(config_for(2, vocab_size=64, seq_len=32, head_dim=64), seed=5)
late = late.to_empty(device="cpu")
torch.nn.init.constant_(late.cos, 7.0)          # stands for whatever was in that memory
print("a cosine of", late.cos[0, 0].item())
late.init_weights(seed=5)
early = GPT(late.config, seed=5)
assert all(torch.equal(a, b) for a, b in zip(late.parameters(), early.parameters()))
assert torch.equal(late.cos, early.cos) and late.cos.abs().max() <= 1

# %% [markdown]
# ## Recap
#
# * Layers add to a stream; each reads a normalised copy.
# * Depth is the one dial; width follows.
# * Output matrices and head start at zero, so the first loss is ln V.
# * Softcap and loss are fp32; activations have the dtype you choose.
# * N = 2VC + 12LC², and 6 operations a weight plus 12CT a layer for each trained token.
#
# **Papers.** Vaswani et al. 2017; Radford et al. 2019 (GPT-2); He et al. 2015 (residuals); So et al. 2021 (squared ReLU); Gemma 2, 2024 (softcap); Chowdhery et al. 2022, appendix B (counting).
