"""Points of a scaling study as a table: ours, or anybody's from a CSV file with named columns."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path

from runtime.errors import UserError, suggestion
from runtime.files import write_atomic

REQUIRED = ("family", "parameters", "tokens", "flops", "loss")
_SAME_BUDGET = 1.25  # points whose FLOPs are nearer than this factor to the next share a budget
_MOST_BYTES = 1 << 28


@dataclass(frozen=True)
class Measured:
    """One trained model: N `parameters` (weights of the layers' matrices), D `tokens` trained on, training `flops`.

    `loss` nats per token on held-out text (`loss_se` its standard error), an upper bound for masked diffusion.
    `budget` groups the points of one IsoFLOP curve. `unique_tokens`: D without repeats, if less than D.
    A sweep's points say what they were made by: `config_digest` (of `pretrain.scaling.identity`), and `data_digest` of
    the token streams.
    """

    family: str
    parameters: float
    tokens: float
    flops: float
    loss: float
    loss_se: float | None = None
    budget: float | None = None
    unique_tokens: float | None = None
    bits_per_byte: float | None = None
    bits_per_byte_se: float | None = None
    name: str = ""
    config_digest: str = ""
    data_digest: str = ""

    @property
    def unique(self) -> float:
        """Tokens seen at least once."""
        return min(self.unique_tokens or self.tokens, self.tokens)

    @property
    def epochs(self) -> float:
        """Times that each unique token was seen."""
        return self.tokens / self.unique


_DIGESTS = ("config_digest", "data_digest")
_TEXT = ("family", "name", *_DIGESTS)
COLUMNS = tuple(field.name for field in fields(Measured))
_FAMILY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAY_BE_ZERO = ("loss_se", "bits_per_byte_se")


def read_points(path: Path) -> list[Measured]:
    """Read a CSV file with a header; a sweep's has no points at first. Columns that are not ours are passed over,
    unless they look misspelt.

    Raises UserError naming the file, the line and the column: missing columns, values that are no positive finite
    numbers.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path} is larger than {_MOST_BYTES >> 20} MiB: a table of points is not")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: save it as CSV in UTF-8") from None
    reader = csv.DictReader(io.StringIO(text), strict=True, skipinitialspace=True)
    try:
        _check_header(path, [name.strip() for name in reader.fieldnames or []])
        reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        return [_point(path, reader.line_num, row) for row in reader if any(_words(row))]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}: mend it there") from None


def write_points(path: Path, points: Iterable[Measured]) -> None:
    """Write a CSV file that `read_points` reads back to equal points, atomically."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for point in points:
        writer.writerow({key: "" if value is None else value for key, value in asdict(point).items()})
    write_atomic(path, out.getvalue())


def families(points: Iterable[Measured]) -> list[str]:
    """The families in order of appearance."""
    return list(dict.fromkeys(point.family for point in points))


def single_epoch(points: Iterable[Measured]) -> list[Measured]:
    """Points whose tokens were hardly repeated (at most 1 % of them)."""
    return [point for point in points if point.epochs <= 1.01]


def by_budget(points: Sequence[Measured]) -> list[list[Measured]]:
    """Points of one family grouped by budget, sorted by budget and size; without budgets, by near FLOPs."""
    ordered = sorted(points, key=lambda point: (point.budget or point.flops, point.parameters))
    groups: list[list[Measured]] = [ordered[:1]] if ordered else []
    for before, point in pairwise(ordered):
        if before.budget is not None and point.budget is not None:
            same = point.budget == before.budget
        else:
            same = point.flops < before.flops * _SAME_BUDGET
        groups[-1].append(point) if same else groups.append([point])
    return [sorted(group, key=lambda point: point.parameters) for group in groups]


def _words(row: Mapping[str | None, object]) -> list[str]:
    return [value.strip() for value in row.values() if isinstance(value, str) and value.strip()]


def _check_header(path: Path, names: Sequence[str]) -> None:
    for name in REQUIRED:
        if name not in names:
            raise UserError(f"{path} has no column {name!r}{suggestion(name, names)}: it needs {', '.join(REQUIRED)}")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: column {name!r} stands twice: keep one of them")
        near = suggestion(name, [column for column in COLUMNS if column not in (*names, *_DIGESTS)])
        if name not in COLUMNS and near and len(name) > 3:
            raise UserError(f"{path}: unknown column {name!r}{near}: rename it")


def _point(path: Path, line: int, row: Mapping[str, str | None]) -> Measured:
    values: dict[str, object] = {}
    for column in COLUMNS:
        text = (row.get(column) or "").strip()
        if column in _TEXT:
            values[column] = text
        elif text:
            values[column] = _number(f"{path}, line {line}, {column}", text, column in _MAY_BE_ZERO)
        elif column in REQUIRED:
            raise UserError(f"{path}, line {line}: {column} is empty: give a number")
    if not _FAMILY.fullmatch(str(values["family"])):
        raise UserError(
            f"{path}, line {line}: family {values['family']!r:.60} is no name: use letters, digits, '.', '_' and '-', "
            "for example masked"
        )
    return Measured(**values)  # type: ignore[arg-type]


def _number(where: str, text: str, may_be_zero: bool) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0 or (number == 0 and not may_be_zero):
        raise UserError(f"{where}: {text[:40]!r} is no positive finite number")
    return number
