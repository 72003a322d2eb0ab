"""The surface: what is exported, documented, closed, and free at import."""

import ast
import inspect
from importlib.resources import files
from types import ModuleType

import pytest
from interpreters import ROOT, run_python

import durable
from durable import DeterminismWarning, DurableError, NonDeterminismError, testing

PUBLIC: dict[str, object] = {name: getattr(durable, name) for name in durable.__all__}
CLASSES = {name: value for name, value in PUBLIC.items() if isinstance(value, type)}
RAISED = {name: value for name, value in CLASSES.items() if issubclass(value, BaseException)}
ERRORS = {name: value for name, value in RAISED.items() if not issubclass(value, Warning)}
OTHERS = {name: value for name, value in CLASSES.items() if name not in RAISED}


def test_what_can_be_imported_is_what_is_listed() -> None:
    importable = {
        name
        for name, value in vars(durable).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert importable == set(durable.__all__)
    assert durable.__all__ == sorted(durable.__all__)


@pytest.mark.parametrize("name", durable.__all__)
def test_every_public_name_says_what_it_is(name: str) -> None:
    value = PUBLIC[name]
    assert callable(value)
    own = vars(value).get("__doc__") if isinstance(value, type) else value.__doc__
    assert own
    assert not own.startswith(f"{name}(")  # What a dataclass makes up.


@pytest.mark.parametrize(
    "name", ["Engine", "Run", "Step", "Retry", "Attempt", "Transaction", "Row"]
)
def test_every_public_method_says_what_it_does(name: str) -> None:
    for method_name, method in vars(CLASSES[name]).items():
        if not method_name.startswith("_") and (callable(method) or hasattr(method, "fget")):
            assert method.__doc__, method_name


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_has_one_root_and_one_home(name: str) -> None:
    error = ERRORS[name]
    assert error.__module__ == "durable"
    assert error.__qualname__ == error.__name__ == name
    assert issubclass(error, DurableError) == (error is not NonDeterminismError)


def test_a_warning_is_one_that_is_shown() -> None:
    assert issubclass(DeterminismWarning, UserWarning)
    assert (DeterminismWarning.__module__, DeterminismWarning.__qualname__) == (
        "durable",
        "DeterminismWarning",
    )


def test_a_body_cannot_catch_non_determinism_by_accident() -> None:
    assert not issubclass(NonDeterminismError, Exception)


@pytest.mark.parametrize("name", OTHERS)
def test_public_classes_are_not_for_subclassing(name: str) -> None:
    assert getattr(OTHERS[name], "__final__", False)


@pytest.mark.parametrize(
    ("function", "positional"),
    [
        (durable.Engine, ["url"]),
        (durable.Engine.start, ["self", "call"]),
        (durable.Engine.run, ["self", "call"]),
        (durable.Engine.list_runs, ["self"]),
        (durable.Engine.list_steps, ["self", "run_id"]),
        (durable.Step.run, ["self", "call"]),
        (durable.Step.sleep, ["self", "delay"]),
        (durable.Step.sleep_until, ["self", "when"]),
        (durable.Engine.transaction, ["self"]),
        (durable.action, ["fn"]),
        (durable.query, ["fn"]),
        (durable.mutation, ["fn"]),
        (durable.workflow, ["fn"]),
        (durable.run, ["call"]),
    ],
)
def test_options_are_given_by_name(function: object, positional: list[str]) -> None:
    assert callable(function)
    parameters = inspect.signature(function).parameters.values()
    by_keyword = (inspect.Parameter.KEYWORD_ONLY,)
    assert [p.name for p in parameters if p.kind not in by_keyword] == positional


@pytest.mark.parametrize("name", testing.__all__)
def test_every_name_of_the_test_kit_says_what_it_is(name: str) -> None:
    value = getattr(testing, name)
    assert value.__doc__
    if name in ("Environment", "Replacement"):
        for method_name, method in vars(value).items():
            if not method_name.startswith("_") and (callable(method) or hasattr(method, "fget")):
                assert method.__doc__, method_name


def test_objects_with_a_state_show_it() -> None:
    engine = durable.Engine("sqlite://")
    assert repr(engine) == "<Engine in memory closed>"
    assert repr(engine.get("r")) == "<Run 'r'>"


def test_the_package_brings_its_types_and_its_schema() -> None:
    assert files("durable").joinpath("py.typed").is_file()
    assert files("durable.journal").joinpath("schema.sql").is_file()


QUIET = """
import logging, signal, sys, threading, asyncio, warnings
before = [signal.getsignal(number) for number in signal.valid_signals()]
policy = asyncio.get_event_loop_policy() if sys.version_info < (3, 14) else None
filters = warnings.filters[:]
import durable

@durable.action
async def act() -> None: ...

@durable.workflow
async def flow(step: durable.Step) -> None: ...

durable.Engine("sqlite://")
assert threading.enumerate() == [threading.main_thread()]
assert [signal.getsignal(number) for number in signal.valid_signals()] == before
assert not logging.root.handlers
assert logging.root.level == logging.WARNING
assert not logging.getLogger("durable").handlers
assert warnings.filters == filters
assert policy is None or asyncio.get_event_loop_policy() is policy
print(*sorted({"structlog", "aiosqlite", "anyio", "sqlite3"} & set(sys.modules)))
"""


@pytest.mark.slow
def test_importing_it_does_nothing_else_and_loads_nothing_heavy() -> None:
    done = run_python("-W", "error", "-c", QUIET, paths=[ROOT])
    assert (done.stdout, done.stderr) == ("\n", "")


FORBIDDEN = {"pickle", "marshal", "shelve", "dill", "importlib", "runpy"}
FORBIDDEN_CALLS = {"eval", "exec", "__import__", "import_module"}
IMPORTS_WHAT_ITS_CALLER_NAMES = ROOT / "durable" / "cli" / "loading.py"
"""A command is given modules by whoever calls it, and reads no journal where it imports them."""


def test_nothing_stored_can_be_code() -> None:
    """Nothing is unpickled, evaluated, or imported by a name: whoever can write the journal's file
    could else run code in each process that reads it."""
    modules = sorted({*(ROOT / "durable").rglob("*.py")} - {IMPORTS_WHAT_ITS_CALLER_NAMES})
    assert len(modules) > 50
    for module in modules:
        for node in ast.walk(ast.parse(module.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {node.module or ""} - {"importlib.resources"}  # Its own files alone.
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                assert name not in FORBIDDEN_CALLS, f"{module}: {name}"
                continue
            else:
                continue
            assert not {name.partition(".")[0] for name in names} & FORBIDDEN, module
