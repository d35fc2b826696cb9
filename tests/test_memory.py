import pytest
import torch

from imagegen import memory
from imagegen.errors import ConfigurationError
from imagegen.models import MICRO_PATH, get_model

KLEIN = get_model("klein-9b")
SQUARE = (1024, 1024)


@pytest.mark.parametrize(("references", "gigabytes"), [(0, 1.61), (1, 1.61), (2, 2.18), (4, 3.61)])
def test_the_estimate_is_that_of_the_traced_model(references, gigabytes):
    # 1.61 is the VAE's decoder, which needs more than the transformer up to one reference (1.47).
    assert memory.picture_bytes(KLEIN, SQUARE, [SQUARE] * references) / 1e9 == pytest.approx(gigabytes, rel=0.03)


@pytest.mark.parametrize("size", [(2048, 2048), (1024, 2048), (2048, 1024), (2048, 512), (512, 512)])
def test_the_largest_size_that_fits_is_of_the_same_shape_and_smaller(size):
    needed = memory.picture_bytes(KLEIN, size, [])
    smaller = memory.largest_fit(KLEIN, size, [], needed // 2)
    assert memory.picture_bytes(KLEIN, smaller, []) <= needed // 2
    assert smaller[0] < size[0]
    assert smaller[1] < size[1]
    assert smaller[0] / smaller[1] == pytest.approx(size[0] / size[1], rel=0.1)
    assert all(side % 16 == 0 and side >= KLEIN.min_size for side in smaller)


def test_nothing_fits_where_nothing_is_free():
    assert memory.largest_fit(KLEIN, SQUARE, [SQUARE] * 4, 1_000_000_000) is None


def test_out_of_memory_names_the_largest_size_that_fits(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1_000_000_000)
    error = memory.out_of_memory(KLEIN, SQUARE, [], "cuda")
    assert error.message == "width: 1024x1024 does not fit the card's memory; 800x800 does"
    assert error.field == "width"
    error = memory.out_of_memory(KLEIN, SQUARE, [SQUARE] * 4, "cuda")
    assert error.message == "1024x1024 with 4 references does not fit the card's memory; ask for fewer references"


@pytest.fixture
def card(monkeypatch):
    """A card with 24 GB free, of which the CPU plays the part."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (24_000_000_000, 24_000_000_000))
    return monkeypatch


def test_a_card_with_room_passes(card):
    memory.check_card(get_model("micro"), MICRO_PATH, "cpu", "none")


def test_a_card_that_is_too_small_says_what_is_needed(card):
    card.setattr(memory, "weight_bytes", lambda path: {"transformer": 18_200_000_000, "text_encoder": 16_400_000_000})
    with pytest.raises(ConfigurationError) as caught:
        memory.check_card(KLEIN, MICRO_PATH, "cpu", "none")
    assert str(caught.value) == (
        "klein-9b needs 37.2 GB of the card's memory and 24.0 GB are free; choose a larger card, or a smaller model; "
        "IMAGEGEN_OFFLOAD=model needs 20.8 GB"
    )
    memory.check_card(KLEIN, MICRO_PATH, "cpu", "model")


def test_a_card_that_does_not_work_is_named_before_the_weights_are_read():
    with pytest.raises(ConfigurationError, match=r"the card does not work \(\w+\).*driver"):
        memory.check_card(KLEIN, MICRO_PATH, "cuda", "none")


def test_weights_are_counted_by_part():
    parts = memory.weight_bytes(MICRO_PATH)
    assert set(parts) == {"transformer", "text_encoder", "vae"}
    assert sum(parts.values()) == sum(file.stat().st_size for file in MICRO_PATH.glob("*/*.safetensors"))
