# %% [markdown]
# # 08. The KV cache

# %%
#| default_exp engine

# %%
#| export
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from nanochat.gpt import GPT, GPTConfig
from nanochat.sample import Rows, Sample, pad_right, pick
from nanochat.workshop import UserError


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
        "(B, 1, T, S) which slot each new token may look at: its own and earlier ones, within the window."
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
        "Make at least this many slots: a larger tensor, and the old content copied along the time axis."
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
#| export
def cache_dtype(model: GPT) -> torch.dtype:
    "What the cache holds: the model's compute dtype, but fp32 on a CPU, where bf16 products of one row are slow."
    return torch.float32 if model.device.type == "cpu" else model.compute_dtype


# %%
#| export
def decoding_model(
    model: GPT,
) -> GPT:        # the model itself in fp32, else a copy
    "A model whose weights already have the compute dtype, so that decoding does not cast them at every token."
    if model.compute_dtype == torch.float32: return model
    with torch.device("meta"): copy = GPT(model.config)
    weights = {name: p.detach().to(model.compute_dtype) for name, p in model.state_dict().items()}
    copy.load_state_dict(weights, assign=True)
    copy.cos, copy.sin, copy.compute_dtype = model.cos, model.sin, model.compute_dtype
    for mine, yours in zip(copy.blocks, model.blocks): mine.attn.attend = yours.attn.attend
    return copy.eval()


# %%
#| export
class Decoder:
    "Reads each token of a batch of rows once: prompts at the first call, then one token a row a call."
    def __init__(self,
        model: GPT,
        rows: Rows,
    ):
        self.model, self.rows, self.slots, self.cache = decoding_model(model), rows, [], None

    def prefill(self) -> Tensor:
        "(live rows, C) features of the last prompt token; equal prompts are read once."
        self.slots = list(self.rows.live)
        prompts = [tuple(self.rows.tokens[r]) for r in self.slots]
        unique = list(dict.fromkeys(prompts))
        lengths = [len(p) for p in unique]
        room = min(max(lengths) + self.rows.budget, self.model.config.max_len)
        self.cache = KVCache(self.model.config, len(unique), max(lengths), self.model.device,
                             cache_dtype(self.model))
        features = self.model.features(pad_right([list(p) for p in unique], self.model.device), self.cache)
        last = features[torch.arange(len(unique)), [n - 1 for n in lengths]]      # (unique, C)
        self.cache.trim(lengths)
        which = [unique.index(p) for p in prompts]
        self.cache.select(which)
        self.cache.reserve(room)
        return last[which]

    def decode(self) -> Tensor:
        "(slots, C) features of the newest token of each row."
        newest = torch.tensor([[self.rows.tokens[r][-1]] for r in self.slots], device=self.model.device)
        self.cache.trim([len(self.rows.tokens[r]) - 1 for r in self.slots])      # finished rows stand still
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
    "A sampler like `make_sampler`'s, with a cache: the same tokens, without reading them again and again."
    stop = frozenset(stop)

    def sampler(prompts: list[list[int]], *, max_new_tokens: int, temperature: float = 1.0,
                top_k: int | None = None, seed: int = 0, tool: Callable | None = None) -> list[Sample]:
        rows = Rows(prompts, stop, max_new_tokens, seed, tool)
        for _ in generate(model, rows, temperature, top_k): pass
        return rows.samples()
    return sampler


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
    for _ in generate(model, rows, temperature, top_k): yield rows.tokens[0][-1], rows.sampled[0][-1]
