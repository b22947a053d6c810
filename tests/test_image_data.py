"""Images as bytes: what is read, what is refused by name, and batches that resume bit for bit."""

import builtins
import io
import os
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_gebm.data import image_sets
from pyro_gebm.data.image_files import read_images, resized
from pyro_gebm.data.image_sets import IMAGE_SETS, load_image_set
from pyro_gebm.data.images import ImageLoader, scale_pixels

ROOT = Path(os.environ.get("PYRO_GEBM_DATA", "data"))
needs_data = pytest.mark.skipif(
    not (ROOT / "MNIST" / "raw" / "train-images-idx3-ubyte").exists(),
    reason="needs a data root with MNIST: set PYRO_GEBM_DATA",
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(file, array, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file, **options)
    return file


# --- NumPy's files ------------------------------------------


@pytest.mark.parametrize(
    ("shape", "layout", "order"),
    [
        ((5, 8, 9, 3), None, (0, 3, 1, 2)),
        ((5, 3, 8, 9), None, (0, 1, 2, 3)),
        ((5, 8, 9, 1), None, (0, 3, 1, 2)),
        ((5, 3, 9, 3), "NHWC", (0, 3, 1, 2)),
        ((5, 3, 9, 3), "NCHW", (0, 1, 2, 3)),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_come_channels_first(tmp_path, shape, layout, order, suffix):
    array = noise(*shape)
    file = tmp_path / f"images.{suffix}"
    np.save(file, array) if suffix == "npy" else np.savez_compressed(file, anything=array)
    found = read_images(file, layout=layout)
    assert found.labels is None and found.pixels.dtype == torch.uint8
    assert np.array_equal(found.pixels.numpy(), array.transpose(order))


def test_grey_arrays_get_a_channel(tmp_path):
    np.save(tmp_path / "grey.npy", noise(5, 8, 9))
    assert read_images(tmp_path / "grey.npy").pixels.shape == (5, 1, 8, 9)


@pytest.mark.parametrize(
    ("images", "labels"),
    [("images", "labels"), ("train_images", "train_labels"), ("x_train", "y_train")],
)
def test_usual_names_bring_their_labels(tmp_path, images, labels):
    file = tmp_path / "set.npz"
    arrays = {images: noise(5, 8, 8), labels: np.arange(5), "test_images": noise(2, 8, 8)}
    np.savez(file, **arrays)
    found = read_images(file)
    assert len(found.pixels) == 5 and found.labels.tolist() == list(range(5))
    assert len(read_images(file, key="test_images").pixels) == 2
    assert read_images(file, key="test_images", labels_key=None).labels is None


# --- folders ------------------------------------------


def test_a_folder_is_read_in_order_and_its_subfolders_are_classes(tmp_path):
    arrays = {name: noise(6, 7, 3, seed=seed) for seed, name in enumerate(["b/2", "a/1", "b/1"])}
    for name, array in arrays.items():
        picture(tmp_path / f"{name}.png", array)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "a" / ".hidden.png").write_text("no picture")
    found = read_images(tmp_path)
    expected = np.stack([arrays[name] for name in ("a/1", "b/1", "b/2")]).transpose(0, 3, 1, 2)
    assert np.array_equal(found.pixels.numpy(), expected)
    assert found.labels.tolist() == [0, 1, 1]


def test_loose_files_have_no_classes(tmp_path):
    picture(tmp_path / "a" / "1.png", noise(4, 4))
    picture(tmp_path / "2.png", noise(4, 4))
    assert read_images(tmp_path).labels is None


def test_the_first_picture_decides_on_colour(tmp_path):
    picture(tmp_path / "1.png", noise(4, 4, 3))
    grey = noise(4, 4)
    picture(tmp_path / "2.png", grey)
    found = read_images(tmp_path).pixels
    assert found.shape == (2, 3, 4, 4) and np.array_equal(found[1, 2].numpy(), grey)
    (tmp_path / "1.png").unlink()
    assert read_images(tmp_path).pixels.shape == (1, 1, 4, 4)
    assert read_images(tmp_path, channels=3).pixels.shape == (1, 3, 4, 4)


def test_photographs_are_turned_as_their_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    array = noise(4, 6, 3)
    picture(tmp_path / "1.png", array, exif=exif)
    turned = np.rot90(array, -1).transpose(2, 0, 1)
    assert np.array_equal(read_images(tmp_path).pixels[0].numpy(), turned)


def test_size_keeps_the_middle_and_the_shape_of_things(tmp_path):
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 200  # the middle third is all that is kept
    picture(tmp_path / "1.png", wide)
    picture(tmp_path / "2.png", np.full((16, 16), 7, np.uint8))
    pixels = read_images(tmp_path, size=8).pixels
    assert pixels.shape == (2, 1, 8, 8)
    assert (pixels[0] == 200).all() and (pixels[1] == 7).all()


def test_resizing_arrays_is_that_of_pictures(tmp_path):
    array = noise(3, 10, 12, 3)
    np.save(tmp_path / "x.npy", array)
    for place, image in enumerate(array):
        picture(tmp_path / "folder" / f"{place}.png", image)
    small = read_images(tmp_path / "x.npy", size=6).pixels
    assert torch.equal(small, read_images(tmp_path / "folder", size=6).pixels)
    flat = torch.full((1, 1, 9, 9), 31, dtype=torch.uint8)
    assert (resized(flat, 5) == 31).all()


# --- refusals ------------------------------------------


def broken(tmp_path, kind):
    """A folder or file with one thing wrong, and the name that the message must have."""
    folder = tmp_path / "folder"
    picture(folder / "1.png", noise(8, 8, 3))
    odd = folder / "2.png"
    if kind == "truncated":
        buffer = io.BytesIO()
        Image.fromarray(noise(64, 64, 3)).save(buffer, "PNG")
        odd.write_bytes(buffer.getvalue()[:2000])
    elif kind == "empty":
        odd.touch()
    elif kind == "text":
        odd.write_text("<html>not found</html>")
    elif kind == "another size":
        picture(odd, noise(8, 9, 3))
    elif kind == "16 bits":
        picture(odd, noise(8, 8).astype(np.uint16) * 256)
    elif kind == "transparent":
        picture(odd, noise(8, 8, 4))
    elif kind == "colour behind grey":
        picture(folder / "0.png", noise(8, 8))
        return folder, "1.png"
    return folder, "2.png"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "cannot be read"),
        ("empty", "cannot be read"),
        ("text", "cannot be read"),
        ("another size", "expected 8 x 8 pixels as 1.png; got 9 x 8"),
        ("16 bits", "8 bits a channel; got mode I"),
        ("transparent", "opaque"),
        ("colour behind grey", "grey.*RGB.*channels=3"),
    ],
)
def test_an_odd_picture_is_refused_by_name_in_one_line(tmp_path, kind, words):
    folder, name = broken(tmp_path, kind)
    with pytest.raises(ValueError, match=words) as caught:
        read_images(folder)
    assert f"{folder / name}: " in str(caught.value) and "\n" not in str(caught.value)


def test_opaque_alpha_is_no_transparency(tmp_path):
    array = noise(8, 8, 4)
    array[..., 3] = 255
    picture(tmp_path / "1.png", array)
    assert np.array_equal(
        read_images(tmp_path).pixels[0].numpy(), array[..., :3].transpose(2, 0, 1)
    )


def archive(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("x.npz", archive(images=noise(9, 8, 8))[:400], {}, "cannot be read"),
        ("x.npz", b"", {}, "cannot be read"),
        ("x.npz", b"no zip", {}, "cannot be read"),
        ("x.npz", archive(images=np.array([{}])), {}, "cannot be read.*pickle"),
        ("x.npz", archive(a=noise(2, 8, 8), b=noise(2, 8, 8)), {}, "key=.*a, b"),
        ("x.npz", archive(a=noise(2, 8, 8)), {"key": "b"}, "key: .*one of a; got 'b'"),
        ("x.npz", archive(a=noise(2, 8, 8)), {"labels_key": "b"}, "labels_key: .*'b'"),
        ("x.npz", archive(), {}, "no arrays"),
        ("x.npz", archive(a=np.zeros((2, 8, 8))), {}, "uint8.*float64"),
        ("x.npz", archive(a=noise(2, 8, 8, 4)), {}, r"\(2, 8, 8, 4\)"),
        ("x.npz", archive(a=noise(2, 3, 8, 3)), {}, "layout="),
        ("x.npz", archive(a=noise(0, 8, 8, 3)), {}, r"\(0, 8, 8, 3\)"),
        ("x.npz", archive(a=noise(2, 8, 8, 4)), {"layout": "NHWC"}, "1 or 3 channels; got 4"),
        ("x.npz", archive(a=noise(8, 8)), {"layout": "NCHW"}, r"NCHW; got shape \(8, 8\)"),
        ("x.npz", archive(images=noise(2, 8, 8), labels=np.zeros(3, int)), {}, r"labels \(2,\)"),
        ("x.npz", archive(images=noise(2, 8, 8), labels=np.zeros(2)), {}, "integer.*float64"),
        ("x.csv", b"1,2", {}, "expected a folder of pictures"),
    ],
)
def test_an_odd_array_is_refused_by_name_in_one_line(tmp_path, name, content, options, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_images(tmp_path / name, **options)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_images(tmp_path / "nothing.npz")
    with pytest.raises(ValueError, match="nothing of this name"):
        read_images(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"expected pictures.*got none"):
        read_images(tmp_path)
    for options, words in [
        ({"size": 0}, "size"), ({"channels": 2}, "channels"), ({"layout": "CHW"}, "layout"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=words):
            read_images(tmp_path, **options)


# --- known sets ------------------------------------------


def write_idx(file, array):
    file.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    file.write_bytes(header + array.tobytes())


def small_mnist(root, kind="MNIST"):
    images, labels = noise(12, 28, 28), np.arange(12, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        write_idx(root / kind / "raw" / f"{part}-images-idx3-ubyte", images)
        write_idx(root / kind / "raw" / f"{part}-labels-idx1-ubyte", labels)
    return images, labels


@pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
@pytest.mark.parametrize("train", [True, False])
def test_mnist_in_the_layout_of_torchvision(tmp_path, name, kind, train):
    pytest.importorskip("torchvision")
    images, labels = small_mnist(tmp_path, kind)
    found = load_image_set(name, tmp_path, train=train)
    assert np.array_equal(found.pixels[:, 0].numpy(), images)
    assert found.labels.tolist() == labels.tolist() and found.labels.dtype == torch.int64
    few = load_image_set(name, tmp_path, train=train, size=14, limit=5)
    assert few.pixels.shape == (5, 1, 14, 14) and len(few.labels) == 5


def test_cifar10_from_an_archive(tmp_path):
    train, test = noise(6, 32, 32, 3), noise(4, 32, 32, 3, seed=1)
    np.savez(
        tmp_path / "cifar10.npz",
        train_images=train, train_labels=np.arange(6), test_images=test, test_labels=np.arange(4),
    )  # fmt: skip
    found = load_image_set("cifar10", tmp_path)
    assert np.array_equal(found.pixels.permute(0, 2, 3, 1).numpy(), train)
    assert found.labels.tolist() == list(range(6))
    assert len(load_image_set("cifar10", tmp_path, train=False).pixels) == 4


def celeba(root, count=5):
    folder = root / "celeba"
    for place in range(count):
        picture(folder / "img_align_celeba" / f"{place + 1:06d}.jpg", noise(218, 178, 3))
    names = [f"{place + 1:06d}.jpg" for place in range(count)]
    part = [0, 0, 0, 2, 2]
    (folder / "list_eval_partition.txt").write_text(
        "".join(f"{name} {p}\n" for name, p in zip(names, part, strict=True))
    )
    for file, columns in [
        ("identity_CelebA.txt", 1), ("list_bbox_celeba.txt", 4),
        ("list_landmarks_align_celeba.txt", 10), ("list_attr_celeba.txt", 40),
    ]:  # fmt: skip
        rows = "".join(f"{name}{' 1' * columns}\n" for name in names)
        head = "" if columns == 1 else f"{count}\n{' '.join(f'c{i}' for i in range(columns))}\n"
        (folder / file).write_text(head + rows)
    return folder / "img_align_celeba"


def test_celeba_is_cropped_to_squares_and_a_bad_picture_is_named(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.CelebA, "_check_integrity", lambda self: True)  # of the real files
    pictures = celeba(tmp_path)
    found = load_image_set("celeba", tmp_path, size=32)
    assert found.pixels.shape == (3, 3, 32, 32) and found.labels is None
    assert load_image_set("celeba", tmp_path).pixels.shape == (3, 3, 64, 64)
    assert len(load_image_set("celeba", tmp_path, train=False).pixels) == 2
    (pictures / "000002.jpg").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"celeba: 000002.jpg, number 1: cannot be read"):
        load_image_set("celeba", tmp_path)


def test_lsun_is_asked_for_by_class_and_part(tmp_path, monkeypatch):
    asked = []

    class LSUN(list):
        def __init__(self, root, classes):
            asked.append((root, classes))
            super().__init__([(Image.fromarray(noise(20, 30, 3)), 0)] * 7)

    fake = types.SimpleNamespace(LSUN=LSUN)
    monkeypatch.setattr(image_sets, "_torchvision", lambda: fake)
    assert load_image_set("lsun-bedroom", tmp_path, size=16, limit=5).pixels.shape == (5, 3, 16, 16)
    load_image_set("lsun-tower", tmp_path, train=False, size=16)
    assert asked == [(str(tmp_path), ["bedroom_train"]), (str(tmp_path), ["tower_val"])]


@pytest.mark.parametrize("name", ["mnist", "cifar10", "celeba", "lsun-bedroom"])
def test_a_set_that_is_not_there_is_one_line_with_the_root(tmp_path, name):
    pytest.importorskip("torchvision")
    with pytest.raises(ValueError, match=f"expected {name} there") as caught:
        load_image_set(name, tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert ("download=True" in str(caught.value)) == (name != "lsun-bedroom")


def test_nothing_is_fetched_unless_asked_for(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    asked = []
    monkeypatch.setattr(datasets.MNIST, "download", lambda self: asked.append(self.root))
    with pytest.raises(ValueError, match="mnist"):
        load_image_set("mnist", tmp_path)
    assert asked == []
    with pytest.raises(ValueError, match="mnist"):
        load_image_set("mnist", tmp_path, download=True)
    assert asked == [tmp_path]


def test_a_cut_file_of_mnist_is_refused(tmp_path):
    pytest.importorskip("torchvision")
    small_mnist(tmp_path)
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{tmp_path}: expected mnist there, whole"):
        load_image_set("mnist", tmp_path)


@pytest.mark.parametrize("error", [ImportError("no module"), RuntimeError("torchvision::nms")])
def test_without_torchvision_the_extra_is_named(tmp_path, monkeypatch, error):
    real = builtins.__import__

    def refusing(name, *args, **options):
        if name.startswith("torchvision"):
            raise error
        return real(name, *args, **options)

    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(ImportError, match=r"pyro-gebm\[images\]"):
        load_image_set("mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("svhn", {}, "name: .*mnist.*'svhn'"),
        ("mnist", {"size": 0}, "size"),
        ("mnist", {"limit": 0}, "limit"),
    ],
)
def test_options_are_checked(tmp_path, name, options, words):
    with pytest.raises(ValueError, match=words):
        load_image_set(name, tmp_path, **options)


@needs_data
def test_the_real_sets():
    for name in ("mnist", "fashion-mnist"):
        train, test = load_image_set(name, ROOT), load_image_set(name, ROOT, train=False)
        assert train.pixels.shape == (60_000, 1, 28, 28) and test.pixels.shape[0] == 10_000
        assert torch.bincount(test.labels).sum() == 10_000 and int(train.labels.max()) == 9
    if (ROOT / "cifar10.npz").exists():
        cifar = load_image_set("cifar10", ROOT)
        means = (cifar.pixels.float().mean((0, 2, 3)) / 255).tolist()
        assert means == pytest.approx([0.49140, 0.48216, 0.44653], abs=1e-4)
    assert len(IMAGE_SETS) == 14


# --- batches ------------------------------------------


def numbered(count=20):
    """Images whose left pixel tells their number, and whose right one is 255."""
    pixels = torch.full((count, 1, 2, 2), 255, dtype=torch.uint8)
    pixels[..., 0] = torch.arange(count, dtype=torch.uint8)[:, None, None] * 5
    return pixels


def take(loader, count):
    return [next(loader) for _ in range(count)]


def test_bytes_are_scaled_to_plus_minus_one():
    x = scale_pixels(torch.arange(256).to(torch.uint8))
    assert x.dtype == torch.float32 and x[0] == -1 and x[255] == 1
    torch.testing.assert_close(x, torch.linspace(-1, 1, 256), atol=1e-6, rtol=0)
    assert ((x + 1) * 127.5).round().long().tolist() == list(range(256))
    assert scale_pixels(numbered(), dtype=torch.float64).dtype == torch.float64
    assert scale_pixels(numbered(), device="meta").is_meta


def test_batches_are_images_and_each_epoch_has_each():
    pixels = numbered()
    loader = ImageLoader(pixels, 5, generator=rng())
    for _ in range(2):
        epoch = torch.cat(take(loader, 4))
        assert epoch.shape == (20, 1, 2, 2)
        assert torch.equal(epoch[epoch[:, 0, 0, 0].argsort()], scale_pixels(pixels))


def test_half_of_the_images_are_mirrored_each_time_anew():
    loader = ImageLoader(numbered(), 20, generator=rng(), flip=True)
    flips = torch.stack([next(loader)[:, 0, 0, 0] == 1 for _ in range(400)])
    share = flips.double().mean()
    assert abs(share - 0.5) < 4 * 0.5 / flips.numel() ** 0.5
    assert (flips[1:] != flips[:-1]).double().mean() > 0.4
    x = next(loader)
    rows = torch.where(x[:, :, :, :1] == 1, x.flip(-1), x)
    assert torch.equal(rows[rows[:, 0, 0, 0].argsort()], scale_pixels(numbered()))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("seen", [0, 1, 3, 7])
def test_a_restored_loader_continues_bit_for_bit(tmp_path, flip, seen):
    loader = ImageLoader(numbered(), 6, generator=rng(5), flip=flip)
    take(loader, seen)
    torch.save(loader.state_dict(), tmp_path / "state.pt")
    expected = take(loader, 8)
    other = ImageLoader(numbered(), 6, generator=rng(99), flip=flip)
    take(other, 2)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(take(other, 8), expected, strict=True))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("world_size", [2, 3])
def test_the_ranks_slices_are_the_batches_of_one_process(flip, world_size):
    def taken(**of):
        return take(ImageLoader(numbered(), 6, generator=rng(5), flip=flip, **of), 7)

    joint = taken()
    slices = [taken(rank=rank, world_size=world_size) for rank in range(world_size)]
    for batch, parts in zip(joint, zip(*slices, strict=True), strict=True):
        assert torch.equal(torch.cat(parts), batch)


def test_the_global_stream_is_left_alone_and_bytes_are_not_copied():
    state, pixels = torch.get_rng_state(), numbered()
    loader = ImageLoader(pixels, 4, generator=rng(), flip=True)
    take(loader, 3)
    assert torch.equal(torch.get_rng_state(), state)
    pixels.fill_(0)
    assert (next(loader) == -1).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: scale_pixels(torch.zeros(3)), "pixels: .*uint8.*float32"),
        (lambda: ImageLoader(torch.zeros(9, 1, 2, 2), 2, generator=rng()), "uint8.*float32"),
        (lambda: ImageLoader(numbered()[:, 0], 2, generator=rng()), r"\(N, C, H, W\)"),
        (lambda: ImageLoader(numbered(), 21, generator=rng()), "batch_size: .*20; got 21"),
        (lambda: ImageLoader(numbered(), 4, generator=rng(), world_size=3), "multiple"),
        (lambda: ImageLoader(numbered(), 4, generator=rng(), flip="yes"), "flip: .*'yes'"),
        (
            lambda: ImageLoader(numbered(9), 4, generator=rng()).load_state_dict(
                ImageLoader(numbered(), 4, generator=rng()).state_dict()
            ),
            "state: .*9 data; got one for 20",
        ),
    ],
)
def test_loaders_refuse(call, words):
    with pytest.raises(ValueError, match=words):
        call()
