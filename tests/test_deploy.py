"""deploy/: each file by the rules of the program that reads it, its commands by ours; and the steps of the compose
file with processes in place of containers.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import click
import deploying
import pytest
from deploying import DEPLOY, FLY, ROOT, UNITS, Run
from test_background import eventually

from nearlite import cli

SIDECAR_UNIT = "nearlite-replicate.service"
DEADLINE = 60.0  # seconds; only a test that would hang reaches it
LISTENS = re.compile(r"^(?:serving .*|edge) at http://127\.0\.0\.1:(\d+)", re.MULTILINE)
REFUSALS = {None: "Missing Authorization header", "another": "Invalid authorization token"}
TOKENS = {"NEARLITE_PRIMARY_TOKEN": "of the primary", "NEARLITE_EDGE_TOKEN": "of the edges"}


def checked(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stdout + done.stderr


# ---------------------------------------------------------------- Dockerfile

FINAL = deploying.dockerfile()[-1]


def test_hadolint_has_nothing_to_say():
    checked(str(Path(sysconfig.get_path("scripts"), "hadolint")), str(DEPLOY / "Dockerfile"))


def test_what_hadolint_is_told_to_pass_over_is_the_versions_of_debians_packages():
    text = (DEPLOY / "Dockerfile").read_text()
    assert set(re.findall(r"hadolint ignore=(\S+)", text)) == {"DL3008"}


def test_the_image_is_made_in_two_stages_from_the_same_pinned_base():
    build, final = deploying.dockerfile()
    (base, *named), (same, *rest) = (stage[0][1].split() for stage in (build, final))
    assert (named, rest) == (["AS", "build"], [])
    assert base == same
    assert re.fullmatch(r"python:3\.\d+-slim-[a-z]+", base)


def test_no_compiler_and_no_list_of_packages_stays_in_the_image():
    (run,) = [rest for word, rest in FINAL if word == "RUN"]
    install = re.search(r"apt-get install (.*?) &&", run)
    assert install
    words = set(install[1].split())
    assert words == {"-y", "--no-install-recommends", "ca-certificates"}
    assert "rm -rf /var/lib/apt/lists/*" in run
    copied = [rest for word, rest in FINAL if word == "COPY"]
    assert copied == ["--from=build /opt/nearlite /opt/nearlite"]


def test_every_installation_by_apt_removes_its_lists_in_the_same_layer():
    for stage in deploying.dockerfile():
        for rest in [rest for word, rest in stage if word == "RUN" and "apt-get" in rest]:
            assert rest.count("apt-get install -y --no-install-recommends") == rest.count(
                "rm -rf /var/lib/apt/lists/*"
            )


def test_the_image_runs_as_a_user_of_a_fixed_number_that_owns_its_volume():
    assert deploying.last(FINAL, "USER") == "10001:10001"
    (run,) = [rest for word, rest in FINAL if word == "RUN"]
    assert "useradd --uid 10001 --gid nearlite" in run
    assert "install -d -o nearlite -g nearlite -m 0750 /data" in run
    words = [word for word, _ in FINAL]
    assert words.index("RUN") < words.index("USER") < words.index("ENTRYPOINT")
    assert json.loads(deploying.last(FINAL, "VOLUME")) == ["/data"]
    assert deploying.last(FINAL, "WORKDIR") == "/data"


def test_no_secret_is_part_of_the_image_and_nobody_becomes_root_in_it():
    for stage in deploying.dockerfile():
        for word, rest in stage:
            assert word not in {"ADD", "ARG"}
            if word == "ENV":
                assert not re.search("token|key|secret|password", rest, re.IGNORECASE)
            assert "sudo" not in rest.split()


def test_what_the_build_copies_is_there_and_is_let_in():
    (build, _) = deploying.dockerfile()
    sources = [source for word, rest in build if word == "COPY" for source in rest.split()[:-1]]
    assert "csrc" in sources
    for source in sources:
        path = ROOT / source
        assert path.exists()
        within = (
            [path]
            if path.is_file()
            else path.rglob("*.[ch]")
            if source == "csrc"
            else path.rglob("*.py")
        )
        names = [str(found.relative_to(ROOT)) for found in within]
        assert names
        assert [name for name in names if deploying.ignored(name)] == []


@pytest.mark.parametrize(
    "path",
    [".git/config", ".venv/bin/python", "python/nearlite/_ffi.abi3.so", "deploy/.env", "data.db"],
)
def test_what_has_no_place_in_an_image_is_kept_out(path):
    assert deploying.ignored(path)


def test_the_versions_in_the_image_are_all_named_and_within_what_the_package_asks_for():
    lines = (DEPLOY / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = deploying.tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *extras["server"], *extras["cli"]]:
        name, least = re.match(r"([a-z0-9-]+)(?:\[\w+\])?>=([\d.]+)", requirement).groups()
        version = [int(part) for part in pinned[name].split(".")]
        assert version >= [int(part) for part in least.split(".")]


def health_check() -> list[str]:
    """The command of the image's health check."""
    text = deploying.last(FINAL, "HEALTHCHECK")
    command: list[str] = json.loads(text.partition("CMD ")[2])
    assert command[:2] == ["python", "-c"]  # nothing but Python is needed for it
    return [sys.executable, *command[1:]]


def is_healthy(command: list[str], port: int) -> bool:
    environment = {**os.environ, "PORT": str(port)}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=DEADLINE)
    return done.returncode == 0


def test_the_health_check_asks_where_the_image_listens():
    environment = deploying.last(FINAL, "ENV")
    assert re.search(r"\bPORT=8080\b", environment)
    assert deploying.last(FINAL, "EXPOSE") == "8080"
    assert json.loads(deploying.last(FINAL, "CMD"))[-1] == "0.0.0.0:8080"


# ---------------------------------------------------------------- compose


def test_the_compose_file_is_one_by_the_schema_of_the_specification():
    path = DEPLOY / "docker-compose.yml"
    schema = ("--builtin-schema", "vendor.compose-spec")
    checked(sys.executable, "-m", "check_jsonschema", *schema, str(path))


def test_compose_starts_a_primary_and_two_edges_of_different_regions():
    services = deploying.compose()["services"]
    edges = {name: service for name, service in services.items() if service["command"] == ["proxy"]}
    assert set(services) - set(edges) == {"primary"}
    assert len({edge["environment"]["NEARLITE_REGION"] for edge in edges.values()}) == 2
    volumes = [volume for service in services.values() for volume in service["volumes"]]
    assert len(set(volumes)) == 3  # no two of them share a file
    assert {volume.partition(":")[0] for volume in volumes} == set(deploying.compose()["volumes"])
    for edge in edges.values():
        assert edge["depends_on"] == {"primary": {"condition": "service_healthy"}}
    for service in services.values():
        image = health_check()[2]
        assert service["healthcheck"]["test"] == ["CMD", "python", "-c", image]
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]


def test_compose_listens_where_it_publishes_and_asks():
    for service in deploying.compose()["services"].values():
        (published,) = service["ports"]
        address, _, inside = published.rpartition(":")
        assert address.startswith("127.0.0.1:")  # tokens travel in clear: for this machine only
        assert inside == service["environment"]["PORT"]
        listen = service["environment"].get("NEARLITE_LISTEN") or service["command"][-1]
        assert listen == f"0.0.0.0:{inside}"


@pytest.mark.parametrize("missing", TOKENS)
def test_compose_has_no_token_to_begin_with(missing):
    given = {name: text for name, text in TOKENS.items() if name != missing}
    with pytest.raises(deploying.MissingError, match=missing):
        deploying.interpolated(deploying.compose(), given)


# ---------------------------------------------------------------- Fly


@pytest.mark.parametrize("name", FLY)
def test_an_app_of_fly_has_its_volume_its_port_and_its_check(name):
    app = deploying.fly(name)
    (mount,) = app["mounts"]
    assert mount["destination"] == "/data"
    assert re.fullmatch(r"[a-z0-9_]{1,30}", mount["source"])  # what Fly takes for a name
    service = app["http_service"]
    assert str(service["internal_port"]) == app["env"]["PORT"]
    assert service["force_https"]
    assert (service["auto_stop_machines"], service["auto_start_machines"]) == ("off", False)
    (check,) = service["checks"]
    assert (check["method"], check["path"]) == ("GET", "/health")
    assert app["kill_signal"] == "SIGTERM"
    assert app["deploy"]["strategy"] == "rolling"  # of those there are, the one for volumes
    assert set(mount["processes"]) == set(service["processes"]) == set(app["processes"])
    assert all(isinstance(value, str) for value in app["env"].values())
    assert not [key for key in app["env"] if key.startswith("FLY_") or "TOKEN" in key]


def test_flys_edges_have_flys_primary_for_their_upstream():
    edge, primary = map(deploying.fly, FLY)
    assert edge["env"]["NEARLITE_UPSTREAM"] == f"https://{primary['app']}.fly.dev"


# ---------------------------------------------------------------- systemd


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_no_root_and_writes_nowhere_but_into_its_folder(name):
    service = deploying.unit(name)["Service"]
    wanted = {
        "DynamicUser": "yes",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "CapabilityBoundingSet": "",
        "UMask": "0077",
        "Restart": "always",
        "StateDirectory": Path(name).stem,
        "StateDirectoryMode": "0700",
    }
    assert {key: service[key] for key in wanted} == {key: [text] for key, text in wanted.items()}
    (command,) = service["ExecStart"]
    assert f"%S/{Path(name).stem}/" in command
    assert int(service["LimitNOFILE"][0]) >= 4096 + 512  # fewer, and the server warns


@pytest.mark.parametrize("name", UNITS)
def test_no_unit_shows_its_token_to_others(name):
    service = deploying.unit(name)["Service"]
    (command,) = service["ExecStart"]
    assert not re.search(
        r"--(auth|upstream)-token[ =]", command
    )  # the process list is for everybody
    assert "Environment" not in service  # and so is what a unit has there
    credentials = {text.partition(":")[0] for text in service["LoadCredential"]}
    assert set(re.findall(r"-token-file %d/(\S+)", command)) == credentials
    assert "TOKEN" not in (DEPLOY / name).read_text()


def test_the_units_are_hardened_alike():
    serve, proxy = (deploying.unit(name)["Service"] for name in UNITS)
    own = {"ExecStart", "StateDirectory", "LoadCredential", "EnvironmentFile"}
    assert {k: v for k, v in serve.items() if k not in own} == {
        k: v for k, v in proxy.items() if k not in own
    }


def test_the_sidecars_unit_runs_as_the_application_does_and_is_hardened_like_the_others():
    serve, own = (
        deploying.unit(name)["Service"] for name in ("nearlite-serve.service", SIDECAR_UNIT)
    )
    program, name, *words = shlex.split(own["ExecStart"][0])
    assert (program, name) == ("/opt/nearlite/bin/nearlite", "replicate")
    with cli.cli.commands[name].make_context(name, words) as context:
        assert context.params["config_path"] == "/etc/nearlite.yml"
    # It shares files with the application: a user and a folder of its own would keep it from them.
    without = {"DynamicUser", "StateDirectory", "StateDirectoryMode", "LoadCredential"}
    without |= {"PrivateTmp", "ProtectProc"}
    differs = {"ExecStart", "TimeoutStopSec"}
    assert set(serve) - set(own) == without
    assert set(own) - set(serve) == {"User", "ReadWritePaths"}
    for key in set(own) & set(serve) - differs:
        assert own[key] == serve[key], key
    assert "TOKEN" not in (DEPLOY / SIDECAR_UNIT).read_text()


# ---------------------------------------------------------------- Kubernetes


def stateful_sets() -> dict[str, Any]:
    found = [entry for entry in deploying.kubernetes() if entry["kind"] == "StatefulSet"]
    return {entry["metadata"]["name"]: entry["spec"] for entry in found}


def test_there_is_one_primary_and_the_edges_ask_it_by_its_name():
    sets = stateful_sets()
    assert {name: spec["replicas"] for name, spec in sets.items()} == {
        "nearlite-primary": 1,
        "nearlite-edge": 2,
    }
    services = {
        e["metadata"]["name"]: e["spec"] for e in deploying.kubernetes() if e["kind"] == "Service"
    }
    (port,) = services["nearlite-primary"]["ports"]
    (edge,) = sets["nearlite-edge"]["template"]["spec"]["containers"]
    upstream = {entry["name"]: entry.get("value") for entry in edge["env"]}["NEARLITE_UPSTREAM"]
    assert upstream == f"http://nearlite-primary:{port['port']}"
    for spec in sets.values():
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"] == labels
        assert services[spec["serviceName"]]["selector"] == labels


@pytest.mark.parametrize("name", ["nearlite-primary", "nearlite-edge"])
def test_a_pod_is_no_root_writes_to_its_volume_and_is_probed(name):
    spec = stateful_sets()[name]
    pod = spec["template"]["spec"]
    user = int(deploying.last(FINAL, "USER").partition(":")[0])
    assert pod["securityContext"]["runAsNonRoot"]
    assert {pod["securityContext"][key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {user}
    assert pod["enableServiceLinks"] is pod["automountServiceAccountToken"] is False
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    (port,) = container["ports"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": port["name"]}
    environment = {entry["name"]: entry for entry in container["env"]}
    assert environment["PORT"]["value"] == str(port["containerPort"])
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {claim["metadata"]["name"]: "/data", "tmp": "/tmp"}
    assert pod["volumes"] == [{"name": "tmp", "emptyDir": {}}]
    assert container["resources"]["limits"]["memory"]
    for variable, entry in environment.items():
        assert ("valueFrom" in entry) is variable.endswith("TOKEN")
        if "valueFrom" in entry:
            assert entry["valueFrom"]["secretKeyRef"]["name"] == "nearlite"


# ---------------------------------------------------------------- every command is one


def variables_of(command: click.Command) -> set[str]:
    """The environment variables that a command reads."""
    found: set[str] = set()
    for option in command.params:
        names = option.envvar or []
        found |= {names} if isinstance(names, str) else set(names)
    return found


def accepted(words: list[str], environment: Mapping[str, str], monkeypatch) -> click.Context:
    """The context of a command that takes such words; a usage error otherwise."""
    for name in os.environ:
        if name.startswith(("NEARLITE_", "TURSO_", "PROXY_", "SQLD_")):
            monkeypatch.delenv(name)
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    name, *rest = words
    return cli.cli.commands[name].make_context(name, rest)


@pytest.mark.parametrize("run", list(deploying.runs()), ids=lambda run: run.where)
def test_every_command_of_these_files_is_one_that_nearlite_takes(run: Run, tmp_path, monkeypatch):
    """Folders that they name are one of this test's, with tokens in it."""
    for token in ("auth-token", "upstream-token"):
        (tmp_path / token).write_text("a token")

    def here(text: str) -> str:
        return re.sub(r"^(/data|%d|%S/[\w-]+)(?=/)", str(tmp_path), text)

    environment = {name: here(text) for name, text in run.environment.items()}
    context = accepted([here(word) for word in run.words], environment, monkeypatch)
    known = variables_of(context.command) | {"PORT", "FLY_REGION"}
    assert set(run.environment) - known == set()
    path = context.params.get("database") or context.params["path"]
    assert path.parent == tmp_path


def documented() -> Iterator[tuple[str, str]]:
    """(page, command) of each line of the pages about deploying that begins with `nearlite`."""
    for page in ("docs/deploying.md", "docs/edge-guide.md", "deploy/README.md"):
        if (ROOT / page).exists():
            for block in re.findall(
                r"^```\w+\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE
            ):
                for line in re.findall(
                    r"^\$ (?:\w+=\S+ )*nearlite (.*)$", block.replace("\\\n", ""), re.MULTILINE
                ):
                    yield page, line.removesuffix(" &")


@pytest.mark.parametrize(("page", "line"), list(documented()))
def test_every_command_of_the_pages_is_one_that_nearlite_takes(page, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exported = {"TURSO_DATABASE_URL": "http://127.0.0.1:8080", "NEARLITE_AUTH_TOKEN": "a token"}
    accepted(shlex.split(line), exported, monkeypatch)


# ---------------------------------------------------------------- the steps of the compose file


@contextmanager
def started(words: list[str], environment: Mapping[str, str], log: Path) -> Iterator[int]:
    """A command of nearlite until the block ends; gives the port that it took."""
    clean = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith(("NEARLITE_", "TURSO_", "PROXY_AUTH", "FLY_")) and name != "PORT"
    }
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "nearlite", "-v", *words],
            env={**clean, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:

            def port() -> int | None:
                assert process.poll() is None, log.read_text()
                found = LISTENS.search(log.read_text())
                return int(found[1]) if found else None

            eventually(port)
            taken = port()
            assert taken is not None
            yield taken
        finally:
            process.terminate()
            assert process.wait(DEADLINE) == 0, log.read_text()


def asked(port: int, token: str | None, *statements: str) -> tuple[int, Any]:
    """Status and body of a pipeline of statements."""
    requests = [{"type": "execute", "stmt": {"sql": sql}} for sql in statements]
    body = json.dumps({"requests": [*requests, {"type": "close"}]}).encode()
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/pipeline", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def names(port: int) -> list[str]:
    """What an edge says that is in the table."""
    status, answer = asked(
        port, TOKENS["NEARLITE_EDGE_TOKEN"], "SELECT name FROM city ORDER BY name"
    )
    assert status == 200, answer
    result = answer["results"][0]
    if result["type"] == "error":
        return []  # the table has not arrived
    return [row[0]["value"] for row in result["response"]["result"]["rows"]]


def test_the_steps_of_the_compose_file_without_a_container(tmp_path):
    """Commands, environment and health check are the file's; folders and ports are this test's."""
    given = {
        **TOKENS,
        "NEARLITE_SYNC_INTERVAL": "0.05",
    }  # the default would let this test wait for a minute
    services = deploying.interpolated(deploying.compose(), given)["services"]
    order = TopologicalSorter(
        {name: service.get("depends_on", ()) for name, service in services.items()}
    )
    ports: dict[str, int] = {}
    with ExitStack() as primary, ExitStack() as edges:
        for name in order.static_order():
            folder = tmp_path / name
            folder.mkdir()
            inside = services[name]["environment"]["PORT"]

            def here(text: str, inside: str = inside, folder: Path = folder) -> str:
                text = re.sub(r"^/data(?=/)", str(folder), text).replace(
                    f"0.0.0.0:{inside}", "127.0.0.1:0"
                )
                return re.sub(
                    r"http://primary:\d+", lambda _: f"http://127.0.0.1:{ports['primary']}", text
                )

            environment = {key: here(text) for key, text in services[name]["environment"].items()}
            words = [here(word) for word in services[name]["command"]]
            stack = primary if name == "primary" else edges
            ports[name] = stack.enter_context(started(words, environment, tmp_path / f"{name}.log"))
            check = services[name]["healthcheck"]["test"]
            command = [sys.executable, *check[2:]]
            eventually(lambda name=name, command=command: is_healthy(command, ports[name]))

        lhr, iad = ports["edge-lhr"], ports["edge-iad"]
        for edge in (lhr, iad):
            for token, message in REFUSALS.items():
                status, answer = asked(edge, token, "SELECT 1")
                assert (status, answer["message"]) == (401, message)
        status, answer = asked(
            lhr,
            TOKENS["NEARLITE_EDGE_TOKEN"],
            "CREATE TABLE city(name TEXT PRIMARY KEY)",
            "INSERT INTO city VALUES ('Lima'), ('Oslo')",
        )
        assert status == 200
        assert [result["type"] for result in answer["results"]] == ["ok"] * 3, answer
        assert names(lhr) == ["Lima", "Oslo"]  # its own write, at once
        eventually(lambda: names(iad) == ["Lima", "Oslo"])

        primary.close()
        assert not is_healthy(command, ports["primary"])
        assert names(lhr) == names(iad) == ["Lima", "Oslo"]
        for edge in (lhr, iad):
            assert is_healthy(command, edge)
            _, answer = asked(
                edge, TOKENS["NEARLITE_EDGE_TOKEN"], "INSERT INTO city VALUES ('Rome')"
            )
            assert "ok" not in {result["type"] for result in answer.get("results", [])[:1]}, answer
