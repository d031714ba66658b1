"""How a transcript is told: as JSON, with times, as plain text, as subtitles (SubRip, WebVTT), or piece by piece.

Pure. Sources: OpenAI's API reference, "Create transcription"; https://www.w3.org/TR/webvtt1/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from market.errors import EncodingInvalid, OctoError, PeerFailed
from market.reception import Outcome
from market.taking import Part, Shown
from market.values import decode
from market.work import PIECE_LIMIT_BYTES, Segment
from node.api.answering import EVENT_STREAM, Whole, told_as_event
from node.api.answers import Answer
from node.api.octo_facts import DONE, event, octo_of, to_json

Kind = Literal["json", "text", "srt", "vtt", "verbose_json"]
_WITHOUT_SPACES = frozenset(("zh", "yue", "ja", "th", "lo", "km", "my"))


class TranscriptForm:
    """`words`: with times for each word; `segments`: with times for each segment (verbose_json alone)."""

    stream_headers = EVENT_STREAM

    def __init__(
        self, kind: Kind, *, task: Literal["transcribe", "translate"], temperature: float, words: bool, segments: bool
    ) -> None:
        self._kind = kind
        self._task = task
        self._temperature = temperature
        self._words = words
        self._segments = segments
        self._said = ""

    def whole(self, answers: Sequence[Answer]) -> Whole:
        (answer,) = answers
        segments = [_segment(item, answer.outcome.provider) for item in answer.shown]
        match self._kind:
            case "text":
                return Whole((joined(segments) + "\n").encode(), "text/plain")
            case "srt":
                return Whole(srt(segments).encode(), "application/x-subrip")
            case "vtt":
                return Whole(vtt(segments).encode(), "text/vtt")
            case "json":
                usage = {"type": "duration", "seconds": -(-answer.outcome.tokens_in // 100)}
                return Whole(to_json({"text": joined(segments), "usage": usage, "octo": octo_of(answer.outcome)}))
        return Whole(to_json(self._verbose(segments, answer.outcome)))

    def _verbose(self, segments: Sequence[Segment], outcome: Outcome) -> dict[str, Any]:
        """What OpenAI's own engine tells of its inside (log probabilities, tokens) is null: nobody said it."""
        told: dict[str, Any] = {
            "task": self._task,
            "language": next((segment.language for segment in segments if segment.language), ""),
            "duration": outcome.tokens_in / 100,  # a unit is 10 ms
            "text": joined(segments),
            "usage": {"type": "duration", "seconds": -(-outcome.tokens_in // 100)},
            "octo": octo_of(outcome),
        }
        if self._segments:
            unsaid = dict.fromkeys(("avg_logprob", "compression_ratio", "no_speech_prob"))
            told["segments"] = [
                {
                    "id": number,
                    "seek": 0,
                    "start": segment.start_ms / 1000,
                    "end": segment.end_ms / 1000,
                    "text": segment.text,
                    "tokens": [],
                    "temperature": self._temperature,
                    **unsaid,
                }
                for number, segment in enumerate(segments)
            ]
        if self._words:
            told["words"] = [
                {"word": word.text.strip(), "start": word.start_ms / 1000, "end": word.end_ms / 1000}
                for segment in segments
                for word in segment.words
            ]
        return told

    # ---- piece by piece ----

    def opening(self) -> bytes:
        return b""

    def piece(self, index: int, shown: Shown) -> bytes:  # noqa: ARG002 - the port's shape: there is one
        segment = _segment(shown, "")
        delta = _gap(self._said, segment) + segment.text
        if not self._said:
            delta = delta.lstrip()
        self._said += delta
        return event({"type": "transcript.text.delta", "delta": delta}) if delta else b""

    def finish(self, index: int, outcome: Outcome) -> bytes:  # noqa: ARG002
        usage = {
            "type": "tokens",
            "input_tokens": outcome.tokens_in,
            "output_tokens": outcome.tokens_out,
            "total_tokens": outcome.tokens_in + outcome.tokens_out,
        }
        done: Mapping[str, Any] = {"type": "transcript.text.done", "text": self._said.strip(), "usage": usage}
        return event({**done, "octo": octo_of(outcome)})

    def closing(self, outcomes: Sequence[Outcome]) -> bytes:  # noqa: ARG002
        return DONE

    def broken(self, error: OctoError) -> bytes:
        return told_as_event(error)


def joined(segments: Sequence[Segment]) -> str:
    """One text. Engines that put spaces between words put them at the front of segments; others get one here, in
    languages that have spaces."""
    text = ""
    for segment in segments:
        text += _gap(text, segment) + segment.text
    return text.strip()


def _gap(before: str, segment: Segment) -> str:
    fits = not before or before[-1].isspace() or segment.text[:1].isspace() or segment.language in _WITHOUT_SPACES
    return "" if fits else " "


def srt(segments: Sequence[Segment]) -> str:
    return "".join(
        f"{number}\n{_time(segment.start_ms, ',')} --> {_time(segment.end_ms, ',')}\n{_line(segment)}\n\n"
        for number, segment in enumerate(segments, start=1)
    )


def vtt(segments: Sequence[Segment]) -> str:
    blocks = [
        f"{_time(segment.start_ms, '.')} --> {_time(segment.end_ms, '.')}\n"
        + _line(segment).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        for segment in segments
    ]
    return "\n\n".join(["WEBVTT", *blocks]) + "\n"


def _line(segment: Segment) -> str:
    """One line, in which nothing reads as a time: what was heard is a stranger's words."""
    return " ".join(segment.text.split()).replace("-->", "->")


def _time(at_ms: int, point: str) -> str:
    seconds, ms = divmod(at_ms, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{ms:03}"


def _segment(shown: Shown, peer: str) -> Segment:
    assert isinstance(shown, Part)
    try:
        return decode(Segment, shown.data, limit_bytes=PIECE_LIMIT_BYTES)
    except EncodingInvalid:
        raise PeerFailed("a piece of the transcript is none.", peer=peer) from None
