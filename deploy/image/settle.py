#!/usr/bin/env python3
"""Takes what differs from build to build out of an image's configuration: settle.py FOLDER

FOLDER holds an image of Docker's format as `buildah push IMAGE dir:FOLDER` writes it. The builder's own
container and host name go; the image keeps its layers, and gets the same id wherever it is built.
"""

import hashlib
import json
import os
import sys

folder = sys.argv[1]
place = os.path.join(folder, "manifest.json")
manifest = json.load(open(place))
former = os.path.join(folder, manifest["config"]["digest"].removeprefix("sha256:"))
config = json.load(open(former))
config.pop("container", None)
for part in ("config", "container_config"):
    config.get(part, {}).pop("Hostname", None)
text = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
digest = hashlib.sha256(text).hexdigest()
os.remove(former)
with open(os.path.join(folder, digest), "wb") as file:
    file.write(text)
manifest["config"].update(digest=f"sha256:{digest}", size=len(text))
with open(place, "w") as file:
    json.dump(manifest, file, sort_keys=True, separators=(",", ":"))
