"""What deploy/kuberay promises of its pods and of who reaches them, as far as it can be held without a cluster."""

import re

import pytest
import yaml

from imagegen.settings import variable_names
from tests.support import ROOT

FOLDER = ROOT / "deploy" / "kuberay"
SERVICE, CLAIM, *POLICIES = yaml.safe_load_all((FOLDER / "image-gen.yaml").read_text())
CLUSTER = SERVICE["spec"]["rayClusterConfig"]
HEAD, WORKER = CLUSTER["headGroupSpec"]["template"], CLUSTER["workerGroupSpecs"][0]["template"]
SECRETS = {"IMAGEGEN_API_KEY", "HUGGING_FACE_TOKEN"}


@pytest.mark.parametrize("template", [HEAD, WORKER], ids=["head", "worker"])
def test_a_pod_may_do_as_little_as_it_can(template):
    pod, (container,) = template["spec"]["securityContext"], template["spec"]["containers"]
    assert pod["runAsNonRoot"] and pod["runAsUser"] == 10001
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    written = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert "/tmp" in written  # HOME, Ray's own folder and the outputs; the rest of the disk is read-only


def test_each_pod_has_the_secrets_that_it_needs_alone():
    def secrets(template):
        (container,) = template["spec"]["containers"]
        assert "envFrom" not in container
        assert {variable["name"] for variable in container["env"]} <= set(variable_names())
        return {variable["name"] for variable in container["env"] if "valueFrom" in variable}

    assert secrets(HEAD) == {"IMAGEGEN_API_KEY"}
    assert secrets(WORKER) == {"HUGGING_FACE_TOKEN"}
    assert not WORKER["spec"]["automountServiceAccountToken"]


def test_rays_own_apis_ask_for_a_token():
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert tuple(map(int, CLUSTER["rayVersion"].split("."))) >= (2, 52)  # from there on there are tokens


def test_the_pods_are_reached_by_each_other_the_operator_and_callers_alone():
    labels = {"app": "image-gen"}
    (inward,) = (one["spec"] for one in POLICIES if one["spec"]["policyTypes"] == ["Ingress"])
    assert inward["podSelector"]["matchLabels"] == labels
    for template in (HEAD, WORKER):
        assert labels.items() <= template["metadata"]["labels"].items()
    dashboard = [rule for rule in inward["ingress"] if {"protocol": "TCP", "port": 8265} in rule.get("ports", [])]
    (source,) = dashboard[0]["from"]
    assert len(dashboard) == 1 and source["podSelector"]["matchLabels"]["app.kubernetes.io/name"] == "kuberay-operator"
    everywhere = [rule for rule in inward["ingress"] if "ports" not in rule]
    assert everywhere == [{"from": [{"podSelector": {"matchLabels": labels}}]}]


def test_no_metadata_of_a_cloud_is_reached():
    outward = [rule for one in POLICIES if one["metadata"]["name"] == "image-gen-out" for rule in one["spec"]["egress"]]
    (public,) = (target["ipBlock"] for rule in outward for target in rule["to"] if "ipBlock" in target)
    assert {"169.254.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"} <= set(public["except"])


def test_the_image_may_copy_what_its_dockerfile_names():
    allowed = (FOLDER / "Dockerfile.dockerignore").read_text()
    dockerfile = (FOLDER / "Dockerfile").read_text()
    for source in re.findall(r"source=(\S+?),", dockerfile):
        assert f"!{source}\n" in allowed and (ROOT / source).is_file()
    assert "COPY deploy /app/deploy" in dockerfile and "!deploy/ray_serve.py\n" in allowed
