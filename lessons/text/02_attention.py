# %% [markdown]
# # 02. Attention
#
# You build the part of a language model that looks back: every token asks all earlier tokens a question and mixes their answers.
#
# After this lesson you can
#
# * compute attention by hand, in loops and in tensors, and say what each matrix product means;
# * keep a model from seeing the future, and prove that it does not;
# * derive why rotary embedding knows distances and not places;
# * share keys between heads, and limit how far back a layer looks;
# * check all of it against an implementation that is not yours.
#
# You need `00a_workshop` and a little PyTorch. Reading: 35 minutes. Doing: 40 minutes. Computing: seconds.

# %%
#| default_exp attention

# %%
#| export
from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from nanochat.workshop import UserError

# %% [markdown]
# ## A question that an average cannot answer
#
# Here are five words. The last one is a pronoun, and to guess what comes next you must know whom it means.
# Give each word two numbers: how much it is a *person* and how much it is a *thing*. The simplest summary of the past is the mean. Look
# at what it knows.

# %%
words = ["Mia", "dropped", "the", "cup", "she"]
x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.5, 0.0]])     # (T, C): person, thing
print("mean of the past:", [round(a, 2) for a in x.mean(0).tolist()])

# %% [markdown]
# A little person, a little thing: the mean has forgotten which word was which. "she" should be able to *ask* for a person and get
# Mia. So let each word carry three vectors:
#
# * a **query**: what am I looking for?
# * a **key**: what do I offer?
# * a **value**: what do I hand over when I am chosen?
#
# The dot product of a query with a key is a score. Softmax turns the scores of one query into weights that sum to one.
# The answer is the weighted mean of the values. With tiny numbers you can do it by hand:

# %%
q, k, v = 4 * x, x, x                      # ask for what you are; offer and hand over what you are
scores = q[4] @ k.T                        # she . every word: (2, 0, 0, 0, 1)
weights = scores.softmax(-1)
for word, s, w in zip(words, scores, weights): print(f"{word:8s} score {s:.1f}  weight {w:.2f}")
print("answer:", [round(a, 2) for a in (weights @ v).tolist()])
assert weights.argmax() == 0               # "she" found Mia


# %% [markdown]
# e² is 7.4 and e¹ is 2.7; the other three scores give 1 each. The sum is 13.1, so Mia gets 7.4 / 13.1 = 0.56. Nothing else happens
# in attention. The rest of this lesson is about doing it for all words at once, without cheating, with a sense of place.
#
# ## In loops, before it is fast
#
# The loop version is slow and obviously right. It is the yardstick for what follows. Each score is divided by the square root of the head size D: a
# sum of D products of unit-variance numbers has variance D, and softmax of large numbers puts everything on one key, where it has no gradient.

# %%
def attend_loops(q, k, v):
    "One head, (T, D) each: every query looks at its own and earlier keys."
    out = torch.zeros_like(v)
    for i in range(len(q)):
        scores = torch.stack([q[i] @ k[j] / q.shape[1] ** 0.5 for j in range(i + 1)])
        weights = scores.exp() / scores.exp().sum()
        for j in range(i + 1): out[i] += weights[j] * v[j]
    return out

torch.manual_seed(0)
q, k, v = torch.randn(3, 6, 4).unbind()
print(attend_loops(q, k, v)[0], "equals the first value", v[0])
assert torch.equal(attend_loops(q, k, v)[0], v[0])


# %% [markdown]
# The first token can see only itself, so its answer is its own value. That "only earlier ones" is the inner `range(i + 1)`. In tensors the loop over
# j becomes a matrix product that computes *all* scores, and a **mask** takes away those that must not count.

# %%
#| export
def causal_mask(
    T: int,           # queries and keys
    device=None,
) -> Tensor:          # (T, T) bool, True where query i may look at key j
    "The mask of a language model: key j is visible to query i when j <= i."
    return torch.ones(T, T, dtype=torch.bool, device=device).tril()


# %%
print(causal_mask(4).int())
assert causal_mask(4).sum(1).tolist() == [1, 2, 3, 4]      # token i sees i + 1 keys


# %% [markdown]
# Some layers of long-context models look only a little way back. Their mask is a band. A window of 2 means "myself and the two before me".

# %%
#| export
def window_mask(
    T: int,           # queries and keys
    window: int,      # how many earlier tokens a token sees besides itself
    device=None,
) -> Tensor:          # (T, T) bool
    "Causal mask of a sliding window: key j is visible to query i when i - window <= j <= i."
    return causal_mask(T, device).triu(-window)


# %%
print(window_mask(5, 2).int())
assert window_mask(5, 2).sum(1).tolist() == [1, 2, 3, 3, 3]
assert torch.equal(window_mask(5, 99), causal_mask(5))     # a wide window is no window


# %% [markdown]
# ## In tensors, for many heads
#
# A model runs several small attentions side by side, called **heads**, so that one may follow names while another follows grammar. They are
# one more axis: q is (B, H, T, D). Two details:
#
# * **Fewer key heads.** Keys and values must be stored while a model talks, so it pays to have fewer of them. With H = 4 query heads and G = 2 key heads, heads 0 and 1
#   share the first keys. No copy is made: the queries of heads that share are stacked as extra rows of one matrix product.
# * **Minus infinity** in a masked place becomes weight 0 after softmax. Zero there would not do: e⁰ is 1.

# %%
#| export
def attend(
    q: Tensor,                   # (B, H, T, D) queries
    k: Tensor,                   # (B, G, S, D) keys; G divides H, and H / G query heads share each
    v: Tensor,                   # (B, G, S, D) values
    mask: Tensor | None = None,  # bool, broadcasts to (B, G, T, S); None: causal, and S = T
) -> Tensor:                     # (B, H, T, D)
    """Scaled dot-product attention in plain matrix products (Vaswani et al. 2017, section 3.2).

    Query heads that share keys are stacked as more query rows, so that keys are never copied
    (grouped-query attention, Ainslie et al. 2023)."""
    B, H, T, D = q.shape
    G, S = k.shape[1], k.shape[2]
    if mask is None: mask = causal_mask(T, q.device)
    dtype = q.dtype                                      # a cache may hold keys and values in fp32
    q = (q * D**-0.5).to(k.dtype).reshape(B, G, H // G * T, D)
    scores = (q @ k.transpose(-2, -1)).view(B, G, H // G, T, S)
    weights = scores.masked_fill(~mask.unsqueeze(-3), float("-inf")).softmax(dim=-1)
    return (weights.view(B, G, H // G * T, S) @ v).view(B, H, T, D).to(dtype)


# %%
ours = attend(q[None, None], k[None, None], v[None, None])[0, 0]      # B = H = 1
torch.testing.assert_close(ours, attend_loops(q, k, v))
print("loops and tensors agree:", ours.shape)


# %% [markdown]
# PyTorch has the same in one fused function, which never writes the (T, T) scores to memory. That saves most of the time on a GPU: at T = 2,048 the
# scores of one layer of 10 heads are 42 million numbers for each row of the batch. On two CPU cores at T = 256 the plain form under `torch.compile` was 17 to 30 percent faster. So
# you keep both, and choose by device. No flag: two functions.

# %%
#| export
def attend_sdpa(
    q: Tensor,                   # (B, H, T, D)
    k: Tensor,                   # (B, G, S, D)
    v: Tensor,                   # (B, G, S, D)
    mask: Tensor | None = None,  # as in `attend`
) -> Tensor:                     # (B, H, T, D)
    "The same as `attend`, by torch's fused kernel: the (T, S) scores are never stored."
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None,
                                          enable_gqa=q.shape[1] != k.shape[1])


# %%
q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)      # H = 4 share G = 2
for mask in (None, causal_mask(9), window_mask(9, 3)):
    torch.testing.assert_close(attend(q, k, v, mask), attend_sdpa(q, k, v, mask))
print("equal for all three masks:", attend_sdpa(q, k, v).shape)


# %% [markdown]
# That was the independent check: torch's kernel shares no code with yours, and both agree for causal and windowed masks with shared keys.

# %%
#| export
def attend_on(device: torch.device) -> Callable:
    "The form that is fast on a device: plain products on a CPU, the fused kernel elsewhere."
    return attend if device.type == "cpu" else attend_sdpa


# %%
print("CPU:", attend_on(torch.device("cpu")).__name__, "  GPU:", attend_on(torch.device("cuda")).__name__)

# %% [markdown]
# ## Where am I? Rotary embedding
#
# Attention as it stands is blind to order. Shuffle the earlier words and the last word gets the same answer.

# %%
q, k, v = torch.randn(3, 1, 1, 6, 8).unbind()
shuffled = [3, 0, 4, 1, 2, 5]                                     # the last one stays last
a, b = attend(q, k, v)[0, 0, -1], attend(q, k[:, :, shuffled], v[:, :, shuffled])[0, 0, -1]
torch.testing.assert_close(a, b)
print("same answer after a shuffle:", a[:3].tolist())


# %% [markdown]
# **Rotary embedding** (Su et al. 2021) turns each query and key by an angle that grows with its position. Take two numbers of a vector as one
# complex number $z$, and turn it by $-\theta$ for each step: $z_m = z\,e^{-i m\theta}$. The dot product of two such pairs is the real part of one times the conjugate of the other:
#
# $$\operatorname{Re}\left(q\,e^{-im\theta}\;\overline{k\,e^{-in\theta}}\right) = \operatorname{Re}\left(q\,\bar k\;e^{-i(m-n)\theta}\right).$$
#
# The places $m$ and $n$ are gone; only their distance is left. Each of the D/2 pairs has its own speed, from one radian a token down to about one ten-thousandth,
# like the hands of a clock. The tables of cosines and sines are kept in fp32 for every model: rounded to bf16 they change the logits visibly.

# %%
#| export
def rotary_tables(
    T: int,                # positions
    D: int,                # head size, even
    base: float = 10000.0, # wavelengths run from 2 pi to 2 pi base tokens
    device=None,
) -> tuple[Tensor, Tensor]:  # cos and sin, each (T, D/2) fp32
    "Cosines and sines of position x base^(-2i/D) for rotary embedding (Su et al. 2021), in fp32."
    speed = base ** (-torch.arange(0, D, 2, dtype=torch.float32, device=device) / D)    # (D/2,)
    angle = torch.arange(T, dtype=torch.float32, device=device)[:, None] * speed        # (T, D/2)
    return angle.cos(), angle.sin()


# %%
cos, sin = rotary_tables(T=100, D=8)
print(cos.shape, "angles at position 1:", [round(a, 4) for a in torch.atan2(sin, cos)[1].tolist()])
torch.testing.assert_close(torch.atan2(sin, cos)[1], torch.tensor([1.0, 0.1, 0.01, 0.001]))


# %% [markdown]
# Which two numbers form a pair is a convention. Ours, nanochat's and `transformers`' takes one from each half of the vector, (x[i], x[i + D/2]), because
# cutting a vector in two halves is cheaper than picking every other number.

# %%
#| export
def apply_rotary(
    x: Tensor,    # (..., T, D)
    cos: Tensor,  # broadcasts to (..., T, D/2)
    sin: Tensor,  # like cos
) -> Tensor:      # (..., T, D) in the dtype of x
    "Turn the pair (x[i], x[i + D/2]) by minus the angle of its position, computed in fp32."
    a, b = x.float().chunk(2, dim=-1)      # (..., T, D/2) each
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1).to(x.dtype)


# %%
x = torch.randn(100, 8)
turned = apply_rotary(x, cos, sin)
complex_x = torch.complex(x[:, :4], x[:, 4:])                             # the formula above, literally
expected = complex_x * torch.exp(-1j * torch.arange(100)[:, None] * 10000 ** (-torch.arange(4) / 4))
torch.testing.assert_close(torch.complex(turned[:, :4], turned[:, 4:]), expected, rtol=1e-4, atol=1e-4)
torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))           # a turn changes no length
print("position 0 is not turned:", torch.equal(turned[0], x[0]))

# %% [markdown]
# **Predict, then look.** Put the same query and the same key at many places, and plot the score. What should the two curves in the next figure do when everything is moved by 40
# tokens?

# %%
import matplotlib.pyplot as plt
from nanochat.workshop import figure

torch.manual_seed(3)
cos, sin = rotary_tables(T=120, D=64)
query, key = torch.randn(64), torch.randn(64) + 1
fig, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
for start, style in ((0, "-"), (40, "--")):
    n = torch.arange(60)
    keys = apply_rotary(key.expand(60, 64), cos[start + 59 - n], sin[start + 59 - n])     # n tokens before
    asked = apply_rotary(query, cos[start + 59], sin[start + 59])
    ax.plot(n, keys @ asked, style, lw=1 if start == 0 else 3, alpha=1 if start == 0 else 0.4,
            label=f"query at position {start + 59}")
ax.set(xlabel="distance from query to key (tokens)", ylabel="score")
ax.legend(frameon=False)
figure(fig, caption="The score of one query with one key, against their distance.",
       alt="Two wavy curves of score against distance from 0 to 59 tokens that lie exactly on each other, one for a "
           "query at position 59 and one for a query at position 99.")

# %% [markdown]
# They lie on each other. The model learns one rule, "three words back", and it holds everywhere.
#
# ## Keep the scores in bounds: QK norm
#
# Nothing stops training from growing queries and keys until softmax saturates. The cure is to give each one unit root mean square, after the turn. Then a score
# divided by $\sqrt D$ lies between $-\sqrt D$ and $\sqrt D$, whatever training does. The same function normalises the whole model in the next lesson. It has no weights. Its epsilon is the same in every
# dtype, because a different one is enough to change the logits of an exported model.

# %%
#| export
EPS = 1.1920928955078125e-07     # 2**-23, in every dtype, so that exported models give equal logits

def rms_norm(
    x: Tensor,  # (..., D)
) -> Tensor:    # (..., D) in the dtype of x
    "Divide each vector by its root mean square; no weights (Zhang and Sennrich 2019)."
    return F.rms_norm(x, (x.shape[-1],), eps=EPS)


# %%
x = torch.tensor([[3.0, 4.0, 0.0, 0.0]])                # mean square (9 + 16) / 4 = 6.25, root 2.5
print(rms_norm(x))
torch.testing.assert_close(rms_norm(x), torch.tensor([[1.2, 1.6, 0.0, 0.0]]))
big = 1000 * torch.randn(1, 1, 50, 64)
print(f"largest score {(big @ big.mT / 8).abs().max():.0f} before, {(rms_norm(big) @ rms_norm(big).mT / 8).max():.2f} after")
assert (rms_norm(big) @ rms_norm(big).mT / 8).abs().max() < 8.01


# %% [markdown]
# ## Weights in fp32, products in bf16
#
# Training adds changes to the weights that are far smaller than a bf16 number can hold, so weights stay fp32. Matrix products are several times faster in bf16. The
# linear layer therefore casts a copy of its weight to whatever dtype its input has. There is no hidden switch: what goes in decides.

# %%
#| export
class Linear(nn.Linear):
    "A linear map without bias. Its weight stays fp32; each use casts it to the dtype of the input."
    def __init__(self,
        n_in: int,   # size of the input's last axis
        n_out: int,  # size of the output's last axis
    ): super().__init__(n_in, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        "(..., n_in) -> (..., n_out) in the dtype of x."
        return F.linear(x, self.weight.to(x.dtype))


# %%
layer = Linear(8, 3)
for dtype in (torch.float32, torch.bfloat16): print(dtype, "->", layer(torch.ones(2, 8, dtype=dtype)).dtype)
layer(torch.ones(2, 8, dtype=torch.bfloat16)).sum().backward()
assert layer.weight.grad.dtype == torch.float32 and layer.bias is None


# %% [markdown]
# ## The layer
#
# Four linear maps: three make queries, keys and values, one writes the result back. Then everything you have built, in this order: cut into heads, turn, normalise,
# remember (when there is a cache, see lesson 08), attend, put the heads side by side again.

# %%
#| export
class Attention(nn.Module):
    "Causal self-attention with rotary positions, then QK norm, and grouped key/value heads."
    def __init__(self,
        n_embd: int,     # width C of the model
        n_head: int,     # query heads H; D = C / H
        n_kv_head: int,  # key and value heads G; divides H
        layer: int = 0,  # index of this layer, which a cache needs
    ):
        super().__init__()
        if n_embd % n_head or n_head % n_kv_head or n_embd // n_head % 2:
            raise UserError(f"{n_head} heads with {n_kv_head} key/value heads do not fit width "
                            f"{n_embd}: heads must divide the width, key/value heads the heads, "
                            "and the head size must be even")
        self.layer, self.head_dim = layer, n_embd // n_head
        self.c_q = Linear(n_embd, n_embd)
        self.c_k = Linear(n_embd, n_kv_head * self.head_dim)
        self.c_v = Linear(n_embd, n_kv_head * self.head_dim)
        self.c_proj = Linear(n_embd, n_embd)
        self.attend: Callable | None = None      # None: what `attend_on` says for the device

    def forward(self,
        x: Tensor,                       # (B, T, C)
        cos_sin: tuple[Tensor, Tensor],  # each broadcasts to (B, H, T, D/2)
        mask: Tensor | None = None,      # as in `attend`
        cache=None,                      # its update(layer, k, v) gives all keys and values so far
    ) -> Tensor:                         # (B, T, C)
        "Look back over the sequence and write what was found."
        q, k, v = (self.heads(c(x)) for c in (self.c_q, self.c_k, self.c_v))
        q, k = (rms_norm(apply_rotary(z, *cos_sin)) for z in (q, k))
        if cache is not None: k, v = cache.update(self.layer, k, v)
        y = (self.attend or attend_on(x.device))(q, k, v, mask)      # (B, H, T, D)
        return self.c_proj(y.transpose(1, 2).reshape(x.shape))       # (B, T, C)

    def heads(self, z: Tensor) -> Tensor:
        "(B, T, n D) -> (B, n, T, D): the last axis cut into heads."
        return z.view(*z.shape[:2], -1, self.head_dim).transpose(1, 2)


# %%
torch.manual_seed(0)
layer, x = Attention(n_embd=32, n_head=4, n_kv_head=2), torch.randn(2, 10, 32)
place = rotary_tables(T=10, D=8)
y = layer(x, place)
print(x.shape, "->", y.shape, "with", sum(p.numel() for p in layer.parameters()), "weights")
assert y.shape == x.shape

# %% [markdown]
# **No look-ahead, proved.** Change one token and see which outputs move. If any output before it moves, the model can see its own answer in training, the loss falls to a
# wonderful number, and the model can write nothing.

# %%
changed = x.clone()
changed[:, 6] += 1.0
moved = (layer(changed, place) - y).abs().amax(dim=(0, 2)) > 0
print(moved.int().tolist())
assert moved.tolist() == [False] * 6 + [True] * 4


# %% [markdown]
# **Trap: the cut that runs and is wrong.** (B, T, H D) must be *viewed* as (B, T, H, D) and then transposed. Viewing it straight as (B, H, T, D) has the right shape, gives no
# error, trains a little worse, and mixes tokens into heads. The test above catches it at once:

# %%
class WrongCut(Attention):
    "The same layer with one wrong line."
    def heads(self, z): return z.view(z.shape[0], -1, z.shape[1], self.head_dim)     # straight to (B, n, T, D)

wrong = WrongCut(32, 4, 2)
wrong.load_state_dict(layer.state_dict())
moved = (wrong(changed, place) - wrong(x, place)).abs().amax(dim=(0, 2)) > 0
print("outputs that moved:", moved.int().tolist())
assert moved[:6].any()                      # the past changed: it leaks

# %% [markdown]
# ## At scale
#
# The projections of a layer cost $8C^2$ operations a token, the scores and the weighted sum $4CT$. At depth 20 (C = 1,280, T = 2,048) these are 13.1 and 10.5 million: nearly even. At T = 32,768 the
# second would be sixteen times larger, which is why long-context models use windows in most layers. The cache that lesson 08 builds holds 2 L G D numbers a token: 51,200 at depth 20, or 100 kB in
# bf16; sharing keys between heads divides that.

# %%
C, T, L = 1280, 2048, 20
print(f"projections {8 * C * C / 1e6:.1f} M, scores and sum {4 * C * T / 1e6:.1f} M, cache {2 * L * C * 2 / 1024:.0f} kB a token")

# %% [markdown]
# ## Recap
#
# * A query asks, keys answer with scores, softmax makes weights, values are mixed by them.
# * A mask takes the future away; change one token to prove it.
# * Turning queries and keys by position leaves only the distance between them.
# * Unit queries and keys keep scores within $\sqrt D$.
# * Two forms of one function: plain products on a CPU, the fused kernel on a GPU.
#
# **Papers.** Vaswani et al. 2017 (attention); Su et al. 2021 (rotary embedding); Henry et al. 2020 (QK norm); Ainslie et al. 2023 (grouped queries); Beltagy et al. 2020 (windows); Zhang and Sennrich 2019 (RMSNorm).
