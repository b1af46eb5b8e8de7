"""What api/guide.md should tell of api/openapi.yaml, and does not: one line each. An example that its own schema refuses, too.
The child process of t/api/guide.t: it knows nothing of how api/guide writes."""

import re
import sys

import yaml
from jsonschema import Draft202012Validator

spec = yaml.safe_load(open(sys.argv[1]))
guide = open(sys.argv[2]).read().replace("\\|", "|")  # as a reader of Markdown sees it
sections = {m[1]: m[2] for m in re.finditer(r"^### (.*)\n((?:(?!^##).*\n)*)", guide, re.M)}
LIMITS = ("minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems", "pattern")


def resolve(node):
    while isinstance(node, dict) and "$ref" in node:
        target = spec
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = target
    return node


def facts(node, names):
    """Words that have to stand in a section: fields, limits, values; of a named type its name, and what it refers to."""
    if not isinstance(node, dict):
        return
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[1]
        if name == "Page":
            return
        names.add(name)
        yield f"[{name}]"
        return
    for name, field in node.get("properties", {}).items():
        if name != "data":
            yield f"{name}`"
        yield from facts(field, names)
    for limit in LIMITS:
        if limit in node and not (limit == "minLength" and node[limit] == 1):
            yield str(node[limit])
    for one in node.get("enum", []):
        yield "null" if one is None else str(one)
    for inner in ("items", "additionalProperties"):
        yield from facts(node.get(inner), names)
    for choice in ("oneOf", "anyOf", "allOf"):
        for one in node.get(choice, []):
            yield from facts(one, names)


def tell(where, text, wanted):
    for word in wanted:
        if word not in text:
            print(f"{where}: {word}")


def check_example(where, media):
    schema = {"allOf": [media["schema"]], "components": spec["components"]}
    found = [media["example"]] if "example" in media else [e["value"] for e in media.get("examples", {}).values()]
    for one in found:
        for error in Draft202012Validator(schema).iter_errors(one):
            print(f"{where}: its example is wrong: {error.message}")
    return len(found)


def check(path, method, operation, shared, names):
    where = operation["operationId"]
    text = sections.get(operation["summary"], "")
    wanted = [f"`{method.upper()} /api/v1{path}`", *operation.get("x-columns", []), *operation.get("x-problems", [])]
    wanted += [" ".join(operation.get("description", "").split())[:40]]
    for parameter in map(resolve, shared + operation.get("parameters", [])):
        wanted += [f"`{parameter['name']}`", *facts(parameter["schema"], names)]
    examples = 0
    body = resolve(operation.get("requestBody", {}))
    for media in body.get("content", {}).values():
        wanted += facts(media["schema"], names)
        examples += check_example(where, media)
    for status, response in operation["responses"].items():
        if status != "default":
            wanted.append(f"`{status}`")
            media = resolve(response).get("content", {}).get("application/json", {})
            wanted += facts(media.get("schema"), names)
            examples += check_example(where, media) if media else 0
    tell(where, " ".join(text.split()), wanted)
    if examples and "```" not in text:
        print(f"{where}: its example")


names, done = set(), set()
for path, item in spec["paths"].items():
    for method in ("get", "post", "put", "patch", "delete"):
        if method in item:
            check(path, method, item[method], item.get("parameters", []), names)
while names - done:
    for name in sorted(names - done):
        done.add(name)
        tell(name, " ".join(sections.get(name, "").split()), facts(spec["components"]["schemas"][name], names))
codes = guide[guide.index("\n## Codes\n"):]
tell("codes", codes, [f"| `{code}` | {', '.join(map(str, p['status']))} |" for code, p in spec["components"]["x-problems"].items()])
