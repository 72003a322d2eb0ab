# Everything is run from the repository's root, in a virtual environment with `pip install -e .[dev]`.

# list the recipes
default:
    @just --list

# what has to hold before a change: format, lint, types, layers, tests
check: lint types layers test

lint:
    ruff format --check .
    ruff check .

types:
    mypy
    pyright

layers:
    lint-imports

# all tests; arguments go to pytest
test *args:
    python -m pytest {{args}}

# the tests that play all orders of commits, and all crashes: minutes
exhaustive *args:
    python -m pytest -m exhaustive {{args}}

# which lines and branches the fast tests reach; it fails when too few are
coverage:
    python -m pytest -q -m "not slow" --cov

# the engine in a simulated machine, seed by seed: --seeds N, --from K, --seed K, --planted
simulate *args:
    python -m tests.simulation {{args}}

# all benchmarks; names of workloads restrict them
bench *args:
    python -m benchmarks {{args}}

# put the code in shape
format:
    ruff format .
    ruff check --fix .
