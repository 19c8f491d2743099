"""Whether what a container runs is there: scripts and modules of this repository, and options that their help knows."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache

from tests.k8s.manifests import REPOSITORY, Manifest, name_of, of_kind, pods, words

BROUGHT_BY_RAY = ("ray-head", "ray-worker", "ray-job-submitter")
"""Containers whose command is KubeRay's."""


def commands(manifests: list[Manifest]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Where a command stands, and its words."""
    for pod in pods(manifests):
        for container in pod.containers:
            if container["name"] not in BROUGHT_BY_RAY:
                yield pod.where, tuple(words(container))
    for job in of_kind(manifests, "RayJob"):
        yield name_of(job), tuple(shlex.split(job["spec"]["entrypoint"]))


@cache
def complaints(command: tuple[str, ...]) -> tuple[str, ...]:
    """What is wrong with a command; empty where all is well."""
    return tuple(_complaints(list(command)))


def _complaints(command: list[str]) -> Iterator[str]:
    match command:
        case ["python", "-m", "pipeline.supervise", "--", "torchrun", script, *rest]:
            yield from _script(script, rest)
        case ["python", "-m", module, *rest]:
            yield from _with_help(["-m", module], rest)
        case ["python", script, *rest]:
            yield from _script(script, rest)
        case ["preprocess", "--help"]:
            pass
        case ["preprocess", subcommand, *rest]:
            yield from _with_help(["-m", "preprocess.cli", subcommand], rest)
        case ["tensorboard", *rest]:
            yield from _with_help(["-m", "tensorboard.main"], rest)
        case _:
            yield f"{shlex.join(command) or 'no command'}: not a command of ours"


def _script(script: str, rest: list[str]) -> Iterator[str]:
    if not (REPOSITORY / script).is_file():
        yield f"{script}: no such script"
        return
    yield from _with_help([script], rest)
    for option, value in itertools.pairwise(rest):
        if option == "--config" and not value.startswith("/") and not (REPOSITORY / value).is_file():
            yield f"{value}: no such recipe"


def _with_help(program: list[str], rest: list[str]) -> Iterator[str]:
    known = _options_in_help(tuple(program))
    if not known:
        yield f"{' '.join(program)}: has no help"
        return
    for word in rest:
        option = word.partition("=")[0]
        if option.startswith("--") and option not in known:
            yield f"{' '.join(program)}: knows no {option}"


@cache
def _options_in_help(program: tuple[str, ...]) -> frozenset[str]:
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, *program, "--help"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=variables,
        timeout=120,
        check=False,
    )
    return frozenset(re.findall(r"--[a-z][\w-]*", done.stdout)) if done.returncode == 0 else frozenset()
