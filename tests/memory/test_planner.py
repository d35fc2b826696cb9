import json

import pytest

from imagegen.errors import ConfigurationError
from imagegen.memory.plan import RESERVE, Gpu
from imagegen.memory.planner import candidates, choose, stored_precisions
from imagegen.models import MICRO_PATH, get_model

KLEIN = get_model("klein-9b")
ADA, AMPERE = (8, 9), (8, 6)


@pytest.mark.parametrize(
    ("gigabytes", "capability", "expected"),
    [
        (8, ADA, "bf16 bf16 group"),
        (12, ADA, "nf4 fp8 text_encoder"),
        (12, AMPERE, "nf4 int8 text_encoder"),
        (16, ADA, "fp8 fp8 text_encoder"),
        (16, AMPERE, "int8 int8 text_encoder"),
        (20, ADA, "fp8 fp8 none"),
        (24, ADA, "fp8 bf16 embeddings"),
        (24, AMPERE, "int8 int8 none"),
        (32, (12, 0), "bf16 bf16 embeddings"),
        (48, ADA, "bf16 bf16 none"),
        (80, (9, 0), "bf16 bf16 none"),
    ],
)
def test_what_a_gpu_gets(gigabytes, capability, expected):
    plan = choose(KLEIN, Gpu.of(gigabytes, capability))
    assert f"{plan.transformer} {plan.text_encoder} {plan.offload}" == expected
    assert plan.fits(plan.gpu)


def test_without_bitsandbytes_no_gpu_gets_nf4_and_who_asks_for_it_is_told():
    plan = choose(KLEIN, Gpu.of(12, ADA), nf4=False)
    assert (plan.transformer, plan.text_encoder, plan.offload) == ("bf16", "bf16", "group")
    plan = choose(KLEIN, Gpu.of(12, ADA), references=1, nf4=False)
    assert (plan.transformer, plan.text_encoder, plan.offload) == ("fp8", "bf16", "model")
    with pytest.raises(ConfigurationError, match=r"nf4 needs bitsandbytes.*pip install 'bitsandbytes>=0\.50'"):
        choose(KLEIN, Gpu.of(12, ADA), precision="nf4", nf4=False)


def test_the_plan_is_the_first_candidate_that_fits():
    gpu = Gpu.of(16, ADA)
    plans = [choose(KLEIN, Gpu.of(1000, ADA), precision=t, offload=o, stored=(t, e)) for t, e, o in candidates(ADA)]
    first = next(plan for plan in plans if plan.fits(gpu))
    chosen = choose(KLEIN, gpu)
    assert (chosen.transformer, chosen.text_encoder, chosen.offload) == (
        first.transformer,
        first.text_encoder,
        first.offload,
    )


def test_fewer_references_leave_room_for_more():
    assert choose(KLEIN, Gpu.of(24, ADA), references=1).offload == "none"
    assert choose(KLEIN, Gpu.of(24, ADA), references=4).offload == "embeddings"
    assert choose(KLEIN, Gpu.of(24, ADA), references=0, size=(2048, 2048)).text_encoder == "fp8"


@pytest.mark.parametrize(
    ("forced", "expected"),
    [
        ({"precision": "fp8"}, "fp8 bf16 embeddings"),
        ({"precision": "int8"}, "int8 int8 none"),
        ({"precision": "nf4"}, "nf4 fp8 none"),
        ({"precision": "bf16"}, "bf16 bf16 model"),
        ({"offload": "none"}, "fp8 fp8 none"),
        ({"offload": "model"}, "bf16 bf16 model"),
        ({"offload": "group"}, "bf16 bf16 group"),
        ({"precision": "fp8", "offload": "text_encoder"}, "fp8 bf16 text_encoder"),
    ],
)
def test_the_settings_force_the_plan(forced, expected):
    plan = choose(KLEIN, Gpu.of(24, ADA), **forced)
    assert f"{plan.transformer} {plan.text_encoder} {plan.offload}" == expected
    assert plan.why.startswith("chosen by IMAGEGEN_")


def test_a_forced_plan_that_cannot_fit_says_what_it_needs_and_the_nearest_that_fits():
    with pytest.raises(ConfigurationError) as caught:
        choose(KLEIN, Gpu.of(24, ADA), precision="bf16", offload="none")
    assert str(caught.value) == (
        "IMAGEGEN_PRECISION=bf16 IMAGEGEN_OFFLOAD=none: klein-9b needs 32.4 GiB of the GPU's memory for 1024x1024 "
        "with 4 references, and 23.5 GiB is available; "
        "IMAGEGEN_PRECISION=fp8 IMAGEGEN_OFFLOAD=embeddings needs 23.3 GiB"
    )
    with pytest.raises(ConfigurationError, match=r"; .* or IMAGEGEN_MAX_REFERENCES=3 needs 12\.7 GiB$"):
        choose(KLEIN, Gpu.of(13, ADA), offload="none")
    with pytest.raises(ConfigurationError, match=r"klein-9b needs .* and 2\.0 GiB is available; choose a larger GPU"):
        choose(KLEIN, Gpu.of(2, ADA))


@pytest.mark.parametrize(("gigabytes", "advised"), [(12, 1), (12.3, 2), (12.6, 2), (13, 3)])
def test_the_advised_number_of_references_is_the_largest_that_fits(gigabytes, advised):
    gpu = Gpu.of(gigabytes, ADA)
    with pytest.raises(ConfigurationError, match=rf" or IMAGEGEN_MAX_REFERENCES={advised} needs "):
        choose(KLEIN, gpu, offload="none")
    choose(KLEIN, gpu, offload="none", references=advised)
    with pytest.raises(ConfigurationError):
        choose(KLEIN, gpu, offload="none", references=advised + 1)


def test_the_nearest_plan_of_an_error_can_be_asked_for():
    gpu = Gpu.of(24, ADA)
    nearest = choose(KLEIN, gpu, precision="fp8", offload="embeddings")
    assert nearest.peak + RESERVE <= gpu.bytes
    with pytest.raises(ConfigurationError, match=r"; IMAGEGEN_PRECISION=bf16 IMAGEGEN_OFFLOAD=group needs"):
        choose(KLEIN, Gpu.of(12, ADA), offload="none", nf4=False)
    with pytest.raises(ConfigurationError, match=r"; IMAGEGEN_PRECISION=fp8 IMAGEGEN_OFFLOAD=group needs"):
        choose(KLEIN, Gpu.of(12, ADA), offload="none", stored=("fp8", None), nf4=False)


def test_fp8_is_refused_where_the_gpu_cannot_multiply_it():
    with pytest.raises(ConfigurationError, match=r"fp8 needs compute capability 8\.9, and the GPU has 8\.6; int8"):
        choose(KLEIN, Gpu.of(24, AMPERE), precision="fp8")


@pytest.mark.parametrize("precision", ["auto", "int8", "fp8"])
def test_weights_in_fp8_are_refused_there_with_what_to_do_whatever_the_setting(precision):
    with pytest.raises(ConfigurationError) as caught:
        choose(KLEIN, Gpu.of(24, AMPERE), precision=precision, stored=("fp8", None))
    assert str(caught.value) == (
        "fp8 needs compute capability 8.9, and the GPU has 8.6; these weights are stored in fp8: use an image with "
        "PRECISION=int8, or the weights as published"
    )
    assert choose(KLEIN, Gpu.of(24, AMPERE), stored=("int8", None)).transformer == "int8"


def test_weights_that_are_quantised_already_stay_so():
    plan = choose(KLEIN, Gpu.of(80, (9, 0)), stored=("fp8", None))
    assert (plan.transformer, plan.text_encoder, plan.offload) == ("fp8", "bf16", "none")
    plan = choose(KLEIN, Gpu.of(80, (9, 0)), stored=("int8", "int8"))
    assert (plan.transformer, plan.text_encoder) == ("int8", "int8")
    with pytest.raises(
        ConfigurationError, match="IMAGEGEN_PRECISION=bf16 is not possible: .* transformer fp8, text encoder"
    ):
        choose(KLEIN, Gpu.of(80, (9, 0)), precision="bf16", stored=("fp8", None))


def test_a_cpu_has_room_for_everything_in_float32():
    plan = choose(get_model("micro"), None)
    assert (plan.transformer, plan.offload, plan.gpu) == ("bf16", "none", None)
    assert plan.parts.total == 2 * choose(get_model("micro"), Gpu.of(24, ADA)).parts.total
    assert str(plan).startswith("micro on the CPU: float32, 13 MiB of weights")
    assert choose(get_model("micro"), None, precision="int8").transformer == "int8"


def test_the_line_of_a_plan():
    assert str(choose(KLEIN, Gpu.of(24, ADA))) == (
        "klein-9b: transformer fp8 8.8 GiB, text encoder bf16 9.7 GiB, embeddings 1.2 GiB, VAE 160 MiB, "
        "all on the GPU but the embeddings; peak 21.3 GiB for 1024x1024 with 4 references, 23.3 GiB with the "
        "reserve, of 23.5 GiB that a process can use; the next better plan (transformer fp8, text encoder bf16, all on "
        "the GPU) needs 24.4 GiB with the reserve"
    )


@pytest.mark.parametrize(
    ("settings", "precision"),
    [
        (None, None),
        ({"quant_method": "torchao", "quant_type": {"_type": "Float8DynamicActivationFloat8WeightConfig"}}, "fp8"),
        ({"quant_method": "torchao", "quant_type": {"_type": "Int8DynamicActivationInt8WeightConfig"}}, "int8"),
    ],
)
def test_the_precision_of_a_folder_is_read_from_its_config(tmp_path, settings, precision):
    (tmp_path / "transformer").mkdir()
    config = {"_class_name": "Flux2Transformer2DModel"} | ({"quantization_config": settings} if settings else {})
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    assert stored_precisions(tmp_path) == (precision, None)
    assert stored_precisions(MICRO_PATH) == (None, None)
    (tmp_path / "transformer" / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    with pytest.raises(ConfigurationError, match="transformer is quantised by bitsandbytes"):
        stored_precisions(tmp_path)
