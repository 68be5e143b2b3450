#!/usr/bin/env python3
"""Writes a CycloneDX 1.5 bill of materials: sbom.py SOURCE ROOTFS EPOCH

Every crate of Cargo.lock that the two binaries are built of, with checksum and licence, and every
shared library of the image with its Debian package and SHA-256. Same input, same bytes.
"""

import datetime
import hashlib
import json
import os
import subprocess
import sys

source, rootfs, epoch = sys.argv[1], sys.argv[2], int(sys.argv[3])


def run(*words):
    done = subprocess.run(words, capture_output=True, text=True, cwd=source)
    if done.returncode:
        sys.exit(f"sbom: {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def crates():
    # Of this platform: what only others need was not even fetched.
    host = next(l.split()[1] for l in run("rustc", "-vV").splitlines() if l.startswith("host: "))
    words = ("--format-version=1", "--locked", "--offline", "--filter-platform", host)
    meta = json.loads(run("cargo", "metadata", *words))
    packages = {p["id"]: p for p in meta["packages"]}
    nodes = {n["id"]: n for n in meta["resolve"]["nodes"]}
    lock = {}
    for block in open(os.path.join(source, "Cargo.lock")).read().split("[[package]]")[1:]:
        fields = dict(l.split(" = ", 1) for l in block.splitlines() if " = " in l)
        if "checksum" in fields:
            lock[json.loads(fields["name"]), json.loads(fields["version"])] = json.loads(fields["checksum"])
    start = [p["id"] for p in meta["packages"] if p["name"] == "sbc-node"]
    seen, todo = set(start), list(start)
    while todo:
        for dep in nodes[todo.pop()]["deps"]:
            # What only tests and build scripts use is not in the image.
            if any(kind["kind"] is None for kind in dep["dep_kinds"]) and dep["pkg"] not in seen:
                seen.add(dep["pkg"])
                todo.append(dep["pkg"])
    for package in sorted((packages[i] for i in seen), key=lambda p: (p["name"], p["version"])):
        name, version = package["name"], package["version"]
        entry = {"type": "library", "name": name, "version": version, "purl": f"pkg:cargo/{name}@{version}",
                 "bom-ref": f"pkg:cargo/{name}@{version}"}
        if package.get("license"):
            entry["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
        if (name, version) in lock:
            entry["hashes"] = [{"alg": "SHA-256", "content": lock[name, version]}]
        yield entry


def owner(path):
    for name in (path, path.removeprefix("/usr"), "/usr" + path):
        done = subprocess.run(["dpkg", "-S", name], capture_output=True, text=True)
        if done.returncode == 0:
            package = done.stdout.split(": ")[0].split(":")[0]
            version = run("dpkg-query", "-W", "-f", "${Version}", package)
            return package, version
    return None, None


def libraries():
    for folder, _, files in sorted(os.walk(rootfs)):
        for file in sorted(files):
            path = os.path.join(folder, file)
            inside = "/" + os.path.relpath(path, rootfs)
            if ".so" not in file and not inside.startswith("/usr/bin/"):
                continue
            digest = hashlib.sha256(open(path, "rb").read()).hexdigest()
            entry = {"type": "file", "name": inside, "bom-ref": f"file:{inside}",
                     "hashes": [{"alg": "SHA-256", "content": digest}]}
            if ".so" in file:
                package, version = owner(os.path.realpath(inside))
                if package:
                    entry["version"] = version
                    entry["purl"] = f"pkg:deb/debian/{package}@{version}"
            yield entry


version = next(l.split('"')[1] for l in open(os.path.join(source, "Cargo.toml")) if l.startswith("version = "))
made = datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
json.dump({
    "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
    "metadata": {"timestamp": made, "component": {"type": "application", "name": "sbc", "version": version,
                                                  "licenses": [{"expression": "GPL-3.0-or-later"}]}},
    "components": list(crates()) + list(libraries()),
}, sys.stdout, indent=1, sort_keys=True)
print()
