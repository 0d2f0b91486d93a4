"""Byte-pair encoding in Rust: a trainer and an encoder."""
from collections.abc import Callable, Iterable, Sequence
from typing import Self

def split(text: str, pattern: str | None = None) -> list[str]:
    """The pieces into which `pattern` (None: nanochat's) cuts `text`. Raises ValueError."""

class Tokenizer:
    """A byte-level BPE tokenizer without special tokens; it knows only the 256 bytes at first."""

    def __init__(self) -> None: ...
    @classmethod
    def from_mergeable_ranks(
        cls, ranks: Sequence[tuple[bytes, int]], pattern: str | None = None
    ) -> Self:
        """A tokenizer from bytes and rank of its tokens, as `get_mergeable_ranks` gives them.

        Raises ValueError unless the ranks are 0, 1, 2, ... and begin with the 256 bytes.
        """
    def train_from_iterator(
        self,
        iterator: Iterable[str],
        vocab_size: int,
        buffer_size: int = 8192,
        pattern: str | None = None,
        *,
        threads: int | None = None,
        progress: Callable[[str, int, int | None], object] | None = None,
    ) -> None:
        """Learn merges from `iterator` until there are `vocab_size` tokens (bytes + merges).

        The most frequent pair is merged first; on equal counts the smaller pair (left id, then
        right id). Ends early when no pair is left. Texts are read in batches of at most
        `buffer_size` texts or about a megabyte, and counted without the GIL by `threads` threads
        (None: as many as there are cores). `pattern` None is nanochat's split pattern.
        `progress(stage, done, total)` is called up to ten times a second: stage "read" with the
        bytes so far and None, then "merge" with the merges so far and the merges asked for.
        Raises ValueError (pattern, sizes), TypeError (an item is not a str), KeyboardInterrupt, and
        whatever the iterator or `progress` raises; the tokenizer is then as it was before.
        """
    def get_mergeable_ranks(self) -> list[tuple[bytes, int]]:
        """Token bytes and rank (the id), in order of rank."""
    def get_pattern(self) -> str:
        """The split pattern."""
    @property
    def vocab_size(self) -> int:
        """Number of tokens: bytes and merges."""
    def encode(self, text: str) -> list[int]:
        """Ids of `text`, as tiktoken would give them for these ranks and this pattern."""
    def batch_encode(self, texts: list[str], *, threads: int | None = None) -> list[list[int]]:
        """Ids of each text, encoded by several threads (None: as many as there are cores)."""
    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, invalid UTF-8 as U+FFFD. Raises ValueError for an unknown id."""
