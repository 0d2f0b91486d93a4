"Supervised finetuning: the mask, from the rendered conversation to the gradient."
import pytest
import torch

from nanochat import muon
from nanochat.checkpoint import Run
from nanochat.data import Rows
from nanochat.gpt import GPT, GPTConfig
from nanochat.midtrain import midtrain_rows
from nanochat.sft import sft, sft_rows
from nanochat.tokenizer import Tokenizer
from nanochat.train import gradients

TOKENIZER = Tokenizer.train(["What is the colour of the box? It is red. " * 3], 290)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("NANOCHAT_QUIET", "1")
    torch.set_num_threads(1)


def talk(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


CALL = talk("What is 1 and 2?", [{"type": "text", "text": "I add."}, {"type": "python", "text": "1+2"},
                                  {"type": "python_output", "text": "3"}, {"type": "text", "text": " It is 3."}])


def tiny_model(T=96):
    model = GPT(GPTConfig(vocab_size=TOKENIZER.vocab_size, seq_len=T, n_layer=1, n_head=1, n_kv_head=1, n_embd=16), 0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters(): p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model


def test_targets_spell_what_the_assistant_writes_and_nothing_else():
    rows = sft_rows(TOKENIZER, [CALL], 96)
    targets = rows.y[rows.y != -1].tolist()
    t = TOKENIZER
    expected = [*t.encode("I add."), t.python_start, *t.encode("1+2"), t.python_end, *t.encode(" It is 3."), t.assistant_end]
    assert targets == expected


def test_documents_beside_conversations_are_targets_from_their_second_token_on():
    text = "The box is red."
    rows = sft_rows(TOKENIZER, [CALL], 96, [text])
    alone = sft_rows(TOKENIZER, [CALL], 96)
    extra = sorted(rows.y[rows.y != -1].tolist()), sorted(alone.y[alone.y != -1].tolist() + TOKENIZER.encode(text))
    assert extra[0] == extra[1]


def test_a_question_gets_no_gradient_and_the_answer_does():
    """Change the weights a little along the gradient: the loss of the question's own tokens has no part in it.
    The oracle is cross entropy by hand, over the target positions of one conversation."""
    model, rows = tiny_model(), sft_rows(TOKENIZER, [CALL], 96)
    model(rows.x.long(), rows.y.long()).backward()
    got = model.lm_head.weight.grad.clone()
    ids, mask = TOKENIZER.render(CALL)
    logp = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
    picked = [-logp[i, ids[i + 1]] for i in range(len(ids) - 1) if mask[i + 1]]
    loss = sum(picked) / len(picked)
    truth, = torch.autograd.grad(loss, model.lm_head.weight)
    torch.testing.assert_close(got, truth, atol=1e-6, rtol=1e-4)
    everything = midtrain_rows(TOKENIZER, [CALL], [], 96)
    model.zero_grad()
    model(everything.x.long(), everything.y.long()).backward()
    assert (model.lm_head.weight.grad - truth).abs().max() > 1e-3       # midtraining's gradient is another


def test_same_inputs_as_midtraining_but_fewer_targets():
    conversations = [CALL] + [talk(f"What is {i}?", f"It is {i}.") for i in range(9)]
    ours, mid = sft_rows(TOKENIZER, conversations, 96), midtrain_rows(TOKENIZER, conversations, [], 96)
    assert torch.equal(ours.x, mid.x)
    kept = ours.y != -1
    assert torch.equal(ours.y[kept], mid.y[kept]) and 0 < kept.sum() < (mid.y != -1).sum()
    total = sum(sum(TOKENIZER.render(c)[1]) for c in conversations)
    assert kept.sum() == total


def test_a_row_without_targets_does_not_poison_the_loss():
    "Published nanochat's collapse at short rows: a row of pure padding has 0 targets, and 0/0 is NaN."
    model, rows = tiny_model(), sft_rows(TOKENIZER, [CALL], 96)
    empty = Rows(rows.x.clone(), torch.full_like(rows.y, -1))
    assert model(empty.x.long(), empty.y.long()).item() == 0
    params = list(model.parameters())
    loss = gradients(model, params, [(empty.x.long(), empty.y.long())] * 2)              # nor the loop's own mean
    assert loss == 0 and all(p.grad.isfinite().all() and not p.grad.any() for p in params)
    for p in params: p.grad = None


def test_sft_trains_on_answers_only(tmp_path):
    "After training the answers are likely; the questions, whose words appear nowhere else, stay unlikely."
    data = [talk("Box hat box?", "It is red.") for _ in range(8)]
    recipe = {"rows": 2, "steps": 30, "lr_scale": 1.0, "warmdown": 0.8, "save_every": 0}
    model = tiny_model()
    def nats(supervised):
        ids, mask = TOKENIZER.render(data[0])
        with torch.no_grad(): logp = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
        terms = [-logp[i, ids[i + 1]].item() for i in range(1, len(ids) - 1) if mask[i + 1] == supervised]
        return sum(terms) / len(terms)
    before = nats(0)
    metrics = sft(Run("r", tmp_path).stage("sft", recipe, None, "d"), recipe, model=model, tokenizer=TOKENIZER,
                  conversations=data, make_optimizer=muon.make_optimizer)
    assert nats(1) < 0.2 and nats(0) > before - 1.0
    assert metrics["steps"] == 30 and metrics["rows"] == 2 and (tmp_path / "r" / "sft" / "metrics.json").exists()
