"""What a workflow's body may not call, by name, and what it does instead: a table.

All of it gives another value, or has its effect again, when the body is replayed.
"""

from __future__ import annotations

ACTION = "put it in an action"
NOW = "step.now(), which is the run's own time"
SLEEP = "await step.sleep() or asyncio.sleep(), which are durable"
RANDOM = "step.random, which is seeded by the run's id"
UUID = "step.uuid4()"
SECRET = "have an action return it (step.random is not for secrets)"  # noqa: S105
THREAD = "use asyncio's tasks, locks and events, or an action: a plain function runs in a thread"
EVENT = "await step.wait_event(), or an action that asks"


def _all(instead: str, /, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, instead)


CLOCKS = (
    *("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"),
    *("process_time", "process_time_ns", "thread_time", "thread_time_ns"),
    *("clock_gettime", "clock_gettime_ns"),
)
CLOCK_WHEN_BARE = ("localtime", "gmtime", "ctime", "asctime", "strftime")
"""Functions of ``time`` that look at the clock when no time is given to them."""

DRAWS = (
    *("random", "uniform", "triangular", "randint", "randrange", "choice", "choices", "sample"),
    *("shuffle", "getrandbits", "randbytes", "seed", "getstate", "setstate", "gauss"),
    *("normalvariate", "lognormvariate", "expovariate", "vonmisesvariate", "gammavariate"),
    *("betavariate", "binomialvariate", "paretovariate", "weibullvariate"),
)
HTTP = ("get", "post", "put", "patch", "delete", "head", "options", "request")

FORBIDDEN: dict[str, dict[str, str]] = {
    "builtins": {"open": ACTION, "input": EVENT},
    "time": {**_all(NOW, *CLOCKS, *CLOCK_WHEN_BARE), "sleep": SLEEP},
    "random": {**_all(RANDOM, *DRAWS, "Random"), "SystemRandom": SECRET},
    "uuid": {
        **_all(UUID, "uuid1", "uuid4", "uuid6", "uuid7", "uuid8", "_generate_time_safe"),
        "getnode": ACTION,
    },
    "secrets": _all(
        *(SECRET, "choice", "randbelow", "randbits", "token_bytes", "token_hex", "token_urlsafe")
    ),
    "os": {
        **_all(SECRET, "urandom", "getrandom"),
        **_all(
            *(ACTION, "getpid", "getppid", "getlogin", "system", "popen", "fork", "forkpty"),
            *("execl", "execle", "execlp", "execlpe", "execv", "execve", "execvp", "execvpe"),
            *("spawnl", "spawnle", "spawnlp", "spawnlpe", "spawnv", "spawnve", "spawnvp"),
            *("spawnvpe", "posix_spawn", "posix_spawnp", "kill", "killpg", "wait", "waitpid"),
            *("open", "fdopen", "listdir", "scandir", "walk", "stat", "lstat", "mkdir"),
            *("makedirs", "remove", "unlink", "rename", "replace", "rmdir", "removedirs"),
            *("link", "symlink", "readlink", "truncate", "utime", "chmod", "chown", "chdir"),
            "startfile",
        ),
    },
    "os.path": _all(
        *(ACTION, "exists", "lexists", "isfile", "isdir", "getsize"),
        *("getmtime", "getatime", "getctime"),
    ),
    "subprocess": _all(
        *(ACTION, "run", "call", "check_call", "check_output", "Popen"),
        *("getoutput", "getstatusoutput"),
    ),
    "threading": _all(
        *(THREAD, "Thread", "Timer", "Lock", "RLock", "Condition", "Event", "Semaphore"),
        *("BoundedSemaphore", "Barrier"),
    ),
    "_thread": _all(THREAD, "start_new_thread"),
    "concurrent.futures.thread": _all(THREAD, "ThreadPoolExecutor"),
    "concurrent.futures.process": _all(ACTION, "ProcessPoolExecutor"),
    # Looked up by these names, the two above are imported when they are asked for.
    "concurrent.futures": {"ThreadPoolExecutor": THREAD, "ProcessPoolExecutor": ACTION},
    "multiprocessing": _all(ACTION, "Process", "Pool", "Queue", "Pipe", "Manager"),
    "socket": _all(
        *(ACTION, "socket", "create_connection", "create_server", "socketpair", "fromfd"),
        *("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr"),
        *("gethostname", "getfqdn", "getnameinfo"),
    ),
    "urllib.request": _all(ACTION, "urlopen", "urlretrieve"),
    "http.client": _all(ACTION, "HTTPConnection", "HTTPSConnection"),
    "requests": _all(ACTION, *HTTP, "Session", "session"),
    "httpx": _all(ACTION, *HTTP, "stream", "Client", "AsyncClient"),
    "sqlite3": {"connect": "use a query, a mutation, or an action"},
    "tempfile": _all(
        *(ACTION, "mkstemp", "mkdtemp", "TemporaryFile", "NamedTemporaryFile"),
        *("SpooledTemporaryFile", "TemporaryDirectory"),
    ),
    "shutil": _all(
        *(ACTION, "copy", "copy2", "copyfile", "copytree", "move", "rmtree", "disk_usage", "which")
    ),
    "glob": _all(ACTION, "glob", "iglob"),
}
"""What to do instead of each function, by module."""

FREE_WITH_ARGUMENTS = {
    **{f"time.{name}": 0 for name in CLOCK_WHEN_BARE},
    "time.strftime": 1,
    "random.Random": 0,
    "uuid.uuid8": 2,
}
"""What is forbidden only when it is called with no more arguments than that."""

DATE_METHODS = ("now", "utcnow", "today")
"""The class methods of ``datetime.datetime`` and ``datetime.date`` that look at the clock."""

FILES = (
    *("open", "read_text", "read_bytes", "write_text", "write_bytes", "exists", "is_file"),
    *("is_dir", "stat", "lstat", "iterdir", "glob", "rglob", "walk", "mkdir", "touch", "unlink"),
    *("rename", "replace", "rmdir", "symlink_to", "hardlink_to", "chmod", "cwd", "home"),
    *("is_symlink", "is_mount", "samefile", "owner", "group", "readlink", "resolve", "expanduser"),
)
PATH_METHODS = (
    *("joinpath", "with_name", "with_stem", "with_suffix", "with_segments", "relative_to"),
    *("absolute", "resolve", "expanduser", "readlink", "rename", "replace"),
)
"""The methods of a path that give another one."""
PATH_ATTRIBUTES = ("parent",)

METHODS: dict[str, dict[str, dict[str, str]]] = {
    "pathlib": {"Path": _all(ACTION, *FILES)},
    "pathlib._local": {"Path": _all(ACTION, *FILES)},  # Where Python 3.13 has it.
    "random": {"Random": _all(RANDOM, *DRAWS)},
    "requests.sessions": {"Session": _all(ACTION, *HTTP)},
    "httpx": {
        "Client": _all(ACTION, *HTTP, "stream", "send"),
        "AsyncClient": _all(ACTION, *HTTP, "stream", "send"),
    },
    "socket": {
        "socket": _all(
            *(ACTION, "connect", "connect_ex", "bind", "listen", "accept", "send", "sendall"),
            "recv",
        )
    },
}
"""What to do instead of each method, by module and class."""

UNORDERED = (
    "iterate over a list, or over sorted(...), because a set has another order in another process"
)
AS_COMPLETED = "make tasks of them, by asyncio.create_task()"


def instead_of(name: str, default: str = ACTION) -> str:
    """Return what to do instead of a function, which is named with its module."""
    module, _, function = name.rpartition(".")
    return FORBIDDEN.get(module, {}).get(function, default)
