"""A whole backend client; README.md says what has to be there before it runs."""

import sys

import grpc

from bastide.model_server.v1 import inference_pb2, inference_pb2_grpc
from bastide.policy_guard.v1 import identity_pb2, identity_pb2_grpc
from bastide.types.v1 import content_pb2

if len(sys.argv) != 6:
    sys.exit("usage: backend_client.py SERVER_HOST:PORT GUARD_HOST:PORT CA.pem CLIENT.pem CLIENT.key")
question = content_pb2.Message(role=content_pb2.ROLE_USER, content="What is the capital of France?")
call = inference_pb2.InferenceCall(model="smollm2", purpose="customer-support", messages=[question])


def channel(address, service):  # the certificate names the service, whatever the address
    ca, certificate, key = (open(name, "rb").read() for name in sys.argv[3:])
    options = [("grpc.ssl_target_name_override", f"{service}.bastide.local")]
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, certificate), options)


try:
    identity = identity_pb2_grpc.IdentityServiceStub(channel(sys.argv[2], "policy-guard"))
    token = identity.IssueWorkloadToken(identity_pb2.IssueWorkloadTokenRequest(), timeout=10).token
    inference = inference_pb2_grpc.InferenceServiceStub(channel(sys.argv[1], "model-server"))
    request, metadata = inference_pb2.GenerateStreamRequest(call=call), [("authorization", f"Bearer {token}")]
    for event in inference.GenerateStream(request, timeout=60, metadata=metadata):
        print(event.chunk.text, end="", flush=True)
        if event.HasField("end"):
            print(f"\n[{len(event.end.receipt.proof)} bytes of proof for call {event.end.receipt.call_id}]")
except grpc.RpcError as error:
    sys.exit(f"{error.code().name}: {error.details()}")
except OSError as error:
    sys.exit(f"{error.filename}: {error.strerror}")
