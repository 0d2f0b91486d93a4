# %% [markdown]
# # 06 Supervised finetuning

# %%
#| default_exp sft

# %%
#| export
from collections.abc import Callable, Iterable
from functools import partial

from nanochat.data import Rows, pack_conversations
from nanochat.midtrain import train_on_rows


# %%
#| export
def sft_rows(
    tokenizer,
    conversations: Iterable[dict],  # {"messages": [...]}
    T: int,                         # row length
) -> Rows:                          # (N, T); targets only where the assistant writes
    "Conversations, whole, packed into rows with their loss masks. `UserError` when none fits."
    return pack_conversations([tokenizer.render(c) for c in conversations], T, tokenizer.bos)


# %%
#| export
def sft(
    stage,                          # of `checkpoint`: where it is stored
    recipe: dict,                   # as for `midtrain.train_on_rows`
    *,
    model,                          # a midtrained model; changed in place
    tokenizer,
    conversations: Iterable[dict],
    make_optimizer: Callable,       # (model, lr_scale=..., batch_tokens=...) -> optimizer
    **options,                      # evaluators, rank, world, reduce, forward, gather, agree
) -> dict:                          # metrics, also written to the stage's folder
    "Supervised finetuning: conversations only, and only what the assistant writes is a target."
    rows = partial(sft_rows, tokenizer, conversations, model.config.seq_len)
    return train_on_rows(stage, recipe, rows, model=model, tokenizer=tokenizer,
                         make_optimizer=make_optimizer, **options)
