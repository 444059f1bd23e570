"""What is written for Kubernetes, and whether it says what KServe and the command line take."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from tests.support.models import identity
from tests.support.servers import bundle_of

from hasten.bundle import load, read
from hasten.cli.serve import keywords_of, serve
from hasten.core.records import digest
from hasten.errors import InputError, IntegrityError
from hasten.serving.cluster.kserve import arguments, requirements, write_kserve
from hasten.serving.options import (
    Access,
    ModelOptions,
    Monitoring,
    SequenceLimits,
    ServerLimits,
)
from hasten.serving.run import settings_of
from hasten.serving.settings import ServerSettings

QUANTITY = re.compile(r"[1-9][0-9]*(Mi)?")
PROBE = {"httpGet", "timeoutSeconds", "periodSeconds", "failureThreshold"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle at a path with a space in it; don't change it."""
    folder = tmp_path_factory.mktemp("with a space")
    return bundle_of(folder, identity(folder), "my model")


@pytest.fixture
def settings(bundle: Path) -> ServerSettings:
    return settings_of([bundle], grpc=8001)


def written(folder: Path, settings: ServerSettings, **options: Any) -> dict[str, Any]:
    """Write into a folder, and read the InferenceService."""
    write_kserve(folder, settings, **options)
    read_back = yaml.safe_load((folder / "inferenceservice.yaml").read_text())
    assert isinstance(read_back, dict)
    return read_back


def command(folder: Path, instruction: str) -> list[str]:
    """Read an instruction in exec form out of the Dockerfile."""
    text = (folder / "Dockerfile").read_text().replace("\\\n", "")
    found = re.findall(rf"^{instruction} .*?(\[.*\])$", text, re.MULTILINE)
    assert len(found) == 1
    words = json.loads(found[0])
    assert all(type(word) is str for word in words)
    return list(words)


def test_the_service_has_what_the_v1beta1_schema_asks_for_and_nothing_else(
    tmp_path: Path, settings: ServerSettings
) -> None:
    service = written(tmp_path / "out", settings, image="registry/models:1")
    assert set(service) == {"apiVersion", "kind", "metadata", "spec"}
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    assert service["kind"] == "InferenceService"
    assert service["metadata"]["name"] == "my-model"
    assert all(type(each) is str for each in service["metadata"]["annotations"].values())
    assert set(service["spec"]) == {"predictor"}
    predictor = service["spec"]["predictor"]
    assert set(predictor) == {
        "minReplicas",
        "terminationGracePeriodSeconds",
        "securityContext",
        "containers",
    }
    (container,) = predictor["containers"]
    assert set(container) == {
        *("name", "image", "args", "env", "ports", "resources", "lifecycle", "securityContext"),
        *("startupProbe", "readinessProbe", "livenessProbe"),
    }
    assert container["name"] == "kserve-container"
    assert container["image"] == "registry/models:1"
    assert container["env"] == [{"name": "PROTOCOL", "value": "v2"}]
    assert container["ports"] == [
        {"containerPort": 8000, "name": "http1", "protocol": "TCP"},
        {"containerPort": 8001, "name": "h2c", "protocol": "TCP"},
    ]
    for probe, path in (("startup", "ready"), ("readiness", "ready"), ("liveness", "live")):
        assert set(container[f"{probe}Probe"]) == PROBE
        assert container[f"{probe}Probe"]["httpGet"] == {
            "path": f"/v2/health/{path}",
            "port": 8000,
        }


def test_the_pod_is_guaranteed_whole_processors(
    tmp_path: Path, bundle: Path, settings: ServerSettings
) -> None:
    (container,) = written(tmp_path / "out", settings)["spec"]["predictor"]["containers"]
    given = container["resources"]
    assert given["requests"] == given["limits"]
    assert given["limits"]["cpu"] == str(read(bundle).target.threads)
    assert all(QUANTITY.fullmatch(each) for each in given["limits"].values())


def test_the_pod_has_time_to_drain(tmp_path: Path, bundle: Path) -> None:
    predictor = written(tmp_path / "out", settings_of([bundle], limits=ServerLimits(drain_s=7)))[
        "spec"
    ]["predictor"]
    assert predictor["terminationGracePeriodSeconds"] == 5 + 7 + 10
    assert predictor["containers"][0]["lifecycle"] == {
        "preStop": {"exec": {"command": ["sleep", "5"]}}
    }


def test_without_grpc_there_is_no_port_of_it(tmp_path: Path, bundle: Path) -> None:
    predictor = written(tmp_path / "out", settings_of([bundle]))["spec"]["predictor"]
    assert [each["name"] for each in predictor["containers"][0]["ports"]] == ["http1"]
    assert "EXPOSE 8000\n" in (tmp_path / "out" / "Dockerfile").read_text()


def test_the_command_line_takes_what_the_container_is_told(tmp_path: Path, bundle: Path) -> None:
    settings = settings_of(
        [f"other={bundle}", bundle],
        grpc=9001,
        models=ModelOptions(
            max_batch=8,
            any_batch=True,
            max_length=500,
            sessions=1,
            deadline_s=0.02,
            max_wait_s=0.25,
            cache_bytes=1000,
            standby=False,
        ),
        sequences=SequenceLimits(max_sequences=5, sequence_bytes=1 << 10, sequence_idle_s=2.5),
        monitoring=Monitoring(
            shadow=0.015,
            shadow_limit=0.02,
            on_alarm="exact",
            monitor_state="off",
        ),
        access=Access(allow_control=True),
        limits=ServerLimits(
            max_body_bytes=1 << 20,
            max_connections=77,
            sample_bytes=5 << 20,
            fair=False,
            drain_s=3.5,
            max_stall_s=12,
        ),
        json_logs=True,
        trace=True,
    )
    folder = tmp_path / "out"
    service = written(folder, settings)
    program, name, *words = command(folder, "ENTRYPOINT")
    assert (program, name) == ("hasten", "serve")
    told = command(folder, "CMD")
    assert told == service["spec"]["predictor"]["containers"][0]["args"]
    inside = [word.replace("=/models/", f"={folder}/models/") for word in (*words, *told)]
    given = serve.make_context("serve", inside).params
    back = settings_of(given["bundles"], **keywords_of(given))
    assert back == dataclasses.replace(
        settings,
        host="0.0.0.0",
        hosts=("*",),
        models=tuple(
            dataclasses.replace(each, path=folder / "models" / each.name / each.version)
            for each in settings.models
        ),
    )


def test_the_bundles_are_copied_whole_and_open(tmp_path: Path, settings: ServerSettings) -> None:
    written(tmp_path / "out", settings)
    copied = tmp_path / "out" / "models" / "my model" / "1"
    assert read(copied) == read(settings.models[0].path)
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in copied.rglob("*"))
    load(copied).close()


def test_several_versions_lie_side_by_side(tmp_path: Path, bundle: Path) -> None:
    settings = settings_of([f"m={bundle}", f"m={bundle}", f"n:7={bundle}"])
    written(tmp_path / "out", settings)
    found = sorted(p.parent for p in (tmp_path / "out" / "models").rglob("manifest.json"))
    assert [str(p.relative_to(tmp_path / "out" / "models")) for p in found] == ["m/1", "m/2", "n/7"]
    assert command(tmp_path / "out", "ENTRYPOINT")[-3:] == [
        "m:1=/models/m/1",
        "m:2=/models/m/2",
        "n:7=/models/n/7",
    ]


def test_the_names_of_the_server_are_any_or_those_that_were_given(
    tmp_path: Path, bundle: Path
) -> None:
    for given, told in (([], ["*"]), (["a.example", "*.b"], ["a.example", "*.b"])):
        written(tmp_path / "out", settings_of([bundle], access=Access(allow_host=given)))
        words = command(tmp_path / "out", "ENTRYPOINT")
        assert [b for a, b in itertools.pairwise(words) if a == "--allow-host"] == told


def test_the_image_has_the_versions_that_the_certificate_covers(
    tmp_path: Path, bundle: Path, settings: ServerSettings
) -> None:
    written(tmp_path / "out", settings)
    text = (tmp_path / "out" / "Dockerfile").read_text()
    covered = read(bundle).environment
    assert f'ARG HASTEN="hasten[serve]=={covered["hasten"]}"' in text
    for package in ("numpy", "onnxruntime"):
        assert f'"{package}=={covered[package]}"' in text
    assert "openvino" not in text  # neither of its models runs on it
    assert f"FROM python:{'.'.join(covered['python'].split('.')[:2])}-slim\n" in text
    assert re.search(r"^USER [1-9][0-9]*$", text, re.MULTILINE)
    assert text.index("COPY models/ /models/") < text.index("\nUSER ")
    assert (tmp_path / "out" / ".dockerignore").read_text() == "*\n!models\n"


def test_models_of_different_engines_need_different_images(bundle: Path) -> None:
    manifest = read(bundle)
    other = dataclasses.replace(manifest, environment={**manifest.environment, "numpy": "1.0"})
    with pytest.raises(InputError) as caught:
        requirements([("a", manifest), ("b", other)])
    assert str(caught.value) == (
        f"'a' was measured with numpy {manifest.environment['numpy']}, 'b' with 1.0, but an "
        "image can have only one version: write two images, or optimize the models again"
    )


def test_a_build_s_local_version_is_none_of_the_package_s(bundle: Path) -> None:
    manifest = read(bundle)
    local = dataclasses.replace(manifest, environment={"onnxruntime": "1.30.0+cpu"})
    assert requirements([("a", local)]) == ["onnxruntime==1.30.0"]


@pytest.mark.parametrize("package", ["python", "numpy"])
@pytest.mark.parametrize("told", ['1.0" && touch /tmp/x; "', "$(id)", "--pre"])
def test_a_version_that_would_speak_to_the_shell_is_refused(
    tmp_path: Path, bundle: Path, package: str, told: str
) -> None:
    copy = tmp_path / "copy.hasten"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["environment"][package] = told
    del manifest["digest"]
    manifest["digest"] = digest(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError) as caught:
        write_kserve(tmp_path / "out", settings_of([copy]))
    assert str(caught.value) == (
        f"the bundle states that it was measured with {package} {told!r}, which is not a "
        "version: make the bundle again"
    )
    assert not (tmp_path / "out").exists()


def test_writing_twice_writes_the_same(tmp_path: Path, settings: ServerSettings) -> None:
    folder = tmp_path / "out"
    written(folder, settings)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    written(folder, settings)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def strange_file(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


def other_service(folder: Path) -> None:
    (folder / "inferenceservice.yaml").write_text("mine: true\n")


@pytest.mark.parametrize("change", [strange_file, other_service])
def test_a_folder_with_something_else_in_it_is_left_alone(
    tmp_path: Path, settings: ServerSettings, change: Callable[[Path], None]
) -> None:
    folder = tmp_path / "out"
    written(folder, settings)
    change(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError) as caught:
        write_kserve(folder, settings)
    assert str(caught.value) == (
        f"{folder} contains something that `hasten serve --write-kserve` didn't write; give "
        "another folder, or empty it"
    )
    assert sorted(folder.rglob("*")) == before


def test_an_empty_folder_is_used(tmp_path: Path, settings: ServerSettings) -> None:
    (tmp_path / "out").mkdir()
    written(tmp_path / "out", settings)


def test_an_empty_mount_point_is_named_with_what_to_do(
    tmp_path: Path, settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> NoReturn:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(os, "rename", busy)
    said = f"can't write {out}: Device or resource busy; a mount point has to keep its name: "
    with pytest.raises(InputError, match=said):
        written(out, settings)
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_is_no_folder(tmp_path: Path, settings: ServerSettings) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError) as caught:
        write_kserve(tmp_path / "out", settings)
    assert str(caught.value) == (
        f"{tmp_path / 'out'} exists and is not a folder; give another path"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"http": None}, "KServe probes a pod over HTTP: give http= a port of at least 1"),
        ({"http": 0}, "KServe probes a pod over HTTP: give http= a port of at least 1"),
        ({"grpc": 0}, "a pod's ports must be fixed: give grpc= a port of at least 1"),
        (
            {"certificate": Path("cert.pem")},
            "KServe's gateway handles TLS: leave out tls_cert= and tls_key=",
        ),
        (
            {"token_file": Path("token")},
            "a token doesn't belong in an image: leave out token_file=, and let KServe's gateway "
            "authenticate clients",
        ),
        (
            {"shared_memory": "/x*"},
            "a pod shares no memory with its clients: leave out shared_memory=",
        ),
    ],
)
def test_what_a_pod_can_t_have_is_said(
    tmp_path: Path, settings: ServerSettings, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        write_kserve(tmp_path / "out", dataclasses.replace(settings, **change))
    assert str(caught.value) == message
    assert not (tmp_path / "out").exists()


def test_a_webhook_s_address_is_written_into_no_image(tmp_path: Path, bundle: Path) -> None:
    watched = Monitoring(shadow=0.01, webhook="https://ops.example/s3cret")
    with pytest.raises(InputError) as caught:
        write_kserve(tmp_path / "out", settings_of([bundle], monitoring=watched))
    assert str(caught.value) == (
        "a webhook's address may be a secret, which doesn't belong in an image: leave out webhook=, "
        "and give it to the pod as an argument that reads a Secret of Kubernetes"
    )
    assert not (tmp_path / "out").exists()


def test_a_name_that_a_command_line_would_read_as_an_option_is_refused(
    tmp_path: Path, bundle: Path
) -> None:
    with pytest.raises(InputError) as caught:
        write_kserve(tmp_path / "out", settings_of([f"-x={bundle}"]))
    assert str(caught.value) == (
        f"'-x' can't be a folder's name in an image: serve it as NAME={bundle}, with a name of "
        "letters, digits, spaces, periods, hyphens and underscores"
    )


def test_a_name_that_kubernetes_doesn_t_take_is_refused(
    tmp_path: Path, settings: ServerSettings
) -> None:
    with pytest.raises(InputError) as caught:
        write_kserve(tmp_path / "out", settings, name="Models")
    assert str(caught.value) == (
        "'Models' can't be an InferenceService's name: use at most 40 lower-case letters, digits "
        "and hyphens, begin with a letter, and don't end with a hyphen"
    )


@pytest.mark.parametrize(
    ("name", "told"), [("ResNet_50.v2", "resnet-50-v2"), ("7b", "model-7b"), ("ö", "model")]
)
def test_the_service_is_called_after_the_first_model(
    tmp_path: Path, bundle: Path, name: str, told: str
) -> None:
    service = written(tmp_path / "out", settings_of([f"{name}={bundle}"]))
    assert service["metadata"]["name"] == told


def test_a_damaged_bundle_is_not_packed(tmp_path: Path, bundle: Path) -> None:
    copy = tmp_path / "copy.hasten"
    shutil.copytree(bundle, copy)
    settings = settings_of([copy])
    (copy / read(copy).winner.artifact.path).write_bytes(b"something else")
    with pytest.raises(IntegrityError):
        write_kserve(tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_what_is_by_default_isn_t_said(bundle: Path) -> None:
    assert arguments(settings_of([bundle])) == ["--http", "8000"]


def test_the_pod_has_the_memory_that_samples_may_take(tmp_path: Path, bundle: Path) -> None:
    def memory_mib(sample_bytes: int) -> int:
        settings = settings_of([bundle], limits=ServerLimits(sample_bytes=sample_bytes))
        (container,) = written(tmp_path / "out", settings)["spec"]["predictor"]["containers"]
        return int(container["resources"]["limits"]["memory"].removesuffix("Mi"))

    assert memory_mib(4 << 30) - memory_mib(0) == 4 << 10
