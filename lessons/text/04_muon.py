# %% [markdown]
# # 04. Muon: give every direction its turn
#
# **Promise.** You will build the optimizer that trains the matrices of nanochat, derive the iteration at its heart, race it against AdamW, and decide by measurement which of its later refinements you keep.
#
# After this lesson you can
#
# * say what is wrong with the shape of a gradient matrix, and derive the best replacement (exercise 1);
# * derive Newton-Schulz, a polynomial that moves singular values and never computes them, and design your own (exercises 2 and 3);
# * write Muon: momentum, Nesterov, orthogonalise, scale by shape, many matrices at once (exercise 4);
# * predict what it costs on a laptop and on eight GPUs (exercise 5);
# * write one of the later refinements (exercise 6), and test refinements fairly, so that you drop those that do not pay.
#
# You need lessons 02d and 03, and to know what a singular value decomposition (SVD) is; the first section recalls it. Reading and running: 90 minutes. Exercises: 85 minutes. Computing: about four minutes.

# %%
#| default_exp muon

# %%
#| export
import math

import torch
from torch import Tensor

from nanochat.optim import (Optimizer, adamw_update_fused, batch_scale, check_groups, horizon_scale,
                            width_scale, with_gradient)
from nanochat.workshop import UserError

# %% [markdown]
# ## A gradient that says one thing
#
# Any matrix can be written as a sum of **directions**, $M = \sum_i s_i\, u_i v_i^\top$: read along $v_i$, write along $u_i$, with strength $s_i \ge 0$, the **singular value**. The $u_i$ are at right angles to each other, and so are the $v_i$. A 128 by 512 matrix has 128 of them.
#
# Train a small model for a moment, and look at what an optimizer with momentum would step along: an average of gradients. **Predict:** how many of the 128 directions hold nine tenths of its squared length?

# %%
from itertools import islice

from nanochat.gpt import GPT, config_for
from nanochat.microworld import documents
from nanochat.optim import AdamW
from nanochat.workshop import by_tier, stored_result

T, ROWS = 64, 8
text = "".join(doc.text + "\n" for doc in islice(documents(0), 3000)).encode()
DATA = torch.tensor(list(text))                            # the bytes of the little world: 256 tokens, no tokenizer needed
cut = len(DATA) * 9 // 10                                  # the last tenth is for measuring

def rows(seed: int, lo: int = 0, hi: int = cut):
    "Endless batches of rows of T bytes, and the bytes that follow."
    g = torch.Generator().manual_seed(seed)
    while True:
        at = lo + torch.randint(hi - lo - T - 1, (ROWS, 1), generator=g) + torch.arange(T)
        yield DATA[at], DATA[at + 1]                       # (ROWS, T) each

def small(seed: int = 0) -> GPT: return GPT(config_for(2, 256, T, head_dim=64), seed)

model, average = small(), {}
optimizer = AdamW(model.parameters(), lr=0.003)
for x, y in islice(rows(0), 20):
    optimizer.zero_grad()
    model(x, y).backward()
    optimizer.step()
    for name, p in model.blocks.named_parameters(): average[name] = 0.9 * average.get(name, 0) + 0.1 * p.grad

def directions_for(G: Tensor, share: float = 0.9) -> int:
    "How many of the strongest directions hold that share of the squared length."
    energy = torch.linalg.svdvals(G).square()
    return int((energy.cumsum(0) / energy.sum() < share).sum()) + 1

for name, G in average.items(): print(f"{name:20s} {tuple(G.shape)!s:11s} {directions_for(G):3d} of {min(G.shape)} directions hold 90%")
G = average["0.mlp.c_fc.weight"]                           # (512, 128), the example from here on
assert max(directions_for(G) for G in average.values()) < 40

# %% [markdown]
# A handful. Such a matrix is of low **effective rank**: a step along it moves the weights almost only in a few directions. The other hundred are not noise.
# They are what rare words and rare patterns ask for; they just speak softly.

# %%
import matplotlib.pyplot as plt

from nanochat.workshop import figure

fig, axes = plt.subplots(1, 2, figsize=(7.5, 2.5), layout="constrained")
noise = torch.randn(G.shape, generator=torch.Generator().manual_seed(0))
for name, M, style in (("averaged gradient", G, "-"), ("random numbers", noise, "--")):
    s = torch.linalg.svdvals(M)
    axes[0].plot(s / s[0], style, label=name)
    axes[1].plot(s.square().cumsum(0) / s.square().sum(), style, label=name)
axes[0].set(yscale="log", xlabel="direction, strongest first", ylabel="strength / strongest", ylim=(1e-4, 1.5))
axes[1].set(xlabel="directions", ylabel="share of squared length", ylim=(0, 1.02))
axes[0].legend(frameon=False, fontsize=8)
figure(fig, caption="The directions of an averaged gradient (512 by 128), beside a matrix of random numbers of the same shape.",
       alt="Left: the strengths of the gradient fall ten thousandfold over the first 85 of 128 directions, those of the random matrix only about threefold. "
           "Right: a few directions hold most of the gradient's squared length, while the random matrix needs nearly all.")

# %% [markdown]
# ## The best step of a given size
#
# What would a fair step be? To first order a step $\Delta$ changes the loss by $\langle G, \Delta\rangle = \sum_{ij} G_{ij}\Delta_{ij}$. "Steepest" means: the most change for a step of a given size. So **everything depends on how you measure size.** Three ways, three optimizers:
#
# | size of a step | steepest step of size 1 | who does that |
# |---|---|---|
# | root of the sum of squares | $G$, divided by its length | plain descent |
# | largest entry | the sign of each entry of $G$ | Adam, without its memory |
# | most it can stretch a vector | ? | Muon |
#
# The third is the one that means something for a matrix *in a network*. It maps activations to activations, and $\lVert \Delta x\rVert \le \sigma_{\max}(\Delta)\,\lVert x\rVert$: the largest singular value bounds what the step can do to any output. It is called the spectral norm.
#
# Fill in the question mark. With $G = \sum_i s_i u_i v_i^\top$ we have $\langle G, \Delta\rangle = \sum_i s_i\, u_i^\top \Delta v_i$. As $u_i$ and $v_i$ have length 1, each $u_i^\top \Delta v_i$ is at most $\sigma_{\max}(\Delta) \le 1$. All of them reach 1 at once for
#
# $$\Delta = \sum_i u_i v_i^\top = U V^\top .$$
#
# So: **keep the directions, set every strength to 1** (Bernstein and Newhouse, 2024). It is the matrix counterpart of taking the sign. On a tiny matrix, by hand:

# %%
g = torch.tensor([[3.0, 0.0], [0.0, 0.01]])
U, S, Vt = torch.linalg.svd(g)
print("gradient:", g.tolist(), "  fair step:", (U @ Vt).tolist())
assert torch.allclose(U @ Vt, torch.eye(2))

# %% [markdown]
# The proof says that no step of spectral norm 1 gains more. Let ten thousand random ones try.

# %%
g = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
U, S, Vt = torch.linalg.svd(g, full_matrices=False)
tries = torch.randn(10_000, 4, 3, generator=torch.Generator().manual_seed(2))
tries = tries / torch.linalg.matrix_norm(tries, ord=2)[:, None, None]
gains = (tries * g).sum((1, 2))
print(f"best of 10,000: {gains.max():.2f}   U V: {(U @ Vt * g).sum():.2f}   sum of the strengths: {S.sum():.2f}")
assert gains.max() < (U @ Vt * g).sum() and torch.allclose((U @ Vt * g).sum(), S.sum())

# %% [markdown]
# Does it help? Take the simplest matrix to learn: $W$ shall become the identity, from inputs of which some are frequent and some rare. The loss is $\frac12\sum_i c_i \lVert (W - 1) e_i\rVert^2$ with frequencies $c$ from 1 to 0.001, so the gradient is $(W - 1)\,\mathrm{diag}(c)$.
# **Predict** which inputs plain descent has learned after 100 steps.

# %%
c = torch.tensor([1.0, 0.1, 0.01, 0.001])

def learn(step, lr: float, steps: int = 100) -> Tensor:
    "How much of each input is learned after each step, (steps, 4): 1 is all."
    W, path = torch.zeros(4, 4), []
    for t in range(steps):
        W = W - lr * (1 - t / steps) * step((W - torch.eye(4)) * c)
        path.append(W.diagonal())
    return torch.stack(path)

def fair(g: Tensor) -> Tensor:
    "Version 1: directions of strength 1, by SVD."
    U, _, Vt = torch.linalg.svd(g, full_matrices=False)
    return U @ Vt

plain, ours = learn(lambda g: g, 1.0), learn(fair, 0.03)
for name, path in (("plain descent", plain), ("fair steps", ours)): print(f"{name:14s}", [round(x, 2) for x in path[-1].tolist()])
assert plain[-1, 3] < 0.1 and (ours[-1] - 1).abs().max() < 0.1

# %%
fig, axes = plt.subplots(1, 2, figsize=(7.5, 2.4), layout="constrained", sharey=True)
for ax, path, title in zip(axes, (plain, ours), ("plain descent", "fair steps")):
    for i, style in enumerate(("-", "--", "-.", ":")): ax.plot(path[:, i], style, label=f"frequency {c[i]:g}")
    ax.set(title=title, xlabel="step")
axes[0].set_ylabel("share learned")
axes[0].legend(frameon=False, fontsize=8)
figure(fig, caption="How fast inputs of four frequencies are learned.",
       alt="Plain descent: the input of frequency 1 is learned at once, that of 0.1 within about 30 steps, that of 0.01 to less than a half, "
           "that of 0.001 hardly at all. Fair steps: four lines lie on each other and reach 1 after about 40 steps.")

# %% [markdown]
# Plain descent has learned what is frequent. The fair step learned all four at the same speed. That is the promise; now make it cheap. An SVD of each matrix at each step would cost far more than the training itself, and GPUs are bad at it.
#
# ## Singular values without computing them
#
# Here is the trick: **an odd polynomial of a matrix acts on its singular values alone.** Put $X = U S V^\top$ into $X X^\top X$. In the middle $V^\top V$ and $U^\top U$ cancel:
#
# $$X X^\top X = U S V^\top\, V S U^\top\, U S V^\top = U S^3 V^\top .$$
#
# Each further factor $X X^\top$ adds two to the power. So $a X + b\,(X X^\top) X + c\,(X X^\top)^2 X = U\,(aS + bS^3 + cS^5)\,V^\top$: only products, which is what hardware does best. Check it with numbers:

# %%
X = torch.tensor([[0.6, 0.0], [0.0, 0.1]]) @ torch.tensor([[0.8, 0.6], [-0.6, 0.8]])      # strengths 0.6 and 0.1, then a turn
print("strengths of X:      ", [round(s, 4) for s in torch.linalg.svdvals(X).tolist()])
print("strengths of X X^T X:", [round(s, 4) for s in torch.linalg.svdvals(X @ X.T @ X).tolist()], "= 0.6^3 and 0.1^3")
assert torch.allclose(torch.linalg.svdvals(X @ X.T @ X), torch.tensor([0.216, 0.001]), atol=1e-6)


# %% [markdown]
# We need a polynomial that, applied again and again, sends every number in (0, 1] to 1. Demand that 1 stays, $p(1) = 1$, and that near 1 errors vanish quadratically, $p'(1) = 0$. With $p(s) = as + bs^3$ that is $a + b = 1$ and $a + 3b = 0$, so $p(s) = 1.5 s - 0.5 s^3$.
# This is the classic **Newton-Schulz iteration**. It is exact in the end, and slow at the start: a small $s$ grows by $1.5$ a round.
#
# The slope at zero is what counts for the soft directions. With a fifth power there is a third coefficient to spend. Jordan and others (2024) spent it on steepness, and gave up $p(1) = 1$: $3.4445 s - 4.7750 s^3 + 2.0315 s^5$.
#
# **Predict, then run.** Start at $s = 0.01$. How near to 1 is each after five rounds?

# %%
def classic(s): return 1.5 * s - 0.5 * s**3

def steep(s): return 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5

for name, f in (("classic", classic), ("steep", steep)):
    s, trail = 0.01, []
    for _ in range(5): s = f(s); trail.append(round(s, 3))
    print(f"{name:8s}", trail)
assert 0.6 < s < 1.3

# %%
s0 = torch.linspace(0, 1, 400)
fig, axes = plt.subplots(1, 2, figsize=(7.5, 2.6), layout="constrained", sharey=True)
for ax, rounds in zip(axes, (1, 5)):
    for f, style in ((classic, "--"), (steep, "-")):
        s = s0
        for _ in range(rounds): s = f(s)
        ax.plot(s0, s, style, label=f.__name__)
    ax.axhline(1, color="gray", linewidth=0.5)
    ax.set(xlabel="singular value before", title="after one round" if rounds == 1 else "after five rounds")
axes[0].set_ylabel("and after")
axes[0].legend(frameon=False)
figure(fig, caption="What the two polynomials do to a singular value between 0 and 1.",
       alt="One round: the classic curve rises smoothly to 1, the steep one rises more than twice as fast, overshoots to about 1.2 and comes back to 0.7. "
           "Five rounds: the classic needs values above 0.3 to reach 1, the steep one is between 0.7 and 1.2 almost everywhere.")


# %% [markdown]
# The steep one is there in four rounds, and then wanders between 0.7 and 1.2 without settling. It turns out that training does not mind: "about equal" is nearly as fair as "equal".
#
# **Trap: starting above 1.** Both polynomials send large numbers to infinity; the classic does so from $\sqrt 5$ on (and flips the sign of a direction from $\sqrt 3$ on). **Predict** what five rounds make of a matrix whose entries are of size 1.

# %%
def ns_loop(X: Tensor, rounds: int = 5) -> Tensor:
    "Version 2: one matrix, no care."
    for _ in range(rounds):
        A = X @ X.T
        X = 3.4445 * X - 4.7750 * A @ X + 2.0315 * A @ A @ X
    return X

M = torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
print(f"as it is: {ns_loop(M).abs().max()}    divided by its length first: {ns_loop(M / M.norm()).abs().max():.2f}")
assert not ns_loop(M).isfinite().all() and ns_loop(M / M.norm()).isfinite().all()


# %% [markdown]
# So divide first. The largest singular value would be exact but unknown. The Frobenius norm, the root of the sum of all squares, is cheap, and it is the root of $\sum s_i^2$, so never less than the largest $s_i$. Published nanochat divides by it and makes five rounds.
#
# **Twice, not ten times.** Write a round as $X \leftarrow P X$ with $P = a + bA + cA^2$ and $A = XX^\top$. The next round wants the new $A$, and that is $(PX)(PX)^\top = P A P$: the old one tells it, without $X$. So follow $A$ alone, collect the product $Q$ of all $P$, and touch $X$ twice: to make the first $A$, and at the end, $QX$. For the MLP's matrices, whose other side is four times as long, that saves more than a third of the work of three rounds. For a square one it saves nothing: there $A$ is as large as $X$, and making it anew is one product where $PAP$ is two. (Zhang and others 2026.)
#
# **Trap: following too far.** In bf16 the followed $A$ is not quite $XX^\top$. What is off by a little grows up to $3.4445^2 \approx 12$ times a round, as the small values of $A$ do, and it may be negative, which no $XX^\top$ ever is. **Predict** for how many rounds that goes well, on a matrix with some soft directions.

# %%
def ns_follow(X: Tensor, rounds: int) -> Tensor:
    "Version 2 that follows A = X X' from the first round to the last."
    I = torch.eye(len(X), dtype=X.dtype)
    A, Q = X @ X.T, I
    for _ in range(rounds):
        P = 3.4445 * I - 4.7750 * A + 2.0315 * A @ A
        A, Q = P @ A @ P, P @ Q
    return Q @ X

U, _ = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
V, _ = torch.linalg.qr(torch.randn(256, 64, generator=torch.Generator().manual_seed(1)))
soft = (U * torch.logspace(0, -2, 64)) @ V.T                                 # singular values from 1 to 0.01
soft /= soft.norm()
print("rounds   wrong in bf16, as a share of the length: A followed / A made anew each round")
for rounds in range(1, 8):
    right = ns_loop(soft, rounds)
    off = [((f(soft.bfloat16(), rounds).float() - right).norm() / right.norm()).item() for f in (ns_follow, ns_loop)]
    print(f"{rounds:6d}   {off[0]:10.2g}   {off[1]:10.2g}")
    assert off[1] < 0.2 and (rounds > 3 or off[0] < 0.2) and (rounds < 7 or not off[0] < 100)

# %% [markdown]
# Three rounds are as good as new, the fourth is not, and then a negative number runs away. So the exported version makes $A$ anew from $X$ after three rounds, and for a square matrix, which has nothing to save, after every one.
#
# **A better bound, for nothing.** The singular values of $A$ are the *squares* $s_i^2$, so its Frobenius norm is the root of $\sum s_i^4$. That is still never less than the largest $s_i^2$, but much nearer to it (Delattre and others 2023). **By hand:** four equal singular values of 1. The norm of $X$ is $\sqrt 4 = 2$; the norm of $A$ is 2, and its root 1.41. Everything starts 1.41 times as high, and $A$ had to be made anyway. How much is it for real gradients?

# %%
for name, D in list(average.items())[:6]:
    s = torch.linalg.svdvals(D)
    print(f"{name:20s} norm over largest singular value: of X {s.norm() / s[0]:.2f}, root of that of A {s.square().norm().sqrt() / s[0]:.2f}")
    assert s[0] <= s.square().norm().sqrt() * 1.0001 and s.square().norm().sqrt() <= s.norm() * 1.0001

# %% [markdown]
# At the start of training one direction towers over the rest, and the two bounds are alike. Later it does not: in a run of a four-layer model the norm of $X$ was 1.1 to 3.1 times too large, and the other bound 1.0 to 1.3 times (`benchmarks/RESULTS.md`). A factor of 2 more at the start is half a round saved.
#
# Version 3, the exported one, does both. It works on the **smaller side**: $X X^\top$ of a wide matrix is small and of a tall one large. A tall one has a small $X^\top X$ instead, and $X (X^\top X) = (X X^\top) X$: the same polynomial, written on the other side. And it takes a whole **stack** of matrices: many small products run faster as one batched product.

# %%
#| export
NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)    # of s, s^3, s^5 (Jordan et al. 2024): steep at 0


def _factor(A: Tensor) -> Tensor:
    "What a round multiplies X by, (N, n, n): a + b A + c A^2."
    a, b, c = NS_COEFFICIENTS
    P = torch.baddbmm(A, A, A, beta=b, alpha=c)
    P.diagonal(dim1=-2, dim2=-1).add_(a)
    return P


def newton_schulz(
    G: Tensor,       # (..., rows, cols); the products run in its dtype
    steps: int = 3,  # iterations, at least 1
) -> Tensor:         # (..., rows, cols), singular values at most about 1.2
    """Raise all singular values of each matrix towards 1 and keep its singular vectors.

    Small ones grow 3.4445 times a step: three steps lift above 0.5 what began above 1/80 of the
    bound. Starts from the norm of A = X X' (or X' X, the smaller one), a tighter bound than that of
    X; where X is longer than A, follows A alone for three steps, since its errors grow.
    (Jordan et al. 2024, Delattre et al. 2023, Zhang et al. 2026.)"""
    X = G.reshape(-1, *G.shape[-2:])                                         # (N, rows, cols)
    tall = G.shape[-2] > G.shape[-1]
    span = 1 if G.shape[-2] == G.shape[-1] else 3                            # rounds until A is made anew
    for done in range(0, steps, span):
        A = X.mT @ X if tall else X @ X.mT                                   # (N, n, n), n the smaller side
        if done == 0:
            size = A.norm(dim=(-2, -1), keepdim=True) + 1e-18                # >= largest singular value squared; its own square must not underflow
            A = A / size
        P = Q = _factor(A)
        for _ in range(min(span, steps - done) - 1):
            A = P @ A @ P
            P = _factor(A)
            Q = P @ Q
        if done == 0: Q = Q / size.sqrt()
        X = X @ Q if tall else Q @ X
    return X.view(G.shape)


# %%
generator = torch.Generator().manual_seed(0)
stack = torch.randn(3, 40, 16, generator=generator)
before, after = torch.linalg.svdvals(stack), torch.linalg.svdvals(newton_schulz(stack))
print(f"singular values: {before.min():.2f} to {before.max():.2f} before, {after.min():.2f} to {after.max():.2f} after")
assert after.min() > 0.6 and after.max() < 1.3
torch.testing.assert_close(newton_schulz(M), ns_loop(M / (M @ M.T).norm().sqrt(), 3), atol=1e-4, rtol=0)      # version 2 and 3 agree

# %% [markdown]
# **Check it** against an independent way: compute the SVD after all, push the singular values through the polynomial, put it together again.

# %%
X = stack[0].double()
U, S, Vt = torch.linalg.svd(X, full_matrices=False)
S = S / S.square().norm().sqrt()
for _ in range(3): S = steep(S)
torch.testing.assert_close(newton_schulz(X), U @ torch.diag(S) @ Vt, atol=1e-4, rtol=0)
print("equal to the SVD way, and the step points where the fair step points: cosine",
      round(torch.cosine_similarity(newton_schulz(X).flatten(), fair(X).flatten(), dim=0).item(), 3))

# %% [markdown]
# Now the averaged gradient from the start of this lesson, round by round:

# %%
fig, ax = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
ax.plot(torch.linalg.svdvals(G / (G.T @ G).norm().sqrt()), color=plt.cm.viridis(0.0), label="0 rounds")
for steps in range(1, 6):
    ax.plot(torch.linalg.svdvals(newton_schulz(G, steps)), color=plt.cm.viridis(steps / 5), label=f"{steps} rounds")
ax.set(yscale="log", xlabel="direction, strongest first", ylabel="singular value", ylim=(1e-4, 2))
ax.legend(frameon=False, fontsize=8)
figure(fig, caption="Singular values of one averaged gradient after 0 to 5 Newton-Schulz rounds.",
       alt="Six falling curves on a logarithmic axis. Before the first round only the strongest direction is near 1; "
           "each round lifts the curve; after three about a fifth of the directions lies near 1, after five nearly a half, and the weakest are on their way.")

arrived = int((torch.linalg.svdvals(newton_schulz(G)) > 0.5).sum())
print(f"{directions_for(G)} directions held 90% before; {arrived} of {min(G.shape)} are above 0.5 after three rounds")
assert arrived > 2 * directions_for(G)


# %% [markdown]
# A few directions ruled before; now many have a say. The weakest are only on their way, since three rounds multiply a small value by at most $3.4445^3 \approx 41$, and five by 485. How many rounds training wants is a question for a race, below.
#
# **Trap: the norm of the stack.** It is tempting to write `X.norm()` for a stack. That is the norm of *all* matrices together, and the loudest one rules it. Every
# other matrix starts smaller than it should, and its soft directions no longer arrive. Nothing crashes.

# %%
def ns_one_norm(X: Tensor) -> Tensor:
    "The bug: one norm for the whole stack, (N, rows, cols)."
    X = X / (X @ X.mT).norm().sqrt()
    for _ in range(3): X = 3.4445 * X - 4.7750 * X @ X.mT @ X + 2.0315 * X @ X.mT @ X @ X.mT @ X
    return X

many = torch.stack([M for name, M in average.items() if "attn" in name])                      # eight gradients of 128 by 128
def arrived_in(moves: Tensor) -> list[int]: return (torch.linalg.svdvals(moves) > 0.5).sum(-1).tolist()

print("directions above 0.5 with one norm for all:", arrived_in(ns_one_norm(many)))
print("directions above 0.5, each its own norm:   ", arrived_in(newton_schulz(many)))
changed = {f.__name__: (f(many)[0] - f(many[:1])[0]).abs().max().item() for f in (ns_one_norm, newton_schulz)}
print("by how much the first one's step depends on the others:", {name: round(d, 4) for name, d in changed.items()})
assert changed["newton_schulz"] < 1e-4 and changed["ns_one_norm"] > 0.01 and sum(arrived_in(ns_one_norm(many))) < sum(arrived_in(newton_schulz(many)))

# %% [markdown]
# The last line is the better test: the step of a matrix must not depend on who is stacked with it.
#
# **Does it need precision?** The result is only about right anyway, so the products may run in bf16 where the machine has units for it.

# %%
values = torch.linalg.svdvals(newton_schulz(stack.bfloat16()).float())
print(f"in bf16: {values.min():.2f} to {values.max():.2f};  largest difference of an entry {(newton_schulz(stack.bfloat16()).float() - newton_schulz(stack)).abs().max():.3f}")
assert 0.5 < values.min() and values.max() < 1.35


# %% [markdown]
# ## Muon
#
# Muon (Jordan and others, 2024) is momentum with this step at its end:
#
# $$M \leftarrow \mu M + (1-\mu) G, \qquad D = (1-\mu) G + \mu M, \qquad
#   W \leftarrow W - \eta \sqrt{\max(1, \text{rows}/\text{cols})}\; \mathrm{NS}(D).$$
#
# **Momentum first, then orthogonalise.** The other order averages steps that all shout equally loud, also where a batch's gradient was only noise. In $M$ noise has been averaged away before it is amplified.
#
# **Nesterov.** $D$ mixes the newest gradient in once more. It is what $M$ would be one step later, if the same gradient came again: a look ahead. **By hand**, with $\mu = 0.9$, $M = 0$ and $G = 1$: $M$ becomes 0.1, and $D = 0.1 \cdot 1 + 0.9 \cdot 0.1 = 0.19$.
#
# $\mu$ rises from 0.85 to 0.95 over 300 steps, because early momentum is made of outdated advice.

# %%
#| export
def _muon_state(state: dict, p: Tensor) -> dict:
    "The momentum and the step counter of one matrix, made when first needed."
    if not state:
        state["step"] = torch.zeros((), device=p.device)
        state["momentum"] = torch.zeros_like(p, dtype=torch.float32)
    return state


def _direction(group: dict, s: dict, g: Tensor, one: Tensor) -> Tensor:
    "Take the gradient into the momentum and return the Nesterov direction (rows, cols)."
    start, end, span = group["momentum"]
    s["step"] += one
    keep = start + (end - start) * (s["step"] / span).clamp(max=1.0)
    s["momentum"].lerp_(g, (1 - keep) * one)          # unchanged where the step is not allowed
    return g.lerp(s["momentum"], keep * one)          # (1 - keep) g + keep M; there g, which is 0


# %%
p = torch.nn.Parameter(torch.zeros(2, 2))
group, one, s = {"momentum": (0.9, 0.9, 300)}, torch.ones(()), _muon_state({}, p)
d = _direction(group, s, torch.ones(2, 2), one)
print(f"momentum {s['momentum'][0, 0]:.2f}, direction {d[0, 0]:.2f}, step {s['step']:.0f}")
assert torch.allclose(d, torch.full((2, 2), 0.19))

# %% [markdown]
# **Shape.** How much does a step move the outputs? Let the inputs have entries of size 1, so their length is $\sqrt{\text{cols}}$. An orthogonal $\Delta$ with cols $\le$ rows keeps the length, and spreads it over more entries: each output entry moves by $\sqrt{\text{cols}/\text{rows}}$. The factor $\sqrt{\text{rows}/\text{cols}}$ brings that back to 1.
# If there are more columns than rows, $\Delta$ keeps only the part of the input that lies in its rows, on average $\text{rows}/\text{cols}$ of the squared length, and spreads that over fewer entries: 1 again for random inputs, and more for inputs that lie where the matrix listens. Look:

# %%
for rows_, cols in ((128, 128), (512, 128), (128, 512)):
    step = fair(torch.randn(rows_, cols, generator=generator))
    x = torch.randn(cols, 200, generator=generator)                       # entries of size 1
    moved = (step @ x).square().mean().sqrt()
    heard = (step @ (step.T @ torch.randn(rows_, 200, generator=generator)) * (cols / rows_) ** 0.5).square().mean().sqrt()
    print(f"{rows_:3d} x {cols:3d}: random inputs move each output by {moved:.2f}, times the factor {moved * max(1, rows_ / cols) ** 0.5:.2f}"
          + (f"; inputs it listens to, {heard:.2f}" if cols > rows_ else ""))
    assert abs(moved / min(1, cols / rows_) ** 0.5 - 1) < 0.15


# %% [markdown]
# So tall matrices need the factor, square ones have it at 1, and for wide ones the truth lies between 1 (random inputs) and a value above it (inputs the step was made for): Muon leaves them alone. In a GPT only the first map of the MLP (4C by C) is tall: factor 2.
#
# Then the update itself. Matrices of one shape are stacked, so a 20-layer model makes three batched iterations, not 120. `allowed` works as in lesson 02d: where it is False, nothing moves, and nobody waits to ask.

# %%
#| export
@torch.no_grad()
def muon_update(
    group: dict,                    # params (matrices), lr and the settings of MUON
    state: dict,                    # the optimizer's state, by parameter
    allowed: Tensor | None = None,  # 0-d bool on the device; where False, nothing moves
) -> None:
    """One Muon step: momentum, Nesterov, orthogonalise, scale by sqrt(max(1, rows/cols)).

    Matrices of one shape go through Newton-Schulz as one stack."""
    params, grads = with_gradient(group["params"], allowed)
    if not params: return
    one = torch.ones((), device=params[0].device) if allowed is None else allowed.float()
    stacks: dict[tuple, list] = {}
    for p, g in zip(params, grads):
        d = _direction(group, _muon_state(state[p], p), g, one)
        stacks.setdefault(p.shape, []).append((p, d))
    dtype = getattr(torch, group["ns_dtype"])
    for shape, pairs in stacks.items():
        X = torch.empty(len(pairs), *shape, dtype=dtype, device=one.device)  # (N, rows, cols)
        for row, (_, d) in zip(X, pairs): row.copy_(d)
        moves = newton_schulz(X, group["ns_steps"])
        lr = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
        for (p, _), move in zip(pairs, moves):
            if group["weight_decay"]: p.mul_(1 - group["lr"] * group["weight_decay"] * one)
            p.sub_(move, alpha=lr)


# %%
W = torch.nn.Parameter(torch.zeros(6, 3))
W.grad = torch.randn(6, 3, generator=generator)
settings = {"momentum": (0.85, 0.95, 300), "weight_decay": 0.0, "ns_steps": 3, "ns_dtype": "float32"}
muon_update({"params": [W], "lr": 0.02, **settings}, {W: {}})
expected = -0.02 * 2**0.5 * newton_schulz(W.grad)          # the first direction is a multiple of the gradient
torch.testing.assert_close(W.data, expected, atol=1e-5, rtol=0)
print("largest singular value of the step / lr:", round(torch.linalg.svdvals(W.data)[0].item() / 0.02, 2), "= about the root of 6/3")

# %% [markdown]
# ## One optimizer for the whole model
#
# Which parameters get it? The argument was about maps from activations to activations. The **embedding** is no such map: its input is one token, a vector with a single 1. The most a step can do to such an input is to move one *row* by its length. So the fair step there treats each row by itself, which is about what AdamW does.
# The **head** is a map, but its outputs are logits of single tokens, some of which are hardly ever right; it, too, is left to AdamW. Biases and gains, where a model has them, are no matrices at all.
#
# `MuonAdamW` is one PyTorch optimizer whose groups say which rule is theirs; saving, loading and schedules then need no special case. Bad rates are refused by `check_groups` of lesson 02d.

# %%
#| export
MUON = {"kind": "muon", "weight_decay": 0.0, "ns_steps": 3, "ns_dtype": "float32",
        "momentum": (0.85, 0.95, 300)}      # from, to, over how many steps
ADAMW = {"kind": "adamw", "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.0}
UPDATES = {"muon": muon_update, "adamw": adamw_update_fused}


def _name(dtype: torch.dtype) -> str:
    "A dtype as a word that JSON can hold: \"float32\"."
    return str(dtype).removeprefix("torch.")


class MuonAdamW(Optimizer):
    "Muon for some groups, AdamW for the others: one object with torch's optimizer interface."

    def __init__(self,
        groups: list[dict],  # each with "params", "lr", "kind" and the settings of that kind
    ):
        super().__init__(groups, {})
        check_groups(self.param_groups)
        for group in self.param_groups: group.setdefault("initial_lr", group["lr"])

    def step(self, allowed: Tensor | None = None) -> None:
        "One update. `allowed` is a 0-d bool on the device: where False, nothing changes at all."
        for group in self.param_groups: UPDATES[group["kind"]](group, self.state, allowed)


class Muon(MuonAdamW):
    "Muon alone, for a list of matrices (Jordan et al. 2024). `UserError` for other shapes and bad rates."

    def __init__(self,
        params,                         # matrices, each (rows, cols)
        lr: float = 0.02,               # learning rate
        weight_decay: float = 0.0,      # pull towards zero, times lr
        ns_dtype: torch.dtype = torch.float32,  # of the Newton-Schulz products
    ):
        params = list(params)
        for p in params:
            if p.ndim != 2: raise UserError(f"Muon needs matrices, not a tensor of shape {tuple(p.shape)}")
        settings = {"lr": lr, "weight_decay": weight_decay, "ns_dtype": _name(ns_dtype)}
        super().__init__([MUON | settings | {"params": params}])


# %%
alone = Muon([W], lr=0.1)
W.grad = torch.eye(6, 3)
alone.step(allowed=torch.tensor(False))
torch.testing.assert_close(W.data, expected, atol=1e-5, rtol=0)            # forbidden: nothing moved
for bad in (lambda: Muon([W], lr=-0.02), lambda: Muon([torch.nn.Parameter(torch.zeros(3))])):
    try: bad()
    except UserError as e: print(e)
    else: raise AssertionError("this must be refused")


# %% [markdown]
# The rates are nanochat's first: Muon 0.02; embedding 0.2 and head 0.004 at width 768, scaled by $1/\sqrt C$, and all of them by the batch rule of lesson 02d, and by its rule for short runs where `steps` says how long the run is.

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
    steps: float = math.inf,       # updates of the whole run: a short one takes larger steps
    weight_decay: float = 0.0,     # of the matrices
    ns_steps: int = 3,             # rounds of Newton-Schulz: see `ns_rounds`
    ns_dtype: torch.dtype = torch.float32,  # bfloat16 where this machine is faster with it
) -> MuonAdamW:
    """The course's optimizer: Muon for matrices, AdamW for the rest, at nanochat's first rates.

    `UserError` for rates of zero or less, and for no rounds."""
    if ns_steps < 1: raise UserError(f"{ns_steps} rounds of Newton-Schulz: there must be at least one")
    parts, scale = model.parts(), lr_scale * batch_scale(batch_tokens) * horizon_scale(steps)
    wide = scale * width_scale(model.config.n_embd)
    muon = {"lr": matrix_lr * scale, "weight_decay": weight_decay,
            "ns_steps": ns_steps, "ns_dtype": _name(ns_dtype)}
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
# And a rival with the same three groups, AdamW everywhere.

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
print({g["kind"] for g in make_adamw(model).param_groups}, [round(g["lr"], 4) for g in make_adamw(model).param_groups])
assert {g["kind"] for g in make_adamw(model).param_groups} == {"adamw"}

# %% [markdown]
# ## The race
#
# Same model, same first weights, same batches, same schedule; only the rule for the matrices differs. A race is fair only if **each runs at its own best rate**, so sweep both first, with a factor 2 between neighbours, and wide enough that the best is not at an edge. **Predict:** which of the two is pickier about its rate?

# %%
from nanochat.optim import schedule
from nanochat.train import train

STEPS = by_tier(15, 100)
held_out = list(islice(rows(99, cut, len(DATA)), 8))

def ending(model) -> float:
    "Loss on held-out text, in nats per byte."
    with torch.no_grad(): return sum(model(x, y).item() for x, y in held_out) / len(held_out)

def race(make, seed: int = 0, steps: int = STEPS) -> tuple[float, list[float]]:
    "Held-out loss at the end, and the training loss of each step."
    model = small(seed)
    run = train(model, make(model), rows(seed), steps=steps, schedule=lambda t: schedule(t, steps, warmdown=0.6))
    losses = list({step.loss_step: step.loss for step in run}.values())       # each step's once: they come a step late
    return ending(model), losses

MAKERS = {"Muon": make_optimizer, "AdamW": make_adamw}
RATES = {"Muon": by_tier((0.02, 0.04), (0.02, 0.04, 0.08, 0.16)), "AdamW": by_tier((0.003, 0.006), (0.0015, 0.003, 0.006, 0.012))}
sweep = {name: {lr: race(lambda m: MAKERS[name](m, matrix_lr=lr)) for lr in rates} for name, rates in RATES.items()}
for name, results in sweep.items(): print(f"{name:6s}", "  ".join(f"{lr:g}: {end:.3f}" for lr, (end, _) in results.items()))
best_lr = {name: min(results, key=lambda lr: results[lr][0]) for name, results in sweep.items()}
best = {name: results[best_lr[name]] for name, results in sweep.items()}
assert best["Muon"][0] < best["AdamW"][0] + by_tier(0.3, 0.0)

# %%
fig, axes = plt.subplots(1, 2, figsize=(7.5, 2.6), layout="constrained")
for (name, results), style in zip(sweep.items(), ("o-", "s--")):
    axes[0].plot([lr / RATES[name][0] for lr in results], [end for end, _ in results.values()], style, label=name)
axes[0].set(xscale="log", xlabel=f"rate, in units of {RATES['Muon'][0]:g} (Muon) and {RATES['AdamW'][0]:g} (AdamW)", ylabel="held-out loss")
axes[0].set_xscale("log", base=2)
for (name, (end, values)), style in zip(best.items(), ("-", "--")): axes[1].plot(values, style, label=f"{name} at {best_lr[name]:g}", linewidth=1)
axes[1].set(xlabel="step", ylabel="training loss, nats per byte")
for ax in axes: ax.legend(frameon=False, fontsize=8)
figure(fig, caption="Left: held-out loss at the end for each rate. Right: the training loss at the best rate of each; one seed.",
       alt="Left: two curves that fall and rise again as the rate doubles from point to point. Muon's lies lower everywhere and is lowest at four times its smallest rate, AdamW's at twice its own. Right: both training losses fall from 5.5 to about 3 within six steps; from then on Muon's is nearly always the lower one, and the gap grows.")

# %% [markdown]
# At its best rate Muon ends 0.13 nats a byte below AdamW (2.020 and 2.150 in the stored run). A rate that is wrong by a factor of two costs Muon 0.03 below its best and 0.09 above, AdamW 0.06 and 0.04. Muon's best rate here is four times the package's 0.02, because a run of a hundred steps is over before a high rate can do harm. On the four-layer model 0.04 was the best of 0.02, 0.04 and 0.06 for 250 steps; for 800 the one run with 0.04 lost clearly to 0.02 (`benchmarks/RESULTS.md`; its head's rate was four times as high, too, which has a share in that): **a rate that a short sweep suggests is a rate for short runs.** Lesson 02d's rule says the same, 1.99 times the rate for 250 steps and 1 for 800; these races leave it out, since they look for the rate themselves.
#
# That was at equal **steps**. A step of Muon takes longer, so race at equal **seconds** as well: time both in turns, and give AdamW as many more steps as fit into Muon's time, with a schedule that lasts exactly so long. **Predict** what this does here, where a batch has only 512 tokens. (How much longer a step is depends on the batch; the formula comes below.)

# %%
from statistics import median

def step_seconds(blocks: int = by_tier(2, 6)) -> dict[str, float]:
    "Median seconds of a whole training step of each rule, in turns."
    makers = {"Muon": make_optimizer, "AdamW": make_adamw}
    runs = {name: train(m := small(), make(m), rows(0), steps=10**6, schedule=lambda t: 0.1) for name, make in makers.items()}
    took = {name: [] for name in runs}
    for _ in range(blocks):
        for name, run in runs.items(): took[name] += [r.seconds for r in islice(run, 3)]
    return {name: median(t[3:]) for name, t in took.items()}

step_s = step_seconds()
ratio = step_s["Muon"] / step_s["AdamW"]
more = round(STEPS * min(max(ratio, 1.0), 3.0))
longer = race(lambda m: make_adamw(m, matrix_lr=best_lr["AdamW"]), steps=more)[0]
print(f"a step of Muon takes {ratio:.2f} times as long here: {STEPS} steps of Muon {best['Muon'][0]:.3f}, {more} of AdamW {longer:.3f}")
assert longer < best["AdamW"][0] + 0.3

# %% [markdown]
# In the time of Muon's 100 steps AdamW makes more than 120, and comes nearer: in the stored run it is still 0.06 above. So the step that costs more wins here by the clock, too, though the batch is tiny and the price high.
#
# ### The long race
#
# A hundred steps of two layers are one thing. That a step which costs more wins by the clock is no law, and a head start is more to ask. So `benchmarks/muon_vs_adamw.py` asked the question that matters when you wait for a model: four layers, 4,096 tokens a step, on the little world with its tokenizer. AdamW gets 180 seconds, and the best of a grid of rates with matrices and embedding apart. Muon gets the package's rates as they are, and **108 seconds**, three fifths; then 180 as well. Each schedule ends when its time does. All of it takes an hour on two cores, so here is what was stored. **Predict** the three numbers' order.

# %%
found = stored_result("muon_vs_adamw.json")
runs, summary = found["runs"], found["summary"]
for name, end in summary["bpb"].items():
    print(f"{name:14s} {summary['steps'][name]:5,} steps  bits per byte of three seeds", ", ".join(f"{bpb:.3f}" for bpb in end), f" mean {summary['mean'][name]:.3f}")
print(f"entropy of this world {found['entropy_bpb']:.3f}")
assert max(summary["bpb"]["Muon for 180 s"]) < min(summary["bpb"]["AdamW"]) < min(summary["bpb"]["Muon"])

# %%
fig, axes = plt.subplots(1, 2, figsize=(7.5, 2.7), layout="constrained")
for embedding, style in ((0.1, "o-"), (0.2, "s--"), (0.4, "^:")):
    axes[0].plot(*zip(*((matrix, end) for matrix, e, end in summary["sweep"] if e == embedding)), style, label=f"embedding {embedding:g}")
axes[0].set_xscale("log", base=2)
axes[0].set_xticks((0.0015, 0.003, 0.006), ("0.0015", "0.003", "0.006"))
axes[0].set(xlabel="AdamW's rate for matrices", ylabel="held-out bits per byte")
for name, style in (("AdamW", "C1--"), ("Muon for 180 s", "C0:"), ("Muon", "C0-")):
    mean = torch.tensor([runs[f"race {name} seed {seed}"]["losses"] for seed in range(3)]).mean(0)
    axes[1].plot(torch.linspace(0, summary["seconds"][name], len(mean)), mean, style, label=name)
axes[1].set(xlabel="seconds", ylabel="training loss, nats per token", ylim=(0.6, 3))
for ax in axes: ax.legend(frameon=False, fontsize=8)
figure(fig, caption="Left: AdamW's sweep, 180 seconds each, one seed. Right: the race, mean of three seeds.",
       alt="Left: three lines over the matrix rates 0.0015, 0.003 and 0.006. The lowest place is 0.003 with an embedding rate of 0.2, at 0.447; at 0.006 all lie above 0.58. Right: for 30 seconds the three curves fall together, then AdamW's stays above both of Muon's. Muon's of 108 seconds falls fastest and ends near 0.9; that of 180 seconds ends lowest, a little below AdamW's.")

# %% [markdown]
# For the same 180 seconds Muon wins with every seed, by 0.02 and more, and more than two fifths of what AdamW left above the entropy are gone. It is also the steadier one: three seeds within 0.005, where AdamW's lie 0.05 apart. **With three fifths of the time it comes near, and is not there**: 0.472 and 0.469 in the mean, and no seed of Muon reaches AdamW's best. Nearly twice as many steps are more than the better direction makes up for.
#
# Look at *which* of AdamW's runs is its best: seed 0, the one on which its rates were chosen. Who is picked on a seed looks best on that seed. So ask of every such claim: equal steps, equal seconds or a head start, whose rates were tuned, and on which seeds?
#
# ## What published nanochat added
#
# After its first version nanochat went on refining this step. Here are its additions, each as a function of a stack (N, rows, cols) or of one matrix, so that you can try them one by one. You may skip the functions and read the table below.
#
# **Polar Express** (Amsel and others 2025). Why the same polynomial in every round? The first round should be steep, the last one precise. These five are the best possible sequence of fifth-degree polynomials for starts above 0.001, with a little safety.

# %%
POLAR = ((8.156554524902461, -22.48329292557795, 15.878769915207462), (4.042929935166739, -2.808917465908714, 0.5000178451051316),
         (3.8916678022926607, -2.772484153217685, 0.5060648178503393), (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
         (2.3465413258596377, -1.7097828382687081, 0.42323551169305323))

def polar_express(X: Tensor) -> Tensor:
    "A stack (N, rows, cols): five rounds, each with coefficients of its own."
    X = X / (1.01 * X.norm(dim=(-2, -1), keepdim=True) + 1e-6)
    for a, b, c in POLAR:
        A = X @ X.mT if X.shape[-2] <= X.shape[-1] else X.mT @ X
        B = b * A + c * A @ A
        X = a * X + (B @ X if X.shape[-2] <= X.shape[-1] else X @ B)
    return X

for name, f in (("Jordan's, five rounds", lambda X: newton_schulz(X, 5)), ("Polar Express, five", polar_express)):
    values = torch.linalg.svdvals(f(G[None]))[0]
    print(f"{name:21s} {int((values > 0.9).sum()):3d} of {len(values)} above 0.9, the largest {values[0]:.2f}, spread of those {values[values > 0.9].std():.3f}")
assert torch.linalg.svdvals(polar_express(G[None])).max() < 1.2

# %%
fig, ax = plt.subplots(figsize=(5.5, 2.6), layout="constrained")
start = torch.logspace(-4, 0, 400)
def through(s, all_coefficients):
    for a, b, c in all_coefficients: s = a * s + b * s**3 + c * s**5
    return s
ax.plot(start, through(start, [NS_COEFFICIENTS] * 5), "-", label="Jordan's, five times")
ax.plot(start, through(start / 1.01, POLAR), "--", label="Polar Express")
ax.set(xscale="log", xlabel="singular value before (share of the norm)", ylabel="after five rounds", ylim=(0, 1.3))
ax.legend(frameon=False)
figure(fig, caption="Where five rounds take a singular value: one polynomial five times, and five polynomials.",
       alt="On a logarithmic axis from 0.0001 to 1. Jordan's curve rises to 1 at about 0.0025 and then waves between 0.7 and 1.2. Polar Express "
           "is there earlier, near 0.0013, and stays between 0.86 and 1.14.")


# %% [markdown]
# It is better at its task in both respects. Whether training notices is another question.
#
# **MuonEq**: before the iteration, give all rows of the matrix the same length. **NorMuon** (Li and others 2025): after it, divide each row (of a wide matrix each column) by the running size of its past steps, as Adam does for single numbers, and restore the whole length. **Muon+** rescales the result to the exact length of an orthogonal matrix, whose squared length is the number of its directions.

# %%
def equal_rows(X: Tensor) -> Tensor:
    "MuonEq: rows of equal length, the whole matrix as long as before. (N, rows, cols)"
    size = X.norm(dim=(-2, -1), keepdim=True) / X.shape[-2] ** 0.5
    return X * size / X.norm(dim=-1, keepdim=True).clamp(min=1e-6)

def even_out(X: Tensor, memory: dict, beta: float = 0.9) -> Tensor:
    "NorMuon: divide rows (columns of wide matrices) by the running size of their steps; keep the whole length."
    axis = -1 if X.shape[-2] >= X.shape[-1] else -2
    memory["v"] = beta * memory.get("v", 0) + (1 - beta) * X.square().mean(axis, keepdim=True)
    Y = X / memory["v"].clamp(min=1e-10).sqrt()
    return Y * X.norm(dim=(-2, -1), keepdim=True) / Y.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)     # no gradient, no step

def full_length(X: Tensor) -> Tensor:
    "Muon+: as long as an orthogonal matrix of that shape."
    return X * min(X.shape[-2:]) ** 0.5 / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)

X = torch.randn(2, 6, 4, generator=generator)
Y = even_out(X, {})
print("row lengths:", [round(r, 2) for r in X[0].norm(dim=-1).tolist()], "->", [round(r, 2) for r in equal_rows(X)[0].norm(dim=-1).tolist()], "and", [round(r, 2) for r in Y[0].norm(dim=-1).tolist()])
assert torch.allclose(full_length(X).norm(dim=(-2, -1)), torch.tensor(2.0))
for Z in (Y, equal_rows(X)): torch.testing.assert_close(Z.norm(dim=(-2, -1)), X.norm(dim=(-2, -1)))


# %% [markdown]
# **Cautious weight decay** (Chen and others 2025): decay a weight only where the step moves it towards zero anyway, that is where step and weight have the same sign ($W$ is *reduced* by the step). So decay never works against what the gradient wants.

# %%
def cautious(W: Tensor, move: Tensor, lr: float, decay: float) -> Tensor:
    "The weights after a step and a decay that acts only where both pull the same way."
    return W - lr * move - lr * decay * W * (move * W >= 0)

W0, move = torch.tensor([1.0, -1.0, 1.0]), torch.tensor([0.5, 0.5, -0.5])
print("step 0.5, 0.5, -0.5 on 1, -1, 1 with decay 0.2:", [round(x, 2) for x in cautious(W0, move, 1.0, 0.2).tolist()])
assert torch.allclose(cautious(W0, move, 1.0, 0.2), torch.tensor([0.3, -1.5, 1.5]))


# %% [markdown]
# To try them in a race, build a Muon whose parts are arguments, check that with the standard parts it *is* Muon, and let everything else alone. The decay falls to zero with a cosine, as at nanochat.

# %%
class Variant(MuonAdamW):
    "The course's optimizer, with the step of the matrices rebuilt from parts."
    def __init__(self, model, before=lambda X: X, iterate=newton_schulz, after=lambda X, memory: X, decay=0.0, careful=False, lr=0.02):
        super().__init__(make_optimizer(model, matrix_lr=lr).param_groups)
        self.parts, self.decay, self.careful, self.t = (before, iterate, after), decay, careful, 0

    @torch.no_grad()
    def step(self, allowed=None):
        before, iterate, after = self.parts
        for group in self.param_groups[:2]: adamw_update_fused(group, self.state)
        group, self.t = self.param_groups[2], self.t + 1
        decay = self.decay * (1 + torch.cos(torch.tensor(torch.pi * self.t / STEPS))).item() / 2
        for p in group["params"]:
            state = _muon_state(self.state[p], p)
            D = _direction(group, state, p.grad, torch.ones(()))
            move = after(iterate(before(D[None])), state.setdefault("memory", {}))[0]
            lr = group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5
            p.copy_(cautious(p, move, lr, decay) if self.careful else p - lr * move - lr * decay * p)

a, b = small(), small()
for model, optimizer in ((a, Variant(a)), (b, make_optimizer(b))):
    for x, y in islice(rows(0), 3):
        optimizer.zero_grad()
        model(x, y).backward()
        optimizer.step()
gap = max((p - q).abs().max().item() for p, q in zip(a.parameters(), b.parameters()))
print(f"with the standard parts: largest difference of a weight {gap:.0e}")
assert gap < 1e-4

# %% [markdown]
# **Predict** which of the additions shows in a short race, and in which direction. Weights, batches and schedule are the same for all. First the race as one is tempted to run it: everybody at the same rate, 0.02.
#
# **Trap.** An addition that makes the step *longer* wins this race for a reason that has nothing to do with its idea, as long as 0.02 is below Muon's best rate, and the sweep above said that it is. So each gets three rates, and only the best of each counts.

# %%
VARIANTS = {"Muon": {}, "five rounds": {"iterate": lambda X: newton_schulz(X, 5)}, "Polar Express": {"iterate": polar_express}, "MuonEq": {"before": equal_rows}, "NorMuon": {"after": even_out},
            "Muon+": {"after": lambda X, memory: full_length(X)},
            "decay 0.2": {"decay": 0.2}, "cautious decay 0.2": {"decay": 0.2, "careful": True},
            "all together": {"iterate": polar_express, "before": equal_rows, "after": lambda X, memory: even_out(full_length(X), memory), "decay": 0.2, "careful": True}}
THREE = (0.02, 0.04, 0.08)
ends = {name: {lr: race(lambda m: Variant(m, lr=lr, **parts))[0] for lr in THREE} for name, parts in VARIANTS.items()}
print(f"{'':19s}", "  ".join(f"at {lr:5g}" for lr in THREE), "  at its best, against Muon")
for name, of in ends.items():
    print(f"{name:19s}", "  ".join(f"{end:8.3f}" for end in of.values()), f"  {min(of.values()):.3f}  {min(of.values()) - min(ends['Muon'].values()):+.3f}")
assert all(abs(min(of.values()) - min(ends["Muon"].values())) < 0.3 for of in ends.values())

# %%
fig, ax = plt.subplots(figsize=(5.5, 2.6), layout="constrained")
names = [n for n in VARIANTS if n != "Muon"]
ax.plot([ends[n][0.02] - ends["Muon"][0.02] for n in names], range(len(names)), "x", color="gray", label="all at 0.02")
ax.plot([min(ends[n].values()) - min(ends["Muon"].values()) for n in names], range(len(names)), "o", label="each at its best")
ax.axvline(0, color="gray", linewidth=0.8)
ax.set(yticks=range(len(names)), yticklabels=names, xlabel="held-out loss, difference from Muon (left is better)")
ax.invert_yaxis()
ax.legend(frameon=False, fontsize=8)
figure(fig, caption="What each addition changed in a short race: at one rate for all, and at the best rate of each; one seed.",
       alt="A row for each addition, with a cross for the race at 0.02 and a dot for the race of the best rates. Muon+ has the cross farthest to the left, at minus 0.13; at the best rates all together is farthest, at minus 0.064; MuonEq, five rounds and Polar Express follow at minus 0.030, 0.027 and 0.025, then NorMuon at minus 0.015, Muon+ at minus 0.005 and both decays at 0.")

# %% [markdown]
# At one rate Muon+ seems to win by far, and MuonEq and NorMuon to gain nothing. At the best rate of each it is another race: of Muon+'s lead of 0.13 next to nothing is left, since it came from a longer step, and MuonEq comes out ahead at 0.08. Polar Express gains 0.025, but look at the row above it: **five rounds of the old polynomial gain as much**, 0.027. What helps is the two further rounds, not the better coefficients.
#
# Now a harder question. You compared nine runs and looked at the best: some of them are ahead by luck. So the two best go on to **two seeds that had no part in choosing them**.

# %%
finalists = sorted((n for n in VARIANTS if n != "Muon"), key=lambda n: min(ends[n].values()))[:2]
again = {name: [race(lambda m: Variant(m, lr=min(ends[name], key=ends[name].get), **VARIANTS[name]), seed)[0] for seed in (1, 2)] for name in ("Muon", *finalists)}
for name, values in again.items():
    print(f"{name:19s}", "  ".join(f"seed {seed}: {end:.3f} ({end - base:+.3f})" for seed, end, base in zip((1, 2), values, again["Muon"])))
assert all(abs(end - base) < 0.3 for values in again.values() for end, base in zip(values, again["Muon"]))


# %% [markdown]
# Both gains hold: 0.04 to 0.07 nats a byte, 2 to 3%, with the same sign on every seed. Muon itself differs from seed to seed by as much, 0.05, so without running *the same seeds* for both you would hardly have seen it.
#
# **The verdict for this package.** Decay, cautious decay and Muon+ are dropped: at their best rates they gain next to nothing that this race could see. MuonEq is real here, 0.03 on the seed that chose it and 0.04 and 0.06 on two others, and still stays out of `muon_update`: one more function to read, for a gain that has been measured in two layers and a hundred steps. NorMuon, 0.015 on one seed, would cost one more tensor of state as well; on the four-layer model, in 652 steps, it ended at 0.476 bits per byte on top of three rounds, where three alone end at 0.476 too, and at 0.471 on top of five, where five alone end at 0.480; seeds differ by 0.011 (`benchmarks/RESULTS.md`). What of the two further rounds, which gain as much as Polar Express? That is the next question.

# %% [markdown]
# **How many rounds?** No round leaves the momentum as it is; each further round makes it fairer and costs the same. And how much is the better bound worth? To compare fairness and not length, give all steps full length, and let each race at its best of five rates: at equal length a step that lies in one direction is long in the spectral norm, so what suits one is too much for another. **Predict** the order of 0, 1, 2, 3 and 5 rounds, and where it stops paying.

# %%
def from_its_own_norm(X: Tensor, rounds: int) -> Tensor:
    "Version 2 for a stack (N, rows, cols): divided by the norm of X, as at nanochat."
    if X.shape[-2] > X.shape[-1]: return from_its_own_norm(X.mT, rounds).mT
    a, b, c = NS_COEFFICIENTS
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return X

def fairly(f, n: int) -> dict[float, float]:
    "Held-out loss by rate, with n rounds of f and steps of full length."
    make = lambda lr: lambda m: Variant(m, iterate=lambda X: full_length(f(X, n)), lr=lr)
    return {lr: race(make(lr))[0] for lr in by_tier((0.04,), (0.005, 0.01, 0.02, 0.04, 0.08))}

rounds = {"as it is": {0: fairly(from_its_own_norm, 0)}}
for name, f, counts in (("from the norm of X", from_its_own_norm, (1, 2, 3, 5)), ("from that of A", newton_schulz, (1, 2, 3, 5))):
    rounds[name] = {n: fairly(f, n) for n in counts}
for name, of in rounds.items(): print(f"{name:19s}", "  ".join(f"{n} rounds {min(ends.values()):.3f} at {min(ends, key=ends.get):g}" for n, ends in of.items()))
print(f"no rounds at 0.04: {rounds['as it is'][0][0.04]:.3f}")
assert min(rounds["from that of A"][3].values()) < min(rounds["as it is"][0].values()) + 0.3


# %% [markdown]
# Every round pays, at the best rate of each: 2.15, 2.11, 2.07, 2.02 and 1.97 for 0, 1, 2, 3 and 5 rounds from the norm of $A$. This is the cleanest evidence in the lesson for its first idea, and look how it could have been spoiled: at 0.04 for all, no rounds would have ended at 2.32, and half of the gap to five would have been the rate's. The better bound shows little in so short a run: 0.02 after two rounds and after three, nothing after one or five. And the table says: take five.
#
# **Then why three?** Because a hundred steps of two layers are one thing. On the four-layer model and in 652 steps, which is what you wait for, three rounds from the norm of $A$ ended at 0.476 bits per byte and five from the norm of $X$ at 0.480 (one seed; seeds differ by 0.011): no difference. Early on, when one direction towers over the rest, two further rounds bring more of them up, and a short race sees nothing but early on. On the smallest model, two layers of 128, something of the difference remains in long runs: with three seeds of 1,400 steps five rounds were ahead by 5%, ahead by 1%, and behind by a third of a percent.
#
# So on a laptop the package makes three, for less than half the price of five plain ones, and spends what that saves on more steps. `ns_steps` of `make_optimizer` is the dial, and `ns_rounds` below says when five cost nothing. **A number that a short race suggests is a number for short runs**: you met this with the rate, and here it is again.
#
# ## At scale: what it costs
#
# Count the products for an $n \times m$ matrix, $n < m$, three rounds. The first $A$ and the last $QX$ are $2n^2m$ operations each. Everything between is $n \times n$, $2n^3$ a product: three times $A^2$, twice $PAP$ with two products, twice $PQ$. Together $4n^2m + 18n^3$. A square matrix has three products in each round, together $18n^3$.
# Training on a batch of $B$ tokens costs $6nmB$ for the same matrix. For a square one the ratio is $18n^3/6n^2B = 3\,n/B$. **Derive** the ratio for the MLP's matrices, $m = 4n$, before you look.

# %%
def matrix_flops(n: int, m: int) -> int:
    "Operations of three rounds of Newton-Schulz for an n by m matrix, n at most m."
    return 18 * n**3 + (4 * n * n * m if n < m else 0)

def ns_flops(model) -> int:
    "The same for all matrices in the blocks."
    return sum(matrix_flops(*sorted(p.shape)) for p in model.parts()["matrices"])

with torch.device("meta"): sizes = {d: GPT(config_for(d, V, t, head_dim=h)) for d, V, t, h in ((4, 1024, 256, 64), (8, 1024, 256, 64), (20, 65536, 2048, 128), (32, 65536, 2048, 128))}
for d, tokens in ((4, 4096), (8, 4096), (20, 2**19), (32, 2**19)):
    training = sizes[d].flops_per_token() * tokens
    print(f"d{d}, {tokens:,} tokens a step: Newton-Schulz {ns_flops(sizes[d]):.1e} operations, training {training:.1e}: {ns_flops(sizes[d]) / training:.1%} more")
assert ns_flops(sizes[20]) == 20 * (4 * 18 + 2 * 34) * 1280**3 and ns_flops(sizes[20]) / (sizes[20].flops_per_token() * 2**19) < 0.01

from torch.utils.flop_counter import FlopCounterMode

for n, m in ((32, 128), (32, 32)):
    with FlopCounterMode(display=False) as counter: newton_schulz(torch.randn(1, n, m))
    print(f"{n} by {m}: the formula says {matrix_flops(n, m):,}, and PyTorch counted {counter.get_total_flops():,} while it ran")
    assert counter.get_total_flops() == matrix_flops(n, m)


# %% [markdown]
# ($m = 4n$: $34n^3$ against $24n^2B$, so $1.4\,n/B$. Five rounds of the plain loop, $5(4n^2m + 2n^3)$, would be $5\,n/B$ and $3.75\,n/B$: more than twice as much in all.) On eight GPUs it is free: under 1%, and shared among them as in lesson 03b. On a laptop at depth 4 it is a tenth of the arithmetic, so there
# it should run in bf16 where the machine can, batched, and on the smaller side, as ours does. The larger side would cost many times as much on the MLP's matrices.
#
# **So how many rounds?** In our form five take $30n^3$ for a square matrix and $8n^2m + 28n^3$ for the others, for a whole block $1.4\,n/B$ of the training more than three. From $B = 140\,n$ on that is one percent or less. And large batches are where they pay: so many tokens make few steps, and few steps are a short run. With 65,536 tokens a step and 122 steps
# three rounds end 6% (depth 2) and 11% (depth 4) higher than five (`benchmarks/RESULTS.md`, one seed). So the recipes ask this function:

# %%
#| export
def ns_rounds(
    n_embd: int,        # width of the model
    batch_tokens: int,  # tokens per update, all ranks together
) -> int:
    "Rounds of Newton-Schulz: five where the last two cost 1% of a step's operations or less, else three."
    return 5 if batch_tokens >= 140 * n_embd else 3


# %%
for n, B in ((256, 4096), (256, 2**16), (1280, 2**19)): print(f"width {n:,}, {B:,} tokens a step: {ns_rounds(n, B)} rounds")
for n, m in ((32, 128), (32, 32)):
    with FlopCounterMode(display=False) as counter: newton_schulz(torch.randn(1, n, m), 5)
    assert counter.get_total_flops() == (8 * n * n * m + 28 * n**3 if n < m else 30 * n**3)
assert ns_rounds(256, 4096) == 3 and ns_rounds(1280, 2**19) == 5

# %% [markdown]
# How long does the whole step take *here*?

# %%
from time import perf_counter

def seconds(f, n: int = by_tier(3, 8)) -> float:
    "Median of n calls."
    took = []
    for _ in range(n):
        began = perf_counter()
        f()
        took.append(perf_counter() - began)
    return sorted(took)[n // 2]

model, (x, y) = small(), next(rows(0))
optimizer, rival = make_optimizer(model), make_adamw(small())
def forward_and_backward():
    optimizer.zero_grad()
    model(x, y).backward()
forward_and_backward()
for p, q in zip(model.parameters(), [q for g in rival.param_groups for q in g["params"]]): q.grad = torch.randn_like(q)
work, muon_s, adamw_s = seconds(forward_and_backward), seconds(optimizer.step), seconds(rival.step)
print(f"this machine, 2 layers, {ROWS * T} tokens a step: forward and backward {1000 * work:.1f} ms, Muon {1000 * muon_s:.1f} ms, AdamW {1000 * adamw_s:.1f} ms; Muon's share of a step {muon_s / (work + muon_s):.0%}")
assert muon_s > 0

# %% [markdown]
# With 512 tokens a step the share is several times what it would be with 4,096; the formula told you so. On a machine with bf16 units a four-layer model with 4,096 tokens was measured at 22 ms for clipping and the whole optimizer, of 168 ms a step (`benchmarks/RESULTS.md`).
#
# **Memory.** Muon keeps one number per weight where AdamW keeps two. For the 393 million block weights of the 20-layer model that saves 1.6 GB in fp32.
#
# ## Recap
#
# 1. A gradient matrix is dominated by a few directions. Under the spectral norm the steepest step keeps directions and sets all strengths to 1.
# 2. Odd polynomials act on singular values alone. A few rounds of a steep one lift the small ones up to 41 times (three rounds) or 485 times (five), with products only.
# 3. Normalise each matrix by a bound of its own; work on the smaller side; follow $A = XX^\top$ where $X$ is longer, but not for long; stack equal shapes; bf16 will do.
# 4. Momentum first, then orthogonalise; the factor $\sqrt{\text{rows}/\text{cols}}$ for tall matrices; AdamW for embedding and head.
# 5. It costs one and a half to three times $n/B$ of a training step: free for large batches, not for small ones. Refinements are kept or dropped by measurement.
#
# ## Quiz
#
# <details><summary>1. Does Muon's step get smaller when the gradient gets smaller?</summary>No: strengths are set to 1, so only the rate decides. That is why the schedule must bring the rate down.</details>
# <details><summary>2. Then why clip gradients at all?</summary>The direction mixes past gradients. One huge gradient would drown the others in the momentum, and rule the next dozen steps.</details>
# <details><summary>3. You store queries, keys and values as one (3C, C) matrix. Is Muon's step the same as for three (C, C) ones?</summary>No. Orthogonalised together, the three share 1.0 of strength per input direction; apart, each has its own. The shape factor differs, too. It is another optimizer.</details>
# <details><summary>4. Why is the classic polynomial not used, though it converges to exactly 1?</summary>It multiplies small values by 1.5 a round; from 0.01 it would need about twelve rounds.</details>
# <details><summary>5. A matrix has exactly zero gradient. What does the iteration return?</summary>Zero: $A$ is 0, and 0 divided by (0 + 1e-18) is 0. Without the small number it would be NaN, and with a much smaller one a *nearly* zero gradient would be: the entries of its $A$ are so small that their squares are 0 in fp32, the norm is 0, and the polynomial runs away.</details>
# <details><summary>6. At 4,096 tokens a step, would you use Muon at depth 20?</summary>The iteration would cost about three fifths of the training's arithmetic (1.9 n/B over all matrices of a block, with n = 1280). Take larger batches, or fewer rounds, or AdamW.</details>
#
# ## Papers
#
# Jordan and others 2024, *Muon: an optimizer for hidden layers in neural networks* · Bernstein and Newhouse 2024, *Old optimizer, new norm* (steepest descent under norms) · Björck and Bowie 1971 and Higham 2008, *Functions of matrices* (the iteration) · Delattre and others 2023, *Efficient bound of Lipschitz constant for convolutional layers by Gram iteration* (the tighter bound) · Zhang, Amsel, Chen and Dao 2026, *Gram Newton-Schulz* (following $A$, and starting anew) · Amsel and others 2025, *The Polar Express* · Li and others 2025, *NorMuon* · *MuonEq: balancing before orthogonalization* (arXiv 2603.28254) and *Muon+* (arXiv 2602.21545), both 2026 · Chen and others 2025, *Cautious weight decay* · Liu and others 2025, *Muon is scalable for LLM training*.
# The groups, rates and momentum schedule are those of Karpathy's nanochat.
#
# **Exercises:** `make start NN=04`. **Next:** `04a_tasks`.
#
# ## What your package can do now
#
# Everything so far in one cell: the world, the tokenizer, packed rows, a GPT, Muon, the loop, bits per byte, and a sentence.

# %%
from nanochat.data import Loader, encode_documents, pack_documents
from nanochat.microworld import corpus
from nanochat.sample import make_sampler
from nanochat.tokenizer import Tokenizer
from nanochat.train import evaluate_bpb

docs = [doc.text for doc in corpus(400_000)]
tokenizer = Tokenizer.train(docs, 512)
packed = pack_documents(encode_documents(tokenizer, docs), T)
model, steps = GPT(config_for(2, tokenizer.vocab_size, T, head_dim=64)), by_tier(10, 60)
before = evaluate_bpb(model, [(packed.x[:32].long(), packed.y[:32].long())], tokenizer.token_bytes())["bpb"]
for record in train(model, make_optimizer(model), Loader(packed, ROWS, seed=0), steps=steps, schedule=lambda t: schedule(t, steps, warmdown=0.6)): pass
after = evaluate_bpb(model, [(packed.x[:32].long(), packed.y[:32].long())], tokenizer.token_bytes())["bpb"]
said = make_sampler(model, [tokenizer.bos])([[tokenizer.bos, *tokenizer.encode("One day")]], max_new_tokens=24, temperature=0.7)[0]
print(f"bits per byte {before:.2f} -> {after:.2f} in {steps} steps\nOne day{tokenizer.decode(said.tokens)}")
assert after < before
