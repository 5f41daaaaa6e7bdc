"""What the router reads of an item: the right tile, or the right part of a batch in one line, of one encoder pass."""

import pytest
import torch
from expert_models import IMAGE, SLOT, image_router, maths, named, noise, squares, with_experts
from tiny_models import tiny_inputs, tiny_model

START, END = 60, 61


def composed(kind, modalities=("image",), **router):
    native = tiny_model(kind)
    routers = image_router("maths", **router)
    model, _ = with_experts({"only": native}, {"only": list(modalities)}, {"maths": maths()}, routers)
    return native, model


def asked(model, ids, media, items, **more):
    labels = torch.zeros(items, dtype=torch.long)
    return model(input_ids=torch.tensor(ids), **media, router_labels=labels, **more).router_logits["image"]


def routed(model, ids, media, items):
    """The logits that route() sees."""
    seen = []
    core = model.model
    ask = core.ask_router
    core.ask_router = lambda *args: seen.append(ask(*args)) or seen[-1]
    try:
        model.route(torch.tensor(ids), **media, **named("maths", squares(items)))
    finally:
        del core.ask_router
    return seen[0]


@pytest.mark.parametrize(("tile", "pick"), [("first", [0, 3]), ("last", [2, 4]), ("mean", None)])
@torch.no_grad()
def test_tiles_of_internvl_by_the_marks_around_its_items(tile, pick):
    """An image of two tiles and a thumbnail, and an image of one tile and its thumbnail."""
    native, model = composed("internvl", tile=tile)
    media = {"only__pixel_values": noise(5, 3, 56, 56)}
    x = native.model.vision_tower(media["only__pixel_values"]).last_hidden_state[:, 0]
    each = model.model.get_image_features(media["only__pixel_values"]).pooler_output.shape[0] // 5
    tiles_IW = torch.stack([x[:3].mean(0), x[3:].mean(0)]) if pick is None else x[pick]
    wanted = tiles_IW @ model.model.routers["image"].weight.T
    one, two = [IMAGE] * (3 * each), [IMAGE] * (2 * each)
    ids = [[1, START, *one, END, 5, START, *two, END]]
    torch.testing.assert_close(asked(model, ids, media, 2), wanted)
    side_by_side = [[1, *one, *two]]
    with pytest.raises(ValueError, match="gave 5 tiles, and how they belong to 2 items"):
        asked(model, side_by_side, media, 2)
    told = {"image_item_tokens": torch.tensor([len(one), len(two)])}
    torch.testing.assert_close(asked(model, side_by_side, media, 2, **told), wanted)
    torch.testing.assert_close(routed(model, [[1, *one, SLOT, *two, SLOT]], media, 2), wanted)
    with pytest.raises(ValueError, match="says"):
        model.route(torch.tensor([[1, *one, SLOT, *two, SLOT]]), **media, image_item_tokens=[1, 2])


@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision"])
@torch.no_grad()
def test_tiles_of_families_with_resolutions_by_their_sizes(kind):
    """The base picture is the first tile; tokens that are unpadded do not tell the number of tiles."""
    feature = "class" if kind == "llava_next" else "mean"
    native, model = composed(kind, tile="first", feature=feature)
    sizes = torch.tensor([[28, 56], [20, 56], [56, 28]])
    media = {"only__pixel_values": noise(3, 3, 3, 28, 28), "only__image_sizes": sizes}
    x = native.model.vision_tower(media["only__pixel_values"].flatten(0, 1)).last_hidden_state
    x = (x[:, 0] if feature == "class" else x.mean(1)).unflatten(0, (3, 3))
    wanted = x[:, 0] @ model.model.routers["image"].weight.T
    counts = [len(part) for part in native.get_image_features(
        media["only__pixel_values"], image_sizes=sizes, return_dict=True).pooler_output]  # fmt: skip
    ids = [1]
    for count in counts:
        ids += [*[IMAGE] * count, SLOT, 5]
    torch.testing.assert_close(routed(model, [ids], media, 3), wanted)
    plain = [[index for index in ids if index != SLOT]]
    torch.testing.assert_close(asked(model, plain, media, 3), wanted)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@torch.no_grad()
def test_patches_in_one_line_are_averaged_by_grid(kind):
    native, model = composed(kind, ("image", "video"), feature="mean")
    inputs = tiny_inputs(kind, native)
    wide = inputs["pixel_values"].shape[-1]
    grids = torch.tensor([[1, 4, 6], [1, 2, 4]])
    media = {"only__pixel_values": noise(32, wide), "only__image_grid_thw": grids}
    weight = model.model.routers["image"].weight
    alone = []
    for start, stop, grid in ((0, 24, grids[:1]), (24, 32, grids[1:])):
        seen = native.model.visual(media["only__pixel_values"][start:stop], grid_thw=grid)
        alone.append(seen.last_hidden_state.mean(0))
    wanted = torch.stack(alone) @ weight.T
    one, two = [IMAGE] * 6, [IMAGE] * 2
    torch.testing.assert_close(asked(model, [[1, *one, 5, *two, 6]], media, 2), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(routed(model, [[1, *one, SLOT, *two, SLOT]], media, 2), wanted, rtol=1e-4, atol=1e-5)
    _, model = composed(kind, ("image", "video"), feature="class")
    with pytest.raises(ValueError, match="gives no class token"):
        asked(model, [[1, *one, 5, *two, 6]], media, 2)


@torch.no_grad()
def test_pictures_that_a_family_pads_away_do_not_count():
    """Idefics 3 leaves out pictures that are all zero; row marks cut an item's tokens into runs."""
    native, model = composed("idefics3", tile="last", feature="mean")
    x = noise(2, 3, 3, 56, 56)
    x[1, 2] = 0
    media = {"only__pixel_values": x}
    made = native.model.vision_model(x.flatten(0, 1)[:5]).last_hidden_state
    wanted = made.mean(1)[[2, 4]] @ model.model.routers["image"].weight.T
    each = model.model.get_image_features(x).pooler_output.shape[0] // 5
    im = [IMAGE] * each
    ids = [[1, *im, 7, *im, 8, *im, SLOT, 5, *im, 7, *im, SLOT]]
    torch.testing.assert_close(routed(model, ids, media, 2), wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_width_that_the_encoder_does_not_have_is_refused():
    _, model = composed("llava", width=30)
    with pytest.raises(ValueError, match="32 wide, and the router reads 30"):
        asked(model, [[1, *[IMAGE] * 4]], {"only__pixel_values": noise(1, 3, 28, 28)}, 1)
