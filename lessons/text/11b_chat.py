# %% [markdown]
# # 11b Chat

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
from nanochat.workshop import UserError


# %%
#| export
class Readable:
    """Tokens of a reply, one at a time, to text for people: whole characters, tool calls as `[12+7 -> 19]`.

    Special tokens are never shown."""

    def __init__(self, tokenizer):
        self.decoder, self.call = stream_decoder(tokenizer), ""     # call: "", "open", "closed" or "output"
        self.first_special = tokenizer.vocab_size - len(SPECIALS)
        self.marks = {tokenizer.python_start: self._open, tokenizer.python_end: self._close,
                      tokenizer.output_start: self._output}

    def push(self, token: int) -> str:
        "The text that became certain with this token; it may be empty."
        if token >= self.first_special: return self.decoder.flush() + self.marks.get(token, self._end)()
        lost = self._end() if self.call == "closed" else ""      # text behind a call that got no result
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
#| export
def as_parts(
    text: str,             # an assistant's reply as it was shown
) -> str | list[dict]:     # content of a message: text, or text, python and python_output parts
    "Turn `[12+7 -> 19]` back into a tool call, so that the model reads its own words as it wrote them."
    parts, at = [], 0
    for call in re.finditer(r"\[([^\[\]]*) -> ([^\[\]]*)\]", text):
        parts += [{"type": "text", "text": text[at : call.start()]}, {"type": "python", "text": call[1]},
                  {"type": "python_output", "text": call[2]}]
        at = call.end()
    if not parts: return text
    parts.append({"type": "text", "text": text[at:]})
    return [p for p in parts if p["text"] or p["type"] != "text"]


# %%
#| export
def fit_history(
    tokenizer,
    history: Sequence[dict],  # roles alternate, user first; the last message is the user's
    room: int,                # tokens
) -> list[int]:               # a prompt: bos, the newest turns that fit, assistant_start
    "Forget the oldest turns, whole, until the rest fits. `UserError` when the last message alone does not."
    messages = [m if m["role"] == "user" else m | {"content": as_parts(m["content"])} for m in history]
    first = len(messages) - 1
    used = len(tokenizer.render_prompt({"messages": messages[first:]}))
    if used > room:
        raise UserError(f"this message is {used} tokens long and the model can read {room}; please say it shorter")
    while first >= 2:
        used += len(tokenizer.render({"messages": messages[first - 2 : first]})[0]) - 1      # less its bos
        if used > room: break
        first -= 2
    return tokenizer.render_prompt({"messages": messages[first:]})


# %%
#| export
class Chat:
    """A conversation with a model: it remembers what was said, answers piece by piece and may use its tool.

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
        prompt = fit_history(self.tokenizer, history, context - min(self.max_new_tokens, context // 4))
        tokens = stream(self.model, prompt, stop=(self.tokenizer.assistant_end, self.tokenizer.bos),
                        max_new_tokens=self.max_new_tokens, seed=self.seed, tool=self.tool, **self.options)
        self.seed += 1
        readable = Readable(self.tokenizer)
        for token, _ in islice(tokens, context - len(prompt)):       # forced tokens need room too
            if piece := readable.push(token): yield piece
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
#| export
def suggestions(
    seed: int = 0,  # other seeds, other people and numbers
) -> list[str]:
    "Five messages to try on a model of the little world, one for each thing it learned."
    asked = {kind: microworld.conversations(kind, 1, seed, split="test")[0]["messages"][0]["content"]
             for kind in ("profile", "word1")}
    word = microworld.spelling_words()[1][seed]
    letter = max(word, key=word.count)
    return ["Who are you?", asked["profile"], asked["word1"], f"How many {letter} are in {word}?",
            "Tell me a story."]


def opening(
    examples: Sequence[str],  # messages to try
) -> str:
    "What a visitor reads first: what this model can do, and what it cannot."
    lines = "\n".join(f"  {example}" for example in examples)
    return ("You talk to a very small model. It knows only the world of the texts it was trained on, and it will "
            f"answer anything else with a guess.\nTry:\n{lines}\nquit or exit leaves, clear begins anew, "
            "Ctrl-C stops an answer.")


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
    "Talk in a terminal until quit, exit or the end of the input. Ctrl-C stops an answer, or leaves at the prompt."
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
