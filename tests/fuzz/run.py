"""Run one target under atheris: ``python -m tests.fuzz.run peek [libFuzzer flags, such as -max_total_time=60]``."""

from __future__ import annotations

import sys

from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz until the flags or the user say stop."""
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install atheris")
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"expected a target: one of {', '.join(TARGETS)}")
    target = TARGETS[sys.argv.pop(1)]
    atheris.instrument_all()
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
