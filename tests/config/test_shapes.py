import pytest

from cramjax.config import shapes
from cramjax.config.resolve import get_config
from cramjax.errors import UserError

# Millions of parameters by model cards, configurations and the paper's text.
PUBLISHED = """
tiny 15.57  mini 31.22  small 60.51  base 222.90  large 737.67  xl 2851.6  xxl 11307
tiny-nl2 11.9  tiny-nl6 19.2  tiny-nl8 22.9  tiny-nl32 67.0  mini-nl24 125.6  small-nl2 31.1
small-nl16 133.9  small-nl22 178.0  small-nl24 192.7  small-nl32 251.4  small-nl36 280.8
small-el8 66.8  small-el16 92.0  small-el32 142.3  small-el16-dl4 83.6  small-ff1000 47.9
small-ff6000 110.8  small-ff12000 186.3  small-dm128 15.1  small-dm768 90.8  small-dm1000 121.0
small-kv32 51.1  small-kv128 79.4  base-nl2 57.7  base-nl4 90.8  base-nl8 156.8  base-nl16 289.0
base-nl24 421.1  base-nl32 553.3  base-nl36 619.4  base-nl40 685.4  base-nl48 817.6
base-el2 152.1  base-el4 166.3  base-el6 180.4  base-el8 194.6  base-el16 251.2  base-dm256 74.3
base-dm512 148.6  base-dm1000 297.2  base-dm2000 594.4  base-ff1000 147.4  base-ff2000 185.2
base-ff6000 336.1  base-ff9000 449.4  base-ff12000 562.6  base-kv16 159.2  base-kv32 180.4
base-kv128 307.8  base-kv256 477.7  base-nh8 194.6  base-nh16 251.2  base-nh24 307.8
base-nh32 364.5  large-nl8 267.8  large-nl10 326.6  large-nl16 502.7  large-nl20 620.2
large-nl32 972.6  large-nl36 1090.1  xl-nl2 267.8  xl-nl4 502.7  xl-nl6 737.6  xl-nl8 972.5
xl-nl12 1442  xl-nl16 1912  xl-nl28 3321  xxl-nl4 1207  v1_1-small 76.96  v1_1-base 247.58
v1_1-large 783.15  v1_1-xl 2849.8  v1_1-xxl 11135
""".split()
PUBLISHED = dict(zip(PUBLISHED[::2], PUBLISHED[1::2], strict=True))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    published = PUBLISHED[name]
    decimals = len(published.partition(".")[2])
    assert shapes.parse(name).count_params() / 1e6 == pytest.approx(
        float(published), abs=0.51 * 10.0**-decimals
    )


def test_enough_names_are_held_to_their_published_size():
    assert len(PUBLISHED) >= 40 and set(PUBLISHED) <= set(shapes.RELEASED) | set(shapes.SIZES)


def test_every_name_is_parsed_and_stands_once():
    names = [*shapes.RELEASED, *shapes.RECALLED]
    assert len(names) == len(set(names)) and len(names) > 140
    for name in names:
        assert shapes.parse(name).name == name
        assert shapes.parse(f"google/t5-efficient-{name}") == shapes.parse(name)


def numbers(name):
    """(n_layers, n_decoder_layers, d_model, n_heads, head_dim, d_ff)"""
    return tuple(shapes.parse(name).model().values())


def test_names_that_mislead():
    # The cards print 32.
    assert all(shapes.parse(size).head_dim == 64 for size in ("tiny", "mini", "small"))

    # Names are round, networks are not.
    widths = [shapes.parse(f"base-ff{n}000").d_ff for n in (1, 2, 3, 6, 9, 12)]
    assert widths == [1024, 2048, 3072, 6144, 9216, 12288]
    assert [shapes.parse(f"small-dm{n}").d_model for n in (128, 1000, 2000)] == [128, 1024, 2048]

    # Fewer layers of xxl have less attention.
    assert numbers("xxl-nl4") == (4, 4, 1024, 32, 64, 65536)
    assert numbers("xxl") == (24, 24, 1024, 128, 128, 65536)

    # The paper says 3.6 and 3.8.
    assert shapes.parse("xxl-nl12").count_params() / 1e9 == pytest.approx(3.56, abs=0.01)
    assert shapes.parse("xl-nl32").count_params() / 1e9 == pytest.approx(3.79, abs=0.01)

    assert numbers("tiny-el12")[:2] == (12, 12) and numbers("tiny-el8")[:2] == (8, 4)
    assert numbers("3b") == numbers("xl")


def test_knobs_are_what_they_say():
    assert numbers("small-el16-dl4") == (16, 4, 512, 8, 64, 2048)
    assert numbers("small-el32")[:2] == (32, 6) and numbers("large-el2")[:2] == (2, 24)
    assert numbers("large-nh8-nl32") == numbers("large-nl32-nh8") == (32, 32, 1024, 8, 64, 4096)
    assert numbers("base-kv16-nh12") == (12, 12, 768, 12, 16, 3072)
    assert numbers("small-el2-nl8")[:2] == numbers("small-nl8-el2")[:2] == (2, 8)


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("smal-nl24", "did you mean small-nl24"),
        ("small-n24", "did you mean small-nl24"),
        ("small-nl0", "no such shape"),
        ("small-24", "no such shape"),
        ("enormous", "tools.shapes lists them"),
        ("small-nl4-nl8", "-nl is given twice"),
        ("small-nl4-el2-dl2", "-nl says nothing"),
        ("small-shkv", "no stock class"),
        ("", "no such shape"),
    ],
)
def test_a_wrong_name_is_a_sentence(name, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        shapes.parse(name)
    assert "\n" not in str(caught.value)


def test_deep_narrow_goes_deep_first():
    def under(limit):
        best = shapes.deep_narrow(lambda shape: shape.count_params() <= limit)
        return best and best.name

    assert under(737.67e6) == "base-nl36"  # in place of large
    assert under(2.9e9) == "large-nl36"  # in place of xl
    assert under(270e6) == "small-nl34"
    assert under(30e6) == "tiny-nl11"
    assert under(1e6) is None


def test_recipes_take_shapes_by_name():
    config = get_config("t5_efficient:base-el16")
    assert config.name == "t5_efficient-base-el16"
    model = config.model
    assert (model.n_layers, model.n_decoder_layers, model.d_model) == (16, 12, 768)
    assert get_config("t5_efficient:v1_1-base").model.ffn == "geglu_tanh"
    assert get_config("t5_efficient").model.n_layers == 16
    with pytest.raises(UserError, match="did you mean small-nl24"):
        get_config("t5_efficient:smal-nl24")
