"""Installs the chart into a real Kubernetes API, in every network mode, and asks what became of it.

Usage: apiserver.py ROOT HELM BINARIES SBCCTL
ROOT is the source tree, HELM a Helm 3 binary, BINARIES a folder with kube-apiserver and, optionally,
kube-controller-manager; etcd is found by its name. No kubelet: pods are objects here, and this script
says in a kubelet's place that they run. Prints one line per check and ends with "N checks"; exits 1 at the
first that fails.
"""

import base64
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import yaml

ROOT, HELM, BINARIES, SBCCTL = sys.argv[1:5]
CHART = os.path.join(ROOT, "helm", "sbc")
MODES = ["pod", "host", "multus", "single"]
NS = "voice"
ADMIN = secrets.token_hex(16)
LONG = 120
checks = 0


def check(what, true, shown=""):
    global checks
    checks += 1
    if not true:
        print(f"FAILED {what}: {shown}", flush=True)
        sys.exit(1)
    print(f"ok {what}", flush=True)


def wait_for(what, condition):
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    check(what, False, f"waited {LONG} s")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def helped(program):
    return subprocess.run([program, "--help"], capture_output=True, text=True).stdout


class Api:
    """etcd, the API server and, where it is there, the controllers of StatefulSets and accounts."""

    def __init__(self, place):
        self.place, self.running, self.port = place, [], free_port()
        self.kubeconfig = self.at("kubeconfig")

    def begin(self):
        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self.start("etcd", "etcd", "--data-dir", self.at("etcd"), "--listen-client-urls", client,
                   "--advertise-client-urls", client, "--listen-peer-urls", peer,
                   "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
                   "--unsafe-no-fsync")
        subprocess.run(["openssl", "genrsa", "-out", self.at("accounts.key"), "2048"], check=True,
                       capture_output=True)
        with open(self.at("tokens.csv"), "w") as file:
            file.write(f'{ADMIN},admin,admin,"system:masters"\n')
        server = os.path.join(BINARIES, "kube-apiserver")
        # One name with SIP by UDP and TCP is off by default before Kubernetes 1.24.
        gates = ["--feature-gates", "MixedProtocolLBService=true"]
        self.start("apiserver", server, *(gates if "MixedProtocolLBService" in helped(server) else []),
                   "--etcd-servers", client, "--bind-address", "127.0.0.1",
                   "--secure-port", str(self.port), "--cert-dir", self.at("certs"),
                   "--token-auth-file", self.at("tokens.csv"), "--authorization-mode", "RBAC",
                   "--service-cluster-ip-range", "10.96.0.0/16",
                   "--service-account-issuer", "https://kubernetes.default.svc",
                   "--service-account-signing-key-file", self.at("accounts.key"),
                   "--service-account-key-file", self.at("accounts.key"))
        wait_for("the API answers", self.ready)
        with open(os.open(self.kubeconfig, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
            yaml.safe_dump({
                "apiVersion": "v1", "kind": "Config", "current-context": "test",
                "clusters": [{"name": "test", "cluster": {
                    "server": f"https://127.0.0.1:{self.port}",
                    "certificate-authority": self.at("certs/apiserver.crt")}}],
                "users": [{"name": "admin", "user": {"token": ADMIN}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            }, file)
        manager = os.path.join(BINARIES, "kube-controller-manager")
        self.controllers = os.path.exists(manager)
        if self.controllers:
            plain = ["--port", "0"] if " --port int" in helped(manager) else []
            self.start("controllers", manager, "--kubeconfig", self.kubeconfig, "--leader-elect=false", *plain,
                       "--service-account-private-key-file", self.at("accounts.key"),
                       "--bind-address", "127.0.0.1", "--secure-port", str(free_port()),
                       "--cert-dir", self.at("certs-of-controllers"))
        self.policy = "v1" if self.get("/apis/policy/v1") else "v1beta1"

    def at(self, name):
        return os.path.join(self.place, name)

    def start(self, name, *words):
        log = open(self.at(f"{name}.log"), "w")
        self.running.append((name, subprocess.Popen(words, stdout=log, stderr=log, cwd=self.place)))

    def ready(self):
        for name, process in self.running:
            if process.poll() is not None:
                check(f"{name} runs", False, open(self.at(f"{name}.log")).read()[-3000:])
        try:
            return os.path.exists(self.at("certs/apiserver.crt")) and self.call("GET", "/readyz", raw=True)[0] == 200
        except OSError:
            return False

    def stop(self):
        for _, process in reversed(self.running):
            process.send_signal(signal.SIGTERM)
        for _, process in self.running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()

    def call(self, method, path, body=None, token=ADMIN, raw=False, kind="application/json"):
        """Status and answer of one request."""
        context = ssl.create_default_context(cafile=self.at("certs/apiserver.crt"))
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"https://127.0.0.1:{self.port}{path}", data, method=method, headers={
            "Authorization": f"Bearer {token}", "Content-Type": kind})
        try:
            with urllib.request.urlopen(request, context=context, timeout=30) as answer:
                text = answer.read()
                return answer.status, text if raw else json.loads(text)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")

    def get(self, path):
        status, answer = self.call("GET", path)
        return answer if status == 200 else None

    def make(self, path, body):
        status, answer = self.call("POST", path, body)
        check(f"{body['kind']} {body['metadata'].get('name', '')} is made", status == 201, answer)
        return answer

    def merge(self, path, body):
        return self.call("PATCH", path, body, kind="application/merge-patch+json")


def helm(api, *words):
    env = dict(os.environ, KUBECONFIG=api.kubeconfig, HOME=api.place, HELM_CACHE_HOME=api.at("helm"))
    return subprocess.run([HELM, "-n", NS, *words], capture_output=True, text=True, env=env)


def surroundings(api):
    """What an operator has before: a namespace, a node, custom resources, a class, Secrets."""
    api.make("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NS}})
    api.make("/api/v1/nodes", {
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "worker", "annotations": {"example.net/sip-address": "198.51.100.9"}}})
    status, answer = api.merge("/api/v1/nodes/worker/status", {"status": {"addresses": [
        {"type": "InternalIP", "address": "10.0.0.9"}, {"type": "ExternalIP", "address": "203.0.113.9"}]}})
    check("the node has its addresses", status == 200, answer)
    for kind, plural in [("ServiceMonitor", "servicemonitors"), ("PrometheusRule", "prometheusrules")]:
        group = "monitoring.coreos.com"
        anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        api.make("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", {
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.{group}"},
            "spec": {"group": group, "scope": "Namespaced",
                     "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
                     "versions": [{"name": "v1", "served": True, "storage": True,
                                   "schema": {"openAPIV3Schema": anything}}]}})
        wait_for(f"the API serves {kind}", lambda: api.get(f"/apis/{group}/v1/namespaces/{NS}/{plural}"))
    api.make("/apis/scheduling.k8s.io/v1/priorityclasses", {
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "voice"}, "value": 1000})
    if not api.controllers:
        api.make(f"/api/v1/namespaces/{NS}/serviceaccounts", {
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}})
    for name, key in [("my-join-key", "join-key"), ("trunk-passwords", "carrier")]:
        api.make(f"/api/v1/namespaces/{NS}/secrets", {
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "data": {key: base64.b64encode(b"x" * 64).decode()}})


def token_of(api, account):
    path = f"/api/v1/namespaces/{NS}/serviceaccounts/{account}/token"
    status, answer = api.call("POST", path, {
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {}, "spec": {}})
    check(f"{account} gets a token", status == 201, answer)
    return answer["status"]["token"]


def rights(api, mode):
    """The pods' account may do what it must, and nothing else."""
    token = token_of(api, "voice-sbc")
    core, apps = f"/api/v1/namespaces/{NS}", f"/apis/apps/v1/namespaces/{NS}/statefulsets"
    looks_up = mode in ("host", "single")
    for method, path, body, wanted in [
        ("GET", f"{apps}/voice-sbc", None, 200),
        ("GET", apps, None, 403),
        ("GET", f"{apps}/other", None, 403),
        ("PATCH", f"{apps}/voice-sbc", {"spec": {"replicas": 0}}, 403),
        ("DELETE", f"{apps}/voice-sbc", None, 403),
        ("GET", "/api/v1/nodes/worker", None, 200 if looks_up else 403),
        ("GET", "/api/v1/nodes", None, 403),
        ("GET", f"{core}/secrets", None, 403),
        ("GET", f"{core}/secrets/my-join-key", None, 403),
        ("GET", f"{core}/configmaps/voice-sbc", None, 403),
        ("GET", f"{core}/pods", None, 403),
        ("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles", None, 403),
    ]:
        kind = "application/merge-patch+json"
        status, answer = api.call(method, path, body, token=token, kind=kind)
        check(f"{mode}: a pod's {method} {path} is {wanted}", status == wanted, answer)
    # Every right there is, as the API itself lists them.
    status, answer = api.call("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", {
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "metadata": {},
        "spec": {"namespace": NS}}, token=token)
    check(f"{mode}: rights are listed", status == 201, answer)
    given = {(tuple(r["resources"]), tuple(r["verbs"])) for r in answer["status"]["resourceRules"]}
    everyone = {("selfsubjectaccessreviews", "selfsubjectrulesreviews"), ("selfsubjectreviews",)}
    own = {(resources, verbs) for resources, verbs in given if resources not in everyone}
    wanted = {(("statefulsets",), ("get",))} | ({(("nodes",), ("get",))} if looks_up else set())
    check(f"{mode}: there is no other right", own == wanted, own)
    if looks_up:
        init_step(api, mode, token)


def init_step(api, mode, token):
    """The pod's own program asks the API for the address, with the pod's token."""
    account = api.at("account")
    os.makedirs(account, exist_ok=True)
    with open(os.path.join(account, "token"), "w") as file:
        file.write(token)
    shutil.copy(api.at("certs/apiserver.crt"), os.path.join(account, "ca.crt"))
    wants = {"host": ["--from=annotation", "--annotation=example.net/sip-address"], "single": ["--from=external"]}
    found = {"host": "198.51.100.9", "single": "203.0.113.9"}[mode]
    file = api.at("address")
    done = subprocess.run([
        SBCCTL, "kube", "address", *wants[mode], "--node=worker", f"--file={file}", "--api-host=127.0.0.1",
        f"--api-port={api.port}", f"--account={account}"], capture_output=True, text=True)
    check(f"{mode}: the init step finds its node's address", done.returncode == 0 and done.stdout.strip() == found,
          done.stdout + done.stderr)


def pods(api):
    found = api.get(f"/api/v1/namespaces/{NS}/pods?labelSelector=app.kubernetes.io/name%3Dsbc")["items"]
    return {pod["metadata"]["name"]: pod for pod in found if not pod["metadata"].get("deletionTimestamp")}


def run_pods(api):
    """In the place of a scheduler and a kubelet: what is pending runs and is ready."""
    base = f"/api/v1/namespaces/{NS}/pods"
    for name, pod in pods(api).items():
        if not pod["status"].get("conditions"):
            api.merge(f"{base}/{name}/status", {"status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True"}]}})


def set_of(api):
    return f"/apis/apps/v1/namespaces/{NS}/statefulsets/voice-sbc"


def evict(api, name):
    return api.call("POST", f"/api/v1/namespaces/{NS}/pods/{name}/eviction", {
        "apiVersion": f"policy/{api.policy}", "kind": "Eviction", "metadata": {"name": name, "namespace": NS}})


def life(api, mode, replicas):
    """The controller makes the pods, scales them and rolls through them, as the chart means it."""
    names = {f"voice-sbc-{n}" for n in range(replicas)}
    made = wait_for(f"{mode}: all pods", lambda: (found := pods(api)).keys() == names and found)
    check(f"{mode}: all pods are there before one is ready", True)
    admitted = made["voice-sbc-0"]["spec"]
    check(f"{mode}: pods are admitted with their account", admitted["serviceAccountName"] == "voice-sbc")
    mounts = [m["mountPath"] for m in admitted["containers"][0]["volumeMounts"]]
    where = "/var/run/secrets/kubernetes.io/serviceaccount"
    check(f"{mode}: the token is where sbcctl looks for it", where in mounts, mounts)
    claims = api.get(f"/api/v1/namespaces/{NS}/persistentvolumeclaims")["items"]
    kept = mode in ("host", "multus", "single")
    check(f"{mode}: a volume for each pod that keeps its state", len(claims) == (replicas if kept else 0), claims)
    run_pods(api)
    wait_for(f"{mode}: the set is ready", lambda: api.get(set_of(api))["status"].get("readyReplicas") == replicas)
    if replicas == 1:
        return
    path = f"/apis/policy/{api.policy}/namespaces/{NS}/poddisruptionbudgets/voice-sbc"
    room = replicas - (replicas // 2 + 1)
    wait_for(f"{mode}: the budget lets {room} go", lambda: api.get(path)["status"].get("disruptionsAllowed") == room)
    check(f"{mode}: the budget keeps a majority", True)
    for name in sorted(names)[:room]:
        status, answer = evict(api, name)
        check(f"{mode}: {name} may be evicted", status == 201, answer)
        wait_for(f"{mode}: {name} is made anew", lambda: pods(api).keys() == names)
    name = sorted(pods(api))[-1]
    status, answer = evict(api, name)
    check(f"{mode}: no eviction beyond it", status == 429, answer)
    run_pods(api)


def scale(api, mode, replicas):
    """`kubectl scale`, and what the hook of a pod that goes asks meanwhile."""
    for wanted in (replicas + 2, replicas):
        status, answer = api.merge(f"{set_of(api)}/scale", {"spec": {"replicas": wanted}})
        check(f"{mode}: scaled to {wanted}", status == 200, answer)
        if api.controllers:
            names = {f"voice-sbc-{n}" for n in range(wanted)}
            wait_for(f"{mode}: {wanted} pods", lambda: (run_pods(api), pods(api).keys() == names)[1])


def upgraded(api, mode):
    """A change rolls through the pods from the last one on, one at a time; the join key stays."""
    secret = f"/api/v1/namespaces/{NS}/secrets/voice-sbc-join"
    key = api.get(secret)
    before = {name: pod["metadata"]["uid"] for name, pod in pods(api).items()} if api.controllers else {}
    done = helm(api, "upgrade", "voice", CHART, "-f", values_of(mode), "--set", "log.level=debug")
    check(f"{mode}: helm upgrade", done.returncode == 0, done.stdout + done.stderr)
    config = api.get(f"/api/v1/namespaces/{NS}/configmaps/voice-sbc")["data"]["sbc.toml"]
    check(f"{mode}: the change is there", 'level = "debug"' in config, config)
    after = api.get(secret)
    check(f"{mode}: the join key is the same", (key or {}).get("data") == (after or {}).get("data"))
    seen = []
    while api.controllers and len(seen) < len(before):
        def next_one():
            now = pods(api)
            new = [name for name, pod in now.items() if pod["metadata"]["uid"] != before[name] and name not in seen]
            return new if now.keys() == before.keys() and new else None
        new = wait_for(f"{mode}: a pod is replaced", next_one)
        check(f"{mode}: {new} is replaced alone", len(new) == 1, new)
        seen += new
        run_pods(api)
    check(f"{mode}: the last ordinal first", seen == sorted(before, reverse=True), seen)


def tested(api, mode):
    """`helm test`: the pod is admitted; a kubelet would run it, here its end is told."""
    name = "voice-sbc-test-call"
    env = dict(os.environ, KUBECONFIG=api.kubeconfig, HOME=api.place)
    running = subprocess.Popen([HELM, "-n", NS, "test", "voice", "--timeout", f"{LONG}s"], env=env,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    path = f"/api/v1/namespaces/{NS}/pods/{name}"
    pod = wait_for(f"{mode}: the pod of helm test", lambda: api.get(path) or running.poll() is not None)
    if pod is not True:
        args = pod["spec"]["containers"][0]["args"]
        service = args[1].removeprefix("--via=").split(".")[0]
        check(f"{mode}: it calls by a Service that is there",
              api.get(f"/api/v1/namespaces/{NS}/services/{service}") is not None, args)
        api.merge(f"{path}/status", {"status": {"phase": "Succeeded"}})
    out, _ = running.communicate(timeout=LONG)
    check(f"{mode}: helm test", running.returncode == 0, out)


def values_of(mode):
    return os.path.join(CHART, "ci", f"{mode}-values.yaml")


def left(api):
    """What of ours is still there after the end."""
    found = []
    for path in [f"/apis/apps/v1/namespaces/{NS}/statefulsets", f"/api/v1/namespaces/{NS}/services",
                 f"/api/v1/namespaces/{NS}/configmaps", f"/api/v1/namespaces/{NS}/serviceaccounts",
                 f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NS}/roles",
                 f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NS}/rolebindings",
                 "/apis/rbac.authorization.k8s.io/v1/clusterroles", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
                 f"/apis/networking.k8s.io/v1/namespaces/{NS}/networkpolicies",
                 f"/apis/monitoring.coreos.com/v1/namespaces/{NS}/servicemonitors"]:
        names = [item["metadata"]["name"] for item in api.get(path)["items"]]
        found += [f"{path}/{name}" for name in names if "voice-sbc" in name]
    return found


def one_mode(api, mode):
    done = helm(api, "install", "voice", CHART, "-f", values_of(mode))
    check(f"{mode}: helm install", done.returncode == 0, done.stdout + done.stderr)
    check(f"{mode}: without a warning", "warning" not in done.stderr.lower(), done.stderr)
    replicas = api.get(set_of(api))["spec"]["replicas"]
    rights(api, mode)
    if api.controllers:
        life(api, mode, replicas)
    if replicas > 1:
        scale(api, mode, replicas)
    if mode != "host":
        tested(api, mode)
    upgraded(api, mode)
    done = helm(api, "uninstall", "voice")
    check(f"{mode}: helm uninstall", done.returncode == 0, done.stdout + done.stderr)
    if api.controllers:
        wait_for(f"{mode}: no pod is left", lambda: not pods(api))
    check(f"{mode}: nothing is left behind", left(api) == [], left(api))
    for kind in ("persistentvolumeclaims", "secrets"):
        for item in api.get(f"/api/v1/namespaces/{NS}/{kind}")["items"]:
            if "voice-sbc" in item["metadata"]["name"]:
                api.call("DELETE", f"/api/v1/namespaces/{NS}/{kind}/{item['metadata']['name']}")


def main():
    place = tempfile.mkdtemp(prefix="sbc-api-")
    api = Api(place)
    try:
        api.begin()
        version = api.get("/version")["gitVersion"]
        print(f"Kubernetes {version}, {'with' if api.controllers else 'without'} controllers", flush=True)
        surroundings(api)
        for mode in MODES:
            one_mode(api, mode)
        print(f"{checks} checks")
    except BaseException:
        for name, _ in api.running:
            print(f"--- {name}:\n{open(api.at(name + '.log')).read()[-6000:]}")
        raise
    finally:
        api.stop()
        shutil.rmtree(place, ignore_errors=True)


main()
