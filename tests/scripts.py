"""Scripts that are no modules of a package, loaded as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_script(path: Path) -> ModuleType:
    """Run a script's top level under its own name, without its folder on the path.

    pytest's `syspath_prepend` would put the path back as it was, and so lose what libraries add to it when imported:
    onnxruntime's converters do.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # typer looks annotations up there
    spec.loader.exec_module(module)
    return module
