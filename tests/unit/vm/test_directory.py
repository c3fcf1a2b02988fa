"""Which VM a pod is, asked of an API server: what is asked, and what stands in the way."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cnvnet.call_context import captured
from cnvnet.cni.conventions import PodRef
from cnvnet.cni.errors import CNIError
from cnvnet.kube.api import ApiError
from cnvnet.kube.resources import INSTANCES, PODS
from cnvnet.vm import names
from cnvnet.vm.directory import Directory, open_directory
from tests.fakes.api_server import ApiServer, black_hole, refuse, until_asked
from tests.fakes.callers import in_the_agent
from tests.fakes.launchers import NAMESPACE, Launchers

LAN = names.hashed("lan")


def asked(server: ApiServer) -> list[str]:
    return [f"{each.asked.verb} {each.asked.plural}" for each in server.requests]


def failure(directory: Directory, pod: PodRef) -> CNIError:
    with pytest.raises(CNIError) as caught:
        directory.subject(pod, "eth0", container_id="c1")
    return caught.value


def test_a_pod_that_is_no_vm_costs_one_request(
    server: ApiServer, launchers: Launchers, directory: Directory
) -> None:
    pod = launchers.add_pod("web")
    for ifname in ("eth0", "net1"):
        assert directory.subject(pod, ifname, container_id="c1") is None
    assert asked(server) == ["get pods"]


def test_a_launcher_costs_two_for_all_plugins_of_its_sandbox(
    server: ApiServer, launchers: Launchers, directory: Directory
) -> None:
    pod = launchers.start("vm-a")
    for ifname in ("eth0", LAN, LAN):
        found = directory.subject(pod, ifname, container_id="c1")
        assert found is not None
        assert (found.vm.namespace, found.vm.name, found.vm.interface) == ("default", "vm-a", ifname)
        assert found.pod_uid == pod.uid
    assert asked(server) == ["get pods", "get virtualmachineinstances"]


def test_in_the_agent_an_instance_is_asked_for_beside_its_pod(
    server: ApiServer, launchers: Launchers, directory: Directory
) -> None:
    """The pod is answered when the instance was asked for, and not before."""
    pod = launchers.start("vm-a")
    assert names.likely_instance(pod.name) == "vm-a"
    server.inject(until_asked("get", "virtualmachineinstances"), verb="get", plural="pods")
    with in_the_agent():
        found = directory.subject(pod, LAN, container_id="c1")
    assert found is not None
    assert found.vm.name == "vm-a"
    assert sorted(asked(server)) == ["get pods", "get virtualmachineinstances"]


def test_in_the_agent_a_pod_that_is_called_like_a_launcher_is_what_its_owner_says(
    server: ApiServer, launchers: Launchers, directory: Directory
) -> None:
    launchers.start("vm-a")
    pod = launchers.add_pod("virt-launcher-vm-a-x7k2p")
    with in_the_agent():
        assert directory.subject(pod, "eth0", container_id="c1") is None
        assert (
            directory.subject(launchers.add_pod("virt-launcher-no-x7k2p"), "eth0", container_id="c2") is None
        )


def test_another_sandbox_asks_anew(server: ApiServer, launchers: Launchers, directory: Directory) -> None:
    pod = launchers.start("vm-a")
    for container in ("c1", "c2", "", ""):
        directory.subject(pod, "eth0", container_id=container)
    assert server.count("get", "pods") == 4


def test_what_was_read_counts_for_seconds_only(server: ApiServer, launchers: Launchers) -> None:
    now = [100.0]
    directory = Directory(server.client(), clock=lambda: now[0])
    pod = launchers.start("vm-a")
    for now[0], count in ((100.0, 1), (109.9, 1), (110.0, 2)):
        directory.subject(pod, "eth0", container_id="c1")
        assert server.count("get", "pods") == count


def test_what_was_read_is_bounded(server: ApiServer, launchers: Launchers, directory: Directory) -> None:
    pod = launchers.add_pod("web")
    for number in range(257):
        directory.subject(pod, "eth0", container_id=f"c{number}")
    assert server.count("get", "pods") == 257
    directory.subject(pod, "eth0", container_id="c256")
    directory.subject(pod, "eth0", container_id="c1")
    assert server.count("get", "pods") == 257
    directory.subject(pod, "eth0", container_id="c0")
    assert server.count("get", "pods") == 258


def test_several_threads_ask_at_once(server: ApiServer, launchers: Launchers, directory: Directory) -> None:
    pods = [launchers.start(name) for name in ("vm-a", "vm-br", "vm-twice")]
    seen: list[str] = []

    def ask(pod: PodRef) -> None:
        for _ in range(20):
            found = directory.subject(pod, "eth0", container_id=pod.name)
            assert found is not None
            seen.append(found.vm.name)

    threads = [threading.Thread(target=ask, args=(pod,)) for pod in pods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == ["vm-a"] * 20 + ["vm-br"] * 20 + ["vm-twice"] * 20


def test_a_nic_that_was_plugged_in_since_is_found(
    server: ApiServer, launchers: Launchers, directory: Directory
) -> None:
    pod = launchers.start("vm-a")
    directory.subject(pod, LAN, container_id="c1")
    vmi = server.objects.get(INSTANCES, NAMESPACE, "vm-a")
    networks = [*vmi["spec"]["networks"], {"name": "hot", "multus": {"networkName": "plain"}}]
    server.objects.patch(INSTANCES, NAMESPACE, "vm-a", {"spec": {"networks": networks}})
    found = directory.subject(pod, names.hashed("hot"), container_id="c1")
    assert found is not None
    assert found.network == "hot"


def test_a_migrations_target_and_its_source_have_their_roles(
    launchers: Launchers, directory: Directory
) -> None:
    source, target = launchers.start("vm-a"), launchers.migrate("vm-a")
    roles = {}
    for pod in (source, target):
        found = directory.subject(pod, LAN, container_id=pod.name)
        assert found is not None
        roles[pod] = found.role
    assert roles == {source: "active", target: "target"}


def test_a_pod_that_is_gone_is_named_with_its_uid(directory: Directory) -> None:
    error = failure(directory, PodRef("default", "gone", "u1"))
    assert (error.code, error.msg) == (
        11,
        "pod default/gone with the UID u1 is not in the Kubernetes API",
    )
    assert "404" in error.details


def test_another_pod_of_the_name_is_named_with_both_uids(launchers: Launchers, directory: Directory) -> None:
    pod = launchers.start("vm-a")
    error = failure(directory, pod._replace(uid="former"))
    assert (error.code, error.msg) == (
        11,
        f"pod default/virt-launcher-vm-a-ckmh4 has the UID {pod.uid} in the Kubernetes API, and the runtime "
        "asks for the one with the UID former, which is gone",
    )


def test_a_runtime_that_names_no_uid_is_believed(launchers: Launchers, directory: Directory) -> None:
    pod = launchers.start("vm-a")
    found = directory.subject(pod._replace(uid=""), "eth0")
    assert found is not None
    assert found.pod_uid == pod.uid


def test_a_static_pods_uid_is_not_the_apis(launchers: Launchers, directory: Directory) -> None:
    pod = launchers.add_pod("etcd-node1", {"kubernetes.io/config.mirror": "static"})
    assert directory.subject(pod._replace(uid="static"), "eth0") is None


def test_a_pod_without_a_name_is_refused_before_anything_is_asked(
    server: ApiServer, directory: Directory
) -> None:
    error = failure(directory, PodRef("default", "", "u"))
    assert (error.code, error.msg) == (4, "CNI_ARGS K8S_POD_NAMESPACE and K8S_POD_NAME: required")
    assert asked(server) == []


def test_an_instance_that_is_gone_is_named(
    server: ApiServer, launchers: Launchers, directory: Directory
) -> None:
    pod = launchers.start("vm-a")
    uid = server.objects.get(INSTANCES, NAMESPACE, "vm-a")["metadata"]["uid"]
    finalizers = {"metadata": {"finalizers": None}}
    server.objects.patch(INSTANCES, NAMESPACE, "vm-a", finalizers)
    server.objects.delete(INSTANCES, NAMESPACE, "vm-a", {})
    error = failure(directory, pod)
    assert (error.code, error.msg) == (
        11,
        f"pod {pod}: its VirtualMachineInstance vm-a with the UID {uid} is gone",
    )


def test_an_instance_of_a_later_start_is_not_the_pods(
    server: ApiServer, launchers: Launchers, directory: Directory
) -> None:
    pod = launchers.start("vm-a")
    owner = {
        "ownerReferences": [
            {
                **server.objects.get(PODS, NAMESPACE, pod.name)["metadata"]["ownerReferences"][0],
                "uid": "before",
            }
        ]
    }
    server.objects.patch(PODS, NAMESPACE, pod.name, {"metadata": owner})
    error = failure(directory, pod)
    assert error.code == 11
    assert "with the UID before, and the Kubernetes API has one with the UID" in error.msg


@pytest.mark.parametrize("plural", ["pods", "virtualmachineinstances"])
def test_what_the_api_says_is_passed_on(
    server: ApiServer, launchers: Launchers, directory: Directory, plural: str
) -> None:
    pod = launchers.start("vm-a")
    server.inject(refuse(403, "Forbidden", "no rights"), verb="get", plural=plural)
    error = failure(directory, pod)
    assert isinstance(error, ApiError)
    assert (error.code, error.status) == (11, 403)
    # Nothing of it was kept.
    assert directory.subject(pod, "eth0", container_id="c1") is not None


def test_both_requests_share_one_deadline(
    server: ApiServer, launchers: Launchers, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnvnet.vm.directory._DEADLINE", 0.3)
    server.inject(black_hole, verb="get", plural="virtualmachineinstances", times=5)
    assert failure(directory, launchers.start("vm-a")).code == 11


def test_annotations_without_effect_are_said_once(launchers: Launchers, directory: Directory) -> None:
    pod = launchers.add_pod("web", {"cnvnet.io/ip_address": "10.1.0.5"})
    with captured() as lines:
        for _ in range(2):
            directory.subject(pod, "eth0", container_id="c1")
    assert lines == [
        "pod default/web: annotation cnvnet.io/ip_address: ignored: the pod belongs to no "
        "VirtualMachineInstance"
    ]


def test_a_kubeconfig_in_the_environment_opens_a_directory(
    server: ApiServer, launchers: Launchers, tmp_path: Path
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        "{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: a}}], "
        f"clusters: [{{name: a, cluster: {{server: '{server.url}'}}}}]}}"
    )
    opened = open_directory({"CNVNET_KUBECONFIG": str(kubeconfig)})
    assert opened is not None
    assert opened.subject(launchers.start("vm-a"), "eth0") is not None
    assert opened.api.server == server.url


def test_without_credentials_there_is_no_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cnvnet.kube.credentials.DEFAULT_KUBECONFIG", str(tmp_path / "none"))
    assert open_directory({}) is None
