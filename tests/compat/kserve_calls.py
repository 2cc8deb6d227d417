"""What the KServe Python client gets from a live service, as JSON on standard output.

A process of its own: KServe and Triton's client register the same protobuf names, which one process cannot have twice.
Arguments: the HTTP address, the gRPC address, and the rows as JSON.
"""

import asyncio
import json
import sys
from typing import Any

import httpx
import kserve
import numpy as np
from kserve.protocol.infer_type import InferInput, InferRequest, RequestedOutput


async def v1(url: str, rows: list[Any]) -> dict[str, Any]:
    client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v1"))
    found: dict[str, Any] = {"ready": await client.is_model_ready(url, "digits")}
    found["predictions"] = (await client.infer(url, {"instances": rows}, model_name="digits"))["predictions"]
    try:
        await client.infer(url, {"instances": rows}, model_name="nope")
    except httpx.HTTPStatusError as error:
        found["unknown"] = [error.response.status_code, str(error).partition(",")[0]]
    await client.close()
    return found


def request(rows: list[Any], *, binary: bool, outputs: list[str]) -> InferRequest:
    tensor = InferInput("instances", list(np.shape(rows)), "FP32")
    tensor.set_data_from_numpy(np.asarray(rows, np.float32), binary_data=binary)
    wanted = [RequestedOutput(name, {"binary_data": binary}) for name in outputs]
    return InferRequest("digits", [tensor], request_outputs=wanted, parameters={"threshold": 0.5})


def outputs_of(response: Any) -> dict[str, Any]:
    return {output.name: output.as_numpy().tolist() for output in response.outputs}


async def v2(url: str, rows: list[Any]) -> dict[str, Any]:
    client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2"))
    found: dict[str, Any] = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model_ready": await client.is_model_ready(url, "digits"),
        "unknown_ready": await client.is_model_ready(url, "nope"),
    }
    for name, binary in (("json", False), ("binary", True)):
        asked = request(rows, binary=binary, outputs=["score", "is_anomaly", "latent"])
        response = await client.infer(url, asked, model_name="digits")
        found[name] = {**outputs_of(response), "model": response.model_name}
    try:
        await client.infer(url, request(rows, binary=True, outputs=["x"]), model_name="digits")
    except httpx.HTTPStatusError as error:
        found["wrong_output"] = str(error)
    await client.close()
    return found


async def grpc(address: str, rows: list[Any]) -> dict[str, Any]:
    client = kserve.InferenceGRPCClient(address)
    asked = request(rows, binary=True, outputs=["score", "is_anomaly", "latent"])
    asked.parameters = {"threshold": "0.5"}  # the client sends no floats over gRPC
    return {
        "live": await client.is_server_live(),
        "ready": await client.is_server_ready(),
        "model_ready": await client.is_model_ready("digits"),
        **outputs_of(await client.infer(asked)),
    }


async def main(url: str, address: str, rows: list[Any]) -> None:
    found = {"v1": await v1(url, rows), "v2": await v2(url, rows), "grpc": await grpc(address, rows)}
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
