"""The image of examples/container and the manifests of examples/kubernetes, read by parsers of their formats."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from hasten.cli.serve import serve
from hasten.serving.state import Limits
from hasten.serving.supervision.supervisor import _LAST_RESORT_S

yaml = pytest.importorskip("yaml")
dockerfile_parse = pytest.importorskip("dockerfile_parse")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

ROOT = Path(__file__).parents[2]
CONTAINER, MANIFESTS = ROOT / "examples" / "container", ROOT / "examples" / "kubernetes"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
KUSTOMIZATION = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())


def steps() -> list[tuple[str, str]]:
    """Return each instruction of the Dockerfile with its value."""
    parsed = dockerfile_parse.DockerfileParser(path=str(CONTAINER), cache_content=True)
    return [
        (step["instruction"], step["value"])
        for step in parsed.structure
        if step["instruction"] != "COMMENT"
    ]


def values(instruction: str) -> list[str]:
    return [value for name, value in steps() if name == instruction]


def resource(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    spec = resource("deployment")["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def test_the_image_has_a_python_that_is_supported() -> None:
    (version,) = (value.partition("=")[2] for value in values("ARG") if value.startswith("PYTHON="))
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
    bases = [value.split()[0] for value in values("FROM")]
    assert bases == ["python:${PYTHON}-slim-trixie"] * 2


def test_the_engines_that_the_image_offers_are_extras() -> None:
    text = (CONTAINER / "Dockerfile").read_text()
    (offered,) = re.findall(r"--build-arg ENGINE=([\w, ]+)", text)
    engines = re.split(r", | or ", offered.strip())
    assert {"serve", *engines} <= set(PROJECT["optional-dependencies"])


def test_the_server_is_no_root_gets_the_signal_and_is_asked_whether_it_lives() -> None:
    assert values("USER") == ["10001"]
    assert values("STOPSIGNAL") == ["SIGTERM"]
    assert json.loads(values("ENTRYPOINT")[0])[:2] == ["hasten", "serve"]  # exec form: no shell
    (health,) = values("HEALTHCHECK")
    assert "/v2/health/live" in json.loads(health.partition("CMD ")[2])[2]


def test_the_image_and_the_pod_give_options_that_the_server_has(pod: dict[str, Any]) -> None:
    fixed, usual = json.loads(values("ENTRYPOINT")[0])[2:], json.loads(values("CMD")[0])
    for more in (usual, pod["containers"][0]["args"]):
        options = [word for word in (*fixed, *more) if word.startswith("--")]
        known = {name for option in serve.params for name in option.opts}
        assert set(options) <= known
        given = serve.make_context("serve", [*fixed, *more], resilient_parsing=True).params
        assert (given["http"], given["grpc"]) == (8000, 8001)


def test_only_what_the_image_copies_is_sent_to_the_builder() -> None:
    ignored = (CONTAINER / ".dockerignore").read_text().split()
    copied = {value.split()[0].rstrip("/") for value in values("COPY") if "--from" not in value}
    assert ignored[0] == "*"
    assert {each.removeprefix("!") for each in ignored[1:]} == copied


@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("name", KUSTOMIZATION["resources"])
def test_a_manifest_is_as_the_schema_of_kubernetes_says(name: str, version: str) -> None:
    kubernetes_validate.validate(resource(name.removesuffix(".yaml")), version, strict=True)


def test_every_manifest_is_applied_and_selects_the_same_pods() -> None:
    files = {path.name for path in MANIFESTS.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(KUSTOMIZATION["resources"]) == files
    spec = resource("deployment")["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"] == labels
    assert resource("service")["spec"]["selector"] == labels
    assert resource("disruption")["spec"]["selector"]["matchLabels"] == labels
    scaled = resource("autoscaler")["spec"]
    assert scaled["scaleTargetRef"]["name"] == resource("deployment")["metadata"]["name"]
    assert "replicas" not in spec  # the autoscaler's


def test_a_pod_ends_no_sooner_than_its_server(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    drain = container["args"][container["args"].index("--drain") + 1]
    assert drain == f"{Limits().drain_ns // 10**9}s"
    pause_s = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    last_s = pause_s + Limits().drain_ns / 1e9 + _LAST_RESORT_S
    assert pod["terminationGracePeriodSeconds"] > last_s


def test_a_pod_has_whole_processors_few_rights_and_its_token_as_a_file(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["resources"]["limits"]["cpu"].isdecimal()
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [str(pod["securityContext"]["runAsUser"])] == values("USER")
    usual = json.loads(values("CMD")[0])
    token = Path(container["args"][container["args"].index("--token-file") + 1])
    assert usual[usual.index("--token-file") + 1] == str(token)
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert Path(mounts["token"]["mountPath"]) == token.parent
    assert "subPath" not in mounts["token"]  # such a file would never change
