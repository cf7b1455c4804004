"""Options at the end of a dataset's name that choose objects."""

import pytest

from convnext.data.annotations.choices import Choices, parse_choices, united, with_choices
from convnext.errors import UsageError

CLASSES = {"vehicle": ("car", "bus"), "person": ("person",)}


def test_a_name_and_its_options_are_told_apart():
    assert parse_choices("coco:a.json:photos") == ("coco:a.json:photos", Choices())
    base, choices = parse_choices("coco:a.json:photos:masks=boxes:classes=vehicle=car+bus,person:crowds=objects")
    assert (base, choices) == ("coco:a.json:photos", Choices(united(CLASSES), crowds=True, masks="boxes"))
    assert choices.names == ["vehicle", "person"]


@pytest.mark.parametrize("name", ["traffic light", "a:b", "a,b", "a=b", "a+b", "100%", "50%2C", "Bär", "Bär+", "猫:犬", "it's (one)"])
def test_any_name_survives(name):
    choices = Choices(united({name: (name, "x"), "other": (f"{name}2",)}))
    assert parse_choices(with_choices("coco:a:b", choices)) == ("coco:a:b", choices)


def test_options_of_the_name_come_before_those_of_a_recipe():
    choices = Choices(united(CLASSES), crowds=True)
    assert with_choices("coco:a:b:classes=dog", choices) == "coco:a:b:classes=dog:crowds=objects"
    assert with_choices("coco:a:b", Choices()) == "coco:a:b"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (":classes=", "write classes as in classes=car,bus"),
        (":classes=car,,bus", "write classes as in"),
        (":classes=car,car", "write classes as in"),
        (":classes=vehicle=car+", "write classes as in"),
        (":classes=vehicle=car+bus,car", "names 'car' twice: a category belongs to one class"),
        (":crowds=yes", "must be crowds=ignore or crowds=objects"),
        (":masks=none", "must be masks=required, masks=boxes or masks=optional"),
        (":crowds=objects:crowds=ignore", "has the option 'crowds' twice"),
    ],
)
def test_mistakes_are_reported(options, message):
    with pytest.raises(UsageError, match=message):
        parse_choices(f"coco:a:b{options}")
