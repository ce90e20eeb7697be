"""The JSON Schema of an experiment file, by which editors complete, explain and check it.

python -m lib.config.schema > configs/schema.json
"""

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from lib.competitions import NAMES, options_of
from lib.config.sections import Experiment


def schema() -> dict[str, Any]:
    """Return the schema: every section with its descriptions, and the options of each competition where it is named."""
    found = _plain(Experiment.model_json_schema())
    found["properties"]["competition"]["enum"] = list(NAMES)
    parts = found.setdefault("$defs", {})
    cases = []
    for name in NAMES:
        options = _plain(options_of(name).model_json_schema(ref_template=f"#/$defs/{name}.{{model}}"))
        parts |= {f"{name}.{inner}": part for inner, part in options.pop("$defs", {}).items()}
        parts[f"{name}.Options"] = options
        of = {"properties": {"data": {"properties": {"options": {"$ref": f"#/$defs/{name}.Options"}}}}}
        cases.append({"if": {"properties": {"competition": {"const": name}}}, "then": of})
    return {"$schema": GenerateJsonSchema.schema_dialect, "title": "Experiment", **found, "allOf": cases}


def text() -> str:
    """Return the schema as ``configs/schema.json`` holds it."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def _plain(node: Any, names: bool = False) -> Any:
    """Leave out titles, which repeat keys, and line breaks of docstrings; ``names``: the keys are names of fields."""
    if isinstance(node, list):
        return [_plain(part) for part in node]
    if isinstance(node, str):
        return " ".join(node.split())
    if not isinstance(node, dict):
        return node
    return {key: _plain(part, key in ("properties", "$defs")) for key, part in node.items() if names or key != "title"}


if __name__ == "__main__":
    print(text(), end="")
