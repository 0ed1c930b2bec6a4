"""A whole backend client: python backend_client.py HOST:PORT GUARD_HOST:PORT CA.pem CLIENT.pem CLIENT.key"""

import sys

import grpc

from bastide.model_server.v1 import inference_pb2, inference_pb2_grpc
from bastide.policy_guard.v1 import identity_pb2, identity_pb2_grpc
from bastide.types.v1 import content_pb2

server, guard, ca, certificate, key = sys.argv[1:3] + [open(name, "rb").read() for name in sys.argv[3:]]


def channel(address, service):  # the certificate names the service, whatever the address
    options = [("grpc.ssl_target_name_override", f"{service}.bastide.local")]
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, certificate), options)


identity = identity_pb2_grpc.IdentityServiceStub(channel(guard, "policy-guard"))
token = identity.IssueWorkloadToken(identity_pb2.IssueWorkloadTokenRequest(), timeout=10).token
question = content_pb2.Message(role=content_pb2.ROLE_USER, content="What is the capital of France?")
call = inference_pb2.InferenceCall(model="smollm2", purpose="customer-support", messages=[question])
answer = inference_pb2_grpc.InferenceServiceStub(channel(server, "model-server")).GenerateStream(
    inference_pb2.GenerateStreamRequest(call=call), timeout=60, metadata=[("authorization", f"Bearer {token}")]
)
try:
    for event in answer:
        print(event.chunk.text, end="", flush=True)
        if event.HasField("end"):
            print(f"\n[{len(event.end.receipt.proof)} bytes of proof for call {event.end.receipt.call_id}]")
except grpc.RpcError as error:
    sys.exit(f"refused: {error.code().name}: {error.details()}")
