"""Load the learner's files, with modules of the check in place of some real ones."""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib.util
import linecache
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

MODULE_NAME = "your_solution"
ROOT = Path(__file__).resolve().parents[3]
NOT_THE_LEARNERS = [
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *(Path(folder) for folder in site.getsitepackages()),
    *(ROOT / folder for folder in ("lib", "examples/simulations", "examples/support")),
    Path(__file__).resolve().parent,
]


def load(path: Path, modules: Mapping[str, ModuleType], files: set[str]) -> Any:
    """Run the learner's file, and the files of the learner that it imports, as modules.

    They find ``modules`` in place of the real ones. Their paths are added to ``files``.
    Raises whatever the file raises, SyntaxError included.
    """
    finder = _Finder(path.parent, files)
    finder.builtins = builtins_with(modules, finder)
    loader = _Loader(MODULE_NAME, str(path), finder)
    spec = importlib.util.spec_from_file_location(MODULE_NAME, path, loader=loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE_NAME] = module  # dataclasses look their module up
    loader.exec_module(module)
    return module


def builtins_with(
    modules: Mapping[str, ModuleType | None], finder: _Finder | None = None
) -> dict[str, Any]:
    """Return builtins whose ``__import__`` finds these modules first; None stands for a missing
    one."""

    def find(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        if level or name not in modules:
            with finder.installed() if finder else contextlib.nullcontext():
                return builtins.__import__(name, globals, locals, fromlist, level)
        if modules[name] is None:
            raise ImportError(name)
        return modules[name]

    return {**vars(builtins), "__import__": find}


@functools.cache
def is_the_learners(file: str) -> bool:
    """Return False for Python's own files, installed packages and this project's machinery."""
    return not any(Path(file).is_relative_to(folder) for folder in NOT_THE_LEARNERS)


class _Finder(MetaPathFinder):
    """Finds the files of the learner, also beside the one that is checked."""

    builtins: dict[str, Any]

    def __init__(self, folder: Path, files: set[str]) -> None:
        self.folder = str(folder)
        self.files = files

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Find files for every import of the process."""
        sys.meta_path.insert(0, self)
        try:
            yield
        finally:
            sys.meta_path.remove(self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's spec if it is a file of the learner."""
        spec = PathFinder.find_spec(name, path or [self.folder, *sys.path])
        if not (spec and isinstance(spec.loader, SourceFileLoader)):
            return None
        if not is_the_learners(spec.loader.path):
            return None
        spec.loader = _Loader(name, spec.loader.path, self)
        return spec


class _Loader(SourceFileLoader):
    """Runs a file of the learner, always from its source."""

    def __init__(self, name: str, path: str, finder: _Finder) -> None:
        super().__init__(name, path)
        self._finder = finder

    def exec_module(self, module: ModuleType) -> None:
        """Run the file."""
        linecache.checkcache(self.path)  # the messages quote its lines
        self._finder.files.add(self.path)
        vars(module)["__builtins__"] = self._finder.builtins
        exec(self.source_to_code(self.get_data(self.path), self.path), vars(module))
