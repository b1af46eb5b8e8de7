"""Checks answers against api/openapi.yaml: one JSON object a line in (method, path, status, type, body), one line out:
"ok", or what is wrong. The child process of Affiliated::Api."""

import json
import re
import sys

import yaml
from jsonschema import Draft202012Validator

spec = yaml.safe_load(open(sys.argv[1]))
PREFIX = "/api/v1"
validators = {}


def resolve(node):
    while isinstance(node, dict) and "$ref" in node:
        target = spec
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = target
    return node


def pattern(path):
    return re.compile("".join("[^/]+" if s.startswith("{") else re.escape(s) for s in re.split(r"({.*?})", path)))


# Literals before parameters, as the router has them.
paths = sorted(spec["paths"], key=lambda p: [s.startswith("{") for s in p.split("/")])
patterns = [(pattern(p), spec["paths"][p]) for p in paths]


def find(method, path):
    for compiled, item in patterns:
        if compiled.fullmatch(path) and method in item:
            return item[method]
    return None


def validator(schema):
    name = json.dumps(schema, sort_keys=True)
    if name not in validators:
        validators[name] = Draft202012Validator({"allOf": [schema], "components": spec["components"]})
    return validators[name]


def check(answer):
    method = "get" if answer["method"] == "HEAD" else answer["method"].lower()
    status = str(answer["status"])
    path = answer["path"].split("?")[0].removeprefix(PREFIX)
    operation = find(method, path)

    if operation is None:
        if status not in ("400", "404", "405", "413", "414", "429", "431", "503"):
            return f"{status} for what is not described"
        response = spec["components"]["responses"]["Problem"]
    elif status in operation["responses"]:
        response = resolve(operation["responses"][status])
    elif int(status) >= 400:
        response = resolve(operation["responses"]["default"])
    else:
        return f"status {status} is not described"

    content = response.get("content")
    kind = answer["type"].split(";")[0]
    if answer["method"] == "HEAD":
        return "ok"
    if not content:
        return "ok" if answer["body"] == "" else "a body where none is described"
    if kind not in content:
        return f"type {kind!r} is not described"
    if kind != "application/json" and kind != "application/problem+json" and "x-columns" not in operation:
        return "ok"
    if kind == "text/csv":
        header = answer["body"].split("\r\n")[0]
        wanted = ",".join(operation["x-columns"])
        return "ok" if header == wanted else f"header {header!r}, not {wanted!r}"
    try:
        body = json.loads(answer["body"])
    except ValueError as error:
        return f"no JSON: {error}"
    errors = sorted(validator(content[kind]["schema"]).iter_errors(body), key=lambda e: list(map(str, e.absolute_path)))
    if errors:
        return "; ".join(f"/{'/'.join(map(str, e.absolute_path))}: {e.message}" for e in errors[:5])[:2000].replace("\n", " ")
    return "ok"


for line in sys.stdin:
    print(check(json.loads(line)), flush=True)
