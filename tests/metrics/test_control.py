"""Line fidelity: the measures by hand, the extractor on drawings and on the validation items."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from bench.data.openmoji import OpenMoji64, openmoji64_splits
from bench.metrics.lines import chamfer, extract_lines, line_f1, sketch_lines
from bench.types import BenchError


def column(x: int, size: int = 16) -> np.ndarray:
    lines = np.zeros((size, size), dtype=bool)
    lines[:, x] = True
    return lines


def square(fill: tuple[int, int, int], outline: tuple[int, int, int] | None) -> np.ndarray:
    image = np.full((64, 64, 3), 255, dtype=np.uint8)
    if outline is not None:
        image[14:50, 14:50] = outline
    image[16:48, 16:48] = fill
    return image


def test_f1_by_hand_with_tolerance() -> None:
    assert line_f1(column(3), column(3)) == (1.0, 1.0, 1.0)
    assert line_f1(column(3), column(4)) == (1.0, 1.0, 1.0)
    assert line_f1(column(3), column(5)).f1 == 0.0
    both = column(3) | column(10)
    score = line_f1(column(3), both)
    assert (score.precision, score.recall) == (1.0, 0.5)
    assert score.f1 == pytest.approx(2 / 3)


def test_f1_is_symmetric_and_swaps_precision_and_recall() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 32, 32)) < 0.06
    forth, back = line_f1(a, b), line_f1(b, a)
    assert forth.f1 == pytest.approx(back.f1)
    assert (forth.precision, forth.recall) == (back.recall, back.precision)
    assert chamfer(a, b) == pytest.approx(chamfer(b, a))


def test_empty_drawings_are_defined() -> None:
    empty = np.zeros((16, 16), dtype=bool)
    assert line_f1(empty, empty) == (1.0, 1.0, 1.0)
    assert line_f1(empty, column(2)) == line_f1(column(2), empty) == (0.0, 0.0, 0.0)
    assert chamfer(empty, empty) == 0.0
    assert chamfer(empty, column(2)) == pytest.approx(np.hypot(16, 16))


def test_chamfer_is_the_distance_of_parallel_lines() -> None:
    for gap in (0, 1, 5):
        assert chamfer(column(3), column(3 + gap)) == pytest.approx(gap)


def test_dark_fills_are_not_lines_but_outlines_black_dots_and_white_signs_are() -> None:
    fill, outlined = square((63, 63, 63), None), square((210, 47, 39), (0, 0, 0))
    assert not extract_lines(fill)[20:44, 20:44].any()
    ring = extract_lines(outlined)
    assert ring[14:16, 14:50].all() and not ring[20:44, 20:44].any()
    dot = square((255, 255, 255), None)
    dot[28:36, 28:36] = 0
    assert extract_lines(dot)[28:36, 28:36].all()
    sign = square((137, 103, 170), (0, 0, 0))
    sign[24:40, 31:33] = 255
    assert extract_lines(sign)[26:38, 31:33].all()
    assert not extract_lines(np.full((64, 64, 3), 255, dtype=np.uint8)).any()


@pytest.fixture(scope="module")
def validation() -> tuple[np.ndarray, np.ndarray]:
    data = OpenMoji64()
    rows = data.rows(openmoji64_splits().val)
    return data.images[rows], data.sketches[rows]


def mean_f1(images: np.ndarray, sketches: np.ndarray) -> float:
    pairs = zip(images, sketches, strict=True)
    return float(np.mean([line_f1(extract_lines(i), sketch_lines(s)).f1 for i, s in pairs]))


def test_real_targets_score_high_and_shuffled_sketches_low(
    validation: tuple[np.ndarray, np.ndarray],
) -> None:
    images, sketches = validation
    assert mean_f1(images, sketches) >= 0.98
    assert mean_f1(images, np.roll(sketches, 7, axis=0)) < 0.45


def test_soft_and_noisy_lines_still_score_high(validation: tuple[np.ndarray, np.ndarray]) -> None:
    images, sketches = validation[0].astype(np.float64), validation[1]
    soft = ndimage.gaussian_filter(images, (0, 0.7, 0.7, 0))
    noisy = soft + np.random.default_rng(0).normal(size=images.shape) * 0.03 * 255
    assert mean_f1(noisy.clip(0, 255).round().astype(np.uint8), sketches) >= 0.97


def test_score_falls_as_lines_move_or_vanish(validation: tuple[np.ndarray, np.ndarray]) -> None:
    images, sketches = validation[0][:40], validation[1][:40]
    moved = [mean_f1(np.roll(images, step, axis=2), sketches) for step in (0, 2, 4)]
    assert moved == sorted(moved, reverse=True)
    pale = (255 - (255 - images.astype(np.int16)) // 4).astype(np.uint8)
    assert mean_f1(pale, sketches) < 0.3


def test_refuses_other_forms() -> None:
    lines = column(2)
    for a, b in [(lines, lines[:8]), (lines.astype(np.uint8), lines)]:
        with pytest.raises(BenchError):
            line_f1(a, b)
        with pytest.raises(BenchError):
            chamfer(a, b)
    with pytest.raises(BenchError):
        extract_lines(np.zeros((8, 8), dtype=np.uint8))
    with pytest.raises(BenchError):
        sketch_lines(np.zeros((8, 8), dtype=np.float32))
