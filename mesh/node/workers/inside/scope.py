"""Importing a model's files: the folder of its version is where its imports look first, and no other model's do.

A version's folder becomes a package of its own name, so that ``from .tiny import f`` finds ``tiny.py`` beside model.py.
``import tiny`` finds the same module. In a worker, which belongs to one model, a finder sees to that for the whole
process; in a node process (``isolation: none``) the files of a model have an ``__import__`` of their own.

Files are compiled from their text at every load: a byte code file with the same second and size as a changed source
would bring old code back.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.abc
import importlib.machinery
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

_serial = itertools.count()


class _Source(importlib.machinery.SourceFileLoader):
    """Compiles the text, whatever byte code lies beside it."""

    def __init__(self, fullname: str, path: str, scope: Scope) -> None:
        super().__init__(fullname, path)
        self._scope = scope

    def get_code(self, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def exec_module(self, module: ModuleType) -> None:
        if self._scope.shared:
            module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._scope.importing}
        super().exec_module(module)


class Scope(importlib.abc.MetaPathFinder):
    """The modules of one load of one version. `close` forgets them.

    `shared` says that other models live in this process: then names of files of this one mean nothing elsewhere.
    """

    def __init__(self, folder: Path, name: str, *, shared: bool) -> None:
        self.shared = shared
        self.package = f"mesh_model_{next(_serial)}_{''.join(c if c.isalnum() else '_' for c in name)}"
        self._folder = folder
        self._finder = self._finder_of(str(folder))

    def load(self, file: str) -> ModuleType:
        """Import a file of the folder. Raises whatever its code raises."""
        package = ModuleType(self.package)
        package.__path__ = [str(self._folder)]
        sys.modules[self.package] = package
        sys.meta_path.insert(0, self)
        return importlib.import_module(f"{self.package}.{file.removesuffix('.py')}")

    def close(self) -> None:
        """Forget every module of it."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for name in [each for each in sys.modules if each == self.package or each.startswith(self.package + ".")]:
            del sys.modules[name]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the modules of the package and, in a process of its own, its files by their own names."""
        del target
        parent = fullname.rpartition(".")[0]
        if parent == self.package or parent.startswith(self.package + "."):
            if parent == self.package:
                return self._finder.find_spec(fullname)
            return self._finder_of(next(iter(path or ()), "")).find_spec(fullname)
        if self.shared or not self._has(fullname.partition(".")[0]):
            return None
        return importlib.machinery.ModuleSpec(fullname, _Alias(f"{self.package}.{fullname}"))

    def importing(
        self,
        name: str,
        globals: Any = None,  # noqa: A002 - the names of `__import__`
        locals: Any = None,  # noqa: A002
        fromlist: Any = (),
        level: int = 0,
    ) -> ModuleType:
        """Import as ``import`` statements in the model's files do."""
        if level or not self._has(name.partition(".")[0]):
            return builtins.__import__(name, globals, locals, fromlist, level)
        own = importlib.import_module(f"{self.package}.{name}")
        if fromlist:
            for each in fromlist:
                if each != "*" and not hasattr(own, each):
                    importlib.import_module(f"{self.package}.{name}.{each}")
            return own
        return sys.modules[f"{self.package}.{name.partition('.')[0]}"]

    def _finder_of(self, folder: str) -> importlib.machinery.FileFinder:
        return importlib.machinery.FileFinder(
            folder,
            (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES),
            (self._loader, importlib.machinery.SOURCE_SUFFIXES),  # type: ignore[arg-type] # it is only called
        )

    def _loader(self, fullname: str, path: str) -> _Source:
        return _Source(fullname, path, self)

    def _has(self, top: str) -> bool:
        """Tell whether the folder has a module of this name. The standard library's names stay what they are.

        A folder without Python's mark may hold data: as everywhere, what is installed under its name comes first.
        """
        if top in sys.stdlib_module_names:
            return False
        found = self._finder.find_spec(f"{self.package}.{top}")
        if found is None or found.loader is not None:
            return found is not None
        installed = importlib.machinery.PathFinder.find_spec(top)
        return installed is None or installed.loader is None


class _Alias(importlib.abc.Loader):
    """Gives a module of the package under its short name too."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._spec: importlib.machinery.ModuleSpec | None = None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._own)
        sys.modules[spec.name] = module
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give it back its own spec, which its relative imports go by: it ran when it was imported."""
        module.__spec__ = self._spec
