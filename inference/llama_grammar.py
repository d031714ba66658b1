"""Grammars of one model, by llama.cpp's own matcher: which tokens may come next.

Lives here: the calls into its grammar sampler, and what spares most of them. Must not know: jobs, sampling,
frames. Only the worker process imports this module.

A full look at 49,152 tokens takes llama.cpp 3 to 20 ms where little is permitted and 60 ms inside a string.
If it refuses a token it refuses every token that begins with that token's bytes, so tokens are asked about level
by level, each after the longest other token that it begins with; inside strings the sampler asks about the
likeliest few alone.
"""

from __future__ import annotations

import ctypes
import time
from functools import cached_property
from typing import Any, Final

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from market.errors import EngineFailed, RequestInvalid

SLOW_S: Final = 0.5
"""What one look may take. Ambiguous grammars grow from token to token: the job ends before it holds others up."""
_CANDIDATE: Final = np.dtype([("token", "<i4"), ("logit", "<f4"), ("p", "<f4")])
_PIECE_BYTES: Final = 256


class LlamaGrammars:
    """`vocab` outlives this."""

    def __init__(self, vocab: Any) -> None:
        self.vocab = vocab
        self.vocabulary = int(llama_cpp.llama_vocab_n_tokens(vocab))

    def open(self, text: str, end_tokens: frozenset[int]) -> LlamaGrammar:
        """Raises RequestInvalid if the library refuses the text."""
        sampler = llama_cpp.llama_sampler_init_grammar(self.vocab, text.encode(), b"root")
        if not sampler:
            raise RequestInvalid("llama.cpp cannot read the grammar.", param="response_format")
        return LlamaGrammar(self, sampler, end_tokens)

    @cached_property
    def ends(self) -> frozenset[int]:
        """Tokens that the model ends with."""
        return frozenset(token for token in range(self.vocabulary) if llama_cpp.llama_vocab_is_eog(self.vocab, token))

    @cached_property
    def hidden(self) -> NDArray[np.bool_]:
        """Control tokens that are no ends: they have a name in the vocabulary, but no text."""
        control = [llama_cpp.llama_vocab_is_control(self.vocab, token) for token in range(self.vocabulary)]
        control = [is_control and token not in self.ends for token, is_control in enumerate(control)]
        return np.array(control, dtype=np.bool_)

    @cached_property
    def levels(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Tokens and, for each, the longest other token that it begins with (-1 on the first level), in an order in
        which these come first. 0.2 s for 49,152 tokens, once."""
        texts = [token for token in range(self.vocabulary) if token not in self.ends and not self.hidden[token]]
        pieces = sorted((self._piece(token), token) for token in texts)
        parent = np.full(self.vocabulary, -1, dtype=np.int64)
        depth = np.zeros(self.vocabulary, dtype=np.int64)
        open_: list[tuple[bytes, int]] = []
        for piece, token in pieces:
            while open_ and not (piece.startswith(open_[-1][0]) and piece != open_[-1][0]):
                open_.pop()
            if open_:
                parent[token] = open_[-1][1]
                depth[token] = depth[open_[-1][1]] + 1
            if piece:
                open_.append((piece, token))
        order = [np.flatnonzero(depth == level) for level in range(int(depth.max(initial=0)) + 1)]
        return [(tokens, parent[tokens]) for tokens in order]

    def _piece(self, token: int) -> bytes:
        text = ctypes.create_string_buffer(_PIECE_BYTES)
        size = llama_cpp.llama_token_to_piece(self.vocab, token, text, _PIECE_BYTES, 0, True)
        return text.raw[:size] if size > 0 else b""


class LlamaGrammar:
    """See `inference.batch.Grammar`."""

    def __init__(self, grammars: LlamaGrammars, sampler: Any, end_tokens: frozenset[int]) -> None:
        self._grammars = grammars
        self._sampler = sampler
        self._ends = grammars.ends | end_tokens
        self._other_ends = np.array(sorted(end_tokens - grammars.ends), dtype=np.int64)

    def permits(self, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The job's end tokens are permitted where the model's own are: where the text may end."""
        started = time.thread_time()  # not the wall: a busy machine is slow, not ambiguous
        allowed = self._all() if len(tokens) == self._grammars.vocabulary else self._ask(tokens)
        if len(self._other_ends):
            own = next(iter(self._grammars.ends), -1)
            may_end = own >= 0 and bool(self._ask(np.array([own]))[0])
            allowed[np.isin(tokens, self._other_ends)] = may_end
        if time.thread_time() - started > SLOW_S:
            raise EngineFailed(
                f"the grammar takes more than {SLOW_S:g} s for a token.", next_step="Make it less ambiguous."
            )
        return allowed

    def ends(self, token: int) -> bool:
        return token in self._ends

    def accept(self, token: int) -> None:
        """The library aborts the process for a token that may not come: so ask first."""
        if not self._ask(np.array([token]))[0]:
            raise EngineFailed("a token that the grammar does not permit was drawn.")
        llama_cpp.llama_sampler_accept(self._sampler, token)

    def close(self) -> None:
        if self._sampler is not None:
            llama_cpp.llama_sampler_free(self._sampler)
            self._sampler = None

    def _all(self) -> NDArray[np.bool_]:
        allowed = np.zeros(self._grammars.vocabulary + 1, dtype=np.bool_)
        allowed[-1] = True  # the parent of the first level
        for tokens, parents in self._grammars.levels:
            alive = tokens[allowed[parents]]
            if len(alive):
                allowed[alive] = self._ask(alive)
        return allowed[:-1]

    def _ask(self, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        candidates = np.zeros(len(tokens), dtype=_CANDIDATE)
        candidates["token"] = tokens
        array = llama_cpp.llama_token_data_array(
            data=candidates.ctypes.data_as(llama_cpp.llama_token_data_p),
            size=len(tokens),
            selected=-1,
            sorted=False,
        )
        llama_cpp.llama_sampler_apply(self._sampler, ctypes.byref(array))
        allowed: NDArray[np.bool_] = (candidates["logit"] > -np.inf) & ~self._grammars.hidden[tokens]
        return allowed
