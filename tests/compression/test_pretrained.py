import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertModel,
)

from lada_ops import CompressionPlan, CompressionReport, compress, decompress
from lada_ops.architectures.encoders import encoder_linears
from lada_ops.compression.plan import METHODS
from lada_ops.compression.pretrained import LadaQuantizationConfig, compression_of
from lada_ops.modules.compressed_linear import CompressedLinear
from tests.compression.test_compress import make_plan
from tests.tiny_encoders import ARCHITECTURES, batch, outputs, tiny_bert, with_head
from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).parents[2]


def saved(folder, model, method="low_rank", **kwargs):
    """The compressed model, and its folder."""
    compress(model, plan=make_plan(model, method, **kwargs), quiet=True)
    model.save_pretrained(folder)
    return model


def load(folder, auto: type = AutoModel, **kwargs):
    """The model, which must come with no key missing, unexpected or of another shape."""
    model, info = auto.from_pretrained(folder, output_loading_info=True, **kwargs)  # type: ignore[attr-defined]
    assert not any(info.values())
    return model


def assert_equal(model, other):
    state, theirs = model.state_dict(), other.state_dict()
    assert state.keys() == theirs.keys()
    for name, tensor in state.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name])


class TestRoundTrip:
    @pytest.mark.parametrize("method", METHODS)
    def test_is_equal_to_the_bit(self, tmp_path, method):
        model = saved(tmp_path, tiny_bert(), method)
        again = load(tmp_path)
        assert_equal(again, model)
        assert torch.equal(outputs(again), outputs(model))

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_of_every_architecture(self, tmp_path, name):
        model = saved(tmp_path, with_head(name), "sparse_low_rank")
        again = load(tmp_path, type(model))
        assert_equal(again, model)
        # dense ones differ as much: products round by where in memory the file's tensors lie
        torch.testing.assert_close(outputs(again), outputs(model), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("method", METHODS)
    def test_modules_are_those_that_were_saved(self, tmp_path, method):
        model = saved(tmp_path, tiny_bert(), method)
        again = load(tmp_path)
        assert repr(again) == repr(model)

    def test_plan_and_report_come_back(self, tmp_path):
        model = tiny_bert()
        made = make_plan(model, "sparse_low_rank")
        report = compress(model, plan=made, calibration=[batch()], sequential=False, quiet=True)
        model.save_pretrained(tmp_path)
        assert compression_of(load(tmp_path)) == (made, report)

    def test_folder_holds_plan_and_report_to_read(self, tmp_path):
        saved(tmp_path, tiny_bert())
        config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
        assert (config["quant_method"], config["format_version"]) == ("lada", 1)
        assert len(CompressionPlan.from_dict(config["plan"]).layers) == 12
        assert CompressionReport.from_dict(config["report"]).ratio > 1.5

    def test_folder_holds_no_pickle(self, tmp_path):
        saved(tmp_path, tiny_bert())
        assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}

    def test_second_save_writes_the_same(self, tmp_path):
        saved(tmp_path / "a", tiny_bert(), "block_sparse")
        load(tmp_path / "a").save_pretrained(tmp_path / "b")
        for name in ("config.json", "model.safetensors"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    @pytest.mark.parametrize("method", METHODS)
    def test_tensors_are_aligned(self, tmp_path, method):
        """Unaligned tensors, as they lie in the file, make products slower and round otherwise."""
        saved(tmp_path, tiny_bert(), method)
        compressed = [m for m in load(tmp_path).modules() if isinstance(m, CompressedLinear)]
        assert compressed
        assert all(p.data_ptr() % 64 == 0 for m in compressed for p in m.parameters())

    def test_sharded(self, tmp_path):
        model = tiny_bert()
        compress(model, plan=make_plan(model, "sparse_low_rank"), quiet=True)
        model.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
        assert_equal(load(tmp_path), model)

    def test_device_map(self, tmp_path):
        pytest.importorskip("accelerate")
        model = saved(tmp_path, tiny_bert(), "sparse_low_rank")
        assert_equal(load(tmp_path, device_map="cpu"), model)

    def test_layers_compressed_in_two_steps(self, tmp_path):
        model = tiny_bert()
        compress(model, plan=make_plan(model, layers=r"layer\.0\."), quiet=True)
        saved(tmp_path, model, "block_sparse", layers=r"layer\.1\.")
        assert_equal(load(tmp_path), model)

    def test_layers_compressed_after_loading(self, tmp_path):
        saved(tmp_path / "a", tiny_bert(), layers=r"layer\.0\.")
        model = saved(tmp_path / "b", load(tmp_path / "a"), "block_sparse", layers=r"layer\.1\.")
        assert_equal(load(tmp_path / "b"), model)

    def test_some_layers_stay_dense(self, tmp_path):
        model = saved(tmp_path, tiny_bert(), layers="intermediate")
        again = load(tmp_path)
        assert_equal(again, model)
        assert len(encoder_linears(again)) == 10

    def test_restored_model_is_saved_dense(self, tmp_path):
        saved(tmp_path / "a", tiny_bert())
        model = load(tmp_path / "a")
        want = outputs(model)
        decompress(model)
        model.save_pretrained(tmp_path / "b")
        assert "quantization_config" not in json.loads((tmp_path / "b/config.json").read_text())
        again = load(tmp_path / "b")
        assert len(encoder_linears(again)) == 12
        torch.testing.assert_close(outputs(again), want, rtol=1e-5, atol=1e-5)

    def test_deepcopy_can_be_saved(self, tmp_path):
        model = tiny_bert()
        compress(model, plan=make_plan(model, "sparse_low_rank"), quiet=True)
        copy.deepcopy(model).save_pretrained(tmp_path)
        assert_equal(load(tmp_path), model)

    def test_fresh_process_that_only_imports_lada_ops(self, tmp_path):
        model = saved(tmp_path, tiny_bert(), "sparse_low_rank")
        program = (
            "import sys, lada_ops, torch\n"
            "from transformers import AutoModel\n"
            "model = AutoModel.from_pretrained(sys.argv[1])\n"
            "model(torch.arange(5, 12)[None])\n"
            "torch.save(model.state_dict(), sys.argv[1] + '/loaded.pt')\n"
            "assert 'lada_kernels' not in sys.modules\n"
        )
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=True)
        again = torch.load(tmp_path / "loaded.pt")
        assert again.keys() == model.state_dict().keys()
        assert all(torch.equal(again[name], t) for name, t in model.state_dict().items())


class TestHeads:
    def test_saved_with_a_head_loaded_without(self, tmp_path):
        model = saved(tmp_path, with_head("bert"), "sparse_low_rank")
        again, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        assert_equal(again, model.bert)

    def test_saved_without_a_head_loaded_with_one(self, tmp_path):
        model = saved(tmp_path, tiny_bert(), "sparse_low_rank")
        auto = AutoModelForSequenceClassification
        again, info = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
        assert not info["unexpected_keys"]
        assert_equal(again.bert, model)

    def test_saved_again_with_the_new_head(self, tmp_path):
        saved(tmp_path / "a", tiny_bert(), "sparse_low_rank")
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a")
        model.save_pretrained(tmp_path / "b")
        again = load(tmp_path / "b", AutoModelForSequenceClassification)
        assert_equal(again, model)
        plan, report = compression_of(again) or (CompressionPlan(), None)
        assert all(name.startswith("bert.encoder.") for name in plan.layers)
        assert report is not None
        assert report.layers.keys() == plan.layers.keys()

    def test_base_compressed_inside_its_head(self, tmp_path):
        model = with_head("bert")
        compress(model.bert, plan=make_plan(model.bert), quiet=True)
        model.save_pretrained(tmp_path)
        assert_equal(load(tmp_path, type(model)), model)

    def test_an_encoder_loaded_as_a_decoder_draws_the_cross_attention_alone(self, tmp_path):
        # as sentence-transformers' denoising auto-encoder does
        encoder = saved(tmp_path, tiny_bert()).state_dict()
        decoder = AutoModelForCausalLM.from_pretrained(
            tmp_path, is_decoder=True, add_cross_attention=True
        )
        state = decoder.base_model.state_dict()
        drawn = state.pop("encoder.layer.0.crossattention.self.query.weight")
        assert 0.015 < drawn.std() < 0.025
        rest = {key for key in state if "crossattention" not in key}
        assert rest == {key for key in encoder if "pooler" not in key}
        assert all(torch.equal(state[key], encoder[key]) for key in rest)

    def test_tied_decoder_stays_tied(self, tmp_path):
        model = saved(tmp_path, with_head("roberta"))
        again = load(tmp_path, AutoModelForMaskedLM)
        assert_equal(again, model)
        assert again.get_output_embeddings().weight is again.get_input_embeddings().weight

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_dtype_with_another_head(self, tmp_path, dtype):
        saved(tmp_path, with_head("bert"), "sparse_low_rank")
        again = AutoModel.from_pretrained(tmp_path, dtype=dtype)
        assert {p.dtype for p in again.parameters()} == {dtype}


class TestWrappers:
    """A model inside another module is recorded, saved and loaded as by itself."""

    def test_model_in_a_container(self, tmp_path):
        model = tiny_bert()
        whole = nn.Sequential(nn.Sequential(model))
        compress(whole, plan=make_plan(whole), quiet=True)
        model.save_pretrained(tmp_path)
        assert_equal(load(tmp_path), model)

    def test_two_models_each_have_their_own_plan(self):
        whole = nn.ModuleDict({"one": tiny_bert(), "two": tiny_bert()})
        compress(whole, plan=make_plan(whole, layers=r"one\..*query|two\..*key"), quiet=True)
        for name, kind in (("one", "query"), ("two", "key")):
            made, _ = compression_of(whole[name]) or (CompressionPlan(), None)
            assert [n.rsplit(".", 1)[1] for n in made.layers] == [kind] * 2

    def test_compiled_model(self, tmp_path):
        model = tiny_bert()
        compiled: Any = torch.compile(model)
        compress(compiled, plan=make_plan(compiled), quiet=True)
        compiled.save_pretrained(tmp_path)
        assert_equal(load(tmp_path), model)

    def test_restored_in_its_container(self):
        whole = nn.Sequential(tiny_bert())
        compress(whole, plan=make_plan(whole), quiet=True)
        decompress(whole)
        assert compression_of(whole[0]) is None

    def test_sentence_transformer(self, tmp_path):
        sentence = pytest.importorskip("sentence_transformers")
        write_tiny_model(tmp_path / "dense")
        model = sentence.SentenceTransformer(str(tmp_path / "dense"), device="cpu")
        compress(model, plan=make_plan(model), quiet=True)
        model.save(str(tmp_path / "small"))
        again = sentence.SentenceTransformer(str(tmp_path / "small"), device="cpu")
        assert_equal(again, model)


class TestDtypes:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
    def test_argument_rounds_once(self, tmp_path, dtype):
        model = saved(tmp_path, tiny_bert(), "sparse_low_rank")
        assert_equal(load(tmp_path, dtype=dtype), model.to(dtype))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_half_after_loading_and_saved_again(self, tmp_path, dtype):
        saved(tmp_path / "a", tiny_bert(), "sparse_low_rank")
        model = load(tmp_path / "a").to(dtype)
        model.save_pretrained(tmp_path / "b")
        again = load(tmp_path / "b")
        assert {p.dtype for p in again.parameters()} == {dtype}
        assert_equal(again, model)

    def test_half_method_is_allowed(self, tmp_path):
        saved(tmp_path, tiny_bert())
        assert load(tmp_path).half().dtype == torch.float16

    def test_compressed_in_half_precision(self, tmp_path):
        model = saved(tmp_path, tiny_bert().bfloat16(), "sparse_low_rank")
        assert_equal(load(tmp_path), model)
        assert_equal(load(tmp_path, dtype=torch.float32), model.float())


class TestTraining:
    @pytest.mark.parametrize("method", METHODS)
    def test_a_loaded_model_learns(self, tmp_path, method):
        saved(tmp_path, with_head("bert"), method)
        model = load(tmp_path, AutoModelForSequenceClassification).train()
        assert all(p.requires_grad for p in model.parameters())
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        model(**batch(), labels=torch.tensor([0, 1, 0])).loss.backward()
        optimizer.step()
        modules = {n for n, m in model.named_modules() if isinstance(m, CompressedLinear)}
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert {n for n in before if n.rpartition(".")[0] in modules} <= changed

    def test_trained_model_is_saved_and_loaded(self, tmp_path):
        saved(tmp_path / "a", tiny_bert(), "sparse_low_rank")
        model = load(tmp_path / "a")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        model.save_pretrained(tmp_path / "b")
        assert_equal(load(tmp_path / "b"), model)

    def test_nothing_tells_the_trainer_to_refuse(self, tmp_path):
        saved(tmp_path, tiny_bert())
        model = load(tmp_path)
        assert not getattr(model, "is_quantized", False)
        assert not model.training


class TestConfig:
    @pytest.mark.exhaustive
    def test_second_registration_is_harmless(self):
        program = "import importlib, lada_ops.compression.pretrained as p; importlib.reload(p)"
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)

    @pytest.mark.parametrize("version", [0, 2, -1, "1", None, 1.5])
    def test_refuses_other_versions(self, version):
        with pytest.raises(ValueError, match=f"format_version {version!r} .*expected 1 to 1"):
            LadaQuantizationConfig(CompressionPlan().to_dict(), None, version)

    def test_refuses_a_plan_that_is_none(self):
        with pytest.raises(ValueError, match="CompressionPlan: missing"):
            LadaQuantizationConfig({}, None, 1)

    def test_refuses_a_missing_report(self):
        with pytest.raises(ValueError, match="CompressionReport"):
            LadaQuantizationConfig(CompressionPlan().to_dict(), None, 1)

    def test_dense_model_has_no_compression(self):
        assert compression_of(tiny_bert()) is None
        assert compression_of(nn.Linear(3, 3)) is None

    def test_dense_model_is_loaded_as_ever(self, tmp_path):
        model = tiny_bert()
        model.save_pretrained(tmp_path)
        again = load(tmp_path)
        assert type(again) is BertModel
        assert_equal(again, model)
