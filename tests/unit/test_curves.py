"""The pictures of the margins: every margin is there, and the curves are those of the formulas."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.margins import ArcFaceMargin, CosFaceMargin, NormFaceMargin
from pipeline.model import curves
from pipeline.model.margins import base

THETA = np.linspace(0.01, math.pi - 0.01, 101)


def test_every_registered_margin_is_drawn() -> None:
    kinds = [section.model_fields["kind"].default for section in curves.margin_sections()]
    assert sorted(kinds) == sorted(base._margins)
    for section in curves.margin_sections():
        for curve in curves.margin_curves(section(), THETA):
            assert curve.kind == section.model_fields["kind"].default
            assert np.isfinite([curve.phi, curve.pull, curve.loss_slope]).all(), curve.kind


def test_curves_are_the_formulas() -> None:
    (arcface,) = curves.margin_curves(ArcFaceMargin(scale=64, margin=0.5), THETA)
    within = math.pi - 0.5 > THETA
    np.testing.assert_allclose(arcface.phi[within], np.cos(THETA + 0.5)[within], atol=1e-12)
    np.testing.assert_allclose(arcface.pull[within], np.sin(THETA + 0.5)[within], atol=1e-9)
    share = 1 / (1 + np.exp(64 * np.cos(THETA + 0.5) - math.log(10_000)))
    np.testing.assert_allclose(arcface.loss_slope[within], (share * np.sin(THETA + 0.5))[within], atol=1e-9)
    (cosface,) = curves.margin_curves(CosFaceMargin(scale=30, margin=0.35), THETA)
    np.testing.assert_allclose(cosface.phi, np.cos(THETA) - 0.35, atol=1e-12)
    np.testing.assert_allclose(cosface.pull, np.sin(THETA), atol=1e-9)
    (normface,) = curves.margin_curves(NormFaceMargin(scale=30), THETA)
    np.testing.assert_allclose(normface.phi, np.cos(THETA), atol=1e-12)


@pytest.mark.parametrize("kind", ["magface", "adaface", "elasticface"])
def test_what_a_margin_depends_on_gets_curves_of_its_own(kind: str) -> None:
    section = next(s for s in curves.margin_sections() if s.model_fields["kind"].default == kind)
    found = curves.margin_curves(section(), THETA)
    assert len(found) == (curves.NUM_DRAWS if kind == "elasticface" else len(curves.NORMS))
    assert np.ptp([curve.phi for curve in found], axis=0).max() > 0.05


def test_the_command_writes_both_pictures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.model.curves", str(tmp_path / "images")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    written = [tmp_path / "images" / name for name in ("target-logits.png", "effective-gradients.png")]
    assert result.stdout.split() == [str(path) for path in written]
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert 30_000 < path.stat().st_size < 600_000
