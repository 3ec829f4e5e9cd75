"""Sequences that the model cannot take as they are: what it cannot score is refused, and what is cut is counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.models.huggingface import HFLM

_SHOWN = 40


class Lengths:
    """Sees every sequence of a model before lm-eval runs the first, and leaves off the beginning of those too long.

    Attributes:
        most: tokens that the model takes.
        seen: sequences, each a question with one of its answers. cut: of them, those whose question lost its beginning.
    """

    def __init__(self, lm: HFLM) -> None:
        self.most, self.seen, self.cut = int(lm.max_length), 0, 0
        self._whole = self.most + (lm.backend == "causal")  # whose last token is only foretold
        self._beside = lm.backend == "causal"  # question and answer are one sequence
        run = lm._loglikelihood_tokens

        def noted(requests: Sequence[Any], *args: Any, **more: Any) -> Any:
            for request in requests:
                self._note(*request)
            return run(requests, *args, **more)

        lm._loglikelihood_tokens = noted

    def _note(self, texts: Any, question: Sequence[int], answer: Sequence[int]) -> None:
        query, choice = ("" if text is None else str(text) for text in (texts or ("", "")))
        if not question:
            raise ValueError(f"the question {query!r} is no token to the model, so that no answer follows from it")
        if not answer or len(answer) > self.most:
            what = f"{choice[:_SHOWN]!r}{'...' if len(choice) > _SHOWN else ''}"
            raise ValueError(
                f"the answer {what} has {len(answer)} tokens, and the model takes 1 to {self.most}; shorten it, or "
                "leave its question out"
            )
        self.seen += 1
        self.cut += len(question) + self._beside * len(answer) > self._whole

    def said(self) -> str:
        """How many were cut, in a sentence; nothing where none was."""
        if not self.cut:
            return ""
        return (
            f"{self.cut:,} of {self.seen:,} sequences, each a question with one answer, are longer than the "
            f"{self.most:,} tokens that the model takes: the beginning of those questions was left off."
        )
