"""The parts of the ONNX engine that need no process: batches, headers of images, meters, plain tokenizers."""

from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.models.plain_encoder import Encoded, PlainEncoder, load_plain_encoder
from inference.work.detection import suppress
from inference.work.images import PIXELS_LIMIT, SCANS_LIMIT, SIDE_LIMIT, image_size
from inference.work.meters import SCORE, EmbedMeter, LookMeter, RerankMeter
from inference.work.reading import decode_line, fitted, reading_order, text_regions
from inference.work.rows import Rows, bucket_of
from inference.work.runner import Task
from market.errors import EncodingInvalid, ModelFileInvalid, RequestInvalid
from market.values import encode
from market.work import EmbedRequest, Finding, LookRequest, RerankRequest
from tests.inference.onnx_kit import WORDS, png, tokenizer_json

LOOK = LookRequest(what="detect")


# ---- batches -------------------------------------------------------------------------------------------


def rows_of(rows: Rows, number: int, *lengths: int, priority: int = 0) -> Task:
    task = Task(number, EmbedRequest(inputs=("x",)), b"", 10_000, priority)
    rows.add(task, [Encoded(ids=(1,) * length, types=(0,) * length) for length in lengths])
    return task


def drained(rows: Rows) -> list[list[tuple[int, int]]]:
    """Batches of (task, input) until nothing is left."""
    batches = []
    while len(rows):
        batch = rows.batch()
        batches.append([(pending.task.number, row.at) for pending, row in batch])
        for pending, row in batch:
            pending.done[row.at] = b"x"
            pending.ready()
            if pending.sent == pending.count:
                rows.leave(pending)
    return batches


@given(st.lists(st.lists(st.integers(1, 600), min_size=1, max_size=20), min_size=1, max_size=10))
def test_every_row_is_computed_once_in_batches_of_one_width_and_bounded_size(tasks):
    rows = Rows(rows_limit=16, tokens_limit=512)
    for number, lengths in enumerate(tasks):
        rows_of(rows, number, *lengths)
    batches = drained(rows)
    seen = [row for batch in batches for row in batch]
    assert sorted(seen) == [(n, at) for n, lengths in enumerate(tasks) for at in range(len(lengths))]
    for batch in batches:
        [width] = {bucket_of(tasks[number][at]) for number, at in batch}
        assert len(batch) <= 16 and (len(batch) == 1 or len(batch) * width <= 512)


@given(st.lists(st.lists(st.integers(1, 200), min_size=1, max_size=20), min_size=1, max_size=10))
def test_without_padding_texts_of_all_lengths_share_a_call_as_long_as_they_fit(tasks):
    rows = Rows(rows_limit=16, tokens_limit=63, padded=False)
    for number, lengths in enumerate(tasks):
        rows_of(rows, number, *lengths)
    batches = drained(rows)
    seen = [row for batch in batches for row in batch]
    assert sorted(seen) == [(n, at) for n, lengths in enumerate(tasks) for at in range(len(lengths))]
    for batch in batches:
        assert len(batch) == 1 or (len(batch) <= 16 and sum(tasks[number][at] for number, at in batch) <= 63)


def test_without_padding_a_call_is_filled_by_whoever_fits():
    rows = Rows(tokens_limit=63, padded=False)
    for number, length in enumerate((40, 30, 20, 3)):
        rows_of(rows, number, length)
    assert [sorted(batch) for batch in drained(rows)] == [[(0, 0), (2, 0), (3, 0)], [(1, 0)]]


def test_a_task_of_thousands_does_not_keep_a_small_one_waiting():
    rows = Rows(rows_limit=8)
    rows_of(rows, 1, *[20] * 1000)
    rows.batch()
    rows_of(rows, 2, 20)
    assert (2, 0) in [(pending.task.number, row.at) for pending, row in rows.batch()]
    rows_of(rows, 3, 100)
    first = [[pending.task.number for pending, _ in rows.batch()] for _ in range(2)]
    assert [3] in first


def test_a_newcomer_shares_from_now_on_and_makes_up_for_nothing():
    rows = Rows(rows_limit=8)
    rows_of(rows, 1, *[20] * 1000)
    for _ in range(20):
        rows.batch()
    rows_of(rows, 2, *[100] * 1000)
    served = [{pending.task.number for pending, _ in rows.batch()} for _ in range(10)]
    assert sum(1 in numbers for numbers in served) >= 5


def test_an_urgent_task_names_the_batch():
    rows = Rows()
    rows_of(rows, 1, 20)
    rows_of(rows, 2, 100, priority=-1)
    assert [pending.task.number for pending, _ in rows.batch()] == [2]


def test_a_cancelled_task_is_forgotten():
    rows = Rows()
    rows_of(rows, 1, 20).cancelled = True
    rows_of(rows, 2, 20)
    rows.drop_cancelled()
    assert drained(rows) == [[(2, 0)]]


@given(st.integers(1, 10_000))
def test_a_width_follows_from_the_text_alone_and_wastes_little(length):
    assert length <= bucket_of(length) <= max(length + 7, length * 9 / 8 + 1)


# ---- heads of images -----------------------------------------------------------------------------------


def jpeg_head(width: int, height: int, *, frame: int = 0xC0, before: bytes = b"") -> bytes:
    return b"\xff\xd8" + before + bytes([0xFF, frame]) + struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes(9)


def test_sizes_are_read_from_heads():
    assert (image_size(png(640, 200)).width, image_size(png(640, 200)).height) == (640, 200)
    application = b"\xff\xe0" + struct.pack(">H", 4) + b"ab"
    for frame in (0xC0, 0xC1, 0xC2):
        assert image_size(jpeg_head(31, 7, frame=frame, before=application + b"\xff\xff\xff")[:-3]).width == 31


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "neither"),
        (b"GIF89a" + bytes(100), "neither"),
        (b"RIFF" + bytes(100), "neither"),
        (png(5, 5)[:30], "not a whole PNG"),
        (png(5, 5).replace(b"IHDR", b"IDAT"), "not a whole PNG"),
        (png(0, 5), "no pixels"),
        (png(SIDE_LIMIT + 1, 1), "limits"),
        (png(16_000, PIXELS_LIMIT // 16_000 + 1), "limits"),
        (png(2**31, 2**31), "limits"),
        (png(5, 5, depth=3), "not a whole PNG"),
        (jpeg_head(65_535, 65_535), "limits"),
        (jpeg_head(5, 0), "no pixels"),
        (jpeg_head(5, 5)[:10], "not a whole JPEG"),
        (jpeg_head(5, 5, frame=0xC9), "not a whole JPEG"),
        (b"\xff\xd8\xff\xe0\xff\xff" + bytes(10), "not a whole JPEG"),
        (b"\xff\xd8\xff\xe0\x00\x00" * 10, "not a whole JPEG"),
        (jpeg_head(5, 5, before=b"\xff\xd0" * 5000), "not a whole JPEG"),
        (jpeg_head(5, 5, before=b"\xff" * 5000), "not a whole JPEG"),
        (jpeg_head(5, 5) + b"\xff\xda\x00\x02" * (SCANS_LIMIT + 1), "scans"),
    ],
)
def test_what_is_no_image_or_a_bomb_is_refused_by_its_head(data, words):
    with pytest.raises(RequestInvalid, match=words):
        image_size(data)


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]))
def test_any_bytes_are_a_size_or_refused(data, magic):
    try:
        size = image_size(magic + data)
    except RequestInvalid:
        return
    assert 1 <= size.width * size.height <= PIXELS_LIMIT


# ---- meters --------------------------------------------------------------------------------------------


def encoder(limit: int = 64) -> PlainEncoder:
    return PlainEncoder(tokenizer_json(), limit=limit)


def test_texts_count_their_tokens_and_vectors():
    meter, request = EmbedMeter(encoder()), EmbedRequest(inputs=("red", "a b c"), dimensions=2)
    assert (meter.units_in(request, b""), meter.units_out_limit(request, b"")) == (3 + 5, 2)
    assert meter.units_of(request, struct.pack("<2f", 0.5, 0.5)) == 1
    for piece in (b"", bytes(7), bytes(12), struct.pack("<2f", 0.5, float("nan")), struct.pack("<2f", 1, float("inf"))):
        with pytest.raises(EncodingInvalid):
            meter.units_of(request, piece)


def test_pairs_count_their_tokens_and_scores():
    meter, request = RerankMeter(encoder()), RerankRequest(query="red", documents=("a", "b c"))
    assert (meter.units_in(request, b""), meter.units_out_limit(request, b"")) == (5 + 6, 2)
    assert meter.units_of(request, SCORE.pack(1, 0.5)) == 1
    for piece in (SCORE.pack(2, 0.5), SCORE.pack(0, float("nan")), b"", bytes(9)):
        with pytest.raises(EncodingInvalid):
            meter.units_of(request, piece)


def test_images_count_tiles_that_they_begin_and_findings():
    meter = LookMeter()
    assert meter.units_in(LOOK, png(64, 64)) == 1 and meter.units_in(LOOK, png(65, 129)) == 6
    assert meter.units_out_limit(LOOK, png(1, 1)) == 300
    assert meter.units_of(LOOK, encode(Finding, Finding(label="x", score_micro=1, box=(0, 0, 5, 5)))) == 1
    for piece in (b"", b"\xa0", encode(Finding, Finding(label="x", score_micro=1, box=(5, 0, 0, 5)))):
        with pytest.raises(EncodingInvalid):
            meter.units_of(LOOK, piece)


@pytest.mark.parametrize("meter", [EmbedMeter(encoder()), RerankMeter(encoder()), LookMeter()])
def test_other_work_and_blobs_that_belong_to_none_are_refused(meter):
    other = LOOK if not isinstance(meter, LookMeter) else EmbedRequest(inputs=("a",))
    with pytest.raises(RequestInvalid):
        meter.units_in(other, b"")
    with pytest.raises(RequestInvalid):
        meter.units_out_limit(other, b"")
    with pytest.raises(RequestInvalid):
        meter.units_in(EmbedRequest(inputs=("a",)), b"blob")


# ---- plain tokenizers ----------------------------------------------------------------------------------


def test_a_text_that_names_control_tokens_is_a_text():
    plain = encoder()
    assert plain.encode("red").ids == tuple(WORDS.index(word) for word in ("[CLS]", "red", "[SEP]"))
    assert plain.encode("[SEP]").ids.count(WORDS.index("[SEP]")) == 1
    assert plain.encode("red", "a b").types == (0, 0, 0, 1, 1, 1)


def test_the_files_own_cutting_and_padding_are_ignored():
    assert len(encoder().encode("a b c d e f g h").ids) == 10 and len(encoder().encode("a").ids) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"type": "Lattice"}},
        {"model": {"type": "WordPiece", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                   "max_input_chars_per_word": 10**6}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": ""}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a*)*b"}, "behavior": "Isolated", "invert": False}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "(a*)*b"}}]}},
        {"post_processor": {"type": "Script"}},
        {"added_tokens": [{"id": 0, "content": "", "special": True}]},
        {"added_tokens": 5},
        {"model": None},
    ],
)  # fmt: skip
def test_a_tokenizer_file_with_parts_that_could_run_for_ever_is_refused(changes):
    with pytest.raises(ModelFileInvalid):
        PlainEncoder(tokenizer_json(**changes), limit=64)


def test_a_tokenizer_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    for content in (b"", b"[" * 100_000, b"\xff", json.dumps([1]).encode()):
        path.write_bytes(content)
        with pytest.raises(ModelFileInvalid):
            load_plain_encoder(path, limit=64)
    with pytest.raises(ModelFileInvalid):
        load_plain_encoder(tmp_path / "missing", limit=64)


# ---- boxes and lines -----------------------------------------------------------------------------------


def test_of_boxes_that_overlap_the_surest_of_each_class_stays():
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [0, 0, 10, 10], [50, 50, 60, 60]], float)
    assert suppress(boxes, np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 1, 2, 1])) == [0, 2, 3]


def test_regions_of_any_shape_are_found_whole():
    shape = np.zeros((40, 60), np.float32)
    shape[5:20, 5:8] = shape[5:20, 17:20] = shape[17:20, 5:20] = 1  # a U: two runs that meet below
    shape[30:36, 30:50] = 0.4  # seen, not sure enough
    shape[25:27, 1:3] = 1  # too small
    [(left, top, right, bottom)] = text_regions(shape)
    assert left < 5 < 20 < right and top < 5 < 20 < bottom
    assert text_regions(np.zeros((32, 32), np.float32)) == []


@given(st.integers(0, 2**63))
def test_regions_are_those_of_a_flood_fill(seed):
    marked = np.random.default_rng(seed).random((9, 9)) < 0.5
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(marked), strict=True)}
    count = 0
    while left:
        count += 1
        edge = [left.pop()]
        while edge:
            y, x = edge.pop()
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= near
            edge += near
    large = np.kron(marked, np.ones((4, 4))).astype(np.float32)
    assert len(text_regions(large)) == count


def test_lines_are_read_from_above_and_from_the_left():
    right, left, below = (50, 2, 90, 12), (0, 0, 40, 10), (0, 20, 40, 30)
    assert reading_order([below, right, left]) == [left, right, below]


def test_a_line_is_its_best_characters_without_repeats_and_blanks():
    steps = np.eye(3, dtype=np.float32)[[0, 1, 1, 0, 1, 2, 2, 0]]
    assert decode_line(steps, ["", "a", "b"]) == ("aab", 1.0)
    assert decode_line(np.eye(3, dtype=np.float32)[[0, 0]], ["", "a", "b"]) == ("", 0.0)


@given(st.integers(1, 16_384), st.integers(1, 16_384))
def test_an_image_is_fitted_to_a_bounded_size(width, height):
    fit = fitted(width, height)
    assert all(side % 32 == 0 and 32 <= side <= 1536 for side in fit)


def test_a_png_of_the_kit_is_sound():
    assert zlib.decompress(png(3, 2)[41:-16]) == b"\0" * (2 * (3 * 3 + 1))
