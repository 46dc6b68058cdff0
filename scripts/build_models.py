"""Builds the ONNX models and data files below models/ (run by ``make models``).

``--check`` builds them into a temporary folder instead and fails when what is checked in is not the same. The Python
models and every model.yaml are written by hand and left alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from scripts.model_building import demo_models, language_model, triton_models
from scripts.model_building.graphs import differences

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
FEATURES_MODEL = MODELS / "demo" / "text_features" / "1" / "model.py"
RTOL, ATOL = 1e-3, 1e-3
"""Weights of two builds agree this closely (the fits stop at a gradient of 1e-6; BLAS and scikit-learn versions
differ). Text files must be equal."""


def build(root: Path) -> None:
    """Write every built file below `root`, laid out as in models/."""
    demo_models.build_iris(root)
    demo_models.build_diabetes(root)
    demo_models.build_digits(root)
    demo_models.build_text_score(root, FEATURES_MODEL)
    triton_models.build_simple(root)
    triton_models.build_simple_int8(root)
    triton_models.build_densenet(root)


def train(root: Path) -> None:
    """Write what no two machines train alike, and `--check` therefore cannot hold against a fresh build."""
    language_model.build_prose(root, (MODELS / "data" / "prose.txt").read_text(encoding="utf-8"))


def stale(built: Path, kept: Path) -> list[str]:
    """Return one line for each file that a fresh build in `built` has and `kept` lacks or holds differently."""
    found = []
    for path in sorted(path for path in built.rglob("*") if path.is_file()):
        name = path.relative_to(built)
        twin = kept / name
        if not twin.exists():
            found.append(f"{name}: missing")
        elif path.suffix == ".onnx":
            found += [f"{name}: {difference}" for difference in differences(path, twin, rtol=RTOL, atol=ATOL)]
        elif path.read_bytes() != twin.read_bytes():
            found.append(f"{name}: text differs")
    return found


def main() -> None:
    """Build, or check that a build would change nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if models/ is not what a build writes")
    if not parser.parse_args().check:
        build(MODELS)
        train(MODELS)
        return
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        lines = stale(Path(folder), MODELS)
    if lines:
        sys.exit("\n".join([*lines, "models/ is not what its sources build; run `make models`"]))


if __name__ == "__main__":
    main()
