"""Strict settings: what is wrong is one line with the key as the user wrote it."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from runtime.errors import UserError
from runtime.settings import Settings, parse_yaml, read_yaml


class Circle(Settings):
    """A union's first member."""

    kind: Literal["circle"] = "circle"
    radius: float = Field(gt=0)


class Square(Settings):
    """A union's second member."""

    kind: Literal["square"] = "square"
    side: float
    corners: int = 4


class Drawing(Settings):
    """Every form a field can take."""

    title: str
    width: int = Field(gt=0)
    grey: bool = False
    depth: int | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    shape: Annotated[Circle | Square, Field(discriminator="kind")] = Circle(radius=1.0)
    shapes: list[Annotated[Circle | Square, Field(discriminator="kind")]] = []  # noqa: RUF012 (pydantic copies it)
    weights: dict[str, float] = {}  # noqa: RUF012

    @model_validator(mode="after")
    def _odd(self) -> "Drawing":
        if self.width == 13:
            raise ValueError("width=13 brings bad luck: set width=14")
        return self


GOOD: dict[str, Any] = {"title": "t", "width": 3}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"colour": 1}, "unknown key 'colour'"),
        ({"gray": True}, "unknown key 'gray' (did you mean 'grey'?)"),
        ({"shape": {"kind": "circle", "radus": 2.0}}, "unknown key 'shape.radus' (did you mean 'shape.radius'?)"),
        ({"shape": {"kind": "square", "sid": 2.0}}, "unknown key 'shape.sid' (did you mean 'shape.side'?)"),
        ({"shape": {"kind": "circle", "radius": 1, "circle": 2}}, "unknown key 'shape.circle'"),
        ({"shape": {"kind": "circle"}}, "shape.radius: Field required"),
        (
            {"shape": {"kind": "circel"}},
            "shape.kind: 'circel' is not one of 'circle', 'square' (did you mean 'circle'?)",
        ),
        ({"shape": {"radius": 1.0}}, "shape.kind is missing: say which kind it is"),
        ({"shapes": [{"kind": "circle", "radius": 0}]}, "shapes.0.radius: Input should be greater than 0 (given: 0)"),
        ({"weights": {"a.b": "much"}}, "weights.a.b: Input should be a valid number"),
        ({"width": "wide"}, "width: Input should be a valid integer, unable to parse string"),
        ({"width": 2.5}, "width: Input should be a valid integer, got a number with a fractional part (given: 2.5)"),
        ({"width": True}, "width is true, give a number"),
        ({"depth": False}, "depth is false, give a number"),
        ({"title": 5}, "title: Input should be a valid string (given: 5)"),
        ({"title": None}, "title: Input should be a valid string (given: None)"),
        ({"scale": [1.0]}, "scale.1: Field required"),
        ({"width": 13}, "width=13 brings bad luck: set width=14"),
        ({"title": {"x": "y" * 500}}, "title: Input should be a valid string (given: {'x': 'yyy"),
    ],
)
def test_one_line_names_the_key(change: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as raised:
        Drawing.parse(GOOD | change, "drawing.yaml")
    assert str(raised.value).startswith(f"drawing.yaml: {line}")
    assert len(str(raised.value)) < 200


def test_a_misspelt_required_key_is_told_before_its_absence() -> None:
    with pytest.raises(UserError, match=r"unknown key 'widht' \(did you mean 'width'\?\)"):
        Drawing.parse({"title": "t", "widht": 3}, "drawing.yaml")
    with pytest.raises(UserError, match="width: Field required"):
        Drawing.parse({"title": "t"}, "drawing.yaml")


@pytest.mark.parametrize("values", [None, [], "text", 3, {1: 2}])
def test_what_is_no_section_is_refused(values: Any) -> None:
    with pytest.raises(UserError, match=r"^here: "):
        Drawing.parse(values, "here")


def test_settings_are_frozen_and_booleans_stay_booleans() -> None:
    drawing = Drawing.parse({**GOOD, "grey": True}, "here")
    assert drawing.grey is True
    with pytest.raises(ValidationError, match="frozen"):
        drawing.width = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [1", "expected"),
        ("a: 1\na: 2", "key 'a' stands twice"),
        ("b:\n  a: 1\n  'a': 2", "key 'a' stands twice"),
        ("a: 2024-13-45", "month must be in 1..12"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: *nowhere", "undefined alias"),
        ("a: 1\n---\nb: 2", "single document"),
        ("[" * 600, ""),
        ("\x00", "special characters"),
    ],
)
def test_bad_yaml_is_one_line_with_the_file(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=rf"f\.yaml is not valid YAML \(.*{reason}.*\): mend it there") as raised:
        read_yaml(file)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("content", "kind"), [(b"- 1", "list"), (b"text", "str"), (b"3", "int")])
def test_yaml_that_is_no_mapping(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "f.yaml").write_bytes(content)
    with pytest.raises(UserError, match=f"holds a {kind}, not keys and values"):
        read_yaml(tmp_path / "f.yaml")


def test_yaml_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none cannot be read"):
        read_yaml(tmp_path / "none")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory"):
        read_yaml(tmp_path)
    (tmp_path / "latin").write_bytes(b"a: caf\xe9")
    with pytest.raises(UserError, match="latin is not valid YAML"):
        read_yaml(tmp_path / "latin")


def test_empty_yaml_is_an_empty_section_and_anchors_work(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "f.yaml") == {}
    assert parse_yaml("a: &x {b: 1}\nc: {<<: *x, d: 2}") == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}
