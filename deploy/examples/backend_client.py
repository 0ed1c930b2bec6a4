"""A whole backend client: python backend_client.py HOST:PORT GUARD_HOST:PORT CA.pem CLIENT.pem CLIENT.key"""

import sys

import grpc
from grpc_status import rpc_status

from bastide.model_server.v1 import inference_pb2, inference_pb2_grpc
from bastide.policy_guard.v1 import identity_pb2, identity_pb2_grpc
from bastide.types.v1 import content_pb2

server, guard, *files = sys.argv[1:]
ca, certificate, key = (open(name, "rb").read() for name in files)
tls = grpc.ssl_channel_credentials(ca, key, certificate)


def channel(address, service):
    return grpc.secure_channel(address, tls, [("grpc.ssl_target_name_override", f"{service}.bastide.local")])


identity = identity_pb2_grpc.IdentityServiceStub(channel(guard, "policy-guard"))
token = identity.IssueWorkloadToken(identity_pb2.IssueWorkloadTokenRequest(), timeout=10).token
question = content_pb2.Message(role=content_pb2.ROLE_USER, content="What is the capital of France?")
call = inference_pb2.InferenceCall(model="smollm2", purpose="customer-support", messages=[question])
try:
    for event in inference_pb2_grpc.InferenceServiceStub(channel(server, "model-server")).GenerateStream(
        inference_pb2.GenerateStreamRequest(call=call), timeout=60, metadata=[("authorization", f"Bearer {token}")]
    ):
        print(event.chunk.text or (event.end.receipt.proof and f"\nrecorded as {event.end.receipt.call_id}"), end="")
except grpc.RpcError as error:
    sys.exit(f"refused: {error.code().name} {error.details()}\n{rpc_status.from_call(error)}")
