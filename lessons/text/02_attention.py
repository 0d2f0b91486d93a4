# %% [markdown]
# # 02 Attention
#
# You build the part of a language model that looks back: every token asks all earlier tokens a question, and mixes their answers. At the end you train a model that consists of
# nothing else, and watch it discover a trick.
#
# After this lesson you can
#
# * turn a running mean into attention, one step at a time, and keep the future out of it (exercise 1);
# * derive the gradient of softmax, and say when a row of weights can no longer learn (exercise 2);
# * derive why rotary embedding knows distances and not places (exercise 3);
# * share keys between heads, and limit how far back a layer looks, also while a model writes (exercises 4 and 5);
# * prove that a layer cannot see the future (exercise 6), and read the maps of a trained model.
#
# You need `00a_workshop` and a little PyTorch: shapes, broadcasting, `backward`. Reading and running: 90 minutes. Exercises: 80 minutes. Computing: under half a minute.

# %%
#| default_exp attention

# %%
#| export
import html
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from nanochat.workshop import UserError

# %% [markdown]
# ## A riddle
#
# Each row below is a word in no language: 5 to 20 random letters, said again and again. **What comes after the last letter?** Solve the three rows before you read on, and notice what your eyes do.

# %%
import string

LETTERS, T = string.ascii_lowercase, 48

def riddles(n: int, seed: int) -> tuple[Tensor, Tensor]:
    "Letters as numbers, (n, T + 1), and the length of each row's word, (n, 1)."
    g = torch.Generator().manual_seed(seed)
    length = torch.randint(5, 21, (n, 1), generator=g)
    words = torch.randint(26, (n, T + 1), generator=g)
    return words.gather(1, torch.arange(T + 1) % length), length

def spell(ids: Tensor) -> str: return "".join(LETTERS[i] for i in ids)

rows, lengths = riddles(500, seed=1)
for row in rows[:3]: print(spell(row[:33]), "?")


# %% [markdown]
# The answers are `h`, `j` and `f`. No knowledge of letters helps, since all 26 are equally likely and every row has a new word. Your eyes went *back*, found the last letter in an earlier place, and
# read what stood behind it.
#
# A program can do that with a search. Here are three rules in one: what most often followed the last letter (`n = 1`); what followed the last *two*; and with `n = 0`, the commonest letter so far.

# %%
def follow(past: list[int], n: int) -> int:
    "What most often followed the last n letters; if nothing ever did, take one letter fewer."
    after = [past[j] for j in range(n, len(past)) if past[j - n:j] == past[len(past) - n:]]
    return max(after, key=after.count) if after else follow(past, n - 1)

known = [(row[:t], row[t]) for row, (n,) in zip(rows.tolist(), lengths.tolist()) for t in range(n + 1, T + 1)]
rule = [sum(follow(past, n) == then for past, then in known) / len(known) for n in range(3)]
for n in range(3): print(f"follow {n}: {rule[n]:.1%} right")

# %% [markdown]
# One letter is not enough, since a random word often holds the same letter twice. (Counted are the letters that can be known, those after the word's first run: 17,776.)
#
# A neural network cannot search; it adds and multiplies. **So the question of this lesson: how can sums and products look back, and find the right place?** Keep the three numbers. The model at the
# end gets nothing but such rows, and you will see which rule it comes up with.
#
# ## Averaging: the simplest way to look back
#
# Let each place hold some numbers, and let it look back by taking the mean of all places so far, its own included. With one number a place, 1, 3, 2, 6, do it by hand: 1, 2, 2, and then?

# %%
x = torch.tensor([[1.0], [3.0], [2.0], [6.0]])                    # (T, C) = (4, 1)
means = torch.stack([x[: i + 1].mean(0) for i in range(4)])
print(means.flatten().tolist())
assert means.flatten().tolist() == [1, 2, 2, 3]


# %% [markdown]
# A loop over places is slow. Write each mean as a weighted sum of *all* places, with weight 0 for the later ones, and stack the weights into a matrix. Then all means are one matrix product.
# Which weights may be other than zero is worth a name of its own: it is the **causal mask**.

# %%
#| export
def causal_mask(
    T: int,           # queries and keys
    device=None,
) -> Tensor:          # (T, T) bool, True where query i may look at key j
    "The mask of a language model: key j is visible to query i when j <= i."
    return torch.ones(T, T, dtype=torch.bool, device=device).tril()


# %%
# NBVAL_CHECK_OUTPUT
weights = causal_mask(4) / causal_mask(4).sum(1, keepdim=True)    # (T, T), each row sums to 1
print(weights.numpy().round(2))
torch.testing.assert_close(weights @ x, means)

# %% [markdown]
# Read row 3 from left to right: a quarter of each place. Read the upper right: zeros, because a model that guesses the next token must not see it.
#
# Now the step that matters. The same matrix comes out of **softmax**, $w_j = e^{s_j} / \sum_k e^{s_k}$, when all scores $s$ are equal and the forbidden ones are $-\infty$.

# %%
scores = torch.zeros(4, 4)
masked = scores.masked_fill(~causal_mask(4), float("-inf"))
torch.testing.assert_close(masked.softmax(dim=-1), weights)
print(masked.softmax(dim=-1)[1].tolist(), "is row 1: e^0 = 1 twice, e^-inf = 0 twice")

# %% [markdown]
# So **averaging is attention with equal scores**. All that is left to do is to make the scores unequal, and to let the data decide.
#
# **Trap: a mask of zeros.** It is tempting to multiply the *scores* by the mask, or to cut the weights *after* softmax. **Predict** what goes wrong in each case; look at row 0, which may see one place only.

# %%
# NBVAL_CHECK_OUTPUT
visible = causal_mask(4)
print("scores times mask: ", (scores * visible).softmax(-1)[0].tolist())
print("weights times mask:", (scores.softmax(-1) * visible)[0].tolist())
print("minus infinity:    ", masked.softmax(-1)[0].tolist())

# %% [markdown]
# A score of 0 is no lock: $e^0 = 1$, and the first place looks at the future like at anything else. Cut after softmax, the weights no longer sum to one, and the forbidden places still push on the others, since they are in the sum below. Only $-\infty$ takes a place out.
#
# ## Ask, and be answered
#
# Five words. The last one is a pronoun, and whoever goes on must know whom it means. Give each word two numbers: how much it is a *person*, and how much it is a *thing*.

# %%
words = ["Mia", "dropped", "the", "cup", "she"]
x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.5, 0.0]])     # (T, C): person, thing
print("mean of the past:", [round(a, 2) for a in x.mean(0).tolist()])

# %% [markdown]
# A little person, a little thing: the mean has forgotten which word was which. "she" should be able to *ask* for a person and get Mia. So let each word carry three vectors:
#
# * a **query**: what am I looking for?
# * a **key**: what do I offer?
# * a **value**: what do I hand over when I am chosen?
#
# The score is the dot product of a query with a key. Softmax makes weights of the scores of one query. The answer is the weighted mean of the values. With these numbers you can do it by hand:

# %%
q, k, v = 4 * x, x, x                      # ask for what you are; offer and hand over what you are
scores = q[4] @ k.T                        # she . every word: (2, 0, 0, 0, 1)
weights = scores.softmax(-1)
for word, s, w in zip(words, scores, weights): print(f"{word:8s} score {s:.1f}  weight {w:.2f}")
print("answer:", [round(a, 2) for a in (weights @ v).tolist()])
assert weights.argmax() == 0               # "she" found Mia

# %% [markdown]
# $e^2$ is 7.4 and $e^1$ is 2.7; the other three scores give 1 each. The sum is 13.1, so Mia gets 7.4 / 13.1 = 0.56. Nothing else happens in attention. The rest of this lesson is about doing it for all
# words at once, without cheating, in such a way that it can be learned, and with a sense of place.
#
# ## Why softmax can learn, and when it cannot
#
# A model is trained by asking how the loss changes with each number. For softmax that is worth deriving once. Write $Z = \sum_k e^{s_k}$, so $w_i = e^{s_i}/Z$ and $\partial Z / \partial s_j = e^{s_j}$. The quotient rule gives
#
# $$\frac{\partial w_i}{\partial s_j} = \frac{\delta_{ij}\,e^{s_i} Z - e^{s_i} e^{s_j}}{Z^2} = w_i\,(\delta_{ij} - w_j),$$
#
# where $\delta_{ij}$ is 1 if $i = j$ and else 0. In words: a score raises its own weight by $w_i(1 - w_i)$, and lowers every other in proportion. PyTorch, which works it out by itself, agrees:

# %%
s = torch.tensor([2.0, 0.0, 0.0, 0.0, 1.0])
w = s.softmax(-1)
by_hand = torch.diag(w) - w[:, None] * w                        # w_i (delta_ij - w_j)
torch.testing.assert_close(by_hand, torch.func.jacrev(lambda s: s.softmax(-1))(s))
print("how Mia's weight moves with each score:", [round(a, 3) for a in by_hand[0].tolist()])

# %% [markdown]
# Two things can be read off. Each row sums to zero, so adding the same number to all scores changes nothing. That is how softmax is computed safely: $e^{1000}$ overflows, but you may subtract the largest score first.
# And **when one weight is 1 and the others 0, every entry is 0**: nothing the loss says reaches the scores. Such a row is *saturated*, and it cannot learn.

# %%
# NBVAL_CHECK_OUTPUT
s = torch.tensor([1000.0, 999.0])
print("as written:", (s.exp() / s.exp().sum()).tolist())
safe = (s - s.max()).exp()
print("shifted:   ", [round(a, 3) for a in (safe / safe.sum()).tolist()])

# %% [markdown]
# How easily does a row saturate? Take one score $s = \sum_{d=1}^{D} q_d k_d$ of vectors with $D$ independent numbers of mean 0 and variance 1. Each product has mean 0 and variance 1, and variances add: the score has variance $D$, so its typical size is $\sqrt D$. Softmax sees *differences* of scores, and $e$ to the power of a few tens leaves room for one winner only.
#
# **Predict, then run:** what is the largest of 16 weights on average, at D = 4, 64 and 1,024, when nothing was learned at all?

# %%
import matplotlib.pyplot as plt
from nanochat.workshop import figure

def untrained(D: int, scale: float) -> tuple[float, float, float]:
    "Spread of the scores, mean largest weight, and gradient that reaches the scores: 1,000 queries, 16 keys."
    g = torch.Generator().manual_seed(D)
    s = (torch.randn(1000, D, generator=g) @ torch.randn(D, 16, generator=g) * scale).requires_grad_()
    top = s.softmax(-1).amax(-1)
    top.sum().backward()
    return s.std().item(), top.mean().item(), s.grad.abs().mean().item()

Ds = [2**i for i in range(2, 12)]
raw, scaled = ([untrained(D, scale(D)) for D in Ds] for scale in (lambda D: 1.0, lambda D: D**-0.5))
for D, row in zip(Ds, raw):
    if D in (4, 64, 1024): print(f"D = {D:4}: scores spread by {row[0]:5.1f}, root of D is {D**0.5:4.1f}, largest weight {row[1]:.2f}")
assert all(abs(row[0] / D**0.5 - 1) < 0.2 for D, row in zip(Ds, raw))

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 2.5), layout="constrained")
for ax, column, title in zip(axes, (1, 2), ("largest of 16 weights", "gradient at the scores")):
    ax.plot(Ds, [row[column] for row in raw], "s--", label="as it is")
    ax.plot(Ds, [row[column] for row in scaled], "o-", label="divided by √D")
    ax.set_xscale("log", base=2)
    ax.set(xlabel="size D of query and key", title=title, ylim=(0, None))
axes[0].legend(frameon=False)
figure(fig, caption="Scores of random vectors: weights saturate as D grows, and the gradient goes; dividing by the root of D stops both.",
       alt="Two charts against D from 4 to 2048. Left: the largest weight rises from 0.4 towards 1 for plain scores and stays near 0.25 when "
           "divided by the root of D. Right: the gradient falls to a tenth for plain scores and stays flat when divided.")
assert raw[-1][1] > 0.9 and scaled[-1][1] < 0.4 and raw[-1][2] < 0.3 * scaled[-1][2]


# %% [markdown]
# The cure is to divide by exactly what the derivation found: every score of attention is $q \cdot k / \sqrt D$. ($D$ is the size of the two vectors in the product, not the width of the model. Mix them up and nothing crashes; the model is just a little worse.)
#
# ## In loops, then in tensors
#
# Now for all places at once. The loop version is slow and obviously right; it is the yardstick for what follows.

# %%
def attend_loops(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    "Version 1. (T, D) each: every query looks at its own and earlier keys."
    out = torch.zeros_like(v)
    for i in range(len(q)):
        scores = torch.stack([q[i] @ k[j] / q.shape[1] ** 0.5 for j in range(i + 1)])
        weights = scores.exp() / scores.exp().sum()
        for j in range(i + 1): out[i] += weights[j] * v[j]
    return out

torch.manual_seed(0)
q, k, v = torch.randn(3, 6, 4).unbind()
assert torch.equal(attend_loops(q, k, v)[0], v[0])             # the first can see only itself
print(attend_loops(q, k, v).shape)


# %% [markdown]
# "Only earlier ones" is the inner `range(i + 1)`. In tensors the loop over `j` becomes a matrix product that computes *all* scores, and the mask takes away those that must not count.

# %%
def attend_plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    "Version 2. (..., T, D) each: three lines, any number of leading axes."
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5                    # (..., T, T)
    weights = scores.masked_fill(~causal_mask(q.shape[-2]), float("-inf")).softmax(dim=-1)
    return weights @ v                                                       # (..., T, D)

torch.testing.assert_close(attend_plain(q, k, v), attend_loops(q, k, v))
print("loops and tensors agree")

# %% [markdown]
# ## Heads
#
# One set of weights a place is one question. A pronoun may want to know *who*, and also *where*. So a model of width $C$ cuts its vectors into $H$ **heads** of size $D = C/H$, and each asks its own question with its own weights. Afterwards the answers are put side by side again.
# The arithmetic costs the same; version 2 needs no change, as a head is just one more leading axis. What needs care is the cut. Two tokens of width 6, and two heads:

# %%
# NBVAL_CHECK_OUTPUT
z = torch.arange(12).view(1, 2, 6)                             # (B, T, C): token 0 is 0..5, token 1 is 6..11
heads = z.view(1, 2, 2, 3).transpose(1, 2)                     # (B, T, H, D) -> (B, H, T, D)
print("head 0:", heads[0, 0].tolist(), " head 1:", heads[0, 1].tolist())

# %% [markdown]
# **Trap: the cut that runs and is wrong.** Why not view it as (B, H, T, D) at once? The shape is right, and no error comes. **Predict** what head 0 holds.

# %%
# NBVAL_CHECK_OUTPUT
wrong = z.view(1, 2, 2, 3)                                     # straight to (B, H, T, D)
print("head 0:", wrong[0, 0].tolist(), " head 1:", wrong[0, 1].tolist())

# %% [markdown]
# Head 0 got the *whole* of token 0 and calls its two halves two tokens. Numbers that belong to one place now stand in another, the mask guards the wrong borders, and a token can see the future. You will catch this bug in the act below.
#
# ## Where am I? Rotary embedding
#
# Version 2 has a hole. **Predict:** shuffle the first five words of six, keys and values together. How does the answer of the last word change?

# %%
q, k, v = torch.randn(3, 6, 8).unbind()
shuffled = [3, 0, 4, 1, 2, 5]                                  # the last one stays last
a, b = attend_plain(q, k, v)[-1], attend_plain(q, k[shuffled], v[shuffled])[-1]
torch.testing.assert_close(a, b)
print("not at all:", [round(float(z), 4) for z in a[:3]], "and", [round(float(z), 4) for z in b[:3]])


# %% [markdown]
# A sum does not know the order of its terms. To the last word of "Mia pushed Tom today" and of "Tom pushed Mia today" they are the same, and *what stood behind it* has no meaning, so a riddle cannot be solved.
#
# **Rotary embedding** (RoPE, Su and others 2021) mends that with a clock hand. Take a query and a key of just two numbers, seen as arrows in the plane. Turn the arrow of position $m$ by $m$ times a fixed angle, then take the dot product as before. A dot product of two arrows depends on their lengths and
# on the angle *between* them. If both arrows are turned by one more step, that angle does not change. So the score depends on how far apart the two are, and not on where.
#
# In symbols: write an arrow as a complex number, and turn it by $-\theta$ a step, $z_m = z\,e^{-i m\theta}$. The dot product of two arrows is the real part of one times the conjugate of the other:
#
# $$\operatorname{Re}\left(q\,e^{-im\theta}\;\overline{k\,e^{-in\theta}}\right) = \operatorname{Re}\left(q\,\bar k\;e^{-i(m-n)\theta}\right).$$
#
# The places $m$ and $n$ are gone; only their distance $m - n$ is left. Check it with numbers, for a hand that makes a quarter turn a step:

# %%
def turn(arrow: Tensor, angle: float) -> Tensor:
    "A vector of two numbers, turned by minus the angle (in radians)."
    c, s = torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))
    return torch.stack((arrow[0] * c + arrow[1] * s, arrow[1] * c - arrow[0] * s))

quarter, query, key = torch.pi / 2, torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])
for m, n in ((2, 1), (7, 6), (100, 99), (3, 1)):
    score = turn(query, m * quarter) @ turn(key, n * quarter)
    print(f"query at {m:3}, key at {n:2}: score {score:+.3f}")


# %% [markdown]
# Distance 1 gives -0.800 wherever it is, distance 2 gives -0.600. But one hand with a quarter turn takes distance 5 for distance 1. The way out is that of a clock: several hands, from fast to slow. A head of size $D$ has $D/2$ pairs of numbers; pair $i$ turns by $\theta_i = \text{base}^{-2i/D}$ radians a
# token, from 1 radian down to $\text{base}^{2/D}/\text{base}$, close to 1/base where the head is large. Cosines and sines are tabulated once.

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

# %%
fig, ax = plt.subplots(figsize=(7, 1.9), layout="constrained")
image = ax.imshow(rotary_tables(256, 64)[0].T, aspect="auto", cmap="RdBu", vmin=-1, vmax=1, interpolation="nearest")
ax.set(xlabel="position (tokens)", ylabel="pair")
fig.colorbar(image, label="cosine")
figure(fig, caption="The hands of the clock: cosine of the angle, for the 32 pairs of a head of 64, fast ones on top.",
       alt="A heat map with 256 columns and 32 rows. In the top row the colour changes every few columns; the stripes get wider from "
           "row to row, and in the lowest third of the rows there is almost only one colour.")


# %% [markdown]
# The upper hands tell neighbours apart. The lowest third has hardly moved after 256 tokens: there a head can ask for *content*, wherever it stands.
#
# Which two numbers form a pair is a convention. Ours, nanochat's and that of `transformers` takes one from each half of the vector, (x[i], x[i + D/2]), because cutting a vector in halves is cheaper than picking every other number.

# %%
#| export
def apply_rotary(
    x: Tensor,    # (..., T, D)
    cos: Tensor,  # broadcasts to (..., T, D/2)
    sin: Tensor,  # like cos
) -> Tensor:      # (..., T, D) in the dtype of x
    "Turn the pair (x[i], x[i + D/2]) by minus the angle of its position, computed in fp32."
    a, b = (half.float() for half in x.chunk(2, dim=-1))      # (..., T, D/2) each
    # Each half is rounded before they are joined, so that no fp32 copy of the whole is written.
    return torch.cat(((a * cos + b * sin).to(x.dtype), (b * cos - a * sin).to(x.dtype)), dim=-1)


# %%
x = torch.randn(100, 8)
turned = apply_rotary(x, cos, sin)
complex_x = torch.complex(x[:, :4], x[:, 4:])                             # the formula above, literally
expected = complex_x * torch.exp(-1j * torch.arange(100)[:, None] * 10000 ** (-torch.arange(4) / 4))
torch.testing.assert_close(torch.complex(turned[:, :4], turned[:, 4:]), expected, rtol=1e-4, atol=1e-4)
torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))           # a turn changes no length
print("equal to complex multiplication; position 0 is not turned:", torch.equal(turned[0], x[0]))

# %% [markdown]
# **Predict, then look.** The same query meets the same key at distances 0 to 59, once with the query at position 59, once with everything 40 tokens later. How do the two curves differ?

# %%
cos, sin = rotary_tables(T=120, D=64)
g = torch.Generator().manual_seed(3)
query, key, n = torch.randn(64, generator=g), torch.randn(64, generator=g) + 1, torch.arange(60)
fig, ax = plt.subplots(figsize=(5, 2.4), layout="constrained")
for at, style, width, alpha in ((59, "-", 1, 1), (99, "--", 4, 0.4)):
    asked, keys = apply_rotary(query, cos[at], sin[at]), apply_rotary(key.expand(60, 64), cos[at - n], sin[at - n])
    ax.plot(n, keys @ asked, style, lw=width, alpha=alpha, label=f"query at position {at}")
ax.set(xlabel="distance from query to key (tokens)", ylabel="score")
ax.legend(frameon=False)
figure(fig, caption="The score of one query with one key, against their distance.",
       alt="Two wavy curves of score against distance from 0 to 59 tokens that lie exactly on each other, one for a "
           "query at position 59 and one for a query at position 99.")

# %% [markdown]
# They lie on each other. A model that learns "three words back" in one place has learned it everywhere.
#
# **Trap: angles in 16 bits.** Models are often cast to bf16 as a whole, tables and all, or the angle is computed in the dtype of the model. A bf16 number has 8 significant bits. **Predict** how many different positions are left of 2,048.

# %%
positions = torch.arange(2048, dtype=torch.bfloat16)
print("different positions:", len(positions.unique()), "- the last ones:", positions[-12:].int().tolist())
assert len(positions.unique()) < 700

# %% [markdown]
# From 256 on it skips: neighbours get the same angle, and a long text loses its order. So positions, angles and tables stay in fp32 here, and `apply_rotary` computes in fp32 whatever comes in. (Published nanochat computes angles in fp32 but rounds the tables to bf16: only the values are coarse, the positions stay apart. `transformers` has kept its frequencies in fp32, unless somebody
# casts the whole model by `.bfloat16()`.)
#
# ## Keep the scores in bounds: QK norm
#
# Dividing by $\sqrt D$ tames scores at the start. But nothing stops training from making queries and keys longer until softmax saturates after all. The cure is to normalise both. Henry and others (2020) bring them to length 1 and learn a factor for the scores; nanochat, and we, bring each to a root mean square of 1 and keep the division. Then its length is $\sqrt D$, and a score divided by $\sqrt D$ lies between $-\sqrt D$ and $\sqrt D$, whatever training does.
# Zhang and Sennrich 2019 call the function **RMSNorm**; it also normalises the rest of the model in the next lesson. Ours has no weights.

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

# %% [markdown]
# The small `EPS` keeps a vector of zeros from a division by zero. It is written out because older PyTorch documents promise another default in 16 bits than the one in use, and another epsilon is enough to change what an exported model says.
#
# **Predict:** queries and keys grow by a factor of 1, 3, 10, 30. What happens to the largest weight of a row, with the norm and without?

# %%
q, k = torch.randn(2, 200, 64).unbind()
for factor in (1, 3, 10, 30):
    plain, normed = factor * q @ (factor * k).T / 8, rms_norm(factor * q) @ rms_norm(factor * k).T / 8
    print(f"times {factor:2}: largest score {plain.abs().max():7.1f} and {normed.abs().max():.1f}, "
          f"largest weight {plain.softmax(-1).amax(-1).mean():.2f} and {normed.softmax(-1).amax(-1).mean():.2f}")
    assert normed.abs().max() <= 8.001                  # the root of 64


# %% [markdown]
# With the norm the growth has no effect at all. The price: a score can never exceed $\sqrt D$, so no weight can be quite 1. (Published nanochat later multiplies queries and keys by 1.2 to allow a little more.) Does it matter whether you turn first or normalise first? In exact arithmetic no, since a turn changes no length; in bf16 the last digit differs. nanochat
# turns first, so we do.

# %% [markdown]
# ## Fewer keys: grouped queries
#
# While a model writes, it keeps the keys and values of all earlier tokens (lesson 08), and that memory limits how many people can chat at once. So several query heads may **share** one key and value head: $H$ heads ask, $G$ heads answer, and $G$ divides $H$. Queries are never kept, so they may be many. This is **grouped-query attention** (GQA, Ainslie and others 2023).
#
# The plain way copies each key head $H/G$ times. With $H = 4$ and $G = 2$, query heads 0 and 1 read the first key head, 2 and 3 the second.

# %%
def attend_copies(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    "Version 3. q (B, H, T, D), k and v (B, G, T, D): shared heads by copying."
    share = q.shape[1] // k.shape[1]
    return attend_plain(q, k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1))

torch.manual_seed(0)
q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
print(q.shape, "asks", k.shape, "->", attend_copies(q, k, v).shape)


# %% [markdown]
# **Trap.** `repeat` in place of `repeat_interleave` gives the order 0, 1, 0, 1: the same shape, and another model. Trained so, it works, and no other program can load it.
#
# The copies can be avoided. Queries that share keys are just more queries to the same keys: stack them as extra *rows*, and one matrix product serves them all. That is the last version. It also takes a mask from outside, which we need in a moment.

# %%
#| export
def attend(
    q: Tensor,                   # (B, H, T, D) queries
    k: Tensor,                   # (B, G, S, D) keys; G divides H, and H / G query heads share each
    v: Tensor,                   # (B, G, S, E) values; E = D in a model
    mask: Tensor | None = None,  # bool, broadcasts to (B, G, T, S); None: causal, and S = T
) -> Tensor:                     # (B, H, T, E)
    """Scaled dot-product attention in plain matrix products (Vaswani et al. 2017, section 3.2).

    Query heads that share keys are stacked as more query rows, so that keys are never copied
    (grouped-query attention, Ainslie et al. 2023). `ValueError` if S differs from T without a mask."""
    B, H, T, D = q.shape
    G, S = k.shape[1], k.shape[2]
    if mask is None: mask = causal_mask(_square(T, S), q.device)
    dtype = q.dtype                                      # a cache may hold keys and values in fp32
    q = (q * D**-0.5).to(k.dtype).reshape(B, G, H // G * T, D)
    scores = (q @ k.transpose(-2, -1)).view(B, G, H // G, T, S)
    weights = scores.masked_fill(~mask.unsqueeze(-3), float("-inf")).softmax(dim=-1)
    return (weights.view(B, G, H // G * T, S) @ v).view(B, H, T, -1).to(dtype)


def _square(T: int, S: int) -> int:  # T
    "As many queries as keys, or nobody knows which key is the present of which query."
    if T != S: raise ValueError(f"{T} queries and {S} keys: give a mask that says who sees whom")
    return T


# %%
torch.testing.assert_close(attend(q, k, v), attend_copies(q, k, v))
one = [z[0, 0] for z in (q, k, v)]                             # head 0 of row 0
torch.testing.assert_close(attend(q, k, v)[0, 0], attend_loops(*one))
print("stacked rows, copies and loops agree")


# %% [markdown]
# PyTorch has the same in one fused function. It works through the keys block by block and keeps a running maximum and sum for each row, so that the (T, S) scores never lie in memory as a whole (FlashAttention: Dao and others 2022). On a GPU that is much faster. On two CPU cores at T = 256 we measured the plain form under `torch.compile` to be 17 to 30 percent faster, so you keep both, and in the end the device decides. No flag: each form is a function.

# %%
#| export
def attend_sdpa(
    q: Tensor,                   # (B, H, T, D)
    k: Tensor,                   # (B, G, S, D)
    v: Tensor,                   # (B, G, S, D)
    mask: Tensor | None = None,  # bool, broadcasts to (B, H, T, S); None: causal, and S = T
) -> Tensor:                     # (B, H, T, D)
    """The same as `attend`, by torch's fused kernel: the (T, S) scores are never stored.

    `ValueError` if S differs from T without a mask."""
    if mask is None: _square(q.shape[2], k.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None,
                                          enable_gqa=q.shape[1] != k.shape[1])


# %%
torch.testing.assert_close(attend(q, k, v), attend_sdpa(q, k, v))
grads = [torch.func.grad(lambda q: form(q, k, v).square().sum())(q) for form in (attend, attend_sdpa)]
torch.testing.assert_close(*grads)
print("outputs and gradients equal those of scaled_dot_product_attention")


# %% [markdown]
# That was the independent check: torch's kernel shares no code with yours.
#
# ## A form for two cores
#
# On a CPU the plain form can still be made a good deal faster, and each saving follows from something you have derived.
#
# * **No maximum.** Softmax looks for the largest score of a row, so that $e^s$ does not overflow. But any number that is the same for a whole row may be subtracted, and QK norm tells you one without looking: no score is above $\sqrt D$, or below $-\sqrt D$. So $e^{s - \sqrt D}$ lies between $e^{-2\sqrt D}$ and 1, and the division by the row's sum can wait until the values are mixed.
# * **Half the queries, half the keys.** The first half of the queries sees only the first half of the keys. Two products leave out a quarter of the square that the mask would only throw away. (Four products would leave out three eighths, and were slower: small products waste time of their own.)
# * **A gradient that knows the result.** A row mixes $y = \sum_j w_j v_j$. If $g$ is the gradient that arrives at $y$, then $g \cdot v_j$ arrives at $w_j$, and with the derivative of softmax from above
#
# $$\frac{\partial L}{\partial s_j} = \sum_i (g \cdot v_i)\, w_i\,(\delta_{ij} - w_j) = w_j \left(g \cdot v_j - g \cdot y\right).$$
#
# The sum over the row has become one product with the result, which is there already (FlashAttention, appendix B). The weights are there, too, so nothing is computed twice.
#
# Together they take the attention of a layer from 13.3 to 7.8 ms, forward and backward (depth 4, 16 rows of 256 tokens, bf16, compiled, two cores of an AMD EPYC of the Zen 5 class). A compiler finds none of the three, since it knows neither your norm nor your mask. `torch.autograd.Function` is how you tell PyTorch a forward pass together with its own backward pass.

# %%
#| export
def _mix(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    "The last queries of a text (scaled) over all its keys: the result, e^(s - bound), its row sums."
    D, T, S = q.shape[-1], q.shape[2], k.shape[2]
    scores = (q @ k.mT).float()                                          # (B, H, T, S)
    e = (scores - D**0.5).exp().tril(S - T).to(v.dtype)                  # 0 where masked
    total = e.float().sum(dim=-1, keepdim=True)                          # (B, H, T, 1)
    return ((e @ v) / total).to(v.dtype), e, total


def _unmix(g, q, k, v, y, e, total) -> tuple[Tensor, Tensor, Tensor]:
    "The gradients at q, k and v of what `_mix` computed, when g arrives at y."
    g = g / total                                                        # e / total are the weights
    shared = (g * y).sum(dim=-1, keepdim=True)                           # g . y
    g = g.to(v.dtype)
    at_scores = (e * (g @ v.mT - shared)).to(v.dtype)                    # w_j (g . v_j - g . y)
    return at_scores @ k, at_scores.mT @ q, e.mT @ g


class _NormedAttention(torch.autograd.Function):
    "`attend_normed`, forward and backward, for as many key heads as query heads."

    @staticmethod
    def forward(ctx, q, k, v):
        q, h = q * q.shape[-1] ** -0.5, q.shape[2] // 2
        early, late = _mix(q[:, :, :h], k[:, :, :h], v[:, :, :h]), _mix(q[:, :, h:], k, v)
        y = torch.cat((early[0], late[0]), dim=2)
        ctx.save_for_backward(q, k, v, y, *early[1:], *late[1:])
        return y

    @staticmethod
    def backward(ctx, g):
        q, k, v, y, *kept = ctx.saved_tensors
        h = q.shape[2] // 2
        first, last = slice(None, h), slice(h, None)
        q1, k1, v1 = _unmix(*(z[:, :, first] for z in (g, q, k, v, y)), *kept[:2])
        q2, k2, v2 = _unmix(g[:, :, last], q[:, :, last], k, v, y[:, :, last], *kept[2:])
        # The first keys are seen by both blocks of queries, the last by the late one only.
        k, v = (torch.cat((early + late[:, :, first], late[:, :, last]), dim=2)
                for early, late in ((k1, k2), (v1, v2)))
        return torch.cat((q1, q2), dim=2) * q.shape[-1] ** -0.5, k, v


def attend_normed(
    q: Tensor,                   # (B, H, T, D), each vector no longer than sqrt(D), as after QK norm
    k: Tensor,                   # (B, G, S, D), like q
    v: Tensor,                   # (B, G, S, E)
    mask: Tensor | None = None,  # as in `attend`
) -> Tensor:                     # (B, H, T, E)
    """The same as `attend`, fast on a CPU, for queries and keys with QK norm.

    Subtracts their bound instead of the maximum, leaves out a quarter of all pairs, and has its own
    gradient (Dao et al. 2022, appendix B). Shared keys are copied. With a mask, and in float16, whose
    range is too small for this, it is `attend`; `ValueError` as there."""
    if mask is not None or v.dtype == torch.float16: return attend(q, k, v, mask)
    _square(q.shape[2], k.shape[2])
    share = q.shape[1] // k.shape[1]
    if share > 1: k, v = (z.repeat_interleave(share, dim=1) for z in (k, v))
    return _NormedAttention.apply(q, k, v)


# %% [markdown]
# A gradient by hand needs a check against one that is not: PyTorch derives that of `attend` by itself.

# %%
nq, nk, nv = (z.requires_grad_() for z in (rms_norm(q), rms_norm(k), v.clone()))
torch.testing.assert_close(attend_normed(nq, nk, nv), attend(nq, nk, nv))
by_hand, derived = (torch.autograd.grad(form(nq, nk, nv).square().sum(), (nq, nk, nv)) for form in (attend_normed, attend))
torch.testing.assert_close(by_hand, derived)
print("largest difference of a gradient:", max((a - b).abs().max().item() for a, b in zip(by_hand, derived)))

# %% [markdown]
# **Trap.** Without QK norm there is no bound. Scores far below $\sqrt D$ make every $e^{s - \sqrt D}$ of a row zero, and the result is 0/0; far above, it is infinite. That is why the form has the norm in its name. float16 is another trap: its smallest number is $6 \cdot 10^{-8}$, so small $e^{s - \sqrt D}$ are lost, and a gradient divided by a small sum overflows. (bf16 has the range of fp32.) There the plain form is used.

# %%
long = 30 * nq.detach(), -30 * nk.detach(), nv.detach()
for form in (attend, attend_normed):
    finite = form(*long).isfinite().all(-1)
    print(f"{form.__name__}, vectors thirty times too long: {(~finite).sum()} of {finite.numel()} rows are not numbers")
    assert finite.all() == (form is attend)


# %%
#| export
def attend_on(device: torch.device) -> Callable:
    "The form that is fast on a device, after QK norm: by hand on a CPU, the fused kernel elsewhere."
    return attend_normed if device.type == "cpu" else attend_sdpa


# %%
print("CPU:", attend_on(torch.device("cpu")).__name__, "  GPU:", attend_on(torch.device("cuda")).__name__)


# %% [markdown]
# ## Look back, but not all the way
#
# Twice as long a text means four times as many scores. Most of what a token needs is near, so many layers of long-context models look back a fixed **window** only (Beltagy and others 2020). Their mask is a band. We count as published nanochat does: a window of 2 is "myself and the two before me".

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
# NBVAL_CHECK_OUTPUT
print(window_mask(5, 2).int().numpy())
assert window_mask(5, 2).sum(1).tolist() == [1, 2, 3, 3, 3]
assert torch.equal(window_mask(5, 99), causal_mask(5))         # a wide window is no window
torch.testing.assert_close(attend(q, k, v, window_mask(9, 3)), attend_sdpa(q, k, v, window_mask(9, 3)))

# %% [markdown]
# Is what lies outside the window lost? **Predict** how far back a token can get information after three layers with a window of 4. In the figure, two layers are the product of their masks: I see you, and you saw him.

# %%
band = window_mask(24, 4).float()
panels = {"causal": causal_mask(24), "window of 4, one layer": band, "two layers": band @ band > 0, "three layers": band @ band @ band > 0}
fig, axes = plt.subplots(1, 4, figsize=(8, 2.2), layout="constrained", sharey=True)
for ax, (name, mask) in zip(axes, panels.items()):
    ax.imshow(mask, cmap="Blues", vmin=0, vmax=1.4)
    ax.set(title=name, xlabel="key")
    ax.title.set_size(9)
axes[0].set_ylabel("query")
figure(fig, caption="Who can learn from whom (dark), with a window of 4 in one, two and three layers.",
       alt="Four squares of 24 by 24. Causal: the lower triangle is dark. One layer: a band five wide along the diagonal. "
           "Two layers: nine wide. Three layers: thirteen wide.")
assert panels["three layers"][20].sum() == 3 * 4 + 1

# %% [markdown]
# Reach adds up: 4, 8, 12. It is passed on like a rumour, and each pass costs a layer. Published nanochat has three layers with a quarter of the context for each one that sees all.
#
# **Trap: one query, many keys.** A model that writes has one new query and all the old keys. Which mask is right then? Published nanochat shipped the bug that this cell shows: in its fallback for older GPUs, a model *trained* with windows *wrote* without them (fixed on 30 January 2026).

# %%
full = attend(q, k, v, window_mask(9, 3))[:, :, -1:]           # what training computes for the last token
last = q[:, :, -1:]
all_keys = attend(last, k, v, torch.ones(1, 9, dtype=torch.bool))
print(f"no window: off by {(all_keys - full).abs().max():.2f}")
row = attend(last, k, v, window_mask(9, 3)[-1:])
print(f"the mask's last row: off by {(row - full).abs().max():.0e}")
torch.testing.assert_close(row, full)

# %% [markdown]
# PyTorch's `is_causal=True` has another surprise here: with one query and nine keys it lines both up at the *start*, and the new token sees only the very first one. No error either. That is why `attend` and `attend_sdpa` refuse to guess:

# %%
aligned = F.scaled_dot_product_attention(last, k, v, is_causal=True, enable_gqa=True)
torch.testing.assert_close(aligned[:, 0, 0], v[:, 0, 0])       # the first value, and nothing else
try: attend_sdpa(last, k, v)
except ValueError as e: print(e)
else: raise AssertionError("one query and nine keys need a mask")


# %% [markdown]
# ## The layer
#
# First the linear maps. Training adds changes that are often smaller than the gap between a weight and the next bf16 number; the sum would be rounded back to the old weight. So weights stay fp32. Matrix products are several times faster in bf16 where the machine has units for it. So a layer casts a *copy* of its weight to whatever dtype its input has. There is no hidden switch: what goes in decides.

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
# Now everything you have built, in this order: three maps make queries, keys and values; cut into heads; turn; normalise; remember (when there is a cache, see lesson 08); attend; put the heads side by side; and a fourth map writes the result.

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
        if min(n_head, n_kv_head) < 1 or n_embd % n_head or n_head % n_kv_head or n_embd // n_head % 2:
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
layer, x, place = Attention(n_embd=32, n_head=4, n_kv_head=2), torch.randn(2, 12, 32), rotary_tables(T=12, D=8)
print(x.shape, "->", layer(x, place).shape, "with", sum(p.numel() for p in layer.parameters()), "weights")
assert layer(x, place).shape == x.shape
try: Attention(n_embd=30, n_head=4, n_kv_head=4)
except UserError as e: print(e)


# %% [markdown]
# ## No look-ahead, proved
#
# If any output can see a later token, the model reads its own answers in training. The loss falls to a wonderful number, and the model can write nothing. So prove that it cannot, in two ways.
#
# **By perturbation:** change one token, and see which outputs move.

# %%
# NBVAL_CHECK_OUTPUT
def moved(layer: nn.Module, at: int) -> list[int]:
    "For each place: 1 if its output moves when the token at `at` changes."
    changed = x.clone()
    changed[:, at] += torch.randn(32)
    return ((layer(changed, place) - layer(x, place)).abs().amax(dim=(0, 2)) > 0).int().tolist()

print(moved(layer, at=6))
assert moved(layer, at=6) == [0] * 6 + [1] * 6


# %% [markdown]
# The change is random: what a constant cannot move (a mean that is subtracted, say) would slip through otherwise.
#
# **By gradient:** ask each output which inputs it depends on, again in a random mixture of its numbers, since a leak may cancel in their plain sum. A masked weight is exactly 0, and so is its gradient; one backward pass an output gives a row of the whole picture. **Predict** the picture for the layer with the wrong cut, in which head 0 swallowed whole tokens.

# %%
class WrongCut(Attention):
    "The same layer with one wrong line."
    def heads(self, z): return z.view(z.shape[0], -1, z.shape[1], self.head_dim)     # straight to (B, n, T, D)

def reach(layer: nn.Module, mask=None) -> Tensor:
    "(T, T) bool: output i depends on input j, by the gradient."
    z = x[:1].clone().requires_grad_()
    outputs = (layer(z, place, mask)[0] * torch.randn(12, 32)).sum(-1)                # (T,)
    grads = [torch.autograd.grad(out, z, retain_graph=True)[0] for out in outputs]    # T times (1, T, C)
    return torch.cat(grads).abs().amax(-1) > 0

wrong = WrongCut(32, 4, 4)
seen = {"right": reach(layer), "window of 3": reach(layer, window_mask(12, 3)), "wrong cut": reach(wrong)}
assert torch.equal(seen["right"], causal_mask(12)) and torch.equal(seen["window of 3"], window_mask(12, 3))
print("the wrong cut sees the future:", bool((seen["wrong cut"] & ~causal_mask(12)).any()), "- and by perturbation:", moved(wrong, at=6))

# %%
fig, axes = plt.subplots(1, 3, figsize=(6.5, 2.3), layout="constrained", sharey=True)
for ax, (name, mask) in zip(axes, seen.items()):
    ax.imshow(mask, cmap="Blues", vmin=0, vmax=1.4)
    ax.axline((0.5, -0.5), slope=1, color="black", lw=0.8)
    ax.set(title=name, xlabel="input", xticks=range(0, 12, 3), yticks=range(0, 12, 3))
axes[0].set_ylabel("output")
figure(fig, caption="Which output depends on which input, by gradient. Nothing may be dark above the line.",
       alt="Three squares of 12 by 12. Right: the lower triangle is dark. Window of 3: a band of four along the diagonal. "
           "Wrong cut: outputs 0 to 3 depend on inputs 0, 3, 6 and 9, the rest on still more, so most of the dark columns reach above the line.")


# %% [markdown]
# ## A model that only looks back
#
# You have the layer. Does it answer the question of the beginning? Build the smallest model around it: a table gives each letter a vector (an *embedding*), layers of attention each *add* what they found, and a last map makes a score for each of the 26 letters. The next lesson explains why one adds; here it is three lines. Each layer gets a single head, so that there is little to look at.

# %%
class LookBack(nn.Module):
    "A model of nothing but attention. (B, T) letters -> (B, T, 26) scores of the next letter."
    def __init__(self, n_layer: int, C: int = 64):
        super().__init__()
        self.embed, self.head = nn.Embedding(26, C), Linear(C, 26)
        self.layers = nn.ModuleList(Attention(C, 1, 1) for _ in range(n_layer))
        for out in (self.head, *(layer.c_proj for layer in self.layers)): nn.init.zeros_(out.weight)

    def forward(self, idx: Tensor, place: tuple[Tensor, Tensor]) -> Tensor:
        x = rms_norm(self.embed(idx))
        for layer in self.layers: x = x + layer(rms_norm(x), place)
        return self.head(rms_norm(x))

place = rotary_tables(T, 64)
print(sum(p.numel() for p in LookBack(2).parameters()), "weights;", LookBack(2)(rows[:5, :-1], place).shape)

# %% [markdown]
# The loss is the cross-entropy: minus the logarithm of the probability that the right letter got, on average. Clueless, that is $\ln 26 = 3.26$. The update is AdamW's, from PyTorch; lesson 02d builds it. Every step draws 32 new riddles, so nothing can be learned by heart.

# %%
from nanochat.workshop import Live

def learn(model: LookBack, place, steps: int = 250, lr: float = 6e-3) -> list[float]:
    "Train on fresh riddles; the loss of each step."
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0)
    losses = []
    with Live(total=steps) as live:
        for step in range(steps):
            for group in optimizer.param_groups: group["lr"] = lr * min(1, (step + 1) / 20, (steps - step) / (0.3 * steps))
            batch, _ = riddles(32, seed=1000 + step)
            loss = F.cross_entropy(model(batch[:, :-1], place).flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            live.step(step + 1, losses[-1])
    return losses

def score(model: LookBack, place) -> float:
    "Share of right letters among those that can be known: after the word's first run."
    with torch.no_grad(): guess = model(rows[:, :-1], place).argmax(-1)
    return (guess == rows[:, 1:])[torch.arange(T) >= lengths].float().mean().item()


# %% [markdown]
# **Predict before you run.** One model has one layer, the other two. Everything else is equal. How many letters will each get right? (For comparison: the commonest letter got 16%, following one letter 84%, following two 99%.) It takes a few seconds.

# %%
torch.manual_seed(0)
one, two = LookBack(1), LookBack(2)
curves = {"one layer": learn(one, place), "two layers": learn(two, place)}
print(f"one layer {score(one, place):.1%}, two layers {score(two, place):.1%}")
assert score(one, place) < 0.4 and score(two, place) > 0.9

# %%
fig, ax = plt.subplots(figsize=(5.5, 2.4), layout="constrained")
for (name, losses), style in zip(curves.items(), ("--", "-")): ax.plot(losses, style, label=name)
ax.axhline(torch.tensor(26.0).log(), color="gray", lw=0.8, ls=":")
ax.set(xlabel="step (32 riddles each)", ylabel="loss", ylim=(0, None))
ax.legend(frameon=False)
figure(fig, caption="Loss of a model of one layer and of one of two. The dotted line is guessing.",
       alt="One layer: the loss falls slowly from 3.26 to about 2.9. Two layers: the same for about 130 steps; then it falls within 50 steps "
           "below 2, and ends near 1.4.")


# %% [markdown]
# One layer hardly beats the commonest letter; with four times the steps it gets 23%. Two layers find the answer, and they find it *suddenly*: little for 130 steps, then almost everything within fifty. (Neither loss can go to 0, since the first run of a word is random.) What did they find?
#
# ## Look inside
#
# The weights are inside `attend`, which hands out only answers. There is a way to make it tell: give every place the value *"I am place j"*, a vector with a 1 at position j. The weighted mean of these is the row of weights itself. The next function does this for each attention layer of any model, while it runs.

# %%
#| export
@contextmanager
def attention_maps(
    model: nn.Module,         # holds `Attention` layers
) -> Iterator[list[Tensor]]:  # gets one (B, H, T, S) for each layer, in the order in which they run
    "Within the block the weights of all attention layers are kept. They fill memory: B x H x T x S."
    maps, layers = [], [m for m in model.modules() if isinstance(m, Attention)]
    forms = [layer.attend for layer in layers]

    def watched(q, k, v, mask=None):
        places = torch.eye(k.shape[2], dtype=k.dtype, device=k.device)      # the value of place j is "j"
        maps.append(attend(q, k, places.expand(*k.shape[:2], -1, -1), mask).detach())
        return attend(q, k, v, mask)

    for layer in layers: layer.attend = watched
    try: yield maps
    finally:
        for layer, form in zip(layers, forms): layer.attend = form


# %%
def maps_of(model: LookBack, idx: Tensor, place) -> list[Tensor]:
    with attention_maps(model) as maps, torch.no_grad(): model(idx, place)
    return maps

first, second = maps_of(two, rows[:, :-1], place)
print(first.shape, "rows sum to", first.sum(-1).mean().item())
assert two.layers[0].attend is None and (first.sum(-1) - 1).abs().max() < 1e-5


# %%
def draw_map(ax, weights: Tensor, text: str, title: str):
    "One (T, T) map with the letters along both sides."
    ax.imshow(weights, cmap="Blues", vmin=0, vmax=1)
    ax.set(xticks=range(len(text)), yticks=range(len(text)), xticklabels=text, yticklabels=text, title=title, xlabel="looks at")
    ax.tick_params(length=0, labelsize=6)

sample, n = 2, 33                                                  # "kowgup..." from the beginning
fig, axes = plt.subplots(1, 2, figsize=(8.5, 4.5), layout="constrained")
for ax, weights, title in zip(axes, (first, second), ("first layer", "second layer")):
    draw_map(ax, weights[sample, 0, :n, :n], spell(rows[sample, :n]), title)
axes[0].set_ylabel("letter that asks")
figure(fig, caption="Where each letter of a riddle looks, in both layers. Each row sums to 1.",
       alt="Two maps of 33 by 33 letters. First layer: a dark line just below the diagonal, each letter looks at the one or two before it. Second layer: "
           "scattered in the first 18 rows; below them a dark line parallel to the diagonal, 16 places back, on the letter that comes next.")

# %% [markdown]
# **First layer:** a line just below the diagonal. Each letter looks at the one *before* it, and adds to its own vector a note: "before me stood a k". **Second layer:** nothing much while the word is new; then a second line, far from the diagonal. Take the `o` of the second run, the one behind the second `k`. Its query says: *who has a note that an o stood before it?* The
# `w` of the first run has. The `o` looks there, and copies what it finds: `w`. (The very last `o` is torn between `f` and `w`: this word holds two of them.)
#
# Elhage and others (2021) found this pair in models of text, and Olsson and others (2022) called it an **induction head** and saw it appear in models of many sizes, in a sudden step of the loss. It also says why one layer is not enough: the note has to be written before it can be read.
#
# How sharp is it? Measure both claims on 500 riddles.

# %%
ids = rows[:, :-1]
back = [first.diagonal(-d, 2, 3)[..., 3:].mean().item() for d in range(5)]
noted = (ids[:, None, :-1] == ids[:, :, None]).float().tril(-1)        # (n, T, T-1): the letter before key j+1 is mine
late = torch.arange(T) >= lengths + 1                                  # (n, T): from the second run's second letter on, two letters to match
found = (second[:, 0, :, 1:] * noted).sum(-1)[late].mean().item()
print("first layer, weight by distance 0, 1, 2, 3, 4:", [round(b, 2) for b in back])
print(f"second layer, weight on places that stand behind an earlier copy of me: {found:.2f}")
assert max(back) == back[1] and back[1] > 0.3 and found > 0.7


# %% [markdown]
# So it is true, and not the whole truth: the first layer gives more than half of its weight to the letter before, *and a fifth to the one before that*. Is that noise, or is it the rule "follow 2"? Looking at weights does not prove what they are for. An **intervention** does: blind a layer with a window, without any training, and see what is lost.
#
# **Predict** the three lines. A first-layer window of 1 leaves the letter itself and the one before; a second-layer window of 12 leaves the long words' first runs out of sight.

# %%
def blinded(first: int = T, second: int = T) -> float:
    "Score of the two-layer model when its layers look back this far only."
    masks = [window_mask(T, first), window_mask(T, second)]
    for layer, mask in zip(two.layers, masks): layer.attend = lambda q, k, v, _, mask=mask: attend(q, k, v, mask)
    try: return score(two, place)
    finally:
        for layer in two.layers: layer.attend = None

windows = {"all of it": {}, "first layer 2": {"first": 2}, "first layer 1": {"first": 1}, "second layer 12": {"second": 12}}
kept = {name: blinded(**w) for name, w in windows.items()}
for name, value in kept.items(): print(f"{name:16} {value:.1%}")
assert kept["first layer 2"] > kept["first layer 1"] + 0.03 and kept["second layer 12"] < 0.8


# %% [markdown]
# With one letter before, the model falls to 84%, which is what "follow 1" gets; with two it is whole again. So it *uses* both letters, and what it found by itself is "follow 2", one step beyond the textbook's induction head. And a second layer that cannot see the first run cannot copy from it: in a model with windows, some layer must see all.
#
# Move through the maps yourself, if your notebook is running. The letter that asks stands in a frame; the darker a letter, the more weight it gets. Read its two strongest from the line below. (What you see without a kernel is the letter at place 30.)

# %%
#| export
def show_weights(
    tokens: Sequence[str],  # S texts, one for each key
    weights: Tensor,        # (S,) weights of one query
    asks: int,              # the place of the query
) -> str:                   # HTML; nothing in the tokens is taken as HTML
    "A text in which each token is as dark as its weight, and a line that names the strongest."
    spans = []
    for j, (token, w) in enumerate(zip(tokens, weights.tolist())):
        style = f"background:rgba(31,119,180,{w:.2f});color:{'white' if w > 0.5 else 'inherit'}"
        if j == asks: style += ";outline:2px solid #d62728"
        spans.append(f'<span style="{style}" title="{j}: {w:.0%}">{html.escape(token)}</span>')
    best = [f"“{html.escape(tokens[j])}” at {j} ({weights[j]:.0%})"
            for j in weights.topk(min(2, len(tokens))).indices]
    said = f"“{html.escape(tokens[asks])}” at {asks} looks at {' and '.join(best)}."
    return f'<p style="font-family:monospace;font-size:1.3em">{"".join(spans)}</p><p>{said}</p>'


# %%
from IPython.display import HTML, display

for maps in (first, second): display(HTML(show_weights(spell(rows[2, :33]), maps[2, 0, 30, :33], asks=30)))
assert "<b>" not in show_weights(["<b>"], torch.ones(1), 0)

# %%
import ipywidgets as widgets

riddle = widgets.IntSlider(value=2, max=len(rows) - 1, description="riddle", continuous_update=False)
asks = widgets.IntSlider(value=30, max=T - 1, description="letter")
level = widgets.ToggleButtons(options=["first", "second"], value="second", description="layer")
shown = widgets.HTML()

def redraw(change=None):
    maps = {"first": first, "second": second}[level.value]
    shown.value = show_weights(spell(rows[riddle.value, :T]), maps[riddle.value, 0, asks.value], asks.value)

for control in (riddle, asks, level): control.observe(redraw, "value")
redraw()
display(widgets.VBox([riddle, asks, level, shown]))

# %% [markdown]
# Move by code, which is the same as moving and clicking, and read the line below the letters:

# %%
asks.value, level.value = 20, "first"
print(shown.value.split("<p>")[-1].removesuffix("</p>"))
assert "at 20 looks at" in shown.value and "at 19" in shown.value

# %% [markdown]
# Lesson 03 opens these maps again, with a model that has read stories.
#
# **One more prediction.** Train the same two layers *without rotary embedding*: every cosine 1, every sine 0. Which of the two layers suffers, and how many letters will the model get?

# %%
torch.manual_seed(0)
still = torch.ones(T, 32), torch.zeros(T, 32)                  # no hand moves
blind = LookBack(2)
_ = learn(blind, still)
print(f"without places {score(blind, still):.1%}, with places {score(two, place):.1%}")
assert score(blind, still) < 0.5 < score(two, place)

# %% [markdown]
# The first layer suffers: "the one before me" is a matter of place. The model is back at the commonest letter. Yet if you give it `steps=1000` it gets more than half right. It found a crack: the causal mask itself tells something about places, for the first letter averages over one, the tenth over ten (Haviv and others 2022). Slow and blurred, but there.
#
# **What was learned, honestly?** Not a language. One habit: if this has happened before, what came next? And the task was chosen so that nothing less would do. Give all words the same length, 17, and *one* layer gets everything right: it learns "16 back" from rotary embedding, and matches nothing (try it in `riddles`). The habit has its price, too. In a first run nothing
# can be known. Does the model know that?

# %%
with torch.no_grad(): sure, guess = two(ids, place).softmax(-1).max(-1)
bold = (torch.arange(T) < lengths - 1) & (sure > 0.5)           # first run, and one letter has more than half of the probability
print(f"surer than 50% at {bold.sum() / (lengths - 1).sum():.0%} of the places of a first run, "
      f"right at {(guess == rows[:, 1:])[bold].float().mean():.0%} of these")
assert bold.sum() > 500 and (guess == rows[:, 1:])[bold].float().mean() < 0.15

# %% [markdown]
# No. It has seen a letter before, so it copies, and is wrong with confidence. A model that hallucinates in this way is not broken; it does what paid on average.
#
# ## At scale
#
# The \$100 model has 20 layers of width 1,280, 10 heads of 128, and a context of 2,048. For one token a layer spends $8C^2$ operations on its four maps and $4CT$ on scores and weighted sum (half of them wasted on the future, unless the kernel skips it). The MLP of the next lesson adds $16C^2$ a layer, and the head, once, $2VC$ for a vocabulary of $V$. Training costs three times that: once forward, twice backward.

# %%
L, C, H, T20, V = 20, 1280, 10, 2048, 65_536
step = 6 * (V * C + 12 * L * C**2) + 12 * L * C * T20                   # operations a token, forward and backward
print(f"scores and sums: {12 * L * C * T20 / step:.0%} of the operations of a training step; at T = 32,768 "
      f"{12 * L * C * 2**15 / (step + 12 * L * C * (2**15 - T20)):.0%}")
print(f"stored scores: {32 * H * T20**2 * 2 / 1e9:.1f} GB a layer in bf16 for 32 rows; the fused kernel keeps none")
pairs = lambda window: sum(min(i, window) + 1 for i in range(T20))      # what may be seen
print(f"three of four layers with a window of 512: {1 - (15 * pairs(512) + 5 * pairs(T20)) / (20 * pairs(T20)):.0%} of the visible pairs saved")
for G in (10, 5, 2, 1): print(f"{G:2} key heads: a conversation of {T20:,} tokens keeps {2 * L * G * 128 * T20 * 2 / 1e6:.0f} MB in bf16")
assert 2 * L * 10 * 128 * T20 * 2 == 209_715_200

# %% [markdown]
# Published nanochat has as many key heads as heads, so a GPU of 80 GB holds fewer than 400 full conversations; with two key heads it would be 1,900. It started with full attention; since January 2026 three of four layers have a window, and it uses FlashAttention 3 on newer GPUs. Two things its users report, and you now know why. With PyTorch's own fused function a
# window saves *no* memory, since a mask of all pairs is built (issue 825 there). And on eight A100 the windowed pattern was slower than full attention, 226 against 309 as quoted in pull request 540: a kernel that is not told about the band computes all and throws most of it away. In this course full attention is the default, and windows are an argument.
#
# ## Recap
#
# 1. Averaging is attention with equal scores. A query asks, keys answer with scores, softmax makes weights, values are mixed.
# 2. The gradient of softmax is $w_i(\delta_{ij} - w_j)$: a saturated row learns nothing. So scores are divided by $\sqrt D$, and QK norm keeps them within $\pm\sqrt D$ for good.
# 3. $-\infty$ before softmax takes a place out; nothing else does. Prove it, by perturbation and by gradient.
# 4. Turning queries and keys by their position leaves only the distance in the score.
# 5. Shared keys save memory, windows save work, and two layers together can do what one cannot: note, then match.
# 6. You know more than a compiler: a bound of the scores, which half is masked, what a row has mixed. Used, that makes attention on a CPU nearly twice as fast.
#
# ## Quiz
#
# <details><summary>1. You add 7 to all scores of a row. What happens to the weights?</summary>Nothing: the factor e^7 cancels. That is why the largest score may be subtracted first.</details>
# <details><summary>2. You add 7 to one key's score in every row. And now?</summary>That key gets more weight in every row, at the cost of the others in proportion to their weights.</details>
# <details><summary>3. A colleague applies softmax over the queries instead of the keys. All shapes are right. What breaks?</summary>The sums run over later queries, so the weight of an early query depends on what comes after it: the future leaks. The test by perturbation finds it.</details>
# <details><summary>4. Must values be turned by RoPE, too?</summary>No. Places only decide who is asked. What is handed over should be the same wherever it stood.</details>
# <details><summary>5. A model has 12 layers, each with a window of 100. Can token 1,000 know of token 1?</summary>Perhaps: information can travel up to 1,200 tokens, if every layer passes it on.</details>
# <details><summary>6. The map of a head shows a strong weight on a name. Does the model use the name?</summary>Not proved. The value may carry nothing of it, or later layers may ignore it. Blind the head and see what changes.</details>
#
# ## Papers
#
# Vaswani and others 2017, *Attention is all you need* · Su and others 2021, *RoFormer* (rotary embedding) · Henry and others 2020, *Query-key normalization for transformers* · Zhang and Sennrich 2019, *Root mean square layer normalization* · Ainslie and others 2023, *GQA* · Beltagy, Peters and Cohan 2020, *Longformer* (windows) · Dao and others 2022, *FlashAttention* ·
# Elhage and others 2021, *A mathematical framework for transformer circuits*, and Olsson and others 2022, *In-context learning and induction heads* (models of attention only, and what they find) · Haviv and others 2022, *Transformer language models without positional encodings still learn positional information*. To grow attention out of averaging is an idea of Karpathy's lectures; the layer is that of his nanochat.
#
# **Exercises:** `make start NN=02`. **Next:** `02a_transformer` stacks this layer into a GPT.
#
# ## What your package can do now
#
# Text from the microworld, your tokenizer, and a layer with shared keys and a window. Nothing is trained yet, so where it looks is chance; who it *may* look at is not.

# %%
from nanochat.microworld import corpus
from nanochat.tokenizer import Tokenizer

texts = [doc.text for doc in corpus(50_000)]
tokenizer = Tokenizer.train(texts, 512)
ids = tokenizer.encode(texts[0])[:24]
torch.manual_seed(1)
layer = Attention(n_embd=64, n_head=4, n_kv_head=2)
with attention_maps(layer) as maps, torch.no_grad():
    layer(torch.randn(512, 64)[ids][None], rotary_tables(len(ids), 16), window_mask(len(ids), 8))
display(HTML(show_weights([tokenizer.decode([i]) for i in ids], maps[0][0, 0, -1], asks=len(ids) - 1)))
assert (maps[0][0, :, -1] > 0).sum(-1).tolist() == [9, 9, 9, 9]
