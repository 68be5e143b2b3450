"""Renders the chart for every mode with a real Helm and holds the manifests to what is promised.

Usage: chart.py ROOT HELM SBC_NODE
ROOT is the source tree, HELM a Helm binary ("" for none), SBC_NODE the node's binary. Prints one
line per check and ends with "N checks"; exits 1 at the first that fails.
"""

import json
import os
import re
import subprocess
import sys
import tempfile

import kubernetes_validate
import yaml

ROOT, HELM, SBC_NODE = sys.argv[1:4]
CHART = os.path.join(ROOT, "helm", "sbc")
MODES = ["pod", "host", "multus", "single"]
KUBERNETES = ["1.27", "1.32", kubernetes_validate.latest_version()]
CUSTOM = {"ServiceMonitor", "PrometheusRule"}
checks = 0


def check(what, true, shown=""):
    global checks
    checks += 1
    if not true:
        print(f"FAILED {what}: {shown}")
        sys.exit(1)
    print(f"ok {what}")


def helm(*words):
    return subprocess.run([HELM, *words], capture_output=True, text=True)


def values_of(mode):
    return os.path.join(CHART, "ci", f"{mode}-values.yaml")


def render(mode, *more):
    words = ["template", "voice", CHART, "-n", "voice", "-f", values_of(mode)]
    return helm(*words, "--kube-version", "1.29.0", *more)


def refused(what, message, *more):
    done = render("pod", *more)
    check(f"values are refused: {what}", done.returncode != 0 and message in done.stderr, done.stderr)


def one(manifests, kind, name=None):
    found = [m for m in manifests if m["kind"] == kind and name in (None, m["metadata"]["name"])]
    return found[0] if len(found) == 1 else None


def containers(manifests):
    for manifest in manifests:
        spec = manifest["spec"] if manifest["kind"] == "Pod" else None
        if manifest["kind"] == "StatefulSet":
            spec = manifest["spec"]["template"]["spec"]
        if spec:
            for container in spec.get("initContainers", []) + spec["containers"]:
                yield spec, container


def promises(mode, manifests, render_again):
    """What the documentation promises of every pod."""
    sts = one(manifests, "StatefulSet", "voice-sbc")
    spec = sts["spec"]["template"]["spec"]
    replicas = sts["spec"]["replicas"]
    main = spec["containers"][0]
    hook = main["lifecycle"]["preStop"]["exec"]["command"]
    check(f"{mode}: the hook drains", hook[:3] == ["/usr/bin/sbcctl", "kube", "pre-stop"], hook)
    waits = int([w for w in hook if w.startswith("--timeout=")][0].split("=")[1])
    config = one(manifests, "ConfigMap", "voice-sbc")["data"]["sbc.toml"]
    hangup = int(re.search(r'drain-time = "(\d+)s"', config)[1])
    grace = spec["terminationGracePeriodSeconds"]
    hep = "none" if "[hep]" not in config else re.search(r'transport = "(\w+)"', config)[1]
    check(f"{mode}: HEP goes as asked for", hep == ("tcp" if mode == "single" else "none"), hep)
    check(f"{mode}: there is grace for the hook and the rest", grace >= waits + hangup + 15, grace)
    pdb = one(manifests, "PodDisruptionBudget")
    if replicas > 1:
        least = pdb["spec"]["minAvailable"]
        check(f"{mode}: the budget keeps a majority and lets one go", replicas // 2 < least < replicas, least)
        check(f"{mode}: pods meet without being ready", sts["spec"]["podManagementPolicy"] == "Parallel")
        check(f"{mode}: a cluster begins with all of them", f"begin = {replicas}\n" in config)
        keys = {c["topologyKey"] for c in spec["topologySpreadConstraints"]}
        check(f"{mode}: pods are spread", keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}, keys)
    else:
        check(f"{mode}: no budget blocks the only pod", pdb is None)
    for probe, path in [("startupProbe", "/healthz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")]:
        check(f"{mode}: {probe}", main[probe]["httpGet"]["path"] == path)
    wanted = {"pod": [], "single": [], "multus": [], "host": ["BPF", "NET_ADMIN", "PERFMON"]}[mode]
    for of, container in containers(manifests):
        name = container["name"]
        context = container["securityContext"]
        check(f"{mode}: {name} has a read-only root", context["readOnlyRootFilesystem"] is True)
        user = context.get("runAsUser", of["securityContext"]["runAsUser"])
        check(f"{mode}: {name} is not root", context["runAsNonRoot"] is True and user > 0)
        check(f"{mode}: {name} drops every capability", context["capabilities"]["drop"] == ["ALL"])
        added = sorted(context["capabilities"].get("add", []))
        check(f"{mode}: {name} gets no other back", added == (wanted if name == "sbc" else []), added)
        check(f"{mode}: {name} gains nothing", context["allowPrivilegeEscalation"] is (name == "sbc" and bool(wanted)))
        check(f"{mode}: {name} has limits", "memory" in container["resources"]["limits"])
        check(f"{mode}: {name} is not privileged", not context.get("privileged"))
    check(f"{mode}: the host's network only where asked for", spec.get("hostNetwork", False) is (mode == "host"))
    for service in [m for m in manifests if m["kind"] == "Service"]:
        name, body = service["metadata"]["name"], service["spec"]
        if body.get("type", "ClusterIP") != "ClusterIP":
            check(f"{mode}: {name} keeps the source", body["externalTrafficPolicy"] == "Local")
        if body.get("clusterIP") != "None":
            check(f"{mode}: {name} has affinity", body["sessionAffinity"] == "ClientIP")
    for secret in [m for m in manifests if m["kind"] == "Secret"]:
        again = one(render_again(), "Secret", secret["metadata"]["name"])
        check(f"{mode}: no secret is the same in two installations", again["data"] != secret["data"])
    for role in [m for m in manifests if m["kind"] in ("Role", "ClusterRole")]:
        for rule in role["rules"]:
            check(f"{mode}: {role['kind']} only reads", rule["verbs"] == ["get"], rule)
    if mode in ("pod", "multus"):
        check(f"{mode}: no right beyond the namespace", one(manifests, "ClusterRole") is None)
    policy = one(manifests, "NetworkPolicy")["spec"]["ingress"]
    channel = [r for r in policy if {"port": "cluster", "protocol": "TCP"} in r["ports"]]
    for rule in channel:
        check(f"{mode}: only pods of the set reach the channel", list(rule["from"][0]) == ["podSelector"])
    services(mode, manifests, spec)


def services(mode, manifests, spec):
    if mode == "pod":
        ports = one(manifests, "Service", "voice-sbc-outside")["spec"]["ports"]
        both = {(p["port"], p["protocol"]) for p in ports}
        check("pod: SIP by UDP and TCP on one name", both == {(5080, "UDP"), (5080, "TCP")}, both)
        peers = one(manifests, "Service", "voice-sbc-peers")["spec"]
        check("pod: peers are found before they are ready", peers["publishNotReadyAddresses"] is True)
        volumes = {v["name"]: v for v in spec["volumes"]}
        check("pod: emptyDir where asked for", "emptyDir" in volumes["data"])
        check("pod: the priority class is the one asked for", spec["priorityClassName"] == "voice")
        watched(manifests)
        test = one(manifests, "Pod", "voice-sbc-test-call")
        check("pod: a test places a call", test["spec"]["containers"][0]["args"][0] == "call")
    if mode == "host":
        steps = [c["name"] for c in spec["initContainers"]]
        check("host: an init step looks the address up", steps == ["address-inside"], steps)
        check("host: names of the cluster resolve", spec["dnsPolicy"] == "ClusterFirstWithHostNet")
    if mode == "multus":
        sts = one(manifests, "StatefulSet", "voice-sbc")
        networks = yaml.safe_load(sts["spec"]["template"]["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"])
        wanted = [{"interface": "net1", "name": "carrier-vlan", "namespace": "voice"}]
        check("multus: the secondary interface is asked for", networks == wanted, networks)
        check("multus: no Secret is made beside one's own", one(manifests, "Secret") is None)
        claims = sts["spec"]["volumeClaimTemplates"]
        check("multus: a volume for each pod", len(claims) == 1)


def watched(manifests):
    """Prometheus and Grafana are given what is there."""
    monitor = one(manifests, "ServiceMonitor")["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    found = [m for m in manifests if m["kind"] == "Service" and wanted <= m["metadata"]["labels"].items()]
    check("pod: the ServiceMonitor finds one Service", len(found) == 1, found)
    ports = {p["name"] for p in found[0]["spec"]["ports"]}
    check("pod: and its port", {e["port"] for e in monitor["endpoints"]} <= ports, ports)
    with open(os.path.join(CHART, "files", "alerts.yaml")) as file:
        check("pod: the PrometheusRule has every alert", one(manifests, "PrometheusRule")["spec"] == yaml.safe_load(file))
    shown = one(manifests, "ConfigMap", "voice-sbc-dashboard")
    check("pod: Grafana finds its dashboard", shown["metadata"]["labels"].get("grafana_dashboard") == "1")
    panels = json.loads(shown["data"]["sbc.json"])["panels"]
    check(f"pod: a dashboard of {len(panels)} panels", len(panels) > 5)


def ordinals(manifests):
    """Each pod of the list advertises its own entry, and one beyond it says what is missing."""
    env = one(manifests, "StatefulSet", "voice-sbc")["spec"]["template"]["spec"]["containers"][0]["env"]
    listed = {e["name"]: e.get("value") for e in env if e["name"].startswith("ADVERTISE_")}
    check("multus: the list is in the environment", listed == {"ADVERTISE_1": "203.0.113.1,203.0.113.2,203.0.113.3"}, listed)
    toml = one(manifests, "ConfigMap", "voice-sbc")["data"]["sbc.toml"]
    check("multus: each pod takes its own entry", 'advertise = "${ADVERTISE_1[ordinal]}"' in toml, toml)
    if subprocess.run(["unshare", "-ru", "true"], capture_output=True).returncode:
        print("note: no name of one's own here: ordinals are not tried")
        return
    with tempfile.TemporaryDirectory() as place:
        file = os.path.join(place, "sbc.toml")
        with open(file, "w") as out:
            out.write('[[interface]]\nname = "i"\nlisten = "udp://127.0.0.1"\nadvertise = "${ADVERTISE_1[ordinal]}"\n')
        for ordinal, wanted in [(0, ""), (2, ""), (3, "ADVERTISE_1 has 3 entries, none for ordinal 3 of voice-sbc-3")]:
            named = f'hostname voice-sbc-{ordinal} && exec "$@"'
            done = subprocess.run(["unshare", "-ru", "sh", "-c", named, "sh", SBC_NODE, "check", file],
                                  capture_output=True, text=True, env={**os.environ, **listed})
            told = wanted in done.stdout + done.stderr and (done.returncode == 0) is (wanted == "")
            check(f"multus: ordinal {ordinal}", told, done.stdout + done.stderr)


def notes(mode, text):
    """What is said after the installation: what to wait for, what to do next, what is missing."""
    for command in ["rollout status statefulset/voice-sbc", "sbcctl cluster status", "helm -n voice test voice"]:
        check(f"{mode}: the notes say {command}", command in text, text)
    check(f"{mode}: the notes miss a trunk where there is none", ("no trunk yet" in text) is (mode == "single"), text)
    check(f"{mode}: the notes warn of emptyDir", ("in the pods alone" in text) is (mode == "pod"), text)


def configuration(mode, manifests, pod_ip="10.1.2.3"):
    """The node itself reads what the chart wrote for it."""
    with tempfile.TemporaryDirectory() as place:
        data = one(manifests, "ConfigMap", "voice-sbc")["data"]["sbc.toml"]
        for name in ("inside", "both"):
            with open(os.path.join(place, f"address-{name}"), "w") as file:
                file.write("203.0.113.7\n")
        with open(os.path.join(place, "join-key"), "w") as file:
            file.write("x" * 64)
        files = one(manifests, "ConfigMap", "voice-sbc-files")["data"] or {}
        os.mkdir(os.path.join(place, "files"))
        for name, text in files.items():
            with open(os.path.join(place, "files", name), "w") as file:
                file.write(text)
        data = data.replace("/run/sbc/address-", f"{place}/address-")
        data = data.replace("/etc/sbc/join/join-key", f"{place}/join-key")
        # What the machine of the test cannot have: a second device, an ordinal in its name.
        data = data.replace("${device:net1}", "10.9.0.1").replace("[ordinal]", "")
        file = os.path.join(place, "sbc.toml")
        with open(file, "w") as out:
            out.write(data)
        env = {"POD_IP": pod_ip, "NODE_IP": "10.0.0.1", "POD_NAME": "voice-sbc-0", "ADVERTISE_1": "203.0.113.1"}
        done = subprocess.run([SBC_NODE, "check", file], capture_output=True, text=True, env=env)
        check(f"{mode}: sbc-node accepts its configuration", done.returncode == 0, done.stderr)


# What checkov may not ask of the chart, and why.
EXCEPT = [
    "CKV_K8S_11",  # CPU limits throttle the media threads, which is heard; requests are set
    "CKV_K8S_35",  # secrets are files already
    "CKV_K8S_38",  # the account's token is for one read: whether the ordinal is still wanted
]
EXCEPT_OF = {
    # The node's network is what the mode is for, and media in the kernel needs its capabilities,
    # which a user other than root gets by those of the file.
    "host": ["CKV_K8S_19", "CKV_K8S_20", "CKV_K8S_25"],
}


def checkov(mode, text):
    program = os.path.join(os.path.dirname(sys.executable), "checkov")
    if not os.path.exists(program):
        print("note: checkov is not installed")
        return
    with tempfile.TemporaryDirectory() as place:
        file = os.path.join(place, "rendered.yaml")
        with open(file, "w") as out:
            out.write(text)
        exceptions = ",".join(EXCEPT + EXCEPT_OF.get(mode, []))
        done = subprocess.run(
            [program, "--skip-check", exceptions, "--framework", "kubernetes", "--compact", "--quiet",
             "--skip-download", "-f", file],
            capture_output=True, text=True)
        check(f"{mode}: checkov", done.returncode == 0, done.stdout + done.stderr[-500:])


def helm4():
    """The same with the SDK of Helm 4, where it is installed."""
    try:
        from helm_python.chart import Chart
    except Exception as error:  # its native library may not load here
        print(f"note: no Helm 4 SDK: {error}")
        return
    chart = Chart.load(CHART)
    for mode in MODES:
        with open(values_of(mode)) as file:
            values = yaml.safe_load(file)
        chart.validate_schema(values)
        rendered = {}

        def manifests_of():
            rendered.update(chart.render(values, name="voice", namespace="voice"))
            return [m for file, text in rendered.items() if file.endswith(".yaml")
                    for m in yaml.safe_load_all(text) if isinstance(m, dict)]

        manifests = manifests_of()
        if not HELM:
            promises(mode, manifests, manifests_of)
            configuration(mode, manifests)
        notes(mode, "".join(text for file, text in rendered.items() if file.endswith("NOTES.txt")))
        check(f"{mode}: Helm 4 renders it too", one(manifests, "StatefulSet", "voice-sbc") is not None)


def main():
    if HELM:
        print(helm("version", "--short").stdout.strip())
        for mode in MODES:
            linted = helm("lint", "--strict", CHART, "-f", values_of(mode))
            check(f"{mode}: helm lint", linted.returncode == 0, linted.stdout + linted.stderr)
            done = render(mode)
            check(f"{mode}: helm template", done.returncode == 0, done.stderr)
            manifests = [m for m in yaml.safe_load_all(done.stdout) if m]
            for version in KUBERNETES:
                for manifest in manifests:
                    if manifest["kind"] not in CUSTOM:
                        kubernetes_validate.validate(manifest, version, strict=True)
            check(f"{mode}: {len(manifests)} manifests fit the API of Kubernetes {', '.join(KUBERNETES)}", True)
            promises(mode, manifests, lambda: list(yaml.safe_load_all(render(mode).stdout)))
            configuration(mode, manifests)
            if mode == "multus":
                ordinals(manifests)
            lasting = [m for m in manifests if "helm.sh/hook" not in m["metadata"].get("annotations", {})]
            checkov(mode, yaml.safe_dump_all(lasting))
        done = render("pod", "--set", "ipFamily=IPv6", "--set-string", "config=")
        manifests = [m for m in yaml.safe_load_all(done.stdout) if m]
        configuration("pod, IPv6", manifests, "2001:db8::5")
        families = [m["spec"]["ipFamilies"] for m in manifests if m["kind"] == "Service" and "ipFamilies" in m["spec"]]
        check("pod, IPv6: and so are the Services", families and all(f == ["IPv6"] for f in families), families)
        old = list(yaml.safe_load_all(helm("template", "voice", CHART, "-f", values_of("host"), "--kube-version", "1.20.2").stdout))
        sts = one([m for m in old if m], "StatefulSet", "voice-sbc")
        check("an old API is not asked for what it lacks", "persistentVolumeClaimRetentionPolicy" not in sts["spec"])
        refused("an even number of replicas", "use an odd number", "--set", "replicas=4")
        refused("floating addresses of pods", "pod addresses cannot move", "--set", "cluster.failover=address")
        refused("a key that does not exist", "Additional property replica is not allowed", "--set", "replica=3")
        refused("a port that is none", "Does not match pattern", "--set", "interfaces[0].listen[0]=udp:sip")
        refused("a section that the chart writes", "[cluster] is written by the chart", "--set", "config=[cluster]")
    helm4()
    print(f"{checks} checks")


main()
