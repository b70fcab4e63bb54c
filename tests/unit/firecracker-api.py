#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
#
# firecracker-api.py [YAML] - checks that firecracker-api.txt, by which the fake Firecracker judges what it is asked, says
# what Firecracker's published interface (its swagger file) does. Exits with 77 where that is not at hand.
#
# It reads the YAML by its indentation, which is regular, so that nothing has to be installed.
import os
import re
import sys


def blocks(lines, indent):
    """The keys at an indentation with the lines beneath each."""
    found, name = {}, None
    for line in lines:
        m = re.match(r" {%d}([^ #\-][^:]*):" % indent, line)
        if m:
            name = m.group(1)
            found[name] = []
        elif name is not None:
            found[name].append(line)
    return found


def fields(definition):
    parts = blocks(definition, 4)
    required = [l.strip()[2:] for l in parts.get("required", []) if l.strip().startswith("- ")]
    return sorted(f + ("!" if f in required else "") for f in blocks(parts.get("properties", []), 6))


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    yaml = sys.argv[1] if len(sys.argv) > 1 else here + "/../../../shared/firecracker/firecracker-1.16.1.yaml"
    if not os.path.exists(yaml):
        print("no %s" % os.path.normpath(yaml))
        return 77
    lines = [l for l in open(yaml).read().split("\n") if l.strip()]
    top = blocks(lines, 0)
    definitions = blocks(top["definitions"], 2)
    paths = blocks(top["paths"], 2)
    status = 0
    for line in open(here + "/firecracker-api.txt"):
        if line.startswith("#"):
            continue
        method, path = line.split()[:2]
        call = blocks(paths[path], 4)[method.lower()]
        parameters = blocks(call, 6).get("parameters", [])
        body = re.search(r"in: body.*?definitions/(\w+)", "\n".join(parameters), re.S)
        published = " ".join([method, path] + (fields(definitions[body.group(1)]) if body else []))
        if published != line.strip():
            print("- %s\n+ %s" % (line.strip(), published))
            status = 1
    return status


sys.exit(main())
