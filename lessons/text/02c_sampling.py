# %% [markdown]
# # 02c. Sampling
#
# A language model gives a probability for each possible next token. You build what turns those numbers into text, and back into more numbers.
#
# After this lesson you can
#
# * pick a token by temperature, top-k and one random number, and say what each does to the odds;
# * write a sampler that is slow and plainly right, the yardstick for the fast one in lesson 08;
# * continue many prompts of different length at once, each with its own luck;
# * let a tool put words into the model's mouth, and still know which words were the model's.
#
# You need `02a_transformer`. Reading: 15 minutes. Doing: 20 minutes. Computing: seconds.

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
# The obvious rule is to take the likeliest token each time. Here is a tiny language with four words, where the next word depends only on the last one. Look at what the obvious rule writes, and at what drawing by chance writes.

# %%
words = ["the", "cat", "sat", "and"]
odds = torch.tensor([[0.0, 0.6, 0.2, 0.2], [0.3, 0.0, 0.5, 0.2], [0.4, 0.0, 0.0, 0.6], [0.8, 0.1, 0.1, 0.0]])
luck = torch.Generator().manual_seed(1)
for rule in ("likeliest", "by chance"):
    at, text = 0, []
    for _ in range(14):
        text.append(words[at])
        row = odds[at]
        at = row.argmax().item() if rule == "likeliest" else torch.multinomial(row, 1, generator=luck).item()
    print(f"{rule:10s}", " ".join(text))

# %% [markdown]
# The likeliest word leads into a loop and never leaves it. Drawing by chance is livelier, and sometimes silly. What you want is usually between the two, and there are two knobs.
#
# **Temperature** divides the logits before softmax. Below 1 the gaps between logits grow, and likely tokens become likelier; above 1 everything evens out; at 0 only the best is left. **Top-k** keeps the k best and forgets the
# rest, because a long tail of silly tokens, each rare, is together not rare.

# %%
import matplotlib.pyplot as plt
from nanochat.workshop import figure

logits = torch.tensor([3.0, 2.5, 1.0, 0.5, 0.0, -1.0, -2.0])
fig, axes = plt.subplots(1, 4, figsize=(7, 2.2), sharey=True, layout="constrained")
settings = [("T = 1", logits), ("T = 0.5", logits / 0.5), ("T = 2", logits / 2),
            ("T = 1, top 3", logits.where(logits >= 1, -torch.inf))]
for ax, (title, z) in zip(axes, settings):
    ax.bar(range(7), z.softmax(-1))
    ax.set(title=title, xlabel="token", xticks=range(7))
axes[0].set_ylabel("probability")
figure(fig, caption="What temperature and top-k do to the odds of seven tokens.",
       alt="Four bar charts. At temperature 1 the first two of seven tokens have about 0.5 and 0.3; at 0.5 they share nearly "
           "everything; at 2 the bars are flatter; with top 3 only three bars are left.")

# %% [markdown]
# ## One random number makes one token
#
# Lay the probabilities side by side on a stick of length 1, and throw a dart at a uniform place $u$. The piece it hits is your token, and each is hit in proportion to its length. The ends of the pieces are the running sums
# of the probabilities, so the token is the first whose running sum exceeds $u$. This is called the inverse of the cumulative distribution. By hand:

# %%
p = torch.tensor([0.2, 0.5, 0.3])                      # pieces end at 0.2, 0.7 and 1
for u in (0.1, 0.2, 0.69, 0.95): print(u, "->", int((p.cumsum(0) <= u).sum()))


# %% [markdown]
# Why not call a library's random choice? Because you want each row of a batch to own its luck: one number for each row and token, decided before anything runs. Then what row 3 writes cannot depend on how many neighbours it has.

# %%
#| export
def pick(
    logits: Tensor,             # (B, V)
    u: Tensor,                  # (B,) numbers in [0, 1), one draw for each row
    temperature: float = 1.0,   # 0: always the likeliest token
    top_k: int | None = None,   # keep only the k likeliest; None or 0: all
) -> Tensor:                    # (B,) tokens
    """One token per row from one uniform number per row: the inverse of cumulative probabilities.

    Raises `UserError` for a negative temperature or top-k."""
    if temperature < 0 or (top_k or 0) < 0:
        raise UserError(f"temperature {temperature} and top-k {top_k} must not be negative")
    if temperature == 0: return logits.argmax(dim=-1)
    values, tokens = logits.float(), None
    if top_k: values, tokens = values.topk(min(top_k, logits.shape[-1]))
    peak = values.amax(dim=-1, keepdim=True)
    sums = ((values - peak) / temperature).exp().cumsum(dim=-1)     # (B, k), not normalised
    u = u.to(sums).clamp(max=1 - 2**-24)                            # below 1 in fp32 too
    slot = torch.searchsorted(sums, u[:, None] * sums[:, -1:], right=True)  # (B, 1)
    return (slot if tokens is None else tokens.gather(1, slot)).squeeze(1)


# %%
logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
u = (torch.arange(100_000) + 0.5) / 100_000            # darts at even distances instead of at random
for temperature, top_k in ((1.0, None), (0.5, None), (2.0, 2)):
    got = pick(logits.expand(len(u), 4), u, temperature, top_k).bincount(minlength=4) / len(u)
    kept = logits[0].where(logits[0] >= logits[0].topk(top_k or 4).values[-1], -torch.inf)
    print(temperature, top_k, [round(x, 3) for x in got.tolist()])
    torch.testing.assert_close(got, (kept / temperature).softmax(-1), rtol=0, atol=1e-4)


# %% [markdown]
# The counted shares equal the formula. With top-k the pieces are laid out best first; that changes which dart hits what, and no probability.
#
# **Trap: zero is not one.** Users write `top_k = 0` for "off", and temperature 0 for "the best". Both crashed real projects: the first asks for the best of no tokens, the second divides by zero. Both mean something here:

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
print("temperature 0:", pick_next(logits, 0).item(), "  top-k 0:", pick_next(logits, 1.0, 0, g).item())
assert pick_next(logits, 0).item() == 0 and pick_next(logits, 1e-30).item() == 0
many = pick_next(logits.expand(1000, 4), 1.0, 2, g)
assert many.max() == 1                                   # top-k 2: nothing but the best two
try: pick_next(logits, -1.0)
except UserError as e: print(e)


# %% [markdown]
# ## What a sampler hands back
#
# Everything later, from evaluation to reinforcement learning, asks a sampler for text in the same form. A `Sample` holds the new tokens, and for each whether the model chose it. Some it does not choose: when a model asks
# a calculator, the result is **forced** into its text, and it must never be praised or blamed for it. A stop token that the model sampled is part of the sample: reinforcement learning has to reward stopping, too.

# %%
#| export
class Sample(NamedTuple):
    "What a model wrote after a prompt; a stop token that ended it is the last of `tokens`."
    tokens: list[int]    # new tokens only
    sampled: list[bool]  # False where a tool forced the token


# %%
s = Sample(tokens=[5, 9, 4, 2], sampled=[True, False, False, True])
print([t for t, own in zip(*s) if own], "were the model's own")


# %% [markdown]
# ## Many rows at once
#
# The bookkeeping of a batch is the same for the slow sampler and the fast one, so it has a class of its own. It knows for each row its tokens, its forced tokens that wait, and its draws. Four rules live here:
#
# * row r draws from a stream seeded by (seed, r). In an early published nanochat all samples of a prompt shared their first token, and had less to learn from;
# * the tool is asked after each sampled token, and its answer comes next;
# * forced tokens are free: the budget counts sampled ones;
# * a row ends at a stop token it sampled, or when its budget is spent.

# %%
#| export
class Rows:
    """Many prompts being continued at once: what each row holds, waits for, and whether it goes on.

    Row r draws from its own stream of random numbers, seeded by (seed, r), one number for each
    sampled token. So what it writes depends neither on its neighbours nor on forced tokens."""
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
# Follow row 0: it sampled 9, so the tool forced 1 + 2 = 3, and the picked 5 was thrown away. Row 1 sampled the stop token 0 and left.
#
# ## The slow sampler
#
# Rows of different length become one tensor by filling the short ones on the right. Is that allowed? Yes: attention never looks to the right, so no real position ever sees the filling. You only have to read the logits at
# each row's own last token.

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


# %% [markdown]
# The sampler is now a loop of five lines: pad, run, take the last position, pick, push. It reads the whole text again for every new token, which costs more and more as the text grows. Lesson 08 removes that, and will be checked
# against this one.

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
            u = rows.uniforms(live).to(last)
            rows.push(dict(zip(live, pick(model.logits(last), u, temperature, top_k).tolist())))
        return rows.samples()
    return sampler


# %%
sampler = make_sampler(model, stop=[0])
prompts = [[1, 2, 3], [4], [4]]
for temperature in (0.0, 1.0):
    for s in sampler(prompts, max_new_tokens=8, temperature=temperature, seed=1): print(temperature, s.tokens)
alone, together = sampler(prompts[:1], max_new_tokens=8, seed=1), sampler(prompts, max_new_tokens=8, seed=1)
assert alone[0] == together[0]                       # a neighbour changes nothing
assert together[1].tokens != together[2].tokens      # equal prompts, own luck

# %% [markdown]
# **Is it fair?** Over many rows, the first sampled token must follow the model's own probabilities. With 4,000 rows an honest count strays from them by about 0.007 at most places.

# %%
n = 4000
first = torch.tensor([s.tokens[0] for s in sampler([[4]] * n, max_new_tokens=1, seed=2)])
share, truth = first.bincount(minlength=50) / n, model(torch.tensor([[4]]))[0, -1].softmax(-1)
z = (share - truth) / (truth * (1 - truth) / n).sqrt()        # in standard errors
print(f"largest gap {(share - truth).abs().max():.4f}, largest of 50 in standard errors {z.abs().max():.1f}")
assert z.abs().max() < 4.5

# %% [markdown]
# **At scale.** Picking is cheap; reading is not. For 64 prompts of 100 tokens and 100 new tokens each, this sampler reads 64 x 100 x 150 = 960,000 tokens to write 6,400. The cached one in lesson 08 reads 12,800.
#
# ## Recap
#
# * Temperature scales logits, top-k cuts the tail, 0 means "best" and "off".
# * One uniform number and the running sums make a token.
# * Each row has its own random numbers, so batches do not change what is written.
# * Forced tokens are marked, free, and never the model's merit.
# * Filling on the right is invisible to a causal model.
#
# **Papers.** Fan et al. 2018 (top-k); Holtzman et al. 2019 (why the likeliest text is dull).
