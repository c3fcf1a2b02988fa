"""The documents in a file: one JSON object a line, or YAML as `kubectl get -o yaml` writes it. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, cast

from cnvnet.cni.errors import InvalidConfig


class Document(NamedTuple):
    """An object, and where it stands, for messages."""

    content: dict[str, Any]
    where: str

    @property
    def kind(self) -> str:
        """With its group, such as "kubeovn.io/IP"; "" for what is no object of Kubernetes."""
        group = str(self.content.get("apiVersion", "")).partition("/")[0]
        return f"{group}/{self.content['kind']}" if self.content.get("kind") else ""


def parse(text: str, where: str) -> list[Document]:
    """All objects of a file, those of lists among them. Raises InvalidConfig naming the line."""
    found = _lines(text, where)
    return list(_flat(_yaml(text, where) if found is None else found))


def _lines(text: str, where: str) -> list[Document] | None:
    """The objects of a file that has one in each line; None for another one."""
    made: list[Document] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            content: object = json.loads(line)
        except (ValueError, RecursionError):
            if not made:
                return None
            raise InvalidConfig(f"{where}:{number}: no JSON object like the lines before it") from None
        if not isinstance(content, dict):
            return None
        made.append(Document(cast("dict[str, Any]", content), f"{where}:{number}"))
    return made


def _yaml(text: str, where: str) -> Iterable[Document]:
    import yaml

    try:
        loaded = list(yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        plain: list[object] = json.loads(json.dumps(loaded, default=str))
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise InvalidConfig(
            f"{where}{line}: neither JSON nor YAML: {getattr(e, 'problem', e) or 'unreadable'}"
        ) from None
    except (ValueError, TypeError, RecursionError):
        raise InvalidConfig(f"{where}: YAML that cannot be JSON") from None
    for number, content in enumerate(plain, 1):
        if isinstance(content, dict):
            yield Document(cast("dict[str, Any]", content), f"{where} (document {number})")
        elif content is not None:
            raise InvalidConfig(f"{where}: document {number} is no object")


def _flat(found: Iterable[Document]) -> Iterator[Document]:
    for document in found:
        items = document.content.get("items")
        if not (document.kind.endswith("List") and isinstance(items, list)):
            yield document
            continue
        for number, item in enumerate(cast("list[object]", items), 1):
            if not isinstance(item, dict):
                raise InvalidConfig(f"{document.where}: items[{number - 1}] is no object")
            content = cast("dict[str, Any]", item)
            name = (content.get("metadata") or {}).get("name", number)
            yield Document(content, f"{document.where}: {content.get('kind', 'item')} {name}")
