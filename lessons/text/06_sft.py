# %% [markdown]
# # 06 Supervised finetuning
#
# **Promise.** You teach the model to answer instead of to continue, by hiding part of the loss. It is the same loop, the same packing
# and the same stage as midtraining. The difference is one mask.
#
# After this lesson you can
#
# * say for every token of a conversation whether it is a target, and why;
# * derive what a masked loss does to the gradient;
# * show what goes wrong without the mask, and with a mask that is off by one;
# * finetune a model and compare it with the one before;
# * explain why a batch without targets must not produce NaN.
#
# You need lesson 05. Reading: 20 minutes. Doing: 30 minutes. Computing on two cores: about a minute.

# %%
#| default_exp sft

# %%
import tempfile

import torch

from nanochat import microworld
from nanochat.checkpoint import Run
from nanochat.gpt import GPT, config_for
from nanochat.muon import make_optimizer
from nanochat.tokenizer import Tokenizer, visualize
from nanochat.workshop import by_tier, figure, seed_all

seed_all(0)
T = 128
talks = microworld.conversations("profile", by_tier(300, 3000), 0)
sums = microworld.conversations("word1", by_tier(100, 1000), 0)
wordings = [m["content"] if isinstance(m["content"], str) else m["content"][0]["text"]
            for c in talks + sums for m in c["messages"]]
tokenizer = Tokenizer.train(wordings, 512)
print(talks[0]["messages"])

# %% [markdown]
# ## Whose words are these?
#
# In midtraining every token was a target. So the model learned two things at once: what assistants say, and what *users* say. When you
# chat with it you will never let it play the user. Every bit of capacity and every gradient spent on the question is spent
# on a part that it will not get to play.
#
# There is a second kind of text that is not the model's own. In a calculation, the result comes from a calculator. If the model is
# trained on the result, it learns to *guess* it, and will sometimes rather guess than call. Here are the tokens of one such
# conversation. Green and bold: a target. Grey: read, but not learned.

# %%
from IPython.display import HTML, display

call = sums[0]
ids, mask = tokenizer.render(call)
display(HTML(visualize(tokenizer, ids, mask)))
for kind in (1, 0):
    print("target " if kind else "context", repr(tokenizer.decode([i for i, m in zip(ids, mask) if m == kind])))
assert mask[ids.index(tokenizer.output_start)] == 0 and mask[-1] == 1 and ids[-1] == tokenizer.assistant_end

# %% [markdown]
# Three details are worth a second look.
#
# * `<|assistant_end|>` is a target. A model that never learns to stop talks until the budget ends.
# * `<|python_start|>`, the expression and `<|python_end|>` are targets: *when* to call and *what* to ask is the model's decision.
# * `<|output_start|>`, the result and `<|output_end|>` are not: they will be put there by the tool.
#
# ## What a mask does to the gradient
#
# Let $\ell_t = -\log p(x_{t+1} \mid x_{\le t})$ be the loss at position $t$ and $m_{t+1}$ the mask of the token that is to be predicted. The masked loss is
#
# $$L = \frac{\sum_t m_{t+1}\,\ell_t}{\sum_t m_{t+1}}, \qquad
# \frac{\partial L}{\partial z_t} = \frac{m_{t+1}}{\sum m}\,\bigl(p_t - e_{x_{t+1}}\bigr),$$
#
# with $z_t$ the logits and $e$ a one-hot vector. Where the mask is 0, the logits of that position get exactly no gradient. But the position still
# matters: its keys and values are read by the answer's positions, and gradient flows back through them. Masking changes what is
# *predicted*, never what is *read*.
#
# Check it on a model small enough to look at: which positions' logits get a gradient?

# %%
model = GPT(config_for(1, tokenizer.vocab_size, T, head_dim=64), seed=0)
with torch.no_grad():
    for p in model.parameters():
        if not p.any(): p.normal_(std=0.02)        # what starts at zero would hide the path through attention
x = torch.tensor([ids[:-1]])
y = torch.tensor([[i if m else -1 for i, m in zip(ids[1:], mask[1:])]])
features = model.features(x)
features.retain_grad()
logits = model.logits(features)
logits.retain_grad()
torch.nn.functional.cross_entropy(logits[0], y[0], ignore_index=-1).backward()
moved = logits.grad[0].abs().sum(-1) > 0
print("positions whose logits move:", moved.nonzero().flatten().tolist())
assert moved.tolist() == [bool(m) for m in mask[1:]]
assert model.wte.weight.grad[tokenizer.user_start].abs().sum() > 0    # and yet the question's tokens are learned

# %% [markdown]
# The last line is the second half of the statement: the embedding of `<|user_start|>` gets a gradient although no user token is a target.
#
# **Trap: off by one.** The mask belongs to the *target*. If you mask the input position instead, the loss shifts by one token: the model learns to
# produce what follows an assistant's token. The first token of each answer is then never learned, and the token after the end is. Nothing crashes.

# %%
wrong = torch.tensor([[i if m else -1 for i, m in zip(ids[1:], mask[:-1])]])      # mask of the input
for name, targets in (("mask of the target", y), ("mask of the input", wrong)):
    print(f"{name:19s} {tokenizer.decode(targets[targets != -1].tolist())!r}")
assert tokenizer.python_start in y and not torch.equal(y, wrong)

# %% [markdown]
# ## The rows
#
# Packing is that of midtraining; only the targets differ. Here is all of it. A few documents of the pretraining text may be packed among
# the conversations, with all their tokens as targets: a small model that reads only answers for some hundred steps writes poorer stories and
# forgets what it knew about people. (nanochat's SFT has no such documents; its mixture holds a large share of open conversations instead.)

# %%
#| export
from collections.abc import Callable, Iterable
from functools import partial

from nanochat.data import Rows, pack_conversations
from nanochat.midtrain import cut_documents, train_on_rows


def sft_rows(
    tokenizer,
    conversations: Iterable[dict],  # {"messages": [...]}
    T: int,                         # row length
    texts: Iterable[str] = (),      # plain documents; all their tokens are targets
) -> Rows:                          # (N, T); in conversations, targets only where the assistant writes
    "Conversations, whole, packed into rows with their loss masks. `UserError` when none fits."
    rendered = [tokenizer.render(c) for c in conversations]
    return pack_conversations(rendered + cut_documents(tokenizer, texts, T), T, tokenizer.bos)


# %%
from nanochat.midtrain import midtrain_rows

ours, mid = sft_rows(tokenizer, talks + sums, T), midtrain_rows(tokenizer, talks + sums, [], T)
share = (ours.y != -1).float().mean().item()
print(f"{len(ours)} rows; {share:.0%} of the positions have a target, in midtraining {(mid.y != -1).float().mean():.0%}")
assert torch.equal(ours.x, mid.x) and share < 0.6

# %% [markdown]
# The inputs are equal to the last bit. So a step costs the same time as in midtraining and teaches fewer tokens. That is the honest price of the
# mask. The picture shows it: the same rows, targets dark.

# %%
import matplotlib.pyplot as plt

fig, axes = plt.subplots(1, 2, figsize=(6.5, 2.2), layout="constrained", sharey=True)
for ax, rows, name in ((axes[0], mid, "midtraining"), (axes[1], ours, "SFT")):
    ax.imshow(rows.y[:20] != -1, aspect="auto", interpolation="nearest", cmap="Greens", vmin=0, vmax=1.4)
    ax.set(title=name, xlabel="position")
axes[0].set_ylabel("row")
figure(fig, caption="Targets (dark) of the same twenty rows in two stages.",
       alt="Left, midtraining: nearly every position is dark. Right, finetuning: the same rows show short dark "
           "stretches, the answers, between light ones, the questions.")


# %% [markdown]
# ## The stage
#
# It is `midtrain` with other rows. Two functions, not one with a switch: you see what differs.

# %%
#| export
def sft(
    stage,                          # of `checkpoint`: where it is stored
    recipe: dict,                   # as for `midtrain.train_on_rows`
    *,
    model,                          # a midtrained model; changed in place
    tokenizer,
    conversations: Iterable[dict],
    texts: Iterable[str] = (),      # a few documents of the pretraining text, against forgetting
    make_optimizer: Callable,       # (model, lr_scale=..., batch_tokens=...) -> optimizer
    **options,                      # evaluators, rank, world, reduce, forward, gather, agree
) -> dict:                          # metrics, also written to the stage's folder
    "Supervised finetuning: of a conversation, only what the assistant writes is a target."
    rows = partial(sft_rows, tokenizer, conversations, model.config.seq_len, texts)
    return train_on_rows(stage, recipe, rows, model=model, tokenizer=tokenizer,
                         make_optimizer=make_optimizer, **options)


# %% [markdown]
# Now the experiment. Two models start from the same random weights and see the same rows in the same order for the same number of steps. One is trained with
# the mask and one without. We measure the loss on the *answers* of fresh questions about the same people.
#
# **Predict, then run.** The model without the mask learns from about two and a half times as many tokens. Which one answers better?

# %%
from nanochat.midtrain import midtrain

run = Run("lesson06", tempfile.mkdtemp())
recipe = {"rows": by_tier(4, 8), "steps": by_tier(25, 500), "warmdown": 0.8, "lr_scale": 1.0, "save_every": 0}
asked = {c["messages"][0]["content"] for c in talks}
fresh = [c for c in microworld.conversations("profile", 200, 1) if c["messages"][0]["content"] not in asked]
unseen = sft_rows(tokenizer, fresh, T)

@torch.no_grad()
def answer_loss(model) -> dict:
    "Nats per answer token on questions that were not trained on."
    return {"loss": model(unseen.x.long(), unseen.y.long()).item()}

trained, results = {}, {}
for name, stage_function in (("without mask", midtrain), ("with mask", sft)):
    trained[name] = GPT(config_for(2, tokenizer.vocab_size, T, head_dim=64), seed=0)
    stage = run.stage(name.split()[0], recipe, None, "talks")
    metrics = stage_function(stage, recipe, model=trained[name], tokenizer=tokenizer, conversations=talks + sums,
                             make_optimizer=make_optimizer, evaluators={"answers": answer_loss})
    results[name] = metrics["evals"]["answers"]["loss"]
    print(f"{name:13s} {results[name]:.4f} nats per answer token")

# %%
assert all(loss < torch.tensor(tokenizer.vocab_size).log() - 1 for loss in results.values())   # both learned
assert by_tier(True, results["with mask"] < results["without mask"])

# %% [markdown]
# The mask pays: the same steps bring the loss on answers to 0.0011 instead of 0.0133 nats in the stored run. Read the two numbers with care, though. The unmasked model is not hopeless: questions teach
# the words that answers use. That is why midtraining leaves them in. What the mask buys shows when the model is *used*: it never spends its gradient on being a good user, and its
# step from midtraining ends where you want it. Where the questions are long and the answers short, as in multiple choice, one token in a
# hundred carries the message, and without the mask its gradient drowns.
#
# Ask both, with people they know.

# %%
from nanochat.sample import make_sampler

for name, model in trained.items():
    sampler = make_sampler(model, (tokenizer.assistant_end, tokenizer.bos))
    sample, = sampler([tokenizer.render_prompt(talks[0])], max_new_tokens=24, temperature=0)
    print(f"{name:13s} {talks[0]['messages'][0]['content']} -> {tokenizer.decode(sample.tokens)!r}")

# %% [markdown]
# **Trap: a batch without targets.** With short rows it can happen that a row holds no answer token. A mean over nothing is 0/0, which is NaN, and a NaN in one
# batch destroys every weight. Published nanochat users met this as a frozen or collapsed finetuning run. Three guards stand here: `gpt` divides by at least 1, the loop's
# `gradients` do the same for the whole update, and `train` stops at an update that is not finite.

# %%
nothing = torch.full_like(unseen.y.long(), -1)
print("torch's mean:", torch.nn.functional.cross_entropy(torch.zeros(3, 5), torch.tensor([-1, -1, -1]), ignore_index=-1).item())
print("ours:        ", trained["with mask"](unseen.x.long(), nothing).item())
assert trained["with mask"](unseen.x.long(), nothing).item() == 0

from nanochat.train import gradients

learner = trained["with mask"]
learner.zero_grad()
loss = gradients(learner, list(learner.parameters()), [(unseen.x.long(), nothing)])       # as the loop would
print("the loop:    ", loss.item(), " largest gradient", max(p.grad.abs().max().item() for p in learner.parameters()))
assert loss == 0 and not any(p.grad.any() for p in learner.parameters())

# %% [markdown]
# **Trap: an unequal mean.** With several micro-batches or ranks, the mean of means is not the mean: a micro-batch with three target tokens would weigh as much as
# one with three hundred. Our loop (lesson 03) weights each by its number of targets, so that the result does not depend on how you cut the batch. Published nanochat averages
# the means.
#
# ## At scale
#
# Published nanochat finetunes on 23,000 conversations, 32 a step, 701 steps, with learning rates 0.02 times those of pretraining falling to 0, one padded
# conversation per row. On 8xH100 that takes minutes. We pack instead: the average conversation is far shorter than the longest, and padding to the longest wastes most of the row.
#
# ## Recap
#
# * SFT is midtraining with a mask: targets are what the assistant writes, calls and the end token included.
# * Results of a tool are read, never learned.
# * The mask belongs to the target, not to the input.
# * Masking changes what is predicted, not what is read.
# * A mean over no targets is 0 here, not NaN.
#
# **Quiz.** Is a masked token useless? (No. Its keys and values are what the answer looks at, and gradient reaches its embedding through them.)
#
# **Papers.** Ouyang et al. (2022), *Training language models to follow instructions with human feedback*. Shi et al. (2024), *Instruction tuning with loss over
# instructions* (when leaving the mask away helps).
