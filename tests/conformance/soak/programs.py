"""The programs that call a mesh with the defaults of their gRPC library, one a language, and how each is built.

All follow one contract. Flags, each with a value:

* ``--address HOST:PORT``, ``--request FILE``: whom to call, in plaintext, with which serialized ModelInferRequest;
* ``--answer-bytes N``: the least that an answer has, else the call failed with status -1;
* ``--callers N``: that many call at once, on one channel, each one call after the other;
* ``--burst N --pause-ms N``: a caller pauses so long after every N calls;
* ``--seconds N``: for how long;
* ``--way unary|stream``: ModelInfer, or messages on a ModelStreamInfer that each caller holds open;
* ``--gives-up none|cancel|deadline``: whether one caller more begins calls and gives each up within 2 ms: ten a second,
  by cancelling them, or as many as it can, by deadlines of 1 to 2 ms.

No option of the library is set. A caller whose call failed waits 50 ms. At the end one line of JSON:
``{"calls": N, "given_up": N, "failed": {"14": {"count": N, "first_s": UNIX, "last_s": UNIX, "text": "..."}}}``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).parent
BUILT: Final = SOURCE.parent.parent.parent / "build" / "soak"
BUILD_S: Final = 900.0


class CannotBuild(Exception):
    """A program whose toolchain is there could not be built."""


def _run(*command: str, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=BUILD_S, check=False)
    if done.returncode:
        raise CannotBuild(
            f"{' '.join(command)}: expected exit code 0, got {done.returncode}\n{done.stdout}{done.stderr}"
        )


def _go() -> list[str]:
    program = BUILT / "go" / "soak"
    _run("go", "build", "-trimpath", "-o", str(program), ".", cwd=SOURCE / "go")
    return [str(program)]


@cache
def _java() -> list[str]:
    jars, classes = BUILT / "java" / "jars", BUILT / "java" / "classes"
    copied = f"-DoutputDirectory={jars}"
    _run("mvn", "--quiet", "--batch-mode", "dependency:copy-dependencies", copied, cwd=SOURCE / "java")
    _run("javac", "-cp", f"{jars}/*", "-d", str(classes), "Soak.java", cwd=SOURCE / "java")
    return ["java", "-cp", f"{classes}:{jars}/*", "Soak"]


def _cpp() -> list[str]:
    program = BUILT / "cpp" / "soak"
    program.parent.mkdir(parents=True, exist_ok=True)
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "grpc++"], capture_output=True, text=True, check=True)
    warnings = ("-Wall", "-Wextra", "-Werror")
    _run(
        "g++", "-std=c++17", "-O1", *warnings, "-o", str(program), "soak.cc", *flags.stdout.split(), cwd=SOURCE / "cpp"
    )
    return [str(program)]


def _node() -> list[str]:
    folder = BUILT / "node"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = (SOURCE / "node" / "package-lock.json").read_bytes()
    installed = folder / "installed"
    for name in ("package.json", "package-lock.json", "soak.js"):
        shutil.copy(SOURCE / "node" / name, folder)
    if not installed.exists() or installed.read_bytes() != wanted:
        _run("npm", "ci", "--silent", "--no-audit", "--no-fund", cwd=folder)
        installed.write_bytes(wanted)
    return ["node", str(folder / "soak.js")]


def _rust() -> list[str]:
    folder = BUILT / "rust"
    _run("cargo", "build", "--locked", "--quiet", "--target-dir", str(folder), cwd=SOURCE / "rust")
    return [str(folder / "debug" / "soak")]


def _python() -> list[str]:
    return [sys.executable, str(SOURCE / "python" / "soak.py")]


def _has(*tools: str) -> Callable[[], str]:
    """Return what names the first of `tools` that is missing."""
    return lambda: next((tool for tool in tools if shutil.which(tool) is None), "")


def _has_cpp() -> str:
    missing = _has("g++", "pkg-config")()
    if missing:
        return missing
    found = subprocess.run(["pkg-config", "--exists", "grpc++"], check=False)
    return "" if found.returncode == 0 else "libgrpc++-dev"


@dataclass(frozen=True, slots=True)
class Program:
    """A client library to soak."""

    name: str
    missing: Callable[[], str]
    """Names what its build needs and this machine lacks; empty where nothing is missing."""
    build: Callable[[], list[str]]
    """Builds it where that is due and returns its command. Raises `CannotBuild`. Minutes at the first time."""


PROGRAMS: Final = (
    Program("grpc-go", _has("go"), _go),
    Program("grpc-java netty", _has("java", "javac", "mvn"), lambda: [*_java(), "--transport", "netty"]),
    Program("grpc-java okhttp", _has("java", "javac", "mvn"), lambda: [*_java(), "--transport", "okhttp"]),
    Program("grpc C++", _has_cpp, _cpp),
    Program("@grpc/grpc-js", _has("node", "npm"), _node),
    Program("tonic", _has("cargo"), _rust),
    Program("grpcio", lambda: "", _python),
)
