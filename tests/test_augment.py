"""Room augment: torchvision's semantics in one batched resample, without aliasing, from one generator."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as reference
from PIL import Image, ImageOps
from scipy.stats import ks_2samp, norm
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2

from xray_opt.augment import IMAGENET_MEAN, IMAGENET_STD, Augment, affine, crop_boxes, equalising, plain, recompressed
from xray_opt.config import AugmentConfig

OFF = AugmentConfig(scale_min=1.0, scale_max=1.0, ratio_min=1.0, ratio_max=1.0, flip=0.0, rotation=0.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(films: int, side: int) -> torch.Tensor:
    return torch.randint(0, 256, (films, side, side), generator=generator(7), dtype=torch.uint8)


def smooth(films: int, side: int) -> torch.Tensor:
    """Films with structure at the scale of anatomy: low-frequency noise."""
    coarse = noise(films, 8).unsqueeze(1).float()
    fine = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 255)
    return fine.squeeze(1).round().to(torch.uint8)


def grey(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, s, s) normalised → (B, s, s) in [0, 1]."""
    return images[:, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]


def test_shapes_types_and_layout() -> None:
    for images in (plain(noise(3, 48), 32), Augment(AugmentConfig(), 32)(noise(3, 48), generator())):
        assert images.shape == (3, 3, 32, 32)
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_plain_normalises_each_channel_as_imagenet() -> None:
    pixels = noise(2, 32)
    expected = reference.normalize(
        pixels.unsqueeze(1).float().div(255).repeat(1, 3, 1, 1), list(IMAGENET_MEAN), list(IMAGENET_STD)
    )
    torch.testing.assert_close(plain(pixels, 32), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", [32, 48, 112])
def test_plain_resizes_as_torchvision_does(side: int) -> None:
    pixels = noise(2, side)
    expected = reference.resize(pixels.unsqueeze(1).float() / 255, [32, 32], antialias=True)[:, 0]
    torch.testing.assert_close(grey(plain(pixels, 32)), expected, atol=1e-5, rtol=0)


def test_plain_does_not_depend_on_the_batch() -> None:
    pixels = noise(9, 50)
    together = plain(pixels, 32)
    alone = torch.cat([plain(film.unsqueeze(0), 32) for film in pixels])
    assert torch.equal(together, alone)


def test_everything_off_equals_plain() -> None:
    pixels = noise(4, 40)
    torch.testing.assert_close(Augment(OFF, 40)(pixels, generator()), plain(pixels, 40), atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", [48, 64, 112, 150])
def test_everything_off_is_close_to_plain_when_shrinking(side: int) -> None:
    pixels = smooth(4, side)
    difference = grey(Augment(OFF, 32)(pixels, generator())) - grey(plain(pixels, 32))
    assert difference.abs().mean() < 0.01
    assert difference.abs().max() < 0.05


def test_equal_generators_give_equal_images_and_nothing_else_draws() -> None:
    pixels, augment = noise(6, 48), Augment(AugmentConfig(), 32)
    before = torch.get_rng_state()
    first, again, other = (augment(pixels, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_films_of_a_batch_are_augmented_differently() -> None:
    pixels = noise(1, 48).expand(8, 48, 48)
    images = Augment(AugmentConfig(), 32)(pixels, generator())
    assert all(not torch.equal(images[0], other) for other in images[1:])


@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.7, 1.0), (0.75, 4 / 3)), ((0.08, 1.0), (0.75, 4 / 3)), ((0.5, 0.9), (1.2, 2.0))]
)
def test_crops_are_distributed_as_torchvisions(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    films, side = 3000, 96
    config = AugmentConfig(scale_min=scale[0], scale_max=scale[1], ratio_min=ratio[0], ratio_max=ratio[1])
    ours = crop_boxes(films, side, config, generator()).numpy()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        image = torch.empty(1, side, side)
        drawn = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(films)]
    theirs = np.array(drawn, dtype=float)[:, [1, 0, 3, 2]]
    for view in (_area, _ratio, _centre_across, _centre_down):
        assert ks_2samp(view(ours), view(theirs)).pvalue > 0.001, view.__name__


def _area(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 2] * boxes[:, 3]


def _ratio(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 2] / boxes[:, 3]


def _centre_across(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 0] + boxes[:, 2] / 2


def _centre_down(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 1] + boxes[:, 3] / 2


def test_crops_lie_inside_the_film() -> None:
    boxes = crop_boxes(2000, 50, AugmentConfig(scale_min=0.01, ratio_min=0.2, ratio_max=5.0), generator())
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 50).all()


@pytest.mark.parametrize(("ratio", "expected"), [((2.0, 3.0), [0, 16, 64, 32]), ((0.25, 0.5), [16, 0, 32, 64])])
def test_a_crop_that_never_fits_falls_back_to_the_centre(ratio: tuple[float, float], expected: list[int]) -> None:
    config = AugmentConfig(scale_min=1.0, ratio_min=ratio[0], ratio_max=ratio[1])
    assert crop_boxes(3, 64, config, generator()).tolist() == [expected] * 3


def test_crop_equals_torchvisions_resized_crop() -> None:
    pixels = smooth(4, 64)
    config = AugmentConfig(scale_min=0.3, scale_max=0.6, flip=0.0, rotation=0.0)
    boxes = crop_boxes(4, 64, config, generator(5)).int().tolist()
    ours = grey(Augment(config, 48)(pixels, generator(5)))
    for film, (left, top, width, height) in enumerate(boxes):
        picture = pixels[film : film + 1].float() / 255
        theirs = reference.resized_crop(picture, top, left, height, width, [48, 48], antialias=False)[0]
        inner = (slice(2, -2), slice(2, -2))
        torch.testing.assert_close(ours[film][inner], theirs[inner], atol=2e-3, rtol=0)


def test_flip_mirrors_exactly_and_as_often_as_asked() -> None:
    pixels = noise(400, 32)
    straight = grey(Augment(OFF, 32)(pixels, generator()))
    config = AugmentConfig(1.0, 1.0, 1.0, 1.0, flip=0.3, rotation=0.0)
    flipped = grey(Augment(config, 32)(pixels, generator()))
    mirrored = torch.tensor([torch.allclose(a, b.flip(-1), atol=1e-4) for a, b in zip(flipped, straight, strict=True)])
    same = torch.tensor([torch.allclose(a, b, atol=1e-4) for a, b in zip(flipped, straight, strict=True)])
    assert (mirrored ^ same).all()
    assert 0.2 < mirrored.float().mean() < 0.4


@pytest.mark.parametrize("degrees", [-90.0, -15.0, 5.0, 30.0, 90.0])
def test_rotation_equals_torchvisions(degrees: float) -> None:
    picture = smooth(1, 65).unsqueeze(1).float() / 255
    box = torch.tensor([[0.0, 0.0, 65.0, 65.0]], dtype=torch.float64)
    theta = affine(box, 65, torch.ones(1).double(), torch.tensor([degrees]).double())
    grid = torch.nn.functional.affine_grid(theta, [1, 1, 65, 65], align_corners=False)
    ours = torch.nn.functional.grid_sample(picture, grid, align_corners=False)
    theirs = reference.rotate(picture, degrees, InterpolationMode.BILINEAR)
    assert (ours - theirs).abs().mean() < 1e-3
    assert (ours - theirs).abs()[..., 8:-8, 8:-8].max() < 1e-3


def test_rotation_follows_crop_and_flip() -> None:
    """The order of torchvision's Compose: crop, flip, rotate, the rotation about the crop's centre."""
    picture = smooth(1, 64).unsqueeze(1).float() / 255
    box = torch.tensor([[10.0, 4.0, 40.0, 50.0]], dtype=torch.float64)
    theta = affine(box, 64, -torch.ones(1).double(), torch.tensor([12.0]).double())
    grid = torch.nn.functional.affine_grid(theta, [1, 1, 48, 48], align_corners=False)
    ours = torch.nn.functional.grid_sample(picture, grid, align_corners=False)
    cropped = reference.resized_crop(picture, 4, 10, 50, 40, [48, 48], antialias=False)
    theirs = reference.rotate(reference.hflip(cropped), 12.0, InterpolationMode.BILINEAR)
    assert (ours - theirs)[..., 8:-8, 8:-8].abs().max() < 0.02


def test_angles_fill_the_range_both_ways_and_open_black_corners() -> None:
    """The direction in which a ramp rises tells each film's angle."""
    ramp = torch.arange(64).mul(4).to(torch.uint8).expand(400, 64, 64)
    turned = grey(Augment(AugmentConfig(1.0, 1.0, 1.0, 1.0, 0.0, 15.0), 64)(ramp, generator()))
    down = (turned[:, 40, 32] - turned[:, 24, 32]) / 16
    across = (turned[:, 32, 40] - turned[:, 32, 24]) / 16
    degrees = torch.rad2deg(torch.atan2(down, across))
    assert -15.3 < degrees.min() < -14
    assert 14 < degrees.max() < 15.3
    assert abs(degrees.mean()) < 1.5
    assert abs(degrees.std() - 15 / 3**0.5) < 1
    white = torch.full((20, 64, 64), 255, dtype=torch.uint8)
    opened = grey(Augment(AugmentConfig(1.0, 1.0, 1.0, 1.0, 0.0, 15.0), 64)(white, generator()))
    assert opened.min() > -1e-5
    assert opened[:, 0, 0].min() < 0.01
    assert opened[:, 20:44, 20:44].min() > 0.999


@pytest.mark.parametrize(("side", "size"), [(96, 48), (128, 32), (224, 64)])
def test_a_fine_checkerboard_turns_grey_instead_of_waves(side: int, size: int) -> None:
    board = (torch.arange(side).view(-1, 1) + torch.arange(side)).remainder(2).mul(255).to(torch.uint8)
    pixels = board.expand(8, side, side)
    for images in (plain(pixels, size), Augment(OFF, size)(pixels, generator())):
        inner = grey(images)[:, 4:-4, 4:-4]
        assert (inner - 0.5).abs().max() < 0.1


def test_films_of_one_batch_may_need_different_levels() -> None:
    config = AugmentConfig(scale_min=0.05, scale_max=1.0, flip=0.0, rotation=0.0)
    pixels = smooth(32, 160)
    boxes = crop_boxes(32, 160, config, generator(2)).int().tolist()
    ours = grey(Augment(config, 32)(pixels, generator(2)))
    for film, (left, top, width, height) in enumerate(boxes):
        picture = pixels[film : film + 1].float() / 255
        theirs = reference.resized_crop(picture, top, left, height, width, [32, 32], antialias=True)[0]
        assert (ours[film] - theirs).abs()[2:-2, 2:-2].mean() < 0.02


DRAWS, SMALL = 1200, 48


def moments(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of (N, s, s) images: mean and mean square of each pixel, and the variance of these means, both (2, P).

    The pixels are those that no rotation brings in from beyond the crop: there the two may differ, see ``Augment``.
    """
    line = torch.arange(SMALL) - (SMALL - 1) / 2
    inside = line[:, None] ** 2 + line**2 < (SMALL / 2 - 2) ** 2
    values = images[:, inside].double()
    both = torch.stack([values, values**2])
    return both.mean(dim=1), both.var(dim=1) / len(images)


@pytest.fixture(scope="module")
def theirs() -> tuple[torch.Tensor, torch.Tensor]:
    """Moments of one film under torchvision's own pipeline with the default settings."""
    config = AugmentConfig()
    pipeline = v2.Compose(
        [
            v2.RandomResizedCrop(
                SMALL, (config.scale_min, config.scale_max), (config.ratio_min, config.ratio_max), antialias=True
            ),
            v2.RandomHorizontalFlip(config.flip),
            v2.RandomRotation(config.rotation, InterpolationMode.BILINEAR),
        ]
    )
    film = smooth(1, 72).float() / 255
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return moments(torch.cat([pipeline(film) for _ in range(DRAWS)]))


def distance(config: AugmentConfig, theirs: tuple[torch.Tensor, torch.Tensor]) -> tuple[float, float]:
    """The largest difference of a moment in its own sampling errors, and what chance exceeds once in a thousand."""
    ours = moments(grey(Augment(config, SMALL)(smooth(1, 72).expand(DRAWS, 72, 72), generator(1))))
    scores = (ours[0] - theirs[0]).abs() / (ours[1] + theirs[1]).sqrt()
    return float(scores.max()), float(norm.isf(0.001 / 2 / scores.numel()))


def test_pixels_are_distributed_as_torchvisions(theirs: tuple[torch.Tensor, torch.Tensor]) -> None:
    found, threshold = distance(AugmentConfig(), theirs)
    assert found < threshold


@pytest.mark.parametrize(
    "altered",
    [
        AugmentConfig(rotation=10.0),
        AugmentConfig(rotation=20.0),
        AugmentConfig(scale_min=0.85),
        AugmentConfig(scale_min=0.5),
        AugmentConfig(flip=0.35),
        AugmentConfig(ratio_min=0.95, ratio_max=1.05),
    ],
    ids=["less rotation", "more rotation", "larger crops", "smaller crops", "fewer flips", "squarer crops"],
)
def test_another_distribution_of_pixels_is_told_apart(
    altered: AugmentConfig, theirs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    found, threshold = distance(altered, theirs)
    assert found > threshold


AGAINST = {
    "border": AugmentConfig(1.0, 1.0, 1.0, 1.0, 0.0, 0.0, border=0.2),
    "recompress": AugmentConfig(1.0, 1.0, 1.0, 1.0, 0.0, 0.0, recompress=1.0),
    "gamma": AugmentConfig(1.0, 1.0, 1.0, 1.0, 0.0, 0.0, gamma=0.5),
    "brightness": AugmentConfig(1.0, 1.0, 1.0, 1.0, 0.0, 0.0, brightness=0.2),
    "equalise": AugmentConfig(1.0, 1.0, 1.0, 1.0, 0.0, 0.0, equalise=1.0),
}


def as_before(pixels: torch.Tensor, config: AugmentConfig, size: int, chance: torch.Generator) -> torch.Tensor:
    """What the augmentation was before anything against shortcuts came in."""
    boxes = crop_boxes(len(pixels), pixels.shape[-1], config, chance)
    signs = 1 - 2 * (torch.rand(len(pixels), generator=chance) < config.flip).double()
    degrees = (2 * torch.rand(len(pixels), generator=chance).double() - 1) * config.rotation
    theta = affine(boxes, pixels.shape[-1], signs, degrees)
    grid = torch.nn.functional.affine_grid(theta, [len(pixels), 1, size, size], align_corners=False)
    sampled = torch.nn.functional.grid_sample(pixels.unsqueeze(1).float() / 255, grid, align_corners=False)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return torch.addcmul(-mean / std, sampled.permute(0, 2, 3, 1), 1 / std).permute(0, 3, 1, 2)


def test_off_is_as_before_to_the_bit_and_draws_nothing() -> None:
    pixels, before, now = noise(16, 40), generator(3), generator(3)
    assert torch.equal(Augment(AugmentConfig(), 32)(pixels, now), as_before(pixels, AugmentConfig(), 32, before))
    assert torch.equal(now.get_state(), before.get_state())


@pytest.mark.parametrize("name", AGAINST)
def test_each_is_seeded_keeps_the_shape_and_differs_between_films(name: str) -> None:
    pixels, augment = smooth(1, 52).expand(6, 52, 52), Augment(AGAINST[name], 32)
    first, again, other = (augment(pixels, generator(seed)) for seed in (1, 1, 2))
    assert first.shape == (6, 3, 32, 32)
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(first, again)
    if name == "equalise":  # nothing is drawn where it is certain
        assert torch.equal(first[:1].expand_as(first), first)
    else:
        assert not torch.equal(first, other)
        assert len({tuple(film.flatten().tolist()) for film in first}) > 1
    assert not torch.equal(first, Augment(OFF, 32)(pixels, generator(1)))


@pytest.mark.parametrize("name", [name for name in AGAINST if name != "border"])
def test_what_comes_in_addition_leaves_crops_flips_and_angles_alone(name: str) -> None:
    """A film of one grey stays one, and the black corners that a rotation opens lie where they were."""
    flat = torch.full((8, 40, 40), 255, dtype=torch.uint8)
    config = replace(AugmentConfig(), **{name: getattr(AGAINST[name], name)})
    with_it, plainly = (grey(Augment(one, 32)(flat, generator(4))) for one in (config, AugmentConfig()))
    film, black = (one / one.amax(dim=(1, 2), keepdim=True) > 0.5 for one in (with_it, plainly))
    assert torch.equal(film, black)
    assert 0 < (~film).float().mean() < 0.5


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 95, 100])
@pytest.mark.parametrize("side", [64, 45])
def test_the_quantisation_is_that_of_a_grey_jpeg(quality: int, side: int) -> None:
    pixels = smooth(3, side)
    ours = recompressed(pixels.unsqueeze(1).float() / 255, torch.tensor([quality] * 3)) * 255
    for film, own in zip(pixels, ours[:, 0], strict=True):
        buffer = io.BytesIO()
        Image.fromarray(film.numpy()).save(buffer, "JPEG", quality=quality)
        theirs = torch.from_numpy(np.array(Image.open(buffer))).float()
        assert (own - theirs).abs().mean() < 0.3
        loss = float((theirs - film).abs().mean())
        assert float((own - film).abs().mean()) == pytest.approx(loss, rel=0.2, abs=0.05)


def test_each_film_has_its_own_quality() -> None:
    pixels = smooth(1, 64).expand(2, 64, 64).unsqueeze(1).float() / 255
    both = recompressed(pixels, torch.tensor([10, 90]))
    assert torch.equal(both[:1], recompressed(pixels[:1], torch.tensor([10])))
    assert torch.equal(both[1:], recompressed(pixels[1:], torch.tensor([90])))


def test_flat_histograms_are_pillows() -> None:
    films = torch.cat([smooth(3, 50), noise(1, 50) // 3, torch.full((1, 50, 50), 9, dtype=torch.uint8)])
    for film, table in zip(films, equalising(films), strict=True):
        expected = np.array(ImageOps.equalize(Image.fromarray(film.numpy())))
        assert np.array_equal((table * 255).round().numpy()[film.numpy()], expected)


def test_greys_stay_in_order_and_within_the_range_that_was_asked_for() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).expand(500, 256).reshape(500, 16, 16)
    powers = grey(Augment(replace(OFF, gamma=0.5), 16)(ramp, generator())).flatten(1)
    found = powers[:, 128].log() / torch.tensor(128 / 255).log()
    assert 1 / 1.5 - 1e-3 < found.min() < 0.69
    assert 1.45 < found.max() < 1.5 + 1e-3
    assert (powers.diff(dim=1) > 0).all()
    shifts = grey(Augment(replace(OFF, brightness=0.2), 16)(ramp, generator())).flatten(1)[:, 128] - 128 / 255
    assert -0.2 - 1e-4 < shifts.min() < -0.19
    assert 0.19 < shifts.max() < 0.2 + 1e-4


def test_chances_are_as_asked() -> None:
    pixels = noise(600, 40)
    for name in ("recompress", "equalise"):
        changed = Augment(replace(OFF, **{name: 0.3}), 40)(pixels, generator())
        same = (changed - Augment(OFF, 40)(pixels, generator())).abs().amax(dim=(1, 2, 3)) < 1e-5
        assert 0.6 < same.float().mean() < 0.8, name


def test_borders_are_lost_edge_by_edge_and_never_more_than_asked() -> None:
    """Two ramps tell where the edges of each film came to lie."""
    ramp = (torch.arange(128) * 2).to(torch.uint8)
    across, down = (film.expand(400, 128, 128) for film in (ramp, ramp[:, None]))
    for films, dim in ((across, 2), (down, 1)):
        shown = grey(Augment(replace(OFF, border=0.2), 128)(films, generator(6))).mean(dim=3 - dim) * 255 / 256
        first, last = shown[:, 2], 1 - shown[:, -3]
        for lost in (first, last):
            assert 0 < lost.min() < 0.03
            assert 0.19 < lost.max() < 0.225
        assert abs(torch.corrcoef(torch.stack([first, last]))[0, 1]) < 0.2
