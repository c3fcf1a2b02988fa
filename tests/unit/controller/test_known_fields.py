"""The controller knows all fields of the definitions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from cnvnet.controller.known_fields import EACH, IP_RESERVATION, VM_LEASE, unknown_field

DEFINITIONS = Path(__file__).parents[3] / "conf/kustomize/base/crds"


def fields(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a schema of a definition names, in the form of `known_fields`."""
    if schema["type"] == "array":
        inner = fields(schema["items"])
        return {EACH: inner} if inner is not None else None
    if "additionalProperties" in schema:
        return {EACH: fields(schema["additionalProperties"])}
    if "properties" in schema:
        return {key: fields(each) for key, each in schema["properties"].items()}
    return None


def paths(known: Mapping[str, Any] | None, path: str = "") -> set[str]:
    """All of them, each with what it is in."""
    found = {f"{path}.{key}" for key in known or {}}
    for key, inner in (known or {}).items():
        found |= paths(inner, f"{path}.{key}")
    # Where the values of a map have no fields, its own keys are none either.
    return {each for each in found if not each.endswith(f".{EACH}")}


@pytest.mark.parametrize(("name", "known"), [("vmleases", VM_LEASE), ("ipreservations", IP_RESERVATION)])
def test_the_fields_of_a_definition_are_known(name: str, known: Mapping[str, Any]) -> None:
    document = yaml.safe_load((DEFINITIONS / f"{name}.yaml").read_text())
    (version,) = document["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]["properties"]
    defined = {part: fields(schema[part]) for part in ("spec", "status") if part in schema}
    assert paths(defined) - paths(known) == set()


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({}, ""),
        ({"spec": {"ips": ["10.0.0.5"], "routers": {"10.0.0.1": "0a:58:0a:00:00:01"}}}, ""),
        ({"spec": {"pinned": True}}, "spec.pinned"),
        ({"spec": {"cooling": [{"ip": "10.0.0.5", "why": "x"}]}}, "spec.cooling[].why"),
        (
            {"status": {"holders": {"a.eth0": {"node": "n1", "fenced": True}}}},
            "status.holders.a.eth0.fenced",
        ),
        ({"status": {"conditions": []}}, "status.conditions"),
        # Of every object.
        ({"metadata": {"anything": 1}, "kind": "VMLease"}, ""),
    ],
)
def test_the_first_unknown_field_is_named(document: dict[str, Any], path: str) -> None:
    assert unknown_field(document, VM_LEASE) == path
