"Chat evaluation: by letter against one-at-a-time, by generation, pass@k against counting."
import math
from itertools import combinations
from random import Random

import pytest
import torch

from nanochat import chat_eval
from nanochat.gpt import GPT, config_for
from nanochat.sample import Sample, make_sampler
from nanochat.tasks import Task, choice_conversation, same_letter
from nanochat.tokenizer import Tokenizer
from nanochat.workshop import UserError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer(): return Tokenizer.train(["Answer with the letter only. - red=A"] * 4, 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    gpt = GPT(config_for(2, vocab_size=tokenizer.vocab_size, seq_len=128, head_dim=32))
    gpt.init_weights(seed=0)
    generator = torch.Generator().manual_seed(1)
    for p in gpt.parameters(): torch.nn.init.normal_(p, std=0.2, generator=generator)
    return gpt


@pytest.fixture(scope="module")
def quiz():
    random = Random(0)
    rows = []
    for n in range(60):
        letters = random.choice(["ABCD", "ABC", "ABCDE", "1234"])
        options = ["x" * random.randrange(1, 20) for _ in letters]
        rows.append(choice_conversation(f"Question {n}?", options, letters, random.choice(letters)))
    return Task("quiz", rows, same_letter, "letter")


def test_letters_equal_one_at_a_time(model, tokenizer, quiz):
    right = 0
    for row in quiz:
        with torch.no_grad(): logits = model(torch.tensor([tokenizer.render_prompt(row)]))[0, -1]
        scores = {letter: logits[tokenizer.encode(letter)[0]].item() for letter in row["letters"]}
        right += max(scores, key=scores.get) == row["answer"]
    found = chat_eval.letter_accuracy(model, tokenizer, quiz)
    assert found["value"] == right / 60 and found["items"] == 60 and found["low"] < found["value"] < found["high"]
    assert found["baseline"] == pytest.approx(sum(1 / len(r["letters"]) for r in quiz) / 60)
    assert chat_eval.letter_accuracy(model, tokenizer, quiz, limit=7)["items"] == 7


def test_letter_choice_ignores_all_other_tokens(tokenizer):
    "The likeliest token is no letter of the item; the pick is the best of its own letters."
    def model(idx):
        logits = torch.zeros(*idx.shape, tokenizer.vocab_size)
        logits[..., ord("E")], logits[..., ord("I")], logits[..., ord("B")] = 9.0, 8.0, 1.0
        return logits
    row = choice_conversation("Q?", ["a", "b", "c", "d"], "ABCD", "B")
    assert chat_eval.letter_accuracy(model, tokenizer, Task("t", [row]))["value"] == 1.0


def test_a_marked_letter_without_a_sampler_is_refused():
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "=B"}], "letters": ["A", "B"],
           "answer": "B", "mark": "="}
    with pytest.raises(UserError, match="sampler="): chat_eval.letter_accuracy(None, None, Task("marked", [row], kind="letter"))


@pytest.mark.parametrize("text", ["- red=A - blue=B", "- red = A"])     # with =A as one token, and as two
def test_a_marked_letter_is_asked_for_after_the_models_own_words(text):
    "The model says an option first; the letters are compared behind its mark, whatever else it would have said."
    tokenizer = Tokenizer.train([text] * 8, 300)
    merged = len(tokenizer.encode("=A")) == 1
    assert merged == (text == "- red=A - blue=B")
    if merged: assert len(tokenizer.encode("=B")) == 1
    row = {"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": " blue=B"}],
           "letters": ["A", "B"], "answer": "B", "mark": "="}
    asked = []
    def model(idx):
        asked.extend(row[row != 0].tolist() for row in idx)
        logits = torch.zeros(*idx.shape, tokenizer.vocab_size)
        logits[..., tokenizer.encode("=B")[-1]] = 1.0
        return logits
    says = lambda prompts, **_: [Sample(tokenizer.encode(" blue=A and so on"), [True] * 9) for _ in prompts]
    assert chat_eval.letter_accuracy(model, tokenizer, Task("t", [row]), sampler=says)["value"] == 1.0
    assert tokenizer.decode(asked[0]).endswith(" blue" if merged else " blue=")


def test_padding_is_invisible(model, tokenizer):
    prompts = [[Random(i).randrange(256) for _ in range(n)] for i, n in enumerate((3, 50, 7, 20, 1))]
    for budget in (1, 80, 10_000):
        for i, logits in chat_eval.last_logits(model, prompts, budget):
            with torch.no_grad(): alone = model(torch.tensor([prompts[i]]))[0, -1]
            torch.testing.assert_close(logits, alone, atol=1e-4, rtol=1e-4)


def test_letters_must_be_single_tokens(tokenizer, model):
    row = choice_conversation("Q?", ["a", "b"], ["A", "é"], "A")
    with pytest.raises(UserError, match="not one"): chat_eval.letter_accuracy(model, tokenizer, Task("t", [row]))
    row |= {"letters": ["A", "B"], "mark": "é"}         # two tokens, but the same two
    assert chat_eval.letter_ids(tokenizer, row["letters"], "é") == (tokenizer.encode("é"), [65, 66])
    with pytest.raises(UserError, match="no conversations"): chat_eval.letter_accuracy(model, tokenizer, Task("t", []))


def sums(n):
    return Task("sums", [{"messages": [{"role": "user", "content": "1" * (n - i) + "?"},
                                       {"role": "assistant", "content": ""}], "answer": str(n - i)} for i in range(n)],
                lambda row, text: text == row["answer"])


def counting_sampler(tokenizer):
    "Answers with the length of the question; notes how it was called."
    calls = []
    def sampler(prompts, *, max_new_tokens, temperature=1.0, top_k=None, seed=0, tool=None):
        calls.append({"prompts": prompts, "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k,
                      "seed": seed, "tool": tool})
        answers = [tokenizer.encode(str(tokenizer.decode(p).count("1"))) for p in prompts]
        return [Sample([*a, tokenizer.assistant_end], [True] * (len(a) + 1)) for a in answers]
    return sampler, calls


def test_generation_keeps_the_order_of_rows(tokenizer):
    sampler, calls = counting_sampler(tokenizer)
    tool = lambda row: None
    found = chat_eval.generation_accuracy(sampler, tokenizer, sums(23), max_new_tokens=9, top_k=3, seed=5, tool=tool, batch_size=4)
    assert found["value"] == 1.0 and found["items"] == 23 and found["failures"] == [] and found["low"] < 1.0
    assert [len(c["prompts"]) for c in calls] == [4, 4, 4, 4, 4, 3]
    assert all((c["max_new_tokens"], c["temperature"], c["top_k"], c["tool"]) == (9, 0.0, 3, tool) for c in calls)
    assert all(c["prompts"] == sorted(c["prompts"], key=len) for c in calls)     # like lengths together
    assert chat_eval.generation_accuracy(sampler, tokenizer, sums(23), limit=6)["items"] == 6


def test_failures_can_be_read(tokenizer):
    wrong = lambda prompts, **_: [Sample(tokenizer.encode("no"), [True] * 2) for _ in prompts]
    found = chat_eval.generation_accuracy(wrong, tokenizer, sums(9), show=3)
    assert found["value"] == 0.0 and len(found["failures"]) == 3
    assert found["failures"][0] == {"question": "111111111?", "completion": "no", "answer": "9"}


def test_completion_text_drops_the_stop_token_only(tokenizer):
    text = lambda tokens: chat_eval.completion_text(tokenizer, Sample(tokens, [True] * len(tokens)))
    call = [tokenizer.python_start, *tokenizer.encode("1+1"), tokenizer.python_end]
    assert text([*tokenizer.encode("hi"), tokenizer.assistant_end]) == "hi" and text(tokenizer.encode("hi")) == "hi"
    assert text([tokenizer.bos]) == "" and text([]) == ""
    assert text(call) == "<|python_start|>1+1<|python_end|>"           # cut by the budget: nothing is lost


def test_a_real_model_through_the_naive_sampler(model, tokenizer):
    "Greedy generation by our function equals greedy generation one prompt at a time, by hand."
    task = Task("t", [{"messages": [{"role": "user", "content": "a" * n}, {"role": "assistant", "content": ""}], "answer": ""}
                      for n in (1, 5, 3)])
    sampler = make_sampler(model, [tokenizer.assistant_end, tokenizer.bos])
    texts = chat_eval.completions(sampler, tokenizer, task.rows, batch_size=2, max_new_tokens=6, temperature=0.0)
    for row, text in zip(task.rows, texts):
        ids = tokenizer.render_prompt(row)
        start = len(ids)
        for _ in range(6):
            with torch.no_grad(): ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
            if ids[-1] in (tokenizer.assistant_end, tokenizer.bos): break
        if ids[-1] in (tokenizer.assistant_end, tokenizer.bos): ids.pop()
        assert tokenizer.decode(ids[start:]) == text


def test_pass_at_k_counts_draws():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                outcomes = [True] * c + [False] * (n - c)
                drawn = [any(pick) for pick in combinations(outcomes, k)]
                assert chat_eval.pass_at_k(n, c, k) == pytest.approx(sum(drawn) / len(drawn))
    for k in (0, 9):
        with pytest.raises(ValueError): chat_eval.pass_at_k(8, 1, k)


def test_pass_accuracy_asks_each_question_so_often(tokenizer):
    seen = []
    def sampler(prompts, *, max_new_tokens, temperature, top_k, seed, tool):
        seen.extend(map(tuple, prompts))
        return [Sample(tokenizer.encode("3" if i % 4 == 0 else "0"), [True]) for i in range(len(prompts))]
    task = Task("t", [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": ""}], "answer": "3"}
                      for q in ("a", "b")], lambda row, text: text == row["answer"])
    found = chat_eval.pass_accuracy(sampler, tokenizer, task, samples=4)
    assert found == {k: pytest.approx(1 - math.comb(3, k) / math.comb(4, k)) for k in range(1, 5)}
    assert len(seen) == 8 and all(seen.count(p) == 4 for p in set(seen))


def test_chatcore():
    results = {"a": {"value": 0.25, "baseline": 0.25}, "b": {"value": 1.0, "baseline": 0.25}, "c": {"value": 0.1, "baseline": 0.0}}
    assert chat_eval.chatcore(results) == pytest.approx((0 + 1 + 0.1) / 3)
    with pytest.raises(UserError): chat_eval.chatcore({})
