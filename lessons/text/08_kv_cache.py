# %% [markdown]
# # 08. The KV cache
#
# Your sampler reads the whole text again for every token it writes. In this lesson it reads each token once, for many rows at a time, and writes the same words.
#
# After this lesson you can
#
# * say what a model must remember of the tokens it has read, and what it need not;
# * build a cache for rows of different length, and prove that it changes nothing;
# * grow a cache without scrambling it, and drop rows that are done;
# * compute how much memory a cache takes and how fast decoding can be at best.
#
# You need `02c_sampling`. Reading: 25 minutes. Doing: 30 minutes. Computing: under a minute.

# %%
#| default_exp engine

# %%
#| export
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from nanochat.gpt import GPT, GPTConfig
from nanochat.sample import Rows, Sample, pad_right, pick

# %% [markdown]
# ## How often is a token read?
#
# Count the tokens that go through the model while the sampler of lesson 02c writes. A small model with random weights will do: speed does not depend on what it says.

# %%
import time
from nanochat.gpt import config_for
from nanochat.sample import make_sampler

def lively(**sizes) -> GPT:
    "A small untrained model whose zero matrices are filled, so that everything in it matters."
    model = GPT(config_for(**(dict(depth=2, vocab_size=97, seq_len=64, head_dim=64) | sizes)))
    luck = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if not p.any(): torch.nn.init.normal_(p, std=0.1, generator=luck)
    return model

class Counter:
    "Counts the tokens that a model reads inside a `with`."
    def __init__(self, model): self.model, self.read = model, 0
    def __enter__(self):
        self.hook = self.model.wte.register_forward_hook(lambda m, args, out: self.add(args[0].numel()))
        return self
    def add(self, n): self.read += n
    def __exit__(self, *_): self.hook.remove()

model = lively()
with Counter(model) as naive: make_sampler(model, [])([list(range(10))], max_new_tokens=50)
print(f"to write 50 tokens after 10, the naive sampler read {naive.read:,}")
assert naive.read == sum(range(10, 60))

# %% [markdown]
# 10 + 11 + ... + 59: to write n tokens it reads about n²/2. Yet nothing about an old token changes when a new one comes, because attention never looks to the right. All that later tokens ever ask of an old one is its **key and its value**, in
# each layer. Queries, MLPs and logits of old tokens are done with. So keep keys and values, and read only the newest token.
#
# In one head, by hand:

# %%
from nanochat.attention import attend

torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 1, 6, 8).unbind()                # six tokens, all known
whole = attend(q, k, v)
keys, values, steps = [], [], []
for t in range(6):                                           # now they come one by one
    keys.append(k[:, :, t]); values.append(v[:, :, t])
    K, V = torch.stack(keys, 2), torch.stack(values, 2)      # (1, 1, t + 1, 8)
    everything = torch.ones(1, t + 1, dtype=torch.bool)      # one query, and all that is stored is its past
    steps.append(attend(q[:, :, t:t + 1], K, V, everything))
torch.testing.assert_close(torch.cat(steps, 2), whole)
print("one by one equals all at once")


# %% [markdown]
# ## A cache for many rows
#
# A batch makes it harder: prompts have different lengths. Three choices make it easy again.
#
# * **Slot j of a row holds position j.** Short prompts are filled on the right; the filling gets keys and values too, but in slots that no query may look at, and the row's own next tokens overwrite them.
# * **A query at position p sees slots 0 to p**, or the window's part of them. That one rule is causal attention, row lengths and windows in one mask.
# * **Room is allocated ahead.** Joining tensors at every token would copy everything at every token.

# %%
#| export
class KVCache:
    """Keys and values of the tokens a batch of rows has read so far, for every layer.

    Slot j of a row holds position j. What lies beyond a row's length is never visible, so rows of
    different lengths share one tensor."""
    def __init__(self,
        config: GPTConfig,
        rows: int,                            # B
        room: int,                            # slots S to begin with; more are added when needed
        device=None,
        dtype: torch.dtype = torch.float32,   # the model's compute dtype
    ):
        shape = config.n_layer, rows, config.n_kv_head, room, config.head_dim
        self.k = torch.zeros(shape, device=device, dtype=dtype)      # (layers, B, G, S, D)
        self.v = torch.zeros(shape, device=device, dtype=dtype)      # (layers, B, G, S, D)
        self.lengths, self.most = [0] * rows, config.max_len
        self.next, self.seen = None, 0      # set by `positions`

    def reach(self, T: int) -> int:
        "The longest row once T more tokens are read."
        return max(self.lengths) + T

    def positions(self, T: int) -> Tensor:
        "(B, T) the places of the next T tokens of each row; makes room for them."
        self.reserve(self.reach(T))
        start = torch.tensor(self.lengths, device=self.k.device)
        self.next = start[:, None] + torch.arange(T, device=self.k.device)      # (B, T)
        self.seen = self.reach(T)
        return self.next

    def mask(self, positions: Tensor, window: int | None) -> Tensor:
        "(B, 1, T, S) which slots each new token may see: up to its own, within the window."
        slot, place = torch.arange(self.seen, device=positions.device), positions[:, None, :, None]
        visible = slot <= place
        return visible if window is None else visible & (slot >= place - window)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        "Store (B, G, T, D) new keys and values of a layer; returns all of them, (B, G, S, D)."
        rows = torch.arange(len(self.lengths), device=k.device)[:, None]
        for store, new in ((self.k[layer], k), (self.v[layer], v)):
            store[rows, :, self.next] = new.transpose(1, 2).to(store.dtype)      # (B, T, G, D)
        return self.k[layer, :, :, :self.seen], self.v[layer, :, :, :self.seen]

    def advance(self, T: int) -> None:
        "Every row has read T more tokens."
        self.lengths = [n + T for n in self.lengths]

    def trim(self, lengths: list[int]) -> None:
        "Forget what lies beyond these lengths, such as the filling of short prompts."
        self.lengths = [min(n, keep) for n, keep in zip(self.lengths, lengths)]

    def reserve(self, room: int) -> None:
        "Have this many slots: allocate a larger tensor and copy along the time axis."
        have = self.k.shape[3]
        if room <= have: return
        room = max(room, min(2 * have, self.most))
        for name in ("k", "v"):
            old = getattr(self, name)
            new = old.new_zeros(*old.shape[:3], room, old.shape[4])
            new[:, :, :, :have] = old
            setattr(self, name, new)

    def select(self, rows: list[int]) -> None:
        "Go on with these rows, in this order; a row may be taken more than once."
        at = torch.tensor(rows, device=self.k.device)
        self.k, self.v = self.k.index_select(1, at), self.v.index_select(1, at)
        self.lengths = [self.lengths[r] for r in rows]


# %%
cache = KVCache(model.config, rows=2, room=4)
print("keys:", tuple(cache.k.shape), "= layers, rows, heads, slots, head size")
cache.lengths = [3, 1]                                # two rows that have read 3 and 1 tokens
where = cache.positions(2)                            # the places of the next two tokens of each
print(where.tolist())
print(cache.mask(where, window=None).int()[:, 0])
assert where.tolist() == [[3, 4], [1, 2]] and cache.mask(where, None).sum(-1).flatten().tolist() == [4, 5, 2, 3]

# %% [markdown]
# The model of lesson 02a already knows how to talk to it: it asks `positions` for the angles, `mask` for who sees whom, hands keys and values to `update` in each layer, and calls `advance` at the end. Read five
# tokens at once or one by one; the logits must be the same.

# %%
idx = torch.randint(0, 97, (3, 12), generator=torch.Generator().manual_seed(1))
with torch.inference_mode():
    whole, cache = model(idx), KVCache(model.config, rows=3, room=2)
    pieces = [model(idx[:, a:b], cache=cache) for a, b in ((0, 5), (5, 6), (6, 7), (7, 12))]
torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-4)
print("read", cache.lengths, "tokens; the cache grew from 2 to", cache.k.shape[3], "slots")

# %% [markdown]
# **Trap: growing in place.** That cell began with room for 2 slots, and the cache grew on its way. Growing must allocate and copy along the time axis. Published nanochat once resized the tensor in place: the numbers stay in one
# long line in memory while the shape changes around them, so heads and rows read each other's past. Nothing crashes. See it happen to one tensor:

# %%
small = torch.arange(8.0).view(1, 2, 4, 1)                   # 2 heads, 4 slots
print("head 1 before:", small[0, 1, :, 0].tolist())
resized = small.clone().resize_(1, 2, 6, 1)
print("head 1 after resize_:", resized[0, 1, :2, 0].tolist(), "...")
cache = KVCache(model.config, rows=1, room=4)
cache.k.copy_(torch.arange(cache.k.numel()).view_as(cache.k))
before = cache.k.clone()
cache.reserve(6)
assert resized[0, 1, 0, 0] != small[0, 1, 0, 0] and torch.equal(cache.k[:, :, :, :4], before)


# %% [markdown]
# ## Cast once
#
# Weights are fp32 and are cast at each use. In training one cast serves thousands of tokens; in decoding it would serve one, and cost more than the product. So the engine works on a copy in the compute dtype, made once a call.
# The rotary tables stay fp32. On a CPU the cache is fp32 as well: products of a single bf16 row are slow there.

# %%
#| export
def cache_dtype(model: GPT) -> torch.dtype:
    "The compute dtype, but fp32 on a CPU, where bf16 products of one row are slow."
    return torch.float32 if model.device.type == "cpu" else model.compute_dtype


# %%
#| export
def decoding_model(
    model: GPT,
) -> GPT:        # the model itself in fp32, else a copy
    "A model whose weights have the compute dtype already, not to be cast at every token."
    if model.compute_dtype == torch.float32: return model
    with torch.device("meta"): copy = GPT(model.config)
    weights = {name: p.detach().to(model.compute_dtype) for name, p in model.state_dict().items()}
    copy.load_state_dict(weights, assign=True)
    copy.cos, copy.sin, copy.compute_dtype = model.cos, model.sin, model.compute_dtype
    for mine, yours in zip(copy.blocks, model.blocks): mine.attn.attend = yours.attn.attend
    return copy.eval()


# %%
model.compute_dtype = torch.bfloat16
ready = decoding_model(model)
print(ready.lm_head.weight.dtype, ready.cos.dtype, "cache:", cache_dtype(model))
with torch.inference_mode(): assert torch.equal(ready(idx), model(idx))       # the same casts, made earlier
model.compute_dtype = torch.float32
assert decoding_model(model) is model


# %% [markdown]
# ## Prefill, then decode
#
# Writing has two phases. **Prefill** reads all prompts at once: big matrix products, limited by arithmetic. **Decode** reads one token of each row: thin products, limited by how fast the weights come from memory. Prompts that are equal are
# read once and their cache rows copied, which reinforcement learning, with its many samples of one prompt, will like.
#
# A finished row must not cost anything. Its slot stays until at most half of the slots live; then the cache is compacted. Compacting at every end would copy too often.

# %%
#| export
class Decoder:
    "Reads each token of some rows once: prompts first, then one token of each row a call."
    def __init__(self,
        model: GPT,
        rows: Rows,
    ):
        self.model, self.rows, self.slots, self.cache = decoding_model(model), rows, [], None

    def prefill(self) -> Tensor:
        "(live rows, C) features of the last prompt token; equal prompts are read once."
        model, self.slots = self.model, list(self.rows.live)
        prompts = [tuple(self.rows.tokens[r]) for r in self.slots]
        unique = {p: i for i, p in enumerate(dict.fromkeys(prompts))}
        lengths, which = [len(p) for p in unique], [unique[p] for p in prompts]
        self.cache = KVCache(model.config, len(unique), max(lengths), model.device,
                             cache_dtype(model))
        features = model.features(pad_right(list(map(list, unique)), model.device), self.cache)
        last = features[torch.arange(len(unique)), [n - 1 for n in lengths]]      # (unique, C)
        self.cache.trim(lengths)
        self.cache.select(which)
        self.cache.reserve(min(max(lengths) + self.rows.budget, model.config.max_len))
        return last[which]

    def decode(self) -> Tensor:
        "(slots, C) features of the newest token of each row."
        texts, live = [self.rows.tokens[r] for r in self.slots], set(self.rows.live)
        room = self.model.config.max_len - 1
        newest = torch.tensor([[t[-1]] for t in texts], device=self.model.device)
        self.cache.trim([len(t) - 1 if r in live else min(len(t) - 1, room)      # these stand still
                         for r, t in zip(self.slots, texts)])
        return self.model.features(newest, self.cache)[:, -1]

    def compact(self) -> None:
        "Drop finished rows from the cache when at most half of its rows still live."
        live = set(self.rows.live)
        if 2 * len(live) > len(self.slots): return
        keep = [i for i, r in enumerate(self.slots) if r in live]
        self.cache.select(keep)
        self.slots = [self.slots[i] for i in keep]

    def logits(self) -> Tensor:
        "(slots, V) logits of the next token of each row in `slots`."
        if self.cache is None: return self.model.logits(self.prefill())
        self.compact()
        return self.model.logits(self.decode())


# %%
rows = Rows([[1, 2, 3], [4], [1, 2, 3]], stop=frozenset({0}), max_new_tokens=2)
with torch.inference_mode(), Counter(model) as counted:
    decoder = Decoder(model, rows)
    first = decoder.logits()
    print("prefill:", counted.read, "tokens read, cache rows", decoder.cache.lengths)
    rows.push({0: 5, 1: 0, 2: 6})                     # row 1 stops at once
    second = decoder.logits()
torch.testing.assert_close(second[decoder.slots.index(2)], model(torch.tensor([[1, 2, 3, 6]]))[0, -1], rtol=1e-4, atol=1e-4)
assert counted.read == 2 * 3 + 3                      # two unique prompts filled to 3, then one token for each of 3 slots


# %%
#| export
def generate(
    model: GPT,
    rows: Rows,                # prompts, stop tokens, budget, seed and tool
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Iterator[None]:           # yields after every token
    "Continue rows until none lives, reading every token once."
    decoder = Decoder(model, rows)
    while rows.live:
        with torch.inference_mode():
            logits = decoder.logits()
            u = rows.uniforms(decoder.slots).to(logits)
            picked = pick(logits, u, temperature, top_k).tolist()
        rows.push(dict(zip(decoder.slots, picked)))
        yield


# %%
#| export
def make_engine(
    model: GPT,
    stop: Iterable[int],  # tokens that end a row
) -> Callable:            # sampler(prompts, *, max_new_tokens, temperature, top_k, seed, tool)
    "A sampler like `make_sampler`'s, with a cache: the same tokens, each read once."
    stop = frozenset(stop)

    def sampler(prompts: list[list[int]], *, max_new_tokens: int, temperature: float = 1.0,
                top_k: int | None = None, seed: int = 0,
                tool: Callable | None = None) -> list[Sample]:
        rows = Rows(prompts, stop, max_new_tokens, seed, tool)
        for _ in generate(model, rows, temperature, top_k): pass
        return rows.samples()
    return sampler


# %% [markdown]
# ## The same words
#
# The claim of this lesson is that nothing changed. Prompts of different length, shared key heads, windows, a tool that forces tokens, greedy and by chance: engine and naive sampler must agree on every token.

# %%
def tool(row: list[int]):
    "After a multiple of 10, force three tokens."
    return [1, 2, 3] if row[-1] % 10 == 0 else None

prompts = [[5], list(range(20)), [7, 8, 9], [7, 8, 9], list(range(30, 42))]
for sizes in (dict(), dict(kv_heads=1), dict(window=(6,))):
    m = lively(**sizes)
    for temperature in (0.0, 1.0):
        how = dict(max_new_tokens=24, temperature=temperature, seed=3, tool=tool)
        naive, cached = (make(m, [13])(prompts, **how) for make in (make_sampler, make_engine))
        print(sizes or "plain", f"temperature {temperature}", [len(s.tokens) for s in cached])
        assert naive == cached
assert not all(all(s.sampled) for s in cached)        # the tool did speak

# %% [markdown]
# And it reads each token once. **Predict** how many tokens it reads for the first question of this lesson before you run.

# %%
with Counter(model) as cached: make_engine(model, [])([list(range(10))], max_new_tokens=50)
print(f"naive {sum(range(10, 60)):,}, cached {cached.read}")
assert cached.read == 10 + 49                         # the last token is written and never read

# %% [markdown]
# What does that mean in seconds? The figure is measured here and now, so yours will differ. Two things do not: the naive curve bends upward, the other does not.

# %%
import matplotlib.pyplot as plt
from nanochat.workshop import by_tier, figure

model = lively(seq_len=256)
lengths, seconds = by_tier([16, 64], [16, 64, 128, 256]), {}
for name, make in (("naive", make_sampler), ("cached", make_engine)):
    for n in lengths:
        start = time.perf_counter()
        make(model, [])([[1, 2, 3]], max_new_tokens=n)
        seconds.setdefault(name, []).append(time.perf_counter() - start)
fig, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
for name, style in (("naive", "s--"), ("cached", "o-")): ax.plot(lengths, seconds[name], style, label=name)
ax.set(xlabel="new tokens", ylabel="seconds", ylim=(0, None))
ax.legend(frameon=False)
figure(fig, caption="Time to write n tokens with and without a cache, measured on this machine.",
       alt="Seconds against new tokens. The cached line is straight and low; the naive line lies above it and bends upward.")


# %% [markdown]
# ## One row, as it comes
#
# A person who waits wants to see each token at once. `stream` is the engine for one row, as an iterator. It hands over raw tokens, and whether the model chose them; turning tokens into letters, and hiding the last stop token, is the
# chat's business (lesson 11b), because some letters are made of several tokens.

# %%
#| export
def stream(
    model: GPT,
    prompt: list[int],
    *,
    stop: Iterable[int],           # tokens that end the reply; the one sampled is yielded too
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    tool: Callable | None = None,  # row tokens -> tokens to force next, or None
) -> Iterator[tuple[int, bool]]:   # (token, was it sampled)
    "The reply to one prompt, token by token as it is made."
    rows = Rows([prompt], frozenset(stop), max_new_tokens, seed, tool)
    for _ in generate(model, rows, temperature, top_k):
        yield rows.tokens[0][-1], rows.sampled[0][-1]


# %%
got = list(stream(model, [1, 2, 3], stop=[13], max_new_tokens=12, seed=5, tool=tool))
print(got)
expected, = make_engine(model, [13])([[1, 2, 3]], max_new_tokens=12, seed=5, tool=tool)
assert got == list(zip(expected.tokens, expected.sampled)) and not all(sampled for _, sampled in got)      # the tool spoke

# %% [markdown]
# There is an end to what a model can read: its rotary tables hold ten times the length it was trained on. Beyond it you get one clear line, not nonsense.

# %%
from nanochat.workshop import UserError

tiny = lively(seq_len=4)
try: make_engine(tiny, [])([list(range(30))], max_new_tokens=20)
except UserError as e: print(e)
else: raise AssertionError("40 slots cannot hold 50 tokens")

# %% [markdown]
# ## At scale
#
# A cache holds 2 L G D numbers for each token of each row: at depth 20 that is 100 kB a token in bf16, 210 MB for a row of 2,048 tokens. About 380 such rows fill an H100. To decode one token, the GPU must fetch every weight that multiplies once: 0.95 GB at
# depth 20. An H100 reads 3.35 TB a second, so one row can get at most about 3,500 tokens a second however clever the code is. A second row needs no more weight traffic, which is why servers batch.

# %%
L, C, V = 20, 1280, 65536
weights = 2 * (12 * L * C**2 + V * C)                 # bytes in bf16, without the embedding
per_row = 2 * L * C * 2 * 2048                        # bytes of cache for 2,048 tokens
print(f"weights {weights / 1e9:.2f} GB, at most {3.35e12 / weights:,.0f} tokens/s for one row; cache {per_row / 2**20:.0f} MiB a row")
assert 3400 < 3.35e12 / weights < 3600

# %% [markdown]
# ## Recap
#
# * Later tokens need an old token's keys and values, and nothing else.
# * Slot j is position j; a query at p sees slots up to p; filling is never seen and is overwritten.
# * Grow by allocating and copying, never by resizing in place.
# * Equal prompts are read once; finished rows leave.
# * The naive sampler is the proof: the same tokens, every time.
#
# **Papers.** Shazeer 2019 (fewer key heads for decoding); Pope et al. 2022 (what limits inference); Kwon et al. 2023 (paging the cache, where servers go from here).
