"""Development tasks: ``nox -s tests``, ``nox --list`` for the others.

Everything that needs torch runs in one environment, ``.nox/ppap``: torch takes gigabytes, and
one copy is enough. It is filled once and again whenever pyproject.toml changes.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests"]

ROOT = Path(__file__).parent
PYPROJECT = ROOT / "pyproject.toml"
SHARED = ROOT / ".nox" / "ppap"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def shared_python(session: nox.Session) -> str:
    """The interpreter of the shared environment, which is made if it is missing or stale."""
    folder = "Scripts" if sys.platform == "win32" else "bin"
    python = str(SHARED / folder / "python")
    stamp = SHARED / "pyproject.sha256"
    content = PYPROJECT.read_bytes() + sys.version.encode()
    wanted = hashlib.sha256(content).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(SHARED, ignore_errors=True)
    session.run(sys.executable, "-m", "venv", str(SHARED), external=True)
    groups = nox.project.dependency_groups(nox.project.load_toml(PYPROJECT), "types")
    session.run(python, "-m", "pip", "install", "-e", str(ROOT), *groups, external=True)
    stamp.write_text(wanted)
    return python


def run_shared(session: nox.Session, *arguments: str) -> None:
    """Run a module in the shared environment."""
    session.run(shared_python(session), "-m", *arguments, external=True)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run the tests: pytest, a process for each core."""
    run_shared(session, "pytest", *session.posargs)


@nox.session(name="other-cpus", venv_backend="none")
def other_cpus(session: nox.Session) -> None:
    """Run every test of numbers as on older CPUs, with one thread each.

    By folder, so that a new test belongs without a mark. Left out is what computes no number: the
    machine room, kills and Ray, which test processes, and reports, which are made of records.
    """
    folders = [f"tests/{name}" for name in ("golden", "ppap", "kernels", "ablations")]
    machinery = [f"tests/ablations/{name}" for name in ("machine", "test_kill.py", "test_ray.py")]
    ignored = [f"--ignore={path}" for path in machinery]
    for cpu in ("avx2", "sse4.1"):
        command = ["pytest", f"--cpu={cpu}", *(session.posargs or [*folders, *ignored])]
        session.run(shared_python(session), "-m", *command, env=ONE_THREAD, external=True)


@nox.session(venv_backend="none")
def margins(session: nox.Session) -> None:
    """Run the tests and list those that pass narrowly: tests/margins.py."""
    watched = ["-p", "tests.margins", "-o", "enable_assertion_pass_hook=true"]
    # Assertions are rewritten anew to be watched; Python's cache would keep the old ones.
    cache = {"PYTHONPYCACHEPREFIX": session.create_tmp()}
    command = [shared_python(session), "-m", "pytest", *watched, *session.posargs]
    session.run(*command, env=cache, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format: ruff."""
    session.install(*nox.project.dependency_groups(nox.project.load_toml(PYPROJECT), "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Check types: mypy, strict on what the wheel contains."""
    run_shared(session, "mypy", *session.posargs)


@nox.session(venv_backend="none")
def ablations(session: nox.Session) -> None:
    """Run sweeps and build their reports: nox -s ablations -- SWEEP... OPTION...

    Without a sweep, the headline ones; at the budget smoke, a quarter of an hour, all. Results
    go to .ppap/results, which git ignores.
    """
    run_shared(session, "ablations", "run", *session.posargs)


@nox.session(venv_backend="none")
def demo(session: nox.Session) -> None:
    """Guide garments three ways, in two minutes, and draw a picture: .ppap/demo.png."""
    run_shared(session, "ablations.demo", *session.posargs)


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """Run the benchmarks: pytest --benchmark-only."""
    run_shared(session, "pytest", "--benchmark-only", *(session.posargs or ["bench"]))


@nox.session(venv_backend="none")
def gpu(session: nox.Session) -> None:
    """Check, time and tune everything on the GPU that is here: nox -s gpu -- --seconds 600."""
    run_shared(session, "bench.gpu", *session.posargs)


@nox.session(venv_backend="none")
def zoo(session: nox.Session) -> None:
    """Train the networks that the repository ships."""
    run_shared(session, "ablations.zoo", *session.posargs)
