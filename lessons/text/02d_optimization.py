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
# * draw a learning-rate schedule, and say what warm-up and warm-down are each for;
# * clip a gradient, and suppress a bad update, without making the device wait;
# * carry a learning rate from one width and one batch to another, and say where the rule stops.
#
# You need lesson 02a. Reading: 35 minutes. Doing: 30 minutes. Computing: seconds.

# %%
#| default_exp optim

# %%
#| export
import math

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from nanochat.workshop import UserError

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
# **Check it by hand.** At (1, 1) the gradient is (100, 1). With $\eta = 0.019$ the next place is $(1 - 1.9,\ 1 - 0.019) = (-0.9,\ 0.981)$: across the
# valley we jumped over the bottom and almost as far up again; along it we hardly moved.

# %%
two = walk(lambda g, t, memory: 0.019 * g, steps=2)
print("places:", [[round(x, 3) for x in place] for place in two.tolist()])
assert torch.allclose(two[1], torch.tensor([-0.9, 0.981]))


# %% [markdown]
# ## Momentum: remember where you were going
#
# Across the valley the gradient flips sign each step; along it, it does not. So average the last gradients: what flips cancels,
# what persists stays. $m \leftarrow \beta m + (1-\beta) g$ and step by $m$. Unrolled, $m = (1-\beta)\sum_k \beta^k g_{t-k}$: a gradient that is
# $k$ steps old still counts $\beta^k$. With $\beta = 0.9$ the average reaches back about $1/(1-\beta) = 10$ steps.
#
# **Predict, then run:** the old limit for the rate was 0.02. Does momentum bear 0.1?

# %%
def momentum(g: Tensor, t: int, memory: dict, lr: float = 0.1, beta: float = 0.9) -> Tensor:
    "The move of momentum: a step along the average of past gradients."
    memory["m"] = beta * memory.get("m", 0) + (1 - beta) * g
    return lr * memory["m"]

series = [1.0, -1.0, 1.0, -1.0]                            # a gradient that flips, and one that stays
flips, stays = {}, {}
for g in series: momentum(torch.tensor(g), 1, flips); momentum(torch.tensor(1.0), 1, stays)
print(f"after 4 gradients: m = {flips['m']:+.3f} where they flip, {stays['m']:+.3f} where they stay")
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
# Adam passes the star: how steep the valley is says nothing to it, so its steps do not shrink as the bottom comes near, only when its averaged gradient turns round. Something else must shorten them at the end. Keep that in mind for the schedule.
#
# ### Does the correction matter?
#
# Without it the first step is $\eta\,(1-\beta_1)\,g / \sqrt{(1-\beta_2)\,g^2} = \eta\,(1-\beta_1)/\sqrt{1-\beta_2}$. **Predict** its size for
# $\beta_1 = 0.9$ and $\beta_2 = 0.999$, Adam's textbook values, before you run the cell.

# %%
def uncorrected(g: Tensor, t: int, memory: dict, lr: float = 0.1, b1: float = 0.9, b2: float = 0.999) -> Tensor:
    "Adam without the correction for the start at zero."
    return adam(g, 10**9, memory, lr, b1, b2)                # after a billion steps nothing is left to correct

def steps_of(rule, n: int = 200) -> Tensor:
    "Step lengths, in units of the rate, for gradients that are always 1."
    memory = {}
    return torch.stack([rule(torch.tensor(1.0), t, memory) for t in range(1, n + 1)]) / 0.1

raw, corrected = steps_of(uncorrected), steps_of(lambda *args: adam(*args, b2=0.999))
print(f"first steps without: {raw[0]:.2f}, {raw[1]:.2f}, largest {raw.max():.2f};  with: {corrected[0]:.2f} always")
assert raw.max() > 5 and (corrected - 1).abs().max() < 1e-3

# %%
fig, ax = plt.subplots(figsize=(5, 2.2), layout="constrained")
for style, name, values in (("--", "as they are", raw), ("-", "corrected", corrected)): ax.plot(values, style, label=name)
ax.set(xlabel="step", ylabel="length / rate", ylim=(0, None))
ax.legend(frameon=False)
figure(fig, caption="Length of Adam's steps for a gradient that is always 1, with and without the correction (0.9 and 0.999).",
       alt="Without correction the length starts at 3, rises above 6 after ten steps and is still above 2 at step 200. "
           "Corrected it is 1 throughout.")


# %% [markdown]
# Three times too long at once, six times after ten steps, and that is when the weights are random and every direction is wrong. It comes from $v$ being slower than $m$: the
# numerator has arrived when the denominator has not. With $\beta_2 = 0.95$, as in nanochat, it would be milder (0.45, then at most 1.1): a short memory has less to correct.
#
# ## AdamW: decay that is really decay
#
# Weight decay pulls each weight towards zero: $w \leftarrow w - \eta\lambda w$. If you add $\lambda w$ to the gradient instead (L2), Adam
# divides it by $\sqrt v$, and weights with large gradients are hardly decayed at all. AdamW (Loshchilov and Hutter, 2019)
# keeps the two apart. Try both on weights that get nothing but noise, so that decay should be all that is left. The noise has size 0.01, 1 and 100.

# %%
def after_decay(decoupled: bool, steps: int = 400, lr: float = 0.01, wd: float = 0.5) -> Tensor:
    "Weights that start at 1 and get gradients of pure noise, mean of 500 each: sizes 0.01, 1, 100."
    g = torch.Generator().manual_seed(0)
    w, memory, size = torch.ones(500, 3), {}, torch.tensor([0.01, 1.0, 100.0])
    for t in range(1, steps + 1):
        noise = size * torch.randn(500, 3, generator=g)
        pull = 0.0 if decoupled else wd * w
        w = w - adam(noise + pull, t, memory, lr) - (lr * wd * w if decoupled else 0)
    return w.mean(0)

apart, mixed = after_decay(True), after_decay(False)
for name, w in (("decay apart (AdamW)", apart), ("decay in the gradient", mixed)):
    print(f"{name:22s}", "  ".join(f"noise {s:g}: {x:+.2f}" for s, x in zip((0.01, 1, 100), w.tolist())))
expected = (1 - 0.01 * 0.5) ** 400
print(f"what decay alone would leave: {expected:+.2f}")
assert (apart - expected).abs().max() < 0.05 and mixed[2] > 0.9 > 0.2 > mixed[0].abs()


# %% [markdown]
# AdamW leaves the same share of each. With decay in the gradient, the weight with noise 100 is not decayed at all, and the one with noise 0.01 is pulled down at full
# speed. How strong the decay is should not depend on how loud the gradient is. nanochat's first models use no decay, but the term costs one line.
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
) -> tuple[list, list[Tensor]]:  # (parameters that have a gradient, those gradients in fp32)
    "The parameters that will move. Empties forbidden gradients without waiting for the device."
    params = [p for p in params if p.grad is not None]
    if allowed is not None and not (allowed.is_cpu and allowed):     # a CPU may be asked: it never waits
        forbidden = ~allowed
        for p in params: p.grad.masked_fill_(forbidden, 0.0)
    return params, [p.grad.float() for p in params]        # no copy where they are fp32 already


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
# Each of these lines walks through all weights once, and memory is slow: with clipping the update takes 3.8 and 4.5 percent of a training step at depths 2 and 4 on two cores. PyTorch has the same update in a single walk, and it takes 1.4 and 2.3. Its `found_inf` is your `allowed`, turned round; everything else you know.

# %%
#| export
@torch.no_grad()
def adamw_update_fused(
    group: dict,                    # as for `adamw_update`; fp32 parameters
    state: dict,                    # as for `adamw_update`
    allowed: Tensor | None = None,  # 0-d bool on the device; where False, nothing moves
) -> None:
    "The same as `adamw_update`, in one walk through memory (torch's fused kernel)."
    params = [p for p in group["params"] if p.grad is not None]
    if not params: return
    if params[0].device.type == "mps":                     # its kernel does not look at found_inf
        return adamw_update(group, state, allowed)
    states = [_adamw_state(state[p], p) for p in params]
    t, m, v = ([s[k] for s in states] for k in ("step", "exp_avg", "exp_avg_sq"))
    adamw(params, [p.grad for p in params], m, v, [], t, fused=True, amsgrad=False, maximize=False,
          found_inf=None if allowed is None else (~allowed).float(), lr=group["lr"],
          beta1=group["betas"][0], beta2=group["betas"][1], eps=group["eps"],
          weight_decay=group["weight_decay"])


# %%
ws = [torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2)]
states = [{w: {}} for w in ws]
for step, allowed in enumerate((False, True, True, False, True)):
    for w, kept, update in zip(ws, states, (adamw_update, adamw_update_fused)):
        w.grad = torch.tensor([0.3 - step, 1.0 if allowed else float("inf")])
        update(group | {"params": [w], "weight_decay": 0.1}, kept, allowed=torch.tensor(allowed))
print("both forms:", *([round(x, 5) for x in w.tolist()] for w in ws))
torch.testing.assert_close(*ws)
assert all(kept[w]["step"] == 3 for w, kept in zip(ws, states))        # two of five were not allowed


# %% [markdown]
# The plain form is the one to read and to change; the optimizer of lesson 04 uses the fused one. The class around the plain form only keeps the groups and the state, in the form every PyTorch tool expects.

# %%
#| export
def check_groups(
    groups: list[dict],  # an optimizer's groups
) -> None:
    "`UserError` when a group has a rate, a decay, betas or an eps with which nothing can be learned."
    for i, group in enumerate(groups):
        lr, decay = group["lr"], group["weight_decay"]
        if not (math.isfinite(lr) and lr > 0):
            raise UserError(f"learning rate {lr} of group {i}: it must be above zero; "
                            "leave parameters that shall not move out of the optimizer")
        if not 0 <= decay * lr < 1:
            raise UserError(f"weight decay {decay} of group {i} at learning rate {lr}: their product "
                            "must be at least 0 and below 1, or weights change sign")
        betas, eps = group.get("betas", (0.0,)), group.get("eps", 1.0)          # Muon's groups have none
        if not (min(betas) >= 0 and max(betas) < 1 and eps > 0):
            raise UserError(f"betas {betas} of group {i} must be at least 0 and below 1, and eps {eps} above 0")


# %%
for lr, decay in ((0.0, 0.0), (-0.1, 0.0), (float("nan"), 0.0), (0.1, 20.0)):
    try: check_groups([{"lr": lr, "weight_decay": decay}])
    except UserError as e: print(e)
    else: raise AssertionError("this cannot be learned with")


# %% [markdown]
# A rate of zero is refused as well: it costs as much as a good one, and the mistake shows hours later.

# %%
#| export
class Optimizer(torch.optim.Optimizer):
    "Torch's, but a loaded state lies where the parameters are as a whole, step counters included."

    def load_state_dict(self, found: dict) -> None:
        "As torch's, which loads all but the step counters to the device of their parameters."
        super().load_state_dict(found)
        for p, s in self.state.items():
            if "step" in s: s["step"] = s["step"].to(p.device)


class AdamW(Optimizer):
    "AdamW in fp32 as a torch optimizer, for parameters or for torch's list of groups."

    def __init__(self,
        params,                            # parameters, or torch's list of group dicts
        lr: float = 1e-3,                  # learning rate
        betas: tuple = (0.9, 0.95),        # memory of the gradient, and of its square
        eps: float = 1e-8,                 # keeps the division finite
        weight_decay: float = 0.0,         # pull towards zero, times lr
    ):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
        check_groups(self.param_groups)
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
# A large rate travels far, a small one settles. Here is why, in one dimension: a round valley of curvature 1, and gradients with noise of variance 1, as those of small batches are. A step is $w \leftarrow (1-\eta)\,w - \eta\,\epsilon$.
# Its variance settles where what shrinks equals what is added, $V = (1-\eta)^2 V + \eta^2$, so $V = \eta / (2 - \eta)$: **the noise floor is proportional to the rate**, and no number of steps takes you below it. But the way there takes about $1/\eta$ steps.
# So walk with a large rate, and let it fall at the end.

# %%
def noisy(rates, start: float = 10.0) -> Tensor:
    "Mean square distance from the bottom, by step, of 2,000 walkers with noisy gradients: (steps,)."
    g, w, seen = torch.Generator().manual_seed(0), torch.full((2000,), start), []
    for lr in rates:
        w = w - lr * (w + torch.randn(2000, generator=g))
        seen.append(w.square().mean())
    return torch.stack(seen)

N = 200
plans = {"0.2 always": [0.2] * N, "0.02 always": [0.02] * N, "0.2, falling from half": [0.2 * min(1.0, 2 * (N - t) / N) for t in range(N)]}
ends = {name: noisy(rates)[-1].item() for name, rates in plans.items()}
for name, end in ends.items(): print(f"{name:24s} ends at {end:.4f}")
print(f"floor of 0.2 by the formula: {0.2 / 1.8:.4f}, of 0.02: {0.02 / 1.98:.4f}")
assert abs(ends["0.2 always"] / (0.2 / 1.8) - 1) < 0.1 and ends["0.2, falling from half"] < 0.5 * min(ends["0.2 always"], ends["0.02 always"])

# %%
fig, ax = plt.subplots(figsize=(5.5, 2.4), layout="constrained")
for (name, rates), style in zip(plans.items(), ("--", ":", "-")): ax.plot(noisy(rates), style, label=name)
ax.set(yscale="log", xlabel="step", ylabel="mean square distance")
ax.legend(frameon=False, fontsize=8)
figure(fig, caption="Two thousand walkers in a noisy valley, under three plans for the rate.",
       alt="A rate of 0.2 falls fast and stays at a tenth. A rate of 0.02 falls slowly, and is still on its way down at the end. "
           "The falling rate follows the first, and in the second half drops below both.")


# %% [markdown]
# The large rate is fast and stops at its floor; the small one has the lower floor, and never gets there. The falling rate has both. That is **warm-down**, and it is the cheapest gain in this lesson: nanochat's
# log calls lengthening it from 20% to 40% of the run the largest single gain of that sweep.
#
# **Warm-up** is the other end: a rise over the first steps, for optimizers whose first steps are too long. Corrected Adam and Muon (lesson 04) bound theirs, so the course's default is no warm-up.
#
# Every group of parameters has its own base rate; the schedule multiplies them all. It counts from step 0, and the last step still moves: a step with
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
    """Learning-rate multiplier: a linear rise, a plateau at 1, a linear fall; never quite 0.

    `UserError` for shares that do not fit into one run, and for a step outside of it."""
    if not 0 <= step < steps: raise UserError(f"step {step} of a run of {steps}: they are counted from 0")
    if min(warmup, warmdown, final) < 0 or warmup + warmdown > 1 + 1e-9 or final > 1:
        raise UserError(f"warm-up {warmup} and warm-down {warmdown} are shares of a run, final {final} "
                        "is one of the full rate: none below 0, the first two together at most 1, "
                        "final at most 1")
    up, down = round(warmup * steps), round(warmdown * steps)
    if step < up: return (step + 1) / up
    if step <= steps - down: return 1.0
    left = (steps - step) / down                    # from 1 to 1/down
    return left + (1 - left) * final


# %%
multipliers = [schedule(t, 8, warmup=0.25, warmdown=0.5) for t in range(8)]
print(multipliers)
assert multipliers == [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25]
try: schedule(0, 8, warmup=0.6, warmdown=0.6)
except UserError as e: print(e)
else: raise AssertionError("rise and fall overlap")

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
# **Trap: the wrong way round.** Published nanochat's midtraining once multiplied the rates by the *progress* in place of what is *left*: they rose through the run and were largest at its end (issue 68). Nothing crashed. In the noisy valley you see what it costs:

# %%
rising = noisy([0.2 * t / N for t in range(N)])[-1].item()
falling = noisy([0.2 * schedule(t, N, warmdown=1.0) for t in range(N)])[-1].item()
print(f"rising to the end: {rising:.4f}   falling: {falling:.4f}")
assert rising > 5 * falling
assert schedule(199, 200, warmdown=1.0) < schedule(100, 200, warmdown=1.0) < schedule(0, 200, warmdown=1.0)


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

    Never waits for the device. `ValueError` when there is no gradient, `UserError` for a length
    of zero or less. (Pascanu et al. 2013.)"""
    if not max_norm > 0: raise UserError(f"gradient clipping at {max_norm}: it must be above zero")
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
# It returns a tensor, not a number: reading it as a number is the wait that we avoid.
#
# **Trap: clip first, average then.** With several processes, or several micro-batches, each holds a part of the gradient. Published nanochat clipped on each GPU *before* averaging, until January 2026. Two GPUs, one
# of them with an outlier. **Predict** the direction of the update in each order.

# %%
parts = torch.tensor([[0.0, 30.0], [0.8, 0.0]])            # gradients of two GPUs: an outlier, and an ordinary one

def clipped(g: Tensor) -> Tensor:
    w.grad = g.clone()
    clip_by_global_norm([w], 1.0)
    return w.grad.clone()

right, wrong = clipped(parts.mean(0)), torch.stack([clipped(g) for g in parts]).mean(0)
for name, g in (("average, then clip", right), ("clip, then average", wrong)):
    print(f"{name}: {[round(x, 3) for x in g.tolist()]}, length {g.norm():.2f}, angle {math.degrees(math.atan2(g[1], g[0])):.0f} degrees")
assert torch.allclose(right, parts.mean(0) / parts.mean(0).norm(), atol=1e-5) and wrong.norm() < 0.7


# %% [markdown]
# Clipped first, the update points elsewhere and is shorter, and how much so depends on how many GPUs the batch was cut over. A run on one GPU and a run on eight are then different runs. The loop of lesson 03
# averages, then clips.
#
# ## The learning-rate rule
#
# Which base rate? Two rules carry a rate from one size to another.
#
# **Width.** An activation of the head is a sum over $C$ inputs. Adam moves each of its weights by about the rate, all in the direction that helps, so the sum moves by up to $C$ times the rate: wider models need smaller rates. nanochat found its rates at width 768
# and scales embedding and head by $(C/768)^{-1/2}$, an empirical middle between no scaling and $1/C$.
#
# **Batch.** The mean of $B$ gradients has noise of size $1/\sqrt B$. When noise dominates, Adam's $\sqrt v$ *is* the noise: the useful part of a step is $\eta \cdot \text{signal}/\text{noise} \propto \eta\sqrt B$, and its random part has size $\eta$ whatever the batch.
# To travel as far on as many tokens in $n \propto 1/B$ steps, with a random walk $\eta\sqrt n$ of the same size, you need $\eta \propto \sqrt B$ on both counts (Malladi and others 2022). Simulate it: sign-like steps (Adam's limit) in a valley that starts far away, equal *samples* for each batch.

# %%
def ends_at(lr: float, B: int, samples: int = 4096, noise: float = 30.0) -> float:
    "Mean square distance after a warm-down with Adam on gradients of noise 30 / sqrt(B)."
    g, w, memory, n = torch.Generator().manual_seed(0), torch.full((1000,), 3.0), {}, samples // B
    for t in range(1, n + 1):
        w = w - adam(w + noise / B**0.5 * torch.randn(1000, generator=g), t, memory, lr * schedule(t - 1, n, warmdown=0.6))
    return w.square().mean().item()

rates = [0.005 * 1.5**k for k in range(12)]
best = {B: min(rates, key=lambda lr: ends_at(lr, B)) for B in (4, 16, 64)}
for B, lr in best.items(): print(f"batch {B:3d}: best rate {lr:.3f}, {lr / best[4]:.1f} times that of batch 4; the root says {(B / 4) ** 0.5:.0f}")
assert best[4] < best[16] < best[64] and 1.9 < best[64] / best[4] < 8

# %%
fig, ax = plt.subplots(figsize=(5.5, 2.6), layout="constrained")
for B, style in zip(best, ("-", "--", ":")): ax.plot(rates, [ends_at(lr, B) for lr in rates], "o" + style, markersize=3, label=f"batch {B}")
ax.set(xscale="log", yscale="log", xlabel="rate", ylabel="mean square at the end")
ax.legend(frameon=False, fontsize=8)
figure(fig, caption="Where runs over the same 4,096 samples end, by rate and batch.",
       alt="Three valleys on logarithmic axes. The one of batch 4 has its bottom furthest left, that of batch 64 furthest right; "
           "left of its bottom each curve rises steeply, the larger the batch the sooner.")

# %% [markdown]
# So the root is right where its assumptions hold: noise dominates, and the *same samples* are seen. nanochat uses it upwards, for batches above 524,288 tokens. Now extend it downwards to a laptop's 4,096 tokens. It divides every rate by 11.3.
# But a laptop run does not see the same samples: it sees a hundredth or a thousandth of them, in about as *many steps*. At equal steps the way to go is the same, and a rate eleven times smaller does not get there.

# %%
steps = 256
short = {scale: ends_at(best[64] * scale, B=4, samples=4 * steps) for scale in (1, 1 / 4)}
print(f"batch 4, {steps} steps: {short[1]:.2f} at the rate of batch 64, {short[1 / 4]:.2f} at a quarter of it, as the root demands")
assert short[1] < short[1 / 4]


# %% [markdown]
# Real runs agree: on a small world (four layers, 4,096 tokens a step, 184 steps) published nanochat's rule ended at 0.434 bits per byte, where the same program with its rates left alone stood at 0.233. So our rule is: **the root above 524,288 tokens, constant below.**
#
# **Steps.** The same thought the other way round: a run of few steps has a long way to go and little time for the random walk to do harm, so its rate should be *higher*. How much? If distance were everything, rate times steps would be constant. Noise takes a part of that back. Ours is an exponent of 2/3 below 700 steps, found on runs of 122 and 732 steps, and no more than 4 times the rate (reached at 88 steps), since nothing shorter than 122 was measured. **Predict** what the rule says for 122 steps, then see below.

# %%
#| export
def width_scale(
    n_embd: int,  # width of the model, C
) -> float:       # multiplies the base rates of embedding and head
    "Wider models take smaller steps in embedding and head: (C / 768) ** -0.5. `UserError` below 1."
    if n_embd < 1: raise UserError(f"width {n_embd}: a model has at least width 1")
    return (n_embd / 768) ** -0.5


def batch_scale(
    tokens: int,  # tokens per update, all ranks together
) -> float:       # multiplies every learning rate
    """Larger batches allow larger steps: sqrt(tokens / 524,288) above 524,288, constant below.

    Extended below, the root is far too timid: at 4,096 tokens it would divide the rate by 11.
    `UserError` below one token."""
    if tokens < 1: raise UserError(f"{tokens} tokens per update: there must be at least one")
    return max(1.0, tokens / 524_288) ** 0.5


def horizon_scale(
    steps: float,  # updates of the whole run; infinity: longer than 700
) -> float:        # multiplies every learning rate
    """Short runs take larger steps: (700 / steps) ** (2/3) below 700 updates, at most 4; 1 above.

    The optimum falls as training gets longer (Bjorck et al. 2024); both numbers are measured
    here, at 122 and 732 updates. `UserError` below one."""
    if steps < 1: raise UserError(f"{steps} updates in the run: there must be at least one")
    return min(4.0, max(1.0, 700 / steps) ** (2 / 3))


# %%
for depth in (4, 12, 20, 32): print(f"d{depth}: width {64 * depth}, rates of embedding and head times {width_scale(64 * depth):.3f}")
assert width_scale(768) == 1 and round(width_scale(1280), 6) == 0.774597
assert batch_scale(4096) == batch_scale(2**19) == 1 and batch_scale(2**21) == 2
for steps in (50, 122, 250, 1400): print(f"{steps:,} steps: all rates times {horizon_scale(steps):.2f}")
assert horizon_scale(math.inf) == horizon_scale(1400) == 1 and horizon_scale(1) == 4

# %% [markdown]
# How good are they? These are rules, not laws. `benchmarks/lr_rule.py` asks the question properly: batches of 4,096 and 65,536 tokens (732 and 122 steps), several depths, and five rates a factor 1.5 apart (three at depth 6) around what the rules say, with Muon for the matrices (lesson 04). The rule and the best of its row then run with three seeds. That takes hours, so here is what was stored. **Predict:** how much better is the best of these rates than a rule that nobody tuned for the model at hand?

# %%
import re

from nanochat.workshop import stored_result

found = stored_result("lr_rule.json")
rows = {}              # case -> bits per byte at the end, by the power of 1.5 that multiplied all rates; seed 0
for name, run in found["runs"].items():
    case, power, seed = re.fullmatch(r"(.*) power (.*) seed (.*)", name).groups()
    if seed == "0": rows.setdefault(case, {})[int(power)] = run["bpb"]
rows = {case: dict(sorted(ends.items())) for case, ends in rows.items()}
for case, done in found["summary"].items():
    print(f"{case:9s} {done['steps']:3d} steps: best at {1.5 ** done['best_power']:.2f} times the rule; the rule's end over the best's: {done['rule_over_best']:.3f} (seeds: {done['seeds']})")
print("again with the three rounds of Newton-Schulz that recipes make at 4,096 tokens a step:")
again = stored_result("lr_rule_rounds.json")["three"]["summary"]
for case, done in again.items():
    if case.endswith("-4096"): print(f"{case:9s} best at {1.5 ** done['best_power']:.2f} times the rule; over the best's: {done['rule_over_best']:.3f} (seeds: {done['seeds']})")
assert all(done["held"] for done in (*found["summary"].values(), *again.values()))

# %%
fig, axes = plt.subplots(1, 2, figsize=(7.5, 2.7), sharey=True, layout="constrained")
for case, ends in rows.items():
    if "constant" in case: continue
    depth, tokens = case.split("-")
    style = {"d2": "C0o-", "d4": "C1s--", "d6": "C2^:"}[depth]
    axes[int(tokens == "65536")].plot([1.5**k for k in ends], [end / min(ends.values()) for end in ends.values()], style, label=depth)
before = rows["constant d2-65536"]
axes[1].plot([1.5**k / horizon_scale(122) for k in before], [end / min(rows["d2-65536"].values()) for end in before.values()], "x-", color="0.6", label="d2, rates left alone")
for ax, title in zip(axes, ("4,096 tokens, 732 steps", "65,536 tokens, 122 steps")):
    ax.axvline(1, color="0.8", zorder=0)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set(xlabel="rates, in units of the rule", title=title)
    ax.legend(frameon=False, fontsize=8)
axes[0].set(ylabel="end, over the best of the row")
figure(fig, caption="Where runs end, over the best of their row, by the multiple of the rule's rates; Muon for the matrices, one seed.",
       alt="Two panels. Left, 732 steps: the valleys of depths 2, 4 and 6 have their bottoms at 1.5, 1 and 0.67 times the rule; depth 4 rises by a fifth to the right. Right, 122 steps: depths 2, 4 and 6 are lowest at 1, and rise by 2 to 9% at 1.5 and by 1.5 to 15% at 0.67. Grey crosses, runs with multiples of rates that were left alone, follow the same valley from far on the left.")

# %% [markdown]
# On the left, with 732 steps, the best place is 1.5, 1 and 0.67 (the edge of its three) times the rule as the model grows, and the rule is 1.7% above it or less, with three seeds each. On the right, with 122, the rule is the best of its row at all three depths (at depth 2 by luck of the seed: with three seeds 1.5 times the rule has the better mean, by 2.7%). The crosses are runs with the rates left alone, times 0.44 to 7.6: left alone they end at 0.99 bits per byte where 0.64 was to be had. That is what the rule for short runs is for.
#
# In these runs Muon made five rounds everywhere. Recipes make three where a step has few tokens, and there the rule is again the best of its row at depths 4 and 6, and within 0.8% at depth 2 (three seeds at depths 2 and 4, one at 6). (What rounds are, and when three will do, is lesson 04's business.)
#
# Two honest limits. Its exponent was **chosen on the runs of depths 2 and 4 on the right**, so they are no test of it. Depth 6 is one, as it was run afterwards: 1.5 times more ends 4% higher, 1.5 times less 1.5% higher (one seed). Races of lesson 04 are another, which were run before: at 250 steps the best rate was twice the usual one, and the rule says 1.99. And the ends of three seeds differ by 3 to 8% at depth 2, by 1 to 2% at depth 4 and by 0.2 to 1.4% at depth 6, so nobody can say from this which of two rates a tenth apart is better. `benchmarks/RESULTS.md` has all numbers, and says what has not been run.
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
# * The noise floor is proportional to the rate, so the rate falls at the end. Clip the whole gradient as one vector, after averaging.
#
# ## Quiz
#
# <details><summary>1. You multiply the loss by 10. What changes with plain descent, what with Adam?</summary>Plain steps are ten times longer. Adam's are the same, unless the gradients are as small as epsilon.</details>
# <details><summary>2. You clip at 1, and the gradient's length is 0.3. What happens to it?</summary>Nothing: clipping only shortens.</details>
# <details><summary>3. A weight gets no gradient for 50 steps. Does AdamW move it?</summary>If its gradient is missing (None), no. If it is zero, yes: the momentum runs out over some steps, and decay goes on.</details>
# <details><summary>4. Your loss is flat at a high value, and drops as soon as the warm-down begins. Was the rate too large?</summary>Not for the way there. You were at the noise floor of that rate; the warm-down lowers the floor. It might have begun earlier.</details>
# <details><summary>5. Why is <code>allowed</code> a tensor on the device and not a Python bool?</summary>A bool would have to be read from the device, and the host would wait for everything queued before it.</details>
#
# ## Papers
#
# Kingma and Ba 2015 (Adam) · Loshchilov and Hutter 2019 (AdamW) · Pascanu, Mikolov and Bengio 2013 (clipping) · Malladi and others 2022, *On the SDEs and scaling rules for adaptive gradient algorithms* (the root).
#
# **Next:** `02e_checkpoints`.
#
# ## What your package can do now
#
# A GPT and the optimizer for it: one batch of one sentence, learned by heart.

# %%
from nanochat.gpt import GPT, config_for

text = torch.tensor(list(b"One day, a girl named Mia found a red kite. "))[None]      # (1, T) bytes as tokens
model = GPT(config_for(1, 256, text.shape[1], head_dim=64))
optimizer, said = AdamW(model.parameters(), lr=0.01), []
for t in range(30):
    for group in optimizer.param_groups: group["lr"] = group["initial_lr"] * schedule(t, 30)
    loss = model(text[:, :-1], text[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    norm = clip_by_global_norm(model.parameters(), 1.0)
    optimizer.step(loss.isfinite() & norm.isfinite())
    said.append(loss.item())
print(f"loss {said[0]:.2f} -> {said[-1]:.3f} nats a byte in 30 steps")
assert said[-1] < 0.2
