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
    "time": dict.fromkeys((*CLOCKS, *CLOCK_WHEN_BARE), NOW) | {"sleep": SLEEP},
    "random": dict.fromkeys((*DRAWS, "Random"), RANDOM) | {"SystemRandom": SECRET},
    "uuid": dict.fromkeys(("uuid1", "uuid4", "uuid6", "uuid7", "uuid8"), UUID)
    | {"getnode": ACTION},
    "secrets": dict.fromkeys(
        ("choice", "randbelow", "randbits", "token_bytes", "token_hex", "token_urlsafe"), SECRET
    ),
    "os": dict.fromkeys(("urandom", "getrandom"), SECRET)
    | dict.fromkeys(
        (
            *("getpid", "getppid", "getlogin", "system", "popen", "fork", "forkpty", "startfile"),
            *("execl", "execle", "execlp", "execlpe", "execv", "execve", "execvp", "execvpe"),
            *("spawnl", "spawnle", "spawnlp", "spawnlpe", "spawnv", "spawnve", "spawnvp"),
            *("spawnvpe", "posix_spawn", "posix_spawnp", "kill", "killpg", "wait", "waitpid"),
            *("open", "fdopen", "listdir", "scandir", "walk", "stat", "lstat", "mkdir"),
            *("makedirs", "remove", "unlink", "rename", "replace", "rmdir", "removedirs"),
            *("link", "symlink", "readlink", "truncate", "utime", "chmod", "chown", "chdir"),
        ),
        ACTION,
    ),
    "os.path": dict.fromkeys(
        ("exists", "lexists", "isfile", "isdir", "getmtime", "getatime", "getctime", "getsize"),
        ACTION,
    ),
    "subprocess": dict.fromkeys(
        ("run", "call", "check_call", "check_output", "Popen", "getoutput", "getstatusoutput"),
        ACTION,
    ),
    "threading": dict.fromkeys(
        (
            *("Thread", "Timer", "Lock", "RLock", "Condition", "Event", "Semaphore"),
            *("BoundedSemaphore", "Barrier"),
        ),
        THREAD,
    ),
    "_thread": dict.fromkeys(("start_new_thread", "start_new"), THREAD),
    "concurrent.futures.thread": {"ThreadPoolExecutor": THREAD},
    "concurrent.futures.process": {"ProcessPoolExecutor": ACTION},
    "multiprocessing": dict.fromkeys(("Process", "Pool", "Queue", "Pipe", "Manager"), ACTION),
    "socket": dict.fromkeys(
        (
            *("socket", "create_connection", "create_server", "socketpair", "fromfd"),
            *("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr"),
            *("gethostname", "getfqdn", "getnameinfo"),
        ),
        ACTION,
    ),
    "urllib.request": dict.fromkeys(("urlopen", "urlretrieve"), ACTION),
    "http.client": dict.fromkeys(("HTTPConnection", "HTTPSConnection"), ACTION),
    "requests": dict.fromkeys((*HTTP, "Session", "session"), ACTION),
    "httpx": dict.fromkeys((*HTTP, "stream", "Client", "AsyncClient"), ACTION),
    "sqlite3": {"connect": "a query, a mutation, or an action"},
    "tempfile": dict.fromkeys(
        (
            *("mkstemp", "mkdtemp", "TemporaryFile", "NamedTemporaryFile"),
            *("SpooledTemporaryFile", "TemporaryDirectory"),
        ),
        ACTION,
    ),
    "shutil": dict.fromkeys(
        ("copy", "copy2", "copyfile", "copytree", "move", "rmtree", "disk_usage", "which"), ACTION
    ),
    "glob": dict.fromkeys(("glob", "iglob"), ACTION),
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
)

METHODS: dict[str, dict[str, dict[str, str]]] = {
    "pathlib": {"Path": dict.fromkeys(FILES, ACTION)},
    "pathlib._local": {"Path": dict.fromkeys(FILES, ACTION)},  # Where Python 3.13 has it.
    "random": {"Random": dict.fromkeys(DRAWS, RANDOM)},
    "requests.sessions": {"Session": dict.fromkeys(HTTP, ACTION)},
    "httpx": {
        "Client": dict.fromkeys((*HTTP, "stream", "send"), ACTION),
        "AsyncClient": dict.fromkeys((*HTTP, "stream", "send"), ACTION),
    },
    "socket": {
        "socket": dict.fromkeys(
            ("connect", "connect_ex", "bind", "listen", "accept", "send", "sendall", "recv"), ACTION
        )
    },
}
"""What to do instead of each method, by module and class."""

UNORDERED = "iterate over a list, or over sorted(...), because a set has another order in another process"
AS_COMPLETED = "make tasks of them, by asyncio.create_task()"


def instead_of(name: str, default: str = ACTION) -> str:
    """Return what to do instead of a function, which is named with its module."""
    module, _, function = name.rpartition(".")
    return FORBIDDEN.get(module, {}).get(function, default)
