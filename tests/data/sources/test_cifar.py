import pickle

import numpy as np
import pytest
from source_files import EACH, archive

from convnext.data import download
from convnext.data.loader import Samples, make_loader
from convnext.data.sampling.order import InOrder
from convnext.data.sources import cifar
from convnext.data.sources.cifar import VERSIONS, open_cifar
from convnext.data.sources.open import formats
from convnext.errors import ConvnextError, UsageError


@pytest.fixture(autouse=True)
def _fresh():
    cifar._content.cache_clear()


@pytest.mark.parametrize("version", ["cifar10", "cifar100"])
def test_images_and_labels_are_those_of_the_records_in_order(tmp_path, monkeypatch, version):
    records, about = archive(tmp_path, version, monkeypatch), VERSIONS[version]
    for part, names in about.parts.items():
        source = open_cifar(f"{version}:{tmp_path}:{part}")
        wanted = np.concatenate([records[name] for name in names])
        assert len(source) == len(wanted) == EACH * len(names)
        for i, record in enumerate(wanted):
            assert source.label(i) == record[about.label_bytes - 1]
            image = np.asarray(source.read(i))
            assert image.shape == (32, 32, 3)
            red, blue = record[about.label_bytes :][:1024], record[about.label_bytes :][2048:]
            assert np.array_equal(image[..., 0], red.reshape(32, 32))
            assert np.array_equal(image[..., 2], blue.reshape(32, 32))
        assert source.classes == [f"class_{i}" for i in range(10 if version == "cifar10" else 100)]
        assert source.name(3) == f"{about.title} {part} 3"


def test_the_folder_comes_from_the_name_the_environment_or_is_data(tmp_path, monkeypatch):
    archive(tmp_path / "data", "cifar10", monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CONVNEXT_DATA", raising=False)
    assert len(open_cifar("cifar10:train")) == 5 * EACH
    monkeypatch.chdir("/")
    monkeypatch.setenv("CONVNEXT_DATA", str(tmp_path / "data"))
    assert len(open_cifar("cifar10:val")) == EACH
    (cifar,) = [entry for entry in formats() if entry.name == "CIFAR"]
    assert cifar.takes("cifar100:val")
    assert not cifar.takes("cifar10")
    assert not cifar.takes("digits:val")


def test_mistakes_are_reported(tmp_path, monkeypatch):
    archive(tmp_path, "cifar10", monkeypatch)
    for where in ("cifar10:vla", f"cifar10:{tmp_path}", "cifar10:"):
        with pytest.raises(UsageError, match="unknown dataset 'cifar10:.*cifar10:val"):
            open_cifar(where)
    with pytest.raises(ConvnextError, match="the classes of .* are class_0, .*, not the network's ant, bee"):
        open_cifar(f"cifar10:{tmp_path}:val", ["ant", "bee"])
    assert open_cifar(f"cifar10:{tmp_path}:val", [f"class_{i}" for i in range(10)]).label(0) < 10


def test_another_archive_than_the_published_one_is_never_read(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(b"not this")
    with pytest.raises(ConvnextError, match=f"{path} is damaged or not the published archive .MD5 .*, not c32a1d4a.*: remove it"):
        open_cifar(f"cifar10:{tmp_path}:train")


def test_without_a_network_the_error_says_which_archive_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(download, "_WAITS", (0,))
    wanted = (
        f"could not download https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz .* put it at {tmp_path}/new/cifar-100-binary.tar.gz"
    )
    with pytest.raises(ConvnextError, match=wanted):
        open_cifar(f"cifar100:{tmp_path}/new:val")


def test_workers_see_each_image_once_and_are_sent_no_pixels(tmp_path, monkeypatch):
    archive(tmp_path, "cifar10", monkeypatch)
    source = open_cifar(f"cifar10:{tmp_path}:train")
    assert len(pickle.dumps(source)) < 1000
    data = Samples(source, lambda image: np.asarray(image), seed=0)
    seen = [s for batch in make_loader(data, InOrder(len(source), 4), list, 2, pin=False) for s in batch]
    assert [s.index for s in seen] == list(range(5 * EACH))
    assert all(np.array_equal(s.image, np.asarray(source.read(s.index))) and s.label == source.label(s.index) for s in seen)
