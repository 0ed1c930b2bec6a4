"""The method table of the model server."""

from __future__ import annotations

from bastide.model_server.v1 import catalog_pb2, inference_pb2
from shared.rpc.methods import change, peer, read, session

SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"],
    catalog_pb2.DESCRIPTOR.services_by_name["CatalogService"],
)
GENERATE = "model_server.inference.generate"
ROWS = {
    "bastide.model_server.v1.InferenceService": {
        "Generate": session(GENERATE),
        "GenerateStream": session(GENERATE),
    },
    "bastide.model_server.v1.CatalogService": {
        "CreateImportJob": change("model_server.model.import", "model", mfa=True),
        "GetImportJob": read("model_server.import.get", "import_job"),
        "ListImportJobs": read("model_server.import.list", "import_job"),
        "CancelImportJob": change("model_server.import.cancel", "import_job", mfa=False),
        "WatchImportJob": read("model_server.import.watch", "import_job"),
        "DeclareModel": change("model_server.model.declare", "model", mfa=True),
        "SubmitModelVersion": peer("trainer"),
        "ApproveModelVersion": change("model_server.model.approve", "version", mfa=True, facts="version_facts"),
        "GetModel": read("model_server.model.get", "model"),
        "ListModels": read("model_server.model.list", "model"),
        "GetModelVersion": read("model_server.version.get", "version"),
        "ListModelVersions": read("model_server.version.list", "version"),
        "GetModelCard": read("model_server.version.card", "version"),
        "TraceModelVersion": read("model_server.version.trace", "version"),
        "CreateRelease": change("model_server.release.create", "release", mfa=True, facts="release_facts"),
        "GetRelease": read("model_server.release.get", "release"),
        "ListReleases": read("model_server.release.list", "release"),
        "RollbackRelease": change("model_server.release.rollback", "release", mfa=True, facts="rollback_facts"),
        "OpenModelVersion": peer("data-prep", "trainer"),
        "OpenArtifact": peer("data-prep", "trainer"),
    },
}
