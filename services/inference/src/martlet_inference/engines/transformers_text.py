"""From tokens to the text of an answer: whole characters, up to a stop text. Pure; no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Detokenizer:
    """Gives the text that each token adds, once it is sure: a character may lie in several tokens.

    Args:
        decode: text of tokens, without special ones.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        # What lies before `start` is told; tokens from there to `read` are told too, and show how the next ones join.
        self._start = self._read = 0

    def add(self, token: int) -> str:
        """The text that the token completes."""
        self._tokens.append(token)
        text = self._new_text()
        if not text or text.endswith("\ufffd"):  # the middle of a character
            return ""
        self._start, self._read = self._read, len(self._tokens)
        return text

    def rest(self) -> str:
        """What was held back, at the end of an answer."""
        return self._new_text()

    def _new_text(self) -> str:
        told = self._decode(self._tokens[self._start : self._read])
        return self._decode(self._tokens[self._start :])[len(told) :]


class StopTexts:
    """Cuts an answer off before the first stop text, holding back what may be the beginning of one."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """What of the answer is sure; ``found`` says whether a stop text came."""
        self._held += text
        places = [place for stop in self._texts if (place := self._held.find(stop)) >= 0]
        if places:
            self.found = True
            sure, self._held = self._held[: min(places)], ""
            return sure
        keep = max((self._overlap(stop) for stop in self._texts), default=0)
        sure, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return sure

    def rest(self) -> str:
        """What was held back, at the end of an answer."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """Characters at the end that a stop text may begin with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)
