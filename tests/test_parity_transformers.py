"The model against `transformers`' NanoChatForCausalLM with our weights: logits, loss, gradients and greedy text."
import pytest
import torch

from nanochat.attention import attend_sdpa
from nanochat.gpt import GPT, config_for
from nanochat.sample import make_sampler
from nanochat.workshop import UserError

from nanochat_hf import their_config, their_names, to_transformers

torch.set_num_threads(1)

SIZES = {                                          # name: depth, vocabulary, context, head size, key heads
    "odd depth": dict(depth=3, vocab_size=301, seq_len=64, head_dim=64),
    "two query heads share a key head": dict(depth=4, vocab_size=1024, seq_len=32, head_dim=64, kv_heads=2),
    "all share one, heads of 128": dict(depth=6, vocab_size=512, seq_len=48, head_dim=128, kv_heads=1),
}


def lively(seed=0, **sizes):
    "A model whose zero matrices were filled with what training leaves there: every path counts."
    model = GPT(config_for(**sizes), seed=seed)
    g = torch.Generator().manual_seed(seed + 1)
    for p in model.parameters():
        if not p.any(): torch.nn.init.normal_(p, std=0.05, generator=g)
    return model


def tokens(model, B=3, T=None, seed=0):
    return torch.randint(model.config.vocab_size, (B, T or model.config.seq_len), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=SIZES.values(), ids=SIZES)
def pair(request):
    ours = lively(**request.param)
    return ours, to_transformers(ours)


@pytest.mark.parametrize("times", [1, 5], ids=["context", "five times the context"])
def test_logits_are_equal(pair, times):
    ours, theirs = pair
    idx = tokens(ours, T=times * ours.config.seq_len)
    with torch.no_grad(): a, b = ours(idx), theirs(idx).logits
    assert a.std() > 0.3 and (a - b).abs().max() < 1e-4        # logits that say something, said alike


def test_loss_and_every_gradient_are_equal(pair):
    "Positions that do not count included: -1 with us, -100 with them, who shift the labels themselves."
    ours, theirs = pair
    idx = tokens(ours, seed=1)
    labels = idx.clone()
    labels[0, :9] = -100
    for model in pair: model.zero_grad()
    a = ours(idx[:, :-1], labels[:, 1:].masked_fill(labels[:, 1:] < 0, -1))
    b = theirs(idx, labels=labels).loss
    assert abs(a.item() - b.item()) < 1e-4
    a.backward(), b.backward()
    names = their_names(ours.config.n_layer)
    for name, p in ours.named_parameters():
        grad = theirs.get_parameter(names[name]).grad
        assert grad.any() and (p.grad - grad).abs().max() < 1e-4 * grad.abs().max() + 1e-7, name


def test_greedy_text_is_equal(pair):
    ours, theirs = pair
    for prompt in tokens(ours, B=3, T=5, seed=2).tolist():
        mine, = make_sampler(ours, [])([prompt], max_new_tokens=40, temperature=0)
        text = theirs.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, use_cache=True)
        assert text[0, len(prompt):].tolist() == mine.tokens and len(set(mine.tokens)) > 1


def test_the_fused_attention_is_theirs_too():
    ours = lively(**SIZES["two query heads share a key head"])
    for block in ours.blocks: block.attn.attend = attend_sdpa
    idx = tokens(ours)
    for form in ("eager", "sdpa"):
        with torch.no_grad(): assert (ours(idx) - to_transformers(ours, attn_implementation=form)(idx).logits).abs().max() < 1e-4


def test_training_stays_together():
    "Ten steps of AdamW on the same batches, each model with its own optimizer: one curve."
    ours = GPT(config_for(2, 64, 32, head_dim=64))
    theirs = to_transformers(ours)
    curves = []
    for model in (ours, theirs):
        optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0), []
        for step in range(10):
            idx = tokens(ours, B=4, T=33, seed=step)
            loss = model(idx[:, :-1], idx[:, 1:]) if model is ours else model(idx, labels=idx).loss
            optimizer.zero_grad(), loss.backward(), optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][0] == pytest.approx(curves[1][0], abs=1e-5)
    assert curves[0] == pytest.approx(curves[1], abs=1e-3) and len(set(curves[0])) == 10


def test_the_oracle_can_fail():
    "What their class takes by default is another function: each of these is seen by the comparison."
    ours = lively(**SIZES["two query heads share a key head"])
    idx = tokens(ours)
    with torch.no_grad():
        exact = ours(idx)
        for wrong in (dict(rms_norm_eps=1e-2), dict(final_logit_softcapping=30.0),
                      dict(rope_parameters={"rope_type": "default", "rope_theta": 100_000.0})):
            assert (to_transformers(ours, **wrong)(idx).logits - exact).abs().max() > 1e-3, wrong


def test_what_their_class_cannot_say_is_refused():
    with pytest.raises(UserError, match="windows"): their_config(config_for(3, 64, 32, head_dim=64, window=(8,)))
    assert their_config(config_for(3, 64, 32, head_dim=64)).intermediate_size == 4 * 192
