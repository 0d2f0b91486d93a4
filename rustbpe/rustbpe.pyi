"""Byte-pair encoding in Rust: a trainer, and an encoder to check it with."""
from collections.abc import Iterable

class Tokenizer:
    """A byte-level BPE tokenizer without special tokens; it knows only the 256 bytes at first."""

    def __init__(self) -> None: ...
    def train_from_iterator(
        self,
        iterator: Iterable[str],
        vocab_size: int,
        buffer_size: int = 8192,
        pattern: str | None = None,
    ) -> None:
        """Learn merges from `iterator` until there are `vocab_size` tokens (bytes + merges).

        The most frequent pair is merged first; on equal counts the smaller pair (left id, then
        right id). Ends early when no pair is left. Up to `buffer_size` texts are held at a time;
        the GIL is released while they are counted. `pattern` None is nanochat's split pattern.
        Raises ValueError (pattern, sizes), TypeError (an item is not a str), and whatever the
        iterator raises; the tokenizer is then as it was before.
        """
    def get_mergeable_ranks(self) -> list[tuple[bytes, int]]:
        """Token bytes and rank (the id), in order of rank."""
    def get_pattern(self) -> str:
        """The split pattern."""
    @property
    def vocab_size(self) -> int:
        """Number of tokens: bytes and merges."""
    def encode(self, text: str) -> list[int]:
        """Ids of `text`."""
    def batch_encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, encoded by several threads."""
    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, invalid UTF-8 as U+FFFD. Raises ValueError for an unknown id."""
