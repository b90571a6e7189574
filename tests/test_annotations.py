"""The annotations of every public name can be read: FastAPI, typeguard, beartype and Sphinx do so."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
import typing

import pytest

import cjm_worker_ext

MODULES = [
    m.name for m in pkgutil.walk_packages(cjm_worker_ext.__path__, "cjm_worker_ext.") if "__main__" not in m.name
]


def members_of(kind: type):
    "The public methods and properties that a class itself defines, and how it is made."
    for name, value in vars(kind).items():
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        if isinstance(value, property):
            value = value.fget
        value = inspect.unwrap(getattr(value, "__func__", getattr(value, "func", value)))
        if inspect.isfunction(value):
            yield value


def public_names_of(module):
    "The public functions and classes that a module itself defines, and the members of these classes."
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            yield value
            yield from members_of(value)
        elif inspect.isfunction(value):
            yield value


def is_extra(error: Exception) -> bool:
    "Whether an extra is not installed; each module says so in the same way."
    return isinstance(error, ImportError) and "pip install" in str(error)


def problem_of(value) -> str | None:
    "Say why the annotations of one name cannot be read; None: they can."
    try:
        typing.get_type_hints(value)
        inspect.signature(value, eval_str=True)
    except ValueError:  # a built-in type is made as it likes, for example an exception without an `__init__` of its own
        return None
    except (AttributeError, ImportError, NameError, SyntaxError, TypeError) as e:
        return None if is_extra(e) else f"{value.__qualname__}: {e!r}"
    return None


@pytest.mark.parametrize("name", MODULES)
def test_the_annotations_of_every_public_name_can_be_read(name):
    try:
        module = importlib.import_module(name)
    except ImportError as e:
        if not is_extra(e):
            raise
        pytest.skip(str(e))
    assert [problem for value in public_names_of(module) if (problem := problem_of(value))] == []


def test_the_walk_sees_what_it_should():
    from cjm_worker_ext import manager

    seen = {value.__qualname__ for value in public_names_of(manager)}
    assert {"BaseJobManager", "BaseJobManager.__init__", "BaseJobManager.submit_job", "check_policies"} <= seen
    assert len(MODULES) > 80


def test_they_can_be_read_first_of_all():
    "In a fresh interpreter, where nothing has loaded the modules that the annotations name."
    code = """if True:
        import inspect, typing
        from cjm_worker_ext import BaseJobManager
        for name, method in inspect.getmembers(BaseJobManager, inspect.isfunction):
            if not name.startswith("_") or name == "__init__":
                typing.get_type_hints(method), inspect.signature(method, eval_str=True)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
