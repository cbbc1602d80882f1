"""Runs Python files of a user, whose decorators register components."""

import importlib.util
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

from kldm.errors import KldmError


def load_code(path: Path) -> ModuleType:
    """Run a file as the module ``kldm_code_<file name>`` and return it; a second call runs it again.

    The module stays in ``sys.modules``, so that its classes find their annotations and can be pickled.

    Raises:
        KldmError: the file is missing, another file of that name was loaded, or the code raises (with its line).
    """
    import cloudpickle

    path = Path(path).resolve()
    name = "kldm_code_" + re.sub(r"\W", "_", path.stem)
    if not path.is_file():
        raise KldmError("no such file", place=str(path))
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ != str(path):
        raise KldmError(f"another file of that name is loaded ({loaded.__file__})", place=str(path), remedy="rename it")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise KldmError("is not a Python file", place=str(path), remedy="give it the suffix .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        cloudpickle.register_pickle_by_value(module)  # other processes cannot import it
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if loaded is not None:
            sys.modules[name] = loaded
        raise _located(error, path) from error
    return module


def _located(error: Exception | SystemExit, path: Path) -> KldmError:
    """An error of the code with its line in the file."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return KldmError(f"SyntaxError: {error.msg}", place=f"{path}:{error.lineno}")
    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)
    place = f"{path}:{line}" if line else str(path)
    if isinstance(error, KldmError):
        problem = f"{error.place}: {error.problem}" if error.place else error.problem
        return KldmError(problem, place=place, remedy=error.remedy)
    return KldmError(f"{type(error).__name__}: {error}", place=place)
