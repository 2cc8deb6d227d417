"""The table in docs/protocols.md, the protos, and what is served are the same."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from service.api.grpc import health
from service.api.grpc.messages import DESCRIPTORS, descriptor_pool
from service.api.grpc.server import SERVICES
from service.api.oip import _ROUTES
from tests.compat.conftest import grpc_url
from tests.live import LiveService

ENUM, INT32 = FieldDescriptor.TYPE_ENUM, FieldDescriptor.TYPE_INT32
ROOT = Path(__file__).parents[2]
GRPC = ROOT / "service" / "api" / "grpc"
PAGE = (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("<!-- protocols -->")[2].partition("<!-- /protocols -->")[0]
METHODS = {
    f"{each.service.rpartition('.')[2]}.{method.name}": each.service for each in SERVICES for method in each.methods
} | {"Health.Check": health.SERVICE, "Health.Watch": health.SERVICE}


def listed(over: str) -> tuple[str, str]:
    """The cells of what is supported, and of what is not, over REST or gRPC."""
    rows = [[cell.strip() for cell in line.split("|")] for line in TABLE.splitlines()]
    cells = [row for row in rows if len(row) > 4 and row[2] == over]
    return " ".join(row[3] for row in cells), " ".join(row[4] for row in cells)


def routes() -> list[tuple[str, str]]:
    return re.findall(r"`(GET|POST) (/[^`]+)`", listed("REST")[0])


def test_listed_routes_are_served(fakes: LiveService) -> None:
    """Each route of the table is one, with its method; also below a version or a label where the table says so."""
    assert len(routes()) == 17
    for method, path in routes():
        asked = path.replace("{model}", "pumps")
        versioned = asked.replace("/models/pumps", "/models/pumps/versions/1")
        for each in {asked, versioned} if "/models/{model}" in path and "repository" not in path else {asked}:
            response = fakes.http.request(method, each, content=b"")
            assert response.status_code in (200, 400, 409), each
            assert "Malformed request" not in response.text, each


def test_served_routes_are_listed() -> None:
    """Every route of the Open Inference Protocol matches one of the table."""
    paths = [(method, path.replace("{model}", "m")) for method, path in routes()]
    for route in _ROUTES:
        assert any(method == route.method and route.pattern.fullmatch(path) for method, path in paths), route.pattern


def test_listed_methods_are_served(fakes: LiveService) -> None:
    """The gRPC methods of the table are those of the service; what is listed as missing is missing."""
    supported, missing = listed("gRPC")
    assert set(re.findall(r"`([A-Za-z]+\.[A-Za-z]+)`", supported)) == set(METHODS)
    with grpc.insecure_channel(grpc_url(fakes)) as channel:
        for name, service in METHODS.items():
            assert code_of(channel, f"/{service}/{name.partition('.')[2]}") != "UNIMPLEMENTED"
        for name in re.findall(r"`([A-Za-z]+)`", missing):
            for service in set(METHODS.values()):
                assert code_of(channel, f"/{service}/{name}") == "UNIMPLEMENTED"


def code_of(channel: Any, method: str) -> str:
    try:
        channel.unary_unary(method)(b"", timeout=0.5)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def test_settings_that_the_page_names_exist() -> None:
    """docs/protocols.md names settings by their variables."""
    from service.settings import ENV_PREFIX, Settings

    named = {name.lower() for name in re.findall(rf"{ENV_PREFIX}([A-Z0-9_]+)", PAGE)}
    assert named
    assert named <= set(Settings.model_fields)


def test_outputs_that_the_page_names_exist(fakes: LiveService) -> None:
    """Its table of signatures is that of a model."""
    table = PAGE.partition("| Signature | Outputs |")[2].partition("\n## ")[0]
    rows = [re.findall(r"`([a-z_]+)`", cell) for line in table.splitlines()[2:] for cell in line.split("|")[1:3]]
    signatures = fakes.get("/v1/models/pumps/metadata").json()["metadata"]["signature_def"]["signature_def"]
    assert {name for names in rows[::2] for name in names} == set(signatures)
    for names, outputs in zip(rows[::2], rows[1::2], strict=True):
        assert all(set(signatures[name]["outputs"]) == set(outputs) for name in names)


def described() -> FileDescriptorSet:
    return FileDescriptorSet.FromString((GRPC / DESCRIPTORS).read_bytes())


def test_descriptors_are_those_of_the_protos(tmp_path: Path) -> None:
    """Nobody changed a .proto file and forgot the descriptors."""
    made = tmp_path / "made.pb"
    protos = sorted(path.name for path in (GRPC / "protos").glob("*.proto"))
    # In a process of its own: the compiler brings a second protobuf, which does not bear that of TensorFlow beside it.
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{GRPC / 'protos'}", *protos]
    subprocess.run([*command, "--include_imports", f"--descriptor_set_out={made}"], check=True, timeout=60)
    fresh = {file.name: file for file in FileDescriptorSet.FromString(made.read_bytes()).file}
    assert set(fresh) == {file.name for file in described().file}
    ours = [file for file in described().file if not file.name.startswith("google/")]
    assert all(fresh[file.name] == file for file in ours)


def fields_of(message: Any) -> dict[int, tuple[str, int, bool]]:
    return {field.number: (field.name, field.type, field.is_repeated) for field in message.fields}


def assert_compatible(ours: str, theirs: Any) -> None:
    """Every field of our message has its number, name and type in theirs, and so have those of nested messages."""
    message = descriptor_pool().FindMessageTypeByName(ours)
    known = fields_of(theirs)
    for number, field in fields_of(message).items():
        name, kind, repeated = known[number]
        kinds = {kind, INT32} if kind == ENUM else {kind}  # the same on the wire
        assert (field[0], field[2]) == (name, repeated)
        assert field[1] in kinds, f"{ours}.{name}"
    for nested in message.nested_types:
        assert_compatible(nested.full_name, theirs.nested_types_by_name[nested.name])


def test_open_inference_messages_are_the_published_ones() -> None:
    """As Triton's client was generated from them."""
    theirs = pytest.importorskip("tritonclient.grpc.service_pb2").DESCRIPTOR.message_types_by_name
    file: FileDescriptorProto = next(file for file in described().file if file.package == "inference")
    assert len(file.message_type) > 15
    for message in file.message_type:
        assert_compatible(f"inference.{message.name}", theirs[message.name])


@pytest.mark.tf
def test_tensorflow_messages_are_the_published_ones() -> None:
    """As TensorFlow and ``tensorflow-serving-api`` have them."""
    pytest.importorskip("tensorflow_serving.apis.predict_pb2")
    from google.protobuf import descriptor_pool as default_pool
    from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2  # noqa: F401 - registers them

    for file in described().file:
        if file.package in ("tensorflow", "tensorflow.serving"):
            for message in file.message_type:
                name = f"{file.package}.{message.name}"
                assert_compatible(name, default_pool.Default().FindMessageTypeByName(name))
            for enum in file.enum_type:
                theirs = default_pool.Default().FindEnumTypeByName(f"{file.package}.{enum.name}").values_by_name
                assert all(theirs[value.name].number == value.number for value in enum.value)
