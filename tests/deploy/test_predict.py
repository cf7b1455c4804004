import pytest
import torch
from helpers import picture, random_model

import convnext
from convnext.checkpoints.files import write_weights
from convnext.data.pictures import CorruptPictureError
from convnext.data.preprocessing import Preprocessing


@pytest.fixture
def weights(tmp_path):
    model = random_model("convnext_atto", num_classes=3)
    how = Preprocessing(image_size=64)
    description = {"task": "classify", "model": model.spec, "classes": ["ant", "bee", "wasp"], "preprocessing": how.to_json()}
    write_weights(tmp_path / "w.safetensors", model.state_dict(), description)
    return model, how, tmp_path / "w.safetensors"


def test_predictor_takes_files_bytes_and_pictures_alone_or_in_lists(weights, tmp_path):
    model, how, path = weights
    image = picture(size=(90, 70))
    image.save(tmp_path / "photo.png")
    predictor = convnext.load(path, device="cpu")
    wanted = model(how.transform()(image)[None]).softmax(1)[0]
    content = (tmp_path / "photo.png").read_bytes()
    for one in (image, tmp_path / "photo.png", str(tmp_path / "photo.png"), content):
        assert torch.allclose(predictor(one).probabilities, wanted, atol=1e-6)
    both = predictor([image, content])
    assert all(torch.allclose(p.probabilities, wanted, atol=1e-6) for p in both)
    assert len(both) == 2
    top = predictor(image).top(5)
    assert [name for name, _ in top] == [predictor.classes[i] for i in wanted.argsort(descending=True)]
    assert sum(p for _, p in top) == pytest.approx(1, abs=1e-5)


def test_what_cannot_be_read_raises_with_its_name(weights, tmp_path):
    (tmp_path / "bad.jpg").write_text("no")
    with pytest.raises(CorruptPictureError, match=r"bad\.jpg"):
        convnext.load(weights[2], device="cpu")(tmp_path / "bad.jpg")
