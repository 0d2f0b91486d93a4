# %% [markdown]
# # 02c Sampling
#
# A language model gives a probability for each possible next token. You build what turns those numbers into a token, tokens into text, and many texts at once.
#
# After this lesson you can
#
# * derive what temperature and top-k do to a distribution, and see greedy decoding as a limit;
# * turn one uniform number into one token, and give each row of a batch its own luck;
# * write a sampler that is slow and plainly right, and say what it costs;
# * let a tool put words into the model's mouth, and still know which words were the model's.
#
# You need `02a_transformer`. Reading and running: 40 minutes. Computing: seconds. A side lesson: no exercises, but a quiz.

# %%
#| default_exp sample

# %%
#| export
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nanochat.gpt import GPT
from nanochat.workshop import UserError

# %% [markdown]
# ## Always the best token?
#
# The obvious rule is to take the likeliest token each time. Here is a language of four words, in which the next word depends on the last one only. **Predict** what the obvious rule writes.

# %%
words = ["the", "cat", "sat", "and"]
odds = torch.tensor([[0.0, 0.6, 0.2, 0.2], [0.3, 0.0, 0.5, 0.2], [0.4, 0.0, 0.0, 0.6], [0.8, 0.1, 0.1, 0.0]])
luck = torch.Generator().manual_seed(1)

def write(rule: str, at: int = 0, n: int = 16) -> list[str]:
    "n words after the first, by the likeliest or by chance."
    text = [at]
    for _ in range(n):
        row = odds[text[-1]]
        text.append(row.argmax().item() if rule == "likeliest" else torch.multinomial(row, 1, generator=luck).item())
    return [words[i] for i in text]

for rule in ("likeliest", "by chance"): print(f"{rule:10}", " ".join(write(rule)))
assert write("likeliest")[4:8] == write("likeliest")[8:12]

# %% [markdown]
# It walks into a loop and never leaves it; Holtzman and others (2019) saw large models do just that. Drawing by chance is livelier, and sometimes silly. What you want lies between, and there are two knobs.
#
# ## Temperature
#
# The model hands out logits $z$, and softmax makes $p_i = e^{z_i} / \sum_j e^{z_j}$. Temperature $\tau$ divides them first. Only *ratios* matter:
#
# $$\frac{p_i}{p_j} = e^{(z_i - z_j)/\tau}.$$
#
# By hand: a gap of 1 between two tokens is a ratio of 2.7 at $\tau = 1$. At 0.5 the ratio is squared, 7.4; at 2 it is the root, 1.6. **So temperature raises every ratio to the power $1/\tau$.** As $\tau$ goes to 0 the best token's ratio to any other goes to infinity: greedy decoding is the limit, not another method. As $\tau$ grows, all ratios go to 1.

# %%
z = torch.tensor([3.0, 2.5, 1.0, 0.5, 0.0, -1.0, -2.0])
for tau in (0.1, 0.5, 1.0, 2.0, 100.0): print(f"{tau:5}: ", [round(p, 3) for p in (z / tau).softmax(-1).tolist()])
p, q = z.softmax(-1), (z / 0.5).softmax(-1)
torch.testing.assert_close(q[0] / q[2], (p[0] / p[2]) ** 2)


# %% [markdown]
# ### The temperature curve
#
# How undecided is a distribution? Its **entropy** $H = -\sum_i p_i \ln p_i$ says it in nats, and $e^H$ as a number of equally likely tokens. Put $\ln p_i = z_i/\tau - \ln Z$ into $H$ and take the derivative; all but one term cancels:
#
# $$\frac{dH}{d\tau} = \frac{\operatorname{Var}_p(z)}{\tau^3} \ge 0,$$
#
# where the variance of the logits is taken with the probabilities as weights. So more temperature always means more entropy, from 0 to $\ln V$, and it moves fastest where good and bad tokens are both still in play. PyTorch, which differentiates by itself, agrees:

# %%
def entropy(z: Tensor, tau: Tensor) -> Tensor:
    "Entropy in nats of softmax(z / tau)."
    p = (z / tau).softmax(-1)
    return -(p * p.clamp(min=1e-30).log()).sum(-1)

def slope(z: Tensor, tau: Tensor) -> Tensor:
    "The formula: variance of the logits under p, over tau cubed."
    p = (z / tau).softmax(-1)
    return ((p * z**2).sum() - (p * z).sum() ** 2) / tau**3

for tau in torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64):
    H, by_hand = entropy(z.double(), tau), slope(z.double(), tau)
    torch.testing.assert_close(torch.func.grad(lambda t: entropy(z.double(), t))(tau), by_hand)
    print(f"at {tau:.1f}: H = {H:.2f} nats, as many as {H.exp():.1f} equal tokens; slope {by_hand:.2f}")

# %%
import math
import matplotlib.pyplot as plt
from nanochat.workshop import figure

taus = torch.logspace(-1.3, 1.3, 80)
g = torch.Generator().manual_seed(0)
tail = torch.cat([z, -3 + 0.5 * torch.randn(2000, generator=g)])          # the same seven, and 2,000 silly ones
fig, axes = plt.subplots(1, 2, figsize=(7.5, 2.5), layout="constrained")
for name, logits, style in (("7 tokens", z, "--"), ("7 and 2,000 silly ones", tail, "-")):
    axes[0].plot(taus, [entropy(logits, t).exp() for t in taus], style, label=name)
axes[1].plot(taus, [(tail / t).softmax(-1)[7:].sum() for t in taus], "-", label="all")
axes[1].plot(taus, [(tail.topk(50).values / t).softmax(-1)[7:].sum() for t in taus], ":", label="top 50")
axes[0].set(xscale="log", yscale="log", xlabel="temperature", title="as many as ... equal tokens")
axes[1].set(xscale="log", xlabel="temperature", title="probability of the silly ones", ylim=(-0.02, 1.02))
for ax in axes: ax.legend(frameon=False, fontsize=8)
figure(fig, caption="Left: entropy against temperature, as a number of equally likely tokens. Right: what share the tail of silly tokens gets.",
       alt="Left: both curves rise from 1; that of 7 tokens levels off at 7, that with a tail climbs to 2,000. Right: with all tokens the tail holds most of the "
           "probability already at temperature 1 and nearly all at 2; with top 50 it stays below a fifth at 1 and grows later.")
assert entropy(tail, torch.tensor(0.05)) < 0.1

# %% [markdown]
# ## Top-k
#
# The right panel is the trouble with chance: each silly token is rare, but two thousand of them are not. **Top-k** (Fan and others 2018) keeps the $k$ best and forgets the rest: their logits become $-\infty$, and softmax shares their probability among those kept *in proportion*, so the ratios among the kept stay as they were. Temperature bends the ratios and keeps everybody; top-k keeps the ratios and drops the tail.

# %%
kept = z.where(z >= z.topk(3).values[-1], -torch.inf).softmax(-1)
print([round(p, 3) for p in kept.tolist()])
torch.testing.assert_close(kept[:3], z.softmax(-1)[:3] / z.softmax(-1)[:3].sum())

# %%
fig, axes = plt.subplots(1, 4, figsize=(7.5, 2.2), sharey=True, layout="constrained")
settings = [("τ = 1", z), ("τ = 0.5", z / 0.5), ("τ = 2", z / 2), ("τ = 1, top 3", z.where(z >= 1, -torch.inf))]
for ax, (title, logits) in zip(axes, settings):
    ax.bar(range(7), logits.softmax(-1))
    ax.set(title=title, xlabel="token", xticks=range(7))
axes[0].set_ylabel("probability")
figure(fig, caption="What temperature and top-k do to the odds of seven tokens.",
       alt="Four bar charts. At temperature 1 the first two of seven tokens have about 0.5 and 0.3; at 0.5 they share nearly "
           "everything; at 2 the bars are flatter; with top 3 only three bars are left.")


# %% [markdown]
# ## One random number makes one token
#
# Lay the probabilities side by side on a stick of length 1 and throw a dart at a uniform place $u$. The piece it hits is your token, and a piece is hit in proportion to its length. The pieces end at the running sums of the probabilities, so the token is the first whose running sum exceeds $u$. By hand, then as a loop:

# %%
def pick_loop(p: list[float], u: float) -> int:
    "Version 1: walk along the stick."
    end = 0.0
    for token, length in enumerate(p):
        end += length
        if u < end: return token
    return len(p) - 1                                     # rounding left the stick a little short of 1

p = [0.2, 0.5, 0.3]                                       # pieces end at 0.2, 0.7 and 1
print({u: pick_loop(p, u) for u in (0.1, 0.2, 0.69, 0.95)})
assert [pick_loop(p, u) for u in (0.1, 0.2, 0.69, 0.95)] == [0, 1, 1, 2]


# %% [markdown]
# Why not call a library's random choice? Because each row of a batch should own its luck: one number for each row and token, decided before anything runs. Then what row 3 writes cannot depend on how many neighbours it has. All rows at once:

# %%
#| export
def pick(
    logits: Tensor,             # (B, V)
    u: Tensor,                  # (B,) numbers in [0, 1), one draw for each row
    temperature: float = 1.0,   # 0: always the likeliest token
    top_k: int | None = None,   # keep only the k likeliest; None or 0: all
) -> Tensor:                    # (B,) tokens
    """One token per row from one uniform number per row: the inverse of cumulative probabilities.

    Raises `UserError` for a negative temperature or top-k, and where the largest logit is not finite."""
    if not temperature >= 0 or (top_k or 0) < 0:
        raise UserError(f"temperature {temperature} and top-k {top_k} must not be negative")
    values, tokens = logits.float(), None
    peak = values.amax(dim=-1, keepdim=True)
    if not peak.isfinite().all():
        raise UserError("a logit is not a finite number: the weights are damaged; "
                        "load an earlier checkpoint")
    if temperature < 1e-30: return logits.argmax(dim=-1)            # 1 / temperature would leave fp32
    if top_k: values, tokens = values.topk(min(top_k, logits.shape[-1]))
    sums = ((values - peak) / temperature).exp().cumsum(dim=-1)     # (B, k), not normalised
    u = u.to(sums).clamp(max=1 - 2**-24)                            # below 1 in fp32 too
    slot = torch.searchsorted(sums, u[:, None] * sums[:, -1:], right=True)  # (B, 1)
    return (slot if tokens is None else tokens.gather(1, slot)).squeeze(1)


# %%
u = (torch.arange(100_000) + 0.5) / 100_000            # darts at even distances instead of at random
for tau, top_k in ((1.0, None), (0.5, None), (2.0, 2)):
    got = pick(z.expand(len(u), 7), u, tau, top_k).bincount(minlength=7) / len(u)
    kept = z.where(z >= z.topk(top_k or 7).values[-1], -torch.inf)
    print(tau, top_k, [round(x, 3) for x in got.tolist()])
    torch.testing.assert_close(got, (kept / tau).softmax(-1), rtol=0, atol=1e-4)

# %% [markdown]
# The counted shares equal the formula. (With top-k the pieces lie best first; that changes which dart hits what, and no probability. The largest logit is subtracted so that nothing overflows, as in lesson 02.)
#
# For an opinion that shares no idea with ours, add to each logit a random number $-\ln(-\ln u)$ of its own, and take the *largest*: that draws from softmax too (Gumbel). Two methods, one distribution:

# %%
n, g = 200_000, torch.Generator().manual_seed(0)
gumbel = -(-torch.rand(n, 7, generator=g).clamp(min=1e-30).log()).log()
theirs = (z / 0.7 + gumbel).argmax(-1).bincount(minlength=7) / n
ours = pick(z.expand(n, 7), torch.rand(n, generator=g), 0.7).bincount(minlength=7) / n
print("largest difference:", round((ours - theirs).abs().max().item(), 4), "; chance alone allows about", round(4 * (0.5 / n) ** 0.5, 4))
assert (ours - theirs).abs().max() < 4 * (0.5 / n) ** 0.5

# %% [markdown]
# **Trap: zero is not one.** Users write `top_k = 0` for "off" and temperature 0 for "the best". Written plainly, the first asks for the best of no tokens, and crashed published nanochat (issues 458 and 467); the second divides by zero.

# %%
print("written plainly, temperature 0 gives", (z / 0).softmax(-1)[:3].tolist())
print("written plainly, top-k 0 leaves", len(z.topk(0).values), "tokens to choose from")
assert (z / 0).softmax(-1).isnan().any()


# %%
#| export
def pick_next(
    logits: Tensor,                            # (B, V)
    temperature: float = 1.0,                  # as in `pick`
    top_k: int | None = None,                  # as in `pick`
    generator: torch.Generator | None = None,  # on the CPU; None: torch's own
) -> Tensor:                                   # (B,) tokens
    "Sample one token for each row of logits."
    return pick(logits, torch.rand(len(logits), generator=generator), temperature, top_k)


# %%
g = torch.Generator().manual_seed(0)
print("temperature 0:", pick_next(z[None], 0).item(), "  top-k 0:", pick_next(z[None], 1.0, 0, g).item())
assert pick_next(z[None], 0).item() == pick_next(z[None], 1e-30).item() == 0
assert pick_next(z.expand(1000, 7), 1.0, 2, g).max() == 1            # top-k 2: nothing but the best two
for damaged in (dict(logits=z[None], temperature=-1.0), dict(logits=z[None] * math.nan)):
    try: pick_next(**damaged)
    except UserError as e: print(e)


# %% [markdown]
# ## What a sampler hands back
#
# Everything later, from evaluation to reinforcement learning, asks a sampler for text in the same form. A `Sample` holds the new tokens, and for each whether the model chose it. Some it does not choose: when a model asks a calculator, the result is **forced** into its text, and it must never be praised or blamed for it. A stop token that the model sampled belongs to the sample: published nanochat dropped it before reinforcement learning, so stopping was never rewarded.

# %%
#| export
class Sample(NamedTuple):
    "What a model wrote after a prompt; a stop token that ended it is the last of `tokens`."
    tokens: list[int]    # new tokens only
    sampled: list[bool]  # False where a tool forced the token


# %%
s = Sample(tokens=[5, 9, 4, 2], sampled=[True, False, False, True])
own = [t for t, mine in zip(*s) if mine]
print(own, "were the model's own")
assert own == [5, 2]

# %% [markdown]
# ## Luck for each row
#
# Rows need seeds. **Trap: one first token for all.** Sixteen samples of one prompt share the prompt's logits, so it is tempting to draw once and copy. Published nanochat did so for more than two months: all samples began with the same token, and reinforcement learning, which lives on their differences, had less to learn from. **Trap: negative seeds.** Python's `random` takes -9 for 9; two data sets seeded by -i and i were the same there.

# %%
import random

shared = pick(z.expand(16, 7), torch.full((16,), 0.8))                  # one draw, copied
own = pick(z.expand(16, 7), torch.from_numpy(np.stack([np.random.default_rng((0, r)).random() for r in range(16)])))
print("one draw:", shared.tolist(), "\na draw each:", own.tolist())
print("Python's random, seeds 9 and -9:", random.Random(9).random() == random.Random(-9).random())
assert len(set(shared.tolist())) == 1 < len(set(own.tolist()))


# %% [markdown]
# ## Many rows at once
#
# The bookkeeping of a batch is the same for the slow sampler and the fast one, so it has a class of its own. It knows for each row its tokens, its forced tokens that wait, and its draws. Five rules live here:
#
# * row r draws from a stream of its own, seeded by (seed, r), negative seeds included;
# * the k-th sampled token uses the k-th number, forced tokens or not;
# * the tool is asked after each sampled token, and its answer comes next;
# * forced tokens are free: the budget counts sampled ones;
# * a row ends at a stop token it sampled, or when its budget is spent, and then costs nothing more.

# %%
#| export
class Rows:
    """Many prompts being continued at once: what each row holds, waits for, and whether it goes on.

    Row r draws from its own stream of random numbers, seeded by (seed, r), one number for each
    sampled token. So its neighbours change nothing in it, and forced tokens use up no draw."""
    def __init__(self,
        prompts: list[list[int]],      # each with at least one token
        stop: frozenset[int],          # sampling one of these ends a row
        max_new_tokens: int,           # tokens to sample in each row at most; forced ones are free
        seed: int = 0,
        tool: Callable | None = None,  # row tokens -> tokens to force next, or None
    ):
        if not all(map(len, prompts)): raise UserError("a prompt is empty; begin it with <|bos|>")
        self.stop, self.tool, self.budget = stop, tool, max_new_tokens
        self.tokens = [list(p) for p in prompts]
        self.sampled: list[list[bool]] = [[] for _ in prompts]
        self.forced: list[list[int]] = [[] for _ in prompts]       # waiting, next one last
        self.count = [0] * len(prompts)                            # tokens sampled so far
        self.live = list(range(len(prompts))) if max_new_tokens > 0 else []
        self.draws = np.zeros((len(prompts), max(max_new_tokens, 1)))
        for r, draws in enumerate(self.draws):
            draws[:] = np.random.default_rng((seed % 2**64, r)).random(len(draws))

    def uniforms(self, rows: list[int]) -> Tensor:
        "(rows,) the number in [0, 1) that each of these rows draws with next."
        at = np.minimum([self.count[r] for r in rows], self.draws.shape[1] - 1)
        return torch.from_numpy(self.draws[rows, at])

    def push(self, picked: dict[int, int]) -> None:
        "Append one token to every live row: the forced one where one waits, else the picked one."
        self.live = [r for r in self.live if self._goes_on(r, picked[r])]

    def _goes_on(self, r: int, token: int) -> bool:
        "Append to row r, and say whether it goes on."
        if self.forced[r]:
            self.tokens[r].append(self.forced[r].pop())
            self.sampled[r].append(False)
            return True
        self.tokens[r].append(token)
        self.sampled[r].append(True)
        self.count[r] += 1
        if token in self.stop or self.count[r] >= self.budget: return False
        if self.tool and (answer := self.tool(self.tokens[r])): self.forced[r] = list(answer)[::-1]
        return True

    def samples(self) -> list[Sample]:
        "The new part of every row."
        return [Sample(t[len(t) - len(s):], s) for t, s in zip(self.tokens, self.sampled)]


# %%
def add_tool(row: list[int]):
    "After token 9: force the sum of the two tokens before it."
    return [row[-3] + row[-2]] if row[-1] == 9 else None

rows = Rows([[1, 2], [3]], stop=frozenset({0}), max_new_tokens=3, tool=add_tool)
for picked in ({0: 9, 1: 7}, {0: 5, 1: 0}, {0: 6}, {0: 4}):
    rows.push(picked)
    print("live", rows.live, rows.tokens)
assert rows.samples() == [Sample([9, 3, 6, 4], [True, False, True, True]), Sample([7, 0], [True, True])]


# %% [markdown]
# Follow row 0: it sampled 9, so the tool forced 1 + 2 = 3, and the picked 5 was thrown away. It sampled three tokens although four came. Row 1 sampled the stop token 0 and left.
#
# ## The slow sampler
#
# Rows of different length become one tensor by filling the short ones on the right. Is that allowed? Attention never looks to the right, so no real position sees the filling. You only have to read the logits at each row's own last token. **Trap:** read them at the last *column* and short rows continue the filling.

# %%
#| export
def pad_right(
    rows: list[list[int]],  # token lists of any length
    device=None,
) -> Tensor:                # (B, longest), shorter rows filled with 0
    "One tensor of many rows. Causal attention never looks right, so the filling changes nothing."
    longest = max(map(len, rows))
    return torch.tensor([r + [0] * (longest - len(r)) for r in rows], device=device)


# %%
from nanochat.gpt import config_for

model = GPT(config_for(1, vocab_size=50, seq_len=32, head_dim=64))
for p in model.parameters():                        # an untrained model gives equal odds; shake it
    if not p.any(): torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(0))
padded = pad_right([[7, 8, 9], [7, 8, 9, 1, 2, 3]])
print(padded)
torch.testing.assert_close(model(padded)[0, 2], model(padded[:1, :3])[0, 2])
assert (model(padded)[0, -1] - model(padded)[0, 2]).abs().max() > 0.1       # the last column: another answer


# %% [markdown]
# The sampler is a loop of five lines: fill, run, take the last position, pick, push.

# %%
#| export
def make_sampler(
    model: GPT,
    stop: Iterable[int],  # tokens that end a row
) -> Callable:            # sampler(prompts, *, max_new_tokens, temperature, top_k, seed, tool)
    "A sampler that reads the whole text again for every new token: slow, and plainly right."
    stop = frozenset(stop)

    @torch.inference_mode()
    def sampler(prompts: list[list[int]], *, max_new_tokens: int, temperature: float = 1.0,
                top_k: int | None = None, seed: int = 0,
                tool: Callable | None = None) -> list[Sample]:
        rows = Rows(prompts, stop, max_new_tokens, seed, tool)
        while live := rows.live:
            texts = [rows.tokens[r] for r in live]
            features = model.features(pad_right(texts, model.device))            # (B, T, C)
            last = features[torch.arange(len(live)), [len(t) - 1 for t in texts]]     # (B, C)
            logits = model.logits(last)                                               # (B, V) fp32
            u = rows.uniforms(live).to(logits)
            rows.push(dict(zip(live, pick(logits, u, temperature, top_k).tolist())))
        return rows.samples()
    return sampler


# %%
sampler = make_sampler(model, stop=[0])
prompts = [[1, 2, 3], [4], [4]]
for tau in (0.0, 1.0):
    for s in sampler(prompts, max_new_tokens=8, temperature=tau, seed=1): print(tau, s.tokens)
alone, together = sampler(prompts[:1], max_new_tokens=8, seed=1), sampler(prompts, max_new_tokens=8, seed=1)
assert alone[0] == together[0]                       # a neighbour changes nothing
assert together[1].tokens != together[2].tokens      # equal prompts, own luck

# %% [markdown]
# **Is it fair?** Over many rows the first sampled token must follow the model's own probabilities. A count strays from its expectation by a standard error of $\sqrt{p(1-p)/n}$; the largest of 50 seldom by more than four.

# %%
n = 4000
first = torch.tensor([s.tokens[0] for s in sampler([[4]] * n, max_new_tokens=1, seed=2)])
share, truth = first.bincount(minlength=50) / n, model(torch.tensor([[4]]))[0, -1].softmax(-1)
errors = (share - truth) / (truth * (1 - truth) / n).sqrt()
print(f"largest gap {(share - truth).abs().max():.4f}, largest of 50 in standard errors {errors.abs().max():.1f}")
assert errors.abs().max() < 4.5


# %% [markdown]
# ## What it costs
#
# For each new token the sampler reads the whole text again. A prompt of $P$ tokens and $n$ new ones make it read
#
# $$\sum_{i=0}^{n-1} (P + i) = nP + \frac{n(n-1)}{2}$$
#
# tokens: it grows with the square of what is written. A cache that remembers what it has read needs $P + n - 1$. **Predict** the factor between the two for 100 prompt tokens and 100 new ones. Then count what really goes through the model:

# %%
def tokens_read(P: int, n: int) -> int:
    "Tokens that go through the model while one row of n is written."
    seen = []
    hook = model.wte.register_forward_pre_hook(lambda module, args: seen.append(args[0].numel()))
    make_sampler(model, [])([[1] * P], max_new_tokens=n)
    hook.remove()
    return sum(seen)

for P, n in ((10, 10), (100, 100)):
    print(f"P = {P}, n = {n}: {tokens_read(P, n):,} tokens read; with a cache {P + n - 1:,}")
    assert tokens_read(P, n) == n * P + n * (n - 1) // 2

# %%
n = torch.arange(1, 513)
fig, ax = plt.subplots(figsize=(5, 2.4), layout="constrained")
ax.plot(n, 100 * n + n * (n - 1) / 2, label="this sampler")
ax.plot(n, 100 + n - 1, "--", label="with a cache (lesson 08)")
ax.set(yscale="log", xlabel="new tokens after a prompt of 100", ylabel="tokens read")
ax.legend(frameon=False)
figure(fig, caption="What must be read to write: this sampler, and one that remembers.",
       alt="On a log scale: the sampler's curve climbs from 100 to nearly 200,000 tokens at 512 new ones; the cached one rises from 100 to about 600.")

# %% [markdown]
# **At scale.** Picking is cheap and reading is not. A d20 spends about 2 operations a weight of its blocks on each token it reads, and the head only on each new one, so 512 new tokens after 100 cost 1.4e14 here and 5.7e11 with a cache, 250 times less. Published nanochat has both kinds too, and a test that compares them; ours is in lesson 08. Its evaluation uses temperature 0, its reinforcement learning temperature 1 and top-k 50.

# %%
matrices, head, costs = 12 * 20 * 1280**2, 65536 * 1280, []      # those weights of d20 that multiply
for name, read in (("this sampler", 100 * 512 + 512 * 511 // 2), ("with a cache", 100 + 511)):
    costs.append(2 * matrices * read + 2 * head * 512)
    print(f"{name}: {read:,} tokens read, {costs[-1]:.1e} operations")
assert 240 < costs[0] / costs[1] < 260

# %% [markdown]
# ## Recap
#
# 1. Temperature raises all ratios to the power $1/\tau$; entropy rises with it; 0 is greedy, the limit.
# 2. Top-k keeps the ratios and cuts the tail, because many rare things together are not rare. 0 means off.
# 3. One uniform number and the running sums make a token; each row has its own numbers, so a batch changes nothing.
# 4. Forced tokens are marked, free, and never the model's merit. A sampled stop token is part of the sample.
# 5. Filling on the right is invisible to a causal model; reading everything again is right, and quadratic.
#
# ## Quiz
#
# <details><summary>1. Two tokens have probabilities 0.6 and 0.3. What is their ratio at temperature 0.5?</summary>The ratio 2 is squared: 4.</details>
# <details><summary>2. Does top-k 50 change the ratio of the best two tokens?</summary>No. It shares the probability of those dropped in proportion.</details>
# <details><summary>3. Why are the draws made before the text, and not when needed from one generator?</summary>From one generator, row 3 would get other numbers whenever a neighbour ended early. So every row has its own stream.</details>
# <details><summary>4. A tool's answer of 20 tokens comes after 5 sampled ones, the budget is 10. How many may the model still sample?</summary>Five. Forced tokens are free.</details>
# <details><summary>5. Greedy decoding of a batch differs from decoding each row alone. Name two bugs that do this.</summary>Logits read at the last column instead of the row's own last token; or a filling on the left that the model can see.</details>
#
# ## Papers
#
# Fan and others 2018, *Hierarchical neural story generation* (top-k) · Holtzman and others 2019, *The curious case of neural text degeneration* (why the likeliest text is dull) · Ackley, Hinton and Sejnowski 1985 (temperature) · Gumbel 1954 (the largest of disturbed scores).
#
# **Next:** `02d_optimization`, and then the model learns something worth sampling.
#
# ## What your package can do now
#
# An untrained GPT writes, in the tokens of the microworld. Four rows, four lots; the same seed gives the same text again. What it writes is noise at any temperature above 0, because its first logits are all equal (at 0 it repeats one token).

# %%
from nanochat.microworld import corpus
from nanochat.tokenizer import Tokenizer

tokenizer = Tokenizer.train([doc.text for doc in corpus(50_000)], 400)
fresh = GPT(config_for(2, tokenizer.vocab_size, seq_len=64, head_dim=64))
samples = make_sampler(fresh, stop=[])([tokenizer.encode("Mia")] * 4, max_new_tokens=8, top_k=100, seed=3)
for s in samples: print(repr(tokenizer.decode(s.tokens)))
again = make_sampler(fresh, stop=[])([tokenizer.encode("Mia")] * 4, max_new_tokens=8, top_k=100, seed=3)
assert samples == again and len({tuple(s.tokens) for s in samples}) == 4
