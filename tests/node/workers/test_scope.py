"""What a model's imports find: its own files, no other model's, and the new ones after a change."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest

from mesh.node.workers.inside.scope import Scope


@pytest.fixture(params=[True, False], ids=["in the node", "in a worker"])
def shared(request: pytest.FixtureRequest) -> bool:
    """Whether other models live in the process. A worker's scope is closed again, which no worker does."""
    found: bool = request.param
    return found


class Folder:
    """Versions of models, and what they loaded."""

    def __init__(self, root: Path, *, shared: bool) -> None:
        self.root, self.shared = root, shared
        self.scopes: list[Scope] = []

    def write(self, files: Mapping[str, str], name: str = "m") -> Path:
        for file, text in files.items():
            path = self.root / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        return self.root / name

    def load(self, files: Mapping[str, str], name: str = "m") -> ModuleType:
        scope = Scope(self.write(files, name), name, shared=self.shared)
        self.scopes.append(scope)
        return scope.load("model.py")

    def close(self) -> None:
        while self.scopes:
            self.scopes.pop().close()


@pytest.fixture
def folder(tmp_path: Path, shared: bool) -> Iterator[Folder]:
    made, before = Folder(tmp_path, shared=shared), set(sys.modules)
    yield made
    made.close()
    if not shared:
        for each in set(sys.modules) - before:
            del sys.modules[each]


WAYS = {
    "from .tiny import f": "from .tiny import f\nVALUE = f()",
    "from . import tiny": "from . import tiny\nVALUE = tiny.f()",
    "import tiny": "import tiny\nVALUE = tiny.f()",
    "import tiny as other": "import tiny as other\nVALUE = other.f()",
    "from tiny import f": "from tiny import f\nVALUE = f()",
    "from tiny import *": "from tiny import *\nVALUE = f()",
    "import a.b": "import a.b\nVALUE = a.b.f()",
    "import a.b as c": "import a.b as c\nVALUE = c.f()",
    "import a.b2.deep": "import a.b2.deep\nVALUE = a.b2.deep.f()",
    "from a import b": "from a import b\nVALUE = b.f()",
    "from a.b import f": "from a.b import f\nVALUE = f()",
    "from .a.b import f": "from .a.b import f\nVALUE = f()",
    "from .a import b": "from .a import b\nVALUE = b.f()",
    "later": "def later():\n    import tiny\n    return tiny.f()\nVALUE = later()",
    "a folder without __init__": "import bare.inner\nVALUE = bare.inner.f()",
    "relative inside": "from a.near import f\nVALUE = f()",
    "up and down": "from a.b2.deep import up\nVALUE = up()",
    "in a circle": "import round1\nVALUE = round1.f()",
}
FILES = {
    "tiny.py": "def f():\n    return 42\n",
    "a/__init__.py": "",
    "a/b.py": "def f():\n    return 42\n",
    "a/b2/__init__.py": "",
    "a/b2/deep.py": """
    def f():
        return 42

    def up():
        from ..b import f
        import tiny
        assert tiny.f() == 42
        return f()
    """,
    "a/near.py": "from .b import f\n",
    "bare/inner.py": "def f():\n    return 42\n",
    "round1.py": "import round2\ndef f():\n    return round2.g()\n",
    "round2.py": "import round1\ndef g():\n    return 42 if round1.f else 0\n",
}


@pytest.mark.parametrize("way", list(WAYS))
def test_a_models_own_files_are_found(folder: Folder, way: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = folder.load({**FILES, "model.py": WAYS[way]})
    assert module.VALUE == 42


def test_a_file_is_one_module_by_either_name(folder: Folder) -> None:
    module = folder.load(
        {
            "tiny.py": "COUNT = []\nclass Thing:\n    pass\n",
            "model.py": """
            import tiny
            from . import tiny as other
            from .tiny import Thing
            import a.b
            from .a import b

            SAME = tiny is other and tiny.Thing is Thing and a.b is b
            tiny.COUNT.append(1)
            VALUE = len(other.COUNT)
            """,
            "a/__init__.py": "",
            "a/b.py": "",
        }
    )
    assert (module.SAME, module.VALUE) == (True, 1)


def test_relative_imports_of_a_file_that_was_imported_by_its_short_name_still_work_later(folder: Folder) -> None:
    """Python warns where a module's package and its spec disagree, and will one day go by the spec."""
    module = folder.load(
        {
            "model.py": """
            import tiny
            import a.b
            SPECS = [each.__spec__.parent == each.__package__ for each in (tiny, a, a.b)]
            """,
            "tiny.py": "def f():\n    from .other import VALUE\n    return VALUE\n",
            "other.py": "VALUE = 42\n",
            "a/__init__.py": "",
            "a/b.py": "def f():\n    from ..other import VALUE\n    return VALUE\n",
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert module.tiny.f() == 42
        assert module.a.b.f() == 42
    assert module.SPECS == [True] * 3


def test_two_models_have_their_own(tmp_path: Path) -> None:
    folder = Folder(tmp_path, shared=True)
    code = "import utils\nfrom .utils import VALUE\ndef later():\n    import utils\n    return utils.VALUE + VALUE\n"
    found = [folder.load({"model.py": code, "utils.py": f"VALUE = {at}\n"}, f"m{at}") for at in range(3)]
    assert [each.later() for each in found] == [0, 2, 4]
    with pytest.raises(ImportError):
        importlib.import_module("utils")
    folder.close()
    assert not [each for each in sys.modules if each.startswith("mesh_model_") and "m0" in each]


def test_what_is_installed_and_the_standard_library_stay_what_they_are(folder: Folder) -> None:
    """Even where a file, or a folder of data, has such a name."""
    module = folder.load(
        {
            "model.py": """
            import json, random, numpy, onnxruntime, yaml
            from json import dumps

            VALUE = (dumps([1]), json.loads("2"), 0 <= random.random() < 1, numpy.ones(1)[0], bool(yaml.safe_load))
            VERSION = onnxruntime.__version__
            """,
            "json.py": "raise RuntimeError('this is not the one')",
            "random.py": "raise RuntimeError('this is not the one')",
            "onnxruntime/weights.txt": "a folder of data with the name of a library",
            "numpy/weights.txt": "a folder of data with the name of a library",
            "yaml/more/weights.txt": "a folder of data with the name of a library",
        }
    )
    assert module.VALUE == ("[1]", 2, True, 1.0, True)
    assert module.VERSION


def test_an_error_in_a_file_is_that_error(folder: Folder) -> None:
    for code, error in (
        ("import tiny", "ZeroDivisionError"),
        ("from . import nothing_there", "ImportError"),
        ("import nothing_there", "ModuleNotFoundError"),
        ("from fine import nothing", "ImportError"),
        ("import fine.nothing", "ModuleNotFoundError"),
    ):
        with pytest.raises(Exception, match=r".") as caught:
            folder.load({"model.py": code, "tiny.py": "1 / 0", "fine.py": "VALUE = 1"})
        assert error in [each.__name__ for each in type(caught.value).__mro__], code
        folder.close()
        for each in ("tiny", "fine", "nothing_there"):
            sys.modules.pop(each, None)


def test_a_reload_runs_the_new_code_whatever_lies_beside_it(folder: Folder) -> None:
    """The files have the same size and time as before, and there is byte code of the old ones."""
    found = []
    for value in (1, 2):
        path = folder.write({"model.py": "import tiny\nfrom .tiny import VALUE\n", "tiny.py": f"VALUE = {value}\n"})
        for each in path.glob("*.py"):
            os.utime(each, (1_000_000_000, 1_000_000_000))
        if value == 1:
            subprocess.run([sys.executable, "-m", "compileall", "-q", path], check=True, timeout=60)
            assert list((path / "__pycache__").glob("tiny*.pyc"))
        scope = Scope(path, "m", shared=folder.shared)
        module = scope.load("model.py")
        found.append((module.VALUE, module.tiny.VALUE))
        scope.close()
        sys.modules.pop("tiny", None)
    assert found == [(1, 1), (2, 2)]


def test_classes_can_be_pickled(folder: Folder) -> None:
    module = folder.load(
        {
            "model.py": """
            import pickle
            from tiny import Thing
            VALUE = pickle.loads(pickle.dumps(Thing(42))).value
            """,
            "tiny.py": "class Thing:\n    def __init__(self, value):\n        self.value = value\n",
        }
    )
    assert module.VALUE == 42


def test_importing_from_many_threads_makes_one_module(folder: Folder) -> None:
    module = folder.load(
        {
            "model.py": """
            from concurrent.futures import ThreadPoolExecutor

            def get(_):
                import slow
                return slow

            with ThreadPoolExecutor(8) as pool:
                FOUND = {id(each) for each in pool.map(get, range(32))}
            """,
            "slow.py": "import time\ntime.sleep(0.1)\nVALUE = 1\n",
        }
    )
    assert len(module.FOUND) == 1
