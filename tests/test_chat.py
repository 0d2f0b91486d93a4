"Chat: what is shown, what is remembered, what is forgotten, and how it is stopped."
import io
import threading

import pytest
import torch

from nanochat import chat as chat_module
from nanochat.chat import Chat, Readable, as_parts, fit_history, opening, sample_dialogue, suggestions, terminal_chat
from nanochat.gpt import GPT, GPTConfig
from nanochat.sample import make_sampler
from nanochat.tokenizer import SPECIALS, Tokenizer
from nanochat.tools import make_tool
from nanochat.workshop import ChatWidget, UserError

TOKENIZER = Tokenizer.train(["What is the colour of the box? It is red. " * 3], 290)
T = TOKENIZER


def tiny_model(T_=64, seed=0):
    model = GPT(GPTConfig(vocab_size=TOKENIZER.vocab_size, seq_len=T_, n_layer=1, n_head=1, n_kv_head=1, n_embd=16), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters(): p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model


def user(text): return {"role": "user", "content": text}
def assistant(text): return {"role": "assistant", "content": text}


def shown(ids):
    readable = Readable(TOKENIZER)
    return [readable.push(i) for i in ids] + [readable.flush()]


def scripted(monkeypatch, *replies):
    "Let the model say these token lists, one reply after the other; returns the prompts it was given."
    prompts, left = [], list(replies)
    def stream(model, prompt, **options):
        prompts.append((prompt, options))
        forced = False                                     # the tool writes its output
        for token in left.pop(0):
            forced = forced or token == T.output_start
            yield token, not forced
            forced = forced and token != T.output_end
    monkeypatch.setattr(chat_module, "stream", stream)
    return prompts


CALL = [*T.encode("It is "), T.python_start, *T.encode("12+7"), T.python_end, T.output_start, *T.encode("19"), T.output_end,
        *T.encode(" so 19."), T.assistant_end]


def test_calls_are_readable_and_specials_hidden():
    assert "".join(shown(CALL)) == "It is [12+7 -> 19] so 19."
    every = [T.special(name) for name in SPECIALS]
    text = "".join(shown([i for s in every for i in (s, *T.encode("x"))]))
    assert "<|" not in text and "|>" not in text


@pytest.mark.parametrize("ids, text", [
    ([T.python_start, *T.encode("1+")], "[1+]"),                                             # cut in the call
    ([T.python_start, *T.encode("1+"), T.python_end, *T.encode(" no")], "[1+] no"),          # no result came
    ([T.python_start, *T.encode("1+"), T.python_end, T.assistant_end], "[1+]"),
    ([T.output_start, *T.encode("3"), T.output_end], "[ -> 3]"),
    ([T.python_start, T.python_start, *T.encode("1"), T.python_end, T.output_start, T.output_end], "[][1 -> ]"),
    ([T.python_end, *T.encode("a")], "a"),
])
def test_broken_calls_stay_readable(ids, text): assert "".join(shown(ids)) == text


def test_characters_come_whole():
    ids = T.encode("a\U0001f600b\u00e9")
    pieces = shown(ids)
    assert "".join(pieces) == "a\U0001f600b\u00e9" and all("\ufffd" not in p for p in pieces)
    assert len(ids) > 4                                     # several tokens a character, else this proves nothing
    half = T.encode("\U0001f600")[:2]
    assert "".join(shown([*half, T.assistant_end])) == "\ufffd"
    assert "".join(shown([*half, T.python_start, *T.encode("1")])) == "\ufffd[1]"       # not swallowed by the next mark


@pytest.mark.parametrize("content", [
    "Hello.", [{"type": "text", "text": "It is "}, {"type": "python", "text": "12+7"}, {"type": "python_output", "text": "19"},
               {"type": "text", "text": " so 19."}],
    [{"type": "python", "text": "' red'.count('r')"}, {"type": "python_output", "text": "1"}]])
def test_what_is_shown_is_read_back_as_it_was_written(content):
    ids, mask = T.render({"messages": [user("x"), assistant(content)]})
    at = ids.index(T.assistant_start) + 1
    assert as_parts("".join(shown(ids[at:]))) == content


def test_text_that_only_looks_like_a_call():
    for text in ("[12+7", "[a]", "1 -> 2", "[12+7]"): assert as_parts(text) == text


def test_history_keeps_bos_and_whole_turns():
    history = []
    for i in range(6): history += [user(f"What is {i}?"), assistant(f"It is {i}.")]
    history.append(user("What is the colour?"))
    full = T.render_prompt({"messages": history})
    assert fit_history(T, history, len(full)) == full
    for room in range(len(full) - 1, 20, -7):
        ids = fit_history(T, history, room)
        assert len(ids) <= room and ids[0] == T.bos and ids.count(T.bos) == 1 and ids[1] == T.user_start
        assert full[-(len(ids) - 1):] == ids[1:]                         # the newest turns, unchanged
        assert ids.count(T.user_start) == ids.count(T.assistant_start)
        dropped = 6 - (ids.count(T.user_start) - 1)
        assert dropped == 0 or len(T.render_prompt({"messages": history[2 * (dropped - 1):]})) > room      # no more than needed


def test_too_long_a_message_is_one_line():
    with pytest.raises(UserError, match=r"is \d+ tokens long and the model can read 20") as e:
        fit_history(T, [user("box " * 40)], 20)
    assert "\n" not in str(e.value)


def test_a_tool_call_in_the_history_is_read_as_a_call():
    ids = fit_history(T, [user("x"), assistant("It is [12+7 -> 19] so 19."), user("y")], 200)
    start = ids.index(T.assistant_start) + 1
    assert ids[start : start + len(CALL)] == CALL


def test_reply_equals_the_sampler(monkeypatch):
    "Streaming says what the plain sampler says, with a tool in the way."
    model, tool = tiny_model(), make_tool(T)
    for seed in range(3):
        chat = Chat(model, T, tool, max_new_tokens=12, temperature=1.0, top_k=0, seed=seed)
        text = "".join(chat.reply([user("What is it?")]))
        sampler = make_sampler(model, (T.assistant_end, T.bos))
        sample, = sampler([T.render_prompt({"messages": [user("What is it?")]})], max_new_tokens=12, seed=seed, tool=tool)
        assert text == "".join(shown(sample.tokens))


def test_each_reply_has_its_own_seed(monkeypatch):
    prompts = scripted(monkeypatch, [5], [6])
    chat = Chat(tiny_model(), T, seed=7)
    list(chat.say("a")), list(chat.say("b"))
    assert [options["seed"] for _, options in prompts] == [7, 8]


def test_memory(monkeypatch):
    prompts = scripted(monkeypatch, CALL, T.encode("Yes."), T.encode("No."))
    chat = Chat(tiny_model(128), T)
    list(chat.say("one")), list(chat.say("two"))
    assert [m["content"] for m in chat.history] == ["one", "It is [12+7 -> 19] so 19.", "two", "Yes."]
    assert prompts[1][0][: len(prompts[0][0])] == prompts[0][0] and T.output_start in prompts[1][0]
    chat.clear()
    list(chat.say("three"))
    assert prompts[2][0] == T.render_prompt({"messages": [user("three")]})


def test_an_output_that_the_model_wrote_itself_is_shown_as_a_guess_and_stays_text(monkeypatch):
    prompts = scripted(monkeypatch, CALL, T.encode("No."))
    forge = chat_module.stream
    monkeypatch.setattr(chat_module, "stream", lambda *a, **k: ((token, True) for token, _ in forge(*a, **k)))
    chat = Chat(tiny_model(128), T)
    list(chat.say("one")), list(chat.say("two"))
    assert chat.history[1]["content"] == "It is [12+7 -> (guessed) 19] so 19."
    assert T.output_start not in prompts[1][0]
    assert chat_module.as_parts("It is [12+7 -> 99].") == "It is [12+7 -> 99]."


def test_a_reply_ends_where_the_context_does():
    "Even when a tool forces tokens for ever, which do not count as new."
    model = tiny_model(48)
    chat = Chat(model, T, tool=lambda tokens: [T.output_start, 65, 66, T.output_end], max_new_tokens=40, temperature=1.0)
    pushed = []
    readable = Readable.push
    try:
        Readable.push = lambda self, token, sampled: pushed.append(token) or readable(self, token, sampled)
        list(chat.reply([user("What?")]))
    finally: Readable.push = readable
    prompt = T.render_prompt({"messages": [user("What?")]})
    assert len(prompt) + len(pushed) <= 48


def talk(chat, lines, **options):
    "What a terminal would show for these lines; an exception in the list is raised instead."
    out, lines = io.StringIO(), list(lines)
    def read(prompt):
        if not lines: raise EOFError
        line = lines.pop(0)
        if isinstance(line, type): raise line
        return line
    terminal_chat(chat, read=read, write=out.write, **options)
    return out.getvalue(), lines


def test_terminal_words_and_end_of_input(monkeypatch):
    prompts = scripted(monkeypatch, T.encode("Red."), T.encode("Blue."))
    chat = Chat(tiny_model(), T)
    text, _ = talk(chat, ["  ", "hello", "clear", "again"], greeting="Welcome.")
    assert text == "Welcome.\nmodel: Red.\n(a new conversation)\nmodel: Blue.\n\n"
    assert len(prompts) == 2 and len(prompts[1][0]) == len(T.render_prompt({"messages": [user("again")]}))
    for word in ("quit", "EXIT"):
        text, left = talk(chat, [word, "more"])
        assert text == "" and left == ["more"]
    assert talk(chat, [KeyboardInterrupt, "more"])[1] == ["more"]


def test_ctrl_c_stops_the_reply_and_keeps_what_was_said(monkeypatch):
    def stream(model, prompt, **options):
        for token in T.encode("It is"): yield token, True
        raise KeyboardInterrupt
    monkeypatch.setattr(chat_module, "stream", stream)
    chat = Chat(tiny_model(), T)
    text, _ = talk(chat, ["hello"])
    assert text == "model: It is (stopped)\n\n"
    assert chat.history == [user("hello"), assistant("It is")]


def test_too_long_in_a_terminal_is_told_and_forgotten(monkeypatch):
    scripted(monkeypatch, T.encode("Red."))
    chat = Chat(tiny_model(), T)
    text, _ = talk(chat, ["box " * 90, "hello"])
    first, second = text.splitlines()[:2]
    assert first.startswith("model: (this message is") and second == "model: Red." and len(chat.history) == 2


def test_sample_dialogue(monkeypatch):
    prompts = scripted(monkeypatch, T.encode("A."), T.encode("B."))
    out = io.StringIO()
    sample_dialogue(Chat(tiny_model(), T), ["one", "two"], out.write)
    assert out.getvalue() == "you: one\nmodel: A.\n\nyou: two\nmodel: B.\n\n"
    assert T.render_prompt({"messages": [user("two")]}) == prompts[1][0]


def test_widget_streams_and_stops():
    "The real widget over the real chat, without a browser."
    chat = Chat(tiny_model(256), T, max_new_tokens=150, temperature=1.0, top_k=0, seed=1)
    widget = ChatWidget(chat.reply)
    widget.submit("What is <b>it</b>?")
    widget.worker.join(60)
    assert widget.history[1]["content"] and widget.status.value.startswith("done")
    assert "&lt;b&gt;" in widget.log.value and "<b>it" not in widget.log.value
    slow, started = threading.Event(), threading.Event()
    def reply(history):
        for piece in chat.reply(history):
            started.set()
            slow.wait(0.05)
            yield piece
    widget.reply = reply
    widget.submit("again")
    assert started.wait(30)
    widget.stop.click()
    widget.worker.join(30)
    assert widget.status.value.startswith("stopped")


@pytest.mark.parametrize("seed", [0, 440, 441, 1337, -442])
def test_every_seed_has_its_suggestions(seed):
    examples = suggestions(seed)
    assert len(examples) == 5 and examples[3].startswith("How many ")


def test_opening_names_the_examples():
    text = opening(["What is it?", "Spell box."])
    assert "What is it?" in text and "Spell box." in text and "only the world" in text
