import pytest

from mixc.proxy.model import Model
from mixc.proxy.presets import PRESETS, Shape, flops_per_token, padded_vocab, parameters


@pytest.mark.parametrize(
    ("name", "millions"),
    [("nano", 0.45), ("micro", 2.7), ("mini", 8.7), ("small", 28), ("base", 78), ("large", 164)],
)
def test_presets_have_the_sizes_they_promise(name, millions):
    shape = PRESETS[name]
    assert parameters(shape, 0) / 1e6 == pytest.approx(millions, rel=0.03)
    assert shape.hidden % 32 == 0
    assert shape.head_dim == (32 if shape.width < 512 else 64)


def test_presets_follow_one_rule_of_depth_and_width():
    for shape in PRESETS.values():
        assert shape.layers == round((shape.width / 6) ** 0.5)


@pytest.mark.parametrize("shape", [PRESETS["nano"], Shape(3, 48, 2, 100)])
def test_parameter_count_is_the_models(shape):
    model = Model(shape, vocab=50, seed=0)
    assert sum(weight.numel() for weight in model.parameters()) == parameters(shape, 50)


def test_a_vocabulary_is_padded_to_a_multiple_of_64():
    assert [padded_vocab(size) for size in (1, 63, 64, 65, 50_257)] == [64, 64, 64, 128, 50_304]


def test_flops_by_hand():
    # one layer, width 4, hidden 8, vocabulary 10, 6 positions
    weights = 4 * 4 * 4 + 3 * 4 * 8
    attention = 2 * 6 * 4
    assert flops_per_token(Shape(1, 4, 2, 8), 10, 6) == 2 * (weights + attention + 40)


def test_shapes_that_do_not_divide_are_refused():
    with pytest.raises(AssertionError, match="heads"):
        Shape(1, 10, 3, 8)
    with pytest.raises(AssertionError, match="rotary"):
        Shape(1, 9, 3, 8)
