"""Check manifests by Kubernetes' schemas, by models of KEDA's kinds, and by each other.

Kustomize's kind has no schema here.
"""

from __future__ import annotations

import json
import re
from ipaddress import ip_address, ip_network
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda import v1alpha1 as keda
from pydantic import ValidationError

from clipsynth.security.safe_http import is_public
from clipsynth.settings import Settings

FOLDER = Path(__file__).resolve().parents[2] / "docker/kubernetes"
VERSION = "1.34"
LISTED = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
FILES = {path.name: list(yaml.safe_load_all(path.read_text())) for path in FOLDER.glob("*.yaml")}
FOREIGN = ("keda.sh/", "kustomize.config.k8s.io/")
SCALING = [
    o for objects in FILES.values() for o in objects if o["apiVersion"] == "keda.sh/v1alpha1"
]  # of both files
OBJECTS = [o for name in LISTED for o in FILES[name]]
PODS = [o for o in OBJECTS if o["kind"] in ("Deployment", "StatefulSet")]


def containers():
    return [c for pod in PODS for c in pod["spec"]["template"]["spec"]["containers"]]


@pytest.mark.parametrize("name", FILES)
def test_manifests_match_the_kubernetes_schemas(name):
    for manifest in FILES[name]:
        if name != "gpu.yaml" and not manifest["apiVersion"].startswith(FOREIGN):
            kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_a_wrong_manifest_fails_validation():
    deployment = next(o for o in OBJECTS if o["kind"] == "Deployment")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment | {"spec": {"replicas": "two"}}, VERSION, strict=True)


def as_keda_has_it(manifest):
    """Return what KEDA 2.16 reads of a manifest; what it does not know is left out."""
    read = getattr(keda, manifest["kind"]).model_validate(manifest)
    return json.loads(read.model_dump_json(by_alias=True, exclude_unset=True))


@pytest.mark.parametrize("manifest", SCALING, ids=lambda m: m["kind"])
def test_scaling_matches_the_models_of_keda(manifest):
    assert as_keda_has_it(manifest) == manifest


@pytest.mark.parametrize(
    "wrong",
    [
        {"minReplicas": 1},
        {"maxReplicaCount": "many"},
        {"triggers": [{"type": "redis"}]},
        {"fallback": {"failureThreshold": 5}},
    ],
    ids=str,
)
def test_wrong_scaling_fails_validation(wrong):
    manifest = next(o for o in SCALING if o["kind"] == "ScaledObject")
    manifest = manifest | {"spec": manifest["spec"] | wrong}
    with pytest.raises((ValidationError, AssertionError)):
        assert as_keda_has_it(manifest) == manifest


# KEDA's own schema leaves a trigger's metadata open: these are the fields of its documentation (2.16), the
# required ones first.
TRIGGERS = {
    "prometheus": (
        {"serverAddress", "query", "threshold"},
        {"activationThreshold", "namespace", "customHeaders", "ignoreNullValues", "queryParameters"}
        | {"unsafeSsl", "authModes", "timeout"},
    ),
    "redis": (
        {"address", "listName", "listLength"},
        {"activationListLength", "enableTLS", "unsafeSsl", "databaseIndex", "usernameFromEnv"}
        | {"passwordFromEnv"},
    ),
}


def test_triggers_have_documented_fields():
    for scaled in (o for o in SCALING if o["kind"] == "ScaledObject"):
        for trigger in scaled["spec"]["triggers"]:
            required, optional = TRIGGERS[trigger["type"]]
            assert required <= trigger["metadata"].keys() <= required | optional
            assert all(isinstance(value, str) for value in trigger["metadata"].values())


def test_scaling_names_existing_deployments_and_credentials():
    deployments = {o["metadata"]["name"] for o in OBJECTS if o["kind"] == "Deployment"}
    for scaled in (o for o in SCALING if o["kind"] == "ScaledObject"):
        assert scaled["spec"]["scaleTargetRef"]["name"] in deployments
    authentications = {o["metadata"]["name"] for o in SCALING if o["kind"] == "TriggerAuthentication"}
    assert {
        t["authenticationRef"]["name"]
        for o in SCALING
        for t in o["spec"].get("triggers", ())
        if "authenticationRef" in t
    } == authentications


def test_selectors_find_their_pods():
    labels = {pod["metadata"]["name"]: pod["spec"]["template"]["metadata"]["labels"] for pod in PODS}
    for pod in PODS:
        wanted = pod["spec"]["selector"]["matchLabels"].items()
        assert wanted <= labels[pod["metadata"]["name"]].items()
    known = {label["app"] for label in labels.values()}
    named = set(re.findall(r"\{app: ([\w-]+)\}", "".join((FOLDER / name).read_text() for name in LISTED)))
    assert named <= known


def test_pods_are_restricted():
    for pod in PODS:
        assert pod["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
    for container in containers():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_containers_have_limits_probes_and_full_version_tags():
    for container in containers():
        assert {"memory", "ephemeral-storage"} <= container["resources"]["limits"].keys()
        assert "livenessProbe" in container
        image = container["image"]
        assert image.startswith("clipsynth-") or re.search(r":\d+\.\d+\.\d+", image)
    for pod in PODS:
        folders = [v["emptyDir"] for v in pod["spec"]["template"]["spec"]["volumes"] if "emptyDir" in v]
        assert folders
        assert all("sizeLimit" in folder for folder in folders)


def test_https_reaches_public_addresses_only():
    policy = next(o for o in FILES["network.yaml"] if o["metadata"]["name"] == "to-https")
    [rule] = policy["spec"]["egress"]
    allowed = [
        (ip_network(block["ipBlock"]["cidr"]), [ip_network(e) for e in block["ipBlock"].get("except", [])])
        for block in rule["to"]
    ]

    def reaches(address):
        return any(address in net and not any(address in part for part in gone) for net, gone in allowed)

    private = ("10.1.2.3", "172.31.0.1", "192.168.1.1", "127.0.0.1", "169.254.169.254", "100.64.0.1")
    for text in (*private, "224.0.0.1", "fd00::1", "fe80::1", "::1", "2002:a00::1"):
        assert not reaches(ip_address(text)), text
        assert not is_public(ip_address(text))
    for text in ("1.1.1.1", "8.8.8.8", "2606:4700:4700::1111"):
        assert reaches(ip_address(text)), text


def test_settings_exist_and_commands_equal_those_of_compose():
    known = {f"CLIPSYNTH_{name.upper()}" for name in Settings.model_fields} | {"CLIPSYNTH_SECRETS_DIR"}
    settings = next(o for o in FILES["settings.yaml"])["data"]
    assert {name for name in settings if name.startswith("CLIPSYNTH_")} <= known
    services = yaml.safe_load((FOLDER.parents[1] / "docker-compose.yml").read_text())["services"]
    for container in containers():
        if container["name"] != "redis":
            assert container["command"] == services[container["name"]]["command"]


def test_redis_starts_with_the_script_of_compose():
    script = FILES["redis.yaml"][0]["data"]["redis.sh"]
    assert script.strip() == (FOLDER.parent / "redis.sh").read_text().strip()


def test_scaling_uses_an_existing_queue_and_metric():
    bundle = json.loads((FOLDER.parents[1] / "checkpoints/demo/clipsynth.json").read_text())
    assert f'model="{bundle["name"]}"' in (FOLDER / "scaling.yaml").read_text()
    assert f"rq:queue:clipsynth-{bundle['name']}" in (FOLDER / "scaling-list.yaml").read_text()
    assert "clipsynth_backlog_seconds{" in (FOLDER / "scaling.yaml").read_text()
