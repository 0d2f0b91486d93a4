# %% [markdown]
# # 05 Midtraining

# %%
#| default_exp midtrain

# %%
#| export
from collections.abc import Callable, Iterable
from functools import partial

from nanochat.data import Loader, Rows, encode_documents, pack_conversations_all
from nanochat.optim import schedule
from nanochat.train import fit
from nanochat.workshop import print0


# %%
#| export
def midtrain_rows(
    tokenizer,
    conversations: Iterable[dict],  # {"messages": [...]}, as `tasks` and `microworld` give them
    texts: Iterable[str],           # plain documents, so that the language is not forgotten
    T: int,                         # row length
) -> Rows:                          # (N, T); every token but the padding is a target
    "Conversations and documents, whole, packed into shared rows. `UserError` when none fits."
    documents = [(ids, [1] * len(ids)) for ids in encode_documents(tokenizer, texts)]
    rendered = [tokenizer.render(c) for c in conversations]
    return pack_conversations_all(rendered + documents, T, tokenizer.bos)


# %%
#| export
def train_on_rows(
    stage,                      # of `checkpoint`: where it is stored
    recipe: dict,               # rows, steps, lr_scale, save_every; warmup, warmdown, final, eval_every, accumulate
    make_rows: Callable[[], Rows],  # packs the data; only called when there is something to do
    *,
    model,                      # starts from the weights it has; changed in place
    tokenizer,
    make_optimizer: Callable,   # (model, lr_scale=..., batch_tokens=...) -> a fresh optimizer
    rank: int = 0, world: int = 1,
    **options,                  # evaluators, reduce, forward, gather, agree: handed to `fit`
) -> dict:                      # metrics, also written to the stage's folder
    """One finetuning stage: packed rows through the loop of lesson 03, with a fresh optimizer.

    Resumed when killed; when finished, only its metrics are read. `UserError` when its recipe changed."""
    stage.start()
    if stage.status() == "finished": return stage.metrics()
    rows = make_rows()
    _say_left_out(rows)
    loader = Loader(rows, recipe["rows"], seed=recipe.get("seed", 0), rank=rank, world=world)
    tokens = recipe["rows"] * rows.x.shape[1] * recipe.get("accumulate", 1) * world      # in one update
    optimizer = make_optimizer(model, lr_scale=recipe["lr_scale"], batch_tokens=tokens)
    metrics = fit(stage, model, optimizer, loader, label=stage.name, fingerprint=tokenizer.fingerprint(),
                  extra={"config": model.config.to_dict()}, **fit_settings(recipe), **options)
    metrics |= {"rows": len(rows), "left_out": rows.left_out}
    stage.finish(metrics)
    return metrics


# %%
#| export
def fit_settings(recipe: dict) -> dict:
    "The part of a recipe that the loop of lesson 03 reads, under the names it uses."
    shape = {key: recipe[key] for key in ("warmup", "warmdown", "final") if key in recipe}
    rest = {key: recipe[key] for key in ("eval_every", "accumulate", "clip") if key in recipe}
    return {"steps": recipe["steps"], "save_every": recipe["save_every"],
            "schedule": partial(schedule, steps=recipe["steps"], **shape), **rest}


def _say_left_out(rows: Rows) -> None:
    "Tell when conversations did not fit into a row: silence here once cost people a night."
    if rows.left_out:
        print0(f"{rows.left_out} conversations are longer than {rows.x.shape[1]} tokens and were left out")


# %%
#| export
def midtrain(
    stage,                          # of `checkpoint`: where it is stored
    recipe: dict,                   # as for `train_on_rows`
    *,
    model,                          # a pretrained model; changed in place
    tokenizer,
    conversations: Iterable[dict],
    texts: Iterable[str] = (),      # documents of the pretraining text
    make_optimizer: Callable,       # (model, lr_scale=..., batch_tokens=...) -> optimizer
    **options,                      # evaluators, rank, world, reduce, forward, gather, agree
) -> dict:                          # metrics, also written to the stage's folder
    "Midtraining: conversations and some plain text, every token a target (nanochat's second stage)."
    rows = partial(midtrain_rows, tokenizer, conversations, texts, model.config.seq_len)
    return train_on_rows(stage, recipe, rows, model=model, tokenizer=tokenizer,
                         make_optimizer=make_optimizer, **options)
