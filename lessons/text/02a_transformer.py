# %% [markdown]
# # 02a The transformer
#
# You stack attention into a complete GPT, and learn to say what a model of any depth weighs, costs and fills before you build it.
#
# After this lesson you can
#
# * say why every layer only *adds*, and show what happens when it does not;
# * derive how large numbers become from layer to layer, and choose first weights by it;
# * build the model from one number, its depth, and check that untrained it is exactly as ignorant as it should be;
# * count parameters, operations and bytes, and check each count against something that is not your formula.
#
# You need `02_attention` and `00b_microworld`. Reading and running: 60 minutes. Computing: about a minute. A side lesson: no exercises, but a quiz.

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

from nanochat.attention import Attention, Linear, attend_on, attend_sdpa
from nanochat.attention import rms_norm, rotary_tables, window_mask
from nanochat.workshop import UserError


# %% [markdown]
# ## A stack that got worse
#
# A small task: 32 random numbers come in; say whether the first two have the same sign. The network is a stack of equal layers. Each normalises its input, widens it four times, drops the negatives and comes back.
#
# **Predict, then run.** Two layers learn this. What will 24 layers do, with twelve times the weights?

# %%
class Stack(nn.Module):
    "(N, C) numbers -> (N, 2) scores. `adds`: each layer adds to what it got, instead of replacing it."
    def __init__(self, n_layer: int, adds: bool, C: int = 32):
        super().__init__()
        torch.manual_seed(0)
        self.adds, self.head = adds, Linear(C, 2)
        self.up = nn.ModuleList(Linear(C, 4 * C) for _ in range(n_layer))
        self.down = nn.ModuleList(Linear(4 * C, C) for _ in range(n_layer))

    def forward(self, x: Tensor) -> Tensor:
        for up, down in zip(self.up, self.down):
            y = down(F.relu(up(rms_norm(x))))
            x = x + y if self.adds else y
        return self.head(rms_norm(x))


# %%
from nanochat.workshop import by_tier

def signs(model: nn.Module, steps: int = by_tier(100, 200)) -> list[float]:
    "Train on fresh numbers at every step; the losses."
    optimizer, g, losses = torch.optim.AdamW(model.parameters(), lr=2e-3), torch.Generator().manual_seed(1), []
    for _ in range(steps):
        x = torch.randn(256, 32, generator=g)
        loss = F.cross_entropy(model(x), (x[:, 0] * x[:, 1] > 0).long())
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        losses.append(loss.item())
    return losses

curves = {"2 layers": signs(Stack(2, adds=False)), "24 layers": signs(Stack(24, adds=False))}
for name, losses in curves.items(): print(f"{name}: loss {sum(losses[-10:]) / 10:.2f}; guessing is 0.69")
assert sum(curves["24 layers"][-10:]) / 10 > 0.65

# %% [markdown]
# The deep stack has learned nothing at all. It is not overfitting, since every step brings fresh numbers: it cannot even *train*. He and others (2015) saw the same with pictures, a network of 56 layers that trained worse than one of 20. Yet the deep one contains the small one: 22 of its layers need only hand on what they get.
#
# Handing on is hard for a layer that must build its output from nothing, and trivial for one that *adds*: it adds zero. So `y` becomes `x + y`:

# %%
curves["24 layers that add"] = signs(Stack(24, adds=True))
print(f"24 layers that add: loss {sum(curves['24 layers that add'][-10:]) / 10:.2f}")

# %%
import matplotlib.pyplot as plt
from nanochat.workshop import figure

fig, ax = plt.subplots(figsize=(5.5, 2.4), layout="constrained")
for (name, losses), style in zip(curves.items(), ("--", ":", "-")): ax.plot(losses, style, label=name)
ax.set(xlabel="step", ylabel="loss (nats)", ylim=(0, None))
ax.legend(frameon=False)
figure(fig, caption="The same task for three stacks.",
       alt="Loss against step. A dotted line, 24 layers, stays at 0.69. The dashed line of 2 layers and the solid line of 24 layers that add fall.")
assert sum(curves["24 layers that add"][-10:]) < sum(curves["24 layers"][-10:]) - by_tier(0.0, 1.0)

# %% [markdown]
# ## Why adding works
#
# Take the smallest layer there is: one number times a weight $w$. Thirty of them compute $w^{30}x$, and the gradient at the bottom is $w^{30}$. By hand, for $w = 0.8$ and $1.2$: 0.001 and 237. It dies or it explodes, and both are useless. A layer that adds computes $x + wx$, so its factor is $1 + w$, and a *small* $w$ means a factor near 1. Thirty layers with $w = 0.01$ give 1.35.

# %%
# NBVAL_CHECK_OUTPUT
for w in (0.8, 1.2): print(f"plain, w = {w}: {w**30:.4g}")
for w in (-0.01, 0.01): print(f"adding, w = {w}: {(1 + w)**30:.4g}")


# %% [markdown]
# In general a layer is a function $f_l$ and the stack computes $x_{l+1} = x_l + f_l(x_l)$. Written out, the top is the bottom plus everything that was added on the way:
#
# $$x_L = x_0 + \sum_{l=0}^{L-1} f_l(x_l), \qquad \frac{\partial x_L}{\partial x_0} = \prod_{l=L-1}^{0} \left(I + J_l\right) = I + \sum_l J_l + \sum_{l > k} J_l J_k + \dots$$
#
# with $J_l$ the derivative of $f_l$. The first term is the identity: whatever the layers do, the gradient has one way to the bottom on which nothing happens to it. A plain stack has only the last term, the product of all $J$. How much arrives at the bottom, before any training? Three stacks of 24: plain without norms, plain as above, and adding.

# %%
def gradient_by_layer(model: Stack, norm=rms_norm) -> list[float]:
    "Size of the loss's gradient at the input of each layer, for one batch."
    x = torch.randn(256, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
    stream, wanted = [x], (x[:, 0] * x[:, 1] > 0).long()
    for up, down in zip(model.up, model.down):
        y = down(F.relu(up(norm(stream[-1]))))
        stream.append(stream[-1] + y if model.adds else y)
    loss = F.cross_entropy(model.head(norm(stream[-1])), wanted)
    return [g.norm().item() for g in torch.autograd.grad(loss, stream)]

arrives = {"plain, no norms": gradient_by_layer(Stack(24, adds=False), norm=lambda x: x),
           "plain": gradient_by_layer(Stack(24, adds=False)), "adding": gradient_by_layer(Stack(24, adds=True))}
for name, sizes in arrives.items(): print(f"{name:15} {sizes[-1]:.1e} at the top, {sizes[0]:.1e} at the bottom")
assert arrives["plain, no norms"][0] < 1e-6 * arrives["plain, no norms"][-1] and arrives["plain"][0] > 0.1 * arrives["plain"][-1]


# %% [markdown]
# Without norms it dies, as computed. With norms it *arrives*, and yet the plain stack learned nothing. So look at what comes up. Put in two unrelated inputs and watch the angle between them. A plain layer squeezes: its hidden numbers are never negative, so what it writes has a part that all inputs share, and 24 times that is all there is.

# %%
def likeness(adds: bool, n_layer: int = 24) -> list[float]:
    "Cosine of two unrelated inputs after each layer."
    model, (a, b), out = Stack(n_layer, adds), torch.randn(2, 32, generator=torch.Generator().manual_seed(4)), []
    for up, down in zip(model.up, model.down):
        fa, fb = (down(F.relu(up(rms_norm(z)))) for z in (a, b))
        a, b = (a + fa, b + fb) if adds else (fa, fb)
        out.append(F.cosine_similarity(a, b, dim=0).item())
    return out

alike = {"plain": likeness(False), "adding": likeness(True)}
print({name: round(values[-1], 2) for name, values in alike.items()})
assert alike["plain"][-1] > 0.9 > alike["adding"][-1]

# %%
fig, axes = plt.subplots(1, 2, figsize=(7.5, 2.4), layout="constrained")
for name, style in (("plain, no norms", "C2^:"), ("plain", "C0s--"), ("adding", "C1o-")):
    axes[0].plot(arrives[name], style, ms=3, label=name)
    if name in alike: axes[1].plot(alike[name], style, ms=3)
axes[0].set(yscale="log", xlabel="layer (0: bottom)", ylabel="gradient", title="down: what reaches a layer")
axes[1].set(xlabel="layer", ylabel="cosine", ylim=(-0.4, 1.05), title="up: two unrelated inputs")
axes[0].legend(frameon=False, fontsize=8)
figure(fig, caption="Untrained stacks of 24 layers. Left: gradient by layer. Right: how alike two unrelated inputs have become.",
       alt="Left, on a log scale: without norms the gradient falls by many orders of magnitude from top to bottom; with norms, plain or adding, it is nearly level. "
           "Right: in the plain stack the cosine climbs from 0.1 to 0.98; in the adding stack it ends near 0.6.")

# %% [markdown]
# A norm repairs the size of what passes; only adding keeps the *content*. At the top of the plain stack all inputs are nearly the same input. (Balduzzi and others 2017 tell the same story of the gradients: they arrive, as noise.)
#
# So in a transformer nothing is replaced. There is one vector of $C$ numbers for each token, the **residual stream**; layers read from it and add to it. Attention looks back and adds what it found. The **MLP** (two linear maps with something bent between them) thinks about one token by itself, and adds. The whole model in six lines of plain words:
#
# ```
# x = norm(embedding of each token)
# for each layer:
#     x = x + attention(norm(x))        # tokens read earlier tokens
#     x = x + mlp(norm(x))              # each token by itself
# logits = softcap(head(norm(x)))       # one score for each token of the vocabulary
# ```
#
# ## Each reads a normalised copy
#
# The sum grows with every layer. A layer must not care, so it reads the stream through `rms_norm` from lesson 02: $n(x) = x/r$ with $r = \sqrt{\frac1C\sum_i x_i^2}$. (3, 4, 0, 0) has mean square 25/4, so $r$ is 2.5 and the result (1.2, 1.6, 0, 0); ten times the vector gives the same. What does it do to the gradient? From $\partial r/\partial x_j = x_j/(Cr)$ and the quotient rule,
#
# $$\frac{\partial n_i}{\partial x_j} = \frac1r\left(\delta_{ij} - \frac{n_i n_j}{C}\right).$$

# %%
x = torch.randn(6, generator=torch.Generator().manual_seed(0))
r, n = x.square().mean().sqrt(), rms_norm(x)
by_hand = (torch.eye(6) - n[:, None] * n / 6) / r
torch.testing.assert_close(by_hand, torch.func.jacrev(rms_norm)(x), rtol=1e-4, atol=1e-5)
print("along x:", [round(z, 6) + 0.0 for z in (by_hand @ x).tolist()])

# %% [markdown]
# Read two things off. Along $x$ itself nothing passes: length carries no message. And $1/r$: **the larger the stream, the smaller the gradient that a reader sends back to it.** Both matter below.
#
# Where to put the norm is a choice. The first transformer normalised the *sum*, $n(x + f(x))$; then the free way to the bottom leads through a norm at each layer. Reading a normalised copy, $x + f(n(x))$, leaves it open (Xiong and others 2020). Ours does the latter.
#
# ## The MLP
#
# For one token, in loops, with $C = 2$ and a hidden width of 3, so that you can follow it with a pencil: widen, keep what is positive, square it, come back.

# %%
up = [[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]               # 3 questions to the stream
down = [[0.5, 0.0, 0.0], [0.0, 1.0, 2.0]]                 # what each answer writes
def mlp_loops(x: list[float]) -> list[float]:
    hidden = [max(0.0, sum(w * a for w, a in zip(row, x))) ** 2 for row in up]
    return [sum(w * h for w, h in zip(row, hidden)) for row in down]

print(mlp_loops([2.0, -3.0]))                              # hidden (4, 0, 1)
assert mlp_loops([2.0, -3.0]) == [2.0, 2.0]


# %% [markdown]
# Each row of the first matrix is a question; where the answer is positive, a column of the second is written to the stream. In tensors, for all tokens at once:

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
mlp = MLP(2)
mlp.c_fc, mlp.c_proj = Linear(2, 3), Linear(3, 2)
mlp.c_fc.weight.data, mlp.c_proj.weight.data = torch.tensor(up), torch.tensor(down)
print(mlp(torch.tensor([[[2.0, -3.0]]])).tolist())
torch.testing.assert_close(mlp(torch.tensor([[[2.0, -3.0]]])), torch.tensor([[mlp_loops([2.0, -3.0])]]))
assert sum(p.numel() for p in MLP(8).parameters()) == 8 * 8**2       # 4C^2 up, 4C^2 down

# %% [markdown]
# Why the square? Without something bent, two linear maps are one. ReLU, $\max(0, z)$, has a corner: its slope jumps. GELU is smooth and dear. **ReLU²** was found by a search (So and others 2021): no jump in the slope, strong answers count more, and what is 0 stays exactly 0.

# %%
z = torch.linspace(-3, 3, 200).requires_grad_()
fig, axes = plt.subplots(1, 2, figsize=(6.5, 2.3), layout="constrained")
for name, f, style in (("ReLU", F.relu, ":"), ("GELU", F.gelu, "--"), ("ReLU²", lambda z: F.relu(z).square(), "-")):
    y = f(z)
    axes[0].plot(z.detach(), y.detach(), style, label=name)
    axes[1].plot(z.detach(), torch.autograd.grad(y.sum(), z)[0], style)
axes[0].set(title="value", ylim=(-0.5, 5), xlabel="z"); axes[1].set(title="slope", ylim=(-0.5, 5), xlabel="z")
axes[0].legend(frameon=False)
figure(fig, caption="Three ways to bend, and their slopes.",
       alt="Left: ReLU is zero then a straight line; GELU is a smooth version of it; ReLU squared is zero then a parabola. "
           "Right: the slope of ReLU jumps from 0 to 1; that of GELU passes smoothly; that of ReLU squared grows from 0 in a straight line.")


# %% [markdown]
# ## Sizes, and one dial
#
# Everything about the shape of a model stands in one record. It refuses sizes that make no model, at once and in one line; later there would be an error about some matrix.

# %%
#| export
def _whole(**sizes: int) -> None:
    "`UserError` unless every named size is a whole number of at least 1."
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name} = {value!r}; it must be a whole number of at least 1")


# %%
try: _whole(depth=2, vocab_size=0)
except UserError as e: print(e)


# %% [markdown]
# The record itself. `max_len` is how far the rotary tables go, ten times the context of training.

# %%
#| export
@dataclass
class GPTConfig:
    "The sizes of a model: everything needed to build it again. `UserError` if they make none."
    vocab_size: int             # V, tokens
    seq_len: int                # T, tokens the model is trained on at once
    n_layer: int                # L, blocks
    n_head: int                 # H, query heads
    n_kv_head: int              # G, key and value heads; divides H
    n_embd: int                 # C, width
    window: tuple | None = None # earlier tokens each layer sees (None: all), one entry a layer

    def __post_init__(self):
        _whole(**{name: size for name, size in asdict(self).items() if name != "window"})
        if self.n_embd % self.n_head or self.head_dim % 2:
            raise UserError(f"{self.n_head} heads do not fit width {self.n_embd}: the head size, "
                            "width / heads, must be whole and even")
        if self.n_head % self.n_kv_head:
            fit = [g for g in range(1, self.n_head + 1) if self.n_head % g == 0]
            raise UserError(f"{self.n_kv_head} key/value heads cannot be shared by {self.n_head} "
                            f"heads: choose one of {fit}")
        self._check_window()

    def _check_window(self):
        if self.window is None: return
        if not isinstance(self.window, (list, tuple)): raise UserError(f"window {self.window!r}: give a list, one entry a layer")
        self.window = tuple(self.window)       # a list when it comes from JSON
        fits = len(self.window) == self.n_layer
        if not fits or any(w is not None and (type(w) is not int or w < 1) for w in self.window):
            raise UserError(f"window {self.window} must hold {self.n_layer} entries, "
                            "each None or a whole number of at least 1")

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


# %%
config = GPTConfig(vocab_size=1000, seq_len=64, n_layer=3, n_head=4, n_kv_head=2, n_embd=32, window=(16, 16, None))
for change in (dict(n_head=5), dict(n_kv_head=3), dict(window=(16,))):
    try: GPTConfig(**(asdict(config) | change))
    except UserError as e: print(e)


# %% [markdown]
# To a file and back, with a clear word for what is missing or unknown:

# %%
#| export
@patch
def to_dict(self: GPTConfig) -> dict:
    "Plain values for a JSON file."
    return asdict(self)

@patch(cls_method=True)
def from_dict(cls: GPTConfig, values: dict) -> GPTConfig:
    "What `to_dict` wrote; raises `UserError` when keys are missing or unknown."
    if not isinstance(values, dict): raise UserError(f"model sizes must be a table of names and numbers, not {values!r}")
    names, needed = {f.name for f in fields(cls)}, {f.name for f in fields(cls)} - {"window"}
    if not needed <= values.keys() <= names:
        raise UserError(f"model sizes must be {sorted(needed)}, found {sorted(values)}")
    return cls(**values)


# %%
assert GPTConfig.from_dict(config.to_dict()) == config
try: GPTConfig.from_dict({"depth": 4})
except UserError as e: print(e)


# %% [markdown]
# You will rarely write these numbers. The course has **one dial**, depth $L$: the width is $64L$, so small models are scaled-down large ones.
#
# **Trap: odd depths.** Heads have 128 numbers, and 64 times an odd depth is no multiple of 128. Published nanochat's first version took the width as it was and rounded the *heads* up. **Predict** which of the first 34 depths it could build.

# %%
def first_rule(depth: int) -> GPTConfig:
    "Width 64 x depth; as many heads as are needed to cover it."
    width = 64 * depth
    heads = (width + 127) // 128
    return GPTConfig(vocab_size=65536, seq_len=2048, n_layer=depth, n_head=heads, n_kv_head=heads, n_embd=width)

def works(rule, depth: int) -> bool:
    try: return bool(rule(depth))
    except UserError: return False

print("odd depths it could build:", [d for d in range(1, 35, 2) if works(first_rule, d)])
assert [d for d in range(1, 35, 2) if works(first_rule, d)] == [1, 3, 7, 15, 31]


# %% [markdown]
# All the other odd depths fail when the model is built. The cure is to count heads first, and to let the *width* follow:

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
    _whole(depth=depth, head_dim=head_dim)
    n_head = -(-64 * depth // head_dim)      # rounded up
    if window is not None:
        if not isinstance(window, (list, tuple)): raise UserError(f"window {window!r}: give a list, a pattern for the layers")
        if not window: raise UserError("window is empty: give one entry or more, or None for all")
        window = tuple(window[i % len(window)] for i in range(depth - 1)) + (None,)
    return GPTConfig(vocab_size=vocab_size, seq_len=seq_len, n_layer=depth, n_head=n_head,
                     n_kv_head=n_head if kv_heads is None else kv_heads,
                     n_embd=n_head * head_dim, window=window)


# %%
for depth in (4, 5, 20): print(f"depth {depth:2}: width {config_for(depth, 65536, 2048).n_embd}")
assert all(works(lambda d: config_for(d, 65536, 2048), d) for d in range(1, 35))
assert [config_for(d, 512, 64).n_embd for d in (1, 2, 3, 20, 32)] == [128, 128, 256, 1280, 2048]


# %% [markdown]
# ## The block
#
# Attention and MLP, each with its own normalised copy, each adding:

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
block, x, place = Block(config, layer=0), torch.randn(2, 5, 32), rotary_tables(T=5, D=8)
print(block(x, place).shape)
for p in (block.attn.c_proj.weight, block.mlp.c_proj.weight): nn.init.zeros_(p)
assert torch.equal(block(x, place), x)        # a block that writes zeros adds nothing

# %% [markdown]
# The last line is how our models begin: the two matrices of a block that *write* start at zero. The untrained model is embedding and head, and each block earns its influence. We come back to the price.
#
# ## Logits that stay small
#
# The head gives one score, a logit, for each token of the vocabulary. Nothing bounds it, and one huge score can spoil a step. **Softcap** (Gemma 2, 2024) bends scores smoothly into the range from -15 to 15: $15\tanh(z/15)$. Its slope is $1 - \tanh^2(z/15)$, near 1 for small scores, and 0 far out, where a score can no longer be pushed further. (Since $\tanh x = 2\sigma(2x) - 1$, the code can use the sigmoid, which a compiler makes much faster.)

# %%
#| export
CAP = 15.0               # bound of the logits


def softcap(
    z: Tensor,          # any shape
    cap: float = CAP,   # bound of the result
) -> Tensor:            # fp32, between -cap and cap
    "cap tanh(z / cap), in fp32 whatever comes in (Gemma 2, 2024)."
    return 2 * cap * torch.sigmoid(z.float() * (2 / cap)) - cap


# %%
z = torch.tensor([-100.0, -1.0, 0.0, 1.0, 30.0], requires_grad=True)
softcap(z).sum().backward()
print("values", [round(a, 3) for a in softcap(z).tolist()], " slopes", [round(a, 3) for a in z.grad.tolist()])
torch.testing.assert_close(softcap(z), 15 * torch.tanh(z / 15))
torch.testing.assert_close(z.grad, 1 - torch.tanh(z.detach() / 15) ** 2)

# %% [markdown]
# **Trap: a tanh in 16 bits.** Published nanochat computed it in bf16 for two months. **Predict** how many different values are left of 61 logits between 30 and 60.

# %%
z = torch.linspace(30, 60, 61)
coarse = 15 * torch.tanh(z.bfloat16() / 15)
print("different values: in bf16", len(coarse.unique()), " in fp32", len(softcap(z).unique()))
assert len(coarse.unique()) < 10 and len(softcap(z).unique()) == 61 and softcap(z.bfloat16()).dtype == torch.float32

# %% [markdown]
# Near 1, bf16 numbers lie 1/256 apart, so after the cap most scores are equal and the best token is a matter of luck. That is why `softcap` goes to fp32 first, whatever comes in.
#
# ## The loss
#
# Cross entropy: the surprise, in nats, at the token that really came. A target of `-1` does not count: padding, or a user's words when only the answer is to be learnt.
#
# **Trap: the mean of nothing.** The mean over counted targets is 0/0 when none counts. It happens: a batch of long questions, cut before the answer. It turned finetuning runs into NaN (issues 590, 817 and 834 of nanochat). PyTorch's own mean, and one written with a mask:

# %%
logits, nothing = torch.zeros(3, 10, requires_grad=True), torch.full((3,), -1)
mask, each = (nothing >= 0).float(), F.cross_entropy(logits, nothing.clamp(min=0), reduction="none")
for name, loss in (("PyTorch's mean", F.cross_entropy(logits, nothing, ignore_index=-1)), ("with a mask", (each * mask).sum() / mask.sum())):
    print(f"{name}: loss {loss.item()}, gradient {torch.autograd.grad(loss, logits)[0][0, 0].item()}")


# %% [markdown]
# The second puts NaN into every weight, for good. The first only spoils each mean and chart that the loss goes into, because its kernel skips what does not count. Divide by at least one, and the question is gone.
#
# The logits are the largest tensor of a training step, so look at what the loss does with them. Written plainly, it walks through them five times and keeps them twice, capped and as log-probabilities. What you know saves most of that:
#
# * Softcap bounds a logit $y$ by 15, so $e^{y}$ cannot overflow, and softmax needs no maximum. (In lesson 02 QK norm did the same for attention.)
# * The loss at a target $t$ is $\ln \sum_k e^{y_k} - y_t$, so its derivative at $y_j$ is $p_j - \delta_{jt}$: **probability minus target**. Times the slope of softcap, $1 - (y/15)^2$, that is the gradient at the raw score $z$, and all of it follows from $z$ and one number a row, $\ln \sum_k e^{y_k}$.
#
# So keep these two, and compute the rest again. A loss by hand, forward and backward:

# %%
#| export
class _CappedCrossEntropy(torch.autograd.Function):
    "Cross entropy of softcapped scores, 0 for targets of -1; keeps the raw scores and a number a row."

    @staticmethod
    def forward(ctx, z, targets):                        # (N, V), (N,) -> (N,)
        total = softcap(z).exp().sum(dim=-1).log()       # of at most V e^15
        ctx.save_for_backward(z, targets, total)
        right = softcap(z.gather(-1, targets.clamp(min=0)[:, None])).squeeze(-1)
        return torch.where(targets >= 0, total - right, 0.0)

    @staticmethod
    def backward(ctx, g):                                # (N,)
        z, targets, total = ctx.saved_tensors
        y = softcap(z)
        hit = torch.arange(z.shape[-1], dtype=torch.int32, device=z.device) == targets.int()[:, None]
        g = torch.where(targets >= 0, g, 0.0)[:, None]
        slope = 1 - (y * (1 / CAP)) ** 2
        return (((y - total[:, None]).exp() - hit.float()) * slope * g).to(z.dtype), None


def next_token_loss(
    scores: Tensor,           # (B, T, V) of the head, before softcap
    targets: Tensor,          # (B, T), -1: not counted
    reduction: str = "mean",  # or "none"
) -> Tensor:                  # a number, or (B, T) with 0 where not counted
    "Cross entropy of softcapped scores, nats. The mean is over counted targets, 0 if there are none."
    losses = _CappedCrossEntropy.apply(scores.flatten(0, 1), targets.flatten())
    if reduction == "none": return losses.view_as(targets)      # (B, T)
    return losses.sum() / (targets >= 0).sum().clamp(min=1)


# %%
scores, targets = torch.zeros(1, 3, 10), torch.tensor([[4, -1, 7]])
print([round(a, 3) for a in next_token_loss(scores, targets, "none")[0].tolist()], "ln 10 = 2.303")
assert next_token_loss(scores, nothing[None]) == 0

scores = torch.randn(1, 3, 10, generator=torch.Generator().manual_seed(0)).mul(20).requires_grad_()
plain = F.cross_entropy(15 * torch.tanh(scores[0] / 15), targets[0], ignore_index=-1)
torch.testing.assert_close(next_token_loss(scores, targets), plain)
by_hand, derived = (torch.autograd.grad(loss, scores)[0] for loss in (next_token_loss(scores, targets), plain))
torch.testing.assert_close(by_hand, derived)
print("largest difference from PyTorch's gradient:", (by_hand - derived).abs().max().item())


# %% [markdown]
# ## The model
#
# Three things to notice. The embedding is looked up in fp32 and cast to `compute_dtype`; from there everything has that dtype until the logits. (The look-up stands in a method of its own, which `torch.compile` is told to leave alone: compiled, the gradient of a look-up adds number by number. Left alone it made a whole step at depth 4 on two cores 1.3% faster.) Features and logits are apart, because a model that writes needs the logits of one position only. And the rotary tables are buffers that are not saved: they follow from the sizes.

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
        x = self.features(idx, cache)
        if targets is None: return self.logits(x)
        return next_token_loss(self.lm_head(x), targets, reduction)

    def features(self, idx: Tensor, cache=None) -> Tensor:
        "(B, T) tokens -> (B, T, C), what the head reads."
        cos_sin, masks = self.places(idx, cache)
        x = rms_norm(self.embed(idx).to(self.compute_dtype))
        for block, mask in zip(self.blocks, masks): x = block(x, cos_sin, mask, cache)
        if cache is not None: cache.advance(idx.shape[1])
        return rms_norm(x)

    @torch.compiler.disable     # its own gradient adds whole rows, a compiled one number by number
    def embed(self, idx: Tensor) -> Tensor:
        "(B, T) tokens -> (B, T, C), their rows of the embedding in fp32."
        return self.wte(idx)

    def logits(self, x: Tensor) -> Tensor:
        "(..., C) features -> (..., V) fp32 logits between -15 and 15."
        return softcap(self.lm_head(x))


# %% [markdown]
# Two methods are still missing. The first says where tokens stand: their angles, and who sees whom. (With a cache, lesson 08, a text goes on where it stopped.)

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
# ## The first weights
#
# What size should a weight have before it has learned anything? Take one output of a linear map, $y = \sum_{i=1}^{n} w_i x_i$, with independent weights of mean 0 and spread $\sigma$. Variances add: $\operatorname{Var}(y) = n\,\sigma^2\,\overline{x^2}$. To keep the size of what comes in, take $\sigma = 1/\sqrt n$, with $n$ the **fan-in**, the numbers that go into one output.
#
# Now follow the MLP. It reads a normalised copy, so $\overline{x^2} = 1$ and each hidden $z$ is about normal with variance 1. Of a normal number, $\overline{z^4} = 3$; ReLU² keeps the positive half, so $\overline{h^2} = 3/2$. With $\sigma = 1/\sqrt{4C}$ on the way back, **each MLP adds 1.5 to the variance of the stream.** Attention averages values, so it adds less. Check the 1.5:

# %%
torch.manual_seed(0)
x, up, down = rms_norm(torch.randn(500, 256)), torch.randn(1024, 256) / 256**0.5, torch.randn(256, 1024) / 1024**0.5
added = (F.relu(x @ up.T).square() @ down.T).square().mean().item()
print(f"an MLP adds {added:.2f}")
assert abs(added - 1.5) < 0.15

# %% [markdown]
# So with such weights everywhere the stream after $l$ layers has variance $1 + 1.5\,l$ or more: at depth 20 the embedding is less than a thirtieth of the sum, and by $1/r$ above each later layer hears less from its gradient. Three answers are in use. GPT-2 divides the spread of the matrices that write by $\sqrt{2L}$. Many programs use 0.02 everywhere. Ours sets what writes to **zero**, and the head too. Let us see all of them, and two careless ones: spread 1 everywhere, and the fan-in rule without any correction.

# %%
CONFIG = GPTConfig(vocab_size=256, seq_len=64, n_layer=12, n_head=2, n_kv_head=2, n_embd=128)
def writes(name): return name.endswith("c_proj.weight")

SCHEMES = {       # name and weight -> spread
    "1 everywhere": lambda name, p: 1.0,
    "fan-in": lambda name, p: 1.0 if name == "wte.weight" else p.shape[1] ** -0.5,
    "fan-in, writers / √2L": lambda name, p: 1.0 if name == "wte.weight" else p.shape[1] ** -0.5 * ((24 ** -0.5) if writes(name) else 1),
    "0.02 everywhere": lambda name, p: 0.02,
    "writers and head 0": lambda name, p: 1.0 if name == "wte.weight" else 0.0 if writes(name) or name == "lm_head.weight" else p.shape[1] ** -0.5,
}
print(len(SCHEMES), "schemes")
assert SCHEMES["writers and head 0"]("blocks.0.mlp.c_proj.weight", torch.zeros(1, 4)) == 0


# %% [markdown]
# The exported method is the last of them. Its one more factor, $\min(1, \sqrt{\text{out}/\text{in}})$, makes maps that narrow a little smaller (Yang and others 2023); here that touches keys and values when heads share them.

# %%
#| export
@patch
def init_weights(self: GPT,
    seed: int = 0,  # same seed, same weights (on the same kind of device)
) -> None:
    """Give every weight its first value: scaled normal; zero for head and what writes to the stream.

    Rotary tables are (re)built too. On the meta device nothing has values: call it again after
    `to_empty`."""
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
idx = torch.randint(0, 512, (4, 65), generator=torch.Generator().manual_seed(1))
print({name.split(".", 2)[-1]: round(p.std().item(), 3) for name, p in list(model.named_parameters())[:7]})
assert model(idx).shape == (4, 65, 512) and not model(idx).any()

# %% [markdown]
# **An untrained model must be exactly as ignorant as chance.** All logits are zero, so each of $V$ tokens has probability $1/V$ and the loss is $\ln V$. If your first loss is larger, the model starts confidently wrong; if it is smaller, something leaks. It is the cheapest test in this course.

# %%
import math

loss = model(idx[:, :-1], idx[:, 1:])
print(f"first loss {loss:.4f}   ln 512 = {math.log(512):.4f}")
assert abs(loss.item() - math.log(512)) < 1e-5


# %% [markdown]
# Now all schemes, in a model of 12 layers and width 128. **Predict** the variance of the stream at the top for each, and the first loss ($\ln 256$ is 5.55).

# %%
def fill(model: GPT, spread) -> GPT:
    "Give each weight a normal value of the spread that `spread(name, weight)` says."
    g = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters(): nn.init.normal_(p, generator=g).data.mul_(spread(name, p))
    return model

def look(model: GPT, idx: Tensor) -> tuple[list, list, float]:
    "By layer: mean square of the stream, and size of the loss's gradient at it; and the loss."
    cos_sin, _ = model.places(idx[:, :-1])
    stream = [rms_norm(model.wte(idx[:, :-1]))]
    for block in model.blocks: stream.append(block(stream[-1], cos_sin))
    loss = next_token_loss(model.lm_head(rms_norm(stream[-1])), idx[:, 1:])
    grads = torch.autograd.grad(loss, stream)
    return [x.square().mean().item() for x in stream], [g.norm().item() for g in grads], loss.item()

idx = torch.randint(256, (8, 65), generator=torch.Generator().manual_seed(0))
seen = {name: look(fill(GPT(CONFIG), spread), idx) for name, spread in SCHEMES.items()}
for name, (size, grad, loss) in seen.items(): print(f"{name:22} variance at the top {size[-1]:12,.1f}   first loss {loss:6.3f}")
assert seen["writers and head 0"][2] == min(s[2] for s in seen.values())

# %%
fig, axes = plt.subplots(1, 2, figsize=(8.5, 2.9), layout="constrained")
for (name, (size, grad, _)), style in zip(seen.items(), (":", "--", "-.", (0, (1, 1)), "-")):
    axes[0].plot(size, ls=style, label=name)
    axes[1].plot(grad if any(grad) else [math.nan] * 13, ls=style)
axes[0].plot(range(13), [1 + 1.5 * l for l in range(13)], "k.", ms=4, label="1 + 1.5 l")
for ax, title in zip(axes, ("mean square of the stream", "gradient at the stream")): ax.set(yscale="log", xlabel="layer", title=title)
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
figure(fig, caption="Untrained models of 12 layers by the size of their first weights. The line of zeros has no gradient to draw: at first only the head learns.",
       alt="Left, log scale against layer: spread 1 jumps to ten million; fan-in rises to about 24, a little above dots at 1 plus 1.5 l; divided writers rise to about 2; "
           "0.02 and zero writers stay at 1. Right: for spread 1 the gradient drops ten-thousandfold from layer 0 to 1; for fan-in it falls by seven; the others are flat.")
assert seen["fan-in"][0][-1] > 1 + 1.5 * 12 and seen["1 everywhere"][1][0] > 1000 * seen["1 everywhere"][1][-1]

# %% [markdown]
# The dots are the prediction from the 1.5; the measured line lies a little above. Is the rest attention?

# %%
model = fill(GPT(CONFIG), SCHEMES["fan-in"])
x, place = rms_norm(model.wte(idx[:, :-1])), model.places(idx[:, :-1])[0]
for layer, block in enumerate(model.blocks):
    a = block.attn(rms_norm(x), place)
    m = block.mlp(rms_norm(x + a))
    if layer in (0, 5, 11): print(f"layer {layer:2}: attention adds {a.square().mean():.2f}, the MLP {m.square().mean():.2f}")
    x = x + a + m
torch.testing.assert_close(x.square().mean().item(), seen["fan-in"][0][-1], rtol=1e-4, atol=0)

# %% [markdown]
# It is. In the first layer attention averages unrelated values, and little is left. But no hidden number of a ReLU² is negative, so each MLP writes a part that all tokens share, and a mean does not shrink what is shared.
#
# With spread 1 the first layer alone brings the mean square to ten million, and $1/r$ leaves all layers above it a ten-thousandth of the gradient. Its first loss is three times chance.
#
# Does it matter once training runs? **Predict** the order of four of them after a short run on bytes of the microworld, all with the same optimizer and rate.

# %%
from nanochat.microworld import corpus

text = torch.tensor(list("\n".join(doc.text for doc in corpus(200_000)).encode()))     # bytes are tokens here

def batch(seed: int, B: int = 8, T: int = 32) -> Tensor:
    "(B, T + 1) bytes from random places."
    return text[torch.randint(len(text) - T - 1, (B, 1), generator=torch.Generator().manual_seed(seed)) + torch.arange(T + 1)]

def learn(model: GPT, steps: int, lr: float = 4e-3) -> list[float]:
    "AdamW with a rising and falling rate (lesson 02d); the losses."
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0), []
    for step in range(steps):
        for group in optimizer.param_groups: group["lr"] = lr * min(1, (step + 1) / 10, (steps - step) / (0.4 * steps))
        rows = batch(step)
        loss = model(rows[:, :-1], rows[:, 1:])
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        losses.append(loss.item())
    return losses

print(bytes(batch(0)[0].tolist()))

# %%
SMALL = GPTConfig(vocab_size=256, seq_len=32, n_layer=6, n_head=2, n_kv_head=2, n_embd=48)
steps = by_tier(10, 100)
runs = {name: learn(fill(GPT(SMALL), spread), steps) for name, spread in SCHEMES.items() if name != "0.02 everywhere"}
for name, losses in runs.items(): print(f"{name:22} first {losses[0]:5.2f}   last ten {sum(losses[-10:]) / 10:.2f}")
assert all(sum(losses[-10:]) / 10 < losses[0] for losses in runs.values())

# %%
fig, ax = plt.subplots(figsize=(5.5, 2.6), layout="constrained")
for (name, losses), style in zip(runs.items(), (":", "--", "-.", "-")): ax.plot(losses, ls=style, label=name)
ax.axhline(math.log(256), color="gray", lw=0.8, ls=":")
ax.set(xlabel="step (8 rows of 32 bytes)", ylabel="loss (nats)", ylim=(1.5, 8))
ax.legend(frameon=False, fontsize=8)
figure(fig, caption="Four kinds of first weights, one optimizer and rate. The dotted line is chance, ln 256.",
       alt="Loss against step. Spread 1 starts far above chance and stays highest. The other three start at or near chance; fan-in and divided writers fall first, zero writers later.")

# %% [markdown]
# Spread 1 stays behind to the end. Between the others the result is not what you may have hoped: **the zero start is behind.** Its blocks must first grow their writers from nothing, and AdamW moves each weight by about the rate at every step, no faster. For 100 steps at one rate for all, GPT-2's divided spread is the better choice. What zero buys is something else: a first loss that is *exactly* $\ln V$, at any depth, and no layer that talks before it has something to say. Real runs last ten thousands of steps, and nanochat trains the blocks with an optimizer of their own. Keep the question for lesson 04.
#
# **Trap: two zeros in a row.** A zero matrix can learn only if something other than zero comes in, and only if its output matters. At step 1 the head is zero, so nothing above the blocks listens and only the head gets a gradient; at step 2 the writers do; from step 3 on everything does. But set *both* matrices of an MLP to zero, and the first sees no gradient because the second is zero, the second none because its input is. **Predict** how long they stay so.

# %%
model = GPT(SMALL)
for block in model.blocks: nn.init.zeros_(block.mlp.c_fc.weight)
_ = learn(model, steps=10)
mlps = [p.abs().max().item() for block in model.blocks for p in block.mlp.parameters()]
print("largest weight of any MLP after 10 steps:", max(mlps), "  of the attention:", round(model.blocks[0].attn.c_proj.weight.abs().max().item(), 4))
assert max(mlps) == 0 < model.blocks[0].attn.c_proj.weight.abs().max()

# %% [markdown]
# For ever. Two thirds of the blocks' weights are dead, the loss falls all the same, and nothing tells you. So look for weights that never move.
#
# **Why is the head not the embedding?** Both are tables of $V \times C$, and many models use one for both (Press and Wolf 2017), which saves $VC$ weights. Ours are **untied**. **Predict** the first loss of our model if the head shared the embedding's weights.

# %%
tied = GPT(CONFIG)
tied.lm_head.weight = tied.wte.weight
says = tied(idx[:, :-1]).argmax(-1)
print(f"first loss {tied(idx[:, :-1], idx[:, 1:]):.1f}; says the token it has just read: {(says == idx[:, :-1]).float().mean():.0%}")
assert (says == idx[:, :-1]).float().mean() > 0.99


# %% [markdown]
# The stream is still the token's own vector, and no vector is as like it as itself: the model begins certain that every token is followed by itself. Untied, it can begin with a large embedding and a silent head.
#
# ## What does it weigh?
#
# A layer has four maps of $C^2$ in attention and $4C^2 + 4C^2$ in the MLP. Embedding and head have $VC$ each:
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
counts = GPT(config_for(2, vocab_size=512, seq_len=64, head_dim=64)).num_params()
print(counts)
assert counts["total"] == 2 * 512 * 128 + 12 * 2 * 128**2 and counts["head"] == 512 * 128


# %% [markdown]
# ## What does it cost?
#
# One weight used on one token is a multiplication and an addition, 2 operations. Backward there are two products of the same size, one for the gradient of the weight and one for that of its input: 6 in all. The embedding multiplies nothing, since it is looked up. In attention a query meets $T$ keys, $2CT$ operations, and as many values, $2CT$; with backward $12CT$ a layer:
#
# $$F = 6\,(N - VC) + 12\,L\,C\,T \quad\text{operations for one token}$$

# %%
#| export
@patch
def flops_per_token(self: GPT) -> int:
    """Floating-point operations of forward and backward for one training token.

    6 for each weight that multiplies (not the embedding, which is a look-up) and, in each layer,
    12 C for each of T keys or of its window (PaLM, Chowdhery et al. 2022, appendix B)."""
    count, T = self.num_params(), self.config.seq_len
    keys = sum(T if w is None else min(w, T) for w in self.config.windows())
    return 6 * (count["total"] - count["embedding"]) + 12 * self.config.n_embd * keys


# %% [markdown]
# A formula should be checked by something that does not know it. PyTorch can watch every matrix product that is really carried out:

# %%
from nanochat.attention import attend
from torch.utils.flop_counter import FlopCounterMode

for kv_heads in (None, 1):
    model = GPT(config_for(2, vocab_size=512, seq_len=64, head_dim=64, kv_heads=kv_heads))
    rows = torch.randint(512, (3, 65))
    for block in model.blocks: block.attn.attend = attend      # the plain form: it computes every pair
    with FlopCounterMode(display=False) as counter: model(rows[:, :-1], rows[:, 1:]).backward()
    print(f"counted {counter.get_total_flops():,}, by formula {3 * 64 * model.flops_per_token():,}")
    assert counter.get_total_flops() == 3 * 64 * model.flops_per_token()


# %% [markdown]
# Equal to the last digit. (Masked pairs of query and key are counted too, here and in published figures, although a good form leaves some out: `attend_normed` a quarter of all pairs, the fused kernel nearly half.)
#
# **Trap: counting by class.** Published nanochat counts the weights of its own `Linear`. With 8-bit arithmetic switched on, the layers become another class and drop out of the sum, so a run looks several times cheaper than it is. Ours asks for parameters, and does not care who holds them:

# %%
class OtherLinear(nn.Module):
    "Stands for a layer that was swapped for a faster one."
    def __init__(self, old: Linear):
        super().__init__()
        self.weight = old.weight

before = model.flops_per_token()
for block in model.blocks: block.mlp.c_fc = OtherLinear(block.mlp.c_fc)
by_class = sum(6 * m.weight.numel() for m in model.modules() if isinstance(m, Linear)) + 12 * 2 * 128 * 64
print(f"by class {by_class:,}, by parameters {model.flops_per_token():,}")
assert by_class < before == model.flops_per_token()


# %% [markdown]
# Now the models that were really trained. The meta device knows shapes and has no memory, so a model of billions costs nothing:

# %%
def on_paper(depth: int, vocab_size: int = 65536) -> GPT:
    "A model without memory: the meta device knows shapes only."
    with torch.device("meta"): return GPT(config_for(depth, vocab_size, seq_len=2048))

for depth, published in ((20, 560_988_160), (32, 1_879_048_192)):
    big = on_paper(depth)
    print(f"d{depth}: {big.num_params()['total']:,} parameters, {big.flops_per_token():.6e} FLOPs a token")
    assert big.num_params()["total"] == published
assert on_paper(20).flops_per_token() == 3_491_758_080 and on_paper(32).flops_per_token() == 12_079_595_520

# %% [markdown]
# Both totals are those that published nanochat printed for its \$100 and \$800 models, to the last digit. **Predict:** what share of d4's weights at this vocabulary are blocks? And of d20's?

# %%
depths = [2, 4, 8, 12, 16, 20, 26, 32]
parts = [on_paper(d).num_params() for d in depths]
fig, axes = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
bottom = [0.0] * len(depths)
for name, hatch in (("matrices", ""), ("head", "//"), ("embedding", "..")):
    share = [p[name] / p["total"] for p in parts]
    axes[0].bar(range(len(depths)), share, bottom=bottom, hatch=hatch, label=name, edgecolor="white")
    bottom = [a + b for a, b in zip(bottom, share)]
axes[0].set(xticks=range(len(depths)), xticklabels=depths, xlabel="depth", ylabel="share of the weights")
axes[0].legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
lengths = [512 * 2**i for i in range(8)]
axes[1].plot(lengths, [12 * 20 * 1280 * T / (6 * (560_988_160 - 65536 * 1280) + 12 * 20 * 1280 * T) for T in lengths], "o-", ms=3)
axes[1].set(xscale="log", xlabel="context T (tokens)", ylabel="share of the operations", title="d20: scores and sums", ylim=(0, 1))
figure(fig, caption="Left: what a model of 65,536 tokens weighs, by part. Right: attention's share of d20's operations as the context grows.",
       alt="Left: at depth 2 nearly all weights are embedding and head; at depth 20 seven tenths are matrices of the blocks; at depth 32 nearly nine tenths. "
           "Right: the share rises from a twentieth at 512 tokens to over four fifths at 65,536.")
print({d: f"{p['matrices'] / p['total']:.0%}" for d, p in zip(depths, parts)})


# %% [markdown]
# That is why the laptop model has a vocabulary of about a thousand: with 65,536, a model of depth 4 would be a dictionary and little else.
#
# ## What does it fill?
#
# A training step holds four things. Weights: 4 bytes each. Gradients: as many. The optimizer's memory: AdamW keeps two running means for each weight, 8 bytes (lesson 02d); Muon, which nanochat uses for the blocks, keeps one (lesson 04). And **activations**: what the forward pass computes and the backward pass will need.
#
# Count those by going through a block and asking of each operation what its derivative needs. In numbers a token, with $G$ key heads of size $D$:
#
# | operation | needs | numbers |
# |---|---|---|
# | two norms | their inputs | $2C$ |
# | three maps read one normalised copy | it | $C$ |
# | QK norm | turned queries and keys | $C + GD$ |
# | scores | normalised queries and keys | $C + GD$ |
# | softmax, weighted sum | weights (without the quarter that is left out), values, result | $\tfrac34 HT + GD + C$ |
# | output map | the mixed values | $C$ |
# | MLP: up, square, down | normalised copy, ReLU, its square | $C + 4C + 4C$ |
#
# Together $16C + 3GD + \tfrac34 HT$. The fused kernel keeps no weights. On a CPU shared keys and values are kept as copies, $2C$ in place of $2GD$, and a layer with a window keeps all $HT$ weights, but not its result. Outside the blocks there are three more norms and maps, $3C$, and the raw scores, $V$. In bf16 an activation has 2 bytes, and each weight is used as a cast copy, 2 bytes more.

# %%
#| export
@patch
def memory(self: GPT,
    rows: int,                    # rows of seq_len tokens that go through at once
    moments: dict | None = None,  # numbers kept for a weight, by part; None: 2 (AdamW)
) -> dict[str, int]:              # bytes of weights, gradients, optimizer, activations; total
    """Bytes that a training step without `torch.compile` holds when its backward pass begins.

    Small things (one number a token, masks, tables) are left out; a compiled step keeps less.
    In bf16 on a CPU it is about 15% more: RMSNorm keeps fp32 copies there."""
    c, count = self.config, self.num_params()
    size, N, T = self.compute_dtype.itemsize, count["total"], c.seq_len
    C, shared, pairs = c.n_embd, c.n_kv_head * c.head_dim, c.n_head * T
    fused, plain = 2 * shared + C, 2 * shared + pairs
    result = C if c.n_head > 1 else 0         # one head: what c_proj keeps is the result itself
    normed = 2 * C + result + 3 * pairs // 4
    forms = [fused if attend_on(self.device) is attend_sdpa else normed if w is None else plain
             for w in c.windows()]
    token = (sum(15 * C + shared + form for form in forms) + 3 * C + c.vocab_size) * size
    copies = (N - count["embedding"]) * size if size < 4 else 0       # weights cast for each use
    kept = {name: (moments or {}).get(name, 2) for name in self.parts()}
    parts = {"weights": 4 * N, "gradients": 4 * N,
             "optimizer": sum(4 * kept[name] * count[name] for name in kept),
             "activations": rows * T * token + copies}
    return parts | {"total": sum(parts.values())}


# %% [markdown]
# **Check it** against what is really there: sizes of tensors for the first three, and for activations a hook that PyTorch calls for each tensor it keeps for the backward pass.

# %%
def measured(model: GPT, rows: Tensor) -> dict[str, int]:
    "Bytes of each part of one training step with AdamW, by looking at the tensors."
    own, kept = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}, {}
    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own: kept[storage.data_ptr()] = storage.nbytes()
        return t
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t): loss = model(rows[:, :-1], rows[:, 1:])
    activations = sum(kept.values())
    optimizer = torch.optim.AdamW(model.parameters())
    loss.backward(); optimizer.step()
    states = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    return {"weights": sum(p.nbytes for p in model.parameters()), "gradients": sum(p.grad.nbytes for p in model.parameters()),
            "optimizer": sum(t.nbytes for t in states), "activations": activations}


# %%
for kv_heads in (None, 1):
    model = GPT(config_for(3, vocab_size=512, seq_len=128, head_dim=64, kv_heads=kv_heads))
    found, formula = measured(model, torch.randint(512, (4, 129))), model.memory(rows=4)
    for part, real in found.items(): print(f"{part:11} {real / 1e6:6.2f} MB measured, {formula[part] / 1e6:6.2f} MB by formula")
    assert all(abs(formula[part] / real - 1) < 0.02 for part, real in found.items())

# %% [markdown]
# Within one percent, in fp32; the rest is the small things that were left out. (In bf16 on a CPU the formula is about 15% too low: RMSNorm keeps fp32 copies of what it reads.) Where does the memory of a \$100 model go? **Predict** the largest part at 32 rows of 2,048 tokens.

# %%
MUON = {"embedding": 2, "matrices": 1, "head": 2}
big = on_paper(20)
big.compute_dtype = torch.bfloat16
rows, names = [1, 2, 4, 8, 16, 32], ["weights", "gradients", "optimizer", "activations"]
fig, ax = plt.subplots(figsize=(5.5, 2.6), layout="constrained")
bottom = [0.0] * len(rows)
for name, hatch in zip(names, ("", "//", "..", "xx")):
    size = [big.memory(n, MUON)[name] / 1e9 for n in rows]
    ax.bar([str(n) for n in rows], size, bottom=bottom, label=name, hatch=hatch, edgecolor="white")
    bottom = [a + b for a, b in zip(bottom, size)]
ax.axhline(80, color="black", lw=0.8, ls="--")
ax.set(xlabel="rows of 2,048 tokens at once", ylabel="GB")
ax.legend(frameon=False, fontsize=8)
figure(fig, caption="Memory of a training step of d20 in bf16 with Muon, by part, without compiling. The dashed line is a GPU of 80 GB.",
       alt="Stacked bars for 1 to 32 rows. Weights, gradients and optimizer are about 7 GB in every bar; activations grow in proportion to the rows "
           "and reach the line of 80 GB just before 32 rows.")
print({n: round(big.memory(n, MUON)["total"] / 1e9, 1) for n in rows})
assert big.memory(16, MUON)["total"] < 80e9 < big.memory(32, MUON)["total"]

# %% [markdown]
# Weights are the small part. An eighth of what a row fills is its raw scores, 65,536 a token in bf16; kept twice in fp32, as a plain loss keeps them, they would be a third. Published nanochat runs 32 rows on 80 GB, since `torch.compile` computes cheap things again instead of keeping them. (One user still ran out of memory, issue 443 there.) Where it does not fit, take fewer rows at once and accumulate (lesson 03); the update is the same.
#
# ## Two traps of memory that was never filled, or filled too coarsely
#
# **Built on meta.** Large models are built on the meta device and filled later. What the constructor *computed*, such as the rotary tables, was computed on nothing, and `to_empty` gives memory with whatever was in it. Published nanochat once left new parameters so. The cure: `init_weights` makes everything, tables included.

# %%
with torch.device("meta"): late = GPT(config_for(2, vocab_size=64, seq_len=32, head_dim=64))
late = late.to_empty(device="cpu")
nn.init.constant_(late.cos, 7.0)                # stands for whatever was in that memory
print("a cosine of", late.cos[0, 0].item())
late.init_weights(seed=5)
early = GPT(late.config, seed=5)
assert all(torch.equal(a, b) for a, b in zip(late.parameters(), early.parameters()))
assert torch.equal(late.cos, early.cos) and late.cos.abs().max() <= 1

# %% [markdown]
# **Cast as a whole.** `model.bfloat16()` looks like the way to half the memory. It casts *everything*, and the rotary tables are among it. What does that alone do to the logits, with all weights as they were?

# %%
model = fill(GPT(CONFIG), SCHEMES["fan-in"])
exact = model(idx)
model.cos, model.sin = model.cos.bfloat16().float(), model.sin.bfloat16().float()
off = (model(idx) - exact).abs().max().item()
print(f"tables rounded to bf16: a logit is off by up to {off:.3f}")
assert off > 1e-3


# %% [markdown]
# Nothing crashes. The model reads places a little wrong, and two programs with the same weights disagree. (Published nanochat rounds its tables on purpose; `transformers` does not, unless somebody casts the whole model.) Every cast and move of a module goes through one method, so that is where the tables are made anew:

# %%
#| export
@patch
def _apply(self: GPT, fn, recurse: bool = True) -> GPT:
    "What `.to`, `.cuda`, `.bfloat16` go through: afterwards the rotary tables are fp32 again."
    nn.Module._apply(self, fn, recurse)
    if self.cos is not None and self.cos.dtype != torch.float32:
        T, D = self.config.max_len, self.config.head_dim
        self.cos, self.sin = rotary_tables(T, D, device=self.device)
    return self


# %%
low = GPT(early.config, seed=5).bfloat16()
print("weights", low.wte.weight.dtype, " tables", low.cos.dtype)
assert low.wte.weight.dtype == torch.bfloat16 and torch.equal(low.cos, early.cos)

# %% [markdown]
# ## Inside a trained stream
#
# Train one small model a little longer, and use what you know about sums. Since every layer only adds, you can *leave one out* and see what is missed. **Predict:** which of the four layers will the model miss most?

# %%
model = GPT(GPTConfig(vocab_size=256, seq_len=32, n_layer=4, n_head=2, n_kv_head=2, n_embd=64))
losses = learn(model, steps=by_tier(60, 300))
held = torch.cat([batch(100_000 + i) for i in range(16)])        # other places of the text

@torch.no_grad()
def loss_without(layer: int | None) -> float:
    "Loss on other places when one layer adds nothing."
    kept = nn.ModuleList(b for i, b in enumerate(model.blocks) if i != layer)
    whole, model.blocks = model.blocks, kept
    try: return next_token_loss(model.lm_head(rms_norm(walk(model, held)[-1])), held[:, 1:]).item()
    finally: model.blocks = whole

def walk(model: GPT, rows: Tensor) -> list[Tensor]:
    "The stream before the first block and after each."
    cos_sin, _ = model.places(rows[:, :-1])
    stream = [rms_norm(model.wte(rows[:, :-1]))]
    for block in model.blocks: stream.append(block(stream[-1], cos_sin))
    return stream

missed = {layer: loss_without(layer) for layer in (None, 0, 1, 2, 3)}
for layer, loss in missed.items(): print(f"without layer {layer}: {loss:.2f}" if layer is not None else f"whole model: {loss:.2f}")
assert missed[None] <= min(missed.values()) + by_tier(0.2, 0)              # after a few steps a layer may still be in the way

# %% [markdown]
# The first, and by far: without it the loss is worse than that of the bare embedding (the next cell prints it): the other three write corrections to a vector that is not there. Each of the other three can go at the price of a few hundredths, which no stage of a chain would survive. They wrote into a sum, and the sum lacks one term (Veit and others 2016).
#
# The head can also read the stream *early*. What would the model say after each layer? This is the **logit lens** (nostalgebraist 2020). **Predict** the other curve too: how large the stream is after each layer.

# %%
with torch.no_grad():
    stream = walk(model, held)
    early_loss = [next_token_loss(model.lm_head(rms_norm(x)), held[:, 1:]).item() for x in stream]
    size = [x.square().mean().sqrt().item() for x in stream]
print("loss by layer", [round(z, 2) for z in early_loss], " size", [round(z, 1) for z in size])
fig, axes = plt.subplots(1, 2, figsize=(7, 2.3), layout="constrained")
axes[0].plot(early_loss, "o-"); axes[1].plot(size, "s-")
axes[0].set(title="loss, read early", xlabel="after layer", ylabel="nats", xticks=range(5))
axes[1].set(title="size of the stream", xlabel="after layer", ylabel="root mean square", xticks=range(5), ylim=(0, None))
figure(fig, caption="A trained model of four layers. Left: what the head makes of the stream after each layer. Right: how large the stream has become.",
       alt="Left: the loss falls from 3.8 to 2.5 with the first layer, and to 2.3 with the other three. Right: the size of the stream jumps from 1 to 34 with the first layer and then stays.")
assert early_loss[-1] < early_loss[0] and size[-1] > size[0]

# %% [markdown]
# Both curves say the same. The first layer makes the stream 34 times as large as the embedding, since nothing bounds what ReLU² puts out; the others add to that what little they can, and by $1/r$ little gradient comes back to them. Adding makes depth *possible*. Whether it is *used* depends on the rate, the optimizer and the time (lessons 02d, 04 and 03).
#
# ## At scale
#
# Depth 20 on 20 tokens a parameter reads 11.2 billion tokens. Eight H100 deliver 7.9e15 operations a second at their bf16 peak; nanochat reported 47 percent of that.

# %%
total = big.flops_per_token() * 20 * big.num_params()["total"]
hours = total / (8 * 989e12 * 0.47) / 3600
print(f"{total:.2e} operations, {hours:.1f} hours, ${hours * 24:.0f} at $24 an hour")
for depth in (12, 20, 26, 32):
    m = on_paper(depth)
    print(f"d{depth}: {m.num_params()['total'] / 1e6:6,.0f} M parameters, {20 * m.num_params()['total'] / 1e9:5.1f} B tokens, "
          f"{m.flops_per_token() * 20 * m.num_params()['total'] / (8 * 989e12 * 0.47) / 3600:5.1f} h")
assert 2.5 < hours < 3.5

# %% [markdown]
# Cost grows with the *square* of the parameters, as tokens grow with them. Published nanochat later added more to the stream (scalars that weigh each layer, the embedding again, value tables); this course keeps the first architecture, which `transformers` can load. That is also our independent check: `tests/test_parity_transformers.py` gives our weights to its `NanoChatForCausalLM`, and logits, loss, gradients and greedy text are equal.
#
# ## Recap
#
# 1. Layers add to a stream and read a normalised copy of it. The gradient keeps a free way down, and its size goes as one over the stream's.
# 2. Fan-in makes spreads $1/\sqrt n$; ReLU² makes each MLP add 1.5; so what writes is made small, or zero. Never two zeros in a row.
# 3. The first loss is $\ln V$, exactly. Softcap, loss and rotary tables are fp32 whatever else is not.
# 4. $N = 2VC + 12LC^2$; $F = 6(N - VC) + 12LCT$; both equal what is published, and what a counter counts.
# 5. Memory is weights, gradients, optimizer and, above all, activations: $L\,(19C + \dots) + V$ numbers a token.
#
# ## Quiz
#
# <details><summary>1. Your first loss is 11.9 at a vocabulary of 65,536. What do you look at?</summary>ln 65,536 is 11.09, so the model starts confidently wrong: the head is not zero, or a target is shifted. The difference of 0.8 fits logits with a variance of about 1.6.</details>
# <details><summary>2. You double the width at the same depth. By what factor grow blocks, embedding, and operations a token?</summary>Blocks by 4, embedding and head by 2, operations by a little less than 4, since the head and the scores grow by 2 only.</details>
# <details><summary>3. Why does nobody normalise the stream itself after each layer any more?</summary>The free way down would lead through every norm, which takes away the part along x and divides by r. Reading normalised copies leaves it open.</details>
# <details><summary>4. All targets of a batch are -1. What must the loss be, and its gradient?</summary>Both 0. A mean over nothing is 0/0: PyTorch's own spoils every average that the loss goes into, one written with a mask spoils every weight.</details>
# <details><summary>5. A run does not fit. Which costs you nothing in the result: half the rows twice, half the context, half the vocabulary?</summary>Half the rows, twice, with the gradients added: the same update. The other two are another model.</details>
# <details><summary>6. After 1,000 steps one matrix is still exactly zero. What happened?</summary>It never got a gradient: what comes in is always zero, or what it writes is multiplied by zero. Two zero matrices in a row do that.</details>
#
# ## Papers
#
# He and others 2015, *Deep residual learning* · Vaswani and others 2017 · Radford and others 2019 (GPT-2: norms before, writers divided) · Balduzzi and others 2017, *The shattered gradients problem* · Xiong and others 2020, *On layer normalization in the transformer architecture* · Veit and others 2016, *Residual networks behave like ensembles* · Zhang and Sennrich 2019 (RMSNorm) · So and others 2021, *Primer* (ReLU²) · Yang and others 2023, *A spectral condition for feature learning* (spreads) · Press and Wolf 2017 (tied tables) · Gemma Team 2024 (softcap) · Chowdhery and others 2022, *PaLM*, appendix B (counting) · Elhage and others 2021 (the stream as a channel) · nostalgebraist 2020, *interpreting GPT: the logit lens*. The architecture is that of Karpathy's nanochat.
#
# **Next:** `02b_data` feeds it. `02c_sampling` lets it write.
#
# ## What your package can do now
#
# Text from the microworld, your tokenizer, and a GPT of an odd depth with shared heads and a window, on a sentence. It has learned nothing, and says so exactly.

# %%
from nanochat.tokenizer import Tokenizer

texts = [doc.text for doc in corpus(50_000)]
tokenizer = Tokenizer.train(texts, 512)
ids = torch.tensor([tokenizer.encode(texts[0])[:33]])
model = GPT(config_for(3, tokenizer.vocab_size, seq_len=32, head_dim=64, kv_heads=1, window=(8,)))
loss = model(ids[:, :-1], ids[:, 1:])
print(f"{model.num_params()['total']:,} weights, {model.flops_per_token():,} operations a token; first loss {loss:.4f} = ln {tokenizer.vocab_size}")
assert abs(loss.item() - math.log(tokenizer.vocab_size)) < 1e-4
