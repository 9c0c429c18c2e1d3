"""Renders docs/protocol.md: the protos with their comments, whole conversations, and the table of errors."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from cellstream.api.status import CODES
from cellstream.errors import BY_REASON

ROOT = Path(__file__).resolve().parent.parent

# Field numbers of descriptor.proto, by which comments are found.
MESSAGES, ENUMS, SERVICES = 4, 5, 6
FIELDS, VALUES, METHODS = 2, 2, 2
SYNTAX = 12

Comments = dict[tuple[int, ...], str]


def render(files: tuple[str, ...]) -> str:
    """The page, Markdown.

    Args:
        files: The protos' paths below `protos/`, in the order of the page.
    """
    parts = [(ROOT / "protos" / "conversations.md").read_text(encoding="utf-8"), _errors()]
    parts += [_file(file) for file in _parse(files)]
    return "\n".join(parts)


def _parse(files: tuple[str, ...]) -> list[FileDescriptorProto]:
    with tempfile.NamedTemporaryFile() as output:
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", "--include_source_info"]
        subprocess.run(
            [*command, f"--descriptor_set_out={output.name}", *files], check=True, cwd=ROOT / "protos"
        )
        return list(FileDescriptorSet.FromString(Path(output.name).read_bytes()).file)


def _errors() -> str:
    rows = [
        f"| `{reason}` | {code.name} | {_first_line(BY_REASON[reason])} |"
        for code in sorted(set(CODES.values()), key=list(CODES.values()).index)
        for reason, its_code in CODES.items()
        if its_code is code
    ]
    return "\n".join(
        [
            "## Errors",
            "",
            "Every error carries a `google.rpc.ErrorInfo` (domain `cellstream`) with its reason and the",
            "numbers behind it, in-band (`Opened.error`, `Result.error`, `Event.error`) and as an rpc's",
            "status alike. What waiting can mend carries a `RetryInfo`. What the transport refuses by itself",
            "(*On the wire*) has a code and a text, and no details.",
            "",
            "| reason | code | what happened |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or "").split("\n")[0]


def _file(file: FileDescriptorProto) -> str:
    comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
    lines = [f"## {file.name}", "", *_comment(comments, (SYNTAX,), code=True)]
    for number, service in enumerate(file.service):
        lines += _service(service, comments, (SERVICES, number))
    for number, message in enumerate(file.message_type):
        lines += _message(message, comments, (MESSAGES, number))
    for number, enum in enumerate(file.enum_type):
        lines += _enum(enum, comments, (ENUMS, number))
    return "\n".join(lines)


def _service(service: ServiceDescriptorProto, comments: Comments, path: tuple[int, ...]) -> Iterator[str]:
    yield from (f"### service {service.name}", "", *_comment(comments, path))
    for number, method in enumerate(service.method):
        asks = f"{'stream ' * method.client_streaming}{_link(method.input_type)}"
        answers = f"{'stream ' * method.server_streaming}{_link(method.output_type)}"
        said = " ".join(_comment(comments, (*path, METHODS, number)))
        yield f"- **{method.name}** ({asks}) → {answers}. {said}"
    yield ""


def _message(message: DescriptorProto, comments: Comments, path: tuple[int, ...]) -> Iterator[str]:
    yield from (f"### {message.name}", "", *_comment(comments, path))
    if not message.field:
        return
    yield from ("| field | | type | |", "|---|---|---|---|")
    nested = {f".cellstream.v1.{message.name}.{entry.name}": entry for entry in message.nested_type}
    for number, field in enumerate(message.field):
        said = " ".join(_comment(comments, (*path, FIELDS, number))).strip()
        yield f"| {field.name} | {field.number} | {_type(field, nested)} | {said} |"
    yield ""


def _enum(enum: EnumDescriptorProto, comments: Comments, path: tuple[int, ...]) -> Iterator[str]:
    yield from (f"### {enum.name}", "", *_comment(comments, path), "| value | | |", "|---|---|---|")
    for number, value in enumerate(enum.value):
        said = " ".join(_comment(comments, (*path, VALUES, number))).strip()
        yield f"| {value.name} | {value.number} | {said} |"
    yield ""


def _type(field: FieldDescriptorProto, nested: dict[str, DescriptorProto]) -> str:
    entry = nested.get(field.type_name)
    if entry is not None:
        key, value = entry.field
        return f"map of {_type(key, {})} to {_type(value, {})}"
    name = _link(field.type_name) or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    if field.proto3_optional:
        return f"optional {name}"
    return f"one of {name}" if field.HasField("oneof_index") else name


def _link(type_name: str) -> str:
    name = type_name.removeprefix(".")
    if not name.startswith("cellstream.v1."):
        return name
    name = name.removeprefix("cellstream.v1.")
    return f"[{name}](#{name.lower()})"


def _comment(comments: Comments, path: tuple[int, ...], *, code: bool = False) -> Iterator[str]:
    """The comment at a place; indented blocks of a file's comment become code."""
    text = re.sub(r"(?m)^ ", "", comments.get(path, "")).rstrip("\n")
    if not text:
        return
    if code:
        text = re.sub(r"(?m)(?:^  .*(?:\n|$))+", lambda block: f"```\n{block.group().rstrip()}\n```\n", text)
    yield from (*text.split("\n"), "")
