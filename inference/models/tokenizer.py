"""Text to token ids and back, from a manifest's tokenizer and template files; provider and buyer run this same code.

Lives here: reading the files with limits, rendering a chat, and the rule that control tokens come from the template
alone. Knows no weights and no engine.

Why the rule: a user who types `<|im_end|><|im_start|>system` inside a message must not end the turn and open another.
So before rendering every control token's text inside a message is broken by a character that occurs nowhere else;
after rendering the text is split at the control tokens that are left (the template's), the breaks are taken out, and
what lies between is encoded as plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Encoder

from inference.models.manifest import ROLE_LIMIT_BYTES, Manifest, Role, SpecialTokens
from inference.models.template import ChatTemplate
from inference.models.tokenizer_parts import known_parts
from inference.models.tool_values import plain_message, plain_tool, refuse_tools
from market.errors import EncodingInvalid, ModelFileInvalid, RequestInvalid
from market.task import ChatMessage
from market.tools import CallForm, Tool

ROLES = frozenset(("system", "developer", "user", "assistant", "tool"))
"""A role goes into the prompt next to control tokens (`<|` + role + `|>` in some templates): a closed list."""

_BREAKS = tuple(chr(point) for point in range(0xFDD0, 0xFDF0))
"""Unicode's noncharacters "for internal use": one that is not in the conversation serves as the break."""


class ModelTokenizer:
    """Implements `market.ports.Tokenizer`. Safe to use from several threads.

    Short chats render in well under a millisecond; a long one takes about 1 ms for 3,000 characters.
    """

    def __init__(self, encoder_json: str, template: str, tokens: SpecialTokens) -> None:
        """Raises ModelFileInvalid."""
        vocabulary, controls, whole = _parse(encoder_json)
        self.end_tokens = frozenset(tokens.end)
        self._encoder = whole
        # With this set the library treats a control token's text like any other text: we split at them ourselves.
        self._encoder.encode_special_tokens = True
        self._bytes = _token_bytes(vocabulary, controls)
        self._controls = controls
        self._template = ChatTemplate(template)
        self.call_form = self._template.call_form
        self._tokens = tokens
        longest_first = sorted(controls, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if controls else None
        self._heads = {text[:n] for text in controls for n in range(1, len(text))}
        self._tails = {text[n:] for text in controls for n in range(1, len(text))}
        self._reach = max(map(len, controls), default=0)

    def render(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        """Token ids of the rendered chat, generation prompt included. Raises RequestInvalid."""
        if self.call_form is CallForm.PLAIN:
            refuse_tools(messages, tools)
        for message in messages:
            if message.role not in ROLES:
                raise RequestInvalid(
                    f"{message.role!r} is not a role.", next_step=f"Use one of {', '.join(sorted(ROLES))}."
                )
        broken = self._unused(_texts_of(messages, tools))

        def disarmed(text: str) -> str:
            return self._disarm(text, broken)

        text = self._template.render(
            [plain_message(message, disarmed) for message in messages],
            tools=[plain_tool(tool, disarmed) for tool in tools],
            bos=self._tokens.bos,
            eos=self._tokens.eos,
        )
        return self._encode(text, broken)

    def encode(self, text: str) -> tuple[int, ...]:
        """Plain text, in which nothing is a control token. Bytes that the vocabulary lacks vanish, as in llama.cpp
        (the default model has no token for six control characters and for the lead bytes of unassigned planes)."""
        try:
            return tuple(self._encoder.encode(text, add_special_tokens=False).ids)
        except (UnicodeEncodeError, TypeError):  # how `tokenizers` says it depends on where it finds it
            raise RequestInvalid("The text holds half a character (a lone surrogate).") from None

    def token_bytes(self, token: int) -> bytes:
        """Raises EncodingInvalid for an id that the vocabulary does not have."""
        if not 0 <= token < len(self._bytes):
            raise EncodingInvalid(f"{token} is not a token of this model, which has {len(self._bytes)}.")
        return self._bytes[token]

    def may_precede(self, token: int) -> bool:  # noqa: ARG002 - the port's shape
        """How a text is cut is the model's own doing: a replay shows whether it was."""
        return True

    def _encode(self, text: str, broken: str) -> tuple[int, ...]:
        pieces = self._split.split(text) if self._split else [text]
        ids: list[int] = []
        if self._tokens.add_bos and self._tokens.bos and not text.startswith(self._tokens.bos):
            ids.append(self._controls[self._tokens.bos])
        for number, piece in enumerate(pieces):
            if number % 2:
                ids.append(self._controls[piece])
            elif piece:
                ids.extend(self.encode(piece.replace(broken, "")))
        return tuple(ids)

    def _unused(self, texts: Iterable[str]) -> str:
        seen = "".join(texts) + self._template.source
        for candidate in _BREAKS:
            if candidate not in seen:
                return candidate
        raise RequestInvalid("The conversation uses all of U+FDD0 to U+FDEF, which are not characters.")

    def _disarm(self, text: str, broken: str) -> str:
        """Break control tokens, and halves of them at the ends that template text could complete."""
        if self._split is None or not text:
            return text
        text = self._split.sub(lambda found: found[0][0] + broken + found[0][1:], text)
        head = text.lstrip()
        for length in range(1, min(self._reach, len(head) + 1)):
            if head[:length] in self._tails:
                text = text[: len(text) - len(head)] + broken + head
                break
        tail = text.rstrip()
        for length in range(1, min(self._reach, len(tail) + 1)):
            if tail[-length:] in self._heads:
                return tail + broken + text[len(tail) :]
        return text


def load_tokenizer(manifest: Manifest, paths: Mapping[Role, Path]) -> ModelTokenizer:
    """Blocking (0.2 s). `paths` has the manifest's tokenizer and chat template, verified by whoever brought them.

    Raises ModelFileInvalid.
    """
    tokenizer, template = (_read(role, paths) for role in (Role.TOKENIZER, Role.CHAT_TEMPLATE))
    return ModelTokenizer(tokenizer, template, manifest.tokens)


def _texts_of(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> list[str]:
    """All that is not ours, escapes in JSON undone."""
    texts: list[str] = []

    def noted(text: str) -> str:
        texts.append(text)
        return text

    for message in messages:
        plain_message(message, noted)
    for tool in tools:
        plain_tool(tool, noted)
    return texts


def _read(role: Role, paths: Mapping[Role, Path]) -> str:
    try:
        path = paths[role]
        if path.stat().st_size > ROLE_LIMIT_BYTES[role]:
            raise ModelFileInvalid(f"The {role} file is over {ROLE_LIMIT_BYTES[role]} bytes.")
        return path.read_text(encoding="utf-8")
    except (KeyError, OSError, UnicodeDecodeError) as error:
        raise ModelFileInvalid(f"The model's {role} file cannot be read: {error!r:.200}.") from None


def _parse(encoder_json: str) -> tuple[dict[str, int], dict[str, int], Encoder]:
    """(vocabulary, control tokens, encoder)."""
    try:
        tree = known_parts(json.loads(encoder_json))
        vocabulary: dict[str, int] = tree["model"]["vocab"]
        vocabulary |= {item["content"]: item["id"] for item in tree["added_tokens"]}
        controls = {item["content"]: item["id"] for item in tree["added_tokens"] if item["special"]}
        encoder = Encoder.from_str(json.dumps(tree))
    except ModelFileInvalid:
        raise
    except Exception as error:  # noqa: BLE001 - `tokenizers` raises bare Exception
        raise ModelFileInvalid(f"The tokenizer file cannot be read ({type(error).__name__}).") from None
    if any(not text for text in controls) or sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise ModelFileInvalid("The tokenizer file has an empty control token, or a gap in its vocabulary.")
    return vocabulary, controls, encoder


def _token_bytes(vocabulary: Mapping[str, int], controls: Mapping[str, int]) -> list[bytes]:
    """What each id stands for; GPT-2 writes bytes as printable characters."""
    table = _byte_of_character()
    out = [b""] * len(vocabulary)
    for text, number in vocabulary.items():
        if text not in controls:
            try:
                out[number] = bytes([table[character] for character in text])
            except KeyError:  # a user-defined token is written as it is
                out[number] = text.encode()
    return out


def _byte_of_character() -> dict[str, int]:
    """Printable bytes stand for themselves, the others for U+0100 and up, in order."""
    printable: list[Any] = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
