# %% [markdown]
# # 11b Chat
#
# **Promise.** You join model, cache and calculator into something that you can talk to: in a terminal, and in a panel in this notebook.
#
# After this lesson you can
#
# * turn a stream of tokens into clean text, tool calls included;
# * keep a conversation inside the model's context without cutting a turn in half;
# * stop an answer in the middle and go on talking;
# * say what an honest chat program should tell its user first.
#
# You need lessons 08 (the cache) and 09 (the tool). Reading: 15 minutes. Doing: 20 minutes. Computing: about ten seconds, or none where you have a finished run.

# %%
#| default_exp chat

# %%
#| export
import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice

from nanochat import microworld
from nanochat.engine import decoding_model, stream
from nanochat.tokenizer import SPECIALS, stream_decoder
from nanochat.tools import calculate
from nanochat.workshop import UserError

# %% [markdown]
# ## Somebody to talk to
#
# If you have a finished run, we take the newest. If not, we finetune a tiny model for a moment: its answers will be poor, and everything below works the same.

# %%
import tempfile

import torch

from nanochat.checkpoint import Run, last_step, load_weights, newest_finished
from nanochat.gpt import GPT, GPTConfig, config_for
from nanochat.muon import make_optimizer
from nanochat.sft import sft
from nanochat.tokenizer import Tokenizer
from nanochat.tools import make_tool
from nanochat.workshop import by_tier, seed_all

def finished_model():
    "Tokenizer and model of the newest finished run, or None."
    for name in ("rl", "sft"):
        run = newest_finished(name)
        if run is None or last_step(run.path / name) is None: continue
        found = load_weights(run.path / name)
        model = GPT(GPTConfig.from_dict(found["extra"]["config"]))
        model.load_state_dict(found["model"])
        return Tokenizer.load(run.path / "tokenizer"), model

def tiny_model():
    "A model that was finetuned for a few seconds on questions about people."
    talks = microworld.conversations("profile", 300, 0) + microworld.conversations("word1", 300, 0)
    tokenizer = Tokenizer.train([c["messages"][0]["content"] for c in talks], 400)
    model = GPT(config_for(2, tokenizer.vocab_size, 256, head_dim=64), seed=0)
    recipe = {"rows": 4, "steps": by_tier(25, 300), "warmdown": 0.5, "lr_scale": 1.0, "save_every": 0}
    stage = Run("lesson11b", tempfile.mkdtemp()).stage("sft", recipe, None, "talks")
    sft(stage, recipe, model=model, tokenizer=tokenizer, conversations=talks, make_optimizer=make_optimizer)
    return tokenizer, model

seed_all(0)
tokenizer, model = finished_model() or tiny_model()
tool = make_tool(tokenizer)
print(f"{model.num_params()['total']:,} parameters, context {model.config.seq_len}")

# %% [markdown]
# ## From tokens to text
#
# The engine gives tokens, one at a time. Printing each one by itself goes wrong in two ways. Look at this reply, which contains a smile and a calculation.

# %%
reply = [*tokenizer.encode("\U0001f600 It is "), tokenizer.python_start, *tokenizer.encode("12+7"), tokenizer.python_end,
         tokenizer.output_start, *tokenizer.encode("19"), tokenizer.output_end, *tokenizer.encode("."), tokenizer.assistant_end]
print("".join(tokenizer.decode([token]) for token in reply))


# %% [markdown]
# The smile is four bytes in several tokens, and no single one of them is a character: you see four replacement marks. And the special tokens are for the model, not for people. (Published nanochat's
# terminal chat prints both to this day.) So we need a small machine that remembers two things: unfinished bytes, and whether we are inside a tool call.

# %%
#| export
class Readable:
    """Tokens of a reply, one at a time, to text for people.

    Characters come whole, tool calls read `[12+7 -> 19]`, and `[12+7 -> (guessed) 20]` where the model
    wrote the output itself. Special tokens are never shown."""

    def __init__(self, tokenizer):
        self.decoder = stream_decoder(tokenizer)
        self.call = ""                                          # "", "open", "closed" or "output"
        self.first_special = tokenizer.vocab_size - len(SPECIALS)
        self.marks = {tokenizer.python_start: self._open, tokenizer.python_end: self._close,
                      tokenizer.output_start: self._output}

    def push(self, token: int, sampled: bool = False) -> str:
        "The text that became certain with this token; it may be empty."
        if token >= self.first_special:
            text = self.decoder.flush() + self.marks.get(token, self._end)()
            return text + "(guessed) " * (sampled and self.call == "output")
        lost = self._end() if self.call == "closed" else ""     # text, but the call got no result
        return lost + self.decoder.push(token)

    def flush(self) -> str:
        "What is left when the reply ends, perhaps in the middle of a character or a call."
        return self.decoder.flush() + self._end()

    def _open(self) -> str:
        before, self.call = self._end(), "open"
        return before + "["

    def _close(self) -> str:
        if self.call == "open": self.call = "closed"
        return ""

    def _output(self) -> str:
        before, self.call = "" if self.call else "[", "output"
        return before + " -> "

    def _end(self) -> str:
        was, self.call = self.call, ""
        return "]" if was else ""


# %%
readable = Readable(tokenizer)
pieces = [readable.push(token) for token in reply] + [readable.flush()]
print([p for p in pieces if p])
assert "".join(pieces) == "\U0001f600 It is [12+7 -> 19]."
guess = Readable(tokenizer)
assert "".join(guess.push(token, sampled=True) for token in reply[:-1]).endswith("[12+7 -> (guessed) 19].")


# %% [markdown]
# The user sees `[12+7 -> 19]`: what was asked of the tool and what it said. Hiding a calculation would be nicer to look at and less honest.
#
# **Trap: a forged output.** Midtraining has every token of a conversation as a target, the tool's output too. So a model may write the output itself, with a number
# that nobody computed, and on the screen it would look like the calculator's. The engine marks each token as sampled or forced; a sampled output is shown as a guess.
#
# On the next turn the model must read its own words again, as *tokens*: the call as a call, not as brackets. So the readable form has to be reversible. But only
# what the calculator says becomes a call again: brackets that the model merely wrote stay text.

# %%
#| export
def as_parts(
    text: str,             # an assistant's reply as it was shown
) -> str | list[dict]:     # content of a message: text, or text, python and python_output parts
    "Turn `[12+7 -> 19]` back into a tool call, where the calculator agrees; the rest stays text."
    parts, at = [], 0
    for call in re.finditer(r"\[([^\[\]]*) -> ([^\[\]]*)\]", text):
        if calculate(call[1]) != call[2]: continue
        parts += [{"type": "text", "text": text[at : call.start()]},
                  {"type": "python", "text": call[1]}, {"type": "python_output", "text": call[2]}]
        at = call.end()
    if not parts: return text
    parts.append({"type": "text", "text": text[at:]})
    return [p for p in parts if p["text"] or p["type"] != "text"]


# %%
print(as_parts("It is [12+7 -> 19]."))
said = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": as_parts("".join(pieces))}]}
ids, _ = tokenizer.render(said)
assert ids[ids.index(tokenizer.assistant_start) + 1:] == reply          # exactly the tokens the model wrote
for text in ("[not a call]", "[12+7 -> 99]", "[12+7 -> (guessed) 19]"): assert as_parts(text) == text


# %% [markdown]
# ## A memory that fits
#
# The model reads at most its context. A long conversation has to lose something, and what it loses matters: cut in the middle of a turn, the model sees half a question as if it were
# the start of the world. So we drop whole turns, the oldest first, and always keep `<|bos|>`. If the last message alone is too long, no answer can be right, and we say so.

# %%
#| export
def fit_history(
    tokenizer,
    history: Sequence[dict],  # roles alternate, user first; the last message is the user's
    room: int,                # tokens
) -> list[int]:               # a prompt: bos, the newest turns that fit, assistant_start
    "Forget the oldest turns, whole, until the rest fits. `UserError` when no turn can be spared."
    messages = [m if m["role"] == "user" else m | {"content": as_parts(m["content"])}
                for m in history]
    first = len(messages) - 1
    used = len(tokenizer.render_prompt({"messages": messages[first:]}))
    if used > room:
        raise UserError(f"this message is {used} tokens long and the model can read {room}; "
                        "please say it shorter")
    while first >= 2:
        turn, _ = tokenizer.render({"messages": messages[first - 2 : first]})
        used += len(turn) - 1                                   # less its bos
        if used > room: break
        first -= 2
    return tokenizer.render_prompt({"messages": messages[first:]})


# %%
history = []
for i in range(20): history += [{"role": "user", "content": f"Number {i}?"}, {"role": "assistant", "content": f"Yes, {i}."}]
history.append({"role": "user", "content": "And now?"})
for room in (120, 60, 30):
    ids = fit_history(tokenizer, history, room)
    print(f"room {room:3d}: {len(ids):3d} tokens, {ids.count(tokenizer.user_start)} turns")
    assert ids[0] == tokenizer.bos and ids[1] == tokenizer.user_start and len(ids) <= room
try: fit_history(tokenizer, [{"role": "user", "content": "very " * 200}], 100)
except UserError as e: print("refused:", e)


# %% [markdown]
# ## Chat
#
# Everything comes together in one class. `reply` is a generator over any history: it holds no state of the conversation, so a widget, a terminal and a web server can use the same one. `say` adds the memory. Each reply has its
# own seed: with the same seed every turn, the same question gets the same answer for ever.
#
# Forced tokens are free of charge in the sampler, but they need room in the context like all others. The `islice` is what stops a tool that never stops.

# %%
#| export
class Chat:
    """A conversation with a model: it remembers, answers piece by piece and may use its tool.

    `reply` is a generator of text over any history, as `workshop.ChatWidget` wants it."""

    def __init__(self,
        model,
        tokenizer,
        tool: Callable | None = None,  # row tokens -> tokens to force next, or None
        *,
        max_new_tokens: int = 128,     # that the model chooses in one reply, at most
        temperature: float = 0.6,      # 0: always the likeliest token
        top_k: int | None = 50,
        seed: int = 0,                 # of the first reply; each one gets its own
    ):
        self.model, self.tokenizer, self.tool = decoding_model(model), tokenizer, tool
        self.options = {"temperature": temperature, "top_k": top_k}
        self.max_new_tokens, self.seed, self.history = max_new_tokens, seed, []

    def reply(self,
        history: Sequence[dict],  # messages; the last one is the user's
    ) -> Iterator[str]:           # pieces of text
        "The answer to a history. `UserError` when the last message is too long for the model."
        context = self.model.config.seq_len
        reserve = min(self.max_new_tokens, context // 4)        # room for the answer
        prompt = fit_history(self.tokenizer, history, context - reserve)
        tokens = stream(self.model, prompt, stop=(self.tokenizer.assistant_end, self.tokenizer.bos),
                        max_new_tokens=self.max_new_tokens, seed=self.seed, tool=self.tool,
                        **self.options)
        self.seed += 1
        readable = Readable(self.tokenizer)
        for token, sampled in islice(tokens, context - len(prompt)):     # forced tokens need room too
            if piece := readable.push(token, sampled): yield piece
        if piece := readable.flush(): yield piece

    def say(self, text: str) -> Iterator[str]:
        "Answer and remember, also when the answer is broken off."
        asked, said = [*self.history, {"role": "user", "content": text}], ""
        try:
            for piece in self.reply(asked):
                said += piece
                yield piece
        finally:
            if said: self.history = [*asked, {"role": "assistant", "content": said}]

    def clear(self) -> None:
        "Forget the conversation."
        self.history = []


# %%
chat = Chat(model, tokenizer, tool, max_new_tokens=40)
for question in (microworld.conversations("profile", 1, 5)[0]["messages"][0]["content"], "What is 12 and 7?"):
    print("you:  ", question)
    print("model:", "".join(chat.say(question)))
assert "<|" not in "".join(m["content"] for m in chat.history)

# %%
short = Chat(model, tokenizer, tool, max_new_tokens=30, temperature=1.0, seed=1)
pieces = short.say("Tell me a story.")
print("the first piece:", repr(next(pieces)))
pieces.close()                                      # what a Stop button does
print(short.history)
assert len(short.history) == 2                      # what was said so far is remembered


# %% [markdown]
# ## In this notebook
#
# `ChatWidget` of lesson 00a takes any generator of text. This one is yours. Click an example, or type. Stop works in the middle of an answer.

# %%
#| export
def suggestions(
    seed: int = 0,  # other seeds, other people and numbers
) -> list[str]:
    "Five messages to try on a model of the little world, one for each thing it learned."
    talks = [microworld.conversations(kind, 1, seed, split="test")[0]
             for kind in ("profile", "word1")]
    profile, sums = (talk["messages"][0]["content"] for talk in talks)
    held_out = microworld.spelling_words()[1]
    word = held_out[seed % len(held_out)]
    letter = max(word, key=word.count)
    return ["Who are you?", profile, sums, f"How many {letter} are in {word}?", "Tell me a story."]


def opening(
    examples: Sequence[str],  # messages to try
) -> str:
    "What a visitor reads first: what this model can do, and what it cannot."
    lines = "\n".join(f"  {example}" for example in examples)
    return ("You talk to a very small model. It knows only the world of its training texts,\n"
            f"and it will answer anything else with a guess. Try:\n{lines}\n"
            "quit or exit leaves, clear begins anew, Ctrl-C stops an answer.")


# %%
from nanochat.workshop import ChatWidget

examples = suggestions()
print(opening(examples))
widget = ChatWidget(chat.reply, examples=examples)
widget

# %%
widget.submit(examples[1])             # the same as typing it
widget.worker.join()
print(widget.history[-1], "|", widget.status.value.split(":")[0])
assert widget.status.value.startswith("done")

# %% [markdown]
# **What to say first.** A small model answers everything in the same confident tone, also what it cannot know. The greeting is the cheapest honesty there is: it says what the model knows, gives five messages that work, and says that the rest is guessing.
#
# ## In a terminal
#
# The same chat with `print` and `input`. Three details are easy to get wrong. Ctrl-C during an answer stops *that answer*. The end of the input (Ctrl-D, or a pipe that runs dry) leaves quietly instead of with a traceback. And a message that is
# too long costs one line, not the program. `read` and `write` are arguments, so a test can play the user.

# %%
#| export
_write = partial(print, end="", flush=True)


def _answer(chat: Chat, text: str, write: Callable[[str], object]) -> None:
    "Write one answer as it grows; Ctrl-C ends it, a message that is too long gets one line."
    write("model: ")
    try:
        with contextlib.closing(chat.say(text)) as pieces:
            for piece in pieces: write(piece)
    except KeyboardInterrupt: write(" (stopped)")
    except UserError as e: write(f"({e})")
    write("\n")


def terminal_chat(
    chat: Chat,
    greeting: str = "",                         # shown first
    read: Callable[[str], str] = input,         # asks for a line; EOFError at the end
    write: Callable[[str], object] = _write,
) -> None:
    """Talk in a terminal until quit, exit or the end of the input.

    Ctrl-C stops an answer; at the prompt it leaves."""
    if greeting: write(greeting + "\n")
    while True:
        try: text = read("\nyou: ").strip()
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return
        if text.lower() in ("quit", "exit"): return
        if text.lower() == "clear":
            chat.clear()
            write("(a new conversation)\n")
        elif text: _answer(chat, text, write)


def sample_dialogue(
    chat: Chat,
    questions: Iterable[str],                   # each begins a new conversation
    write: Callable[[str], object] = _write,
) -> None:
    "Ask some questions and write the answers: a chat for where there is no terminal."
    for question in questions:
        chat.clear()
        write(f"you: {question}\n")
        _answer(chat, question, write)
        write("\n")


# %%
lines = iter(["hello", "very " * 400, "clear", "Who are you?", "quit"])
terminal_chat(Chat(model, tokenizer, tool, max_new_tokens=16), "(a recorded session)", read=lambda prompt: next(lines))

# %%
sample_dialogue(Chat(model, tokenizer, tool, max_new_tokens=24), examples[:2])

# %% [markdown]
# **Trap: generation that blocks.** In a notebook, a button cannot be clicked while a cell runs. So the widget generates in a thread, and Stop sets a flag that is looked at between pieces. Published nanochat's server met the same problem from the
# other side: its blocking loop inside an asynchronous handler made all users wait for one.
#
# ## Recap
#
# * Bytes wait until they are a character; special tokens are never shown; a tool call is shown and reversible.
# * Whole turns are forgotten, oldest first; `<|bos|>` stays; too long is said in one line.
# * `reply` is a generator without memory, `say` remembers, also what was broken off.
# * Ctrl-C stops an answer, the end of input leaves.
# * Tell the user what the model knows before they ask.
#
# Next: the capstone, which runs all stages with one command and ends in this chat.
