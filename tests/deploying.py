"""The files of deploy/, read as those programs read them that they are written for."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
UNITS = ["nearlite-serve.service", "nearlite-proxy.service"]
FLY = ["fly.toml", "fly.primary.toml"]


@dataclass
class Run:
    """One command line of nearlite, as a file has it.

    Attributes:
      where: file, and what in it.
      words: behind `nearlite`.
      environment: that the file gives it; of secrets, a text in their place.
    """

    where: str
    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def runs() -> Iterator[Run]:
    """Every command that a file of deploy/ starts."""
    image = dockerfile()[-1]
    assert json.loads(last(image, "ENTRYPOINT")) == ["nearlite"]
    yield Run("Dockerfile", json.loads(last(image, "CMD")))
    for name, service in compose()["services"].items():
        given = {"NEARLITE_PRIMARY_TOKEN": "a", "NEARLITE_EDGE_TOKEN": "b"}
        environment = interpolated(service["environment"], given)
        yield Run(f"docker-compose.yml, {name}", service["command"], environment)
    for name in FLY:
        app = fly(name)
        secrets = {"NEARLITE_AUTH_TOKEN": "a", "FLY_REGION": "lhr"}
        (command,) = app["processes"].values()
        yield Run(name, shlex.split(command), {**secrets, **app["env"]})
    for name in UNITS:
        program, *words = shlex.split(unit(name)["Service"]["ExecStart"][0])
        assert program == "/opt/nearlite/bin/nearlite"
        yield Run(name, words, written_in(name, "EnvironmentFile"))
    for found in kubernetes():
        if found["kind"] == "StatefulSet":
            (container,) = found["spec"]["template"]["spec"]["containers"]
            environment = {entry["name"]: entry.get("value", "a") for entry in container["env"]}
            name = found["metadata"]["name"]
            yield Run(f"kubernetes.yaml, {name}", container["args"], environment)


def written_in(name: str, directive: str) -> dict[str, str]:
    """The variables that the head of a unit tells to write into its EnvironmentFile."""
    if directive not in unit(name)["Service"]:
        return {}
    head = (DEPLOY / name).read_text().partition("[Unit]")[0]
    return dict(re.findall(r"^#\s+([A-Z_]+)=(\S+)$", head, re.MULTILINE))


# ---------------------------------------------------------------- Dockerfile


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) in order; continued lines are joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [(word.upper(), rest.strip()) for word, _, rest in found]


def dockerfile() -> list[list[tuple[str, str]]]:
    """The instructions of each stage, each beginning with its FROM."""
    stages: list[list[tuple[str, str]]] = []
    for word, rest in instructions((DEPLOY / "Dockerfile").read_text()):
        if word == "FROM":
            stages.append([])
        stages[-1].append((word, rest))
    return stages


def last(stage: list[tuple[str, str]], wanted: str) -> str:
    """The arguments of the last such instruction, which is the one that holds."""
    return [rest for word, rest in stage if word == wanted][-1]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path of the checkout out of the build."""
    found = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        kept = pattern.startswith("!")
        expression = "".join(
            {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))
            for part in re.findall(r"\*\*/|\*|\?|[^*?]+", pattern.lstrip("!"))
        )
        if re.fullmatch(rf"{expression}(?:/.*)?", path):
            found = not kept
    return found


# ---------------------------------------------------------------- compose


def compose() -> Any:
    return yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())


class MissingError(Exception):
    """A variable that has to be there, with what the file says of it."""


def interpolated(value: Any, environment: Mapping[str, str]) -> Any:
    """A value with its ${VARIABLE}, ${VARIABLE:-default} and ${VARIABLE:?message} replaced, as compose does it."""
    if isinstance(value, dict):
        return {key: interpolated(entry, environment) for key, entry in value.items()}
    if isinstance(value, list):
        return [interpolated(entry, environment) for entry in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, how, text = match["name"], match["how"], match["text"]
        if environment.get(name):
            return environment[name]
        if how == ":?":
            raise MissingError(f"{name}: {text}")
        return text or ""

    pattern = r"\$\{(?P<name>\w+)(?:(?P<how>:-|:\?)(?P<text>[^}]*))?\}"
    return re.sub(pattern, replace, value)


# ---------------------------------------------------------------- the others


def fly(name: str) -> Any:
    return tomllib.loads((DEPLOY / name).read_text())


def unit(name: str) -> dict[str, dict[str, list[str]]]:
    """Sections, directives, and each directive's values in order: several lines add up, as in systemd."""

    class Several(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            if isinstance(value, list) and key in self and isinstance(self[key], list):
                self[key].extend(value)
            else:
                super().__setitem__(key, value)

    reader = configparser.RawConfigParser(
        strict=False, delimiters=("=",), comment_prefixes=("#", ";"), dict_type=Several
    )
    reader.optionxform = str  # type: ignore[assignment,method-assign]
    reader.read(DEPLOY / name)
    return {
        section: {key: value.split("\n") for key, value in reader.items(section)}
        for section in reader.sections()
    }


def kubernetes() -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
