# %% [markdown]
# # 04. Muon: give every direction its turn
#
# **Promise.** You will build the optimizer that trains the matrices of nanochat, derive the five-step iteration at its heart, and
# race it against AdamW.
#
# After this lesson you can
#
# * say what is wrong with the shape of a gradient matrix, and what the best replacement is;
# * derive Newton-Schulz: a polynomial that moves singular values and never computes them;
# * write Muon: momentum, Nesterov, orthogonalise, scale by shape, many matrices at once;
# * predict what it costs on a laptop and on eight GPUs.
#
# You need lessons 02d and 03. Reading: 30 minutes. Doing: 40 minutes. Computing: under a minute.

# %%
#| default_exp muon

# %%
#| export
import torch
from torch import Tensor

from nanochat.optim import adamw_update_fused, batch_scale, width_scale, with_gradient

# %% [markdown]
# ## A gradient that says one thing
#
# Take a small model, let it learn a little, and look at the gradient of one of its matrices as a *matrix*. Any matrix is a sum of
# directions, each with a strength: its singular values. How are the strengths distributed?

# %%
from itertools import islice

from nanochat.gpt import GPT, config_for
from nanochat.microworld import documents
from nanochat.optim import AdamW
from nanochat.workshop import by_tier

T, ROWS = 64, 16
text = "".join(doc.text + "\n" for doc in islice(documents(0), 3000)).encode()
DATA = torch.tensor(list(text))                            # the bytes of the little world: 256 tokens, no tokenizer needed

def rows(seed: int, n: int = ROWS):
    "Endless batches of n rows of T bytes, and the bytes that follow."
    g = torch.Generator().manual_seed(seed)
    while True:
        at = torch.randint(len(DATA) - T - 1, (n, 1), generator=g) + torch.arange(T)
        yield DATA[at], DATA[at + 1]                       # (n, T) each

def small(seed: int = 0) -> GPT: return GPT(config_for(2, 256, T, head_dim=64), seed)

model, batches = small(), rows(0)
optimizer = AdamW(model.parameters(), lr=0.003)
for x, y in islice(batches, 15):
    optimizer.zero_grad()
    model(x, y).backward()
    optimizer.step()
G = model.blocks[0].mlp.c_fc.weight.grad                   # (512, 128)
strengths = torch.linalg.svdvals(G)
share = strengths.square().cumsum(0) / strengths.square().sum()
print(f"{len(strengths)} directions; the strongest 5 hold {share[4]:.0%} of the squared length; "
      f"the weakest is {strengths[-1] / strengths[0]:.4f} of the strongest")
assert share[4] > 0.5

# %% [markdown]
# A few directions hold most of the gradient, and a step along it moves the matrix almost only there. The other directions are not noise:
# they are what rare words and rare patterns ask for. They just speak softly.
#
# ## The best step of a given size
#
# What would a fair step be? Measure the size of a step $\Delta$ by what it can do to an activation: the most it can stretch a
# vector, its largest singular value. Among all steps of size at most 1, which lowers the loss fastest? We maximise
# $\langle G, \Delta\rangle$. Write $G = U S V^\top$. Then $\langle G, \Delta\rangle = \sum_i s_i\, u_i^\top \Delta v_i$, and each
# $u_i^\top \Delta v_i$ is at most 1. All of them reach 1 at once for
#
# $$\Delta = U V^\top .$$
#
# So: keep the directions, set every strength to 1. (Bernstein and Newhouse, 2024.) On a tiny matrix, by hand:

# %%
g = torch.tensor([[3.0, 0.0], [0.0, 0.01]])
U, S, V = torch.linalg.svd(g)
print("gradient:", g.tolist(), "  fair step:", (U @ V).tolist())
assert torch.allclose(U @ V, torch.eye(2))


# %% [markdown]
# ## Singular values without computing them
#
# An SVD of each matrix at each step would be far too slow. The trick: **an odd polynomial of a matrix acts on its singular
# values alone.** With $X = U S V^\top$ you get $X X^\top X = U S^3 V^\top$, because $V^\top V$ and $U^\top U$ cancel inside. So
#
# $$a X + b\,(X X^\top) X + c\,(X X^\top)^2 X = U\,(aS + bS^3 + cS^5)\,V^\top .$$
#
# Only products, which is what hardware does best. We need a polynomial that, applied again and again, sends every number in (0, 1] to 1.
# The classic is $1.5 s - 0.5 s^3$. It is exact in the end, and slow for small numbers: they grow by 1.5 a time.
# Keller Jordan's coefficients give up exactness for speed.
#
# **Predict, then run.** Start at $s = 0.01$. How near to 1 is each after five rounds?

# %%
def classic(s: float) -> float: return 1.5 * s - 0.5 * s**3

def steep(s: float) -> float: return 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5

for name, f in (("classic", classic), ("steep", steep)):
    s, trail = 0.01, []
    for _ in range(5): s = f(s); trail.append(round(s, 3))
    print(f"{name:8s}", trail)
assert 0.6 < s < 1.3

# %% [markdown]
# The steep one is there in four rounds, and then it wanders around 1 without settling. It turns out that training does not mind.
#
# Two more details. The start must lie in (0, 1]: divide by the Frobenius norm, which is never less than the largest singular
# value. And work on the *smaller* side: $X X^\top$ of a wide matrix is small, of a tall one large, so turn tall ones.
# The exported form also takes a whole stack of matrices.

# %%
#| export
NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)    # of s, s^3, s^5 (Jordan et al. 2024): steep at 0


def newton_schulz(
    G: Tensor,       # (..., rows, cols); the products run in its dtype
    steps: int = 5,  # iterations
) -> Tensor:         # (..., rows, cols), singular values between about 0.7 and 1.2
    """Bring all singular values of each matrix near 1 and keep its singular vectors.

    Works on the smaller side and on a whole stack at once. Small singular values (below about
    1/500 of the norm) are raised, not brought all the way. (Jordan et al. 2024.)"""
    a, b, c = NS_COEFFICIENTS
    tall = G.shape[-2] > G.shape[-1]
    X = (G.mT if tall else G).reshape(-1, *sorted(G.shape[-2:]))             # (N, small, large)
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        A = torch.bmm(X, X.mT)                                               # (N, small, small)
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)                          # b A + c A^2
        X = torch.baddbmm(X, B, X, beta=a)                                   # a X + B X
    X = X.view(*G.shape[:-2], *X.shape[-2:])
    return X.mT if tall else X


# %%
generator = torch.Generator().manual_seed(0)
stack = torch.randn(3, 40, 16, generator=generator)
before, after = torch.linalg.svdvals(stack), torch.linalg.svdvals(newton_schulz(stack))
print(f"singular values: {before.min():.2f} to {before.max():.2f} before, {after.min():.2f} to {after.max():.2f} after")
assert after.min() > 0.6 and after.max() < 1.3

# %% [markdown]
# **Check it** against an independent way: compute the SVD after all, push the singular values through the polynomial, put it together again.

# %%
X = stack[0].double()
U, S, Vt = torch.linalg.svd(X / X.norm(), full_matrices=False)
for _ in range(5): S = steep(S)
torch.testing.assert_close(newton_schulz(X), U @ torch.diag(S) @ Vt, atol=1e-4, rtol=0)
print("equal to the SVD way")


# %% [markdown]
# In an MLP the large side is four times the small one, and each round above multiplies with it twice. It need not. A round turns $X$ into $P X$ with $P = a I + b A + c A^2$, and $A = X X^\top$ into $P A P$. So follow the small $A$ alone, gather the factors in $Q$, and multiply $Q X$ once at the end (Gram Newton-Schulz, Dao AI Lab 2026). **Predict**: with $n$ rows and $4n$ columns a round cost $18 n^3$ operations. What does it cost now?

# %%
#| export
def newton_schulz_gram(
    G: Tensor,       # (..., rows, cols), fp32: in bf16 small eigenvalues of X X^T drown
    steps: int = 5,  # iterations
) -> Tensor:         # as `newton_schulz` gives it, up to rounding
    "The same as `newton_schulz`, but the rounds never touch the large side (Dao AI Lab 2026)."
    a, b, c = NS_COEFFICIENTS
    tall = G.shape[-2] > G.shape[-1]
    X = G.mT if tall else G
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    A = X @ X.mT                                                         # (..., small, small)
    Q = one = torch.eye(X.shape[-2], dtype=G.dtype, device=G.device)
    for _ in range(steps):
        P = a * one + b * A + c * (A @ A)
        Q, A = P @ Q, P @ A @ P
    return (Q @ X).mT if tall else Q @ X


# %%
for shape in ((3, 16, 64), (3, 64, 16), (16, 16)):
    G = torch.randn(shape, generator=generator)
    torch.testing.assert_close(newton_schulz_gram(G), newton_schulz(G), atol=1e-4, rtol=0)
rounds = {"newton_schulz": 5 * (8 + 2 + 8), "newton_schulz_gram": 8 + 5 * (2 + 2 + 4) + 8}     # 2 n^3 for a product of squares
print("n^3 flops for a matrix of n x 4n:", rounds)

# %% [markdown]
# The first product with the identity and the last $A$ are wasted; to leave them out would save another tenth and cost two special cases. It pays from twice as many columns as rows on, and only in fp32: squaring $X$ squares its small singular values too, and in bf16 they drown.
#
# Now the gradient from the start of this lesson, round by round:

# %%
import matplotlib.pyplot as plt

from nanochat.workshop import figure

fig, ax = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
for steps in range(6):
    ax.plot(torch.linalg.svdvals(newton_schulz(G, steps)), color=plt.cm.viridis(steps / 5), label=f"{steps} rounds")
ax.set(yscale="log", xlabel="direction, strongest first", ylabel="singular value", ylim=(1e-4, 2))
ax.legend(frameon=False, fontsize=8)
figure(fig, caption="Singular values of one gradient after 0 to 5 Newton-Schulz rounds.",
       alt="Six falling curves on a logarithmic axis. Before the first round only the strongest direction is near 1 and the "
           "fiftieth is below a thousandth; each round lifts the curve, and after five the strongest 45 lie near 1.")

# %% [markdown]
# One direction ruled before; after five rounds about 45 have an equal say. The weakest are only on their way: five rounds multiply a
# small value by about $3.4445^5 \approx 485$.
#
# **Trap: the norm of the stack.** It is tempting to write `X.norm()` for a stack. That is the norm of *all* matrices together. Each
# matrix starts smaller than it should, by the root of their number, and the soft directions no longer arrive. Nothing crashes.

# %%
many = torch.randn(64, 64, 64, generator=generator)
wrong = newton_schulz((many / many.norm()).flatten(0, 1).view(1, 64 * 64, 64)).view_as(many)     # one norm for all
right = newton_schulz(many)
for name, moves in (("one norm", wrong), ("each its own", right)):
    values = torch.linalg.svdvals(moves)
    print(f"{name:13s} median singular value {values.median():.2f}")
assert torch.linalg.svdvals(wrong).median() < 0.3 < 0.6 < torch.linalg.svdvals(right).median()


# %% [markdown]
# ## Muon
#
# Muon (Jordan et al., 2024) is momentum with this step at its end:
#
# $$M \leftarrow \mu M + (1-\mu) G, \qquad D = (1-\mu) G + \mu M, \qquad
#   W \leftarrow W - \eta \sqrt{\max(1, \text{rows}/\text{cols})}\; \mathrm{NS}(D).$$
#
# $D$ looks one step ahead (Nesterov). The root corrects for shape: an orthogonal $W$ with more rows than columns spreads its input over more
# outputs, so each output entry would move less. $\mu$ rises from 0.85 to 0.95 over 300 steps, because early momentum is
# made of bad advice. First the part that belongs to one matrix:

# %%
#| export
def _muon_state(state: dict, p: Tensor) -> dict:
    "The momentum and the step counter of one matrix, made when first needed."
    if not state:
        state["step"] = torch.zeros((), device=p.device)
        state["momentum"] = torch.zeros_like(p, dtype=torch.float32)
    return state


def _wide(x: Tensor) -> Tensor:
    "The matrix, or its transpose, whichever is not tall."
    return x.mT if x.shape[0] > x.shape[1] else x


def _direction(group: dict, s: dict, g: Tensor, one: Tensor) -> Tensor:
    "Take the gradient into the momentum and return the Nesterov direction (rows, cols)."
    start, end, span = group["momentum"]
    s["step"] += one
    keep = start + (end - start) * (s["step"] / span).clamp(max=1.0)
    s["momentum"].lerp_(g, (1 - keep) * one)          # unchanged where the step is not allowed
    return g.lerp(s["momentum"], keep)                # (1 - keep) g + keep M


# %%
p = torch.nn.Parameter(torch.zeros(2, 2))
group, one, s = {"momentum": (0.85, 0.95, 300)}, torch.ones(()), _muon_state({}, p)
d = _direction(group, s, torch.ones(2, 2), one)
print(f"momentum {s['momentum'][0, 0]:.4f}, direction {d[0, 0]:.4f}, step {s['step']:.0f}")
mu = 0.85 + 0.10 / 300
assert torch.allclose(d, torch.full((2, 2), (1 - mu) + mu * (1 - mu)))


# %% [markdown]
# Then the update. Products of many equal matrices run faster as one batched product, so matrices of one shape (or its transpose)
# are stacked. On a machine with bf16 units the products run in bf16: their result is only about right anyway.

# %%
#| export
@torch.no_grad()
def muon_update(
    group: dict,                    # params (matrices), lr and the settings of MUON
    state: dict,                    # the optimizer's state, by parameter
    allowed: Tensor | None = None,  # 0-d bool on the device; where False, nothing moves
) -> None:
    """One Muon step: momentum, Nesterov, orthogonalise, scale by sqrt(max(1, rows/cols)).

    Matrices of one shape, or of its transpose, go through Newton-Schulz as one stack."""
    params, grads = with_gradient(group["params"], allowed)
    if not params: return
    one = torch.ones((), device=params[0].device) if allowed is None else allowed.float()
    stacks: dict[tuple, list] = {}
    for p, g in zip(params, grads):
        d = _direction(group, _muon_state(state[p], p), g, one)
        stacks.setdefault(tuple(sorted(p.shape)), []).append((p, _wide(d)))
    dtype = getattr(torch, group["ns_dtype"])
    for shape, pairs in stacks.items():
        X = torch.empty(len(pairs), *shape, dtype=dtype, device=one.device)  # (N, small, large)
        for row, (_, d) in zip(X, pairs): row.copy_(d)
        gram = dtype == torch.float32 and shape[1] >= 2 * shape[0]
        moves = (newton_schulz_gram if gram else newton_schulz)(X, group["ns_steps"]).mul_(one)
        for (p, _), move in zip(pairs, moves):
            rows, cols = p.shape
            if group["weight_decay"]: p.mul_(1 - group["lr"] * group["weight_decay"] * one)
            lr = group["lr"] * max(1.0, rows / cols) ** 0.5
            p.sub_(move.mT if rows > cols else move, alpha=lr)


# %%
W = torch.nn.Parameter(torch.zeros(6, 3))
W.grad = torch.randn(6, 3, generator=generator)
settings = {"momentum": (0.85, 0.95, 300), "weight_decay": 0.0, "ns_steps": 5, "ns_dtype": "float32"}
muon_update({"params": [W], "lr": 0.02, **settings}, {W: {}})
expected = -0.02 * 2**0.5 * newton_schulz(W.grad)          # the first direction is a multiple of the gradient
torch.testing.assert_close(W.data, expected, atol=1e-5, rtol=0)
print("largest singular value of the step / lr:", round(torch.linalg.svdvals(W.data)[0].item() / 0.02, 2))

# %% [markdown]
# ## One optimizer for the whole model
#
# Orthogonal steps make sense for matrices that map activations to activations. They do not for the embedding, which is a table of rows:
# in one batch most rows have no gradient at all. So embedding and head get AdamW, the blocks get Muon. `MuonAdamW` is one PyTorch
# optimizer whose groups say which rule is theirs; saving, loading and schedules then need no special case.

# %%
#| export
MUON = {"kind": "muon", "weight_decay": 0.0, "ns_steps": 5, "ns_dtype": "float32",
        "momentum": (0.85, 0.95, 300)}      # from, to, over how many steps
ADAMW = {"kind": "adamw", "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.0}
UPDATES = {"muon": muon_update, "adamw": adamw_update_fused}


def _name(dtype: torch.dtype) -> str:
    "A dtype as a word that JSON can hold: \"float32\"."
    return str(dtype).removeprefix("torch.")


class MuonAdamW(torch.optim.Optimizer):
    "Muon for some groups, AdamW for the others: one object with torch's optimizer interface."

    def __init__(self,
        groups: list[dict],  # each with "params", "lr", "kind" and the settings of that kind
    ):
        super().__init__(groups, {})
        for group in self.param_groups: group.setdefault("initial_lr", group["lr"])

    def step(self, allowed: Tensor | None = None) -> None:
        "One update. `allowed` is a 0-d bool on the device: where False, nothing changes at all."
        for group in self.param_groups: UPDATES[group["kind"]](group, self.state, allowed)


class Muon(MuonAdamW):
    "Muon alone, for a list of matrices (Jordan et al. 2024)."

    def __init__(self,
        params,                         # matrices, each (rows, cols)
        lr: float = 0.02,               # learning rate
        weight_decay: float = 0.0,      # pull towards zero, times lr
        ns_dtype: torch.dtype = torch.float32,  # of the Newton-Schulz products
    ):
        settings = {"lr": lr, "weight_decay": weight_decay, "ns_dtype": _name(ns_dtype)}
        super().__init__([MUON | settings | {"params": list(params)}])


# %%
alone = Muon([W], lr=0.1)
W.grad = torch.eye(6, 3)
alone.step(allowed=torch.tensor(False))
torch.testing.assert_close(W.data, expected, atol=1e-5, rtol=0)            # forbidden: nothing moved
print({k: v for k, v in alone.param_groups[0].items() if k != "params"})


# %% [markdown]
# The rates are nanochat's first: Muon 0.02; embedding 0.2 and head 0.004 at width 768, scaled by $1/\sqrt C$.

# %%
#| export
def make_optimizer(
    model,                         # has `parts()`: embedding, matrices, head; and `config.n_embd`
    *,
    matrix_lr: float = 0.02,       # Muon, for the matrices in the blocks
    embedding_lr: float = 0.2,     # AdamW at width 768
    head_lr: float = 0.004,        # AdamW at width 768
    lr_scale: float = 1.0,         # multiplies all three: later stages take smaller steps
    batch_tokens: int = 2**19,     # tokens per update, all ranks together
    weight_decay: float = 0.0,     # of the matrices
    ns_dtype: torch.dtype = torch.float32,  # bfloat16 where this machine is faster with it
) -> MuonAdamW:
    "The course's optimizer: Muon for matrices, AdamW for the rest, at nanochat's first rates."
    parts, scale = model.parts(), lr_scale * batch_scale(batch_tokens)
    wide = scale * width_scale(model.config.n_embd)
    muon = {"lr": matrix_lr * scale, "weight_decay": weight_decay, "ns_dtype": _name(ns_dtype)}
    return MuonAdamW([
        ADAMW | {"params": parts["head"], "lr": head_lr * wide},
        ADAMW | {"params": parts["embedding"], "lr": embedding_lr * wide},
        MUON | muon | {"params": parts["matrices"]},
    ])


# %%
model = small()
optimizer = make_optimizer(model)
for name, group in zip(("head", "embedding", "matrices"), optimizer.param_groups):
    print(f"{name:10s} {group['kind']:6s} lr {group['lr']:.4f}  {sum(p.numel() for p in group['params']):7,} numbers")
assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


# %% [markdown]
# And a rival with the same three groups, AdamW everywhere. It was given the best matrix rate of a small sweep (0.001 to 0.01), so
# that the race is fair.

# %%
#| export
def make_adamw(
    model,                      # as for `make_optimizer`
    *,
    matrix_lr: float = 0.003,   # for the matrices in the blocks
    embedding_lr: float = 0.2,  # at width 768
    head_lr: float = 0.004,     # at width 768
    lr_scale: float = 1.0,      # multiplies all three
    weight_decay: float = 0.0,  # of the matrices
) -> MuonAdamW:
    "AdamW everywhere, to compare with `make_optimizer`."
    parts, wide = model.parts(), lr_scale * width_scale(model.config.n_embd)
    rates = {"head": head_lr * wide, "embedding": embedding_lr * wide,
             "matrices": matrix_lr * lr_scale}
    decays = {"matrices": weight_decay}
    return MuonAdamW([ADAMW | {"params": parts[k], "lr": lr, "weight_decay": decays.get(k, 0.0)}
                      for k, lr in rates.items()])


# %%
assert {g["kind"] for g in make_adamw(model).param_groups} == {"adamw"}

# %% [markdown]
# ## The race
#
# Same model, same first weights, same batches, same schedule; only the rule for the matrices differs. **Predict** which one is lower after
# a few dozen steps, and by how much.

# %%
from nanochat.optim import schedule
from nanochat.train import train

STEPS = by_tier(60, 200)

def race(make) -> list[float]:
    "Loss after each step, in nats per byte."
    model = small()
    run = train(model, make(model), rows(1), steps=STEPS, schedule=lambda t: schedule(t, STEPS, warmdown=0.6))
    return [step.loss for step in run]

losses = {"Muon": race(make_optimizer), "AdamW": race(make_adamw)}
final = {name: sum(values[-8:]) / 8 for name, values in losses.items()}
print({name: round(value, 3) for name, value in final.items()})
assert final["Muon"] < final["AdamW"]

# %%
fig, ax = plt.subplots(figsize=(5.5, 2.6), layout="constrained")
for (name, values), style in zip(losses.items(), ("-", "--")): ax.plot(values, style, label=name, linewidth=1)
ax.set(xlabel="step", ylabel="training loss, nats per byte")
ax.legend(frameon=False)
figure(fig, caption="Training loss with Muon and with AdamW for the matrices; one seed.",
       alt="Two falling curves from 5.5 nats. They stay close together for the first fifty steps; then Muon's is the lower one.")

# %% [markdown]
# The gap opens slowly: after 60 steps it was 0.04 nats on this data, after 150 steps 0.12. That is one seed and a tiny model, but it agrees with a longer measurement on the same two cores: a four-layer model trained for three
# minutes reached 0.199 bits per byte with Muon and 0.217 with AdamW, and Muon needed 100 seconds for what took AdamW 180,
# although each of its steps is 15% slower.
#
# ## At scale: what it costs
#
# One round on an $n \times m$ matrix ($n \le m$) costs $4n^2m + 2n^3$ operations. Training on a batch of $B$ tokens costs $6nmB$ for the same
# matrix. For a square one the ratio of five rounds to the training is $5n/B$:

# %%
for name, n, B in (("laptop d4, 4,096 tokens", 256, 4096), ("laptop d8, 4,096 tokens", 512, 4096), ("d20, 524,288 tokens", 1280, 2**19)):
    print(f"{name:24s} Newton-Schulz adds {5 * n / B:6.1%} to the arithmetic")
assert round(5 * 1280 / 2**19, 3) == 0.012

# %% [markdown]
# On eight GPUs it is free: 1%, and shared among them as in lesson 03b. On a laptop it is a third of the arithmetic at depth 4, so there
# it must run in bf16, batched, on the smaller side, as ours does. Muon keeps one number per weight where AdamW keeps two:
# for the 393 million block weights of the 20-layer model that saves 1.6 GB.
#
# Published nanochat went on from here: better polynomials per round (Polar Express), per-row normalisation, decay that only acts when it
# agrees with the step. The gains were small, and this is the core that stayed.
#
# ## Recap
#
# * A gradient matrix is dominated by a few directions; the fair step keeps directions and equalises strengths.
# * Odd polynomials act on singular values. Five rounds of a steep one bring most of them near 1.
# * Normalise each matrix by its own Frobenius norm; work on the smaller side; stack equal shapes.
# * Muon for matrices in blocks, AdamW for embedding and head.
# * Its cost is per step, $5n/B$: small batches pay, large ones do not.
#
# **Quiz.** *Does Muon's step get smaller when the gradient gets smaller?* No: strengths are set to 1, so only the rate decides, and the
# schedule must bring it down. *Then why clip?* The direction mixes past gradients; one huge gradient would drown the others in the momentum.
#
# **Papers.** Jordan et al. 2024 (Muon), Bernstein and Newhouse 2024 (Old optimizer, new norm).
