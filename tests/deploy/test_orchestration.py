"""Kubernetes, KServe, Airflow and the nightly container: valid, and true of the service and its commands."""

import ast
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import ENV_PREFIX, Settings
from tests.commands import check_command
from tests.live import LiveService

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted(path for path in (DEPLOY / "kubernetes").glob("*.yaml") if path.name != "kustomization.yaml")
PAGE = (ROOT / "docs/orchestration.md").read_text(encoding="utf-8")
DAG = DEPLOY / "airflow/autoencoder_nightly.py"
KSERVE: dict[str, Any] = yaml.safe_load((DEPLOY / "kserve/inferenceservice.yaml").read_text())
RESOURCES: dict[str, dict[str, Any]] = {
    resource["kind"]: resource for path in MANIFESTS for resource in yaml.safe_load_all(path.read_text())
}
POD: dict[str, Any] = RESOURCES["Deployment"]["spec"]["template"]
TRAINING: dict[str, Any] = RESOURCES["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]
PODS = {"service": POD["spec"], "training": TRAINING["spec"], "kserve": KSERVE["spec"]["predictor"]}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_are_valid(path: Path) -> None:
    """By the schemas of Kubernetes, without a field that it does not know."""
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    for resource in yaml.safe_load_all(path.read_text()):
        validator.validate(resource, validator.latest_version(), strict=True)


def test_the_validation_finds_a_misspelt_field() -> None:
    """The control: strictness is what the test above rests on."""
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    bad = yaml.safe_load(MANIFESTS[0].read_text().partition("---")[0])
    bad["spec"]["replica"] = 2
    with pytest.raises(Exception, match="replica"):
        validator.validate(bad, validator.latest_version(), strict=True)


def test_kustomization_names_every_manifest() -> None:
    """And the image that they use."""
    kustomization = yaml.safe_load((DEPLOY / "kubernetes/kustomization.yaml").read_text())
    assert {path.name for path in MANIFESTS} == set(kustomization["resources"])
    assert {image["name"] for image in kustomization["images"]} == {
        container["image"] for pod in PODS.values() for container in pod["containers"]
    }


@pytest.mark.slow
@pytest.mark.skipif(find_spec("kserve") is None, reason="`make clients` installs kserve")
def test_the_kserve_service_is_valid() -> None:
    """By the models of KServe's Python package, down to the container's fields."""
    assert KSERVE["apiVersion"] == "serving.kserve.io/v1beta1"
    broken = yaml.safe_load(yaml.safe_dump(KSERVE))
    broken["spec"]["predictor"]["containers"][0]["readynessProbe"] = {}
    # In a process of its own: the package brings the messages of a protocol that other clients bring as well.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        assert process.submit(unknown_to_kserve, KSERVE).result(60) == []
        assert process.submit(unknown_to_kserve, broken).result(60) == ["spec.predictor.containers.readynessProbe"]


def unknown_to_kserve(service: Any) -> list[str]:
    from kserve import models

    return unknown_fields(models.V1beta1InferenceService, service, models)


def unknown_fields(kind: Any, found: Any, models: Any, place: str = "") -> list[str]:
    """Fields of a resource that its OpenAPI model does not know."""
    import kubernetes.client

    known = {name: kind.openapi_types[attribute] for attribute, name in kind.attribute_map.items()}
    unknown = [f"{place}{name}" for name in found if name not in known]
    for name in found.keys() & known.keys():
        match = re.fullmatch(r"(?:list\[)?(?:K8s)?(\w+?)\]?", known[name])
        inner = match and (getattr(models, match[1], None) or getattr(kubernetes.client, match[1], None))
        if inner is not None and hasattr(inner, "openapi_types"):
            values = found[name] if isinstance(found[name], list) else [found[name]]
            for value in values:
                unknown += unknown_fields(inner, value, models, f"{place}{name}.")
    return unknown


def test_selectors_find_the_pods() -> None:
    """Service, budget, autoscaler and spreading are about the pods of the Deployment, not of the training."""
    labels = POD["metadata"]["labels"]
    deployment = RESOURCES["Deployment"]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        RESOURCES["Service"]["spec"]["selector"],
        RESOURCES["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        POD["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not selector.items() <= TRAINING["metadata"]["labels"].items()
    target = RESOURCES["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"]
    assert RESOURCES["HorizontalPodAutoscaler"]["spec"]["minReplicas"] > 1


@pytest.mark.parametrize("name", PODS)
def test_pods_are_hardened_and_mount_what_there_is(name: str) -> None:
    """No root, writes to volumes only, bounded memory; claims and secrets are there; only training writes."""
    pod = PODS[name]
    claims = {claim["metadata"]["name"] for path in MANIFESTS for claim in yaml.safe_load_all(path.read_text())}
    for container in pod["containers"]:
        security = pod.get("securityContext", {}) | container["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        store = next(mount for mount in container["volumeMounts"] if mount["name"] == "store")
        assert store.get("readOnly", False) is (name != "training")
        for variable in container["env"]:
            assert variable["name"].removeprefix(ENV_PREFIX).lower() in Settings.model_fields
            if "valueFrom" in variable:
                reference = variable["valueFrom"]["secretKeyRef"]
                assert f"secret generic {reference['name']}" in PAGE
                assert f"--from-literal={reference['key']}=" in PAGE
        check_command(container["args"])
    for volume in pod["volumes"]:
        assert "emptyDir" in volume or volume["persistentVolumeClaim"]["claimName"] in claims


@pytest.mark.parametrize("name", ["service", "kserve"])
def test_probes_are_routes_of_the_service(name: str, fake_service: LiveService) -> None:
    """On the port that the container opens, which is the image's."""
    container = PODS[name]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert set(ports.values()) == {Settings.model_fields["port"].default}
    probes = [container[probe]["httpGet"] for probe in container if probe.endswith("Probe")]
    assert {probe["path"] for probe in probes} == {"/livez", "/readyz"}
    for probe in probes:
        assert ports.get(probe["port"], probe["port"]) == 8000
        assert fake_service.get(probe["path"]).status_code == 200


def test_the_grace_period_covers_the_drain() -> None:
    """Kubernetes must not kill what still answers."""
    wait_s = float(POD["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert POD["spec"]["terminationGracePeriodSeconds"] > wait_s + Settings.model_fields["drain_timeout_s"].default


def commands_of_the_dag() -> Iterator[list[str]]:
    """What its operators run, with names put in and templates as they are."""
    tree = ast.parse(DAG.read_text(encoding="utf-8"))
    names = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    for keyword in (node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "bash_command"):
        text = eval(compile(ast.Expression(keyword.value), str(DAG), "eval"), {}, names)
        yield shlex.split(text.replace("{{ ds }}", "2026-01-01"))


def test_the_dag_runs_commands_that_exist() -> None:
    """Train with the gate, verify, score; in words that the command line understands."""
    commands = list(commands_of_the_dag())
    assert [command[:2] for command in commands] == [
        ["autoencoder", "train"],
        ["autoencoder", "models"],
        ["autoencoder", "score"],
    ]
    found = [check_command(command[1:]) for command in commands]
    assert found[0]["promotion"] == "auto"
    assert found[2]["resume"] is True


def test_airflow_imports_the_dag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real Airflow, where it is installed: the three tasks one after the other."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    pytest.importorskip("airflow.sdk", reason="pip install apache-airflow-core apache-airflow-providers-standard")
    import runpy

    dag = runpy.run_path(str(DAG))["dag"]
    assert {task.task_id: task.downstream_task_ids for task in dag.tasks} == {
        "train": {"verify"},
        "verify": {"score"},
        "score": set(),
    }


def test_commands_of_the_page_exist() -> None:
    """Those of the crontab too; and files that it points at."""
    commands = re.findall(r"/bin/autoencoder ([^\n]+)", PAGE)
    assert commands
    for command in commands:
        check_command(shlex.split(command))
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert re.findall(r"--profile (\w+)", PAGE) == compose["nightly"]["profiles"] * 2
    for link in re.findall(r"\]\(([^):]+)\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
    for path in re.findall(r"kubectl apply --\w+ (\S+)", PAGE):
        assert (ROOT / path).exists()
    check_command(compose["nightly"]["command"][1:])


def nightly(tmp_path: Path, *command: str, at: str) -> "subprocess.Popen[str]":
    """The script with a ``sleep`` that notes how long it was asked to wait and takes a tenth of a second."""
    sleep = tmp_path / "sleep"
    sleep.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/waits\nexec /bin/sleep 0.1\n')
    sleep.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "NIGHTLY_AT": at}
    return subprocess.Popen(
        ["sh", str(DEPLOY / "nightly.sh"), *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_nightly_script_waits_for_its_hour_and_survives_failures(tmp_path: Path) -> None:
    """A run that fails is logged and the next night comes; SIGTERM ends it at once."""
    runs = tmp_path / "runs"
    process = nightly(tmp_path, "sh", "-c", f"echo run >> {runs}; exit 3", at="08:09")
    deadline = time.monotonic() + 20
    while not (runs.exists() and len(runs.read_text().split()) >= 2):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    _, errors = process.communicate(timeout=5)
    assert process.returncode == 0
    assert "failed with 3" in errors
    now = time.gmtime()
    expected = (8 * 3600 + 9 * 60 - (now.tm_hour * 3600 + now.tm_min * 60 + now.tm_sec)) % 86400
    waited = int((tmp_path / "waits").read_text().split()[0])
    assert min(abs(waited - expected), 86400 - abs(waited - expected)) < 30
    assert 1 <= waited <= 86400


@pytest.mark.parametrize("at", ["24:00", "2:30", "noon", "12:60"])
def test_the_nightly_script_refuses_other_times(tmp_path: Path, at: str) -> None:
    """At once, with one sentence."""
    process = nightly(tmp_path, "true", at=at)
    _, errors = process.communicate(timeout=5)
    assert process.returncode == 2
    assert "NIGHTLY_AT must be" in errors
