# %% [markdown]
# # 02d. Optimization: from a step downhill to AdamW
#
# **Promise.** You will write the optimizer that trains the embedding and the head of every model in this course, from the first
# equation to a tested class, and you will know what each of its numbers is for.
#
# After this lesson you can
#
# * say why plain gradient descent crawls, and what momentum and Adam each repair;
# * write AdamW from its equations and prove it equal to PyTorch's;
# * draw a learning-rate schedule and clip a gradient without making the device wait;
# * suppress a bad update without asking the device whether it was bad.
#
# You need lesson 02a. Reading: 25 minutes. Doing: 30 minutes. Computing: seconds.

# %%
#| default_exp optim

# %%
#| export
import torch
from torch import Tensor
from torch.optim.adamw import adamw

# %% [markdown]
# ## A valley that plain descent cannot walk
#
# A loss is a landscape, the gradient points uphill, so step the other way: $w \leftarrow w - \eta\, g$. That is all of gradient
# descent; $\eta$ is the learning rate. Try it on the simplest landscape that is not round: steep across, flat along.

# %%
CURVATURE = torch.tensor([100.0, 1.0])                    # steep in the first direction, flat in the second

def valley(w: Tensor) -> Tensor:
    "Half the curvature times the square, summed: lowest at zero."
    return (CURVATURE * w**2).sum() / 2

def walk(rule, steps: int = 60) -> Tensor:
    "Places that an update rule visits, from (1, 1): (steps + 1, 2)."
    w, memory, path = torch.tensor([1.0, 1.0]), {}, [torch.tensor([1.0, 1.0])]
    for t in range(1, steps + 1):
        w = w - rule(CURVATURE * w, t, memory)            # the gradient of the valley is curvature times w
        path.append(w)
    return torch.stack(path)

for lr in (0.019, 0.021):
    end = walk(lambda g, t, memory: lr * g)[-1]
    print(f"lr {lr}: after 60 steps at ({end[0]:9.3f}, {end[1]:.3f})")
assert walk(lambda g, t, memory: 0.021 * g)[-1, 0].abs() > 100 and walk(lambda g, t, memory: 0.019 * g)[-1, 1] > 0.3


# %% [markdown]
# With 0.021 the steep direction explodes. With 0.019 it is fine, and the flat direction has only gone two thirds of the way. Both
# follow from one line. In a direction of curvature $c$ the step is $w \leftarrow (1 - \eta c)\,w$. It shrinks only if
# $|1 - \eta c| < 1$, that is $\eta < 2/c$. The steepest direction sets the limit, 0.02 here, and the flattest pays for it.
# Real losses have curvatures that differ by factors of thousands.
#
# ## Momentum: remember where you were going
#
# Across the valley the gradient flips sign each step; along it, it does not. So average the last gradients: what flips cancels,
# what persists stays. $m \leftarrow \beta m + (1-\beta) g$ and step by $m$. With $\beta = 0.9$ the average reaches back about
# $1/(1-\beta) = 10$ steps.

# %%
def momentum(g: Tensor, t: int, memory: dict, lr: float = 0.1, beta: float = 0.9) -> Tensor:
    "The move of momentum: a step along the average of past gradients."
    memory["m"] = beta * memory.get("m", 0) + (1 - beta) * g
    return lr * memory["m"]

end = walk(momentum)[-1]
print(f"momentum, lr 0.1: after 60 steps at ({end[0]:.3f}, {end[1]:.3f})")
assert end.abs().max() < 0.2


# %% [markdown]
# A learning rate five times over the old limit, and both directions arrive.
#
# ## Adam: every number has its own scale
#
# Momentum still uses one learning rate for all. Adam (Kingma and Ba, 2015) divides each coordinate by the typical size of its own
# gradient: $v \leftarrow \beta_2 v + (1-\beta_2) g^2$, and the step is $\eta\, m / \sqrt v$. Multiply the loss by 1,000 and nothing
# changes. A word that is rarely seen gets steps as large as a frequent one. That is why embeddings like Adam.
#
# **One correction.** $m$ and $v$ start at zero, so the first averages are too small. If all gradients were equal to $g$, then after
# $t$ steps $m = (1 - \beta^t)\,g$: the weights of a geometric series. So divide by $1 - \beta^t$. Check it on the first step, by
# hand, with $g = 2$ and $\beta_1 = 0.9$: $m = 0.2$, divided by $0.1$ gives 2. Likewise $v$ gives 4, and the step is
# $\eta \cdot 2/\sqrt 4 = \eta$. **Adam's first step has length $\eta$ in every coordinate**, whatever the gradient.

# %%
def adam(g: Tensor, t: int, memory: dict, lr: float = 0.1, b1: float = 0.9, b2: float = 0.95, eps: float = 1e-8) -> Tensor:
    "The move of Adam: averaged gradient over its typical size, both corrected for their start at zero."
    memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
    memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g**2
    return lr * memory["m"] / (1 - b1**t) / ((memory["v"] / (1 - b2**t)).sqrt() + eps)

path = walk(adam)
print("first step:", (path[0] - path[1]).tolist(), "  after 60 steps:", path[-1].tolist())
assert torch.allclose(path[0] - path[1], torch.full((2,), 0.1)) and torch.allclose(path[:, 0], path[:, 1], atol=1e-4)

# %% [markdown]
# The two coordinates do the *same* walk, although one is a hundred times steeper. The figure shows the three.

# %%
import matplotlib.pyplot as plt

from nanochat.workshop import figure

fig, axes = plt.subplots(1, 3, figsize=(8, 2.6), layout="constrained", sharey=True)
rules = {"descent, lr 0.019": lambda g, t, memory: 0.019 * g, "momentum, lr 0.1": momentum, "Adam, lr 0.1": adam}
for ax, (name, rule) in zip(axes, rules.items()):
    path = walk(rule, 30)
    ax.plot(path[:, 1], path[:, 0], "o-", markersize=3, linewidth=1)
    ax.plot(0, 0, "k*")
    ax.set(title=name, xlabel="flat direction", ylim=(-1.1, 1.1), xlim=(-0.5, 1.1))
axes[0].set_ylabel("steep direction")
figure(fig, caption="Thirty steps of three rules from (1, 1); the star is the lowest point.",
       alt="Three panels. Descent zigzags across the steep direction and covers under half of the flat one. Momentum "
           "swings wide and then closes in. Adam goes straight along the diagonal, through the star and past it.")


# %% [markdown]
# ## AdamW: decay that is really decay
#
# Weight decay pulls each weight towards zero: $w \leftarrow w - \eta\lambda w$. If you add $\lambda w$ to the gradient instead, Adam
# divides it by $\sqrt v$, and weights with large gradients are hardly decayed at all. AdamW (Loshchilov and Hutter, 2019)
# keeps the two apart. nanochat's first models use no decay for embedding and head, but the term costs one line.
#
# ## The exported form
#
# Three things are new in it. It works on *lists* of tensors (`torch._foreach_...`): one call for many parameters. It keeps its
# state in fp32. And it takes `allowed`, a number on the device that says whether this update may happen. A gradient with a NaN
# must not touch the weights, but asking "is it finite?" in Python makes the CPU wait for the GPU at every step. So we do not
# ask: we compute with the answer. First the gradients. A forbidden one is emptied, because $0 \cdot \text{NaN}$ is still NaN.

# %%
#| export
def with_gradient(
    params,                    # parameters of one group
    allowed: Tensor | None,    # 0-d bool on the device; where False, the gradients are emptied
) -> tuple[list, list[Tensor]]:  # (parameters that have a gradient, those gradients)
    "The parameters that will move. Empties forbidden gradients without asking the device."
    params = [p for p in params if p.grad is not None]
    if allowed is not None:
        forbidden = ~allowed
        for p in params: p.grad.masked_fill_(forbidden, 0.0)
    return params, [p.grad for p in params]


# %%
w = torch.nn.Parameter(torch.zeros(2))
w.grad = torch.tensor([float("nan"), 1.0])
assert with_gradient([w], torch.tensor(True))[1][0].isnan().any()
with_gradient([w], torch.tensor(False))
print("emptied:", w.grad.tolist(), "  while 0 * nan =", 0 * float("nan"))
assert w.grad.tolist() == [0, 0]


# %% [markdown]
# Now the update. Where `one` is 0 instead of 1, the memory is multiplied by 1 instead of $\beta$, and the move by 0: nothing moves,
# bit for bit.

# %%
#| export
def _adamw_state(state: dict, p: Tensor) -> dict:
    "The two moments and the step counter of one parameter, made when first needed."
    if not state:
        state["step"] = torch.zeros((), device=p.device)
        state["exp_avg"] = torch.zeros_like(p, dtype=torch.float32)
        state["exp_avg_sq"] = torch.zeros_like(p, dtype=torch.float32)
    return state


@torch.no_grad()
def adamw_update(
    group: dict,                    # params, lr, betas, eps, weight_decay
    state: dict,                    # the optimizer's state, by parameter
    allowed: Tensor | None = None,  # 0-d bool on the device; where False, nothing moves
) -> None:
    """One AdamW step of a group: decoupled decay, bias correction, then eps.

    m <- b1 m + (1-b1) g;  v <- b2 v + (1-b2) g^2;  M = m / (1-b1^t);  V = v / (1-b2^t);
    w <- w - lr (M / (sqrt(V) + eps) + wd w)  (Loshchilov and Hutter 2019, algorithm 2)."""
    params, grads = with_gradient(group["params"], allowed)
    if not params: return
    one = torch.ones((), device=params[0].device) if allowed is None else allowed.float()
    (b1, b2), lr = group["betas"], group["lr"]
    states = [_adamw_state(state[p], p) for p in params]
    t, m, v = ([s[k] for s in states] for k in ("step", "exp_avg", "exp_avg_sq"))
    torch._foreach_add_(t, one)
    counts = [n.clamp(min=1) for n in t]          # still 0 if the very first step is not allowed
    torch._foreach_mul_(m, 1 - (1 - b1) * one)    # 1, not b1, where the step is not allowed
    torch._foreach_add_(m, grads, alpha=1 - b1)
    torch._foreach_mul_(v, 1 - (1 - b2) * one)
    torch._foreach_addcmul_(v, grads, grads, value=1 - b2)
    size = torch._foreach_sqrt(v)
    torch._foreach_div_(size, [(1 - b2**n).sqrt() for n in counts])
    torch._foreach_add_(size, group["eps"])
    moves = torch._foreach_div(m, size)
    torch._foreach_mul_(moves, [lr * one / (1 - b1**n) for n in counts])
    torch._foreach_mul_(params, 1 - lr * group["weight_decay"] * one)
    torch._foreach_sub_(params, moves)


# %%
w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
w.grad = torch.tensor([100.0, 1.0])
group, state = {"params": [w], "lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}, {w: {}}
adamw_update(group, state, allowed=torch.tensor(True))
print("after one step:", [round(x, 6) for x in w.tolist()])
assert torch.allclose(w, torch.tensor([0.9, 0.9]))                     # both moved by lr, as derived
adamw_update(group, state, allowed=torch.tensor(False))
assert torch.allclose(w, torch.tensor([0.9, 0.9])) and state[w]["step"] == 1


# %% [markdown]
# Each of those lines walks once through all weights, and memory is slow. PyTorch has the same update in one walk. Its `found_inf` is your `allowed`, turned round.

# %%
#| export
@torch.no_grad()
def adamw_update_fused(
    group: dict,                    # as for `adamw_update`
    state: dict,                    # as for `adamw_update`
    allowed: Tensor | None = None,  # 0-d bool on the device; where False, nothing moves
) -> None:
    "The same as `adamw_update`, in one walk through memory (torch's fused kernel)."
    params = [p for p in group["params"] if p.grad is not None]
    if not params: return
    states = [_adamw_state(state[p], p) for p in params]
    t, m, v = ([s[k] for s in states] for k in ("step", "exp_avg", "exp_avg_sq"))
    bad = None if allowed is None else (~allowed).float()
    adamw(params, [p.grad for p in params], m, v, [], t, fused=True, amsgrad=False, maximize=False,
          grad_scale=None, found_inf=bad, lr=group["lr"], beta1=group["betas"][0],
          beta2=group["betas"][1], eps=group["eps"], weight_decay=group["weight_decay"])


# %%
ws = [torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2)]
states = [{w: {}} for w in ws]
for step, allowed in enumerate((False, True, True, False, True)):
    for w, kept, update in zip(ws, states, (adamw_update, adamw_update_fused)):
        w.grad = torch.tensor([0.3 - step, float("inf") if not allowed else 1.0])
        update(group | {"params": [w], "weight_decay": 0.1}, kept, allowed=torch.tensor(allowed))
print("both forms:", *(w.tolist() for w in ws))
torch.testing.assert_close(*ws)
assert all(kept[w]["step"] == 3 for w, kept in zip(ws, states))        # two of five were not allowed


# %% [markdown]
# The class around it only keeps the groups and the state, in the form every PyTorch tool expects.

# %%
#| export
class AdamW(torch.optim.Optimizer):
    "AdamW in fp32 as a torch optimizer, for parameters or for torch's list of groups."

    def __init__(self,
        params,                            # parameters, or torch's list of group dicts
        lr: float = 1e-3,                  # learning rate
        betas: tuple = (0.9, 0.95),        # memory of the gradient, and of its square
        eps: float = 1e-8,                 # keeps the division finite
        weight_decay: float = 0.0,         # pull towards zero, times lr
    ):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
        for group in self.param_groups: group.setdefault("initial_lr", group["lr"])

    def step(self, allowed: Tensor | None = None) -> None:
        "One update. `allowed` is a 0-d bool on the device: where False, nothing changes at all."
        for group in self.param_groups: adamw_update(group, self.state, allowed)


# %% [markdown]
# **Check it** against an independent opinion: PyTorch's own AdamW, over fifty steps of a small network.

# %%
import copy
import torch.nn.functional as F

torch.manual_seed(0)
ours = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
theirs = copy.deepcopy(ours)
settings = dict(lr=0.01, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.1)
a, b = AdamW(ours.parameters(), **settings), torch.optim.AdamW(theirs.parameters(), **settings)
for _ in range(50):
    x, y = torch.randn(32, 8), torch.randint(3, (32,))
    for model, optimizer in ((ours, a), (theirs, b)):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
gap = max((p - q).abs().max().item() for p, q in zip(ours.parameters(), theirs.parameters()))
print(f"largest difference of a weight after 50 steps: {gap:.0e}")
assert gap < 1e-6

# %% [markdown]
# And the promise about bad gradients: poison them, forbid the step, compare every weight.

# %%
before = [p.clone() for p in ours.parameters()]
for p in ours.parameters(): p.grad.fill_(float("nan"))
a.step(allowed=torch.tensor(False))
assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), before))
print("all weights as before")

# %% [markdown]
# **Trap: where epsilon goes.** Published code has shipped $m/(\sqrt v + \epsilon)$ with the bias correction multiplied on afterwards. That
# is *almost* the same, and no test of the loss will notice. But the correction then enlarges $\epsilon$ too: by
# $1/\sqrt{1-\beta_2^t}$, which is 4.5 at the first step with $\beta_2 = 0.95$. For gradients near $\epsilon$ the steps differ:

# %%
g, b1, b2, eps = 1e-8, 0.9, 0.95, 1e-8
m, v = (1 - b1) * g, (1 - b2) * g**2
right = m / (1 - b1) / ((v / (1 - b2)) ** 0.5 + eps)
wrong = (1 - b2) ** 0.5 / (1 - b1) * m / (v**0.5 + eps)
print(f"first step, in units of lr: {right:.3f} as in the paper, {wrong:.3f} with epsilon inside")
assert right / wrong > 2


# %% [markdown]
# A factor of 2.7, only where gradients are tiny, only in early steps, and it differed between one GPU (PyTorch's fused form) and eight (own code).
#
# ## The schedule
#
# A large rate travels far, a small one settles. So hold the rate, and let it fall at the end. Every group of parameters has its own
# base rate; the schedule multiplies them all. It counts from step 0, and the last step still moves: a step with
# rate 0 would be a forward and a backward pass for nothing.

# %%
#| export
def schedule(
    step: int,              # updates done so far: 0 for the first update, steps - 1 for the last
    steps: int,             # updates in the whole run
    warmup: float = 0.0,    # share of the run over which the rate rises
    warmdown: float = 0.5,  # share of the run over which it falls, at the end
    final: float = 0.0,     # what it falls towards, as a share of the full rate
) -> float:                 # multiplies every group's own learning rate
    "Learning-rate multiplier: a linear rise, a plateau at 1, a linear fall; never quite 0."
    up, down = round(warmup * steps), round(warmdown * steps)
    if step < up: return (step + 1) / up
    if step <= steps - down: return 1.0
    left = (steps - step) / down                    # from 1 to 1/down
    return left + (1 - left) * final


# %%
multipliers = [schedule(t, 8, warmup=0.25, warmdown=0.5) for t in range(8)]
print(multipliers)
assert multipliers == [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25]

# %%
fig, ax = plt.subplots(figsize=(5, 2.2), layout="constrained")
for style, label, shape in (("-", "laptop: fall 60%", dict(warmdown=0.6)), ("--", "nanochat's first: fall 20%", dict(warmdown=0.2)),
                            (":", "rise 10%, fall to a tenth", dict(warmup=0.1, warmdown=0.5, final=0.1))):
    ax.plot([schedule(t, 200, **shape) for t in range(200)], style, label=label)
ax.set(xlabel="step", ylabel="multiplier", ylim=(0, 1.05))
ax.legend(frameon=False, fontsize=8)
figure(fig, caption="Three learning-rate schedules of 200 steps.",
       alt="Three curves: one flat at 1 until step 80 and then a straight line to 0, one flat until step 160 and then down "
           "to 0, one rising over the first 20 steps and falling from step 100 to a tenth.")


# %% [markdown]
# ## Clipping
#
# Sometimes a batch has a gradient ten times longer than usual. Shorten it, and keep its direction. *All* gradients together are one
# long vector: if you clipped tensor by tensor you would turn the direction, because only the long ones would shrink.

# %%
#| export
@torch.no_grad()
def clip_by_global_norm(
    params,           # parameters whose gradients are scaled in place
    max_norm: float,  # the length that all gradients together may have
) -> Tensor:          # 0-d, the length before clipping; stays on the device
    """Shorten the gradient, seen as one long vector, to at most `max_norm`.

    Never waits for the device. `ValueError` when there is no gradient. (Pascanu et al. 2013.)"""
    grads = [p.grad for p in params if p.grad is not None]
    if not grads: raise ValueError("no parameter has a gradient; call backward() first")
    norm = torch.stack(torch._foreach_norm(grads)).norm()
    torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


# %%
w.grad = torch.tensor([3.0, 4.0])
length = clip_by_global_norm([w], 1.0)
print("length before:", length.item(), " after:", [round(g, 3) for g in w.grad.tolist()])
assert length == 5 and torch.allclose(w.grad, torch.tensor([0.6, 0.8]))
clip_by_global_norm([w], 10.0)
assert torch.allclose(w.grad, torch.tensor([0.6, 0.8]))                # short enough: left alone


# %% [markdown]
# It returns a tensor, not a number: reading it as a number is the wait that we avoid. With several processes, average first, clip then:
# a project once clipped on each GPU before averaging, and
# eight different shortenings of the same step were mixed.
#
# ## The learning-rate rule
#
# Which base rate? Two rules carry a rate from one size to another. **Width**: embedding and head take steps that shrink like
# $1/\sqrt C$; nanochat found its rates at width 768 and scales from there. **Batch**: a batch four times larger has half
# the noise, so it can bear a step twice as large, $\sqrt B$. That holds upwards. Extended downwards from nanochat's 524,288 tokens to a
# laptop's 4,096, it would divide the rate by 11, and a measured run ended at 0.43 bits per byte instead of 0.23. So ours is constant below.

# %%
#| export
def width_scale(
    n_embd: int,  # width of the model, C
) -> float:       # multiplies the base rates of embedding and head
    "Wider models take smaller steps in embedding and head: (C / 768) ** -0.5."
    return (n_embd / 768) ** -0.5


def batch_scale(
    tokens: int,  # tokens per update, all ranks together
) -> float:       # multiplies every learning rate
    """Larger batches allow larger steps: sqrt(tokens / 524,288) above 524,288, constant below.

    Extended below, the root is far too timid: at 4,096 tokens it would divide the rate by 11."""
    return max(1.0, tokens / 524_288) ** 0.5


# %%
for depth in (4, 12, 20, 32): print(f"d{depth}: width {64 * depth}, rates of embedding and head times {width_scale(64 * depth):.3f}")
assert width_scale(768) == 1 and round(width_scale(1280), 6) == 0.774597
assert batch_scale(4096) == batch_scale(2**19) == 1 and batch_scale(2**21) == 2

# %% [markdown]
# "Constant below" is one measured point, not a law. When you change the batch on your machine, try two rates.
#
# **At scale.** AdamW stores two fp32 numbers per weight. For the embedding and head of the 20-layer model, 168 million weights, that
# is 1.3 GB. Lesson 03b shares it among the GPUs, and lesson 04 halves it for all other weights.
#
# ## Recap
#
# * The steepest direction limits the rate of plain descent; the flattest pays.
# * Momentum averages away what flips. Adam gives each number its own scale. AdamW decays the weight, not the gradient.
# * Bias correction divides by $1-\beta^t$; epsilon is added after it.
# * A bad update is suppressed by arithmetic on the device, and nobody waits.
# * Clip the whole gradient as one vector, after averaging.
#
# **Quiz.** *You multiply the loss by 10. What changes with SGD, what with Adam?* SGD's steps are ten times longer. Adam's are the same,
# unless the gradients are as small as epsilon. *Why not warm up?* nanochat's matrices use Muon (lesson 04), whose steps have a
# fixed size from the start, and Adam's first step is bounded by the rate. A warm-up is available, and often not needed.
#
# **Papers.** Kingma and Ba 2015 (Adam), Loshchilov and Hutter 2019 (AdamW), Pascanu, Mikolov and Bengio 2013 (clipping).
